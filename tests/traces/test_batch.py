"""The Batch API against a server that speaks it: whole rounds, kills between any two steps, batches that end badly."""
import asyncio
import os
import shutil
import signal
import ssl
import subprocess
import sys
import threading
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
from batch_server import serve_batches
from conftest import ROOT
from filelock import FileLock
from server import serve

import smoltraces.traces.batch as module
from smoltraces.settings import InputError
from smoltraces.traces.batch import ask_batch
from smoltraces.traces.client import Endpoint, OutOfBudget, ask
from smoltraces.traces.store import FINAL, Request, Store

_context = ssl.create_default_context()
ssl.create_default_context = lambda *a, **k: _context  # each new client would read the certificates again

KEY = "sk-planted-0123456789abcdef"


def requests(n: int, start: int = 0, **sampling) -> list[Request]:
    system = {"role": "system", "content": "Box the answer."}
    return [Request("big", (system, {"role": "user", "content": f"Add 1 to {k}."}),
                    {"max_tokens": 100, "temperature": 0.6, **sampling}, k % 3) for k in range(start, start + n)]


def endpoint(server, **more) -> Endpoint:
    return Endpoint("big", server.url, **{"price_in": 2.0, "price_out": 10.0, **more})


def batch(server, asked, folder: Path, **more):
    with Store(folder / "responses.sqlite") as store:
        return ask_batch(endpoint(server), asked, store, folder / "batches", poll_seconds=0.01, progress=False, **more)


def answers(folder: Path) -> list[dict]:
    with Store(folder / "responses.sqlite") as store: return list(store.rows())


@pytest.fixture
def served(tmp_path):
    "Makes a server with these options"
    from contextlib import ExitStack
    with ExitStack() as stack:
        yield lambda **options: stack.enter_context(serve_batches(
            submitted=tmp_path / "submitted.jsonl", log=tmp_path / "paid.jsonl", **options))


def twice(server) -> list[str]:
    "What was submitted more than once"
    return [k for k, n in Counter(i for line in server.submitted() for i in line["custom_ids"]).items() if n > 1]


def test_a_whole_round_gives_what_ask_gives_at_half_the_price(served, tmp_path):
    server, asked = served(), requests(40)
    totals = batch(server, iter(asked), tmp_path / "a")
    with Store(tmp_path / "b.sqlite") as store: ask(endpoint(server), asked, store, progress=False)
    with Store(tmp_path / "b.sqlite") as store: direct = list(store.rows())
    batched = answers(tmp_path / "a")
    assert [r["cost_usd"] for r in batched] == [r["cost_usd"] / 2 for r in direct] and len(batched) == 40
    for row in batched + direct: del row["cost_usd"]
    assert batched == direct and direct[0]["thinking"]
    assert totals.statuses == {"ok": 40} and len(server.submitted()) == 1 and not twice(server)
    assert not list((tmp_path / "a" / "batches").iterdir())
    again = batch(server, asked, tmp_path / "a")
    assert again.stored == 40 and not again.tries and len(server.submitted()) == 1


def test_files_are_split_and_what_is_stored_is_left_out(served, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "LIMIT", 10)
    server = served()
    batch(server, requests(7), tmp_path)
    totals = batch(server, requests(33) + requests(3, start=30), tmp_path)
    assert totals.stored == 7 and totals.statuses["ok"] == 26
    assert [len(line["custom_ids"]) for line in server.submitted()] == [7, 10, 10, 6] and not twice(server)
    monkeypatch.setattr(module, "BYTES", 1000)
    batch(server, requests(12, start=100), tmp_path)
    assert max(len(line["custom_ids"]) for line in server.submitted()[4:]) < 5


@pytest.mark.parametrize("end", ["expired", "cancelled"])
def test_what_came_back_is_kept_and_the_rest_asked_again(served, tmp_path, end):
    server = served(batches=[{"end": end, "share": 0.6}, {"end": end, "share": 0.5}])
    totals = batch(server, requests(20), tmp_path)
    assert [len(line["custom_ids"]) for line in server.submitted()] == [20, 8, 4]
    assert totals.statuses == {"ok": 20} and len(server.paid()) == 20
    assert all(row["status"] == "ok" for row in answers(tmp_path))


