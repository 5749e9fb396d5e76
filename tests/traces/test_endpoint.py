"""Asking under every fault: a local server, healthy or not, in its own process."""
import asyncio
import multiprocessing
import os
import random
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from collections import Counter
from dataclasses import replace
from email.utils import formatdate

import openai  # noqa: F401 (before the first fork)
import pytest
from server import digest, serve

from smoltraces.settings import InputError
from smoltraces.traces.client import Endpoint, OutOfBudget, ask, estimate, read_error
from smoltraces.traces.store import Request, Store

SECRET = "sk-planted-0123456789abcdef"
FORKS = multiprocessing.get_context("fork")  # a fresh interpreter would take most of the time


def requests(n: int, tokens: int = 200, samples: int = 1) -> list[Request]:
    return [Request("m", ({"role": "user", "content": f"What is {i} + {i}?"},), {"max_tokens": tokens}, s)
            for i in range(n) for s in range(samples)]


def body(request: Request) -> str:
    return digest({"model": request.model, "messages": list(request.messages), **request.sampling})


def near(server, **more) -> Endpoint:
    return Endpoint("m", server.url, **{"in_flight": 16, "backoff": 0.05, "price_in": 1.0, "price_out": 2.0, **more})


def ask_all(url: str, path: str, n: int, **more):
    with Store(path) as store:
        ask(Endpoint("m", url, **{"in_flight": 16, "backoff": 0.05, **more}), requests(n), store, progress=False)


def child(url: str, path: str, n: int, messages: str = os.devnull):
    "A run in a process of its own, which writes its messages to a file"
    sys.stderr = open(messages, "w", buffering=1)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    ask_all(url, path, n)


@pytest.mark.slow
def test_thirty_percent_fail(tmp_path):
    faults = {"429": 0.05, "500": 0.05, "reset": 0.05, "hang": 0.02, "malformed": 0.04, "empty_choices": 0.04,
              "cut": 0.05}
    asked, told = requests(200), []
    with serve(latency=0.02, faults=faults, log=tmp_path / "log") as server, Store(tmp_path / "s.sqlite") as store:
        endpoint = near(server, in_flight=32, timeout=5.0, tries=8)  # an answer that is late is paid for twice
        totals = ask(endpoint, asked, store, then=lambda q, r: told.append((q.key, r.status)), progress=False)
        paid = Counter(line["body"] for line in server.paid())
        found = store.get_many(r.key for r in asked)
    assert len(found) == 200 and sorted(k for k, _ in told) == sorted(r.key for r in asked)
    assert totals.tries > 220 and totals.statuses["truncated"] > 3 and totals.statuses["ok"] > 150
    assert set(totals.statuses) <= {"ok", "truncated", "failed"}
    assert all(r.detail for r in found.values() if r.status != "ok")
    assert set(paid.values()) == {1}
    assert {body(q) for q in asked if found[q.key].final} == set(paid)


@pytest.fixture(scope="module")
def faulty(tmp_path_factory):
    with serve(faults={"none": 0}, log=tmp_path_factory.mktemp("faulty") / "log") as server: yield server


@pytest.mark.parametrize("kind, status, reason", [
    ("500", "failed", "status 500"), ("malformed", "failed", "not whole JSON"), ("reset", "failed", "broke"),
    ("empty_choices", "failed", "without choices"), ("hang", "failed", "no answer within"),
    ("refusal", "refused", "cannot help"), ("filter", "filtered", "filter"), ("empty", "empty", "no answer"),
    ("unclosed", "truncated", "never closed"), ("cut", "truncated", "reached max_tokens")])
def test_what_never_works_is_recorded_with_its_reason(tmp_path, faulty, kind, status, reason):
    asked = [Request("m", ({"role": "user", "content": f"[{kind}] {i}"},), {}) for i in range(3)]
    endpoint = near(faulty, timeout=0.5, tries=3, backoff=0.01)
    with Store(tmp_path / "s.sqlite") as store:
        before = faulty.stats()
        totals = ask(endpoint, asked, store, progress=False)
        paid = faulty.stats()["paid"] - before["paid"]
        found = store.get_many(r.key for r in asked)
        assert totals.statuses == {status: 3} and all(reason in r.detail for r in found.values()), found
        assert sum(r.cost_usd for r in found.values()) == pytest.approx(totals.cost_usd)
        assert (totals.cost_usd > 0) == (paid > 0) == (status != "failed")
        again = ask(endpoint, asked, store, progress=False)
        assert (again.tries > 0) == (status == "failed")  # what is final is not asked again


def test_one_request_too_long(tmp_path):
    long = Request("m", ({"role": "user", "content": "x" * 1000},), {"max_tokens": 100})
    with serve(context=500) as server, Store(tmp_path / "s.sqlite") as store:
        totals = ask(near(server), [*requests(5), long, *requests(10)], store, progress=False)
        assert totals.statuses == {"ok": 10, "rejected": 1} and totals.stored == 5
        assert "context" in store.get(long.key).detail


