"""Stages with non-default engines: a server that samples, dies and restarts, and invalid configs."""

from __future__ import annotations

import json
from contextlib import nullcontext
from dataclasses import replace
from types import SimpleNamespace

import pyarrow.parquet as parquet
import pytest
from kept_answers import InThisProcess
from tiny_rl import artifact, make_inputs

from megatron_prism.cli.main import main
from megatron_prism.conversion.import_hf import import_checkpoint
from megatron_prism.errors import ConfigError, DataError, ServerError
from megatron_prism.evaluation.answers import read_answers
from megatron_prism.evaluation.given_model import add_model
from megatron_prism.evaluation.plan import SuiteSampling
from megatron_prism.evaluation.ruler.stage import PREDICTIONS, RulerEvaluate
from megatron_prism.evaluation.stage import Evaluate
from megatron_prism.generation import served_models
from megatron_prism.generation.engine import SamplingParams
from megatron_prism.generation.engine_config import STORE, EngineConfig
from megatron_prism.generation.openai_engine import OpenAIEngine
from megatron_prism.pipeline.config import apply_overrides, from_mapping, to_mapping
from megatron_prism.pipeline.graph import Graph
from megatron_prism.pipeline.json_text import read_records
from megatron_prism.rl import difficulty
from megatron_prism.rl.difficulty import Difficulty
from megatron_prism.rl.rewards import RewardSettings
from megatron_prism.verification.settings import GradingSettings

PROMPTS = ["ABC", "hello", "x"]
SAMPLED = SamplingParams(max_new_tokens=6, temperature=0.9, seed=4)
SUITE_SAMPLED = SuiteSampling(max_new_tokens=6, temperature=0.9, seed=4)
WEAK = GradingSettings(workers=1, sandbox="weak")


@pytest.fixture
def inputs(served_folder, tmp_path):
    """All inputs except a model, which is on the server."""
    lines = "".join(
        json.dumps(
            {"id": f"q{i}", "domain": "math", "prompt": prompt, "kind": "short", "answer": "A", "tests": []}
        )
        + "\n"
        for i, prompt in enumerate(PROMPTS)
    )
    for folder in ("prompts", "corpus"):
        inner = tmp_path / folder / ("prompts" if folder == "prompts" else "problems")
        inner.mkdir(parents=True)
        (inner / "math.jsonl").write_text(lines)
    return {
        "tokenizer": artifact(served_folder),
        "prompts": artifact(tmp_path / "prompts"),
        "corpus": artifact(tmp_path / "corpus"),
    }


def served_engine(server, **options):
    options = {"extra": {"return_token_ids": True}, "first_wait": 0.01, "retries": 0, **options}
    return EngineConfig("openai", {"base_url": server.url, "model": "tiny", **options})


def count(server, **changes):
    settings = {"samples": 4, "chunk": 2, "grading": WEAK, "sampling": SAMPLED}
    rewards = RewardSettings(format_gate=False, unfinished=None)
    return Difficulty(engine=served_engine(server), rewards=rewards, **settings | changes)


def test_difficulty_of_a_model_behind_a_server(server, inputs, tmp_path):
    server.start()
    out = tmp_path / "out"
    out.mkdir()
    assert count(server).run(inputs, out)["engine"] == "openai"
    assert len(server.bodies) == len(set(server.bodies)) == len(PROMPTS) * 4
    rows = parquet.read_table(out / difficulty.STORE).to_pylist()
    assert [(row["id"], row["samples"]) for row in rows] == [("q0", 4), ("q1", 4), ("q2", 4)]
    assert all(0 < row["mean_tokens"] <= 6 for row in rows)
    assert [file.name for file in out.iterdir()] == [difficulty.STORE], (
        "the store of the completions is removed"
    )


def test_nothing_is_lost_when_the_server_dies_within_a_chunk(server, inputs, tmp_path):
    whole, out = tmp_path / "whole", tmp_path / "out"
    whole.mkdir()
    out.mkdir()
    server.start()
    stage = count(server)
    stage.run(inputs, whole)
    before = len(server.bodies)
    server.kill()
    server.start(die_at=6)
    stage.engine.options["concurrency"] = 1
    with pytest.raises(ServerError, match=r"5 of 8 completions are kept in .*run again"):
        stage.run(inputs, out)
    server.kill()
    server.start()
    assert stage.run(inputs, out)["samples"] == 4
    assert len(server.bodies) == before + 6 + (len(PROMPTS) * 4 - 5), (
        "five were answered before the server died"
    )
    assert parquet.read_table(out / difficulty.STORE).equals(parquet.read_table(whole / difficulty.STORE))


