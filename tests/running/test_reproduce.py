"""The smoke profile, whole: every file of the data contract, reruns, kills, secrets, plain papermill."""
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import datasets
import pandas as pd
import pytest
from conftest import SECRET, environment, project, smoltraces
from kills import Background, runs

from smoltraces.evaluation.evaluate import prediction_schema
from smoltraces.files import sha256
from smoltraces.running.stages import plan
from smoltraces.schema import problem_schema, trace_schema
from smoltraces.settings import load_settings

VARIANTS = ("ST-NT", "SBS", "ST-HC-W", "ST-HC", "ST")
STUDENT = "embedded--random-llama"


def out(folder: Path) -> Path: return folder / "outputs" / "smoke"


def test_every_file_of_the_contract(smoke):
    o, settings = out(smoke), load_settings("smoke", smoke)
    problems = pd.read_parquet(o / "problems.parquet")
    assert list(problems.columns) == problem_schema.names
    assert problems["id"].is_unique and problems["id"].str.fullmatch("[0-9a-f]{16}").all()
    sizes = problems["split"].value_counts()
    assert (sizes["embedded"], sizes["embedded_hard"]) == (settings.n_test, settings.n_hard)
    for variant in VARIANTS:
        rows = pd.read_parquet(o / "data" / f"{variant}.parquet")
        assert list(rows.columns) == trace_schema.names and len(rows) == settings.n_train
        assert set(rows["split"]) == {"train"}
        assert (rows["correct"] == (variant != "ST-HC-W")).all()
        assert rows["trace"].isna().all() == (variant == "ST-NT")
        assert rows["response"].str.contains(r"\\boxed\{").all()
        assert (o / "style" / f"{variant}.parquet").is_file()
        student = o / "students" / STUDENT / variant / "seed-0"
        assert {"model.safetensors", "config.json", "training.json", "log.parquet", "tokenizer.json"} <= set(
            os.listdir(student))
        log = pd.read_parquet(student / "log.parquet")
        assert len(log) == json.loads((student / "training.json").read_text())["steps"] == 3
        assert log["loss"].notna().all()
    for variant in ("Base", *VARIANTS):
        for benchmark, n in (("embedded", settings.n_test), ("embedded_hard", settings.n_hard)):
            rows = pd.read_parquet(o / "predictions" / STUDENT / variant / "seed-0" / f"{benchmark}.parquet")
            assert list(rows.columns) == prediction_schema.names
            assert set(rows["problem_id"]) == set(problems.loc[problems["split"] == benchmark, "id"]) and len(rows) == n
    results = pd.read_parquet(o / "results.parquet")
    assert len(results) == 12 and {"n", "seeds", "accuracy", "ci_low", "ci_high"} <= set(results.columns)
    assert (results["ci_low"] <= results["accuracy"]).all() and (results["accuracy"] <= results["ci_high"]).all()
    pairs, claims = (pd.read_parquet(o / f"{name}.parquet") for name in ("comparisons", "claims"))
    assert len(pairs) == 20 and (pairs["p"] <= pairs["p_holm"]).all() and set(pairs["n"]) == {8, 4}
    assert set(claims["verdict"]) <= {"supported", "refused", "undecided", "not run"} and len(claims)
    assert (o / "report.html").stat().st_size > 10_000
    for kind, endings in (("tables", "csv md tex"), ("figures", "png svg pdf")):
        for ending in endings.split(): assert list((o / kind).glob(f"*.{ending}")), (kind, ending)
    assert len(list((o / "notebooks").glob("*.ipynb"))) == len(plan(settings)) == 15


def test_variants_hold_the_same_problems_in_the_same_order(smoke):
    ids = [list(pd.read_parquet(out(smoke) / "data" / f"{v}.parquet")["id"]) for v in VARIANTS]
    assert all(i == ids[0] for i in ids)
    problems = pd.read_parquet(out(smoke) / "problems.parquet")
    assert not set(ids[0]) & set(problems.loc[problems["split"] != "train", "id"])


def test_datasets_reads_a_variant(smoke, tmp_path):
    file = str(out(smoke) / "data" / "ST.parquet")
    rows = datasets.load_dataset("parquet", data_files=file, split="train", cache_dir=str(tmp_path))
    assert rows.column_names == trace_schema.names


def test_manifest_hashes_and_counts(smoke):
    manifest = json.loads((out(smoke) / "data" / "manifest.json").read_text())
    for variant, facts in manifest["variants"].items():
        assert facts["sha256"] == sha256(out(smoke) / "data" / f"{variant}.parquet")
        assert facts["usable"] + sum(facts["dropped"].values()) == facts["asked"]


