"""The smoke matrix through Ray against the built-in runner: python tests/benchmarks/engines.py [SEEDS] [ROUNDS]

Whole runs, each in a project of its own, all in one go; before them one that does not count fills the caches. Every
second round goes backwards, so that a machine that slows down or warms up favours none. Printed are medians, and
whether the results of the first round are the same."""
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

ROOT = Path(__file__).parent.parent.parent
COMMAND = [str(Path(sys.executable).parent / "smoltraces")]


def seconds(folder: Path, seeds: str, *more: str) -> float:
    "One whole run in a project of its own"
    shutil.copytree(ROOT / "nbs" / "experiments", folder / "nbs" / "experiments")
    shutil.copy(ROOT / "settings.ini", folder)
    start = time.perf_counter()
    subprocess.run([*COMMAND, "reproduce", "--profile", "smoke", "--seeds", seeds, *more], cwd=folder, check=True,
                   capture_output=True)
    return time.perf_counter() - start


def main(seeds: str = "0", rounds: str = "1"):
    with tempfile.TemporaryDirectory() as folder:
        ways = {"built in": (), "Ray": ("--engine", "ray")}
        taken = {name: [] for name in ways}
        seconds(Path(folder, "before"), "0")
        for k in range(int(rounds)):
            for name in list(ways)[::-1 if k % 2 else 1]:
                taken[name].append(seconds(Path(folder, f"{name}-{k}"), seeds, *ways[name]))
        base = median(taken["built in"])
        for name, each in taken.items():
            runs = ", ".join(f"{t:.0f}" for t in each)
            print(f"{name:24} {median(each):6.0f} s  {median(each) / base:5.2f} ×   ({runs})")
        for name in list(ways)[1:]:
            two = [f"{folder}/{n}-0/outputs/smoke" for n in ("built in", name)]
            done = subprocess.run([*COMMAND, "diff", *two], capture_output=True, text=True,
                                  env={**os.environ, "COLUMNS": "200"})
            print(done.stdout.splitlines()[2] if done.returncode == 0 else done.stdout)


if __name__ == "__main__": main(*sys.argv[1:])
