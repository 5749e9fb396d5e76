"""Every benchmark through the whole path: invented rows always, the real ones where they are; in transformers, vLLM's
signatures, and an endpoint that knows the answers."""
import csv
import itertools
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
from conftest import ROOT, environment
from server import serve

from smoltraces.evaluation.backends import Query, SealedStore, Unanswered, backend_of
from smoltraces.evaluation.benchmarks import load_benchmark, opened, score, unseal
from smoltraces.evaluation.evaluate import evaluate
from smoltraces.files import read_json
from smoltraces.problems.selection import build_problems
from smoltraces.settings import InputError, load_settings
from smoltraces.students import decoding
from smoltraces.students.models import locate
from smoltraces.traces.teachers import HARD_CODED, Unconfirmed

evaluation = sys.modules["smoltraces.evaluation.evaluate"] # the room's face has the function under this name
SHARED = ROOT.parent / "shared" / "data" / "benchmarks"
LLAMA = "embedded/random-llama"
EMBEDDED = ("embedded", "embedded_hard")
SECRETS = ("zorblatt", "quaxil", "frindle") # words of the invented GPQA questions, choices and answers


# ---- benchmarks of the published shapes, and a server that knows them


def invent(folder: Path) -> dict[str, str]:
    "Rows as MATH500, AIME 2024 and GPQA Diamond have them; NAME@PATH by name"
    math = [{"problem": f"What is ${k} \\times {k + 1}$, halved?", "solution": "Multiply.", "level": 1 + k % 5,
             "answer": f"\\frac{{{k * (k + 1)}}}{{2}}", "subject": ("Algebra", "Geometry")[k % 2],
             "unique_id": f"test/{k}.json"} for k in range(2, 26)]
    aime = [{"problem": f"Find the remainder when $3^{{{k}}}$ is divided by 1000.", "answer": f"{3**k % 1000:03}",
             "solution": "", "url": f"https://example.org/2024_AIME_{'I' * (1 + k % 2)}_Problems/Problem_{k}"}
            for k in range(4, 14)]
    for name, rows in (("math500", math), ("aime24", aime)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    names = ["Question", "Correct Answer", *(f"Incorrect Answer {k}" for k in (1, 2, 3)), "Subdomain"]
    with open(folder / "gpqa_diamond.csv", "w", newline="") as f:
        table = csv.writer(f)
        table.writerow(names)
        for k in range(8):
            table.writerow([f"How many zorblatt quarks has the boson {k}?", f"{k} quaxil", f"{k + 1} frindle",
                            f"{k + 2} frindle", f"{k + 3} frindle", ("Physics", "Chemistry")[k % 2]])
    return {n: f"{n}@{folder / n}.{'csv' if n == 'gpqa_diamond' else 'jsonl'}"
            for n in ("math500", "aime24", "gpqa_diamond")}


def wrong(row: dict) -> str:
    if row["answer_kind"] == "choice": return "ABCD"[("ABCD".index(row["answer"]) + 1) % 4]
    return "-31337"


def known(spec: str, problems: Path) -> list[dict]:
    "What the models gold and wrong answer to a benchmark; both repeat the question in their thinking"
    rows = map(opened, load_benchmark(spec, problems).to_dict("records"))
    return [{"question": row["question"], "model": model, "reasoning_content": f"I am asked: {row['question']}",
             "content": f"The answer is \\boxed{{{answer}}}."}
            for row in rows for model, answer in (("gold", row["answer"]), ("wrong", wrong(row)))]


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    "Benchmarks and problems; `specs` by name, `real` where the public files are there, `server` answers all of them"
    folder = tmp_path_factory.mktemp("world")
    world = type("World", (), {"specs": {n: n for n in EMBEDDED} | invent(folder), "folder": folder})
    build_problems(settings(folder / "build"))
    world.problems = folder / "build" / "smoke" / "problems.parquet"
    world.real = [f"{n}@{SHARED / n}.jsonl" for n in ("math500", "aime24") if (SHARED / f"{n}.jsonl").is_file()]
    facts = [fact for spec in [*world.specs.values(), *world.real] for fact in known(spec, world.problems)]
    (folder / "known.jsonl").write_text("".join(json.dumps(fact) + "\n" for fact in facts))
    with serve(answer="server:table", file=folder / "known.jsonl", log=folder / "paid.jsonl") as server:
        world.server = server
        yield world


def settings(out: Path, **changes):
    return load_settings("smoke", **{"out": str(out), "n_test": 8, "n_hard": 4, "confirm": False, "max_new_tokens": 8,
                                     "threads": 1, **changes}) # the models are too small for two threads


def at(world, out: Path, specs, **changes):
    "Settings of a run at `out` over these benchmarks, with the server as everybody's endpoint"
    cfg = settings(out, benchmarks=list(specs), **{"student_url": world.server.url, "teacher_lm_url": world.server.url,
                                                   **changes})
    cfg.path().mkdir(parents=True, exist_ok=True)
    if not cfg.path("problems.parquet").exists(): shutil.copy(world.problems, cfg.path("problems.parquet"))
    return cfg


def manifest(cfg, student: str, benchmark: str, variant: str = "Base") -> dict:
    return read_json(cfg.path("predictions", student.replace("/", "--"), variant, "seed-0", f"{benchmark}.json"))


def journal(cfg, benchmark: str) -> Path:
    return cfg.path("predictions", LLAMA.replace("/", "--"), "Base", "seed-0", f".{benchmark}.answers.jsonl")


@pytest.fixture
def counted(monkeypatch):
    "How many answers transformers was asked for"
    asked, plain = [], decoding.answers

    def answers(model, tokenizer, prompts, *args, **options):
        asked.extend(prompts)
        return plain(model, tokenizer, prompts, *args, **options)

    monkeypatch.setattr(decoding, "answers", answers)
    return asked


# ---- an endpoint that knows


@pytest.mark.parametrize("model, share, variant", [("gold", 1.0, "student"), ("wrong", 0.0, "student"),
                                                   ("gold", 1.0, "HC")])
def test_every_benchmark_behind_an_endpoint(world, tmp_path, model, share, variant):
    if variant == "student": cfg = at(world, tmp_path, world.specs.values(), backend="api")
    else: cfg = at(world, tmp_path, world.specs.values(), teacher_lm=model, evaluate_teacher=True)
    found = evaluate(cfg, model, variant.replace("student", "Base"))
    assert found.groupby("benchmark")["correct"].mean().to_dict() == dict.fromkeys(world.specs, share)
    assert not found["truncated"].any() and (found["n_tokens"] > 0).all()
    assert set(found.loc[found["benchmark"] == "math500", "cluster"]) == {"Algebra", "Geometry"}
    assert found["output"].map(unseal).str.startswith("<think>\nI am asked: ").all()
    for name in world.specs:
        told = manifest(cfg, model, name, variant.replace("student", "Base"))
        assert told["accuracy"] == share and told["lm_eval"]["acc,none"] == share
        assert told["basis"]["backend"]["prompt"] == (str(HARD_CODED) if variant == "HC" else None)


@pytest.mark.parametrize("model, share", [("gold", 1.0), ("wrong", 0.0)])
def test_the_real_benchmarks_behind_an_endpoint(world, tmp_path, model, share):
    if len(world.real) < 2: pytest.skip("../shared/data/benchmarks is not there")
    found = evaluate(at(world, tmp_path, world.real, backend="api"), model, "Base")
    assert found.groupby("benchmark")["correct"].agg(["size", "mean"]).to_dict("index") == {
        "math500": {"size": 500, "mean": share}, "aime24": {"size": 30, "mean": share}}
    assert found["cluster"].nunique() == 9 # seven subjects, two exams


def test_the_real_benchmarks_with_the_hard_coded_prompt(world, tmp_path):
    if len(world.real) < 2: pytest.skip("../shared/data/benchmarks is not there")
    found = evaluate(at(world, tmp_path, world.real, teacher_lm="gold", evaluate_teacher=True), "gold", "HC")
    assert len(found) == 530 and found["correct"].all()


def test_asked_for_nothing_twice(world, tmp_path):
    cfg = at(world, tmp_path, world.specs.values(), teacher_lm="gold", evaluate_teacher=True,
             prices="gold 1 1", budget_usd=5)
    first, paid = evaluate(cfg, "gold", "HC"), len(world.server.paid())
    shutil.rmtree(cfg.path("predictions"))
    again = evaluate(cfg.model_copy(update={"confirm": True}), "gold", "HC") # there is nothing to confirm
    pd.testing.assert_frame_equal(again, first)
    assert len(world.server.paid()) == paid and manifest(cfg, "gold", "aime24", "HC")["run"]["cost_usd"] > 0


def test_samples_are_asked_apart(world, tmp_path):
    cfg, paid = at(world, tmp_path, [world.specs["aime24"]], backend="api", eval_samples=3, eval_temperature=0.7), \
        len(world.server.paid())
    found = evaluate(cfg, "gold", "Base")
    assert len(world.server.paid()) - paid == 30 and found["sample"].tolist() == [0, 1, 2] * 10


# ---- what an endpoint can do wrong


def test_costs_are_agreed_to_and_capped(world, tmp_path, monkeypatch):
    def nobody(text): raise EOFError

    monkeypatch.setattr("builtins.input", nobody)
    cfg = at(world, tmp_path, world.specs.values(), teacher_lm="gold", evaluate_teacher=True, prices="gold 1000 1000",
             budget_usd=2, confirm=True)
    paid = len(world.server.paid())
    with pytest.raises(Unconfirmed, match=r"\(embedded, 8 answers of gold: .*gpqa_diamond, 8 answers.* budget_usd = 2"):
        evaluate(cfg, "gold", "Base")
    assert len(world.server.paid()) == paid
    cheap = cfg.model_copy(update={"confirm": False, "in_flight": 2})
    with pytest.raises(InputError, match="could exceed the budget of \\$2: raise budget_usd and run again"):
        evaluate(cheap, "gold", "Base")
    kept = len(world.server.paid()) - paid
    assert kept > 8 and cfg.path("predictions", "gold", "Base", "seed-0", "embedded.parquet").is_file()
    evaluate(cheap.model_copy(update={"budget_usd": 500.0}), "gold", "Base")
    assert len(world.server.paid()) - paid == 8 + 4 + 24 + 10 + 8


def test_no_average_over_a_hole(world, tmp_path):
    options = {"answer": "server:table", "file": world.folder / "known.jsonl", "context": 75}
    with serve(**options) as short:
        cfg = at(world, tmp_path, [world.specs["math500"], world.specs["aime24"], world.specs["embedded"]],
                 backend="api", student_url=short.url)
        with pytest.raises(Unanswered, match="has not answered .* of .* requests .*context.*: run again"):
            evaluate(cfg, "gold", "Base")
    names = {p.name for p in cfg.path("predictions", "gold", "Base", "seed-0").glob("*.parquet")}
    assert names == {"math500.parquet", "aime24.parquet"} or names == {"math500.parquet"}, names
    assert evaluate(cfg.model_copy(update={"student_url": world.server.url}), "gold", "Base")["correct"].all()


def test_refused_and_cut_answers_are_wrong_and_kept(world, tmp_path):
    with serve(answer="server:table", file=world.folder / "known.jsonl",
               faults={"refusal": 0.2, "filter": 0.2, "cut": 0.3}, seed=1) as odd:
        cfg = at(world, tmp_path, [world.specs["math500"]], backend="api", student_url=odd.url)
        found = evaluate(cfg, "gold", "Base")
    cut = found["truncated"]
    assert 0 < cut.sum() < 20 and not found.loc[cut, "correct"].any()
    assert found.loc[cut, "output"].str.startswith("<think>\n").all() and not found.loc[cut, "output"].str.contains(
        "</think>").any()
    refused = found["output"].str.endswith("</think>\n\n")
    assert 0 < refused.sum() < 20 and (found["correct"] == ~(cut | refused)).all()


def test_a_very_long_answer(world, tmp_path):
    long = tmp_path / "long.jsonl"
    long.write_text("".join(
        json.dumps(fact | {"content": "So. " * 50_000 + fact["content"]}) + "\n"
        for fact in known(world.specs["aime24"], world.problems)))
    with serve(answer="server:table", file=long) as server:
        found = evaluate(at(world, tmp_path, [world.specs["aime24"]], backend="api", student_url=server.url), "gold",
                         "Base")
    assert (found["output"].str.len() > 200_000).all() and found["correct"].all()


@pytest.mark.parametrize("student, variant, changes, words", [
    ("no/such-student", "Base", {}, "no/such-student is not on this machine"),
    ("gpt-4o", "Base", {"backend": "api", "student_url": "https://127.0.0.2/v1", "student_key": "NO_KEY"},
     "gpt-4o needs an API key: set NO_KEY in the environment"),
    ("gpt-9", "Base", {"backend": "api", "student_url": "https://127.0.0.2/v1"}, "prices has nothing on gpt-9"),
    ("gold", "ST", {"backend": "api"}, "asks models as they came"),
    (LLAMA, "ST", {}, "has not been trained on ST with seed 0: run 3_finetune"),
    (LLAMA, "HC", {}, "set evaluate_teacher = true"),
    (LLAMA, "Base", {"eval_samples": 3}, "are all the same: set eval_temperature"),
    (LLAMA, "Base", {"backend": "vllm"}, r'pip install "smoltraces\[vllm\]"'),
    (LLAMA, "Base", {"specs": ["math500"]}, "math500")])
def test_what_cannot_work_is_one_sentence(world, tmp_path, monkeypatch, student, variant, changes, words):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(InputError, match=words) as error:
        evaluate(at(world, tmp_path, **{"specs": ["embedded"], **changes}), student, variant)
    assert str(error.value).endswith((".", "]")) and "\n" not in str(error.value)


# ---- transformers


def test_the_real_benchmarks_in_transformers(world, tmp_path):
    if len(world.real) < 2: pytest.skip("../shared/data/benchmarks is not there")
    cfg = at(world, tmp_path, world.real, max_new_tokens=2, eval_batch_size=64)
    found = evaluate(cfg, LLAMA, "Base")
    assert len(found) == 530 and found["n_tokens"].max() == 2 and found["truncated"].mean() > 0.9
    assert not found.duplicated(["benchmark", "problem_id"]).any()


def test_every_benchmark_in_transformers(world, tmp_path, counted):
    cfg = at(world, tmp_path, world.specs.values())
    found = evaluate(cfg, LLAMA, "Base")
    assert found.groupby("benchmark").size().to_dict() == {"embedded": 8, "embedded_hard": 4, "math500": 24,
                                                           "aime24": 10, "gpqa_diamond": 8}
    run = manifest(cfg, LLAMA, "math500")["run"]
    assert run["tokens"] == found.loc[found["benchmark"] == "math500", "n_tokens"].sum() and run["batch_size"] == 16
    assert not list(cfg.path("predictions").rglob(".*")) # no journal is left
    assert len(counted) == 54
    pd.testing.assert_frame_equal(evaluate(cfg, LLAMA, "Base"), found)
    assert len(counted) == 54 # finished is finished


def test_a_sealed_question_is_not_in_what_went_wrong(world, tmp_path):
    with serve(answer="server:table", file=world.folder / "known.jsonl", context=10) as short:
        cfg = at(world, tmp_path, [world.specs["gpqa_diamond"]], backend="api", student_url=short.url)
        with pytest.raises(Unanswered, match=r"has not answered 8 of 8 requests \(rejected\)"):
            evaluate(cfg, "gold", "Base")
    assert b"context" not in (tmp_path / "responses.sqlite").read_bytes() # the endpoint's words may repeat the prompt


def test_the_harness_agrees(world, tmp_path):
    cfg = at(world, tmp_path, world.specs.values(), backend="api")
    found = evaluate(cfg, "gold", "Base")
    rows = {row["id"]: row for spec in world.specs.values() for row in load_benchmark(
        spec, world.problems).to_dict("records")}
    for p in found.itertuples(): assert score(rows[p.problem_id], [p.output]) == {"acc": float(p.correct)}


def test_scored_again_where_only_the_scorer_changed(world, tmp_path, counted, monkeypatch):
    cfg = at(world, tmp_path, [world.specs["gpqa_diamond"], "embedded"])
    found, run = evaluate(cfg, LLAMA, "Base"), manifest(cfg, LLAMA, "embedded")["run"]
    monkeypatch.setattr(evaluation, "_scorer", lambda: {"code": "another"})
    pd.testing.assert_frame_equal(evaluate(cfg, LLAMA, "Base"), found)
    told = manifest(cfg, LLAMA, "embedded")
    assert told["scorer"] == {"code": "another"} and told["run"] == run and len(counted) == 16


def test_k_samples_do_not_depend_on_the_batch(world, tmp_path):
    changes = {"eval_samples": 3, "eval_temperature": 1.0, "eval_top_p": 0.001} # of 49,152 tokens, all about as likely
    cfg = at(world, tmp_path / "a", [world.specs["aime24"]], **changes)
    found = evaluate(cfg, LLAMA, "Base")
    assert found["sample"].tolist() == [0, 1, 2] * 10
    assert found.groupby("problem_id")["output"].nunique().sum() > 20
    small = evaluate(at(world, tmp_path / "b", [world.specs["aime24"]], **changes, eval_batch_size=3), LLAMA, "Base")
    pd.testing.assert_frame_equal(small, found)
    assert manifest(cfg, LLAMA, "aime24")["lm_eval"]["acc,all"] == pytest.approx(found["correct"].mean())


def test_memory_that_runs_out_is_told(world, tmp_path, monkeypatch):
    import torch
    from transformers import LlamaForCausalLM
    plain = LlamaForCausalLM.forward

    def forward(self, input_ids, *args, **options):
        if len(input_ids) > 5: raise torch.OutOfMemoryError("CUDA out of memory.")
        return plain(self, input_ids, *args, **options)

    whole = evaluate(at(world, tmp_path / "whole", [world.specs["math500"]]), LLAMA, "Base")
    monkeypatch.setattr(LlamaForCausalLM, "forward", forward)
    cfg = at(world, tmp_path, [world.specs["math500"]])
    pd.testing.assert_frame_equal(evaluate(cfg, LLAMA, "Base"), whole)
    assert manifest(cfg, LLAMA, "math500")["run"]["batch_size"] == 4


def test_an_adapter_is_put_on_its_base(world, tmp_path):
    adapter(world, cfg := at(world, tmp_path, ["embedded"]))
    base, tuned = evaluate(cfg, LLAMA, "Base"), evaluate(cfg, LLAMA, "ST")
    assert tuned["output"].tolist() == base["output"].tolist() # a new adapter changes nothing yet
    weights = [manifest(cfg, LLAMA, "embedded", v)["basis"]["backend"]["weights"] for v in ("Base", "ST")]
    assert weights[1].startswith(f"{weights[0]} + ")


def adapter(world, cfg) -> Path:
    "An adapter of rank 24 on the random Llama, as 3_finetune would have saved it for ST"
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM, AutoTokenizer
    folder, base = cfg.path("students", LLAMA.replace("/", "--"), "ST", "seed-0"), locate(LLAMA)
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(base), LoraConfig(r=24, target_modules=["q_proj"]))
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(base).save_pretrained(folder)
    (folder / "training.json").write_text("{}")
    return folder


