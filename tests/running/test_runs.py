"""The runner, on light notebooks: the matrix, failures, stops, kills, two runs on a folder, disks, clocks, secrets."""
import json
import os
import random
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import nbformat
import pytest
from conftest import SECRET, smoltraces
from kills import Background, kernels, kill_driver, kill_one, records, runs, survives, until
from light import light, results

from smoltraces.running.execute import Held, StageError, hold, holders
from smoltraces.running.run import Need, Resources, Threads
from smoltraces.running.stages import assess, plan, recorded
from smoltraces.settings import load_settings
from smoltraces.students.memory import Card

FEW = ("--variants", "SBS,ST", "--seeds", "0:2")  # 13 stages
ALL = {"1_build_data", "2_analyse_traces-teachers", "4_evaluate-embedded--random-llama-Base-seed-0",
       *(f"{n}-embedded--random-llama-{v}-seed-{s}" for n in ("3_finetune", "4_evaluate") for v in ("SBS", "ST")
         for s in (0, 1)), "2_analyse_traces-students", "5_figures"}
TUNES_SBS = "'variant' in globals() and variant == 'SBS' and seed == 0 and not cfg.path('students', slug(student), " \
            "'SBS', 'seed-0').exists()"


def run(folder: Path, *arguments: str, **extra) -> subprocess.CompletedProcess:
    return smoltraces("reproduce", "--profile", "smoke", *arguments, cwd=folder, **extra)


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    "A matrix that has run; not to be changed"
    folder = light(tmp_path_factory.mktemp("whole"))
    done = run(folder, *FEW)
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture
def copied(whole, tmp_path) -> Path:
    shutil.copytree(whole, tmp_path / "copy")
    return tmp_path / "copy"


def states(folder: Path, *arguments: str) -> dict[str, str]:
    shown = smoltraces("reproduce", "--profile", "smoke", "--dry-run", "--json", *arguments, cwd=folder)
    assert shown.returncode == 0, shown.stderr
    return {row["stage"]: row["state"] for row in json.loads(shown.stdout)}


# the plan

def test_the_matrix_is_what_was_asked_for(whole):
    assert set(records(whole)) == ALL
    assert set(states(whole, *FEW).values()) == {"done"}
    more = states(whole, "--variants", "SBS,ST", "--seeds", "0:3")
    assert {s for s, state in more.items() if state == "new"} == {
        f"{n}-embedded--random-llama-{v}-seed-2" for n in ("3_finetune", "4_evaluate") for v in ("SBS", "ST")}
    assert more["5_figures"] == more["2_analyse_traces-students"] == "stale"


def test_one_variants_settings_touch_it_alone(copied):
    with open(copied / "settings.ini", "a") as f: f.write("\n[smoke SBS]\nepochs = 2\n")
    changed = states(copied, *FEW)
    assert {s for s, state in changed.items() if state == "stale"} == {
        f"3_finetune-embedded--random-llama-SBS-seed-{k}" for k in (0, 1)}
    assert {s for s, state in changed.items() if state == "follows"} == {
        *(f"4_evaluate-embedded--random-llama-SBS-seed-{k}" for k in (0, 1)), "2_analyse_traces-students", "5_figures"}
    done = run(copied, *FEW)
    assert done.returncode == 0 and "6 stages ran" in done.stdout, done.stderr
    assert records(copied)["3_finetune-embedded--random-llama-SBS-seed-0"]["settings"]["epochs"] == 2
    assert records(copied)["3_finetune-embedded--random-llama-ST-seed-0"]["settings"]["epochs"] == 1


