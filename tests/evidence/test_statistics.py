"""Intervals, tests and tables hold what they promise, by simulation and beside scipy and statsmodels; predictions that
must not be averaged are named."""
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest

from smoltraces.evaluation.evaluate import (
    PREDICTION_COLUMNS,
    check_predictions,
    disputed,
    prediction_files,
    read_predictions,
)
from smoltraces.evidence.statistics import (
    COMPARISON_COLUMNS,
    PAIRS,
    accuracy_interval,
    cohen_h,
    comparisons,
    detectable,
    difference,
    equivalence,
    holm,
    majority,
    mcnemar,
    paired_test,
    pass_at_k,
    scores,
    standard_error,
    summarise,
    wilson,
    wins_losses,
)
from smoltraces.files import write_parquet
from smoltraces.settings import InputError, load_settings

SHARES = {"Base": 0.1, "ST-NT": 0.2, "SBS": 0.3, "ST-HC-W": 0.35, "ST-HC": 0.5, "ST": 0.55}


def made(shares=SHARES, n=40, seeds=(0,), samples=1, student="a/student", benchmark="embedded", rng=0) -> pd.DataFrame:
    rng = np.random.default_rng(rng)
    ease = rng.normal(size=n)
    return pd.concat([pd.DataFrame({
        "student": student, "variant": variant, "seed": seed, "benchmark": benchmark,
        "problem_id": [f"p{i:03}" for i in range(n)], "sample": sample, "output": "It is 7.", "extracted": "7",
        "answer": "7", "correct": ease + rng.normal(size=n) / 2 > np.quantile(ease, 1 - share), "n_tokens": 100,
        "truncated": False, "cluster": [f"family {i % 5}" for i in range(n)], "revision": "0123456789abcdef"})
        for variant, share in shares.items() for seed in (seeds if variant != "Base" else (0,))
        for sample in range(samples)], ignore_index=True)


def pair(n: int, wins: int, losses: int, both: int = 0) -> tuple[np.ndarray, np.ndarray]:
    "Scores of one run each, with so many problems won, lost, and right on both sides"
    place = np.arange(n)
    shared = (place >= wins + losses) & (place < wins + losses + both)
    return (place < wins) | shared, ((place >= wins) & (place < wins + losses)) | shared


# -- coverage ---------------------------------------------------------------------------------------------------------
def evaluations(shares, n, runs, samples, luck, draws=2000, spread=1.5):
    "Scores, draws × runs × problems for each true accuracy; the same problems, runs of their own"
    from scipy.optimize import brentq
    from scipy.special import expit
    rng, (nodes, weights) = np.random.default_rng(n), np.polynomial.hermite_e.hermegauss(61)
    ease, both = rng.normal(scale=spread, size=(draws, 1, n)), np.hypot(spread, luck)
    for share in shares:
        level = brentq(lambda x, share=share: weights @ expit(x + both * nodes) / weights.sum() - share, -40, 40)
        own = rng.normal(scale=luck, size=(draws, runs, 1))
        yield rng.binomial(samples, expit(level + ease + own), size=(draws, runs, n)) / samples


@pytest.mark.parametrize("share", [0.05, 0.1, 0.3, 0.5, 0.7, 0.9])
@pytest.mark.parametrize("n", [30, 80, 198, 500])
def test_an_interval_of_one_run_holds_the_truth(n, share):
    "2,000 draws; the result of each is a number of right answers, so no interval is computed twice"
    counts, times = np.unique(np.random.default_rng(7).binomial(n, share, size=2000), return_counts=True)
    place = np.arange(n)
    ends = np.array([accuracy_interval(place < count, 1000)[1:] for count in counts])
    held = times[(ends[:, 0] <= share) & (share <= ends[:, 1])].sum() / 2000
    assert 0.93 <= held <= (0.985 if n == 30 and share in (0.1, 0.9) else 0.97)  # 0.974 or 0.932, whatever the method


@pytest.mark.parametrize("n, share, runs, samples, luck, low, high", [
    (80, 0.5, 1, 1, 0, 0.93, 0.97), (30, 0.5, 1, 4, 0, 0.93, 0.97),
    (80, 0.3, 3, 1, 0, 0.93, 0.98), (80, 0.3, 3, 1, 0.2, 0.93, 0.975), (80, 0.9, 3, 4, 0.3, 0.93, 0.975),
])
def test_intervals_over_problems_and_runs_hold_the_truth(n, share, runs, samples, luck, low, high):
    one, two = evaluations((share, 0.7 * share), n, runs, samples, luck)
    for truth, ends in ((share, np.array([accuracy_interval(a, 400)[1:] for a in one])),
                        (0.3 * share, np.array([difference(a, b, 400)[1:] for a, b in zip(one, two, strict=True)]))):
        assert low <= np.mean((ends[:, 0] <= truth) & (truth <= ends[:, 1])) <= high


