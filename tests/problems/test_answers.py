"""Verifying final answers: every notation of the corpora, hostile input, choices, programs, workers."""
import asyncio
import cmath
import json
import multiprocessing
import os
import random
import re
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest
from conftest import ROOT
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from smoltraces.problems import answers, equality, sandbox
from smoltraces.problems.answers import Verifier, extract, extract_code, final_answer, verify
from smoltraces.problems.equality import Workers
from smoltraces.schema import Problem
from smoltraces.settings import InputError

DATA = ROOT.parent / "shared" / "data"
real = pytest.mark.skipif(not DATA.exists(), reason="needs ../shared/data")
fenced = "Add them:\n```python\n{}\n```\nThat is all.".format


def problem(answer="", kind="math", choices=None, **details) -> Problem:
    return Problem("0" * 16, "test", "math", "?", choices, answer, kind, json.dumps(details), "train")


def rows(name: str) -> list[dict]: return [json.loads(line) for line in open(DATA / name, encoding="utf-8")]


def golds() -> list[str]: return [row["answer"] for row in rows("benchmarks/math500.jsonl")]


@pytest.fixture(scope="module")
def verifier():
    with Verifier(2, seconds=5) as v: yield v


@pytest.fixture(scope="module")
def workers():
    shared = Workers(1, seconds=20)
    yield shared
    shared.close()


# --- an independent reading of gold answers: floats at fixed values of the variables, no sympy

def number(latex: str) -> complex:
    "The value of an expression, by Python's own arithmetic"
    text = latex.replace(" ", "")
    for pattern, plain in [(r"\\d?frac(\d)(\d)", r"\\frac{\1}{\2}"), (r"\\frac(\d)\{", r"\\frac{\1}{"),
                           (r"\\frac(\{[^{}]*\})(\d)", r"\\frac\1{\2}"), (r"\\sqrt(\d)", r"\\sqrt{\1}"),
                           (r"\\sqrt\{([^{}]*)\}", r"sqrt(\1)"), (r"^(\d+)(\\frac\{\d+\}\{\d+\})$", r"(\1+\2)"),
                           (r"\\d?frac\{([^{}]*)\}\{([^{}]*)\}", r"((\1)/(\2))"), (r"\\pi", "(3.14159265358979)"),
                           (r"\\cotx", "(3.2331)"), (r"\\infty", "(10**99)"), (r"\^\{?(\d+)\}?", r"**\1")]:
        text = re.sub(pattern, plain, text)
    tokens = re.findall(r"sqrt|\d*\.\d+|\d+|[a-zA-Z]|\*\*|[-+*/()]", text)
    assert "".join(tokens) == text, latex
    ends, begins = re.compile(r"[\d.]+|[a-zA-Z]|\)").fullmatch, re.compile(r"[\d.]+|[a-zA-Z]|\(|sqrt").fullmatch
    times = ["*" if ends(x) and begins(y) else "" for x, y in zip(tokens, tokens[1:], strict=False)] + [""]
    values = {c: 0.3 + 0.0371 * i for i, c in enumerate("abcdefghjklmnopqrstuvwxyzR")} | {"i": 1j, "sqrt": cmath.sqrt}
    return complex(eval("".join(map("".join, zip(tokens, times, strict=True))), {"__builtins__": {}}, values))


def value(gold: str):
    "What a gold answer says: text, a number in a base, or numbers in brackets; units and names before = are notation"
    text = re.sub(r",\s*\\!\s*|\\!|\\\$|\\left|\\right", lambda m: "," if m[0][0] == "," else "", gold).strip()
    if word := re.fullmatch(r"\\text\{\(?(\w+)\)?\}", text): return word[1]
    text = re.sub(r"\\(?:text|mbox)\{[^}]*\}(?:\^\d)?|\^\\circ", "", text).strip()
    if re.fullmatch(r"\d+_\{?\d\}?", text): return text.translate(str.maketrans("", "", "{}_ "))[:-1], "base", text[-2:]
    if re.fullmatch(r"\d{1,3}(,\d{3})+", text): text = text.replace(",", "")
    text = re.sub(r"^(?:[a-z]=|x \\in|[xy] =)\s*", "", text)
    if matrix := re.search(r"pmatrix\}(.*)\\end", text):
        return "matrix", tuple(number(cell) for cell in re.split(r"\\\\|&", matrix[1]))
    if "\\cup" in text: return "union", tuple(value(part) for part in text.split("\\cup"))
    if "=" in text: return "equation", number(text.split("=")[0])
    text = text.strip()
    bracketed = re.fullmatch(r"[(\[]([^()]*,[^()]*)[)\]]", text)
    brackets, inner = ((text[0], text[-1]), bracketed[1]) if bracketed else ("", text)
    parts = []
    for part in inner.replace("\\{", "").replace("\\}", "").split(","):
        parts += [part.replace("\\pm", "+"), part.replace("\\pm", "-")] if "\\pm" in part else [part]
    numbers = [number(part) for part in parts]
    if not brackets: numbers.sort(key=lambda z: (z.real, z.imag))
    return brackets, tuple(numbers)


