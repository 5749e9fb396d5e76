"""How fast style is measured, as ratios against named baselines in one run, on one core.

    python tests/benchmarks/style.py speed [FOLDER]      MB/s, and the ratio to a loop of `re` patterns, to one
                                                         Hyperscan pass, to polars' Aho-Corasick and Rust's
                                                         regex, for the same phrases
    python tests/benchmarks/style.py linear [FOLDER]     time against size, 1 to 16 times
    python tests/benchmarks/style.py memory GB [FOLDER]  peak memory on so many GB of Parquet, threads
    python tests/benchmarks/style.py ray MB [FOLDER]     the same rows from both engines, and their times

Traces are resampled, sentence by sentence, from FOLDER/*.jsonl (rows with a `trace`), or from the embedded teachers.
"""
import json
import random
import re
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from smoltraces.style.measure import BATCH, lexicon, measure_texts


def sentences(folder: str | None) -> list[str]:
    if folder: traces = [json.loads(line)["trace"] for f in sorted(Path(folder).glob("*.jsonl")) for line in f.open()]
    else:
        from smoltraces.problems.corpora import embedded_problems
        from smoltraces.schema import to_problems
        from smoltraces.traces.teachers import teacher
        problems = to_problems(embedded_problems(["chain_sum", "simple_equations"], 200, 0, 0, 1))
        traces = [c.trace for name in ("embedded/emergent", "embedded/hard-coded")
                  for c in teacher(name, 1).answer(problems) if c.trace]
    return [s for t in traces for s in re.split(r"(?<=[.!?])(?=\s)", t)]


def corpus(megabytes: float, folder: str | None, seed: int = 0) -> list[str]:
    "Traces of 3 to 20 KB"
    rng, pool, out, size = random.Random(seed), sentences(folder), [], 0
    while size < megabytes * 1e6:
        length, parts = rng.randint(3000, 20000), []
        while length > 0:
            parts.append(rng.choice(pool))
            length -= len(parts[-1])
        out.append("".join(parts))
        size += len(out[-1].encode())
    return out


def timed(function, *args, repeat: int = 3) -> float:
    "Seconds of this process, the best of a few"
    best = float("inf")
    for _ in range(repeat):
        start = time.process_time()
        function(*args)
        best = min(best, time.process_time() - start)
    return best


def pattern(phrase: str) -> str:
    return rf"\b{re.escape(phrase)}" + (r"\b" if phrase[-1].isalnum() else "")


