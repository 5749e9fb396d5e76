"""Style on every kind of text: properties that hold for all of them, values against slow and plain definitions,
bad input."""
import json
import math
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from smoltraces.settings import InputError
from smoltraces.style.corpus import measure_corpus
from smoltraces.style.measure import (
    PIVOT_TYPES,
    STAGES,
    Pivot,
    as_json,
    backtracks,
    coverage,
    lexicon,
    measure,
    pivots,
    stages,
    style_parts,
    transitions,
)

COUNTS = ["n_words", "n_sentences", "pivots", *(f"pivots_{t}" for t in PIVOT_TYPES)]
quick = settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])

phrases = sorted({e.phrase for e in lexicon().entries})
pieces = st.one_of(st.sampled_from(phrases), st.sampled_from(
    ["Wait,", "12 + 7 = 19.", "the sum", "e.g.", "$x^2$", "\\(y\\)", "`code`", '"quoted words"', "“curly”", "等等，",
     "對嗎？", "J. Doe", "3.14", "x=1;", "—", "...", "😀", "don’t", "- item", "1.", "# Title", "**bold**", "\t", "!?",
     "(so)", "[a]", "> quoted"]),
    st.text(st.characters(blacklist_characters="`", blacklist_categories=["Cs"]), max_size=8))
paragraphs = st.lists(pieces, min_size=1, max_size=20).map(" ".join).filter(
    lambda t: t.strip() and t.count("$") % 2 == 0)
texts = st.lists(paragraphs, min_size=1, max_size=4).map("\n\n".join)


@quick
@given(texts, texts)
def test_counts_add_up_over_paragraphs(a, b):
    whole, parts = measure(a + "\n\n" + b), measure([a, b])
    assert whole[COUNTS].iloc[0].tolist() == parts[COUNTS].sum().tolist()


@quick
@given(texts)
def test_spans_index_the_text(text):
    end = 0
    for p in pivots(text):
        assert end <= p.start < p.end <= len(text)
        both = (text[p.start:p.end], p.phrase)
        span, phrase = (re.sub(r"[^\w']+", " ", re.sub("[’ʼ]", "'", t.lower())).strip() for t in both)
        assert span == phrase
        end = p.end
    end = 0
    for s in stages(text):
        assert end <= s.start < s.end <= len(text) and s.stage in STAGES
        assert not text[s.start].isspace()
        end = s.end
    for b in backtracks(text): assert 0 <= b.start < b.end <= len(text)
    row = measure(text).iloc[0]
    assert row.n_sentences == len(stages(text)) and row.pivots == len(pivots(text))
    assert row.backtracks == len(backtracks(text))


@quick
@given(texts)
def test_line_endings_do_not_matter(text):
    text = text.replace("\r", " ")
    pd.testing.assert_frame_equal(measure(text).drop(columns="pivot_position"),
                                  measure(text.replace("\n", "\r\n")).drop(columns="pivot_position"))


@quick
@given(st.lists(st.one_of(st.text(), st.binary(), st.none(), st.integers(), st.floats(), st.just("\ud800 wait"))))
def test_anything_is_measured_or_says_why(values):
    rows = measure(values)
    assert len(rows) == len(values)
    for value, row in zip(values, rows.itertuples(), strict=True):
        if not isinstance(value, (str, bytes)): assert isinstance(row.note, str)
        if not row.n_words: assert isinstance(row.note, str) and math.isnan(row.style_score)
        else: assert 0 <= row.style_score <= 1
        json.dumps(as_json(row._asdict()), allow_nan=False)


@quick
@given(st.lists(st.sampled_from("abcdefghijklmnopqrstuvwxyz"), min_size=60, max_size=400))
def test_diversity_equals_the_library(letters):
    from lexicalrichness import LexicalRichness
    text = " ".join(letters)
    theirs, row = LexicalRichness(text), measure(text).iloc[0]
    assert row.mattr == pytest.approx(theirs.mattr(window_size=50))
    assert row.mtld == pytest.approx(theirs.mtld(threshold=0.72))


