"""Question: how close do all weight metrics of `prism analyze weights` come to the speed of reading the files?

    python benchmarks/analyze.py --gigabytes 2 --many 10 --rounds 5

The sides alternate, each in a process of its own. `blocks` uses all cores, `tensors` and `script` as many threads as
torch has (`--threads`), and the analysis one. All files are read once before the clock
starts, so that they come from memory.

- `blocks`: both checkpoints are read in blocks and every element is converted to fp32 in the processor's cache: the
  limit of the machine.
- `tensors`: both are read by safetensors, and each tensor is converted to fp32 as a whole: the limit of a script.
- `prism`: one checkpoint against the base.
- `many` and `one`: `--many` checkpoints against the base in one pass, and one of them, smaller, because all of
  them must fit into memory.
- `script`: both models through `transformers`, and for each parameter the same numbers (delta, six thresholds, equal
  and zero elements, the absolute rule) with torch on whole tensors, in fp32.

`seconds` counts from the end of the imports, `whole` from the start of the process. The last lines say by how much the
deltas of the two sides differ.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import measure
from convert import GIGABYTE, make_checkpoint

THRESHOLDS = (0.001, 0.005, 0.01, 0.02, 0.05, 0.1)


def make_models(folder: Path, gigabytes: float, count: int) -> None:
    """`base` and `other0` ...: every weight moved by a few percent, and a third of them not at all."""
    import torch
    from safetensors.torch import load_file, save_file

    torch.manual_seed(0)
    make_checkpoint("dense", gigabytes, folder / "base")
    for number in range(count):
        target = folder / f"other{number}"
        shutil.copytree(folder / "base", target)
        for file in target.glob("*.safetensors"):
            state = load_file(file)
            for name, tensor in state.items():
                step = 0.03 * torch.randn(tensor.shape, dtype=torch.bfloat16)
                step[torch.rand(tensor.shape) < 1 / 3] = 0
                state[name] = tensor * (1 + step)
            save_file(state, file, {"format": "pt"})


def run_once(side: str, folder: Path, threads: int) -> dict[str, Any]:
    """One side in this process, which was started for it."""
    import torch

    torch.set_num_threads(threads)
    others = sorted(folder.glob("other*"), key=lambda path: int(path.name[5:]))
    if side == "script":
        from transformers import AutoModelForCausalLM
    else:
        from megatron_prism.analysis.weight_summary import analyze_weights
    clock, cpu = time.perf_counter(), time.process_time()
    delta = None
    if side == "blocks":
        read_blocks([folder / "base", others[0]])
    elif side == "tensors":
        read_tensors([folder / "base", others[0]])
    elif side == "script":
        delta = script(AutoModelForCausalLM, folder / "base", others[0])
    else:
        found = analyze_weights(folder / "base", others if side == "many" else others[:1])
        delta = found.document["models"][0]["all"]["mean_delta"]
    return {
        "seconds": time.perf_counter() - clock,
        "cpu_seconds": time.process_time() - cpu,
        "peak_bytes": measure.memory_bytes("VmHWM"),
        "delta": delta,
    }


def read_tensors(folders: list[Path]) -> None:
    """Read the tensors one after the other, and convert each to fp32."""
    from safetensors import safe_open

    for folder in folders:
        for file in sorted(folder.glob("*.safetensors")):
            with safe_open(file, "pt") as opened:
                for name in list(opened.keys()):
                    opened.get_tensor(name).float()


def read_blocks(folders: list[Path]) -> None:
    """Read all blocks and convert them to fp32."""
    from megatron_prism.conversion.weights import open_weights
    from megatron_prism.merging.blocks import Block, OpenFiles, Scratch, TensorBytes, Workers, blocks

    models = [open_weights(folder) for folder in folders]
    with OpenFiles(os.O_RDONLY) as files, Workers(len(models)) as workers:
        for name, shape in models[0].shapes.items():
            opened = [TensorBytes(model, name, files) for model in models]

            def work(scratch: Scratch, block: Block, opened: list[TensorBytes] = opened) -> None:
                scratch.read(opened, block)

            elements = 1
            for size in shape:
                elements *= size
            for _ in workers.map(work, blocks(name, 0, elements)):
                pass


def script(loader: Any, base: Path, other: Path) -> float:
    """What a researcher would write; the mean of the tensors' deltas."""
    import torch

    # Not state_dict(), which has a tied embedding twice.
    old = dict(loader.from_pretrained(base, dtype=torch.bfloat16).named_parameters())
    new = dict(loader.from_pretrained(other, dtype=torch.bfloat16).named_parameters())
    rows = []
    for name, tensor in old.items():
        w = tensor.detach().float()
        d = new[name].detach().float() - w
        relative = d.abs() / w.abs()
        rows.append(
            (
                (d.norm() / w.norm()).item(),
                [(relative < threshold).sum().item() for threshold in THRESHOLDS],
                (d == 0).sum().item(),
                (d.abs() <= 1e-5).sum().item(),
                ((w == 0) & (d == 0)).sum().item(),
                ((w == 0) & (d != 0)).sum().item(),
            )
        )
    return sum(row[0] for row in rows) / len(rows)


