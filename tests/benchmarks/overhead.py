"""What a stage costs beyond its work: python tests/benchmarks/overhead.py [--seconds 60] [--repeats 3] [--cells empty]

Three notebooks: an `empty` cell, one that imports what an evaluation imports (`imports`), and a `busy` one that
computes for `--seconds` of CPU time. Each runs as a `stage` does, by smoltraces.running.execute: papermill, a kernel of
its own, log, record. `direct` is the same code in one process that has made the imports before, and `forkserver` the
same in processes of the standard library's fork server with these imports as its preload list: the most that kernels
kept warm could save. Printed are the medians of wall clock and CPU time a cell, and what each way adds to direct. CPU
time is that of all processes; on a machine that does other work at the time it says more than the wall clock.
Nothing is downloaded.

The targets: under 5 s a cell, and at most 1.10 times direct on the 60 s cell.
"""
import argparse
import multiprocessing
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

import nbformat

ROOT = Path(__file__).parent.parent.parent
CELLS = {"empty": "pass",
         "imports": "import pandas, scipy.stats, torch\nfrom transformers import AutoModelForCausalLM, AutoTokenizer",
         "busy": "import time\nstart, n = time.process_time(), 0\nwhile time.process_time() - start < seconds: n += 1"}
PRELOADS = ["ipykernel.kernelapp", "pandas", "pyarrow.parquet", "torch", "scipy.stats",
            "transformers.models.auto.modeling_auto", "transformers.models.auto.tokenization_auto"]
DIRECT = """
import sys, time
seconds, cell = float(sys.argv[1]), sys.argv[2]
if "import " in cell: exec(cell, {"seconds": 0})
for _ in range(int(sys.argv[3])):
    wall, cpu = time.monotonic(), time.process_time()
    exec(cell, {"seconds": seconds})
    print(time.monotonic() - wall, time.process_time() - cpu)
"""


def project(folder: Path):
    "Settings and the three notebooks, as a run finds them"
    shutil.copy(ROOT / "settings.ini", folder)
    (folder / "nbs" / "experiments").mkdir(parents=True)
    for name, cell in CELLS.items():
        sources = ["profile = seconds = n = output = None", cell, "open(output, 'w').close()"]
        nb = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(s) for s in sources])
        nb.cells[0].metadata["tags"], nb.metadata["language_info"] = ["parameters"], {"name": "python"}
        nbformat.write(nb, folder / "nbs" / "experiments" / f"{name}.ipynb")


def timed(do) -> tuple[float, float]:
    "Wall and CPU seconds of this process and of those that it waited for"
    wall, spent = time.monotonic(), sum(os.times()[:4])
    do()
    return time.monotonic() - wall, sum(os.times()[:4]) - spent


def stages(cfg, name: str, seconds: float, repeats: int) -> tuple[float, float]:
    "Wall and CPU seconds of one stage, the median"
    from smoltraces.running.execute import execute, origin
    from smoltraces.running.stages import Stage
    source, times = origin(cfg), []
    for n in range(repeats):
        output = f"{name}-{n}"
        stage = Stage(name, {}, (), (output,), {"n": n, "seconds": seconds, "output": str(cfg.path(output))})
        times.append(timed(lambda stage=stage: execute(cfg, stage, {}, source=source)))
    return tuple(map(median, zip(*times, strict=True)))


def direct(name: str, seconds: float, repeats: int) -> tuple[float, float]:
    command = [sys.executable, "-c", DIRECT, str(seconds), CELLS[name], str(repeats)]
    lines = subprocess.run(command, check=True, capture_output=True, text=True).stdout.split("\n")
    return tuple(median(float(line.split()[k]) for line in lines if line) for k in (0, 1))


def cell(name: str, seconds: float, queue):
    "In a process of the fork server: run a cell, and say what that took"
    queue.put(timed(lambda: exec(CELLS[name], {"seconds": seconds})))


def forked(name: str, seconds: float, repeats: int) -> tuple[float, float]:
    "The same in processes of a fork server whose imports are done; wall clock with the process's start"
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADS)
    queue, times = context.SimpleQueue(), []
    for _ in range(repeats + 1):  # the first waits for the server's own imports
        start, process = time.monotonic(), context.Process(target=cell, args=(name, seconds, queue))
        process.start()
        spent = queue.get()[1]
        process.join()
        times.append((time.monotonic() - start, spent))
    print(f"fork server, once: {times[0][0]:.1f} s")
    return tuple(map(median, zip(*times[1:], strict=True)))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--cells", default=",".join(CELLS))
    args = parser.parse_args()
    from smoltraces.settings import load_settings
    os.environ.setdefault("PYTHONHASHSEED", "0")
    with tempfile.TemporaryDirectory() as folder:
        project(Path(folder))
        cfg = load_settings("smoke", Path(folder))
        for name in args.cells.split(","):
            ways = {way: do(name, args.seconds, args.repeats) for way, do in {
                "direct": direct, "stage": lambda *a: stages(cfg, *a), "forkserver": forked}.items()}
            base = ways["direct"]
            print(f"{'cell':8} {'way':10} {'wall s':>7} {'CPU s':>7} {'adds, wall s':>13} {'CPU s':>7}")
            for way, (wall, spent) in ways.items():
                print(f"{name:8} {way:10} {wall:7.2f} {spent:7.2f} {wall - base[0]:13.2f} {spent - base[1]:7.2f}",
                      flush=True)


if __name__ == "__main__": main()
