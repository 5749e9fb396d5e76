"""Which results can be trusted: every way in which a run can go wrong, and what must not be read."""
import io
import json
import os
import random
import shutil
import stat

import pytest
from rich.console import Console
from small_runs import amend, predictions, small_run, stage, weights

from smoltraces.files import read_json, sha256, write_json, write_text
from smoltraces.running import verify as verifying
from smoltraces.running.execute import hold
from smoltraces.running.verify import (
    CHANGED,
    LEFT_OUT,
    MISSING,
    NOT_OURS,
    OK,
    STALE,
    Record,
    judge,
    read_records,
    show,
    tell,
    verify,
)
from smoltraces.settings import InputError

RESULTS = {"results.parquet", "claims.parquet", "tables", "report.html"}


@pytest.fixture(scope="module")
def made(tmp_path_factory): return small_run(tmp_path_factory.mktemp("made") / "run")


@pytest.fixture
def run(made, tmp_path): return shutil.copytree(made, tmp_path / "run")


def states(found) -> dict: return dict(zip(found.rows.artefact, found.rows.state, strict=True))
def reason(found, name) -> str: return found.rows.set_index("artefact").what[name]
def said(found) -> str:
    out = io.StringIO()
    show(found, Console(file=out, width=160, force_terminal=True))
    return out.getvalue()


def of(variant: str) -> set: return {f"data/{variant}.parquet", weights(variant), predictions(variant)}


# ---- a run as it was made


def test_untouched_run_is_trusted(run, capsys):
    found = verify(run)
    assert found.trusted and set(states(found).values()) == {OK}
    assert set(states(found)) == {"problems.parquet", *of("SBS"), *of("ST"), *RESULTS}
    assert found.rows.artefact.tolist()[-len(RESULTS):][-1] == "report.html"
    assert tell(run) == 0
    assert capsys.readouterr().out.rstrip().endswith("as far as it is here.")


def test_a_copy_elsewhere_with_other_dates_is_the_same(run, tmp_path):
    shutil.copytree(run, tmp_path / "copy", copy_function=shutil.copyfile)
    found = verify(tmp_path / "copy")
    assert found.trusted and found.rows.equals(verify(run).rows)


def test_weights_may_be_left_out(run):
    shutil.rmtree(run / "students")
    found = verify(run)
    assert found.trusted and tell(run) == 0
    assert set(found.rows.artefact[found.rows.what == LEFT_OUT]) == {weights("SBS"), weights("ST")}


# ---- what is not to be trusted


@pytest.mark.parametrize(("changed", "also"), [
    ("data/ST.parquet", {weights("ST"), predictions("ST"), *RESULTS}),
    (weights("ST"), {predictions("ST"), *RESULTS}),
    (predictions("ST"), RESULTS), ("results.parquet", set()), ("tables", set()),
    ("problems.parquet", {predictions("ST"), predictions("SBS"), *RESULTS})])
def test_distrust_goes_from_cause_to_effect(run, changed, also):
    file = run / changed
    write_text(next(p for p in file.rglob("*") if p.is_file()) if file.is_dir() else file, "edited")
    found = verify(run)
    assert states(found) == {name: CHANGED if name == changed else STALE if name in also else OK
                             for name in states(verify(run))}
    assert not found.trusted and tell(run) == 1
    for name in also: assert reason(found, name) == f"came from {changed}, which is changed"


def test_distrust_passes_through_what_is_left_out(run):
    shutil.rmtree(run / "students")
    write_text(run / "data" / "ST.parquet", "edited")
    found = states(verify(run))
    assert found[weights("ST")] == found[predictions("ST")] == found["report.html"] == STALE
    assert found[predictions("SBS")] == OK


def test_restored_file_is_trusted_again(run):
    before = (run / "data" / "ST.parquet").read_text()
    write_text(run / "data" / "ST.parquet", "edited")
    assert not verify(run).trusted
    write_text(run / "data" / "ST.parquet", before)
    assert verify(run).trusted


