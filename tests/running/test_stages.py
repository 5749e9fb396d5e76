"""What a stage depends on: the whole lists in dependencies.json, and what a touched file makes stale.

When imports have changed, `python tests/running/test_stages.py` writes the lists anew: look at what changed.
"""
import json
import shutil
from pathlib import Path

import pytest

import smoltraces
from smoltraces.files import write_json
from smoltraces.running import stages as module
from smoltraces.running.stages import (
    assess,
    basis,
    code_hash,
    dependencies,
    plan,
    record_path,
    records,
    reset_parameters,
    why_stale,
)
from smoltraces.settings import load_settings

ROOT = Path(smoltraces.__file__).parent.parent
BOOKS = ("1_build_data", "2_analyse_traces", "3_finetune", "4_evaluate", "5_figures")

LISTS = Path(__file__).parent / "dependencies.json"


def lists() -> dict[str, list[str]]:
    return {name: dependencies(ROOT / "nbs" / "experiments" / f"{name}.ipynb") for name in BOOKS}


@pytest.mark.parametrize("name", BOOKS)
def test_the_files_that_a_notebook_depends_on(name):
    files = dependencies(ROOT / "nbs" / "experiments" / f"{name}.ipynb")
    assert files == json.loads(LISTS.read_text())[name], "if that is right: python tests/running/test_stages.py"


@pytest.fixture
def package(tmp_path, monkeypatch):
    "A copy of the package and the notebooks, to be changed"
    for name in ("smoltraces", "nbs/experiments"): shutil.copytree(ROOT / name, tmp_path / name)
    shutil.copy(ROOT / "settings.ini", tmp_path)
    monkeypatch.setattr(module, "PACKAGE", tmp_path / "smoltraces")
    yield tmp_path
    module._parse.cache_clear()
    code_hash.cache_clear()


def finished(folder: Path):
    "A run of which everything is done, as its records say"
    cfg = load_settings("smoke", folder, variants="ST")
    for stage in plan(cfg):
        for name in stage.outputs:
            path = cfg.path(name)
            if "." not in path.name: path = path / "a.txt"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(name)
    hash_of = module.hashes(cfg)
    for stage in plan(cfg):
        write_json(record_path(cfg, stage), {"stage": stage.name, **basis(cfg, stage),
                                             "outputs": {name: hash_of(name) for name in stage.outputs}})
    return cfg


def stale(cfg) -> set[str]:
    "Notebooks that would run again whatever comes before them"
    code_hash.cache_clear()
    known = records(cfg)
    return {stage.notebook for stage in plan(cfg) if why_stale(cfg, stage, known[stage.name])}


TOUCHED = {"style/lexicon.toml": {"1_build_data", "2_analyse_traces", "5_figures"},  # in 1, pivots decide on rows
           "style/viewer.py": {"5_figures"}, "style/viewer.html": {"5_figures"}, "evidence/report.html": {"5_figures"},
           "evidence/figures.py": {"5_figures"}, "students/training.py": {"3_finetune"},
           "evaluation/tasks/smoltraces_embedded.yaml": {"2_analyse_traces", "4_evaluate", "5_figures"},
           "running/verify.py": set(), "cli.py": set(), "settings.py": set(BOOKS)}


def test_what_a_touched_file_makes_stale(package):
    cfg = finished(package)
    assert stale(cfg) == set()
    for name, books in TOUCHED.items():
        file = package / "smoltraces" / name
        before = file.read_text()
        file.write_text(before + {".py": "\nx = 1\n", ".html": "<p>", ".toml": "\n", ".yaml": "\n"}[file.suffix])
        assert stale(cfg) == books, name
        if file.suffix == ".py":
            file.write_text(before + "\n# a comment\n")
            assert stale(cfg) == set(), name
        file.write_text(before)
    viewer = package / "smoltraces" / "style" / "viewer.py"
    viewer.write_text(viewer.read_text() + "\nx = 1\n")
    stale(cfg)
    assert {s.state for name, s in assess(cfg, plan(cfg)).items() if name[0] in "134"} == {"done"}


def test_every_way_to_refer_to_a_file(tmp_path, monkeypatch):
    room = tmp_path / "smoltraces" / "room"
    (room / "data").mkdir(parents=True)
    files = {"__init__.py": "", "deep.py": "", "ground.py": "x = 1", "room/used.py": "name = 1", "room/unused.py": "",
             "room/__init__.py": "from .used import name\nfrom ..deep import x\nfrom .unused import other\n"
             "from .inner import later\n", "room/inner.py": "def later(): from ..ground import x",
             "room/page.html": "{% extends 'room/base.html' %}", "room/page.css": "", "room/base.html": "",
             "room/data/a.yaml": "", "room/table.toml": "", "room/child.py": "", "room/face.py":
             "from smoltraces.room import name, later\nfrom . import table_of\nread('table.toml')",
             "room/table_of.py": "def f():\n    from smoltraces import deep\n    run('smoltraces.room.child')\n"
             "    fill('room/page.html')\n    return 'data', '', 'room', 'page'"}
    for name, text in files.items(): (tmp_path / "smoltraces" / name).write_text(text)
    monkeypatch.setattr(module, "PACKAGE", tmp_path / "smoltraces")
    module._parse.cache_clear()
    cells = [{"cell_type": "code", "metadata": {"tags": tags}, "source": source} for tags, source in (
        ([], "%matplotlib inline\nfrom smoltraces.room import face"), (["aside"], "import smoltraces.room.unused"))]
    write_json(tmp_path / "a.ipynb", {"cells": cells})
    unused = {"__init__.py", "room/__init__.py", "room/unused.py"}
    assert dependencies(tmp_path / "a.ipynb") == sorted(set(files) - unused)
    module._parse.cache_clear()


def test_parameters_that_a_run_sets(tmp_path):
    source = "profile = 'laptop'\nn_train = 7\nseed = 3\nexample = 4\nvariants = None"
    cell = {"cell_type": "code", "metadata": {"tags": ["parameters"]}, "source": source}
    write_json(tmp_path / "a.ipynb", {"cells": [cell]})
    assert reset_parameters(tmp_path / "a.ipynb") == {"n_train": None}
    before = code_hash(tmp_path / "a.ipynb")
    for text, same in ((source.replace("7", "8"), True), (source.replace("4", "5"), False)):
        write_json(tmp_path / "a.ipynb", {"cells": [{**cell, "source": text}]})
        code_hash.cache_clear()
        assert (code_hash(tmp_path / "a.ipynb") == before) == same


if __name__ == "__main__": LISTS.write_text(json.dumps(lists(), indent=1) + "\n")
