"""Traces are shown whole, legibly and inertly: in a notebook, a page (in headless Chromium) and a terminal."""
import html
import json
import os
import pty
import re
import subprocess
import sys
import unicodedata

import pandas as pd
import pytest
from browser import ATTACKS, CONTRAST, HOSTILE, NAMELESS, Browser, chromium, squeezed
from conftest import environment, smoltraces
from typer.testing import CliRunner

from smoltraces.cli import app
from smoltraces.files import visible
from smoltraces.problems.corpora import embedded_problems
from smoltraces.schema import to_problems
from smoltraces.settings import InputError
from smoltraces.style.measure import PIVOT_TYPES, pivots
from smoltraces.style.viewer import layout, page, rows, view
from smoltraces.traces.teachers import teacher


@pytest.fixture(scope="module")
def frame() -> pd.DataFrame:
    problems = to_problems(embedded_problems(("countdown", "knights_knaves"), n_train=20, n_test=0, n_hard=0))
    written = {"ST": "embedded/emergent", "ST-HC": "embedded/hard-coded", "ST-HC-W": "embedded/wrong"}
    return pd.DataFrame([{"id": p.id, "variant": variant, "question": p.question, "answer": p.answer,
                          "correct": variant != "ST-HC-W", "trace": c.trace, "response": c.response}
                         for variant, name in written.items()
                         for p, c in zip(problems, teacher(name).answer(problems), strict=True)])


@pytest.fixture(scope="module")
def jsonl(frame, tmp_path_factory):
    path = tmp_path_factory.mktemp("traces") / "traces.jsonl"
    frame.to_json(path, orient="records", lines=True)
    return path


@pytest.fixture(scope="module")
def attack(tmp_path_factory):
    "A file whose every column attacks"
    path = tmp_path_factory.mktemp("attack") / "attack.jsonl"
    named = ("id", "variant", "question", "answer", "response")
    lines = [dict.fromkeys([*named, attack], attack) | {"correct": False, "trace": HOSTILE} for attack in ATTACKS]
    path.write_text("\n".join(map(json.dumps, lines)))
    return path


# ---- text

def test_layout_loses_no_text(frame):
    for text in [*frame.trace, HOSTILE, "no sentence", "🙂 中文。 " * 9, "x" * 5000, "```\nwait\n```", "\n\nNo.\n"]:
        pieces = [p for run in layout(text) for p in run.pieces]
        assert squeezed("".join(p.text for p in pieces)) == squeezed(visible(text))
        found = sorted({p.pivot for p in pieces if p.pivot})
        assert [(p.type, p.phrase) for p in found] == [(p.type, p.phrase) for p in pivots(text)]
    for nothing in (None, float("nan"), "", " \n "): assert layout(nothing) == []


def test_no_control_character_is_left():
    everything = "".join(map(chr, [*range(0x3000), 0xD800, 0xDFFF, 0xFEFF, 0xFFFE, 0xE0041]))
    kept = {unicodedata.category(c) for c in visible(everything)} & {"Cc", "Cs", "Zl", "Zp"}
    assert kept == {"Cc"} and set(re.findall(r"[\x00-\x1f\x7f-\x9f]", visible(everything))) == {"\t", "\n"}
    assert not re.search("[\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069]", visible(everything))


def test_html_is_inert_and_whole():
    shown = view(HOSTILE, title=HOSTILE)._repr_html_()
    assert set(re.findall(r"<(\w+)", shown)) <= {"style", "div", "span", "b", "label", "input", "i"}
    assert 'class="tex2jax_ignore' in shown  # or a notebook would typeset what stands between dollars
    text = squeezed(html.unescape(re.sub("<[^>]*>", "", shown)))
    for attack in ATTACKS: assert squeezed(visible(attack)) in text, attack
    assert len(view("Wait. " * 100_000)._repr_html_()) < 6_000_000  # a notebook keeps what it shows