def texts(folder: Path):
    for path in folder.rglob("*"):
        if path.is_file() and path.suffix in (".json", ".ipynb", ".html", ".md", ".csv", ".tex", ".svg", ".jinja", ""):
            yield path, path.read_text(encoding="utf-8", errors="replace")
        elif path.is_file(): yield path, path.read_bytes().decode("latin-1")


def test_no_secret_and_no_path_of_the_machine(smoke):
    private = [SECRET, str(smoke), str(Path.home()) + "/", sys.prefix]
    found = [(path.name, p) for path, text in texts(out(smoke)) for p in private if p in text]
    assert found == []


def test_a_rerun_does_nothing(smoke):
    def times(): return {p: p.stat().st_mtime_ns for p in out(smoke).rglob("*") if p.is_file() and p.name[0] != "."}
    before = times()
    done = smoltraces("reproduce", "--profile", "smoke", cwd=smoke)
    assert done.returncode == 0 and "0 stages ran" in done.stdout, done.stdout + done.stderr
    assert times() == before


def test_a_changed_setting_reruns_what_depends_on_it(smoke):
    command = ("reproduce", "--profile", "smoke", "--dry-run", "-s", "bootstrap=500")
    shown = smoltraces(*command, cwd=smoke, COLUMNS="150").stdout
    assert shown.count(" done") == 13 and re.search(r"5_figures +stale \(setting bootstrap changed\)", shown), shown
    shown = smoltraces("status", "--profile", "smoke", "-s", "max_new_tokens=8", cwd=smoke, COLUMNS="150").stdout
    assert shown.count("setting max_new_tokens changed") == 6, shown


@pytest.mark.slow
def test_killed_run_resumes_on_ray_to_the_same_results(smoke, tmp_path):
    folder = project(tmp_path)
    run = Background(folder)
    run.until(lambda: len(list(runs(folder).glob("3_finetune*-0.json"))) >= 2 and
              list(runs(folder).glob("[34]*.running.ipynb")))  # within other stages
    run.kill()
    finished = {p: p.read_text() for p in runs(folder).glob("[1-5]*.json")}
    assert 3 <= len(finished) < 15
    done = smoltraces("reproduce", "--profile", "smoke", "--engine", "ray", cwd=folder)
    assert done.returncode == 0, done.stderr
    assert {p: p.read_text() for p in finished} == finished
    assert f"{15 - len(finished)} stages ran" in done.stdout
    assert {p.name for p in out(folder).rglob(".*")} <= {".locks"}
    for name in ["problems.parquet", *(f"data/{v}.parquet" for v in VARIANTS)]:
        assert (out(folder) / name).read_bytes() == (out(smoke) / name).read_bytes(), name
    pd.testing.assert_frame_equal(pd.read_parquet(out(folder) / "results.parquet"),
                                  pd.read_parquet(out(smoke) / "results.parquet"))
    same = smoltraces("diff", str(out(smoke)), str(out(folder)), cwd=folder)  # weights, predictions, tables, figures
    assert same.returncode == 0, same.stdout + same.stderr


@pytest.mark.slow
def test_ctrl_c_stops_and_says_how_to_go_on(tmp_path):
    folder = project(tmp_path)
    run = Background(folder)
    run.until((runs(folder) / "2_analyse_traces-teachers.json").exists)
    run.interrupt()
    assert run.end() == 130 and "the same command goes on" in run.err, run.err
    done = {p.name for p in runs(folder).glob("[1-5]*.json")}
    assert {"1_build_data.json", "2_analyse_traces-teachers.json"} <= done and len(done) < 15


@pytest.mark.slow
@pytest.mark.parametrize("where", [".", "nbs/experiments"])
@pytest.mark.parametrize("notebook", ["1_build_data", "2_analyse_traces", "3_finetune", "4_evaluate", "5_figures"])
def test_plain_papermill(smoke, tmp_path_factory, notebook, where):
    "As JupyterLab's Run-All does: the notebook's own folder as working folder; and from the project's"
    if where == "." and notebook in ("3_finetune", "4_evaluate"): pytest.skip("the same code path, and slow")
    folder = tmp_path_factory.getbasetemp() / "papermill"
    if not folder.exists():
        project(folder)
        shutil.copytree(out(smoke), out(folder))
    command = [Path(sys.executable).parent / "papermill", f"nbs/experiments/{notebook}.ipynb", "executed.ipynb",
               "-p", "profile", "smoke", "--cwd", where]
    done = subprocess.run(command, cwd=folder, env=environment(), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
