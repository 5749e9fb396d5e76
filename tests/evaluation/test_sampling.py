"""A student, whole or an adapter, answers in one call what evaluation gets; wrong folders and adapters are refused."""
import json
import re
import shutil
import subprocess
import sys
from functools import cache
from pathlib import Path

import pandas as pd
import pytest
import torch
from browser import ATTACKS
from families import FAMILIES, family
from peft import LoraConfig, get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM

from smoltraces.evaluation.ask import TextStream, compare_answers, load_student, reply_to
from smoltraces.evaluation.backends import Query, Vllm, backend_of, render_chat
from smoltraces.evaluation.benchmarks import prompt, seal
from smoltraces.schema import Problem
from smoltraces.settings import InputError, load_settings
from smoltraces.students.decoding import Answer, answers
from smoltraces.students.models import embedded_student, find_weights, load_model, load_tokenizer
from smoltraces.students.sequences import add_think_tokens

RANDOM = "embedded/random-llama"
PROBLEMS = pd.DataFrame({
    "id": ["a", "b", "c"], "source": "t/sums", "domain": "math", "split": "embedded", "meta": "{}",
    "question": ["What is 2 + 3?", "What is 40 + 2? Think of what forty is.", "Which is odd?"],
    "choices": [None, None, ["2", "3"]], "answer": ["5", "42", "B"], "answer_kind": ["math", "math", "choice"]})


@pytest.fixture(scope="module", autouse=True)
def alone():
    "The models here are too small for two threads; nothing is asked of the hub"
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
        yield
    torch.set_num_threads(before)


def louder(model):
    "A random model repeats one token; with larger weights it writes many"
    for weight in model.parameters(): weight.data.mul_(3)
    return model


@pytest.fixture(scope="module")
def student():
    loaded = load_student(RANDOM, device="cpu")
    assert repr(loaded) == f"<Student {RANDOM}, 3,219,776 parameters, cpu>"
    louder(loaded.model)
    return loaded


@pytest.fixture(scope="module")
def families(request):
    "Folder and tokenizer of a tiny student, each loaded once"
    @cache
    def load(name):
        folder = embedded_student("embedded/smollm2-135m-instruct") if name == "smollm2" else \
            family(name, request.config.cache.mkdir("families"))
        return str(folder), load_tokenizer(str(folder))
    return load


def trained(base: str, think: bool = False, tokenizer=None, **lora):
    "A base under an adapter of random matrices, and its tokenizer"
    place, _ = find_weights(base)
    model, tokenizer = load_model(place, device="cpu"), tokenizer or load_tokenizer(place)
    if think: add_think_tokens(model, tokenizer)
    torch.manual_seed(1)
    kept = {"modules_to_save": ["embed_tokens", "lm_head"]} if think else {}
    model = get_peft_model(model, LoraConfig(**{"r": 4, "init_lora_weights": False, **kept,
                                                "target_modules": ["q_proj", "down_proj"], **lora})).eval()
    for name, weight in model.named_parameters():
        if "modules_to_save" in name: weight.data.mul_(1.1) # as if it had been trained
    return model, tokenizer


def adapter(base: str, folder: Path, **how) -> Path:
    "An adapter, saved as training does"
    model, tokenizer = trained(base, **how)
    return saved(model, tokenizer, base, folder)


def saved(model, tokenizer, student: str, folder: Path) -> Path:
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    (folder / "training.json").write_text(json.dumps({"student": student}))
    return folder


@pytest.fixture(scope="module")
def plain(tmp_path_factory): return adapter(RANDOM, tmp_path_factory.mktemp("plain") / "seed-0")


def tiny(folder: Path, **changes) -> str:
    "A student unlike the embedded random one in some way"
    sizes = dict(vocab_size=49152, hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4,
                 num_key_value_heads=2, tie_word_embeddings=True)
    LlamaForCausalLM(LlamaConfig(**{**sizes, **changes})).save_pretrained(folder)
    return str(folder)


