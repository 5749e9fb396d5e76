"""What a stage will take: by its record, its like, the reference run or a guess; memory and cost without asking"""
import json
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest
from conftest import ROOT

from smoltraces.files import write_json, write_parquet
from smoltraces.running.estimate import _Reader, about, answering, due, estimates, guess, in_words, longest_row, needs
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
    return {"stage": stage.name, "parameters": stage.parameters, "settings": {**stage.settings, **more},
            "seconds": seconds}


def stage_of(stages, notebook, variant=None, seed=0):
    return next(s for s in stages if s.notebook == notebook and s.parameters.get("variant") == variant
                and s.parameters.get("seed", 0) == seed)


def line(found): return found._repr_markdown_()


def keep(folder, found):
    for name, r in found.items(): write_json(folder / f"{name}.json", r)


# ---- seconds


def test_a_stage_takes_what_it_took(clone):
    cfg = settings(clone)
    trained = stage_of(plan(cfg), "3_finetune", "ST")
    found = estimates(cfg, plan(cfg), {trained.name: record(trained, 321.0)})[trained.name]
    assert (found.seconds, found.origin) == (321.0, "measured here")


def test_other_seeds_tell_of_a_new_cell(clone):
    cfg = settings(clone, seeds="0:5")
    stages = plan(cfg)
    known = {s.name: record(s, t) for t, s in ((100.0, stage_of(stages, "3_finetune", "ST", 0)),
                                               (300.0, stage_of(stages, "3_finetune", "ST", 1)),
                                               (120.0, stage_of(stages, "3_finetune", "ST", 2)))}
    found = estimates(cfg, stages, known)
    new = found[stage_of(stages, "3_finetune", "ST", 4).name]
    assert (new.seconds, new.origin) == (120.0, "measured here")
    other = found[stage_of(stages, "3_finetune", "ST-NT", 4).name] # by the same student's: shorter rows, so less
    assert other.origin == "measured here" and 30 < other.seconds < 120


def test_work_scales_a_record(clone):
    before, now = settings(clone), settings(clone, epochs=3)
    trained = stage_of(plan(before), "3_finetune", "ST")
    found = estimates(now, plan(now), {trained.name: record(trained, 320.0)})[trained.name]
    assert found.seconds == 20 + 3 * 300 # but for the start


def test_rows_of_the_build_scale_a_record(clone):
    before, now = settings(clone), settings(clone, n_train=272)
    stages = plan(before)
    built, trained = stages[0], stage_of(stages, "3_finetune", "ST")
    known = {built.name: record(built, 30.0), trained.name: record(trained, 320.0)}
    assert estimates(now, plan(now), known)[trained.name].seconds == 20 + 2 * 300


def test_another_method_says_nothing(clone):
    cfg = settings(clone, method="lora")
    trained = stage_of(plan(cfg), "3_finetune", "ST")
    known = {trained.name: record(trained, 9999.0, method="full")}
    assert estimates(cfg, plan(cfg), known)[trained.name].origin == "guess"


def test_the_reference_run_is_scaled_by_what_both_have_run(clone):
    cfg = settings(clone)
    stages = plan(cfg)
    folder = clone / "outputs" / "reference" / "laptop" / "runs"
    keep(folder, {s.name: record(s, 100.0) for s in stages})
    trained, built = stage_of(stages, "3_finetune", "ST"), stages[0]
    alone = estimates(cfg, stages, {})[trained.name]
    assert (alone.seconds, alone.origin) == (100.0, "reference run")
    scaled = estimates(cfg, stages, {built.name: record(built, 250.0)})[trained.name]
    assert (scaled.seconds, scaled.origin) == (250.0, "reference run, scaled to this machine")


