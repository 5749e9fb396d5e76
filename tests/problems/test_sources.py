"""Rows of the five corpora, and of files of one's own, become problems or the reason why not."""
import base64
import json
import os
import pickle
import zlib
from pathlib import Path

import pandas as pd
import pytest
from conftest import ROOT

from smoltraces.files import read_json, read_parquet, sha256, write_parquet
from smoltraces.problems import corpora, mapping, selection
from smoltraces.problems.corpora import CORPORA, embedded_problems, parse, read_rows, rows
from smoltraces.problems.selection import build_problems, gather, quotas, read_corpus, surplus
from smoltraces.schema import Problem, question_id
from smoltraces.settings import InputError, load_settings

DATA = ROOT.parent / "shared" / "data"
real = pytest.mark.skipif(not DATA.is_dir(), reason="no real rows in ../shared/data")
PLACE = {"__file__": "rows", "__row__": 1}
TESTS = [{"input": "2 3\n", "output": "5\n", "testtype": "stdin"}]


def pack(plain: bytes) -> str: return base64.b64encode(zlib.compress(plain)).decode()


def lines(file: Path, data: list[dict]) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("".join(json.dumps(row) + "\n" for row in data), encoding="utf-8")
    return file


def olympic(**other) -> dict:
    return {"problem": "A body falls for 3 s. How fast is it?", "answer": ["29.4"], "answer_type": "NV",
            "unit": ["m/s"], "test_cases": None, "figure_urls": None, "subject": "Physics", "language": "EN",
            "modality": "text-only", **PLACE} | other


def live(**other) -> dict:
    return {"question_content": "Print the sum of two numbers.", "platform": "atcoder", "starter_code": "",
            "public_test_cases": json.dumps(TESTS), "private_test_cases": pack(pickle.dumps(json.dumps(TESTS))),
            "metadata": "{}", "question_title": "Sum", "difficulty": "easy", "contest_date": "2024-01-01T00:00:00",
            **PLACE} | other


@pytest.mark.parametrize("row, expected", [
    (olympic(), ("science", "math", "29.4", None)),
    (olympic(answer_type="SET", answer=["1", "2"], unit=[None], subject="Math"), ("math", "math", r"\{1, 2\}", None)),
    (olympic(answer_type="EX", answer=["$x^2$"], unit=None), ("science", "math", "x^2", None)),
    (olympic(answer_type="TF", answer=["False"], unit=None), ("science", "choice", "B", ["True", "False"])),
    (olympic(answer_type="MC", answer=["C", "A"], unit=None, problem="Which are noble?\nA) neon\nB) iron\nC) argon"),
     ("science", "choice", "AC", ["neon", "iron", "argon"])),
])
def test_olympic_arena(row, expected):
    problem = mapping.olympic_arena(row)
    assert (problem.domain, problem.answer_kind, problem.answer, problem.choices) == expected
    assert problem.source == f"olympic-arena/{row['subject']}" and problem.id == question_id(problem.question)
    if row["unit"] == ["m/s"]: assert problem.question.endswith("Give the answer in m/s.")


@pytest.mark.parametrize("cases", [{"input": ["2 3\n", "1 1\n"], "output": ["5\n", "2\n"]},
                                   [{"input": "2 3\n", "output": "5\n"}, {"input": "1 1\n", "output": "2\n"}]])
def test_olympic_arena_code(cases):
    problem = mapping.olympic_arena(olympic(answer_type="CODE", subject="CS", answer=None, unit=None, test_cases=cases))
    assert (problem.domain, problem.answer_kind, problem.answer) == ("code", "code", "")
    assert problem.details["tests"] == [{"input": "2 3\n", "output": "5\n", "kind": "stdin"},
                                        {"input": "1 1\n", "output": "2\n", "kind": "stdin"}]


