"""The page of a run: what it says, what it leaves out, and that nothing in it runs or asks for anything."""
import json
import re
import shutil

import pandas as pd
import pytest
from browser import CONTRAST, NAMELESS, chromium
from conftest import ROOT, SECRET, project
from report_runs import CANARY, EVIL, run

from smoltraces.evaluation.benchmarks import seal
from smoltraces.evidence.figures import FIGURES
from smoltraces.evidence.report import MOST, all_files, answered, choose, excerpts, notebook_cells, report
from smoltraces.files import read_parquet, sha256, write_json, write_parquet
from smoltraces.settings import InputError, Settings, load_settings


def in_browser(test): return chromium(pytest.mark.slow(test))


@pytest.fixture(scope="module")
def cfg(tmp_path_factory) -> Settings:
    return run(tmp_path_factory.mktemp("run"), benchmarks="embedded, embedded_hard, gpqa_diamond",
               evaluate_teacher=True, learning_rate=1e-5, max_length=1023,
               student_url=f"https://ana:{SECRET}@host/v1")


@pytest.fixture(scope="module")
def page(cfg, tmp_path_factory):
    report(cfg)
    return cfg.path("report.html")


@pytest.fixture(scope="module")
def attack(tmp_path_factory):
    return report(run(tmp_path_factory.mktemp("attack"), hostile=True, students=EVIL))


def sample(page) -> dict:
    return json.loads(re.search(r'id="data">(.*?)</script>', page.read_text(), re.S)[1])


# ---- what it says

def test_claims_come_first_and_say_what_they_rest_on(cfg, page):
    source, claims = page.read_text(), read_parquet(cfg.path("claims.parquet"))
    sections = re.findall(r'<h2 id="(\w+)"', source)
    assert sections == ["claims", "tables", "figures", "funnel", "outputs", "made"]
    told = source[source.index('id="claims"'):source.index('id="tables"')]
    for sentence in claims.sentence.unique(): assert sentence in told
    for verdict, n in claims.verdict.value_counts().items(): # in the rows, and once in the sum
        assert told.count(f" {verdict}</span>") == n + 1, verdict
    assert len({re.search(r">(.) ", chip)[1] for chip in re.findall(r'class="chip [^"]+">[^<]*', told)}) >= 2
    row = claims[claims.claim == "ST-HC above Base"].iloc[0]
    assert f"{100 * row.estimate:+.1f} [{100 * row.low:.1f}, {100 * row.high:.1f}]" in told
    for cell in claims.cell.unique():
        if cell not in notebook_cells(cfg): continue
        assert f'href="notebooks/5_figures.ipynb#cell-id={notebook_cells(cfg)[cell][0]}"' in told


def test_cells_are_found_by_tag(tmp_path):
    cells = [{"cell_type": "markdown", "source": ["# T\n", "\n", "## Style\n"], "id": "a", "metadata": {}},
             {"cell_type": "code", "source": [], "id": "b0<", "metadata": {"tags": ["style"]}}]
    at = load_settings("laptop", start=project(tmp_path))
    write_json(tmp_path / "nbs" / "experiments" / "5_figures.ipynb", {"cells": cells})
    assert notebook_cells(at) == {"style": ("b0<", "Style")}


def test_the_data_funnel_and_the_making(cfg, page):
    source = page.read_text()
    for word in ("1,234", "seed problems", "wrong answer 8", "emergent@1",  # funnel
                 "learning_rate", "1e-05", "1023", "1024", "trl", "1.15.0", "a" * 16, "b" * 16, "d" * 64, "c" * 64,
                 "f" * 64, "x86_64", "61.5", "gpt-4o", "cost_usd"): assert word in source, word
    changed = source[source.index("<h3>Settings"):source.index("The other settings")]
    assert changed.index("learning_rate") < changed.index("n_train")
    assert "5_figures</" not in source  # its own record would change it when it is written again
    for word in (str(cfg.root), "/home/ana", SECRET, "ana:"): assert word not in source, word
    assert not re.search(r"20\d\d-\d\d-\d\d", source.replace("2025-04-01", ""))  # no date but that of the prices


def test_same_run_same_bytes(cfg, page):
    before = sha256(page)
    write_json(cfg.path("runs", "5_figures.json"), {"stage": "5_figures", "seconds": 99})
    assert sha256(report(cfg)) == before


# ---- the sample

