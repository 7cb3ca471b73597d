"""Weights between Megatron checkpoints and Hugging Face folders."""
