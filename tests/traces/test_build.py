"""The data stage at work on corpora of the public shapes, with models behind a local endpoint that speaks the API."""
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import actors
import pandas as pd
import pexpect
import pytest
from batch_server import serve_batches
from conftest import ROOT, SECRET, environment, project, smoltraces
from server import serve

from smoltraces.files import read_json, sha256
from smoltraces.problems.sandbox import isolation
from smoltraces.problems.selection import build_problems
from smoltraces.schema import load_variant, trace_schema
from smoltraces.settings import InputError, load_settings
from smoltraces.traces.variants import build_variants

VARIANTS = ("ST-NT", "SBS", "ST-HC-W", "ST-HC", "ST")
CORPORA = ("numina-math-cot", "omni-math", "agieval", "livecodebench", "olympic-arena")


@pytest.fixture(scope="module")
def files(tmp_path_factory): return actors.write(tmp_path_factory.mktemp("corpora"))


@pytest.fixture(scope="module")
def answering(files, tmp_path_factory):
    "A server that plays R1, GPT-4o and GPT-4o-mini"
    log = tmp_path_factory.mktemp("server") / "paid.jsonl"
    with serve(answer="actors:act", answers=files["answers"], log=log, key=SECRET, latency=0.02) as server: yield server


def settings(files, server, **more) -> dict[str, str]:
    "As one would write them on the command line"
    url, key = server.url, "PLANTED_API_KEY"
    roles = {f"teacher_{r}{part}": value for r, model in (("rlm", "r1"), ("lm", "big"), ("wrong", "small"))
             for part, value in (("", model), ("_url", url), ("_key", key))}
    return {"source": "corpora", "corpora": ", ".join(f"{c}@{files[c]}" for c in CORPORA), "n_problems": "70",
            "decontaminate": f"math500@{files['math500']}", "n_train": "24", "confirm": "false", "budget_usd": "5",
            "prices": "r1 0.55 2.19, big 2.5 10, small 0.15 0.6", "unsafe_code": str(isolation() is None),
            **roles, **more}


def flags(chosen: dict[str, str]) -> list[str]:
    return ["--profile", "smoke", "--only", "build", *(a for k, v in chosen.items() for a in ("-s", f"{k}={v}"))]


def build(folder: Path, chosen: dict[str, str]) -> subprocess.CompletedProcess:
    return smoltraces("reproduce", *flags(chosen), cwd=folder)


@pytest.fixture(scope="module")
def built(files, answering, tmp_path_factory):
    folder = project(tmp_path_factory.mktemp("built"))
    done = build(folder, settings(files, answering))
    assert done.returncode == 0, done.stderr
    return folder


def out(folder: Path) -> Path: return folder / "outputs" / "smoke"


def hashes(folder: Path) -> dict[str, str]: return {v: sha256(out(folder) / "data" / f"{v}.parquet") for v in VARIANTS}


def bodies(server) -> list[str]: return [line["body"] for line in server.paid()]


def test_five_variants_over_the_same_problems(built):
    tables = {v: pd.read_parquet(out(built) / "data" / f"{v}.parquet") for v in VARIANTS}
    for variant, rows in tables.items():
        assert list(rows.columns) == trace_schema.names and len(rows) == 24
        assert list(rows["id"]) == list(tables["ST"]["id"])
        assert (rows["correct"] == (variant != "ST-HC-W")).all()
        assert rows["trace"].isna().all() == (variant == "ST-NT")
    st = tables["ST"]
    assert {"math", "code"} <= set(st["domain"]) and {"math", "choice", "code"} <= set(st["answer_kind"])
    code = st["answer_kind"] == "code"
    assert st.loc[~code, "response"].str.contains(r"\\boxed\{").all()
    assert all(tables[v].loc[code.values, "response"].str.contains("```python").all() for v in VARIANTS)
    assert set(st["teacher"]) == {"r1"} and set(tables["SBS"]["prompt"]) == {"step-by-step@1"}
    moved = tables["ST-HC-W"]["trace"].str.split().str.len() / tables["ST-HC"]["trace"].str.split().str.len()
    assert moved.between(0.85, 1.15).all()


def test_the_funnel_and_the_costs_add_up(built, files):
    manifest = read_json(out(built) / "data" / "manifest.json")
    steps = [step["problems"] for step in manifest["funnel"]]
    assert steps == sorted(steps, reverse=True) and steps[-1] == 24 and steps[0] > 40
    for step in manifest["funnel"]:
        assert step["problems"] == sum(n for domain, n in step.items() if domain not in ("step", "problems"))
    asked = None
    for variant in ("ST", "ST-HC", "SBS", "ST-HC-W", "ST-NT"):
        facts = manifest["variants"][variant]
        assert facts["usable"] + sum(facts["dropped"].values()) == facts["asked"]
        assert asked is None or facts["asked"] == asked
        asked = facts["usable"]
        if variant in ("ST", "ST-HC"): assert facts["dropped"].get("answer is wrong", 0) > 0
    st = manifest["variants"]["ST"]
    assert st["cost_usd"] == pytest.approx((0.55 * st["prompt_tokens"] + 2.19 * st["completion_tokens"]) / 1e6)
    assert sum(s["cost_usd"] for s in manifest["spent"].values()) == pytest.approx(
        sum(f["cost_usd"] for f in manifest["variants"].values()))
    mix = pd.read_parquet(out(built) / "data" / "ST.parquet")["domain"].value_counts(normalize=True)
    left = manifest["funnel"][-2]
    for domain, share in mix.items(): assert abs(share - left[domain] / left["problems"]) <= 1.01 / 24


