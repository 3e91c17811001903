"""What to do: estimators, geometry and rules as pure functions on small tensors. Imports torch
only.
"""
