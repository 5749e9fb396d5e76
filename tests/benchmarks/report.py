"""How fast a run's page is written and opens, beside named baselines in one run.

    python tests/benchmarks/report.py [N]     of N predictions (30,000) of 2 KB, thinking included

Baselines: reading every column of the same Parquet files, and `viewer.page` of the outputs that the report shows.
Opening: from navigation in headless Chromium until the page is complete and its first outputs are drawn; the baseline
is that page of the viewer.
"""
import random
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))
from browser import CHROMIUM, Browser
from conftest import project

from smoltraces.evaluation.evaluate import read_predictions
from smoltraces.evidence.claims import judge
from smoltraces.evidence.report import all_files, answered, choose, read_outputs, report
from smoltraces.evidence.statistics import comparisons, summarise
from smoltraces.files import read_parquet, write_parquet
from smoltraces.problems.corpora import embedded_problems
from smoltraces.schema import to_problems
from smoltraces.settings import Settings, load_settings
from smoltraces.style.viewer import page
from smoltraces.traces.teachers import teacher


def written(problems, size: int = 2000) -> list[str]:
    "Thoughts of about `size` characters, from the sentences of the embedded teachers"
    rng = random.Random(0)
    drawn = [c.trace for name in ("emergent", "hard-coded") for c in teacher(f"embedded/{name}").answer(problems)]
    lines = [line for trace in drawn for line in trace.split("\n") if line]
    return ["\n".join(rng.choices(lines, k=size * len(lines) // sum(map(len, lines)))) for _ in range(500)]


def run(folder: Path, n: int) -> Settings:
    cfg = load_settings("laptop", start=project(folder), bootstrap=1000, n_test=n // 30, n_hard=24,
                        benchmarks="embedded", students=[f"made-up/student-{i}" for i in range(5)])
    problems = embedded_problems(cfg.tasks, 0, cfg.n_test, cfg.n_hard)
    asked = problems[problems["split"] == "embedded"]
    write_parquet(cfg.path("problems.parquet"), problems)
    rng, thoughts = random.Random(1), written(to_problems(asked.head(60)))
    for (student, variant, seed, benchmark), file in all_files(cfg).items():
        rows = []
        for p in asked.itertuples():
            right, cut = rng.random() < 0.4, rng.random() < 0.1
            end = "" if cut else f"\n</think>\n\nSo the answer is \\boxed{{{p.answer if right else 7}}}."
            rows.append(dict(student=student, variant=variant, seed=seed, benchmark=benchmark, problem_id=p.id,
                             sample=0, output=f"<think>\n{rng.choice(thoughts)} {rng.random()}{end}", extracted="7",
                             answer=p.answer, correct=right and not cut, n_tokens=600, truncated=cut,
                             cluster=p.source, revision="0" * 16))
        write_parquet(file, rows)
    predictions = read_predictions(cfg)
    pairs = comparisons(predictions, 0.05, cfg.bootstrap)
    tables = {"results": summarise(predictions, cfg.bootstrap), "comparisons": pairs, "claims": judge(pairs)}
    for name, rows in tables.items(): write_parquet(cfg.path(f"{name}.parquet"), rows)
    return cfg


def timed(function, *args) -> tuple[float, object]:
    start = time.perf_counter()
    result = function(*args)
    return time.perf_counter() - start, result


def opened(browser: Browser, file: Path, first: str) -> float:
    start = time.perf_counter()
    browser.open(file.as_uri())
    browser.until(f"document.querySelectorAll({first!r}).length > 0")
    return time.perf_counter() - start


def main(n: int = 30_000):
    with tempfile.TemporaryDirectory() as scratch:
        cfg = run(Path(scratch), n)
        files = [file for file in all_files(cfg).values() if file.is_file()]
        sizes = sum(read_parquet(file, ["output"]).output.str.len().sum() for file in files)
        rows = sum(len(read_parquet(file, ["seed"])) for file in files)
        print(f"{rows:,} predictions of {sizes / rows:,.0f} characters on average")
        report(cfg) # once, so that what is compiled at first use is compiled
        reading, _ = timed(lambda: [read_parquet(file) for file in files])
        writing, made = timed(report, cfg)
        sample = read_outputs(choose(answered(cfg))).drop(columns=["file", "row", "outcome"])
        viewing, viewed = timed(page, sample, Path(scratch) / "viewer.html")
        print(f"report {writing:.2f} s, {made.stat().st_size / 1e6:.1f} MB; reading every column {reading:.2f} s "
              f"(ratio {writing / reading:.1f}); viewer.page of its {len(sample)} outputs {viewing:.2f} s "
              f"(ratio {writing / viewing:.1f})")
        if CHROMIUM is None: return
        browser = Browser(Path(scratch) / "profile")
        times = {name: min(opened(browser, file, first) for _ in range(3)) for name, file, first in
                 (("report", made, ".problem .chip"), ("viewer", viewed, "[role=option]"))}
        browser.close()
        print(f"opens in {times['report']:.2f} s; that page of the viewer in {times['viewer']:.2f} s "
              f"(ratio {times['report'] / times['viewer']:.1f})")


if __name__ == "__main__": main(*map(int, sys.argv[1:]))
