"""Measure estimates as a ratio of reading what they stand on: python tests/benchmarks/estimates.py [stages]

estimates  of that many stages (10,000), four fifths of which have a record, as a ratio of json-loading these records
           (limit 0.5 s, asked for by the lead of the plan: planning 10,000 cells in under 2 s), and without any record
about      the line at the top of a notebook, in a folder that holds that many records
"""
import json
import shutil
import sys
import tempfile
import time
from pathlib import Path

from smoltraces.running.estimate import about, estimates
from smoltraces.running.stages import plan
from smoltraces.settings import load_settings


def seconds(work, times: int = 3) -> float:
    durations = []
    for _ in range(times):
        start = time.perf_counter()
        work()
        durations.append(time.perf_counter() - start)
    return min(durations)


def main(n: int = 10_000):
    with tempfile.TemporaryDirectory() as folder:
        shutil.copy(Path(__file__).parents[2] / "settings.ini", folder)
        cfg = load_settings("laptop", folder, seeds=f"0:{n // 10}")
        stages = plan(cfg)
        cfg.path("runs").mkdir(parents=True)
        for i, s in enumerate(stages):
            if i % 5 == 0: continue
            record = {"stage": s.name, "code": "0" * 64, "parameters": s.parameters, "settings": s.settings,
                      "inputs": dict.fromkeys(s.inputs[:3], "0" * 64), "seconds": 100.0 + i % 7, "cost_usd": 0.0,
                      "outputs": dict.fromkeys(s.outputs[:3], "0" * 64), "began": "2026-01-01T00:00:00Z"}
            cfg.path("runs", f"{s.name}.json").write_text(json.dumps(record, indent=1))
        files = list(cfg.path("runs").iterdir())
        texts = [file.read_bytes() for file in files]
        known = {file.stem: json.loads(text) for file, text in zip(files, texts, strict=True)}
        loading, took = seconds(lambda: list(map(json.loads, texts))), seconds(lambda: estimates(cfg, stages, known))
        print(f"estimates of {len(stages):,} stages  {took:.3f} s   limit 0.5 s   {took / loading:.2f} × json-loading "
              f"their {len(files):,} records ({loading:.3f} s)")
        took = seconds(lambda: estimates(cfg, stages, {}))
        print(f"without a record            {took:.3f} s   limit 0.5 s   {took / loading:.2f} × the same")
        took = seconds(lambda: about(cfg, "3_finetune", student=cfg.students[0], variant="ST", seed=1))
        print(f"about, among as many        {took:.3f} s   {took / loading:.2f} × the same")


if __name__ == "__main__": main(*map(int, sys.argv[1:]))
