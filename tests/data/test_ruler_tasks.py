"""Every RULER task: answers are correct, lengths are exact, and a sample depends only on its own arguments."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import replace

import pytest
from ruler_sources import all_sources, byte_level_tokenizer, crossing_tokenizer, metaspace_tokenizer
from tokenizer_folders import sentencepiece_folder, with_begin

from megatron_prism.data.ruler.drafts import listing, random_order
from megatron_prism.data.ruler.fitting import HaystackEnds, TokenCounter, TooShort, fit
from megatron_prism.data.ruler.generate import START_TOKENS, make_samples
from megatron_prism.data.ruler.tasks import (
    COMPACT_TASKS,
    NOISE_SENTENCES,
    RULER_TASKS,
    TASKS,
    NeedleTask,
    named_tasks,
)
from megatron_prism.data.ruler.word_lists import ADJECTIVES, NOUNS, pairs
from megatron_prism.data.text_policy import TextSettings
from megatron_prism.data.tokenizer import Tokenizer
from megatron_prism.errors import ConfigError, DataError

LENGTH = 4096
NEEDLE_TASKS = [name for name in RULER_TASKS if name.startswith("niah")]
# User-defined tasks, as short as the compact ones, with numbers that occur nowhere else.
OWN = {
    name: NeedleTask(
        *(name, "{context} Which number goes with {query}? {query}", 8, "{key} {value}.", "noise"),
        **{"key_words": NOUNS, "digits": 3, "noise": NOISE_SENTENCES, "separator": " ", **counts},
    )
    for name, counts in (
        ("one", {}),
        ("of_four", {"num_keys": 4}),
        ("two_of_four", {"num_keys": 4, "num_queries": 2}),
        ("two_values", {"num_values": 2}),
    )
}
TOKENIZERS = {"byte level": byte_level_tokenizer, "metaspace": metaspace_tokenizer}


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    return all_sources(tmp_path_factory.mktemp("sources"))


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return byte_level_tokenizer(tmp_path_factory.mktemp("tokenizers") / "bytes")


@pytest.fixture(scope="module")
def made(tokenizer, sources):
    """Three samples of every task, with 12k tokens where a list of words must be long enough for the long form."""
    counter = TokenCounter(tokenizer)
    return {
        name: make_samples(task, tokenizer, LENGTH, 3, seed=7, sources=sources, counter=counter)
        for name, task in RULER_TASKS.items()
    }


def test_there_are_thirteen_tasks_with_helmets_answer_lengths():
    room = [task.max_new_tokens for task in RULER_TASKS.values()]
    assert room == [50, 50, 50, 50, 50, 100, 50, 100, 50, 100, 50, 50, 50]
    assert list(RULER_TASKS) == [
        *("niah_single_1", "niah_single_2", "niah_single_3", "niah_multikey_1", "niah_multikey_2"),
        *("niah_multikey_3", "niah_multivalue", "niah_multiquery", "vt", "cwe", "fwe", "qa_1", "qa_2"),
    ]


def context_of(sample, task):
    """The prompt without its head and question, according to the task's template."""
    head, tail = task.prompt.split("{context}")
    start = sample.prompt.rindex(head) + len(head) if head else 0
    return sample.prompt[start : sample.prompt.rindex(tail.split("{")[0])]


@pytest.mark.parametrize("name", NEEDLE_TASKS + list(OWN))
def test_only_the_needles_contain_the_answers(name, tokenizer, sources):
    task = (RULER_TASKS | OWN)[name]
    length = 160 if name in OWN else LENGTH
    for sample in make_samples(task, tokenizer, length, 3, seed=7, sources=sources):
        pattern = re.escape(task.needle).replace(r"\{key\}", r"([\w-]+)")
        pattern = pattern.replace(r"\{value\}", r"(\d{3,7}|[\da-f-]{36})")
        needles = re.findall(pattern, sample.prompt)
        values = {}
        for key, value in needles:
            values.setdefault(key, []).append(value)
        ending = sample.prompt[sample.prompt.rindex("W") :]
        queried = [key for key in values if re.search(rf"\b{key}\b", ending)]
        assert len(queried) == task.num_queries
        assert sorted(sample.answers) == sorted(value for key in queried for value in values[key])
        assert len(sample.answers) == task.num_queries * task.num_values
        for answer in sample.answers:
            assert sample.prompt.count(answer) == 1
        flat = [value for row in values.values() for value in row]
        assert len(set(flat)) == len(flat)
        if task.haystack != "needle":
            assert len(values) == task.num_keys
        assert len(sample.depths) == len(sample.answers)
        for answer, depth in zip(sorted(sample.answers, key=sample.prompt.index), sample.depths, strict=True):
            found = context_of(sample, task).index(answer) / len(context_of(sample, task))
            assert abs(found - depth) < 0.15


