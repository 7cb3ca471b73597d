"""mamba_ssm's scan: found without its CUDA extension, and called so that it computes what `ssd_scan` does."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor

from megatron_prism.models.layers import blockwise, fused_scan, pointwise
from megatron_prism.models.layers.activation import swiglu
from megatron_prism.models.layers.ssd import ssd_scan


@pytest.fixture(autouse=True)
def forget_the_kernel():
    fused_scan.scan_kernel.cache_clear()
    yield
    fused_scan.scan_kernel.cache_clear()


def package(folder: Path, init: str) -> None:
    """A mamba_ssm whose `__init__` is `init`."""
    kernels = folder / "mamba_ssm" / "ops" / "triton"
    kernels.mkdir(parents=True)
    (folder / "mamba_ssm" / "__init__.py").write_text(init)
    (kernels / "ssd_combined.py").write_text("def mamba_chunk_scan_combined():\n    return 'the kernel'\n")


@pytest.mark.parametrize("init", ["", "import selective_scan_cuda_that_is_not_there\n"])
def test_the_kernel_is_found_without_the_cuda_extension(tmp_path, monkeypatch, init):
    package(tmp_path, init)
    monkeypatch.syspath_prepend(str(tmp_path))
    before = set(sys.modules)
    try:
        assert fused_scan.scan_kernel()() == "the kernel"
    finally:
        for name in set(sys.modules) - before:
            del sys.modules[name]


def test_without_the_package_there_is_no_kernel():
    assert fused_scan.scan_kernel() is None
    assert "mamba_ssm" not in sys.modules


def reference(
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    chunk_size: int,
    D: Tensor | None = None,
    z: Tensor | None = None,
    dt_bias: Tensor | None = None,
    initial_states: Tensor | None = None,
    seq_idx: Tensor | None = None,
    cu_seqlens: Tensor | None = None,
    dt_softplus: bool = False,
    dt_limit: tuple[float, float] = (0.0, float("inf")),
    return_final_states: bool = False,
) -> tuple[Tensor, Tensor]:
    """The recurrence with the arguments of mamba_chunk_scan_combined (mamba_ssm 2.2, ops/triton/ssd_combined.py)."""
    assert z is None
    assert dt_bias is None
    assert D is not None
    assert not dt_softplus
    assert return_final_states
    ratio = x.shape[2] // B.shape[2]
    B, C = (each.repeat_interleave(ratio, 2) for each in (B, C))
    h = x.new_zeros(x.shape[0], *x.shape[2:], B.shape[3]) if initial_states is None else initial_states
    outputs = []
    for t in range(x.shape[1]):
        decay = torch.exp(dt[:, t] * A)[..., None, None]
        h = decay * h + (dt[:, t, :, None] * x[:, t])[..., None] * B[:, t, :, None]
        outputs.append((h @ C[:, t, ..., None])[..., 0] + D[:, None] * x[:, t])
    return torch.stack(outputs, 1), h


@pytest.mark.parametrize("carried", [False, True])
def test_the_kernel_gets_the_arguments_of_the_torch_scan(monkeypatch, carried):
    make = torch.Generator().manual_seed(2)

    def random(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=make)

    inputs = (random(2, 20, 4, 3), random(2, 20, 4).exp(), -random(4).exp(), random(2, 20, 2, 5))
    inputs = (*inputs, random(2, 20, 2, 5), random(4), random(2, 4, 3, 5) if carried else None)
    monkeypatch.setattr(fused_scan, "scan_kernel", lambda: reference)
    for found, expected in zip(fused_scan.fused_scan(*inputs), ssd_scan(*inputs), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_compile_is_applied_to_the_marked_functions(monkeypatch):
    """With torch.compile replaced by a wrapper that counts calls; compiling for real takes seconds per function."""
    calls = []

    def compile_(function, **_):
        return lambda *inputs: calls.append(function.__name__) or function(*inputs)

    monkeypatch.setattr(torch, "compile", compile_)
    x = torch.randn(4, 6).requires_grad_()
    expected = swiglu(x)
    assert not calls
    pointwise.use_compiled(True)
    try:
        found = swiglu(x)
        found.sum().backward()
    finally:
        pointwise.use_compiled(False)
    assert calls == ["_swiglu", "_swiglu_backward"]
    assert torch.equal(found, expected)


class OnDevice:
    """A tensor's question that chooses the size of blocks."""

    is_cuda = True


def test_blocks_on_a_gpu_are_as_large_as_the_mask_allows():
    assert blockwise._rows(torch.zeros(1), 8192, None) == blockwise.ROWS
    assert blockwise._rows(OnDevice(), 131_072, None) == 1024
    assert blockwise._rows(OnDevice(), 8192, 4095) == blockwise.MOST_ROWS
    assert blockwise._rows(OnDevice(), 2**22, None) == blockwise.ROWS
