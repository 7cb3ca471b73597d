"""Ranks, singular values and angles that are planted, or found by numpy and scipy; noise against its law."""

from __future__ import annotations

import dataclasses
import json
import math

import numpy
import pytest
import scipy.linalg
import torch
from planted import WEIGHTS, document_of, make_base, moved, refusal, set_element, whole_numbers
from safetensors.torch import load_file

from megatron_prism.analysis import spectrum_summary, update_matrices
from megatron_prism.analysis.figures import inline_svg
from megatron_prism.analysis.random_spectrum import random_spectrum
from megatron_prism.analysis.spectrum import (
    TOLERANCE,
    effective_rank,
    effective_rank_bounds,
    exact_spectrum,
    leading_spectrum,
    share_sizes,
)
from megatron_prism.analysis.spectrum_summary import analyze_spectrum
from megatron_prism.analysis.stages.spectrum import AnalyzeSpectrum
from megatron_prism.analysis.subspaces import chance_overlap, overlap, principal_cosines
from megatron_prism.analysis.view import view
from megatron_prism.conversion.import_hf import import_checkpoint
from megatron_prism.errors import ConfigError
from megatron_prism.pipeline.artifact import Artifact, Receipt

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
# The rows of Granite-4-H's in_proj and their planted ranks; together they have another one.
IN_PROJ = {
    "in_proj.z": (64, 1),
    "in_proj.x": (64, 2),
    "in_proj.B": (16, 3),
    "in_proj.C": (16, 4),
    "in_proj.dt": (8, 2),
}
RANK = 2


def low_rank(rows: int, columns: int, rank: int, seed: int) -> torch.Tensor:
    """Whole numbers of at most 4 `rank`, of exactly this rank."""
    left, right = whole_numbers((rows, rank), 2, seed), whole_numbers((rank, columns), 2, seed + 1)
    found = left @ right
    assert numpy.linalg.matrix_rank(found.numpy()) == rank
    return found


def plant(name: str, weights: torch.Tensor) -> torch.Tensor:
    if weights.dim() != 2:
        return torch.ones_like(weights)
    columns = weights.shape[1]
    if "in_proj" in name:
        return torch.cat([low_rank(rows, columns, rank, 7 * rank) for rows, rank in IN_PROJ.values()])
    return low_rank(weights.shape[0], columns, RANK, len(name))


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """base and moved, in fp32 and in bf16."""
    found = {}
    for dtype in DTYPES:
        root = tmp_path_factory.mktemp(dtype)
        base = make_base("granite-h", root / "base", DTYPES[dtype])
        found[dtype] = (base, moved(base, root / "moved", plant))
    return found


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("exact", [True, False])
def test_planted_ranks_and_singular_values(models, dtype, exact, monkeypatch):
    if not exact:
        monkeypatch.setattr(spectrum_summary, "EXACT_WORK", 0)
        monkeypatch.setattr(update_matrices, "BLOCK", 100)
    base, other = models[dtype]
    analysis = analyze_spectrum(base, [other], top=4)
    old, new = (load_file(each / WEIGHTS) for each in (base, other))
    rows = analysis.rows["spectra"]
    # Embedding, 3 MLPs of 3 parts, 2 Mambas of 6, q, k, v and o; conv1d, A, D, dt and norms are no matrices.
    assert len(rows) == 1 + 3 * 3 + 2 * 6 + 4
    for row in rows:
        part, first = row["sub_component"], 0
        if part in IN_PROJ:
            order = list(IN_PROJ)
            first = sum(IN_PROJ[name][0] for name in order[: order.index(part)])
        elif part == "up":
            first = row["shape"][0]
        update = (new[row["tensor"]].double() - old[row["tensor"]].double())[first : first + row["shape"][0]]
        truth = numpy.linalg.svd(update.numpy(), compute_uv=False)
        rank = IN_PROJ.get(part, (0, RANK))[1]
        assert row["rank"] == rank or (not exact and rank == 4 and row["rank"] is None), part
        assert row["exact"] is exact
        found = row["singular_values"]
        assert found[:rank] == pytest.approx(truth[:rank], rel=1e-9)
        assert max([0.0, *found[rank:]]) < 1e-12 * truth[0]
        energy = (truth**2).cumsum() / (truth**2).sum()
        assert [row["share_1"], row["share_2"], row["share_4"]] == pytest.approx(energy[[0, 1, 3]], abs=1e-9)
        assert row["stable_rank"] == pytest.approx((truth**2).sum() / truth[0] ** 2, rel=1e-9)
        p = truth[:rank] / truth[:rank].sum()
        entropy_rank = math.exp(-(p * numpy.log(p)).sum())
        assert row["effective_rank_low"] == pytest.approx(entropy_rank, rel=1e-6)
        assert row["effective_rank_high"] == pytest.approx(entropy_rank, rel=1e-6)
        assert (row["effective_rank"] is not None) is exact
        assert row["rank_90_percent"] == int((energy < 0.9).sum()) + 1
        assert row["norm"] == pytest.approx(numpy.linalg.norm(update.numpy()), rel=1e-12)


