"""Question: how long does the generation of RULER samples take (13 tasks x 100 samples x 5 lengths), and how exact are
their lengths?

    python benchmarks/ruler_generation.py --samples 100 --lengths 8192 16384 32768 65536 131072 --json FILE

Without --tokenizer, a tokenizer is first trained on prose and code from this machine; this is not timed.
"""

from __future__ import annotations

import os
import resource
import tempfile
import time
from itertools import chain
from pathlib import Path

import measure

from megatron_prism.data.installed_text import code_documents, prose_documents
from megatron_prism.data.ruler.generate import Plan
from megatron_prism.data.ruler.sample_folder import make_folder
from megatron_prism.data.ruler.samples import read_samples
from megatron_prism.data.ruler.sources import load_sources
from megatron_prism.data.ruler.tasks import RULER_TASKS
from megatron_prism.data.tokenizer import Tokenizer, train_tokenizer

LENGTHS = [8192, 16384, 32768, 65536, 131072]


def cpu_seconds() -> float:
    """User and system time of this process and of finished workers."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(each.ru_utime + each.ru_stime for each in used)


def wrong_counts(folder: Path, tokenizer: Tokenizer, every: int) -> tuple[int, int]:
    """How many samples were encoded again, and how many of them do not have the recorded number of tokens."""
    checked = wrong = 0
    for file in sorted(folder.glob("*/*.jsonl.zst")):
        for sample in read_samples(folder, file.name.split(".")[0], int(file.parent.name)):
            if sample.index % every == every // 2:
                checked += 1
                wrong += len(tokenizer.encode(sample.prompt)) != sample.tokens
    return checked, wrong


def main() -> None:
    parser = measure.argument_parser(__doc__)
    parser.add_argument("--tokenizer", type=Path)
    parser.add_argument("--vocab-size", type=int, default=49_152)
    parser.add_argument("--samples", type=int, default=100)
    parser.add_argument("--lengths", type=int, nargs="+", default=LENGTHS)
    parser.add_argument("--tasks", nargs="+", default=list(RULER_TASKS))
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument(
        "--verify-every", type=int, default=50, help="check one in N samples; this is not timed"
    )
    options = parser.parse_args()

    with tempfile.TemporaryDirectory() as scratch:
        folder = options.tokenizer or Path(scratch) / "tokenizer"
        if options.tokenizer is None:
            train_tokenizer(chain(prose_documents(), code_documents()), options.vocab_size, folder)
        out = Path(scratch) / "samples"
        out.mkdir()
        busy = os.getloadavg()[0]
        began, used = time.perf_counter(), cpu_seconds()
        tasks = tuple(RULER_TASKS[name] for name in options.tasks)
        plan = Plan(tasks, tuple(options.lengths), options.samples)
        manifest = make_folder(plan, folder, load_sources(tasks), out, workers=options.workers)
        wall, cpu = time.perf_counter() - began, cpu_seconds() - used
        size = sum(file.stat().st_size for file in out.rglob("*.zst"))
        tokenizer = Tokenizer.load(folder)
        checked, wrong = wrong_counts(out, tokenizer, options.verify_every)
    rows = [
        {
            "length": int(length),
            "tokens": sum(each["total_tokens"] for each in files.values()),
            "furthest_below": 1
            - min(
                (each["min_tokens"] + RULER_TASKS[task].max_new_tokens) / int(length)
                for task, each in files.items()
            ),
            "furthest_above": max(
                each["max_tokens"] + RULER_TASKS[task].max_new_tokens - int(length)
                for task, each in files.items()
            ),
        }
        for length, files in manifest["files"].items()
    ]
    tokens = sum(row["tokens"] for row in rows)
    for row in rows:
        print(
            f"{row['length']:>7,} tokens: at most {row['furthest_below']:.2%} below, {row['furthest_above']:+d} above"
        )
    print(
        f"{len(tasks)} tasks x {options.samples} samples x {len(rows)} lengths: {tokens:,} tokens, {size / 1e6:.0f} MB "
        f"in {wall:.1f} s ({cpu:.1f} s of CPU time, {options.workers} workers, load before: {busy:.1f})"
    )
    print(f"encoded again: {checked} samples, {wrong} with a wrong count")
    measure.write(
        options,
        {
            "tokenizer_vocab_size": tokenizer.vocab_size,
            "wall_seconds": wall,
            "cpu_seconds": cpu,
            "load_before": busy,
            "tokens": tokens,
            "bytes": size,
            "lengths": rows,
            "checked": checked,
            "wrong": wrong,
        },
    )


if __name__ == "__main__":
    main()
