"""Measure `verify` and `diff`, each beside a baseline: python tests/benchmarks/verifying.py [weights] [cells] [moved]

weights   2 GB of weights in four students, as a ratio of `sha256sum` over the same files, one after another
cells     a run of 10,000 cells with a file of answers each, as a ratio of reading every file and record once
moved     54 accuracies of two runs over 500 problems, as a ratio of `statistics.comparisons` over as many pairs
"""
import hashlib
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pandas as pd

sys.path[:0] = [str(Path(__file__).parents[1] / folder) for folder in ("", "running")]
from test_differences import table  # noqa: E402

from smoltraces.evidence.statistics import comparisons  # noqa: E402
from smoltraces.running.diff import compare_answers  # noqa: E402
from smoltraces.running.verify import verify  # noqa: E402


def seconds(work) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def show(what: str, took: float, base: float, baseline: str):
    print(f"{what:<46}{took:8.2f} s   {took / base:6.2f} × {baseline} ({base:.2f} s)", flush=True)


def record(run: Path, stage: str, inputs: dict, outputs: dict):
    (run / "runs").mkdir(exist_ok=True)
    (run / "runs" / f"{stage}.json").write_text(json.dumps({
        "stage": stage, "code": "c0de" * 16, "parameters": {}, "settings": {"epochs": 1.0}, "inputs": inputs,
        "outputs": outputs, "seconds": 1.0, "versions": {"torch": "2.13.0"}, "machine": {"cores": 2}}))


def digest(data: bytes) -> str: return hashlib.sha256(data).hexdigest()


def weights():
    with tempfile.TemporaryDirectory() as folder:
        run, files = Path(folder), []
        for i in range(4):
            files.append(run / "students" / str(i) / "model.safetensors")
            files[-1].parent.mkdir(parents=True)
            with open(files[-1], "wb") as f:
                for _ in range(500): f.write(os.urandom(1_000_000))
            record(run, f"3_finetune-{i}", {}, {f"students/{i}": "0" * 64})
        for file in files: file.read_bytes() # all are in the page cache, for both
        base = seconds(lambda: subprocess.run(["sha256sum", *files], check=True, stdout=subprocess.DEVNULL))
        show("2 GB of weights", seconds(lambda: verify(run)), base, "sha256sum")


def cells(n: int = 10_000):
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder)
        (run / "problems.parquet").write_bytes(b"problems")
        record(run, "1_build_data", {}, {"problems.parquet": digest(b"problems")})
        files = {}
        for i in range(n):
            name, data = f"predictions/s{i % 100}/ST/seed-{i // 100}/embedded.parquet", f"answers {i}".encode()
            (run / name).parent.mkdir(parents=True, exist_ok=True)
            (run / name).write_bytes(data)
            files[name] = digest(data)
            record(run, f"4_evaluate-{i}", {"problems.parquet": digest(b"problems")}, {name: files[name]})
        (run / "results.parquet").write_bytes(b"results")
        record(run, "5_figures", files, {"results.parquet": digest(b"results")})

        def read():
            for name in files: digest((run / name).read_bytes())
            for file in (run / "runs").iterdir(): json.loads(file.read_text())

        base = seconds(read)
        runs = []
        show("10,000 cells", seconds(lambda: runs.append(verify(run))), base, "reading all")
        assert runs[0].trusted
        (run / "problems.parquet").write_bytes(b"other")
        show("10,000 cells, none to be trusted", seconds(lambda: runs.append(verify(run))), base, "reading all")
        assert len(runs[1].untrusted) == n + 2


def moved():
    rng = np.random.default_rng(0)
    sides = [pd.concat([table(rng.random(500) < 0.5, variant, student=f"s{i}") for i in range(9)
                        for variant in ("Base", "ST-NT", "SBS", "ST-HC-W", "ST-HC", "ST")]) for _ in "ab"]
    pairs = [(v, "Base") for v in ("ST-NT", "SBS", "ST-HC-W", "ST-HC", "ST")] + [("ST", "ST-HC")]
    base = seconds(lambda: comparisons(sides[0], pairs=pairs))
    show("54 accuracies that moved", seconds(lambda: compare_answers(tuple(sides))), base, "54 comparisons in one run")


if __name__ == "__main__":
    for name in sys.argv[1:] or ("weights", "cells", "moved"): globals()[name]()
