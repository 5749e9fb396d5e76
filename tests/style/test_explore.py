"""Mixes are nested and aligned; what is picked and slid shows it, inertly, and nothing is missing without scripts."""
import html
import json
import re

import pandas as pd
import pytest
from browser import ATTACKS, CONTRAST, HOSTILE, NAMELESS, Browser, chromium, squeezed

from smoltraces.problems.corpora import embedded_problems
from smoltraces.schema import to_problems
from smoltraces.settings import InputError
from smoltraces.style.measure import measure, pivots
from smoltraces.style.viewer import SHARES, by_hash, explore, layout, mix, mixed, slide, visible
from smoltraces.traces.teachers import teacher

TEACHERS = {"ST-HC": "embedded/hard-coded", "ST-HC-W": "embedded/wrong", "SBS": "embedded/step-by-step"}


@pytest.fixture(scope="module")
def sets() -> dict[str, pd.DataFrame]:
    problems = to_problems(embedded_problems(("countdown", "knights_knaves"), n_train=40, n_test=0, n_hard=0))
    return {variant: pd.DataFrame([{"id": p.id, "variant": variant, "question": p.question, "answer": p.answer,
                                    "correct": variant != "ST-HC-W", "trace": c.trace, "response": c.response,
                                    "prompt_tokens": None, "cost_usd": 0.5}
                                   for p, c in zip(problems, teacher(name).answer(problems), strict=True)])
            for variant, name in TEACHERS.items()}


@pytest.fixture(scope="module")
def pair(sets): return sets["ST-HC"], sets["SBS"]


@pytest.fixture(scope="module")
def frame(sets): return pd.concat(sets.values(), ignore_index=True)


# ---- mixing

def chosen(mixture: pd.DataFrame) -> set[str]: return set(mixture.id[mixture.variant == "ST-HC"])


def test_a_larger_share_keeps_what_a_smaller_one_had(pair):
    found = [chosen(mix(*pair, k / 40)) for k in range(41)]
    assert [len(f) for f in found] == list(range(41))
    assert all(small < large for small, large in zip(found, found[1:], strict=False))
    assert chosen(mix(*pair, 0.5, seed=1)) != found[20] and len(chosen(mix(*pair, 0.5, seed=1))) == 20
    assert chosen(mix(*pair, 0.51)) == found[20]  # to the nearest whole problem


def test_the_choice_is_the_same_everywhere(pair):
    styled, plain = pair
    assert by_hash(["a", "b", "c", "d", "\ud800"]) == by_hash(["\ud800", "d", "b", "c", "a"])
    assert by_hash("abcdefgh") == ["g", "b", "e", "c", "h", "a", "f", "d"]  # of SHA-256, on any machine
    assert by_hash("abcdefgh", seed=1) != by_hash("abcdefgh")
    shuffled = plain.sample(frac=1, random_state=0), styled.sample(frac=1, random_state=1)
    assert chosen(mix(shuffled[1], shuffled[0], 0.3)) == chosen(mix(*pair, 0.3))


def test_each_problem_is_told_once_and_as_its_set_told_it(pair):
    styled, plain = pair
    mixture = mix(styled, plain.iloc[::-1], 0.35)
    assert list(mixture.id) == list(styled.id) and list(mixture.index) == list(range(40))
    assert list(mixture.columns) == list(styled.columns) and (mixture.dtypes == styled.dtypes).all()
    for variant, rows in (("ST-HC", styled), ("SBS", plain)):
        kept = mixture[mixture.variant == variant]
        assert kept.set_index("id").equals(rows.set_index("id").loc[kept.id])
    assert mix(*pair, 1).equals(styled) and mix(*pair, 0).equals(plain)