def test_predictions_of_an_older_student(run):
    write_text(run / weights("ST") / "model.safetensors", "trained again")
    stage(run, "3_finetune-tiny-ST-seed-0", ["data/ST.parquet"], [weights("ST")])
    found = verify(run)
    assert states(found)[weights("ST")] == OK and states(found)[predictions("ST")] == STALE
    assert reason(found, predictions("ST")) == f"made from another {weights('ST')} than 3_finetune-tiny-ST-seed-0 wrote"
    assert states(found)["report.html"] == STALE
    shutil.rmtree(run / "students") # and it matters though they are left out
    found = verify(run)
    assert states(found)[predictions("ST")] == STALE and not found.trusted


def test_missing_results_matter(run):
    (run / "results.parquet").unlink()
    found = verify(run)
    assert not found.trusted and states(found)["results.parquet"] == MISSING
    assert "results.parquet is missing" in found.verdict and states(found)["report.html"] == OK


def test_run_without_results_says_so(run):
    for name in (*RESULTS, "runs/5_figures.json"):
        shutil.rmtree(run / name) if (run / name).is_dir() else (run / name).unlink()
    found = verify(run)
    assert found.trusted and found.verdict == "There are no results yet: the stage 5_figures has not run."


def test_no_record_of_the_data(run):
    (run / "runs" / "1_build_data.json").unlink()
    found = verify(run)
    assert {states(found)[n] for n in ("problems.parquet", "data/ST.parquet")} == {NOT_OURS}
    assert states(found)["report.html"] == STALE and "which is not ours" in found.verdict


@pytest.mark.parametrize(("text", "words"), [
    ("{", "is not whole JSON"), ("\x00\xff", "is not whole JSON"), ("[]", "is no record"), ("", "is not whole JSON"),
    ("[" * 100_000, "is not whole JSON"), ('{"stage": "1_build_data"}', "does not say"),
    ('{"stage": "other", "inputs": {}, "outputs": {}}', "is no record of 1_build_data"),
    ('{"stage": "1_build_data", "inputs": {}, "outputs": {"data/ST.parquet": "abc"}}', "states no hash")])
def test_broken_records(run, text, words):
    (run / "runs" / "1_build_data.json").write_text(text, encoding="latin-1")
    found = verify(run)
    assert states(found)["runs/1_build_data.json"] == CHANGED and not found.trusted
    assert words in reason(found, "runs/1_build_data.json")
    assert states(found)["report.html"] == STALE and states(found)["data/ST.parquet"] == NOT_OURS


def random_run(rng) -> tuple[list[Record], dict[str, str], dict[str, tuple[str, str]]]:
    "Records in random order, the hashes that they state, and files of which some are damaged"
    records, hashes = [], {}
    for s in range(rng.randint(1, 8)):
        inputs = {n: hashes[n] if rng.random() < 0.9 else "f" * 64
                  for n in rng.sample(sorted(hashes), rng.randint(0, min(3, len(hashes))))}
        if rng.random() < 0.1: inputs["from where"] = "e" * 64
        outputs = {f"{s}.{k}": f"{s}{k}".ljust(64, "0") for k in range(rng.randint(1, 2))}
        hashes |= outputs
        records.append(Record(f"s{s}", {"inputs": inputs, "outputs": outputs}))
    now = {n: (rng.choices([h, "d" * 64, ""], [8, 1, 1])[0], "") for n, h in hashes.items()}
    return rng.sample(records, len(records)), hashes, now | {"from where": ("e" * 64, "")}


def sound(name: str, producer: dict[str, Record], hashes: dict, now: dict) -> bool:
    "What it is to be trusted, by definition; what is not there passes on what it came from"
    if name not in producer: return False
    read = producer[name].inputs
    return now[name][0] in (hashes[name], "") and all(
        sound(i, producer, hashes, now) and read[i] == hashes[i] for i in read)


