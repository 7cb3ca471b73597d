import json
import random
import re

import pytest
from shoebox_solver import solve_math, solve_science

from megatron_prism.data.shoebox import problems_code, problems_math, problems_science
from megatron_prism.data.shoebox.problem import (
    HELD_OUT,
    TRAIN,
    VALID,
    Family,
    GeneratedProblem,
    check_ids,
    check_texts,
    different_problems,
    problems,
)
from megatron_prism.errors import ConfigError, DataError
from megatron_prism.verification.answers.choice import extract_choice
from megatron_prism.verification.answers.extract import has_think_format
from megatron_prism.verification.answers.math_answers import extract_math
from megatron_prism.verification.answers.programs import extract_code
from megatron_prism.verification.problems import problem_of
from megatron_prism.verification.sandbox.isolation import PASSED, run_tests

SUITES = {module.SUITE: module.FAMILIES for module in (problems_math, problems_science, problems_code)}
CASES = [(suite, name) for suite, families in SUITES.items() for name in families]


def drawn(suite, name, count=80):
    rng = random.Random(f"{suite} {name}")
    return [SUITES[suite][name].make(rng) for _ in range(count)]


@pytest.mark.parametrize(("suite", "name"), CASES)
def test_format(suite, name):
    for problem in drawn(suite, name):
        assert (problem.suite, problem.level) == (suite, name)
        assert re.fullmatch(r"User: [^\n]+\nAssistant:", problem.prompt)
        completion = problem.document.removeprefix(problem.prompt)
        assert has_think_format(completion)
        assert completion.startswith(" <think>\n")
        assert f"\n</think>\n{problem.final}" in completion
        assert problem.id.startswith(f"{suite}-{name}-")


@pytest.mark.parametrize("name", problems_math.FAMILIES)
def test_math_answers_follow_from_the_question(name):
    for problem in drawn("math", name, 300):
        assert problem.answer == solve_math(problem.prompt)
        assert extract_math(problem.document) == problem.answer


@pytest.mark.parametrize("name", problems_science.FAMILIES)
def test_science_answers_follow_from_the_question(name):
    letters = set()
    for problem in drawn("science", name, 300):
        assert problem.answer == solve_science(problem.prompt)
        assert extract_choice(problem.document) == problem.answer
        assert f"({problem.answer})" in problem.thoughts
        letters.add(problem.answer)
    assert letters == set("ABCD")


def test_the_solver_is_no_rubber_stamp():
    assert solve_math("User: Modulo 10, what is 3 after first *4, second -5?\nAssistant:") == "7"
    assert solve_math("User: Modulo 7, what is 3 after first *4, second -6?\nAssistant:") == "6"
    assert solve_math("User: Find the smallest of 4, 2, 8.\nAssistant:") == "2"
    assert solve_math("User: Sort 4, 2, 8, smallest first.\nAssistant:") == "248"
    assert solve_math("User: Solve 3x+4=19 for x.\nAssistant:") == "5"
    cart = "A cart goes 8 m in 4 s. What is its speed in m/s? (A) 4 (B) 3 (C) 2 (D) 8"
    assert solve_science(f"User: {cart}\nAssistant:") == "C"


def written_steps(name, thoughts):
    """(what is computed, the result written for it) of each step."""
    if name.startswith("chain"):
        # Looking ahead, because a step's result is the next one's start.
        return [
            (eval(f"({value}{sign}{number}) % 7"), result)
            for value, sign, number, result in re.findall(r"(?=(\d) \w+ ([+*])(\d)=(\d))", thoughts)
        ]
    if name.startswith(("sum", "largest", "smallest")):
        first, *rest = thoughts.split(", ")
        parts = [re.fullmatch(r"(\d)[=:](\d)", part).groups() for part in rest]
        before = [first, *(result for _, result in parts)]
        chosen = {"s": lambda a, b: (a + b) % 7, "l": max}[name[0]] if name[:2] != "sm" else min
        return [(chosen(int(a), int(b)), r) for a, (b, r) in zip(before, parts, strict=False)]
    if name.startswith("sort"):
        # Each digit is the smallest of those that are left.
        written = thoughts.split(", ")
        return [(min(map(int, written[place:])), digit) for place, digit in enumerate(written)]
    # Leading zeros stand for a carry or borrow that is not there.
    steps = re.findall(r"(?<![\dx])([\d+*/-]+(?:[+*/-]\d+)+)=(\d+)", thoughts)
    return [(eval(re.sub(r"\b0+(?=\d)", "", left)), right) for left, right in steps]


@pytest.mark.parametrize("name", problems_math.FAMILIES)
def test_every_written_step_is_true(name):
    for problem in drawn("math", name, 200):
        steps = written_steps(name, problem.thoughts)
        expected = {"chain": 0, "sort": 0, "sum": -1, "large": -1, "small": -1}
        length = next((int(name[-1]) + off for kind, off in expected.items() if name.startswith(kind)), None)
        assert len(steps) == length or (length is None and len(steps) >= 1)
        for computed, written in steps:
            assert computed == int(written), problem.document


