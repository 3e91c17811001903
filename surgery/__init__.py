"""Estimators, geometry and rules as pure functions on small tensors.

The package imports torch only.
"""
