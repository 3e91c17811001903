"""How: configuration, engine, measurement, the training step, checkpoints, metrics. The only
importer of deepspeed.
"""
