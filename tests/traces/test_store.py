"""The store keeps what was paid for: durable, shared, portable, and plain about what is wrong with it."""
import multiprocessing
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

from smoltraces.settings import InputError
from smoltraces.traces.store import FINAL, Request, Response, Store


def request(i: int = 0, sample: int = 0, text: str = "") -> Request:
    return Request("m", ({"role": "system", "content": "Think."}, {"role": "user", "content": f"{text}{i}"}),
                   {"max_tokens": 100, "temperature": 0.6}, sample)


def response(r: Request, status: str = "ok", cost: float = 0.5, text: str = "So.") -> Response:
    if status not in FINAL: return Response(r.key, r.model, status, detail="because")
    return Response(r.key, r.model, status, text, "It is 1.", "stop", 10, 20, cost)


def test_key_is_of_model_messages_sampling_and_sample():
    from dataclasses import replace
    one = request()
    assert one.key == request().key
    others = [replace(one, model="n"), replace(one, sample=1), replace(one, sampling={"max_tokens": 100}),
              replace(one, messages=one.messages[::-1])]
    assert len({one.key, *(r.key for r in others)}) == 5
    assert replace(one, sampling=dict(reversed(one.sampling.items()))).key == one.key


def test_what_is_put_is_there_for_every_run(tmp_path):
    with Store(tmp_path / "s.sqlite") as store, Store(tmp_path / "s.sqlite") as other:
        some = [request(i) for i in range(1200)]
        store.put([response(r) for r in some], some)
        assert other.get_many(r.key for r in some) == {r.key: response(r) for r in some}
        assert other.get(request(5000).key) is None
        assert other.spent()["m"].requests == 1200 and other.spent()["m"].cost_usd == pytest.approx(600)
    assert [p.name for p in tmp_path.iterdir()] == ["s.sqlite"]  # one file, to be copied


def test_a_final_answer_is_never_replaced_by_a_failure(tmp_path):
    with Store(tmp_path / "s.sqlite") as store:
        r = request()
        for status in ("failed", "rejected", "empty", "failed", "ok"): store.put([response(r, status)], [r])
        assert store.get(r.key) == response(r) and store.spent()["m"].requests == 1
        assert store.spent()["m"].cost_usd == 0.5
        store.put([response(r, "failed")], [r])
        assert store.get(r.key).status == "ok"


def test_text_that_utf8_cannot_hold(tmp_path):
    with Store(tmp_path / "s.sqlite") as store:
        r = request(text="half of an emoji: \ud83d")
        store.put([response(r, text="cut: \ud83d and \x00")], [r])
        assert store.get(r.key).thinking == "cut: ? and \x00"
        assert Store(tmp_path / "t.sqlite").merge(store.export(tmp_path / "e.parquet")) == 1


def _claim_and_die(path: str, n: int):
    Store(path).claim([request(i) for i in range(n)], [1.0] * n)
    os.kill(os.getpid(), signal.SIGKILL)


def test_claims(tmp_path):
    with Store(tmp_path / "s.sqlite") as one, Store(tmp_path / "s.sqlite") as two:
        assert one.claim([request(0), request(1)]) == ["mine", "mine"]
        assert one.claim([request(0)]) == ["held"]
        assert two.claim([request(0), request(1), request(2)]) == ["held", "held", "mine"]
        one.put([response(request(0))], [request(0)])
        one.release([request(1)])
        assert two.claim([request(0), request(1)]) == ["answered", "mine"]
        assert one.claim([request(7)], owner="batch-1") == ["mine"]
        assert two.claim([request(7)]) == ["pending"]
    with Store(tmp_path / "s.sqlite") as three:  # a closed store lets go of its claims, a named owner does not
        assert three.claim([request(1), request(2), request(7)]) == ["mine", "mine", "pending"]
        three.retire("batch-1")
        assert three.claim([request(7)]) == ["mine"]


def test_claims_of_the_dead_are_taken_over(tmp_path):
    path = tmp_path / "s.sqlite"
    dead = multiprocessing.get_context("fork").Process(target=_claim_and_die, args=(str(path), 3))
    dead.start()
    dead.join()
    with Store(path) as store:
        assert sqlite3.connect(path).execute("SELECT count(*) FROM claims").fetchone() == (3,)
        assert store.claim([request(0)], [1.0], budget=1.5) == ["mine"]  # nor is their money held back
        assert store.owed() == 1.0


def test_budget_counts_what_is_spent_and_what_is_claimed(tmp_path):
    with Store(tmp_path / "s.sqlite") as one, Store(tmp_path / "s.sqlite") as two:
        one.put([response(request(0), cost=4.0)], [request(0)])
        assert one.claim([request(1), request(2)], [3.0, 3.0], budget=10) == ["mine", "mine"]
        assert two.claim([request(3)], [0.1], budget=10) == ["over"]
        one.put([response(request(1), cost=1.0)], [request(1)])  # cheaper than feared
        assert two.claim([request(3), request(4)], [1.5, 1.5], budget=10) == ["mine", "over"]


