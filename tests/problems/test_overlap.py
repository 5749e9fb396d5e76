"""Questions of the benchmarks, and repeats, are found however they are typeset, and GPQA's are never written out."""
import json
import random
import re
from pathlib import Path

import pandas as pd
import pytest
from conftest import ROOT

from smoltraces.files import read_json, read_parquet, write_parquet
from smoltraces.problems.selection import (
    QUESTION_SETS,
    Ngrams,
    Question,
    bands,
    build_problems,
    load_questions,
    near_duplicates,
    overlaps,
    words,
)
from smoltraces.settings import InputError, load_settings

DATA = ROOT.parent / "shared" / "data" / "benchmarks"
real = pytest.mark.skipif(not DATA.is_dir(), reason="no real benchmarks in ../shared/data")


def prose(rng: random.Random, n: int) -> list[str]:
    "n words drawn from two thousand, the early ones often"
    return [f"w{chr(97 + k // 26 // 26)}{chr(97 + k // 26 % 26)}{chr(97 + k % 26)}"
            for k in (int(2000 * rng.random() ** 3) for _ in range(n))]


def disguised(text: str, rng: random.Random) -> str:
    "The same question with a prefix, other capitals, other spacing and another look"
    text = text.replace(r"\frac", r"\dfrac").replace("$", " $ ").replace(",", ", ").replace("(", r"\left(")
    text = re.sub(r" +", lambda m: rng.choice(["  ", "\n", " "]), text.replace(")", r"\right)"))
    return "Problem 12 (5 points). " + (text if "\\" in text else text.upper())


@pytest.mark.parametrize("one, other", [
    (r"Find $\frac{a}{b}$.", r"find \( \dfrac{ a }{ b } \)"),
    (r"Is $x\,\le\,\left(3\right)$?", r"IS $x \le (3)$"),
    (r"The \textbf{largest} $\mathrm{gcd}$", "the largest gcd"),
    ("ﬁnd the ２nd digit", "find the 2nd digit"),
    ("Compute $1{,}5$. [asy]draw((0,0)--(1,1));[/asy]", "compute 1 5"),
])
def test_look_does_not_count(one, other): assert words(one) == words(other)


def test_words_tell_apart():
    assert words(r"$\sin x$") != words(r"$\cos x$") and words("2.5") == ["2.5"] and words("$$ . ?") == []


def test_overlap_needs_n_words_in_a_row():
    questions = [Question("b/1", "alpha beta gamma delta epsilon zeta eta theta iota kappa")]
    near = "alpha beta gamma delta epsilon zeta eta THEN theta iota kappa lambda"
    assert overlaps([near], questions) == {}
    match = overlaps([near], questions, n=7)[0]
    assert (match.question.id, match.shared, match.ngram) == ("b/1", 1, "alpha beta gamma delta epsilon zeta eta")
    assert overlaps([near], questions, n=7, least=2) == {}
    assert overlaps([questions[0].text], questions)[0].shared == 3
    assert overlaps([questions[0].text], questions, least=4) == {}


def test_the_question_that_shares_most_is_named():
    stem = "how many of the first hundred positive integers are"
    questions = [Question("b/1", f"{stem} odd"), Question("b/2", f"{stem} divisible by three and by seven")]
    assert overlaps([f"{stem} divisible by three and by nine"], questions)[0].question.id == "b/2"


def test_what_shares_with_a_secret_question_is_secret():
    secret, public = "one two three four five six seven eight", "two three four five six seven eight nine ten eleven"
    questions = [Question("gpqa/1", secret, True), Question("b/1", public)]
    matches = overlaps([f"one {public}", public], questions)
    assert [(matches[k].question.id, matches[k].secret) for k in (0, 1)] == [("b/1", True), ("b/1", False)]


def test_short_questions_are_compared_whole():
    questions = [Question("b/1", "Compute $\\tan 60^\\circ$."), Question("b/2", "...")]
    assert overlaps(["Problem 3. compute  \\( \\tan 60^{\\circ} \\)"], questions)[0].ngram == "compute tan 60 circ"
    assert overlaps(["Compute $\\tan 30^\\circ$.", "", "Compute"], questions) == {}