@pytest.mark.slow
def test_ten_kills(tmp_path):
    n, rng, kills = 800, random.Random(0), []
    with serve(latency=0.03, log=tmp_path / "log") as server:
        for _ in range(10):
            run = FORKS.Process(target=child, args=(server.url, str(tmp_path / "s.sqlite"), n))
            until = server.stats()["paid"] + rng.randint(1, 35)
            run.start()
            while server.stats()["paid"] < until: time.sleep(0.005)
            run.kill()
            run.join()
            while server.stats()["open"]: time.sleep(0.02)  # it ends, and bills, what was in flight
            kills.append(time.time())
            assert run.exitcode == -signal.SIGKILL
        with Store(tmp_path / "s.sqlite") as store: kept = store.spent()["m"].requests
        ask_all(server.url, str(tmp_path / "s.sqlite"), n)
        calls = server.paid()
        ask_all(server.url, str(tmp_path / "whole.sqlite"), n)
    assert 20 < kept < n, f"the kills came too early or too late to show anything: {kept} of {n}"
    with Store(tmp_path / "s.sqlite") as one, Store(tmp_path / "whole.sqlite") as other:
        exports = [s.export(tmp_path / f"{i}.parquet").read_bytes() for i, s in enumerate((one, other))]
    assert exports[0] == exports[1]
    assert {call["body"] for call in calls} == {body(q) for q in requests(n)}
    seen, repeated = set(), Counter()
    for call in sorted(calls, key=lambda c: c["began"], reverse=True):  # all but the last of a body are repeated
        if call["body"] in seen: repeated[sum(kill < call["began"] for kill in kills)] += 1
        seen.add(call["body"])
    assert max(repeated.values(), default=0) <= 16, repeated  # by each kill, at most what was in flight


@pytest.mark.slow
def test_two_runs_share_a_store(tmp_path):
    with serve(latency=0.02, log=tmp_path / "log") as server:
        runs = [FORKS.Process(target=child, args=(server.url, str(tmp_path / "s.sqlite"), 200)) for _ in range(2)]
        for run in runs: run.start()
        for run in runs: run.join()
        assert [run.exitcode for run in runs] == [0, 0]
        paid = Counter(line["body"] for line in server.paid())
    assert len(paid) == 200 and set(paid.values()) == {1}
    with Store(tmp_path / "s.sqlite") as store: assert len(store.get_many(r.key for r in requests(200))) == 200


def test_wrong_key(tmp_path, monkeypatch):
    monkeypatch.setenv("PLANTED_API_KEY", SECRET)
    with serve(key="another", log=tmp_path / "log") as server, Store(tmp_path / "s.sqlite") as store:
        with pytest.raises(InputError, match="PLANTED_API_KEY") as error:
            ask(near(server, key_name="PLANTED_API_KEY"), requests(500), store, progress=False)
        assert SECRET not in str(error.value) and server.stats()["calls"] <= 16
        assert store.claim(requests(500)) == ["mine"] * 500  # nothing stays claimed
        echo = {"error": {"message": f"Not with {SECRET}, nor with sk-another"}}
        for status in (400, 404, 429, 500):
            assert "sk-" not in read_error(near(server, key_name="PLANTED_API_KEY"), status, echo).reason
    assert not [p for p in tmp_path.rglob("*") if p.is_file() and SECRET.encode() in p.read_bytes()]


@pytest.mark.parametrize("options, words", [
    (dict(models=["other"]), ["model m", "mend"]), (dict(quota=20), ["no balance", "kept"]),
    (dict(balance=20), ["no balance", "kept"]), (dict(context=0), ["in a row", "longer than"]),
    (dict(faults={"429": 1.0}, retry_after="7200"), ["2.0 hours"])])
def test_stops_with_one_sentence(tmp_path, options, words):
    with serve(**options) as server, Store(tmp_path / "s.sqlite") as store:
        with pytest.raises(InputError) as error: ask(near(server, in_flight=4), requests(200), store, progress=False)
        stats = server.stats()
        assert store.spent().get("m") is None or store.spent()["m"].requests == stats["paid"]
    for word in words: assert word in str(error.value)
    assert str(error.value).count("\n") == 0 and stats["calls"] < 40


def test_no_server_and_no_key(tmp_path, monkeypatch):
    with Store(tmp_path / "s.sqlite") as store:
        with pytest.raises(InputError, match="cannot be reached"):
            ask(Endpoint("m", "http://127.0.0.1:9", tries=2, backoff=0.01), requests(5), store, progress=False)
        monkeypatch.delenv("PLANTED_API_KEY", raising=False)
        with pytest.raises(InputError, match="set PLANTED_API_KEY"):
            ask(Endpoint("m", "https://api.example.com", "PLANTED_API_KEY"), requests(5), store, progress=False)


