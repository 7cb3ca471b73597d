"""Cosines that are planted exactly, chance levels against full enumeration and integrals, and unusable input."""

from __future__ import annotations

import itertools
import math
import re

import numpy
import pytest
import torch
from planted import WEIGHTS, analyze, document_of, make_base, moved, refusal, set_element
from pyarrow import parquet
from tiny_models import make_checkpoint

from megatron_prism.analysis import direction
from megatron_prism.analysis.direction import (
    Products,
    chance_absolute,
    chance_std,
    mean_cosine,
    pair_products,
    products,
)
from megatron_prism.analysis.direction_summary import analyze_direction, summarize
from megatron_prism.analysis.stages.direction import AnalyzeDirection
from megatron_prism.analysis.streaming import Piece
from megatron_prism.conversion.import_hf import import_checkpoint
from megatron_prism.errors import ConfigError
from megatron_prism.merging import blocks
from megatron_prism.pipeline.artifact import Artifact, Receipt

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
# Granite-4-H: rows of in_proj are z, x, B, C and dt; those of input_linear are gate and up.
ROWS = {
    "in_proj": {"in_proj.z": 64, "in_proj.x": 64, "in_proj.B": 16, "in_proj.C": 16, "in_proj.dt": 8},
    "input_linear": {"gate": 48, "up": 48},
}
# Sub-component -> (x, y): the second update is x u + y v, where u is the first one and v is orthogonal to it.
PLANTED = {
    "in_proj.z": (3, 4),
    "in_proj.x": (4, 3),
    "in_proj.B": (-3, 4),
    "in_proj.C": (0, 1),
    "in_proj.dt": (5, 12),
    "gate": (1, 0),
    "up": (-1, 0),
    "q": (8, 6),
}
REST = (12, 5)


def signs(count: int) -> torch.Tensor:
    return torch.where(torch.rand(count, generator=torch.Generator().manual_seed(count)) < 0.5, -1.0, 1.0)


