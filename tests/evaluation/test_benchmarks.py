"""Gold answers score 1 and others 0, in plain lm-eval too, and the text of GPQA is never in the open."""
import json
import logging
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
from conftest import environment

from smoltraces.evaluation import benchmarks
from smoltraces.evaluation.benchmarks import (
    BENCHMARKS,
    TASKS,
    load_benchmark,
    opened,
    prompt,
    revision_of,
    score,
    seal,
    task_config,
    unseal,
)
from smoltraces.files import write_parquet
from smoltraces.problems import corpora as sources
from smoltraces.problems.corpora import embedded_problems
from smoltraces.schema import SYSTEM, messages, problem_schema
from smoltraces.settings import BENCHMARK_NAMES, InputError
from smoltraces.students.models import embedded_student

DATA = Path(__file__).parents[3] / "shared" / "data" / "benchmarks"
real = pytest.mark.skipif(not DATA.is_dir(), reason="no real benchmarks in ../shared/data")
MATH = [("What is $\\frac{1}{2} + \\frac{1}{4}$?", "\\frac{3}{4}"),
        ("Name the point.", "\\left( 3, \\frac{\\pi}{2} \\right)"),
        ("On what day?", "\\text{Tuesday}"), ("Find the roots.", "1,-2"), ("Which interval?", "(-\\infty, 5]")]
SECRET = [("Which zorblat has the longest quibble?", ["the flumptious one", "the snarky one", "all", "2.5 quibbles"]),
          ("How heavy is a zorblat?", ["10 kg", "20 kg", "30 kg", "40 kg"]),
          ("Where do zorblats nest?", ["on moss", "in caves", "under snow", "nowhere"])]


