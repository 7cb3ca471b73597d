"""A folder of problem suites that are ready: SUITE.jsonl, with the lines that docs/verification.md describes."""

from __future__ import annotations

from pathlib import Path

from megatron_prism.errors import ConfigError
from megatron_prism.evaluation.suites.definition import PROBLEMS, BenchmarkDefinition
from megatron_prism.verification.problems import suite_names

# The paper's settings by the beginning of a suite's name: mathematics, and everything else (section 5 of its appendix).
MATHEMATICS = ("aime", "math")
ANSWER_TOKENS = 32_768


def folder_definitions(folder: Path) -> list[BenchmarkDefinition]:
    """A definition for each file of a folder, with the paper's samples and sampling.

    Raises:
        ConfigError: if there is none.
    """
    names = suite_names(folder)
    if not names:
        raise ConfigError(
            f"{folder}: no suites in this folder; put a file SUITE.jsonl per benchmark there (docs/verification.md)"
        )
    found = []
    for name in names:
        mathematics = name.startswith(MATHEMATICS)
        found.append(
            BenchmarkDefinition(
                name=name,
                files=(str(folder / f"{name}.jsonl"),),
                reader=PROBLEMS,
                samples=64 if mathematics else 3,
                temperature=0.6 if mathematics else 0.7,
                top_p=0.95 if mathematics else 1.0,
                max_new_tokens=ANSWER_TOKENS,
                where_written=str(folder),
            )
        )
    return found
