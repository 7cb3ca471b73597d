import ast
import json
import random
import re

import pytest
from data_artifacts import make_artifact, small_corpus

from megatron_prism.data import installed_text
from megatron_prism.data.readers import SPLITS, corpus_sources, read_texts
from megatron_prism.data.shoebox import chat, problem, problems_math
from megatron_prism.data.shoebox.corpus import DEFAULT_CHARACTERS, ShoeboxCorpus
from megatron_prism.errors import ConfigError, DataError
from megatron_prism.verification.grade import grade
from megatron_prism.verification.problems import load_suite


def documents(artifact, split, source):
    return list(read_texts(corpus_sources(artifact.path, split)[source]))


def test_layout_and_counts(corpus):
    for split in SPLITS:
        assert corpus_sources(corpus.path, split).keys() == DEFAULT_CHARACTERS.keys()
        for source, counted in corpus.metrics["sources"][split].items():
            texts = documents(corpus, split, source)
            assert counted == {"documents": len(texts), "characters": sum(map(len, texts))}
            wanted = 60_000 * (1 if split == "train" else 0.03)
            assert wanted <= counted["characters"] < wanted + 150_000
    for suite in ("math", "science", "code"):
        asked = load_suite(corpus.path / "problems", suite)
        levels = corpus.metrics["held_out"][suite]["levels"]
        assert len(asked) == sum(levels.values()) == 60
        assert all(each.domain == suite for each in asked)


def test_no_held_out_question_is_in_any_text(corpus):
    prompts = {p.prompt for s in ("math", "science", "code") for p in load_suite(corpus.path / "problems", s)}
    assert len(prompts) == 180
    asked = 0
    for split in SPLITS:
        for source in DEFAULT_CHARACTERS:
            for text in documents(corpus, split, source):
                prompt = text.partition(" <think>")[0]
                asked += prompt.endswith("Assistant:")
                assert prompt not in prompts
    assert asked > 1000


class Every:
    """Equal to every split: what a broken split function would give."""

    def __eq__(self, other):
        return True


@pytest.fixture
def prose_once(monkeypatch, corpus):
    """The prose of the machine as `corpus` has it, for tests of what is made of it: reading it takes seconds."""
    texts = [text for split in SPLITS for text in documents(corpus, split, "web")]
    monkeypatch.setattr(installed_text, "prose_documents", lambda: texts)


def test_a_leak_stops_the_stage(monkeypatch, tmp_path, prose_once):
    monkeypatch.setattr(problem.GeneratedProblem, "split", Every())
    with pytest.raises(DataError, match="problems are in both"):
        small_corpus().run({}, tmp_path)


def test_train_and_validation_share_no_document(corpus):
    for source in DEFAULT_CHARACTERS:
        assert not set(documents(corpus, "train", source)) & set(documents(corpus, "valid", source))


def test_the_same_config_makes_the_same_bytes_and_more_text_begins_with_them(corpus, tmp_path):
    sizes = dict.fromkeys(DEFAULT_CHARACTERS, 60_000) | {"math": 90_000}
    larger = make_artifact(small_corpus(characters=sizes), tmp_path / "larger")
    changed = set(corpus.receipt.outputs) ^ set(larger.receipt.outputs)
    assert {output.path for output in changed} == {"train/math.jsonl.zst", "valid/math.jsonl.zst"}
    shorter = documents(corpus, "train", "math")
    longer = documents(larger, "train", "math")
    assert len(longer) > len(shorter)
    assert longer[: len(shorter)] == shorter


def test_another_seed_makes_other_files(tmp_path, prose_once):
    first, other = (
        {
            output.sha256
            for output in make_artifact(small_corpus(seed=seed), tmp_path / str(seed)).receipt.outputs
        }
        for seed in (1, 2)
    )
    assert len(first) > 10
    assert not first & other


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"held_out_problems": 0}, "held_out_problems=0"),
        ({"valid_percent": 0}, "valid_percent=0"),
        ({"characters": {**DEFAULT_CHARACTERS, "web": 0}}, r"characters\.web=0"),
        ({"characters": {**DEFAULT_CHARACTERS, "mathe": 5}}, "did you mean 'math'"),
        ({"characters": {"web": 5}}, "no size for chat, code, code_reasoning, math, retrieval, science"),
    ],
)
def test_impossible_settings(fields, said):
    with pytest.raises(ConfigError, match=said):
        ShoeboxCorpus(**fields)


def test_prompts_come_with_a_right_solution_and_are_not_held_out(corpus):
    for suite in ("math", "science", "code"):
        records = [
            json.loads(line) for line in (corpus.path / "prompts" / f"{suite}.jsonl").read_text().splitlines()
        ]
        assert len(records) == 256
        held_out = {each.id for each in load_suite(corpus.path / "problems", suite)}
        assert not held_out & {record["id"] for record in records}
        for record in records[:3]:
            verdict = grade(record["kind"], record["solution"], record["answer"], tests=record["tests"])
            assert verdict.correct


def test_too_many_held_out_problems():
    families = {"chain1": problems_math.FAMILIES["chain1"]}
    with pytest.raises(ConfigError, match="suite 'math' has only about"):
        problem.different_problems(families, problem.HELD_OUT, 5000, random.Random(1), suite="math")


def test_code_is_real_python_without_tests(corpus):
    texts = documents(corpus, "train", "code")
    assert all(isinstance(ast.parse(text), ast.Module) for text in texts[:10])
    assert not [path for path in installed_text.source_files() if "test" in path.parts]
    # Negative control: the library on this machine does have what is left out.
    assert installed_text.SKIPPED_FOLDERS & {
        path.name for path in installed_text.source_files()[0].parent.iterdir()
    }


def test_docstrings_are_found_without_importing():
    tree = ast.parse(
        '"""Top."""\nclass A:\n    """In A."""\n    def f(self):\n        """In f."""\nx = """not one"""'
    )
    assert list(installed_text._docstrings_of(tree)) == ["Top.", "In A.", "In f."]


def test_a_python_without_sources(monkeypatch, tmp_path):
    monkeypatch.setattr(installed_text.sysconfig, "get_path", lambda name: str(tmp_path))
    with pytest.raises(DataError, match=r"no \.py files of the standard library"):
        list(installed_text.code_documents())


def test_dialogues_remember():
    rng = random.Random(1)
    recalled = 0
    for _ in range(300):
        text = chat.dialogue(rng)
        turns = re.findall(r"^(User|Assistant): (.+)$", text, re.MULTILINE)
        assert [role for role, _ in turns] == ["User", "Assistant"] * (len(turns) // 2)
        assert "<think>" not in text
        if name := re.search(r"Your name is (\w+)\.", text):
            recalled += 1
            assert f"User: My name is {name.group(1)}." in text
    assert recalled > 30
