"""The docs site, built once: every page in a browser, every link, the search, the reference, nothing private."""
import json
import shutil
from functools import cache
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
from browser import CONTRAST, chromium
from conftest import ROOT
from fastcore.docments import docments
from lxml import html

from smoltraces.files import atomic
from smoltraces.running.site import GROUPS, build, group
from smoltraces.settings import InputError

LIBRARY = sorted(p.stem for p in (ROOT / "nbs").glob("[0-9]*.ipynb"))
EXPERIMENTS = sorted(p.stem for p in (ROOT / "nbs" / "experiments").glob("*.ipynb"))
RUNS = sorted(p.relative_to(ROOT) for p in ROOT.glob("outputs/reference/*/notebooks/*.ipynb"))
BROKEN = "[...document.images].filter(i => i.complete && !i.naturalWidth).map(i => i.src)"
WIDE = "document.documentElement.scrollWidth - innerWidth"


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
    return build(ROOT, tmp_path_factory.mktemp("docs") / "site").parent


@cache
def page(path: Path): return html.parse(str(path), html.HTMLParser(encoding="utf-8")).getroot()


@cache
def anchors(path: Path) -> set[str]: return set(page(path).xpath("//@id")) | set(page(path).xpath("//a/@name"))


def pages(site: Path) -> list[Path]: return sorted(p for p in site.rglob("*.html") if "_static" not in p.parts)


def within(node, *classes: str) -> list:
    "Elements of the last class inside elements of the others"
    path = "".join(f"//*[contains(concat(' ', @class, ' '), ' {c} ')]" for c in classes)
    return node.xpath(f".{path}")


def links_in(node, *classes: str) -> list: return [a for e in within(node, *classes) for a in e.iter("a")]


def text(node) -> str: return " ".join(node.text_content().split())


def test_every_notebook_has_its_page_and_place(site):
    titles = {a.get("href"): text(a) for a in links_in(page(site / "index.html"), "bd-links")}
    for stem in LIBRARY: assert (site / "nbs" / f"{stem}.html").is_file() and f"nbs/{stem}.html" in titles
    for stem in EXPERIMENTS: assert f"nbs/experiments/{stem}.html" in titles
    for run in RUNS: assert run.with_suffix(".html").as_posix() in titles
    runs = [titles[run.with_suffix(".html").as_posix()] for run in RUNS]
    assert len(set(runs)) == len(runs), "two runs have the same title"
    captions = [text(c) for c in within(page(site / "index.html"), "bd-links", "caption")]
    assert captions == ["Experiments", "Results", *GROUPS, "All names"]
    assert {group(stem) for stem in LIBRARY} == set(GROUPS)


def test_no_link_is_broken(site):
    broken, outside = [], []
    for path in pages(site):
        for element in page(path).iter("a", "img", "script", "link", "iframe", "source", "object"):
            target = element.get("href") or element.get("src") or element.get("data") or ""
            link = urlsplit(target)
            if link.scheme in ("http", "https") or target.startswith("//"):
                if element.tag != "a": outside.append((path.name, target))
            elif not link.scheme:
                file = (path.parent / unquote(link.path)).resolve() if link.path else path
                lost = link.fragment and file.suffix == ".html" and file.is_file() and (
                    unquote(link.fragment) not in anchors(file))
                if not file.is_file() or lost: broken.append((path.relative_to(site).as_posix(), target))
    assert broken == [] and outside == []


@chromium
def test_every_page_opens_whole_and_asks_for_nothing_outside(site, browser):
    wrong = []
    for path in pages(site):
        browser.size(1280, 800)
        browser.open(path.as_uri())
        images, overflow = browser.js(BROKEN), []
        for width in (1280, 390):
            browser.size(width, 800)
            if (more := browser.js(WIDE)) > 0: overflow.append((width, more))
        asked = [r for r in browser.requests if not r.startswith((site.as_uri(), "data:", "about:"))]
        if images or overflow or asked or browser.complaints:
            wrong.append((path.relative_to(site).as_posix(), images, overflow, asked, browser.complaints[:2]))
    browser.size(1280, 800)
    assert wrong == []


