"""`prism analyze confidence` on graded answers whose lengths, verdicts and log-probabilities are planted."""

from __future__ import annotations

import json

import numpy as np
import pytest
from kept_answers import write_answers
from pyarrow import parquet
from scipy.stats import mannwhitneyu

from megatron_prism.analysis.result import read_analysis
from megatron_prism.analysis.stages.confidence import AnalyzeConfidence
from megatron_prism.cli.main import main
from megatron_prism.errors import ConfigError
from megatron_prism.evaluation.generations import IDENTITY, REFUSED
from megatron_prism.generation.engine import Completion
from megatron_prism.pipeline.artifact import Artifact, Receipt
from megatron_prism.verification.problems import Problem

PROBLEMS, SAMPLES = 24, 3


def planted(seed, shift=0.0):
    """`[problem][sample]` of (correct, log-probabilities): right answers are surer, and long ones less so."""
    generator = np.random.default_rng(seed)
    rows = []
    for _ in range(PROBLEMS):
        row = []
        for _ in range(SAMPLES):
            correct = bool(generator.random() < 0.5)
            length = int(generator.integers(1, 40))
            level = 0.2 + 0.01 * length + (0.0 if correct else 0.5) + shift
            row.append((correct, -level * generator.random(length, np.float32).astype(np.float64)))
        rows.append(row)
    return rows


def write(folder, suite, rows, *, problems=PROBLEMS, engine="megatron", sampling=None):
    asked = [Problem(f"p{number}", "science", "Q?", "choice", "C", []) for number in range(problems)]
    completions = [
        [
            Completion(
                "The answer is " + ("C" if right else "B"), [1] * len(values), list(values), "stop", 0.1
            )
            for right, values in row
        ]
        for row in rows[:problems]
    ]
    write_answers(folder, suite, asked, completions)
    if engine:
        recorded = {"from": {"engine": {"name": engine}}, "suites": {suite: sampling or {"temperature": 0.6}}}
        (folder / IDENTITY).write_text(json.dumps(recorded))
    return folder


@pytest.fixture(scope="module")
def evaluations(tmp_path_factory):
    root = tmp_path_factory.mktemp("evaluations")
    write(root / "first", "gpqa", planted(0))
    write(root / "second", "gpqa", planted(1, shift=0.3))
    write(root / "second", "other", planted(1), problems=2)
    return root


def analyze(*arguments):
    with pytest.raises(SystemExit) as ended:
        main(["analyze", "confidence", *map(str, arguments)])
    return ended.value.code


def test_every_number_is_that_of_numpy_and_scipy_on_the_planted_answers(evaluations, tmp_path, capsys):
    out = tmp_path / "out"
    assert analyze(evaluations / "first", evaluations / "second", "--out", out, "--json", "-") == 0
    said = capsys.readouterr()
    document = json.loads(said.out)
    assert document == read_analysis(out, "confidence")
    assert "suite 'other' is left out, because first did not answer it" in said.err
    assert document["suites"] == ["gpqa"]
    assert document["least_problems"] == 10
    for model, rows in zip(document["models"], (planted(0), planted(1, shift=0.3)), strict=True):
        found = model["suites"]["gpqa"]
        flat = [response for row in rows for response in row]
        right = np.array([correct for correct, _ in flat])
        lengths = np.array([len(values) for _, values in flat])
        each = np.array([-np.mean(np.float32(values).astype(np.float64)) for _, values in flat])
        sums = each * lengths
        assert found["pass_rate"]["value"] == pytest.approx(
            np.mean([[correct for correct, _ in row] for row in rows]), abs=1e-12
        )
        assert found["tokens"]["median"] == np.median(lengths)
        for kind, mask in (("all", right | ~right), ("correct", right), ("incorrect", ~right)):
            mean = found["nlp"][kind]
            assert mean["of_responses"]["value"] == pytest.approx(each[mask].mean(), abs=1e-9)
            assert mean["of_tokens"]["value"] == pytest.approx(
                sums[mask].sum() / lengths[mask].sum(), abs=1e-9
            )
            # The two means differ, so that one cannot pass for the other.
            assert abs(mean["of_tokens"]["value"] - mean["of_responses"]["value"]) > 0.01
            assert mean["of_responses"]["low"] < mean["of_responses"]["value"] < mean["of_responses"]["high"]
            assert mean["responses"] == mask.sum()
        difference = each[~right].mean() - each[right].mean()
        assert found["incorrect_minus_correct"]["value"] == pytest.approx(difference, abs=1e-9)
        won = mannwhitneyu(-each[right], -each[~right]).statistic / (right.sum() * (~right).sum())
        assert found["auroc"]["value"] == pytest.approx(won, abs=1e-12)
        assert model["engine"] == "megatron"
        assert model["distribution"].startswith("raw")
    records = parquet.read_table(out / "responses.parquet").to_pylist()
    assert len(records) == 2 * PROBLEMS * SAMPLES
    assert records[SAMPLES]["id"] == "p1"
    assert records[SAMPLES]["tokens"] == len(planted(0)[1][0][1])
    assert sorted(path.name for path in (out / "figures").iterdir()) == [
        f"confidence.{ending}" for ending in ("pdf", "png", "svg")
    ]