def test_budget_is_never_exceeded(tmp_path):
    with serve(characters=100, log=tmp_path / "log") as server, Store(tmp_path / "s.sqlite") as store:
        endpoint = near(server, in_flight=32)
        one = endpoint.max_cost(requests(1)[0])
        with pytest.raises(OutOfBudget, match="raise budget_usd"):
            ask(endpoint, requests(300), store, budget_usd=20 * one, progress=False)
        spent = store.spent()["m"]
        assert 19 * one < spent.cost_usd <= 20 * one  # and close to it
        assert spent.requests == len(server.paid()) < 300
        totals = ask(endpoint, requests(300), store, budget_usd=1000 * one, progress=False)
        assert totals.stored == spent.requests and totals.done == 300
        endless = Request("m", requests(1)[0].messages, {})
        with pytest.raises(InputError, match="set max_tokens"):
            ask(endpoint, [endless], store, budget_usd=1, progress=False)


def test_budget_holds_for_two_runs(tmp_path):
    with serve(latency=0.05, log=tmp_path / "log") as server, Store(tmp_path / "s.sqlite") as store:
        endpoint, shown = near(server), []
        budget = 40 * endpoint.max_cost(requests(1)[0])

        def other(request, response):  # a second run while the first is under way
            if shown: return
            shown.append(True)
            with pytest.raises(OutOfBudget):
                ask(endpoint, requests(1000)[500:], store, budget_usd=budget, progress=False)

        with pytest.raises(OutOfBudget): ask(endpoint, requests(500), store, other, budget, progress=False)
        assert shown and 0.7 * budget < store.spent()["m"].cost_usd <= budget


@pytest.mark.slow
def test_interrupt_waits_for_what_is_paid(tmp_path):
    with serve(latency=0.6, log=tmp_path / "log") as server:
        run = FORKS.Process(target=child, args=(server.url, str(tmp_path / "s.sqlite"), 200))
        run.start()
        while server.stats()["calls"] < 24: time.sleep(0.02)
        os.kill(run.pid, signal.SIGINT)
        run.join()
        calls, paid = server.stats()["calls"], {line["body"] for line in server.paid()}
        assert run.exitcode == 1 and calls < 60
        with Store(tmp_path / "s.sqlite") as store:
            assert {body(q) for q in requests(200) if store.get(q.key)} == paid and len(paid) == calls
            totals = ask(near(server, in_flight=200), requests(200), store, progress=False)
            assert totals.stored == calls and totals.done == 200
    with serve(latency=30) as server:
        messages = tmp_path / "messages"
        run = FORKS.Process(target=child, args=(server.url, str(tmp_path / "t.sqlite"), 50, str(messages)))
        run.start()
        while server.stats()["calls"] < 16: time.sleep(0.02)
        os.kill(run.pid, signal.SIGINT)
        while "Stopping: 16 answers" not in messages.read_text(): time.sleep(0.02)
        assert run.is_alive()
        os.kill(run.pid, signal.SIGINT)
        run.join()
        assert run.exitcode == 1


@pytest.mark.slow
def test_full_disk(tmp_path):
    if not shutil.which("unshare") or subprocess.run(["unshare", "-Urm", "true"], capture_output=True).returncode:
        pytest.skip("no user and mount namespaces here: a small disk cannot be made")
    small, client = tmp_path / "small", tmp_path / "client.py"
    small.mkdir()
    client.write_text(textwrap.dedent("""
        import os, subprocess, sys
        from smoltraces.traces.client import Endpoint, ask
        from smoltraces.settings import InputError
        from smoltraces.traces.store import Request, Store
        small, url = sys.argv[1:]
        asked = [Request("m", ({"role": "user", "content": f"What is {i} + {i}?"},), {"max_tokens": 4000})
                 for i in range(150)]
        looks = []

        def fill(totals):  # another program takes the rest of the disk while answers are under way, and lets go of it
            if totals.done: looks.append(totals.done)
            if len(looks) == 1:
                try:
                    with open(small + "/filler", "wb", buffering=0) as f:
                        while True: f.write(bytes(4096))
                except OSError: pass
            if len(looks) == 10: os.unlink(small + "/filler")

        subprocess.run(["mount", "-t", "tmpfs", "-o", "size=16m", "tmpfs", small], check=True)
        with Store(small + "/s.sqlite") as store:
            try: ask(Endpoint("m", url, in_flight=8), asked, store, progress=fill)
            except InputError as e: print(e)
            totals = ask(Endpoint("m", url, in_flight=8), asked, store, progress=False)
            print(totals.stored > 0, totals.done)
    """))
    with serve(characters=16000, latency=0.2, log=tmp_path / "paid") as server:
        command = ["unshare", "-Urm", sys.executable, client, small, server.url]
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        paid = Counter(line["body"] for line in server.paid())
    message, totals = done.stdout.splitlines()
    assert "free some" in message and "wait to be written" in done.stderr and totals == "True 150"
    assert len(paid) == 150 and set(paid.values()) == {1}


