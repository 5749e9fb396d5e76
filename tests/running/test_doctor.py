"""The doctor says what a run would fail on, what to do about it and where to begin, and shows no secret."""
import http.server
import io
import json
import socketserver
import subprocess
import sys
import threading
from types import SimpleNamespace

import huggingface_hub
import pytest
from conftest import ROOT, SECRET, environment, project, smoltraces
from rich.console import Console

from smoltraces.running import doctor
from smoltraces.running.doctor import (
    Check,
    check_disk,
    check_hub,
    check_kernel,
    check_keys,
    check_lock,
    check_modules,
    check_profile,
    examine,
    key_names,
    show,
)
from smoltraces.settings import load_settings
from smoltraces.students import memory
from smoltraces.students.memory import Card

H100, H200 = Card("NVIDIA H100 80GB HBM3", 80, 79, "580.95"), Card("NVIDIA H200", 141, 140, "580.95")
KEYS = ("DEEPSEEK_API_KEY", "OPENAI_API_KEY", "HF_TOKEN")


@pytest.fixture
def no_keys(monkeypatch, tmp_path):
    for name in KEYS: monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HF_TOKEN_PATH", str(tmp_path / "none"))
    monkeypatch.setattr(huggingface_hub, "get_token", lambda: None)


@pytest.fixture
def hub(monkeypatch):
    "A stand-in for the hub: what it answers, and what it was asked"
    stand_in = SimpleNamespace(status=200, go_on=threading.Event(), requests=[])
    stand_in.go_on.set()

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_HEAD(self):
            stand_in.requests.append((self.command, self.path))
            stand_in.go_on.wait()
            self.send_response(stand_in.status)
            self.end_headers()

        def log_message(self, *_): pass

    class Server(socketserver.ThreadingMixIn, http.server.HTTPServer):
        daemon_threads = True

        def handle_error(self, *_): pass # a client that did not wait
    server = Server(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy", "HF_HUB_OFFLINE"):
        monkeypatch.delenv(name, raising=False)
    stand_in.port = server.server_port
    monkeypatch.setenv("HF_ENDPOINT", f"http://ana:{SECRET}@127.0.0.1:{stand_in.port}")
    yield stand_in
    stand_in.go_on.set()
    server.shutdown()
    server.server_close()


def test_hub_is_asked_once_and_only_where_the_run_is_not_offline(hub, monkeypatch):
    online = load_settings("laptop", offline=False)
    assert check_hub(load_settings("laptop")).state == "ok" and hub.requests == []
    check = check_hub(online, timeout=60)
    assert (check.state, check.found, len(hub.requests)) == ("ok", "it answers", 1)
    hub.status = 401 # it answers, if not to everybody
    assert check_hub(online, timeout=60).state == "ok"
    hub.status = 503
    check = check_hub(online, timeout=60)
    assert check.state == "fail" and "status 503" in check.found and SECRET not in str(check) and check.mend
    hub.go_on.clear()
    assert check_hub(online, timeout=0.3).state == "fail" # it did not wait for the answer, which does not come
    for address in ("http://127.0.0.1:1", "no address", "http://["):
        monkeypatch.setenv("HF_ENDPOINT", address)
        assert check_hub(online).state == "fail"
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    assert "unset HF_HUB_OFFLINE" in check_hub(online).mend


def test_keys_are_asked_for_where_something_uses_them(no_keys, monkeypatch):
    assert key_names(load_settings("laptop")) == {}
    one = load_settings("laptop", teacher_lm="gpt-4o", variants="ST-HC")
    assert list(key_names(one)) == ["OPENAI_API_KEY"] and check_keys(one).state == "fail"
    monkeypatch.setenv("OPENAI_API_KEY", SECRET)
    assert check_keys(one)[:3] == ("keys", "ok", "OPENAI_API_KEY set")
    assert key_names(load_settings("laptop", teacher_lm="gpt-4o", variants="ST-NT")) == {}
    assert list(key_names(load_settings("laptop", teacher_lm="gpt-4o", variants="ST", evaluate_teacher=True)))
    api = dict(backend="api", students="gpt-4o-mini", student_key="STUDENT_KEY")
    assert list(key_names(load_settings("laptop", **api))) == [] # on this machine
    assert list(key_names(load_settings("laptop", **api, student_url="https://elsewhere/v1"))) == ["STUDENT_KEY"]
    llama = dict(students="meta-llama/Llama-3.2-3B-Instruct")
    assert key_names(load_settings("laptop", **llama)) == {} # offline, so it is here or nowhere
    assert list(key_names(load_settings("laptop", **llama, offline=False))) == ["HF_TOKEN"]
    gpqa = dict(offline=False, benchmarks="gpqa_diamond")
    assert list(key_names(load_settings("laptop", **gpqa))) == ["HF_TOKEN"]
    assert check_keys(load_settings("laptop", **gpqa)).mend.startswith("write HF_TOKEN=… into .env")
    monkeypatch.setattr(huggingface_hub, "get_token", lambda: "hf_login") # the hub's own client is logged in
    assert check_keys(load_settings("laptop", **gpqa)).state == "ok"
    broken = load_settings("laptop", teacher_lm="gpt-4o", teacher_lm_url="http://[")
    assert check_keys(broken).mend == "mend teacher_…_url or student_url"
    assert list(key_names(load_settings("laptop", push_to="ana"))) == ["HF_TOKEN"]
    assert check_keys(load_settings("laptop", push_to="ana")).state == "fail" # which pushing does not ask


def kernelspec(folder, *argv):
    (folder / "kernels" / "python3").mkdir(parents=True)
    spec = {"argv": [*argv, "-f", "{connection_file}"], "display_name": "x", "language": "python"}
    (folder / "kernels" / "python3" / "kernel.json").write_text(json.dumps(spec))


def test_kernel_of_another_python_is_named(monkeypatch, tmp_path):
    kernelspec(tmp_path, sys.executable, "-c", "import sys; sys.prefix = '/elsewhere'\n"
               "from ipykernel.kernelapp import main; main()")
    monkeypatch.setenv("JUPYTER_PATH", str(tmp_path))
    check = check_kernel()
    assert check.state == "fail" and "another Python" in check.found and "ipykernel install" in check.mend


@pytest.mark.parametrize("argv", [("/no/such/python",), ("/bin/false",)])
def test_kernel_that_does_not_start_is_named(monkeypatch, tmp_path, argv):
    kernelspec(tmp_path, *argv)
    monkeypatch.setenv("JUPYTER_PATH", str(tmp_path))
    assert "does not start" in check_kernel(timeout=600).found


def test_lock_drift_names_what_differs(tmp_path):
    cfg = load_settings("laptop", project(tmp_path))
    assert check_lock(cfg).state == "warn" # no lock there
    lock = (ROOT / "requirements.lock").read_text()
    (tmp_path / "requirements.lock").write_text(lock)
    clean = check_lock(cfg)
    (tmp_path / "requirements.lock").write_text("not-installed==1.0\npandas==0.1\n" + lock)
    drifted = check_lock(cfg)
    assert drifted.state == "warn" and "not-installed missing (lock: 1.0), pandas " in drifted.found
    assert clean.state == "ok" or "pandas" not in clean.found
    assert drifted.mend == "make -B .venv/ready"


def test_disk_that_is_read_only_is_named(monkeypatch):
    monkeypatch.setattr(doctor.os, "access", lambda path, mode: False)
    assert check_disk(load_settings("laptop")).found == "cannot be written to"


def test_missing_packages_are_named_with_what_brings_them():
    check = check_modules(load_settings("smoke", backend="vllm", report_to="wandb"))
    assert check.found.endswith("vllm, wandb missing")
    assert '"smoltraces[vllm]"' in check.mend and '"wandb"' in check.mend


def test_advice_follows_from_what_is_there(no_keys, monkeypatch):
    monkeypatch.setattr(doctor.psutil, "disk_usage", lambda folder: SimpleNamespace(free=1e13))
    cfg = load_settings("laptop")
    def begin(gpus): return check_profile(cfg, gpus).found
    assert begin(()).startswith("begin with laptop; not paper: GPU, none") and "not gpu: GPU" in begin(())
    assert begin((H100,)).startswith("begin with gpu; not paper: ")
    assert begin((H200,) * 16).startswith("begin with gpu; not paper: keys, ")
    for name in KEYS: monkeypatch.setenv(name, SECRET)
    assert begin((H200,) * 16) == "begin with paper"
    monkeypatch.setattr(memory, "available", lambda device=None: (4.0, "RAM"))
    assert begin(()).startswith("begin with smoke; ") and "needs" in begin(())


def printed(width, *some):
    out = io.StringIO()
    code = show(list(some), console=Console(file=out, width=width))
    return code, out.getvalue()


def test_rendering_fits_the_terminal_and_fails_where_a_check_does():
    long = "a sentence that goes on for longer than a line of a terminal has room for, and then a bit further"
    good, poor = Check("a", "ok", long), Check("b", "warn", long, "do this")
    bad = Check("c", "fail", "x [y]", "do that")
    for width in (80, 140):
        code, text = printed(width, good, poor, bad)
        assert code == 1 and max(map(len, text.splitlines())) <= width and "x [y]" in text
        assert "do this" in text and "do that" in text
    assert printed(80, good, poor)[0] == 0


def test_doctor_is_light():
    heavy = {"torch", "transformers", "unsloth", "ray", "lm_eval", "papermill", "matplotlib"}
    code = ("import sys; from smoltraces.running.doctor import examine; from smoltraces.settings import load_settings\n"
            f"examine(load_settings('laptop')); print({heavy} & set(sys.modules))")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, env=environment())
    assert done.stdout.strip() == "set()", done.stderr