def test_a_plain_percentile_bootstrap_would_not_pass():
    "The check above can fail: three runs with luck, resampled over problems alone"
    [one] = evaluations((0.5,), 80, 3, 1, 0.5, draws=500)
    ends = np.array([accuracy_interval(a.mean(axis=0), 400)[1:] for a in one])
    assert np.mean((ends[:, 0] <= 0.5) & (0.5 <= ends[:, 1])) < 0.88


def test_false_alarms_are_rare():
    "Tests at 5%: no more than 5% of true null hypotheses are rejected, none are at the margin of equivalence"
    one, two = evaluations((0.4, 0.4), 80, 3, 1, 0, draws=800)
    assert np.mean([paired_test(a, b, 400) < 0.05 for a, b in zip(one, two, strict=True)]) < 0.06
    rng = np.random.default_rng(0)
    drawn = rng.multinomial(300, [0.15, 0.05, 0.8], size=1000)  # truly 10 points apart
    found = [equivalence(*pair(300, *row[:2]), 0.1, 400)[2] < 0.05 for row in drawn]
    assert 0.02 < np.mean(found) < 0.07


# -- agreement with scipy and statsmodels -----------------------------------------------------------------------------
@pytest.mark.parametrize("right, n", [(0, 30), (1, 30), (15, 30), (400, 500), (500, 500)])
def test_wilson(right, n):
    from scipy.stats import binomtest
    theirs = binomtest(right, n).proportion_ci(method="wilson")
    assert wilson(right, n) == pytest.approx((theirs.low, theirs.high), abs=1e-9)
    assert wilson(right, n)[0] <= right / n <= wilson(right, n)[1]
    low, high = accuracy_interval(np.arange(n) < right)[1:]
    assert (low, high) == pytest.approx((theirs.low, theirs.high), abs=0.02)  # the bootstrap is near it


def test_bootstrap_of_many_problems_is_that_of_scipy():
    from scipy.stats import bootstrap
    score = np.random.default_rng(0).binomial(4, 0.3, size=2000) / 4
    theirs = bootstrap((score,), np.mean, n_resamples=9999, rng=0).confidence_interval
    assert accuracy_interval(score)[1:] == pytest.approx((theirs.low, theirs.high), abs=0.0015)


@pytest.mark.parametrize("wins, losses", [(0, 0), (1, 0), (5, 0), (6, 0), (17, 5), (40, 40), (3, 90)])
def test_mcnemar(wins, losses):
    from scipy.stats import binomtest
    from statsmodels.stats.contingency_tables import mcnemar as theirs
    assert mcnemar(wins, losses) == pytest.approx(theirs([[7, wins], [losses, 9]], exact=True).pvalue)
    assert mcnemar(wins, losses) == pytest.approx(binomtest(wins, wins + losses).pvalue if wins + losses else 1)
    sides = pair(100 + wins + losses, wins, losses, both=30)
    assert wins_losses(*sides) == (wins, losses) and paired_test(*sides) == mcnemar(wins, losses)


def test_resampled_p_of_many_problems_is_that_of_a_paired_t_test():
    from scipy.stats import ttest_rel
    rng = np.random.default_rng(0)
    a, b = rng.binomial(4, 0.52, size=1500) / 4, rng.binomial(4, 0.50, size=1500) / 4
    assert paired_test(a, b) == pytest.approx(ttest_rel(a, b).pvalue, abs=0.02)


def test_holm():
    from statsmodels.stats.multitest import multipletests
    p = np.random.default_rng(0).random(30)**3
    assert holm(p) == pytest.approx(multipletests(p, method="holm")[1])
    assert np.isnan(holm([np.nan, np.nan])).all()
    np.testing.assert_allclose(holm([0.01, np.nan, 0.04, 0.03]), [0.03, np.nan, 0.06, 0.06])


def test_tost():
    from statsmodels.stats.weightstats import ttost_paired
    rng = np.random.default_rng(1)
    a, b = rng.random(2000) < 0.5, rng.random(2000) < 0.49
    theirs = ttost_paired(a.astype(float), b.astype(float), -0.04, 0.04)[0]
    low, high, p = equivalence(a, b, 0.04)
    assert p == pytest.approx(theirs, abs=0.01) and (p < 0.05) == (-0.04 < low and high < 0.04)
    assert equivalence(a, b, 0.5)[2] < 0.001 and equivalence(a, b, 0.001)[2] > 0.3


