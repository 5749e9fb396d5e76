"""Comparisons of style on samples whose difference is known; nothing here needs a trace but the tests at the end."""
import warnings

import numpy as np
import pandas as pd
import pytest
from scipy.spatial.distance import jensenshannon
from scipy.stats import mannwhitneyu, wasserstein_distance

from smoltraces.settings import InputError
from smoltraces.style.compare import FEATURES, KINDS, STYLE, compare, plot_compare, probe, replicates
from smoltraces.style.measure import measure


@pytest.fixture(autouse=True)
def no_warning():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.simplefilter("ignore", ResourceWarning)  # of tests before, when the collector comes round
        yield


def frame(seed: int, n: int, shift: float = 0, k: int = 3, ids: str = "p") -> pd.DataFrame:
    "n rows of k normal features, 1 wide; the first one shifted"
    x = np.random.default_rng(seed).normal(size=(n, k))
    x[:, 0] += shift
    return pd.DataFrame(x, columns=[f"x{i}" for i in range(k)]).assign(id=[f"{ids}{i}" for i in range(n)])


def xs(k: int) -> list[str]: return [f"x{i}" for i in range(k)]


# -- compare ----------------------------------------------------------------------------------------------------------
def test_samples_one_standard_deviation_apart():
    row = compare(frame(1, 400, 1), frame(2, 500), ["x0"], bootstrap=500).iloc[0]
    assert row.g == pytest.approx(1, abs=0.15) and row.wasserstein == pytest.approx(1, abs=0.15)
    assert row.delta == pytest.approx(0.52, abs=0.06)  # 2 Phi(1 / sqrt 2) - 1
    for value, truth in (("g", 1), ("wasserstein", 1), ("delta", 0.52), ("js", 0.397)):
        assert row[f"{value}_low"] < truth < row[f"{value}_high"], value
    assert row.wasserstein_p < 0.01 and row.js_p < 0.01 and 0 < row.wasserstein_noise < 0.2
    assert (row.n_a, row.n_b, row.note) == (400, 500, None) or pd.isna(row.note)


def test_the_sign_turns_with_the_sides():
    one, two = compare(frame(1, 80, 1), frame(2, 90), xs(3)), compare(frame(2, 90), frame(1, 80, 1), xs(3))
    np.testing.assert_allclose(one[["g", "delta"]], -two[["g", "delta"]])
    np.testing.assert_allclose(one[["wasserstein", "js"]], two[["wasserstein", "js"]])


def test_estimates_are_those_of_scipy():
    rng = np.random.default_rng(0)
    for a, b in [(rng.poisson(2, 70), rng.poisson(3, 50)), (rng.exponential(1, 30), rng.exponential(2, 80))]:
        row = compare(pd.DataFrame({"x": a}), pd.DataFrame({"x": b}), "x", bootstrap=20).iloc[0]
        df = len(a) + len(b) - 2
        sd = np.sqrt(((len(a) - 1) * np.var(a, ddof=1) + (len(b) - 1) * np.var(b, ddof=1)) / df)
        assert row.g == pytest.approx((np.mean(a) - np.mean(b)) / sd * (1 - 3 / (4 * df - 1)))
        assert row.wasserstein == pytest.approx(wasserstein_distance(a, b) / sd)
        assert row.delta == pytest.approx(2 * mannwhitneyu(a, b).statistic / len(a) / len(b) - 1)


def test_jensen_shannon_runs_from_0_to_1():
    a = pd.DataFrame({"x": [0] * 5 + [1] * 5})
    assert compare(a, a, "x", bootstrap=20).js[0] == 0
    assert compare(a, a + 5, "x", bootstrap=20).js[0] == pytest.approx(1)
    other = pd.DataFrame({"x": [0] * 2 + [1] * 8})  # few values: each is a bin
    assert compare(a, other, "x", bootstrap=20).js[0] == pytest.approx(jensenshannon([5, 5], [2, 8], base=2))


def test_one_source_is_noise():
    table = compare(frame(1, 200, k=20), frame(2, 200, k=20), xs(20), bootstrap=300)
    for distance in ("wasserstein", "js"):
        assert (table[f"{distance}_low"] == 0).mean() > 0.9
        assert (table[f"{distance}_p"] > 0.05).mean() >= 0.8
        assert table[distance].mean() == pytest.approx(table[f"{distance}_noise"].mean(), rel=0.2)
    assert ((table.g_low < 0) & (table.g_high > 0)).mean() >= 0.8


