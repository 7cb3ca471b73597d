"""A program runs as `python file.py` runs it: the reference is that command."""

from __future__ import annotations

import signal
import subprocess
import sys

import pytest

from megatron_prism.verification.sandbox.isolation import STRONG, run_tests
from megatron_prism.verification.sandbox.isolation import WEAK as WEAK_MODE
from megatron_prism.verification.sandbox.judge import Limits

LIMITS = Limits(60.0, 1024)
INPUT = "2 3\nzwei é 漢\n"

# Programs whose output says how they were run. Their output and exit status must be those of the reference.
PROGRAMS = {
    "exit": "print(5)\nexit()\nprint(6)",
    "quit with a status": "print(5)\nquit(0)",
    "exit in a function": "def main():\n    print(5)\n    exit(0)\nmain()",
    "sys.exit with None": "import sys\nprint(5)\nsys.exit(None)",
    "sys.exit with a status": "import sys\nprint(5)\nsys.exit(3)",
    "sys.exit with text": "import sys\nprint(5)\nsys.exit('bad')",
    "sys.exit with a large status": "import sys\nprint(5)\nsys.exit(256)",
    "os._exit": "import os\nprint(5, flush=True)\nos._exit(0)",
    "os._exit without a flush": "import os\nprint(5)\nos._exit(0)",
    "site's builtins": "print(exit, quit, callable(help), len(str(copyright)) > 10, callable(license))",
    "a thread": (
        "import threading, time\ndef f():\n    time.sleep(0.05)\n    print(5)\nthreading.Thread(target=f).start()"
    ),
    "a daemon thread": (
        "import threading, time\ndef f():\n    time.sleep(30)\n    print(6)\n"
        "threading.Thread(target=f, daemon=True).start()\nprint(5)"
    ),
    "a thread that fails": "import threading\nthreading.Thread(target=lambda: 1 / 0).start()\nprint(5)",
    "an executor": (
        "from concurrent.futures import ThreadPoolExecutor\nThreadPoolExecutor(2).submit(lambda: print(5))"
    ),
    "a big stack": (
        "import sys, threading\nsys.setrecursionlimit(10**6)\nthreading.stack_size(128 << 20)\n"
        "def f(n): return n and 1 + f(n - 1)\n"
        "threading.Thread(target=lambda: print(f(50_000))).start()"
    ),
    "atexit": "import atexit\natexit.register(print, 6)\natexit.register(print, 5)",
    "atexit after sys.exit": "import atexit, sys\natexit.register(print, 5)\nsys.exit(0)",
    "atexit that fails": "import atexit\natexit.register(lambda: 1 / 0)\nprint(5)",
    "a file that was not closed": "out = open(1, 'w', closefd=False)\nout.write('5\\n')",
    "a writer of its own": (
        "import atexit, io, os, sys\nsys.stdout = io.StringIO()\n"
        "atexit.register(lambda: os.write(1, sys.stdout.getvalue().encode()))\nprint(5)"
    ),
    "an object's end": "class A:\n    def __del__(self): print(5)\na = A()",
    "its names": "print(__name__, __file__.endswith('solution.py'), __doc__, __package__, __spec__, __annotations__)",
    "its namespace": "print(sorted(globals()))",
    "its docstring": "'text'\nprint(__doc__)",
    "its arguments": "import sys\nprint(len(sys.argv), sys.argv[0] == __file__, sys.path[0] in __file__)",
    "its own source": (
        "print(open(__file__).read().count('print'))\nimport inspect\ndef f(): pass\nprint(inspect.getsource(f))"
    ),
    "its module": "import __main__\nprint(__main__.__name__, __main__.x if hasattr(__main__, 'x') else 0)\nx = 5",
    "a class": "import pickle\nclass A: pass\nprint(type(pickle.loads(pickle.dumps(A()))) is A)",
    "a dataclass": "from dataclasses import dataclass\n@dataclass\nclass P:\n    x: int\nprint(P(5))",
    "a module of its own": "open('other.py', 'w').write('x = 5')\nimport other\nprint(other.x)",
    "input": "print(input(), input())",
    "the end of input": "while True:\n    try: print(input())\n    except EOFError: break",
    "input in bytes": "import sys\nprint(sys.stdin.buffer.readline(), open(0, 'rb').read())",
    "its streams": "import sys\nprint(sys.stdin.encoding, sys.stdout.encoding, sys.stdin.isatty())",
    "a prompt": "print(input('? '))",
    "a byte order mark": "\ufeffprint(5)",
    "carriage returns": "x = '''a\r\nb'''\r\nprint(repr(x))\r\n",
    "a coding line": "# -*- coding: utf-8 -*-\nprint('é')",
    "a future import": "from __future__ import annotations\ndef f(x: unknown): pass\nprint(f.__annotations__)",
    "recursion to the limit": (
        "def f(n):\n    try: return f(n + 1)\n    except RecursionError: return n\nprint(970 < f(0) < 1000)"
    ),
    # The exception is raised at a later instruction, so the program waits for it inside of the block.
    "an interrupt": (
        "import os, signal, time\ntry:\n    os.kill(os.getpid(), signal.SIGINT)\n    time.sleep(5)\n"
        "except KeyboardInterrupt: print(5)"
    ),
    "a warning": "print('\\d')\nimport warnings\nwarnings.warn('x')",
    "an exception": "print(5)\n1 / 0",
    "a syntax error": "print(5)\nx = = 2",
    "a null character": "print(5)\n\0",
    "standard output closed": "import sys\nprint(5)\nsys.stdout.close()",
    "the null device": "import os\nprint(open(os.devnull).read() == '')",
    "asyncio": "import asyncio\nasync def f(): print(5)\nasyncio.run(f())",
}
# A script that ends with another status than 0 does not count as correct, whatever it printed.
NOT_CORRECT = "not correct"
# The weak mode refuses signals and sockets, and starts an interpreter for each program: a few are enough.
WEAK = (
    "exit",
    "atexit",
    "a thread",
    "its names",
    "input",
    "a byte order mark",
    "an exception",
    "an object's end",
)


