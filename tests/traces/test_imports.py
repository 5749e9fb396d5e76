"""Published traces: rows in the columns of the public sets become ST rows, each of them verified here."""
import json
import subprocess
import sys
from functools import partial
from pathlib import Path

import pandas as pd
import pyarrow.parquet as pq
import pytest
from conftest import ROOT

import smoltraces.traces.published as module
from smoltraces.problems.answers import Verifier
from smoltraces.schema import question_id, trace_schema
from smoltraces.settings import InputError
from smoltraces.traces.published import TRACE_SETS, published_traces

SHARED = ROOT.parent / "shared" / "data"
THOUGHTS = ("<|begin_of_thought|>\n\n{}\n\n<|end_of_thought|>\n\n<|begin_of_solution|>\n\n{}\n\n<|end_of_solution|>")


@pytest.fixture(scope="module")
def import_traces():
    "The function, with one verifier for all tests"
    with Verifier() as verifier: yield partial(module.import_traces, verifier=verifier)


def output(answer, thinking="Let me add. Wait, no. Yes.") -> str:
    return f"<think>\n{thinking}\n</think>\n\nThe answer is $\\boxed{{{answer}}}$."


def openr1(question, answer, generations, **more) -> dict:
    n = len(generations)
    return {"problem": question, "answer": answer, "solution": "…", "problem_type": "Algebra", "uuid": "u",
            "messages": [], "question_type": "math-word-problem", "source": "cn_k12",
            "generations": generations, "is_reasoning_complete": [True] * n, "correctness_math_verify": [True] * n,
            "correctness_llama": None, "finish_reasons": None, "correctness_count": n, **more}


