"""`python -m megatron_prism.pipeline.torchrun_worker TASK.json`: one rank of a stage that a launcher runs."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

from megatron_prism.pipeline.orphans import LAUNCHER, end_with
from megatron_prism.pipeline.worker_task import has_failed, run_task
from megatron_prism.platform.console import setup_logging

# Libraries may start processes that import this file again; without the guard they would run the task.
if __name__ == "__main__":
    task = Path(sys.argv[1])
    setup_logging()
    # Each node of a job has a launcher of its own; the file names the one of a single machine.
    launcher = int(os.environ.get(LAUNCHER) or json.loads(task.read_text())["launcher"])
    end_with(launcher, lambda: has_failed(task))
    run_task(task)