def test_coherence_and_repetition_by_definition():
    text = "Green frogs jump. Frogs jump over stones. Quiet stones sleep."
    row = measure(text).iloc[0]
    # {green frogs jump}, {frogs jump stones}, {quiet stones sleep}
    assert row.coherence == pytest.approx((2 / 4 + 1 / 5) / 2)
    assert row.repetition == 0
    assert measure("again and over it " * 50).repetition[0] > 0.95


@pytest.mark.parametrize(("text", "found"), [
    ("But wait, let me check.", ["wait", "let me check"]),
    ("They wait 5 minutes. Wait 5 minutes.", []),
    ("So it is 12, wait, 13.", ["wait"]),
    ("It is actually fine. Actually, it fails.", ["actually"]),
    ("```python\n# Wait, let me check\n```\nThen done.", []),
    ("Let $x = $ wait$. Hmm, ok.", ["hmm"]),
    ("\\[ \\text{Wait, what if} \\] That makes sense.", ["that makes sense"]),
    ('The problem says "Wait, let me check" twice.', []),
    ("> Wait, what if\n\nNow I see how it works.", ["now I see"]),
    ("It costs $5. Wait, it costs $6.", ["wait"]),
    ("WAIT! Let’s verify: let's VERIFY", ["wait", "let's verify", "let's verify"]),
    ("Self-check: re-wait, wait-list.", []),
    ("1. Wait, no\n2. What if it is 3?", ["wait", "what if"]),
])
def test_pivots_in_context(text, found):
    assert [p.phrase for p in pivots(text) if p.phrase not in ("no,", "then", "I'd")] == found


@pytest.mark.parametrize("text", ["Wait, no, 8 + 27 is 35.", "No, that's wrong.", "I made a mistake.", "Scratch that.",
                                  "That fails. Let me try another approach.", "Hmm, wait, that can't be right."])
def test_corrections_are_backtracks(text): assert backtracks(text)


@pytest.mark.parametrize("text", ["They wait 5 minutes.", "So the answer is 4.", "Let me check.",
                                  "First, add 3 and 4.", ""])
def test_plain_steps_are_not(text): assert not backtracks(text)


def test_reach_counts_sentences_back():
    back, = backtracks("The parabola opens upwards. The circle is small. It is red. Wait, no, the parabola opens down.")
    assert back.reach == 3


def test_stages_follow_the_cues():
    text = ("I need to figure out the sum of the numbers.\n\nWhat if I add them in pairs?\n\n"
            "Let me check: 3 + 4 is 7.\n\nTherefore, the answer is 7.")
    assert [s.stage for s in stages(text)] == list(STAGES)
    assert measure(text).stage_path[0] == "FEVS"
    assert transitions(measure(text)).loc["framing", "exploration"] == 1


def test_the_score_is_explained_and_does_not_grow_with_the_text():
    formal = "To solve this, we use the following steps. Step 1: Add the numbers. Therefore, the solution is 7.\n\n"
    thinking = ("Okay, so I need to add these. Hmm, wait, maybe I should check that. "
                "I think it's 7, that makes sense.\n\n")
    low, high = measure([formal, thinking]).style_score
    assert low < 0.1 and high > 0.9
    assert measure([formal * 30, thinking * 30]).style_score.tolist() == pytest.approx([low, high], abs=1e-9)
    assert 1 / (1 + math.exp(-style_parts(thinking).adds.sum())) == pytest.approx(high)


# Inputs

TRACES = ["Wait, let me check.", None, "That makes sense."]


def _as(kind, folder):
    frame = pd.DataFrame({"id": ["a", "b", "c"], "trace": TRACES})
    if kind == "list": return TRACES
    if kind == "dicts": return frame.to_dict("records")
    if kind == "pandas": return frame
    if kind == "series": return frame.trace
    if kind == "polars":
        import polars as pl
        return pl.DataFrame({"id": ["a", "b", "c"], "trace": TRACES})
    if kind == "arrow":
        import pyarrow as pa
        return pa.table({"id": ["a", "b", "c"], "trace": TRACES})
    if kind == "datasets":
        from datasets import Dataset
        return Dataset.from_dict({"id": ["a", "b", "c"], "trace": TRACES})
    path = folder / f"traces.{kind}"
    if kind == "jsonl": path.write_text("".join(json.dumps(r) + "\n" for r in frame.to_dict("records")))
    else: frame.to_parquet(path)
    return path


