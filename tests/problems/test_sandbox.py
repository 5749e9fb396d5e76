"""Hostile programs: each is contained in every way of isolation that works here, and the run goes on."""
import json
import os
import shutil
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from conftest import ROOT

from smoltraces.problems import sandbox
from smoltraces.problems.sandbox import _command, _run_each, _task, isolation, passes, run, run_each
from smoltraces.settings import InputError


def works(how: str) -> bool:
    if how == "bubblewrap" and not shutil.which("bwrap"): return False
    return [r.stdout for r in _run_each(how, _task(sandbox._look), ["yes"])] == ["contained yes\n"]


WAYS = [how for how in ("bubblewrap", "namespaces") if sys.platform == "linux" and works(how)]
pytestmark = pytest.mark.skipif(not WAYS, reason="nothing here isolates programs")
every_way = pytest.mark.parametrize("how", WAYS)


def go(how: str, code: str, given: str = "", time_limit: float = 1, memory_mb: int = 256, **options):
    return next(_run_each(how, _task(code, time_limit=time_limit, memory_mb=memory_mb, **options), [given]))


@every_way
def test_a_harmless_program(how):
    result = go(how, "import sys; print(input()); print('e', file=sys.stderr); sys.exit(3)", "hello\n")
    assert (result.stdout, result.stderr, result.exit_code, result.reason) == ("hello\n", "e\n", 3, None)
    assert go(how, "print(open('a.txt').read())", files={"a.txt": "text"}).stdout == "text\n"
    for code in ("import math, re, collections, heapq, itertools, functools, random, decimal, fractions; print(7)",
                 "import threading\nt = threading.Thread(target=print, args=(7,)); t.start(); t.join()",
                 "print(7); exit()",
                 "import sys; sys.setrecursionlimit(10**6)\ndef f(n): return n and f(n - 1)\nf(10**5); print(7)",
                 "import tempfile\nwith tempfile.TemporaryFile() as f: f.write(b'x')\nprint(7)",
                 "if __name__ == '__main__': print(7)", "import atexit; atexit.register(print, 7)",
                 "import os; os.write(1, b'7\\n')", "print(*open(0).read().split())"):
        assert go(how, code, "7").stdout == "7\n", code


DEAF = """
import signal
for number in range(1, 30):
    try: signal.signal(number, lambda *a: 0)
    except OSError: pass
while True: pass
"""
CROWD = "import os\nfor _ in range(3): os.fork()\nx = bytearray(10**8)\nfor i in range(10**8): x[i] = 1"
BOMB = "import os\nwhile True:\n    try: os.fork()\n    except OSError: pass"
ENDED = { # what stops it; None where it fails by itself
    "while True: pass": "time", "import time; time.sleep(99)": "time", DEAF: "time", BOMB: "time", CROWD: "memory",
    "import os, time\nfor i in range(4): os.close(i)\ntime.sleep(99)": "time", "import os\nwhile True: os.fork()": None,
    "while True: print('x' * 9999)": "output", "import sys\nwhile True: sys.stderr.write('x' * 9999)": "output",
    "x = 'x' * 10**10": None, "x = []\nwhile True: x.append('x' * 10**7 + str(len(x)))": None,
    "with open('/tmp/big', 'wb') as f:\n    while True: f.write(bytes(1 << 20))": None,
    "for i in range(99): open(f'f{i}', 'wb').write(bytes(10 << 20))": None,
    "f = [open('/dev/null') for _ in range(1000)]": None, "import os; os.kill(os.getpid(), 11)": None,
    "import os; os.kill(os.getppid(), 9); os.kill(1, 19); os.kill(-1, 9)": None, "1 / 0": None, "def": None}


@every_way
def test_hostile_programs_are_stopped_and_the_next_one_runs(how):
    def check(code, reason):
        start = time.monotonic()
        result = go(how, code)
        took.append(time.monotonic() - start)
        if result.reason != reason or result.ok: wrong.append((code, result.exit_code, result.reason, result.seconds))
        if len(result.stdout) + len(result.stderr) > 9 << 20: wrong.append((code, "too much output"))

    wrong, took = [], []
    threads = [threading.Thread(target=check, args=case) for case in ENDED.items()]
    for i in range(0, len(threads), 4):
        for thread in threads[i:i + 4]: thread.start()
        for thread in threads[i:i + 4]: thread.join()
    assert wrong == [] and max(took) < 15
    assert go(how, "print(7)").stdout == "7\n"


@every_way
def test_no_network(how):
    seen = []
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(0.5)
        port = server.getsockname()[1]
        for kind in ("AF_INET", "AF_INET6", "AF_VSOCK", "AF_NETLINK", "AF_PACKET"):
            result = go(how, f"import socket; socket.socket(socket.{kind}); print('open')")
            assert result.stdout == "" and not result.ok, kind
        attempt = f"socket.create_connection(('127.0.0.1', {port}), 1).send(b'x'); print('sent')"
        for code in (f"import socket; {attempt}", f"import urllib.request as u; u.urlopen('http://127.0.0.1:{port}')",
                     "import ctypes; s = ctypes.CDLL(None).socket(2, 1, 0); print(s); raise SystemExit(s < 0)"):
            assert not go(how, code).ok
        try: seen.append(server.accept())
        except TimeoutError: pass
    assert seen == []


