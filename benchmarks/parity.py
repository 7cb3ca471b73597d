"""Question: does every parallel layout train the same model as one process?

    python benchmarks/parity.py --json result.json --markdown table.md

Tiny models of four families are trained for ten steps under every layout of `parity_cases.py`, on up to four processes
with one thread each, and once on one process, from the same weights and on the same data. The table gives the largest
relative difference of the loss at any of the ten steps, and the largest relative difference of a final weight tensor
(norm of the difference divided by the norm of the tensor). In fp32 the loss may differ by 1e-5 in dense models and by
1e-4 in hybrid ones. bf16 rows are for information: the order of sums changes their last digits.

At the end of the table are negative controls: runs with a planted fault, which must exceed ten times the bound.
The exit code is 1 if a layout or a control is on the wrong side of its bound.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Any

import measure
import torch.multiprocessing
from parity_cases import BOUNDS, CASES, Case
from parity_ranks import serve

RANKS = 4


def passed(case: Case, found: dict[str, Any]) -> bool:
    """Whether a case is on the right side of its bound."""
    if "failed" in found:
        return False
    if case.control:
        return bool(found["loss_gap"] > 10 * BOUNDS[case.model])
    return case.dtype != "fp32" or bool(found["loss_gap"] <= BOUNDS[case.model])


def record(file: Path, case: Case, found: dict[str, Any]) -> None:
    """Report a finished case on the console and keep it."""
    verdict = "" if passed(case, found) else "   WRONG"
    figures = found.get("failed") or f"loss {found['loss_gap']:.1e}  weights {found['weight_gap']:.1e}"
    print(f"{case.name:70s} {figures}{verdict}", flush=True)
    with file.open("a") as out:
        out.write(json.dumps(found) + "\n")


def worker(rank: int, folder: Path, cases: list[Case]) -> None:
    serve(rank, RANKS, folder, cases=cases, report=partial(record, folder / "found.jsonl"))


def markdown(rows: list[dict[str, Any]]) -> str:
    """The table for docs/results."""
    lines = [
        "| model | layout | ranks | loss, worst of 10 steps | final weights, worst tensor | bound |",
        "|---|---|---|---|---|---|",
    ]
    for row in rows:
        figures = (
            f"failed: {row['failed']} | "
            if "failed" in row
            else f"{row['loss_gap']:.1e} | {row['weight_gap']:.1e}"
        )
        bound = "must differ" if row["control"] else ("" if row["dtype"] == "bf16" else f"{row['bound']:.0e}")
        model, _, name = row["case"].partition(": ")
        lines.append(f"| {model} | {name} | {row['ranks']} | {figures} | {bound} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = measure.argument_parser(__doc__)
    parser.add_argument("--only", default="", metavar="TEXT", help="only cases whose name contains TEXT")
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="write the table here")
    arguments = parser.parse_args()
    cases = [case for case in CASES if arguments.only in case.name]
    # Ranks connect when they first communicate; most of Megatron's groups never do.
    os.environ |= {"OMP_NUM_THREADS": "1", "TORCH_GLOO_LAZY_INIT": "1"}
    began = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        # Forked, because everything is imported here already; no operation has started a thread yet.
        torch.multiprocessing.start_processes(
            worker, (Path(folder), cases), nprocs=RANKS, start_method="fork"
        )
        found = [json.loads(line) for line in (Path(folder) / "found.jsonl").read_text().splitlines()]
    rows = [
        {
            "case": case.name,
            "model": case.model,
            "dtype": case.dtype,
            "ranks": case.world_size,
            "control": case.control,
            "bound": BOUNDS[case.model],
            "passed": passed(case, row),
            **row,
        }
        for case, row in zip(cases, found, strict=True)
    ]
    if arguments.markdown is not None:
        arguments.markdown.write_text(markdown(rows))
    measure.write(arguments, {"seconds": round(time.perf_counter() - began), "results": rows})
    wrong = [row["case"] for row in rows if not row["passed"]]
    print(
        f"{len(rows) - len(wrong)} of {len(rows)} rows are as they must be, {time.perf_counter() - began:.0f} s"
    )
    sys.exit(1 if wrong else 0)


if __name__ == "__main__":
    main()
