from __future__ import annotations

import json
import shutil
from contextlib import contextmanager, nullcontext

import pytest
from tokenizer_folders import byte_level, save

from megatron_prism.data.text_policy import TextSettings
from megatron_prism.data.tokenizer import Tokenizer
from megatron_prism.errors import ArtifactError, ConfigError, DataError
from megatron_prism.evaluation import grading
from megatron_prism.evaluation import stage as stage_module
from megatron_prism.evaluation.answers import read_answers
from megatron_prism.evaluation.generations import chunks_of
from megatron_prism.evaluation.plan import SuitePlan, SuiteSampling
from megatron_prism.evaluation.scores import read_problems, read_scores
from megatron_prism.evaluation.stage import Evaluate
from megatron_prism.generation.engine import Completion, SamplingParams
from megatron_prism.generation.engine_config import EngineConfig
from megatron_prism.generation.open_engine import OPENERS
from megatron_prism.pipeline.artifact import Artifact, Receipt, seal
from megatron_prism.pipeline.config import apply_overrides, from_mapping, to_mapping
from megatron_prism.verification.grade import GRADER_VERSION, Grade
from megatron_prism.verification.problems import Problem
from megatron_prism.verification.settings import GradingSettings


class ScriptedEngine:
    """An `Engine` with a table from prompts to answers, so every score is known in advance.

    `asked` are the (prompt, number) of all completions that were asked for. After `die_after` of them it is killed.
    """

    def __init__(self, answers: dict[str, list[str]]) -> None:
        self.answers = answers
        self.seen: list[SamplingParams] = []
        self.asked: list[tuple[str, int]] = []
        self.die_after = None

    def generate(self, prompts, params, *, seeds, numbers, keep, progress, refuse):
        self.seen.append(params)
        made = []
        for index, (prompt, row) in enumerate(zip(prompts, numbers, strict=True)):
            made.append([])
            for number in row:
                if self.die_after == len(self.asked):
                    raise KeyboardInterrupt
                self.asked.append((prompt, number))
                text = self.answers[prompt][number % len(self.answers[prompt])]
                tokens = list(range(len(text.split())))
                completion = Completion(
                    text, tokens, [-0.5] * len(tokens), "length" if "cut" in text else "stop", 0.25
                )
                made[-1].append(completion)
                keep(index, number, completion)
                progress(1)
        return made


WEAK = GradingSettings(workers=1, sandbox="weak")
PROBLEMS = [
    Problem("a", "math", "A", "math", "2"),
    Problem("b", "math", "B", "math", "1/2"),
    Problem("c", "science", "C", "choice", "D"),
    Problem("d", "code", "D", "code", "", ["assert f() == 1"]),
]
ANSWERS = {
    "A": [r"<think>x</think> \boxed{2}", r"\boxed{3}"],
    "B": [r"\boxed{0.5}"],
    "C": ["it was cut"],
    "D": ["```python\ndef f(): return 1\n```", "```python\ndef f(): return 2\n```"],
}


def made_artifact(folder, kind, files):
    partial = folder.with_name(folder.name + ".partial")
    for name, text in files.items():
        (partial / name).parent.mkdir(parents=True, exist_ok=True)
        (partial / name).write_text(text)
    partial.mkdir(parents=True, exist_ok=True)
    return seal(partial, folder, Receipt(kind, f"{folder.name:f<64}", kind, {}, {}))


@pytest.fixture
def inputs(tmp_path):
    lines = {p.id: json.dumps(p.__dict__) + "\n" for p in PROBLEMS}
    suites = {
        "problems/math.jsonl": lines["a"] + lines["b"],
        "problems/science.jsonl": lines["c"],
        "problems/code.jsonl": lines["d"],
    }
    return {
        "corpus": made_artifact(tmp_path / "corpus", "corpus", suites),
        "model": made_artifact(tmp_path / "model", "train", {"architecture.json": "{}"}),
        "tokenizer": Artifact(
            save(byte_level(), tmp_path / "tokenizer"), Receipt("tokenizer", "", "", {}, {})
        ),
    }