@pytest.mark.parametrize("make, row, reason", [
    ("olympic_arena", olympic(language="ZH"), "not English"),
    ("olympic_arena", olympic(modality="multi-modal"), "needs a picture"),
    ("olympic_arena", olympic(figure_urls=["https://example.org/1"]), "needs a picture"),
    ("olympic_arena", olympic(answer_type="OT"), "answer type"),
    ("olympic_arena", olympic(answer_type="MPV"), "several parts"),
    ("olympic_arena", olympic(answer_type="MA"), "several parts"),
    ("olympic_arena", olympic(answer=None), "no answer"),
    ("olympic_arena", olympic(answer_type="SC", answer=["A"]), "choices not found"),
    ("olympic_arena", olympic(answer_type="CODE", test_cases=[]), "no tests"),
    ("agieval", {"question": "What is it?", "options": ["(A)1", "(B)2"], "label": "E"} | PLACE, "no answer"),
    ("agieval", {"question": "What is it?", "options": None, "answer": None} | PLACE, "no answer"),
    ("agieval", {"question": "What supports the answer to the previous question?", "options": ["(A)1", "(B)2"],
                 "label": "A"} | PLACE, "needs another question"),
    ("agieval", {"question": "What does he mean?", "options": ["(A)1", "(B)2"], "label": "A", "__row__": 1,
                 "__file__": "sat-en-without-passage"}, "needs its passage"),
    ("agieval", {"question": "下列哪一项正确？", "options": ["(A)1", "(B)2"], "label": "A"} | PLACE, "not English"),
    ("agieval", {"question": "", "options": ["(A)1", "(B)2"], "label": "A"} | PLACE, "no question"),
    ("numina_cot", {"problem": "Prove that 2 is even.", "solution": r"\boxed{2}"} | PLACE, "proof"),
    ("numina_cot", {"problem": "Find $x$.", "solution": "It is 2."} | PLACE, "no answer"),
    ("numina_cot", {"problem": "Find $x$.", "solution": r"It is \boxed{\frac{1}{2}"} | PLACE, "no answer"),
    ("numina_cot", {"problem": "As shown in the figure, find $x$.", "solution": r"\boxed{2}"} | PLACE,
     "needs a picture"),
    ("numina_cot", {"problem": "(1) Find $x$. (2) Find $y$.", "solution": r"\boxed{2}"} | PLACE, "several parts"),
    ("numina_15", {"problem": "Let $x = 1$.", "answer": "proof"} | PLACE, "proof"),
    ("numina_15", {"problem": "Let $x = 1$.", "answer": "2", "question_type": "proof"} | PLACE, "proof"),
    ("numina_15", {"problem": "Find $x$.", "answer": "notfound"} | PLACE, "no answer"),
    ("numina_15", {"problem": "Find $x$.", "answer": "2", "problem_is_valid": "Incomplete"} | PLACE, "incomplete"),
    ("numina_15", {"problem": "Find $x$.", "answer": "B", "question_type": "MCQ"} | PLACE, "choices not found"),
    ("omni_math", {"problem": "Find $x$.", "answer": ""} | PLACE, "no answer"),
    ("omni_math", {"problem": "Find $x$.", "answer": None} | PLACE, "no answer"),
    ("omni_math", {"problem": "Who wins?", "answer": "the first player wins whenever the sum of the piles is odd"} |
     PLACE, "answer in words"),
    ("livecodebench", live(private_test_cases="not base 64!"), "unreadable tests"),
    ("livecodebench", live(private_test_cases=pack(b"not a pickle")), "unreadable tests"),
    ("livecodebench", live(private_test_cases=pack(pickle.dumps({"input": 1}))), "unreadable tests"),
    ("livecodebench", live(public_test_cases="[", private_test_cases=None), "unreadable tests"),
    ("livecodebench", live(public_test_cases="[]", private_test_cases="[]"), "no tests"),
    ("livecodebench", live(public_test_cases=json.dumps([{**TESTS[0], "testtype": "functional"}])),
     "unreadable tests"), # no name to call
    ("livecodebench", live(public_test_cases=json.dumps([{**TESTS[0], "input": "1" * 200_000}]),
                           private_test_cases="[]"), "tests too long"),
])
def test_dropped(make, row, reason): assert getattr(mapping, make)(row) == reason


def test_agieval_joins_passage_and_strips_letters():
    problem = mapping.agieval({"passage": "Six bays hold six kinds of cargo.", "question": "Which holds grain?",
                               "options": ["(A)The first (A)", "(B) The second", "(C)C"], "label": "C", "__row__": 4,
                               "__file__": "lsat-ar"})
    assert problem.question == "Six bays hold six kinds of cargo.\n\nWhich holds grain?"
    assert (problem.choices, problem.answer, problem.domain) == (["The first (A)", "The second", "C"], "C", "logic")
    assert problem.details == {"file": "lsat-ar", "row": 4}