def test_prose_reruns_nothing_and_code_its_stage(copied):
    file = copied / "nbs" / "experiments" / "4_evaluate.ipynb"
    notebook = nbformat.read(file, 4)
    notebook.cells[0].source = "# Other words"
    notebook.cells[2].source += "\n# a comment"
    nbformat.write(notebook, file)
    notebook.cells[1].source = "profile = 'laptop'\nstudent = None\nvariant = 'ST'\nseed = 3"  # the runner gives these
    nbformat.write(notebook, file)
    assert set(states(copied, *FEW).values()) == {"done"}
    notebook.cells[2].source += "\nx = 1"
    nbformat.write(notebook, file)
    stale = {s for s, state in states(copied, *FEW).items() if state == "stale"}
    assert stale == {s for s in ALL if s.startswith("4_evaluate")}
    done = run(copied, *FEW)  # they write the same, so that nothing follows
    assert done.returncode == 0 and "5 stages ran" in done.stdout, done.stdout + done.stderr


def test_a_notebook_that_was_played_with_does_what_the_run_says(copied):
    file = copied / "nbs" / "experiments" / "1_build_data.ipynb"
    notebook = nbformat.read(file, 4)
    notebook.cells[1].source = "%matplotlib inline\nprofile = 'laptop'\nn_train = 7\nvariants = 'SBS'"
    nbformat.write(notebook, file)
    assert {name for name, state in states(copied, *FEW).items() if state == "stale"} == {"1_build_data"}
    before = {name: text for name, text in results(copied).items() if name.startswith("data/")}
    shutil.rmtree(copied / "outputs/smoke/data")
    assert run(copied, *FEW).returncode == 0
    assert {name: text for name, text in results(copied).items() if name.startswith("data/")} == before
    notebook.cells[1].source = "profile = 'lap"
    nbformat.write(notebook, file)
    said = run(copied, *FEW)
    assert said.returncode == 2 and "1_build_data.ipynb holds no Python in the cell that begins with" in said.stderr


def test_a_changed_output_is_made_again(copied):
    file = copied / "outputs/smoke/predictions/embedded--random-llama/ST/seed-1/embedded.parquet"
    before = file.read_text()
    file.write_text("changed")
    assert [s for s, state in states(copied, *FEW).items() if state == "stale"] == [
        "4_evaluate-embedded--random-llama-ST-seed-1", ]
    assert run(copied, *FEW).returncode == 0 and file.read_text() == before


def test_the_tree_is_for_people(whole):
    shown = smoltraces("reproduce", "--profile", "smoke", "--dry-run", "--variants", "SBS,ST", "--seeds", "0:40",
                       cwd=whole, COLUMNS="140").stdout
    assert re.search(r"3_finetune × 38 +new", shown) and re.search(r"3_finetune × 2 +done", shown), shown
    assert re.search(r"5_figures +stale \(setting seeds", shown) and "165 stages: " in shown, shown


def test_resources_are_given_back_and_never_overdrawn():
    numbers, resources, taken = random.Random(0), Resources(8, 32, (24.0, 24.0)), {}
    for k in range(2000):
        if taken and numbers.random() < 0.5:
            name = numbers.choice(list(taken))
            resources.release(name)
            del taken[name]
        need = Need(numbers.choice([1, 2, 4]), numbers.choice([2, 8, 30]), numbers.choice([0, 1, 1, 2]),
                    numbers.choice([4.0, 10.0, 24.0]))
        alone, chosen = not taken, resources.take(str(k), need)
        if chosen is not None: taken[str(k)] = need
        assert alone <= (chosen is not None) and len(chosen or []) in (0, need.gpus)
        if len(taken) > 1: assert min(resources.free) >= 0
    for name in taken: resources.release(name)
    assert list(resources.free) == [8, 32, 24.0, 24.0]


# failures

