"""The Ray engine on a Ray of this machine: the same results, kept through kills, a store between machines, SLURM."""
import json
import os
import random
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import pytest
from conftest import ROOT, SECRET, environment, smoltraces
from light import children, kernels, light, records, results, runs, start, until

from smoltraces.running.cluster import Cluster
from smoltraces.running.run import Need
from smoltraces.running.stages import plan
from smoltraces.settings import load_settings

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
    try: process.wait(5)
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


def test_a_lock_of_a_lost_machine_and_a_key_of_its_env_file(ray_address, tmp_path):
    folder, hidden = light(tmp_path / "p"), "sk-from-a-file-42"
    (folder / ".env").write_text(f"SERVICE_LOGIN={hidden}\n")
    file = folder / "nbs" / "experiments" / "1_build_data.ipynb"
    leak = "print(os.environ[\\\"SERVICE_LOGIN\\\"])\\nprint(\\\"begin"
    file.write_text(file.read_text().replace("print(\\\"begin", leak))
    locks = runs(folder) / ".locks"
    locks.mkdir(parents=True)
    other = {"host": "node7", "pid": 7, "machine": "gone", "began": "2030-01-01T00:00:00Z", "beat": 4}
    (locks / "1_build_data").write_text(json.dumps(other))
    process = on_ray(folder, ray_address, "--only", "1_build")
    _, said = process.communicate(timeout=150)
    assert process.returncode == 0 and "held by process 7 on node7" in said and "1_build_data" in records(folder), said
    left = {p: p.read_text() for p in (folder / "outputs").rglob("*") if p.is_file() and p.name != ".mutex"}
    assert not [p for p, text in left.items() if hidden in text]
    assert any("[SERVICE_LOGIN]" in text for p, text in left.items() if p.suffix == ".ipynb")


def test_a_stage_asks_for_no_more_than_one_machine_has():
    cluster = Cluster.__new__(Cluster)
    cluster.nodes = [{"CPU": 64.0, "memory": 2.0**38}, {"CPU": 16.0, "GPU": 8.0, "memory": 2.0**37}]
    stages = {s.notebook: s for s in plan(load_settings("smoke"))}
    cluster.wanted = {s.name: Need(64, 8, 1, 100) for s in stages.values()}
    assert cluster._options(stages["3_finetune"])["num_cpus"] == 16
    assert cluster._options(stages["5_figures"])["num_cpus"] == 64
    assert "num_gpus" not in cluster._options(stages["5_figures"])


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


@pytest.fixture(scope="module")
def bucket(tmp_path_factory):
    "An S3 that answers on this machine, with one bucket; what reaches it in a process's environment"
    import boto3
    from moto.server import ThreadedMotoServer
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    url = "http://{}:{}".format(*server.get_host_and_port())
    keys = {"AWS_ENDPOINT_URL": url, "AWS_ACCESS_KEY_ID": "made-up", "AWS_SECRET_ACCESS_KEY": SECRET,
            "AWS_DEFAULT_REGION": "us-east-1"}
    client = boto3.client("s3", endpoint_url=url, region_name="us-east-1", aws_access_key_id="made-up",
                          aws_secret_access_key=SECRET)
    client.create_bucket(Bucket="bucket")
    yield keys, client
    server.stop()


def keys_of(client) -> dict[str, int]:
    "What the bucket holds"
    pages = client.get_paginator("list_objects_v2").paginate(Bucket="bucket")
    return {each["Key"]: each["Size"] for page in pages for each in page.get("Contents", [])}


def through(folder: Path, bucket, url: str = "s3://bucket/run", **extra) -> subprocess.Popen:
    "A run whose results are in the bucket; on a Ray of its own, whose workers have the keys"
    return start(folder, *FEW, "--engine", "ray", "--artefacts", url, **bucket[0], **extra)


