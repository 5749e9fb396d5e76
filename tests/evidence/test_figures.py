"Tables and figures of made-up runs, small and large: whole, in every format, and nothing shown that is not known."
import re
import shutil
import subprocess
import warnings

import numpy as np
import pandas as pd
import pytest
from conftest import project

from smoltraces.evaluation.benchmarks import seal
from smoltraces.evidence.claims import judge
from smoltraces.evidence.figures import (
    FIGURES,
    adoption,
    plot_accuracy,
    plot_adoption,
    plot_claims,
    plot_differences,
    plot_lengths,
    plot_pivots,
    plot_teacher,
    save_figure,
)
from smoltraces.evidence.statistics import comparisons, summarise
from smoltraces.evidence.tables import TITLES, in_words, marks, save_table, style_score_table, tables
from smoltraces.files import read_parquet, write_parquet
from smoltraces.paper import PALETTE, STUDENTS, VARIANTS
from smoltraces.settings import load_settings, slug
from smoltraces.style.measure import measure

SHARES = dict(zip(VARIANTS, (0.36, 0.4, 0.46, 0.48, 0.64, 0.68), strict=True))
PLACES = {"math500": (60, 1), "aime24": (30, 0.4), "gpqa_diamond": (40, 0.7)}


def predicted(students, places, seeds, shares, secret="secret"):
    rng, parts = np.random.default_rng(0), []
    for student in students:
        for benchmark, (n, scale) in places.items():
            ease = rng.normal(size=n)
            for variant, share in shares.items():
                for seed in range(1 if variant in ("Base", "HC") else seeds):
                    right = ease + rng.normal(size=n) / 2 > np.quantile(ease, 1 - scale * share)
                    parts.append(pd.DataFrame({
                        "student": student, "variant": variant, "seed": seed, "benchmark": benchmark,
                        "problem_id": [f"{benchmark}-{i}" for i in range(n)], "sample": 0,
                        "output": seal(f"{secret} Wait, 7.") if benchmark == "gpqa_diamond" else "Wait, 7.",
                        "extracted": "7", "answer": "7", "correct": right, "n_tokens": 9, "truncated": False,
                        "cluster": [f"c{i % 5}" for i in range(n)], "revision": "0" * 16}))
    return pd.concat(parts, ignore_index=True)


def judged(predictions, asked, cfg, missing=()):
    "What 5_figures makes of predictions"
    n_boot = {"n_boot": 4000} # p values of several seeds are counted in resamples: fewer are never significant
    results, pairs = summarise(predictions, **n_boot), comparisons(predictions, 0.05, **n_boot)
    taught = summarise(asked, **n_boot) if len(asked) else results[:0]
    gained = comparisons(asked, 0.05, **n_boot) if len(asked) else pairs[:0]
    written = predictions.rename(columns={"problem_id": "id"})
    noise = np.random.default_rng(1).normal(0, 0.05, len(written))
    written["style_score"] = (written.variant.map(dict(zip(VARIANTS, np.linspace(0.1, 0.9, 6), strict=True))) + noise)
    claims = judge(pairs, written, gained if len(asked) else None, **n_boot)
    made = tables(pd.concat([results, taught]), pd.concat([pairs, gained]), claims, cfg, missing)
    adopted = adoption(written, **n_boot)
    made["adoption"] = style_score_table(adopted), "Style."
    run = dict(results=results, pairs=pairs, taught=taught, gained=gained, claims=claims, made=made, adopted=adopted)
    return {**run, "figures": figures(run)}


def figures(run):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.simplefilter("ignore", ResourceWarning)  # of tests before, when the collector comes round
        return {"accuracy": plot_accuracy(run["results"]), "differences": plot_differences(run["pairs"]),
                "teacher": plot_teacher(run["taught"], run["gained"]),
                "adoption": plot_adoption(run["adopted"], run["results"], run["results"].benchmark[0]),
                "claims": plot_claims(run["claims"], 0.05)}