def test_spread_alone_is_a_distance():
    wide = frame(1, 300).assign(x0=lambda t: t.x0 * 3)
    row = compare(wide, frame(2, 300), ["x0"], bootstrap=300).iloc[0]
    assert row.g_low < 0 < row.g_high and row.wasserstein_low > row.wasserstein_noise and row.js_low > row.js_noise


def test_pairs_narrow_the_interval():
    base = np.random.default_rng(0).normal(size=100) * 5
    a, b = (frame(s, 100, k=1).assign(x0=lambda t: t.x0 + base) for s in (1, 2))
    alone, paired = (compare(a, b, "x0", by=by).iloc[0] for by in (None, "id"))
    assert paired.g == alone.g
    assert paired.g_high - paired.g_low < (alone.g_high - alone.g_low) / 2
    assert paired.wasserstein_noise < alone.wasserstein_noise / 1.5
    mixed = compare(a, b.sample(frac=1, random_state=0), "x0", by="id").iloc[0]  # the order of rows does not matter
    assert mixed.g_high - mixed.g_low < (alone.g_high - alone.g_low) / 2


def test_same_seed_same_table():
    a, b = frame(1, 50, 1), frame(2, 60)
    one, two, other = (compare(a, b, xs(3), bootstrap=200, seed=s) for s in (0, 0, 1))
    pd.testing.assert_frame_equal(one, two)
    assert not np.allclose(one.g_low, other.g_low) and np.allclose(one.g, other.g)


def test_missing_values_are_left_out():
    a, b = frame(1, 60, 1), frame(2, 60)
    holes = pd.concat([a, a.assign(x0=np.nan, x1=np.inf)], ignore_index=True)
    full, some = compare(a, b, xs(2), bootstrap=400), compare(holes, b, xs(2), bootstrap=400)
    assert some.n_a.tolist() == [60, 60] and some.note.str.contains("no value in 60 and 0").all()
    pd.testing.assert_frame_equal(full[["g", "delta", "wasserstein", "js"]], some[["g", "delta", "wasserstein", "js"]])


def test_a_row_that_cannot_be_compared_says_why():
    n = 20
    a = pd.DataFrame({"none": [np.nan] * n, "one": [1.0] + [np.nan] * (n - 1), "same": [3] * n, "flat": [0] * n,
                      "null": pd.array([None] * n, dtype="Int64"), "fine": range(n)})
    b = a.assign(none=range(n), flat=1)
    table = compare(a, b, list(a), bootstrap=50).set_index("feature")
    for f in ("none", "one", "same", "null"):
        assert table.loc[f, "note"] and table.loc[f, ["g", "delta", "wasserstein", "js", "js_low"]].isna().all(), f
    assert table.loc["same", "mean_a"] == 3 and table.loc["same", "note"] == "the same in every trace"
    flat = table.loc["flat"]  # nothing varies within a side: no standard deviation to count in
    assert flat.note == "no spread within either side" and np.isnan(flat.g) and np.isnan(flat.wasserstein)
    assert flat.delta == pytest.approx(-1) and flat.js == pytest.approx(1) and flat.delta_high > -1
    assert pd.isna(table.loc["fine", "note"]) and table.loc["fine", "g"] == 0


