"""Measure verification, each figure beside its limit or a baseline: python tests/benchmarks/answers.py [verify] …

verify   500 answers to MATH500 by `Verifier`, its start included (limit 5 s), as a ratio of math-verify alone, one
         after another in a process that has it loaded: as written, written differently, and another row's answer
pairs    every gold answer of MATH500 against every other row's: none that differs in value verifies
sandbox  a program in a sandbox, and one with twenty tests, as a ratio of a bare interpreter that runs the same
faults   answers that nothing can work out: how long the batch around them takes
"""
import json
import logging
import os
import re
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import median

sys.path[:0] = [str(Path(__file__).parents[1]), str(Path(__file__).parents[1] / "problems")]
from test_answers import golds, problem, same, value  # noqa: E402

from smoltraces.problems import sandbox  # noqa: E402
from smoltraces.problems.answers import Verifier  # noqa: E402
from smoltraces.problems.equality import Workers  # noqa: E402


def show(what: str, took: float, limit: float | None = None, ratio: tuple[float, str] | None = None, note: str = ""):
    print(f"{what:<42}{took:9.3f} s" + (f"   limit {limit:g} s" if limit else "")
          + (f"   {ratio[0]:.2f} × {ratio[1]}" if ratio else "") + (f"   {note}" if note else ""), flush=True)


def seconds(work) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def differently(gold: str) -> str:
    "The same answer in other notation"
    changes = {r"\\d?frac": r"\\tfrac", r"(?<!\\left)([(\[])": r"\\left\1", r"(?<!\\right)([)\]])": r"\\right\1",
               r"\^\\circ": r" \\text{ degrees}", "pmatrix": "bmatrix", r"^(\d+)$": r"\1.0"}
    for old, new in changes.items(): gold = re.sub(old, new, gold)
    return gold


def verify():
    import math_verify
    logging.getLogger("math_verify").setLevel(logging.CRITICAL)

    def alone(gold, response):
        return math_verify.verify(math_verify.parse(f"\\boxed{{{gold}}}"), math_verify.parse(response))

    gold = golds()
    said = {"as written": gold, "written differently": [differently(g) for g in gold],
            "of another row": gold[1:] + gold[:1]}
    alone("1/2", "0.5") # loads it
    for what, answers in said.items():
        pairs = [(g, f"So the answer is $\\boxed{{{a}}}$.") for g, a in zip(gold, answers, strict=True)]
        start = time.perf_counter()
        theirs = sum(alone(*pair) for pair in pairs)
        between = time.perf_counter()
        with Verifier() as verifier: ours = sum(verifier.verify_all((problem(g), r) for g, r in pairs))
        took = time.perf_counter() - between
        show(f"500 answers, {what}", took, 5, (took / (between - start), "math-verify alone"),
             f"{ours} right, by math-verify {theirs}")


def pairs():
    distinct = list(dict.fromkeys(golds()))
    values = {g: value(g) for g in distinct}
    todo = [(a, b) for a in distinct for b in distinct if a != b]
    workers = Workers(os.cpu_count(), seconds=60)
    start = time.perf_counter()
    with ThreadPoolExecutor(os.cpu_count()) as threads: equal = list(threads.map(lambda p: workers.equal(*p), todo))
    show(f"{len(todo):,} pairs of different text", time.perf_counter() - start)
    workers.close()
    agree = [same(values[a], values[b]) for a, b in todo]
    print("equal in value and verify:", [p for p, e, a in zip(todo, equal, agree, strict=True) if e and a])
    print("differ in value but verify:", [p for p, e, a in zip(todo, equal, agree, strict=True) if e and not a])
    print("equal in value but do not verify:", [p for p, e, a in zip(todo, equal, agree, strict=True) if a and not e])


def sandbox_():
    code, inputs = "print(sum(map(int, input().split())))", ["3 4"] * 20
    command = [sys.executable, "-ISc", code]
    def bare(): return subprocess.run(command, input="3 4", text=True, capture_output=True)
    base = median(seconds(bare) for _ in range(15))
    show("bare interpreter", base)
    one = median(seconds(lambda: sandbox.run(code, "3 4")) for _ in range(15))
    many = median(seconds(lambda: [sandbox.run(code, text) for text in inputs]) for _ in range(5))
    show("one run", one, 0.1, (one / base, "bare"))
    show("a problem with 20 tests", many, 2, (many / 20 / base, "bare, each"))


def faults():
    hard = [(problem("3"), f"\\boxed{{{junk}}}")
            for junk in ("9^{9^{9^{9}}}", "10^{10^{10}}!", "\\binom{10^9}{10^8}", "x" * 10**6)]
    easy = [(problem(str(n)), rf"\boxed{{\sqrt{{{n * n}}}}}") for n in range(200)]
    with Verifier(seconds=5) as verifier:
        verifier.verify_all(easy[:8])
        plain = seconds(lambda: verifier.verify_all(easy))
        show("200 answers", plain)
        mixed = seconds(lambda: verifier.verify_all(easy[:100] + hard * 2 + easy[100:]))
        show("… with 8 that cannot be worked out", mixed, note=f"{json.dumps(verifier.verify_all(hard))}")


if __name__ == "__main__":
    measures = {"verify": verify, "pairs": pairs, "sandbox": sandbox_, "faults": faults}
    for name in sys.argv[1:] or measures:
        if name not in measures: sys.exit(f"Unknown measure {name!r}: choose from {', '.join(measures)}.")
        measures[name]()