def test_chain_against_a_plain_recursion():
    "Random runs, random damage: what is ok is what the definition trusts"
    rng, kinds = random.Random(0), set()
    for _ in range(300):
        records, hashes, now = random_run(rng)
        producer = {n: r for r in records for n in r.outputs}
        judged = judge(records, now)
        assert {n for n, (state, _) in judged.items() if state == OK} == {
            n for n in hashes if sound(n, producer, hashes, now)}
        kinds |= {state for state, _ in judged.values()}
    assert kinds == {OK, CHANGED, STALE, NOT_OURS}


def test_an_older_record_of_the_same_file_does_not_matter(run):
    stage(run, "2_analyse_traces")
    amend(run, "2_analyse_traces", outputs={"data/ST.parquet": "0" * 64})
    found = verify(run)
    assert found.trusted


# ---- what else lies there


def test_files_from_nowhere(run):
    for i in range(50): write_text(run / "predictions" / "other" / str(i) / "embedded.parquet", "?")
    for name in ("predictions/tiny/ST/seed-1/embedded.parquet", "data/ST copy.parquet", "notes.txt"):
        write_text(run / name, "?")
    for name in ("notebooks/5_figures.ipynb", "runs/5_figures.log", ".lock", "data/.answers/x", "curves/x",
                 predictions("ST").replace(".parquet", ".json"), "data/dropped/x.parquet", "problems/removed.parquet"):
        write_text(run / name, "{}")
    (run / "figures" / "empty").mkdir(parents=True)
    found = verify(run)
    loose = found.rows[found.rows.state == NOT_OURS]
    assert set(loose.artefact) == {"predictions/other", "predictions/tiny/ST/seed-1", "data/ST copy.parquet",
                                   "notes.txt"}
    assert not found.trusted and found.verdict.startswith("The results can be trusted") and "4 other" in found.verdict


# ---- how it was made


def test_conditions_that_should_agree(run):
    amend(run, "3_finetune-tiny-ST-seed-0", versions={"torch": "2.14.0"}, settings={"epochs": 2.0}, code="f" * 64,
          machine={"system": "Linux", "cores": 64}, git={"commit": "fedcba", "dirty": True}, lock="1" * 64)
    found = verify(run)
    assert found.mixed["name"].drop_duplicates().tolist() == [
        "3_finetune", "commit", "dirty", "requirements.lock", "cores", "epochs", "torch"]
    assert found.trusted # the chain is whole
    torch = found.mixed[found.mixed.kind == "version"]
    assert torch.value.tolist() == ["2.13.0", "2.14.0"] and torch["first"].iloc[1] == "3_finetune-tiny-ST-seed-0"


def test_older_records_lack_much(run):
    for file in (run / "runs").glob("*.json"):
        told = read_json(file)
        write_json(file, {k: v for k, v in told.items() if k not in ("began", "cost_usd", "git", "lock", "machine")})
    found = verify(run)
    assert found.trusted and found.mixed.empty


def test_no_clone_failures_and_work_under_way(run):
    for file in (run / "runs").glob("*.json"): amend(run, file.stem, git=None, lock=None)
    write_json(run / "runs" / "4_evaluate-x.failed.json", {"stage": "4_evaluate-x", "why": "No disk space left."})
    with hold(run / "runs", "3_finetune-x"): found = verify(run)
    assert found.running == ["3_finetune-x"] and "At work: 3_finetune-x." in said(found)
    assert found.trusted and verify(run).running == []


def test_a_benchmarks_own_file_is_named_and_not_read(run, monkeypatch):
    amend(run, "5_figures", inputs={"math500@/etc/passwd": "1" * 64})
    seen = watch(monkeypatch)
    found = verify(run)
    assert found.trusted and not any("passwd" in name for name in seen)
    amend(run, "1_build_data", inputs={"math500@/etc/passwd": "2" * 64})
    assert "math500@/etc/passwd" in verify(run).mixed["name"].tolist()


