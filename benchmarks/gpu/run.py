"""The first hour on a GPU, in five pieces of under nine minutes each. See README.md beside this file.

    python benchmarks/gpu/run.py --all --out results          # everything
    python benchmarks/gpu/run.py --piece 2 --out results      # one piece

1 parity of tiny models of seven families with the CPU, resume, export; 2 training at 8k tokens: speed, memory,
recomputation, compilation; 3 training at 32k and 128k tokens; 4 sampling, and one step of reinforcement learning;
5 the kernels that take the longest. Each piece writes `piece_N.json` after every measurement, and the summary
`summary.md` is made from these files.

Without a GPU, `--tiny` runs every piece at a tiny size on the CPU, and `--imitate` on an imitated GPU.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
PIECES = (1, 2, 3, 4, 5)
SECONDS = 500


def _prepare_path() -> None:
    """Find the benchmarks, the package and the models of the tests in the working tree, and carried wheels."""
    wheels = Path(os.environ.get("PRISM_WHEELS", HERE / "wheels"))
    for path in (wheels / "site", ROOT / "tests", ROOT, HERE.parent, HERE):
        sys.path.insert(0, str(path))


def run_piece(piece: int, arguments: argparse.Namespace) -> None:
    """One piece in this process."""
    import torch
    from family_parity import piece_1
    from recorder import Recorder
    from sampling import piece_4
    from shapes import LENGTHS, MODELS, TINY_LENGTHS, TINY_MODELS
    from training_speed import piece_2, piece_3, piece_5

    tiny = arguments.tiny or arguments.imitate
    if tiny:
        torch.set_num_threads(1)
    models, lengths = (TINY_MODELS, TINY_LENGTHS) if tiny else (MODELS, LENGTHS)
    record = Recorder(arguments.out, piece, arguments.seconds)
    if piece == 1:
        piece_1(record, arguments.out, arguments.families)
    elif piece == 4:
        piece_4(record, models, tiny)
    else:
        {2: piece_2, 3: piece_3, 5: piece_5}[piece](record, models, lengths, tiny)


def run_all(arguments: argparse.Namespace) -> None:
    """Every piece in a process of its own, so that one that dies does not take the others with it."""
    for piece in PIECES:
        command = [sys.executable, __file__, "--piece", str(piece), "--out", str(arguments.out)]
        command += ["--seconds", str(arguments.seconds), "--families", *arguments.families]
        command += [f"--{name}" for name in ("tiny", "imitate") if getattr(arguments, name)]
        with contextlib.suppress(subprocess.TimeoutExpired):
            subprocess.run(command, timeout=arguments.seconds + 40)


def main() -> None:
    _prepare_path()
    from summary import markdown

    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True, help="folder for the results")
    parser.add_argument("--piece", type=int, choices=PIECES, nargs="+", help="run these, in this process")
    parser.add_argument("--all", action="store_true", help="run every piece, each in its own process")
    parser.add_argument("--seconds", type=float, default=SECONDS, help="time of a piece")
    parser.add_argument("--tiny", action="store_true", help="tiny sizes, also on a CPU")
    parser.add_argument("--imitate", action="store_true", help="tiny sizes on an imitated GPU")
    parser.add_argument("--families", nargs="+", default=None, metavar="NAME", help="of tests/tiny_models.py")
    parser.add_argument("--reference", action="store_true", help="only write the CPU's numbers for piece 1")
    arguments = parser.parse_args()
    arguments.out = arguments.out.resolve()
    arguments.out.mkdir(parents=True, exist_ok=True)
    if arguments.families is None:
        from tiny_models import FAMILIES

        arguments.families = list(FAMILIES)
    if arguments.reference:
        from family_parity import write_reference

        return write_reference(arguments.out, arguments.families)
    if arguments.all:
        run_all(arguments)
    with _device(arguments):
        for piece in arguments.piece or ():
            run_piece(piece, arguments)
    text = markdown(arguments.out)
    (arguments.out / "summary.md").write_text(text)
    print(text)
    return None


def _device(arguments: argparse.Namespace) -> contextlib.AbstractContextManager[None]:
    """The imitation of a GPU, or what this machine has; without either, only tiny sizes make sense."""
    if arguments.imitate:
        from gpu_imitation.imitation import imitate_gpu

        return imitate_gpu()
    if arguments.piece and not arguments.tiny:
        from megatron_prism.platform.hardware import has_gpu

        if not has_gpu():
            raise SystemExit("no GPU: use --tiny, or --imitate, to try the script without one")
    return contextlib.nullcontext()


if __name__ == "__main__":
    main()