def test_clustered_standard_error():
    from statsmodels.regression.linear_model import OLS
    rng = np.random.default_rng(0)
    groups = rng.integers(0, 12, size=200)
    score = (rng.normal(size=12)[groups] + rng.normal(size=200) > 0).astype(float)
    theirs = OLS(score, np.ones(200)).fit(cov_type="cluster", cov_kwds={"groups": groups}).bse[0]
    off, g = score - score.mean(), 12  # Miller (2024), with the correction for few clusters
    by_hand = np.sqrt(g / (g - 1) * sum(off[groups == k].sum()**2 for k in range(g))) / 200
    ours = standard_error(score, [f"family {k}" for k in groups])
    assert ours == pytest.approx(theirs) and ours == pytest.approx(by_hand)
    assert ours > 1.5 * standard_error(score) and np.isnan(standard_error(score, ["one"] * 200))


def test_cohen_h():
    assert cohen_h(0.5, 0.3) == pytest.approx(2 * (np.arcsin(0.5**0.5) - np.arcsin(0.3**0.5)))


@pytest.mark.parametrize("n, discordance", [(30, 0.5), (80, 0.1), (80, 0.3), (198, 0.2), (500, 0.4)])
def test_the_detectable_difference_is_found_four_times_out_of_five(n, discordance):
    gap = detectable(n, discordance)
    assert 1 / n < gap < 1
    share = max(discordance, gap)
    chances = [(share + gap) / 2, (share - gap) / 2, 1 - share]
    wins, losses, _ = np.random.default_rng(0).multinomial(n, chances, size=2000).T
    p = {key: mcnemar(*key) for key in set(zip(wins, losses, strict=True))}
    found = np.mean([p[key] < 0.05 for key in zip(wins, losses, strict=True)])
    assert 0.76 < found < 0.9


def test_nothing_below_one_problem_is_detectable():
    assert detectable(2, 0.1) == 1 and all(detectable(n, 0) > 1 / n for n in (5, 10, 1000))
    assert comparisons(made(n=3), n_boot=200).detectable.between(1 / 3, 1).all()


# -- several samples --------------------------------------------------------------------------------------------------
def test_pass_at_k_is_the_mean_over_all_choices_of_k():
    from itertools import combinations
    for right in range(6):
        answers = [True] * right + [False] * (5 - right)
        for k in range(1, 6):
            assert pass_at_k(right, 5, k) == pytest.approx(np.mean([any(c) for c in combinations(answers, k)]))


@pytest.mark.parametrize("answers, share", [
    ([("7", 1), ("7", 1), ("3", 0)], 1), ([("7", 1), ("3", 0), ("3", 0)], 0), ([("7", 1), ("3", 0)], 0.5),
    ([("7", 1), ("", 0), (" ", 0), (None, 0)], 1), ([("", 0), (None, 0)], 0), ([("7", 1), ("3", 0), ("4", 0)], 1 / 3),
    ([("7", 1), ("7.0", 1), ("3", 0), ("3", 0)], 0),
])
def test_majority(answers, share):
    rows = pd.DataFrame(answers, columns=["extracted", "correct"]).assign(seed=0, problem_id="p")
    assert majority(rows) == pytest.approx(share)
    silent = pd.DataFrame({"extracted": [None], "correct": [False], "seed": [0], "problem_id": ["q"]})
    assert majority(pd.concat([rows, silent])) == pytest.approx(share / 2)  # nobody votes: wrong


def test_samples_in_the_results():
    rows = made({"ST": 0.5}, samples=3)
    rows["extracted"] = np.where(rows.correct, "7", rows["sample"].astype(str))
    [row] = summarise(rows, 200).to_dict("records")
    right = rows.groupby("problem_id").correct.sum()
    assert row["samples"] == 3 and row["accuracy"] == pytest.approx(right.sum() / 120)
    assert row["pass_k"] == pytest.approx((right > 0).mean())
    assert row["majority"] == pytest.approx(((right >= 2) + (right == 1) / 3).mean())
    assert summarise(made({"ST": 0.5}), 200)[["pass_k", "majority"]].isna().all(axis=None)


