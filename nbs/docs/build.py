"""The notebooks, the reference and the committed results as a site, in outputs/site.

A library notebook becomes a page that ends with the reference of its module; a run's executed notebooks become pages
beside its tables and figures. Usage: python nbs/docs/build.py [OUT]
"""
import logging
import os
import re
import shutil
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

import nbformat
import yaml
from graph import draw
from mkdocs.commands.build import build
from mkdocs.config import load_config
from nbconvert import MarkdownExporter

from smoltraces.evidence.figures import FIGURES
from smoltraces.evidence.tables import TITLES
from smoltraces.files import atomic

HERE, ROOT = Path(__file__).parent, Path(__file__).parents[2]
ROOMS = {"": "Ground", "problems": "Problems", "style": "Style", "traces": "Traces", "students": "Students",
         "evaluation": "Evaluation", "evidence": "Evidence", "running": "Running"}
HIDDEN = re.compile(r"#\| *(hide|default_exp)")
IMPORTS = re.compile(r"(from|import) ")


def visible(notebook):
    "The notebook without the cells that only serve the machine, and without directives"
    cells = []
    for cell in notebook.cells:
        if cell.cell_type == "code":
            if HIDDEN.match(cell.source): continue
            exported = cell.source.startswith("#| export")
            cell.source = re.sub(r"^#\|.*\n?", "", cell.source, flags=re.M).strip("\n")
            if not cell.source or exported and IMPORTS.match(cell.source): continue
        cell.metadata = {}
        cells.append(cell)
    notebook.cells = cells
    return notebook


def to_markdown(notebook, source: Path, page: Path, note: str = "", end: str = ""):
    "Write a page, its images in a folder beside it"
    resources = {"unique_key": page.stem, "output_files_dir": f"{page.stem}_files"}
    body, extra = MarkdownExporter(exclude_input_prompt=True).from_notebook_node(notebook, resources)
    for name, data in extra["outputs"].items():
        (page.parent / name).parent.mkdir(parents=True, exist_ok=True)
        (page.parent / name).write_bytes(data)
    body = re.sub(r"<style scoped>.*?</style>", "", body, flags=re.S) # pandas' own, for every table again
    title, _, rest = body.lstrip().partition("\n")
    page.parent.mkdir(parents=True, exist_ok=True)
    page.write_text(relinked(f"{title}\n\n{note}\n\n{rest}\n\n{end}\n", source.parent), encoding="utf-8")


def relinked(
    text: str,
    folder: Path, # Where it lies in the repository
) -> str:
    "Links to notebooks as links to their pages; in HTML outputs, links to files that are not there as plain text"
    def link(match: re.Match) -> str:
        file = match[1].partition("#")[0]
        return match[0].replace(".ipynb", ".html") if not file or (folder / file).exists() else "<a"
    text = re.sub(r"(\]\([^)\s:]*?)\.ipynb([)#])", r"\1.md\2", text)
    return re.sub(r'<a href="((?!\w+:)[^"]+)"', link, text)


def read(path: Path): return nbformat.read(path, as_version=4)


def library(pages: Path) -> list:
    "The library's notebooks, a room a section"
    nav = []
    for room, title in ROOMS.items():
        section = []
        for path in sorted((ROOT / "nbs" / room).glob("[0-9]*.ipynb")):
            notebook = read(path)
            module = next(re.search(r"default_exp (\S+)", c.source)[1] for c in notebook.cells
                          if c.source.startswith("#| default_exp"))
            page = pages / path.relative_to(ROOT).with_suffix(".md")
            to_markdown(visible(notebook), path, page, end=f"## Reference\n\n::: smoltraces.{module}")
            section.append({module.rpartition(".")[2]: page.relative_to(pages).as_posix()})
        nav.append({title: section})
    return nav


def experiments(pages: Path) -> list:
    nav = []
    for path in sorted((ROOT / "nbs" / "experiments").glob("[0-9]*.ipynb")):
        page = pages / path.relative_to(ROOT).with_suffix(".md")
        runs = sorted(ROOT.glob(f"outputs/reference/*/notebooks/{path.stem}*.ipynb"))
        links = [f"[{run.parts[-3]}: {label(run.stem).removeprefix(path.stem).strip(':- ') or 'output'}]"
                 f"({os.path.relpath(run, path.parent)})" for run in runs]
        note = '!!! note "As it was run"\n\n    ' + " · ".join(links) if links else ""
        to_markdown(visible(read(path)), path, page, note)
        nav.append({path.stem: page.relative_to(pages).as_posix()})
    return nav


def results(pages: Path, folder: Path) -> dict:
    "A committed run: its report, tables, figures and executed notebooks"
    place = pages / folder.relative_to(ROOT)
    for part in ("tables", "figures"): shutil.copytree(folder / part, place / part)
    report = (folder / "report.html").read_text(encoding="utf-8")
    (place / "report.html").write_text(relinked(report, folder), encoding="utf-8")
    parts = [f"# The {folder.name} run", f"What `make reproduce PROFILE={folder.name}` gave, as it is committed. "
             "[The report](report.html) has the whole run on one page.", "## Tables"]
    for table in ordered(place / "tables", ".md", TITLES):
        parts += [f"### {TITLES.get(table.stem, table.stem.capitalize())}", table.read_text(encoding="utf-8"),
                  alternatives(table, "csv", "tex")]
        table.unlink()
    parts.append("## Figures")
    for figure in ordered(place / "figures", ".png", FIGURES):
        parts += [f"### {figure.stem.capitalize()}", FIGURES.get(figure.stem, ""),
                  f"![{figure.stem}](figures/{figure.name})", alternatives(figure, "svg", "pdf")]
    (place / "index.md").write_text("\n\n".join(parts) + "\n", encoding="utf-8")
    nav = [(place / "index.md").relative_to(pages).as_posix()]
    for path in sorted((folder / "notebooks").glob("*.ipynb")):
        page = pages / path.relative_to(ROOT).with_suffix(".md")
        source = re.match(r"\d_[a-z_]+", path.stem)[0]
        note = f"A run of [{source}](../../../../nbs/experiments/{source}.ipynb)."
        to_markdown(anchored(visible(read(path))), path, page, note)
        nav.append({label(path.stem): page.relative_to(pages).as_posix()})
    return {f"The {folder.name} run": nav}


