"""Whatever is wrong, one sentence names it and the mend, the exit code is 2 and nothing is half-written."""
import importlib.util
import shutil

import pytest
from conftest import project, smoltraces

from smoltraces import settings
from smoltraces.files import write_json
from smoltraces.settings import InputError


@pytest.fixture(scope="module")
def folder(tmp_path_factory): return project(tmp_path_factory.mktemp("bad"))


@pytest.mark.parametrize("arguments, environment, names", [
    (["--profile", "labtop"], {}, ["labtop", "laptop"]),
    (["-s", "epoch=3"], {}, ["epoch", "epochs"]),
    (["-s", "epochs=many"], {}, ["epochs", "many"]),
    (["-s", "epochs"], {}, ["--set", "KEY=VALUE"]),
    (["-s", "variants=ST-CH"], {}, ["variants", "ST-CH", "ST-HC"]),
    (["-s", "n_train=-1"], {}, ["n_train", "-1"]),
    (["-s", "tasks=chain_sums"], {}, ["chain_sums", "chain_sum"]),
    (["-s", "students=embedded/smollm3"], {}, ["smollm3", "choose from"]),
    (["-s", "students=Qwen/Qwen2.5-32B-Instruct"], {}, ["Qwen2.5-32B-Instruct", "offline = false"]),
    (["-s", "seeds=0:99999999"], {}, ["seeds", "at most 1000"]),
    (["--only", "9_nothing"], {}, ["9_nothing", "1_build_data"]),
    (["--only", "5_figures"], {}, ["is missing", "run the stage"]),
    ([], {"SMOLTRACES_EPOHS": "3"}, ["SMOLTRACES_EPOHS", "epochs"]),
    ([], {"SMOLTRACES_EPOCHS": "x"}, ["epochs", "the environment"]),
    ([], {"SMOLTRACES_SETTINGS": "nowhere.ini"}, ["nowhere.ini", "SMOLTRACES_SETTINGS"]),
])
def test_one_sentence_and_code_2(folder, arguments, environment, names):
    profile = [] if "--profile" in arguments else ["--profile", "smoke"]
    done = smoltraces("reproduce", *profile, *arguments, cwd=folder, **environment)
    last = done.stderr.strip().splitlines()[-1]
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr
    for name in names: assert name in done.stderr.replace("\n", " "), (name, last)


@pytest.mark.parametrize("folder", ["file", "/proc", "long" * 100])
def test_a_folder_that_cannot_be_written(tmp_path, folder):
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="x.json cannot be written"): write_json(tmp_path / folder / "x.json", {})


def test_settings_that_are_not_ini(tmp_path):
    (tmp_path / "settings.ini").write_text("epochs = 3\n")
    done = smoltraces("reproduce", cwd=tmp_path)
    assert done.returncode == 2 and "settings.ini cannot be read" in done.stderr


def test_truncated_data(smoke, tmp_path):
    folder = project(tmp_path)
    shutil.copytree(smoke / "outputs", folder / "outputs")
    data = folder / "outputs" / "smoke" / "data" / "ST-HC.parquet"
    data.write_bytes(data.read_bytes()[:500])
    trained = {p: p.read_bytes() for p in (folder / "outputs/smoke/students").rglob("*") if p.is_file()}
    done = smoltraces("reproduce", "--profile", "smoke", "--only", "3_finetune", cwd=folder)
    assert done.returncode == 2 and "ST-HC.parquet is not a whole Parquet file" in done.stderr, done.stderr
    assert "smoltraces reproduce --profile smoke" in done.stderr
    assert {p: p.read_bytes() for p in (folder / "outputs/smoke/students").rglob("*") if p.is_file()} == trained
    notebook = folder / "outputs/smoke/notebooks" / "3_finetune-embedded--random-llama-ST-HC-seed-0.ipynb"
    assert "not a whole Parquet file" in notebook.read_text()
    done = smoltraces("reproduce", "--profile", "smoke", cwd=folder)  # the whole plan mends it
    assert done.returncode == 0 and "1_build_data: " in done.stderr, done.stderr
    assert data.read_bytes() == (smoke / "outputs/smoke/data/ST-HC.parquet").read_bytes()


def test_missing_extra(monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *a: None if name == "unsloth" else find(name, *a))
    with pytest.raises(InputError, match=r'pip install "smoltraces\[train\]"'): settings.needs("unsloth", "train")
