"""Hostile programs: each is contained, and the run goes on."""
import json
import os
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from conftest import ROOT

from smoltraces.problems import sandbox
from smoltraces.problems.sandbox import isolation, passes, run
from smoltraces.settings import InputError

pytestmark = pytest.mark.skipif(isolation() is None, reason="no bubblewrap, or no user namespaces, on this machine")


def go(code: str, stdin: str = "", time_limit: float = 1, memory_mb: int = 256, **options):
    return run(code, stdin, time_limit=time_limit, memory_mb=memory_mb, **options)


def test_a_harmless_program():
    result = go("import sys; print(input()); print('e', file=sys.stderr); sys.exit(3)", "hello\n")
    assert (result.stdout, result.stderr, result.exit_code, result.reason) == ("hello\n", "e\n", 3, None)
    for code in ("import math, re, collections, heapq, itertools, functools, random, decimal, fractions; print(7)",
                 "import threading\nt = threading.Thread(target=print, args=(7,)); t.start(); t.join()",
                 "print(7); exit()",
                 "import sys; sys.setrecursionlimit(10**6)\ndef f(n): return n and f(n - 1)\nf(10**5); print(7)",
                 "import tempfile\nwith tempfile.TemporaryFile() as f: f.write(b'x')\nprint(7)",
                 "if __name__ == '__main__': print(7)", "import atexit; atexit.register(print, 7)",
                 "import os; os.write(1, b'7\\n')", "print(*open(0).read().split())",
                 "print(*open('/dev/stdin').read().split(), file=open('/dev/stdout', 'w'))",
                 "import pickle\nclass C: pass\nprint(7 if type(pickle.loads(pickle.dumps(C()))) is C else 0)",
                 "import json\nif 'resource' not in globals(): print(7)"):
        assert go(code, "7").stdout == "7\n", code


DEAF = """
import signal
for number in range(1, 30):
    try: signal.signal(number, lambda *a: 0)
    except OSError: pass
while True: pass
"""
CROWD = "import os, time\nfor _ in range(3): os.fork()\nx = b'x' * (2 * 10**8)\ntime.sleep(99)"
BOMB = "import os\nwhile True:\n    try: os.fork()\n    except OSError: pass"
ENDED = { # what stops it; None where it fails by itself
    "while True: pass": "time", "import time; time.sleep(99)": "time", DEAF: "time", BOMB: "time", CROWD: "memory",
    "import os, time\nos.closerange(0, 64)\ntime.sleep(99)": "time", "import os\nwhile True: os.fork()": None,
    "while True: print('x' * 9999)": "output", "import sys\nwhile True: sys.stderr.write('x' * 9999)": "output",
    "x = 'x' * 10**10": None, "x = []\nwhile True: x.append('x' * 10**7 + str(len(x)))": None,
    "with open('/tmp/big', 'wb') as f:\n    while True: f.write(bytes(1 << 20))": None,
    "for i in range(99): open(f'f{i}', 'wb').write(bytes(10 << 20))": None,
    "f = [open('/dev/null') for _ in range(1000)]": None, "import os; os.kill(os.getpid(), 11)": None,
    "import os; os.kill(os.getppid(), 9); os.kill(1, 19); os.kill(-1, 9)": None, "1 / 0": None, "def": None}


def test_hostile_programs_are_stopped_and_the_next_one_runs():
    def check(code, reason):
        result = go(code, memory_mb=512, time_limit=1 if reason == "time" else 30)
        if result.reason != reason or result.ok: wrong.append((code, result.exit_code, result.reason, result.seconds))
        if len(result.stdout) + len(result.stderr) > 9 << 20: wrong.append((code, "too much output"))

    wrong = []
    threads = [threading.Thread(target=check, args=case) for case in ENDED.items()]
    for i in range(0, len(threads), 4):
        for thread in threads[i:i + 4]: thread.start()
        for thread in threads[i:i + 4]: thread.join()
    assert wrong == []
    assert go("print(7)").stdout == "7\n"


def test_no_network():
    seen = []
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(0.5)
        port = server.getsockname()[1]
        for kind in ("AF_INET", "AF_INET6", "AF_VSOCK", "AF_NETLINK", "AF_PACKET"):
            result = go(f"import socket; socket.socket(socket.{kind}); print('open')")
            assert result.stdout == "" and not result.ok, kind
        attempt = f"socket.create_connection(('127.0.0.1', {port}), 1).send(b'x'); print('sent')"
        for code in (f"import socket; {attempt}", f"import urllib.request as u; u.urlopen('http://127.0.0.1:{port}')",
                     "import ctypes; s = ctypes.CDLL(None).socket(2, 1, 0); print(s); raise SystemExit(s < 0)"):
            assert not go(code).ok
        try: seen.append(server.accept())
        except TimeoutError: pass
    assert seen == []


