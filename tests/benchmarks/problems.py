"""Measure the building of seed problems, each beside its limit: python tests/benchmarks/problems.py [overlap] …

overlap  8-gram overlap of 31,586 problems with 728 questions, as a ratio of every problem against every question
repeats  near duplicates among 31,586 problems, as a ratio of datasketch's MinHash and LSH index
build    `build_problems` on 31,586 rows in the shape of NuminaMath-CoT, against 728 questions
stream   the same on 860,000 rows, the size of NuminaMath-CoT, 31,586 of them sampled (five minutes and more)

The texts are generated: words drawn by Zipf's law, sixty a problem on average, one in twenty a near duplicate of
another, one in two hundred a benchmark's question in disguise. The last two run in a process of their own, so that its
peak memory can be read.
"""
import json
import multiprocessing
import re
import sys
import tempfile
import time
from bisect import bisect
from itertools import accumulate
from pathlib import Path
from random import Random

import pyarrow as pa
import pyarrow.parquet as pq

N, QUESTIONS, ROWS = 31_586, 728, 860_000
_letters = "etaoinshrdlcumwfgypbvk"
VOCABULARY = [a + b + c for a in _letters for b in _letters for c in _letters][:6000]
_reach = list(accumulate(1 / (k + 1) for k in range(len(VOCABULARY))))


def told(rng: Random) -> str:
    n = max(8, int(rng.lognormvariate(4, 0.5)))
    return " ".join(VOCABULARY[bisect(_reach, rng.random() * _reach[-1])] for _ in range(n))


def disguised(text: str) -> str: return "Problem 7. " + text.upper().replace(" ", "  ")


def texts(n: int, questions: list[str], seed: int = 0):
    "n problems, a few of them near duplicates or questions"
    rng, last = Random(seed), []
    for _ in range(n):
        dice = rng.random()
        if dice < 0.005: yield disguised(rng.choice(questions))
        elif dice < 0.05 and last:
            its = rng.choice(last).split()
            its[rng.randrange(len(its))] = rng.choice(VOCABULARY)
            yield " ".join(its)
        else:
            text = told(rng)
            last = [*last[-999:], text]
            yield text


def asked() -> list[str]:
    rng = Random("questions")
    return [told(rng) for _ in range(QUESTIONS)]


def show(what: str, took: float, limit: float | None = None, ratio: tuple[float, str] | None = None, more: str = ""):
    print(f"{what:<42}{took:8.2f} s" + (f"   limit {limit:g} s" if limit else "")
          + (f"   {ratio[0]:.4f} × {ratio[1]}" if ratio else "") + more, flush=True)


def timed(run) -> tuple[float, object]:
    start = time.perf_counter()
    result = run()
    return time.perf_counter() - start, result


def overlap():
    from smoltraces.problems.selection import Question, overlaps, words

    def grams(text):
        its = words(text)
        return {" ".join(its[i:i + 8]) for i in range(len(its) - 7)}

    def plainly(some):
        sets = [grams(q) for q in questions]
        return {k for k, own in enumerate(map(grams, some)) if any(not own.isdisjoint(other) for other in sets)}

    questions = asked()
    pool = list(texts(N, questions))
    ours, found = timed(lambda: overlaps(pool, [Question(f"b/{k}", q) for k, q in enumerate(questions, 1)]))
    part = pool[:N // 10]
    theirs, expected = timed(lambda: plainly(part))
    assert {k for k in found if k < len(part)} == expected and len(found) > 100
    show(f"overlap of {N:,} with {QUESTIONS}", ours, 60, (ours / (theirs * N / len(part)), "every pair of sets"))


def repeats():
    from datasketch import MinHash, MinHashLSH

    from smoltraces.problems.selection import _alike, _runs, bands, near_duplicates
    pool = list(texts(N, asked()))
    ours, found = timed(lambda: {r.index: r.kept for r in near_duplicates(pool)})

    def theirs():
        count, size = bands(0.8)
        index, runs, gone = MinHashLSH(num_perm=count * size, params=(count, size)), [_runs(t) for t in pool], {}
        for k, mine in enumerate(runs):
            sketch = MinHash(num_perm=count * size)
            sketch.update_batch([run.encode() for run in mine])
            other = next((o for o in sorted(index.query(sketch)) if _alike(mine, runs[o]) >= 0.8), None)
            if other is None: index.insert(k, sketch, check_duplication=False)
            else: gone[k] = other
        return gone

    took, expected = timed(theirs)
    both = len(set(found.items()) & set(expected.items()))
    show(f"near duplicates of {N:,}", ours, 60, (ours / took, "datasketch"),
         f"   found {len(found)}, datasketch {len(expected)}, the same {both}")


def _numina(folder: Path, n: int, questions: list[str]) -> Path:
    file = folder / "train-00000-of-00001.parquet"
    schema = pa.schema([("source", pa.string()), ("problem", pa.string()), ("solution", pa.string())])
    kinds = ["olympiads", "cn_k12", "synthetic_math", "orca_math"]
    with pq.ParquetWriter(file, schema) as writer:
        rows = []
        for k, text in enumerate(texts(n, questions)):
            rows.append({"source": kinds[k % 4], "problem": text, "solution": f"{text} {text} So $\\boxed{{{k}}}$."})
            if len(rows) == 10_000 or k == n - 1:
                writer.write_table(pa.Table.from_pylist(rows, schema))
                rows = []
    return file


def _peak() -> float:
    "Megabytes that this process has held at most"
    return int(re.search(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text())[1]) / 1024


def _built(folder: Path, sampled: int, pipe):
    from smoltraces.problems.selection import build_problems
    from smoltraces.settings import load_settings
    cfg = load_settings("smoke", out=str(folder), source="corpora", n_problems=sampled,
                        corpora=[f"numina-math-cot@{folder}"], decontaminate=[f"math500@{folder / 'questions.jsonl'}"])
    took, frame = timed(lambda: build_problems(cfg))
    pipe.send((took, len(frame), _peak()))


def build(n: int = N, sampled: int = N, limit: float | None = 60):
    with tempfile.TemporaryDirectory() as name:
        folder, questions = Path(name), asked()
        _numina(folder, n, questions)
        (folder / "questions.jsonl").write_text("".join(json.dumps({"problem": q}) + "\n" for q in questions))
        ours, theirs = multiprocessing.Pipe()
        process = multiprocessing.get_context("spawn").Process(target=_built, args=(folder, sampled, theirs))
        process.start()
        theirs.close() # so that a process that fails ends the wait
        took, drawn, peak = ours.recv()
        process.join()
    show(f"build_problems of {n:,} rows", took, limit, more=f"   {drawn:,} problems, peak {peak:,.0f} MB (limit 1,024)")


def stream(): build(ROWS, N, None)


if __name__ == "__main__":
    known = {f.__name__: f for f in (overlap, repeats, build, stream)}
    for name in sys.argv[1:] or ("overlap", "repeats", "build"): known[name]()
