"""The repository agrees with itself: notebooks, package, README, lock."""
import ast
import json
import re
import shutil
import subprocess
import sys
from importlib.metadata import requires
from pathlib import Path

import pytest
from conftest import ROOT
from packaging.requirements import Requirement

BIN = Path(sys.executable).parent
NOTEBOOKS = sorted(p for p in ROOT.rglob("*.ipynb") if ".venv" not in p.parts and ".ipynb_checkpoints" not in p.parts
                   and p.parts[len(ROOT.parts)] in ("nbs", "outputs") and
                   (p.parts[len(ROOT.parts)] == "nbs" or "reference" in p.parts))


def test_export_leaves_no_difference(tmp_path):
    for name in ("nbs", "smoltraces"): shutil.copytree(ROOT / name, tmp_path / name)
    for name in ("pyproject.toml", "settings.ini"): shutil.copy(ROOT / name, tmp_path)
    subprocess.run([BIN / "nbdev-export"], cwd=tmp_path, check=True)
    modules = sorted(p.relative_to(tmp_path) for p in (tmp_path / "smoltraces").rglob("*.py"))
    assert modules == sorted(p.relative_to(ROOT) for p in (ROOT / "smoltraces").rglob("*.py"))
    assert [m for m in modules if (tmp_path / m).read_text() != (ROOT / m).read_text()] == []


def test_lint():
    done = subprocess.run([BIN / "ruff", "check", "nbs", "tests"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda p: p.stem)
def test_notebooks_are_fit_to_read(notebook):
    text = notebook.read_text(encoding="utf-8")
    assert str(ROOT) not in text and str(Path.home()) not in text
    for cell in json.loads(text)["cells"]:
        assert not any(o["output_type"] == "error" for o in cell.get("outputs", [])), cell["source"]


def test_readme_is_the_index():
    from nbconvert import MarkdownExporter
    body, _ = MarkdownExporter(exclude_input=True).from_filename(str(ROOT / "nbs" / "index.ipynb"))
    assert (ROOT / "README.md").read_text(encoding="utf-8") == body.replace("](../", "](")


def test_lock_pins_versions_and_nothing_else():
    lines = (ROOT / "requirements.lock").read_text().splitlines()
    assert len(lines) > 200
    assert [line for line in lines if not re.match(r"[A-Za-z0-9._-]+==[\w.+!-]+( ; .*)?$", line)] == []


def test_lock_has_the_triton_of_its_torch():
    asked = [r for r in map(Requirement, requires("torch")) if r.name == "triton"]
    locked = re.search(r"^triton==(\S+)", (ROOT / "requirements.lock").read_text(), re.M)[1]
    assert asked and all(r.specifier.contains(locked) for r in asked)


def test_import_is_light():
    code = ("import sys, pkgutil, smoltraces; from importlib import import_module\n"
            "for m in pkgutil.walk_packages(smoltraces.__path__, 'smoltraces.'): import_module(m.name)\n"
            "print([m for m in ('torch', 'unsloth', 'lm_eval', 'transformers', 'ray', 'datasets', 'seaborn')"
            " if m in sys.modules])")
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd="/").stdout.strip() == "[]"


def test_rooms_import_from_below_and_in_no_circle():
    done = subprocess.run([BIN / "lint-imports", "--no-cache"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def test_no_private_name_crosses_modules():
    crossing = []
    for path in sorted((ROOT / "smoltraces").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.ImportFrom): continue
            if not node.level and not node.module.startswith("smoltraces"): continue
            crossing += [(path.name, alias.name) for alias in node.names if re.match("_(?!_)", alias.name)]
    assert crossing == []


def test_readme_is_short(): assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= 150