@pytest.mark.parametrize("name", COMPACT_TASKS)
def test_compact_tasks_contain_their_answers(name, tokenizer, sources):
    task = COMPACT_TASKS[name]
    for sample in make_samples(task, tokenizer, 160, 20, seed=7, sources=sources):
        assert len(sample.answers) == task.num_queries
        for answer in sample.answers:
            keys = [key for key, values in task.value_words.items() if answer in values]
            assert any(task.needle.format(key=key, value=answer) in sample.prompt for key in keys)


def test_needles_occur_at_all_depths(tokenizer, sources):
    depths = [
        sample.depths[0]
        for sample in make_samples(TASKS["niah_single_1"], tokenizer, 1024, 60, seed=1, sources=sources)
    ]
    assert min(depths) < 0.15
    assert max(depths) > 0.85


def test_chains_give_the_answers(made):
    for sample in made["vt"]:
        body = sample.prompt[sample.prompt.rindex("Memorize") :]
        value = re.search(r"assigned the value (\d{5}) in", body)[1]
        variables = set()
        for name, right in re.findall(r"VAR (\w+) = (?:VAR )?(\w+)", body):
            if right == value or right in variables:
                variables.add(name)
        assert variables == set(sample.answers)
        assert len(sample.answers) == 5
        assert sample.depths == sorted(sample.depths)
        example = sample.prompt[: sample.prompt.rindex("Memorize")]
        assert re.search(r"they are: [A-Z]{3}( [A-Z]{3}){4}\n\n$", example)


@pytest.mark.parametrize(("length", "common", "others"), [(2048, 6, 1), (12_000, 30, 3)])
def test_common_words_are_common(length, common, others, tokenizer, sources):
    for sample in make_samples(RULER_TASKS["cwe"], tokenizer, length, 2, seed=7, sources=sources):
        words = sample.prompt[sample.prompt.rindex("Below is") :].split("\nQuestion")[0]
        counts = Counter(re.findall(r"\d+\. ([a-z]+)", words))
        numbers = [int(number) for number in re.findall(r"(\d+)\. ", words)]
        assert numbers == list(range(1, len(numbers) + 1))
        assert {word for word, count in counts.items() if count == common} == set(sample.answers)
        assert len(sample.answers) == 10
        assert set(counts.values()) == {common, others}


def test_frequent_words_are_frequent_and_follow_the_power_law(made):
    for sample in made["fwe"]:
        words = sample.prompt.split("coded words.\n")[1].split("\nQuestion")[0].split(" ")
        counts = Counter(words).most_common(5)
        assert counts[0][0] == "..."
        assert [word for word, _ in counts[1:4]] == sample.answers
        assert counts[3][1] > counts[4][1]
        assert counts[0][1] / counts[1][1] == pytest.approx(4, abs=0.1)
        assert counts[0][1] / counts[2][1] == pytest.approx(9, abs=0.5)


def test_frequent_words_have_no_ties_at_any_length(tokenizer):
    for length in range(500, 1000, 11):
        sample = make_samples(RULER_TASKS["fwe"], tokenizer, length, 1)[0]
        counts = Counter(sample.prompt.split("coded words.\n")[1].split("\nQuestion")[0].split(" "))
        ranked = sorted(counts.values(), reverse=True)
        assert ranked[1] > ranked[2] > ranked[3] > (ranked[4] if len(ranked) > 4 else 0)


@pytest.mark.parametrize("name", ["qa_1", "qa_2"])
def test_the_documents_with_the_answer_are_in_the_context(name, made, sources):
    questions = sources.single if name == "qa_1" else sources.multi
    by_text = {question.text: question for question in questions.questions}
    for sample in made[name]:
        question = by_text[re.search(r"Question: (.*)\nAnswer:$", sample.prompt)[1]]
        assert tuple(sample.answers) == question.answers
        assert sample.prompt.count(sample.answers[0]) == 1
        for place in question.gold:
            assert sample.prompt.count(questions.documents[place]) == 1
        numbers = [int(number) for number in re.findall(r"^Document (\d+):$", sample.prompt, re.M)]
        assert numbers == list(range(1, len(numbers) + 1))
        assert len(sample.depths) == len(question.gold)
        assert sample.metric == "any"
        assert sample.source == ("squad.json" if name == "qa_1" else "hotpot.json")


def test_a_sample_has_the_same_question_at_every_length(tokenizer, sources):
    ends = {
        length: [
            sample.prompt.rsplit("Question: ", 1)[1]
            for sample in make_samples(RULER_TASKS["qa_1"], tokenizer, length, 4, seed=7, sources=sources)
        ]
        for length in (2048, 6000)
    }
    assert ends[2048] == ends[6000]
    assert len(set(ends[2048])) == 4


