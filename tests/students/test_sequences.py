"""Rows as tokens and labels, for the tokenizers of the paper's three families and of the embedded student."""
import json
import re
import unicodedata
from contextlib import contextmanager
from functools import cache

import numpy as np
import pandas as pd
import pytest
import torch
from families import FAMILIES, family, ranks, shipped
from transformers import AutoModelForCausalLM, AutoTokenizer

from smoltraces.evaluation.backends import Transformers
from smoltraces.evaluation.benchmarks import prompt
from smoltraces.problems.selection import build_problems
from smoltraces.schema import load_variant, messages, system
from smoltraces.settings import InputError, load_settings
from smoltraces.students.models import embedded_student
from smoltraces.students.sequences import (
    IGNORED,
    THINK,
    add_pad,
    add_think_tokens,
    check_tokenizer,
    encode,
    encode_row,
    lengths,
    loss_text,
    lost,
    plot_lengths,
    show_mask,
)
from smoltraces.traces.variants import build_variants

VARIANTS = ("ST", "ST-HC", "ST-HC-W", "ST-NT", "SBS")
STUDENTS = (*FAMILIES, "smollm2")
ODD = ["𝔸 naïve 🤷🏽‍♀️ idea: e\u0301 ≠ é", "等一下。让我再想想", "a\n\n\n  b\t\tc ", "x" * 300, "1234567890 12",
       "<think></think>",
       "[INST] [/INST] </s><s> <|eot_id|><|begin_of_text|> <|im_end|>\n<|endoftext|> <|im_start|>user"]


@pytest.fixture(scope="module")
def folders(request):
    kept = request.config.cache.mkdir("families")
    return lambda name: embedded_student("embedded/smollm2-135m-instruct") if name == "smollm2" else family(name, kept)


@pytest.fixture(scope="module")
def tokenizers(folders):
    "Tokenizers by name, ready for training, each loaded once"
    @cache
    def load(name):
        tokenizer = AutoTokenizer.from_pretrained(folders(name))
        add_pad(tokenizer)
        return tokenizer
    return load


@pytest.fixture(scope="module", params=STUDENTS)
def student(request, folders, tokenizers):
    "Its name, folder and tokenizer"
    return request.param, folders(request.param), tokenizers(request.param)


@pytest.fixture(scope="module")
def tables(tmp_path_factory):
    cfg = load_settings("smoke", out=str(tmp_path_factory.mktemp("rows")), n_train=24, n_test=3, n_hard=3,
                        variants=",".join(VARIANTS))
    build_problems(cfg)
    build_variants(cfg)
    return {variant: load_variant(cfg, variant) for variant in VARIANTS}


@pytest.fixture
def row(tables): return tables["ST"].iloc[0].to_dict()


def test_families_tokenise_as_published(tokenizers):
    "Ids that are known of the real tokenizers, and the merges against byte-pair encoding from the ranks themselves"
    known = {"llama": [128000, 9906, 1917], "ministral": [1, 22177, 4304], "qwen": [9707, 1879]}
    for name, ids in known.items():
        assert tokenizers(name)("Hello world")["input_ids"] == ids
    vocabulary = ranks(shipped("llama_models", "llama3/tokenizer.model"))
    tokenizer = tokenizers("llama")
    for word in ("antidisestablishmentarianism", "hippopotomonstrosesquippedaliophobia", "пожалуйста", "😀😃", "qwrt"):
        parts = [bytes([byte]) for byte in word.encode()]
        while len(parts) > 1:
            rank, k = min((vocabulary.get(parts[k] + parts[k + 1], 1e9), k) for k in range(len(parts) - 1))
            if rank == 1e9: break
            parts[k:k + 2] = [parts[k] + parts[k + 1]]
        assert tokenizer(word, add_special_tokens=False)["input_ids"] == [vocabulary[part] for part in parts]