@pytest.mark.parametrize("question, answer, choices, right", [
    (r"Which? $\textbf{(A)}\ 1\qquad\textbf{(B)}\ \frac{1}{2}\qquad\textbf{(C)}\ 3$", r"\textbf{(B)}",
     ["1", r"$\frac{1}{2}$", "3"], "B"),
    ("Which?\nA. one\nB. two\nC. three\nD. four", "D", ["one", "two", "three", "four"], "D"),
    (r"Which? $\text{(A) }x \quad \text{(B) }y \quad \text{(C) }z \quad \text{(D) }w$", r"\text{C}",
     ["x", "y", "z", "w"], "C"),
])
def test_numina_choices(question, answer, choices, right):
    problem = mapping.numina_cot({"problem": question, "solution": f"\\boxed{{1}} no: \\boxed{{{answer}}}."} | PLACE)
    assert (problem.question, problem.choices, problem.answer) == ("Which?", choices, right)
    assert mapping.numina_15({"problem": question, "answer": answer} | PLACE).choices == choices


def test_numina_keeps_letters_that_are_no_choices():
    problem = mapping.numina_cot({"problem": "Which vertex is nearest?", "solution": r"\boxed{B}"} | PLACE)
    assert (problem.answer_kind, problem.answer, problem.choices) == ("math", "B", None)


def test_livecodebench():
    problem = mapping.livecodebench(live())
    assert (problem.domain, problem.answer_kind, problem.answer) == ("code", "code", "")
    expected = {"input": "2 3\n", "output": "5\n", "kind": "stdin"}
    details = problem.details
    assert (details["tests"], details["starter"], details["time_limit"]) == ([expected] * 2, "", 6.0)
    assert details["tests_left_out"] == 0 and details.get("function") is None
    called = json.dumps([{"input": "[1, 2]\n3", "output": "6", "testtype": "functional"}])
    details = mapping.livecodebench(live(public_test_cases=called, private_test_cases="[]", starter_code="class S: ...",
                                         metadata='{"func_name": "total"}')).details
    assert (details["function"], details["starter"]) == ("total", "class S: ...")
    assert details["tests"] == [{"input": "[1, 2]\n3", "output": "6", "kind": "functional"}]


def test_long_tests_are_left_out_and_counted():
    many = [{**TESTS[0], "input": "1" * n} for n in (60_000, 60_000, 10)]
    details = mapping.livecodebench(live(private_test_cases=pack(pickle.dumps(json.dumps(many))))).details
    assert ([len(t["input"]) for t in details["tests"]], details["tests_left_out"]) == ([4, 60_000, 10], 1)


def test_hostile_pickle_does_not_run(tmp_path):
    class Hostile:
        def __reduce__(self): return os.system, (f"touch {tmp_path}/ran",)

    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        assert mapping.livecodebench(live(private_test_cases=pack(pickle.dumps(Hostile(), protocol)))) == \
            "unreadable tests"
    for module, name in (("builtins", "eval"), ("smoltraces.files", "sha256")): # by the opcodes themselves
        plain = f"c{module}\n{name}\n(S'1'\ntR.".encode()
        with pytest.raises(ValueError, match="plain pickle"): mapping.decode_tests(pack(plain))
    assert not list(tmp_path.iterdir())


def test_bomb_is_cut_off(monkeypatch):
    monkeypatch.setattr(mapping, "_tests_bytes", 2**16)
    assert mapping.livecodebench(live(private_test_cases=pack(bytes(2**24)))) == "unreadable tests"
    assert isinstance(mapping.livecodebench(live()), Problem)


def files(folder: Path) -> dict[str, Path]:
    "The same two rows in each of the kinds of file"
    data = [{"ask": "What is $2 + 2$?", "gold": "4", "more": "ä"},
            {"ask": "What is $3 + 3$?", "gold": "6", "more": "ö"}]
    pd.DataFrame(data).to_csv(folder / "rows.csv", index=False)
    write_parquet(folder / "rows.parquet", data)
    return {"jsonl": lines(folder / "rows.jsonl", data), "csv": folder / "rows.csv", "parquet": folder / "rows.parquet"}