@pytest.fixture
def other_model(tmp_path):
    return made_artifact(tmp_path / "other_model", "train", {"architecture.json": "{}"})


@pytest.fixture(scope="module")
def pool():
    with WEAK.open_pool() as made:
        yield made


@pytest.fixture
def engine(monkeypatch, pool):
    """Replaces the Megatron engine, so that the stage is tested without a model; tests share the graders."""
    own_pool = GradingSettings.open_pool
    monkeypatch.setattr(
        GradingSettings, "open_pool", lambda self: nullcontext(pool) if self == WEAK else own_pool(self)
    )
    scripted = ScriptedEngine(ANSWERS)
    loaded = []

    @contextmanager
    def load(model_folder, tokenizer_folder, batch_size, text):
        loaded.append((model_folder, tokenizer_folder, batch_size))
        yield scripted

    monkeypatch.setitem(OPENERS, "megatron", load)
    scripted.loaded = loaded
    return scripted


def evaluated(inputs, folder, **fields):
    """The metrics of an evaluation that writes into `folder`."""
    folder.mkdir(exist_ok=True, parents=True)
    return Evaluate(**{"grading": WEAK, **fields}).run(inputs, folder)


def test_stage_writes_scores_answers_and_metrics(tmp_path, inputs, engine):
    out = tmp_path / "out"
    metrics = evaluated(inputs, out, suites=["math", "science", "code"], batch_size=7, samples_per_problem=2)
    rates = {suite: each["pass_rate"] for suite, each in metrics["suites"].items()}
    assert rates == {"math": 0.75, "science": 0, "code": 0.5}
    math = metrics["suites"]["math"]
    assert math["interval"] == "wilson, effective sample size"
    assert math["low"] < 0.75 < math["high"]
    assert (math["problems"], math["samples"], math["pass_at"]) == (2, 4, {"1": 0.75, "2": 1.0})
    assert metrics["suites"]["code"]["reasons"] == {"correct": 1, "assertion": 1}
    assert (metrics["engine"], metrics["grader"]["sandbox"]) == ("megatron", "weak")
    assert metrics["grader"]["math-verify"].startswith("0.")
    assert read_scores(out) == json.loads(json.dumps(metrics))
    assert read_problems(out)["math"] == {"a": (1, 2), "b": (2, 2)}
    details = json.loads((out / "by_problem.json").read_text())
    # Of two different answers to problem a, one is right: they share the majority.
    assert details["math"]["a"] == {
        "pass_at": {"1": 0.5, "2": 1.0},
        "majority_at": {"1": details["math"]["a"]["majority_at"]["1"], "2": 0.5},
        "different_answers": 2,
    }
    assert "majority_at" not in details["code"]["d"]
    answers = {(each["id"], each["sample"]): each for each in read_answers(out)}
    assert len(answers) == 8
    first = answers["a", 0]
    assert (first["suite"], first["prompt"], first["completion"]) == ("math", "A", ANSWERS["A"][0])
    assert (first["correct"], first["extracted"], first["answer"]) == (True, "2", "2")
    assert (first["token_ids"], first["logprobs"], first["tokens"]) == ([0, 1], [-0.5, -0.5], 2)
    assert (first["seconds"], first["grader"]) == (0.25, GRADER_VERSION)
    assert first["prompt_ids"] == Tokenizer.load(inputs["tokenizer"].path).encode("A")
    assert len({each["prompt_id"] for each in answers.values()}) == 4
    assert answers["c", 0]["finish_reason"] == "length"
    assert answers["d", 1]["test_verdicts"] == ["assertion"]
    assert engine.loaded == [(inputs["model"].path, inputs["tokenizer"].path, 7)]
    assert engine.seen[0] == SamplingParams()
    assert sorted(path.name for path in (out / "generations").iterdir()) == [
        "code.parquet",
        "math.parquet",
        "science.parquet",
    ]