@every_way
def test_nothing_of_the_machine_is_seen(how, tmp_path, monkeypatch):
    secret = tmp_path / "secret.txt"
    secret.write_text("sk-secret")
    places = [str(p) for p in (Path.home(), ROOT, ROOT.parent, tmp_path, secret, "/etc/passwd", "/etc/shadow", "/root",
                               "/home", "/var", "/sys", "/work", "/old", "/tmp/old", "/usr/bin", "/bin")]
    look = ("import os, sys\nfor p in sys.stdin.read().split('\\n'):\n"
            "    try: found = os.listdir(p) if os.path.isdir(p) else open(p).read(9)\n"
            "    except OSError: continue\n    print(p)")
    assert go(how, look, "\n".join({*places} - {"/tmp"})).stdout == ""  # the clone may lie in /tmp, where
    assert json.loads(go(how, "import json, os; print(json.dumps(os.listdir('/tmp')))").stdout) == ["0"]
    monkeypatch.setenv("PLANTED", "sk-planted")
    code = "import json, os; print(json.dumps([dict(os.environ), os.listdir('/proc'), os.getuid(), os.listdir('.')]))"
    environment, processes, uid, here = json.loads(go(how, code).stdout)
    assert not any("PLANTED" in name or str(Path.home()) in value for name, value in environment.items())
    assert len([p for p in processes if p.isdigit()]) <= 2 and uid != 0 and here == ["program.py"]
    assert go(how, "import os; print(open('/proc/1/environ').read(), os.listdir('/proc/1/fd'))").stdout == ""


@every_way
def test_nothing_is_written_outside(how, tmp_path):
    target = tmp_path / "made.txt"
    for path in (target, "/usr/lib/made", "/python/lib/made", "/made", "/etc/made", "/dev/made", "/inside.py",
                 "/proc/1/mem", f"/proc/self/root{target}", f"/proc/1/root{target}", "/proc/sys/kernel/core_pattern"):
        assert not go(how, f"open({str(path)!r}, 'a').write('x')").ok, path
    link = f"import os; os.symlink({str(tmp_path)!r}, 'link'); open('link/made.txt', 'w')"
    assert not go(how, link).ok and not target.exists()
    for call in ("os.setuid(0)", "os.mount", "os.chroot('/')", "os.write(os.open('/proc/self/uid_map', 1), b'0 0 1')",
                 "ctypes.CDLL(None).unshare(0x10000000) == 0 or 1 / 0",
                 "ctypes.CDLL(None).ptrace(16, 1, 0, 0) == 0 or 1 / 0",
                 "ctypes.CDLL(None).memfd_create(b'x', 0) >= 0 or 1 / 0"):
        assert not go(how, f"import ctypes, os; {call}").ok, call


def running(word: str) -> list[str]:
    commands = []
    for entry in Path("/proc").iterdir():
        try: command = (entry / "cmdline").read_bytes().decode(errors="replace") if entry.name.isdigit() else ""
        except OSError: continue
        if word in command: commands.append(command)
    return commands


DAEMON = """
import os, sys, time
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        for fd in range({closed}): os.close(fd)
        os.execv(sys.executable, [sys.executable, "-c", "'{word}'; open('alive', 'w'); import time; time.sleep(60)"])
    os._exit(0)
while not os.path.exists("alive"): time.sleep(0.01)
print("started")
"""


@pytest.mark.parametrize("how", [*WAYS, None])
def test_daemons_die_with_the_program(how):
    word = f"daemon-{os.getpid()}-{how}"
    for closed in (0, 4):
        assert go(how, DAEMON.format(closed=closed, word=word)).stdout == "started\n"
        assert running(word) == []


@every_way
def test_a_killed_caller_leaves_nothing(how, tmp_path):
    word = f"orphan-{os.getpid()}-{how}"
    sleep = "import time; time.sleep(60)"
    program = f"import os, sys\nos.execv(sys.executable, [sys.executable, '-c', {sleep!r}, {word!r}])"
    script = tmp_path / "caller.py"
    script.write_text("from smoltraces.problems.sandbox import _run_each, _task\n"
                      f"next(_run_each({how!r}, _task({program!r}, time_limit=30), ['']))")
    caller, until = subprocess.Popen([sys.executable, script]), time.monotonic() + 20
    while not running(word) and time.monotonic() < until: time.sleep(0.05)
    assert running(word)
    caller.kill()
    caller.wait()
    while running(word) and time.monotonic() < until: time.sleep(0.05)
    assert running(word) == []


# --- judging

