"""Train tiny students in a process apart, since Unsloth changes transformers for good: training_runs.py PART FOLDER

families FOLDER: of each family, whole weights and an adapter: a run, the same run broken off and resumed, a spoilt row
run FOLDER KEY=VALUE…: one run of the smoke profile with these settings; interrupt=K: Ctrl-C is pressed at step K
Results are left as JSON in FOLDER.
"""
import json
import os
import random
import signal
import sys
from pathlib import Path

import pandas as pd
from families import FAMILIES, family

from smoltraces.problems.selection import build_problems
from smoltraces.schema import load_variant
from smoltraces.settings import InputError, load_settings, slug
from smoltraces.students import training
from smoltraces.students.callbacks import Show
from smoltraces.traces.variants import build_variants


class Broken(BaseException):
    "Stands for a process that ends at some step"


class Breaks(Show):
    "Ends the run after a step"
    after = None

    def __call__(self, rows, steps):
        if rows[-1]["step"] == self.after: raise Broken


def settings(folder: Path, **more):
    cfg = load_settings("smoke", out=str(folder), **{"holdout": 2, "batch_size": 4, "epochs": 2, "n_train": 12,
                                                     "learning_rate": 1e-3, **more})
    if not cfg.path("data", "ST-NT.parquet").exists():
        build_problems(cfg)
        build_variants(cfg)
    return cfg


def log(folder: Path) -> list[float]: return pd.read_parquet(folder / "log.parquet")["loss"].tolist()


def spoilt(cfg, student: str, rows) -> dict:
    "Train with a row whose tokens the model has no finite embedding for; what is said"
    load = training.load

    def spoil(*args):
        import torch
        model, tokenizer = load(*args)
        token = tokenizer.encode(" Ω", add_special_tokens=False)[-1]
        with torch.no_grad(): model.get_input_embeddings().weight[token] = float("nan")
        return model, tokenizer

    rows = rows.copy()
    rows.loc[7, "response"] += " Ω"
    training.load = spoil
    try: training.finetune(cfg, student, "ST-NT", 1, rows)
    except InputError as e: return {"row": rows["id"][7], "said": str(e)}
    finally: training.load = load
    return {"row": rows["id"][7], "said": None}


def families(folder: Path, cache: Path):
    training.Show, dice, found = Breaks, random.Random(), {}
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
            facts = json.loads((again / "training.json").read_text())
            found[f"{name} {method}"] = {"whole": whole, "resumed": log(again), "broken": broken, "facts": facts,
                                         "files": sorted(p.name for p in again.iterdir()),
                                         "beside": sorted(p.name for p in again.parent.iterdir())}
    found["spoilt"] = spoilt(cfg, student, rows)
    (folder / "families.json").write_text(json.dumps(found))


class Interrupts(Show):
    "Somebody presses Ctrl-C at a step"
    at, pressed = 0, False

    def __call__(self, rows, steps):
        if rows[-1]["step"] < self.at or Interrupts.pressed: return
        Interrupts.pressed = True
        os.kill(os.getpid(), signal.SIGINT)


def run(folder: Path, *pairs: str):
    asked = dict(pair.split("=") for pair in pairs)
    Interrupts.at = int(asked.pop("interrupt", 0))
    if Interrupts.at: training.Show = Interrupts
    cfg, student = settings(folder, **asked), "embedded/random-llama"
    done = training.finetune(cfg, student, "ST-HC", 0, load_variant(cfg, "ST-HC"))
    facts = json.loads((done / "training.json").read_text())
    (folder / "run.json").write_text(json.dumps({"log": pd.read_parquet(done / "log.parquet").to_dict("list"),
                                                 "facts": facts, "student": slug(student)}))


if __name__ == "__main__":
    part, folder, *more = sys.argv[1:]
    if part == "families": families(Path(folder), Path(more[0]))
    else: run(Path(folder), *more)
