"""What one program leaves behind, the next one in the same sandbox must not find.

Each pair is a program that leaves something, and an expression that is true if it is found. As a control, the same
expression finds it in the program that left it, unless the sandbox refuses to let it be left.
"""

from __future__ import annotations

import os
import random

import pytest

from megatron_prism.verification.sandbox.bubblewrap import Sandbox
from megatron_prism.verification.sandbox.isolation import run_tests
from megatron_prism.verification.sandbox.judge import Limits

NOTHING = [{"input": "", "output": "nothing"}]
LIMITS = Limits(60.0, 256)
_C = "import ctypes\nlibc = ctypes.CDLL(None, use_errno=True)\n"
_READ_BACK = """
def read_back(fd):
    try:
        os.lseek(fd, 0, 0)
        return b'note' in os.read(fd, 1000)
    except OSError:
        return False
"""

LEFT = {
    "a file": ("open('/tmp/x', 'w').close()", "os.path.exists('/tmp/x')"),
    "a folder": ("os.makedirs('/tmp/a/b/c')", "os.path.exists('/tmp/a')"),
    "a link": ("os.symlink('/nowhere', '/tmp/x')", "os.path.lexists('/tmp/x')"),
    "a pipe with a name": ("os.mkfifo('/tmp/x')", "os.path.exists('/tmp/x')"),
    "a module": ("open('/tmp/heapq.py', 'w').write('leaked = 1')", "os.path.exists('/tmp/heapq.py')"),
    "the mode of the folder": ("os.mkdir('/tmp/x')", "os.listdir('/tmp') != ['solution.py']"),
    "the environment": ("os.environ['NOTE'] = 'note'", "'NOTE' in os.environ"),
    "an attribute of a module": ("import json\njson.note = 1", "hasattr(__import__('json'), 'note')"),
    "an attribute of a loaded module": ("import re\nre.note = 1", "hasattr(__import__('re'), 'note')"),
    "a builtin": ("import builtins\nbuiltins.note = 1", "hasattr(__import__('builtins'), 'note')"),
    "an entry of sys.modules": (
        "import sys\nsys.modules['note'] = sys",
        "'note' in __import__('sys').modules",
    ),
    "the search path": ("import sys\nsys.path.append('/note')", "'/note' in __import__('sys').path"),
    "the recursion limit": (
        "import sys\nsys.setrecursionlimit(77777)",
        "__import__('sys').getrecursionlimit() == 77777",
    ),
    "the state of random": (
        "import random\nrandom.seed(123); random.random()",
        "random.getstate()[1][:3] != START",
    ),
    "a signal handler": (
        "import signal\nsignal.signal(signal.SIGUSR1, signal.SIG_IGN)",
        "__import__('signal').getsignal(10) != 0",
    ),
    "a blocked signal": (
        "import signal\nsignal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1])",
        "bool(__import__('signal').pthread_sigmask(0, []))",
    ),
    "a timer": (
        "import signal\nsignal.setitimer(signal.ITIMER_REAL, 1000)",
        "__import__('signal').getitimer(0)[0] > 0",
    ),
    "a limit": (
        "import resource\nresource.setrlimit(resource.RLIMIT_NOFILE, (20, 20))",
        "__import__('resource').getrlimit(7)[1] == 20",
    ),
    "the working folder": ("os.chdir('/')", "os.getcwd() != '/tmp'"),
    "the file mode mask": ("os.umask(0o123)", "(old := os.umask(0)) == 0o123"),
    "open files": (
        "kept = [os.open('/dev/null', 0) for _ in range(20)]",
        "sum(is_open(fd) for fd in range(3, 64)) > 3",
    ),
    "a function for the end": (
        "import atexit\natexit.register(int)",
        "__import__('atexit')._ncallbacks() > 0",
    ),
    "an object in memory": (
        "note = ['note-' + str(1)]",
        "any(type(o) is list and o and o[0] == 'note-' + '1' for o in __import__('gc').get_objects())",
    ),
    "output on standard error": ("os.write(2, b'note')", "False"),
    "processes": (
        "children = [pid for _ in range(40) if (pid := os.fork()) or __import__('time').sleep(1000)]",
        "not can_fork(40)",
    ),
    "memory": ("open('/tmp/m', 'wb').truncate(1 << 20)", "os.path.exists('/tmp/m')"),
    "a lock": (
        "import fcntl\nlock = open(os.__file__)\nfcntl.flock(lock, fcntl.LOCK_EX)",
        "not can_lock()",
    ),
}
# The sandbox refuses to let these be left: the program that tries ends with an error.
REFUSED = {
    "shared memory": "from multiprocessing.shared_memory import SharedMemory\nSharedMemory('note', True, 8)",
    "a semaphore": "import multiprocessing\nmultiprocessing.Semaphore()",
    "shared memory by number": _C + "assert libc.shmget(4711, 4096, 0o1666) >= 0",
    "a semaphore by number": _C + "assert libc.semget(4711, 1, 0o1666) >= 0",
    "a message queue by number": _C + "assert libc.msgget(4711, 0o1666) >= 0",
    "a message queue": _C + "assert libc.mq_open(b'/note', 0o102, 0o666, None) >= 0",
    "a key": _C + "assert libc.syscall(248, b'user', b'note', b'x', 1, -4) >= 0",
    "an abstract socket": "import socket\nsocket.socket(socket.AF_UNIX).bind('\\0note')",
    "an attribute of a file": "os.setxattr('/tmp', 'user.note', b'x')",
    "the time of a device": "os.utime('/dev/null')",
    "the time of a folder": "os.utime('/tmp')",
    "the name of the machine": "import socket\nsocket.sethostname('note')",
    "the clock": "import time\ntime.clock_settime(time.CLOCK_REALTIME, 0)",
    "the processors": "os.sched_setaffinity(0, {0})",
    "the priority": "os.nice(5)",
    "a control terminal": "os.open('/dev/tty', os.O_RDWR)",
    "a library's file": "open(os.__file__, 'a')",
}
_HELPERS = """
import os
def is_open(fd):
    try:
        os.fstat(fd)
        return True
    except OSError:
        return False
def can_fork(count):
    pids = []
    try:
        for _ in range(count):
            pid = os.fork()
            if pid == 0:
                os.pause() if hasattr(os, 'pause') else __import__('time').sleep(1000)
            pids.append(pid)
        return True
    except OSError:
        return False
    finally:
        for pid in pids:
            os.kill(pid, 9)
def can_lock():
    import fcntl
    try:
        fcntl.flock(open(os.__file__), fcntl.LOCK_EX | fcntl.LOCK_NB)
        return True
    except OSError:
        return False
import random
START = {start}
"""