def test_a_guess_grows_with_the_settings(clone):
    small, large = (settings(clone, n_train=n).model_dump(mode="json") for n in (100, 1000))
    for notebook in ("1_build_data", "3_finetune"): assert guess(notebook, small) < guess(notebook, large)
    short, long = (settings(clone, max_new_tokens=n).model_dump(mode="json") for n in (100, 1000))
    assert guess("4_evaluate", short) < guess("4_evaluate", long)
    assert guess("4_evaluate", long, 3e9) > 10 * guess("4_evaluate", long, 1.35e8)
    assert guess("3_finetune", large, gpu=True) < guess("3_finetune", large)


def test_a_guess_is_corrected_by_other_students(clone):
    cfg = settings(clone, students=f"{SMOL}, embedded/random-llama")
    stages = plan(cfg)
    mine = stage_of(stages, "4_evaluate", "Base")
    theirs = next(s for s in stages if s.parameters.get("student") == "embedded/random-llama" and s.name != mine.name)
    plain = estimates(cfg, stages, {})
    known = estimates(cfg, stages, {mine.name: record(mine, 3 * plain[mine.name].seconds)})
    assert known[theirs.name].origin == "guess"
    assert known[theirs.name].seconds == pytest.approx(3 * plain[theirs.name].seconds)


def test_broken_records_do_not_count(clone):
    cfg = settings(clone)
    runs = cfg.path("runs")
    runs.mkdir(parents=True)
    trained = stage_of(plan(cfg), "3_finetune", "ST")
    keep(clone / "outputs" / "reference" / "laptop" / "runs", {trained.name: {"seconds": 1.0}})
    for name, text in ((trained.name, "[]"), ("1_build_data", "{"), ("5_figures", "{}")):
        (runs / f"{name}.json").write_text(text)
    (runs / f"{trained.name}.failed.json").write_text('{"why": "no"}')
    assert {e.origin for e in estimates(cfg, plan(cfg)).values()} == {"guess"}
    assert "a guess" in line(about(cfg, "3_finetune", student=SMOL, variant="ST", seed=0))


def test_ten_thousand_stages_in_half_a_second(clone):
    cfg = settings(clone, seeds="0:1000")
    stages = plan(cfg)
    known = {s.name: record(s, 100.0 + i % 7) for i, s in enumerate(stages) if i % 5}
    assert len(stages) > 10_000
    took = []
    for _ in range(3): # of the processor, so that a busy machine does not fail it
        begun = time.process_time()
        found = estimates(cfg, stages, known)
        took.append(time.process_time() - begun)
    assert min(took) < 0.5 and len(found) == len(stages), took


def test_nothing_heavy_is_imported():
    told = subprocess.run([sys.executable, "-c", (
        "import sys; from smoltraces.running.estimate import estimates; from smoltraces.running.stages import plan; "
        "from smoltraces.settings import load_settings; cfg = load_settings('laptop'); estimates(cfg, plan(cfg), {}); "
        "print(sorted({'torch', 'transformers', 'ray', 'papermill', 'openai'} & sys.modules.keys()))")],
        cwd=ROOT, capture_output=True, text=True, check=True)
    assert told.stdout.strip() == "[]"


# ---- memory


def test_memory_of_answers():
    smol = SHAPES[SMOL]
    weights = smol.parameters * 4 / 2**30
    one, many = answering(smol, 1, 100, 240), answering(smol, 80, 100, 240)
    assert weights < one < weights + 0.1
    token = 2 * 30 * 3 * 64 * 4 # keys and values, 30 layers of 3 heads of 64 numbers
    assert many - one > 79 * 340 * token / 2**30


def test_memory_of_training_follows_the_longest_row(clone):
    cfg = settings(clone)
    trained = stage_of(plan(cfg), "3_finetune", "ST")
    before, gpu = needs(cfg, trained)
    rows = pd.DataFrame({"question": ["1 + 2"], "trace": ["3 " * 50], "response": ["3"]})
    write_parquet(cfg.path("data", "ST.parquet"), rows)
    assert longest_row(cfg, "ST") < 200 < longest_row(cfg, "SBS") and gpu == 0
    after, _ = needs(cfg, trained)
    assert 2 < after < before
    assert longest_row(settings(clone, tasks="graph_color"), "SBS") == cfg.max_length
    cfg.path("data", "ST.parquet").write_bytes(b"PAR1 and no more")
    assert longest_row(cfg, "ST") == cfg.max_length