@pytest.mark.parametrize("change, names", [
    (lambda a, b: compare(a[:1], b, xs(3)), "at least 2 traces a side, not 1"),
    (lambda a, b: compare(a, b[:0], xs(3)), "at least 2 traces a side, not 0"),
    (lambda a, b: compare(a, b.drop(columns="x2"), xs(3)), "No column x2 to compare"),
    (lambda a, b: compare(a, b, []), "name at least one feature"),
    (lambda a, b: compare(a, b, ["id"]), "Column id holds more than numbers"),
    (lambda a, b: compare(a, b.iloc[4:], xs(3), by="id"), "4 values of id are on one side alone"),
    (lambda a, b: compare(a, b, xs(3), by="problem"), "No column problem to pair by"),
    (lambda a, b: compare(a, b, xs(3), bootstrap=0), "bootstrap is at least 1"),
    (lambda a, b: compare(a, b, xs(3), level=95), "level between 0 and 1"),
    (lambda a, b: probe(a[:1], b, xs(3)), "at least 2 traces a side"),
    (lambda a, b: probe(a.assign(id="p0"), b, xs(3)), "2 groups a side"),
    (lambda a, b: probe(a, b, xs(3), folds=1), "at least 2 folds"),
    (lambda a, b: probe(a, b, xs(3), groups="problem"), "No column problem to group by"),
    (lambda a, b: probe(a.assign(c=1), b.assign(c=1), ["c"]), "nothing to probe"),
    (lambda a, b: probe(a.assign(c=np.nan), b.assign(c=np.nan), ["c"]), "nothing to probe"),
    (lambda a, b: replicates(a, b, b.assign(x0=0).drop(columns="x1"), xs(3)), "No column x1"),
    (lambda a, b: replicates(a, b, b, xs(3)), "as near to the target as noise"),
    (lambda a, b: replicates(*[a.assign(c=1)] * 3, ["c"]), "as near to the target as noise"),
])
def test_bad_input_is_named(change, names):
    with pytest.raises(InputError) as error: change(frame(1, 12), frame(2, 12))
    assert names in str(error.value)


# -- probe ------------------------------------------------------------------------------------------------------------
def test_one_source_is_not_told_apart():
    found = probe(frame(1, 200, k=10), frame(2, 200, k=10), xs(10))
    assert found.low < 0.5 < found.high and "cannot be told apart" in repr(found)


def test_two_that_never_meet():
    found = probe(frame(1, 40, 100), frame(2, 40), xs(3), names=("ST", "SBS"))
    assert found.auc == pytest.approx(1) and found.fold_aucs == pytest.approx((1,) * 5)
    assert 0.8 < found.low < 1 and found.high == 1  # 40 problems do not prove that none would be mistaken
    assert repr(found).startswith("AUC 1.00 [") and repr(found).endswith("ST and SBS are easily told apart")
    assert found.weights.index[0] == "x0" and found.weights.iloc[0] > 0  # positive: speaks for a


def test_known_auc():
    found = probe(frame(1, 1500, 1, k=1), frame(2, 1500, k=1), ["x0"])
    assert found.auc == pytest.approx(0.760, abs=0.03) and found.low < 0.760 < found.high  # Phi(1 / sqrt 2)


def test_scores_are_out_of_fold_and_complete():
    a, b = frame(1, 55, 1), frame(2, 40, ids="q")
    found = probe(a, b, xs(3), names=("ST", "SBS"))
    assert found.n == (55, 40) and len(found.scores) == 95 and found.scores.score.between(0, 1).all()
    assert found.scores.group.tolist() == [*a.id, *b.id]
    assert found.scores.groupby(["fold", "side"]).size().unstack().min().tolist() == [8, 11]
    assert set(found.weights.index) == set(xs(3)) and found.weights.abs().is_monotonic_decreasing


def test_a_group_never_meets_two_folds():
    a = pd.concat([frame(1, 30), frame(1, 30)])
    found = probe(a, frame(2, 40), xs(3))
    assert found.scores.groupby("group").fold.nunique().max() == 1


def test_duplicates_do_not_leak():
    "Ten rows, each twenty times under its own id: without groups the probe knows them by heart"
    from sklearn.ensemble import RandomForestClassifier
    a, b = (pd.concat([frame(s, 10, k=6, ids=i)] * 20, ignore_index=True) for s, i in ((1, "p"), (2, "q")))
    forest = RandomForestClassifier(20, random_state=0)
    leaky = probe(a, b, xs(6), groups=None, model=forest)
    grouped = probe(a, b, xs(6), model=forest)
    assert leaky.auc > 0.99 and grouped.auc < 0.8 and grouped.low < 0.5
    assert grouped.high - grouped.low > 10 * (leaky.high - leaky.low)  # twenty copies are one problem


def test_equal_sides_tie():
    a = frame(1, 60)
    found = probe(a, a, xs(3))
    assert found.auc == pytest.approx(0.5) and found.low < 0.5 < found.high