def test_every_kind_of_file_reads_alike(tmp_path):
    read = {kind: list(read_rows(file)) for kind, file in files(tmp_path).items()}
    assert read["jsonl"] == read["csv"] == read["parquet"]
    assert read["csv"][1] == {"ask": "What is $3 + 3$?", "gold": "6", "more": "ö", "__file__": "rows", "__row__": 2}
    assert list(next(read_rows(tmp_path / "rows.parquet", ("ask", "none?")))) == ["ask", "__file__", "__row__"]


@pytest.mark.parametrize("kind", ["jsonl", "csv", "parquet"])
def test_columns_by_name(tmp_path, kind):
    files(tmp_path)
    spec = parse(f"rows.{kind}?question=ask&answer=gold&domain=science", tmp_path)
    pool, removed, counts = read_corpus(spec, set())
    assert pool.answer.tolist() == ["4", "6"] and set(pool.domain) == {"science"} and set(pool.source) == {"rows"}
    assert (removed, counts["rows"], counts["files"]) == ([], 2, {f"rows.{kind}": sha256(tmp_path / f"rows.{kind}")})


@pytest.mark.parametrize("text, parts", [
    ("rows.csv", ["rows.csv?question=COLUMN"]),
    ("rows.csv?question=ask", ["rows.csv", "answer=COLUMN"]),
    ("rows.csv?question=ask&answer=golden", ["rows.csv", "row 1", "'golden'", "ask, gold, more"]),
    ("rows.csv?question=ask&anser=gold", ["'anser'", "did you mean answer?"]),
    ("rows.csv?question=ask&answer=gold&domain=maths", ["domain=maths", "choose from math"]),
    ("rows.jsonl?question=ask&answer=gold&choices=more", ["rows.jsonl, row 1, column 'more'", "as a list"]),
    ("omni-math@rows.jsonl", ["rows.jsonl", "row 1", "'problem'"]),
    ("omni-math@none.jsonl", ["none.jsonl", "missing"]),
    ("omni-math@notes.txt", ["notes.txt", ".jsonl"]),
    ("omni-math@empty", ["empty", ".jsonl"]),
    ("omni-maths", ["did you mean omni-math?"]),
    ("broken.jsonl?question=ask&answer=gold", ["broken.jsonl, row 2", "mend or remove"]),
    ("cut.parquet?question=ask&answer=gold", ["cut.parquet", "fetch it again"]),
    ("latin.csv?question=ask&answer=gold", ["latin.csv", "UTF-8"]),
])
def test_mistakes_are_told_in_a_sentence(tmp_path, text, parts):
    whole = files(tmp_path)
    (tmp_path / "empty").mkdir()
    (tmp_path / "notes.txt").write_text("nothing")
    (tmp_path / "broken.jsonl").write_text(whole["jsonl"].read_text().splitlines()[0] + '\n{"ask": \n')
    (tmp_path / "cut.parquet").write_bytes(whole["parquet"].read_bytes()[:200])
    (tmp_path / "latin.csv").write_bytes("ask,gold\nWas ist groß?,1\n".encode("latin-1"))
    with pytest.raises(InputError) as e:
        spec = parse(text, tmp_path)
        for row in rows(spec, offline=True): spec.corpus.problem(row)
    assert all(part in str(e.value) for part in parts), str(e.value)
    assert str(tmp_path) not in str(e.value) and "\n" not in str(e.value)


def test_offline_forbids_the_hub(monkeypatch):
    monkeypatch.setattr(corpora, "_download", lambda corpus: pytest.fail("asked the hub"))
    for name in CORPORA:
        with pytest.raises(InputError, match=f"{name}@PATH"): next(rows(parse(name), offline=True))


