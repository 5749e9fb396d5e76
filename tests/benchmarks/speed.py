"""Measure what the issues put a number on, each beside its limit: python tests/benchmarks/speed.py [setup] [import] …

setup    a fresh clone to a ready environment (`make .venv/ready`), and once more with nothing to do
import   `import smoltraces` as a ratio of an interpreter that imports nothing, in the same run
smoke    `reproduce --profile smoke`, then a rerun as a ratio of it
laptop   the same for the laptop profile
threads  generation by two processes of one thread as a ratio of one process of two threads
test     `make test`
"""
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

ROOT = Path(__file__).parents[2]
BIN = Path(sys.executable).parent


def seconds(*command, cwd: Path) -> float:
    start = time.perf_counter()
    subprocess.run([str(c) for c in command], cwd=cwd, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    return time.perf_counter() - start


def show(what: str, took: float, limit: float | None = None, ratio: tuple[float, str] | None = None):
    print(f"{what:<34}{took:9.2f} s" + (f"   limit {limit:g} s" if limit else "")
          + (f"   {ratio[0]:.3f} × {ratio[1]}" if ratio else ""), flush=True)


def clone(folder: Path) -> Path:
    subprocess.run(["git", "clone", "--quiet", ROOT, folder / "clone"], check=True)
    return folder / "clone"


def setup(folder: Path):
    here = clone(folder)
    first = seconds("make", ".venv/ready", cwd=here)
    show("set-up", first, 180)
    show("set-up, nothing changed", again := seconds("make", ".venv/ready", cwd=here), ratio=(again / first, "set-up"))


def import_(folder: Path):
    def each(code): return median(seconds(sys.executable, "-c", code, cwd=folder) for _ in range(9))
    empty, package = each("pass"), each("import smoltraces")
    show("import smoltraces", package - empty, 0.3, (package / empty, "an empty interpreter"))


def profile(name: str, limit: float, folder: Path):
    shutil.copytree(ROOT / "nbs" / "experiments", folder / "nbs" / "experiments")
    shutil.copy(ROOT / "settings.ini", folder)
    command = (BIN / "smoltraces", "reproduce", "--profile", name)
    first = seconds(*command, cwd=folder)
    show(name, first, limit)
    show(f"{name}, finished before", again := seconds(*command, cwd=folder), 10, (again / first, name))


def threads(folder: Path):
    from smoltraces.students.models import embedded_student
    student = embedded_student("embedded/smollm2-135m-instruct")
    code = (f"import sys, torch; torch.set_num_threads(int(sys.argv[1]))\n"
            f"from transformers import AutoModelForCausalLM as M; m = M.from_pretrained({str(student)!r})\n"
            f"for _ in range(int(sys.argv[2])): m.generate(torch.full((64, 60), 500), max_new_tokens=64, "
            f"min_new_tokens=64, do_sample=False)")
    one = seconds(sys.executable, "-c", code, 2, 4, cwd=folder)
    start = time.perf_counter()
    pair = [subprocess.Popen([sys.executable, "-c", code, "1", "2"], stderr=subprocess.DEVNULL) for _ in "ab"]
    for run in pair: run.wait()
    two = time.perf_counter() - start
    show("two stages of one thread", two, ratio=(two / one, "one stage of two threads, the same work"))


def test(folder: Path): show("make test", seconds("make", "test", cwd=ROOT), 900)


if __name__ == "__main__":
    measures = {"setup": setup, "import": import_, "smoke": lambda f: profile("smoke", 240, f),
                "laptop": lambda f: profile("laptop", 1800, f), "threads": threads, "test": test}
    for name in sys.argv[1:] or measures:
        if name not in measures: sys.exit(f"Unknown measure {name!r}: choose from {', '.join(measures)}.")
        with tempfile.TemporaryDirectory() as folder: measures[name](Path(folder))