def test_keys_are_not_shown(run):
    amend(run, "3_finetune-tiny-ST-seed-0", settings={"student_key": "sk-planted-0123456789"})
    amend(run, "3_finetune-tiny-SBS-seed-0", settings={"student_key": "OPENAI_API_KEY"})
    found = verify(run)
    for text in (found.to_json(), said(found)): assert "sk-planted" not in text and "OPENAI_API_KEY" in text


# ---- what must not be read, and what cannot be


def watch(monkeypatch) -> list[str]:
    "The files that are opened for hashing"
    seen, hashed = [], verifying.sha256
    def spy(path):
        seen.append(os.path.realpath(path))
        return hashed(path)
    monkeypatch.setattr(verifying, "sha256", spy)
    return seen


@pytest.mark.parametrize("name", ["../secret", "data/../../secret", "/etc/passwd", "..\\secret", "C:\\secret",
                                  "~/../x/..", "data/ST.parquet\0", "", "."])
@pytest.mark.parametrize("part", ["inputs", "outputs"])
def test_names_that_lead_out_of_the_run(run, name, part, monkeypatch):
    write_text(run.parent / "secret", "for nobody")
    amend(run, "3_finetune-tiny-ST-seed-0", **{part: {name: "0" * 64}})
    seen = watch(monkeypatch)
    found = verify(run)
    assert not found.trusted and "lies outside the run and was not read" in found.rows.what.str.cat()
    assert all(file.startswith(str(run.resolve())) for file in seen)


def link(run, name, to):
    (run / name).unlink()
    (run / name).symlink_to(to)


def test_links(run, monkeypatch):
    outside = run.parent / "secret"
    write_text(outside / "file", "for nobody")
    shutil.move(run / "data" / "ST.parquet", run / "notebooks")
    (run / "data" / "ST.parquet").symlink_to(run / "notebooks")
    assert verify(run).trusted # inside
    seen = watch(monkeypatch)
    link(run, "data/ST.parquet", outside / "file")
    link(run, "data/SBS.parquet", "SBS.parquet") # to itself
    link(run, "report.html", "nowhere")
    shutil.rmtree(run / "tables")
    (run / "tables").symlink_to(outside)
    found = verify(run)
    for name, words in {"data/ST.parquet": "leads out of the run", "data/SBS.parquet": "broken link",
                        "report.html": "broken link", "tables": "leads out of the run"}.items():
        assert states(found)[name] == CHANGED and words in reason(found, name)
    assert not any("secret" in file for file in seen)


def test_a_link_inside_a_students_folder(run, monkeypatch):
    write_text(run.parent / "secret", "for nobody")
    link(run, f"{weights('ST')}/model.safetensors", run.parent / "secret")
    seen = watch(monkeypatch)
    found = verify(run)
    assert states(found)[weights("ST")] == CHANGED and not any("secret" in file for file in seen)


def test_a_record_that_is_a_link(run, tmp_path):
    shutil.move(run / "runs" / "1_build_data.json", tmp_path / "elsewhere.json")
    (run / "runs" / "1_build_data.json").symlink_to(tmp_path / "elsewhere.json")
    found = verify(run)
    assert "is a link that leads out of the run" in reason(found, "runs/1_build_data.json") and not found.trusted


def test_the_run_itself_may_be_a_link(run, tmp_path):
    (tmp_path / "link").symlink_to(run)
    assert verify(tmp_path / "link").trusted


def test_a_pipe_does_not_hold_it_up(run):
    (run / "report.html").unlink()
    os.mkfifo(run / "report.html")
    os.mkfifo(run / weights("ST") / "pipe")
    found = verify(run)
    assert states(found)["report.html"] == CHANGED == states(found)[weights("ST")]
    assert stat.S_ISFIFO((run / "report.html").stat().st_mode)


