"""The stage from end to end on local tasks, an interruption, and the line that a user's mistake ends with."""

from __future__ import annotations

import json
from importlib.util import find_spec

import pyarrow.parquet
import pytest
from local_tasks import ANSWERS, COUNTS, LETTERS, OPTIONS, TASKS, TEXTS, write_tasks
from stage_runs import begin, run

from megatron_prism.data.text_policy import TextSettings
from megatron_prism.errors import ConfigError, DataError, PrismError
from megatron_prism.evaluation.answers import read_answers
from megatron_prism.evaluation.harness import package
from megatron_prism.evaluation.harness.language_model import EngineLM, sampling
from megatron_prism.evaluation.harness.stage import Harness, general_stage
from megatron_prism.generation.engine_config import EngineConfig
from megatron_prism.generation.megatron_engine import MegatronEngine

pytestmark = pytest.mark.parametrize("model", ["dense"], indirect=True)


def stage(tasks, names=tuple(TASKS), **fields):
    return Harness(suites=[], tasks=list(names), include_path=str(tasks), **fields)


@pytest.fixture
def no_model(monkeypatch):
    """Fails if the weights are read."""
    monkeypatch.setattr(MegatronEngine, "load", lambda *_, **__: pytest.fail("the model was loaded"))


def test_scores_problems_and_samples(model, tasks, tmp_path):
    made = run(stage(tasks, metrics={OPTIONS: "acc_norm"}), {"model": model.artifact}, tmp_path)
    scores = json.loads((made.path / "scores.json").read_text())
    problems = json.loads((made.path / "problems.json").read_text())
    assert set(scores["suites"]) == set(problems) == {OPTIONS, LETTERS, ANSWERS}
    for task, entry in scores["suites"].items():
        values = [right for right, samples in problems[task].values() if samples == 1]
        assert len(values) == entry["problems"] == entry["samples"] == COUNTS["test"]
        assert entry["pass_rate"] == pytest.approx(sum(values) / len(values))
        assert entry["pass_rate"] == pytest.approx(entry["lm_eval"][entry["metric"]])
        assert entry["low"] <= entry["pass_rate"] <= entry["high"]
        assert entry["group"] == "general"
        assert len(entry["dataset"]["files"]) == 2
    assert scores["suites"][OPTIONS]["metric"] == "acc_norm,none"
    assert scores["suites"][LETTERS]["metric"] == "acc,none"
    assert scores["suites"][OPTIONS]["num_fewshot"] == 3
    assert scores["suites"][OPTIONS]["version"] == "2.0"
    assert scores["versions"]["lm-eval"] == "0.4.13"
    # A perplexity is no rate.
    assert scores["measures"][TEXTS]["lm_eval"]["word_perplexity,none"] > 1
    assert scores["averages"] == {}
    rows = pyarrow.parquet.read_table(made.path / "harness.parquet").to_pylist()
    assert {row["task"] for row in rows} == set(TASKS)
    first = next(row for row in rows if row["task"] == LETTERS)
    assert [ending for _, ending in json.loads(first["arguments"])] == [" A", " B", " C", " D"]
    assert len(json.loads(first["responses"])) == 4
    assert json.loads(first["metrics"])["acc"] == problems[LETTERS][str(first["doc_id"])][0]
    assert not (made.path / "finished").exists()
    # The answers read like those of other suites, and right ones are those that count.
    answers = list(read_answers(made.path))
    assert {answer["suite"] for answer in answers} == {OPTIONS, LETTERS, ANSWERS}
    for answer in answers:
        assert answer["correct"] == (problems[answer["suite"]][answer["id"]][0] == 1)
        if answer["suite"] != ANSWERS:
            assert answer["correct"] == (answer["completion"].strip() == answer["answer"].strip())