@pytest.fixture(scope="module")
def large():
    "The paper's three students on its three benchmarks, three seeds, with gaps, and the teacher"
    cfg = load_settings("paper", seeds="0,1,2")
    found = predicted(STUDENTS, PLACES, 3, SHARES)
    qwen = found.student == cfg.students[2]
    gone = qwen & ((found.benchmark == "gpqa_diamond") | (found.benchmark == "aime24") & (found.variant == "ST"))
    asked = predicted([cfg.teacher_lm], {"math500": (120, 1)}, 1, {"Base": 0.75, "HC": 0.81})
    return judged(found[~gone], asked, cfg, ["Qwen2.5 32B ST seed 0 aime24"])


@pytest.fixture(scope="module")
def small():
    "One student, one seed, two benchmarks, no teacher; the student gets nothing right on one of them"
    cfg = load_settings("laptop", students="made-up/tiny_student_100%")
    found = predicted(cfg.students, {"embedded": (40, 0.9), "embedded_hard": (24, 0.5)}, 1, SHARES)
    found.loc[found.benchmark == "embedded_hard", "correct"] = False
    return judged(found, found[:0], cfg)


def words(figure):
    "Everything written in a figure"
    import matplotlib.text
    return [t.get_text() for t in figure.findobj(matplotlib.text.Text) if t.get_text() and t.get_visible()]


def test_a_figure_is_saved_without_dates_and_with_its_fonts(small, tmp_path):
    assert small["figures"].keys() < FIGURES.keys()
    _, svg, pdf = save_figure(small["figures"]["claims"], tmp_path / "claims")
    assert b"/FontFile2" in pdf.read_bytes() and b"/Type3" not in pdf.read_bytes() # TrueType inside, as journals ask
    assert b"CreationDate" not in pdf.read_bytes() and b"<dc:date" not in svg.read_bytes()


def test_published_values_stand_with_the_same_student_else_apart(small, large):
    here, there = words(large["figures"]["accuracy"]), words(small["figures"]["accuracy"])
    assert "68.4" in here and "89.0" in here and not any("published" in w for w in here)
    assert "68.4" in there and any("published: Llama 3.2 3B" in w for w in there)
    assert any("not run" in w for w in here) # Qwen on GPQA
    assert any("did not score its teacher" in w for w in words(small["figures"]["teacher"]))
    assert not any("did not score" in w for w in words(large["figures"]["teacher"]))


def test_the_colours_are_apart_in_grey_or_have_other_markers():
    from smoltraces.evidence.figures import HATCHES
    from smoltraces.paper import MARKERS
    assert PALETTE.keys() == MARKERS.keys() == set(VARIANTS)
    assert len(set(PALETTE.values())) == len(set(MARKERS.values())) == 6 and len(set(HATCHES.values())) == 4


def test_style_plots_take_one_panel_or_two():
    taught = measure(["Wait, 3. Let me check. 4.", "3 + 4"]).assign(variant=["ST", "SBS"])
    assert [len(plot([*frames][0], *[*frames][1:]).axes) for plot in (plot_pivots, plot_lengths)
            for frames in ([taught], [taught, taught])] == [1, 2, 1, 2]


def test_missing_cells_are_dashes_and_named(large):
    table, caption = large["made"]["main"]
    qwen = table[table.student.eq("Qwen2.5 32B") & table.source.eq("this run")].set_index("benchmark")
    assert set(qwen.loc["GPQA Diamond", ["n", "seeds", *VARIANTS]]) == {"–"}
    assert qwen.loc["AIME2024", "ST"] == "–" and qwen.loc["AIME2024", "Base"] != "–"
    assert "Asked for and not run: Qwen2.5 32B ST seed 0 aime24." in caption
    assert table[table.source.eq("published")].to_numpy().tolist()[1][6:9] == ["52.8", "–", "–"]
    assert not table.map(lambda cell: "nan" in cell).to_numpy().any()