def same(a, b) -> bool:
    if isinstance(a, complex) and isinstance(b, complex): return cmath.isclose(a, b, rel_tol=1e-9, abs_tol=1e-9)
    if isinstance(a, tuple) and isinstance(b, tuple): return len(a) == len(b) and all(map(same, a, b))
    return type(a) is type(b) and a == b


def test_the_independent_reading_reads():
    assert same(value(r"11\sqrt2"), value(r"11 \sqrt{2}")) and same(value(r"\frac 34"), value("0.75"))
    assert same(value(r"1\frac{4}{5}"), value("1.8")) and same(value("1,-2"), value("-2,1"))
    assert not same(value("(-2,1)"), value("-2,1")) and not same(value("40_9"), value("40"))
    assert not same(value("(3,4]"), value("(3,4)")) and same(value(r"10,\!080"), value("10080"))


@real
def test_gold_answers_verify_in_a_sentence(verifier):
    corpora = {"math500": golds(), "aime24": [str(row["answer"]) for row in rows("benchmarks/aime24.jsonl")],
               "gsm8k": [row["answer"].split("####")[1].strip() for row in rows("benchmarks/gsm8k.jsonl")],
               "omni_math": [row["answer"] for row in rows("corpora/omni_math.jsonl")],
               "agieval": [row["answer"] for row in rows("corpora/agieval/math.jsonl")]}
    for name, answers_ in corpora.items():
        pairs = [(problem(a), f"<think>Is it \\boxed{{0}}?</think>\n\nSo the answer is $\\boxed{{{a}}}$, as asked.")
                 for a in answers_]
        assert [a for a, right in zip(answers_, verifier.verify_all(pairs), strict=True) if not right] == [], name


@real
def test_different_answers_do_not_verify(workers):
    distinct = list(dict.fromkeys(golds()))
    hard = [g for g in distinct if not re.fullmatch(r"-?\d+", g)]
    draw, wrong, checked = random.Random("pairs"), [], 0
    for _ in range(1500):
        gold, other = draw.choice(hard), draw.choice(distinct)
        if same(value(gold), value(other)): continue
        checked += 1
        if workers.equal(gold, other): wrong.append((gold, other))
    assert checked > 1400 and wrong == []


@real
def test_choices_of_agieval():
    for name in ("aqua-rat", "logiqa-en", "lsat-ar", "sat-math"):
        for row in rows(f"corpora/agieval/{name}.jsonl"):
            choices = [re.sub(r"^\(?[A-G]\)?[.:]?\s*", "", option) for option in row["options"]]
            label, p = row["label"], problem(row["label"], "choice", choices)
            gold = choices[ord(label) - 65]
            for said in (label, f"({label})", f"\\text{{{label}}}", f"{label}. {gold}", gold, f"\\text{{{gold}}}"):
                assert verify(p, f"\\boxed{{{said}}}") == (choices.count(gold) == 1 or said != gold), (said, choices)
            for letter, text in zip("ABCDEFG", choices, strict=False):
                if letter == label or text == gold: continue
                assert not verify(p, f"\\boxed{{{letter}}}") and not verify(p, f"\\boxed{{{text}}}"), (label, choices)


# --- notation

