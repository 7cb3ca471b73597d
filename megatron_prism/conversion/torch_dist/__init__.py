"""Megatron's `torch_dist` checkpoint format: its keys, and a reader and a writer that need no model."""