SUMS = [{"kind": "stdin", "input": f"{n}\n", "output": f"{n * n}\n"} for n in range(5, 9)]
SQUARE = [{"kind": "functional", "input": str(n), "output": str(n * n)} for n in range(5, 9)]
SPY = """
import gc, glob, os, sys
text = [sys.stdin.read(), *sys.argv, str(dict(os.environ))]
for path in [*glob.glob("/box/**", recursive=True), *glob.glob("/proc/*/*"), "/inside.py"]:
    try: text.append(open(path, errors="replace").read())
    except OSError: pass
text.append(str([o for o in gc.get_objects() if isinstance(o, (str, bytes, dict))]))
print("25" if "2" + "5" in "".join(text).replace("range(2" + "5", "") else "not seen")
"""


@every_way
def test_expected_outputs_are_not_inside(how):
    secret = "8273645"
    tests = [{"kind": "stdin", "input": "5", "output": secret}]
    spy = SPY.replace('"2" + "5"', '"827" + "3645"').replace('print("25"', f'print("{secret[:3]}" + "{secret[3:]}"')
    assert not passes(spy, tests)
    assert go(how, spy, "5").stdout == "not seen\n"
    assert go(how, spy, "5 827" + "3645").stdout == f"{secret}\n" # it would find it


def test_right_programs_pass_and_others_do_not():
    assert passes("print(int(input()) ** 2)", SUMS)
    assert passes("def square(n): return n * n", SQUARE, "square")
    assert passes("class Solution:\n    def square(self, n: int) -> Optional[int]: return pow(n, 2)", SQUARE, "square")
    for code in ("print(25)", "import os; os._exit(0)", "print(int(input()) ** 2); 1 / 0",
                 "print(int(input()) ** 2, 1)", "", "while True: pass",
                 "import builtins; builtins.print = lambda *a: None; print(25)"):
        assert not passes(code, SUMS, time_limit=1), code
    for code in ("import os; os._exit(0)", "def square(n): return 25", "def other(n): return n * n", "square = 25",
                 "def square(n): return {n}", "def square(n): return str(n * n)", "print(25)",
                 "import json\nclass Any(int):\n    __eq__ = lambda *a: True\n"
                 "json.loads = json.dumps = lambda *a: '25'\ndef square(n): return Any(0)",
                 "import os\nos.write(3, b'25')\nos._exit(0)",
                 "import builtins\nbuiltins.len = builtins.open = builtins.isinstance = None\ndef square(n): return 0"):
        assert not passes(code, SQUARE, "square", time_limit=1), code
    assert not passes("print(1)", []) and not passes("def square(n): return n * n", SQUARE)
    test = {"kind": "functional", "input": '"x"\n[1.0]', "output": '["x", [1]]'}
    assert passes("def f(a, b): print('noise'); return (a, b)", [test], "f")


def test_one_sandbox_runs_them_apart():
    code = "import os; print(sorted(os.listdir('.')), os.path.exists('/box/0/x')); open('x', 'w')"
    first, second = run_each(code, ["", ""])
    assert first.stdout == "['program.py'] False\n" and second.stdout.startswith("['program.py']")
    results = list(run_each("n = int(input())\nwhile n == 1: pass\nprint(n)", "0 1 2".split(), time_limit=1))
    assert [r.stdout for r in results] == ["0\n", "", "2\n"] and [r.timed_out for r in results] == [False, True, False]


def test_large_input_and_output():
    numbers = " ".join(str(n) for n in range(500_000))
    assert run("print(sum(map(int, input().split())))", numbers).stdout == "124999750000\n"
    assert len(run("print('x' * (7 << 20))").stdout) == (7 << 20) + 1
    assert run("import sys; print(len(sys.stdin.buffer.read()))", "é\ud800").ok


def test_where_nothing_isolates_it_is_refused(monkeypatch):
    monkeypatch.setattr(sandbox, "isolation", lambda: None)
    with pytest.raises(InputError, match="install bubblewrap.*unsafe_code = true"): run("print(1)")
    assert run("print(7)", unsafe=True).stdout == "7\n"
    ends = {"while True: pass": "time", "x = 'x' * 10**10": None, "while True: print('x' * 9999)": "output"}
    for code, reason in ends.items():
        result = run(code, unsafe=True, time_limit=1, memory_mb=256)
        assert not result.ok and result.reason == reason, (code, result)
    assert run(BOMB, unsafe=True, time_limit=1).reason in ("processes", "time")
    assert "PLANTED" not in run("import os; print(os.environ)", unsafe=True).stdout


def test_the_probe_says_what_works(monkeypatch, tmp_path):
    assert isolation() in WAYS
    isolation.cache_clear()
    monkeypatch.setattr(sandbox, "_command", lambda *a: [sys.executable, "-c", "pass"]) # a sandbox that does not start
    assert isolation() is None
    isolation.cache_clear()
    monkeypatch.setattr(sandbox, "_command", lambda *a: _command(None, 64, str(tmp_path))) # … that does not isolate
    assert isolation() is None
    isolation.cache_clear()


def test_a_broken_sandbox_is_wrong_not_an_error(monkeypatch):
    monkeypatch.setattr(sandbox, "_command", lambda *a: [sys.executable, "-c", "pass"])
    assert next(_run_each(WAYS[0], _task("print(1)"), [""])).reason == "lost"
