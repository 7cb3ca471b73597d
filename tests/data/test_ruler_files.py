"""Sources and folders of samples: reading, errors, and the files on disk."""

from __future__ import annotations

import re

import pytest
from ruler_sources import byte_level_tokenizer, write_sources

from megatron_prism.data.ruler.generate import Plan, make_samples
from megatron_prism.data.ruler.questions import package_questions, read_hotpot, read_squad
from megatron_prism.data.ruler.sample_folder import make_folder
from megatron_prism.data.ruler.samples import read_manifest, read_samples
from megatron_prism.data.ruler.sources import load_sources
from megatron_prism.data.ruler.tasks import COMPACT_TASKS, RULER_TASKS
from megatron_prism.errors import ConfigError, DataError

TASKS = (RULER_TASKS["vt"], RULER_TASKS["qa_2"], COMPACT_TASKS["needle_single"])


@pytest.fixture(scope="module")
def tokenizer_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer")
    byte_level_tokenizer(folder)
    return folder


@pytest.fixture(scope="module")
def paths(tmp_path_factory):
    return write_sources(tmp_path_factory.mktemp("sources"))


@pytest.mark.parametrize("workers", [1, 2])
def test_a_folder_contains_the_planned_samples(workers, tmp_path, tokenizer_folder, paths):
    from megatron_prism.data.tokenizer import Tokenizer

    sources = load_sources(TASKS, hotpot=paths["hotpot"])
    finished = []
    plan = Plan(TASKS, (2048, 3000), samples=3, seed=5)
    manifest = make_folder(
        plan, tokenizer_folder, sources, tmp_path, workers=workers, progress=finished.append
    )
    assert sum(finished) == 18
    assert read_manifest(tmp_path) == manifest
    assert manifest["tokenizer"] == Tokenizer.load(tokenizer_folder).identity
    tokenizer = Tokenizer.load(tokenizer_folder)
    for task in TASKS:
        for length in (2048, 3000):
            read = list(read_samples(tmp_path, task.name, length))
            assert read == make_samples(task, tokenizer, length, 3, seed=5, sources=sources)
            entry = manifest["files"][str(length)][task.name]
            assert entry["max_tokens"] == max(sample.tokens for sample in read)
            assert entry["source"] == ("hotpot.json" if task.name == "qa_2" else "built in")
    assert not list(tmp_path.rglob("*.partial"))


def test_impossible_plans_are_errors_before_anything_is_written(tmp_path, tokenizer_folder, paths):
    sources = load_sources(TASKS, hotpot=paths["hotpot"])
    for lengths, error in (((2048, 100_000), DataError), ((64, 2048), ConfigError)):
        with pytest.raises(error):
            make_folder(Plan(TASKS, lengths, 2), tokenizer_folder, sources, tmp_path, workers=1)
        assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("lengths", "samples", "message"),
    [((), 1, "empty"), ((8192, 8192), 1, "occurs twice"), ((-1,), 1, "length=-1"), ((8,), 0, "samples=0")],
)
def test_impossible_plans_are_refused(lengths, samples, message):
    with pytest.raises(ConfigError, match=message):
        Plan(TASKS, lengths, samples)


def test_questions_of_published_forms(paths):
    squad = read_squad(paths["squad"])
    assert len(squad.questions) == 96
    assert len(squad.documents) == 96
    first = squad.questions[0]
    assert first.text == "Whose is part 0 of town 0?"
    assert first.answers == ("Owner0x0",)
    assert "Owner0x0 alone" in squad.documents[first.gold[0]]
    assert len(first.related) == 11
    assert all("Owner0x" in squad.documents[place] for place in first.related)
    hotpot = read_hotpot(paths["hotpot"])
    gold = [hotpot.documents[place] for place in hotpot.questions[3].gold]
    assert len(gold) == 6
    assert gold[0] == "Title3\nTitle3 lies near Town3. It is old."
    assert not any("  " in text or "\n\n" in text for text in (*squad.documents, *hotpot.documents))


