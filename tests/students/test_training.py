"""Students of three families learn, broken runs go on to the same result, what cannot work is said in a sentence."""
import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pandas as pd
import pytest
from conftest import ROOT, environment
from families import FAMILIES
from kills import alive, children, until

from smoltraces.files import write_json
from smoltraces.settings import InputError, load_settings
from smoltraces.students import training
from smoltraces.students.callbacks import LOG, Guard, Progress, last_checkpoint, log_callback
from smoltraces.students.models import locate
from smoltraces.students.training import card, layout, push_student

SCRIPT = [sys.executable, str(ROOT / "tests" / "training_runs.py")]


def runs(*arguments, **extra) -> subprocess.CompletedProcess:
    command = [*SCRIPT, *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, env=environment(**extra), capture_output=True, text=True)


def tiny(folder: Path, **more):
    "What tests/training_runs.py trains with"
    return load_settings("smoke", out=str(folder), **{"holdout": 2, "batch_size": 4, "epochs": 2, "n_train": 12,
                                                      "learning_rate": 1e-3, **more})


def result(folder: Path) -> dict: return json.loads((folder / "run.json").read_text())


def run(folder: Path, *pairs: str) -> dict:
    "A run in a process of its own, which must succeed"
    done = runs("run", folder, *pairs)
    assert done.returncode == 0, done.stderr[-3000:]
    return result(folder)


@pytest.fixture(scope="module")
def basics(tmp_path_factory) -> dict:
    "In one process: a run in one go, one that is interrupted and resumed, and one whose loss is no number"
    folder = tmp_path_factory.mktemp("basics")
    done = runs("basics", folder)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads((folder / "basics.json").read_text())


@pytest.mark.slow
def test_a_run_leaves_a_whole_folder(basics):
    whole = basics["whole"]
    assert whole["log"]["step"] == [1, 2, 3, 4] and whole["log"]["loss"][-1] < whole["log"]["loss"][0]
    assert {"model.safetensors", "config.json", "training.json", "log.parquet", "README.md", "tokenizer.json"} <= {
        *whole["files"]}
    assert not [name for name in whole["files"] if name.endswith((".bin", ".pt", ".pth"))]


@pytest.mark.slow
def test_an_interrupt_saves_first_and_the_next_run_goes_on(basics):
    assert basics["interrupt"] == "Stopped at step 3, which is kept: run it again to go on."
    assert basics["checkpoint"] == 3 and basics["resumed"]["facts"]["resumed_at"] == 3
    assert basics["resumed"]["log"]["loss"] == pytest.approx(basics["whole"]["log"]["loss"], abs=1e-4)
    assert basics["resumed"]["beside"] == ["seed-0"] # no checkpoint is left behind


@pytest.mark.slow
def test_a_loss_that_is_no_number_ends_the_run(basics):
    assert basics["message"] == ("The loss became no number at step 1: lower learning_rate. "
                                 "No checkpoint was due yet.")


# ---- families, kills, several processes


@pytest.fixture(scope="module")
def families(tmp_path_factory, request) -> dict:
    "Every family trained whole, and broken off and resumed"
    folder = tmp_path_factory.mktemp("families")
    done = runs("families", folder, request.config.cache.mkdir("families"))
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads((folder / "families.json").read_text())


@pytest.mark.slow
@pytest.mark.parametrize("method", ["full", "lora"])
@pytest.mark.parametrize("name", FAMILIES)
def test_a_family_learns_and_a_broken_run_ends_the_same(families, name, method):
    run = families[f"{name} {method}"]
    assert run["whole"][-1] < run["whole"][0] - 0.05
    assert run["facts"]["resumed_at"] == run["broken"] - 1 # the step that broke off was not saved yet
    assert run["resumed"] == pytest.approx(run["whole"], abs=1e-4)
    assert run["beside"] == ["seed-0"]
    kind = "adapter_" if method == "lora" else ""
    assert {f"{kind}model.safetensors", f"{kind}config.json", "training.json", "tokenizer.json"} <= {*run["files"]}


def checkpoint_of(folder: Path) -> int:
    "The step of the last whole checkpoint of the run in a folder, 0 where there is none"
    with contextlib.suppress(FileNotFoundError): # while it is replaced
        scratch = folder / "smoke/students/embedded--random-llama/ST-HC/.seed-0.checkpoints"
        if checkpoint := last_checkpoint(scratch): return int(checkpoint.name.rpartition("-")[2])
    return 0