def spread(values: torch.Tensor, rows: int = 130, columns: int = 90) -> torch.Tensor:
    """A matrix with these singular values."""
    generator = torch.Generator().manual_seed(len(values))
    left, right = (
        torch.randn(size, len(values), generator=generator, dtype=torch.float64) for size in (rows, columns)
    )
    return torch.linalg.qr(left).Q @ torch.diag(values) @ torch.linalg.qr(right).Q.T


def in_blocks(matrix: torch.Tensor, rows: int = 37):
    return lambda: matrix.split(rows)


def test_leading_values_are_those_of_the_whole_matrix():
    values = torch.logspace(0, -3, 90, dtype=torch.float64)
    found = leading_spectrum(in_blocks(spread(values)), (130, 90), 8)
    assert found.residual <= TOLERANCE
    assert found.values.tolist() == pytest.approx(values[:8].tolist(), rel=1e-9)
    assert found.share(8) == pytest.approx(float(values[:8].square().sum() / values.square().sum()), abs=1e-9)
    assert found.rank is None
    assert found.rank_at(0.99) is None or found.rank_at(0.99) == exact_spectrum(spread(values)).rank_at(0.99)
    # The vectors, too: A v = s u.
    matrix = spread(values)
    assert torch.allclose(matrix @ found.right, found.left * found.values, atol=1e-9)
    low, high = found.effective_rank()
    assert low < effective_rank(values) < high


def test_the_rank_at_an_energy_is_the_least_that_reaches_it():
    squares = torch.tensor([0.9, 0.09, 0.009, 0.001], dtype=torch.float64)
    found = exact_spectrum(torch.diag(squares.sqrt()))
    wanted = {0.5: 1, 0.899: 1, 0.9: 1, 0.901: 2, 0.99: 2, 0.9905: 3, 0.999: 3, 0.9999: 4}
    assert {energy: found.rank_at(energy) for energy in wanted} == wanted
    cut = dataclasses.replace(found, values=found.values[:2], exact=False)
    assert [cut.rank_at(energy) for energy in (0.9, 0.95, 0.999)] == [1, 2, None]


def test_values_that_are_not_separated_are_lower_bounds_and_say_so():
    values = torch.linspace(1, 0.6, 90, dtype=torch.float64)
    matrix = spread(values)
    errors = []
    for passes in (2, 4, 8):
        found = leading_spectrum(in_blocks(matrix), (130, 90), 8, most_passes=passes)
        assert (found.values <= values[:8] + 1e-12).all()
        errors.append(float((1 - found.values / values[:8]).max()))
        assert found.passes <= passes
        assert (found.residual > TOLERANCE) == (errors[-1] > 1e-9)
    assert errors[0] > 0.05
    assert errors[0] > errors[1] > errors[2]
    assert errors[2] < 1e-3


def test_a_matrix_as_narrow_as_the_search_is_known_whole():
    matrix = spread(torch.linspace(1, 0.6, 12, dtype=torch.float64), 500, 12)
    found = leading_spectrum(in_blocks(matrix), (500, 12), 12)
    assert found.exact
    assert found.values.tolist() == pytest.approx(torch.linalg.svdvals(matrix).tolist(), rel=1e-12)
    assert found.effective_rank()[0] == pytest.approx(exact_spectrum(matrix).effective_rank()[0], rel=1e-9)


