"""megatron_prism: mid-training, restoration, RL, evaluation and analysis of language models on Megatron-Core."""

__version__ = "0.1.0"