@pytest.mark.parametrize("kind", ["list", "dicts", "pandas", "series", "polars", "arrow", "datasets", "jsonl",
                                  "parquet"])
def test_every_input_gives_the_same_rows(kind, tmp_path):
    rows = measure(_as(kind, tmp_path))
    expected = measure(TRACES).assign(id=["0", "1", "2"] if kind in ("list", "series") else ["a", "b", "c"])
    pd.testing.assert_frame_equal(rows, expected)
    assert rows.note[1] == "no trace" and coverage(rows) == 0


def test_tokens_need_a_tokenizer(tmp_path):
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast
    raw = Tokenizer(models.WordLevel({"[UNK]": 0}, unk_token="[UNK]"))
    raw.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=raw).save_pretrained(tmp_path)
    assert measure(["Wait, no.", "é 等"], tokenizer=tmp_path).n_tokens.tolist() == [4, 2]


HARD = {"empty": "", "blank": " \n\t ", "long line": "Wait, so 12 + 7 is 19. " * 450_000, "emoji": "😀🎉👍🏽",
        "chinese": "等等，让我检查一下。这样对吗？", "LaTeX": "$$\\int_0^1 x^2\\,dx$$ \\[a+b\\]",
        "code": "```python\nprint('wait')\n```", "brackets": "\\[" * 100_000,
        "ticks": "`" * 100_001, "dollars": "$a " * 100_000, "quotes": '"a ' * 100_000, "nul": "\0wait\0",
        "fence": "```\nwait, what if"}


@pytest.mark.parametrize("name", HARD)
def test_hard_texts(name):
    row = measure(HARD[name]).iloc[0]
    assert isinstance(row.note, str) == (
        name in ("empty", "blank", "emoji", "LaTeX", "code", "fence", "brackets", "ticks"))
    if name == "chinese": assert row.n_words == 12 and row.n_sentences == 2
    if name == "long line": assert row.pivots_realization == 450_000 and row.repetition > 0.99


def test_bytes_that_are_not_utf8(tmp_path):
    assert "not UTF-8 from byte 6" in measure([b"Wait, \xff no."]).note[0]
    path = tmp_path / "t.txt"
    path.write_bytes(b"Wait, \xff no.")
    assert measure(path).pivots_realization[0] >= 1


@pytest.mark.parametrize(("name", "content", "message"), [
    ("a.jsonl", '{"trace": "x"}\n{"trace": \n', "line 2, is not JSON"),
    ("a.jsonl", '{"text": "x", "id": 1}\n', "name one of text, id"),
    ("a.jsonl", "[1]\n", "not a JSON object"),
    ("a.parquet", "PAR1 no", "is not Parquet"),
    ("a.csv", "trace\nx", "neither .jsonl, .parquet nor .txt"),
])
def test_bad_files_name_the_place_and_the_mend(name, content, message, tmp_path):
    path = tmp_path / name
    path.write_text(content)
    with pytest.raises(InputError, match=message): measure(path)


def test_missing_places(tmp_path):
    with pytest.raises(InputError, match="There is no file"): measure(tmp_path / "none.jsonl")
    with pytest.raises(InputError, match="holds no Parquet or JSONL"): measure_corpus(tmp_path)
    with pytest.raises(InputError, match="name one of id, text"): measure([{"id": 1, "text": "x"}])
    with pytest.raises(InputError, match="There is no lexicon"): lexicon(tmp_path / "none.toml")


def test_a_lexicon_of_ones_own(tmp_path):
    path = tmp_path / "de.toml"
    path.write_text('[pivots.realization]\nclause = ["Moment"]\n[unless_before]\nMoment = ["mal"]\n')
    assert pivots("Moment, nein. Moment mal.", lexicon(path)) == [Pivot(0, 6, "realization", "Moment")]
    assert pivots("Moment, nein.") == []