def test_machines_that_share_only_a_store(without, bucket, tmp_path):
    folder, (keys, client) = light(tmp_path / "driver"), bucket
    process, url = through(folder, bucket, LIGHT_SECONDS="2"), ("--artefacts", "s3://bucket/run")
    until(lambda: any("/.leases/4_" in key for key in keys_of(client)), 200)
    away = light(tmp_path / "away")
    look = smoltraces("status", "--profile", "smoke", *FEW, *url, "--json", cwd=away, **keys)
    states = Counter(stage["state"] for stage in json.loads(look.stdout)["stages"])
    assert states["running"] and states["done"] and states["to do"], look  # seen where no file of the run is
    _, said = process.communicate(timeout=400)
    assert process.returncode == 0, said
    there = {k: v for k, v in results(without).items() if not k.startswith("students/")}
    assert results(folder) == there  # weights stay in the store
    held = keys_of(client)
    assert len([k for k in held if k.startswith("run/smoke/students/") and k.endswith("model.safetensors")]) == 4
    assert not [k for k in held if "/.leases/" in k or "/.probe" in k]
    bodies = [client.get_object(Bucket="bucket", Key=key)["Body"].read() for key in held]
    assert not [body for body in bodies if SECRET.encode() in body or str(tmp_path).encode() in body]
    reader = light(tmp_path / "reader")
    plan = smoltraces("reproduce", "--profile", "smoke", *FEW, *url, "--dry-run", cwd=reader, **keys)
    assert "13 stages: all done." in plan.stdout, plan
    other = light(tmp_path / "another-driver")  # knows nothing, and finds all done
    again = through(other, bucket)
    out, said = again.communicate(timeout=200)
    assert again.returncode == 0 and "0 stages ran" in out and results(other) == there, said


def test_two_drivers_on_one_store(without, bucket, tmp_path):
    "Each stage runs once, and what a killed driver held is taken over"
    folders = [light(tmp_path / name) for name in ("one", "two", "three")]
    first = through(folders[0], bucket, url="s3://bucket/shared", LIGHT_SECONDS="3")
    until(lambda: any("/.leases/3_" in key for key in keys_of(bucket[1])), 200)
    first.kill()
    first.communicate()
    left = [key for key in keys_of(bucket[1]) if "/.leases/" in key]
    once = [f"shared/smoke/runs/{n}.json" for n in records(folders[0])]
    kept = {key: bucket[1].get_object(Bucket="bucket", Key=key)["Body"].read() for key in once}
    both = [through(f, bucket, url="s3://bucket/shared") for f in folders[1:]]
    said = [p.communicate(timeout=400) for p in both]
    assert left and [p.returncode for p in both] == [0, 0], said
    ran = [int(re.search(r"(\d+) stages ran", out)[1]) for out, _ in said]
    assert "held by" in said[0][1] + said[1][1], said
    assert 0 < len(kept) <= len(records(folders[1])) - sum(ran), (ran, said)  # one may have ended after its driver
    assert {key: bucket[1].get_object(Bucket="bucket", Key=key)["Body"].read() for key in kept} == kept
    there = {k: v for k, v in results(without).items() if not k.startswith("students/")}
    assert results(folders[1]) == results(folders[2]) == there


@pytest.mark.parametrize(("url", "words"), [
    ("nowhere://bucket", "nowhere://… cannot be opened"), ("s3://no-such-bucket/run", "s3://… cannot be written")])
def test_a_store_that_is_none(bucket, tmp_path, url, words):
    process = through(light(tmp_path / "p"), bucket, url=url)
    _, said = process.communicate(timeout=100)
    assert process.returncode == 2 and words in said and SECRET not in said, said


def test_workers_without_the_keys(ray_address, bucket, tmp_path):
    process = on_ray(light(tmp_path / "p"), ray_address, "--artefacts", "s3://bucket/none", **bucket[0])
    _, said = process.communicate(timeout=200)
    assert process.returncode == 1 and "on its worker: Unable to locate credentials" in said, said


def test_no_cluster_there(tmp_path):
    process = on_ray(light(tmp_path / "p"), "127.0.0.1:1")
    _, said = process.communicate(timeout=200)
    assert process.returncode == 2 and "No Ray cluster answers at 127.0.0.1:1" in said, said