def test_known_benchmarks_are_pinned():
    assert {"math500", "aime24", "gpqa_diamond"} <= set(QUESTION_SETS)
    assert all(re.fullmatch("[0-9a-f]{40}", b.revision) for b in QUESTION_SETS.values())


@pytest.mark.parametrize("name, column", [("math500", "problem"), ("aime24", "problem"), ("gpqa_diamond", "Question"),
                                          ("my-benchmark", "prompt")])
@pytest.mark.parametrize("kind", ["jsonl", "csv", "parquet"])
def test_questions_load_by_path(tmp_path, name, column, kind):
    rows = [{column: f"What is {k} plus {k}?", "answer": str(2 * k)} for k in range(3)]
    file = tmp_path / f"test.{kind}"
    if kind == "parquet": write_parquet(file, rows)
    elif kind == "csv": pd.DataFrame(rows).to_csv(file, index=False)
    else: file.write_text("".join(json.dumps(r) + "\n" for r in rows))
    questions = load_questions(f"{name}@{file.name}", offline=True, root=tmp_path)
    assert [q.text for q in questions] == [r[column] for r in rows]
    assert [q.id for q in questions] == [f"{name}/{k}" for k in (1, 2, 3)]
    assert {q.secret for q in questions} == {"gpqa" in name}


@pytest.mark.parametrize("spec, part", [("math50", "did you mean math500?"), ("math500", "math500@PATH"),
                                        ("math500@none.jsonl", "missing"), ("math500@other.jsonl", "no column named")])
def test_mistakes_are_told(tmp_path, spec, part):
    (tmp_path / "other.jsonl").write_text('{"text": "What?"}\n')
    with pytest.raises(InputError, match=re.escape(part)): load_questions(spec, offline=True, root=tmp_path)


def test_gated_benchmark_names_the_token(monkeypatch):
    import huggingface_hub
    from huggingface_hub.errors import GatedRepoError

    def refuse(*_, **how): raise GatedRepoError.__new__(GatedRepoError)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", refuse)
    with pytest.raises(InputError, match="HF_TOKEN.*gpqa_diamond@PATH"): load_questions("gpqa_diamond")


