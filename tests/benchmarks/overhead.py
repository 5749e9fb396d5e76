"""What a stage costs beyond its work: python tests/benchmarks/overhead.py [--seconds 60] [--repeats 3] [--cells empty]

Three notebooks: an `empty` cell, one that imports what an evaluation imports (`imports`), and a `busy` one that
computes for `--seconds` of CPU time. Each runs as a stage does, by smoltraces.running.execute: papermill, log, record;
once with a `fresh` kernel each time and once `warm`, forked from a server that has imported the same. The baseline is
`direct`: the same code called in one process that has made the imports before. Printed are the medians of wall clock
and CPU time a cell, CPU time as a ratio of direct, and what each way adds. CPU time is that of the driver and its
kernels; on a machine that does other work at the time it says more than the wall clock. What the server itself takes,
once a run, is printed first. Nothing is downloaded.

The targets: under 5 s a cell, and at most 1.10 times direct on the 60 s cell.
"""
import argparse
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
MODULES = ("ipykernel.kernelapp", "pandas", "pyarrow.parquet", "torch", "scipy.stats",
           "transformers:AutoModelForCausalLM:AutoTokenizer")
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


def cpu(server) -> float:
    "Seconds of this process, of the server and of all kernels that have ended"
    taken = sum(os.times()[:4])
    if server is None: return taken
    fields = Path(f"/proc/{server.process.pid}/stat").read_text().rpartition(")")[2].split()
    return taken + sum(map(int, fields[11:15])) / os.sysconf("SC_CLK_TCK")


def stages(cfg, name: str, seconds: float, repeats: int, server=None) -> tuple[float, float]:
    "Wall and CPU seconds of one stage, the median"
    from smoltraces.running.execute import execute, origin
    from smoltraces.running.stages import Stage
    from smoltraces.running.warm import manager_class
    base, source, taken = server and manager_class(server), origin(cfg), []
    for n in range(repeats):
        output = f"{name}-{n}-{bool(server)}"
        stage = Stage(name, {}, (), (output,), {"n": n, "seconds": seconds, "output": str(cfg.path(output))})
        wall, spent = time.monotonic(), cpu(server)
        execute(cfg, stage, {}, base=base, source=source)
        taken.append((time.monotonic() - wall, cpu(server) - spent))
    if server and probe(server, cfg) is None: sys.exit("the server had failed")
    return tuple(map(median, zip(*taken, strict=True)))


def direct(name: str, seconds: float, repeats: int) -> tuple[float, float]:
    command = [sys.executable, "-c", DIRECT, str(seconds), CELLS[name], str(repeats)]
    lines = subprocess.run(command, check=True, capture_output=True, text=True).stdout.split("\n")
    return tuple(median(float(line.split()[k]) for line in lines if line) for k in (0, 1))


def probe(server, cfg):
    "A kernel that ends at once, or None"
    with open(os.devnull, "w") as nowhere:
        return server.fork(["--version"], str(cfg._root), dict(os.environ), (nowhere.fileno(), nowhere.fileno()))


def opened(cfg):
    "A server that is ready, and what that took"
    from smoltraces.running.warm import Server
    server, start = Server(MODULES, {}), time.monotonic()
    probe(server, cfg).wait()
    print(f"server, once: {time.monotonic() - start:.1f} s, of it {cpu(server) - cpu(None):.1f} s of CPU\n")
    return server


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--cells", default=",".join(CELLS))
    args = parser.parse_args()
    from smoltraces.running.warm import cold
    from smoltraces.settings import load_settings
    os.environ.setdefault("PYTHONHASHSEED", "0")
    with tempfile.TemporaryDirectory() as folder:
        project(Path(folder))
        cfg = load_settings("smoke", Path(folder))
        if why := cold(): print(f"no server here: {why}")
        server = None if why else opened(cfg)
        print(f"{'cell':8} {'way':7} {'wall s':>7} {'CPU s':>7} {'of direct':>9} {'adds, wall s':>13} {'CPU s':>7}")
        for name in args.cells.split(","):
            base = direct(name, args.seconds, args.repeats)
            ways = {"direct": base, "fresh": stages(cfg, name, args.seconds, args.repeats)}
            if server: ways["warm"] = stages(cfg, name, args.seconds, args.repeats, server)
            for way, (wall, spent) in ways.items():
                ratio = f"{spent / base[1]:.2f}" if base[1] > 0.1 else "–"
                print(f"{name:8} {way:7} {wall:7.2f} {spent:7.2f} {ratio:>9} {wall - base[0]:13.2f} "
                      f"{spent - base[1]:7.2f}", flush=True)
        if server: server.close()


if __name__ == "__main__": main()
