"""Forked kernels: like fresh ones in all that a notebook can see, and in how they die."""
import asyncio
import importlib.util
import json
import os
import signal
import socket
import subprocess
import sys
import textwrap
import time
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import nbformat
import papermill
import pytest
from jupyter_client import AsyncKernelManager
from light import alive
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError, DeadKernelError

from smoltraces.running.stages import plan
from smoltraces.running.warm import Forked, Forks, Server, cold, manager_class, preloads, servers
from smoltraces.settings import load_settings

pytestmark = pytest.mark.skipif(bool(cold()), reason=f"no fork server: {cold()}")
LIGHT = ("ipykernel.kernelapp", "numpy", "json")


@pytest.fixture(scope="module")
def server():
    server = Server(LIGHT, {})
    yield server
    server.close()


def calm(manager: type) -> type:
    "Kernels that see nothing of what pytest writes into the environment all the time"
    class Manager(manager):
        async def start_kernel(self, **options):
            env = {k: v for k, v in os.environ.items() if k != "PYTEST_CURRENT_TEST"}
            await super().start_kernel(**{"env": env} | options)
    return Manager


def forking(server: Server) -> type: return calm(manager_class(server))


def book(*cells: str):
    return nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(textwrap.dedent(c)) for c in cells])


def run(manager: type, *cells: str, **options) -> str:
    "What the cells print"
    client = NotebookClient(book(*cells), kernel_manager_class=manager, kernel_name="python3", **options)
    client.execute()
    return "".join(o["text"] for c in client.nb.cells for o in c["outputs"] if o["output_type"] == "stream")


def gone(*pids: int, within: float = 30) -> bool:
    end = time.time() + within
    while any(map(alive, pids)) and time.time() < end: time.sleep(0.05)
    return not any(map(alive, pids))


LOOK = """
    import gc, json, locale, os, resource, signal, sys, threading
    import numpy, pandas, tqdm.auto
    print(json.dumps({
        "columns": pandas.get_option("display.max_columns"), "bar": str(tqdm.auto.tqdm.__mro__),
        "argv": [a for a in sys.argv[1:] if ".json" not in a], "path": sys.path, "cwd": os.getcwd(),
        "flags": str(sys.flags), "main": sorted(k for k in vars(sys.modules["__main__"]) if k.startswith("__")),
        "environment": {k: v for k, v in os.environ.items() if not k.startswith("JPY_")},
        "signals": {int(s): str(signal.getsignal(s)) for s in signal.Signals if s not in (9, 19)},
        "blocked": sorted(map(int, signal.pthread_sigmask(signal.SIG_BLOCK, []))),
        "threads": sorted(t.name for t in threading.enumerate()),
        "leader": os.getpid() == os.getsid(0) == os.getpgid(0), "umask": os.umask(0o22),
        "encoding": [sys.stdout.encoding, locale.getpreferredencoding(), sys.getfilesystemencoding()],
        "limits": [resource.getrlimit(r) for r in (resource.RLIMIT_AS, resource.RLIMIT_NOFILE, resource.RLIMIT_CORE)],
        "stdin": os.read(0, 1).decode(), "collects": gc.isenabled(), "recursion": sys.getrecursionlimit(),
        "hash": hash("a") if os.environ.get("PYTHONHASHSEED", "random") != "random" else None,
        "modules": [m for m in sys.modules if m.startswith("smoltraces")]}))
"""


def test_a_notebook_sees_what_it_sees_in_a_fresh_kernel(server, monkeypatch):
    monkeypatch.setenv("PYTHONHASHSEED", "0")
    fresh = json.loads(run(calm(AsyncKernelManager), LOOK))
    forked = Server((*LIGHT, "pandas", "tqdm.auto"), {})
    seen = json.loads(run(forking(forked), LOOK))
    forked.close()
    assert {k: (fresh[k], seen[k]) for k in fresh if fresh[k] != seen[k]} == {}


def test_nothing_leaks_from_one_kernel_into_the_next(server):
    spoil = """
        import json, os, random, sys, warnings
        import numpy as np
        print(os.getppid(), random.random(), np.random.rand())
        json.leak, np.leak, os.environ["LEAK"] = 1, 1, "1"
        random.seed(0), np.random.seed(0), os.chdir("/"), sys.path.insert(0, "/leak"), np.seterr(all="raise")
        warnings.simplefilter("error")
        leak = 1
    """
    look = """
        import json, os, random, sys, warnings
        import numpy as np
        print(os.getppid(), random.random(), np.random.rand())
        assert not hasattr(json, "leak") and not hasattr(np, "leak") and "LEAK" not in os.environ
        assert os.getcwd() != "/" and "/leak" not in sys.path and "leak" not in globals()
        assert np.geterr()["under"] == "ignore"
    """
    first, second = run(forking(server), spoil).split(), run(forking(server), look).split()
    assert first[0] == second[0] == str(server.process.pid), "they were not forked from one server"
    assert first[1] != second[1] and first[2] != second[2], "they drew the same random numbers"