def test_rows_of_anything(frame, jsonl, tmp_path):
    import polars
    frame.to_parquet(tmp_path / "a.parquet")
    (tmp_path / "one.txt").write_text("Wait.")
    for given in (frame, polars.from_pandas(frame), frame.to_dict("records"), jsonl, tmp_path / "a.parquet", tmp_path,
                  str(jsonl), [jsonl]):
        assert [r.text for r in rows(given)] == list(frame.trace)
    mixed = rows([tmp_path / "one.txt", "Wait.", None, frame.iloc[0]])
    assert [r.text for r in mixed] == ["Wait.", "Wait.", None, frame.trace[0]]
    predictions = frame.drop(columns="trace").assign(output="Hmm.", problem_id=frame.id)
    assert rows(predictions)[0].text == "Hmm."


# ---- the command line

@pytest.mark.parametrize("arguments, names", [
    (["nowhere.jsonl"], ["nowhere.jsonl"]),
    (["{jsonl}", "--field", "tracee"], ["tracee", "trace", "response"]),
    (["{jsonl}", "--id", "0000"], ["0000"]),
    (["{jsonl}", "--variant", "ST-CH"], ["ST-CH", "ST-HC"]),
    (["{jsonl}", "--type", "realisation"], ["realisation", "realization"]),
    (["{jsonl}", "--row", "99"], ["99", "1 to 60"]),
    (["{jsonl}", "--search", "no such words"], ["60 traces"]),
    (["{jsonl}", "--variant", "ST", "--side-by-side"], ["--id", "--row"]),
    (["{tmp}/empty.jsonl"], ["empty.jsonl"]),
    (["{tmp}/broken.jsonl"], ["broken.jsonl", "line 2"]),
    (["{tmp}/list.jsonl"], ["list.jsonl", "line 1"]),
    (["{tmp}/broken.parquet"], ["broken.parquet"]),
    (["{tmp}/folder"], ["folder"]),
    (["{tmp}/file.docx"], ["file.docx"]),
])
def test_what_is_wrong_is_said(arguments, names, jsonl, tmp_path):
    (tmp_path / "empty.jsonl").touch()
    (tmp_path / "broken.jsonl").write_text('{"trace": "Wait."}\n{"trace": \n')
    (tmp_path / "list.jsonl").write_text("[1]\n")
    (tmp_path / "broken.parquet").write_bytes(b"PAR1 not")
    (tmp_path / "file.docx").write_bytes(b"PK")
    (tmp_path / "folder").mkdir()
    done = CliRunner().invoke(app, ["view", *(a.format(jsonl=jsonl, tmp=tmp_path) for a in arguments)])
    assert isinstance(done.exception, InputError), done.output
    for name in names: assert name in str(done.exception), done.exception
    assert "\n" not in str(done.exception)


def test_a_pipe_gets_plain_text(attack, jsonl):
    done = CliRunner().invoke(app, ["view", str(attack), "--limit", "0"])
    assert done.exit_code == 0, done.stderr
    assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e]", done.stdout)
    for attack_ in ATTACKS: assert squeezed(visible(attack_)) in squeezed(done.stdout.replace("│", "")), attack_
    assert "[R:Wait]" in done.stdout and "[V:Let me check]" in done.stdout
    wrong = smoltraces("view", str(attack), "--id", "\x1b[31m", cwd=attack.parent)
    assert wrong.returncode == 2 and "\x1b" not in wrong.stderr and wrong.stderr.count("\n") == 1
    chosen = CliRunner().invoke(app, ["view", str(jsonl), "--wrong", "--type", "exploration", "--limit", "1"])
    assert "✗ wrong" in chosen.stdout and "✓ right" not in chosen.stdout and "more of 20" in chosen.stdout
    assert max(map(len, chosen.stdout.split("\n"))) <= 80


