"""The order of several adapters, and of the modules that they act on."""
