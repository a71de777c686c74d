"""How good is a model: likelihood per token and per byte, and classification scores."""
