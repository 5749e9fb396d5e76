"""A set of traces, problem by problem: whole, inert and legible."""
import html
import re

import pandas as pd
import pytest
from browser import ATTACKS, CONTRAST, HOSTILE, chromium, squeezed

from smoltraces.files import visible
from smoltraces.problems.corpora import embedded_problems
from smoltraces.schema import to_problems
from smoltraces.settings import InputError
from smoltraces.style.viewer import by_hash, explore, layout
from smoltraces.traces.teachers import teacher

TEACHERS = {"ST-HC": "embedded/hard-coded", "ST-HC-W": "embedded/wrong", "SBS": "embedded/step-by-step"}


@pytest.fixture(scope="module")
def frame() -> pd.DataFrame:
    problems = to_problems(embedded_problems(("countdown", "knights_knaves"), n_train=40, n_test=0, n_hard=0))
    return pd.DataFrame([{"id": p.id, "variant": variant, "question": p.question, "answer": p.answer,
                          "correct": variant != "ST-HC-W", "trace": c.trace, "response": c.response}
                         for variant, name in TEACHERS.items()
                         for p, c in zip(problems, teacher(name).answer(problems), strict=True)])


def test_the_order_is_the_same_everywhere():
    assert by_hash(["a", "b", "c", "d", "\ud800"]) == by_hash(["\ud800", "d", "b", "c", "a"])
    assert by_hash("abcdefgh") == ["g", "b", "e", "c", "h", "a", "f", "d"]  # of SHA-256, on any machine
    assert by_hash("abcdefgh", seed=1) != by_hash("abcdefgh")


# ---- what is shown

def text_of(shown: str) -> str:
    return squeezed(html.unescape(re.sub("<(style|script).*?</\\1>|<[^>]*>", "", shown, flags=re.S)))


def is_whole(traces, text: str):
    pieces = [squeezed(p.text) for trace in traces for run in layout(trace) for p in run.pieces]
    assert len(pieces) > len(traces) and [p for p in pieces if p not in text] == []


def test_the_explorer_says_what_it_leaves_out(frame):
    shown = explore(frame)
    source = shown._repr_html_()
    assert len(source) < 150_000 and f"{len(shown.kept)}of40problems" in text_of(source)
    everything = explore(frame, most=10**9)
    assert len(everything.kept) == 40 and "of40problems" not in text_of(everything._repr_html_())
    is_whole(frame.trace, text_of(everything._repr_html_()))
    assert len(explore(frame, most=0).kept) == 1
    one = explore(frame, first=frame.id[5], most=0)
    assert list(one.kept) == [frame.id[5]] and one._repr_html_().count(" open>") == 1
    assert list(shown.kept) == [i for i in dict.fromkeys(frame.id) if i in shown.kept]  # in the order of the set
    assert str(one) == "3 traces of 1 problems"


def test_anything_with_traces_can_be_explored(frame):
    predictions = frame[:6].drop(columns=["trace", "variant"]).assign(output="Wait.", problem_id="p", student="s",
                                                                     seed=range(6))
    assert str(explore(predictions)) == "6 traces of 1 problems"
    assert all(f"seed {seed}" in explore(predictions)._repr_html_() for seed in range(6))
    assert "no trace" in explore([{"id": "a", "trace": None, "response": "7"}])._repr_html_()
    assert len(explore(["Wait.", "Hmm, no.", ""]).kept) == 3
    for given, names in (([], "at least one"), (frame, "no problem nowhere")):
        with pytest.raises(InputError, match=names): explore(given, first="nowhere")


def test_html_is_inert_and_whole():
    names = ("id", "variant", "question", "answer", "response")
    rows = [dict.fromkeys(names, attack) | {"correct": False, "trace": HOSTILE} for attack in ATTACKS]
    source = explore(rows, most=10**9)._repr_html_()
    assert "<script" not in source
    assert not re.search(r"<(img|svg|a|iframe|link)\b|https?:|\son\w+=(?!window)", source)
    assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\u202e]", source)
    for attack in ATTACKS: assert squeezed(visible(attack)) in text_of(source), attack


# ---- a browser

def written(folder, *shown, colours) -> str:
    body = "".join(s._repr_html_() for s in shown)
    file = folder / "cell.html"
    file.write_text(f'<!doctype html><meta charset="utf-8"><body style="{colours}">{body}', encoding="utf-8")
    return file.as_uri()


@chromium
@pytest.mark.slow
@pytest.mark.parametrize("colours", ["background:#fff;color:rgba(0,0,0,.87)", "background:#111;color:#fff"])
def test_it_is_legible(browser, frame, tmp_path, colours):
    "JupyterLab's two themes; and a narrow window"
    browser.open(written(tmp_path, explore(frame), colours=colours))
    worst = browser.js(CONTRAST.replace("SELECTOR", "'summary, label, .smoltraces-view b, .smoltraces-view span'"))
    assert len(worst) > 10 and worst[0][0] >= 4.5, worst[:3]
    browser.size(400, 900)
    try: assert browser.js("document.documentElement.scrollWidth") <= 400
    finally: browser.size(1280, 800)