@pytest.mark.slow
def test_a_failure_stops_nobody_else(tmp_path):
    folder = light(tmp_path / "p")
    done = run(folder, *FEW, LIGHT_SPOIL=TUNES_SBS, LIGHT_HOW="raise ValueError('spoilt by hand')")
    assert done.returncode == 1 and "1 of 13 stages failed and 1 that need them did not run" in done.stderr, done.stderr
    assert "ValueError: spoilt by hand" in done.stderr and "Traceback" not in done.stderr
    lost = {f"{n}-embedded--random-llama-SBS-seed-0" for n in ("3_finetune", "4_evaluate")}
    assert set(records(folder)) == ALL - lost
    report = (folder / "outputs/smoke/report.html").read_text()
    assert "SBS/seed-1" in report and "SBS/seed-0" not in report
    shown = smoltraces("status", "--profile", "smoke", *FEW, cwd=folder, COLUMNS="200").stdout
    assert "3_finetune seed 0  failed (ValueError: spoilt by hand)" in shown, shown
    page = f"outputs/smoke/notebooks/{min(lost)}.ipynb"
    assert page in shown
    assert 'id=\\"papermill-error-cell\\"' in (folder / page).read_text()
    assert (runs(folder) / f"{min(lost)}.log").read_text().startswith("begin embedded/random-llama SBS 0")
    done = run(folder, *FEW)  # mended: the lost two, and those that gather
    assert done.returncode == 0 and "4 stages ran" in done.stdout, done.stderr
    assert "SBS/seed-0" in (folder / "outputs/smoke/report.html").read_text()
    assert not list(runs(folder).glob("*.failed.json"))


def test_max_failures(tmp_path):
    folder = light(tmp_path / "p")
    done = run(folder, *FEW, "--max-failures", "1", "-s", "jobs=1", LIGHT_SPOIL=TUNES_SBS, LIGHT_HOW="1 / 0")
    assert done.returncode == 1 and "ZeroDivisionError" in done.stderr
    assert "3_finetune-embedded--random-llama-ST-seed-1" not in records(folder)


FATES = {("SBS", 0): ("os.kill(os.getpid(), 9)", "its kernel was killed by signal 9, as happens when memory runs out"),
         ("SBS", 1): ("os.kill(os.getpid(), 11)", "its kernel was killed by signal 11"),
         ("ST", 0): ("raise KeyboardInterrupt", "KeyboardInterrupt"), ("ST", 1): ("sys.exit(3)", "SystemExit")}


@pytest.mark.slow
def test_how_notebooks_may_end(tmp_path):
    "All of them badly, each in its way; what needs none of them goes on"
    folder = light(tmp_path / "p")
    how = f"exec({ {k: how for k, (how, _) in FATES.items()} !r}[variant, seed])"
    spoil = "'variant' in globals() and variant != 'Base'"
    done = run(folder, *FEW, LIGHT_SPOIL=spoil, LIGHT_HOW=how)
    assert done.returncode == 1 and "4 of 13 stages failed and 4 that need them did not run" in done.stderr, done.stderr
    assert set(records(folder)) == {name for name in ALL if name[0] in "125" or "Base" in name}
    assert not list(runs(folder).glob("*.running.ipynb"))
    for (variant, seed), (_, words) in FATES.items():
        name = f"3_finetune-embedded--random-llama-{variant}-seed-{seed}"
        assert '"output_type": "error"' in (folder / f"outputs/smoke/notebooks/{name}.ipynb").read_text(), name
        assert words in json.loads((runs(folder) / f"{name}.failed.json").read_text())["why"], name


def test_a_stage_that_takes_too_long(tmp_path):
    folder = light(tmp_path / "p")
    done = run(folder, "--only", "1_build", "-s", "time_limit=0.05", LIGHT_SECONDS="600")
    why = json.loads((runs(folder) / "1_build_data.failed.json").read_text())["why"]
    assert done.returncode == 1 and why == "it took longer than time_limit = 0.05 minutes: raise that."


def test_errors_survive_a_trip_to_another_process():
    import pickle
    error = pickle.loads(pickle.dumps(StageError("a failed: b", 2, "InputError", "b")))
    assert (str(error), error.code, error.kind, error.why) == ("a failed: b", 2, "InputError", "b")


# stops and kills

