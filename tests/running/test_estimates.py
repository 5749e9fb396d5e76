"""What a stage will take: by records of this machine or unknown; memory and cost without asking."""
import json
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import ROOT

from smoltraces.files import write_json, write_parquet
from smoltraces.running.estimate import about, answering, due, estimates, longest_row, memory_needs
from smoltraces.running.execute import hardware
from smoltraces.running.stages import plan
from smoltraces.settings import load_settings
from smoltraces.students.memory import SHAPES, cards
from smoltraces.traces.store import Request, Response, Store
from smoltraces.traces.teachers import store_path

SMOL = "embedded/smollm2-135m-instruct"


@pytest.fixture
def clone(tmp_path, monkeypatch):
    "A folder with settings.ini alone, and no GPU"
    shutil.copy(ROOT / "settings.ini", tmp_path)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    cards.cache_clear()
    yield tmp_path
    cards.cache_clear()


def settings(folder, profile="laptop", **more): return load_settings(profile, folder, **more)


def record(stage, seconds, **more):
    return {"stage": stage.name, "code": "", "parameters": stage.parameters, "settings": stage.settings | more,
            "inputs": {}, "outputs": {}, "seconds": seconds, "machine": hardware()}


def stage_of(stages, notebook, variant=None, seed=0):
    return next(s for s in stages if s.notebook == notebook and s.parameters.get("variant") == variant
                and s.parameters.get("seed", 0) == seed)


def keep(cfg, records):
    for name, r in records.items(): write_json(cfg.path("runs", f"{name}.json"), r)


# ---- seconds


def test_nothing_is_known_of_a_machine_that_has_done_nothing(clone):
    for profile in ("smoke", "laptop", "gpu", "paper"):
        cfg = settings(clone, profile)
        assert {e.seconds for e in estimates(cfg, plan(cfg)).values()} == {None}
    assert not (clone / "outputs").exists() # not even an empty store


def test_other_seeds_tell_of_a_new_cell(clone):
    cfg = settings(clone, seeds="0:5")
    stages = plan(cfg)
    known = {s.name: record(s, t) for t, s in ((100.0, stage_of(stages, "3_finetune", "ST", 0)),
                                               (300.0, stage_of(stages, "3_finetune", "ST", 1)),
                                               (120.0, stage_of(stages, "3_finetune", "ST", 2)))}
    expected = estimates(cfg, stages, known)
    for variant in ("ST", "ST-NT"): # by the same student's, where a variant has none of its own
        assert expected[stage_of(stages, "3_finetune", variant, 4).name].seconds == 120.0
    assert {e.seconds for name, e in expected.items() if name[0] in "1245"} == {None}


def test_records_of_other_settings_do_not_tell(clone):
    cfg = settings(clone)
    trained = stage_of(plan(cfg), "3_finetune", "ST")
    known = {trained.name: record(trained, 320.0)}
    assert estimates(cfg, plan(cfg), known)[trained.name].seconds == 320
    longer = settings(clone, epochs=7.0)
    assert estimates(longer, plan(longer), known)[trained.name].seconds is None


def test_the_reference_run_of_another_machine_does_not_count(clone):
    cfg = settings(clone)
    foreign = {s.name: record(s, 100.0) | {"machine": hardware() | {"cpu": "another"}} for s in plan(cfg)}
    keep(cfg, foreign)
    keep(settings(clone, out="outputs/reference"), {s.name: record(s, 100.0) for s in plan(cfg)})
    assert {e.seconds for e in estimates(cfg, plan(cfg)).values()} == {None}


def test_broken_records_do_not_count(clone):
    cfg = settings(clone)
    trained = stage_of(plan(cfg), "3_finetune", "ST")
    cfg.path("runs").mkdir(parents=True)
    for name, text in ((trained.name, "[]"), ("1_build_data", "{"), ("5_figures", '{"seconds": 3}')):
        cfg.path("runs", f"{name}.json").write_text(text)
    cfg.path("runs", f"{trained.name}.failed.json").write_text('{"why": "no"}')
    assert {e.seconds for e in estimates(cfg, plan(cfg)).values()} == {None}
    assert str(about(cfg, "3_finetune", student=SMOL, variant="ST", seed=0)).startswith(
        "**How long it takes here is unknown** (no record on this machine yet); ")