@pytest.mark.parametrize("name", problems_code.FAMILIES)
def test_references_pass_their_tests_and_others_do_not(name):
    others = 0
    made = drawn("code", name, 60)
    for problem in made:
        namespace = {}
        exec(extract_code(problem.document), namespace)
        for test in problem.tests:
            exec(test, namespace)
        assert len(set(problem.tests)) == problems_code.TESTS
        # Negative control: handing the input back must not pass.
        [function] = re.findall(r"function (\w+)\(", problem.question)
        broken = {}
        exec(f"def {function}(value):\n    return value", broken)
        try:
            for test in problem.tests:
                exec(test, broken)
        except AssertionError:
            others += 1
    assert others >= 0.95 * len(made)


def test_a_reference_passes_the_real_grader():
    # In a process of its own, not a sandbox: these programs are ours.
    for name in problems_code.FAMILIES:
        problem = drawn("code", name, 1)[0]
        assert run_tests(extract_code(problem.document), problem.tests, sandbox="weak").reason == PASSED
    assert run_tests("def nothing(): pass", problem.tests, sandbox="weak").reason != PASSED


@pytest.mark.parametrize("suite", SUITES)
def test_the_splits_share_no_problem(suite):
    ids = {}
    for split in (TRAIN, VALID, HELD_OUT):
        stream = problems(SUITES[suite], split, random.Random(1))
        made = [next(stream) for _ in range(600)]
        assert {problem.split for problem in made} == {split}
        ids[split] = {problem.id for problem in made}
    check_ids(ids)
    ids[VALID].add(next(iter(ids[TRAIN])))
    with pytest.raises(DataError, match="1 problems are in both train and valid"):
        check_ids(ids)


@pytest.mark.parametrize(("suite", "name"), CASES)
def test_every_family_has_held_out_and_training_problems(suite, name):
    families = {name: SUITES[suite][name]}
    for split in (TRAIN, HELD_OUT):
        assert next(problems(families, split, random.Random(2))).level == name


def test_the_split_does_not_depend_on_the_wording():
    rng = random.Random(3)
    wordings = {}
    for _ in range(3000):
        problem = problems_math.chain(rng, 2)
        wordings.setdefault(problem.key, {})[problem.question] = problem.split
    several = [found for found in wordings.values() if len(found) > 1]
    assert len(several) > 100
    assert all(len(set(found.values())) == 1 for found in several)


def test_a_leak_into_the_text_is_found():
    families = problems_math.FAMILIES
    held_out = different_problems(families, HELD_OUT, 20, random.Random(1), suite="math")
    clean = [
        problem.document
        for problem, _ in zip(problems(families, TRAIN, random.Random(1)), range(50), strict=False)
    ]
    check_texts(
        held_out, [*clean, "prose with no question", "\nAssistant: odd", "User: What?\nAssistant: That."]
    )
    leak = held_out[7]
    for document in (
        leak.document,
        f"User: Hi.\nAssistant: Hello.\n{leak.prompt} 5",
        f"text before {leak.prompt} 5",
    ):
        with pytest.raises(DataError, match=leak.id):
            check_texts(held_out, [*clean, document])


@pytest.mark.parametrize("suite", SUITES)
def test_held_out_records_are_what_the_evaluation_reads(suite):
    made = different_problems(SUITES[suite], HELD_OUT, 100, random.Random(5), suite=suite)
    assert len({problem.id for problem in made}) == 100
    for problem in made:
        read = problem_of(json.loads(json.dumps(problem.record())), "here")
        assert (read.domain, read.prompt, read.id) == (suite, problem.prompt, problem.id)
        # The solution is not given away.
        assert "</think>" not in read.prompt
    again = different_problems(SUITES[suite], HELD_OUT, 100, random.Random(5), suite=suite)
    assert made == again
    assert made != different_problems(SUITES[suite], HELD_OUT, 100, random.Random(6), suite=suite)


def test_more_than_there_are():
    single = GeneratedProblem("math", "one", "0", "q", "t", "f", "math", "1")
    keys = (GeneratedProblem("math", "one", str(n), "q", "t", "f", "math", "1") for n in range(1000))
    held = next(problem for problem in keys if problem.split == HELD_OUT)
    with pytest.raises(ConfigError, match="has only about 1; set it lower"):
        different_problems({"one": Family(1, lambda rng: held)}, HELD_OUT, 2, random.Random(1), suite="math")
    # A family without a problem in the split is left out, not waited for.
    empty = next(s for s in (HELD_OUT, VALID, TRAIN) if s != single.split)
    assert list(problems({"one": Family(1, lambda rng: single)}, empty, random.Random(1))) == []
