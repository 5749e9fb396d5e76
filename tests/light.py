"""A project whose five notebooks are light: each writes what its stage has to write, as small files made from what it
reads, and takes as long as it is told. For tests of what runs notebooks, not of what notebooks do."""
import shutil
from pathlib import Path

import nbformat
from conftest import ROOT

SETUP = """
import hashlib, json, os, signal, sys, time
from pathlib import Path
from smoltraces.settings import from_notebook, slug
cfg = from_notebook(globals())
student = globals().get("student") or cfg.students[0]
who = f"{student} {globals().get('variant', '')} {globals().get('seed', '')}"
def wait_for(name):
    while not Path(name).exists(): time.sleep(0.05)
def put(name, text):
    path = cfg.path(name)
    path.parent.mkdir(parents=True, exist_ok=True)
    half = path.with_name(f".{path.name}.{os.getpid()}.partial")
    half.write_text(text)
    half.replace(path)
def of(*names):
    return "".join(hashlib.sha256(cfg.path(n).read_bytes()).hexdigest() for n in names if cfg.path(n).exists())
print("begin", who, flush=True)
time.sleep(float(os.environ.get("LIGHT_SECONDS", "0.2")))
if (spoil := os.environ.get("LIGHT_SPOIL", "")) and eval(spoil): exec(os.environ["LIGHT_HOW"])
"""
BODIES = {
    "1_build_data": """
for name in ("problems.parquet", "problems/funnel.json", *(f"data/{v}.parquet" for v in cfg.variants)):
    put(name, f"{name} {cfg.n_train}")
put("data/manifest.json", json.dumps({"variants": {v: {"cost_usd": 0.5} for v in cfg.variants}}))
""",
    "2_analyse_traces": """
names = [f"style/{v}.parquet" for v in cfg.variants] if of_ == "teachers" else ["style/students.parquet"]
for name in names: put(name, name + of(*(f"data/{v}.parquet" for v in cfg.variants)))
""",
    "3_finetune": """
weights = f"students/{slug(student)}/{variant}/seed-{seed}/model.safetensors"
put(weights, who + of(f"data/{variant}.parquet") + str(cfg.epochs))
""",
    "4_evaluate": """
place = f"{slug(student)}/{variant}/seed-{seed}"
for b in cfg.benchmark_names:
    put(f"predictions/{place}/{b}.parquet", who + b + of("problems.parquet", f"students/{place}/model.safetensors"))
""",
    "5_figures": """
found = sorted(p.relative_to(cfg.path()).as_posix() for p in cfg.path("predictions").rglob("*.parquet"))
for name in ("results.parquet", "comparisons.parquet", "claims.parquet", "report.html", "tables/a.md", "figures/a.svg"):
    put(name, "\\n".join(found) + of(*found))
"""}
HEAD = {"2_analyse_traces": "of = None", "3_finetune": "student = None\nvariant = 'ST-HC'\nseed = 0",
        "4_evaluate": "student = None\nvariant = 'ST-HC'\nseed = 0"}


def light(folder: Path) -> Path:
    "A project to run in"
    (folder / "nbs" / "experiments").mkdir(parents=True)
    for name, body in BODIES.items():
        head = "profile = 'smoke'\n" + HEAD.get(name, "")
        codes = [head, *(["of_ = of"] if name.startswith("2") else []), SETUP, body]
        cells = [nbformat.v4.new_markdown_cell(f"# {name}"), *map(nbformat.v4.new_code_cell, codes)]
        cells[1].metadata["tags"] = ["parameters"]
        kernel = {"name": "python3", "language": "python", "display_name": "python3"}
        notebook = nbformat.v4.new_notebook(cells=cells, metadata={"kernelspec": kernel})
        nbformat.write(notebook, folder / "nbs" / "experiments" / f"{name}.ipynb")
    shutil.copy(ROOT / "settings.ini", folder)
    return folder


def results(folder: Path) -> dict[str, str]:
    "Every result of a run: files by their content, but for what tells of time"
    out = folder / "outputs" / "smoke"
    return {p.relative_to(out).as_posix(): p.read_text() for p in out.rglob("*")
            if p.is_file() and p.relative_to(out).parts[0] not in ("runs", "notebooks", "manifest.json")}
