"""The documentation, built once: every page in a browser, every link, the search, the reference, nothing private."""
import os
import shutil
import subprocess
import sys
from functools import cache
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
from browser import chromium
from conftest import ROOT
from fastcore.docments import docments
from lxml import html

from smoltraces.files import atomic

pytestmark = pytest.mark.slow
NOTEBOOKS = sorted(p.relative_to(ROOT) for p in (ROOT / "nbs").rglob("[0-9]*.ipynb")
                   if ".ipynb_checkpoints" not in p.parts)
RUNS = sorted(p.relative_to(ROOT) for p in ROOT.glob("outputs/reference/*/notebooks/*.ipynb"))
BROKEN = "[...document.images].filter(i => i.complete && !i.naturalWidth).map(i => i.src)"
WIDE = "document.documentElement.scrollWidth - innerWidth"


def build(out: Path, root: Path = ROOT) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, root / "nbs" / "docs" / "build.py", out], capture_output=True, text=True)


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("docs") / "site"
    done = build(out)
    assert done.returncode == 0, done.stdout + done.stderr
    return out


@cache
def page(path: Path): return html.parse(str(path), html.HTMLParser(encoding="utf-8")).getroot()


@cache
def anchors(path: Path) -> set[str]: return set(page(path).xpath("//@id")) | set(page(path).xpath("//a/@name"))


def pages(site: Path) -> list[Path]: return sorted(p for p in site.rglob("*.html") if p.name != "404.html")


def test_every_notebook_has_its_page_and_place(site):
    links = {os.path.normpath(a.get("href")) for a in page(site / "index.html").iter("a") if a.get("href")}
    for path in [*NOTEBOOKS, *RUNS]: assert (site / path.with_suffix(".html")).is_file()
    assert {"nbs/docs/house.html", "nbs/experiments/3_finetune.html", "nbs/style/21_measure.html"} <= links


def test_no_link_is_broken(site):
    broken, outside = [], []
    for path in pages(site):
        for element in page(path).iter("a", "img", "script", "link", "iframe", "source", "object"):
            target = element.get("href") or element.get("src") or element.get("data") or ""
            link = urlsplit(target)
            if link.scheme in ("http", "https") or target.startswith("//"):
                if element.tag != "a": outside.append((path.name, target))
            elif not link.scheme:
                file = Path(os.path.normpath(path.parent / unquote(link.path))) if link.path else path
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
        others = [r for r in browser.requests if not r.startswith((site.as_uri(), "data:", "about:", "blob:"))]
        if images or overflow or others or browser.complaints:
            wrong.append((path.relative_to(site).as_posix(), images, overflow, others, browser.complaints[:2]))
    browser.size(1280, 800)
    assert wrong == []


@chromium
def test_search_finds_from_the_disk(site, browser):
    browser.open((site / "index.html").as_uri())
    browser.click(".md-search__input")
    browser.until("document.activeElement.matches('.md-search__input')")
    browser.type("backtrack")
    browser.key("s") # the search listens to keys
    links = "[...document.querySelectorAll('.md-search-result__link')].map(a => a.href)"
    browser.until(f"{links}.length > 3")
    results = browser.js(links)
    assert any("nbs/style/21_measure.html" in link for link in results)
    assert all(Path(unquote(urlsplit(link).path)).is_file() for link in results) and browser.complaints == []


def test_reference_is_what_the_docments_say(site):
    entry = page(site / "nbs" / "01_files.html").get_element_by_id("smoltraces.files.atomic").getparent()
    rows = [" ".join(row.text_content().split()) for row in entry.iter("tr")]
    comments = docments(atomic.__wrapped__)
    assert any(row.startswith("path") and comments["path"] in row for row in rows)
    assert any(comments["return"] in row for row in rows)


def test_nothing_private_is_in_it(site):
    for path in site.rglob("*"):
        if path.suffix not in (".html", ".js", ".json", ".csv", ".tex", ".md", ".svg", ".xml", ".css"): continue
        content = path.read_text(encoding="utf-8", errors="replace")
        for private in (str(ROOT), str(Path.home()), str(site.parent)):
            assert private not in content, f"{private} in {path.relative_to(site)}"


def test_a_link_to_nowhere_stops_the_build(tmp_path):
    root, out = tmp_path / "clone", tmp_path / "site"
    for part in ("nbs/docs", "smoltraces"): shutil.copytree(ROOT / part, root / part)
    for file in ("settings.ini", "CITATION.cff", "nbs/01_files.ipynb"): shutil.copy(ROOT / file, root / file)
    (root / "README.md").write_text("# Title\n\n[gone](nbs/99_gone.ipynb)\n")
    out.mkdir(), (out / "index.html").write_text("as it was")
    done = build(out, root)
    assert done.returncode and "99_gone" in done.stdout + done.stderr
    assert (out / "index.html").read_text() == "as it was" and [p.name for p in out.iterdir()] == ["index.html"]