def test_what_became_of_the_completions_is_counted(tmp_path, inputs, engine):
    engine.answers = {
        "A": [r"\boxed{2}"],
        "B": ["  \n"],
        "C": ["cut"],
        "D": ["```python\nwhile True: 1\n```"],
    }
    suites = evaluated(
        inputs, tmp_path / "out", grading=GradingSettings(workers=1, timeout_seconds=0.3, sandbox="weak")
    )["suites"]
    none = {"graded": 1, "ungradable": 0, "timed_out": 0, "refused": 0, "truncated": 0, "empty": 0}
    assert suites["math"]["outcomes"] == none | {"graded": 2, "empty": 1}
    assert suites["science"]["outcomes"] == none | {"truncated": 1}
    assert suites["code"]["outcomes"] == none | {"graded": 0, "timed_out": 1}


def test_a_grader_that_fails_is_not_a_wrong_answer(tmp_path, inputs, engine, monkeypatch, caplog):
    def failing(items, pool, progress, sandbox):
        return [Grade(False, reason) for reason in ("memory", "error: ValueError", "wrong")[: len(items)]]

    monkeypatch.setattr(grading, "grade_all", failing)
    math = evaluated(inputs, tmp_path / "out", suites=["math"])["suites"]["math"]
    assert (math["outcomes"]["graded"], math["outcomes"]["ungradable"]) == (0, 2)
    assert "of 2 completions 2 could not be graded; they count as not right" in caplog.text


def artifacts(tmp_path, *names):
    return [tmp_path / "artifacts" / f"evaluation-{name}" for name in names]


def as_records(folder):
    return [{k: v for k, v in each.items() if k != "seconds"} for each in read_answers(folder)]


def test_an_interrupted_evaluation_goes_on_where_it_was(tmp_path, inputs, other_model, engine):
    whole, out = artifacts(tmp_path, "whole", "out")
    # Another model, so that nothing is taken over.
    evaluated(inputs | {"model": other_model}, whole, samples_per_problem=3)
    asked, engine.asked, engine.die_after = engine.asked, [], 5
    with pytest.raises(KeyboardInterrupt):
        evaluated(inputs, out, samples_per_problem=3)
    assert not (out / "scores.json").exists()
    (out / "generations" / "code" / "00000-00009.parquet.partial").write_bytes(b"cut off")
    engine.die_after = None
    evaluated(inputs, out, samples_per_problem=3)
    assert sorted(engine.asked) == sorted(asked), "nothing is asked for twice, and nothing is left out"
    assert as_records(out) == as_records(whole)


def test_a_part_that_a_crash_damaged_is_sampled_again(tmp_path, inputs, engine, caplog):
    [out] = artifacts(tmp_path, "out")
    engine.die_after = 2
    with pytest.raises(KeyboardInterrupt):
        evaluated(inputs, out, suites=["math"], samples_per_problem=2)
    [part] = (out / "generations" / "math").glob("*.parquet")
    part.write_bytes(part.read_bytes()[:-20])
    engine.die_after, engine.asked = None, []
    evaluated(inputs, out, suites=["math"], samples_per_problem=2)
    assert len(engine.asked) == 4
    assert "its completions are sampled again" in caplog.text


def test_adding_samples_and_problems_generates_only_these(tmp_path, inputs, engine):
    few, more = artifacts(tmp_path, "few", "more")
    evaluated(inputs, few, limit=1, samples_per_problem=2)
    first, engine.asked = engine.asked, []
    evaluated(inputs, more, samples_per_problem=4)
    assert len(engine.asked) + len(first) == 16
    assert not set(engine.asked) & set(first)
    records = as_records(more)
    assert [r for r in records if r["id"] == first[0][0].lower()][:2] == [
        r for r in as_records(few) if r["id"] == first[0][0].lower()
    ]
    assert [(r["id"], r["sample"]) for r in records if r["suite"] == "math"] == [
        (id, number) for id in "ab" for number in range(4)
    ]


@pytest.mark.parametrize(
    "other",
    [
        {"sampling": SuiteSampling(temperature=0.5)},
        {"sampling": SuiteSampling(seed=1)},
        {"engine": EngineConfig("megatron", {}, TextSettings(special_tokens="parse"))},
    ],
)
def test_completions_that_would_be_others_are_not_taken_over(tmp_path, inputs, engine, other):
    first, second = artifacts(tmp_path, "first", "second")
    evaluated(inputs, first)
    engine.asked = []
    evaluated(inputs, second, **other)
    assert len(engine.asked) == 4