def test_the_sample_holds_every_kind_and_whole_problems(cfg, page):
    index, shown = answered(cfg), sample(page)
    kinds = ["student", "variant", "benchmark", "outcome"]
    chosen = choose(index)
    assert len(shown["rows"]) == len(chosen) <= MOST < len(index) == shown["total"]
    assert len(chosen[kinds].drop_duplicates()) == len(index[kinds].drop_duplicates())
    per_problem = pd.Series([row["problem"] for row in shown["rows"]]).value_counts()
    assert (per_problem == 14).mean() > 0.8  # of two students in six variants, and of the teacher in two
    row = next(r for r in shown["rows"] if r["left"])
    assert row["left"] > 1000 and row["runs"] and row["tail"]
    assert next(r for r in shown["rows"] if r["variant"] == "ST")["response"].startswith("So \\boxed{")
    assert all(p["question"] for p in shown["problems"])


def test_sealed_benchmarks_are_left_out_and_named(page):
    source = page.read_text()
    for word in CANARY.split(): assert word not in source
    assert seal(CANARY)[:12] not in source and seal(CANARY)[-24:] not in source
    assert "Outputs on GPQA Diamond are left out" in source and sample(page)["sealed"] == ["gpqa_diamond"]


def test_a_huge_output_is_cut(tmp_path):
    cfg = run(tmp_path, students="made-up/one", variants="ST", n_test=4, n_hard=4)
    file = next(iter(all_files(cfg).values()))
    write_parquet(file, read_parquet(file).assign(output="Wait, no. " * 20_000 + "THE END"))
    page = report(cfg)
    assert page.stat().st_size < 1_000_000
    row = next(r for r in sample(page)["rows"] if r["left"])
    assert row["left"] == 200_007 - 6000 and "THE END" in json.dumps(row["tail"]) and row["pivots"][0] >= 20_000


# ---- what is missing

def test_what_is_missing_is_named(tmp_path):
    cfg = run(tmp_path, students="made-up/one", n_test=6, n_hard=4)
    assert "Missing:" not in report(cfg).read_text() and "Asked for" not in report(cfg).read_text()
    for key, file in all_files(cfg).items():
        if key[1] == "SBS": file.unlink()
    cfg.path("figures", "accuracy.svg").unlink()
    cfg.path("claims.parquet").unlink()
    source = report(cfg).read_text()
    assert "SBS on embedded; SBS on embedded, harder" in source and "figures/accuracy.svg" in source
    assert "<h3>Accuracy</h3>" in source
    for name in ("comparisons.parquet", "data/manifest.json", "problems/funnel.json"): cfg.path(name).unlink()
    source = report(cfg).read_text()
    assert "comparisons.parquet: run" in source and "run 1_build_data" in source
    for file in all_files(cfg).values(): file.unlink(missing_ok=True)
    assert "There is no output to show." in report(cfg).read_text()


def test_a_broken_file_is_named(tmp_path):
    cfg = run(tmp_path, students="made-up/one", variants="ST", n_test=4, n_hard=4)
    file = next(iter(all_files(cfg).values()))
    whole = file.read_bytes()
    file.write_bytes(whole[:100])
    with pytest.raises(InputError, match=r"embedded\.parquet is not a whole Parquet file"): report(cfg)
    file.write_bytes(whole)
    write_parquet(file, read_parquet(file).drop(columns="truncated"))
    with pytest.raises(InputError, match="lacks one of the columns .*truncated"): report(cfg)
    assert not list(cfg.path().glob(".*partial"))


# ---- a browser

def shown(browser) -> int: return int(browser.js("document.querySelector('#count').textContent").split()[0])


def drawn(browser, details: str = ".answers details"):
    "Wait for what is drawn once an answer has opened"
    browser.until(f"(all => all.length && all.every(d => d.open && d.children.length > 1))"
                  f"([...document.querySelectorAll('{details}')])")


def unfold(browser):
    browser.js("document.querySelectorAll('details').forEach(d => d.open = true)")
    drawn(browser)


@in_browser
def test_filters_search_and_comparing(browser, page):
    rows = pd.DataFrame(sample(page)["rows"])
    browser.size(1280, 900)
    browser.open(page.as_uri())
    assert shown(browser) == len(rows) and browser.js("document.querySelectorAll('.problem').length") <= 12
    browser.js("document.querySelector('#by-variant').focus()")
    for _ in range(2): browser.key("ArrowDown")
    second = list(dict.fromkeys(rows.variant))[1]
    assert shown(browser) == (rows.variant == second).sum()
    browser.js("document.querySelector('#by-answer').focus()")
    for _ in range(3): browser.key("ArrowDown")
    assert shown(browser) == ((rows.variant == second) & (rows.outcome == 2)).sum() > 0
    chips = "[...document.querySelectorAll('.problem .chip')].map(e => e.textContent)"
    assert set(browser.js(chips)) == {"… cut off"}
    browser.click("#whole")  # and what the others answered
    assert len(set(browser.js(chips))) > 1
    browser.click("#clear")
    assert shown(browser) == len(rows) and browser.js("document.activeElement.id") == "query"
    browser.type('"wait, that" wrong')
    assert shown(browser) == len(rows)
    assert browser.js("CSS.highlights.get('hit').size") > 10
    browser.js("query.value = ''; query.focus()")
    browser.type("no such words")
    assert shown(browser) == 0 and browser.js("$('problems').textContent") == "No answer matches."
    browser.click("#clear")
    browser.click(".problem button")
    lefts = browser.js("[...document.querySelectorAll('.beside details')].map(d => d.getBoundingClientRect().left)")
    drawn(browser, ".beside details")
    assert len(set(lefts)) > 1 and browser.js("document.querySelectorAll('.beside .output mark').length") > 3
    assert browser.complaints == []


