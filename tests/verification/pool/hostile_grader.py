"""A grader for the tests of the pool: each task names a way to fail."""

from __future__ import annotations

import os
import re
import time


def prepare(task, *, memory_mib):
    if task["do"] == "slow import":
        time.sleep(1.8)


def run(task, *, timeout_seconds, memory_mib):
    do = task["do"]
    if do == "power":
        return {"value": 9**9**9}
    if do == "loop":
        while True:
            pass
    if do == "regex":
        re.match(r"(a+)+$", "a" * 40 + "b")
    if do == "sleep":
        time.sleep(task.get("seconds", 60))
    if do == "hog":
        return {"value": len(bytearray(memory_mib << 21))}
    if do == "die":
        os._exit(3)
    if do == "raise":
        raise KeyError("x")
    if do == "print":
        print("noise on the pipe", flush=True)
        os.write(1, b"more noise")
    return {"value": task.get("value"), "pid": os.getpid()}