@pytest.mark.slow
def test_ctrl_c_while_kernels_start_is_no_failure(tmp_path):
    folder, slow = light(tmp_path / "p"), tmp_path / "slow"
    slow.mkdir()
    (slow / "sitecustomize.py").write_text(f"""
import os, sys, time
if "ipykernel_launcher" in " ".join(sys.orig_argv):
    open({str(slow / "begun")!r}, "w").close()
    time.sleep(600)""")
    process = Background(folder, *FEW, PYTHONPATH=f"{slow}:{os.environ.get('PYTHONPATH', '')}")
    process.until((slow / "begun").exists)
    process.interrupt()
    assert process.end() == 130 and "the same command goes on" in process.err and "FAILED" not in process.err
    assert not list(runs(folder).glob("*.failed.json"))


def test_a_kernel_that_dies_as_it_starts(tmp_path):
    folder, slow = light(tmp_path / "p"), tmp_path / "slow"
    slow.mkdir()
    (slow / "sitecustomize.py").write_text("""
import os, sys
if "ipykernel_launcher" in " ".join(sys.orig_argv): os.kill(os.getpid(), 9)""")
    done = run(folder, *FEW, PYTHONPATH=f"{slow}:{os.environ.get('PYTHONPATH', '')}")
    assert done.returncode == 1 and "killed by signal 9, as happens when memory runs out" in done.stderr, done.stderr
    page = json.loads((folder / "outputs/smoke/notebooks/1_build_data.ipynb").read_text())["cells"]
    assert next(cell for cell in page if cell["cell_type"] == "code")["outputs"][0]["ename"] == "DeadKernel"


@pytest.mark.slow
def test_ctrl_c_saves_and_a_second_one_does_not_wait(tmp_path):
    folder = light(tmp_path / "p")
    out = folder / "outputs/smoke"
    how = """
try:
    put("asleep.txt", "yes")
    time.sleep(600)
except KeyboardInterrupt:
    wait_for("go")
    put("saved.txt", "yes")
    raise"""
    first = Background(folder, *FEW, LIGHT_SPOIL=TUNES_SBS, LIGHT_HOW=how)
    first.until((out / "asleep.txt").exists)
    first.interrupt()
    first.until_it_prints("being saved")
    (folder / "go").touch()
    assert first.end() == 130 and "the same command goes on" in first.err, first.err
    assert (out / "saved.txt").exists() and not list(runs(folder).glob("*.failed.json")) and not holders(runs(folder))
    for name in ("saved.txt", "asleep.txt"): (out / name).unlink()
    (folder / "go").unlink()
    second = Background(folder, *FEW, LIGHT_SPOIL=TUNES_SBS, LIGHT_HOW=how)
    second.until((out / "asleep.txt").exists)
    second.interrupt()
    second.until_it_prints("being saved")
    second.interrupt()
    assert second.end() == 130 and "stopped at once" in second.err, second.err
    assert not (out / "saved.txt").exists()
    done = run(folder, *FEW)
    assert done.returncode == 0 and set(records(folder)) == ALL, done.stderr


def kill_kernel(run: Background, numbers: random.Random) -> bool: return kill_one(kernels(run.pid), numbers)


@pytest.mark.slow
@pytest.mark.parametrize("kill", [kill_driver, kill_kernel])
def test_ten_kills_at_random_moments(whole, tmp_path, kill):
    folder = light(tmp_path / "p")
    survives(lambda: Background(folder, *FEW), kill, lambda folder: shutil.rmtree(folder / "outputs"), kill.__name__)
    assert results(folder) == results(whole)
    left = [p.name for p in (folder / "outputs").rglob(".*.partial")]
    assert [name for name in left if not name.startswith(("..hashes", ".manifest"))] == []  # of a stage


@pytest.mark.slow
def test_two_runs_share_a_folder(whole, tmp_path):
    folder = light(tmp_path / "p")
    first = Background(folder, *FEW, LIGHT_SPOIL="'variant' not in globals()", LIGHT_HOW="wait_for('go')")
    first.until((runs(folder) / ".locks" / "1_build_data.json").exists)
    second = Background(folder, *FEW)
    second.until_it_prints(f"1_build_data: held by process {first.pid} on ")
    (folder / "go").touch()
    assert [first.end(), second.end()] == [0, 0], first.err + second.err
    assert sum(int(re.search(r"(\d+) stages ran", each.out)[1]) for each in (first, second)) == 13
    assert results(folder) == results(whole)


