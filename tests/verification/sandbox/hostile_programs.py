"""Programs that try to cheat, to break out or to do harm, by name.

Each defines a right `f` only where its attack has succeeded: the verdict "correct" is an escape. The test fills in
`{...}`: a secret file, its folder, this process's id and environment, a port that listens on the host.
"""

from __future__ import annotations

TESTS = ["assert f(2) == 4", "assert f(-3) == 9"]
GOOD = "def f(x):\n    return x * x\n"
SCRIPT_TESTS = [{"input": "2\n", "output": "4\n"}]
GOOD_SCRIPT = "print(int(input()) ** 2)\n"

_LIBC = "import ctypes, os\nlibc = ctypes.CDLL(None, use_errno=True)\n"


def _escaped_if(condition: str, setup: str = "") -> str:
    return f"{setup}\nif {condition}:\n    def f(x): return x * x\n"


def _escaped_unless_refused(attack: str, setup: str = "") -> str:
    """The attack raises OSError (or finds nothing to attack) if it is contained."""
    return f"{setup}\n{attack}\n{GOOD}"


ATTACKS = {
    # resources
    "fork bomb": "import os\nwhile True:\n    try: os.fork()\n    except OSError: pass\n",
    "more processes than allowed": _escaped_unless_refused(
        "for _ in range(300):\n    if os.fork() == 0: time.sleep(100)", "import os, time"
    ),
    "thread bomb": _escaped_unless_refused(
        "for _ in range(3000): threading.Thread(target=time.sleep, args=(100,), daemon=True).start()",
        "import threading, time",
    ),
    "memory hog": _escaped_unless_refused("x = bytearray(10**9)"),
    "memory hog in many processes": (
        "import os\n"
        "for _ in range(20):\n    if os.fork() == 0:\n"
        "        x = bytearray(b'x' * (180 << 20))\n        while True: pass\n"
        "while True: pass\n"
    ),
    "disk hog": _escaped_unless_refused(
        "for i in range(200): open(f'/tmp/{{i}}', 'wb').write(bytes(1 << 20))"
    ),
    "large file": _escaped_unless_refused("open('/tmp/big', 'wb').write(bytes(10**8))"),
    "large file in memory": _escaped_unless_refused(
        "os.ftruncate(os.memfd_create('x'), 1 << 40)", "import os"
    ),
    "many files": "i = 0\nwhile True:\n    open(f'/tmp/{{i}}', 'w').close(); i += 1\n",
    "folders too deep to remove": _escaped_unless_refused(
        "for _ in range(5000):\n    os.mkdir('d'); os.chdir('d')\nraise OSError", "import os"
    ),
    "folder that cannot be entered": (
        "import os\nos.mkdir('locked'); open('locked/x', 'w').close(); os.chmod('locked', 0)\n"
    ),
    "open files": _escaped_unless_refused("keep = [open('/dev/null') for _ in range(10**4)]"),
    "endless loop": "while True: pass\n",
    "sleep": "import time; time.sleep(1000)\n",
    "power tower": "9**9**9\n",
    "regex bomb": "import re; re.match(r'(a+)+$', 'a' * 40 + 'b')\n",
    "printing a huge number": "import sys; sys.set_int_max_str_digits(0); print(10**(10**8))\n",
    "deep recursion": "import sys; sys.setrecursionlimit(10**9)\ndef f(x): return f(x)\n",
    "output without end": "while True: print('x' * 10**6)\n",
    "output without end on every descriptor": (
        "import os\nwhile True:\n    for fd in range(64):\n        try: os.write(fd, b'x' * 4096)\n"
        "        except OSError: pass\n"
    ),
    "raising the limits": _escaped_unless_refused(
        "resource.setrlimit(resource.RLIMIT_AS, (-1, -1))", "import resource"
    ),
    "a value without end": "def f(x):\n    l = []; l.append(l)\n    return l\n",
    "a value too large": "def f(x): return [0] * 10**6\n",
    # other processes
    "killing process 1": _escaped_if(
        "False", "import os\nfor number in (9, 15, 2, 19, 11): os.kill(1, number)"
    ),
    "killing everything": "import os; os.kill(-1, 9)\nwhile True: pass\n",
    "killing the parent": _escaped_if("False", "import os; os.kill(os.getppid(), 9)"),
    "killing the host by number": _escaped_unless_refused("os.kill({host}, 9)", "import os"),
    "stopping its own group": "import os; os.killpg(0, 19)\n",
    "tracing process 1": _escaped_if("libc.ptrace(16, 1, 0, 0) == 0", _LIBC),
    "reading the memory of process 1": _escaped_unless_refused("open('/proc/1/mem', 'rb')"),
    "reading memory by system call": _escaped_if(
        "libc.process_vm_readv(1, ctypes.byref(v), 1, ctypes.byref(v), 1, 0) > 0",
        _LIBC + "b = ctypes.create_string_buffer(8)\n" + "v = (ctypes.c_size_t * 2)(ctypes.addressof(b), 8)",
    ),
    "limiting process 1": _escaped_unless_refused(
        "resource.prlimit(1, resource.RLIMIT_NOFILE, (0, 0))", "import resource"
    ),
    "slowing process 1 down": _escaped_unless_refused("os.setpriority(os.PRIO_PROCESS, 1, 19)", "import os"),
    "a daemon": (
        "import os, time\nif os.fork() == 0:\n    os.setsid()\n    if os.fork() == 0:\n"
        "        while True: open('/tmp/alive', 'w').close()\n    os._exit(0)\n"
        "time.sleep(0.1)\n"
    ),
    "threads that outlive the program": (
        "import threading, time\nfor _ in range(5): threading.Thread(target=time.sleep, args=(1000,)).start()\n"
    ),
    # the host's files and environment
    "the environment": _escaped_if("'s3cret' in str(os.environ)", "import os"),
    "the environment of process 1": _escaped_if("b's3cret' in open('/proc/1/environ', 'rb').read()"),
    "the checkpoint folder": _escaped_if("os.listdir({folder!r})", "import os"),
    "a file of the host": _escaped_if("open({secret!r}).read()"),
    "a link to a file of the host": _escaped_if(
        "open('link').read()", "import os; os.symlink({secret!r}, 'link')"
    ),
    "links left behind": "import os\nos.symlink('/', 'root'); os.symlink({folder!r}, 'folder')\nos.mkfifo('pipe')\n",
    "home": _escaped_if("os.listdir(os.path.expanduser('~')) != ['solution.py']", "import os"),
    "the users": _escaped_unless_refused("open('/etc/passwd')"),
    "the passwords": _escaped_unless_refused("open('/etc/shadow')"),
    "the project's packages": _escaped_unless_refused("import numpy", "import sys\nsys.path += {paths!r}"),
    "the project itself": _escaped_unless_refused("import megatron_prism.verification.grade"),
    "writing outside": _escaped_if(
        "wrote",
        "import os\nwrote = []\nfor folder, folders, _ in os.walk('/'):\n"
        "    if folder.startswith('/tmp'): continue\n"
        "    try: open(f'{{folder}}/x', 'w').close(); wrote.append(folder)\n"
        "    except OSError: pass\n",
    ),
    "changing the standard library": _escaped_unless_refused("open(os.__file__, 'a')", "import os"),
    "removing everything": "import shutil; shutil.rmtree('/', ignore_errors=True)\n",
    "shared memory": _escaped_unless_refused("open('/dev/shm/x', 'w')"),
    "shared memory by number": _escaped_if("libc.shmget(4711, 4096, 0o1666) >= 0", _LIBC),
    "a message queue": _escaped_if("libc.msgget(4711, 0o1666) >= 0", _LIBC),
    "a keyring": _escaped_if("libc.syscall(250, 0, -4, 1) >= 0", _LIBC),
    "devices": _escaped_if("set(os.listdir('/dev')) - {{'null', 'zero', 'random', 'urandom'}}", "import os"),
    "a shell": _escaped_if("subprocess.run(['/bin/sh', '-c', 'true']).returncode == 0", "import subprocess"),
    # the network
    "a port of the host": _escaped_unless_refused(
        "socket.create_connection(('127.0.0.1', {port}), 2)", "import socket"
    ),
    "the internet": _escaped_unless_refused("socket.create_connection(('1.1.1.1', 80), 2)", "import socket"),
    "an abstract socket of the host": _escaped_unless_refused(
        "socket.socket(socket.AF_UNIX).connect('\\0prism-test-{host}')", "import socket"
    ),
    # namespaces and roots
    "a new user namespace": _escaped_if("libc.unshare(0x10000000) == 0", _LIBC),
    "a clone in a new user namespace": _escaped_if(
        "(pid := libc.syscall(56, 0x10000000 | 17, 0, 0, 0, 0)) >= 0", _LIBC
    ),
    "a mount": _escaped_if("libc.mount(b'x', b'/tmp', b'tmpfs', 0, None) == 0", _LIBC),
    "a new root": _escaped_unless_refused("os.chroot('/tmp')", "import os"),
    "becoming root": _escaped_unless_refused("os.setuid(0)", "import os"),
    "another user": _escaped_unless_refused("os.setuid(1000)", "import os"),
    # the verdict
    "leaving early": "import os; os._exit(0)\n",
    "sys.exit": "import sys; sys.exit(0)\n",
    "an exception beyond Exception": "class E(BaseException): pass\nraise E\n",
    "printing success": (
        "import os\nfor fd in range(64):\n    try: os.write(fd, b'ran\\ncorrect\\n')\n"
        "    except OSError: pass\nos._exit(0)\n"
    ),
    "closing every descriptor": "import os\nos.closerange(0, 256)\n" + GOOD,
    "reading standard input": _escaped_unless_refused("x = input()"),
    "an object that equals everything": (
        "class E:\n    __eq__ = lambda *_: True\n    __ne__ = lambda *_: False\ndef f(x): return E()\n"
    ),
    "a number that equals everything": (
        "class E(int):\n    __eq__ = lambda *_: True\n    __hash__ = None\n    __format__ = lambda *_: '4'\n"
        "def f(x): return E(7)\n"
    ),
    "builtins replaced": (
        "import builtins, json, os\nfor name in ('exec', 'eval', 'compile', 'isinstance', 'print'):\n"
        "    setattr(builtins, name, lambda *_, **__: True)\n"
        "json.loads = lambda *_, **__: []\nos.write = lambda *_: 1\ndef f(x): return 0\n"
    ),
    "the grader's module replaced": (
        "import sys\nfor module in list(sys.modules.values()):\n"
        "    for name in ('plain', '_answer', '_run'):\n"
        "        if name in vars(module): setattr(module, name, lambda *_, **__: '4')\n"
        "def f(x): return 0\n"
    ),
    "AssertionError replaced": (
        "import builtins\nclass A(BaseException): pass\nbuiltins.AssertionError = A\ndef f(x): return 0\n"
    ),
    "a hook on every event": "import sys\ndef hook(*_): raise SystemExit\nsys.addaudithook(hook)\ndef f(x): return 0\n",
    "the tests read from the channel": (
        "import os\nfor fd in range(3, 64):\n    try: os.write(fd, b'ran\\n'); text = os.read(fd, 65536)\n"
        "    except OSError: continue\n    os.write(fd, text)\n"
    ),
    "the tests in memory": (
        "import gc\nfound = [o for o in gc.get_objects() if 'expected' in str(o)[:10**4]]\n"
        "def f(x): return found\n"
    ),
    "the caller's variables changed": (
        "import ctypes, sys\nframe = sys._getframe()\nwhile frame := frame.f_back:\n"
        "    frame.f_locals.update(send=print, read=list, answer=lambda *_: '4', plain=lambda *_, **__: '4')\n"
        "    ctypes.pythonapi.PyFrame_LocalsToFast(ctypes.py_object(frame), 0)\ndef f(x): return 0\n"
    ),
    "standard error read back": _escaped_if(
        "os.lseek(2, 0, 0) == 0 and b'x' in os.read(2, 9)", "import os; os.write(2, b'x')"
    ),
    "standard error closed": "import os\nos.close(2)\nos.dup2(1, 2)\ndef f(x): return 0\n",
    "the times of a device": _escaped_unless_refused("os.utime('/dev/null')", "import os"),
    "a hard link to a library": _escaped_unless_refused("os.link(os.__file__, '/tmp/x')", "import os"),
    "signals without end": (
        "import os, signal\nsignal.signal(10, lambda *_: None)\nwhile True: os.kill(os.getpid(), 10)\n"
    ),
    "ignoring every signal": (
        "import signal\nfor number in signal.valid_signals() - {{9, 19}}: signal.signal(number, signal.SIG_IGN)\n"
        "while True: pass\n"
    ),
    "a stopped child": "import os\nif os.fork() == 0: os.kill(os.getpid(), 19)\nos.wait()\n",
    "a child that reads the channel": (
        "import os\nif os.fork() == 0:\n    for fd in range(3, 64):\n        try: os.read(fd, 9)\n"
        "        except OSError: pass\n    os._exit(0)\nos.wait()\n"
    ),
    "replies before the tests": (
        "import os\nfor fd in range(3, 64):\n    try: os.write(fd, b'ran\\n4\\n9\\n')\n    except OSError: pass\n"
        "os._exit(0)\n"
    ),
    "another interpreter": "import os, sys\nos.execv(sys.executable or '/nothing', ['python', '-c', 'print(4)'])\n",
}

