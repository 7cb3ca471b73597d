"""Question: does every completion get a verdict with a reason, within its time, whatever the model wrote?

    python benchmarks/fuzz_programs.py --items 2000 --json result.json

Completions are mutations of the cases of the tests (tests/verification/cases/code.jsonl): half of them of the whole
text, half of the program only. Lines are cut, doubled and swapped, fences unbalanced, bytes replaced, null bytes,
surrogates, deep nesting, endless and hostile statements and megabytes of one character inserted. They go through a pool
as in a run. No item may be lost, lack a reason or fail inside the grader, and all together may take no longer than
their limits.
"""

from __future__ import annotations

import json
import random
import time
from collections import Counter
from pathlib import Path
from typing import Any

import measure
from rich.console import Console

from megatron_prism.verification.answers.programs import extract_code
from megatron_prism.verification.grade import GradeItem, grade_all
from megatron_prism.verification.pool.grading_pool import GRACE_SECONDS
from megatron_prism.verification.sandbox.machine_speed import time_factor
from megatron_prism.verification.sandbox.session import PASSED
from megatron_prism.verification.settings import GradingSettings

CASES = Path(__file__).resolve().parents[1] / "tests" / "verification" / "cases" / "code.jsonl"
FRAGMENTS = (
    *(
        "```",
        "~~~",
        "````",
        "```python",
        "```\n```",
        "<|im_end|>",
        "</think>",
        "<think>",
        "\x00",
        "\ud83d",
        "\ufeff",
    ),
    *(
        "\r",
        "\u2028",
        "(" * 300,
        "lambda:" * 200,
        "-" * 5000,
        "'''",
        '"""',
        "\\",
        "exit()",
        "import os; os.abort()",
    ),
    *(
        "while True: pass",
        "import os; os.kill(os.getpid(), 9)",
        "import sys; sys.stdout.close()",
        "1/0",
        "input()",
    ),
    *(
        "import os; os.closerange(0, 99)",
        "import gc; gc.disable()",
        "del __builtins__",
        "raise SystemExit(3)",
    ),
    *("import threading; threading.Thread(target=lambda: [0 for _ in iter(int, 1)]).start()", "def f(: pass"),
    *(
        "import os; os.fork()",
        "x = [0] * 10**10",
        "print('x' * 10**7)",
        "import builtins; builtins.exec = None",
    ),
    *("import atexit; atexit.register(lambda: 1/0)", "class A(BaseException): pass\nraise A", "9**9**9"),
    *(
        "__import__('ctypes').string_at(0)",
        "import sys; sys.setrecursionlimit(10**9)",
        "assert False",
        "yield 1",
    ),
)
LARGE = (
    "x" * 10**6,
    "\n" * 10**6,
    "`" * 10**6,
    "[" * 10**6,
    "```\n" * 250_000,
    "x = 1\n" * 170_000,
    "é" * 500_000,
)


def fuzzed(seed: int, items: int, cases: list[dict[str, Any]] | None = None) -> list[GradeItem]:
    """So many completions with tests; the same for the same seed."""
    rows = cases or [json.loads(line) for line in CASES.read_text("utf-8").splitlines()]
    chance = random.Random(seed)
    made = []
    for _ in range(items):
        row = chance.choice(rows)
        program = extract_code(row["completion"])
        if program is None or chance.random() < 0.5:
            completion = _mutated(row["completion"], chance)
        else:
            completion = f"```python\n{_mutated(program, chance)}\n```"
        made.append(GradeItem("code", completion, tests=row["tests"]))
    return made


def _mutated(text: str, chance: random.Random) -> str:
    for _ in range(chance.choice((1, 1, 2, 3, 8))):
        place = chance.randrange(len(text) + 1)
        end = min(len(text), place + chance.randrange(1, 40))
        lines = text.split("\n")
        match chance.randrange(9):
            case 0:
                text = text[:place] + text[end:]
            case 1:
                text = text[:place] + chance.choice(FRAGMENTS) + text[place:]
            case 2:
                number = chance.randrange(len(lines) + 1)
                text = "\n".join([*lines[:number], chance.choice(FRAGMENTS), *lines[number:]])
            case 3:
                text = text[:end] + text[place:]
            case 4:
                chance.shuffle(lines)
                text = "\n".join(lines)
            case 5:
                text = text[:place] + chr(chance.randrange(0x110000)) + text[end:]
            case 6:
                text = text[:place]
            case 7:
                noise = bytes(chance.randrange(256) for _ in range(20))
                text = text[:place] + noise.decode("latin-1") + text[place:]
            case 8:
                if chance.random() < 0.05:
                    text = text[:place] + chance.choice(LARGE) + text[place:]
    return text


def run(items: list[GradeItem], settings: GradingSettings) -> dict[str, Any]:
    """Grade them, and count what must not happen."""
    start = time.monotonic()
    with settings.open_pool() as pool:
        grades = grade_all(items, pool)
    seconds = time.monotonic() - start
    reasons = Counter(grade.reason.partition(":")[0] for grade in grades)
    return {
        "items": len(items),
        "seconds": round(seconds, 1),
        # Each item may use its limit, and a worker that was killed starts anew.
        "seconds_allowed": len(items) * (settings.timeout_seconds * time_factor() + GRACE_SECONDS),
        "lost": len(items) - len(grades),
        "without_reason": sum(not grade.reason for grade in grades),
        "errors": sorted({grade.reason for grade in grades if grade.reason.startswith("error")}),
        "inconsistent": sum(grade.correct != (grade.reason == PASSED) for grade in grades),
        "reasons": dict(reasons.most_common()),
    }


def main() -> None:
    parser = measure.argument_parser(__doc__)
    parser.add_argument("--items", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    result = run(
        fuzzed(arguments.seed, arguments.items),
        GradingSettings(workers=2, timeout_seconds=1.0, memory_mib=512),
    )
    Console().print(result)
    measure.write(arguments, {"result": result})


if __name__ == "__main__":
    main()
