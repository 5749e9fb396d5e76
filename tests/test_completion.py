"""The Tab key offers what a command takes, as each shell asks for it, and never fails."""
import shutil

import pytest
from conftest import project, smoltraces


def offered(words: str, folder, shell: str = "bash") -> list[str]:
    "What is offered for the last of `words`"
    asked = ["smoltraces", *words.split(" ")]
    how = ({"COMP_WORDS": " ".join(asked), "COMP_CWORD": str(len(asked) - 1)} if shell == "bash" else
           {"_TYPER_COMPLETE_ARGS": " ".join(asked)} |
           ({"_TYPER_COMPLETE_FISH_ACTION": "get-args"} if shell == "fish" else {}))
    done = smoltraces(cwd=folder, _SMOLTRACES_COMPLETE=f"complete_{shell}", **how)
    assert "Traceback" not in done.stderr, done.stderr
    return done.stdout.split("\n")[:-1] if done.stdout.strip() else []


def test_names_come_from_the_project(tmp_path):
    folder = project(tmp_path)
    with open(folder / "settings.ini", "a") as f: f.write("\n[mine]\nn_train = 8\n[mine ST-HC]\nepochs = 2\n")
    shutil.copy(folder / "nbs/experiments/3_finetune.ipynb", folder / "nbs/experiments/6_own.ipynb")
    assert offered("reproduce --profile ", folder) == ["smoke", "laptop", "gpu", "paper", "mine"]
    assert offered("doctor --profile la", folder) == ["laptop"]
    assert offered("reproduce --only 6", folder) == ["6_own"]
    assert offered("settings --set lora_", folder) == ["lora_rank=", "lora_alpha="]
    assert "doctor" in offered("do", folder) and "--profile" in offered("reproduce --pro", folder)


@pytest.mark.parametrize("shell", ["zsh", "fish"])
def test_other_shells_also_show_the_meaning(tmp_path, shell):
    told = "\n".join(offered("doctor --set epo", project(tmp_path), shell))
    assert "epochs=" in told and "passes over the training set" in told


def test_outside_a_project_nothing_is_offered(tmp_path):
    assert offered("reproduce --profile ", tmp_path) == [] == offered("reproduce --only ", tmp_path)
    (tmp_path / "settings.ini").write_text("[half\n")
    assert offered("reproduce --profile ", tmp_path) == []
