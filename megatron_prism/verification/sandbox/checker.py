"""Problems with several right outputs: a checker, which is a Python program, decides.

The convention is that of `generated_checker` in the data set open-r1/codeforces, as its harness runs it: the arguments
are the files with the input, the reference output and the program's output, the outputs without carriage returns and
empty lines; a right output is one for which the checker prints 1 (or 100) and exits with a status of 0. The checker
runs in the same sandbox as the program, after the program has ended. The output is only data to it, and its result is
only compared.
"""

from __future__ import annotations

import time
from typing import Any

from megatron_prism.verification.sandbox.code_tests import Case
from megatron_prism.verification.sandbox.session import PASSED, TIMEOUT, Runner, run_script

FILES = ("input.txt", "correct_output.txt", "solution_output.txt")
ACCEPTED = (b"1", b"100")
# The harness allows this much; the time limit of the answer ends a checker earlier.
CHECKER_SECONDS = 10.0


def verdict(runner: Runner, case: Case, output: bytes, *, job: dict[str, Any], deadline: float) -> str:
    """Run the checker of `case` on a program's output.

    Args:
        job: the job that runs the checker, without its files and arguments.
        deadline: time.monotonic() at which the answer's time ends.

    Returns:
        "correct", "wrong", "timeout" if the answer's time ends first, or "checker: REASON" if the checker fails, which
        it often does on output in an unexpected form. Only "correct" passes.
    """
    given = case.input.decode("utf-8", "surrogatepass")
    texts = (given, _prepared(case.text), _prepared(output.decode("utf-8", "replace")))
    files = dict(zip(FILES, texts, strict=True))
    own = min(deadline, time.monotonic() + CHECKER_SECONDS)
    job = {**job, "files": files, "arguments": list(FILES)}
    printed = run_script(runner, job, b"", deadline=own)
    if isinstance(printed, bytes):
        return PASSED if b"".join(printed.split()) in ACCEPTED else "wrong"
    return TIMEOUT if printed == TIMEOUT and own == deadline else f"checker: {printed}"


def _prepared(text: str) -> str:
    """`text` without carriage returns at the ends of lines and without empty lines."""
    lines = (line.removesuffix("\r") for line in text.split("\n"))
    return "".join(f"{line}\n" for line in lines if line)
