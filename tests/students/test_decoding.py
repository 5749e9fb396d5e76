"""Decoding gives what transformers' `generate` gives, whatever the batch, the window or the tokens that end."""
import re
import subprocess
import sys
from collections import Counter

import numpy as np
import pytest
import torch
from conftest import ROOT
from scipy.stats import chisquare
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from smoltraces.students.decoding import Answer, answers, choose

SIZES = dict(vocab_size=300, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
             num_key_value_heads=2, max_position_embeddings=512, bos_token_id=None, eos_token_id=None,
             pad_token_id=None)
MODELS = {"llama": lambda: LlamaForCausalLM(LlamaConfig(**SIZES)),
          "mistral, a window of 16": lambda: MistralForCausalLM(MistralConfig(**SIZES, sliding_window=16)),
          "qwen2": lambda: Qwen2ForCausalLM(Qwen2Config(**SIZES)),
          "qwen2, a window in one layer": lambda: Qwen2ForCausalLM(Qwen2Config(
              **SIZES, use_sliding_window=True, sliding_window=12, max_window_layers=1))}


class Letters:
    "A tokenizer whose tokens are the code points of the text"
    eos_token_id = None
    def __call__(self, text, **_): return {"input_ids": [ord(c) for c in text]}
    def decode(self, ids, **_): return "".join(map(chr, ids))


def model_of(name: str, ends=None):
    with torch.random.fork_rng():
        torch.manual_seed(1)
        model = MODELS[name]().eval()
        for weights in model.parameters(): weights.data.mul_(3) # else a random model repeats one token
    model.generation_config.eos_token_id = ends
    return model


def generated(model, asked: list[str], limit: int, ends: list[int]) -> list[str]:
    "What `generate` answers, all prompts in one batch, up to the first token that ends"
    width = max(map(len, asked))
    ids = torch.tensor([[0] * (width - len(p)) + [ord(c) for c in p] for p in asked])
    mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in asked])
    rows = model.generate(ids, attention_mask=mask, max_new_tokens=limit, do_sample=False, pad_token_id=0)[:, width:]
    long = [next((k + 1 for k, token in enumerate(row) if token in ends), limit) for row in rows.tolist()]
    return ["".join(map(chr, row[:n])) for row, n in zip(rows.tolist(), long, strict=True)]


def prompts(n: int) -> list[str]:
    rng = np.random.default_rng(0)
    return ["".join(chr(k) for k in rng.integers(1, 300, rng.integers(1, 40))) for _ in range(n)]


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    "The models here are too small for two threads, which would wait for each other"
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("name", MODELS)
def test_equals_generate(name):
    ends = list(range(12))
    model, asked = model_of(name, ends), prompts(24)
    theirs = generated(model, asked, 40, ends)
    assert len({len(t) for t in theirs}) > 5 and sum(ord(t[-1]) >= 12 for t in theirs) > 1 # early, late, never
    for size in (1, 7, 24):
        ours = dict(answers(model, Letters(), asked, 40, size))
        assert [ours[i].output for i in range(24)] == theirs
        assert [ours[i].n_tokens for i in range(24)] == list(map(len, theirs))
        assert [ours[i].truncated for i in range(24)] == [ord(t[-1]) >= 12 for t in theirs]
    assert model.config._attn_implementation == "sdpa" # as it was


@pytest.mark.parametrize("ends", [7, [5, 7]])
def test_any_end_token(ends):
    "An end may be named by the model's settings or by the tokenizer, and counts as a token of the answer"
    model, letters = model_of("llama", ends), Letters()
    letters.eos_token_id = 9
    for forced in (7, 9, *([5] if ends != 7 else [])):
        hook = model.lm_head.register_forward_hook(lambda _, __, logits, to=forced: torch.nn.functional.one_hot(
            torch.tensor(to), 300).float().expand_as(logits))
        assert list(answers(model, letters, ["abc"], 20, 1)) == [(0, Answer(chr(forced), 1, False))]
        hook.remove()


def test_longest_first_and_as_soon_as_it_ends():
    model, asked = model_of("llama", list(range(12))), prompts(20)
    order = [i for i, _ in answers(model, Letters(), asked, 30, 1)]
    assert order == sorted(range(20), key=lambda i: -len(asked[i])) and sorted(order) == list(range(20))
    steps, told = [], []
    model.register_forward_pre_hook(lambda *_, **__: steps.append(1))
    for _, answer in answers(model, Letters(), asked, 30, 20): told.append((answer.n_tokens, len(steps)))
    assert len({step - n for n, step in told}) == 1 and told == sorted(told) and told[0] < told[-1] # at its own step


def test_no_row_is_computed_for_long_after_it_ended():
    model, asked = model_of("llama", list(range(12))), prompts(64)
    computed = []
    model.register_forward_pre_hook(lambda _, __, given: computed.append(len(given["input_ids"])), with_kwargs=True)
    total = sum(a.n_tokens for _, a in answers(model, Letters(), asked, 60, 16))
    assert max(computed) == 16 and sum(computed) < 1.15 * total


