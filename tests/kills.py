"""Runs in the background that are watched, interrupted and killed; every wait is for an event, with a limit that only a
hanging process reaches."""
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from conftest import environment

LIMIT = 600  # seconds


def until(done: Callable, seconds: float = LIMIT):
    "Wait for something to become true"
    end = time.monotonic() + seconds
    while not (result := done()):
        assert time.monotonic() < end, "it took too long"
        time.sleep(0.05)
    return result


def children(pid: int) -> list[int]:
    "Processes below another, all the way down"
    below = []
    for each in Path("/proc").iterdir():
        if not each.name.isdigit(): continue
        try: parent = int((each / "stat").read_text().rpartition(")")[2].split()[1])
        except (OSError, IndexError): continue
        if parent == pid: below += [int(each.name), *children(int(each.name))]
    return below


def alive(pid: int) -> bool:
    try: return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError: return False


def command_of(pid: int) -> bytes:
    try: return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError: return b""


def kernels(pid: int) -> list[int]:
    "The kernels below a process"
    return [child for child in children(pid) if b"ipykernel" in command_of(child)]


class Background:
    "A run of the smoke profile in the background, whose output can be read while it runs"
    def __init__(self, folder: Path, *arguments: str, **extra: str):
        self.folder, self.scratch = folder, tempfile.TemporaryDirectory()
        command = [str(Path(sys.executable).parent / "smoltraces"), "reproduce", "--profile", "smoke", *arguments]
        with open(Path(self.scratch.name, "out"), "a") as out, open(Path(self.scratch.name, "err"), "a") as err:
            self.process = subprocess.Popen(  # a shell that starts the tests in the background has them ignore Ctrl-C
                command, cwd=folder, env=environment(**extra), stdout=out, stderr=err,
                preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL))
        self.pid = self.process.pid

    @property
    def out(self) -> str: return Path(self.scratch.name, "out").read_text()

    @property
    def err(self) -> str: return Path(self.scratch.name, "err").read_text()

    def ended(self) -> bool: return self.process.poll() is not None

    def until(self, done: Callable):
        "Wait for an event while it runs"
        until(lambda: done() or self.ended())
        assert done(), self.err

    def until_it_prints(self, text: str): self.until(lambda: text in self.err)

    def interrupt(self): self.process.send_signal(signal.SIGINT)

    def end(self) -> int:
        "Wait for its end: the exit code"
        return self.process.wait(LIMIT)

    def kill(self):
        "Kill it, and wait until its kernels have noticed"
        below = kernels(self.pid)
        self.process.kill()
        self.end()
        until(lambda: not any(map(alive, below)))


def runs(folder: Path) -> Path: return folder / "outputs" / "smoke" / "runs"


def records(folder: Path) -> dict[str, dict]:
    "What finished stages left"
    return {p.stem: json.loads(p.read_text()) for p in runs(folder).glob("*.json")
            if p.name[0] != "." and not p.name.endswith(".failed.json")}


def _steps(folder: Path) -> set[str]:
    "What a run leaves as it goes on: logs, growing notebooks, records, locks"
    places = runs(folder), runs(folder) / ".locks"
    return {path.name for place in places if place.is_dir() for path in place.iterdir()}


def _some_steps(run: Background, n: int):
    "Wait until a run is a few steps on, or has ended"
    for _ in range(n):
        before = _steps(run.folder)
        until(lambda before=before: run.ended() or _steps(run.folder) != before)


def survives(
    start: Callable[[], Background],
    kill: Callable[[Background, random.Random], bool],  # Whether there was something to kill
    again: Callable[[Path], None],  # Takes a project back to its beginning
    seed: str,
    kills: int = 10,
) -> Background:  # The run that ended, after so many kills
    "Start a run over and over and kill it a few steps on; a finished stage never runs again"
    numbers, killed, kept = random.Random(seed), 0, {}
    while True:
        run = start()
        while killed < kills and not run.ended():
            _some_steps(run, numbers.randint(1, 6))
            if not run.ended(): killed += kill(run, numbers)
        code, now = run.end(), records(run.folder)
        assert {name: now[name] for name in kept} == kept, "a finished stage ran again"
        kept = {name: record for name, record in now.items() if not name.startswith(("2_analyse_traces-s", "5"))}
        if code: continue
        if killed == kills: return run
        again(run.folder)  # it ended before all were killed: once more
        kept = {}


def kill_driver(run: Background, numbers: random.Random) -> bool:
    run.process.kill()
    return True


def kill_one(pids: list[int], numbers: random.Random) -> bool:
    "Kill one of these processes"
    if not pids: return False
    try: os.kill(numbers.choice(pids), 9)
    except ProcessLookupError: return False
    return True
