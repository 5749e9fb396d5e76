"""The Ray engine on a Ray of this machine: the same results, kept through kills, a store between machines, SLURM."""
import os
import random
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
from light import children, kernels, light, records, results, runs, start, until

pytest.importorskip("ray")
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
    try: process.wait(20)
    except subprocess.TimeoutExpired: os.killpg(process.pid, 9)
    for pid in below:
        try: os.kill(pid, 9)
        except ProcessLookupError: pass
    note = Path(tempfile.gettempdir(), "ray", "ray_current_cluster")  # or the next Ray looks for this one
    if note.exists() and str(port) in note.read_text(): note.unlink()


def on_ray(folder: Path, address: str, *arguments: str, **extra) -> subprocess.Popen:
    return start(folder, *FEW, "--engine", "ray", "--address", address, *arguments, RAY_AUTH_MODE="disabled", **extra)


@pytest.fixture(scope="module")
def without(tmp_path_factory) -> Path:
    folder = light(tmp_path_factory.mktemp("without"))
    process = start(folder, *FEW)
    assert process.communicate() and process.returncode == 0
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
                          capture_output=True, text=True, timeout=500)
    assert done.returncode == 0 and "13 stages ran" in done.stdout, done.stdout[-2000:] + done.stderr[-2000:]
    assert results(folder) == results(without)


def test_the_same_file_by_file(without, ray_address, tmp_path):
    folder = light(tmp_path / "p")
    process = on_ray(folder, ray_address)
    _, said = process.communicate(timeout=300)
    assert process.returncode == 0, said
    assert results(folder) == results(without) and records(folder).keys() == records(without).keys()
    for name, record in records(folder).items():
        assert {k: record[k] for k in ("settings", "inputs", "outputs", "code")} == \
            {k: records(without)[name][k] for k in ("settings", "inputs", "outputs", "code")}
    again = on_ray(folder, ray_address)
    out, said = again.communicate(timeout=120)
    assert again.returncode == 0 and "0 stages ran" in out, said


def workers() -> list[int]:
    "Ray workers that are at a stage"
    found = []
    for each in Path("/proc").iterdir():
        if not each.name.isdigit(): continue
        try: line = (each / "cmdline").read_bytes()
        except OSError: continue
        if line.startswith(b"ray::") and kernels(int(each.name)): found.append(int(each.name))
    return found


@pytest.mark.parametrize("whom", ["worker", "driver"])
def test_ten_kills_at_random_moments(without, ray_address, tmp_path, whom):
    folder, numbers, killed, kept = light(tmp_path / "p"), random.Random(whom), 0, {}
    for _ in range(30):
        process = on_ray(folder, ray_address, LIGHT_SECONDS="1")
        while process.poll() is None and killed < 10:
            time.sleep(numbers.uniform(1, 4))
            if process.poll() is not None: break
            if whom == "driver": process.kill()
            elif pids := workers(): os.kill(numbers.choice(pids), 9)
            else: continue
            killed += 1
        _, said = process.communicate(timeout=400)
        now = records(folder)
        assert {name: now[name] for name in kept} == kept, "a finished stage ran again"
        kept = {name: record for name, record in now.items() if not name.startswith(("2_analyse_traces-s", "5"))}
        if process.returncode: continue
        assert results(folder) == results(without)
        if killed == 10: break
        shutil.rmtree(folder / "outputs")  # it ended before all were killed: once more
        kept = {}
    assert process.returncode == 0 and killed == 10, said


def test_ctrl_c_reaches_the_workers(ray_address, tmp_path):
    folder = light(tmp_path / "p")
    file = folder / "nbs" / "experiments" / "3_finetune.ipynb"  # a worker has the environment of its Ray, not ours
    file.write_text(file.read_text().replace("print(\\\"begin", "time.sleep(300)\\nprint(\\\"begin"))
    assert "time.sleep(300)" in file.read_text()
    process = on_ray(folder, ray_address)
    until(lambda: list(runs(folder).glob("3_*.running.ipynb")), 120)
    time.sleep(2)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 130 and "the same command goes on" in said, said
    assert not list(runs(folder).glob("*.failed.json"))


def test_machines_that_share_only_a_store(without, ray_address, tmp_path):
    folder, store = light(tmp_path / "driver"), tmp_path / "bucket"
    process = on_ray(folder, ray_address, "--artefacts", f"file://{store}")
    _, said = process.communicate(timeout=400)
    assert process.returncode == 0, said
    there = {k: v for k, v in results(without).items() if not k.startswith("students/")}
    assert results(folder) == there  # weights stay in the store
    assert len(list((store / "smoke" / "students").rglob("model.safetensors"))) == 4
    other = light(tmp_path / "another-driver")  # knows nothing, and finds all done
    again = on_ray(other, ray_address, "--artefacts", f"file://{store}")
    out, said = again.communicate(timeout=200)
    assert again.returncode == 0 and "0 stages ran" in out and results(other) == there, said
    bad = on_ray(other, ray_address, "--artefacts", "nowhere://bucket")
    _, said = bad.communicate(timeout=100)
    assert bad.returncode == 2 and "nowhere://… cannot be opened" in said, said


def test_no_cluster_there(tmp_path):
    process = on_ray(light(tmp_path / "p"), "127.0.0.1:1")
    _, said = process.communicate(timeout=200)
    assert process.returncode == 2 and "No Ray cluster answers at 127.0.0.1:1" in said, said