def test_another_model_or_prompt_is_sampled_anew(tmp_path, inputs, other_model, engine):
    first, second, third = artifacts(tmp_path, "first", "second", "third")
    evaluated(inputs, first)
    engine.asked = []
    evaluated(inputs | {"model": other_model}, second)
    assert len(engine.asked) == 4
    engine.asked = []
    changed = Problem("a", "math", "B", "math", "2")
    corpus = made_artifact(
        tmp_path / "other", "corpus", {"problems/math.jsonl": json.dumps(changed.__dict__) + "\n"}
    )
    evaluated(inputs | {"corpus": corpus}, third)
    assert engine.asked == [("B", 0)]


def test_a_new_grader_grades_the_kept_answers_without_a_model(tmp_path, inputs, engine, monkeypatch):
    old, new = artifacts(tmp_path, "old", "new")
    evaluated(inputs, old, suites=["math"])
    before = Evaluate().fingerprint({})
    engine.loaded.clear()
    for module in (grading, stage_module):
        monkeypatch.setattr(module, "GRADER_VERSION", "3")
    assert Evaluate().fingerprint({}) != before
    monkeypatch.setattr(
        grading, "grade_all", lambda items, pool, progress, sandbox: [Grade(False, "wrong")] * len(items)
    )
    metrics = evaluated(inputs, new, suites=["math"])
    assert metrics["suites"]["math"]["pass_rate"] == 0
    assert engine.loaded == []
    assert {each["grader"] for each in read_answers(new)} == {"3"}


def test_a_suite_says_how_it_is_sampled(tmp_path, inputs, engine):
    lines = json.dumps(PROBLEMS[0].__dict__) + "\n"
    facts = {
        "aime24": {
            "group": "domain",
            "samples": 3,
            "sampling": {"temperature": 0.6, "top_p": 0.95, "max_new_tokens": 77},
            "source": {"licence": "MIT"},
        }
    }
    corpus = made_artifact(
        tmp_path / "suites", "suites", {"problems/aime24.jsonl": lines, "suites.json": json.dumps(facts)}
    )
    metrics = evaluated(inputs | {"corpus": corpus}, tmp_path / "out")
    assert metrics["suites"]["aime24"]["samples"] == 3
    assert metrics["sources"] == {"aime24": {"source": {"licence": "MIT"}}}
    assert engine.seen == [SamplingParams(77, 0.6, 0.95)]
    evaluated(
        inputs | {"corpus": corpus},
        tmp_path / "other",
        samples_per_problem=1,
        sampling=SuiteSampling(temperature=0.0, stop=["User:"], seed=4),
    )
    assert engine.seen[1] == SamplingParams(77, 0.0, 0.95, ["User:"], 4)


def test_damaged_facts_of_a_suite_are_named(tmp_path, inputs, engine):
    lines = json.dumps(PROBLEMS[0].__dict__) + "\n"
    for text in ('{"a": {"sampling": {"temprature": 1}}}', '{"a": {"samples": "many"}}', '{"a": 3}'):
        corpus = made_artifact(
            tmp_path / f"suites{len(text)}", "suites", {"problems/a.jsonl": lines, "suites.json": text}
        )
        with pytest.raises(DataError, match=r"suites\.json: suite 'a'"):
            evaluated(inputs | {"corpus": corpus}, tmp_path / "out")


def test_an_engine_that_loses_completions_is_an_error(tmp_path, inputs, engine, monkeypatch):
    monkeypatch.setattr(ScriptedEngine, "generate", lambda *args, **kwargs: [])
    with pytest.raises(RuntimeError, match="did not return 1 completions of suite 'code'"):
        evaluated(inputs, tmp_path / "out")


def test_limit_and_odd_text(tmp_path, inputs, engine):
    engine.answers = {key: ["\ud800 \\boxed{D}"] for key in ANSWERS}
    metrics = Evaluate(suites=["science"], limit=1).run(inputs, tmp_path)
    assert metrics["suites"]["science"]["problems"] == 1
    assert metrics["suites"]["science"]["pass_rate"] == 1.0
    assert next(read_answers(tmp_path))["completion"] == "\ufffd \\boxed{D}"