def test_papermill_runs_it_with_its_parameters(server, tmp_path):
    nb = book("x = 1", "print(x + 1)")
    nb.cells[0].metadata["tags"], nb.metadata["language_info"] = ["parameters"], {"name": "python"}
    nbformat.write(nb, tmp_path / "in.ipynb")
    manager = forking(server)
    done = papermill.execute_notebook(tmp_path / "in.ipynb", tmp_path / "out.ipynb", {"x": 41}, progress_bar=False,
                                      kernel_name="python3", kernel_manager_class=manager)
    assert done.cells[-1].outputs[0]["text"] == "42\n"


def test_what_it_writes_past_the_notebook_goes_where_it_was_told(server):
    async def go(into: int):
        manager = forking(server)(kernel_name="python3")
        await manager.start_kernel(stdout=into, stderr=into)
        client = manager.client()
        client.start_channels()
        await client.wait_for_ready(timeout=30)
        parent = manager.provisioner.process
        await client.execute_interactive("import os; os.write(1, b'out'); os.write(2, b'err')", store_history=False)
        client.stop_channels()
        await manager.shutdown_kernel()
        return parent
    out, into = os.pipe()
    process = asyncio.run(go(into))
    os.close(into)
    with open(out, "rb") as told: said = told.read() # to its end: nobody else holds it open
    assert isinstance(process, Forked) and (b"outerr" in said or b"errout" in said)  # one file, in either order


def test_several_threads_at_once(server):
    with ThreadPoolExecutor(3) as pool:
        said = list(pool.map(lambda n: run(forking(server), f"import os; print(os.getppid(), {n})"), range(3)))
    assert said == [f"{server.process.pid} {n}\n" for n in range(3)]


def test_a_killed_kernel_is_reported_dead(server):
    with pytest.raises(DeadKernelError): run(forking(server), "import os; os.kill(os.getpid(), 9)", "1")
    assert run(forking(server), "import os; print(os.getppid())") == f"{server.process.pid}\n"


async def _started(server: Server):
    manager = forking(server)(kernel_name="python3")
    await manager.start_kernel(extra_arguments=["--log-level=ERROR"])
    client = manager.client()
    client.start_channels()
    await client.wait_for_ready(timeout=30)
    return manager, client


async def _ended(manager) -> int:
    end = time.time() + 10
    while (code := await manager.provisioner.poll()) is None and time.time() < end: await asyncio.sleep(0.05)
    return code


@pytest.mark.parametrize("code", [7, -signal.SIGKILL])
def test_exit_codes(server, code):
    async def go():
        manager, client = await _started(server)
        if code < 0: os.kill(manager.provisioner.pid, -code)
        else: client.execute(f"import os; os._exit({code})")
        found = await _ended(manager)
        client.stop_channels()
        await manager.shutdown_kernel(now=True)
        return found
    assert asyncio.run(go()) == code


@pytest.mark.parametrize("deaf", [False, True])  # deaf to interrupts, as Ray's workers are
def test_it_can_be_interrupted_shut_down_and_restarted(server, deaf):
    async def go(server):
        manager, client = await _started(server)
        asked = client.execute("import time\nprint('begun', flush=True)\ntime.sleep(60)")
        while (await client.get_iopub_msg(timeout=20))["msg_type"] != "stream": pass
        await manager.interrupt_kernel()
        while (reply := await client.get_shell_msg(timeout=20))["parent_header"].get("msg_id") != asked: pass
        first = manager.provisioner.pid
        await manager.restart_kernel()
        second = manager.provisioner.pid
        await client.wait_for_ready(timeout=30)
        client.stop_channels()
        await manager.shutdown_kernel()
        return reply["content"]["ename"], first, second
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT} if deaf else set())
    try: used = Server(LIGHT, {}) if deaf else server
    finally: signal.pthread_sigmask(signal.SIG_SETMASK, before)
    name, first, second = asyncio.run(go(used))
    if deaf: used.close()
    assert name == "KeyboardInterrupt" and first != second and gone(first, second)