def run_side(side: str, folder: Path, threads: int) -> dict[str, Any]:
    """One side of one round, in a process of its own."""
    command = [sys.executable, __file__, "--once", side, str(folder), "--threads", str(threads)]
    environment = {
        **os.environ,
        "PYTHONPATH": str(Path(__file__).resolve().parents[1]),
        "OMP_NUM_THREADS": str(threads),
    }
    began = time.perf_counter()
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    whole = time.perf_counter() - began
    if done.returncode:
        raise SystemExit(f"{side} failed:\n{done.stderr[-2000:]}")
    return {**json.loads(done.stdout.splitlines()[-1]), "whole": whole}


def warm(folder: Path) -> None:
    """Bring all files into memory."""
    for file in folder.glob("*/*.safetensors"):
        with open(file, "rb") as handle:
            while handle.read(1 << 24):
                pass


def benchmark(arguments: argparse.Namespace, root: Path) -> dict[str, Any]:
    pair, group = root / "pair", root / "group"
    make_models(pair, arguments.gigabytes, 1)
    make_models(group, arguments.gigabytes / 2, arguments.many)
    sizes = {
        folder.name: sum(file.stat().st_size for file in (folder / "base").glob("*.safetensors"))
        for folder in (pair, group)
    }
    sides = {"blocks": pair, "tensors": pair, "prism": pair, "script": pair, "one": group, "many": group}
    found: dict[str, list[dict[str, Any]]] = {side: [] for side in sides}
    for number in range(arguments.rounds + 1):
        for side, folder in sides.items():
            warm(folder)
            measured = run_side(side, folder, arguments.threads)
            print(f"round {number} {side:7} {measured['seconds']:7.2f} s", file=sys.stderr)
            # The first round does not count.
            if number:
                found[side].append(measured)
    medians = {
        side: {
            key: statistics.median(run[key] for run in runs) for key in ("seconds", "cpu_seconds", "whole")
        }
        for side, runs in found.items()
    }
    return {
        "bytes_of_a_model": sizes,
        "medians": medians,
        "peak_bytes": {side: max(run["peak_bytes"] for run in runs) for side, runs in found.items()},
        "share_of_blocks": _ratio(found, "blocks", "prism", "seconds"),
        "share_of_tensors": _ratio(found, "tensors", "prism", "seconds"),
        "times_the_script": _ratio(found, "script", "prism", "seconds"),
        "times_the_script_whole": _ratio(found, "script", "prism", "whole"),
        "many_over_one": _ratio(found, "many", "one", "seconds"),
        "many_over_one_whole": _ratio(found, "many", "one", "whole"),
        "deltas_differ_by": abs(found["prism"][0]["delta"] / found["script"][0]["delta"] - 1),
        "runs": found,
    }


def _ratio(found: dict[str, list[dict[str, Any]]], first: str, second: str, key: str) -> float:
    """The median of the rounds' ratios."""
    pairs = zip(found[first], found[second], strict=True)
    return statistics.median(one[key] / other[key] for one, other in pairs)


def show(result: dict[str, Any], many: int) -> None:
    sizes = {name: size / GIGABYTE for name, size in result["bytes_of_a_model"].items()}
    print(f"models of {sizes['pair']:.2f} GB ('one' and 'many': {sizes['group']:.2f} GB), medians:")
    for side, median in result["medians"].items():
        times = "   ".join(f"{key.replace('_', ' ')} {value:7.2f}" for key, value in median.items())
        print(f"  {side:7} {times}   peak {result['peak_bytes'][side] / 2**20:,.0f} MiB")
    print(
        f"  prism reaches {100 * result['share_of_blocks']:.0f} % of the speed of reading and converting blocks, "
        f"{100 * result['share_of_tensors']:.0f} % of that of whole tensors"
    )
    print(
        f"  prism is {result['times_the_script']:.1f}x as fast as the script, "
        f"{result['times_the_script_whole']:.1f}x as a whole process"
    )
    print(
        f"  {many} checkpoints take {result['many_over_one']:.2f}x the time of one, "
        f"{result['many_over_one_whole']:.2f}x as a whole process"
    )
    print(f"  the mean deltas of prism and of the script differ by {result['deltas_differ_by']:.1e}")


def main() -> None:
    parser = measure.argument_parser(__doc__)
    parser.add_argument("--gigabytes", type=float, default=2.0)
    parser.add_argument("--many", type=int, default=10, help="checkpoints of the side `many`")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--folder", type=Path, help="folder for the temporary files; default: the system's")
    parser.add_argument("--once", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.once:
        print(json.dumps(run_once(arguments.once[0], Path(arguments.once[1]), arguments.threads)))
        return
    with tempfile.TemporaryDirectory(dir=arguments.folder) as root:
        result = benchmark(arguments, Path(root))
    show(result, arguments.many)
    measure.write(arguments, result)


if __name__ == "__main__":
    main()