def save(path: Path, rows: list[dict]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pd.DataFrame(rows).to_parquet(path)
    return path


def test_openr1(tmp_path, import_traces):
    save(tmp_path / "r1" / "data" / "train-00000-of-00010.parquet", [
        openr1("What is 2 + 3?", "5", [output(6), output(5)]),
        openr1("What is 2 + 4?", "6", [output(7), output(6)], correctness_math_verify=[False, True]),
        openr1("What is 2 + 5?", "7", [output(7)], is_reasoning_complete=[False]),
        openr1("What is 2 + 6?", "8", [output(8)], finish_reasons=["length"]),
        openr1("What is 2 + 7?", "9", [output(1)]),
        openr1("What is 2 + 8?", "10", ["<think>\nso 10"]),
        openr1("What is 2 + 9?", "11", ["<think>\nso 11\n</think>\n\nEleven, 11."]),
        openr1("Prove that 2 is prime.", "proof", [output(2)], question_type="proof"),
        openr1("What is 2 + 10?", "12", ["It is \\boxed{12}."]),
        openr1("What is  2 + 3?", "5", [output(5)])])
    told = import_traces(f"openr1-math-220k@{tmp_path / 'r1'}", tmp_path / "st.parquet")
    assert (told.read, told.kept, told.licence) == (10, 2, "Apache-2.0")
    assert told.dropped == {"marked incomplete": 1, "cut off": 2, "answer is wrong": 1, "no answer": 1, "proof": 1,
                            "no thinking": 1, "the same problem again": 1}
    table = pq.read_table(tmp_path / "st.parquet")
    assert table.schema.equals(trace_schema)
    first = table.to_pylist()[0]
    assert first["trace"] == "Let me add. Wait, no. Yes." and first["response"] == "The answer is $\\boxed{5}$."
    assert first["id"] == question_id("What is 2 + 3?") and first["variant"] == "ST" and first["correct"]
    assert first["teacher"] == "deepseek-ai/DeepSeek-R1" and first["source"] == "openr1-math-220k/cn_k12"


def test_openthoughts_with_its_metadata(tmp_path, import_traces):
    row = dict(starter_code=None, test_cases=None, source="numina_math", domain="math", ground_truth_solution=None)
    tests = json.dumps({"inputs": ["1 2\n", ["3 4"]], "outputs": ["3\n", ["7"]]})
    program = "```python\na, b = map(int, input().split())\nprint(a {} b)\n```"
    rows = [row | dict(problem="What is 7 times 6?", deepseek_reasoning="7 · 6", deepseek_solution=r"It is \boxed{42}.",
                       ground_truth_solution=r"Multiply: $\boxed{42}$."),
            row | dict(problem="Riddle me this.", domain="puzzle", deepseek_reasoning="Hm.",
                       deepseek_solution="A towel."),
            row | dict(problem="Add two numbers that are read from one line.", domain="code", test_cases=tests,
                       deepseek_reasoning="Read, add.", deepseek_solution=program.format("+")),
            row | dict(problem="Add two whole numbers, read from a line.", domain="code", test_cases=tests,
                       deepseek_reasoning="Read, subtract.", deepseek_solution=program.format("-")),
            row | dict(problem="Code without tests.", domain="code", test_cases="{}", deepseek_reasoning="x",
                       deepseek_solution="x"),
            row | dict(problem="Broken tests.", domain="code", test_cases="[1", deepseek_reasoning="x",
                       deepseek_solution="x")]
    save(tmp_path / "metadata" / "train-00000-of-00012.parquet", rows)
    told = import_traces(f"openthoughts-114k@{tmp_path}")
    assert list(told.table.domain) == ["math", "code"] and told.table.correct.all()
    assert told.dropped == {"no answer to verify": 1, "answer is wrong": 1, "no tests": 1, "unreadable tests": 1}


def test_openthoughts_conversations_serve_known_problems(tmp_path, import_traces):
    question = "What is 7 times 6?"
    asked = "Return your final response within \\boxed{}. " + question
    save(tmp_path / "train-0.parquet", [
        {"system": "Think.", "conversations": [{"from": "user", "value": asked}, {
            "from": "assistant", "value": THOUGHTS.format("7 · 6…", r"\boxed{42}")}]},
        {"system": "Think.", "conversations": [{"from": "user", "value": "Else?"}, {
            "from": "assistant", "value": THOUGHTS.format("x", r"\boxed{1}")}]}])
    found = list(published_traces([f"openthoughts-114k@{tmp_path}"], [question_id(question)]))
    assert found == [(question_id(question), "7 · 6…", r"\boxed{42}", "deepseek-ai/DeepSeek-R1")]
    assert import_traces(f"openthoughts-114k@{tmp_path}").dropped == {"no answer to verify": 2}


def test_s1k(tmp_path, import_traces):
    row = dict(cot_type="math", source_type="qq8933/AIME_1983_2024", deepseek_grade="Yes", metadata="{}",
               deepseek_thinking_trajectory="Let me think.")
    choices = "Which is prime?\nA. 4\nB. 5\nC. 6\nD. 8"
    rows = [row | dict(question="Find 100 + 28.", solution="128", deepseek_attempt=r"It is \boxed{128}."),
            row | dict(question="Find 100 + 29.", solution="Add.\nSo it is $\\boxed{129}$.",
                       deepseek_attempt=r"It is \boxed{129}."),
            row | dict(question=choices, solution="B", cot_type="science", deepseek_attempt=r"\boxed{B}"),
            row | dict(question="Find 100 + 30.", solution="Take 100.\nAdd 30.", deepseek_attempt=r"\boxed{130}"),
            row | dict(question="Seven letters?", solution="LANTERN", cot_type="crossword", deepseek_attempt="LANTERN"),
            row | dict(question="Find 100 + 31.", solution="131", deepseek_attempt=None)]
    save(tmp_path / "train-00000-of-00001.parquet", rows)
    told = import_traces(f"s1k-1.1@{tmp_path}")
    assert list(told.table.answer) == ["128", "129", "B"] and list(told.table.choices)[2] == ["4", "5", "6", "8"]
    assert told.dropped == {"no answer": 1, "no answer to verify": 1, "cut off": 1}


@pytest.mark.parametrize("suffix", ["jsonl", "csv", "parquet"])
def test_any_file_by_its_columns(tmp_path, suffix, import_traces):
    rows = pd.DataFrame({"q": ["What is 1 + 1?", "What is 1 + 2?"], "a": ["2", "3"], "t": ["one more", "two more"],
                         "r": [r"\boxed{2}", r"\boxed{4}"], "m": ["qwq", "qwq"], "both": [output(2), output(3)]})
    file = tmp_path / f"mine.{suffix}"
    if suffix == "jsonl": rows.to_json(file, orient="records", lines=True)
    elif suffix == "csv": rows.to_csv(file, index=False)
    else: rows.to_parquet(file)
    told = import_traces(f"mine.{suffix}?question=q&answer=a&trace=t&response=r&teacher=m", root=tmp_path)
    assert told.table[["trace", "response", "teacher"]].values.tolist() == [["one more", r"\boxed{2}", "qwq"]]
    assert told.dropped == {"answer is wrong": 1}
    assert import_traces(f"mine.{suffix}?question=q&answer=a&response=both", root=tmp_path).kept == 2
    assert import_traces(f"mine.{suffix}?question=q&answer=a&trace=both", root=tmp_path).kept == 2
    assert import_traces(f"mine.{suffix}?question=q&answer=a&response=both", root=tmp_path, limit=1).kept == 1


def test_bad_input_is_named_and_nothing_is_half_written(tmp_path, import_traces):
    (tmp_path / "mine.jsonl").write_text('{"q": "What is 1 + 1?", "a": "2", "r": "x"}\n{"q": 1\n')
    out = tmp_path / "out.parquet"
    for spec, says in [("mine.jsonl?question=q&answer=a&response=r", "row 2"),
                       ("mine.jsonl?question=q&answer=a&response=text", "'text'"),
                       ("mine.jsonl?question=q&answer=a", "holds no traces"),
                       ("omni-math@mine.jsonl", "holds no traces"), ("openr1-math@mine.jsonl", "did you mean"),
                       ("s1k-1.1", "offline"), ("s1k-1.1@none", "missing")]:
        with pytest.raises(InputError, match=says): import_traces(spec, out, offline=True, root=tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["mine.jsonl"]


def test_rows_of_the_wrong_shape_are_counted_not_fatal(tmp_path, import_traces):
    (tmp_path / "a.jsonl").write_text("\n".join(json.dumps(row) for row in [
        openr1("What is 2 + 3?", "5", [None, output(5)]), openr1("What is 2 + 4?", "6", None or []),
        openr1("What is 2 + 5?", 7, [output(7)]), openr1(None, "8", [output(8)]),
        openr1("What is 2 + 6?", "8", output(8)), openr1("What is 2 + 7?", "9", [["x"]])]))
    told = import_traces(f"openr1-math-220k@{tmp_path / 'a.jsonl'}")
    assert told.read == 6 and told.kept == 1 and sum(told.dropped.values()) == 5


def test_published_traces_stream_in_order_of_preference(tmp_path):
    save(tmp_path / "a" / "train-00000-of-00010.parquet", [
        openr1(f"What is {k} + 1?", str(k + 1), [output(0, "wrong"), output(k + 1, "right")],
               correctness_math_verify=[False, True]) for k in range(50)])
    ids = {question_id(f"What is {k} + 1?") for k in (3, 41)}
    specs = ["omni-math", *[f"openr1-math-220k@{tmp_path / 'a'}"] * 2]
    found = list(published_traces(specs, ids, offline=True))
    assert [t for _, t, _, _ in found] == ["right", "wrong"] * 4 and {i for i, *_ in found} == ids
    with pytest.raises(InputError, match="No published traces"): next(published_traces(["omni-math"], ids))


def test_memory_stays_bounded(tmp_path):
    thinking = "Let me add the two numbers. Wait, let me check that again. " * 400  # 24 KB, a usual length of R1's
    batch = [openr1(f"What is {k} + 1?", str(k + 1), [output(k + 1, thinking)]) for k in range(100)]
    with open(tmp_path / "big.jsonl", "w") as f:
        for start in range(0, 2500, 100):
            for k, row in enumerate(batch, start):
                f.write(json.dumps(row | {"problem": f"What is {k} + 1?", "answer": str(k + 1),
                                          "generations": [output(0, thinking)]}) + "\n")
    code = ("import resource, sys; import smoltraces.traces.published as m\n"
            "from smoltraces.traces.published import import_traces\n"
            "from concurrent.futures import Future\n"
            "class Verifier(m.Verifier):\n"  # verifying is timed elsewhere
            "    def submit(self, *a, **k): f = Future(); f.set_result(True); return f\n"
            "m.Verifier = Verifier\n"
            "import pyarrow.parquet\n"
            "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
            "told = import_traces('openr1-math-220k@' + sys.argv[1], sys.argv[2])\n"
            "print(told.kept, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)")
    run = subprocess.run([sys.executable, "-c", code, tmp_path / "big.jsonl", tmp_path / "st.parquet"], text=True,
                         capture_output=True, check=True)
    kept, grown = map(int, run.stdout.split())
    assert kept == 2500 and grown < 50_000, grown  # KB; the file holds 60 MB of text
    assert (tmp_path / "big.jsonl").stat().st_size > 55e6


@pytest.mark.skipif(not (SHARED / "benchmarks").is_dir(), reason="the shared data are not on this machine")
def test_real_problems_of_math500(tmp_path, import_traces):
    lines = (SHARED / "benchmarks" / "math500.jsonl").read_text().splitlines()[:120]
    rows = [json.loads(line) for line in lines]
    save(tmp_path / "train-00000-of-00010.parquet", [
        openr1(r["problem"], r["answer"], [output(r["answer"]), "<think>\n…"]) for r in rows])
    told = import_traces(f"openr1-math-220k@{tmp_path}")
    assert told.kept + sum(told.dropped.values()) == 120 and told.kept >= 100, told.dropped
    assert "answer is wrong" not in told.dropped and "no answer" not in told.dropped, told.dropped


def test_every_set_says_where_it_is_and_under_which_licence():
    for name, corpus in TRACE_SETS.items():
        assert corpus.name == name and corpus.licence and corpus.hub and corpus.files and corpus.about
