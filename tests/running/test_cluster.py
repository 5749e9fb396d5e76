"""The executor on Ray, on a Ray of this machine: the same results, kept through kills; SLURM."""
import json
import math
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest
from conftest import ROOT, environment
from kills import LIMIT, Background, children, command_of, kernels, kill_driver, kill_one, records, runs, survives
from light import light, results

from smoltraces.running.run import Need, ray_options
from smoltraces.running.stages import plan
from smoltraces.settings import load_settings

pytest.importorskip("ray")
pytestmark = pytest.mark.slow
FEW = ("--variants", "SBS,ST", "--seeds", "0:2")
BIN = Path(sys.executable).parent


@pytest.fixture(scope="module")
def ray_address(tmp_path_factory):
    "A Ray that outlives its drivers, as a cluster does"
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    folder = tmp_path_factory.mktemp("ray")
    env = environment(RAY_AUTH_MODE="disabled")
    command = [BIN / "ray", "start", "--head", f"--port={port}", "--node-ip-address=127.0.0.1", "--num-cpus=2",
               "--include-dashboard=false", "--block"]
    for _ in range(3):  # a busy machine may not start it at once
        with open(folder / "ray.log", "a") as log:
            process = subprocess.Popen(command, env=env, stdout=log, stderr=log, start_new_session=True)
        end = time.monotonic() + 120
        while time.monotonic() < end and process.poll() is None:
            ask = [BIN / "ray", "status", "--address", f"127.0.0.1:{port}"]
            check = subprocess.run(ask, env=env, capture_output=True)
            if check.returncode == 0 and b"Active:" in check.stdout: break
            time.sleep(1)
        else:
            os.killpg(process.pid, 9)
            process.wait()
            continue
        break
    yield f"127.0.0.1:{port}"
    below = children(process.pid)
    os.killpg(process.pid, signal.SIGTERM)
    try: process.wait(5)
    except subprocess.TimeoutExpired: os.killpg(process.pid, 9)
    for pid in below:
        try: os.kill(pid, 9)
        except ProcessLookupError: pass
    note = Path(tempfile.gettempdir(), "ray", "ray_current_cluster")  # or the next Ray looks for this one
    if note.exists() and str(port) in note.read_text(): note.unlink()


def on_ray(folder: Path, address: str, *arguments: str, **extra: str) -> Background:
    return Background(folder, *FEW, "--engine", "ray", "--address", address, *arguments, RAY_AUTH_MODE="disabled",
                      **extra)


@pytest.fixture(scope="module")
def without(tmp_path_factory) -> Path:
    folder = light(tmp_path_factory.mktemp("without"))
    assert Background(folder, *FEW).end() == 0
    return folder


def test_slurm(without, tmp_path):
    "The script, with a SLURM that lends this machine alone; first, for it starts a Ray where none may be"
    folder, fake = light(tmp_path / "p"), tmp_path / "bin"
    fake.mkdir()
    for name, body in {"srun": 'while [[ "$1" == --* ]]; do shift; done; exec "$@"', "scontrol": "echo localhost",
                       "hostname": "echo 127.0.0.1"}.items():
        (fake / name).write_text(f"#!/usr/bin/env bash\n{body}\n")
        (fake / name).chmod(0o755)
    (folder / ".venv").mkdir()
    (folder / ".venv" / "bin").symlink_to(BIN)
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    env = environment(PATH=f"{fake}:{os.environ['PATH']}", SLURM_SUBMIT_DIR=str(folder), SLURM_JOB_NODELIST="localhost",
                      SLURM_JOB_NUM_NODES="1", RAY_AUTH_MODE="disabled", RAY_PORT=str(port))
    done = subprocess.run(["bash", ROOT / "nbs" / "slurm.sh", "--profile", "smoke", *FEW], cwd=folder, env=env,
                          capture_output=True, text=True, timeout=LIMIT)
    assert done.returncode == 0 and "13 stages ran" in done.stdout, done.stdout[-2000:] + done.stderr[-2000:]
    assert results(folder) == results(without)


