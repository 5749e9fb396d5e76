"""A new reader's first hour in a browser: `make lab`, a notebook by Run-All, a trace, the report, a failed cell."""
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from browser import Browser, chromium
from conftest import ROOT, environment

TOKEN = "walked-by-a-test"
NOTEBOOK = "[...document.querySelectorAll('.jp-NotebookPanel')].find(p => p.offsetParent)"
PARTS = ("nbs", "outputs/reference")
FILES = ("Makefile", "settings.ini", "README.md", "LICENSE", "CITATION.cff", "pyproject.toml", "requirements.lock")


@pytest.fixture(scope="module")
def clone(smoke, tmp_path_factory) -> Path:
    "What a reader has after `git clone` and `make reproduce PROFILE=smoke`, but for the weights"
    folder = tmp_path_factory.mktemp("clone")
    without = shutil.ignore_patterns(".ipynb_checkpoints", "students")
    for name in PARTS: shutil.copytree(ROOT / name, folder / name, ignore=without)
    for name in FILES: shutil.copy(ROOT / name, folder)
    shutil.copytree(smoke / "outputs" / "smoke", folder / "outputs" / "smoke", ignore=without)
    return folder


@pytest.fixture(scope="module")
def proxy():
    "Where the server would go for anything outside this machine; nobody answers"
    with socket.create_server(("127.0.0.1", 0)) as listening:
        listening.setblocking(False)
        yield listening


@pytest.fixture(scope="module")
def lab(clone, proxy, tmp_path_factory) -> str:
    "The address that `make lab` opens"
    home = tmp_path_factory.mktemp("jupyter")
    with socket.create_server(("127.0.0.1", 0)) as free: port = free.getsockname()[1]
    server = {"open_browser": False, "allow_root": True, "ip": "127.0.0.1", "port": port, "port_retries": 0}
    (home / "config").mkdir()
    (home / "config" / "jupyter_server_config.json").write_text(
        json.dumps({"ServerApp": server, "IdentityProvider": {"token": TOKEN}}))
    outside = f"http://127.0.0.1:{proxy.getsockname()[1]}"
    env = environment(HTTP_PROXY=outside, HTTPS_PROXY=outside, NO_PROXY="127.0.0.1,localhost", IPYTHONDIR=str(home),
                      **{f"JUPYTER_{name.upper()}_DIR": str(home / name) for name in ("config", "data", "runtime")})
    command = ["make", "-o", ".venv/ready", "lab", f"BIN={Path(sys.executable).parent}"]
    with open(home / "log", "w") as log:
        process = subprocess.Popen(command, cwd=clone, env=env, stdout=log, stderr=log, start_new_session=True)
    try: yield _address(home, process)
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        process.wait(30)


def _address(home: Path, process) -> str:
    end = time.monotonic() + 120
    while time.monotonic() < end and process.poll() is None:
        for page in home.glob("runtime/jpserver-file-to-run-*.html"):
            if address := re.search(r"http://127\.0\.0\.1:\d+/[^\"]*", page.read_text()): return address[0]
        time.sleep(0.2)
    raise AssertionError((home / "log").read_text())


@pytest.fixture(scope="module")
def page(lab, browser) -> Browser:
    browser.size(1400, 900)
    browser.open(lab)
    return browser