@pytest.mark.parametrize("threshold", [0.3, 0.5, 0.8, 0.9, 1.0])
def test_bands_find_pairs_at_the_threshold(threshold):
    count, size = bands(threshold)
    assert count * size <= 128 and 1 - (1 - threshold ** size) ** count >= 0.99
    if size < 128: # one more number a band would miss more
        assert 1 - (1 - threshold ** (size + 1)) ** (128 // (size + 1)) < 0.99


def shingles(text: str) -> set:
    its = words(text)
    return {tuple(its[i:i + 3]) for i in range(max(1, len(its) - 2))}


def test_near_duplicates_are_those_of_a_plain_search():
    rng, texts = random.Random(5), []
    for k in range(700):
        its = prose(rng, rng.randint(20, 60))
        if k % 3 == 2:
            its = texts[rng.randrange(len(texts))].split()
            for _ in range(rng.randint(0, 3)): its[rng.randrange(len(its))] = prose(rng, 1)[0]
        texts.append(" ".join(its))
    sets, expected, gone = [shingles(t) for t in texts], [], set()
    for k in range(len(texts)):
        for other in range(k):
            if other in gone: continue
            similarity = len(sets[k] & sets[other]) / len(sets[k] | sets[other])
            if similarity >= 0.8:
                expected.append((k, other, round(similarity, 4)))
                gone.add(k)
                break
    repeats = [(r.index, r.kept, r.similarity) for r in near_duplicates(texts)]
    assert len(expected) > 100 and not set(repeats) - set(expected)
    assert len(repeats) >= 0.99 * len(expected)
    assert repeats == [(r.index, r.kept, r.similarity) for r in near_duplicates(texts)]


def test_same_story_other_choices_stay():
    story = " ".join(prose(random.Random(1), 80))
    texts, choices = [f"{story} which is true", f"{story} which is false"] * 2, ["a b c d", "e f g h", "a b c d", ""]
    assert [(r.index, r.kept) for r in near_duplicates(texts, 0.8)] == [(1, 0), (2, 0), (3, 0)]
    assert [(r.index, r.kept) for r in near_duplicates(texts, 0.8, choices)] == [(2, 0)]


def secrets(folder: Path) -> tuple[list[str], dict]:
    "Questions that may not be written out, a pool that holds some of them, and a run's settings"
    rng = random.Random(3)
    hidden = [" ".join([f"quark{chr(97 + k)}", *prose(rng, 30)]) + "?" for k in range(6)]
    (folder / "gpqa.csv").write_text("Question,Correct Answer\n" + "".join(f'"{q}",1\n' for q in hidden))
    public = [" ".join(["lemur", *prose(rng, 30)]) + "?" for _ in range(3)]
    (folder / "math.jsonl").write_text("".join(json.dumps({"problem": q}) + "\n" for q in public))
    own = [" ".join(prose(rng, 40)) + "?" for _ in range(50)]
    twice = [hidden[0], hidden[0].upper(), hidden[0], f"Question 9: {hidden[1]}", hidden[2].replace("?", "!")]
    rows = [{"problem": q, "answer": "1"} for q in (*own, *twice, f"Exercise. {public[0]}", own[0])]
    (folder / "test.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    return hidden, dict(out=str(folder / "out"), source="corpora", corpora=[f"omni-math@{folder / 'test.jsonl'}"],
                        decontaminate=[f"gpqa_diamond@{folder / 'gpqa.csv'}", f"math500@{folder / 'math.jsonl'}"])


def test_gpqa_is_never_written_out(tmp_path, capsys):
    hidden, chosen = secrets(tmp_path)
    cfg = load_settings("smoke", **chosen)
    frame = build_problems(cfg)
    removed = read_parquet(cfg.path("problems", "removed.parquet")).set_index("reason")
    assert removed.index.value_counts().to_dict() == {"overlaps gpqa_diamond": 5, "overlaps math500": 1, "duplicate": 1}
    secret = removed.loc[["overlaps gpqa_diamond"]]
    assert secret[["text", "ngram"]].isna().all(axis=None) and (secret.shared > 0).all()
    assert secret.matched.tolist() == [f"gpqa_diamond/{k}" for k in (1, 1, 1, 2, 3)]
    assert removed.loc["overlaps math500"].ngram and "lemur" in removed.loc["overlaps math500"].text
    shown = capsys.readouterr()
    written = shown.out + shown.err + json.dumps(read_json(cfg.path("problems", "funnel.json")))
    written += frame.to_csv() + read_parquet(cfg.path("problems", "removed.parquet")).to_csv()
    assert "lemur" in written
    runs = {" ".join(its[i:i + 4]) for q in hidden for its in [words(q)] for i in range(len(its) - 3)}
    mine = words(written)
    assert not runs & {" ".join(mine[i:i + 4]) for i in range(len(mine) - 3)} and "quark" not in written.casefold()
    assert read_json(cfg.path("problems", "funnel.json"))["benchmarks"] == {"gpqa_diamond": 6, "math500": 3}


@real
def test_every_real_question_is_found_in_disguise():
    questions = [q for name in ("math500", "aime24") for q in load_questions(f"{name}@{DATA / name}.jsonl")]
    assert len(questions) == 530
    find, rng = Ngrams(questions), random.Random(0)
    missed = [q.id for q in questions if not find(disguised(q.text, rng))]
    assert missed == []


@real
def test_school_problems_share_nothing_with_the_benchmarks():
    questions = load_questions(f"math500@{DATA / 'math500.jsonl'}") + load_questions(f"aime24@{DATA / 'aime24.jsonl'}")
    texts = [json.loads(line)["question"] for line in (DATA / "gsm8k.jsonl").read_text().splitlines()]
    assert overlaps(texts, questions) == {} and near_duplicates(texts) == []