@pytest.mark.parametrize("gold, said", [
    (r"\text{Evelyn}", "Evelyn"), ("east", r"\text{East}."), (r"\text{(C)}", "C"), (r"\text{(C)}", "(C)"),
    ("x=5", "5"), ("5", "x = 5"), (r"x \in [-2,7]", "[-2,7]"), ("58,500", "58500"), (r"10,\!080", "10080"),
    (r"\$32,\!348", r"\$32{,}348"), ("2220", r"2\,220"), ("2220", "2 220 kg"), (r"864 \mbox{ inches}^2", "864"),
    (r"864 \mbox{ inches}^2", r"864 \text{ square inches}"), (r"5.4 \text{ cents}", "5.40"), ("17", "17."),
    (r"\frac{270}7\text{ degrees}", r"\dfrac{270}{7}^\circ"), (r"90^\circ", "90"), ("90", "90°"),
    ("2", r"\text{2 hours}"),
    (r"1\frac{4}{5}", "9/5"), (r"137 \frac{1}{2}", "137.5"), ("1,-2", "-2, 1"), ("1,-2", r"-2 \text{ and } 1"),
    (r"1 \pm \sqrt{19}", r"1+\sqrt{19}, 1-\sqrt{19}"), (r"\{1\pm\sqrt{5},-2\}", r"-2, 1+\sqrt{5}, 1-\sqrt{5}"),
    ("40_9", "40_{9}"), (r"11\sqrt2", r"11√2"), (".35625", "0.35625"), ("y = 2x + 3", "2x+3"), (r"\frac 34", "0.75"),
    (r"50\%", "50%"), (r"50\%", "0.5"), ("6 - 5i", "-5i+6"), ("(a+5)(b+2)", "ab+2a+5b+10"), ("3R^2", "3 R^2"),
    (r"(0,9) \cup (9,36)", r"(9,36)\cup(0,9)"), (r"(5,\infty)", "x > 5"), (r"(5,\infty)", "(5, ∞)"), ("12π", r"12 \pi"),
    (r"\begin{pmatrix} -1/3 \\ 2/3 \end{pmatrix}", r"\begin{bmatrix} -\frac13 \\ \frac23 \end{bmatrix}"),
    (r"\left( 3, \frac{\pi}{2} \right)", r"(3, \pi/2)"), ("3:4", r"\frac{3}{4}"), (r"6.02\times 10^{23}", "6.02e23"),
    ("5x - 7y + 11z + 4 = 0", "10x-14y+22z+8=0"), ("0", "x = 0"), ("12", "12 miles"), ("1/2", r"\tfrac12"),
    ("-3", "−3"),
])
def test_written_differently(workers, gold, said): assert workers.equal(gold, said)


@pytest.mark.parametrize("gold, said", [
    ("east", "seat"), (r"\text{east}", r"\text{seat}"), ("40_9", "40"), ("52_8", "42"), ("(3,4]", "(3,4)"),
    ("-2,1", "(-2,1)"), ("(-2,1)", "-2,1"), ("p - q", "q - p"), ("10,080", "10.08"), ("5", "50"), ("5", "5, 6"),
    ("7", r"7 \text{ or } 8"), ("7", "7 or 8"), ("7", r"7 \text{ or } \text{8}"), ("1, 2", "1"), ("1, 2", "1, 2, 3"),
    (r"\frac{1}{2}", "0.6"), ("12", "twelve"), (r"\text{even}", "odd"), ("A", "B"), ("3", ""),
    (r"90^\circ", r"91^\circ"),
    ("5", r"\text{five or 5}"), ("1.5", "11/2"), ("5", "5 or six"), ("2", r"\frac{1}{2}"), ("1,234", "1, 234"),
    ("0", "5x - 7y + 11z + 4 = 0"), ("0", "x^2 + y^2 = 0"),
])
def test_something_else(workers, gold, said): assert not workers.equal(gold, said)


@pytest.mark.parametrize("response, right", [
    (r"$x = \boxed{1}$ or $x = \boxed{2}$", True), (r"\boxed{2}, \boxed{1}", True), (r"\boxed{1} and \boxed{2}.", True),
    (r"\boxed{1, 2}", True), (r"\boxed{2}", False), (r"\boxed{1} is wrong: \boxed{1, 2}", True),
    (r"\boxed{1} or \boxed{2} or \boxed{3}", False), (r"First \boxed{1}." + "\n\n" + r"\boxed{2}", False)])
def test_several_boxes(response, right): assert verify(problem("1, 2"), response) == right


def test_hedging_is_wrong():
    assert not verify(problem("7"), r"\boxed{6} or \boxed{7}")
    assert verify(problem("7"), r"\boxed{6}? No, it is \boxed{7}.") and verify(problem("7"), r"\boxed{7} $\boxed{7}$")
    assert not verify(problem("7"), r"<think>\boxed{7}") and not verify(problem("7"), "7")


# --- choices

def test_several_letters():
    p = problem("AC", "choice", ["red", "green", "blue", "white"])
    right = ["AC", "A, C", "A and C", "(A)(C)", "C, A", r"\text{A, C}", "A,C", r"\text{A and C}", "(A) and (C)",
             "A & C", r"\text{A} \text{ and } \text{C}", "Options A and C"]
    assert [verify(p, f"\\boxed{{{r}}}") for r in right] == [True] * len(right)
    wrong = ["A", "C", "ABC", "A, B, C", "AB", "red", "A, D", "CAB"]
    assert [verify(p, f"\\boxed{{{w}}}") for w in wrong] == [False] * len(wrong)


