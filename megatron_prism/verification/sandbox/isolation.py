"""Running a program on its tests, isolated in one of two modes: "strong" (bubblewrap.py) or "weak" (weak_runner.py)."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from functools import lru_cache

from megatron_prism.errors import ConfigError, suggest
from megatron_prism.platform.console import get_logger
from megatron_prism.verification.sandbox.bubblewrap import Sandbox, SandboxError
from megatron_prism.verification.sandbox.code_tests import CodeTest, parse_tests
from megatron_prism.verification.sandbox.judge import Judgement, Limits, judge
from megatron_prism.verification.sandbox.session import PASSED, Runner
from megatron_prism.verification.sandbox.weak_runner import WeakRunner

STRONG, WEAK = "strong", "weak"
MODES = (STRONG, WEAK)
# Limits of the program that tests whether the strong mode works.
_PROBE_MIB = 256
_PROBE_SECONDS = 30.0

log = get_logger(__name__)


def run_tests(
    program: str,
    tests: Sequence[CodeTest],
    limits: Limits | None = None,
    *,
    sandbox: str = STRONG,
    runner: Runner | None = None,
) -> Judgement:
    """Run `program` and its tests (see code_tests.py); all of them must pass.

    Args:
        program: Python source; it can import only the standard library.
        limits: by default those of `Limits`.
        sandbox: "strong" or "weak".
        runner: starts the program; by default a runner is made for this call.

    Returns:
        The reason and the verdict on each test: "correct"; "wrong" (a value or an output differs), "assertion" (an
        assert fails), "timeout", "memory", "output" (it printed far more than expected), "exit" (it called sys.exit),
        "exception: NAME", "checker: REASON" (the checker failed), or "crashed" (killed by a signal, or ended without a
        verdict).

    Raises:
        DataError: for tests that are missing or not in the form that code_tests.py describes.
        ConfigError: for an unknown mode, or if the strong mode does not work on this machine.
    """
    parsed = parse_tests(tests)
    limits = limits or Limits()
    if runner is not None:
        return judge(runner, program, parsed, limits)
    require_sandbox(sandbox)
    with open_runner(sandbox, limits.memory_mib) as made:
        return judge(made, program, parsed, limits)


@contextlib.contextmanager
def open_runner(sandbox: str, memory_mib: int) -> Iterator[Runner]:
    """A runner of this mode, which stays open until the block ends."""
    if sandbox == WEAK:
        yield WeakRunner()
        return
    with Sandbox(memory_mib) as strong:
        yield strong


def require_sandbox(sandbox: str) -> None:
    """Check that programs can run in this mode, before any other work.

    Raises:
        ConfigError: for an unknown mode, or if the strong mode does not work on this machine.
    """
    check_mode(sandbox)
    if sandbox == WEAK:
        _warn_weak()
        return
    problem = sandbox_problem()
    if problem is not None:
        raise ConfigError(
            f"sandbox=strong: programs that a model wrote cannot be isolated here ({problem}); install "
            "bubblewrap 0.7 or newer (apt-get install bubblewrap) on a machine that allows namespaces, or set "
            "sandbox=weak to run them without isolation"
        )


def check_mode(sandbox: str) -> None:
    """Raises ConfigError unless `sandbox` is one of `MODES`."""
    if sandbox not in MODES:
        raise ConfigError(f"sandbox={sandbox}: unknown mode{suggest(str(sandbox), MODES)}")


@lru_cache(maxsize=1)
def sandbox_problem() -> str | None:
    """Why the strong mode does not work here, or None. The first call runs a program in it to find out."""
    try:
        with Sandbox(_PROBE_MIB) as strong:
            limits = Limits(_PROBE_SECONDS, _PROBE_MIB)
            verdict = judge(strong, "x = 6 * 7", parse_tests(["assert x == 42"]), limits).reason
    except (SandboxError, ConfigError, OSError) as reason:
        return str(reason)
    return None if verdict == PASSED else f"a test program in it ended with '{verdict}'"


@lru_cache(maxsize=1)
def _warn_weak() -> None:
    log.warning(
        "sandbox=weak: programs that a model wrote run as this user and can reach its files and the network"
    )