def press(page: Browser, element: str, clicks: int = 1):
    "Click where an element is, when it is there"
    page.until(f"!!({element})", 60)
    x, y = page.js(f"(() => {{ const e = {element}; e.scrollIntoView({{block: 'center'}}); "
                   "const r = e.getBoundingClientRect(); return [r.x + r.width / 2, r.y + r.height / 2]; })()")
    page("Input.dispatchMouseEvent", type="mouseMoved", x=x, y=y)
    for n in range(1, clicks + 1):
        for kind in ("mousePressed", "mouseReleased"):
            page("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=n)


def choose(page: Browser, menu: str, item: str):
    press(page, f"[...document.querySelectorAll('.lm-MenuBar-itemLabel')].find(e => e.textContent === '{menu}')")
    press(page, f"[...document.querySelectorAll('.lm-Menu-itemLabel')].find(e => e.textContent === '{item}')")


def follow(page: Browser, end: str):
    "Click a link of the notebook that is in front"
    press(page, f"{NOTEBOOK}?.querySelector('.jp-RenderedMarkdown a[href*={json.dumps(end)}]')")


def front(page: Browser, title: str):
    tab = f"[...document.querySelectorAll('#jp-main-dock-panel .lm-TabBar-tab')].find(e => e.title.includes('{title}'))"
    press(page, tab)


def run_all(page: Browser, seconds: float):
    "Run all cells, and wait until every one has run, or one has failed"
    page.until("document.querySelector('#jp-main-statusbar').innerText.includes('| Idle')", 90) # its kernel is there
    choose(page, "Run", "Run All Cells")
    page.until(f"""(() => {{
      const prompts = [...{NOTEBOOK}.querySelectorAll('.jp-CodeCell .jp-InputPrompt')].map(e => e.textContent.trim());
      return prompts[0] !== '[ ]:' && !prompts.includes('[*]:')
    }})()""", seconds)


def saved(page: Browser, file: Path) -> list[dict]:
    "The code cells of a notebook, after it was saved from the menu"
    choose(page, "File", "Save Notebook")
    page.until("!document.querySelector('#jp-main-dock-panel .lm-mod-current.jp-mod-dirty, "
               "#jp-main-dock-panel .lm-TabBar-tab.lm-mod-current.jp-mod-dirty')", 30)
    return [cell for cell in json.loads(file.read_text())["cells"] if cell["cell_type"] == "code"]


def test_links_of_the_index_are_files_of_a_clone():
    text = "".join("".join(cell["source"]) for cell in json.loads((ROOT / "nbs/index.ipynb").read_text())["cells"])
    links = re.findall(r"\]\((?!https?://|#)([^)#]+)", text)
    assert links and [link for link in links if not (ROOT / "nbs" / link).is_file()] == [] # no folders


@pytest.mark.slow
@chromium
def test_walk(page, clone):
    page.until(f"!!{NOTEBOOK}?.querySelector('h1')?.textContent.startsWith('SmolTraces')", 120)
    follow(page, "/nbs/experiments/2_analyse_traces.ipynb")
    page.until(f"!!{NOTEBOOK}?.querySelector('h1')?.textContent.startsWith('Experiment 2')", 60)

    words = f"[...{NOTEBOOK}.querySelectorAll('.jp-CodeCell .cm-content span')]"
    press(page, f"{words}.find(e => e.textContent === '\"laptop\"')", clicks=2) # marks the word between the quotes
    page.type("smoke")
    page.until(f"{NOTEBOOK}.querySelector('.jp-CodeCell .cm-content').textContent.startsWith('profile = \"smoke\"')")
    run_all(page, 240)
    cells = saved(page, clone / "nbs/experiments/2_analyse_traces.ipynb")
    wrong = [o for cell in cells for o in cell["outputs"] if o["output_type"] == "error"]
    assert [(o["ename"], o["evalue"]) for o in wrong] == []
    assert all(cell["execution_count"] for cell in cells) and sum(bool(cell["outputs"]) for cell in cells) > 10


@pytest.mark.slow
@chromium
def test_a_trace_is_seen_with_its_pivots_coloured(page):
    front(page, "2_analyse_traces")
    marks = f"[...{NOTEBOOK}.querySelectorAll('.smoltraces-box span[title]')]" # in the text, not in its legend
    page.until(f"{marks}.length > 3")
    page.js(f"{marks}[0].scrollIntoView({{block: 'center'}})")
    assert page.js(f"{marks}.some(e => /wait|check|what if|now i see/i.test(e.textContent))")
    assert page.js(f"new Set({marks}.map(e => getComputedStyle(e).backgroundColor)).size") > 2
    box = page.js(f"(() => {{ const r = {marks}[0].getBoundingClientRect(); return [r.width, r.height, r.y]; }})()")
    assert box[0] > 10 and box[1] > 8 and 0 < box[2] < 900


@pytest.mark.slow
@chromium
def test_the_report_opens_from_the_files(page):
    tree = "[...document.querySelectorAll('.jp-DirListing-item')].find(e => e.textContent.startsWith('{}'))"
    press(page, "document.querySelector('.jp-BreadCrumbs-home')")
    for name in ("outputs", "smoke", "report.html"): press(page, tree.format(name), clicks=2)
    inside = "document.querySelector('.jp-HTMLViewer iframe')?.contentDocument"
    page.until(f"!!{inside}?.querySelector('h1')?.textContent.includes('smoke')", 60)
    page.until(f"{inside}.images.length > 3 && [...{inside}.images].every(e => e.complete && e.naturalWidth > 50)")


@pytest.mark.slow
@chromium
def test_an_executed_copy_of_the_reference_run_opens(page):
    front(page, "index.ipynb")
    follow(page, "reference/laptop/notebooks/2_analyse_traces-students.ipynb")
    page.until(f"!!{NOTEBOOK}?.querySelector('h1')?.textContent.startsWith('Experiment 2')", 60)
    page.until(f"{NOTEBOOK}.querySelectorAll('.jp-OutputArea-output img').length > 3", 60)
    pivot = f"[...{NOTEBOOK}.querySelectorAll('span[title=verification]')].pop()" # the notebook is not trusted here
    assert page.js(f"getComputedStyle({pivot}).backgroundColor") not in ("", "rgba(0, 0, 0, 0)")


@pytest.mark.slow
@chromium
def test_a_failed_notebook_leads_to_its_error(page, clone):
    import nbformat
    import papermill
    cells = [nbformat.v4.new_code_cell(f"for k in range(12): print({i}, k)") for i in range(12)]
    cells.insert(8, nbformat.v4.new_code_cell("raise ValueError('a planted error')"))
    notebook, name = nbformat.v4.new_notebook(cells=cells), "failed.ipynb"
    notebook.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3", "language": "python"}
    nbformat.write(notebook, clone / name)
    with pytest.raises(papermill.PapermillExecutionError):
        papermill.execute_notebook(clone / name, clone / "outputs/smoke/notebooks" / name, progress_bar=False)
    page.until("!!document.querySelector('.jp-BreadCrumbs-item')")
    tree = "[...document.querySelectorAll('.jp-DirListing-item')].find(e => e.textContent.startsWith('{}'))"
    press(page, "document.querySelector('.jp-BreadCrumbs-home')")
    for part in ("outputs", "smoke", "notebooks", "failed.ipynb"): press(page, tree.format(part), clicks=2)
    press(page, f"{NOTEBOOK}?.querySelector('a[href*=papermill-error-cell]')")
    error = f"[...{NOTEBOOK}.querySelectorAll('.jp-RenderedText')].find(e => e.textContent.includes('a planted error'))"
    page.until(f"(r => r?.y > 0 && r.y < 850)({error}?.getBoundingClientRect())")


@pytest.mark.slow
@chromium
def test_the_status_leads_to_the_cell_that_broke(page, clone):
    import nbformat
    folder = clone / "outputs/smoke"
    cell = "from smoltraces.running.status import status\nstatus(load_settings('smoke'))"
    shutil.copy(folder / "notebooks/failed.ipynb", folder / "notebooks/5_figures.ipynb")
    (folder / "runs/5_figures.failed.json").write_text(json.dumps(
        {"stage": "5_figures", "kind": "ValueError", "why": "ValueError: a planted error", "seconds": 1.0}))
    look = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(
        f"from smoltraces.settings import load_settings\n{cell}")])
    look.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3", "language": "python"}
    nbformat.write(look, clone / "nbs/look.ipynb")
    tree = "[...document.querySelectorAll('.jp-DirListing-item')].find(e => e.textContent.startsWith('{}'))"
    press(page, "document.querySelector('.jp-BreadCrumbs-home')")
    for part in ("nbs", "look.ipynb"): press(page, tree.format(part), clicks=2)
    page.until(f"{NOTEBOOK}?.querySelectorAll('.jp-CodeCell').length === 1", 60)
    run_all(page, 60)
    follow(page, "5_figures.ipynb")
    page.until(f"{NOTEBOOK}?.querySelectorAll('.jp-CodeCell').length > 8", 60)
    front(page, "look.ipynb")  # JupyterLab goes to a cell of a notebook that is open
    follow(page, "5_figures.ipynb")
    error = f"[...{NOTEBOOK}.querySelectorAll('.jp-RenderedText')].find(e => e.textContent.includes('a planted error'))"
    page.until(f"(r => r?.y > 0 && r.y < 850)({error}?.getBoundingClientRect())")


@pytest.mark.slow
@chromium
def test_nothing_was_asked_of_another_machine(page, proxy):
    with pytest.raises(BlockingIOError): proxy.accept() # the server never went there
    own = page.js("location.origin")
    outside = [url for url in page.requests if not url.startswith((own, "data:", "blob:", own.replace("http", "ws")))]
    assert outside == [] and len(page.requests) > 100
    assert page.js("document.querySelectorAll('.Toastify__toast, .jp-Dialog').length") == 0 # no news, no question
