"""The check at the end of a test run sees a process that outlives its parent, and only that."""

from __future__ import annotations

import os
import subprocess
import sys
import time

import psutil
import warm
from leftover_processes import MARK, describe, leftovers

# A child that ends at once and leaves a process behind, as a killed trainer did with upstream's queue manager.
ORPHAN = """
from subprocess import DEVNULL, Popen
import sys
print(Popen([sys.executable, "-c", "import time; time.sleep(60)"], stdout=DEVNULL, stderr=DEVNULL).pid)
"""


def test_an_orphan_is_found_and_a_server_is_not():
    # The server of warm children runs.
    warm.Child(os.getpid).wait(30)
    before = {process.pid for process in leftovers(patience=0)}
    done = subprocess.run([sys.executable, "-c", ORPHAN], capture_output=True, text=True, check=True)
    orphan = psutil.Process(int(done.stdout))
    try:
        # A process of another test that is just ending is an orphan for a moment.
        for _ in range(50):
            found = [process for process in leftovers(patience=0) if process.pid not in before]
            if len(found) == 1:
                break
            time.sleep(0.1)
        assert [process.pid for process in found] == [orphan.pid]
        assert "time.sleep(60)" in describe(found[0])
    finally:
        orphan.kill()
    assert os.environ[MARK]