@pytest.mark.parametrize("kind", ["single", "multi"])
def test_questions_about_packages_can_be_answered_from_their_documents(kind):
    made = package_questions(kind)
    assert made.source.startswith("stand-in")
    assert len(made.questions) >= 100
    for question in made.questions:
        assert question.answers[0] in " ".join(made.documents[question.gold[-1]].split())
    if kind == "multi":
        assert all(len(question.gold) == 2 for question in made.questions)
        question = made.questions[0]
        ordinal, asking = re.search(r"the (\w+) package that (.*) requires", question.text).groups()
        listed = re.search(rf"{re.escape(asking)} requires: (.*)\.", made.documents[question.gold[0]])[1]
        required = listed.split(", ")[("first", "second", "third").index(ordinal)]
        named = made.documents[question.gold[1]].split("\n")[0]
        assert re.sub(r"[-_.]+", "-", named).lower() == required


def test_words_come_from_the_essays_or_a_list(tmp_path, paths):
    task = [RULER_TASKS["cwe"]]
    from_essays = load_sources(task, essays=paths["essays"])
    assert from_essays.words_source == "words of essays.txt"
    assert "said" in from_essays.words
    assert "naïve" not in from_essays.words
    (tmp_path / "list.txt").write_text("zyxw\nvuts")
    listed = load_sources(task, words=tmp_path / "list.txt")
    assert listed.essays is None
    assert {"zyxw", "vuts"} <= set(listed.words)
    assert listed.words_source == "list.txt"
    (tmp_path / "none.txt").write_text("12 34")
    with pytest.raises(DataError, match=r"none\.txt: contains no English word"):
        load_sources(task, words=tmp_path / "none.txt")


def test_default_text_is_labelled_as_a_stand_in():
    made = load_sources([RULER_TASKS["niah_single_2"], RULER_TASKS["qa_1"]])
    assert made.essays.source.startswith("stand-in")
    assert made.single.source.startswith("stand-in")
    assert len(made.essays.words) > 50_000


@pytest.mark.parametrize(
    ("reader", "content", "message"),
    [
        (read_squad, "{", "not JSON"),
        (read_squad, '{"data": [{"paragraphs": [{"qas": []}]}]}', "no key 'context'"),
        (read_squad, '{"data": []}', "no question with an answer"),
        (read_squad, "[]", "not in the form of SQuAD"),
        (
            read_squad,
            '{"data": [{"paragraphs": [{"context": 3, "qas": []}]}]}',
            "not in the form of SQuAD",
        ),
        (read_hotpot, '[{"question": "q"}]', "no key 'answer'"),
        (
            read_hotpot,
            '[{"question": 1, "answer": "a", "context": [["t", ["s"]]]}]',
            "text is needed, found int",
        ),
        (read_hotpot, "[]", "no question with an answer"),
    ],
)
def test_files_in_the_wrong_form_are_named(reader, content, message, tmp_path):
    (tmp_path / "file.json").write_text(content)
    with pytest.raises(DataError, match=message) as problem:
        reader(tmp_path / "file.json")
    assert "file.json" in str(problem.value)


def test_damaged_folders_are_named(tmp_path):
    with pytest.raises(DataError, match=r"ruler\.json: no such file"):
        read_manifest(tmp_path)
    (tmp_path / "ruler.json").write_text("{}")
    with pytest.raises(DataError, match="not a folder of RULER samples"):
        read_manifest(tmp_path)
    with pytest.raises(DataError, match=r"vt\.jsonl\.zst: no such file"):
        list(read_samples(tmp_path, "vt", 8))
    (tmp_path / "8").mkdir()
    (tmp_path / "8/vt.jsonl.zst").write_bytes(b"junk")
    with pytest.raises(DataError, match="not readable RULER samples"):
        list(read_samples(tmp_path, "vt", 8))