def lines(path: Path, rows: list[dict]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def math500(path: Path, **changed) -> Path:
    return lines(path, [{"problem": q, "solution": "", "answer": a, "subject": "Algebra" if k % 2 else "Geometry",
                         "level": k, "unique_id": f"test/{k}.json"} | changed for k, (q, a) in enumerate(MATH)])


def aime24(path: Path) -> Path:
    return lines(path, [{"id": 60 + k, "problem": f"Find the number after ${k}$.", "answer": f"{k + 1:03}", "url":
                         f"https://host/2024_AIME_{'I' * (1 + k % 2)}_Problems/Problem_{k}"} for k in range(6)])


def gpqa(path: Path) -> Path:
    names = ("Correct Answer", "Incorrect Answer 1", "Incorrect Answer 2", "Incorrect Answer 3")
    rows = [{"Question": q + "\n", **dict(zip(names, c, strict=True)), "High-level domain": "Biology",
             "Subdomain": "Zorblatology"} for q, c in SECRET]
    pd.DataFrame(rows).to_csv(path, index=False)
    return path


@pytest.fixture
def specs(tmp_path) -> dict[str, str]:
    return {"math500": f"math500@{math500(tmp_path / 'math500.jsonl')}",
            "aime24": f"aime24@{aime24(tmp_path / 'aime24.jsonl')}",
            "gpqa_diamond": f"gpqa_diamond@{gpqa(tmp_path / 'gpqa_diamond.csv')}"}


def wrong(row: dict) -> str:
    return "ABCD"[("ABCD".index(row["answer"]) + 1) % 4] if row["answer_kind"] == "choice" else "987654321"


def check_gold(rows: pd.DataFrame):
    for row in rows.to_dict("records"):
        for told in (rf"\boxed{{{row['answer']}}}", f"<think>\nIs it {wrong(row)}?\n</think>\n\n"
                     rf"The answer is \boxed{{{row['answer']}}}."):
            assert score(row, [told]) == {"acc": 1.0}, (row["id"], row["answer"])
        assert score(row, [rf"\boxed{{{wrong(row)}}}"]) == {"acc": 0.0}, row["id"]


def test_gold_answers(specs):
    for spec in specs.values(): check_gold(load_benchmark(spec))


@real
@pytest.mark.parametrize("name, clusters", [("math500", 7), ("aime24", 2)])
def test_gold_answers_of_the_real(name, clusters):
    rows = load_benchmark(f"{name}@{DATA / name}.jsonl")
    assert len(rows) == BENCHMARKS[name].n and rows["id"].is_unique and rows["cluster"].nunique() == clusters
    check_gold(rows)


@pytest.mark.parametrize("response", ["", "I do not know.", "<think>\n{}", "<think>\nSo it is \\boxed{{{}}}, or",
                                      "{} </think> no"])
def test_no_answer_is_wrong(specs, response):
    "Thinking that never ended holds no answer, whatever stands in it"
    for spec in specs.values():
        for row in load_benchmark(spec).to_dict("records"):
            assert score(row, [response.format(row["answer"], row["answer"])]) == {"acc": 0.0}


def test_names_and_tasks_agree():
    assert tuple(BENCHMARKS) == BENCHMARK_NAMES
    assert {f.stem for f in TASKS.glob("*.yaml")} == {b.task for b in BENCHMARKS.values()}
    assert [b.title for b in BENCHMARKS.values() if b.sealed] == ["GPQA Diamond"]
    assert all(json.dumps(SYSTEM) in f.read_text() for f in TASKS.glob("*.yaml"))


def test_shapes(specs, tmp_path):
    rows = load_benchmark(specs["aime24"])
    assert list(rows.columns) == [*problem_schema.names, "cluster"]
    assert rows["answer"].tolist() == list("123456") and rows["cluster"].tolist() == ["AIME I", "AIME II"] * 3
    bare = pd.read_json(tmp_path / "aime24.jsonl", lines=True, dtype={"answer": str})[["problem", "answer"]]
    bare.to_csv(tmp_path / "bare.csv", index=False)
    assert set(load_benchmark(f"aime24@{tmp_path / 'bare.csv'}")["cluster"]) == {"AIME"}
    assert load_benchmark(specs["math500"])["cluster"].tolist() == ["Geometry", "Algebra"] * 2 + ["Geometry"]
    assert set(load_benchmark(specs["gpqa_diamond"])["cluster"]) == {"Zorblatology"}


def test_revision(specs, tmp_path):
    "The same from any kind of file, in any order; another where a question, a choice or an answer differs"
    rows = load_benchmark(specs["math500"])
    write_parquet(tmp_path / "b.parquet", pd.read_json(tmp_path / "math500.jsonl", lines=True)[::-1])
    assert revision_of(load_benchmark(f"math500@{tmp_path / 'b.parquet'}")) == revision_of(rows)
    assert len({revision_of(rows), revision_of(rows[1:]), revision_of(rows.assign(answer="1")),
                revision_of(rows.assign(question="?"))}) == 4
    secret = load_benchmark(specs["gpqa_diamond"])
    other = [row | {"choices": [seal(c) for c in opened(row)["choices"][::-1]]} for row in secret.to_dict("records")]
    assert revision_of(pd.DataFrame(other)) != revision_of(secret)


def test_from_the_hub(specs, tmp_path, monkeypatch):
    "At the pinned commit, and equal to a local copy"
    asked = []
    monkeypatch.setattr(sources, "_download", lambda corpus: asked.append((corpus.hub, corpus.revision)) or tmp_path)
    (tmp_path / "test.jsonl").write_bytes((tmp_path / "math500.jsonl").read_bytes())
    assert revision_of(load_benchmark("math500", offline=False)) == revision_of(load_benchmark(specs["math500"]))
    assert asked == [("HuggingFaceH4/MATH-500", "ff5b20257d8185524591543f8ff5993951537bb8")]


def test_choices_are_shuffled_once(tmp_path):
    names = ("Correct Answer", "Incorrect Answer 1", "Incorrect Answer 2", "Incorrect Answer 3")
    rows = [{"Question": f"Question {k}?"} | {n: f"{n} of {k}" for n in names} for k in range(400)]
    lines(tmp_path / "a.jsonl", rows)
    lines(tmp_path / "b.jsonl", rows[200:])
    first, again = (load_benchmark(f"gpqa_diamond@{tmp_path / name}.jsonl") for name in "ab")
    assert first[200:].drop(columns="meta").reset_index(drop=True).equals(again.drop(columns="meta"))
    shares = first["answer"].value_counts()
    assert sorted(shares.index) == list("ABCD") and shares.between(70, 130).all()
    for row in map(opened, first.to_dict("records")):
        assert row["choices"]["ABCD".index(row["answer"])].startswith("Correct") and len(set(row["choices"])) == 4


def test_prompts_are_those_of_training(specs, tmp_path):
    from lm_eval.api.task import ConfigurableTask
    write_parquet(tmp_path / "problems.parquet", embedded_problems(("gcd", "countdown"), 2, 4, 4), problem_schema)
    for name in BENCHMARKS:
        rows = load_benchmark(specs.get(name, name), tmp_path / "problems.parquet")
        config = task_config(name, rows, 8)
        task = config.pop("class", ConfigurableTask)(config=config)
        for row, doc in zip(rows.to_dict("records"), task.test_docs(), strict=True):
            wanted = messages({**opened(row), "trace": None, "response": ""})[:2]
            assert prompt(row) == wanted
            assert json.loads(task.fewshot_context(doc, 0, apply_chat_template=True, chat_template=lambda turns, **_:
                                                   json.dumps(turns))) == wanted


@pytest.mark.parametrize("change, message", [
    (lambda f: math500(f, answer=None), "row 1, has no 'answer'"),
    (lambda f: math500(f, answer=" "), "row 1, has no 'answer'"),
    (lambda f: math500(f, problem="Same"), "row 2, asks what math500.jsonl, row 1, asks"),
    (lambda f: lines(f, [{"question": "What?", "answer": "1"}]), "row 1, has no column 'problem'"),
    (lambda f: lines(f, []), "holds no problem of math500"),
    (lambda f: f.write_text("{broken") and f, "row 1, is not a JSON object"),
    (lambda f: f, "math500.jsonl of math500 is missing")])
def test_bad_files(tmp_path, change, message):
    file = change(tmp_path / "math500.jsonl")
    with pytest.raises(InputError, match=message) as caught: load_benchmark(f"math500@{file}")
    assert "\n" not in str(caught.value) and str(tmp_path) not in str(caught.value)


def test_bad_names(tmp_path):
    for name in ("math500", "aime24", "gpqa_diamond"):
        with pytest.raises(InputError, match=f"offline = true.*{name}@PATH"): load_benchmark(name)
    with pytest.raises(InputError, match="did you mean math500"): load_benchmark("math50")
    with pytest.raises(InputError, match="nothing.parquet is missing"):
        load_benchmark("embedded", tmp_path / "nothing.parquet")
    lines(tmp_path / "aime.jsonl", [{"problem": "What?", "answer": "about three"}])
    with pytest.raises(InputError, match="row 1, cannot be read"): load_benchmark(f"aime24@{tmp_path / 'aime.jsonl'}")


def plain(text: str) -> list[str]:
    "What of the secret questions and choices stands in a text"
    return [word for word in ("zorblat", "quibble", "flumptious", "snarky") if word in text.lower()]


def test_gpqa_is_sealed(specs, tmp_path, caplog):
    rows = load_benchmark(specs["gpqa_diamond"])
    assert plain(prompt(rows.iloc[1])[1]["content"]) == ["zorblat"]
    assert plain(rows.drop(columns=["source", "cluster"]).to_json()) == []
    config = task_config("gpqa_diamond", rows, 8)
    assert plain(str(config["custom_dataset"]()["test"].to_list()).replace("Zorblatology", "")) == []
    text = "The zorblat\n" * 1000
    assert plain(seal(text)) == [] and unseal(seal(text)) == text and unseal(text) == text
    headless = tmp_path / "headless.csv"
    headless.write_text("\n".join(gpqa(tmp_path / "g.csv").read_text().splitlines()[2:]))
    half = lines(tmp_path / "half.jsonl", [{"Question": SECRET[0][0], "Correct Answer": "all"}])
    twice = tmp_path / "twice.csv"
    table = pd.read_csv(gpqa(tmp_path / "g.csv"))
    pd.concat([table, table]).to_csv(twice, index=False)
    for file in (headless, half, twice):
        with pytest.raises(InputError) as caught: load_benchmark(f"gpqa_diamond@{file}")
        assert plain(str(caught.value)) == []
    assert plain(caplog.text) == []


@pytest.mark.slow
def test_plain_lm_eval(specs, tmp_path):
    "From the command line, its own log and cache on: GPQA is in none of them, nor in what is printed"
    files = {name: spec.partition("@")[2] for name, spec in specs.items()}
    done = subprocess.run(
        [Path(sys.executable).parent / "lm_eval", "run", "--model", "hf", "--device", "cpu", "--apply_chat_template",
         "--model_args", f"pretrained={embedded_student('embedded/random-llama')}", "--gen_kwargs", "max_gen_toks=6",
         "--include_path", TASKS, "--tasks", "smoltraces_math500,smoltraces_gpqa_diamond", "--metadata",
         json.dumps(files), "--output_path", "out", "--log_samples", "--cache_requests", "true"],
        capture_output=True, text=True, cwd=tmp_path, env=environment(
            HF_HUB_OFFLINE="1", OMP_NUM_THREADS="1", HF_HOME=str(tmp_path / "hub"),
            LM_HARNESS_CACHE_PATH=str(tmp_path / "requests")))
    assert done.returncode == 0, done.stderr[-2000:]
    results = json.loads(next((tmp_path / "out").rglob("results_*.json")).read_text())["results"]
    open_, sealed = ([*map(json.loads, next((tmp_path / "out").rglob(f"samples_smoltraces_{name}_*.jsonl")).read_text()
                           .splitlines())] for name in ("math500", "gpqa_diamond"))
    assert results["smoltraces_math500"]["acc,none"] == sum(s["acc"] for s in open_) / 5 and len(open_) == 5
    asked = open_[0]["arguments"]["gen_args_0"]["arg_0"]
    assert MATH[0][0] in asked and SYSTEM in asked
    assert len(sealed) == 3 and all(unseal(s["resps"][0][0]) != s["resps"][0][0] for s in sealed)
    assert plain(done.stdout + done.stderr) == []
    assert len(list((tmp_path / "requests").iterdir())) == 1 # MATH500's
    written = [f for f in tmp_path.rglob("*") if f.is_file() and f.name != "gpqa_diamond.csv"]
    for file in written: assert plain(file.read_bytes().decode(errors="replace").replace("Zorblatology", "")) == []


def test_scores_of_the_harness(specs):
    "The harness's own accuracy is 1 where a model returns the gold answers, 0 where it returns others"
    from lm_eval import simple_evaluate
    from lm_eval.api.model import LM
    from lm_eval.tasks import TaskManager
    logging.getLogger("lm_eval").setLevel(logging.ERROR)

    class Knows(LM):
        def generate_until(self, requests, **_):
            return [next(v for q, v in told if q in request.args[0]) for request in requests]
        def loglikelihood(self, requests, **_): raise NotImplementedError
        def loglikelihood_rolling(self, requests, **_): raise NotImplementedError

    for name, spec in specs.items():
        rows = load_benchmark(spec)
        for answer, acc in ((lambda row: row["answer"], 1), (wrong, 0)):
            told = [(opened(row)["question"], rf"\boxed{{{answer(row)}}}") for row in rows.to_dict("records")]
            found = simple_evaluate(Knows(), tasks=[task_config(name, rows, 8)], bootstrap_iters=0,
                                    task_manager=TaskManager(include_defaults=False))
            assert found["results"][BENCHMARKS[name].task]["acc,none"] == acc
    assert benchmarks.SealedTask.__name__ == "SealedTask"