@pytest.mark.parametrize("seed", range(12))
def test_odd_groups(seed):
    "Groups of any size and mixture: every fold holds both sides"
    rng = np.random.default_rng(seed)
    a, b = (frame(s, n).assign(id=lambda t: rng.integers(0, rng.integers(3, 30), len(t)).astype(str))
            for s, n in ((1, 31), (2, 9)))
    found = probe(a, b, xs(3), bootstrap=100, seed=seed)
    assert np.isfinite([found.auc, found.low, found.high, *found.fold_aucs]).all()


def test_missing_and_constant_features_are_noted():
    a, b = frame(1, 40, 2), frame(2, 40)
    a.loc[:9, "x1"], b["flat"], a["flat"], a["none"], b["none"] = np.nan, 0, 0, np.nan, np.nan
    found = probe(a, b, [*xs(3), "flat", "none"])
    assert set(found.weights.index) == set(xs(3))
    assert "Left out, being the same everywhere: flat, none." in found.note and "median" in found.note
    assert found.note in found._repr_markdown_() and "| `x0`" in found._repr_markdown_()


def test_same_seed_same_probe():
    a, b = frame(1, 50, 0.5), frame(2, 50)
    one, two, other = (probe(a, b, xs(3), seed=s) for s in (0, 0, 1))
    assert repr(one) == repr(two) and one._repr_markdown_() == two._repr_markdown_()
    pd.testing.assert_frame_equal(one.scores, two.scores)
    assert not one.scores.fold.equals(other.scores.fold)


# -- replicates -------------------------------------------------------------------------------------------------------
def test_share_of_the_way():
    target, baseline = frame(1, 400, 2), frame(2, 400)
    for shift, truth in ((2, 1), (1.5, 0.75), (1, 0.5), (0, 0), (-1, -0.5)):
        share, low, high = replicates(frame(3, 400, shift), target, baseline, ["x0"], bootstrap=500)
        assert share == pytest.approx(truth, abs=0.15) and low <= truth <= high + 0.02, shift
    assert replicates(target, target, baseline, xs(3), bootstrap=50)[0] == 1


def test_a_feature_that_candidate_and_target_never_vary_counts_as_closed():
    target, baseline = frame(1, 100, 1).assign(c=0), frame(2, 100).assign(c=lambda t: t.x1 > 0)
    with_it = replicates(frame(3, 100).assign(c=0), target, baseline, ["x0", "c"], bootstrap=50)
    assert with_it[0] > replicates(frame(3, 100), target, baseline, ["x0"], bootstrap=50)[0] + 0.1


# -- real measures ----------------------------------------------------------------------------------------------------
LINES = {"ST": "3 + 4 = 8. Wait, it is 7. Maybe 7 + 5 is 13? Let me check. Hmm, 12.", "SBS": "3 + 4 = 7. 7 + 5 = 12."}


@pytest.fixture(scope="module")
def traces(): return {v: [line * k for k in range(1, 25)] for v, line in LINES.items()}


def test_features_are_columns_of_measure(traces):
    numbers = measure(traces["ST"]).select_dtypes("number").columns
    assert set(FEATURES) <= set(numbers) and sum(map(len, KINDS.values())) == len(set(FEATURES))
    assert "style_score" not in STYLE and "n_words" not in STYLE


def test_traces_are_measured(traces):
    st, sbs = traces["ST"], pd.DataFrame({"id": range(24), "trace": traces["SBS"]})
    table = compare(st, sbs, bootstrap=100)
    pd.testing.assert_frame_equal(table, compare(measure(st), measure(sbs), bootstrap=100))
    assert table.feature.tolist() == list(FEATURES)
    assert table.set_index("feature").loc["pivots_per_100_words", "delta"] == pytest.approx(1)
    assert "easily told apart" in repr(probe(st, sbs, names=("ST", "SBS")))
    assert compare([*st, None, ""], sbs, STYLE, bootstrap=50).note.str.contains("no value").sum() > 5


def test_plot(traces):
    table = compare(traces["ST"], traces["SBS"], bootstrap=100)
    left, right = plot_compare(table, effect="g", distance="js", names=("ST", "SBS")).axes
    assert [t.get_text() for t in left.get_yticklabels()] == list(FEATURES)
    assert left.get_title() == "Hedges' g" and right.get_title() == "Jensen-Shannon distance"
    assert "SBS has more" in left.get_xlabel()
    plot_compare(compare(frame(1, 10), frame(2, 10), ["x0"], bootstrap=10))  # features of one's own