def test_a_gpu_is_found_without_torch(clone, monkeypatch):
    tool = clone / "nvidia-smi"
    tool.write_text("#!/bin/sh\nfor i in 0 1; do echo $i, GPU-$i, NVIDIA H100, 81559, 80000, 570; done\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{clone}:/usr/bin:/bin")
    cfg = settings(clone)
    assert needs(cfg, stage_of(plan(cfg), "4_evaluate", "ST"))[1] == 0 # CUDA_VISIBLE_DEVICES is blank
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    cards.cache_clear()
    for notebook in ("3_finetune", "4_evaluate"):
        ram, gpu = needs(cfg, stage_of(plan(cfg), notebook, "ST"))
        assert 3 < ram < 6 and 1 < gpu < 12, notebook
    crowded = settings(clone, max_new_tokens=16384, eval_batch_size=1000, n_test=1000)
    assert needs(crowded, stage_of(plan(crowded), "4_evaluate", "ST"))[1] < 80 # fewer at a time
    vllm = settings(clone, backend="vllm")
    assert needs(vllm, stage_of(plan(vllm), "4_evaluate", "ST"))[1] == pytest.approx(0.9 * 81559 / 1024)


def test_an_unknown_student_needs_nobody_knows_what(clone):
    cfg = settings(clone, students="somebody/unheard-of")
    found = estimates(cfg, plan(cfg), {})
    assert {e.ram_gb for name, e in found.items() if name[0] in "34"} == {None}
    assert "how much memory it needs is not known" in line(
        about(cfg, "3_finetune", student="somebody/unheard-of", variant="ST", seed=0))


# ---- cost


def test_programs_cost_nothing(clone):
    assert {e.usd for e in estimates(settings(clone), plan(settings(clone)), {}).values()} == {0}


def test_the_bill_of_the_paper_without_asking(clone):
    cfg = settings(clone, "paper")
    found = estimates(cfg, plan(cfg), {})
    assert 500 < found["1_build_data"].usd < 2000
    assert found["4_evaluate-gpt-4o-Base-seed-0"].usd > found["4_evaluate-gpt-4o-HC-seed-0"].usd > 1
    assert found["1_build_data"].seconds > 3600 and found["4_evaluate-gpt-4o-Base-seed-0"].ram_gb < 2
    assert sum(e.usd for name, e in found.items() if name[0] in "235") == 0
    assert not (clone / "outputs").exists() # not even an empty store


def test_what_is_stored_is_not_paid_again(clone):
    rows = [{"id": f"{i:016x}", "source": "x/y", "domain": "math", "question": f"What is {i} + {i}?", "choices": None,
             "answer": str(2 * i), "answer_kind": "math", "meta": "{}", "split": split}
            for i, split in enumerate(["embedded"] * 8 + ["embedded_hard"] * 4 + ["train"] * 4)]
    cfg = settings(clone, "smoke", backend="api", students="gpt-4o")
    from smoltraces.schema import problem_schema
    write_parquet(cfg.path("problems.parquet"), rows, problem_schema)
    answered = stage_of(plan(cfg), "4_evaluate", "Base")
    whole = due(cfg, answered)
    assert [e.requests for e in whole] == [8, 4]
    from smoltraces.evaluation.benchmarks import prompt
    with Store(store_path(cfg)) as store:
        for row in rows[:8]:
            request = Request("gpt-4o", tuple(prompt(row)), {"temperature": 0.0, "max_tokens": cfg.max_new_tokens})
            store.put([Response(request.key, "gpt-4o", "ok", "", "1", "stop", 20, 10, 0.001, "")], [request])
    assert [e.requests for e in due(cfg, answered)] == [4]
    kept = {p.name: p.read_bytes() for p in store_path(cfg).parent.glob("responses.sqlite")}
    estimates(cfg, plan(cfg))
    assert {p.name: p.read_bytes() for p in store_path(cfg).parent.glob("responses.sqlite")} == kept