def test_an_interrupted_run_goes_on_with_the_next_task(model, tasks, tmp_path, monkeypatch):
    wanted = stage(tasks, limit=3)
    whole = run(wanted, {"model": model.artifact}, tmp_path / "whole")
    honest, calls = EngineLM.generate_until, []

    def killed(self, requests):
        raise KeyboardInterrupt

    begun = begin(wanted, {"model": model.artifact}, tmp_path / "killed")
    monkeypatch.setattr(EngineLM, "generate_until", killed)
    with pytest.raises(KeyboardInterrupt):
        wanted.run({"model": model.artifact}, begun.partial)
    monkeypatch.setattr(EngineLM, "generate_until", honest)
    scored = EngineLM.loglikelihood
    monkeypatch.setattr(EngineLM, "loglikelihood", lambda *given: calls.append(1) or scored(*given))
    wanted.run({"model": model.artifact}, begun.partial)
    # The tasks of choices came first.
    assert calls == []
    for name in ("scores.json", "problems.json"):
        assert (begun.partial / name).read_text() == (whole.path / name).read_text()
    tables = [pyarrow.parquet.read_table(each / "harness.parquet") for each in (begun.partial, whole.path)]
    assert tables[0].equals(tables[1])


def test_missing_data_names_the_task_and_what_to_give_instead(model, tasks, tmp_path, no_model):
    for name, dataset in (
        ("on_the_hub", {"dataset_path": "megatron-prism/no-such-dataset"}),
        ("no_file", {"dataset_path": "json", "dataset_kwargs": {"data_files": {"test": "/no/such.jsonl"}}}),
    ):
        definition = {"task": name, "test_split": "test", "output_type": "multiple_choice"}
        (tmp_path / f"{name}.yaml").write_text(json.dumps(definition | dataset))
        with pytest.raises(
            DataError, match=rf"task {name}: no data .*HF_DATASETS_CACHE.*include_path"
        ) as found:
            stage(tmp_path, [name]).run({"model": model.artifact}, tmp_path)
        assert "\n" not in str(found.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"doc_to_text": "{{missing.field}}"}, "lm-eval cannot use its definition or data"),
        ({"doc_to_target": "no_such_column"}, "no document has its right answer among its choices"),
        ({"unsafe_code": True}, "runs programs that the model wrote"),
    ],
)
def test_a_wrong_definition_is_one_line(change, message, model, tasks, tmp_path, no_model):
    definition = json.loads((tasks / f"{LETTERS}.yaml").read_text())
    (tmp_path / "wrong.yaml").write_text(json.dumps(definition | {"task": "wrong"} | change))
    with pytest.raises(PrismError, match=f"task 'wrong'.*{message}") as found:
        stage(tmp_path, ["wrong"]).run({"model": model.artifact}, tmp_path)
    assert "\n" not in str(found.value)


def test_documents_without_a_right_answer_are_counted(model, tasks, tmp_path, caplog):
    definition = json.loads((tasks / f"{LETTERS}.yaml").read_text())
    # The answer is D in some documents, and then it is none of three choices.
    definition |= {"task": "three", "doc_to_choice": ["A", "B", "C"]}
    (tmp_path / "three.yaml").write_text(json.dumps(definition))
    lines = (tasks / f"{LETTERS}-test.jsonl").read_text().splitlines()
    faulty = sum(json.loads(line)["gold"] == 3 for line in lines)
    assert 0 < faulty < len(lines)
    made = run(stage(tmp_path, ["three"]), {"model": model.artifact}, tmp_path)
    scores = json.loads((made.path / "scores.json").read_text())
    assert scores["suites"]["three"]["without_answer"] == faulty
    assert f"task 'three': {faulty} documents" in caplog.text


def test_what_an_engine_cannot_do_is_said_before_it_starts(model, tasks, tmp_path):
    server = EngineConfig("openai", {"base_url": "http://localhost:9", "model": "none"})
    with pytest.raises(
        ConfigError, match=f"task '{OPTIONS}' compares log-likelihoods.*use engine 'megatron'"
    ):
        stage(tasks, [OPTIONS], engine=server).run({"model": model.artifact}, tmp_path)


