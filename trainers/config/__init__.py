"""Every key, and how a configuration is read and checked."""
