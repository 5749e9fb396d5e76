"""Asking at speed, each figure beside its limit: python tests/benchmarks/endpoint.py [slow] [fast] [memory] [curator]

slow     2 s an answer, 256 in flight: how much of the ideal rate (the last, partly filled wave counted whole)
fast     200 ms an answer, 256 in flight, 20 KB each: requests a second, and CPU of the client a request
memory   31,586 problems, answers of 20 KB: peak memory of the client, and of a second run that finds them all stored
curator  the same server asked by bespokelabs-curator: requests a second, CPU, and repeated paid calls after three
         kills; it goes into an environment of its own, and CURATOR_PYTHON names one that has it already

The server is a process of its own. The store is part of every figure, imports are not. The best of three runs counts.
"""
import json
import math
import os
import subprocess
import sys
import tempfile
import time
import venv
from pathlib import Path

HERE = Path(__file__).resolve()
sys.path.insert(0, str(HERE.parents[1]))
from server import serve  # noqa: E402

SETTINGS = {"max_tokens": 16000, "temperature": 0.6}


def question(i: int) -> str: return f"Problem {i}: " + "what is it that follows from all of this? " * 12


# ---- the clients, each in a process of its own: they import, say so by a first value, and ask


def smoltraces(url: str, n: int, in_flight: int, folder: str):
    import aiohttp  # noqa: F401
    import openai  # noqa: F401
    import openai.resources.chat  # noqa: F401

    from smoltraces.traces.client import Endpoint, ask
    from smoltraces.traces.store import Request, Store
    yield
    asked = (Request("m", ({"role": "user", "content": question(i)},), SETTINGS) for i in range(n))
    with Store(Path(folder, "responses.sqlite")) as store:
        yield ask(Endpoint("m", url, in_flight=in_flight), asked, store, progress=False).done


def curator(url: str, n: int, in_flight: int, folder: str):
    import site
    tokenizer = Path(site.getsitepackages()[0], "litellm", "litellm_core_utils", "tokenizers")  # else it is downloaded
    os.environ.update(TELEMETRY_ENABLED="false", CURATOR_CACHE_DIR=folder, OPENAI_API_KEY="none", HF_HUB_OFFLINE="1",
                      CURATOR_DISABLE_RICH_DISPLAY="1", HF_DATASETS_CACHE=folder + "/hf", HF_HOME=folder + "/home",
                      TIKTOKEN_CACHE_DIR=str(tokenizer))
    from bespokelabs import curator
    yield
    limits = {"max_concurrent_requests": in_flight, "max_requests_per_minute": 10**7, "max_tokens_per_minute": 10**10}
    model = curator.LLM("m", backend="openai", backend_params={"base_url": url, **limits}, generation_params=SETTINGS)
    yield len(model([question(i) for i in range(n)]).dataset)


def client(name: str, *arguments: str):
    import resource
    url, n, in_flight, folder = arguments
    asking = globals()[name](url, int(n), int(in_flight), folder)
    next(asking)
    began, used = time.perf_counter(), time.process_time()
    done = next(asking)
    print(json.dumps({"done": done, "seconds": time.perf_counter() - began, "cpu": time.process_time() - used,
                      "mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024}))


def start(python, name: str, server, n: int, in_flight: int, folder) -> subprocess.Popen:
    command = [python, HERE, "client", name, server.url, str(n), str(in_flight), folder]
    return subprocess.Popen([str(c) for c in command], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)


def run(*arguments) -> dict:
    said = start(*arguments).communicate()[0]
    return json.loads(said.splitlines()[-1])


# ---- the figures


def slow(folder: Path):
    n, in_flight, shares = 6000, 256, []
    for i in range(3):
        with serve(latency=2.0, characters=20000) as server:
            took = run(sys.executable, "smoltraces", server, n, in_flight, folder / f"slow{i}")["seconds"]
        shares.append(math.ceil(n / in_flight) * 2.0 / took)
    print(f"2 s an answer: {max(shares):.1%} of the ideal rate (limit 95%)", flush=True)


def fast(folder: Path):
    n, runs = 10000, []
    for i in range(3):
        with serve(latency=0.2, characters=20000) as server:
            runs.append(run(sys.executable, "smoltraces", server, n, 256, folder / f"fast{i}"))
    print(f"200 ms an answer: {max(n / r['seconds'] for r in runs):.0f} requests/s (limit 400), "
          f"{min(r['cpu'] for r in runs) / n * 1000:.2f} ms CPU each (limit 2.5)", flush=True)


def memory(folder: Path):
    n = 31586
    with serve(characters=20000) as server:
        first = run(sys.executable, "smoltraces", server, n, 256, folder / "memory")
        again = run(sys.executable, "smoltraces", server, n, 256, folder / "memory")
        assert server.stats()["paid"] == n == first["done"] == again["done"]
    size = (folder / "memory" / "responses.sqlite").stat().st_size / 1e6
    print(f"{n:,} problems, a store of {size:.0f} MB: {first['mb']:.0f} MB at most (limit 1024), "
          f"{first['seconds']:.0f} s; stored already: {again['mb']:.0f} MB, {again['seconds']:.1f} s", flush=True)


def compared(folder: Path):
    python = os.environ.get("CURATOR_PYTHON")
    if not python:
        venv.create(folder / "venv", with_pip=True)
        python = folder / "venv" / "bin" / "python"
        subprocess.run([python, "-m", "pip", "install", "--quiet", "bespokelabs-curator"], check=True)
    for name, binary in (("smoltraces", sys.executable), ("curator", python)):
        rates, cpu, n = [], [], 4000
        for i in range(3):
            log = folder / f"{name}{i}.log"
            with serve(latency=0.2, characters=20000, form="think", log=log) as server:
                cpu.append(run(binary, name, server, n, 256, folder / f"{name}{i}")["cpu"] / n * 1000)
                paid = server.paid()
            rates.append(n / (max(p["done"] for p in paid) - min(p["began"] for p in paid)))
        repeated, more = killed(binary, name, folder)
        print(f"{name}: {max(rates):.0f} requests/s, {min(cpu):.2f} ms CPU each; {repeated} paid calls repeated after "
              f"three kills, {more} when one problem is added", flush=True)


def killed(python, name: str, folder: Path) -> tuple[int, int]:
    "Paid calls that were paid for before: 1,000 problems, 64 in flight, 1 s an answer, three kills; then 1,001"
    n, log = 1000, folder / f"{name}-killed.log"
    with serve(latency=1.0, characters=20000, form="think", log=log) as server:
        for after in (200, 450, 700):
            process = start(python, name, server, n, 64, folder / f"{name}-killed")
            while server.stats()["paid"] < after and process.poll() is None: time.sleep(0.01)
            time.sleep(0.3)  # not in the middle of a wave
            process.kill()
            process.communicate()
            while server.stats()["open"]: time.sleep(0.05)  # a client that is gone is billed all the same
        assert run(python, name, server, n, 64, folder / f"{name}-killed")["done"] == n
        paid = server.stats()["paid"]
        assert run(python, name, server, n + 1, 64, folder / f"{name}-killed")["done"] == n + 1
        return paid - n, server.stats()["paid"] - paid - 1


if __name__ == "__main__":
    if sys.argv[1:2] == ["client"]: sys.exit(client(*sys.argv[2:]))
    parts = {"slow": slow, "fast": fast, "memory": memory, "curator": compared}
    with tempfile.TemporaryDirectory() as work:
        for part in sys.argv[1:] or parts: parts[part](Path(work))
