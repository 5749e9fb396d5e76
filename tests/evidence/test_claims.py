"""Verdicts follow their rules, and what was not run is not judged."""
import numpy as np
import pandas as pd
import pytest

from smoltraces.evidence.claims import CLAIMS, JUDGED, judge, published_claims
from smoltraces.evidence.statistics import COMPARISON_COLUMNS, PAIRS, comparisons
from smoltraces.paper import GRADES, MEANING


def rows(variant="ST-HC", reference="Base", student="a/student", benchmark="math500", **values) -> pd.DataFrame:
    "One row of comparisons: a clear lead, unless `values` say otherwise"
    values = {"n": 100, "seeds": 1, "difference": 0.2, "low": 0.1, "high": 0.3, "p": 0.001, "p_holm": 0.01,
              "eq_p": 0.9, "detectable": 0.15, "margin": 0.05} | values
    row = {"student": student, "benchmark": benchmark, "variant": variant, "reference": reference, **values}
    return pd.DataFrame([row], columns=COMPARISON_COLUMNS)


def verdict(table: pd.DataFrame, claim: str) -> str: return table.set_index("claim").verdict[claim]


def style(scores: dict, n=40, spread=0.1) -> pd.DataFrame:
    rng = np.random.default_rng(0)
    return pd.concat([pd.DataFrame({
        "student": "a/student", "variant": v, "seed": 0, "benchmark": "math500", "id": range(n),
        "style_score": np.clip(rng.normal(mean, spread, n), 0, 1)}) for v, mean in scores.items()])


def test_claims_are_well_formed():
    assert len({c.name for c in CLAIMS}) == len(CLAIMS) and {c.grade for c in CLAIMS} <= set(GRADES)
    for claim in CLAIMS:
        assert claim.kind in ("above", "equivalent", "style", "teacher") and len(claim.name) < 30
        if claim.kind in ("above", "equivalent"): assert (claim.variant, claim.reference) in PAIRS
        if claim.kind != "teacher": assert {claim.variant, claim.reference} <= set(MEANING)


@pytest.mark.parametrize("values, expected", [
    ({}, "supported"), ({"p_holm": 0.0499}, "supported"), ({"p_holm": 0.05}, "undecided"),
    ({"p_holm": 0.3, "p": 0.01}, "undecided"),  # significant on its own is not enough
    ({"difference": -0.2, "low": -0.3, "high": -0.1}, "refused"), ({"difference": -0.2, "p_holm": 0.2}, "undecided"),
])
def test_above(values, expected):
    table = judge(rows(**values))
    assert verdict(table, "ST-HC above Base") == expected
    found = table.set_index("claim").loc["ST-HC above Base"]
    assert found.estimate == values.get("difference", 0.2) and found.n == 100 and found.detectable == 0.15
    assert found.cell == "comparisons"


@pytest.mark.parametrize("values, expected", [
    ({"low": -0.03, "high": 0.02, "eq_p": 0.01}, "supported"),
    ({"low": 0.001, "high": 0.049, "eq_p": 0.04}, "supported"),
    ({"low": -0.02, "high": 0.06, "eq_p": 0.06}, "undecided"), ({"low": 0.04, "high": 0.1, "eq_p": 0.7}, "undecided"),
    ({"low": 0.051, "high": 0.1, "eq_p": 0.9}, "refused"), ({"low": -0.2, "high": -0.06, "eq_p": 0.9}, "refused"),
    ({"low": 0.06, "high": 0.1, "margin": 0.07, "eq_p": 0.9}, "undecided"),
])
def test_comparable(values, expected):
    assert verdict(judge(rows("ST", "ST-HC", **values)), "ST-HC comparable to ST") == expected


def test_a_small_real_lead_is_both_ahead_and_comparable():
    table = judge(rows("ST", "ST-HC", difference=0.03, low=0.01, high=0.045, eq_p=0.01, p_holm=0.02))
    assert verdict(table, "ST above ST-HC") == verdict(table, "ST-HC comparable to ST") == "supported"


def test_what_was_not_run_is_not_judged():
    table = judge(rows())
    assert table.columns.tolist() == JUDGED and len(table) == len(CLAIMS)
    assert table.set_index("claim").verdict.value_counts().to_dict() == {"not run": len(CLAIMS) - 1, "supported": 1}
    assert table[table.verdict == "not run"][["estimate", "low", "high", "p", "p_holm", "n"]].isna().all(axis=None)
    empty = judge(rows()[:0])
    assert set(empty.verdict) == {"not run"} and empty.claim.tolist() == [c.name for c in CLAIMS]