def test_what_was_removed_can_be_read(built):
    removed = pd.read_parquet(out(built) / "problems" / "removed.parquet")
    text = removed.to_json()
    assert "flags" in text and removed["reason"].str.contains("math500").any()
    problems = pd.read_parquet(out(built) / "problems.parquet")
    assert not problems["question"].str.contains("seven distinct flags|infinitely many primes|picture show").any()


def test_no_secret_anywhere(built):
    for path in out(built).parent.rglob("*"):
        if path.is_file(): assert SECRET.encode() not in path.read_bytes(), path


def test_nothing_is_asked_twice(built, files, answering, monkeypatch):
    monkeypatch.setenv("PLANTED_API_KEY", SECRET)
    before, data = bodies(answering), hashes(built)
    assert len(before) == len(set(before))
    cfg = load_settings("smoke", built, **settings(files, answering))
    for v in VARIANTS: cfg.path("data", f"{v}.parquet").unlink()
    build_variants(cfg)
    assert bodies(answering) == before and hashes(built) == data


@pytest.mark.slow
def test_killed_and_resumed_gives_the_same_data(built, files, tmp_path):
    folder, log, said = project(tmp_path), tmp_path / "paid.jsonl", tmp_path / "said"
    with serve(answer="actors:act", answers=files["answers"], log=log, key=SECRET, latency=0.1) as server:
        chosen = settings(files, server, in_flight="8")
        command = [str(Path(sys.executable).parent / "smoltraces"), "reproduce", *flags(chosen)]
        for stop_at in (30, 120):
            run = subprocess.Popen(command, cwd=folder, env=environment(), start_new_session=True,
                                   stdout=subprocess.DEVNULL, stderr=open(said, "w"))
            while run.poll() is None and len(bodies(server)) < stop_at: time.sleep(0.02)
            assert run.poll() is None, said.read_text()
            for child in children(run.pid): os.kill(child, signal.SIGKILL)
            run.wait()
        done = build(folder, chosen)
        assert done.returncode == 0, done.stderr
        asked = bodies(server)
        assert len(asked) - len(set(asked)) <= 2 * 8, "only what was in flight at a kill may be paid for again"
    assert hashes(folder) == hashes(built)


def children(pid: int) -> list[int]:
    "The process and all below it, itself last: kernels run in sessions of their own"
    import psutil
    return [*(p.pid for p in psutil.Process(pid).children(recursive=True)), pid]


def in_process(files, server, folder: Path, **more):
    chosen = settings(files, server, out=str(folder / "outputs"), **more)
    return load_settings("smoke", ROOT, **chosen)


def test_more_samples_save_problems(files, tmp_path, monkeypatch):
    monkeypatch.setenv("PLANTED_API_KEY", SECRET)
    usable = {}
    for samples in (1, 3):
        with serve(answer="actors:act", answers=files["answers"], key=SECRET, vary=True) as server:
            cfg = in_process(files, server, tmp_path / str(samples), samples=samples, variants="ST, ST-NT")
            build_problems(cfg)
            facts = build_variants(cfg)["variants"]["ST"]
            usable[samples], calls = facts["usable"], server.stats()["paid"]
    assert usable[1] < usable[3] and facts["asked"] < calls < 1.4 * facts["asked"]


def test_batches_bring_the_same_answers_at_half_the_price(built, files, tmp_path, monkeypatch):
    monkeypatch.setenv("PLANTED_API_KEY", SECRET)
    pause = time.sleep
    monkeypatch.setattr(time, "sleep", lambda seconds: pause(min(seconds, 0.1)))
    with serve_batches(answer="actors:act", answers=files["answers"], key=SECRET) as server:
        cfg = in_process(files, server, tmp_path, batch="lm, wrong", budget_usd=50)
        build_problems(cfg)
        manifest = build_variants(cfg)
    whole = read_json(out(built) / "data" / "manifest.json")["variants"]
    for v, share in {"ST": 1, "ST-HC": 0.5, "SBS": 0.5, "ST-HC-W": 0.5}.items():
        assert manifest["variants"][v]["cost_usd"] == pytest.approx(share * whole[v]["cost_usd"])
        ours, theirs = load_variant(cfg, v), pd.read_parquet(out(built) / "data" / f"{v}.parquet")
        assert (ours[["id", "trace", "response"]] == theirs[["id", "trace", "response"]]).all(axis=None)