@pytest.fixture(scope="module")
def sandbox(bubblewrap):
    with Sandbox(256) as made:
        yield made


def look(expression: str, start: str) -> str:
    return f"{_HELPERS.replace('{start}', start)}\nprint('something' if {expression} else 'nothing')\n"


@pytest.fixture(scope="module")
def start():
    """The first words of the state of `random` in a fresh program."""
    return repr(random.Random(0).getstate()[1][:3])


@pytest.mark.parametrize("name", LEFT)
def test_the_next_program_finds_nothing(sandbox, start, name):
    leave, found = LEFT[name]
    sandbox.open()
    before = sandbox._first_process
    left = f"import os\n{leave}\n"
    assert run_tests(left, [{"input": "", "output": ""}], LIMITS, runner=sandbox).reason == "correct"
    assert run_tests(look(found, start), NOTHING, LIMITS, runner=sandbox).reason == "correct"
    assert sandbox._first_process == before
    if found != "False":
        control = f"import os\n{leave}\n{look(found, start)}"
        assert run_tests(control, NOTHING, LIMITS, runner=sandbox).reason == "wrong"


@pytest.mark.parametrize("name", REFUSED)
def test_what_would_outlive_a_program_is_refused(sandbox, name):
    program = f"import os\n{REFUSED[name]}\n"
    reason = run_tests(program, NOTHING, LIMITS, runner=sandbox).reason
    assert reason == "assertion" or reason.startswith("exception: "), reason
    assert reason != "exception: NameError"


def test_standard_error_is_fresh_and_endless(sandbox):
    """What a program writes to it is not there for the next, and however much it was, the next can write."""
    note = (
        f"import os\nos.write(2, b'note')\n{_READ_BACK}\nprint('something' if read_back(2) else 'nothing')\n"
    )
    assert run_tests(note, NOTHING, LIMITS, runner=sandbox).reason == "correct"
    for descriptor in (0, 1, 2):
        program = f"import os\n{_READ_BACK}\nfound = read_back({descriptor})\n"
        assert run_tests(program, ["assert found == False"], LIMITS, runner=sandbox).reason == "correct"
    flood = "import sys\nfor _ in range(20_000): print('d' * 99, file=sys.stderr)\nprint('nothing')\n"
    for _ in range(2):
        assert run_tests(flood, NOTHING, LIMITS, runner=sandbox).reason == "correct"


def test_input_cannot_be_written_and_unread_input_is_not_kept(sandbox):
    program = "import os\nos.write(0, b'note')\n"
    tests = [{"input": "note\n", "output": ""}]
    assert run_tests(program, tests, LIMITS, runner=sandbox).reason == "exception: PermissionError"
    assert (
        run_tests("input()", [{"input": "a\nnote\n", "output": ""}], LIMITS, runner=sandbox).reason
        == "correct"
    )
    program = "import sys\nprint('something' if sys.stdin.read() else 'nothing')"
    assert run_tests(program, NOTHING, LIMITS, runner=sandbox).reason == "correct"


def test_the_times_of_the_hosts_devices_stay(sandbox):
    before = os.stat("/dev/null").st_mtime_ns
    program = "import os\nos.close(os.open('/dev/null', os.O_WRONLY))\nos.utime('/dev/null')\n"
    assert run_tests(program, NOTHING, LIMITS, runner=sandbox).reason == "exception: PermissionError"
    assert os.stat("/dev/null").st_mtime_ns == before
