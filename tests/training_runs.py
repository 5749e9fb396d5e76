"""Train tiny students in a process apart, since Unsloth changes transformers for good: training_runs.py PART FOLDER

basics FOLDER: a run in one go, one that is interrupted at step 2 and resumed, and one whose loss is no number
families FOLDER CACHE: of each family, whole weights and an adapter: a run, and the same run broken off and resumed
run FOLDER KEY=VALUE…: one run of the smoke profile with these settings; interrupt=K: Ctrl-C is pressed at step K;
    wait=K: several processes wait at step K until they are asked to stop
Results are left as JSON in FOLDER.
"""
import json
import os
import random
import signal
import sys
import time
from functools import partial
from pathlib import Path

import pandas as pd
from families import FAMILIES, family

from smoltraces.problems.selection import build_problems
from smoltraces.schema import load_variant
from smoltraces.settings import InputError, load_settings
from smoltraces.students import training
from smoltraces.students.callbacks import Progress, last_checkpoint
from smoltraces.traces.variants import build_variants

RANDOM = "embedded/random-llama"


def settings(folder: Path, **more):
    "Four whole steps of four rows in two epochs; no checkpoint is due"
    cfg = load_settings("smoke", out=str(folder), **{"holdout": 2, "batch_size": 4, "epochs": 2, "n_train": 10,
                                                     "learning_rate": 1e-3, "checkpoint_minutes": 0, **more})
    if not cfg.path("data", "ST-NT.parquet").exists():
        build_problems(cfg)
        build_variants(cfg)
    return cfg


def log(folder: Path) -> list[float]: return pd.read_parquet(folder / "log.parquet")["loss"].tolist()


def result(folder: Path) -> dict:
    "What there is to know of a trained student"
    return {"log": pd.read_parquet(folder / "log.parquet").to_dict("list"),
            "facts": json.loads((folder / "training.json").read_text()),
            "files": sorted(p.name for p in folder.iterdir()),
            "beside": sorted(p.name for p in folder.parent.iterdir())}


class Interrupts(Progress):
    "Somebody presses Ctrl-C at a step, once"
    at = 0

    def __call__(self, rows, steps):
        if not Interrupts.at or rows[-1]["step"] < Interrupts.at: return
        Interrupts.at = 0
        os.kill(os.getpid(), signal.SIGINT)


def basics(folder: Path):
    training.Progress = Interrupts
    cfg, other = settings(folder / "whole"), settings(folder / "interrupted")
    rows = load_variant(cfg, "ST-HC")
    whole = result(training.finetune(cfg, RANDOM, "ST-HC", 0, rows))
    Interrupts.at = 2
    try: training.finetune(other, RANDOM, "ST-HC", 0, rows)
    except KeyboardInterrupt as e: interrupt = str(e)
    scratch = other.path("students", "embedded--random-llama", "ST-HC", ".seed-0.checkpoints")
    checkpoint = int(last_checkpoint(scratch).name.rpartition("-")[2])
    resumed = result(training.finetune(other, RANDOM, "ST-HC", 0, rows))
    (folder / "basics.json").write_text(json.dumps({
        "whole": whole, "interrupt": interrupt, "checkpoint": checkpoint, "resumed": resumed,
        "message": spoilt(cfg, rows)}))


def spoilt(cfg, rows) -> str | None:
    "Train a model whose output is no number: what is said"
    load = training.load

    def load_with_nan(*args):
        import torch
        model, tokenizer = load(*args)
        with torch.no_grad(): model.get_input_embeddings().weight.fill_(float("nan"))
        return model, tokenizer

    training.load = load_with_nan
    try: training.finetune(cfg, RANDOM, "ST-HC", 1, rows)
    except InputError as e: return str(e)
    finally: training.load = load
    return None


class Broken(BaseException):
    "Stands for a process that ends at some step"


class Breaks(Progress):
    "Ends the run after a step"
    after = None

    def __call__(self, rows, steps):
        if rows[-1]["step"] == self.after: raise Broken


def families(folder: Path, cache: Path):
    training.Progress, dice, results = Breaks, random.Random(), {}
    for name in FAMILIES:
        student = str(family(name, cache / name))
        for method in ("full", "lora"):
            cfg = settings(folder, method=method)
            every = settings(folder, method=method, checkpoint_minutes=1e-9)
            rows = load_variant(cfg, "ST-NT")
            Breaks.after = None
            whole = log(training.finetune(cfg, student, "ST-NT", 0, rows))
            Breaks.after = dice.randint(2, len(whole) - 1)
            try: training.finetune(every, student, "ST-NT", 0, rows)
            except Broken: pass
            broken, Breaks.after = Breaks.after, None
            again = training.finetune(every, student, "ST-NT", 0, rows)
            results[f"{name} {method}"] = {**result(again), "whole": whole, "resumed": log(again), "broken": broken}
    (folder / "families.json").write_text(json.dumps(results))


plain_worker = training.worker


def waiting_worker(step: int, *job):
    "One of several processes; the first waits at a step, and the others for it, until the stop flag is there"
    write, parent = training.write_json, os.getppid()

    def write_and_wait(path, value):
        write(path, value)
        if path.name == "rows.json" and len(value["rows"]) == step:
            while os.getppid() == parent and not (path.parent / training.STOP).exists(): time.sleep(0.05)

    training.write_json = write_and_wait
    plain_worker(*job)


def run(folder: Path, *pairs: str):
    options = dict(pair.split("=") for pair in pairs)
    Interrupts.at = int(options.pop("interrupt", 0))
    training.Progress = Interrupts
    if step := options.pop("wait", None): training.worker = partial(waiting_worker, int(step))
    cfg = settings(folder, **options)
    done = training.finetune(cfg, RANDOM, "ST-HC", 0, load_variant(cfg, "ST-HC"))
    (folder / "run.json").write_text(json.dumps(result(done)))


if __name__ == "__main__":
    part, folder, *more = sys.argv[1:]
    Path(folder).mkdir(parents=True, exist_ok=True)
    {"basics": basics, "families": lambda folder, cache: families(folder, Path(cache)), "run": run}[part](
        Path(folder), *more)