def test_equals_evaluation(student):
    rows = PROBLEMS.to_dict("records")
    asked = [render_chat(student.tokenizer, prompt(row), RANDOM) for row in rows]
    theirs = dict(answers(student.model, student.tokenizer, asked, 24, 2))
    together = student.answers(PROBLEMS, max_new_tokens=24, batch_size=2)
    alone = [student.answer(row, max_new_tokens=24) for row in rows]
    assert len(set(together[0].output)) > 5
    assert together == alone and [r.output for r in alone] == [theirs[i].output for i in range(3)]
    assert [(r.n_tokens, r.truncated) for r in alone] == [(theirs[i].n_tokens, theirs[i].truncated) for i in range(3)]
    assert alone[2].question == "Which is odd?\nA. 2\nB. 3" and all(r.correct is False and r.seconds > 0 for r in alone)


def test_a_sample_is_that_of_evaluation(student):
    cfg = load_settings("smoke", students=RANDOM, eval_temperature=0.9, eval_top_p=0.95, max_new_tokens=12)
    backend = backend_of(cfg, RANDOM, "Base", seed=0)
    louder(backend.model)
    row = PROBLEMS.iloc[1].to_dict()
    [(_, theirs)] = backend.answers([Query(row, 0, backend.prompt(prompt(row)))])
    ours = [student.answer(row, 12, temperature=0.9, top_p=0.95, seed=seed) for seed in (0, 0, 1)]
    assert ours[0].output == theirs.output and ours[0] == ours[1] != ours[2]


@pytest.mark.parametrize("how", [{}, {"temperature": 1.0, "seed": 5}])
def test_streaming_prints_what_is_returned(student, capsys, how):
    plain = student.answer(PROBLEMS.iloc[0], max_new_tokens=40, **how)
    streamed = student.answer(PROBLEMS.iloc[0], max_new_tokens=40, stream=True, **how)
    assert streamed == plain and capsys.readouterr().out == f"{plain}\n"


def test_it_comes_token_by_token(student, monkeypatch):
    "What is shown after each token is shown before the next is computed"
    shown, steps = [], []
    monkeypatch.setattr("smoltraces.evaluation.ask.print", lambda piece="", **_: shown.append((len(steps), piece)),
                        raising=False)
    hook = student.model.register_forward_pre_hook(lambda *_: steps.append(1))
    reply = student.answer("Count.", max_new_tokens=20, stream=True)
    hook.remove()
    assert "".join(piece for _, piece in shown) == str(reply) and len({step for step, _ in shown}) > 10


def test_a_template_that_opens_the_thinking(student, monkeypatch, capsys):
    template = student.tokenizer.chat_template
    monkeypatch.setattr(student.tokenizer, "chat_template", template + "{{ '<think>\\n' }}")
    reply = student.answer("1 + 1", max_new_tokens=8, stream=True)
    assert reply.output.startswith("<think>\n") and reply.trace and not reply.response and reply.truncated
    assert capsys.readouterr().out == f"{reply}\n"


@pytest.mark.parametrize("name", [*FAMILIES, "smollm2"])
def test_pieces_join_to_the_text(name, families):
    _, tokenizer = families(name)
    text = "<think>\n  Wait — 7 × 8 = 56 🤔👩‍🏫.\r\n\nNow: 数学, نص, x\t y .\n</think>\n\n\\boxed{56}"
    rng, pieces = torch.Generator().manual_seed(0), []
    for ids in (tokenizer(text, add_special_tokens=False)["input_ids"],
                torch.randint(len(tokenizer), (300,), generator=rng).tolist()):
        pieces.clear()
        stream = TextStream(tokenizer, pieces.append)
        for token in ids: stream.add(token)
        stream.end()
        assert "".join(pieces) == tokenizer.decode(ids, skip_special_tokens=True)
        assert len(pieces) > len(ids) / 4


@pytest.mark.parametrize("written, expected", [
    ("<think>\nWait.\n</think>\n\nIt is \\boxed{5}.", ("Wait.", "It is \\boxed{5}.", "5", True)),
    ("<think>\nSo \\boxed{5}", ("So \\boxed{5}", "", None, False)),
    ("It is 5.", (None, "It is 5.", "5", True)),
    ("Wait.</think>\\boxed{6}", ("Wait.", "\\boxed{6}", "6", False)),
    ("", (None, "", None, False))])