# A corpus

@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    folder = tmp_path_factory.mktemp("corpus") / "traces"
    rng = np.random.default_rng(0)
    lines = ["Wait, no.", "Let me check: 3 + 4 is 7.", "That makes sense.", "What if it is 8?", "So 12.", "等等。",
             "Frogs jump."]
    for k in range(3):
        (folder / f"{k}").mkdir(parents=True)
        traces = [" ".join(rng.choice(lines, 60)) if i % 50 else None for i in range(300)]
        frame = pd.DataFrame({"id": [f"{k}-{i}" for i in range(300)], "trace": traces, "other": 1})
        (frame if k else frame.drop(columns="id")).to_parquet(folder / f"{k}" / "part.parquet", row_group_size=100)
    return folder


def test_threads_measure_what_measure_measures(corpus):
    expected = pd.concat([measure(f) for f in sorted(corpus.rglob("*.parquet"))], ignore_index=True)
    rows = measure_corpus(corpus, workers=3, progress=lambda n: None)
    pd.testing.assert_frame_equal(rows.drop(columns="id"), expected.drop(columns="id"))
    assert rows.id[300] == "1-0" and rows.id[299] == "299"


def test_a_stopped_corpus_goes_on(corpus, tmp_path):
    seen = []
    def stop(n):
        seen.append(n)
        if sum(seen) > 400: raise KeyboardInterrupt
    with pytest.raises(KeyboardInterrupt): measure_corpus(corpus, tmp_path / "out", progress=stop)
    kept = sorted((tmp_path / "out").rglob("*"))
    assert [p for p in kept if p.is_file()] == [
        tmp_path / "out" / "0" / "part.parquet"] # whole, and nothing half-written
    before = kept[1].stat().st_mtime_ns
    files = measure_corpus(corpus, tmp_path / "out", progress=lambda n: None)
    assert len(files) == 3 and files[0].stat().st_mtime_ns == before
    rows = pd.concat([pd.read_parquet(f) for f in files], ignore_index=True)
    pd.testing.assert_frame_equal(rows.drop(columns="id"),
                                  measure_corpus(corpus, progress=lambda n: None).drop(columns="id"),
                                  check_dtype=False)


@pytest.mark.slow
def test_ray_gives_identical_rows(corpus):
    pytest.importorskip("ray", reason="Ray is an extra: pip install smoltraces[ray]")
    rows = measure_corpus(corpus, engine="ray", progress=lambda n: None)
    pd.testing.assert_frame_equal(rows, measure_corpus(corpus, progress=lambda n: None))


# The command

def _style(*args, **kwargs):
    return subprocess.run([Path(sys.executable).with_name("smoltraces"), "style", *map(str, args)],
                          capture_output=True, text=True, **kwargs)


def test_the_command_prints_json_lines(tmp_path):
    path = _as("jsonl", tmp_path)
    done = _style(path, "--field", "trace", "--json")
    assert done.returncode == 0, done.stderr
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    assert [r["id"] for r in rows] == ["a", "b", "c"]
    assert rows[0]["pivots"] == {"realization": 1, "verification": 1, "exploration": 0, "integration": 0}
    assert {"n_words", "n_sentences", "pivot_types", "pivots_per_100_words", "backtracks", "stages", "coherence",
            "mattr", "style_score", "backtrack_spans"} <= set(rows[0])
    assert rows[1]["note"] == "no trace" and rows[1]["style_score"] is None


def test_the_command_says_what_is_wrong(tmp_path):
    path = _as("jsonl", tmp_path)
    done = _style(path, "--field", "text")
    assert done.returncode == 2 and "name one of id, trace" in done.stderr and "Traceback" not in done.stderr
    assert _style(tmp_path / "none.jsonl").returncode == 2


def test_the_command_shows_a_table(tmp_path):
    done = _style(_as("jsonl", tmp_path))
    assert done.returncode == 0 and "style score" in done.stdout and "\x1b" not in done.stdout