@pytest.mark.parametrize("change, share, names", [
    (None, 1.2, ["1.2", "from 0"]), (None, -0.1, ["-0.1"]), (None, float("nan"), ["nan"]), (None, True, ["True"]),
    (lambda s: s.iloc[3:], 0.5, ["3 problems", "keep the 37"]),
    (lambda s: s.assign(id="x"), 0.5, ["problem x twice"]),
    (lambda s: s.assign(variant="ST-NT", trace=None), 0.5, ["40 of its 40 rows", "ST-NT", "plain"]),
    (lambda s: s.assign(trace=s.trace.where(s.index > 1)), 0.5, ["2 of its 40 rows"]),
    (lambda s: s.drop(columns="trace"), 0.5, ["no column trace"]),
    (lambda s: s.iloc[:0], 0.5, ["empty"]),
    (lambda s: s.assign(id=["\x1b[31m", *s.id[1:]]), 0.5, ["⟨ESC⟩[31m", "keep the 39"]),
])
@pytest.mark.parametrize("made", [mix, lambda a, b, share: slide(a, b, shares=(0, share))])
def test_what_cannot_be_mixed_is_said(pair, change, share, names, made):
    styled, plain = pair
    with pytest.raises(InputError) as error: made(styled, change(plain) if change else plain, share)
    for name in names: assert name in str(error.value)
    assert "\n" not in str(error.value)


def test_the_table_is_of_the_mixes(pair):
    table = mixed(*pair)
    assert tuple(table.index) == SHARES and list(table.styled) == [4 * k for k in range(11)]
    for share in (0, 0.3, 1):
        measures = measure(mix(*pair, share))
        for name in ("n_words", "pivots_per_100_words", "style_score", "stage_framing"):
            assert table.loc[share, name] == pytest.approx(measures[name].mean()), (share, name)
        assert table.loc[share, "coverage"] == pytest.approx((measures.pivot_types >= 3).mean())
    assert (table.filter(like="stage_").sum(axis=1) - 1).abs().max() < 1e-9


# ---- what is shown

def told(shown: str) -> str:
    return squeezed(html.unescape(re.sub("<(style|script).*?</\\1>|<[^>]*>", "", shown, flags=re.S)))


def is_whole(traces, text: str):
    pieces = [squeezed(p.text) for trace in traces for run in layout(trace) for p in run.pieces]
    assert len(pieces) > len(traces) and [p for p in pieces if p not in text] == []


def test_the_explorer_says_what_it_leaves_out(frame):
    shown = explore(frame)
    source = shown._repr_html_()
    assert len(source) < 150_000 and f"{len(shown.kept)}of40problems" in told(source)
    everything = explore(frame, most=10**9)
    assert len(everything.kept) == 40 and "of40problems" not in told(everything._repr_html_())
    is_whole(frame.trace, told(everything._repr_html_()))
    assert len(explore(frame, most=0).kept) == 1
    one = explore(frame, first=frame.id[5], most=0)
    assert list(one.kept) == [frame.id[5]] and one._repr_html_().count("<details open>") == 1
    assert list(shown.kept) == [i for i in dict.fromkeys(frame.id) if i in shown.kept]  # in the order of the set
    assert str(one) == "3 traces of 1 problems"


def test_anything_with_traces_can_be_explored(frame):
    predictions = frame[:6].drop(columns=["trace", "variant"]).assign(output="Wait.", problem_id="p", student="s",
                                                                     seed=range(6))
    assert len(explore(predictions).labels) == 6 and len(explore(predictions).kept) == 1
    assert "no trace" in explore([{"id": "a", "trace": None, "response": "7"}])._repr_html_()
    assert len(explore(["Wait.", "Hmm, no.", ""]).kept) == 3
    for given, names in (([], "at least one"), (frame, "no problem nowhere")):
        with pytest.raises(InputError, match=names): explore(given, first="nowhere")


@pytest.fixture(scope="module")
def hostile() -> pd.DataFrame:
    "Every column attacks"
    named = ("id", "variant", "question", "answer", "response")
    rows = [dict.fromkeys(named, attack) | {"correct": False, "trace": HOSTILE} for attack in ATTACKS]
    return pd.DataFrame(rows, dtype=object)  # Arrow's strings refuse half a character