def test_a_reply_is_taken_apart(written, expected):
    row = PROBLEMS.iloc[0].to_dict()
    reply = reply_to(row, Answer(written, 9, False))
    assert (reply.trace, reply.response, reply.answer, reply.correct) == expected
    for same in (Problem(**row), PROBLEMS.iloc[0]): assert reply_to(same, Answer(written, 9, False)) == reply
    untold = reply_to("What is 2 + 3?", Answer(written, 9, False))
    assert untold.correct is None and untold.answer == reply.answer and "expected" not in repr(untold)


def test_hostile_text_stays_text():
    for attack in ATTACKS:
        said = Answer(f"<think>\nWait, {attack}\n</think>\n\n{attack} \\boxed{{{attack}}}", 9, False)
        reply = reply_to({"question": f"1 + 1 {attack}", "answer": attack}, said)
        shown = reply._repr_html_()
        assert not re.search(r"<(script|img|svg|!--)", shown.replace("<style>", ""), re.I)
        for text in (shown, str(reply), repr(reply)): assert not set(text) & set("\x00\x1b\x07\x9b\u202e\u2028\ud800")


def test_what_cannot_be_asked(student):
    for problem, why in ((" ", "no question"), ({"problem": "1"}, "no question"), (PROBLEMS, "one row at a time"),
                         (None, "not a NoneType"), ({"question": seal("x")}, "asks not to be shown")):
        with pytest.raises(InputError, match=why): student.answer(problem)
    with pytest.raises(InputError, match="set max_new_tokens to"): student.answer("1 + 1", max_new_tokens=4000)


def test_compare(student, tmp_path, capfd):
    after = adapter(RANDOM, tmp_path / "seed-0", lora_alpha=400)
    capfd.readouterr()
    found = compare_answers(RANDOM, after, PROBLEMS, max_new_tokens=10)
    assert capfd.readouterr() == ("", "") # no bar, no advice
    assert [r.output for r in found.after] == [r.output for r in load_student(after).answers(PROBLEMS, 10)]
    assert [r.output for r in found.after] != [r.output for r in found.before]
    assert found.verdict == "Right before: 0 of 3; after: 0 of 3."
    shown = found._repr_html_()
    assert shown.count("before · ") == shown.count("after · ") == 3 and shown.count("Which is odd?") == 1
    assert "the right ones unknown" in repr(compare_answers(student, student, ["1 + 1"], max_new_tokens=2))


@pytest.mark.parametrize("name", FAMILIES)
def test_added_tokens_in_each_family(name, families, tmp_path):
    "Where the base must grow for them, and where it has rows to spare: the same numbers as before it was saved"
    base, tokenizer = families(name)
    model, tokenizer = trained(base, think=True, tokenizer=tokenizer)
    found = find_weights(saved(model, tokenizer, base, tmp_path / "seed-0"))
    ids = tokenizer("<think>Wait, 2 + 3</think>", return_tensors="pt", add_special_tokens=False)["input_ids"]
    assert tokenizer.convert_ids_to_tokens([ids[0, 0], ids[0, -1]]) == ["<think>", "</think>"]
    with torch.inference_mode(): assert torch.equal(load_model(*found, "cpu")(ids).logits, model(ids).logits)


def test_evaluation_takes_added_tokens(tmp_path, monkeypatch):
    "The backend loads what training with think = tokens saves; vLLM says that it does not"
    cfg = load_settings("smoke", students=RANDOM)
    monkeypatch.setattr(cfg, "_root", tmp_path)
    folder = cfg.path("students", "embedded--random-llama", "ST", "seed-0")
    folder.parent.mkdir(parents=True)
    model, tokenizer = trained(RANDOM, think=True)
    saved(model, tokenizer, RANDOM, folder)
    backend, ids = backend_of(cfg, RANDOM, "ST", 0), torch.tensor([[5, 49153, 49152]])
    with torch.inference_mode(): assert torch.equal(backend.model(ids).logits, model(ids).logits)
    assert len(backend.tokenizer) == 49154
    monkeypatch.setattr("smoltraces.evaluation.backends.needs", lambda *_: None)
    with pytest.raises(InputError, match="tokens of its own.*backend = hf"): Vllm(cfg, RANDOM, "ST", 0)