def reference(program, folder) -> str:
    (folder / "solution.py").write_bytes(program.encode())
    done = subprocess.run(
        [sys.executable, "-s", "-B", str(folder / "solution.py")],
        input=INPUT.encode(),
        capture_output=True,
        env={"PYTHONUTF8": "1"},
        cwd=folder,
        # A shell starts a background job with interrupts ignored, and the job's children inherit that.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    return done.stdout.decode() if done.returncode == 0 else NOT_CORRECT


@pytest.mark.parametrize(
    ("runner", "name"),
    [(STRONG, name) for name in PROGRAMS] + [(WEAK_MODE, name) for name in WEAK],
    indirect=["runner"],
)
def test_a_script_prints_and_ends_as_python_does(runner, tmp_path, name):
    expected = reference(PROGRAMS[name], tmp_path)
    tests = [{"input": INPUT, "output": expected}]
    judged = run_tests(PROGRAMS[name], tests, LIMITS, runner=runner)
    if expected == NOT_CORRECT:
        assert judged.reason not in ("correct", "wrong")
    else:
        assert judged.reason == "correct"


def test_the_status_decides_and_livecodebench_ignores_that_of_sys_exit(runner):
    program = "import sys\nprint(5)\nsys.exit(1)"
    test = {"input": "", "output": "5"}
    assert run_tests(program, [test], LIMITS, runner=runner).reason == "exit"
    assert run_tests(program, [{**test, "testtype": "stdin"}], LIMITS, runner=runner).reason == "correct"
    failing = program.replace("sys.exit(1)", "1 / 0")
    judged = run_tests(failing, [{**test, "testtype": "stdin"}], LIMITS, runner=runner)
    assert judged.reason == "exception: ZeroDivisionError"


def test_chance_is_the_same_for_every_program(runner):
    import random

    program = "import random\nprint(random.random())"
    tests = [{"input": "", "output": str(random.Random(0).random())}] * 2
    assert run_tests(program, tests, LIMITS, runner=runner).reason == "correct"