@chromium
def test_search_finds_from_the_disk(site, browser):
    browser.open((site / "index.html").as_uri())
    browser.click(".bd-sidebar-primary .search-button-field")
    browser.until("document.activeElement.name === 'q'")
    browser.type("backtracks")
    browser.key("Enter")
    links = "[...document.querySelectorAll('#search-results li a')].map(a => a.href)"
    browser.until(f"location.pathname.endsWith('search.html') && {links}.length > 3")
    found = browser.js(links)
    assert any("nbs/21_style.html" in link for link in found)
    assert all(Path(unquote(urlsplit(link).path)).is_file() for link in found) and browser.complaints == []


@chromium
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_traces_and_reference_can_be_read(site, browser, scheme):
    browser.scheme(scheme)
    browser.open((site / "nbs" / "23_viewer.html").as_uri())
    assert browser.js("document.documentElement.dataset.theme") == scheme
    assert browser.js("document.querySelector('.smoltraces-view').getBoundingClientRect().height") > 50
    for selector in (".smoltraces-view span", "dl.py code, dl.py dt span, dl.py p", ".highlight span:not(.w)"):
        worst, where = browser.js(CONTRAST.replace("SELECTOR", json.dumps(selector)))[0]
        assert worst > 4.5, where
    browser.scheme("light")


def test_reference_is_what_the_docments_say(site):
    files = page(site / "nbs" / "01_files.html")
    entry, = files.xpath("//dt[@id='smoltraces.files.atomic']/parent::dl")
    assert text(entry.find("dt")).startswith("atomic(path, durable=True)")
    rows = [[text(cell) for cell in row.iter("td")] for row in entry.iter("tr")]
    said = docments(atomic.__wrapped__)
    assert [row for row in rows if row] == [["path: Path", said["path"]], ["durable: bool = True", said["durable"]],
                                            ["-> Iterator[Path]", said["return"]]]
    source = within(entry, "source")[0].get("href").removeprefix("#")
    assert "def atomic(" in files.get_element_by_id(source).text_content()


def test_names_lead_to_their_entries(site):
    named = page(site / "index.html").xpath("//article//a[code]")
    links = {text(a): a.get("href") for a in named}
    assert links["smoltraces.settings"] == "nbs/00_settings.html#module-smoltraces.settings"


def test_pages_show_what_readers_need(site):
    for stem in LIBRARY:
        code = [text(e) for e in within(page(site / "nbs" / f"{stem}.html"), "cell_input")]
        assert code and not any(c.startswith("#|") for c in code), stem
    hidden = next("".join(c["source"]) for c in json.loads((ROOT / "nbs" / "23_pages.ipynb").read_text())["cells"]
                  if "".join(c["source"]).startswith("#| hide\ntest_eq"))
    shown = "\n".join(e.text_content() for e in within(page(site / "nbs" / "23_pages.html"), "cell_input"))
    assert hidden.splitlines()[1] not in shown and "def visible(" in shown


def test_runs_and_their_notebooks_lead_to_each_other(site):
    for run in RUNS:
        stem = next(e for e in EXPERIMENTS if run.stem == e or run.stem.startswith(f"{e}-"))
        there = links_in(page(site / run.with_suffix(".html")), "admonition")
        back = links_in(page(site / "nbs" / "experiments" / f"{stem}.html"), "admonition")
        assert f"../../../../nbs/experiments/{stem}.html" in [a.get("href") for a in there]
        assert f"../../{run.with_suffix('.html').as_posix()}" in [a.get("href") for a in back]


def test_nothing_private_is_in_it(site):
    for path in site.rglob("*"):
        if path.suffix not in (".html", ".js", ".csv", ".tex", ".md", ".svg", ".ini", ".inv", ".css"): continue
        content = path.read_text(encoding="utf-8", errors="replace")
        for private in (str(ROOT), str(Path.home()), str(site.parent)):
            assert private not in content, f"{private} in {path.relative_to(site)}"


def test_a_link_to_nowhere_stops_the_build(tmp_path):
    (tmp_path / "nbs" / "experiments").mkdir(parents=True)
    shutil.copy(ROOT / "nbs" / "01_files.ipynb", tmp_path / "nbs")
    (tmp_path / "README.md").write_text("# Title\n\n[gone](nbs/99_gone.ipynb)\n")
    out = tmp_path / "site"
    out.mkdir(), (out / "index.html").write_text("as it was")
    with pytest.raises(InputError, match=r"index\.md:3: .*nbs/99_gone\.ipynb"): build(tmp_path, out)
    assert (out / "index.html").read_text() == "as it was"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["README.md", "nbs", "site"]