@pytest.mark.slow
def test_a_lock_of_a_lost_machine_is_taken_over(tmp_path):
    "It holds as long as its heartbeat goes on, and no longer"
    folder = light(tmp_path / "p")
    note = runs(folder) / ".locks" / "1_build_data.json"
    note.parent.mkdir(parents=True)
    note.write_text(json.dumps({"host": "node7", "pid": 7, "began": "2030-01-01T00:00:00Z"}))
    process = Background(folder, "--only", "1_build")

    def told() -> bool:
        os.utime(note)  # its heartbeat
        return "held by process 7 on node7, since 00:00 UTC; waiting for it" in process.err
    process.until(told)
    os.utime(note, (time.time() - 60,) * 2)
    assert process.end() == 0 and "1_build_data" in records(folder), process.err


def test_a_stop_while_stages_are_handed_out(tmp_path):
    cfg = load_settings("smoke", light(tmp_path / "p"))
    first = plan(cfg)[0]
    executor = Threads(cfg, {}, {first.name: Need(1, 1, 0, 0)})
    executor.stop()  # between the look whether to stop and this
    assert executor.submit(first)
    ended = until(lambda: executor.wait(1))
    assert ended[0][1].kind == "Stopped" and not records(cfg.root)
    executor.close()


def test_the_gpus_that_a_run_may_use(tmp_path, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2, GPU-3")
    monkeypatch.setattr("smoltraces.running.run.cards", lambda: (Card("a", 80.0, 80.0, ""),) * 2)
    given = []
    monkeypatch.setattr("smoltraces.running.run.attempt", lambda *a, environment, **how: given.append(environment))
    cfg = load_settings("smoke", light(tmp_path / "p"), jobs=2)
    stages = [s for s in plan(cfg) if s.notebook == "3_finetune"][:2]
    executor = Threads(cfg, {}, {s.name: Need(1, 1, 1, 80) for s in stages})
    assert all(map(executor.submit, stages))
    while executor.tasks: executor.wait(1)
    executor.close()
    assert sorted(each["CUDA_VISIBLE_DEVICES"] for each in given) == ["2", "GPU-3"]


def test_records_alone_tell_of_stages_that_are_not_asked_for(whole):
    cfg = load_settings("smoke", whole, variants="SBS,ST", seeds="0:2")
    known = {name: dict(record) for name, record in records(whole).items()}
    tunes = [s for s in plan(cfg) if s.notebook == "3_finetune"]
    assert {s.state for s in assess(cfg, tunes, known, recorded(known)).values()} == {"done"}
    known["1_build_data"]["outputs"] = {**known["1_build_data"]["outputs"], "data/ST.parquet": "another"}
    states = assess(cfg, tunes, known, recorded(known))
    assert {states[s.name].state for s in tunes if s.parameters["variant"] == "ST"} == {"stale"}
    assert {states[s.name].state for s in tunes if s.parameters["variant"] == "SBS"} == {"done"}


@pytest.mark.slow
def test_status_from_another_process(tmp_path):
    folder = light(tmp_path / "p")
    process = Background(folder, *FEW, LIGHT_SPOIL="'variant' in globals()", LIGHT_HOW="wait_for('go')")
    process.until(lambda: any(name.startswith("4_") for name in holders(runs(folder))))
    shown = json.loads(smoltraces("status", "--profile", "smoke", *FEW, "--json", cwd=folder).stdout)
    running = [row for row in shown["stages"] if row["state"] == "running"]
    assert running and f"process {process.pid} on" in running[0]["owner"]
    process.interrupt()
    assert process.end() == 130
    shown = json.loads(smoltraces("status", "--profile", "smoke", *FEW, "--json", cwd=folder).stdout)
    assert {row["state"] for row in shown["stages"]} == {"done", "to do"} and shown["usd"] == 1.0


# disks and clocks

def mounted(folder: Path, options: str) -> bool:
    folder.mkdir(parents=True, exist_ok=True)
    command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)]
    return subprocess.run(command, capture_output=True).returncode == 0