def test_choice_text_must_be_one_choice():
    p = problem("B", "choice", ["$x^2$", r"$\frac{1}{2}$", "A cat", "twice", "twice"])
    for said in ("B", "0.5", r"\frac12", "option B", "The answer is B."): assert verify(p, f"\\boxed{{{said}}}"), said
    for said in ("A", "x^2", "A cat", "twice", "B^2", "B or A", ""): assert not verify(p, f"\\boxed{{{said}}}"), said
    assert verify(replace(p, answer="C"), r"\boxed{\text{a cat}}")
    assert not verify(replace(p, answer="D"), r"\boxed{twice}")


# --- hostile input

JUNK = ["9**9**9", "9^{9^{9^{9}}}", "(" * 50_000, "{" * 10**6, "x" * 10**6, "\\frac{" * 200, "\\sqrt" * 300, "-" * 1999,
        "1," * 900, "10^{10^{10}}!", "\\int_0^1 x^{x^x} dx", "__import__('os').system('true')", "\\boxed{" * 200,
        "\x00", "((((" * 200 + "1" + "))))" * 200, "\\binom{10^9}{10^8}", "1" * 999, "\ud800",
        "\\sum_{n=1}^{10^{12}} 1/n^{s}",
        "2^{2^{2^{2^{2^{2}}}}}", "\\text{" * 100 + "}" * 100, " " * 10**6, "100000!", "a, " * 300]


def test_hostile_mathematics_is_wrong():
    with Verifier(2, seconds=0.5) as v:
        for gold in ("3", "x^2 + 1"):
            assert v.verify_all((problem(gold), f"\\boxed{{{junk}}}") for junk in JUNK) == [False] * len(JUNK)
        assert v.verify_all([(problem(r"\frac{1}{2}"), r"\boxed{0.5}")] * 9) == [True] * 9 # still at work


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.text(st.sampled_from("\\{}[]()$,.;=^_ \n`ABx19-or"), max_size=60), st.text(max_size=30))
def test_anything_is_read(a, b):
    for text in (a, b, f"\\boxed{{{a}", f"\\boxed{{{a}}} {b}", f"```\n{a}```", f"<think>{a}</think>{b}"):
        assert extract(text) is None or isinstance(extract(text), str)
        assert extract_code(text) is None or isinstance(extract_code(text), str)
        answer = final_answer(problem("1"), text)
        assert answer is None or answer in text or ", " in answer
        equality._at_once("x + 1", equality.normalize(a))


def test_the_longest_input_takes_no_time():
    for unit in ("\\boxed{", "{", "}", "```\n", "<think>", "</think>", " ", "\\text{", "\\boxed{1} ", "1,", "B, "):
        text = unit * (10**6 // len(unit))
        for p in (problem("3"), problem("A", "choice", ["red", "blue"]), problem("", "code", tests=[{}])):
            start = time.process_time()
            if p.answer_kind != "code": assert not verify(p, text) and not verify(p, f"\\boxed{{{text}}}")
            else: final_answer(p, text)
            assert time.process_time() - start < 3, (unit, p.answer_kind)


# --- workers

def test_order_threads_and_asyncio(verifier):
    pairs = [(problem(str(n)), rf"\boxed{{\sqrt{{{n * n + n % 2}}}}}") for n in range(2, 42)]
    assert verifier.verify_all(pairs) == [n % 2 == 0 for n in range(2, 42)]
    verdicts = []
    def check(): verdicts.append(verify(*pairs[0]))
    threads = [threading.Thread(target=check) for _ in range(4)]
    for thread in threads: thread.start()
    for thread in threads: thread.join()
    assert verdicts == [True] * 4
    async def wait(): return await asyncio.gather(*(asyncio.wrap_future(verifier.submit(*p)) for p in pairs[:6]))
    assert asyncio.run(wait()) == [True, False] * 3


def processes(v: Verifier) -> list[int]: return list(v._workers._pool._pool_manager.worker_manager.workers)


@pytest.mark.slow
def test_a_worker_that_is_killed_is_replaced():
    with Verifier(1, seconds=20) as v:
        pair = problem("2"), r"\boxed{\sqrt{4}}"
        assert v.verify_all([pair]) == [True]
        for number in (signal.SIGKILL, signal.SIGSEGV):
            for pid in processes(v): os.kill(pid, number)
            assert v.verify_all([pair, (problem("3"), pair[1]), pair]) == [True, False, True]


def test_closing_leaves_no_worker():
    v = Verifier(2)
    v.verify_all([(problem("2"), r"\boxed{\sqrt{4}}")] * 4)
    pids = processes(v)
    v.close()
    assert pids and not any(os.path.exists(f"/proc/{pid}") for pid in pids)


@pytest.mark.slow
def test_a_killed_caller_leaves_no_worker():
    "Neither idle ones, nor one that works on what has no end"
    code = ("import threading, time; from test_answers import problem, processes; "
            "from smoltraces.problems.answers import Verifier\n"
            "v = Verifier(2, seconds=5); v.verify_all([(problem('2'), r'\\boxed{\\sqrt{4}}')] * 4)\n"
            "v.submit(problem('3'), r'\\boxed{9^{9^{9^{9}}}}')\nprint(*processes(v), flush=True); time.sleep(600)")
    caller = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True,
                              env={**os.environ, "PYTHONPATH": ":".join([str(Path(__file__).parent), *sys.path])})
    pids = caller.stdout.readline().split()
    caller.kill()
    caller.wait()
    assert len(pids) == 2
    while any(os.path.exists(f"/proc/{pid}") for pid in pids): time.sleep(0.05)