def test_scores_of_a_model_behind_a_server(server, inputs, tmp_path):
    server.start()
    stage = Evaluate(suites=["math"], sampling=SUITE_SAMPLED, engine=served_engine(server), grading=WEAK)
    assert stage.run(inputs, tmp_path)["engine"] == "openai"
    texts = [sample["completion"] for sample in read_answers(tmp_path)]
    engine = OpenAIEngine(server.url, "tiny", extra={"return_token_ids": True})
    by_id = sorted(zip([s["id"] for s in read_answers(tmp_path)], texts, strict=True))
    assert [text for _, text in by_id] == [row[0].text for row in engine.generate(PROMPTS, SAMPLED)]
    assert not (tmp_path / STORE).exists()


def ruler_records(folder):
    return [(record["prompt_end"], record["prediction"]) for record, _ in read_records(folder / PREDICTIONS)]


def test_ruler_of_a_model_behind_a_server(server, served_folder, inputs, tmp_path):
    """The same samples and answers as from the same model in this process."""
    server.start()
    ours, theirs, model = tmp_path / "ours", tmp_path / "theirs", tmp_path / "model"
    for folder in (ours, theirs, model):
        folder.mkdir()
    stage = RulerEvaluate(tasks=["needle_single"], lengths=[128], samples=3, batch_tokens=256)
    import_checkpoint(served_folder, model, None)
    assert stage.run(inputs | {"model": artifact(model)}, ours)["engine"] == "megatron"
    behind = replace(stage, engine=served_engine(server))
    assert behind.run(inputs, theirs)["engine"] == "openai"
    assert ruler_records(ours) == ruler_records(theirs)
    assert len(server.bodies) == 3
    assert not (theirs / STORE).exists()
    with pytest.raises(ConfigError, match="needs a 'tokenizer' input"):
        behind.run({}, theirs)
    with pytest.raises(ConfigError, match="engine 'vllm' needs a 'model' input"):
        replace(stage, engine=EngineConfig("vllm")).run(inputs, theirs)


def test_ruler_goes_on_after_the_server_died(server, inputs, tmp_path):
    server.start(die_at=2)
    stage = RulerEvaluate(tasks=["needle_single"], lengths=[128], samples=3)
    stage.engine = served_engine(server, concurrency=1)
    with pytest.raises(ServerError, match="1 of 3 completions are kept in"):
        stage.run(inputs, tmp_path)
    server.kill()
    server.start()
    assert stage.run(inputs, tmp_path)["lengths"]["128"]["samples"] == 3
    assert len(server.bodies) == 2 + 2, "the first completion is not requested again"


def run_command(*arguments):
    with pytest.raises(SystemExit) as end:
        main(arguments)
    return end.value.code


def test_the_command_scores_a_model_behind_a_server(server, served_folder, tmp_path, capsys):
    server.start()
    command = ("eval", server.url, "--suite", "long", "--limit", "2", "--out", str(tmp_path / "run"))
    options = ["--option", "model=tiny", "ruler.tasks=[needle_single]", "ruler.lengths=[128]"]
    assert run_command(*command, *options) == 2
    assert "name the tokenizer of the server's model with --tokenizer DIR" in capsys.readouterr().err
    options += ["--option", "extra={return_token_ids: true}", "--tokenizer", str(served_folder)]
    assert run_command(*command, *options, "--json", "-") == 0
    stages = {stage["stage"]: stage for stage in json.loads(capsys.readouterr().out)["stages"]}
    assert stages["ruler"]["metrics"]["suites"]["ruler-128"]["samples"] == 2
    assert "model" not in stages


def test_a_stage_without_a_model_needs_a_server(inputs, tmp_path):
    for engine in ("megatron", "hf", "vllm"):
        with pytest.raises(ConfigError, match=f"engine '{engine}' needs a 'model' input"):
            Difficulty(engine=EngineConfig(engine), grading=WEAK).run(inputs, tmp_path)


def test_vllm_that_is_not_installed(tmp_path):
    inputs = make_inputs(tmp_path, "dense")
    with pytest.raises(ConfigError, match=r"vLLM is not installed"):
        Difficulty(engine=EngineConfig("vllm"), grading=WEAK).run(inputs, tmp_path)