# ---- killed


PROGRAM = """
import sys, threading
from smoltraces.evaluation.evaluate import Journal, evaluate
from smoltraces.settings import load_settings
from smoltraces.traces.store import Store

count = 0

def then_pause(method, size):
    def call(self, *args, **options):
        global count
        result = method(self, *args, **options)
        count += size(args)
        if count >= 7:
            print("paused", flush=True)
            threading.Event().wait()
        return result
    return call

Journal.add = then_pause(Journal.add, lambda args: 1)
Store.put = then_pause(Store.put, lambda args: len(args[0]))
evaluate(load_settings("smoke", **eval(sys.argv[1])), sys.argv[2], "Base")
"""


def killed(cfg, student: str, **options):
    "An evaluation in a process of its own, which pauses once seven answers are kept, and is killed there"
    options = {"out": cfg.out, "benchmarks": list(cfg.benchmarks), "confirm": False, **options}
    process = subprocess.Popen([sys.executable, "-c", PROGRAM, repr(options), student], cwd=ROOT, env=environment(),
                               stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    assert "paused\n" in iter(process.stdout.readline, ""), "it ended before it was killed"
    process.kill()
    process.wait()
    process.stdout.close()


@pytest.mark.slow
def test_killed_and_resumed(world, tmp_path, counted):
    specs, changes = [world.specs["math500"], world.specs["gpqa_diamond"]], {"max_new_tokens": 12}
    cfg = at(world, tmp_path, specs, **changes)
    file = journal(cfg, "math500")
    killed(cfg, LLAMA, **changes, eval_batch_size=1)
    assert file.read_bytes().count(b"\n") == 1 + 7
    with open(file, "ab") as f: f.write(b'{"problem_id": "0123", "output": "It is') # the line that it was writing
    found = evaluate(cfg, LLAMA, "Base")
    assert len(counted) == 32 - 7 and not file.exists()
    whole = evaluate(at(world, tmp_path / "whole", specs, **changes), LLAMA, "Base")
    pd.testing.assert_frame_equal(found, whole)


def test_interrupted_and_other_settings(world, tmp_path, monkeypatch, counted, capsys):
    cfg, plain = at(world, tmp_path, [world.specs["gpqa_diamond"]]), decoding.answers

    def interrupted(*args, **options):
        yield from itertools.islice(plain(*args, **options), 3)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(decoding, "answers", interrupted)
        with pytest.raises(KeyboardInterrupt): evaluate(cfg, LLAMA, "Base")
    assert len(journal(cfg, "gpqa_diamond").read_text().splitlines()) == 4
    counted.clear()
    evaluate(cfg.model_copy(update={"eval_batch_size": 2}), LLAMA, "Base") # the batch is nothing an answer depends on
    assert len(counted) == 5 and "anew" not in capsys.readouterr().out
    shutil.rmtree(cfg.path("predictions"))
    with monkeypatch.context() as patch:
        patch.setattr(decoding, "answers", interrupted)
        with pytest.raises(KeyboardInterrupt): evaluate(cfg, LLAMA, "Base")
    counted.clear()
    evaluate(cfg.model_copy(update={"max_new_tokens": 4}), LLAMA, "Base")
    assert len(counted) == 8 and "begins anew, since its task, sampling changed" in capsys.readouterr().out


@pytest.mark.slow
def test_an_endpoint_run_that_is_killed_asks_nothing_twice(world, tmp_path):
    with serve(answer="server:table", file=world.folder / "known.jsonl", log=tmp_path / "paid.jsonl") as server:
        changes = {"backend": "api", "student_url": server.url, "in_flight": 2, "max_new_tokens": 8}
        cfg = at(world, tmp_path, [world.specs["math500"]], **changes)
        killed(cfg, "gold", **changes)
        assert 7 <= len(server.paid()) < 24
        assert evaluate(cfg, "gold", "Base")["correct"].all()
        assert len(server.paid()) <= 24 + 2 # those in flight when it died


# ---- sealed


def test_nothing_of_a_sealed_benchmark_is_readable(world, tmp_path, monkeypatch, capfd):
    spec, plain = world.specs["gpqa_diamond"], decoding.answers
    teacher = {"teacher_lm": "gold", "evaluate_teacher": True}
    evaluate(at(world, tmp_path / "api", [spec], **teacher, eval_samples=2, eval_temperature=0.5), "gold", "HC")
    cfg = at(world, tmp_path / "hf", [spec])

    def repeated(model, tokenizer, prompts, *args, **options):
        for n, (i, answer) in enumerate(plain(model, tokenizer, prompts, *args, **options)):
            if n == 5: raise KeyboardInterrupt
            yield i, answer._replace(output=f"I was asked: {prompts[i]}\n\nIt is \\boxed{{{n} frindle}}.")

    monkeypatch.setattr(decoding, "answers", repeated)
    with pytest.raises(KeyboardInterrupt): evaluate(cfg, LLAMA, "Base")
    assert journal(cfg, "gpqa_diamond").exists()
    said = capfd.readouterr()
    files = [p for p in tmp_path.rglob("*") if p.is_file()]
    assert {p.suffix for p in files} >= {".parquet", ".json", ".jsonl", ".sqlite"}
    for text in [said.out.encode(), said.err.encode(), *(p.read_bytes() for p in files)]:
        assert not [word for word in SECRETS if word.encode() in text]
    with SealedStore(tmp_path / "api" / "responses.sqlite") as store:
        keys = [row["key"] for row in store.rows()]
        assert len(keys) == 16 and all("zorblatt" in r.thinking for r in store.get_many(keys).values())
        assert not [w for w in SECRETS if w in store.export(tmp_path / "export.parquet").read_bytes().decode("latin-1")]
        assert not any(w in str(row) for row in store.rows() for w in SECRETS)


# ---- vLLM, by its signatures

STUB = '''
from types import SimpleNamespace
calls = []

class SamplingParams:
    def __init__(self, *, n=1, temperature=1.0, top_p=1.0, seed=None, max_tokens=16): self.__dict__.update(locals())

class LLM:
    def __init__(self, model, *, tokenizer=None, dtype="auto", revision=None, seed=0, max_model_len=None,
                 max_num_seqs=None, enable_lora=False, max_lora_rank=16): calls.append(locals())

    def generate(self, prompts, sampling_params=None, *, use_tqdm=True, lora_request=None):
        assert len(prompts) == len(sampling_params)
        calls.append((prompts, sampling_params, lora_request))
        return [SimpleNamespace(outputs=[SimpleNamespace(text=f"It is \\\\boxed{{{len(p['prompt_token_ids'])}}}.",
                                                         token_ids=(1,) * (s.max_tokens if i % 2 else 3),
                                                         finish_reason="length" if i % 2 else "stop")])
                for i, (p, s) in enumerate(zip(prompts, sampling_params))]
'''


@pytest.fixture
def vllm(tmp_path, monkeypatch):
    "A module with the part of vLLM 0.32.0's signatures that is used"
    package = tmp_path / "site" / "vllm"
    (package / "lora").mkdir(parents=True)
    (package / "__init__.py").write_text(STUB)
    (package / "lora" / "__init__.py").write_text("")
    (package / "lora" / "request.py").write_text(
        "from typing import NamedTuple\nclass LoRARequest(NamedTuple):\n"
        "    lora_name: str\n    lora_int_id: int\n    lora_path: str = ''\n")
    monkeypatch.syspath_prepend(package.parent)
    import vllm
    yield vllm
    for name in [n for n in sys.modules if n.partition(".")[0] == "vllm"]: del sys.modules[name]


def test_vllm(world, tmp_path, vllm):
    cfg = at(world, tmp_path, [world.specs["aime24"]], backend="vllm", eval_samples=2, eval_temperature=0.6)
    found = evaluate(cfg, LLAMA, "Base")
    assert found["truncated"].sum() == 10 and set(found["n_tokens"]) == {3, 8}
    engine, (prompts, sampling, lora) = vllm.calls
    assert engine["dtype"] == "float32" and engine["max_num_seqs"] == 16 and lora is None
    assert len({s.seed for s in sampling}) == 20 and {(s.temperature, s.max_tokens) for s in sampling} == {(0.6, 8)}
    assert manifest(cfg, LLAMA, "aime24")["basis"]["backend"]["name"] == "vllm"


def test_vllm_with_an_adapter(world, tmp_path, vllm):
    cfg = at(world, tmp_path, ["embedded"], backend="vllm")
    folder = adapter(world, cfg)
    evaluate(cfg, LLAMA, "ST")
    engine, (prompts, sampling, lora) = vllm.calls
    assert engine["enable_lora"] and engine["max_lora_rank"] == 32 and lora == ("adapter", 1, str(folder))
    assert {s.seed for s in sampling} == {None} and {s.temperature for s in sampling} == {0}


# ---- prompts

HELLO = [{"role": "user", "content": "Hello"}]


def test_thinking_that_the_template_opened_belongs_to_the_answer(world, tmp_path):
    cfg = at(world, tmp_path, ["embedded"])
    student = backend_of(cfg, LLAMA, "Base")
    student.tokenizer.chat_template += "{{ '<think>\n' }}"
    prompt = student.prompt(HELLO)
    [(_, answer)] = student.answers([Query({"id": "0" * 16}, 0, prompt)])
    assert prompt.endswith("<think>\n") and answer.output.startswith("<think>\n")
    student.tokenizer.chat_template = "{{ raise_exception('only one message') }}"
    with pytest.raises(InputError, match="does not take a system, a user and .*only one"): student.prompt(HELLO)


def test_todays_date_is_in_no_prompt(world, tmp_path):
    student = backend_of(at(world, tmp_path, ["embedded"]), LLAMA, "Base")
    student.tokenizer.chat_template = ("{% if date_string is not defined %}"
                                       "{% set date_string = strftime_now('%d %b %Y') %}"
                                       "{% endif %}Today: {{ date_string }}")
    assert student.prompt(HELLO) == "Today: 26 Jul 2024"
