"""The imports of the fork server of `warm.py`: everything that takes seconds to import."""

from __future__ import annotations

import gc
import importlib
import os
import warnings

# One thread, because a fork while another thread holds a lock could wait for that lock forever.
os.environ["OMP_NUM_THREADS"] = "1"

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    for name in (
        "megatron.core.datasets.gpt_dataset",
        "megatron.core.dist_checkpointing",
        "megatron_prism.conversion.stage",
        "megatron_prism.rl.rl_run",
        "megatron_prism.training.trainer",
        "pytest",
        "transformers.models.auto.modeling_auto",
    ):
        importlib.import_module(name)

# Garbage collections skip imported objects, and their memory stays shared with the children.
gc.collect()
gc.freeze()