def test_marks_come_from_the_corrected_tests_and_survive_every_format(small, large, tmp_path):
    found = marks(large["pairs"])
    for row in large["pairs"].itertuples():
        letter = {"Base": "ᵇ", "ST-NT": "ⁿ", "SBS": "ˢ", "ST-HC": "ʰ"}[row.reference]
        mark = found.get((row.student, row.benchmark, row.variant), "")
        assert (letter in mark) == (row.p_holm < 0.05)
        assert (f"↓{letter}" in mark) == (row.p_holm < 0.05 and row.difference < 0)
    assert any("ᵇ" in mark for mark in found.values())
    worse = large["pairs"][:1].assign(p_holm=0.01, difference=-0.1, variant="ST-HC-W", reference="ST-HC")
    assert list(marks(worse).values()) == ["↓ʰ"]
    table, caption = large["made"]["main"]
    csv, md, tex = save_table(table, tmp_path / "main", caption)
    many = sum(len(mark.replace("↓", "")) for mark in found.values())
    for text in (csv.read_text(encoding="utf-8"), md.read_text(encoding="utf-8").partition("\n\n")[0]):
        assert len(re.findall("[ᵇⁿˢʰ]", text)) == many
    body = tex.read_text().partition(r"\bottomrule")[0]
    assert body.count(r"\textsuperscript") == many and body.isascii()
    assert not marks(small["pairs"].query("benchmark == 'embedded_hard'"))


def test_what_few_problems_cannot_show_stands_below_the_table(large):
    note = large["made"]["main"][1]
    assert "On AIME2024 (30 problems) one problem is 3.3 points" in note
    least = 100 * large["pairs"].query("benchmark == 'aime24'").detectable
    assert f"under about {least.min():.0f} to {least.max():.0f} points" in note


def test_words_follow_the_interval_and_the_test(large):
    row = large["pairs"][:1].assign(variant="ST", reference="ST-HC", difference=0.02, low=0.004, high=0.036, p=0.04,
                                    p_holm=0.4, eq_low=0.006, eq_high=0.034, margin=0.05)
    [[first, second]] = in_words(row).values()
    assert "lies above zero; but p = 0.40 after Holm's correction, which is not significant." in first
    assert "within ±5 points" in second and "they are comparable" in second
    [[first, second]] = in_words(row.assign(low=-0.01, p_holm=0.5, eq_low=-0.06)).values()
    assert "includes zero; p = 0.50" in first and "do not settle it" in second
    [[_, second]] = in_words(row.assign(eq_low=0.06, eq_high=0.09)).values()
    assert "they are not" in second
    assert in_words(row.assign(variant="SBS", reference="Base")) == {}


def test_the_correlation_is_within_the_variant():
    "Style goes with being right between the variants alone: the correlations inside them are about zero"
    rng, parts = np.random.default_rng(3), []
    for variant, at in {"Base": 0.1, "ST": 0.8}.items():
        right = rng.random(400) < at
        parts.append(pd.DataFrame({"student": "s", "benchmark": "embedded", "variant": variant, "seed": 0,
                                   "correct": right, "id": [f"{i}" for i in range(400)],
                                   "style_score": at + rng.normal(0, 0.05, 400)}))
    found = adoption(pd.concat(parts), n_boot=500)
    assert (found.correlation.abs() < 0.12).all()
    assert (found.correlation_low < 0).all() and (found.correlation_high > 0).all()
    inside = parts[1].assign(style_score=parts[1].style_score + 0.1 * parts[1].correct)
    assert adoption(inside, n_boot=500).correlation_low[0] > 0.3
    few = adoption(parts[0].assign(correct=[True] * 3 + [False] * 397), n_boot=500)
    assert np.isnan(few.correlation[0]) and style_score_table(few).iloc[0, -1] == "–"


def test_nothing_to_compare_and_nothing_written(tmp_path):
    "One variant alone, all of it wrong, and not a word in any answer"
    cfg = load_settings("smoke")
    found = predicted(cfg.students, {"embedded": (8, 0.5)}, 1, {"ST": 0.5}).assign(correct=False)
    run = judged(found, found[:0], cfg, [f"s ST seed {seed} embedded" for seed in range(20)])
    assert set(run["claims"].verdict) == {"not run"} and "not run" in words(run["figures"]["claims"])
    caption = run["made"]["main"][1]
    assert "nothing to compare" in caption and "\n\n\n" not in caption
    assert "s ST seed 7 embedded and 12 more." in caption
    assert len(run["made"]["comparisons"][0]) == 0 and in_words(run["pairs"]) == {}
    silent = found.rename(columns={"problem_id": "id"}).assign(style_score=np.nan)
    assert "0 problems" in "".join(words(plot_adoption(adoption(silent), run["results"], "embedded")))
    empty = measure(["", ""]).assign(variant=["ST", "SBS"])
    assert plot_lengths(empty).axes and plot_pivots(empty).axes