def terminal(*arguments: str, columns: int, **extra) -> str:
    "What `smoltraces view` sends to a terminal so wide"
    main, side = pty.openpty()
    variables = environment(TERM="xterm-256color", COLUMNS=str(columns), LINES="40", PAGER="cat", **extra)
    command = [os.path.join(os.path.dirname(sys.executable), "smoltraces"), "view", *arguments]
    process = subprocess.Popen(command, stdin=side, stdout=side, stderr=side, env=variables)
    os.close(side)
    out = b""
    while True:
        try: part = os.read(main, 65536)
        except OSError: break  # Linux's word for the end
        if not part: break
        out += part
    os.close(main)
    assert process.wait() == 0, out
    return out.decode().replace("\r\n", "\n")


def test_a_terminal_gets_styles_and_nothing_else(attack, jsonl):
    shown = terminal(str(attack), columns=80)
    assert "\x1b[1;4;" in shown  # bold, underlined and coloured
    left = re.sub(r"\x1b\[[\d;]*m", "", shown)
    assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202e]", left)
    assert "[R:Wait]" not in left
    assert "\x1b" not in terminal(str(attack), columns=80, NO_COLOR="1")
    beside = ("--side-by-side", "--limit", "1", str(jsonl))
    wide = re.sub(r"\x1b\[[\d;]*m", "", terminal(*beside, columns=140))
    assert re.search(r"^ST · ✓ right · \w+ +┃ ST-HC · ✓ right", wide, re.M) and max(map(len, wide.split("\n"))) <= 140
    assert "┃" not in CliRunner().invoke(app, ["view", *beside]).stdout  # of 80 columns


# ---- a browser

@pytest.fixture(scope="module")
def pages(frame, attack, tmp_path_factory):
    folder = tmp_path_factory.mktemp("pages")
    page(frame, folder / "plain.html", title="Three variants")
    page(attack, folder / "attack.html", title=" ".join(ATTACKS))
    return folder


def shown(browser: Browser) -> int: return int(browser.js("document.querySelector('#count').textContent").split()[0])


def panes(browser: Browser) -> list[str]:
    return browser.js("[...document.querySelectorAll('.pane h2')].map(e => e.textContent)")


@chromium
@pytest.mark.slow
def test_search_filter_sort(browser, pages, frame):
    browser.size(1280, 800)
    browser.open((pages / "plain.html").as_uri())
    assert shown(browser) == len(frame)
    browser.key("/")
    browser.type("putting it together")
    words = frame[["question", "trace", "response"]].agg(" ".join, axis=1).str.lower().str.split().str.join(" ")
    assert shown(browser) == sum(all(w in t for w in "putting it together".split()) for t in words)
    browser.key("Escape")
    assert shown(browser) == len(frame)
    browser.type('"let me check"')
    assert shown(browser) == words.str.contains("let me check").sum() > 0
    browser.key("Enter")
    assert "found here" in browser.js("document.querySelector('#hits').textContent")
    assert browser.js("CSS.highlights.get('hit').size") > 0
    browser.js("document.querySelector('#query').focus()")
    browser.key("Escape")
    browser.js("document.querySelector('#by-variant').focus()")
    browser.key("ArrowDown")
    assert shown(browser) == (frame.variant == "ST").sum()
    browser.key("ArrowUp")
    browser.js("document.querySelector('#by-answer').focus()")
    browser.key("ArrowDown")
    browser.key("ArrowDown")
    assert shown(browser) == (~frame.correct).sum()
    browser.key("Home")
    browser.click("#has-verification")
    has = frame.trace.map(lambda t: "verification" in {p.type for p in pivots(t)})
    assert shown(browser) == has.sum()
    browser.click("#has-verification")
    browser.js("document.querySelector('#by-sort-by').focus()")
    browser.key("ArrowDown")
    lengths = browser.js("state.shown.map(i => rows[i].words)")
    assert lengths == sorted(lengths, reverse=True) and lengths[0] > lengths[-1]
    browser.click("#descending")
    assert browser.js("state.shown.map(i => rows[i].words)") == lengths[::-1]
    browser.key("/")
    browser.type("no such words")
    assert shown(browser) == 0
    browser.click("#clear")
    assert shown(browser) == len(frame) and browser.complaints == []