# -- runs -------------------------------------------------------------------------------------------------------------
def test_runs_that_differ_widen_the_interval():
    place = np.arange(100)
    alike = np.stack([(place + shift) % 100 < 50 for shift in (0, 10, 20)])
    apart = np.stack([place < right for right in (30, 50, 70)])
    assert np.ptp(accuracy_interval(apart)[1:]) > 2 * np.ptp(accuracy_interval(alike)[1:])
    assert accuracy_interval(np.zeros((3, 50)))[:2] == (0, 0) and 0 < accuracy_interval(np.zeros((3, 50)))[2] < 0.1
    low, high = accuracy_interval(np.stack([place < 0, place < 100, place < 100]))[1:]  # one run learnt nothing
    assert low == 0 and high == 1


def test_a_pool_of_variants_knows_more_of_runs():
    "Differences of three runs each, at a level of confidence that a table of many tests asks for"
    variants = [next(evaluations((0.4,), 100, 3, 1, 0.1, draws=1))[0] for _ in range(1)]
    rng = np.random.default_rng(3)
    variants += [(rng.random((3, 100)) < 0.4).astype(float) for _ in range(4)]
    alone, pooled = (np.ptp(difference(*variants[:2], level=0.999, pool=pool)[1:]) for pool in ((), variants))
    assert pooled < alone


def test_seed_counts_may_differ():
    one, three = made({"Base": 0.2, "ST": 0.5}, seeds=(0, 1, 2)).pipe(scores).values()
    assert one.shape == (1, 40) and three.shape == (3, 40)
    low, high = difference(three, one)[1:]
    assert -1 <= low < three.mean() - one.mean() < high <= 1


# -- tables -----------------------------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def two_students():
    return pd.concat([made(student=s, benchmark=b, n=n, rng=len(s) + n) for s in ("a/student", "b/other")
                      for b, n in (("math500", 60), ("aime24", 30))], ignore_index=True)


def test_results(two_students):
    results = summarise(two_students, 500)
    assert len(results) == 24 and results.variant[:6].tolist() == list(SHARES)
    for low, high in (("ci_low", "ci_high"), ("wilson_low", "wilson_high")):
        assert ((0 <= results[low]) & (results[low] <= results.accuracy) & (results.accuracy <= results[high])
                & (results[high] <= 1)).all()
    assert set(results.n) == {60, 30} and set(results.clusters) == {5}
    assert set(results.seeds) == set(results.samples) == {1}
    pd.testing.assert_frame_equal(results, summarise(two_students, 500))  # the same every time
    shuffled = summarise(two_students.sample(frac=1, random_state=0), 500)  # whatever the order of rows
    by = ["student", "benchmark", "variant"]
    pd.testing.assert_frame_equal(*(t.sort_values(by, ignore_index=True) for t in (shuffled, results)))


def test_comparisons(two_students):
    table = comparisons(two_students, margin=0.04, n_boot=500)
    assert table.columns.tolist() == COMPARISON_COLUMNS and len(table) == 4 * len(PAIRS)
    assert table.p_holm.to_numpy() == pytest.approx(holm(table.p))  # over the whole table
    assert ((table.low <= table.eq_low) & (table.eq_high <= table.high) & (table.low <= table.difference)).all()
    assert (table.margin == 0.04).all() and (table.wins + table.losses <= table.n).all()
    assert table.difference.to_numpy() == pytest.approx(((table.wins - table.losses) / table.n).to_numpy())
    only = comparisons(two_students, n_boot=200, pairs=[("ST", "SBS")])
    assert set(zip(only.variant, only.reference, strict=True)) == {("ST", "SBS")} and len(only) == 4


def test_what_was_not_run_is_left_out():
    table = comparisons(made({"Base": 0.1, "ST-HC": 0.5}), n_boot=200)
    assert table[["variant", "reference"]].to_numpy().tolist() == [["ST-HC", "Base"]]
    none = comparisons(made({"ST-HC": 0.5}), n_boot=200)
    assert none.empty and none.columns.tolist() == COMPARISON_COLUMNS
    teacher = comparisons(made({"Base": 0.6, "HC": 0.7}, student="gpt-4o"), n_boot=200)
    assert teacher[["variant", "reference"]].to_numpy().tolist() == [["HC", "Base"]]


def test_disputed():
    rows = disputed(made())
    assert rows.variant.tolist() == list(SHARES) and set(rows.correct) == {True, False}