def test_each_student_and_benchmark_is_judged_by_itself():
    table = judge(pd.concat([rows(), rows(student="b/other", p_holm=0.5), rows(benchmark="aime24", difference=-0.2)]))
    found = table[table.claim == "ST-HC above Base"].set_index(["student", "benchmark"]).verdict
    assert found.to_dict() == {("a/student", "math500"): "supported", ("b/other", "math500"): "undecided",
                               ("a/student", "aime24"): "refused"}


@pytest.mark.parametrize("teacher", [True, False])
def test_the_teacher_may_come_alone_or_among_the_students(teacher):
    own = rows("HC", "Base", student="gpt-4o")
    table = judge(rows(), teacher=own) if teacher else judge(pd.concat([rows(), own]))
    found = table[table.claim == "HC prompt helps the teacher"]
    assert found[["student", "verdict", "cell"]].to_numpy().tolist() == [["gpt-4o", "supported", "teacher"]]
    assert set(table[table.claim != "HC prompt helps the teacher"].student) == {"a/student"}


@pytest.mark.parametrize("after, expected", [(0.8, "supported"), (0.05, "refused"), (0.3, "undecided")])
def test_style(after, expected):
    table = judge(rows(), style({"Base": 0.3, "ST-HC": after}), n_boot=1000)
    assert verdict(table, "ST-HC raises style") == expected and verdict(table, "ST raises style") == "not run"
    found = table.set_index("claim").loc["ST-HC raises style"]
    assert found.cell == "style" and found.n == 40 and found.low <= found.estimate <= found.high
    assert found.estimate == pytest.approx(after - 0.3, abs=0.06)


def test_style_of_answers_without_words():
    measured = style({"Base": 0.3, "ST-HC": 0.8, "ST": 0.8})
    measured.loc[(measured.variant == "ST") & (measured.id < 30), "style_score"] = np.nan
    measured.loc[measured.variant == "ST-HC", "style_score"] = np.nan
    table = judge(rows(), measured, n_boot=500).set_index("claim")
    assert table.n["ST raises style"] == 10 and table.verdict["ST-HC raises style"] == "not run"


def test_the_published_figures():
    table = published_claims().set_index(["claim", "student", "benchmark"])
    assert set(table.cell) == {"published"}
    assert table.p.between(0, 1).all() and (table.low < table.estimate).all() and (table.estimate < table.high).all()
    teacher = table.loc["HC prompt helps the teacher", "GPT-4o", "MATH500"]
    assert teacher.n == 500 and teacher.verdict == "undecided"
    assert len(table.loc["ST-HC above SBS"]) == 1  # known for Llama alone
    for margin, expected in ((0.12, ["supported"] * 3 + ["undecided"]), (0.005, ["undecided"] * 2 + ["refused"] +
                                                                         ["undecided"])):  # Qwen differs, AIME is small
        assert published_claims(margin).set_index("claim").verdict["ST-HC comparable to ST"].tolist() == expected


def test_published_p_is_that_of_statsmodels():
    from statsmodels.stats.proportion import proportions_ztest
    from statsmodels.stats.weightstats import ttost_ind
    found = published_claims().set_index(["claim", "student", "benchmark"])
    llama, teacher = ("Llama 3.2 3B", "MATH500"), ("HC prompt helps the teacher", "GPT-4o", "MATH500")
    assert found.p["ST-HC-W above ST-NT", *llama] == pytest.approx(proportions_ztest([241, 203], 500)[1], abs=0.002)
    assert found.p[teacher] == pytest.approx(proportions_ztest([406, 377], 500)[1], abs=0.002)
    theirs = ttost_ind(*(1.0 * (np.arange(500) < right) for right in (342, 321)), -0.05, 0.05)[0]
    assert found.p["ST-HC comparable to ST", *llama] == pytest.approx(theirs, abs=0.01)


def test_true_claims_are_supported_and_false_ones_are_not():
    "Through the whole path, from answers to verdicts: an invented student on 400 problems"
    from test_statistics import made
    shares = {"Base": 0.2, "ST-NT": 0.4, "SBS": 0.3, "ST-HC-W": 0.4, "ST-HC": 0.55, "ST": 0.56}
    found = [judge(comparisons(made(shares, n=400, rng=k), n_boot=400)).set_index("claim").verdict for k in range(8)]
    assert all(f["ST-HC above Base"] == f["ST-HC above SBS"] == f["ST-HC-W above Base"] == "supported" for f in found)
    false = [f["ST-HC-W above ST-NT"] for f in found]
    assert false.count("undecided") >= len(false) - 1 and "refused" not in {*pd.concat(found)}