def test_the_same_file_by_file(without, ray_address, tmp_path):
    folder = light(tmp_path / "p")
    run = on_ray(folder, ray_address)
    assert run.end() == 0, run.err
    assert results(folder) == results(without) and records(folder).keys() == records(without).keys()
    for name, record in records(folder).items():
        assert {k: record[k] for k in ("settings", "inputs", "outputs", "code")} == \
            {k: records(without)[name][k] for k in ("settings", "inputs", "outputs", "code")}
    again = on_ray(folder, ray_address)
    assert again.end() == 0 and "0 stages ran" in again.out, again.err


def kill_worker(run: Background, numbers) -> bool:
    "One of Ray's workers that are at a stage"
    pids = [int(each.name) for each in Path("/proc").iterdir() if each.name.isdigit()]
    return kill_one([pid for pid in pids if command_of(pid).startswith(b"ray::") and kernels(pid)], numbers)


@pytest.mark.parametrize("kill", [kill_worker, kill_driver])
def test_ten_kills_at_random_moments(without, ray_address, tmp_path, kill):
    folder = light(tmp_path / "p")
    survives(lambda: on_ray(folder, ray_address), kill, lambda folder: shutil.rmtree(folder / "outputs"), kill.__name__)
    assert results(folder) == results(without)


def test_a_lock_of_a_lost_machine_and_a_key_of_its_env_file(ray_address, tmp_path):
    folder, hidden = light(tmp_path / "p"), "sk-from-a-file-42"
    (folder / ".env").write_text(f"SERVICE_LOGIN={hidden}\n")
    file = folder / "nbs" / "experiments" / "1_build_data.ipynb"
    leak = "print(os.environ[\\\"SERVICE_LOGIN\\\"])\\nprint(\\\"begin"
    file.write_text(file.read_text().replace("print(\\\"begin", leak))
    note = runs(folder) / ".locks" / "1_build_data.json"
    note.parent.mkdir(parents=True)
    note.write_text(json.dumps({"host": "node7", "pid": 7, "began": "2030-01-01T00:00:00Z"}))
    process = on_ray(folder, ray_address, "--only", "1_build")

    def is_held() -> bool:
        os.utime(note)  # its heartbeat
        return "held by process 7 on node7" in process.err
    process.until(is_held)
    os.utime(note, (time.time() - 60,) * 2)
    assert process.end() == 0 and "1_build_data" in records(folder), process.err
    left = {p: p.read_text() for p in (folder / "outputs").rglob("*") if p.is_file()}
    assert not [p for p, text in left.items() if hidden in text]
    assert any("[SERVICE_LOGIN]" in text for p, text in left.items() if p.suffix == ".ipynb")


def test_a_stage_asks_for_no_more_than_one_machine_has():
    nodes = [{"CPU": 64.0, "memory": 2.0**38}, {"CPU": 16.0, "GPU": 8.0, "memory": 2.0**37}]
    stages = {s.notebook: s for s in plan(load_settings("smoke"))}
    options = {name: ray_options(Need(64, 8, 1, math.inf), stage, nodes) for name, stage in stages.items()}
    assert options["3_finetune"]["num_cpus"] == 16 and options["5_figures"]["num_cpus"] == 64
    assert options["3_finetune"]["num_gpus"] == 1 and options["5_figures"]["num_gpus"] == 0


def test_ctrl_c_reaches_the_workers(ray_address, tmp_path):
    folder = light(tmp_path / "p")
    file = folder / "nbs" / "experiments" / "3_finetune.ipynb"  # a worker has the environment of its Ray, not ours
    asleep = "put(\\\"asleep.txt\\\", \\\"\\\")\\ntime.sleep(600)\\n"
    file.write_text(file.read_text().replace("print(\\\"begin", f"{asleep}print(\\\"begin"))
    process = on_ray(folder, ray_address)
    process.until((folder / "outputs" / "smoke" / "asleep.txt").exists)
    process.interrupt()
    assert process.end() == 130 and "the same command goes on" in process.err, process.err
    assert not list(runs(folder).glob("*.failed.json"))


def test_no_cluster_there(tmp_path):
    process = on_ray(light(tmp_path / "p"), "127.0.0.1:1")
    assert process.end() == 2 and "No Ray cluster answers at 127.0.0.1:1" in process.err, process.err