def test_unreadable_files_are_named_and_the_rest_goes_on(run, monkeypatch):
    hashed = verifying.sha256
    def refuse(path):
        if str(path).endswith("data/ST.parquet"): raise PermissionError(13, "Permission denied")
        return hashed(path)
    monkeypatch.setattr(verifying, "sha256", refuse)
    found = verify(run)
    assert reason(found, "data/ST.parquet") == "cannot be read (Permission denied)"
    assert states(found)["report.html"] == STALE and states(found)[weights("SBS")] == OK


# ---- what a reader sees


def test_every_form_says_the_same(run, capsys):
    write_text(run / "data" / "ST.parquet", "edited")
    found = verify(run)
    assert tell(run, as_json=True) == 1
    told = json.loads(capsys.readouterr().out)
    assert told["trusted"] is False and told["verdict"] == found.verdict and len(told["artefacts"]) == len(found.rows)
    assert told["artefacts"][0].keys() == {"state", "artefact", "stage", "what"}
    shown = said(found)
    for name in found.untrusted.artefact: assert name in shown
    assert "Not to be trusted: results.parquet" in shown.strip().splitlines()[-1]


def test_hostile_names_are_shown_as_text(run):
    name = "data/[red]x\x1b[31m|<b>.parquet"
    write_text(run / name, "?")
    found = verify(run)
    assert "[red]x⟨ESC⟩[31m|<b>" in said(found)


def test_folders_that_are_no_run(run, tmp_path):
    with pytest.raises(InputError, match="is no folder: name that of a run"): verify(tmp_path / "nowhere")
    with pytest.raises(InputError, match="holds no record of a run: choose from .*/run"): verify(tmp_path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="run smoltraces reproduce"): verify(tmp_path / "empty")


def test_nothing_is_written(run):
    before = {p: p.stat().st_mtime_ns for p in run.rglob("*")}
    verify(run)
    assert {p: p.stat().st_mtime_ns for p in run.rglob("*")} == before


# ---- a real run (uses the session fixture `smoke`)


def test_smoke_run(smoke, tmp_path):
    found = verify(smoke / "outputs" / "smoke")
    assert found.trusted, found.untrusted.to_string()
    copy = tmp_path / "smoke"
    shutil.copytree(smoke / "outputs" / "smoke", copy)
    shutil.rmtree(copy / "students")
    assert verify(copy).trusted
    record = next(r for r in read_records(copy) if r.stage.startswith("4_evaluate") and "-ST-HC-seed-0" in r.stage)
    write_text(copy / next(iter(record.outputs)), "edited")
    assert {"results.parquet", "report.html"} <= set(verify(copy).untrusted.artefact)


# ---- records that were edited


def write_manifest(run):
    hashes = {f.stem: sha256(f) for f in (run / "runs").glob("*.json")}
    write_json(run / "manifest.json", {"began": "2026-11-23T14:00:00Z", "seconds": 600.0, "stages": hashes})


def test_record_edited_after_the_run(run):
    write_manifest(run)
    assert verify(run).trusted
    write_text(run / "data" / "ST.parquet", "edited") # with its record, so that the hashes fit
    stage(run, "1_build_data", [], ["problems.parquet", "data/ST.parquet", "data/SBS.parquet"])
    amend(run, "3_finetune-tiny-ST-seed-0", inputs={"data/ST.parquet": sha256(run / "data" / "ST.parquet")})
    found = verify(run)
    assert not found.trusted and states(found)["runs/1_build_data.json"] == CHANGED
    assert "was edited after manifest.json" in reason(found, "runs/1_build_data.json")
    assert found.verdict.startswith("Not to be trusted")


def test_record_of_a_later_run_that_did_not_end(run):
    write_manifest(run)
    amend(run, "1_build_data", began="2026-11-23T15:00:00Z")
    assert verify(run).trusted


@pytest.mark.parametrize("text", ["{", "[]", '{"stages": 3, "began": null}'])
def test_an_odd_manifest_of_the_run(run, text):
    write_text(run / "manifest.json", text)
    assert verify(run).trusted
