"""The rules of known benchmarks as data, so that a score can be compared with published ones.

A problem that names a benchmark gets two verdicts: ours, and that of the grader with which scores of this benchmark are
usually published. Both are kept, and how often they disagree is reported.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

from megatron_prism.verification.published import (
    by_last_letter,
    by_last_number,
    by_math_verify,
    by_relative_difference,
)


@dataclass(frozen=True)
class Benchmark:
    """How one benchmark is graded.

    Attributes:
        kind: the kind of its problems.
        published: (completion, reference) -> the verdict of the public grader.
        grader: name of the public grader and where it is described.
        tolerance: relative difference that our own grader allows between numbers; 0: numbers are exact.
        answers: a pattern that every reference answer must match; a problem whose answer does not is dropped.
    """

    kind: str
    published: Callable[[str, str], bool]
    grader: str
    tolerance: float = 0.0
    answers: re.Pattern[str] = re.compile(r".*", re.DOTALL)


BENCHMARKS: dict[str, Benchmark] = {
    "aime": Benchmark(
        *("math", by_math_verify, "math-verify, as lighteval and open-r1 use it"),
        answers=re.compile(r"\s*\d{1,3}\s*"),
    ),
    "math500": Benchmark("math", by_math_verify, "math-verify, as lighteval and open-r1 use it"),
    "gsm8k": Benchmark(
        *("math", by_last_number, "the filter 'flexible-extract' of lm-evaluation-harness' task gsm8k"),
        answers=re.compile(r"\s*-?[\d,]+(?:\.\d+)?\s*"),
    ),
    "gpqa": Benchmark(
        *(
            "choice",
            by_last_letter,
            "the last letter A to D that stands alone, as Evalchemy's GPQADiamond takes it",
        ),
    ),
    "scibench": Benchmark(
        *(
            "short",
            by_relative_difference,
            "SciBench's comparison of two numbers with a relative difference of 0.05",
        ),
        tolerance=0.05,
    ),
}