# -- bad input --------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("change, said", [
    (lambda t: t[:0], ["no predictions", "4_evaluate"]),
    (lambda t: t.drop(columns="revision"), ["lack revision", "evaluate again"]),
    (lambda t: t.assign(revision=np.where(t.variant == "SBS", "feed", "beef")),
     ["a/student, SBS, seed 0, on embedded", "revision feed", "beef", "evaluate"]),
    (lambda t: pd.concat([t, t[-1:]]), ["a/student, ST, seed 0, on embedded", "p039, sample 0, twice", "evaluate"]),
    (lambda t: t.drop(index=t.index[[45, 46]]), ["a/student, ST-NT, seed 0, on embedded lack 2 of the 40", "evaluate"]),
    (lambda t: pd.concat([t, t[t.variant == "ST"].assign(sample=1)]),
     ["a/student, ST, seed 0, on embedded hold 2 answers a problem, others 1", "eval_samples"]),
])
def test_predictions_that_must_not_be_averaged(change, said):
    for table in (summarise, comparisons):
        with pytest.raises(InputError) as error: table(change(made()))
        message = str(error.value)
        assert all(word in message for word in said), message
        assert message.count(". ") == 0 and message.endswith(".")


def test_a_label_that_never_occurs():
    for asked in ({"variants": ["ST-CH"]}, {"benchmarks": ["math50"]}):
        with pytest.raises(InputError, match=r"No prediction is of the .* '(ST-CH|math50)': choose from"):
            check_predictions(made(), **asked)


def test_sides_of_different_length():
    for function in (paired_test, wins_losses):
        with pytest.raises(InputError, match="same problems on both sides, not 3 and 4"):
            function(np.ones(3), np.ones(4))


def test_an_answer_of_200_000_characters():
    rows = made(samples=2)
    rows.loc[0, ["output", "extracted"]] = "7" * 200_000
    assert len(summarise(rows, 200)) == 6


# -- reading ----------------------------------------------------------------------------------------------------------
@pytest.fixture
def cfg(tmp_path): return load_settings("laptop", out=str(tmp_path), benchmarks="embedded, math500@x.jsonl")


def write(cfg, rows: pd.DataFrame, of="students"):
    files = prediction_files(cfg, of)
    for (student, variant, seed, benchmark), run in rows.groupby(["student", "variant", "seed", "benchmark"]):
        write_parquet(files[student, variant, seed, benchmark], run)


def test_what_is_missing_is_listed(cfg):
    student = cfg.students[0]
    write(cfg, made({"Base": 0.1, "ST": 0.5}, student=student))
    write(cfg, made({"Base": 0.1}, student=student, benchmark="math500"))
    rows = read_predictions(cfg)
    assert rows.columns.tolist() == PREDICTION_COLUMNS and len(rows) == 120
    assert len(rows.attrs["missing"]) == 9 and f"{student} ST seed 0 math500" in rows.attrs["missing"]
    assert summarise(rows, 200).variant.tolist() == ["Base", "ST", "Base"]


def test_the_teacher(tmp_path, cfg):
    assert read_predictions(cfg, of="teacher").attrs["missing"] == []  # it was not asked for
    cfg = load_settings("laptop", out=str(tmp_path), evaluate_teacher=True, benchmarks="math500@x.jsonl")
    assert len(read_predictions(cfg, of="teacher").attrs["missing"]) == 2
    write(cfg, made({"Base": 0.6, "HC": 0.7}, student=cfg.teacher_lm, benchmark="math500"), "teacher")
    rows = read_predictions(cfg, of="teacher")
    assert set(rows.variant) == {"Base", "HC"} and rows.attrs["missing"] == []
    with pytest.raises(InputError, match="No predictions of"): read_predictions(cfg)


@pytest.mark.parametrize("change, said", [
    (lambda t: t.assign(variant="ST-CH"), "ST/seed-0/embedded.parquet holds rows of the variant 'ST-CH'"),
    (lambda t: t.assign(benchmark="aime24"), "holds rows of the benchmark 'aime24'"),
    (lambda t: t.assign(seed=7), "holds rows of the seed 7"),
    (lambda t: t.drop(columns=["cluster", "revision"]), "lacks one of the columns"),
    (lambda t: t[:0], "holds no predictions"),
])
def test_a_file_that_holds_something_else(cfg, change, said):
    rows = made({"ST": 0.5}, student=cfg.students[0])
    write(cfg, rows)
    file = prediction_files(cfg)[cfg.students[0], "ST", 0, "embedded"]
    write_parquet(file, change(rows))
    with pytest.raises(InputError) as error: read_predictions(cfg)
    assert said in str(error.value).replace("np.int64(7)", "7") and "delete it and" in str(error.value)


def test_importing_is_light():
    code = ("import sys, smoltraces.evidence.claims; "
            "print([m for m in ('scipy.stats', 'statsmodels', 'matplotlib') if m in sys.modules])")
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "[]"