def test_what_never_comes_back_is_left_with_its_reason(served, tmp_path):
    server = served(batches=[{"end": "expired", "share": 0}] * 3)
    totals = batch(server, requests(5), tmp_path)
    assert totals.statuses == {"failed": 5} and len(server.submitted()) == 3
    assert {row["detail"] for row in answers(tmp_path)} == {"batch_expired: This request was not executed."}
    assert batch(server, requests(5), tmp_path).statuses == {"ok": 5}  # by the next run
    with Store(tmp_path / "responses.sqlite") as store:
        assert ask(endpoint(server), requests(5), store, progress=False).stored == 5


def test_faults_of_single_requests(served, tmp_path):
    faults = {"500": 0.2, "429": 0.1, "empty_choices": 0.1, "cut": 0.1, "refusal": 0.1, "filter": 0.1}
    server = served(faults=faults, seed=3)
    totals = batch(server, requests(60), tmp_path)
    rows = answers(tmp_path)
    assert len(rows) == 60 == totals.statuses.total()
    assert {"ok", "truncated", "refused", "filtered"} <= {r["status"] for r in rows}
    assert all(r["detail"] for r in rows if r["status"] != "ok")
    assert sum(r["status"] in FINAL for r in rows) >= 55  # three tries each


def test_requests_that_are_not_accepted_are_recorded_not_repeated(served, tmp_path):
    server = served(context=50)
    long = replace(requests(1)[0], messages=({"role": "user", "content": "x" * 51},))
    assert batch(server, [long, *requests(3)], tmp_path).statuses == {"ok": 3, "rejected": 1}
    assert len(server.submitted()) == 1


def test_lines_that_cannot_be_read_are_passed_over(served, tmp_path):
    server = served(batches=[{"spoil": ["broken", "stranger", "anonymous", "twice"]}])
    assert batch(server, requests(10), tmp_path).statuses == {"ok": 10} and len(answers(tmp_path)) == 10


def test_a_batch_that_is_refused_as_a_whole(served, tmp_path):
    server = served(batches=[{"end": "failed", "errors": [["invalid_json_line", f"Line 3 is bad, key {KEY}.", 3]]}])
    with pytest.raises(InputError, match="refused a batch of 4 requests .line 3: Line 3 is bad") as error:
        batch(server, requests(4), tmp_path)
    assert KEY not in str(error.value)
    assert batch(server, requests(4), tmp_path).statuses == {"ok": 4}


def test_a_batch_with_too_many_tokens_goes_in_halves(served, tmp_path):
    full = {"end": "failed", "errors": [["token_limit_exceeded", "Enqueued token limit reached.", None]]}
    server = served(batches=[full, full])
    assert batch(server, requests(16), tmp_path).statuses == {"ok": 16}
    sent = [len(line["custom_ids"]) for line in server.submitted()]
    assert sent[0] == 16 and max(sent[1:]) <= 8 and len(server.paid()) == 16


def test_submission_whose_reply_is_lost(served, tmp_path):
    server = served(lose=1)
    with pytest.raises(InputError, match="nothing will be submitted twice"): batch(server, requests(5), tmp_path)
    assert batch(server, requests(5), tmp_path).statuses == {"ok": 5}
    assert len(server.submitted()) == 1 and len(server.paid()) == 5


def test_folder_that_is_lost(served, tmp_path):
    server = served(batches=[{"polls": 3}])
    batch(server, requests(6), tmp_path, wait=False)
    shutil.rmtree(tmp_path / "batches")
    assert batch(server, requests(6), tmp_path).statuses == {"ok": 6}
    assert len(server.submitted()) == 1


def test_results_that_the_server_has_let_go_of(served, tmp_path, monkeypatch):
    server, download, lost = served(), module.BatchApi.download, []

    def gone(self, file_id, file):
        if lost: return download(self, file_id, file)
        lost.append(file_id)
        raise module.NotFound("gone")

    monkeypatch.setattr(module.BatchApi, "download", gone)
    assert batch(server, requests(4), tmp_path).statuses == {"ok": 4}
    assert len(server.submitted()) == 2