def hostile_pair(hostile):
    named = hostile.assign(variant=pd.Series([" ".join(ATTACKS)] * len(hostile), dtype=object))
    return named, named.assign(trace=pd.Series(["Plain.", *named.trace[1:]], dtype=object))


def test_html_is_inert_and_whole(hostile):
    shown = explore(hostile, most=10**9)._repr_html_()
    for source in (shown, slide(*hostile_pair(hostile))._repr_html_()):
        assert source.count("<script") == source.count("</script>") == source.count("<style") == 1
        assert not re.search(r"<(img|svg|a|iframe|link)\b|https?:|\son\w+=(?!window)", re.sub("<script.*", "", source))
        assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\u202e]", source)
    for attack in ATTACKS: assert squeezed(visible(attack)) in told(shown), attack


# ---- a browser

def written(folder, *shown, colours="background:#fff;color:rgba(0,0,0,.87)") -> str:
    body = "".join(s._repr_html_() for s in shown)
    file = folder / "cell.html"
    file.write_text(f'<!doctype html><meta charset="utf-8"><body style="{colours}">{body}', encoding="utf-8")
    return file.as_uri()


def seen(browser: Browser) -> list[str]:
    "The titles of the traces in sight"
    return browser.js("[...document.querySelectorAll('article')].filter(e => e.getClientRects().length)"
                      ".map(e => e.querySelector('.smoltraces-view b').textContent)")


@chromium
def test_the_slider_moves_the_numbers(browser, pair, tmp_path):
    browser.open(written(tmp_path, slide(*pair)))
    table = mixed(*pair)
    now = """[document.querySelector("output").textContent,
              ...[...document.querySelectorAll("figure b, label b[data-column]")].map(e => e.textContent)]"""
    heights = "[...document.querySelectorAll('.smoltraces-bars span')].map(e => e.getBoundingClientRect().height)"
    before = browser.js(heights)
    assert browser.js(now)[:2] == ["20 of 40 problems told as in ST-HC, 20 as in SBS", "50%"]
    browser.js("document.querySelector('[type=range]').focus()")
    for key, share in (("ArrowUp", 0.6), ("ArrowUp", 0.7), ("End", 1), ("ArrowDown", 0.9), ("Home", 0)):
        browser.key(key)
        row = table.loc[share]
        say, shown, *means = browser.js(now)
        assert say.startswith(f"{row.styled:.0f} of 40") and shown == f"{share:.0%}"
        assert means[0] == f"{row.n_words:.0f}" and means[2] == f"{row.coverage:.0%}"
        assert browser.js("document.querySelector('tr.smoltraces-now th').textContent") == shown
        assert browser.js("document.querySelector('[type=range]').getAttribute('aria-valuetext')") == shown
    assert browser.js(heights) != before
    assert browser.js("document.querySelectorAll('.smoltraces-bars div:nth-child(1) span').length") == 8
    assert browser.js(NAMELESS) == [] and browser.complaints == [] and len(browser.requests) == 1


