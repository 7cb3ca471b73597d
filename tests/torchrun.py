"""Starts a worker script on several processes, one thread each, and reads what it found."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any


def run_worker(worker: Path, folder: Path, world: int, found: str, timeout: int = 500) -> Any:
    """Run `worker FOLDER` on `world` processes; returns the JSON it wrote to FOLDER/`found`."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={world}"]
    paths = [str(Path(__file__).parent), *filter(None, [os.environ.get("PYTHONPATH")])]
    done = subprocess.run(
        [*command, str(worker), str(folder)],
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(paths)},
        capture_output=True,
        text=True,
        timeout=timeout,
    )
    assert done.returncode == 0, done.stderr[-9000:]
    return json.loads((folder / found).read_text())
