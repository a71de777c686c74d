"""Functions and layers from primitives: each layer has a readable functional form beside its fast module."""