def test_unknown_suite_is_refused_before_the_model_is_loaded(tmp_path, inputs, engine):
    with pytest.raises(DataError, match="did you mean 'math'"):
        Evaluate(suites=["mth"]).run(inputs, tmp_path)
    assert engine.loaded == []


@pytest.mark.skipif(
    shutil.which("bwrap") is None, reason="bwrap is not installed: apt-get install bubblewrap"
)
def test_programs_run_isolated_by_default(tmp_path, inputs, engine):
    metrics = Evaluate(suites=["code"]).run(inputs, tmp_path)
    assert metrics["suites"]["code"]["pass_rate"] == 1
    assert metrics["grader"]["sandbox"] == "strong"
    assert metrics["grader"]["bubblewrap"].startswith("0.")


def test_programs_are_refused_before_the_model_is_loaded_where_they_cannot_be_isolated(
    tmp_path, inputs, engine, no_bubblewrap
):
    with pytest.raises(ConfigError, match=r"sandbox=strong.*bwrap is not on PATH.*sandbox=weak"):
        Evaluate(suites=["science", "code"]).run(inputs, tmp_path)
    assert engine.loaded == []
    # A suite without programs needs no sandbox.
    metrics = Evaluate(suites=["science"]).run(inputs, tmp_path)
    assert "sandbox" not in metrics["grader"]


def test_config_round_trip_and_overrides():
    stage = apply_overrides(Evaluate(), {"limit": 5, "sampling.temperature": 0.6, "suites": ["math"]})
    assert (stage.limit, stage.sampling.temperature, stage.sampling.stop) == (5, 0.6, None)
    assert stage.sampling.over({"temperature": 0.9, "top_p": 0.5}) == SamplingParams(128, 0.6, 0.5)
    assert from_mapping(Evaluate, to_mapping(stage)) == stage
    assert stage.identity() != Evaluate().identity()
    assert apply_overrides(stage, {"grading.workers": 4}).fingerprint({}) == stage.fingerprint({})
    assert apply_overrides(stage, {"grading.sandbox": "weak"}).fingerprint({}) != stage.fingerprint({})


@pytest.mark.parametrize(
    "wrong",
    [
        {"suites": ["math", "math"]},
        {"limit": 0},
        {"samples_per_problem": 0},
        {"confidence": 1.0},
        {"batch_size": -1},
    ],
)
def test_invalid_configs_are_refused(wrong):
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        Evaluate(**wrong)


def test_damaged_scores_and_answers_are_named(tmp_path):
    with pytest.raises(ArtifactError, match=r"scores\.json: no such file"):
        read_scores(tmp_path)
    (tmp_path / "scores.json").write_text('{"suites": {"math": {}}}')
    with pytest.raises(ArtifactError, match="not the scores"):
        read_scores(tmp_path)
    with pytest.raises(ArtifactError, match="no answers"):
        list(read_answers(tmp_path))
    (tmp_path / "generations").mkdir()
    (tmp_path / "generations" / "math.parquet").write_bytes(b"junk")
    with pytest.raises(ArtifactError, match=r"math\.parquet: not the answers of an evaluation"):
        list(read_answers(tmp_path))
    with pytest.raises(ArtifactError, match=r"no answers of suite 'mth'; did you mean 'math'"):
        list(read_answers(tmp_path, "mth"))


def test_long_completions_are_sampled_in_smaller_chunks():
    """32k tokens of 4,096 completions as Python's numbers would take 13 GB."""
    problems = [Problem(f"p{n}", "math", f"Q{n}", "math", "2") for n in range(500)]
    sizes = {}
    for tokens in (128, 32_768):
        plan = SuitePlan("math500", problems, SamplingParams(tokens), 64, list(range(500)))
        chunks = list(chunks_of(plan))
        assert [problem for chunk in chunks for problem in chunk.problems] == problems
        sizes[tokens] = 64 * max(len(chunk.problems) for chunk in chunks)
    assert sizes == {128: 4096, 32_768: 1024}