@pytest.fixture
def disk(tmp_path):
    folder = light(tmp_path / "p")
    if shutil.which("mount") is None or not mounted(folder / "outputs", "size=2m"):
        pytest.skip("only root may mount a small disk")
    yield folder
    subprocess.run(["umount", "-l", str(folder / "outputs")], check=True)


@pytest.mark.slow
def test_a_full_disk(disk):
    big = "from smoltraces.files import write_text; write_text(cfg.path('filler'), 'x' * 4_000_000)"
    done = run(disk, *FEW, LIGHT_SPOIL=TUNES_SBS, LIGHT_HOW=big)
    assert done.returncode != 0 and "No disk space left to write filler: free some" in done.stderr, done.stderr
    assert "Traceback" not in done.stderr and not (disk / "outputs/smoke/filler").exists()
    subprocess.run(["mount", "-o", "remount,size=20m", str(disk / "outputs")], check=True)
    done = run(disk, *FEW)
    assert done.returncode == 0 and set(records(disk)) == ALL, done.stderr


@pytest.mark.slow
def test_a_disk_that_is_full_to_the_last_byte(disk):
    assert run(disk, "--only", "1_build").returncode == 0
    with open(disk / "outputs" / "filler", "wb", buffering=0) as f, pytest.raises(OSError):
        while True: f.write(b"x" * 4096)
    done = run(disk, *FEW)
    assert done.returncode != 0 and "No disk space left to write" in done.stderr and "Traceback" not in done.stderr, \
        done.stderr
    (disk / "outputs" / "filler").unlink()
    subprocess.run(["mount", "-o", "remount,size=20m", str(disk / "outputs")], check=True)
    done = run(disk, *FEW)
    assert done.returncode == 0 and set(records(disk)) == ALL, done.stderr


def test_a_read_only_disk(disk):
    subprocess.run(["mount", "-o", "remount,ro", str(disk / "outputs")], check=True)
    done = run(disk, *FEW)
    assert done.returncode == 2 and "outputs/smoke cannot be written (" in done.stderr, done.stderr


def test_dates_of_tomorrow_and_yesterday(copied):
    "As after a clock that was set back, or a copy that lost its times"
    for k, file in enumerate(sorted(p for p in (copied / "outputs").rglob("*") if p.is_file())):
        when = time.time() + (86_400 if k % 2 else -86_400)
        os.utime(file, (when, when))
    assert set(states(copied, *FEW).values()) == {"done"}
    done = run(copied, *FEW)
    assert done.returncode == 0 and "0 stages ran" in done.stdout, done.stdout
    cfg = load_settings("smoke", copied, variants="SBS,ST", seeds="0:2")
    assert {s.state for s in assess(cfg, plan(cfg)).values()} == {"done"}


@pytest.mark.slow
def test_a_lock_is_exclusive_across_processes(tmp_path):
    code = ("import sys; from pathlib import Path; from smoltraces.running.execute import Held, hold\n"
            "for _ in range(300):\n"
            "    try:\n"
            "        with hold(Path(sys.argv[1]), 'x'):\n"
            "            f = Path(sys.argv[1], 'count'); n = int(f.read_text()); f.write_text(str(n + 1))\n"
            "            print('mine')\n"
            "    except Held: pass")
    (tmp_path / "count").write_text("0")
    three = [subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE, text=True)
             for _ in range(3)]
    times = sum(p.communicate()[0].count("mine") for p in three)
    assert [p.returncode for p in three] == [0, 0, 0]
    assert int((tmp_path / "count").read_text()) == times > 0  # no update was lost