def label(stem: str) -> str:
    "What tells a run's notebook from the others: 3_finetune-embedded--model-ST-HC-seed-0 → 3_finetune: model ST-HC 0"
    source, _, run = stem.partition("-")
    model, _, which = run.rpartition("--")[2].partition("-instruct-")
    return f"{source}: {model} {which.replace('-seed-', ' ')}" if which else stem


def anchored(notebook):
    "A place at each code cell, so that the report's links to cells lead there"
    cells = notebook.cells[:1]
    for cell in notebook.cells[1:]:
        if cell.cell_type == "code": cells.append(nbformat.v4.new_markdown_cell(f'<a id="cell-id={cell.id}"></a>'))
        cells.append(cell)
    notebook.cells = cells
    return notebook


def ordered(folder: Path, suffix: str, titles) -> list[Path]:
    "Files in the order of `titles`, others after them"
    names = [*titles, *sorted(f.stem for f in folder.glob(f"*{suffix}") if f.stem not in titles)]
    return [f for f in (folder / f"{name}{suffix}" for name in names) if f.is_file()]


def alternatives(file: Path, *kinds: str) -> str:
    others = [f for f in (file.with_suffix(f".{kind}") for kind in kinds) if f.is_file()]
    return " · ".join(f"[{f.suffix[1:].upper()}]({f.parent.name}/{f.name})" for f in others)


def stage(pages: Path) -> list:
    "Every page and file of the site; returns their order"
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    readme = readme.replace("settings.ini)", "settings.md)")
    (pages / "index.md").write_text(relinked(readme, ROOT), encoding="utf-8")
    settings = (ROOT / "settings.ini").read_text(encoding="utf-8")
    (pages / "settings.md").write_text(f"# settings.ini\n\n```ini\n{settings}```\n", encoding="utf-8")
    (pages / "nbs" / "docs").mkdir(parents=True)
    for guide in HERE.glob("*.md"):
        (pages / "nbs" / "docs" / guide.name).write_text(relinked(guide.read_text(encoding="utf-8"), HERE),
                                                         encoding="utf-8")
    (pages / "site.css").write_text(CSS)
    for file in (ROOT / "CITATION.cff", HERE / "worker.js"): shutil.copy(file, pages)
    draw(pages / "nbs" / "docs" / "imports.svg")
    guides = [{title: f"nbs/docs/{name}.md"} for name, title in GUIDES.items()]
    runs = [results(pages, f.parent) for f in sorted(ROOT.glob("outputs/reference/*/report.html"))]
    return [{"SmolTraces": "index.md"}, {"Guides": [*guides, {"settings.ini": "settings.md"}]},
            {"Experiments": experiments(pages)}, {"Results": runs}, {"Library": library(pages)}]


GUIDES = {"house": "The house", "data": "Data at the paper's scale", "students": "Fine-tuning and evaluation",
          "cluster": "From a laptop to a cluster", "moved": "Moved names"}
CSS = """
.md-content__inner > div:not(.doc) { max-width: 100%; overflow-x: auto }
.md-typeset table.dataframe { border-collapse: collapse; display: block; overflow: auto; font-size: .64rem }
.md-typeset table.dataframe :is(th, td) { border: 0; border-top: .05rem solid var(--md-default-fg-color--lightest);
  padding: .25em .7em; text-align: right }
.md-grid { max-width: 76rem }
.md-typeset table:not([class]) { font-size: .62rem }
.md-typeset .doc-contents { border-left: .1rem solid var(--md-default-fg-color--lightest); padding-left: 1rem }
.md-typeset pre > code { max-height: 32rem; font-size: .72em }
"""


def search_from_disk(page: Path, worker: str):
    "Material's search would fetch a script from the network: ours is beside the page"
    text = page.read_text(encoding="utf-8")
    page.write_text(text.replace("https://unpkg.com/iframe-worker/shim", worker), encoding="utf-8")


def main(out: Path):
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    with TemporaryDirectory() as scratch, atomic(out) as site:
        pages = Path(scratch) / "pages"
        pages.mkdir()
        config = Path(scratch) / "mkdocs.yml"
        settings = {"INHERIT": str(HERE / "mkdocs.yml"), "docs_dir": str(pages), "site_dir": str(site)}
        config.write_text(yaml.safe_dump({**settings, "nav": stage(pages)}, sort_keys=False))
        build(load_config(str(config), strict=True))
        (site / "404.html").unlink() # of a server's
        for page in site.rglob("*.html"): search_from_disk(page, os.path.relpath(site / "worker.js", page.parent))
    print(out / "index.html")


if __name__ == "__main__": main(Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT / "outputs" / "site")
