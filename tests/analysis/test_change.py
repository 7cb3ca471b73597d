"""The change of a tensor, against fractions of its elements and against planted truths."""

from __future__ import annotations

import math
from fractions import Fraction

import pytest
import torch

from megatron_prism.analysis import change as module
from megatron_prism.analysis.change import ABSOLUTE, THRESHOLDS, Change, change, changes, total

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch):
    """More than 255 chunks, so that the bytes that count must be collected in between."""
    monkeypatch.setattr(module, "CHUNK", 7)


def noise(count: int, seed: int) -> torch.Tensor:
    return torch.randn(count, generator=torch.Generator().manual_seed(seed))


def planted(dtype: torch.dtype, count: int = 1500) -> tuple[torch.Tensor, torch.Tensor]:
    """A base with zeros, and another model with changes of every size, many of them exactly at a threshold."""
    base = noise(count, 1)
    base[::50] = 0
    # 100 -> 101 is exactly 1 %, and both are numbers of bf16; 200 -> 210 is 5 %, and 1000 -> 1001 0.1 %.
    base[1::50], base[2::50], base[3::50] = 100, 200, 1000
    other = base * (1 + 0.03 * noise(count, 2))
    other[1::50], other[2::50], other[3::50] = 101, 210, 1001
    other[::100] = 0.5
    other[5::7] = base[5::7]
    return base.to(dtype), other.to(dtype)


def in_fractions(base: torch.Tensor, other: torch.Tensor) -> Change:
    """The definitions of `Change`, element by element, in exact arithmetic."""
    old, new = ([Fraction(value) for value in tensor.tolist()] for tensor in (base, other))
    seen_old, seen_new = ([Fraction(v) for v in tensor.bfloat16().tolist()] for tensor in (base, other))
    pairs = list(zip(old, new, strict=True))
    seen = [abs(b - a) for a, b in zip(seen_old, seen_new, strict=True)]
    exact = [Fraction(str(threshold)) for threshold in THRESHOLDS]
    finer = torch.finfo(other.dtype).eps < torch.finfo(torch.bfloat16).eps
    hidden = [b - a for (a, b), shown in zip(pairs, seen, strict=True) if shown == 0 and a != b]
    coarser = max((base.dtype, other.dtype), key=lambda dtype: torch.finfo(dtype).eps)
    squares = float(sum((b - a) ** 2 for a, b in pairs))
    return Change(
        elements=len(pairs),
        base_squares=float(sum(a**2 for a in old)),
        change_squares=squares,
        below=tuple(sum(a != 0 and abs(b - a) < limit * abs(a) for a, b in pairs) for limit in exact),
        equal=sum(a == b for a, b in pairs),
        zeros_kept=sum(a == 0 and b == 0 for a, b in pairs),
        zeros_changed=sum(a == 0 and b != 0 for a, b in pairs),
        absolute=sum(each <= Fraction(ABSOLUTE) for each in seen),
        floor_squares=sum(spacing(float(a), coarser) ** 2 / 12 for a in old),
        rounded=len(pairs) if finer else 0,
        rounded_changed=sum(a != b for a, b in pairs) if finer else 0,
        vanished=len(hidden) if finer else 0,
        rounded_squares=squares if finer else 0.0,
        vanished_squares=float(sum(each**2 for each in hidden)) if finer else 0.0,
    )


def spacing(value: float, dtype: torch.dtype) -> float:
    """The distance from a number of `dtype` to the next larger one."""
    size = torch.tensor(abs(value)).to(dtype)
    if torch.finfo(dtype).bits == 16:
        return float((size.view(torch.int16) + 1).view(dtype).double() - size.double()) if value else 0.0
    return float((size.view(torch.int32) + 1).view(dtype).double() - size.double())


SUMS = ("base_squares", "change_squares", "rounded_squares", "vanished_squares")


@pytest.mark.parametrize("base_dtype", DTYPES)
@pytest.mark.parametrize("other_dtype", DTYPES)
def test_every_sum_is_that_of_exact_arithmetic(base_dtype, other_dtype):
    base, other = planted(DTYPES[base_dtype])[0], planted(DTYPES[other_dtype])[1]
    found, expected = change(base, other), in_fractions(base, other)
    for name in ("below", "equal", "zeros_kept", "zeros_changed", "absolute", "rounded", "vanished"):
        assert getattr(found, name) == getattr(expected, name), name
    for name in SUMS:
        assert getattr(found, name) == pytest.approx(getattr(expected, name), rel=1e-6), name
    # Next to zero the spacing of numbers is not that of their exponent; its square does not count.
    assert found.floor_squares == pytest.approx(expected.floor_squares, rel=1e-6)
    assert found.zeros_kept
    assert found.zeros_changed