def test_ten_thousand_stages_in_half_a_second(clone):
    cfg = settings(clone, seeds="0:1000")
    stages = plan(cfg)
    known = {s.name: record(s, 100.0 + i % 7) for i, s in enumerate(stages) if i % 5}
    assert len(stages) > 10_000
    took = []
    for _ in range(3): # of the processor, so that a busy machine does not fail it
        start = time.process_time()
        expected = estimates(cfg, stages, known)
        took.append(time.process_time() - start)
    assert min(took) < 0.5 and len(expected) == len(stages), took


def test_nothing_heavy_is_imported():
    done = subprocess.run([sys.executable, "-c", (
        "import sys; from smoltraces.running.estimate import estimates; from smoltraces.running.stages import plan; "
        "from smoltraces.settings import load_settings; cfg = load_settings('laptop'); estimates(cfg, plan(cfg), {}); "
        "print(sorted({'torch', 'transformers', 'ray', 'papermill', 'openai'} & sys.modules.keys()))")],
        cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


# ---- memory


def test_memory_of_answers():
    smol = SHAPES[SMOL]
    weights = smol.parameters * 4 / 2**30
    one, many = answering(smol, 1, 100, 240), answering(smol, 80, 100, 240)
    assert weights < one < weights + 0.1
    token = 2 * 30 * 3 * 64 * 4 # keys and values, 30 layers of 3 heads of 64 numbers
    assert many - one > 79 * 340 * token / 2**30


def test_memory_of_training_follows_the_longest_row(clone):
    short, long = settings(clone), settings(clone, tasks="graph_color")
    assert longest_row(short) == 300 and longest_row(long) == long.max_length
    (few, gpu), (many, _) = (memory_needs(cfg, stage_of(plan(cfg), "3_finetune", "ST")) for cfg in (short, long))
    assert 2 < few < many and gpu == 0


def test_a_gpu_is_found_without_torch(clone, monkeypatch):
    tool = clone / "nvidia-smi"
    tool.write_text("#!/bin/sh\nfor i in 0 1; do echo $i, GPU-$i, NVIDIA H100, 81559, 80000, 570; done\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{clone}:/usr/bin:/bin")
    cfg = settings(clone)
    assert memory_needs(cfg, stage_of(plan(cfg), "4_evaluate", "ST"))[1] == 0 # CUDA_VISIBLE_DEVICES is blank
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    cards.cache_clear()
    for notebook in ("3_finetune", "4_evaluate"):
        ram, gpu = memory_needs(cfg, stage_of(plan(cfg), notebook, "ST"))
        assert 3 < ram < 6 and 1 < gpu < 12, notebook
    crowded = settings(clone, max_new_tokens=16384, eval_batch_size=1000, n_test=1000)
    assert memory_needs(crowded, stage_of(plan(crowded), "4_evaluate", "ST"))[1] < 80 # fewer at a time
    vllm = settings(clone, backend="vllm")
    assert memory_needs(vllm, stage_of(plan(vllm), "4_evaluate", "ST"))[1] == pytest.approx(0.9 * 81559 / 1024)


def test_an_unknown_student_needs_an_unknown_amount(clone):
    cfg = settings(clone, students="somebody/unheard-of")
    assert {e.ram_gb for name, e in estimates(cfg, plan(cfg), {}).items() if name[0] in "34"} == {None}
    line = about(cfg, "3_finetune", student="somebody/unheard-of", variant="ST", seed=0)
    assert "how much memory it needs is not known" in line


# ---- cost


def test_programs_cost_nothing(clone):
    assert {(e.usd, e.requests) for e in estimates(settings(clone), plan(settings(clone)), {}).values()} == {(0, 0)}


def test_the_bill_of_the_paper_without_asking(clone):
    cfg = settings(clone, "paper")
    expected = estimates(cfg, plan(cfg), {})
    assert 500 < expected["1_build_data"].usd < 2000 and expected["1_build_data"].requests > 100_000
    base, hard_coded = (expected[f"4_evaluate-gpt-4o-{prompt}-seed-0"] for prompt in ("Base", "HC"))
    assert base.usd > hard_coded.usd > 1 and base.ram_gb < 2
    assert sum(e.usd for name, e in expected.items() if name[0] in "235") == 0
    assert not (clone / "outputs").exists() # not even an empty store


def test_what_is_stored_is_not_paid_again(clone):
    rows = [{"id": f"{i:016x}", "source": "x/y", "domain": "math", "question": f"What is {i} + {i}?", "choices": None,
             "answer": str(2 * i), "answer_kind": "math", "meta": "{}", "split": split}
            for i, split in enumerate(["embedded"] * 8 + ["embedded_hard"] * 4 + ["train"] * 4)]
    cfg = settings(clone, "smoke", backend="api", students="gpt-4o")
    from smoltraces.schema import problem_schema
    write_parquet(cfg.path("problems.parquet"), rows, problem_schema)
    answered = stage_of(plan(cfg), "4_evaluate", "Base")
    assert [bill.requests for bill in due(cfg, answered)] == [8, 4]
    from smoltraces.evaluation.benchmarks import prompt
    with Store(store_path(cfg)) as store:
        for row in rows[:8]:
            request = Request("gpt-4o", tuple(prompt(row)), {"temperature": 0.0, "max_tokens": cfg.max_new_tokens})
            store.put([Response(request.key, "gpt-4o", "ok", "", "1", "stop", 20, 10, 0.001, "")], [request])
    assert [bill.requests for bill in due(cfg, answered)] == [4]
    before = store_path(cfg).read_bytes()
    estimates(cfg, plan(cfg))
    assert store_path(cfg).read_bytes() == before


def test_a_missing_price_is_said(clone):
    cfg = settings(clone, "smoke", teacher_lm="new-model")
    assert estimates(cfg, plan(cfg), {})["1_build_data"].usd is None
    assert "costs $?" in about(cfg, "1_build_data")
    free = settings(clone, "smoke", teacher_lm="new-model", teacher_lm_url="http://localhost:8000/v1")
    assert estimates(free, plan(free), {})["1_build_data"].usd == 0


def test_a_store_that_is_not_there_is_empty(clone):
    answers = Store(clone / "none.sqlite", read_only=True)
    assert answers.spent() == {} and answers.get_many(["a"]) == {}
    assert not (clone / "none.sqlite").exists()


# ---- the line at the top


def test_the_line_of_a_notebook(clone):
    cfg = settings(clone)
    trained = stage_of(plan(cfg), "3_finetune", "ST-HC")
    keep(cfg, {trained.name: record(trained, 288.0)})
    line = str(about(cfg, "3_finetune", student=SMOL, variant="ST-HC", seed=0))
    assert line.startswith("**About 5 minutes here** (measured); needs ") and line.endswith("costs nothing.")
    assert str(about(cfg, "3_finetune", student=SMOL, variant="ST-HC", seed=7)) == line # not in the plan
    for notebook, more in (("2_analyse_traces", {"of": None}), ("4_evaluate", {"student": "gpt-4o", "variant": "HC"})):
        assert about(cfg, notebook, **more).startswith("**How long it takes here is unknown")


def test_every_experiment_says_what_it_takes():
    "A cell of its own, tagged so that it is no part of what a result depends on"
    for path in sorted(Path(ROOT, "nbs", "experiments").glob("*.ipynb")):
        cells = json.loads(path.read_text())["cells"]
        aside = [c for c in cells if "aside" in c["metadata"].get("tags", []) and "about(cfg" in "".join(c["source"])]
        assert len(aside) == 1 and f'"{path.stem}"' in "".join(aside[0]["source"]), path.name
        opening = "".join(cells[0]["source"])
        assert opening.startswith("# Experiment ") and all(
            f"**{words}**" in opening for words in ("What it shows.", "What to play with", "How long it takes here"))
