"""Suite files: the packaged ones, and every fault of a user's file as one line with its place and the remedy."""

from __future__ import annotations

from pathlib import Path

import pytest

from megatron_prism.errors import ConfigError
from megatron_prism.evaluation.suites.definition import SAME_FOR_ALL
from megatron_prism.evaluation.suites.prompt_template import fill, placeholders
from megatron_prism.evaluation.suites.yaml_definition import (
    BENCHMARK_KEYS,
    load_suite_definition,
    packaged_suites,
)

EXAMPLE = Path(__file__).parents[3] / "examples" / "own_suite.yaml"

SMALL = """\
name: small
benchmarks:
  - name: exam
    file: exam.csv
    kind: math
    prompt: "User: {question}\\nAssistant:"
"""


def written(folder: Path, text: str) -> Path:
    path = folder / "small.yaml"
    path.write_text(text)
    return path


def test_the_packaged_suites():
    """The paper's prompts, in the words of the code that they are from; test_models.py has the settings."""
    assert sorted(packaged_suites()) == ["reasoning", "reasoning-variants", "shoebox"]
    made = {each.name: each for name in packaged_suites() for each in load_suite_definition(name).benchmarks}
    boxed = "User: {question}\nPlease reason step by step, and put your final answer within \\boxed{}.\n\nAssistant:"
    for name in ("aime24", "aime25", "aime26", "math500"):
        assert made[name].prompts == {"": boxed}
        assert made[name].stop == ("</s>", "<|im_end|>", "<|endoftext|>", "\nUser:")
    assert made["gpqa_diamond"].prompts[""] == (
        "User: Return your final response within \\boxed{} and only include the letter choice (A, B, C, or D) as your "
        "final response.\nProblem: {question}\nOptions: {options}\nAnswer:\n\nAssistant:"
    )
    assert (made["gpqa_diamond"].choices.order, made["gpqa_diamond"].choices.seed) == (SAME_FOR_ALL, 42)
    assert made["livecodebench"].prompts["stdin"] == (
        "User: Generate an executable Python function generated from the given prompt. The function should take stdin "
        "as input and print the output. Simply call the function after the definition.{question_content}\n\nAssistant:"
    )
    # The editorial explains the solution; only the variant that says so by its name has it.
    with_it, without = made["codeforces_editorial"].prompts[""], made["codeforces"].prompts[""]
    assert with_it.replace("{editorial}", "") == without != with_it
    assert all(len(each.revision) == 40 and each.licence for each in made.values() if each.hub)


def test_the_example_has_at_most_20_lines_and_the_page_shows_it(tmp_path):
    assert len(EXAMPLE.read_text().splitlines()) <= 20
    page = (EXAMPLE.parents[1] / "docs/benchmarks.md").read_text()
    shown = written(tmp_path, page.split("```yaml\n")[1].split("```")[0])
    assert set(page.split("```yaml\n")[1].split("```")[0].splitlines()) < set(
        EXAMPLE.read_text().splitlines()
    )
    assert load_suite_definition(shown).benchmarks[0].where == {"grade": ["7", "8"]}
    rows = page.split("| key | default |")[1].split("\n\n")[0]
    assert [key for key in BENCHMARK_KEYS if f"`{key}`" not in rows] == []
    (school,) = load_suite_definition(EXAMPLE).benchmarks
    assert (school.samples, school.temperature, school.domain) == (4, 0.6, "math")
    assert school.files == (str(EXAMPLE.parent / "own_suite.csv"),)


def test_braces_that_are_no_columns():
    template = "{{kept}} {a} \\boxed{} {1} { a } {a}"
    assert placeholders(template) == ["a"]
    # What a cell contains is never filled again.
    assert fill(template, {"a": "{a} {b} {{c}}"}.__getitem__) == (
        "{kept} {a} {b} {{c}} \\boxed{} {1} { a } {a} {b} {{c}}"
    )


def test_dollars_and_braces_of_a_prompt_stay(tmp_path):
    prompt = "${{x}}$ ${oc.env:HOME} {question}"
    path = written(tmp_path, SMALL.replace("{question}", prompt))
    assert load_suite_definition(path).benchmarks[0].prompts[""].startswith("User: ${{x}}$ ${oc.env:HOME} ")


