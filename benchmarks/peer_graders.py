"""Public graders as the tasks of a grading pool, so that each call has a time limit (used by grading_agreement.py).

math-verify is installed with the project. For PRIME's grader, which RL users know from verl:
`pip install --target DIR --no-deps verl==0.9.1 pylatexenc==2.11`, and set VERL to DIR.
"""

from __future__ import annotations

import importlib
import os
import sys
import types
from collections.abc import Mapping
from typing import Any


def prepare(task: Mapping[str, Any], *, memory_mib: int) -> None:
    """Pool hook: import the grader."""
    _GRADERS[task["grader"]](r"\boxed{\sqrt{8}}", r"2\sqrt{2}")


def run(task: Mapping[str, Any], *, timeout_seconds: float, memory_mib: int) -> dict[str, Any]:
    """Pool hook: one verdict; an exception of the grader counts as a crash."""
    return {"correct": bool(_GRADERS[task["grader"]](task["completion"], task["gold"]))}


def _math_verify(completion: str, gold: str) -> bool:
    from math_verify import parse, verify

    return bool(verify(parse(f"${gold}$"), parse(completion)))


def _prime_math(completion: str, gold: str) -> bool:
    folder = os.environ["VERL"]
    # verl's package imports ray and torch; the grader needs neither, so its parents are made empty.
    if folder not in sys.path:
        sys.path.append(folder)
        for name in ("verl", "verl.utils", "verl.utils.reward_score"):
            module = types.ModuleType(name)
            module.__path__ = [os.path.join(folder, *name.split("."))]
            sys.modules[name] = module
    prime_math = importlib.import_module("verl.utils.reward_score.prime_math")
    return bool(prime_math.compute_score(completion, gold)[0])


_GRADERS = {"math-verify": _math_verify, "verl prime_math": _prime_math}
