"""Adapting a finished model from outside: full and partial fine-tuning, LoRA, adapters, prompts."""
