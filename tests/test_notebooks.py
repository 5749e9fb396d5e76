"""Every library notebook runs from top to bottom."""
import subprocess
import sys
from pathlib import Path

from conftest import ROOT, environment


def test_library_notebooks():
    command = [Path(sys.executable).parent / "nbdev-test", "nbs", "--skip-folder-re", "experiments", "--n-workers", "2"]
    done = subprocess.run(command, cwd=ROOT, env=environment(), capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
