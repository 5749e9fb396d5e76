"""Planning and watching a matrix of 10,000 cells, against reading its records: tests/benchmarks/planning.py [N]"""
import json
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))
from light import light  # noqa: E402

from smoltraces import files  # noqa: E402
from smoltraces.files import sha256  # noqa: E402
from smoltraces.running.stages import basis, plan, records  # noqa: E402
from smoltraces.running.status import preview, status  # noqa: E402
from smoltraces.settings import load_settings  # noqa: E402


def finish(cfg, stages):
    "What 10,000 finished cells leave"
    for name in ("problems.parquet", *(o for s in stages for o in s.outputs)):
        path = cfg.path(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        if name.startswith("students/"):
            path.mkdir(exist_ok=True)
            for part in ("model.safetensors", "config.json", "tokenizer.json", "log.parquet"):
                (path / part).write_text(f"{name} {part}")
        elif name in ("tables", "figures"): path.mkdir(exist_ok=True)
        else: path.write_text(name)
    facts = {"began": "2026-01-01T00:00:00Z", "seconds": 60.0, "cost_usd": 0.0,
             "machine": {"cores": 2}, "versions": {str(k): "1" for k in range(14)}}
    cfg.path("runs").mkdir(exist_ok=True)
    for stage in stages:
        outputs = {name: sha256(cfg.path(name)) for name in stage.outputs}
        record = {"stage": stage.name, **basis(cfg, stage), "outputs": outputs, **facts}
        cfg.path("runs", f"{stage.name}.json").write_text(json.dumps(record, indent=1))


def seconds(do, times: int = 3) -> float:
    taken = []
    for _ in range(times):
        start = time.perf_counter()
        do()
        taken.append(time.perf_counter() - start)
    return min(taken)


def main(cells: int = 10_000):
    with tempfile.TemporaryDirectory() as folder:
        light(Path(folder, "p"))
        cfg = load_settings("smoke", Path(folder, "p"), seeds=f"0:{cells // 10}", benchmarks="embedded")
        stages = plan(cfg)
        print(f"{len(stages):,} stages")
        new = seconds(lambda: preview(cfg))
        finish(cfg, stages)
        time.sleep(2.1)  # or all files count as just written
        files._digest.cache_clear()  # as in a new process
        read = seconds(lambda: records(cfg))
        first = seconds(lambda: preview(cfg), 1)
        assert {row.state for row in preview(cfg).rows} == {"done"}
        rows = {"reading the records (the baseline)": read, "a plan, nothing done": new,
                "a plan, all done, every file hashed": first,
                "a plan, all done, in a process that has hashed them": seconds(lambda: preview(cfg)),
                "status": seconds(lambda: status(cfg))}
        for name, taken in rows.items(): print(f"{name:50} {taken:7.2f} s  {taken / read:6.1f} ×")


if __name__ == "__main__": main(*map(int, sys.argv[1:]))