@pytest.mark.parametrize("changes", [
    {"hidden_size": 96}, {"num_key_value_heads": 4, "intermediate_size": 160}, {"num_hidden_layers": 3},
    {"num_hidden_layers": 1}])
def test_an_adapter_of_another_architecture(changes, plain, tmp_path):
    with pytest.raises(InputError, match="in seed-0 does not belong to the base other: name the base"):
        load_student(plain, base=tiny(tmp_path / "other", **changes))


def test_an_adapter_of_another_vocabulary(tmp_path):
    grown = adapter(RANDOM, tmp_path / "grown", think=True)
    with pytest.raises(InputError, match="in grown does not belong to the base small"):
        load_student(grown, base=tiny(tmp_path / "small", vocab_size=40000))


def test_a_padding_token_needs_no_embedding(tmp_path):
    "Unsloth adds one where there is none; it is never read"
    model, tokenizer = trained(RANDOM)
    tokenizer.add_special_tokens({"pad_token": "<|pad|>"})
    assert load_student(saved(model, tokenizer, RANDOM, tmp_path / "seed-0")).answer("1", 2).n_tokens <= 2


def test_folders_that_hold_no_student(plain, tmp_path):
    folder = Path(shutil.copytree(plain, tmp_path / "seed-0"))
    (tmp_path / "bare").mkdir()
    for place, why in ((tmp_path / "bare", "neither whole weights"), (tmp_path, "neither whole weights"),
                       (tmp_path / "nowhere", "neither a folder"), ("someone/else", "not on this machine"),
                       ("embedded/other", "choose from")):
        with pytest.raises(InputError, match=why): load_student(place)
    (tmp_path / "bare" / "config.json").write_text("{}")
    with pytest.raises(InputError, match="no weights in safetensors"): load_student(tmp_path / "bare")
    (folder / "training.json").unlink()
    settings = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps(settings | {"base_model_name_or_path": None}))
    with pytest.raises(InputError, match="does not say what it was trained on"): load_student(folder)
    assert load_student(folder, base=RANDOM).name.endswith("seed-0")
    whole = (folder / "adapter_model.safetensors").read_bytes()
    (folder / "adapter_model.safetensors").write_bytes(whole[:len(whole) // 2])
    with pytest.raises(InputError, match="weights in seed-0 are not whole"):
        load_student(folder, base=RANDOM)
    (folder / "adapter_model.safetensors").rename(folder / "adapter_model.bin")
    with pytest.raises(InputError, match="safetensors.*can run code"): load_student(folder, base=RANDOM)
    copy = Path(shutil.copytree(embedded_student(RANDOM), tmp_path / "copy"))
    (copy / "model.safetensors").write_bytes((copy / "model.safetensors").read_bytes()[:-100])
    with pytest.raises(InputError, match="weights in copy are not whole"): load_student(copy)
    with pytest.raises(InputError, match="no device 'cuda:99'"): load_student(RANDOM, device="cuda:99")


def test_an_adapter_in_the_hubs_cache(plain, tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    repo = tmp_path / "models--someone--tiny-ST"
    folder = Path(shutil.copytree(plain, repo / "snapshots" / "0123456789abcdef0123456789abcdef01234567"))
    (repo / "refs").mkdir()
    (repo / "refs" / "main").write_text(folder.name)
    assert find_weights("someone/tiny-ST") == (str(embedded_student(RANDOM)), str(folder))
    assert load_student("someone/tiny-ST").name == "someone/tiny-ST"


def test_import_is_light():
    code = ("import sys, smoltraces.evaluation.ask; "
            "print({'torch', 'transformers', 'peft', 'matplotlib'} & set(sys.modules))")
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "set()\n"