@pytest.mark.parametrize("kind", TOKENIZERS)
@pytest.mark.parametrize("name", TASKS)
def test_lengths_are_exact_and_within_a_percent(kind, name, tmp_path_factory, sources, tokenizer_of):
    tokenizer, counter = tokenizer_of(kind)
    task = TASKS[name]
    for length in (128, 1000) if name in COMPACT_TASKS else (4096, 8192):
        for sample in make_samples(task, tokenizer, length, 2, seed=3, sources=sources, counter=counter):
            assert sample.tokens == len(tokenizer.encode(sample.prompt))
            used = sample.tokens + task.max_new_tokens + START_TOKENS
            assert used <= length
            # If a percent is less than one haystack unit, at most one unit is missing.
            unit = 12 if name in COMPACT_TASKS else 110 * (name == "niah_multikey_3" and length < 8192)
            assert length - used <= max(length // 100, unit)
    assert not counter.exact


@pytest.fixture(scope="module")
def tokenizer_of(tmp_path_factory):
    made = {}

    def get(kind):
        if kind not in made:
            tokenizer = TOKENIZERS[kind](tmp_path_factory.mktemp("kinds") / kind.replace(" ", "_"))
            made[kind] = tokenizer, TokenCounter(tokenizer)
        return made[kind]

    return get


def test_a_start_token_of_the_tokenizer_is_counted(tmp_path, sources):
    """It takes the room that is otherwise reserved for a server's start token, so the prompts are the same."""
    folder, task = with_begin(tmp_path), RULER_TASKS["niah_single_1"]
    begun, bare = Tokenizer.load(folder), Tokenizer.load(folder, TextSettings(begin="none"))
    with_token, without = (
        make_samples(task, each, 4096, 2, seed=1, sources=sources) for each in (begun, bare)
    )
    for one, other in zip(with_token, without, strict=True):
        assert one.prompt == other.prompt
        assert one.tokens == other.tokens + 1 == len(begun.encode(one.prompt))
        assert one.tokens + one.max_new_tokens <= 4096
    pieces = Tokenizer.load(sentencepiece_folder(tmp_path / "pieces", "bpe", add_bos_token=True))
    for sample in make_samples(task, pieces, 4096, 2, seed=1, sources=sources):
        assert sample.tokens == len(pieces.encode(sample.prompt)) <= 4096 - sample.max_new_tokens


def test_tokens_over_spaces_are_detected_and_texts_encoded_as_a_whole(tmp_path, sources):
    tokenizer = crossing_tokenizer(tmp_path / "crossing")
    assert not TokenCounter(tokenizer).agrees("The grass is green. The sky is blue.")
    for name in ("niah_single_1", "niah_multikey_2"):
        for sample in make_samples(RULER_TASKS[name], tokenizer, 2048, 2, seed=1, sources=sources):
            assert sample.tokens == len(tokenizer.encode(sample.prompt))
            assert 2048 - 41 <= sample.tokens + sample.max_new_tokens + START_TOKENS <= 2048


@pytest.mark.parametrize("name", RULER_TASKS)
def test_a_sample_depends_only_on_its_own_arguments(name, tokenizer, sources, made):
    again = make_samples(RULER_TASKS[name], tokenizer, LENGTH, 1, seed=7, sources=sources, first=2)
    assert again == made[name][2:]
    assert len({sample.prompt for sample in made[name]}) == 3
    other = make_samples(RULER_TASKS[name], tokenizer, LENGTH, 1, seed=8, sources=sources)[0]
    assert other.prompt != made[name][0].prompt


def test_keys_can_be_held_out_and_tasks_can_be_user_defined(tokenizer):
    own = NeedleTask(
        "own", "{context}\nWhere is {query}? {query} is at", 6, "{key} is at {value}.", "noise", digits=4
    )
    for keys in (NOUNS[:20], NOUNS[20:]):
        samples = make_samples(own, tokenizer, 300, 30, keys=keys)
        queried = {re.search(r"Where is ([a-z]+)\?", sample.prompt)[1] for sample in samples}
        assert len(queried) > 5
        assert queried <= set(keys)
    more = replace(own, num_keys=3, num_queries=2, num_values=2)
    sample = make_samples(more, tokenizer, 400, 1, keys=NOUNS)[0]
    assert len(sample.answers) == 4


def test_names_are_distinct():
    assert len(pairs()) == len(set(pairs())) == len(ADJECTIVES) * len(NOUNS)
    assert all(re.fullmatch("[a-z]+", word) for word in (*ADJECTIVES, *NOUNS))
    assert [listing(["a"]), listing(["a", "b", "c"])] == ["a", "a, b, and c"]
    import random

    assert sorted(random_order(50, random.Random(1))) == list(range(50))


@pytest.mark.parametrize(
    ("task", "length", "samples", "error", "message"),
    [
        ("niah_single_1", 60, 1, ConfigError, "length 60: too short for task 'niah_single_1'"),
        ("vt", 512, 1, ConfigError, "too short for task 'vt'"),
        ("niah_single_2", 400_000, 1, DataError, "essays.txt: the haystack of task 'niah_single_2' ends at"),
        ("qa_1", 100_000, 1, DataError, "squad.json: the haystack of task 'qa_1' ends at"),
        ("cwe", 60_000, 1, DataError, "words of essays.txt: the haystack of task 'cwe' ends at"),
        ("qa_2", 4096, 41, DataError, "hotpot.json: 40 questions for task 'qa_2', but samples=41"),
        ("vt", 0, 1, ConfigError, "length=0"),
        ("vt", 2048, 0, ConfigError, "samples=0"),
    ],
)
def test_impossible_samples_are_errors(task, length, samples, error, message, tokenizer, sources):
    with pytest.raises(error, match=re.escape(message)):
        make_samples(RULER_TASKS[task], tokenizer, length, samples, seed=1, sources=sources)


def test_a_short_haystack_is_repeated_on_request(tokenizer, sources):
    essays = replace(sources.essays, words=sources.essays.words[:500], ends=sources.essays.ends[:40])
    task = RULER_TASKS["niah_single_2"]
    with pytest.raises(DataError, match="set repeat_haystack"):
        make_samples(task, tokenizer, 8192, 1, seed=1, sources=replace(sources, essays=essays))
    repeating = replace(sources, essays=essays, repeat_haystack=True)
    sample = make_samples(task, tokenizer, 8192, 1, seed=1, sources=repeating)[0]
    assert 0 <= 8192 - sample.tokens - 51 <= 81


@pytest.mark.parametrize(
    ("names", "message"),
    [(["niah_singel_1"], "did you mean 'niah_single"), ([], "empty"), (["vt", "vt"], "occurs twice")],
)
def test_task_names_are_checked(names, message):
    with pytest.raises(ConfigError, match=message):
        named_tasks(names)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_queries": 2}, "num_queries=2"),
        ({"needle": "{key} and nothing"}, "no {value}"),
        ({"prompt": "{context}"}, "no {query}"),
    ],
)
def test_impossible_tasks_are_refused(changes, message):
    with pytest.raises(ConfigError, match=message):
        replace(OWN["one"], **changes)