def test_a_config_names_the_engine_and_its_options():
    options = {"base_url": "http://localhost:1/v1", "model": "tiny", "extra": {"return_token_ids": True}}
    stage = apply_overrides(Difficulty(), {"engine.name": "openai", "engine.options": options})
    assert stage.engine == EngineConfig("openai", options)
    assert from_mapping(Difficulty, to_mapping(stage)) == stage
    assert stage.fingerprint({}) != Difficulty().fingerprint({})


def test_the_address_is_not_part_of_the_fingerprint_and_the_model_is():
    def fingerprints(**options):
        engine = EngineConfig("openai", {"base_url": "http://a/v1", "model": "tiny", **options})
        found = {stage(engine=engine).fingerprint({}) for stage in (Difficulty, Evaluate)}
        assert len(found) == 2
        return found

    assert fingerprints() == fingerprints(base_url="http://b/v1", retries=9, timeout=5.0, concurrency=2)
    assert fingerprints() != fingerprints(model="other")
    assert fingerprints() != fingerprints(extra={"top_k": 5})


@pytest.mark.parametrize(
    ("engine", "options", "message"),
    [
        ("opanai", {}, "engine.name='opanai' is not possible; did you mean 'openai'"),
        ("openai", {"model": "tiny"}, "option 'base_url' is missing"),
        ("openai", {"base_url": "x", "model": "tiny", "modle": 1}, "unknown option 'modle'"),
        ("openai", {"base_url": "x", "model": "tiny", "store": "x"}, "engine.options.store: the stage sets"),
        ("megatron", {"batch_size": 3}, "engine.options.batch_size: the stage sets"),
        ("vllm", {"gpu_memory": 0.5}, "unknown option 'gpu_memory'; did you mean 'gpu_memory_share'"),
    ],
)
def test_invalid_engines_and_options(engine, options, message):
    with pytest.raises(ConfigError, match=message):
        EngineConfig(engine, options)


def test_a_server_is_asked_for_the_name_of_its_model(server, served_folder, monkeypatch):
    monkeypatch.setattr(served_models, "RETRIES", 0)

    def added(**options):
        return add_model(Graph("eval"), server.url, tokenizer=str(served_folder), options=options)

    with pytest.raises(
        ServerError, match=r"/v1/models: no response .*check the address, and that the server"
    ):
        added()
    server.start(models=["tiny"])
    model, tokenizer, engine = added(logprobs=False)
    assert (model, tokenizer.stage.source) == (None, str(served_folder))
    assert engine == EngineConfig("openai", {"base_url": server.url, "model": "tiny", "logprobs": False})
    assert added(model="another")[2].options["model"] == "another", "a name that is given is not asked for"
    for models, message in (
        (["one", "two"], r"lists 2 models \(one, two\); name the model with --option model=NAME"),
        ([], "lists no models; name the model with --option model=NAME"),
        (None, r"404 Not Found.*ends with /v1; .*name the model with --option model=NAME"),
    ):
        server.kill()
        server.start(models=models)
        with pytest.raises(ConfigError, match=message):
            added()


@pytest.fixture
def graded_here(monkeypatch):
    """Grading without worker processes, whose start takes longer than these tests."""
    monkeypatch.setattr(GradingSettings, "open_pool", lambda self: nullcontext(InThisProcess()))