@chromium
@pytest.mark.slow
def test_two_beside_each_other(browser, pages, frame):
    browser.open((pages / "plain.html").as_uri())
    first, second = frame.id[0], frame.id[1]
    assert panes(browser) == [f"ST ✓ right {first}"]
    browser.click("#bar button:nth-of-type(2)")  # the first is for narrow windows
    assert panes(browser) == [f"ST ✓ right {first}", f"ST-HC ✓ right {first}"]
    browser.click("#list [role=option]:nth-child(2)")  # the pair goes along
    assert panes(browser) == [f"ST ✓ right {second}", f"ST-HC ✓ right {second}"]
    browser.key("p")
    assert panes(browser) == [f"ST ✓ right {second}", f"ST-HC-W ✗ wrong {second}"]
    browser.key("Escape")
    assert panes(browser) == [f"ST ✓ right {second}"]
    browser.click("#compare")
    browser.click("#list [role=option]:nth-child(1)")
    assert panes(browser) == [f"ST ✓ right {second}", f"ST ✓ right {first}"]
    browser.key("Escape")
    browser.click("#list [role=option]:nth-child(3)", modifiers=8)  # Shift
    assert panes(browser) == [f"ST ✓ right {second}", f"ST ✓ right {frame.id[2]}"]
    assert browser.complaints == []


@chromium
@pytest.mark.slow
def test_keys_and_accessibility(browser, pages, frame):
    browser.open((pages / "plain.html").as_uri())
    browser.click("#list [role=option]:nth-child(1)")
    last = len(frame) - 1
    for key, at in [("ArrowDown", 1), ("ArrowDown", 2), ("ArrowUp", 1), ("End", last), ("Home", 0), ("j", 1), ("k", 0)]:
        browser.key(key)
        active = browser.js("""(() => {
          const e = document.getElementById($("list").getAttribute("aria-activedescendant"));
          const r = e.getBoundingClientRect(), v = $("list").getBoundingClientRect();
          return [e.getAttribute("aria-selected"), +e.getAttribute("aria-posinset"), e.getAttribute("aria-setsize"),
                  r.top >= v.top - 1 && r.bottom <= v.bottom + 1]; })()""")
        assert active == ["true", at + 1, str(len(frame)), True], key
    browser.key("Enter")
    assert browser.js("document.activeElement.className") == "pane"
    browser.key("Escape")
    assert browser.js("document.activeElement.id") == "list"
    browser.key("?")
    assert browser.js("$('help').open")
    browser.key("Escape")
    assert not browser.js("$('help').open")
    nameless = browser.js(NAMELESS)
    assert nameless == [] and browser.complaints == []


@chromium
@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_page_is_legible(browser, pages, scheme):
    browser.scheme(scheme)
    browser.open((pages / "attack.html").as_uri())
    worst = browser.js(CONTRAST.replace("SELECTOR", "'h1, mark, .text, .stage, .quiet, button, [role=option] *, "
                                        "#legend *, .back, label, #count'"))
    assert len(worst) > 50 and worst[0][0] >= 4.5, worst[:3]
    for kind in PIVOT_TYPES: assert browser.js(f"document.querySelectorAll('mark.{kind}').length"), kind
    lines = browser.js("[...document.querySelectorAll('#legend mark')].map(e => getComputedStyle(e).borderBottomStyle)")
    assert len(set(lines)) == 4  # told apart without colour


