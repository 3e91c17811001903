"""Configuration, engine, measurement, the training step, checkpoints, metrics.

This is the only package that imports deepspeed.
"""