def plant(name: str, weights: torch.Tensor, second: bool) -> torch.Tensor:
    """One update, sub-component by sub-component; the second model's is larger in later layers."""
    layer = re.search(r"layers\.(\d)", name)
    scale = 2 ** int(layer[1]) if layer and second else 1
    parts = next((rows for ending, rows in ROWS.items() if f"{ending}.weight" in name), None)
    if parts is None:
        parts = {"q" if "q_proj" in name else "rest": weights.shape[0]}
    found = []
    for part, rows in parts.items():
        u = signs(weights[:rows].numel())
        # As many elements agree with u as disagree.
        v = torch.where(torch.arange(len(u)) < len(u) // 2, u, -u)
        x, y = PLANTED.get(part, REST)
        update = scale * (x * u + y * v) if second else u
        found.append(update.view(rows, *weights.shape[1:]))
    return torch.cat(found)


@pytest.fixture(scope="module")
def families(tmp_path_factory):
    """base, first and second, stored in fp32 and in bf16."""
    found = {}
    for dtype in DTYPES:
        root = tmp_path_factory.mktemp(dtype)
        base = make_base("granite-h", root / "base", DTYPES[dtype])
        first = moved(base, root / "first", lambda name, weights: plant(name, weights, False))
        second = moved(base, root / "second", lambda name, weights: plant(name, weights, True))
        found[dtype] = (base, first, second)
    return found


@pytest.fixture
def family(families):
    return families["bf16"]


@pytest.fixture
def small_blocks(monkeypatch):
    """Blocks and chunks that end inside rows."""
    monkeypatch.setattr(blocks, "BLOCK", 700)
    monkeypatch.setattr(direction, "CHUNK", 97)


@pytest.mark.parametrize("dtype", DTYPES)
def test_planted_cosines_are_found_in_every_sub_component(families, dtype, small_blocks):
    base, *others = families[dtype]
    analysis = analyze_direction(base, others)
    (pair,) = analysis.document["pairs"]
    assert (pair["first"], pair["second"]) == ("first", "second")
    expected = {part: x / math.hypot(x, y) for part, (x, y) in PLANTED.items()}
    found = {name.partition(".")[2]: each for name, each in pair["sub_components"].items()}
    assert set(expected) < set(found)
    for part, each in found.items():
        truth = expected.get(part, 12 / 13)
        assert each["mean_cosine"] == pytest.approx(truth, abs=1e-6), part
    rows = analysis.rows["cosines"]
    for row in rows:
        truth = expected.get(row["sub_component"], 12 / 13)
        assert row["cosine"] == pytest.approx(truth, abs=1e-6), row["tensor"]
        # All elements of the first update are as large, so random signs and random directions are one thing.
        assert row["sign_flip_std"] == pytest.approx(row["chance_std"], rel=0.5)
    # The whole, written out: every element of the first update is 1, the second's norm is x and y's, times 2^layer.
    dot = norm = elements = 0.0
    for row in rows:
        x, y = PLANTED.get(row["sub_component"], REST)
        size, scale = math.prod(row["shape"]), 2 ** (row["layer"] or 0)
        elements, dot, norm = (
            elements + size,
            dot + size * x * scale,
            norm + size * (x * x + y * y) * scale**2,
        )
    whole = pair["all"]
    assert whole["elements"] == elements
    assert whole["cosine"] == pytest.approx(dot / math.sqrt(elements * norm), abs=1e-6)
    assert whole["first_norm"] == pytest.approx(math.sqrt(elements), rel=1e-9)
    assert whole["second_norm"] == pytest.approx(math.sqrt(norm), rel=1e-9)
    mean = sum(math.prod(row["shape"]) * row["cosine"] for row in rows) / elements
    assert whole["mean_cosine"] == pytest.approx(mean, abs=1e-9)
    # The two meanings differ, and so does each from the paper's average of sub-components.
    assert len({round(each, 4) for each in (whole["cosine"], whole["mean_cosine"], pair["overall"])}) == 3


def test_figures_and_tables_show_the_numbers(family, tmp_path):
    code, said, _ = analyze("direction", *family, "--out", tmp_path / "out")
    assert code == 0
    shown = next(line for line in said.splitlines() if " mamba.in_proj.dt " in line)
    # Layers 0 and 2 have the cosine 5/13, and the second update is 4 times as large in layer 2.
    together = 5 / 13 * (1 + 4) / math.sqrt((1 + 1) * (1 + 16))
    assert f"{together:.4f}" in shown
    assert f"{5 / 13:.4f}" in shown
    rows = parquet.read_table(tmp_path / "out/cosines.parquet").to_pylist()
    # Embedding and last norm; two norms, gate, up and down in each layer; 12 pieces of Mamba, 4 of attention.
    assert len(rows) == 2 + 3 * 5 + 2 * 12 + 4, "one row for each sub-component of each tensor"
    files = {file.name for file in (tmp_path / "out/figures").iterdir()}
    assert {"cosine.pdf", "cosine.png", "cosine_by_layer.svg"} < files
    svg = (tmp_path / "out/figures/cosine.svg").read_text()
    assert f">{together:.3f}<" in svg
    assert "Overall (wtd avg)" in svg


def test_both_kinds_of_folder_and_more_pairs(family, tmp_path):
    base, first, second = family
    for source in (base, second):
        out = tmp_path / source.name
        out.mkdir()
        import_checkpoint(source, out)
    third = moved(base, tmp_path / "third", lambda name, weights: -plant(name, weights, False))
    document = document_of("direction", tmp_path / "base", first, tmp_path / "second", third)
    pairs = {(pair["first"], pair["second"]): pair["all"]["cosine"] for pair in document["pairs"]}
    plain = document_of("direction", base, first, second)["pairs"][0]["all"]["cosine"]
    assert pairs["first", "second"] == pytest.approx(plain, abs=1e-12)
    assert pairs["first", "third"] == pytest.approx(-1, abs=1e-12)
    assert pairs["second", "third"] == pytest.approx(-plain, abs=1e-12)


def test_sums_against_numpy():
    """Numbers of very different sizes, where sums in fp32 would be wrong in the fourth digit."""
    random = numpy.random.default_rng(1)
    base = random.normal(size=(300, 400)).astype(numpy.float32)
    a = (base + random.lognormal(0, 4, base.shape) * random.choice([-1, 1], base.shape)).astype(numpy.float32)
    b = (a + base).astype(numpy.float32)
    x, y = (each.astype(numpy.longdouble) - base for each in (a, b))
    sums = pair_products(*map(torch.from_numpy, [base]), [torch.from_numpy(a), torch.from_numpy(b)])[0, 1]
    assert sums.cosine == pytest.approx(
        float((x * y).sum() / numpy.sqrt((x**2).sum() * (y**2).sum())), abs=1e-12
    )
    flips = numpy.sqrt((x**2 * y**2).sum() / ((x**2).sum() * (y**2).sum()))
    assert sums.sign_flip_std == pytest.approx(float(flips), rel=1e-10)


def test_the_chance_of_random_signs_is_that_of_all_signs():
    generator = torch.Generator().manual_seed(5)
    a, b = torch.randn(2, 10, generator=generator, dtype=torch.float64)
    a[3:6] = 0
    cosines = [
        float(torch.dot(a, b * torch.tensor(flips, dtype=torch.float64))) / float(a.norm() * b.norm())
        for flips in itertools.product((-1, 1), repeat=10)
    ]
    found = products(a, b)
    assert numpy.mean(cosines) == pytest.approx(0, abs=1e-12)
    assert found.sign_flip_std == pytest.approx(numpy.std(cosines), rel=1e-9)
    # Updates of the same 4 of 100 elements agree by chance as directions of 4 dimensions do.
    few = torch.zeros(100)
    few[10:14] = 3.0
    assert products(few, few.flip(0)).sign_flip_std == 0
    assert products(few, -few).sign_flip_std == pytest.approx(chance_std(4), rel=1e-9)


@pytest.mark.parametrize("dimensions", [2, 3, 8, 128, 20_000])
def test_the_chance_of_random_directions_is_the_integral_of_their_density(dimensions):
    # The cosine is cos(t) with density proportional to sin(t)^(d - 2).
    t = (numpy.arange(400_000) + 0.5) * math.pi / 400_000
    density = numpy.exp((dimensions - 2) * numpy.log(numpy.sin(t)))
    density /= density.sum()
    assert chance_std(dimensions) == pytest.approx(math.sqrt((density * numpy.cos(t) ** 2).sum()), rel=1e-6)
    assert chance_absolute(dimensions) == pytest.approx((density * abs(numpy.cos(t))).sum(), rel=2e-5)


def test_a_zero_update_has_no_cosine_and_is_counted(family, tmp_path):
    base, first, _ = family
    frozen = moved(
        base,
        tmp_path / "frozen",
        lambda name, weights: torch.zeros_like(weights) if "mamba" in name else plant(name, weights, True),
    )
    document = document_of("direction", base, first, frozen)
    whole = document["pairs"][0]["all"]
    # in_proj's five parts, conv1d and its bias, dt_bias, A_log, D, out_proj and the gated norm, in two layers.
    assert document["pairs"][0]["sub_components"]["mamba.in_proj.z"]["cosine"] is None
    assert whole["without_cosine"] == 24
    assert whole["mean_cosine"] is not None
    same = moved(base, tmp_path / "same", lambda name, weights: torch.zeros_like(weights))
    code, said, noted = analyze("direction", base, first, same)
    assert code == 0
    assert "same: every weight equals that of base" in noted
    assert "nan" not in said.lower()
    assert mean_cosine([Products(5)]) is None


def test_the_papers_overall_is_the_mean_weighted_by_parameters():
    """The bars of the project page and the sizes of the models give the totals printed beside them."""
    granite = {
        "q": (40 * 4096 * 4096, 0.538),
        "k": (40 * 1024 * 4096, 0.565),
        "v": (40 * 1024 * 4096, 0.549),
        "o": (40 * 4096 * 4096, 0.548),
        "gate": (40 * 12800 * 4096, 0.480),
        "up": (40 * 12800 * 4096, 0.513),
        "down": (40 * 12800 * 4096, 0.515),
        "embedding": (49159 * 4096, 0.885),
    }
    nemotron = {
        "q": (4 * 4096 * 4096, 0.631),
        "k": (4 * 1024 * 4096, 0.629),
        "v": (4 * 1024 * 4096, 0.644),
        "o": (4 * 4096 * 4096, 0.596),
        "up": (24 * 21504 * 4096, 0.573),
        "down": (24 * 21504 * 4096, 0.614),
        "mamba": (24 * (18560 + 8192) * 4096, 0.590),
        "embedding": (2 * 131072 * 4096, 0.818),
    }
    for bars, printed in ((granite, 0.521), (nemotron, 0.623)):
        pieces = [Piece(part, None, "mlp", part, 0, (size,)) for part, (size, _) in bars.items()]
        sums = [Products(size, cosine, 1.0, 1.0, 0.0) for size, cosine in bars.values()]
        assert round(summarize(pieces, sums)["overall"], 3) == printed
        assert round(sum(cosine for _, cosine in bars.values()) / len(bars), 3) != printed


def test_unusable_input_is_one_line(family, tmp_path):
    base, first, _ = family
    assert "an angle needs two updates" in refusal("direction", base, first)
    assert "given twice" in refusal("direction", base, first, first)
    assert "is the base itself" in refusal("direction", base, base, first)
    other = make_checkpoint("granite", tmp_path / "other", torch.bfloat16)
    assert "only models of one architecture" in refusal("direction", base, first, other)
    name = "model.layers.1.self_attn.k_proj.weight"
    broken = moved(base, tmp_path / "broken", lambda name, weights: torch.zeros_like(weights))
    set_element(broken, name, (7, 3), math.nan)
    assert f"{broken}: tensor '{name}' holds nan in row 7" in refusal("direction", base, first, broken)
    set_element(broken, name, (7, 3), math.inf)
    assert "holds inf in row 7" in refusal("direction", base, first, broken)
    (broken / WEIGHTS).unlink()
    assert str(broken) in refusal("direction", base, first, broken)
    assert "no such folder" in refusal("direction", base, first, tmp_path / "nowhere")


def test_the_stage_names_its_models(family):
    base, first, second = family
    receipt = Receipt("import", "0" * 64, "import", {}, {})
    inputs = {name: Artifact(path, receipt) for name, path in zip("zxy", (second, base, first), strict=True)}
    metrics = AnalyzeDirection(base="x").analyze(inputs).summary
    (headline,) = metrics["pairs"]
    assert (metrics["base"], headline["first"], headline["second"]) == ("x", "z", "y")
    assert headline == analyze_direction(base, [second, first], "xzy").summary["pairs"][0]
    with pytest.raises(ConfigError, match="base=w: no input has this name"):
        AnalyzeDirection(base="w").analyze(inputs)
    with pytest.raises(ConfigError, match="an angle needs two updates"):
        AnalyzeDirection(base="x").analyze({"x": inputs["x"], "y": inputs["y"]})
