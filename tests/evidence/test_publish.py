"""A dataset repository: staged whole, read back by `datasets`, pushed to a stand-in for the hub, or refused."""
import base64
import json
import re
import threading
from dataclasses import asdict
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pandas as pd
import pytest
import yaml

from smoltraces.evidence.publish import card, publish, reload, stage
from smoltraces.files import sha256, write_json, write_parquet
from smoltraces.problems.corpora import embedded_problems
from smoltraces.schema import to_problems, trace_schema
from smoltraces.settings import InputError, load_settings

TOKEN = "hf_planted0123456789abcdef"
VARIANTS = ("ST-NT", "SBS", "ST-HC-W", "ST-HC", "ST")


def build(cfg, teacher="embedded/emergent", source=None) -> None:
    "Five aligned variants and their manifest"
    problems = to_problems(embedded_problems(("chain_sum",), n_train=12, n_test=0, n_hard=0))
    described = {}
    for v in VARIANTS:
        rows = [{**asdict(p), "variant": v, "teacher": teacher, "prompt": "plain@1", "correct": v != "ST-HC-W",
                 "trace": None if v == "ST-NT" else "I add from the left.", "response": rf"\boxed{{{p.answer}}}",
                 "prompt_tokens": None, "completion_tokens": 9, "cost_usd": 0.01, "source": source or p.source}
                for p in problems]
        table = pd.DataFrame(rows, columns=trace_schema.names)
        file = write_parquet(cfg.path("data", f"{v}.parquet"), table, trace_schema)
        described[v] = {"file": file.name, "sha256": sha256(file), "rows": len(rows), "teacher": teacher,
                        "prompt": "plain@1", "cost_usd": 0.12, "asked": 15, "usable": 12, "dropped": {"no answer": 3}}
    write_json(cfg.path("data", "manifest.json"), {
        "settings": {"profile": cfg.profile, "corpora": ["omni-math@/home/ana/secret-folder/omni.jsonl"]},
        "funnel": [{"step": "seed problems", "problems": 15, "math": 15}, {"step": "chosen", "problems": 12}],
        "variants": described, "versions": {"smoltraces": "0.1.0"}})


@pytest.fixture
def cfg(tmp_path):
    cfg = load_settings("smoke", out=str(tmp_path / "out"), offline=False)
    build(cfg)
    return cfg


def head(text: str) -> dict: return yaml.safe_load(text.split("---\n")[1])


def test_staged_folder_loads_config_by_config(cfg, tmp_path):
    folder = stage(cfg, tmp_path / "staged")
    assert reload(folder) == dict.fromkeys(VARIANTS, 12)
    for v in VARIANTS: assert sha256(folder / "data" / v / "train.parquet") == sha256(cfg.path("data", f"{v}.parquet"))
    described = head((folder / "README.md").read_text())
    assert {c["config_name"] for c in described["configs"]} == set(VARIANTS)
    assert [c["config_name"] for c in described["configs"] if c.get("default")] == ["ST"]
    assert all((folder / c["data_files"][0]["path"]).is_file() for c in described["configs"])
    first = (folder / "README.md").read_bytes()
    assert (stage(cfg, folder) / "README.md").read_bytes() == first  # again, over itself


def test_card_says_what_the_manifest_says(cfg):
    text = card(cfg, "ana/traces")
    assert 'load_dataset("ana/traces", "ST", split="train")' in text
    assert "cost 0.60 US dollars" in text and "| seed problems | 15 | 15 |" in text and "smoltraces 0.1.0" in text
    assert "| ST-HC | 15 | 12 | no answer: 3 |" in text
    for name in trace_schema.names: assert f"- `{name}`: " in text
    assert "Lippmann, Philip and Yang, Jie" in text and "embedded/emergent" in text
    assert head(text)["license"] == "apache-2.0" and "| reasoning-gym/chain\\_sum | math | 12 | Apache-2.0 |" in text


def test_card_tells_what_was_read_of_the_corpora(tmp_path):
    cfg = load_settings("smoke", out=str(tmp_path / "out"))
    build(cfg, teacher="deepseek-reasoner", source="omni-math/HMMT_2")
    write_json(cfg.path("problems", "funnel.json"), {"asked": 20, "corpora": [
        {"corpus": "omni-math", "licence": "Apache-2.0", "hub": "KbsdJames/Omni-MATH", "revision": "0000b6b",
         "rows": 30, "dropped": {"proof": 9, "no answer": 1}, "removed": {"duplicate": 5}, "kept": 15,
         "sampled": 15},
        {"corpus": "mine", "licence": "not stated", "files": {"/home/ana/mine.csv": "0" * 64}, "rows": 2, "kept": 0}]})
    text = card(cfg)
    assert "| omni-math | KbsdJames/Omni-MATH | 0000b6b | 30 | 10 | 5 | 15 | 15 |" in text
    assert "proof 9, no answer 1" in text and "/home" not in text
    assert "| omni-math/HMMT\\_2 | math | 12 | Apache-2.0 |" in text and head(text)["license"] == "other"
    assert "Text of deepseek-reasoner may be wrong" in text and "GPT-4o-mini" not in text


