"""The keys of a configuration, and how it is read and checked."""
