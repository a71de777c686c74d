"""Fewer bits for a finished model: number formats, and layers that are stored in them."""
