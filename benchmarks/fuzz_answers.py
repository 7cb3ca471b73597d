"""Question: does any answer crash the grader, hang it, get lost, or get a verdict without a reason?

    python benchmarks/fuzz_answers.py --answers 100000 --json result.json

Each answer is made from a row of tests/verification/cases by deleting, doubling, moving and inserting pieces of LaTeX,
by cutting it, by unbalancing its brackets, or by repeating it up to a megabyte. All kinds but code are graded.
"""

from __future__ import annotations

import json
import random
import time
from collections import Counter
from pathlib import Path

import measure
from rich.console import Console

from megatron_prism.verification.grade import GradeItem, grade_all, grader_versions
from megatron_prism.verification.settings import GradingSettings

CASES = Path(__file__).parents[1] / "tests" / "verification" / "cases"
PIECES = (
    *(
        "\\frac",
        "\\sqrt",
        "{",
        "}",
        "(",
        ")",
        "[",
        "]",
        "\\left",
        "\\right",
        "^",
        "_",
        "$",
        "\\boxed{",
        "\\text{",
        "%",
        "°",
    ),
    *(
        "\\begin{pmatrix}",
        "\\end{pmatrix}",
        "&",
        "\\\\",
        "\\",
        "\\cup",
        "\\pm",
        "=",
        "<",
        "\\ne",
        ":",
        ";",
        ",",
        ".",
        "!",
        "|",
    ),
    *(
        "9^{9^{9}}",
        "\\infty",
        "\\int",
        "\\sum_{k=1}^{n}",
        "i",
        "e",
        "x",
        "0",
        "-",
        "\x00",
        "\u202e",
        "½",
        "√",
        "\ud83d",
        " ",
    ),
    *(
        "\\pmod{",
        "_2",
        "</think>",
        "<think>",
        "answer is",
        "(A)",
        "\n",
        "\\overline{",
        "\\dot",
        "million",
        "cm",
        "'",
        '"',
    ),
)
CHUNK = 2_000


def seeds() -> list[tuple[str, str, str]]:
    """Kind, completion and reference of every row."""
    found = []
    for name in ("math", "completions", "choice_and_short"):
        for line in (CASES / f"{name}.jsonl").read_text().splitlines():
            row = json.loads(line)
            kind = row["kind"] if row.get("kind") in ("choice", "short") else "math"
            found.append((kind, row.get("completion", rf"\boxed{{{row.get('answer')}}}"), row["gold"]))
    return found


def mutated(text: str, draw: random.Random) -> str:
    """`text` after one to six random changes."""
    for _ in range(draw.randint(1, 6)):
        start = draw.randint(0, len(text))
        stop = min(len(text), start + draw.randint(0, 12))
        change = draw.choice((0, 1, 1, 2, 2, 4, 4, 5, 5, 3 if draw.random() < 0.2 else 1))
        if change == 0:
            text = text[:start] + text[stop:]
        elif change == 1:
            text = text[:start] + draw.choice(PIECES) + text[start:]
        elif change == 2:
            text = text[:stop] + text[start:stop] * draw.randint(1, 5) + text[stop:]
        elif change == 3:
            text = text[:start]
        elif change == 4:
            to = draw.randint(0, len(text))
            text = text[:to] + text[start:stop] + text[to:]
        else:
            text = text[:start] + "".join(draw.choices(PIECES, k=3)) + text[stop:]
    if draw.random() < 0.001:
        text *= 1_000_000 // max(1, len(text))
    return text


def main() -> None:
    parser = measure.argument_parser(__doc__)
    parser.add_argument("--answers", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    draw = random.Random(arguments.seed)
    rows = seeds()
    reasons: Counter[str] = Counter()
    lost = 0
    failures: list[dict[str, str]] = []
    start = time.perf_counter()
    with GradingSettings(workers=2, timeout_seconds=5.0).open_pool() as pool:
        for first in range(0, arguments.answers, CHUNK):
            items = []
            for _ in range(min(CHUNK, arguments.answers - first)):
                kind, completion, gold = draw.choice(rows)
                changed_gold = mutated(gold, draw) if draw.random() < 0.2 else gold
                # Half of the changes are made inside the box, so that more than the search for it is tried.
                if completion.endswith("}") and draw.random() < 0.5:
                    changed = completion[:7] + mutated(completion[7:-1], draw) + "}"
                else:
                    changed = mutated(completion, draw)
                items.append(GradeItem(kind, changed, changed_gold))
            grades = grade_all(items, pool)
            lost += len(items) - len(grades)
            for item, grade in zip(items, grades, strict=True):
                reasons[grade.reason] += 1
                if grade.reason not in ("correct", "wrong", "no_answer"):
                    failures.append(
                        {
                            "reason": grade.reason,
                            "completion": item.completion[:300],
                            "gold": item.answer[:200],
                        }
                    )
    seconds = time.perf_counter() - start
    Console().print(
        f"{arguments.answers:,} answers in {seconds:.0f} s: {dict(reasons.most_common())}, lost: {lost}"
    )
    for failure in failures[:20]:
        Console().print(failure, markup=False)
    measure.write(
        arguments,
        {
            "graders": grader_versions(["math"]),
            "reasons": dict(reasons),
            "lost": lost,
            "failures": failures,
            "seconds": seconds,
        },
    )


if __name__ == "__main__":
    main()
