"""What a run would do and how it stands, from files alone; what a terminal and a notebook show of it."""
import io
import json
import shutil

import nbformat
import pytest
from conftest import ROOT, SECRET, project, smoltraces
from rich.console import Console

from smoltraces.files import sha256, write_json, write_text
from smoltraces.running.execute import executed_path, failure_path, hold
from smoltraces.running.stages import basis, plan, record_path
from smoltraces.running.status import opens, preview, show, show_preview, status, tree
from smoltraces.settings import load_settings


@pytest.fixture
def run(tmp_path):
    "The settings of a small matrix in a folder of its own"
    return load_settings("smoke", project(tmp_path), variants="SBS, ST", seeds="0:2")


def finish(cfg, stage, seconds=60.0, usd=0.0):
    "What a stage leaves when it is done"
    for name in stage.outputs: write_text(cfg.path(name), f"made by {stage}")
    facts = {"stage": stage.name, **basis(cfg, stage), "seconds": seconds, "cost_usd": usd}
    write_json(record_path(cfg, stage), facts | {"outputs": {name: sha256(cfg.path(name)) for name in stage.outputs}})


def printed(*parts, width=120) -> str:
    out = io.StringIO()
    for part in parts: Console(file=out, width=width).print(part)
    return out.getvalue()


def test_a_dry_run_of_the_paper_invents_no_time(tmp_path):
    shown = smoltraces("reproduce", "--profile", "paper", "--dry-run", cwd=project(tmp_path), COLUMNS="200").stdout
    assert "time unknown" in shown and "year" not in shown and "about 5" not in shown, shown
    assert "To come: unknown time (no record on this machine yet)" in shown and " requests" in shown


def test_a_dry_run_counts_what_it_knows(run):
    for stage in plan(run)[:4]: finish(run, stage)
    plan_of_run = preview(run)
    assert [row.state for row in plan_of_run.rows[:5]] == ["done"] * 4 + ["new"]
    text = printed(tree(plan_of_run), plan_of_run.summary())
    assert "3_finetune seed 1  new  60 seconds" in text and "5_figures  new  time unknown" in text, text
    assert "13 stages: 4 done, 9 new. To come: about " in text and "and 2 stages of unknown length" in text


def test_a_dry_run_as_json(run, capsys):
    show_preview(preview(run, only="4_evaluate"), as_json=True)
    rows = json.loads(capsys.readouterr().out)
    assert len(rows) == 5 and {row["state"] for row in rows} == {"new"}
    assert rows[0].keys() == {"stage", "state", "why", "seconds", "ram_gb", "gpu_gb", "usd", "requests"}
    assert rows[0]["seconds"] is None and rows[0]["usd"] == 0


def test_status_counts_time_and_money(run):
    stages = plan(run)
    finish(run, stages[0], usd=1.5)
    finish(run, stages[1])
    finish(run, stages[3], seconds=300.0)
    with hold(run.path("runs"), stages[4].name): shown = json.loads(status(run).as_json())
    by = {row["stage"]: row for row in shown["stages"]}
    assert by[stages[4].name]["state"] == "running" and by[stages[4].name]["owner"].startswith("process ")
    assert shown["usd"] == 1.5 and "Paid: $1.50." in shown["summary"]
    assert shown["remaining_seconds"] > 0 and shown["unknown_stages"] == 7 # evaluations, analysis, figures
    changed = load_settings("smoke", run.root, variants="SBS, ST", seeds="0:2", epochs=2.0)
    assert {row.stage.name: row.why for row in status(changed).of("stale")} == {
        stages[3].name: "setting epochs changed"}


def test_a_failure_leads_to_its_cell(run, monkeypatch, capsys):
    stage = plan(run)[3]
    page = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell("1"), nbformat.v4.new_code_cell("1 / 0")])
    page.cells[1].outputs = [nbformat.v4.new_output("error", ename="ZeroDivisionError", evalue="", traceback=[])]
    executed_path(run, stage).parent.mkdir(parents=True)
    nbformat.write(page, executed_path(run, stage))
    write_json(failure_path(run, stage), {"why": "ZeroDivisionError: division by zero", "seconds": 3.0})
    monkeypatch.chdir(run.root / "nbs" / "experiments")
    link = f"(../../outputs/smoke/notebooks/{stage.name}.ipynb#cell-id={page.cells[1].id})"
    stands = status(run)
    assert link in opens(run, stage) and link in stands._repr_markdown_()
    monkeypatch.setenv("COLUMNS", "150")
    show(run)
    text = capsys.readouterr().out
    assert "3_finetune seed 0  failed (ZeroDivisionError: division by zero)" in text
    assert f"outputs/smoke/notebooks/{stage.name}.ipynb" in text and f"outputs/smoke/runs/{stage.name}.log" in text
    failure_path(run, stage).write_text("{")
    assert status(run).of("failed")[0].why == "its note is broken"


def test_nothing_is_written_and_no_folder_is_made(tmp_path):
    shutil.copy(ROOT / "settings.ini", tmp_path)
    done = smoltraces("status", "--profile", "smoke", "--json", cwd=tmp_path)
    assert done.returncode == 0 and {row["state"] for row in json.loads(done.stdout)["stages"]} == {"to do"}
    assert not (tmp_path / "outputs").exists() and SECRET not in done.stdout
