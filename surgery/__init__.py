"""Estimators, geometry and rules as pure functions on small tensors.

The package imports torch only.
"""

__version__ = "0.2.0.dev0"  # of all packages; pyproject.toml reads it here