def test_wrong_key_stops_at_once(files, answering, tmp_path, monkeypatch):
    monkeypatch.setenv("PLANTED_API_KEY", "sk-not-the-key")
    cfg = in_process(files, answering, tmp_path, variants="ST")
    build_problems(cfg)
    with pytest.raises(InputError, match="PLANTED_API_KEY") as error: build_variants(cfg)
    assert "sk-not" not in str(error.value)
    assert not list(cfg.path("data").glob("*"))


@pytest.mark.slow
def test_asks_before_the_first_paid_call(files, answering, tmp_path):
    folder, before = project(tmp_path), bodies(answering)
    chosen = settings(files, answering, confirm="true", temperature="0.5")
    done = build(folder, chosen)
    assert done.returncode == 2 and "confirm" in done.stderr and "$" in done.stderr, done.stderr
    assert bodies(answering) == before
    command = str(Path(sys.executable).parent / "smoltraces")
    terminal = pexpect.spawn(command, ["reproduce", *flags(chosen)], timeout=120, cwd=str(folder), encoding="utf-8",
                             env=environment(), dimensions=(40, 300))
    terminal.expect(r"Ask them\? \[y/N\]: ")
    assert "at the prices of" in terminal.before and bodies(answering) == before
    terminal.sendline("y")
    terminal.expect(pexpect.EOF)
    terminal.close()
    assert terminal.exitstatus == 0 and len(bodies(answering)) > len(before)


def test_a_local_model_without_a_price_is_asked_at_once(files, answering, tmp_path, monkeypatch):
    monkeypatch.setenv("PLANTED_API_KEY", SECRET)
    cfg = in_process(files, answering, tmp_path, confirm=True, prices="", variants="ST", n_problems=40, n_train=10)
    build_problems(cfg)
    assert build_variants(cfg)["variants"]["ST"]["cost_usd"] == 0


def test_the_cap_is_never_passed_and_a_higher_one_goes_on(files, answering, tmp_path, monkeypatch):
    monkeypatch.setenv("PLANTED_API_KEY", SECRET)
    low = in_process(files, answering, tmp_path, budget_usd=0.002, variants="ST", teacher_max_tokens=400)
    build_problems(low)
    with pytest.raises(InputError, match="budget_usd"): build_variants(low)
    from smoltraces.traces.store import Store
    with Store(low.path().parent / low.store) as store: spent = sum(s.cost_usd for s in store.spent().values())
    assert 0 < spent <= 0.002
    more = build_variants(low.model_copy(update={"budget_usd": 5.0}))
    assert more["variants"]["ST"]["usable"] >= 24


def test_published_traces_become_st_without_a_key(files, tmp_path):
    known = json.loads(files["answers"].read_text())
    rows = []
    for i, (question, fact) in enumerate(known.items()):
        if fact["kind"] != "math": continue
        answer = fact["answer"] if i % 4 else "-1"
        rows.append({"question": question, "answer": fact["answer"], "thinking": "I add. Wait, let me check. It holds.",
                     "response": f"It is \\boxed{{{answer}}}."})
    file = actors.lines(tmp_path / "traces.jsonl", rows)
    cfg = load_settings("smoke", ROOT, out=str(tmp_path / "outputs"), source="corpora", teacher_rlm="published",
                        corpora=f"{file}?question=question&answer=answer&trace=thinking&response=response",
                        decontaminate="", variants="ST, ST-NT", n_train=20)
    build_problems(cfg)
    manifest = build_variants(cfg)
    assert manifest["variants"]["ST"]["dropped"]["answer is wrong"] > 5
    table = load_variant(cfg, "ST")
    assert table["trace"].str.contains("Wait").all() and table["correct"].all()


def test_real_rows_go_the_same_way(tmp_path, monkeypatch):
    data = ROOT.parent / "shared" / "data"
    if not data.exists(): pytest.skip("needs ../shared/data, real rows of the corpora")
    monkeypatch.setenv("PLANTED_API_KEY", SECRET)
    real = {"corpora": f"agieval@{data}/corpora/agieval, omni-math@{data}/corpora/omni_math.jsonl", "n_problems": "250",
            "decontaminate": f"math500@{data}/benchmarks/math500.jsonl, aime24@{data}/benchmarks/aime24.jsonl",
            "n_train": "100", "variants": "ST, ST-NT"}
    start = load_settings("smoke", ROOT, out=str(tmp_path / "outputs"), source="corpora", **real)
    train = build_problems(start).query("split == 'train'")
    answers = {row.question: {"kind": row.answer_kind, "answer": row.answer} for row in train.itertuples()}
    (tmp_path / "answers.json").write_text(json.dumps(answers))
    with serve(answer="actors:act", answers=tmp_path / "answers.json", key=SECRET) as server:
        cfg = load_settings("smoke", ROOT, **{**settings({c: "" for c in (*CORPORA, "math500")}, server),
                                              **real, "out": str(tmp_path / "outputs")})
        manifest = build_variants(cfg)
    assert len(load_variant(cfg, "ST")) == 100
    assert manifest["variants"]["ST"]["usable"] > 0.8 * len(train)
