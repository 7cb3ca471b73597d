"""The Triton scan of mamba_ssm, without its CUDA extension, next to this project's scan.

`import mamba_ssm` needs the compiled extension of Mamba-1 (ops/selective_scan_interface.py imports
`selective_scan_cuda`). The scan of Mamba-2 is pure Triton and does not, so the folder `mamba_ssm` of its source
distribution is made a package whose `__init__` is not run.
"""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from recorder import seconds_of
from torch import Tensor

from megatron_prism.models.architecture import Architecture
from megatron_prism.models.layers import mamba_scan
from megatron_prism.models.layers.ssd import ssd_scan
from megatron_prism.platform.hardware import device

# The folder that `fetch_wheels.py` fills.
CARRIED = Path(os.environ.get("PRISM_WHEELS", Path(__file__).with_name("wheels")))
CHUNK = 256


def combined_scan() -> Any:
    """mamba_ssm's `mamba_chunk_scan_combined`.

    Raises:
        ImportError: if neither an installed nor a carried mamba_ssm has it.
    """
    source = CARRIED / "mamba_ssm"
    if "mamba_ssm" not in sys.modules and source.is_dir():
        bare = ModuleType("mamba_ssm")
        bare.__path__ = [str(source)]
        sys.modules["mamba_ssm"] = bare
    return importlib.import_module("mamba_ssm.ops.triton.ssd_combined").mamba_chunk_scan_combined


def triton_scan(*inputs: Any, state: Tensor | None = None, **_: Any) -> tuple[Tensor, Tensor]:
    """`ssd_scan` by mamba_ssm: the same arguments (x, dt, A, B, C, D, and optionally the state) and results."""
    x, dt, A, B, C, D, *carried = inputs
    found: tuple[Tensor, Tensor] = combined_scan()(
        *(x, dt, A, B, C, CHUNK),
        D=D,
        initial_states=carried[0] if carried else state,
        return_final_states=True,
    )
    return found


@contextmanager
def scan_of_mamba_ssm() -> Iterator[None]:
    """A context in which the torch backend's Mamba layers use the scan of mamba_ssm."""
    combined_scan()
    before = mamba_scan.ssd_scan
    mamba_scan.ssd_scan = triton_scan
    try:
        yield
    finally:
        mamba_scan.ssd_scan = before


def compare_scans(architecture: Architecture, length: int) -> dict[str, Any]:
    """Forward and backward of both scans on one sequence: seconds, and the difference of their results."""
    a, generator = architecture, torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator).to(device())

    heads, dim, groups, size = a.mamba_num_heads, a.mamba_head_dim, a.mamba_num_groups, a.mamba_state_dim
    x, B, C = (
        normal(1, length, *shape).bfloat16().requires_grad_()
        for shape in ((heads, dim), (groups, size), (groups, size))
    )
    dt = torch.nn.functional.softplus(normal(1, length, heads) - 3).detach().requires_grad_()
    A, D = -torch.exp(normal(heads)), normal(heads)
    inputs = (x, dt, A, B, C, D)

    def once(scan: Any) -> list[Tensor]:
        for tensor in (x, dt, B, C):
            tensor.grad = None
        y, _ = scan(*inputs)
        y.float().square().mean().backward()
        return [y.detach(), *(tensor.grad for tensor in (x, dt, B, C))]

    ours = once(ssd_scan)
    found: dict[str, Any] = {"seconds": {"ours": seconds_of(lambda: once(ssd_scan), 3)}}
    theirs = once(triton_scan)
    found["seconds"]["mamba_ssm"] = seconds_of(lambda: once(triton_scan), 3)
    names = ("y", "dx", "ddt", "dB", "dC")
    found["difference"] = {
        name: float((mine.float() - other.float()).norm() / mine.float().norm())
        for name, mine, other in zip(names, ours, theirs, strict=True)
    }
    return found