@chromium
@pytest.mark.slow
@pytest.mark.parametrize("colours", ["background:#fff;color:rgba(0,0,0,.87)", "background:#111;color:#fff"])
def test_a_notebook_shows_it(browser, frame, tmp_path, colours):
    "JupyterLab's two themes, whatever the system's own scheme is"
    browser.scheme("light")
    pair = frame[frame.id == frame.id[1]].head(2)
    body = "".join(v._repr_html_() for v in (view(pair), view(HOSTILE, title=HOSTILE), view("Wait, no. " * 900)))
    (tmp_path / "cell.html").write_text(f'<!doctype html><meta charset="utf-8"><body style="{colours}">{body}')
    browser.size(1100, 900)
    browser.open((tmp_path / "cell.html").as_uri())
    worst = browser.js(CONTRAST.replace("SELECTOR", "'span[title], b, div[style*=\"text-align:right\"], div[dir]'"))
    assert len(worst) > 20 and worst[0][0] >= 4.5, worst[:3]
    lefts = browser.js("[...document.querySelectorAll('.smoltraces-view')].map(e => e.getBoundingClientRect().left)")
    assert lefts[0] < lefts[1]  # beside each other
    high = "[...document.querySelectorAll('.smoltraces-box')].at(-1).clientHeight"
    closed = browser.js(high)
    browser.click(".smoltraces-all input")
    assert closed < 600 < browser.js(high)
    assert browser.js("window.pwned") is None and browser.complaints == []
    assert browser.requests == [(tmp_path / "cell.html").as_uri()]
    browser.size(400, 900)
    assert browser.js("document.documentElement.scrollWidth") <= 400


@chromium
@pytest.mark.slow
def test_a_narrow_window(browser, pages):
    browser.size(400, 800)
    browser.open((pages / "plain.html").as_uri())
    try:
        seen = "['list', 'reader'].filter(id => document.getElementById(id).getClientRects().length)"
        assert browser.js(seen) == ["list"]
        browser.click("#list [role=option]:nth-child(2)")
        assert browser.js(seen) == ["reader"]
        browser.click("#bar button:nth-of-type(2)")
        assert len(panes(browser)) == 2 and browser.js("document.documentElement.scrollWidth") <= 400
        browser.click("#bar .narrow")
        assert browser.js(seen) == ["list"]
        browser.click("#filters summary")
        assert browser.js("document.documentElement.scrollWidth") <= 400 and browser.complaints == []
    finally: browser.size(1280, 800)


@chromium
@pytest.mark.slow
def test_of_two_thousand_traces_those_in_sight_are_drawn(browser, frame, tmp_path):
    text = "\n".join(frame.trace)
    many = [{"id": f"{i:05}", "trace": text[(k := 37 * i % 9000):k + 5000] + f" mark{i}."} for i in range(2000)]
    page(many, tmp_path / "many.html")
    browser.open((tmp_path / "many.html").as_uri())
    assert shown(browser) == 2000
    assert browser.js("document.querySelectorAll('[role=option]').length") < 60  # what is seen, and a little more
    browser.key("/")
    browser.type("mark1234")
    assert shown(browser) == 1
    browser.key("Escape")
    browser.key("Escape")
    browser.key("End")
    assert "01999" in panes(browser)[0]


@chromium
@pytest.mark.slow
def test_the_command_writes_the_page(browser, jsonl, tmp_path):
    only = ("--variant", "ST", "--variant", "ST-HC")
    done = smoltraces("view", str(jsonl), *only, "--html", "out/page.html", cwd=tmp_path)
    assert done.returncode == 0 and "out/page.html" in done.stdout and "40 traces" in done.stdout, done.stderr
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["page.html"]
    data = re.search(r'application/json"[^>]*>(.*?)</script>', (tmp_path / "out" / "page.html").read_text(), re.S)[1]
    assert all(row["words"] for row in json.loads(data)["rows"])
    browser.open((tmp_path / "out" / "page.html").as_uri())
    assert shown(browser) == 40 and browser.complaints == []
