"""The training engine on DeepSpeed, and the ranks."""
