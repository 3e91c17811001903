"""Measurement of the geometry of a batch."""