def test_who_holds_a_lock(tmp_path):
    with hold(tmp_path, "x"):
        assert holders(tmp_path)["x"].pid == os.getpid()
        with pytest.raises(Held, match=f"held by process {os.getpid()} on "), hold(tmp_path, "x"): pass
        os.utime(tmp_path / ".locks" / "x.json", (0, 0))
        assert not holders(tmp_path)  # no heartbeat
    with hold(tmp_path, "x"): pass
    code = ("import sys; from pathlib import Path; from smoltraces.running.execute import hold\n"
            "with hold(Path(sys.argv[1]), 'x'): print('mine', flush=True); input()")
    dead = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                            text=True)
    assert dead.stdout.readline() == "mine\n" and holders(tmp_path)["x"].pid == dead.pid
    dead.kill()
    dead.communicate()
    assert not holders(tmp_path)  # its process has gone
    with hold(tmp_path, "x"): assert holders(tmp_path)["x"].pid == os.getpid()


# secrets

@pytest.mark.slow
def test_a_key_that_leaks_everywhere_is_nowhere(tmp_path):
    folder, hidden = light(tmp_path / "p"), "sk-from-a-file-42"
    (folder / ".env").write_text(f"SERVICE_LOGIN={hidden}\n")
    leak = ("import base64, sys\nfor key in (os.environ['PLANTED_API_KEY'], os.environ['SERVICE_LOGIN']):\n"
            "    print(key); print(repr(key), file=sys.stderr); os.write(1, f'raw {key}\\n'.encode())\n"
            "    for k in range(0, len(key), 3): print(key[k:k + 3], end='', flush=True)\n"
            "    display(key)\n"
            "raise ValueError(' '.join(os.environ[k] for k in ('PLANTED_API_KEY', 'SERVICE_LOGIN')))")
    done = run(folder, *FEW, LIGHT_SPOIL=TUNES_SBS, LIGHT_HOW=leak)
    assert done.returncode == 1 and "[PLANTED_API_KEY] [SERVICE_LOGIN]" in done.stderr, done.stderr
    left = {str(p): p.read_bytes().decode("latin-1") for p in (folder / "outputs").rglob("*") if p.is_file()}
    left |= {"stdout": done.stdout, "stderr": done.stderr}
    shown = smoltraces("status", "--profile", "smoke", *FEW, cwd=folder)
    left |= {"status": shown.stdout + shown.stderr}
    for key in (SECRET, hidden):
        assert [name for name, text in left.items() if key in text] == []
    assert any("raw [PLANTED_API_KEY]" in text for name, text in left.items() if name.endswith(".log"))


def test_a_key_in_place_of_its_name(tmp_path):
    folder = light(tmp_path / "p")
    done = run(folder, "-s", f"teacher_lm_key={SECRET}")
    assert done.returncode == 2 and "NAME of an environment variable" in done.stderr and SECRET not in done.stderr
    (folder / ".env").write_text(f"{SECRET}\n")
    done = run(folder)
    assert done.returncode == 2 and ".env, line 1 is no NAME=value" in done.stderr and SECRET not in done.stderr


@pytest.mark.slow
def test_a_key_survives_no_kill(tmp_path):
    folder = light(tmp_path / "p")
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    leak = "print(os.environ['PLANTED_API_KEY'], flush=True); time.sleep(600)"
    process = Background(folder, *FEW, LIGHT_SPOIL=TUNES_SBS, LIGHT_HOW=leak, TMPDIR=str(scratch))
    log = runs(folder) / "3_finetune-embedded--random-llama-SBS-seed-0.log"
    process.until(lambda: log.exists() and "[PLANTED_API_KEY]" in log.read_text())
    process.kill()
    left = [p for base in (folder, scratch) for p in base.rglob("*") if p.is_file()]
    assert [p for p in left if SECRET.encode() in p.read_bytes()] == []


def test_environment_reaches_the_notebooks(tmp_path):
    folder = light(tmp_path / "p")
    done = run(folder, "--only", "1_build", SMOLTRACES_N_TRAIN="7")
    assert done.returncode == 0 and records(folder)["1_build_data"]["settings"]["n_train"] == 7
    assert (folder / "outputs/smoke/problems.parquet").read_text() == "problems.parquet 7"