def test_a_missing_price_is_said(clone):
    cfg = settings(clone, "smoke", teacher_lm="new-model")
    assert estimates(cfg, plan(cfg), {})["1_build_data"].usd is None
    assert "costs $?" in line(about(cfg, "1_build_data"))
    free = settings(clone, "smoke", teacher_lm="new-model", teacher_lm_url="http://localhost:8000/v1")
    assert estimates(free, plan(free), {})["1_build_data"].usd == 0


def test_a_store_that_is_not_there_is_empty(clone):
    store = _Reader(clone / "none.sqlite")
    assert store.spent() == {} and store.get_many(["a"]) == {}
    store.close()
    assert not (clone / "none.sqlite").exists()


# ---- the line at the top


def test_the_line_of_a_notebook(clone):
    cfg = settings(clone)
    trained = stage_of(plan(cfg), "3_finetune", "ST-HC")
    keep(cfg.path("runs"), {trained.name: record(trained, 288.0)})
    found = line(about(cfg, "3_finetune", student=SMOL, variant="ST-HC", seed=0))
    assert found.startswith("**About 5 minutes here** (measured; the last run took 4:48); needs ")
    assert "costs nothing. Reads `data/ST-HC.parquet` (not there yet: run 1_build_data first). Writes" in found
    assert found.endswith("`students/embedded--smollm2-135m-instruct/ST-HC/seed-0`.") and "\n" not in found
    new = line(about(cfg, "3_finetune", student=SMOL, variant="ST-HC", seed=7)) # not in the plan
    assert "(measured);" in new and new.endswith("seed-7`.")


def test_a_line_for_every_notebook_and_odd_parameters(clone):
    cfg = settings(clone)
    first, second = line(about(cfg, "1_build_data")), line(about(cfg, "2_analyse_traces", of=None))
    assert "Reads" not in first and "Writes `problems.parquet`" in first and "`data/`" in first
    assert "`predictions/embedded--smollm2-135m-instruct/` (0 of 12 there)" in second and "Writes `style/`." in second
    assert "predictions" not in line(about(cfg, "2_analyse_traces", of="teachers"))
    assert "`report.html`" in line(about(cfg, "5_figures"))
    assert line(about(cfg, "4_evaluate", student="gpt-4o", variant="HC", seed=0)).startswith("**About")


def test_the_line_is_quick_in_a_crowd(clone):
    cfg = settings(clone, seeds="0:100")
    cfg.path("runs").mkdir(parents=True)
    for s in plan(cfg): cfg.path("runs", f"{s.name}.json").write_text(json.dumps(record(s, 60.0)))
    begun = time.process_time()
    about(cfg, "4_evaluate", student=SMOL, variant="ST", seed=50)
    assert time.process_time() - begun < 0.5


def test_durations():
    assert [in_words(s) for s in (1, 61, 100, 3000, 7300, 86400 * 3)] == [
        "5 seconds", "60 seconds", "2 minutes", "50 minutes", "2 hours", "3 days"]


def test_every_experiment_says_what_it_takes():
    "A cell of its own, tagged so that it is no part of what a result depends on"
    for path in sorted(Path(ROOT, "nbs", "experiments").glob("*.ipynb")):
        cells = json.loads(path.read_text())["cells"]
        aside = [c for c in cells if "aside" in c["metadata"].get("tags", []) and "about(cfg" in "".join(c["source"])]
        assert len(aside) == 1 and f'"{path.stem}"' in "".join(aside[0]["source"]), path.name
        opening = "".join(cells[0]["source"])
        assert opening.startswith("# Experiment ") and all(
            f"**{words}**" in opening for words in ("What it shows.", "What to play with", "How long it takes here"))