def test_too_few_correct_answers_have_no_mean(evaluations, tmp_path):
    rows = [[(False, values) for _, values in row] for row in planted(0)]
    for row in rows[:3]:
        row[0] = (True, row[0][1])
    made = {}
    for least in (3, 4):
        folder = tmp_path / "few" / str(least)
        write(folder, "gpqa", rows)
        artifact = Artifact(folder, Receipt("evaluation", "f", "e", {}, {}))
        made[least] = AnalyzeConfidence(least_problems=least).analyze({"few": artifact})
    few, enough = (made[least].values["models"][0]["suites"]["gpqa"] for least in (4, 3))
    assert few["nlp"]["correct"] == {"responses": 3, "problems": 3, "of_responses": None, "of_tokens": None}
    assert few["auroc"] is None
    assert few["incorrect_minus_correct"] is None
    assert few["nlp"]["all"]["of_responses"] is not None
    assert enough["nlp"]["correct"]["of_responses"] is not None
    assert enough["auroc"] is not None
    assert made[4].summary["few"]["gpqa"]["nlp_correct"] is None


def test_what_makes_models_less_comparable_is_said(evaluations, tmp_path, capsys):
    write(tmp_path / "other", "gpqa", planted(2), problems=20, engine="openai", sampling={"temperature": 1.0})
    assert analyze(evaluations / "first", tmp_path / "other", "--json", tmp_path / "found.json") == 0
    said = capsys.readouterr().err
    assert "other answered other problems than first (20 are the same)" in said
    assert "other was sampled with {'temperature': 1.0}, first with {'temperature': 0.6}" in said
    assert "other: log-probabilities are the server's" in said
    (tmp_path / "other" / IDENTITY).unlink()
    assert analyze(tmp_path / "other") == 0
    assert "log-probabilities are not recorded" in capsys.readouterr().err


def test_a_refused_sample_is_wrong_and_has_no_length(tmp_path):
    rows = planted(3)
    rows[0][0] = (False, np.array([]))
    write(tmp_path / "one", "gpqa", rows)
    table = parquet.read_table(tmp_path / "one" / "generations" / "gpqa.parquet")
    reasons = table["finish_reason"].to_pylist()
    reasons[0] = REFUSED
    column = table.schema.get_field_index("finish_reason")
    parquet.write_table(
        table.set_column(column, "finish_reason", [reasons]),
        tmp_path / "one" / "generations" / "gpqa.parquet",
    )
    made = AnalyzeConfidence().analyze(
        {"one": Artifact(tmp_path / "one", Receipt("evaluation", "f", "e", {}, {}))}
    )
    found = made.values["models"][0]["suites"]["gpqa"]
    assert found["refused"] == 1
    assert found["responses"] == PROBLEMS * SAMPLES
    assert found["nlp"]["all"]["responses"] == PROBLEMS * SAMPLES - 1
    assert found["tokens"]["median"] == np.median([len(values) for row in rows for _, values in row][1:])
    assert made.rows["responses"][0]["mean_nlp"] is None


@pytest.mark.parametrize(
    ("logprobs", "said"),
    [
        ([], "suite 'gpqa' has no log-probabilities for the 3 tokens of sample 0 of 'p0'"),
        ([-1.0], "suite 'gpqa' has 1 log-probabilities for the 3 tokens"),
        ([-1.0, float("-inf"), -1.0], "has a log-probability that is not a finite number"),
    ],
)
def test_answers_without_log_probabilities_are_one_line_that_names_file_and_suite(
    tmp_path, capsys, logprobs, said
):
    asked = [Problem("p0", "science", "Q?", "choice", "C", [])]
    write_answers(tmp_path / "one", "gpqa", asked, [[Completion("C", [1, 2, 3], logprobs, "stop")]])
    assert analyze(tmp_path / "one") == 2
    line = capsys.readouterr().err.strip()
    assert said in line
    assert "generations/gpqa.parquet" in line
    assert "\n" not in line


def test_other_bad_input_is_one_line(evaluations, tmp_path, capsys):
    write(tmp_path / "apart", "apart", planted(0), problems=2)
    (tmp_path / "empty" / "generations").mkdir(parents=True)
    first = evaluations / "first"
    (tmp_path / "link").symlink_to(first)
    for arguments, wanted in (
        ([first, "--suite", "gpqq"], "has no answers of suite 'gpqq'; did you mean 'gpqa'?"),
        ([first, evaluations / "second", "--suite", "other"], f"{first}: has no answers of suite 'other'"),
        ([first, tmp_path / "apart"], "no suite was answered by all models"),
        ([first, first], "named twice"),
        ([first, f"{evaluations}/second/../first"], "named twice"),
        ([first, tmp_path / "link"], "named twice"),
        ([tmp_path / "empty"], "neither an evaluation"),
        ([first, "--least", 0], "--least"),
        ([first, "--confidence", 1], "--confidence 1: must be between 0 and 1"),
    ):
        assert analyze(*arguments) == 2, arguments
        line = capsys.readouterr().err.strip()
        assert wanted in line
        assert "\n" not in line


def test_the_stage_refuses_numbers_without_a_meaning():
    with pytest.raises(ConfigError, match="confidence=1"):
        AnalyzeConfidence(confidence=1.0)
    with pytest.raises(ConfigError, match="least_problems"):
        AnalyzeConfidence(least_problems=0)
