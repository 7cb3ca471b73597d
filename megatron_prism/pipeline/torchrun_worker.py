"""`python -m megatron_prism.pipeline.torchrun_worker TASK.json`: one rank of a stage that launch.py runs."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from megatron_prism.pipeline.launch import run_task
from megatron_prism.pipeline.orphans import end_with
from megatron_prism.platform.console import setup_logging

# Libraries may start processes that import this file again; without the guard they would run the task.
if __name__ == "__main__":
    setup_logging()
    end_with(json.loads(Path(sys.argv[1]).read_text())["launcher"])
    run_task(Path(sys.argv[1]))
