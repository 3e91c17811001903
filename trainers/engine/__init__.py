"""DeepSpeed and the ranks."""