def test_licences_of_published_traces(tmp_path):
    cfg = load_settings("smoke", out=str(tmp_path / "out"))
    build(cfg, teacher="published", source="numina-math-1.5/cn_k12")
    manifest = json.loads(cfg.path("data", "manifest.json").read_text())
    manifest["settings"]["corpora"] = ["numina-math-1.5", "openr1-math-220k@/home/ana/r1"]
    write_json(cfg.path("data", "manifest.json"), manifest)
    notes = (stage(cfg, tmp_path / "staged") / "LICENSES.md").read_text()
    assert "| openr1-math-220k | open-r1/OpenR1-Math-220k | Apache-2.0 |" in notes and "/home" not in notes
    assert "Traces that others published" in card(cfg) and "Text of published" not in card(cfg)


@pytest.mark.parametrize("old", [{"filters": {"drawn": 15}}, {}])
def test_card_of_a_manifest_that_says_little(cfg, old):
    manifest = json.loads(cfg.path("data", "manifest.json").read_text())
    variants = {v: {"sha256": d["sha256"]} for v, d in manifest["variants"].items()}
    write_json(cfg.path("data", "manifest.json"), {"variants": variants} | old)
    assert "## Variants" in card(cfg) and ("| drawn | 15 |" in card(cfg)) == bool(old)


def test_names_from_settings_break_neither_yaml_nor_markdown(tmp_path):
    cfg = load_settings("smoke", out=str(tmp_path / "out"))
    build(cfg, teacher='evil: "x"\n---\n# title | <script>alert(1)</script>', source="mine: [x] |\n---")
    text = card(cfg)
    assert head(text)["license"] == "other" and set(head(text)) >= {"configs", "license_name", "license_link"}
    body = text.split("---\n", 2)[2]
    assert "<script>" not in body and "\n# title" not in body
    tables = [line for line in body.splitlines() if line.startswith("| ")]
    assert all(len(re.findall(r"(?<!\\)\|", line)) in (3, 4, 5, 7) for line in tables), tables
    assert reload(stage(cfg, tmp_path / "staged")) == dict.fromkeys(VARIANTS, 12)