@pytest.mark.slow
def test_kill_nine_at_a_random_moment(basics, tmp_path):
    step, pairs = random.randint(1, 3), ("checkpoint_minutes=0.000001",)
    process = subprocess.Popen([*SCRIPT, "run", str(tmp_path), *pairs], cwd=ROOT, env=environment(),
                               start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while process.poll() is None and checkpoint_of(tmp_path) < step: time.sleep(0.01)
    time.sleep(random.random() / 2)
    with contextlib.suppress(ProcessLookupError): os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    again = run(tmp_path, *pairs)
    assert again["log"]["loss"] == pytest.approx(basics["whole"]["log"]["loss"], abs=1e-4)
    assert again["log"]["step"] == [1, 2, 3, 4]


@pytest.mark.slow
def test_processes_end_with_the_one_that_started_them(tmp_path):
    "The two of a run wait at their second step, until they are ended from outside"
    process = subprocess.Popen([*SCRIPT, "run", str(tmp_path), "processes=2", "wait=2"], cwd=ROOT, env=environment(),
                               stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    rows = tmp_path / "smoke/students/embedded--random-llama/ST-HC/.seed-0.checkpoints/rows.json"
    until(lambda: rows.exists() or process.poll() is not None, 600)
    below = children(process.pid)
    assert len(below) >= 2
    process.kill()
    process.wait()
    until(lambda: not any(map(alive, below)), 600)


@pytest.mark.slow
def test_an_interrupt_saves_first_in_two_processes(basics, tmp_path):
    "They wait at their second step until they are asked to stop"
    done = runs("run", tmp_path, "processes=2", "interrupt=2", "wait=2")
    assert done.returncode != 0 and "KeyboardInterrupt" in done.stderr, done.stderr[-3000:]
    assert checkpoint_of(tmp_path) in (2, 3)
    again = run(tmp_path, "processes=2")
    assert again["facts"]["resumed_at"] in (2, 3)
    assert again["log"]["loss"] == pytest.approx(basics["whole"]["log"]["loss"], abs=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("pairs", [("engine=trl", "packing=packed"), ("processes=2",)], ids=["trl, packed", "two"])
def test_engines_packing_and_processes_train_alike(basics, tmp_path, pairs):
    "Rows laid end to end do not see each other, and neither trl nor two processes learn otherwise"
    other, whole = run(tmp_path, *pairs), basics["whole"]
    assert other["facts"]["packed"] == ("engine=trl" in pairs) and not whole["facts"]["packed"]
    assert other["facts"]["engine"] == ("trl" if "engine=trl" in pairs else "unsloth")
    for column in ("loss", "eval_loss", "tokens", "learning_rate"):
        assert other["log"][column] == pytest.approx(whole["log"][column], rel=1e-4), column


@pytest.mark.slow
def test_an_adapter_in_two_processes(tmp_path):
    facts = run(tmp_path, "epochs=1", "method=lora", "processes=2", "merge=true", "think=tokens")["facts"]
    assert (facts["engine"], facts["processes"], facts["sharded"]) == ("unsloth", 2, False)
    folder = tmp_path / "smoke/students/embedded--random-llama/ST-HC/seed-0"
    assert (folder / "merged/model.safetensors").is_file() and (folder / "adapter_model.safetensors").is_file()


@pytest.mark.slow
def test_what_went_wrong_in_a_process_is_said_here(tmp_path):
    done = runs("run", tmp_path, "processes=2", "max_length=10")
    assert "raise max_length" in done.stderr.splitlines()[-1], done.stderr[-500:]


def test_a_checkpoint_of_other_settings(tmp_path):
    rows = pd.DataFrame({"id": ["a"], "trace": [None], "response": ["1"]})
    cfg = tiny(tmp_path)
    scratch = cfg.path("students", "x", "ST", ".seed-0.checkpoints")
    before = training._basis(cfg, "embedded/random-llama", "ST", 0, rows)
    training._open_scratch(cfg, scratch, before)
    write_json(scratch / "checkpoint-3" / LOG, {"rows": []})
    training._open_scratch(cfg, scratch, before) # the same: kept
    changed = training._basis(tiny(tmp_path, epochs=3), "embedded/random-llama", "ST", 0, rows)
    with pytest.raises(InputError, match=r"another run \(epochs = 2.0\): set that back, or delete students/x/ST"):
        training._open_scratch(cfg, scratch, changed)
    other = training._basis(cfg, "embedded/random-llama", "ST", 0, rows.assign(response="2"))
    with pytest.raises(InputError, match="other training rows"): training._open_scratch(cfg, scratch, other)
    spread = training._basis(tiny(tmp_path, micro_batch_size=2), "embedded/random-llama", "ST", 0, rows)
    training._open_scratch(cfg, scratch, spread) # how it is spread over devices may change
    (scratch / "checkpoint-3" / LOG).unlink() # never finished: nothing to protect
    training._open_scratch(cfg, scratch, changed)
    assert [p.name for p in scratch.iterdir()] == ["basis.json"]


def on_gpu(monkeypatch, capability=(9, 0), count=1):
    import torch
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: capability)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "an invented GPU")


def test_layouts_of_gpus(monkeypatch):
    on_gpu(monkeypatch, count=8)
    how = layout(load_settings("gpu"))
    assert (how.engine, how.processes, how.packed, how.sharded) == ("unsloth", 1, True, False)
    assert how.precision == "bfloat16"
    how = layout(load_settings("gpu", processes=0, micro_batch_size=2))
    assert (how.engine, how.processes, how.accumulated, how.sharded) == ("trl", 8, 2, True)
    assert "does not shard" in how.why
    how = layout(load_settings("gpu", processes=0, method="qlora"))
    assert (how.engine, how.processes, how.micro, how.sharded) == ("unsloth", 8, 4, False)
    with pytest.raises(InputError, match="there are 8 GPUs"): layout(load_settings("gpu", processes=9))
    with pytest.raises(InputError, match="float16 overflows"): layout(load_settings("gpu", precision="float16"))


def test_an_older_gpu(monkeypatch):
    on_gpu(monkeypatch, (7, 5))
    with pytest.raises(InputError, match="an invented GPU. has no bfloat16: set precision = float16"):
        layout(load_settings("gpu", method="lora"))
    assert layout(load_settings("gpu", method="lora", precision="float16")).precision == "float16"


@pytest.mark.parametrize("more, said", [
    ({"precision": "bfloat16"}, "needs a GPU"), ({"packing": "packed"}, "set packing = auto")])
def test_settings_that_do_not_go_together(more, said):
    with pytest.raises(InputError, match=said): layout(load_settings("smoke", **{"batch_size": 4, **more}))


def test_held_out_rows_are_the_same_problems_in_every_set():
    rows = pd.DataFrame({"id": [f"{k:04x}" for k in range(40)], "trace": "a"})
    train, held = training.hold_out(rows, 7)
    assert len(train) == 33 and len(held) == 7 and not {*train["id"]} & {*held["id"]}
    mixed = rows.sample(frac=1, random_state=1).assign(trace="b")
    assert {*training.hold_out(mixed, 7)[1]["id"]} == {*held["id"]}
    with pytest.raises(InputError, match="holdout = 40 leaves none of 40 rows"): training.hold_out(rows, 40)


class Trainer:
    "As much of a trainer as `Guard` looks at"
    def __init__(self, *losses):
        self.losses, self.state = list(losses), SimpleNamespace(global_step=0)

    def training_step(self, model, inputs):
        import torch
        loss = self.losses.pop(0)
        if isinstance(loss, Exception): raise loss
        return torch.tensor(loss)


def batch(*rows):
    import torch
    width = max(map(len, rows))
    return {"input_ids": torch.tensor([[*r, *[0] * (width - len(r))] for r in rows]),
            "attention_mask": torch.tensor([[1] * len(r) + [0] * (width - len(r)) for r in rows])}


def guarded(scratch: Path, *losses):
    write_json(scratch / "checkpoint-8" / LOG, {"rows": []})
    trainer = Trainer(*losses)
    return trainer, Guard(trainer, "set micro_batch_size = 1", scratch)


def test_guard_counts(tmp_path):
    trainer, guard = guarded(tmp_path, 1.0, float("nan"))
    trainer.training_step(None, batch([1, 2], [3, 4, 5]))
    assert guard.tokens == 5
    with pytest.raises(InputError, match="no number at step 1: lower .* step 8 is kept"):
        trainer.training_step(None, batch([6]))


@pytest.mark.parametrize("error", ["cuda", "cpu"])
def test_out_of_memory(error, tmp_path):
    import torch
    raised = {"cuda": torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"),
              "cpu": RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes")}[error]
    trainer, _ = guarded(tmp_path, raised)
    with pytest.raises(InputError, match="Memory ran out at step 1 on a batch of 2 × 3 tokens: set micro_batch_size = "
                                         "1. The checkpoint of step 8 is kept"):
        trainer.training_step(None, batch([1, 2], [3, 4, 5]))
    other, _ = guarded(tmp_path, RuntimeError("something else"))
    with pytest.raises(RuntimeError, match="something else"): other.training_step(None, batch([6]))


def test_an_unfinished_checkpoint_does_not_count(tmp_path):
    for step in (3, 10): write_json(tmp_path / f"checkpoint-{step}" / LOG, {"rows": []})
    (tmp_path / "checkpoint-12").mkdir()
    assert last_checkpoint(tmp_path).name == "checkpoint-10" and last_checkpoint(tmp_path / "none") is None


def test_the_log_goes_on_after_a_checkpoint():
    before = {"step": 4, "tokens": 400, "seconds": 40.0}
    rows = [before]
    follow = log_callback(lambda rows, steps: None, rows, lambda: 50)
    state = SimpleNamespace(global_step=5, max_steps=6, is_world_process_zero=True)
    follow.on_train_begin(None, state, None)
    follow.on_log(None, state, None, {"loss": 1.0, "learning_rate": 0.1, "grad_norm": 0.5})
    assert (rows[-1]["step"], rows[-1]["tokens"]) == (5, 450) and rows[-1]["seconds"] >= 40
    follow.on_log(None, state, None, {"eval_loss": 2.0})
    assert rows[-1]["eval_loss"] == 2.0
    with pytest.raises(InputError, match="gradient became no number at step 5"):
        follow.on_log(None, state, None, {"loss": 1.0, "learning_rate": 0.1, "grad_norm": float("inf")})


def test_the_bar_in_a_terminal(capsys):
    show = Progress("ST, seed 0")
    for step in (1, 2): show([{"step": k, "loss": 1.5, "memory_gb": 1.0, "tokens": 90 * k, "seconds": 3.0 * k}
                              for k in range(1, step + 1)], 2)
    show.close()
    assert "loss=1.500" in (seen := capsys.readouterr().err) and "tokens/s=30" in seen and "2/2" in seen


@pytest.mark.parametrize("status, code, said", [
    (403, "GatedRepo", "is gated: accept its terms on its page at the hub and set HF_TOKEN"),
    (404, "RepoNotFound", "ana/student is not on the hub"),
    (503, "", "ana/student cannot be fetched")])
def test_a_hub_that_says_no(monkeypatch, status, code, said):
    import huggingface_hub
    from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, RepositoryNotFoundError
    kind = {"GatedRepo": GatedRepoError, "RepoNotFound": RepositoryNotFoundError}.get(code, HfHubHTTPError)

    def refuse(*args):
        import httpx
        raise kind("no", response=httpx.Response(status, request=httpx.Request("GET", "http://127.0.0.1/config.json")))
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", refuse)
    with pytest.raises(InputError, match=said): locate("ana/student", offline=False)


def test_card_and_push(tmp_path, monkeypatch):
    facts = {"student": "meta-llama/Llama-3.2-3B-Instruct", "variant": "ST", "seed": 2, "learning_rate": 6e-5,
             "dropped": 7, "cut": 0, "held_out": 4, "steps": 9, "final_loss": 0.4, "engine": "unsloth", "device": "cpu",
             "processes": 1, "precision": "float32", "versions": {"trl": "1"},
             "settings": load_settings("paper").model_dump(mode="json")}
    text = card(facts, 100)
    assert text.startswith("---\nbase_model: meta-llama/Llama-3.2-3B-Instruct\n") and "| dropped | 7 |" in text
    write_json(tmp_path / "training.json", facts)
    monkeypatch.delenv("HF_TOKEN", raising=False)
    with pytest.raises(InputError, match="HF_TOKEN is not set: put a token with write access to ana/Llama-3.2-3B"):
        push_student(load_settings("paper", push_to="ana"), tmp_path)