def speed(folder=None):
    import hyperscan
    import polars as pl

    from smoltraces.style.scanner import scan
    texts = corpus(30, folder)
    data = [t.encode() for t in texts]
    megabytes = sum(map(len, data)) / 1e6
    lex = lexicon()
    offsets = np.concatenate([[0], np.cumsum([len(d) for d in data])])
    buffer = np.frombuffer(b"".join(data), np.uint8)
    wanted = ("pivots", "backtracking") # what the fast pass has to find
    phrases = sorted({e.phrase.lower() for e in lex.entries if lex.groups[e.group].split(".")[0] in wanted})
    few = max(1, len(texts) // 100)
    compiled = [re.compile(pattern(p), re.I) for p in phrases]

    def loop(): return [len(p.findall(t)) for t in texts[:few] for p in compiled]

    database = hyperscan.Database()
    database.compile(expressions=[pattern(p).encode() for p in phrases], ids=list(range(len(phrases))),
                     flags=[hyperscan.HS_FLAG_CASELESS | hyperscan.HS_FLAG_SOM_LEFTMOST] * len(phrases))

    def hyper():
        found = []
        def keep(phrase, start, end, flags, context): found.append((phrase, start, end))
        for d in data: database.scan(d, match_event_handler=keep)
        return found

    series = pl.Series(texts)
    one = "(?i)" + "|".join(pattern(p).replace(r"\ ", " ").replace(r"\-", "-")
                            for p in sorted(phrases, key=len, reverse=True))
    ours = {"pivots and backtracking": lambda: scan(buffer, offsets, lex.compiled, len(lex.groups), full=False),
            "measure, whole": lambda: [measure_texts(texts[i:i + BATCH]) for i in range(0, len(texts), BATCH)]}
    theirs = {f"loop of {len(phrases)} re patterns": (loop, sum(map(len, data[:few])) / 1e6),
              "Hyperscan, one pass": (hyper, megabytes),
              "polars find_many (Aho-Corasick)": (lambda: series.str.find_many(phrases, ascii_case_insensitive=True),
                                                  megabytes),
              "polars extract_all (Rust regex)": (lambda: series[:few * 4].str.extract_all(one),
                                                  sum(map(len, data[:few * 4])) / 1e6)}
    for run in ours.values(): run() # compiled, and in the cache
    rates = {name: size / timed(run, repeat=1 if size < 1 else 3) for name, (run, size) in theirs.items()}
    for name, rate in rates.items(): print(f"{name:36} {rate:8.2f} MB/s")
    for name, run in ours.items():
        rate = megabytes / timed(run)
        print(f"{name:36} {rate:8.2f} MB/s;", ", ".join(f"{rate / r:.2f} x {n}" for n, r in rates.items()))


def linear(folder=None):
    texts = corpus(16, folder)
    measure_texts(texts[:10])
    base = None
    for k in (1, 2, 4, 8, 16):
        part = texts[:len(texts) * k // 16]
        rate = sum(map(len, part)) / timed(lambda part=part: [measure_texts(part[i:i + BATCH])
                                                             for i in range(0, len(part), BATCH)])
        base = base or rate
        print(f"{k:3} x: {rate / base:.2f} of the rate at 1 x")


def _write(folder: Path, gigabytes: float, source: str | None):
    "Files of 100 MB; ten different ones, and from the eleventh on copies of these"
    import pyarrow as pa
    import pyarrow.parquet as pq
    schema = pa.schema({"id": pa.string(), "trace": pa.string()})
    for n in range(max(1, round(gigabytes * 10))):
        file = folder / f"part-{n:04}.parquet"
        if n >= 10: shutil.copy(folder / f"part-{n % 10:04}.parquet", file)
        else:
            texts = corpus(min(100, gigabytes * 1e3), source, seed=n)
            with pq.ParquetWriter(file, schema, compression="none", use_dictionary=False) as out:
                for at in range(0, len(texts), 1000):
                    part = texts[at:at + 1000]
                    out.write_table(pa.table({"id": [f"{n}-{at + i}" for i in range(len(part))], "trace": part}))


def memory(gigabytes: str, folder=None):
    with tempfile.TemporaryDirectory() as temporary:
        source, out = Path(temporary, "traces"), Path(temporary, "style")
        source.mkdir()
        _write(source, float(gigabytes), folder)
        size = sum(f.stat().st_size for f in source.glob("*.parquet")) / 1e9
        code = ("import resource, sys, time; from smoltraces.style.corpus import measure_corpus; t = time.time();"
                "measure_corpus(sys.argv[1], sys.argv[2], progress=lambda n: None);"
                "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.time() - t)")
        told = subprocess.run([sys.executable, "-c", code, source, out], check=True, capture_output=True,
                              text=True).stdout
        peak, seconds = map(float, told.split())
        peak *= 1 if sys.platform == "darwin" else 1024
        print(f"{size:.2f} GB of Parquet: peak memory {peak / 1e9:.2f} GB, "
              f"{size * 1e3 / seconds:.0f} MB/s on all cores")


def ray(megabytes: str, folder=None):
    from smoltraces.style.corpus import measure_corpus
    with tempfile.TemporaryDirectory() as temporary:
        _write(Path(temporary), float(megabytes) / 1e3, folder)
        rows = {}
        for engine in ("threads", "ray"):
            start = time.time()
            rows[engine] = measure_corpus(temporary, engine=engine, progress=lambda n: None)
            print(f"{engine}: {time.time() - start:.1f} s")
        print("identical rows:", rows["threads"].equals(rows["ray"]))


if __name__ == "__main__":
    wanted, *args = sys.argv[1:] or ["speed"]
    {"speed": speed, "linear": linear, "memory": memory, "ray": ray}[wanted](*args)
    print(f"(this process: {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6:.2f} GB at most)", file=sys.stderr)