def compare(): assert verify(problem("1/2"), r"\boxed{0.5}")


@pytest.mark.slow
def test_a_child_process_that_verified_ends():
    child = multiprocessing.get_context("spawn").Process(target=compare)
    child.start()
    child.join()
    assert child.exitcode == 0


def test_a_script_without_a_main_guard(tmp_path):
    script = tmp_path / "script.py"
    script.write_text("from smoltraces.problems.answers import verify\nfrom smoltraces.schema import Problem\n"
                      "p = Problem('', '', 'math', '', None, '1/2', 'math', '{}', 'train')\n"
                      "print(verify(p, '\\\\boxed{0.5}'))\n")
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, timeout=60)
    assert done.stdout == "True\n", done.stderr


def test_import_is_light():
    code = ("import sys, smoltraces.problems.answers\n"
            "print([m for m in ('math_verify', 'sympy', 'reasoning_gym') if m in sys.modules])")
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "[]\n"


def test_what_is_missing_is_named(monkeypatch):
    import importlib.util
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"smoltraces\[eval\]"): verify(problem("1/2"), r"\boxed{0.5}")
    with pytest.raises(InputError, match="answer_kind"): verify(problem("1", "essay"), r"\boxed{1}")
    with pytest.raises(InputError, match="without tests"): verify(problem("", "code"), fenced("print(1)"))


# --- programs

SUMS = [{"kind": "stdin", "input": f"{a} {b}\n", "output": f"{a + b}\n"} for a in range(4) for b in range(5)]
needs_sandbox = pytest.mark.skipif(sandbox.isolation() is None, reason="nothing here isolates programs")


@needs_sandbox
def test_programs(verifier):
    p = problem("", "code", tests=SUMS, function=None, time_limit=1)
    right = "print(sum(map(int, input().split())))"
    cases = {fenced(right): True, f"<think>{fenced('print(1)')}</think>{fenced(right)}": True,
             fenced(right) + "\nFor 3 4 it prints\n```\n7\n```": True, fenced("print(4)"): False, right: False,
             fenced(right + "; 1/0"): False, fenced(right)[:-22]: False, fenced("import os; os._exit(0)"): False,
             fenced("while True: pass"): False}
    assert verifier.verify_all((p, response) for response in cases) == list(cases.values())
    tests = [{"kind": "functional", "input": '["b", "a"]\n2', "output": '["a", "b"]'}]
    p = problem("", "code", tests=tests, function="order", time_limit=2)
    method = "class Solution:\n    def order(self, xs: List[str], n: int) -> List[str]: return sorted(xs)[:n]"
    assert verify(p, fenced(method)) and not verify(p, fenced(method.replace("sorted(xs)", "xs")))


def test_without_a_sandbox_programs_are_refused(monkeypatch):
    monkeypatch.setattr(sandbox, "isolation", lambda: None)
    p = problem("", "code", tests=SUMS, function=None, time_limit=2)
    with pytest.raises(InputError, match="unsafe_code = true"): verify(p, fenced("print(1)"))
    assert verify(p, fenced("print(sum(map(int, input().split())))"), unsafe=True)
    assert not verify(problem("7"), r"\boxed{8}") and answers.verify(problem("7"), r"\boxed{7}")
