"""Measure how fast answers are decoded, in ratios: python tests/benchmarks/evaluation.py [decoding] [same] [gpu]

decoding problems a minute of ours and of lm-eval's `hf` at its default batch size of 1: same student, problems, threads
same     how many of our greedy answers equal those of transformers' `generate`, at batches of 1, 7 and all
gpu      tokens a second of ours as a ratio of `generate` at the best fixed batch of --sizes; for a machine with CUDA

--student NAME --problems N --tokens N --batch N --sizes N,N,… --threads N make it larger or smaller.
"""
import argparse
import logging
import os
import time
import warnings

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from smoltraces.evaluation import benchmarks
from smoltraces.problems.corpora import embedded_problems
from smoltraces.students.decoding import answers
from smoltraces.students.models import locate

TASKS = ("chain_sum", "simple_equations", "gcd", "knights_knaves")


def load(options):
    folder = locate(options.student, offline=False)
    gpu = torch.cuda.is_available()
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16 if gpu else torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(folder, padding_side="left")
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    rows = embedded_problems(TASKS, 1, options.problems, 1).query("split == 'embedded'").reset_index(drop=True)
    rows = rows.assign(cluster=rows["source"].str.partition("/")[2])
    prompts = [tokenizer.apply_chat_template(benchmarks.prompt(row), tokenize=False, add_generation_prompt=True)
               for row in rows.to_dict("records")]
    return model.to("cuda" if gpu else "cpu"), tokenizer, rows, prompts


def generated(model, tokenizer, prompts: list[str], limit: int, size: int) -> list[list[int]]:
    "Token ids of `generate`'s answers, by position, in batches of `size`, the longest prompts first"
    named = model.generation_config.eos_token_id
    ends = {*(named if isinstance(named, list) else [named]), tokenizer.eos_token_id}
    order, result = sorted(range(len(prompts)), key=lambda i: -len(tokenizer(prompts[i])["input_ids"])), {}
    for k in range(0, len(order), size):
        part = order[k:k + size]
        batch = tokenizer([prompts[i] for i in part], return_tensors="pt", padding=True, add_special_tokens=False)
        rows = model.generate(**batch.to(model.device), max_new_tokens=limit, do_sample=False, repetition_penalty=1.0)
        for i, row in zip(part, rows[:, batch["input_ids"].shape[1]:].tolist(), strict=True):
            result[i] = row[:next((n + 1 for n, token in enumerate(row) if token in ends), limit)]
    return [result[i] for i in range(len(prompts))]


def timed(function) -> tuple[float, float, object]:
    "Seconds by the clock, seconds of CPU (which other work on the machine lengthens less), and the value"
    if torch.cuda.is_available(): torch.cuda.synchronize()
    start, busy = time.perf_counter(), time.process_time()
    value = function()
    if torch.cuda.is_available(): torch.cuda.synchronize()
    return time.perf_counter() - start, time.process_time() - busy, value


def decoding(options):
    from lm_eval import simple_evaluate
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager
    for name in ("lm_eval", "lm-eval"): logging.getLogger(name).setLevel(logging.ERROR)
    model, tokenizer, rows, prompts = load(options)
    theirs = HFLM(pretrained=model, tokenizer=tokenizer) # batch size 1, as by default

    def harness():
        task = benchmarks.task_config("embedded", rows, options.tokens)
        return simple_evaluate(theirs, tasks=[task], task_manager=TaskManager(include_defaults=False),
                               apply_chat_template=True, bootstrap_iters=0)

    def ours():
        docs = rows.to_dict("records")
        done = answers(model, tokenizer, prompts, options.tokens, options.batch)
        return sum(benchmarks.score(docs[i], [answer.output])["acc"] for i, answer in done) / len(docs)

    ours_s, ours_cpu, accuracy = timed(ours)
    theirs_s, theirs_cpu, result = timed(harness)
    theirs_accuracy = result["results"]["smoltraces_embedded"]["acc,none"]
    for name, seconds, acc in (("ours", ours_s, accuracy), ("lm-eval hf", theirs_s, theirs_accuracy)):
        print(f"{name:<12}{60 * len(rows) / seconds:8.1f} problems a minute, accuracy {acc:.3f}")
    print(f"ours is {theirs_s / ours_s:.2f} × lm-eval's hf at batch 1, {theirs_cpu / ours_cpu:.2f} × by CPU time "
          f"({len(rows)} problems, at most {options.tokens} tokens, {torch.get_num_threads()} threads; wanted: 3)")


def same(options):
    model, tokenizer, _, prompts = load(options)
    theirs = [tokenizer.decode(row, skip_special_tokens=True)
              for row in generated(model, tokenizer, prompts, options.tokens, len(prompts))]
    for size in (1, 7, len(prompts)):
        ours = dict(answers(model, tokenizer, prompts, options.tokens, size))
        equal = sum(ours[i].output == text for i, text in enumerate(theirs))
        print(f"batch of {size:<4}{equal} of {len(prompts)} answers equal to generate's", flush=True)


def gpu(options):
    model, tokenizer, _, prompts = load(options)
    speeds = {}
    for name in ("warm", "generate", "ours"):
        for size in options.sizes if name != "warm" else options.sizes[:1]:
            if name == "ours":
                seconds, _, result = timed(lambda n=size: [a.n_tokens for _, a in answers(
                    model, tokenizer, prompts, options.tokens, n)])
                count = sum(result)
            else:
                seconds, _, result = timed(lambda n=size: generated(model, tokenizer, prompts, options.tokens, n))
                count = sum(map(len, result))
            speeds[name, size] = count / seconds
            if name != "warm": print(f"{name:<10}batch {size:<5}{count / seconds:10.0f} tokens a second", flush=True)
    best = {name: max(options.sizes, key=lambda n, w=name: speeds[w, n]) for name in ("generate", "ours")}
    theirs = speeds["generate", best["generate"]]
    print(f"ours is {speeds['ours', best['ours']] / theirs:.2f} × generate, each at its best batch ({best['ours']} and "
          f"{best['generate']}), {speeds['ours', best['generate']] / theirs:.2f} × at generate's best (wanted: 0.9; "
          f"{torch.cuda.get_device_name() if torch.cuda.is_available() else 'CPU'})")


if __name__ == "__main__":
    measures = {"decoding": decoding, "same": same, "gpu": gpu}
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("measures", nargs="*", default=["decoding"], choices=measures)
    parser.add_argument("--student", default="embedded/smollm2-135m-instruct")
    parser.add_argument("--problems", type=int)
    parser.add_argument("--tokens", type=int)
    parser.add_argument("--batch", type=int, default=24)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--sizes", type=lambda text: [int(n) for n in text.split(",")], default=[32, 64, 128, 256])
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    warnings.simplefilter("ignore")
    for measure in given.measures:
        n, tokens = {"decoding": (24, 128), "same": (40, 60), "gpu": (1024, 512)}[measure]
        measures[measure](argparse.Namespace(**vars(given) | {"problems": given.problems or n,
                                                              "tokens": given.tokens or tokens}))