def test_a_sample_is_its_own():
    "The noise of a row comes from its seed alone"
    model, asked, seeds = model_of("llama", [1, 2]), prompts(12), list(range(100, 112))
    warm = dict(max_new_tokens=20, temperature=0.7, top_p=0.9)
    together = dict(answers(model, Letters(), asked, batch_size=12, seeds=seeds, **warm))
    for size in (1, 5):
        assert dict(answers(model, Letters(), asked, batch_size=size, seeds=seeds, **warm)) == together
    backwards = dict(answers(model, Letters(), asked[::-1], batch_size=5, seeds=seeds[::-1], **warm))
    assert [backwards[11 - i] for i in range(12)] == [together[i] for i in range(12)]
    others = dict(answers(model, Letters(), asked, batch_size=12, seeds=[s + 1 for s in seeds], **warm))
    assert all(others[i].output != together[i].output for i in range(12))
    same = answers(model, Letters(), asked[:1] * 8, batch_size=8, seeds=range(8), **warm)
    assert len({answer.output for _, answer in same}) == 8


@pytest.mark.parametrize("top_p", [1.0, 0.9, 0.5])
def test_samples_follow_the_distribution(top_p):
    logits, n = torch.randn(60, generator=torch.Generator().manual_seed(2)) * 2, 20_000
    noise = torch.tensor(np.random.default_rng(3).random(n))
    drawn = Counter(choose(logits.expand(n, -1), noise, temperature=0.8, top_p=top_p).tolist())
    chances = (logits / 0.8).softmax(-1).double().numpy()
    order = np.argsort(-chances)
    kept = order[:np.searchsorted(chances[order].cumsum(), top_p) + 1] # the nucleus, by its definition
    assert set(drawn) <= set(kept.tolist())
    expected = chances[kept] / chances[kept].sum() * n
    large = expected > 5
    seen = np.array([drawn[k] for k in kept.tolist()])
    counts = [np.append(x[large], x[~large].sum()) if (~large).any() else x for x in (seen, expected)]
    assert chisquare(*counts).pvalue > 0.01


def test_a_flat_nucleus_is_wider_than_a_guess():
    "Of 2,000 tokens alike, half of the probability is 1,000 tokens, which the quick look at 256 does not hold"
    noise = torch.tensor(np.random.default_rng(4).random(5_000))
    logits = torch.cat([torch.zeros(1000), torch.full((1000,), -1e-3)])
    drawn = choose(logits.expand(5_000, -1), noise, top_p=0.5)
    assert drawn.max() < 1001 and len(set(drawn.tolist())) > 950


@pytest.mark.parametrize("error", [
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
    RuntimeError("[enforce fail at alloc_cpu.cpp:121] . DefaultCPUAllocator: can't allocate memory: you tried to "
                 "allocate 99 bytes. Error code 12 (Cannot allocate memory)")])
def test_memory_that_runs_out(error, caplog):
    "The batch halves until it fits; each answer comes once, the same as with enough memory; it is said once"
    model, asked, sizes = model_of("qwen2", [1, 2]), prompts(40), []
    wanted = sorted(answers(model, Letters(), asked, 12, 32))

    def scarce(_, __, given):
        if len(given["input_ids"]) > 5: raise error

    model.register_forward_pre_hook(scarce, with_kwargs=True)
    found = list(answers(model, Letters(), asked, 12, 32, on_shrink=sizes.append))
    assert sorted(found) == wanted and sizes == [16, 8, 4]
    assert [r.getMessage() for r in caplog.records] == ["Memory ran out at 32 problems a time: fewer from here on"]


def test_memory_that_runs_out_midway():
    "What was answered before is not asked again"
    model, asked, steps, sizes = model_of("llama", list(range(12))), prompts(30), iter(range(1000)), []
    wanted = dict(answers(model, Letters(), asked, 30, 10))

    def scarce(*_):
        if next(steps) == 20: raise torch.OutOfMemoryError("CUDA out of memory.")

    model.register_forward_pre_hook(scarce)
    found = list(answers(model, Letters(), asked, 30, 10, on_shrink=sizes.append))
    assert len(found) == 30 and dict(found) == wanted and sizes == [5]


def test_a_bug_is_no_lack_of_memory():
    model = model_of("llama")
    model.register_forward_pre_hook(lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError): list(answers(model, Letters(), ["a"], 8, 2))


@pytest.mark.slow
def test_the_measure_for_a_gpu_runs():
    done = subprocess.run(
        [sys.executable, ROOT / "tests" / "benchmarks" / "evaluation.py", "gpu", "--student",
         "embedded/random-llama", "--problems", "6", "--tokens", "4", "--sizes", "2,4", "--threads", "1"],
        capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    assert re.search(r"ours is \d+\.\d\d × generate, each at its best batch \([24] and [24]\)", done.stdout)
