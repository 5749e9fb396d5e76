"""What sets two runs apart: files, conditions, and how the results moved, against numbers known from elsewhere."""
import io
import json
import shutil

import numpy as np
import pandas as pd
import pytest
from rich.console import Console
from small_runs import amend, answers, predictions, small_run, stage, weights

from smoltraces.evidence.statistics import comparisons, summarise
from smoltraces.files import read_json, read_parquet, write_json, write_parquet, write_text
from smoltraces.running.diff import AWAY, DIFFERS, SAME, compare_answers, diff, show, tell
from smoltraces.settings import InputError


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("made")
    small_run(folder / "a")
    small_run(folder / "again", seconds=75.0)
    small_run(folder / "b", {"SBS": 0.32, "ST": 0.4}, epochs=2.0)
    return folder


@pytest.fixture
def runs(made, tmp_path): return shutil.copytree(made, tmp_path / "runs")


def said(found) -> str:
    out = io.StringIO()
    show(found, Console(file=out, width=200, force_terminal=True))
    return out.getvalue()


def strict(text: str) -> dict:
    def refuse(constant): raise ValueError(constant)
    return json.loads(text, parse_constant=refuse)


def states(found) -> dict: return dict(zip(found.files.artefact, found.files.state, strict=True))


# ---- the same


def test_a_run_repeated_is_the_same_but_for_times(runs, capsys):
    found = diff(runs / "a", runs / "again")
    assert found.same and found.conditions.empty and found.flips.empty and not found.claims.moved.any()
    assert set(states(found).values()) == {SAME}
    assert found.moved.moved.tolist() == ["same on every problem"] * 2
    assert tell(runs / "a", runs / "again") == 0
    assert "The results are the same, file by file: 11 same." in capsys.readouterr().out


@pytest.mark.parametrize("name", ["problems.parquet", "data/ST.parquet", f"{weights('ST')}/model.safetensors",
                                  "tables/main.md", "report.html", "results.parquet"])
def test_one_file_that_differs(runs, name):
    write_text(runs / "again" / name, "other")
    found = diff(runs / "a", runs / "again")
    assert not found.same and tell(runs / "a", runs / "again") == 1
    different = [n for n, s in states(found).items() if s == DIFFERS]
    assert len(different) == 1 and name.startswith(different[0])


def test_only_times_are_ignored_in_a_students_folder(runs):
    folder = runs / "again" / weights("ST")
    write_parquet(folder / "log.parquet", [{"step": 1, "loss": 0.51, "seconds": 60.0}])
    write_json(folder / "training.json", {"steps": 2, "seconds": 60.0})
    found = diff(runs / "a", runs / "again")
    row = found.files.set_index("artefact").loc[weights("ST")]
    assert (row.state, row.files) == (DIFFERS, "log.parquet, training.json")


def test_weights_left_out_say_nothing(runs):
    shutil.rmtree(runs / "again" / "students")
    found = diff(runs / "a", runs / "again")
    assert found.same and states(found)[weights("ST")] == AWAY
    assert "2 not here to compare" in found.verdict
    shutil.copytree(runs / "a", runs / "copy")
    shutil.rmtree(runs / "copy" / "students")
    assert states(diff(runs / "a", runs / "copy"))[weights("ST")] == SAME # by the recorded hash
    (runs / "copy" / "data" / "ST.parquet").unlink()
    amend(runs / "copy", "1_build_data", outputs={"data/ST.parquet": "0" * 64})
    assert states(diff(runs / "a", runs / "copy"))["data/ST.parquet"] == DIFFERS


# ---- what was different


def test_conditions(runs):
    amend(runs / "again", "5_figures", versions={"torch": "2.14.0"}, git={"commit": "fedcba", "dirty": True},
          machine={"system": "Linux", "cores": 64}, lock="1" * 64, code="f" * 64, settings={"bootstrap": 500})
    amend(runs / "again", "1_build_data", settings={"n_train": 128, "student_key": "sk-planted"})
    rows = diff(runs / "a", runs / "again").conditions
    found = {(r.kind, r.name): (r.a, r.b) for r in rows.itertuples(index=False)}
    assert found["setting", "bootstrap"] == ("", "500") and ("setting", "epochs") not in found
    assert found["version", "torch"] == ("2.13.0", "2.13.0; 2.14.0")
    assert found["git", "dirty"] == ("false", "false; true")
    assert {("lock", "requirements.lock"), ("machine", "cores"), ("code", "5_figures")} <= set(found)
    text = diff(runs / "a", runs / "again").to_json()
    assert "sk-planted" not in text and "sk-planted" not in said(diff(runs / "a", runs / "again"))


