"""How much slower this machine runs Python than the reference, so that a time limit means the same work everywhere.

Time limits are in seconds of the reference machine. The factor by which they are multiplied is measured once per
process and stands in the receipts. A faster machine does not shorten them: a limit exists to stop programs that do not
end, and other work on the machine must not turn a right program into a slow one.
"""

from __future__ import annotations

import time
from functools import lru_cache

# CPU seconds of `_work` on the reference: one core of an AMD EPYC virtual machine, Python 3.11.7,
# otherwise idle; the fastest of 50 runs, 28 November 2026.
REFERENCE_SECONDS = 0.0095
REFERENCE = "AMD EPYC virtual machine, Python 3.11.7"
_RUNS = 5
_SIZE = 20_000
# No machine is so much slower; a larger factor is a measurement that was disturbed.
LARGEST_FACTOR = 10.0


@lru_cache(maxsize=1)
def time_factor() -> float:
    """What time limits are multiplied by on this machine: 1.0 or more, rounded to hundredths. Takes about 0.1 s."""
    fastest = min(_work() for _ in range(_RUNS))
    return round(min(max(1.0, fastest / REFERENCE_SECONDS), LARGEST_FACTOR), 2)


def _work() -> float:
    """CPU seconds for what programs of this kind do: integer arithmetic, lists, dicts, strings and calls."""
    start = time.process_time()
    counts: dict[int, int] = {}
    text: list[str] = []
    value = 1
    for index in range(_SIZE):
        value = _step(value, index)
        counts[value % 997] = counts.get(value % 997, 0) + 1
        text.append(str(value))
    assert len(sorted(text)) == sum(counts.values())
    return time.process_time() - start


def _step(value: int, index: int) -> int:
    return (value * 1_103_515_245 + index) % 2_147_483_648
