"""The geometry of a batch."""