def test_other_students_and_variants(runs):
    small_run(runs / "c", {"ST": 0.6, "ST-HC": 0.5})
    found = diff(runs / "a", runs / "c")
    how = found.moved.set_index("variant").how
    assert how.to_dict() == {"SBS": "only in A", "ST-HC": "only in B", "ST": "paired: the same 80 problems"}
    assert states(found)[predictions("SBS")] == "only in A" and states(found)[predictions("ST-HC")] == "only in B"
    assert found.moved.variant.tolist() == ["SBS", "ST-HC", "ST"] # the paper's order


# ---- how the results moved


def table(right, variant="ST", seeds=1, start=0, **told) -> pd.DataFrame:
    right = np.atleast_2d(right)
    return pd.DataFrame([{"student": "s", "variant": variant, "benchmark": "embedded", "seed": seed, "sample": 0,
                          "problem_id": f"p{start + i:03}", "correct": bool(r), "answer": "7", "revision": "r",
                          "extracted": "7", "n_tokens": 9, "truncated": False, "cluster": "c", **told}
                         for seed, row in enumerate(right) for i, r in enumerate(row)])


def right(share, n=80, rng=None): return (rng or np.random.default_rng(0)).random(n) < share


def test_numbers_are_those_of_the_statistics():
    "Two runs compared as two variants of one run are"
    rng = np.random.default_rng(1)
    for seeds in (1, 3):
        a, b = (np.array([right(share, rng=rng) for _ in range(seeds)]) for share in (0.3, 0.5))
        [row] = compare_answers((table(a), table(b))).to_dict("records")
        as_variants = pd.concat([table(a, "Base"), table(b, "ST")])
        [pair] = comparisons(as_variants, pairs=[("ST", "Base")]).to_dict("records")
        for ours, theirs in (("difference", "difference"), ("low", "low"), ("high", "high"), ("p", "p"),
                             ("gained", "wins"), ("lost", "losses"), ("shared", "n")):
            assert row[ours] == pytest.approx(pair[theirs]), ours
        own = summarise(as_variants).set_index("variant")
        for side, variant in (("a", "Base"), ("b", "ST")):
            assert [row[f"{k}_{side}"] for k in ("accuracy", "low", "high")] == pytest.approx(
                own.loc[variant, ["accuracy", "ci_low", "ci_high"]].tolist())


def test_noise_does_not_look_like_signal():
    "Of pairs of runs that are equally good, about one in twenty has an interval without zero; of unequal ones, most"
    rng, seen = np.random.default_rng(0), {}
    for gap in (0.0, 0.25):
        sides = [pd.concat([table(right(share, rng=rng), student=f"s{i}") for i in range(60)])
                 for share in (0.4, 0.4 + gap)]
        found = compare_answers(tuple(sides), n_boot=500)
        seen[gap] = found.moved.isin(["lies above zero", "lies below zero"]).mean()
    assert seen[0.0] <= 0.1 and seen[0.25] >= 0.75


def test_many_tests_are_corrected(runs):
    rng = np.random.default_rng(0)
    sides = [pd.concat([table(right(0.4, rng=rng), v) for v in ("ST", "ST-HC", "SBS", "Base")]) for _ in "ab"]
    found = compare_answers(tuple(sides))
    assert (found.p_holm >= found.p).all() and found.p_holm.max() <= 1


def test_no_problem_is_shared():
    [row] = compare_answers((table(right(0.3)), table(right(0.6), start=500))).to_dict("records")
    assert row["how"] == "not compared: the problems are others" and row["shared"] == 0 and pd.isna(row["difference"])
    assert row["accuracy_b"] > row["accuracy_a"] and row["moved"] == ""


def test_paired_on_what_is_shared():
    a, b = table(right(0.3)), table(right(0.3), start=20)
    [row] = compare_answers((a, b)).to_dict("records")
    assert row["how"] == "paired on the 60 problems that both hold"
    assert row["n_a"] == 80 and row["shared"] == 60
    changed = table(right(0.3), answer="8")
    assert compare_answers((a, changed)).shared[0] == 0 # the same questions with other answers are other problems


def test_seeds_samples_and_gaps():
    rng = np.random.default_rng(0)
    three, one = np.array([right(0.4, rng=rng) for _ in range(3)]), right(0.4, rng=rng)
    [row] = compare_answers((table(three), table(one))).to_dict("records")
    assert (row["seeds_a"], row["seeds_b"], row["shared"]) == (3, 1, 80)
    sampled = pd.concat([table(r).assign(sample=k) for k, r in enumerate(three)]) # three answers a problem
    [row] = compare_answers((sampled, table(one))).to_dict("records")
    assert row["seeds_a"] == 1 and row["accuracy_a"] == pytest.approx(three.mean())
    torn = table(three).query("not (seed == 2 and problem_id >= 'p040')") # a seed that was not finished
    [row] = compare_answers((torn, table(one))).to_dict("records")
    assert row["shared"] == row["n_a"] == 40 and "that both hold" in row["how"]