def test_too_few_or_duplicate_keys_are_refused(tokenizer):
    task = OWN["of_four"]
    with pytest.raises(ConfigError, match="3 keys, but 4 are needed"):
        make_samples(task, tokenizer, 128, 1, keys=NOUNS[:3])
    with pytest.raises(ConfigError, match="occurs twice"):
        make_samples(task, tokenizer, 128, 1, keys=["apple", "apple", "bell", "bird", "boat"])
    listed = replace(OWN["one"], value_words={"bell": ["1"]})
    with pytest.raises(ConfigError, match="'zebra' has no values"):
        make_samples(listed, tokenizer, 128, 1, keys=["zebra", "bell"])


def test_values_can_belong_to_their_keys(tokenizer):
    values = {"color": ["red", "blue"], "animal": ["cat", "dog"], "food": ["egg", "pie"]}
    task = replace(OWN["of_four"], key_words=(), value_words=values, num_keys=3)
    for sample in make_samples(task, tokenizer, 128, 10):
        stated = dict(re.findall(r"(color|animal|food) (\w+)\.", sample.prompt))
        assert set(stated) == set(values)
        assert all(stated[key] in values[key] for key in values)
        assert sample.answers == [stated[sample.prompt.rsplit(" ", 1)[1]]]
    short = replace(task, value_words=dict.fromkeys(values, ("one", "two")))
    with pytest.raises(ConfigError, match="too few values"):
        make_samples(short, tokenizer, 128, 1)


def test_fit_finds_the_largest_that_fits():
    def tokens_of(units):
        return 10 + 7 * units

    for budget in range(10, 400):
        units, tokens = fit(lambda n: n, tokens_of, budget=budget, slack=0, min_units=0, max_units=None)
        assert tokens == tokens_of(units) <= budget < tokens_of(units + 1)
    units, tokens = fit(lambda n: n, tokens_of, budget=10_000, slack=50, min_units=0, max_units=None)
    assert 9950 <= tokens <= 10_000
    with pytest.raises(TooShort) as short:
        fit(lambda n: n, tokens_of, budget=9, slack=0, min_units=0, max_units=None)
    assert short.value.tokens == 10
    with pytest.raises(HaystackEnds) as ends:
        fit(lambda n: n, tokens_of, budget=400, slack=0, min_units=0, max_units=50)
    assert ends.value.tokens == 360