@chromium
def test_a_trace_is_picked(browser, frame, tmp_path):
    shown = explore(frame, first=frame.id[0])
    browser.open(written(tmp_path, shown))
    kept = list(shown.kept)
    options = browser.js("[...document.querySelectorAll('select')].map(s => s.options.length)")
    assert options == [len(kept), 4, 8]
    assert browser.js("document.querySelector('select').value") == str(kept.index(frame.id[0]))

    def titles(i, *variants):
        return [f"{v} · {'✗ wrong' if v == 'ST-HC-W' else '✓ right'} · {kept[i]}" for v in variants]

    browser.js("document.querySelector('select').focus()")
    browser.key("Home")
    assert seen(browser) == titles(0, *TEACHERS)
    browser.click("button:last-of-type")
    assert seen(browser) == titles(1, *TEACHERS)
    browser.js("document.querySelectorAll('select')[1].focus()")
    browser.key("ArrowDown")
    assert seen(browser) == titles(1, "ST-HC")
    browser.key("Home")
    browser.js("document.querySelectorAll('select')[2].focus()")
    for _ in range(2): browser.key("ArrowDown")
    assert seen(browser) == titles(1, "ST-HC-W")  # wrong answers
    browser.js("const s = document.querySelectorAll('select'); s[2].value = 'exploration'; "
               "s[2].dispatchEvent(new Event('change'))")
    has = [i for i in kept if any("exploration" in {p.type for p in pivots(t)} for t in frame.trace[frame.id == i])]
    assert browser.js("document.querySelector('output').textContent").endswith(f"of {len(has)} problems")
    browser.js("s[1].selectedIndex = 1; s[2].value = 'wrong'; s[1].dispatchEvent(new Event('change'))")
    assert seen(browser) == [] and "No trace" in browser.js("document.querySelector('output').textContent")
    assert browser.js("[...document.querySelectorAll('button')].map(b => b.disabled)") == [True, True]
    assert browser.js(NAMELESS) == [] and browser.complaints == [] and len(browser.requests) == 1


@chromium
def test_nothing_is_missing_without_scripts(browser, frame, pair, tmp_path):
    picked, slid = explore(frame), slide(*pair)
    browser("Emulation.setScriptExecutionDisabled", value=True)
    try:
        browser.open(written(tmp_path, picked, slid))
        assert browser.js("[...document.querySelectorAll('select, button, [type=range], figure')]"
                          ".filter(e => e.getClientRects().length).length") == 0
        assert browser.js("document.querySelectorAll('tbody tr:has([scope=row])').length") == len(SHARES)
        for i in range(len(picked.kept)):
            if not browser.js(f"document.querySelectorAll('details')[{i}].open"):
                browser.js(f"document.querySelectorAll('summary')[{i}].focus()")
                browser.key("Enter")
        assert len(seen(browser)) == 3 * len(picked.kept)
        is_whole(frame.trace[frame.id.isin(list(picked.kept))], squeezed(browser.js("document.body.innerText")))
    finally: browser("Emulation.setScriptExecutionDisabled", value=False)


@chromium
def test_the_page_is_inert(browser, hostile, tmp_path):
    browser.open(written(tmp_path, explore(hostile, most=10**9), slide(*hostile_pair(hostile))))
    for _ in ATTACKS: browser.click("button:last-of-type")
    browser.js("document.querySelector('[type=range]').focus()")
    browser.key("End")
    assert browser.js("[window.pwned, document.scripts.length]") == [None, 2]
    assert browser.js("document.querySelectorAll('img, svg, a, iframe').length") == 0
    assert squeezed(visible(ATTACKS[0])) in squeezed(browser.js("document.querySelectorAll('output')[1].textContent"))
    assert browser.complaints == [] and len(browser.requests) == 1


@chromium
@pytest.mark.parametrize("colours", ["background:#fff;color:rgba(0,0,0,.87)", "background:#111;color:#fff"])
def test_it_is_legible(browser, frame, pair, tmp_path, colours):
    "JupyterLab's two themes; and a narrow window"
    browser.open(written(tmp_path, explore(frame), slide(*pair), colours=colours))
    worst = browser.js(CONTRAST.replace("SELECTOR", "'th, td, label, output, figcaption, p, .smoltraces-ends, "
                                        ".smoltraces-view b'"))
    assert len(worst) > 50 and worst[0][0] >= 4.5, worst[:3]
    browser.size(400, 900)
    try: assert browser.js("document.documentElement.scrollWidth") <= 400
    finally: browser.size(1280, 800)


def test_steps_are_few_bytes(pair):
    source = slide(*pair)._repr_html_()
    steps = json.loads(html.unescape(re.search('data-steps="([^"]*)"', source)[1]))
    assert len(source) < 30_000 and len(steps) == len(SHARES)
    for step in steps:
        for chart in step["bars"]: assert all(0 <= sum(bar) <= 101 for bar in chart)