def asked(folder, prompts):
    """A corpus with one suite of these prompts."""
    (folder / "problems").mkdir(parents=True)
    lines = [
        {"id": f"q{i}", "domain": "math", "prompt": prompt, "kind": "short", "answer": "A", "tests": []}
        for i, prompt in enumerate(prompts)
    ]
    (folder / "problems" / "math.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return artifact(folder)


def evaluation(server, **options):
    engine = served_engine(server, **{"concurrency": 1, **options})
    return Evaluate(samples_per_problem=2, sampling=SUITE_SAMPLED, engine=engine, grading=WEAK)


def answers(folder):
    return [(each["id"], each["sample"], each["completion"]) for each in read_answers(folder)]


@pytest.mark.parametrize("trouble", [{"die_at": 4}, {"refuse": 1, "status": 429}], ids=["dies", "429"])
def test_an_evaluation_goes_on_after_trouble_with_the_server(server, inputs, tmp_path, trouble, graded_here):
    whole, out = tmp_path / "whole" / "evaluation-0", tmp_path / "evaluation-0"
    server.start()
    evaluation(server).run(inputs, _made(whole))
    before = len(server.bodies)
    server.kill()
    server.start(**trouble)
    with pytest.raises(ServerError):
        evaluation(server).run(inputs, _made(out))
    kept = {"die_at": 3, "refuse": 0}[next(iter(trouble))]
    assert len(server.bodies) == before + kept + 1
    assert not (out / "scores.json").exists(), "no score without all answers"
    server.kill()
    server.start()
    evaluation(server).run(inputs, out)
    assert len(server.bodies) == before + kept + 1 + (2 * len(PROMPTS) - kept), "only the rest was requested"
    assert answers(out) == answers(whole)


def test_a_prompt_that_a_server_refuses_is_counted_and_named(server, inputs, tmp_path, caplog, graded_here):
    corpus = {"corpus": asked(tmp_path / "corpus2", ["A" * 125, *PROMPTS])}
    server.start()
    out = _made(tmp_path / "evaluation-0")
    scores = evaluation(server).run(inputs | corpus, out)["suites"]["math"]
    assert scores["outcomes"] == {
        **dict.fromkeys(("ungradable", "timed_out", "empty"), 0),
        **{"graded": 6, "refused": 2, "truncated": scores["outcomes"]["truncated"]},
    }
    assert (scores["refused"], scores["reasons"]["refused"], scores["samples"]) == (["q0"], 2, 8)
    assert "problem 'q0' cannot be sampled: " in caplog.text
    assert "This model's maximum context length is 128 tokens" in caplog.text
    assert "2 could not be made; they count as not right" in caplog.text
    found = list(read_answers(out))
    assert [each["finish_reason"] for each in found[:2]] == ["refused"] * 2
    evaluation(server).run(inputs, _made(tmp_path / "other" / "evaluation-0"))
    others = [(each["sample"], each["completion"]) for each in found[2:]]
    assert others == [each[1:] for each in answers(tmp_path / "other" / "evaluation-0")]

    # Another evaluation takes over the answers, and asks again for what was refused.
    before = len(server.bodies)
    more = replace(evaluation(server), samples_per_problem=3)
    assert more.run(inputs | corpus, _made(tmp_path / "evaluation-1"))["suites"]["math"]["samples"] == 12
    # The refused three are sent as text, too, until a first request shows that ids are accepted.
    assert len(server.bodies) - before == 3 + 3 * 2


def test_a_server_that_refuses_every_prompt_gives_no_score(server, inputs, tmp_path, graded_here):
    server.start()
    out = _made(tmp_path / "evaluation-0")
    stage = replace(evaluation(server), sampling=replace(SUITE_SAMPLED, max_new_tokens=500))
    with pytest.raises(DataError, match="suite 'math': no completion of any problem can be made"):
        stage.run(inputs, out)
    assert not (out / "scores.json").exists()
    stage = evaluation(server)
    assert stage.run(inputs, out)["suites"]["math"]["outcomes"]["refused"] == 0
    # Other refusals are not about one prompt, and end the evaluation at once.
    server.kill()
    server.start(refuse=99, status=404)
    before = len(server.bodies)
    with pytest.raises(ServerError, match="404 Not Found: come back later; 0 of 6 completions are kept"):
        stage.run(inputs, _made(tmp_path / "other" / "evaluation-0"))
    assert len(server.bodies) - before == 2, "ids, and then text"


def test_a_prompt_too_long_for_a_model_in_this_process_is_counted(
    served_folder, inputs, tmp_path, caplog, graded_here
):
    corpus = {"corpus": asked(tmp_path / "corpus2", ["A" * 128, *PROMPTS])}
    model = {"model": artifact(served_folder)}
    found = []
    for name in ("megatron", "hf"):
        stage = replace(evaluation(SimpleNamespace(url="http://localhost:1/v1")), engine=EngineConfig(name))
        scores = stage.run(inputs | model | corpus, _made(tmp_path / name / "evaluation-0"))["suites"]["math"]
        assert (scores["outcomes"]["refused"], scores["refused"]) == (2, ["q0"])
        found.append(answers(tmp_path / name / "evaluation-0"))
    assert found[0] == found[1]
    assert "problem 'q0' cannot be sampled: prompt 'AAAA" in caplog.text
    assert "may have 128 together" in caplog.text


def test_a_server_that_adds_a_start_token_gives_no_score(server, inputs, tmp_path, graded_here):
    server.start(begin=[5])
    out = _made(tmp_path / "evaluation-0")
    with pytest.raises(
        ServerError, match=r"read a prompt of 4 tokens, but was sent 3 ids, so it adds tokens"
    ):
        evaluation(server).run(inputs, out)
    assert not (out / "scores.json").exists()


def _made(folder):
    folder.mkdir(parents=True)
    return folder
