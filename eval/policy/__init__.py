"""A language model as a policy."""