def test_no_spectrum_has_an_effective_rank_outside_the_bounds():
    random = numpy.random.default_rng(2)
    widths = []
    for _ in range(300):
        count, known = int(random.integers(3, 30)), int(random.integers(1, 3))
        values = torch.from_numpy(
            numpy.sort(random.lognormal(0, random.uniform(0.05, 3), count))[::-1].copy()
        )
        energy, rest = float(values.square().sum()), count - known
        low, high = effective_rank_bounds(values[:known], energy, rest)
        truth = effective_rank(values)
        assert low - 1e-9 <= truth <= high + 1e-9
        widths.append((high - low) / truth)
        # Both ends are spectra that these numbers allow.
        left_over = energy - float(values[:known].square().sum())
        flat = torch.cat([values[:known], values.new_full((rest,), math.sqrt(left_over / rest))])
        assert float(flat.square().sum()) == pytest.approx(energy)
        assert effective_rank(flat) == pytest.approx(high)
        assert flat[-1] <= values[known - 1] * (1 + 1e-9)
    assert min(widths) < 0.05 < max(widths)
    # Squares 4, 4 and 1.5 of 9.5 after the first: 2, 2 and sqrt(1.5), and two zeros, is the most uneven spectrum.
    low, _ = effective_rank_bounds(torch.tensor([3.0, 2.0], dtype=torch.float64), 9 + 4 + 9.5, 5)
    assert low == pytest.approx(
        effective_rank(torch.tensor([3, 2, 2, 2, math.sqrt(1.5)], dtype=torch.float64))
    )
    assert effective_rank(torch.ones(7, dtype=torch.float64)) == pytest.approx(7)
    assert effective_rank(torch.tensor([2.0, 5e-324, 0.0], dtype=torch.float64)) == 1


@pytest.mark.parametrize("shape", [(200, 300), (256, 256), (300, 60)])
def test_noise_has_the_spectrum_of_its_law(shape):
    """Means over a few matrices, and the textbook's density integrated by numpy."""
    generator = torch.Generator().manual_seed(1)
    drawn = [exact_spectrum(torch.randn(shape, generator=generator, dtype=torch.float64)) for _ in range(4)]
    law = random_spectrum(*shape)
    for top in (1, 8, 32):
        assert numpy.mean([each.share(top) for each in drawn]) == pytest.approx(law.share(top), rel=0.04)
    assert numpy.mean([each.stable_rank for each in drawn]) == pytest.approx(law.stable_rank, rel=0.04)
    assert numpy.mean([each.effective_rank()[0] for each in drawn]) == pytest.approx(
        law.effective_rank, rel=0.004
    )
    place = numpy.mean([float(each.values[15] / each.values[0]) for each in drawn])
    assert place == pytest.approx(law.decay(16)[15], abs=0.015)
    small, long = sorted(shape)
    beta = small / long
    low, high = (1 - math.sqrt(beta)) ** 2, (1 + math.sqrt(beta)) ** 2
    x = numpy.linspace(low, high, 2_000_001)[1:-1]
    density = numpy.sqrt((high - x) * (x - low)) / (2 * math.pi * beta * x) * (x[1] - x[0])
    assert density.sum() == pytest.approx(1, abs=2e-3)
    mean = (numpy.sqrt(x) * density).sum()
    relative = numpy.sqrt(x) / mean
    assert law.effective_rank == pytest.approx(
        small * math.exp(-(relative * numpy.log(relative) * density).sum()), rel=3e-3
    )
    upper = density[::-1].cumsum() < 32 / small
    assert law.share(32) == pytest.approx((x * density)[::-1][upper].sum(), rel=2e-3)


def test_noise_with_few_rows_has_no_rank_below_one():
    """The law is a limit: for one row it would give a stable rank of 1/4 to 1, and that of every vector is 1."""
    for columns in (1, 2, 50):
        assert random_spectrum(1, columns).stable_rank == 1
        assert random_spectrum(1, columns).effective_rank == pytest.approx(1, abs=1e-6)


def test_principal_angles_against_scipy_and_planted_ones():
    generator = torch.Generator().manual_seed(4)
    first, second = (
        torch.linalg.qr(torch.randn(50, 6, generator=generator, dtype=torch.float64)).Q for _ in range(2)
    )
    expected = numpy.cos(scipy.linalg.subspace_angles(first.numpy(), second.numpy()))[::-1]
    assert principal_cosines(first, second).tolist() == pytest.approx(expected, abs=1e-12)
    planted = torch.tensor([0.1, 0.5, 1.2], dtype=torch.float64)
    turned = first[:, :3] * planted.cos() + first[:, 3:] * planted.sin()
    cosines = principal_cosines(first[:, :3], turned)
    assert cosines.acos().tolist() == pytest.approx(planted.tolist(), abs=1e-9)
    assert overlap(cosines) == pytest.approx(float(planted.cos().square().mean()))
    # Another basis of the same subspace changes nothing; the same vectors in another order would, without the SVD.
    mixed = turned @ torch.linalg.qr(torch.randn(3, 3, generator=generator, dtype=torch.float64)).Q
    assert principal_cosines(first[:, :3], mixed).tolist() == pytest.approx(cosines.tolist(), abs=1e-12)
    drawn = [
        overlap(
            principal_cosines(
                first, torch.linalg.qr(torch.randn(50, 6, generator=generator, dtype=torch.float64)).Q
            )
        )
        for _ in range(300)
    ]
    assert numpy.mean(drawn) == pytest.approx(chance_overlap(6, 50), rel=0.03)


