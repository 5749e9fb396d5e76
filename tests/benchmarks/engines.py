"""The smoke matrix through Ray against the built-in runner: python tests/benchmarks/engines.py [SEEDS] [cold]

Both in one go, with their results compared. With `cold` also the built-in runner without warm kernels."""
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

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


def main(seeds: str = "0", cold: str = ""):
    with tempfile.TemporaryDirectory() as folder:
        ways = {"built in": (), "Ray": ("--engine", "ray")}
        if cold: ways["built in, kernels cold"] = "-s", "warm=false"
        taken = {name: seconds(Path(folder, str(k)), seeds, *more) for k, (name, more) in enumerate(ways.items())}
        for name, t in taken.items(): print(f"{name:24} {t:6.0f} s  {t / taken['built in']:5.2f} ×")
        for k in range(1, len(ways)):
            done = subprocess.run([*COMMAND, "diff", f"{folder}/0/outputs/smoke", f"{folder}/{k}/outputs/smoke"],
                                  capture_output=True, text=True)
            print(done.stdout.splitlines()[2] if done.returncode == 0 else done.stdout)


if __name__ == "__main__": main(*sys.argv[1:])
