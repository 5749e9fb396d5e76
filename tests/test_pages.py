"""Whatever the text in a page tries, it stays text, and the page loads and runs nothing but itself."""
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
from browser import ATTACKS, HOSTILE, Browser, chromium, squeezed
from report_runs import EVIL, KINDS, run

from smoltraces.evidence.report import report
from smoltraces.files import visible
from smoltraces.style.viewer import page

pytestmark = [chromium, pytest.mark.slow]


class Page(NamedTuple):
    path: Path # Every text in it attacks
    walk: Callable[[Browser], Iterator[str]] # Uses the page, and gives the text that it shows at each step
    scripts: int # Elements
    attacks: tuple[str, ...] = tuple(ATTACKS)


def hostile_rows() -> list[dict]:
    names = ("id", "variant", "question", "answer", "response")
    return [dict.fromkeys([*names, attack], attack) | {"correct": False, "trace": HOSTILE} for attack in ATTACKS]


def walk_list(browser: Browser) -> Iterator[str]:
    browser.click("#list")
    for key in [*["ArrowDown"] * len(ATTACKS), "p"]:
        browser.key(key)
        yield browser.js("document.querySelector('main').textContent")
    browser.key("/")
    browser.type("onerror")
    assert browser.js("document.querySelector('#count').textContent").startswith(f"{len(ATTACKS)} ")


def walk_report(browser: Browser) -> Iterator[str]:
    while browser.js("!$('more').hidden"): browser.click("#more")
    browser.js("document.querySelectorAll('details').forEach(d => d.open = true)")
    browser.until("[...document.querySelectorAll('.answers details')].every(d => d.children.length > 1)")
    assert browser.js("[...document.images].length && [...document.images].every(i => i.naturalWidth)")
    yield browser.js("document.body.innerText")


@pytest.fixture(scope="module")
def viewer_page(tmp_path_factory) -> Page:
    path = tmp_path_factory.mktemp("viewer") / "viewer.html"
    return Page(page(hostile_rows(), path, title=" ".join(ATTACKS)), walk_list, scripts=2)


@pytest.fixture(scope="module")
def report_page(tmp_path_factory) -> Page:
    path = report(run(tmp_path_factory.mktemp("report"), hostile=True, students=EVIL))
    return Page(path, walk_report, scripts=2, attacks=tuple(KINDS))


PAGES = ["viewer_page", "report_page"] # fixtures that give a Page


@pytest.mark.parametrize("name", PAGES)
def test_hostile_text_stays_text(browser, name, request):
    page: Page = request.getfixturevalue(name)
    browser.open(page.path.as_uri())
    shown = squeezed("".join(page.walk(browser)))
    for attack in page.attacks: assert squeezed(visible(attack)) in shown, attack
    browser.js("new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))") # handlers have run
    assert browser.js("[window.pwned, document.scripts.length]") == [None, page.scripts]
    bad = ("iframe, object, embed, svg:not(.forest), [onclick], [onerror], img:not([src^='data:']), "
           "a[href^='javascript' i]")
    assert browser.js(f'document.querySelectorAll("{bad}").length') == 0
    assert browser.complaints == []
    assert [url for url in browser.requests if not url.startswith("data:")] == [page.path.as_uri()]
    source = page.path.read_text(encoding="utf-8")
    assert source.count("<script") == source.count("</script>") == page.scripts and "<!--" not in source
    assert not re.search(r"(src|href)=.?https?:|[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\u202e]", source)


@pytest.mark.parametrize("name", PAGES)
def test_the_policy_forbids_what_the_page_would_never_do(browser, name, request):
    page: Page = request.getfixturevalue(name)
    browser.open(page.path.as_uri())
    browser.js("""(() => {
      window.barred = []; document.addEventListener("securitypolicyviolation", e => barred.push(e.effectiveDirective));
      const image = new Image(); image.src = "http://127.0.0.1:9/x.png"; document.body.append(image);
      fetch("http://127.0.0.1:9/").catch(() => 0);
      const frame = document.createElement("iframe"); frame.src = "http://127.0.0.1:9/"; document.body.append(frame);
      const script = document.createElement("script"), attempts = {
        handler: () => { document.body.setAttribute("onclick", "window.pwned = 1"); document.body.click(); },
        script: () => { script.append("window.pwned = 1"); document.body.append(script); },
        html: () => { document.body.innerHTML = "<img src=x onerror=window.pwned=1>"; } };
      for (const [name, attempt] of Object.entries(attempts)) try { attempt(); } catch { barred.push(name); }
    })()""")
    browser.until("['img-src', 'connect-src', 'frame-src', 'handler', 'html'].every(what => barred.includes(what))")
    assert browser.js("window.pwned") is None