def test_not_waiting_and_coming_back(served, tmp_path):
    server = served(batches=[{"polls": 3}])
    first = batch(server, requests(6), tmp_path, wait=False)
    assert first.pending == 6 and not first.statuses
    with Store(tmp_path / "responses.sqlite") as store:  # a direct run leaves them to the batch
        assert ask(endpoint(server), requests(6), store, progress=False).pending == 6
    assert not server.paid()
    second = batch(server, [], tmp_path)
    assert second.statuses == {"ok": 6} and len(server.submitted()) == 1


def test_budget(served, tmp_path):
    server, asked = served(), requests(30)
    most = endpoint(server).max_cost(asked[0]) / 2
    totals = batch(server, asked, tmp_path, budget_usd=31 * most)
    assert totals.statuses == {"ok": 30} and len(server.submitted()) == 1
    spent = totals.cost_usd
    later = requests(30, start=100)
    with pytest.raises(OutOfBudget, match="raise budget_usd"):
        batch(server, later, tmp_path, budget_usd=spent + 10.5 * most)
    sent = [len(line["custom_ids"]) for line in server.submitted()[1:]]
    assert sent[0] == 10 and sum(sent) < 30
    with Store(tmp_path / "responses.sqlite") as store:
        assert store.spent()["big"].cost_usd <= spent + 10.5 * most and store.owed() == 0
    with pytest.raises(InputError, match="max_tokens"):
        batch(server, [replace(asked[0], sampling={})], tmp_path, budget_usd=1)


def test_then_asks_for_more(served, tmp_path):
    server, asked = served(), requests(6)
    told = []

    def then(request, response):
        told.append(request.key)
        return replace(request, sample=request.sample + 10) if request.sample < 10 else None

    assert batch(server, asked, tmp_path, then=then).statuses == {"ok": 12}
    assert len(told) == 12 and len(server.submitted()) == 2
    assert batch(server, asked, tmp_path, then=then).stored == 12


def test_then_may_be_awaited_and_is_told_of_what_was_asked_alone(served, tmp_path):
    server = served(batches=[{"polls": 2}])
    batch(server, requests(5), tmp_path, wait=False)
    told, asked = [], requests(4, start=3)  # two of them are in the batch that is under way

    async def then(request, response):
        await asyncio.sleep(0.001)
        told.append({r.key: r for r in asked}[request.key])

    assert batch(server, iter(asked), tmp_path, then=then).statuses == {"ok": 7}
    assert sorted(r.key for r in told) == sorted(r.key for r in asked)


def test_what_another_run_is_asking_is_waited_for(served, tmp_path):
    server, asked = served(), requests(6)
    with Store(tmp_path / "responses.sqlite") as other:
        other.claim(asked[:2])
        threading.Timer(0.3, lambda: other.release(asked[:2])).start()
        assert batch(server, asked, tmp_path).statuses == {"ok": 6}
    assert [len(line["custom_ids"]) for line in server.submitted()] == [4, 2]


def test_two_folders_for_one_store(served, tmp_path):
    "As two profiles have: what the one submitted, the other finds at the server"
    server = served(batches=[{"polls": 3}])
    batch(server, requests(6), tmp_path, wait=False)
    with Store(tmp_path / "responses.sqlite") as store:
        totals = ask_batch(endpoint(server), requests(6), store, tmp_path / "other", poll_seconds=0.01, progress=False)
        assert totals.statuses == {"ok": 6}
    batch(server, requests(6), tmp_path)
    assert len(server.submitted()) == 1 and len(server.paid()) == 6


def test_one_run_at_a_time(served, tmp_path):
    server = served()
    with Store(tmp_path / "responses.sqlite"), FileLock(tmp_path / ".responses.sqlite-batch.lock"):
        with pytest.raises(InputError, match="Another run looks after the batches of .*responses.sqlite"):
            batch(server, requests(1), tmp_path)


def test_wrong_key_and_no_batch_api(served, tmp_path, monkeypatch):
    server = served(key="sk-right")
    monkeypatch.setenv("BIG_KEY", KEY)
    keyed = endpoint(server, key_name="BIG_KEY")
    with Store(tmp_path / "a.sqlite") as store:
        with pytest.raises(InputError, match="does not accept the key in BIG_KEY") as error:
            ask_batch(keyed, requests(3), store, tmp_path / "a")
        assert KEY not in str(error.value) and "0123456789" not in str(error.value)
        with pytest.raises(InputError, match="set NO_SUCH_KEY"):
            ask_batch(Endpoint("big", "https://api.openai.com/v1", "NO_SUCH_KEY"), requests(3), store, tmp_path / "a")
    with serve() as plain, Store(tmp_path / "b.sqlite") as store:
        with pytest.raises(InputError, match="may have no Batch API"):
            ask_batch(endpoint(plain), requests(3), store, tmp_path / "b")
    assert not any(KEY in p.read_text(errors="replace") for p in tmp_path.rglob("*") if p.is_file())