def test_no_machine_path_and_no_token_is_staged(cfg, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    folder = stage(cfg, tmp_path / "staged")
    text = "".join(p.read_text() for p in folder.rglob("*") if p.suffix in (".md", ".json"))
    assert "omni-math@omni.jsonl" in text
    for hidden in ("/home", "ana", "secret-folder", str(tmp_path), TOKEN): assert hidden not in text, hidden


@pytest.mark.parametrize("spoil, says", [
    (lambda f: f.with_name("manifest.json").unlink(), "manifest.json is missing"),
    (lambda f: f.with_name("manifest.json").write_text("{}"), "no variants"),
    (lambda f: f.with_name("manifest.json").write_text("{"), "not whole JSON")])
def test_files_that_are_not_the_manifests_are_refused(cfg, tmp_path, spoil, says):
    spoil(cfg.path("data", "SBS.parquet"))
    with pytest.raises(InputError, match=says): stage(cfg, tmp_path / "staged")
    assert not (tmp_path / "staged").exists()


def test_a_folder_of_someone_elses_is_left_alone(cfg, tmp_path):
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter.tex").write_text("mine")
    with pytest.raises(InputError, match="no staged data set"): stage(cfg, tmp_path / "thesis")
    assert (tmp_path / "thesis" / "chapter.tex").read_text() == "mine"


def test_variants_over_other_problems_do_not_reload(cfg, tmp_path):
    folder = stage(cfg, tmp_path / "staged")
    table = pd.read_parquet(folder / "data/SBS/train.parquet").iloc[::-1]
    write_parquet(folder / "data/SBS/train.parquet", table.reset_index(drop=True), trace_schema)
    with pytest.raises(InputError, match="other problems"): reload(folder)
    (folder / "data/SBS/train.parquet").write_bytes(b"PAR1")
    with pytest.raises(InputError, match="cannot load"): reload(folder)


class Hub(BaseHTTPRequestHandler):
    "What `huggingface_hub` asks of the hub while it makes a dataset repository of small files"
    def answer(self, status: int, body) -> None:
        data = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def handle_any(self) -> None:
        body, hub = self.rfile.read(int(self.headers.get("Content-Length") or 0)), self.server
        if self.headers.get("Authorization") != f"Bearer {TOKEN}": return self.answer(401, {"error": "Invalid token"})
        path = self.path.partition("?")[0]
        hub.asked.append(f"{self.command} {path}")
        repo, url = "/api/datasets/ana/traces", f"{hub.url}/datasets/ana/traces"
        if hub.status != 200: return self.answer(hub.status, {"error": "no"})
        if path == "/api/repos/create":
            if hub.private is not None: return self.answer(409, {"error": "it exists", "url": url})
            hub.private = json.loads(body).get("private") or json.loads(body).get("visibility") == "private"
            return self.answer(200, {"url": url})
        if path == repo or path == f"{repo}/revision/main":
            return self.answer(200, {"id": "ana/traces", "private": hub.private, "sha": "0" * 40, "siblings": [],
                                     "gated": False, "disabled": False, "downloads": 0, "likes": 0, "tags": []})
        if path.startswith(f"{repo}/tree/"):
            return self.answer(200, [{"type": "file", "path": p, "size": 1, "oid": "0" * 40} for p in hub.files])
        if path == "/api/validate-yaml": return self.answer(200, {"errors": [], "warnings": []})
        if path.startswith(f"{repo}/preupload/"):
            return self.answer(200, {"files": [{"path": f["path"], "uploadMode": "regular", "shouldIgnore": False}
                                               for f in json.loads(body)["files"]]})
        if path.startswith(f"{repo}/commit/"):
            for line in map(json.loads, body.splitlines()):
                value = line["value"]
                if line["key"] == "file": hub.files[value["path"]] = base64.b64decode(value["content"])
                if line["key"] == "deletedFile": hub.files.pop(value["path"])
            return self.answer(200, {"commitUrl": f"{url}/commit/{'1' * 40}", "commitOid": "1" * 40})
        return self.answer(404, {"error": f"the stand-in does not know {path}"})

    do_GET = do_POST = do_HEAD = do_PUT = handle_any

    def log_message(self, *args) -> None: pass


@pytest.fixture
def hub(monkeypatch):
    from huggingface_hub import constants
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    server.url, server.asked, server.files, server.private, server.status = (
        f"http://127.0.0.1:{server.server_port}", [], {}, None, 200)
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    monkeypatch.setattr(constants, "ENDPOINT", server.url)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    yield server
    server.shutdown()
    server.server_close()


def test_push_and_push_again(cfg, hub, tmp_path):
    hub.files["data/ST-OLD/train.parquet"] = b"of an earlier run"
    assert publish(cfg, "ana/traces").startswith(hub.url) and hub.private
    assert sorted(hub.files) == sorted(["README.md", "LICENSES.md", "manifest.json",
                                        *(f"data/{v}/train.parquet" for v in VARIANTS)])
    for name, content in hub.files.items():
        file = tmp_path / "back" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(content)
    assert reload(tmp_path / "back") == dict.fromkeys(VARIANTS, 12)
    assert TOKEN.encode() not in b"".join(hub.files.values())
    publish(cfg, "ana/traces")  # the repository exists now
    assert [p.name for p in Path(cfg.path()).iterdir()] == ["data"]  # the staged copy is gone


def test_public_repository_gets_no_private_data(cfg, hub):
    hub.private = False
    with pytest.raises(InputError, match="exists and is public"): publish(cfg, "ana/traces")
    assert not hub.files
    publish(cfg, "ana/traces", private=False)
    assert "README.md" in hub.files


@pytest.mark.parametrize("status, says", [(401, "does not know the token in HF_TOKEN"), (403, "give it write access"),
                                          (404, "does not find"), (418, "answered with status 418")])
def test_what_the_hub_refuses_is_a_sentence(cfg, hub, status, says):
    hub.status = status
    with pytest.raises(InputError, match=says) as error: publish(cfg, "ana/traces")
    assert TOKEN not in str(error.value) and error.value.__suppress_context__


def test_nothing_is_asked_of_the_hub_where_publishing_is_refused(cfg, hub, monkeypatch):
    offline = load_settings("smoke", out=str(cfg.path().parent), offline=True)
    with pytest.raises(InputError, match="set offline = false"): publish(offline, "ana/traces")
    with pytest.raises(InputError, match="USER/NAME"): publish(cfg, "traces")
    for token in ("", "  ", "hf_ü", "hf_\x07"):
        monkeypatch.setenv("HF_TOKEN", token)
        with pytest.raises(InputError, match="HF_TOKEN") as error: publish(cfg, "ana/traces")
        assert not token.strip() or token not in str(error.value)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    file = cfg.path("data", "ST.parquet")
    file.write_bytes(file.read_bytes() + b"x")
    with pytest.raises(InputError, match="hashes differ"): publish(cfg, "ana/traces")
    assert not hub.asked


def test_hub_that_cannot_be_reached(cfg, hub, monkeypatch):
    from huggingface_hub import constants
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setitem(publish.__globals__, "reload", lambda folder: {})  # tested above
    with pytest.raises(InputError, match="broke off") as error: publish(cfg, "ana/traces")
    assert TOKEN not in str(error.value)
