"""Runs of a few bytes: files and records in the shape of real ones, without a model."""
import json
from pathlib import Path

import numpy as np

from smoltraces.files import sha256, write_json, write_parquet, write_text

MACHINE = {"system": "Linux", "cpu": "Some CPU", "cores": 2, "memory_gb": 8, "gpu": None, "python": "3.11.7"}


def stage(run: Path, name: str, inputs=(), outputs=(), **told):
    "The record of a stage whose files are there"
    write_json(run / "runs" / f"{name}.json", {
        "stage": name, "code": "c0de" * 16, "parameters": {}, "settings": {}, "machine": MACHINE,
        "inputs": {n: sha256(run / n) for n in inputs}, "outputs": {n: sha256(run / n) for n in outputs},
        "began": "2026-11-23T14:00:00Z", "seconds": 60.0, "cost_usd": 0.0, "versions": {"torch": "2.13.0"},
        "git": {"commit": "0123456789abcdef", "dirty": False}, "lock": "10c4" * 16, **told})


def amend(run: Path, name: str, **told):
    "Change what a record says"
    file = run / "runs" / f"{name}.json"
    write_json(file, {**json.loads(file.read_text()), **told})


def answers(file: Path, variant: str, right, seed=0, **told):
    write_parquet(file, [{"student": "made-up/tiny", "variant": variant, "seed": seed, "benchmark": "embedded",
                          "problem_id": f"p{i:03}", "sample": 0, "answer": "7", "correct": bool(r),
                          "revision": "0123456789abcdef", **told} for i, r in enumerate(right)])


def weights(variant: str, seed: int = 0) -> str: return f"students/tiny/{variant}/seed-{seed}"
def predictions(variant: str, seed: int = 0) -> str: return f"predictions/tiny/{variant}/seed-{seed}/embedded.parquet"


def small_run(run: Path, shares=None, seconds=60.0, n=80, seeds=(0,), salt=0, **settings) -> Path:
    "Data of two variants, their students, answers, a table and a report"
    shares = shares or {"SBS": 0.3, "ST": 0.6}
    for name in ("problems.parquet", *(f"data/{v}.parquet" for v in shares)): write_text(run / name, name)
    data = [f"data/{v}.parquet" for v in shares]
    stage(run, "1_build_data", [], ["problems.parquet", *data], settings={"n_train": 128}, seconds=seconds)
    ease, files = np.random.default_rng(0).normal(size=n), []
    for variant, share in shares.items():
        for seed in seeds:
            noise = np.random.default_rng([*f"{variant}{share}".encode(), seed, salt]).normal(size=n)
            write_text(run / weights(variant, seed) / "model.safetensors", f"{variant} {share} {seed}")
            write_parquet(run / weights(variant, seed) / "log.parquet", [{"step": 1, "loss": 0.5, "seconds": seconds}])
            write_json(run / weights(variant, seed) / "training.json", {"steps": 1, "seconds": seconds})
            stage(run, f"3_finetune-tiny-{variant}-seed-{seed}", [f"data/{variant}.parquet"], [weights(variant, seed)],
                  settings={"epochs": 1.0, **settings}, seconds=seconds)
            files.append(predictions(variant, seed))
            answers(run / files[-1], variant, ease + noise / 2 > np.quantile(ease, 1 - share), seed)
            stage(run, f"4_evaluate-tiny-{variant}-seed-{seed}", ["problems.parquet", weights(variant, seed)],
                  [files[-1]], seconds=seconds)
    write_parquet(run / "results.parquet", [
        {"student": "made-up/tiny", "variant": v, "benchmark": "embedded", "n": n, "seeds": len(seeds), "accuracy": s,
         "ci_low": s - 0.1, "ci_high": s + 0.1} for v, s in shares.items()])
    write_parquet(run / "claims.parquet", [
        {"claim": "ST above SBS", "student": "made-up/tiny", "benchmark": "embedded", "estimate": 0.1,
         "verdict": "supported" if shares.get("ST", 0) > 0.5 else "undecided"}])
    write_text(run / "tables" / "main.md", str(shares))
    write_text(run / "report.html", f'<h1>{shares}</h1><section aria-labelledby="made">{seconds} s</section>')
    stage(run, "5_figures", ["problems.parquet", *files],
          ["results.parquet", "claims.parquet", "tables", "report.html"], seconds=seconds)
    return run
