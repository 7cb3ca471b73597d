"""Tiny checkpoints whose updates are known exactly: small whole numbers, which bf16 holds without rounding."""

from __future__ import annotations

import contextlib
import io
import json
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from tiny_models import make_checkpoint
from torch import Tensor

from megatron_prism.cli.main import main

WEIGHTS = "model.safetensors"


def whole_numbers(shape: tuple[int, ...], most: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(-most, most + 1, shape, generator=generator).float()


def make_base(name: str, folder: Path, dtype: torch.dtype, most: int = 60) -> Path:
    """A checkpoint whose weights are whole numbers up to `most`, none of them 0."""
    make_checkpoint(name, folder, dtype)
    state = load_file(folder / WEIGHTS)
    for seed, (key, tensor) in enumerate(sorted(state.items())):
        numbers = whole_numbers(tuple(tensor.shape), most, seed)
        state[key] = torch.where(numbers == 0, torch.ones(()), numbers).to(dtype)
    save_file(state, folder / WEIGHTS, {"format": "pt"})
    return folder


def moved(base: Path, folder: Path, update: Callable[[str, Tensor], Tensor]) -> Path:
    """The base with `update(name, weights in fp64)` added; it must be exact in the stored dtype."""
    folder.mkdir()
    for file in base.iterdir():
        if file.name != WEIGHTS:
            (folder / file.name).symlink_to(file)
    state = {}
    for name, tensor in load_file(base / WEIGHTS).items():
        wanted = tensor.double() + update(name, tensor.double()).double()
        state[name] = wanted.to(tensor.dtype)
        assert torch.equal(state[name].double(), wanted), f"{name}: the planted update is rounded"
    save_file(state, folder / WEIGHTS, {"format": "pt"})
    return folder


def set_element(folder: Path, name: str, place: tuple[int, ...], value: float) -> None:
    state = load_file(folder / WEIGHTS)
    state[name][place] = value
    save_file(state, folder / WEIGHTS, {"format": "pt"})


def analyze(*arguments: object) -> tuple[int, str, str]:
    """`prism analyze ...`: exit code, stdout and stderr."""
    out, err = io.StringIO(), io.StringIO()
    code = None
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            main(["analyze", *map(str, arguments)])
        except SystemExit as end:
            code = end.code
    assert isinstance(code, int)
    return code, out.getvalue(), err.getvalue()


def document_of(*arguments: object) -> dict:
    """The JSON document that `prism analyze ...` prints."""
    code, out, err = analyze(*arguments, "--json", "-")
    assert code == 0, err
    return json.loads(out)


def refusal(*arguments: object) -> str:
    """The one line with which `prism analyze ...` refuses its arguments."""
    code, out, err = analyze(*arguments)
    assert code == 2
    assert not out
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    return err