FAULTS = {
    # What is replaced in SMALL, by what, and what the message then says.
    "an unknown key": ("kind: math", "kinds: math", "line 5: unknown key 'kinds'; did you mean 'kind'?"),
    "an unknown key of the suite": ("name: small", "names: small", "line 1: unknown key 'names'"),
    "an unknown kind": ("kind: math", "kind: maths", "line 5: 'kind' is 'maths'; did you mean 'math'?"),
    "no kind": ("    kind: math\n", "", "line 3: benchmark 'exam' has no 'kind'"),
    "no prompt": ("    prompt:", "    stop:", "line 3: benchmark 'exam' has no 'prompt'"),
    "no column": ("{question}", "{}", "line 6: the prompt of benchmark 'exam' names no column"),
    "no benchmarks": ("benchmarks:", "benchmarks: []\ndescription:", "line 2: 'benchmarks' must be a list"),
    "no data": ("    file: exam.csv\n", "", "line 3: benchmark 'exam' has no data; give one of file: PATH"),
    "two sources": (
        "file: exam.csv", "hub: a/b\n    files: c.csv\n    generated: shoebox/math", "has hub and generated",
    ),
    "hub without files": ("file: exam.csv", "hub: a/b", "line 4: benchmark 'exam' has hub, but no files"),
    "an unknown rule": (
        "kind: math", "kind: math\n    rules: aimee",
        "line 6: benchmark 'exam': there are no rules 'aimee'; did you mean 'aime'?",
    ),
    "rules of another kind": (
        "kind: math", "kind: math\n    rules: gpqa", "rules 'gpqa' are for kind 'choice', not 'math'",
    ),
    "a number as text": (
        "kind: math", "kind: math\n    samples: many",
        "line 6: 'samples' must be a whole number of at least 1, found 'many'",
    ),
    "equal samples": (
        "kind: math", "kind: math\n    samples: 4",
        "line 6: benchmark 'exam': samples: 4 at temperature 0 would all be equal",
    ),
    "an impossible top_p": (
        "kind: math", "kind: math\n    top_p: 2", "line 6: benchmark 'exam': top_p=2.0: must be in (0, 1]",
    ),
    "a name that is no file name": ("name: exam", "name: ../exam", "line 3: 'name' must be letters"),
    "two of a name": (
        "  - name: exam", "  - name: exam\n    generated: shoebox/math\n  - name: exam",
        "benchmark 'exam' occurs twice",
    ),
    "an unknown condition": (
        "kind: math", "kind: math\n    where: {year: {form: 2020}}",
        "line 6: 'where': 'year': unknown condition 'form'; did you mean 'from'?",
    ),
    "choices without wrong": (
        "kind: math", "kind: choice\n    choices: {right: a}", "line 6: 'choices': 'wrong' is missing",
    ),
    "choices in mathematics": (
        "kind: math", "kind: math\n    choices: {right: a, wrong: [b]}",
        "line 6: benchmark 'exam': choices need kind: choice",
    ),
    "several prompts": (
        'prompt: "User: {question}\\nAssistant:"', "prompt: {a: '{q}'}",
        "line 6: benchmark 'exam' has several prompts",
    ),
    "ready problems with a kind": (
        "file: exam.csv", "generated: shoebox/math",
        "line 5: benchmark 'exam': its problems are ready, with a kind of their own",
    ),
    "not YAML": ("kind: math", "kind: [math", "not readable YAML"),
    "a key twice": ("kind: math", "kind: math\n    kind: code", "line 6: not readable YAML (the key 'kind'"),
}  # fmt: skip


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_is_one_line_with_its_place(name, tmp_path):
    old, new, message = FAULTS[name]
    assert old in SMALL
    path = written(tmp_path, SMALL.replace(old, new, 1))
    with pytest.raises(ConfigError) as caught:
        load_suite_definition(path)
    assert message in str(caught.value)
    assert str(caught.value).startswith(str(path))
    assert "\n" not in str(caught.value)


def test_without_a_fault_it_is_read(tmp_path):
    """The negative control of the faults."""
    (exam,) = load_suite_definition(written(tmp_path, SMALL)).benchmarks
    assert (exam.kind, exam.files) == ("math", (str(tmp_path / "exam.csv"),))


def test_an_unknown_suite_has_a_nearest_name():
    with pytest.raises(ConfigError, match="did you mean 'reasoning'"):
        load_suite_definition("reasonin")