@pytest.mark.slow
def test_command_prints_json_exits_1_on_failure_and_shows_no_key(tmp_path):
    folder = project(tmp_path)
    (folder / ".env").write_text(f"DEEPSEEK_API_KEY={SECRET}\n")
    keys = dict(OPENAI_API_KEY=SECRET + "-2", HF_ENDPOINT="http://127.0.0.1:1", HF_TOKEN="")
    done = smoltraces("doctor", "--profile", "paper", "--json", cwd=folder, **keys)
    shown = json.loads(done.stdout)
    by = {check["name"]: check for check in shown["checks"]}
    assert done.returncode == 1 and not shown["ok"] and SECRET not in done.stdout + done.stderr
    assert by["hub"]["state"] == "fail" and {"DEEPSEEK_API_KEY set in .env", "OPENAI_API_KEY set"} <= set(
        by["keys"]["found"].split(", "))
    assert by["profile"]["found"].startswith("begin with ")
    done = smoltraces("doctor", "--profile", "smoke", cwd=folder)
    assert done.returncode == 0, done.stdout
    assert "begin with" in done.stdout and "fail" not in done.stdout
    assert smoltraces("doctor", "--profile", "nope", cwd=folder).returncode == 2


def test_every_check_says_what_to_do():
    every = examine(load_settings("paper", offline=True, students="nobody/nothing", teacher_lm="unpriced"))
    assert {"python", "versions", "packages", "memory", "disk", "CPU", "GPU", "kernel", "keys", "hub", "isolation",
            "nothing", "profile"} <= {check.name for check in every}
    for check in every: assert check.state in ("ok", "warn", "fail") and (check.state == "ok" or check.mend), check