@pytest.mark.skipif(shutil.which("pdflatex") is None, reason="pdflatex is not installed")
def test_every_table_compiles(small, large, tmp_path):
    nasty = pd.DataFrame({"a": ["50% & more_of $x^2$ {y} ~ \\z #1", "[1, 2]", "→ “é” 中 ±≤ |a|"], "b": [1.5, np.nan, 2],
                          "long": ["word " * 30] * 3})
    names = []
    made = {"none": {"table": (nasty[:0], "")}, "small": small["made"], "large": large["made"],
            "nasty": {"table": (nasty, "50% & _x_\n\n<note>")}}
    for which, some in made.items():
        for name, (table, caption) in some.items():
            save_table(table, tmp_path / f"{which}-{name}", caption)
            names.append(f"{which}-{name}")
    inputs = "\n".join(rf"\input{{{name}}}\clearpage" for name in names)
    (tmp_path / "all.tex").write_text("\\documentclass{article}\\usepackage{booktabs,graphicx}\n\\begin{document}\n"
                                      f"{inputs}\n\\end{{document}}\n")
    done = subprocess.run(["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "all.tex"], cwd=tmp_path,
                          capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout[-3000:]
    assert f"({len(names)} pages" in done.stdout and "Overfull" not in done.stdout and "too large" not in done.stdout


def test_the_notebook_on_a_run_with_gaps_and_a_sealed_benchmark(tmp_path):
    "5_figures: every file is there, what is missing is named, a sealed benchmark's answers are nowhere"
    import nbformat
    import papermill
    folder = project(tmp_path)
    asked = dict(students="made-up/student", benchmarks="math500,gpqa_diamond", bootstrap=200, variants="ST-HC,ST")
    cfg = load_settings("laptop", **asked, out=str(folder / "outputs"))
    secret = "a-question-that-is-not-shown"
    found = predicted(cfg.students, {"math500": (20, 1), "gpqa_diamond": (20, 1)}, 1,
                      {v: SHARES[v] for v in ("Base", "ST-HC", "ST")}, secret)
    for (variant, benchmark), rows in found.groupby(["variant", "benchmark"]):
        if (variant, benchmark) == ("ST", "gpqa_diamond"): continue
        write_parquet(cfg.path("predictions", slug(cfg.students[0]), variant, "seed-0", f"{benchmark}.parquet"), rows)
    written = found[found.benchmark == "math500"].drop(columns="output").rename(columns={"problem_id": "id"})
    scored = measure(["Wait, 7. Let me check."] * len(written)).drop(columns="id").set_index(written.index)
    write_parquet(cfg.path("style", "students.parquet"), pd.concat([written, scored], axis=1))
    for variant in cfg.variants: write_parquet(cfg.path("style", f"{variant}.parquet"), measure(["Wait, 7."] * 3))

    done = tmp_path / "done.ipynb"
    papermill.execute_notebook(str(folder / "nbs/experiments/5_figures.ipynb"), str(done), asked,
                               cwd=str(folder / "nbs/experiments"), progress_bar=False)
    book = nbformat.read(done, 4)
    tags = [tag for cell in book.cells for tag in cell.metadata.get("tags", [])]
    assert {"results", "comparisons", "style", "teacher", "claims"} <= set(tags)
    assert "made-up/student ST seed 0 gpqa_diamond" in done.read_text()
    out = cfg.path("results.parquet").parent
    assert read_parquet(out / "comparisons.parquet").p_holm.notna().all()
    assert set(read_parquet(out / "claims.parquet").cell) <= set(tags)
    assert {p.stem for p in (out / "figures").glob("*.pdf")} == set(FIGURES)
    assert {p.stem for p in (out / "tables").glob("*.tex")} == {*TITLES, "adoption"}
    for shown in (done, out / "report.html", *(out / "tables").iterdir()):
        text = shown.read_text(encoding="utf-8")
        assert secret not in text and seal(f"{secret} Wait, 7.") not in text, shown.name