def test_nothing_of_the_machine_is_seen(tmp_path, monkeypatch):
    secret = tmp_path / "secret.txt"
    secret.write_text("sk-secret")
    places = [str(p) for p in (Path.home(), ROOT, ROOT.parent, tmp_path, secret, "/etc/passwd", "/etc/shadow", "/root",
                               "/home", "/var", "/sys", "/work", "/old", "/tmp/old", "/usr/bin", "/bin")]
    look = ("import os, sys\nfor p in sys.stdin.read().split('\\n'):\n"
            "    try: found = os.listdir(p) if os.path.isdir(p) else open(p).read(9)\n"
            "    except OSError: continue\n    print(p)")
    assert go(look, "\n".join({*places} - {"/tmp"})).stdout == ""  # the clone may lie in /tmp, where
    assert json.loads(go("import json, os; print(json.dumps(os.listdir('/tmp')))").stdout) == ["program.py"]
    monkeypatch.setenv("PLANTED", "sk-planted")
    code = "import json, os; print(json.dumps([dict(os.environ), os.listdir('/proc'), os.getuid(), os.listdir('.')]))"
    environment, processes, uid, here = json.loads(go(code).stdout)
    assert not any("PLANTED" in name or str(Path.home()) in value for name, value in environment.items())
    assert len([p for p in processes if p.isdigit()]) <= 2 and uid != 0 and here == ["program.py"]
    for name in ("environ", "cmdline", "mountinfo"): # its sources of what is shown are no secret
        text = go(f"print(open('/proc/1/{name}').read())").stdout
        assert "PLANTED" not in text and str(tmp_path) not in text, name


def test_nothing_is_written_outside(tmp_path):
    target = tmp_path / "made.txt"
    for path in (target, "/usr/lib/made", "/python/lib/made", "/made", "/etc/made", "/dev/made",
                 "/proc/1/mem", f"/proc/self/root{target}", f"/proc/1/root{target}", "/proc/sys/kernel/core_pattern"):
        assert not go(f"open({str(path)!r}, 'a').write('x')").ok, path
    link = f"import os; os.symlink({str(tmp_path)!r}, 'link'); open('link/made.txt', 'w')"
    assert not go(link).ok and not target.exists()
    for call in ("os.setuid(0)", "os.mount", "os.chroot('/')", "os.write(os.open('/proc/self/uid_map', 1), b'0 0 1')",
                 "ctypes.CDLL(None).unshare(0x10000000) == 0 or 1 / 0",
                 "ctypes.CDLL(None).ptrace(16, 1, 0, 0) == 0 or 1 / 0",
                 "ctypes.CDLL(None).memfd_create(b'x', 0) >= 0 or 1 / 0"):
        assert not go(f"import ctypes, os; {call}").ok, call


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
        os.closerange(0, {closed})
        os.execv(sys.executable, [sys.executable, "-c", "'{word}'; open('alive', 'w'); import time; time.sleep(60)"])
    os._exit(0)
while not os.path.exists("alive"): time.sleep(0.01)
print("started")
"""


def test_daemons_die_with_the_program():
    word = f"daemon-{os.getpid()}"
    for closed in (0, 64):
        assert go(DAEMON.format(closed=closed, word=word)).stdout == "started\n"
        assert running(word) == []


@pytest.mark.slow
def test_a_killed_caller_leaves_nothing(tmp_path):
    word = f"orphan-{os.getpid()}"
    sleep = "import time; time.sleep(600)"
    program = f"import os, sys\nos.execv(sys.executable, [sys.executable, '-c', {sleep!r}, {word!r}])"
    script = tmp_path / "caller.py"
    script.write_text(f"from smoltraces.problems.sandbox import run\nrun({program!r}, time_limit=300)")
    caller = subprocess.Popen([sys.executable, script])
    while not running(word): time.sleep(0.05)
    caller.kill()
    caller.wait()
    while running(word): time.sleep(0.05)


# --- judging

SUMS = [{"kind": "stdin", "input": f"{n}\n", "output": f"{n * n}\n"} for n in range(5, 9)]
SQUARE = [{"kind": "functional", "input": str(n), "output": str(n * n)} for n in range(5, 9)]
SPY = """
import gc, glob, os, sys
text = [sys.stdin.read(), *sys.argv, str(dict(os.environ))]
for path in [*glob.glob("/box/**", recursive=True), *glob.glob("/proc/*/*")]:
    try: text.append(open(path, errors="replace").read())
    except OSError: pass
text.append(str([o for o in gc.get_objects() if isinstance(o, (str, bytes, dict))]))
print("25" if "2" + "5" in "".join(text).replace("range(2" + "5", "") else "not seen")
"""


def test_expected_outputs_are_not_inside():
    secret = "8273645"
    tests = [{"kind": "stdin", "input": "5", "output": secret}]
    spy = SPY.replace('"2" + "5"', '"827" + "3645"').replace('print("25"', f'print("{secret[:3]}" + "{secret[3:]}"')
    assert not passes(spy, tests)
    assert go(spy, "5").stdout == "not seen\n"
    assert go(spy, "5 827" + "3645").stdout == f"{secret}\n" # it would find it


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


def test_every_run_has_a_folder_of_its_own():
    code = "import os; print(os.listdir('.')); open('x', 'w')"
    assert [run(code).stdout for _ in range(2)] == ["['program.py']\n"] * 2
    results = [run("n = int(input())\nwhile n == 1: pass\nprint(n)", n, time_limit=1) for n in "012"]
    assert [(r.stdout, r.reason) for r in results] == [("0\n", None), ("", "time"), ("2\n", None)]


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


@pytest.mark.parametrize("command", [[sys.executable, "-c", "pass"], [sys.executable]])
def test_a_sandbox_that_does_not_work_is_not_used(monkeypatch, command):
    monkeypatch.setattr(sandbox, "_bubblewrap", lambda *a: command) # it starts nothing, or isolates nothing
    isolation.cache_clear()
    try: assert isolation() is None
    finally: isolation.cache_clear()


def test_a_broken_sandbox_is_wrong_not_an_error(monkeypatch):
    assert isolation()
    broken = [sys.executable, "-c", "import sys; sys.exit('bwrap: no namespaces')"]
    monkeypatch.setattr(sandbox, "_bubblewrap", lambda *a: broken)
    assert run("print(1)").reason == "lost"