def test_planted_angles_between_two_models(models, tmp_path):
    """Updates of rank 1, u v and (3 u + 4 w) v, where w is u with the signs of its second half turned."""

    def sides(weights):
        u = torch.where(torch.arange(weights.shape[0]) % 3 == 0, 1.0, -1.0).double()
        w = torch.where(torch.arange(len(u)) < len(u) // 2, u, -u)
        return u, 3 * u + 4 * w, torch.where(torch.arange(weights.shape[1]) % 5 < 2, 1.0, -1.0).double()

    def first(name, weights):
        return torch.outer(sides(weights)[0], sides(weights)[2]) if weights.dim() == 2 else 0 * weights

    def second(name, weights):
        return torch.outer(sides(weights)[1], sides(weights)[2]) if weights.dim() == 2 else 0 * weights

    base = models["bf16"][0]
    one, two = moved(base, tmp_path / "one", first), moved(base, tmp_path / "two", second)
    still = moved(base, tmp_path / "still", lambda name, weights: 0 * weights)
    megatron = tmp_path / "megatron"
    megatron.mkdir()
    import_checkpoint(two, megatron)
    analysis = analyze_spectrum(base, [one, megatron, still], top=3)
    document = analysis.document
    assert "NaN" not in json.dumps(document)
    pair, *others = document["pairs"]
    for row in analysis.rows["angles"]:
        if "still" in (row["first"], row["second"]):
            assert (row["directions"], row["left_cosines"]) == (None, None)
            continue
        # Sub-components of one tensor are rows of one pattern.
        assert row["directions"] == 1
        assert row["right_cosines"] == pytest.approx([1], abs=1e-9)
        if row["sub_component"] not in IN_PROJ and row["sub_component"] not in ("gate", "up"):
            u, turned, _ = sides(torch.empty(row["shape"]))
            assert row["left_cosines"] == pytest.approx(
                [float(u @ turned / (u.norm() * turned.norm()))], abs=1e-9
            )
    assert pair["sub_components"]["attention.q"]["left_largest_cosine"] == pytest.approx(0.6, abs=1e-9)
    assert pair["sub_components"]["attention.q"]["left_overlap"] == pytest.approx(0.36, abs=1e-9)
    assert pair["sub_components"]["attention.q"]["left_chance"] == pytest.approx(1 / 32, abs=1e-12)
    assert all(each["all"]["without_angles"] == each["all"]["matrices"] for each in others)
    nothing = document["models"][2]["all"]
    assert (nothing["without_update"], nothing["stable_rank"], nothing["share"]) == (26, None, [None] * 3)
    # What has no value is drawn and written, too.
    shown = view(document)
    assert [row[3] for row in shown.tables[2].rows] == ["– (–)"] * len(shown.tables[2].rows)
    assert set(shown.drawings) == {"singular_values", "top_shares", "subspace_overlap"}
    assert ">0.36<" in inline_svg(shown.drawings["subspace_overlap"], "overlap")
    for name in ("singular_values", "top_shares"):
        assert ">noise<" in inline_svg(shown.drawings[name], name)


def test_unusable_input_is_one_line(models, tmp_path):
    base, other = models["bf16"]
    assert "top=0: must be a number of directions from 1 to 1024" in refusal(
        "spectrum", base, other, "--top", 0
    )
    assert "given twice" in refusal("spectrum", base, other, other)
    assert "no such folder" in refusal("spectrum", base, tmp_path / "nowhere")
    name = "model.layers.2.mamba.in_proj.weight"
    broken = moved(base, tmp_path / "broken", lambda name, weights: 0 * weights)
    set_element(broken, name, (70, 1), math.nan)
    assert f"{broken}: tensor '{name}' holds nan in row 70" in refusal("spectrum", base, broken)
    with pytest.raises(ConfigError, match="top=2000"):
        AnalyzeSpectrum(top=2000)


def test_the_stage_is_the_command(models):
    base, other = models["bf16"]
    receipt = Receipt("import", "0" * 64, "import", {}, {})
    inputs = {name: Artifact(path, receipt) for name, path in (("moved", other), ("base", base))}
    found = AnalyzeSpectrum(top=4).analyze(inputs).document
    assert found == document_of("spectrum", base, other, "--top", 4)
    assert found["share_sizes"] == share_sizes(4) == [1, 2, 4]
    assert share_sizes(12) == [1, 2, 4, 8, 12]