def test_masks_of_every_variant(student, tables, tmp_path):
    "What is learnt is the answer and one end token; what is given is, token for token, what evaluation asks with"
    name, folder, tokenizer = student
    asks = Transformers(load_settings("smoke", out=str(tmp_path)), str(folder), "Base", 0)
    asks.tokenizer = tokenizer
    for variant, table in tables.items():
        for row in table.to_dict("records"):
            ids, labels = encode_row(row, tokenizer)
            given = asks.tokenizer(asks.prompt(prompt(row)), add_special_tokens=False)["input_ids"]
            assert ids[:len(given)] == given and labels == [IGNORED] * len(given) + ids[len(given):]
            assert labels.count(tokenizer.eos_token_id) == 1 and labels[-1] == tokenizer.eos_token_id
            learnt = loss_text(labels, tokenizer)
            assert learnt == messages(row)[-1]["content"].strip() + tokenizer.eos_token
            assert learnt.startswith("<think>\n") == (variant != "ST-NT") and row["response"].strip() in learnt
            shown = tokenizer.decode(given)
            assert system(row) in shown and row["question"].strip() in shown and row["response"] not in shown
            if tokenizer.bos_token in ("<s>", "<|begin_of_text|>"): assert ids.count(tokenizer.bos_token_id) == 1


def test_loss_is_over_the_answer(folders, tokenizers, row):
    "A model's loss on these labels is the mean over the tokens of the answer"
    model = AutoModelForCausalLM.from_pretrained(folders("llama"))
    ids, labels = (torch.tensor([part]) for part in encode_row(row, tokenizers("llama")))
    with torch.no_grad(): found = model(ids, labels=labels)
    start = int((labels[0] != IGNORED).nonzero()[0])
    chances = found.logits[0, start - 1:-1].log_softmax(-1)
    wanted = -chances.gather(-1, ids[0, start:, None]).mean()
    assert found.loss.item() == pytest.approx(wanted.item(), abs=1e-5)


def test_odd_text(student, row):
    "Characters of several tokens stay whole, and special tokens that a text mentions are spelt out in the answer"
    _, _, tokenizer = student
    for text in ODD:
        odd = {**row, "trace": text, "response": f"{text}\n\nIt is \\boxed{{{text}}}."}
        ids, labels = encode_row(odd, tokenizer)
        learnt = [label for label in labels if label != IGNORED]
        assert not set(learnt[:-1]) & set(tokenizer.all_special_ids)
        composed = messages(odd)[-1]["content"].strip() + tokenizer.eos_token
        assert unicodedata.normalize("NFC", loss_text(labels, tokenizer)) == unicodedata.normalize("NFC", composed)


def test_cut_keeps_question_head_and_response(student, tables):
    _, _, tokenizer = student
    whole = lengths(tables["ST"], tokenizer)
    limit = int(np.median(whole))
    longer = whole > limit
    kept, counts = encode(tables["ST"], tokenizer, limit)
    assert counts == (24, longer.sum(), 0) and kept["id"][:] == tables["ST"].id[~longer].tolist()
    cut, counts = encode(tables["ST"], tokenizer, limit, "cut")
    assert counts == (24, 0, longer.sum()) and cut["id"][:] == tables["ST"].id.tolist()
    for encoded, (_, row), was_long in zip(cut, tables["ST"].iterrows(), longer, strict=True):
        uncut = encode_row(row, tokenizer)
        given = uncut.labels.count(IGNORED)
        assert encoded["input_ids"][:given] == uncut.input_ids[:given]
        found = re.fullmatch(r"<think>\n(.*\S)\n</think>\n\n(.*)", loss_text(encoded["labels"], tokenizer), re.DOTALL)
        assert found[2] == row.response.strip() + tokenizer.eos_token
        assert row.trace.startswith(found[1]) and (len(found[1]) < len(row.trace.strip())) == was_long
        assert not was_long or row.trace[len(found[1])].isspace() # between two words
        assert encoded["length"] == len(encoded["input_ids"]) == len(encoded["labels"]) <= limit
        assert not was_long or encoded["length"] > limit - 40 # no more is cut than must be


def test_cut_where_nothing_fits(student, row):
    "A trace of one endless word, a row without a trace and a long question are dropped and counted"
    _, _, tokenizer = student
    short = {**row, "trace": "Yes."}
    bare = {**row, "variant": "ST-NT", "trace": None, "response": "It is 7. " * 300}
    rows = pd.DataFrame([{**row, "trace": "y" * 3000}, short, bare, {**row, "question": "Is it 7? " * 300}])
    limit = len(encode_row(short, tokenizer).input_ids)
    dataset, counts = encode(rows, tokenizer, limit, "cut")
    assert counts == (4, 3, 0) and dataset["input_ids"][0] == encode_row(short, tokenizer).input_ids
    with pytest.raises(InputError, match=r"max_length = 30 tokens \(the longest has \d+\): raise max_length"):
        encode(rows, tokenizer, 30, "cut")