def test_without_lm_eval_the_extra_is_named(model, tasks, tmp_path, monkeypatch):
    monkeypatch.setattr(package, "find_spec", lambda name: None if name == "lm_eval" else find_spec(name))
    with pytest.raises(ConfigError, match=r"install the extra: pip install 'megatron-prism\[harness\]'"):
        stage(tasks).run({"model": model.artifact}, tmp_path)


def test_unknown_metrics_and_tasks(model, tasks, tmp_path):
    with pytest.raises(ConfigError, match=r"has no metric 'f1,none'.*it has acc,none"):
        stage(tasks, [LETTERS], metrics={LETTERS: "f1"}, limit=1).run({"model": model.artifact}, tmp_path)
    with pytest.raises(ConfigError, match=r"metrics.gsm8k: this task is not evaluated"):
        stage(tasks, [LETTERS], metrics={"gsm8k": "acc"})
    with pytest.raises(ConfigError, match=r"include_path=/no/such: no such folder"):
        Harness(suites=[], tasks=["x"], include_path="/no/such").identity()


def test_a_changed_definition_or_document_is_another_stage(model, tmp_path):
    tasks = write_tasks(tmp_path)
    seen = {stage(tasks).fingerprint({})}
    # What `datasets` writes beside the files is no definition.
    (tasks / "cache").mkdir()
    (tasks / "cache" / "json-test.arrow").write_text("copied")
    assert stage(tasks).fingerprint({}) in seen
    for name in (f"{LETTERS}-test.jsonl", f"{LETTERS}.yaml"):
        file = tasks / name
        file.write_text(file.read_text() + " ")
        seen.add(stage(tasks).fingerprint({}))
    assert len(seen) == 3


def test_the_names_of_the_command_line(model):
    both = general_stage(["general", "wikitext"], limit=5)
    assert (both.suites, both.tasks, both.limit) == (["leaderboard-v1", "leaderboard-v2"], ["wikitext"], 5)
    assert general_stage(["general-v2"]).suites == ["leaderboard-v2"]
    engines = [EngineConfig("hf"), EngineConfig("hf", text=TextSettings(special_tokens="refuse"))]
    asked = [general_stage(["general"], engine).engine for engine in engines]
    assert [each.text.special_tokens for each in asked] == ["parse", "refuse"]


def test_how_a_task_samples(model):
    given = sampling({"until": ["\n", ""], "do_sample": True, "temperature": 0.7, "top_p": 0.9}, 3, "t")
    assert (given.stop, given.temperature, given.top_p, given.max_new_tokens) == (["\n"], 0.7, 0.9, 256)
    assert sampling({"do_sample": False, "temperature": 0.7}, 3, "t").temperature == 0
    with pytest.raises(ConfigError, match=r"task 't': generation_kwargs.num_beams=4 is not supported"):
        sampling({"until": [], "num_beams": 4}, 3, "t")


class Told:
    """Remembers its prompts."""

    context_length = 20

    def generate(self, prompts, params, **_):
        from megatron_prism.generation.engine import Completion

        self.prompts = prompts
        return [[Completion("a<|endoftext|>b stop c", [], [], "length")] for _ in prompts]


def test_long_prompts_lose_their_beginning(model):
    from lm_eval.api.instance import Instance

    from megatron_prism.data.tokenizer import Tokenizer

    tokenizer = Tokenizer.load(model.artifact.path / "hf")
    engine = Told()
    lm = EngineLM(engine, tokenizer, name="told", batch_tokens=1)

    def ask(text, tokens):
        options = {"until": ["stop"], "max_gen_toks": tokens}
        return lm.generate_until([Instance("generate_until", {}, (text, options), 0, metadata=("t", 0, 1))])

    assert ask("At 5 m/s", 8) == ["ab "]
    assert engine.prompts == ["At 5 m/s"]
    assert lm.shortened == 0
    ask("What is its speed in m/s? " * 9 + "At 5 m/s", 8)
    [prompt] = engine.prompts
    assert prompt.endswith("At 5 m/s")
    assert len(tokenizer.encode(prompt)) == 12
    assert lm.shortened == 1
    with pytest.raises(ConfigError, match="generates up to 20 tokens, but the model reads only 20"):
        ask("At", 20)