@in_browser
def test_keys_reach_everything(browser, page):
    browser.size(1280, 900)
    browser.open(page.as_uri())
    reached = set()
    for _ in range(200):
        browser.key("Tab")
        reached.add(browser.js("(e => e.id || e.tagName + (e.className && '.' + e.className))(document.activeElement)"))
    assert {"A", "SUMMARY", "query", "by-student", "by-variant", "by-answer", "BUTTON"} <= reached
    browser.js("document.querySelector('.problem summary').focus()")
    browser.key("Enter")
    assert browser.js("document.querySelector('.problem details').open")
    browser.js("$('more').focus()")
    before = browser.js("document.querySelectorAll('.problem').length")
    browser.key("Enter")
    assert browser.js("document.querySelectorAll('.problem').length") > before
    assert browser.js("document.activeElement.closest('.problem') !== null")
    assert browser.js(NAMELESS) == [] and browser.js("document.documentElement.lang") == "en"
    assert browser.js("[...document.images].every(i => i.alt.length > 10) && document.images.length") == len(FIGURES)
    levels = browser.js("[...document.querySelectorAll('h1, h2, h3')].map(h => +h.tagName[1])")
    assert levels[0] == 1 and all(b - a <= 1 for a, b in zip(levels, levels[1:], strict=False))
    assert browser.js("new Set([...document.querySelectorAll('[id]')].map(e => e.id)).size === "
                      "document.querySelectorAll('[id]').length")


@in_browser
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_page_is_legible(browser, attack, scheme):
    browser.size(1280, 900)
    browser.scheme(scheme)
    browser.open(attack.as_uri())
    unfold(browser)
    worst = browser.js(CONTRAST.replace("SELECTOR", "'h1, h2, h3, p, a, td, th, small, summary *, mark, .text, .stage, "
                                        ".chip, figcaption, button, label, option, #count, #legend *'"))
    browser.scheme("light")
    assert len(worst) > 200 and worst[0][0] >= 4.5, worst[:3]


@in_browser
def test_a_narrow_window_and_paper(browser, page, attack):
    browser.size(400, 800)
    try:
        for one in (page, attack):
            browser.open(one.as_uri())
            unfold(browser)
            assert browser.js("document.documentElement.scrollWidth") <= 400
            assert browser.js("[...document.querySelectorAll('.wide')].filter(w => w.scrollWidth > w.clientWidth)"
                              ".every(w => w.tabIndex === 0)")
            wide = "[...document.querySelectorAll('.problem')].filter(p => p.scrollWidth > p.clientWidth + 1).length"
            assert browser.js(wide) == 0
    finally: browser.size(1280, 900)
    browser.open(page.as_uri())
    browser("Emulation.setEmulatedMedia", media="print")
    seen = "['nav', '#controls', '#more', '#verdicts'].map(s => document.querySelector(s).getClientRects().length > 0)"
    folded = "[...document.querySelectorAll('details.facts')].map(d => d.open)"
    assert browser.js(seen) == [False, False, False, True] and not any(browser.js(folded))
    browser.js("dispatchEvent(new Event('beforeprint'))")
    assert all(browser.js(folded))
    browser.js("dispatchEvent(new Event('afterprint'))")
    assert not any(browser.js(folded)) and browser.complaints == []
    browser("Emulation.setEmulatedMedia", media="")


def test_the_reference_run(tmp_path):
    "The committed laptop run makes a page; what it lacks is named"
    reference = ROOT / "outputs" / "reference" / "laptop"
    cfg = load_settings("laptop", start=project(tmp_path))
    shutil.copytree(reference, cfg.path())
    source = report(cfg).read_text()
    assert 'id="claims"' in source and excerpts(cfg, 60)["rows"]
    assert not re.search(r"/(home|root|tmp|work|Users)/", source)