def test_from_the_hub(monkeypatch, tmp_path):
    import huggingface_hub
    from huggingface_hub.errors import GatedRepoError
    folder, requests = tmp_path / "0123abc", []
    lines(folder / "test.jsonl", [{"problem": "What is $1 + 1$?", "answer": "2"}])

    def snapshot(hub, **how):
        requests.append((hub, how["repo_type"], how["revision"], how["allow_patterns"]))
        return str(folder)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot)
    pool, _, counts = read_corpus(parse("omni-math"), set())
    corpus = CORPORA["omni-math"]
    assert requests == [(corpus.hub, "dataset", corpus.revision, ["test.jsonl"])] and len(corpus.revision) == 40
    assert pool.answer.tolist() == ["2"] and (counts["hub"], counts["revision"]) == (corpus.hub, "0123abc")
    with pytest.raises(InputError, match="without test2.jsonl"): read_corpus(parse("livecodebench"), set())
    for error, part in ((GatedRepoError.__new__(GatedRepoError), "HF_TOKEN"), (ConnectionError("no route"), "later")):
        def refuse(*_, error=error, **how): raise error
        monkeypatch.setattr(huggingface_hub, "snapshot_download", refuse)
        with pytest.raises(InputError, match=part): read_corpus(parse("omni-math"), set())


def test_rows_that_break_their_shape_are_counted(tmp_path):
    lines(tmp_path / "test.jsonl", [{"problem": "What is $1 + 1$?", "answer": "2"}, {"problem": 7, "answer": "2"},
                                    {"problem": "What is $1 + 2$?", "answer": ["3"]}])
    broken = json.dumps([{**TESTS[0], "output": "\ud83d"}])
    lines(tmp_path / "live.jsonl", [live(public_test_cases=broken)])
    _, _, counts = read_corpus(parse(f"livecodebench@{tmp_path / 'live.jsonl'}"), set())
    assert counts["dropped"] == {"unreadable row": 1} # half a pair of surrogates
    lines(tmp_path / "lsat-ar.jsonl", [{"question": "Which?", "options": "(A)1", "label": "A"},
                                       {"question": "Which?", "options": [1, 2], "label": "A"}])
    _, _, counts = read_corpus(parse(f"omni-math@{tmp_path / 'test.jsonl'}"), set())
    assert counts["dropped"] == {"no answer": 1, "no question": 1}
    _, _, counts = read_corpus(parse(f"agieval@{tmp_path / 'lsat-ar.jsonl'}"), set())
    assert counts["dropped"] == {"unreadable row": 2}


def small_corpora(folder: Path, n: int = 60) -> list[str]:
    "Small corpora of three kinds, with repeats"
    some = [{"problem": f"How much is {k} times {k + 3}, minus {k % 7}?", "answer": str(k * (k + 3) - k % 7),
             "source": "ab"[k % 2]} for k in range(n)]
    lines(folder / "omni" / "test.jsonl", [*some, some[0]])
    lines(folder / "live" / "test.jsonl", [live(question_content=f"Print {w} sorted words.") for w in ("two", "six")])
    write_parquet(folder / "numina" / "train-0.parquet", [
        {"problem": r["problem"].upper() + "  " if k % 5 == 0 else f"Add {k} to {k * k} and halve it.",
         "solution": f"\\boxed{{{r['answer']}}}", "source": "olympiads", "messages": []} for k, r in enumerate(some)])
    return [f"omni-math@{folder / 'omni'}", f"livecodebench@{folder / 'live'}", f"numina-math-cot@{folder / 'numina'}"]


def settings(folder: Path, **other):
    return load_settings("smoke", out=str(folder / "out"), source="corpora", corpora=small_corpora(folder),
                         **{"decontaminate": [], "n_problems": 40} | other)


def test_build_from_corpora(tmp_path):
    cfg = settings(tmp_path)
    frame = build_problems(cfg)
    train = frame[frame.split == "train"]
    assert len(train) == 40 and frame.id.is_unique
    held = embedded_problems(cfg.tasks, 0, cfg.n_test, cfg.n_hard, cfg.data_seed)
    assert frame[frame.split != "train"].reset_index(drop=True).equals(held)
    removed = read_parquet(cfg.path("problems", "removed.parquet"))
    funnel = read_json(cfg.path("problems", "funnel.json"))
    assert removed.reason.value_counts()["duplicate"] == 13 # one of its own, twelve in capitals
    for counts in funnel["corpora"]:
        assert counts["rows"] == sum(counts["dropped"].values()) + sum(counts["removed"].values()) + counts["kept"]
        assert counts["licence"] == CORPORA[counts["corpus"]].licence and counts["files"]
    assert sum(c["sampled"] for c in funnel["corpora"]) == funnel["sampled"] == 40
    assert "note" not in funnel and set(removed.columns) >= {"id", "source", "reason", "matched", "similarity", "text"}
    table = selection.funnel(cfg)
    assert table.loc["sampled", "all"] == 40 and table.loc["- duplicate", "all"] == 13
    left_out = table[table.index.str.startswith("- ")].sum()
    assert (table.loc["rows"] - left_out == table.loc["kept"]).all()
    pool, _, _ = gather([parse(text) for text in cfg.corpora])
    sample = pool[pool.id.isin(train.id)].corpus.value_counts().to_dict()
    assert sample == quotas(pool.corpus.value_counts().to_dict(), 40)


