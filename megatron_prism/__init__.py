"""megatron_prism: mid-training, restoration, RL, evaluation and analysis of language models on Megatron-Core."""

from megatron_prism.platform import lean_imports

__version__ = "0.1.0"

# Before anything imports torch or Megatron, in every process: the command line's, a worker's, a test's.
lean_imports.install()