def test_verdicts(tmp_path):
    with Store(tmp_path / "s.sqlite") as store:
        store.put_verdict("key", "p1", "v1", True)
        store.put_verdict("key", "p2", "v1", False)
        assert store.verdicts("key", "v1") == {"p1": True, "p2": False} and store.verdicts("key", "v2") == {}


def test_export_and_merge(tmp_path):
    with Store(tmp_path / "a.sqlite") as a, Store(tmp_path / "b.sqlite") as b, Store(tmp_path / "c.sqlite") as c:
        some = [request(i) for i in range(700)]
        a.put([response(r, "failed" if i == 5 else "ok") for i, r in enumerate(some)], some)
        for r in reversed(some): b.put([response(r, "failed" if r is some[5] else "ok")], [r])
        assert a.export(tmp_path / "a.parquet").read_bytes() == b.export(tmp_path / "b.parquet").read_bytes()
        c.put([response(some[0], text="mine"), response(some[5])], [some[0], some[5]])
        assert c.merge(tmp_path / "a.parquet") == 698 and c.merge(tmp_path / "b.sqlite") == 0
        assert c.get(some[0].key).thinking == "mine" and c.get(some[5].key).status == "ok"
        assert c.spent()["m"].requests == 700
        row = next(iter(a.rows()))
        assert row["messages"].startswith('[{"content":"Think."') and row["sampling"].startswith('{"max_tokens":100')
        import pyarrow.parquet as pq
        table = pq.read_table(tmp_path / "a.parquet").to_pylist()
        assert table[0]["status"] == "ok" and [t["key"] for t in table] == sorted(r.key for r in some)


def test_a_tampered_export_is_told(tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as pq
    with Store(tmp_path / "a.sqlite") as a:
        a.put([response(request())], [request()])
        table = pq.read_table(a.export(tmp_path / "a.parquet"))
    with Store(tmp_path / "b.sqlite") as b:
        pq.write_table(table.set_column(0, "key", pa.array(["0" * 64])), tmp_path / "a.parquet")
        with pytest.raises(InputError, match="does not belong"): b.merge(tmp_path / "a.parquet")
        pq.write_table(table.drop_columns("status"), tmp_path / "a.parquet")
        with pytest.raises(InputError, match="lacks the column status"): b.merge(tmp_path / "a.parquet")
        (tmp_path / "a.parquet").write_bytes((tmp_path / "a.parquet").read_bytes()[:200])
        with pytest.raises(InputError, match="not a whole Parquet"): b.merge(tmp_path / "a.parquet")
        with pytest.raises(InputError, match="is missing"): b.merge(tmp_path / "none.parquet")
        with pytest.raises(InputError, match="not a store"): b.merge(Path(__file__))
        assert list(b.rows()) == []


def test_what_is_no_store(tmp_path):
    (tmp_path / "text").write_text("question, answer\n" * 100)
    sqlite3.connect(tmp_path / "other").executescript("CREATE TABLE t (a)")
    Store(tmp_path / "old").close()
    sqlite3.connect(tmp_path / "old").executescript("PRAGMA user_version=99")
    with Store(tmp_path / "cut") as store:
        some = [request(i) for i in range(500)]
        store.put([response(r, text="x" * 2000) for r in some], some)
    os.truncate(tmp_path / "cut", 300_000)
    for name, words in [("text", "not a store of answers"), ("other", "not a store of answers"),
                        ("old", "another version"), ("", "cannot be opened"), ("text/s.sqlite", "cannot be opened"),
                        ("cut", "is damaged")]:
        before = (tmp_path / name).read_bytes() if (tmp_path / name).is_file() else None
        with pytest.raises(InputError, match=words) as error:
            with Store(tmp_path / name) as store: store.get_many(request(i).key for i in range(500))
        assert "\n" not in str(error.value) and str(error.value).count(". ") == 0
        assert before is None or (tmp_path / name).read_bytes() == before


def test_read_only_folder(tmp_path):
    if not shutil.which("unshare") or subprocess.run(["unshare", "-Urm", "true"], capture_output=True).returncode:
        pytest.skip("no user and mount namespaces here: a folder that root cannot write cannot be made")
    Store(tmp_path / "s.sqlite").close()
    code = f"from smoltraces.traces.store import Store; Store({str(tmp_path / 's.sqlite')!r})"
    for path in ("s.sqlite", "new.sqlite"):
        script = (f"mount --bind {tmp_path} {tmp_path} && mount -o remount,bind,ro {tmp_path} && "
                  f"{sys.executable} -c {code.replace('s.sqlite', path)!r}")
        done = subprocess.run(["unshare", "-Urm", "sh", "-c", script], capture_output=True, text=True)
        assert done.stderr.splitlines()[-1].startswith("smoltraces.settings.InputError: "), done.stderr
        assert "can be" in done.stderr