def test_atexit_functions_run(server, tmp_path):
    run(forking(server), f"import atexit, pathlib; atexit.register(pathlib.Path({str(tmp_path)!r}, 'end').touch)")
    assert (tmp_path / "end").exists()


def test_another_environment_or_folder_gets_a_fresh_kernel(server, monkeypatch, tmp_path):
    parent = "import os; print(os.getppid())"
    assert run(forking(server), parent) == f"{server.process.pid}\n"
    assert run(forking(server), parent, resources={"metadata": {"path": str(tmp_path)}}) == f"{os.getpid()}\n"
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    assert run(forking(server), parent + "; print(os.environ['OMP_NUM_THREADS'])") == f"{os.getpid()}\n7\n"


def test_a_server_is_shared_by_processes_and_kills_what_nobody_waits_for(server, tmp_path):
    run(forking(server), "1")
    code = textwrap.dedent(f"""
        import os, signal, time
        from smoltraces.running.warm import Forks
        here = Forks({server.place!r})
        forked = here.fork(["-f", {str(tmp_path / "a.json")!r}], os.getcwd(), dict(os.environ))
        assert here.fork([], "/", dict(os.environ)) is None and not here.failed
        print(forked.pid, flush=True)
        time.sleep(60)
        """)
    env = {k: v for k, v in os.environ.items() if k != "PYTEST_CURRENT_TEST"} | {"RAY_JOB_ID": "1"}
    other = subprocess.Popen([sys.executable, "-c", code], env=env, stdout=subprocess.PIPE)
    pid = int(other.stdout.readline())
    assert alive(pid)
    other.kill()
    other.communicate()
    assert gone(pid) and run(forking(server), "import os; print(os.getppid())") == f"{server.process.pid}\n"


def test_a_kernel_that_ends_before_its_number_is_read(tmp_path):
    "The number and the exit code have both arrived by then"
    place = str(tmp_path / "server")
    with socket.socket(socket.AF_UNIX) as listener, ThreadPoolExecutor(1) as pool:
        listener.bind(place)
        listener.listen()
        for said, pid in ((b"7\n-9\n", 7), (b"0\n0\n", 0)):
            here = Forks(place)
            forked = pool.submit(here.fork, [], "/", {})
            channel, _ = listener.accept()
            channel.recv(1 << 16)
            channel.sendall(said)
            channel.close()
            kernel = forked.result()
            assert not here.failed and (kernel is None if not pid else (kernel.pid, kernel.wait()) == (pid, -9))


def test_switches_are_set_for_the_imports_alone(tmp_path):
    (tmp_path / "reads_it.py").write_text("import os\nvalue = os.environ['A_SWITCH']\nos.environ['SET_BY_IT'] = '1'\n")
    server, where = Server(("reads_it",), {"A_SWITCH": "on"}), {"metadata": {"path": str(tmp_path)}}
    said = run(forking(server), "import os, reads_it", "print(reads_it.value, os.environ.get('A_SWITCH'), "
               "os.environ['SET_BY_IT'])", resources=where)
    server.close()
    assert said == "on None 1\n"


@pytest.mark.parametrize(("code", "why"), [
    ("raise ImportError('no such library')", "no such library"),
    ("import threading, time\nthreading.Thread(target=time.sleep, args=[60], daemon=True).start()", "the thread"),
    ("import subprocess, sys\nchild = subprocess.Popen([sys.executable, '-c', 'input()'], stdin=subprocess.PIPE)",
     "started a process"),
    ("import os\nos.kill(os.getpid(), 9)", "said nothing")])
def test_a_server_that_fails_is_named_once_and_done_without(tmp_path, code, why):
    (tmp_path / "odd.py").write_text(code)
    server = Server(("odd",), {})
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        for _ in range(2): assert server.fork([], str(tmp_path), dict(os.environ)) is None
    server.close()
    about = [str(w.message) for w in told if "fork server" in str(w.message)]
    assert len(about) == 1 and why in about[0], about


def test_a_killed_server_takes_its_kernels_along_and_is_done_without():
    server = Server(LIGHT, {})
    with pytest.raises(DeadKernelError):
        run(forking(server), "import os, time; os.kill(os.getppid(), 9); time.sleep(60)")
    with pytest.warns(UserWarning, match="fork server"):
        assert run(forking(server), "import os; print(os.getppid())") == f"{os.getpid()}\n"
    server.close()