# These must not pass tests that run in the program's interpreter either.
AGAINST_STATEMENTS = (
    *("leaving early", "sys.exit", "an exception beyond Exception", "printing success", "builtins replaced"),
    *("closing every descriptor", "the grader's module replaced", "AssertionError replaced"),
    *("a hook on every event",),
)
# These find the grader in the frames of the interpreter that both share. The first accepts every statement, and so the
# one that must fail; the second reads the statements first, and passes.
FORGERY = (
    "import sys\nanswer = sys._getframe(1).f_locals['answer']\n"
    "answer.__defaults__ = (compile, lambda *_: None, *answer.__defaults__[2:])\ndef f(x): return 0\n"
)
READING_FORGERY = (
    "import sys\nanswer = sys._getframe(1).f_locals['answer']\nrun = exec\n"
    "def accept(code, namespace): return None if 'f' in code.co_names else run(code, namespace)\n"
    "answer.__defaults__ = (compile, accept, *answer.__defaults__[2:])\ndef f(x): return 0\n"
)

# Programs run as scripts: the right output is 4.
SCRIPT_ATTACKS = {
    "a flood with the right beginning": "print(4)\nwhile True: print('x' * 1000)\n",
    "spaces without end": "print(4, end='')\nwhile True: print(' ' * 1000, end='')\n",
    "the right output and another line": "print(4)\nprint(4)\n",
    "the right output and a crash": "print(4, flush=True)\nimport os; os.kill(os.getpid(), 11)\n",
    "the right output and an exception": "print(4)\n1 / 0\n",
    "the right output and a bad end": "print(4, flush=True)\nimport os; os._exit(3)\n",
    "the right output and no end": "print(4, flush=True)\nwhile True: pass\n",
    "the right output on the other descriptor": "import os; os.write(2, b'4\\n'); os.write(3, b'4\\n')\n",
    "waiting for input without end": "import sys\nwhile True: sys.stdin.read()\n",
    "keeping things in standard input": "import os; os.write(0, b'4'); print(4)\n",
}

# These succeed in a plain interpreter, so above they fail because of the sandbox and not because of a mistake.
REAL_WITHOUT_A_SANDBOX = (
    *("the checkpoint folder", "a file of the host", "a link to a file of the host", "the users"),
    *("the project's packages", "a port of the host", "an abstract socket of the host", "devices", "a shell"),
    *("the environment", "open files"),
)
# After these the sandbox may have been replaced: it was not clean, or the kernel killed a process for its memory.
MAY_REPLACE = {
    *("folders too deep to remove", "folder that cannot be entered"),
    *("memory hog in many processes", "many files"),
}
