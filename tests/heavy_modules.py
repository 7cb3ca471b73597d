"""Modules that take long to import, and that training, sampling and export do not need."""

from __future__ import annotations

# Other people's training stacks, and what draws or tabulates.
STACKS = {
    *("nemo_run", "torchx", "datasets", "modelopt", "wandb", "pandas", "pyarrow", "matplotlib", "ray"),
    *("IPython", "tensorflow", "onnx", "lightning"),
}
# Compilers and what comes with transformers; an export loads it.
TRANSFORMERS = {"transformers", "torch._dynamo", "torch._inductor", "scipy", "sklearn"}