def test_server_that_is_gone(served, tmp_path, monkeypatch):
    monkeypatch.setattr("openai._base_client.INITIAL_RETRY_DELAY", 0.01)
    monkeypatch.setattr("openai._base_client.MAX_RETRY_DELAY", 0.02)
    server = served(batches=[{"polls": 9}])
    batch(server, requests(3), tmp_path, wait=False)
    server.process.kill()
    with pytest.raises(InputError, match="cannot be reached"): batch(server, requests(3), tmp_path)
    file, = (tmp_path / "batches").iterdir()  # the input, and under which id it was submitted
    assert file.stem.endswith("--batch_000000"), file


def where_tests_are() -> dict[str, str]:
    folders = [str(ROOT / "tests"), str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, folders))}


KILLED = """
import os, signal, sys
import openai
import smoltraces.traces.batch as module
from smoltraces.traces.store import Store
from test_batch import batch, requests
from types import SimpleNamespace
from pathlib import Path

url, folder = sys.argv[1], Path(sys.argv[2])


def run(n, at):
    "In a fork: the run is killed after its step number `at`"
    seen = 0
    def stepped(owner, name):
        whole = getattr(owner, name)
        def step(*a, **k):
            nonlocal seen
            result = whole(*a, **k)
            seen += 1
            if seen == at: os.kill(os.getpid(), signal.SIGKILL)
            return result
        setattr(owner, name, step)
    for name in ("find", "upload", "submit", "retrieve", "download"): stepped(module.BatchApi, name)
    stepped(module._Run, "_note")
    for name in ("claim", "put", "retire"): stepped(Store, name)
    batch(SimpleNamespace(url=url), requests(4, start=100 * n), folder / str(n))
    os._exit(0)


for n in range(1, 200):
    status = []
    for at in (n, 0):
        child = os.fork()
        if not child: run(n, at)
        status.append(os.waitpid(child, 0)[1])
    print(n, *status, flush=True)
    if not status[0]: break
"""


@pytest.mark.slow
def test_kill_between_any_two_steps(served, tmp_path):
    "Killed after its first step, its second, … until a run has none left: nothing is submitted twice, nothing lost"
    server = served()
    done = subprocess.run([sys.executable, "-c", KILLED, server.url, str(tmp_path)], capture_output=True, text=True,
                          env=where_tests_are(), timeout=300)
    assert done.returncode == 0, done.stderr
    rounds = [list(map(int, line.split())) for line in done.stdout.splitlines()]
    assert len(rounds) > 10 and all(r[1] == signal.SIGKILL and r[2] == 0 for r in rounds[:-1]), rounds
    assert not twice(server)
    assert len(server.submitted()) == len(rounds) and len(server.paid()) == 4 * len(rounds)
    for n, *_ in rounds:
        assert [r["status"] for r in answers(tmp_path / str(n))] == ["ok"] * 4
        with Store(tmp_path / str(n) / "responses.sqlite") as store: assert not store.owed()


@pytest.mark.slow
def test_kill_of_a_real_process_in_the_middle(served, tmp_path):
    server = served(batches=[{"polls": 9}] * 9)
    code = ("import sys; from types import SimpleNamespace; from test_batch import *\n"
            "batch(SimpleNamespace(url=sys.argv[1]), requests(1000), Path(sys.argv[2]))")
    command = [sys.executable, "-c", code, server.url, str(tmp_path)]
    run = subprocess.Popen(command, env=where_tests_are())
    while not server.submitted(): time.sleep(0.005)
    run.kill()
    assert run.wait() == -signal.SIGKILL
    assert batch(server, requests(1000), tmp_path).done >= 1000
    assert [r["status"] for r in answers(tmp_path)] == ["ok"] * 1000 and len(server.paid()) == 1000
    assert not twice(server)
