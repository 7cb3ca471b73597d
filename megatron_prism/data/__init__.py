"""Corpora: reading text, training a tokenizer, writing Megatron's token files, blending sources by weight."""