def test_lost(tables, student):
    _, _, tokenizer = student
    long = lengths(tables["ST-HC"], tokenizer)
    assert long.tolist() == [len(encode_row(row, tokenizer).labels) for _, row in tables["ST-HC"].iterrows()]
    table = lost(long, (1, int(np.median(long)), 100_000))
    assert table.lost.tolist() == [24, (long > np.median(long)).sum(), 0] and table.share.iloc[0] == 1
    assert table.tokens_kept.tolist() == [0, long[long <= np.median(long)].sum() / long.sum(), 1]
    for limit, number in zip(table.max_length, table.lost, strict=True):
        axes = plot_lengths(long, limit).axes[0]
        assert axes.get_title().startswith(f"{number} of 24 rows") and sum(p.get_height() for p in axes.patches) == 24


@pytest.mark.parametrize("column", ["question", "answer", "response", "trace"])
@pytest.mark.parametrize("nothing", [None, float("nan"), " \n"])
def test_row_without(column, nothing, tables, tokenizers):
    damaged = tables["ST"].copy()
    damaged[column] = [*damaged[column][:5], nothing, *damaged[column][6:]]
    with pytest.raises(InputError) as told: encode(damaged, tokenizers("smollm2"), 512)
    assert str(told.value).startswith(f"Training row 5 (id {damaged.id[5]}) has no {column}: ")


@contextmanager
def changed(tokenizer, **values):
    "With other attributes inside this block; a special token is no attribute that monkeypatch could set"
    before = {name: getattr(tokenizer, name) for name in values}
    for name, value in values.items(): setattr(tokenizer, name, value)
    try: yield tokenizer
    finally:
        for name, value in before.items(): setattr(tokenizer, name, value)


def template(answer: str) -> str:
    return "{% for m in messages %}{{ " + answer + " }}{% endfor %}"


FAULTS = {
    "has no chat_template: set tokenizer.chat_template": {"chat_template": None},
    "has no eos_token: set tokenizer.eos_token": {"eos_token": None},
    "has no pad_token: set tokenizer.pad_token": {"pad_token": None},
    "does not end an answer with its end token": {"chat_template": template("m.role + m.content")},
    r"does not take a system, a user and an assistant message \(unexpected": {"chat_template": "{{ messages[0] }"},
    r"\(No system role\)": {"chat_template": "{{ raise_exception('No system role.') }}"},
    "thinking included": {"chat_template": template("m.content.split('</think>')[-1] + eos_token")},
    "opens an answer otherwise": {"chat_template": template("m.role + ': ' + m.content + eos_token")}}


@pytest.mark.parametrize("told", FAULTS)
def test_tokenizers_that_cannot_be_trained_with(told, student):
    name, _, tokenizer = student
    check_tokenizer(tokenizer, name)
    with changed(tokenizer, **FAULTS[told]), pytest.raises(InputError, match=told) as error:
        check_tokenizer(tokenizer, "owner/name")
    assert "owner/name" in str(error.value) and "\n" not in str(error.value)


def test_end_that_the_template_does_not_write(tokenizers):
    "As where a base model's end of text is kept, and the template ends turns with another token"
    with changed(tokenizers("qwen"), eos_token="<|endoftext|>") as tokenizer:
        with pytest.raises(InputError, match=r"does not end an answer with its end token '<\|endoftext\|>'"):
            check_tokenizer(tokenizer, "owner/name")


def test_llama_comes_without_padding(folders, tokenizers):
    assert "pad_token" not in json.loads((folders("llama") / "tokenizer_config.json").read_text())
    assert tokenizers("llama").pad_token_id == 128004 # what `add_pad` took
    with changed(tokenizers("llama"), pad_token=None, eos_token="<|finetune_right_pad_id|>") as tokenizer:
        add_pad(tokenizer) # none is left
        assert tokenizer.pad_token is None


