"""mamba_ssm's Triton scan, if it can be imported: the same function as `ssd_scan`, in fused kernels for CUDA.

The kernels are Python files that need Triton and einops only. `import mamba_ssm` nevertheless fails without the
compiled CUDA extension (its `__init__` imports `selective_scan_cuda`), so in that case the package's folder is entered
without running its `__init__`. Not run on a GPU.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from functools import lru_cache
from types import ModuleType
from typing import Any

from torch import Tensor

MODULE = "mamba_ssm.ops.triton.ssd_combined"
# mamba_ssm's default (modules/mamba2.py).
CHUNK = 256


@lru_cache(maxsize=1)
def scan_kernel() -> Any:
    """`mamba_chunk_scan_combined`, or None if this environment cannot import it."""
    # Not only ImportError: a CUDA extension for another torch raises OSError.
    for load in (importlib.import_module, _without_init):
        try:
            return load(MODULE).mamba_chunk_scan_combined
        except Exception:
            continue
    return None


def _without_init(name: str) -> ModuleType:
    package = name.partition(".")[0]
    spec = importlib.util.find_spec(package)
    if spec is None or spec.submodule_search_locations is None:
        raise ImportError(f"no module named {package}")
    for broken in [each for each in sys.modules if each.partition(".")[0] == package]:
        del sys.modules[broken]
    entered = ModuleType(package)
    entered.__path__ = list(spec.submodule_search_locations)
    sys.modules[package] = entered
    try:
        return importlib.import_module(name)
    except BaseException:
        del sys.modules[package]
        raise


def fused_scan(
    x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, state: Tensor | None
) -> tuple[Tensor, Tensor]:
    """`ssd_scan` by the kernel; arguments and results as there."""
    y, last = scan_kernel()(
        x,
        dt,
        A,
        B,
        C,
        chunk_size=CHUNK,
        D=D.float(),
        initial_states=state,
        return_final_states=True,
    )
    return y, last.float()