@pytest.mark.parametrize("dtype", ["bf16", "fp32"])
def test_a_change_exactly_at_a_threshold_is_not_below_it(dtype):
    base, other = torch.tensor([100.0, 200.0, 1000.0]), torch.tensor([101.0, 210.0, 1001.0])
    found = change(base.to(DTYPES[dtype]), other.to(DTYPES[dtype]))
    # In bf16, 1001 is 1000.
    at_a_thousandth = 1 if dtype == "bf16" else 0
    assert found.below == (at_a_thousandth, 1, 1, 2, 2, 3)


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
@pytest.mark.parametrize("scale", [1e-30, 1.0, 1e25])
def test_a_planted_divergence(dtype, scale):
    """Whole numbers times a power of two, so that w' = 1.25 w is exact in bf16; also where fp32's squares end."""
    power = 2.0 ** round(math.log2(scale))
    base = (torch.arange(1, 33).repeat(200) * power * 4).to(DTYPES[dtype])
    other = (base.double() * 1.25).to(DTYPES[dtype])
    assert torch.equal(other.double(), base.double() * 1.25), "the plant itself is not exact"
    found = change(base, other)
    assert found.delta == pytest.approx(0.25, rel=1e-6)
    assert found.sparsity == dict.fromkeys(THRESHOLDS, 0.0)


def test_the_largest_numbers_of_bf16_have_a_finite_change():
    largest = torch.finfo(torch.bfloat16).max
    base = torch.tensor([largest, 1.0], dtype=torch.bfloat16)
    found = change(base, -base)
    assert found.delta == pytest.approx(2, rel=1e-12)
    assert not any(found.below)
    assert math.isnan(change(base, base * math.nan).change_squares), "the caller refuses it"
    assert math.isinf(change(base, base * math.inf).change_squares)


def test_sums_of_pieces_are_the_sums_of_the_whole():
    base, other = planted(torch.float32)
    pieces = [change(a, b) for a, b in zip(base.split(333), other.split(333), strict=True)]
    found, whole = total(pieces), change(base, other)
    assert found.below == whole.below
    assert found.delta == pytest.approx(whole.delta, rel=1e-12)
    # Negative control: the mean of the pieces' deltas is another number.
    assert sum(piece.delta for piece in pieces) / len(pieces) != pytest.approx(whole.delta, rel=1e-4)


def test_several_models_against_one_base_are_what_each_is_alone():
    base, other = planted(torch.bfloat16)
    third = planted(torch.float32)[1]
    assert changes(base, [other, third]) == [change(base, other), change(base, third)]


def test_without_a_base_there_is_no_relative_change():
    found = change(torch.zeros(9), torch.ones(9))
    assert found.delta is None
    assert found.floor is None
    assert found.zeros_changed == 9
    assert set(found.sparsity.values()) == {0.0}


@pytest.mark.parametrize("dtype", ["bf16", "fp16"])
def test_the_floor_is_what_rounding_alone_gives(dtype, monkeypatch):
    monkeypatch.setattr(module, "CHUNK", 1 << 15)
    weights = 0.02 * noise(200_000, 3)
    rounded = weights.to(DTYPES[dtype])
    found = change(weights, rounded)
    assert found.delta == pytest.approx(found.floor, rel=0.02)
    # Negative control: the other dtype's floor is eight times as high or as low.
    other = next(each for each in ("bf16", "fp16") if each != dtype)
    assert not 0.5 < change(weights, weights.to(DTYPES[other])).floor / found.floor < 2


def test_a_small_step_of_reinforcement_learning_vanishes_in_bf16(monkeypatch):
    """Adam moves each weight by about the learning rate; that of the paper is 5e-7, and weights are about 0.02."""
    monkeypatch.setattr(module, "CHUNK", 1 << 15)
    base = (0.02 * noise(100_000, 4)).bfloat16()
    sign = torch.sign(noise(100_000, 5))
    main = base.float() + 5e-7 * sign
    found = change(base, main)
    assert found.equal == 0
    assert found.vanished / found.rounded_changed > 0.9
    assert change(base, main.bfloat16()).equal == found.vanished
    # A step that is ten thousand times larger is seen.
    large = change(base, base.float() + 5e-3 * sign)
    assert large.vanished / large.rounded_changed < 0.01
    # What a bf16 model has lost cannot be told from it alone.
    assert change(base, main.bfloat16()).rounded == 0