def test_closing_ends_the_server_and_what_still_runs(tmp_path):
    server = Server(LIGHT, {})
    with ThreadPoolExecutor(1) as pool:
        cell = f"import os, time; open({str(tmp_path / 'pid')!r}, 'w').write(str(os.getpid())); time.sleep(60)"
        running = pool.submit(run, forking(server), cell)
        while not (tmp_path / "pid").exists() or not (tmp_path / "pid").read_text(): time.sleep(0.05)
        server.close()
        with pytest.raises((DeadKernelError, CellExecutionError)): running.result(20)
    assert gone(int((tmp_path / "pid").read_text()), server.process.pid)


@pytest.mark.parametrize("moment", ["importing", "running"])
def test_a_killed_driver_leaves_no_process(tmp_path, moment):
    (tmp_path / "slow.py").write_text("import os, time\nopen('server', 'w').write(str(os.getpid()))\n"
                                      + ("time.sleep(60)\n" if moment == "importing" else ""))
    (tmp_path / "driver.py").write_text(textwrap.dedent(f"""
        import nbformat
        from nbclient import NotebookClient
        from smoltraces.running.warm import Server, manager_class
        cell = "import os, time; open('kernel', 'w').write(str(os.getpid())); time.sleep(60)"
        nb = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell)])
        NotebookClient(nb, kernel_name="python3", resources={{"metadata": {{"path": {str(tmp_path)!r}}}}},
                       kernel_manager_class=manager_class(Server(("slow",), {{}}))).execute()
        """))
    driver = subprocess.Popen([sys.executable, "driver.py"], cwd=tmp_path, stderr=subprocess.DEVNULL)
    waits_for = tmp_path / ("server" if moment == "importing" else "kernel")
    while driver.poll() is None and (not waits_for.exists() or not waits_for.read_text()): time.sleep(0.05)
    driver.kill()
    driver.wait()
    left = [int((tmp_path / n).read_text()) for n in ("server", "kernel") if (tmp_path / n).exists()]
    assert left and gone(*left)


def test_a_server_whose_driver_has_gone_before_it_looked(tmp_path):
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "server"))
        listener.listen()
        told = json.dumps({"parent": 1, "names": [], "switches": {}})
        script = importlib.util.find_spec("smoltraces.running.forking").origin
        process = subprocess.Popen([sys.executable, script, told], stdin=listener, stderr=subprocess.PIPE)
    _, said = process.communicate(timeout=60)
    assert process.returncode in (0, 1) and not said, said # by its own will, while it imports or after


def test_a_fork_that_cannot_be_is_done_without(server, monkeypatch):
    "As where a user may have no more processes"
    import resource
    limit, (_, most) = resource.RLIMIT_NOFILE, resource.getrlimit(resource.RLIMIT_NOFILE)
    run(forking(server), "1")
    used = {int(fd.name) for fd in Path(f"/proc/{server.process.pid}/fd").iterdir()}
    free = [fd for fd in range(max(used) + 3) if fd not in used]
    before = resource.prlimit(server.process.pid, limit, (free[1], most))  # enough for a connection, and no more
    try:
        with pytest.warns(UserWarning, match="fork server"):
            assert run(forking(server), "import os; print(os.getppid())") == f"{os.getpid()}\n"
    finally: resource.prlimit(server.process.pid, limit, before)
    server.failed = False
    assert run(forking(server), "import os; print(os.getppid())") == f"{server.process.pid}\n"


def test_only_stages_of_which_there_are_several_share_a_server():
    cfg = load_settings("smoke")
    stages = plan(cfg)
    with servers(cfg, stages) as server_of:
        kinds = {s.notebook: server_of(s) for s in stages}
        assert {k for k, v in kinds.items() if v} == {"3_finetune", "4_evaluate"}
        assert kinds["3_finetune"] is not kinds["4_evaluate"]
    alone = [s for s in stages if s.notebook == "3_finetune"][:1]
    with servers(cfg, alone) as server_of: assert server_of(alone[0]) is None
    cfg = load_settings("smoke", warm=False)
    with servers(cfg, plan(cfg)) as server_of: assert not any(map(server_of, plan(cfg)))


def test_what_is_preloaded_fits_the_settings():
    of = {s.notebook: s for s in plan(load_settings("smoke"))}
    assert "unsloth" in preloads(load_settings("smoke"), of["3_finetune"])
    assert "unsloth" not in " ".join(preloads(load_settings("smoke", engine="trl"), of["3_finetune"]))
    assert preloads(load_settings("smoke", backend="api"), of["4_evaluate"]) == ()
