"""A copy of the experiment notebooks and settings.ini to run in, so that no test writes into the clone."""
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from browser import CHROMIUM, Browser
from filelock import FileLock

ROOT = Path(__file__).parent.parent
SECRET = "sk-planted-0123456789abcdef"


def pytest_collection_modifyitems(items):
    "Files that take minutes come first, so that no process is left alone with one at the end"
    first = ("training", "reproduce", "runs", "cluster", "notebooks", "bad_input", "build", "first_hour")
    order = {f"test_{name}.py": k for k, name in enumerate(first)}
    items.sort(key=lambda item: order.get(item.path.name, len(order)))


def project(folder: Path) -> Path:
    shutil.copytree(ROOT / "nbs" / "experiments", folder / "nbs" / "experiments")
    shutil.copy(ROOT / "settings.ini", folder)
    return folder


def environment(**extra) -> dict[str, str]:
    clean = {k: v for k, v in os.environ.items() if not k.startswith("SMOLTRACES_") or k == "SMOLTRACES_CACHE"}
    return {**clean, "PLANTED_API_KEY": SECRET, "PYTHONHASHSEED": "random", **extra}


def smoltraces(*arguments: str, cwd: Path, **extra) -> subprocess.CompletedProcess:
    command = [str(Path(sys.executable).parent / "smoltraces"), *arguments]
    return subprocess.run(command, cwd=cwd, env=environment(**extra), capture_output=True, text=True)


@pytest.fixture(scope="session")
def smoke(tmp_path_factory) -> Path:
    "A project folder in which the smoke profile has been reproduced whole; all of pytest's processes share it"
    base = tmp_path_factory.getbasetemp()
    shared = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base
    folder = shared / "smoke"
    with FileLock(shared / "smoke.lock"):
        if not folder.exists(): project(folder)
        done = smoltraces("reproduce", "--profile", "smoke", cwd=folder)
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    if CHROMIUM is None: pytest.skip("no chromium on this machine")
    browser = Browser(tmp_path_factory.mktemp("profile"))
    yield browser
    browser.close()