def test_template_that_writes_thinking_of_its_own(tokenizers, row):
    "Qwen 3's puts empty think tags before an answer without thinking: they are learnt, since it must write them"
    own = tokenizers("qwen").chat_template.replace(
        "message.content", "('<think>\\n\\n</think>\\n\\n' if message.role == 'assistant' and "
        "'<think>' not in message.content else '') + message.content")
    with changed(tokenizers("qwen"), chat_template=own) as tokenizer:
        check_tokenizer(tokenizer, "qwen3")
        bare = loss_text(encode_row({**row, "trace": None}, tokenizer), tokenizer)
        assert bare == f"<think>\n\n</think>\n\n{row['response'].strip()}<|im_end|>"
        assert loss_text(encode_row(row, tokenizer), tokenizer).count("<think>") == 1


@pytest.mark.parametrize("student", ["llama", "qwen"], indirect=True) # one matrix of embeddings, two with spare rows
def test_think_tokens(student, row):
    "Two tokens more, that mean what their pieces meant, before an adapter as well as without one"
    from peft import LoraConfig, get_peft_model
    _, folder, tokenizer = student
    model, thinking = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    tables = [table.weight.detach().clone() for table in (model.get_input_embeddings(), model.get_output_embeddings())]
    add_think_tokens(model, thinking)
    new = [thinking.convert_tokens_to_ids(tag) for tag in THINK]
    assert new == [len(tokenizer), len(tokenizer) + 1] and not set(new) & set(thinking.all_special_ids)
    assert model.config.vocab_size == max(len(thinking), len(tables[0]))
    for before, after in zip(tables, [model.get_input_embeddings(), model.get_output_embeddings()], strict=True):
        assert torch.equal(after.weight[:len(tokenizer)], before[:len(tokenizer)])
        for tag, i in zip(THINK, new, strict=True):
            assert torch.equal(after.weight[i], before[tokenizer(tag, add_special_tokens=False)["input_ids"]].mean(0))
    encoded = encode_row(row, thinking)
    assert loss_text(encoded, thinking) == messages(row)[-1]["content"].strip() + thinking.eos_token
    assert encoded.labels.count(new[0]) == encoded.labels.count(new[1]) == 1
    assert "<think>" in thinking.decode(encoded.input_ids, skip_special_tokens=True)
    model = get_peft_model(model, LoraConfig(r=2, target_modules=["q_proj"], trainable_token_indices=new))
    start = encoded.labels.index(new[0])
    ids, labels = (torch.tensor([part[start - 1:start + 8]]) for part in encoded)
    loss = model(ids, labels=labels).loss
    loss.backward()
    learnt = [name for name, weight in model.named_parameters() if weight.grad is not None and weight.grad.any()]
    assert loss.isfinite() and any("trainable_tokens" in name for name in learnt)


def test_show_mask(student, row):
    _, _, tokenizer = student
    hostile = {**row, "trace": "Wait, <script>alert('é')</script>\x1b[31m &amp; <b>"}
    mask = show_mask(hostile, tokenizer)
    encoded = encode_row(hostile, tokenizer)
    assert mask.n_learnt == sum(label != IGNORED for label in encoded.labels) == len(encoded.labels) - mask.n_given
    page = mask._repr_html_()
    assert "<script>" not in page and "&lt;script&gt;alert(&#x27;é&#x27;)" in page and "\x1b" not in page + repr(mask)
    assert mask.learnt.startswith("<think>\nWait, ")
    assert mask.learnt.endswith(row["response"].strip() + tokenizer.eos_token)
    assert system(row) in mask.given and row["question"].strip() in mask.given
    assert mask.learnt.endswith(tokenizer.eos_token) and mask.given + mask.learnt == tokenizer.decode(encoded.input_ids)


def test_choices_and_code(student, row):
    "What the user says is more than the question alone: lettered choices, and the code that a program begins with"
    _, _, tokenizer = student
    chosen = {**row, "choices": np.array(["7", "8"], dtype=object)}
    program = {**row, "answer_kind": "code", "meta": json.dumps({"starter": "def f(x):"})}
    for odd, told in ((chosen, "A. 7\nB. 8"), (program, "```python\ndef f(x):\n```")):
        assert told in tokenizer.decode(encode_row(odd, tokenizer).input_ids)
        assert loss_text(encode_row(odd, tokenizer), tokenizer) == loss_text(encode_row(row, tokenizer), tokenizer)