def test_flips_and_claims(runs):
    found = diff(runs / "a", runs / "b")
    row, mine = found.moved.set_index("variant").loc["ST"], found.flips[found.flips.variant == "ST"]
    sides = [read_parquet(runs / r / predictions("ST")).correct.to_numpy() for r in "ab"]
    assert mine.problem_id.tolist() == [f"p{i:03}" for i in np.flatnonzero(sides[0] != sides[1])]
    assert row.lost == (mine.flip == "right to wrong").sum() == (sides[0] & ~sides[1]).sum()
    assert row.gained == (~sides[0] & sides[1]).sum()
    assert found.claims[["verdict_a", "verdict_b", "moved"]].values.tolist() == [["supported", "undecided", True]]
    assert "on the paper's claims that moved: 1 of 1" in " ".join(found.sentences())


def test_predictions_that_nobody_kept(runs):
    shutil.rmtree(runs / "b" / "predictions")
    assert set(diff(runs / "a", runs / "b").moved.how) == {"only in A"}


def test_answers_of_an_earlier_plan_do_not_count(runs):
    "Only what the results were made of; files of another seed that still lie there are not averaged in"
    answers(runs / "b" / predictions("ST", 7), "ST", right(0.9), seed=7)
    stage(runs / "b", "4_evaluate-tiny-ST-seed-7", [], [predictions("ST", 7)])
    assert diff(runs / "a", runs / "b").moved.seeds_b.tolist() == [1, 1]
    (runs / "b" / "runs" / "5_figures.json").unlink() # no results yet: all that there is
    assert diff(runs / "a", runs / "b").moved.set_index("variant").seeds_b.to_dict() == {"SBS": 1, "ST": 2}


# ---- what cannot be read


def test_broken_files_are_named(runs):
    (runs / "b" / "runs" / "1_build_data.json").write_text("{")
    found = diff(runs / "a", runs / "b")
    assert "b: runs/1_build_data.json is not whole JSON" in said(found).replace("\n", " ") and not found.same
    for run, name in (("b", predictions("ST")), ("a", "claims.parquet")):
        (runs / run / name).write_bytes(b"PAR1")
        with pytest.raises(InputError, match="is not a whole Parquet file"): diff(runs / "a", runs / "b")


def test_links_out_of_a_run_are_not_followed(runs, tmp_path):
    secret = tmp_path / "secret.parquet"
    shutil.move(runs / "b" / predictions("ST"), secret)
    (runs / "b" / predictions("ST")).symlink_to(secret)
    found = diff(runs / "a", runs / "b")
    assert found.moved.set_index("variant").how["ST"] == "only in A"
    amend(runs / "b", "1_build_data", outputs={"../../secret.parquet": "0" * 64})
    assert "secret" not in str(states(diff(runs / "a", runs / "b")))


def test_folders_that_are_no_runs(runs, tmp_path):
    with pytest.raises(InputError, match="are the same folder: name two runs"): diff(runs / "a", runs / "b/../a")
    with pytest.raises(InputError, match="choose from"): diff(runs / "a", runs)
    with pytest.raises(InputError, match="is no folder"): diff(tmp_path / "nowhere", runs / "a")


# ---- what a reader sees


def test_json_is_strict_and_whole(runs, capsys):
    small_run(runs / "c", {"ST": 0.6, "ST-HC": 0.5}) # with numbers that are not there
    assert tell(runs / "a", runs / "c", as_json=True) == 1
    told = strict(capsys.readouterr().out)
    assert told["same"] is False and len(told["moved"]) == 3 and told["moved"][0]["difference"] is None
    assert {"files", "conditions", "moved", "flips", "claims", "verdict"} <= set(told)


def test_every_form_says_the_same(runs):
    found = diff(runs / "a", runs / "b")
    text = said(found)
    for line in (found.verdict, *found.sentences()): assert line in text
    row = found.moved.set_index("variant").loc["ST"]
    for value in (row.accuracy_a, row.accuracy_b, row.low, row.high): assert f"{100 * value:.1f}" in text
    assert "with one training run a side" in text.lower()


def test_hostile_text_is_shown_as_text(runs):
    amend(runs / "b", "5_figures", settings={"[red]x\x1b[31m": "|<b>"})
    assert "[red]x⟨ESC⟩" in said(diff(runs / "a", runs / "b"))


# ---- a real run (uses the session fixture `smoke`)


def test_smoke_run_and_its_copy(smoke, tmp_path):
    run = smoke / "outputs" / "smoke"
    copy = shutil.copytree(run, tmp_path / "copy")
    for file in (copy / "runs").glob("*.json"): write_json(file, {**read_json(file), "seconds": 1.0})
    assert diff(run, copy, n_boot=500).same
    file = next((copy / "predictions").rglob("embedded.parquet"))
    rows = read_parquet(file)
    write_parquet(file, rows.assign(correct=~rows.correct))
    found = diff(run, copy, n_boot=500)
    assert not found.same and len(found.flips) == rows.problem_id.nunique()