def test_pace_follows_429(tmp_path):
    with serve(latency=0.02, at_once=8, retry_after="10ms") as server, Store(tmp_path / "s.sqlite") as store:
        limits = []
        totals = ask(near(server, in_flight=64, backoff=0.02), requests(500), store,
                     progress=lambda progress: limits.append(progress.limit))
        assert totals.statuses == {"ok": 500}
        assert limits[-1] < 16 and totals.tries < 500 * 1.4, (limits, totals)


@pytest.mark.parametrize("said", ["1", "800ms", "date"])
def test_retry_after_is_honoured(tmp_path, said):
    began = time.time()
    until = int(began + 3) if said == "date" else began + 0.8
    options = {"at_once": 1, "latency": 0.5, "retry_after": formatdate(until, usegmt=True) if said == "date" else said}
    with serve(**options) as server, Store(tmp_path / "s.sqlite") as store:
        assert ask(near(server, in_flight=2), requests(2), store, progress=False).statuses == {"ok": 2}
        assert until - 0.1 < time.time() and server.stats()["calls"] == 3


def test_tokens_a_minute(tmp_path):
    with serve(characters=0) as server, Store(tmp_path / "s.sqlite") as store:
        table = [Request("m", ({"role": "user", "content": f"{i:04d}" * 100},), {"max_tokens": 10}) for i in range(45)]
        began = time.monotonic()
        ask(near(server, tokens_per_minute=60_000), table, store, progress=False)  # a thousand a second, three at once
        tokens = store.spent()["m"]
        assert time.monotonic() - began > (tokens.prompt_tokens + tokens.completion_tokens - 3000) / 1000 - 0.5


@pytest.mark.parametrize("form", ["reasoning_content", "reasoning", "think", "closing"])
def test_thinking_is_found(tmp_path, form):
    with serve(form=form) as server, Store(tmp_path / "s.sqlite") as store:
        ask(near(server), requests(1), store, progress=False)
        answer, = store.get_many([requests(1)[0].key]).values()
    assert answer.thinking.startswith("Let me think") and answer.content.startswith("It is \\boxed{")
    assert "think>" not in answer.thinking + answer.content


def test_next_sample_where_the_first_is_wrong(tmp_path):
    def wrong(request, response): return replace(request, sample=request.sample + 1) if request.sample < 2 else None

    async def soon(request, response): return wrong(request, response)

    for then in (wrong, soon):
        with serve() as server, Store(tmp_path / f"{then.__name__}.sqlite") as store:
            assert ask(near(server), requests(20), store, then, progress=False).statuses == {"ok": 60}
            again = ask(near(server), requests(20), store, then, progress=False)
            assert again.stored == 60 and again.tries == 0

    def breaks(request, response): raise RuntimeError("in the caller's own code")

    with serve() as server, Store(tmp_path / "breaks.sqlite") as store:
        with pytest.raises(RuntimeError, match="own code"):
            ask(near(server), requests(50), store, breaks, progress=False)
        assert store.spent()["m"].requests == server.stats()["paid"]


def test_requests_are_taken_as_needed(tmp_path):
    taken = []

    def endless():
        for request in requests(10_000):
            taken.append(request)
            yield request

    def enough(request, response): raise InputError("enough")

    with serve(latency=0.1) as server, Store(tmp_path / "s.sqlite") as store:
        with pytest.raises(InputError, match="enough"): ask(near(server), endless(), store, enough, progress=False)
    assert 16 <= len(taken) < 60


def test_inside_a_running_loop(tmp_path):
    async def cell():
        with serve() as server, Store(tmp_path / "s.sqlite") as store:
            return ask(near(server), requests(10), store, progress=False)

    assert asyncio.run(cell()).statuses == {"ok": 10}


def test_estimate(tmp_path):
    with serve() as server, Store(tmp_path / "s.sqlite") as store:
        assumed = estimate(near(server), requests(10), 1000, 500, store)
        ask(near(server), requests(20), store, progress=False)
        known = estimate(near(server), requests(10), 1000, 500, store)
        real = store.spent()["m"]
    assert assumed.completion_tokens == 500_000 and assumed.requests == 1000
    assert known.completion_tokens == pytest.approx(1000 * real.completion_tokens / 20, rel=0.01)
    assert known.usd == pytest.approx(50 * real.cost_usd, rel=0.05)