def test_build_is_the_same_every_time(tmp_path):
    cfg, names = settings(tmp_path), ("problems.parquet", "problems/removed.parquet", "problems/funnel.json")
    build_problems(cfg)
    first = [sha256(cfg.path(name)) for name in names]
    build_problems(cfg)
    assert [sha256(cfg.path(name)) for name in names] == first
    build_problems(settings(tmp_path, data_seed=1))
    assert sha256(cfg.path("problems.parquet")) != first[0]


def test_fewer_than_asked_are_all_taken(tmp_path, capsys):
    cfg = settings(tmp_path, n_problems=10_000)
    frame = build_problems(cfg)
    funnel = read_json(cfg.path("problems", "funnel.json"))
    assert (frame.split == "train").sum() == sum(c["kept"] for c in funnel["corpora"]) == funnel["sampled"]
    assert "10,000" in funnel["note"] and funnel["note"] in capsys.readouterr().out


def test_nothing_left_and_nothing_written(tmp_path):
    lines(tmp_path / "proofs.jsonl", [{"q": "Prove that 2 is even.", "a": "-"}])
    cfg = load_settings("smoke", out=str(tmp_path), source="corpora", decontaminate=[],
                        corpora=[f"{tmp_path / 'proofs.jsonl'}?question=q&answer=a"])
    with pytest.raises(InputError, match="No problem is left"): build_problems(cfg)
    assert not cfg.path("problems.parquet").exists() and not cfg.path("problems").exists()


def test_a_corpus_named_twice(tmp_path):
    with pytest.raises(InputError, match="twice"):
        build_problems(settings(tmp_path).model_copy(update={"corpora": (small_corpora(tmp_path)[0],) * 2}))


def test_embedded_problems_are_as_before(tmp_path):
    cfg = load_settings("smoke", out=str(tmp_path), source="embedded")
    expected = embedded_problems(cfg.tasks, surplus(cfg.n_train), cfg.n_test, cfg.n_hard, cfg.data_seed)
    frame = build_problems(cfg)
    assert frame.equals(expected) and frame.attrs["repeats"] == expected.attrs["repeats"]
    assert read_parquet(cfg.path("problems.parquet")).id.tolist() == expected.id.tolist()
    table = selection.funnel(cfg)
    assert table.loc["train, drawn", "all"] == surplus(cfg.n_train) and set(cfg.tasks) == set(table.columns) - {"all"}


@real
def test_real_rows_load_by_path():
    q = parse(f"omni-math@{DATA / 'corpora' / 'omni_math.jsonl'}")
    pool, _, funnel = gather([parse(f"agieval@{DATA / 'corpora' / 'agieval'}"), q,
                              parse(f"{DATA / 'benchmarks' / 'gsm8k.jsonl'}?question=question&answer=answer")])
    read = {counts["corpus"]: (counts["rows"], counts["kept"]) for counts in funnel}
    assert {name: n for name, (n, _) in read.items()} == {"agieval": 300, "omni-math": 150, "gsm8k": 200}
    assert all(kept > 0.9 * n for n, kept in read.values()), read
    assert set(pool.answer_kind) == {"math", "choice"} and set(pool.domain) == {"math", "logic"}
    choice = pool[pool.answer_kind == "choice"]
    assert all(a in "ABCDE"[:len(c)] for a, c in zip(choice.answer, choice.choices, strict=True))
    assert not any(c.startswith("(") and c[2:3] == ")" for cs in choice.choices for c in cs)
    gsm = pool[pool.source == "gsm8k"]
    assert gsm.answer.str.replace(",", "").str.fullmatch(r"\s*-?\d+(\.\d+)?").all()
