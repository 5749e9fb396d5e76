"""Measure how fast students train, in ratios: python tests/benchmarks/training.py [cpu] [packing] [gpu] [lengths] …

cpu      tokens a second of ours as a ratio of the plain stacks: same rows, batches and precision, without a GPU
packing  tokens a second of rows laid end to end as a ratio of padded ones, on the lengths of real training sets; and
         whether packed rows see each other: the loss of the same rows packed, padded, and joined on purpose
gpu      tokens a second and peak memory of ours as ratios of transformers + peft + trl: LoRA, bfloat16, 135M and 3B
         parameters, with and without gradient checkpointing; for a machine with CUDA
lengths  seconds a step and peak memory from 512 to 16,384 tokens in a row (2,048 without a GPU): numbers and a plot
memory   peak memory of a step beside what smoltraces.students.memory expects

Every configuration trains in a process of its own, a few steps after some that are not counted. Nothing is downloaded:
135m is embedded/smollm2-135m-instruct, 3b has random weights in the shape of Llama-3.2-3B. The rows are training rows
of the gpu profile, built here. The stacks: "unsloth" is smoltraces.students.training, by Unsloth; "trl" is
transformers + peft + trl, whose loss needs a Triton kernel that, without a GPU, a patch of unsloth_zoo stands in for;
"trainer" is transformers + peft alone. Model FLOP utilisation (MFU) counts what the model needs, without what is
computed twice, against the rate of a large matrix product on the same device; without a GPU, by CPU time.

On a machine with an NVIDIA GPU, with no network, where `pip install .[train,embedded]` was done:
    python tests/benchmarks/training.py gpu packing lengths memory

Each part also runs alone. --steps N --warm N --batch N --length N --longest N --students 135m,3b --threads N change its
size; --to FOLDER takes the numbers (JSON) and the plot (PNG).
"""
import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from importlib import import_module
from pathlib import Path
from random import Random
from statistics import median
from unittest.mock import patch

QUIET = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "TRANSFORMERS_VERBOSITY": "error",
         "HF_DATASETS_DISABLE_PROGRESS_BARS": "1", "TOKENIZERS_PARALLELISM": "false", "UNSLOTH_DISABLE_STATISTICS": "1"}
# Llama-3.2-3B's config.json, as published with the model
LLAMA_3B = {"vocab_size": 128256, "hidden_size": 3072, "intermediate_size": 8192, "num_hidden_layers": 28,
            "num_attention_heads": 24, "num_key_value_heads": 8, "head_dim": 128, "max_position_embeddings": 131072,
            "rms_norm_eps": 1e-5, "tie_word_embeddings": True}
# Every fifth of the sorted lengths, in SmolLM2's tokens, of 200 traces by DeepSeek-R1-Distill-Llama-8B and -Qwen-14B
# that were published cut at about 1,000 words (GitHub cvenhoff/steering-thinking-llms)
R1 = (145, 169, 194, 225, 243, 267, 279, 290, 300, 339, 344, 384, 403, 428, 456, 480, 499, 534, 556, 590, 631, 659, 687,
      734, 758, 795, 854, 895, 953, 1008, 1133, 1355, 1646, 2022, 2052, 2069, 2090, 2121, 2131, 2159)


# One configuration, in a process of its own

def settings(job: dict):
    from smoltraces.settings import load_settings
    return load_settings("gpu", Path(__file__).parent, method=job["method"], engine="unsloth", batch_size=job["batch"],
                         micro_batch_size=0, processes=1, precision=job["precision"], max_length=job["longest"],
                         packing=job["layout"].replace("padded", "grouped"), threads=job["threads"])


def ours(job: dict, rows, scratch: Path):
    "smoltraces.students.training over the job's rows, told whether to compute activations twice"
    from smoltraces.students import training
    from smoltraces.students.models import prepare
    from smoltraces.students.training import layout
    cfg = settings(job)
    prepare(cfg)
    how = layout(cfg)
    with patch.object(training, "_recompute", lambda how: "unsloth" if job["checkpointing"] else False):
        model, tokenizer = training.load(cfg, job["student"], 0, how)
    trainer = training.trainer_of(cfg, model, tokenizer, rows, None, how, 1e-4, 0, scratch)
    trainer.args.gradient_checkpointing = job["checkpointing"]
    return trainer


def plain(job: dict, rows, scratch: Path):
    "The libraries alone"
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, DataCollatorForSeq2Seq, Trainer, TrainingArguments
    gpu = torch.cuda.is_available()
    model = AutoModelForCausalLM.from_pretrained(job["student"], dtype=getattr(torch, job["precision"]))
    tokenizer = AutoTokenizer.from_pretrained(job["student"])
    if job["method"] == "lora":
        from peft import LoraConfig, get_peft_model
        torch.manual_seed(0)
        cfg = settings(job)
        model = get_peft_model(model, LoraConfig(
            task_type="CAUSAL_LM", r=cfg.lora_rank, lora_alpha=cfg.lora_alpha, lora_dropout=0,
            target_modules=["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]))
    common = dict(
        output_dir=str(scratch), per_device_train_batch_size=job["batch"], num_train_epochs=1, learning_rate=1e-4,
        seed=0, lr_scheduler_type="cosine", warmup_steps=0.1, logging_steps=1, save_strategy="no", report_to="none",
        gradient_checkpointing=job["checkpointing"], gradient_checkpointing_kwargs={"use_reentrant": False},
        bf16=job["precision"] == "bfloat16", use_cpu=not gpu, dataloader_pin_memory=gpu, disable_tqdm=True,
        train_sampling_strategy="sequential")
    if job["stack"] == "trainer":
        return Trainer(model, TrainingArguments(**common), DataCollatorForSeq2Seq(tokenizer), rows)
    if not gpu:
        os.environ["UNSLOTH_IS_PRESENT"] = "1"
        from unsloth_zoo.cpu.ops import patch_trl_fused_lm_head
        patch_trl_fused_lm_head()
    from trl import SFTConfig, SFTTrainer
    config = SFTConfig(**common, padding_free=job["layout"] == "packed", max_length=None,
                       dataset_kwargs={"skip_prepare_dataset": True})
    return SFTTrainer(model, config, train_dataset=rows, processing_class=tokenizer)


def resident(kind: str) -> float:
    "GB of RAM this process holds (VmRSS), or held at most since `forget_peak` (VmHWM)"
    return next(int(line.split()[1]) / 2**20 for line in open("/proc/self/status") if line.startswith(kind))


def forget_peak():
    import torch
    Path("/proc/self/clear_refs").write_text("5")
    if torch.cuda.is_available(): torch.cuda.reset_peak_memory_stats()


def peaks() -> dict:
    "GB: `memory` is what tensors took on a GPU, the whole process on a CPU; `device` is what was not free on the GPU"
    import torch
    if not torch.cuda.is_available(): return {"memory": resident("VmHWM"), "device": resident("VmHWM")}
    free, total = torch.cuda.mem_get_info()
    return {"memory": torch.cuda.max_memory_allocated() / 2**30, "device": (total - free) / 2**30}


def model_flops(config, lengths: list[int], trained: int | None) -> float:
    "Of one step: 2 a weight and token forward, 4 back, but 2 through frozen weights; attention over what precedes"
    heads = config.num_attention_heads
    size = getattr(config, "head_dim", None) or config.hidden_size // heads
    layer = config.hidden_size * (2 * (heads + config.num_key_value_heads) * size + 3 * config.intermediate_size)
    weights = config.num_hidden_layers * layer + config.vocab_size * config.hidden_size
    attention = 6 * config.num_hidden_layers * heads * size * sum(n * n for n in lengths)
    return (6 * weights if trained is None else 4 * weights + 6 * trained) * sum(lengths) + attention


def one(job: dict) -> dict:
    "Train as the job says: what was seen in the counted steps, and the peak"
    if job["stack"] == "unsloth": import_module("unsloth")  # before transformers
    import torch
    from datasets import Dataset
    from transformers import TrainerCallback

    if job["threads"]: torch.set_num_threads(job["threads"])
    rows, marks, losses, seen = Dataset.from_list(json.loads(Path(job["rows"]).read_text())), [], [], []

    class Clock(TrainerCallback):
        def mark(self):
            if torch.cuda.is_available(): torch.cuda.synchronize()
            marks.append((time.perf_counter(), time.process_time()))

        def on_train_begin(self, args, state, control, **kwargs):
            forget_peak()
            self.mark()

        def on_step_end(self, args, state, control, **kwargs): self.mark()

        def on_log(self, args, state, control, logs=None, **kwargs):
            if "loss" in logs: losses.append(float(logs["loss"]))

    with tempfile.TemporaryDirectory() as scratch:
        trainer = (ours if job["stack"] == "unsloth" else plain)(job, rows, Path(scratch))
        trainer.add_callback(Clock())
        collate = trainer.data_collator

        def counted(rows):
            batch = collate(rows)
            seen.append(([len(row["input_ids"]) for row in rows], batch["input_ids"].numel()))
            return batch

        trainer.data_collator = counted
        trainer.train()
    model, warm = trainer.model, job["warm"]
    steps = [(b[0] - a[0], b[1] - a[1]) for a, b in zip(marks, marks[1:], strict=False)][warm:]
    seen, trained = seen[warm:], sum(p.numel() for p in model.parameters() if p.requires_grad)
    flops = sum(model_flops(model.config, lengths, trained if job["method"] == "lora" else None) for lengths, _ in seen)
    tokens, (seconds, busy) = sum(sum(lengths) for lengths, _ in seen), map(sum, zip(*steps, strict=True))
    return {"tokens_per_s": tokens / seconds, "tokens_per_cpu_s": tokens / busy,
            "flops_per_s": flops / (seconds if torch.cuda.is_available() else busy),
            "step_s": median(s for s, _ in steps), "tokens": tokens, "positions": sum(n for _, n in seen), **peaks(),
            "losses": losses, "trained": trained, "recomputes": bool(model.is_gradient_checkpointing),
            "attention": model.config._attn_implementation, "optimizer": str(trainer.args.optim)}


def rate(job: dict) -> dict:
    "FLOP a second of a large matrix product, the best of some"
    import torch
    if job["threads"]: torch.set_num_threads(job["threads"])
    gpu = torch.cuda.is_available()
    size, device = (8192, "cuda") if gpu else (2048, "cpu")
    a, b = (torch.randn(size, size, device=device, dtype=getattr(torch, job["precision"])) for _ in range(2))

    clock = time.perf_counter if gpu else time.process_time

    def seconds():
        if gpu: torch.cuda.synchronize()
        start = clock()
        for _ in range(10): a @ b
        if gpu: torch.cuda.synchronize()
        return (clock() - start) / 10
    seconds()
    return {"flops_per_s": 2 * size ** 3 / min(seconds() for _ in range(5))}


def three_billion(job: dict) -> dict:
    "Save random weights in the shape of Llama-3.2-3B, with the tokenizer at hand (only its ids are used)"
    import torch
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM
    tokenizer = AutoTokenizer.from_pretrained(job["tokenizer"])
    ids = {name: getattr(tokenizer, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    torch.set_default_dtype(torch.bfloat16)
    with torch.device("cuda" if torch.cuda.is_available() else "cpu"):
        LlamaForCausalLM(LlamaConfig(**LLAMA_3B, **ids)).save_pretrained(job["student"])
    tokenizer.save_pretrained(job["student"])
    return {}


# The parts, which start those processes

class Bench:
    "The machine, the rows and the students; runs jobs and keeps what they answer"

    def __init__(self, options, folder: Path):
        import torch
        self.options, self.folder, self.gpu = options, folder, torch.cuda.is_available()
        threads = options.threads or torch.get_num_threads()
        self.device = torch.cuda.get_device_name() if self.gpu else f"CPU, {threads} threads"
        self.precision = "bfloat16" if self.gpu else "float32"
        self.steps = options.steps or (20 if self.gpu else 2)
        self.warm = options.warm or (5 if self.gpu else 1)
        self.done, self.rates, self.students, self.sets = [], {}, {}, {}

    def start(self, action: str, job: dict) -> dict:
        env = {**os.environ, **QUIET, "UNSLOTH_COMPILE_LOCATION": str(self.folder / "unsloth")}
        command = [sys.executable, Path(__file__).resolve(), action, json.dumps(job)]
        done = subprocess.run(command, env=env, cwd=self.folder, capture_output=True, text=True)
        if done.returncode == 0: return json.loads(done.stdout.strip().splitlines()[-1])
        lines = [line for line in done.stderr.splitlines() if line.strip()] or [f"ended with code {done.returncode}"]
        return {"error": next((line for line in reversed(lines) if "Error" in line), lines[-1])}

    def run(self, label: str, rows: Path, **job) -> dict:
        job = {"stack": "unsloth", "student": self.student("135m"), "method": "lora", "layout": "padded",
               "precision": self.precision, "checkpointing": False, "warm": self.warm, "threads": self.options.threads,
               "rows": str(rows), **job}
        job["longest"] = max(len(row["input_ids"]) for row in json.loads(rows.read_text()))
        result = self.start("one", job)
        self.done.append({"label": label, **{k: v for k, v in job.items() if k not in ("rows", "student")}, **result})
        if "error" in result: print(f"{label:<42} {result['error'][:160]}", flush=True)
        else: print(f"{label:<42}{result['tokens_per_s']:10.0f} tokens a second{result['memory']:8.2f} GB  MFU "
                    f"{result['flops_per_s'] / self.rate(job['precision']):6.1%}", flush=True)
        return result

    def rate(self, precision: str) -> float:
        if precision not in self.rates:
            result = self.start("rate", {"precision": precision, "threads": self.options.threads})
            self.rates[precision] = result["flops_per_s"]
            print(f"matrix product in {precision}: {self.rates[precision] / 1e12:.2f} TFLOP/s", flush=True)
        return self.rates[precision]

    def student(self, name: str) -> str:
        if name not in self.students:
            from smoltraces.students.models import locate
            if name == "135m": self.students[name] = locate("embedded/smollm2-135m-instruct")
            else:
                self.students[name] = str(self.folder / name)
                self.start("three_billion", {"student": self.students[name], "tokenizer": self.student("135m")})
        return self.students[name]

    def training_set(self, variant: str) -> list[dict]:
        "input_ids and labels of a training set of the gpu profile, shuffled"
        if not self.sets:
            from transformers import AutoTokenizer

            from smoltraces.problems.selection import build_problems
            from smoltraces.schema import load_variant
            from smoltraces.settings import load_settings
            from smoltraces.students.sequences import encode
            from smoltraces.traces.variants import build_variants
            cfg = load_settings("gpu", Path(__file__).parent, out=str(self.folder), n_train=512, n_test=8, n_hard=8)
            build_problems(cfg)
            build_variants(cfg)
            tokenizer = AutoTokenizer.from_pretrained(self.student("135m"))
            for name in ("ST", "ST-HC"):
                rows = encode(load_variant(cfg, name), tokenizer, 10**6)[0].select_columns(["input_ids", "labels"])
                self.sets[name] = rows.shuffle(seed=0).to_list()
        return self.sets[variant]

    def of_lengths(self, lengths: list[int]) -> list[dict]:
        "Rows of these lengths, cut from the text of ST"
        text = [token for row in self.training_set("ST") for token in row["input_ids"]]
        starts = (Random(f"0-{i}").randrange(len(text) - n) for i, n in enumerate(lengths))
        cut = [text[at:at + n] for at, n in zip(starts, lengths, strict=True)]
        return [{"input_ids": row, "labels": [-100] * 32 + row[32:]} for row in cut]

    def file(self, rows: list[dict]) -> Path:
        path = self.folder / f"rows-{len(list(self.folder.glob('rows-*')))}.json"
        path.write_text(json.dumps(rows))
        return path


def ratio(what: str, result: dict, other: dict, wanted: str, key: str = "tokens_per_s"):
    if "error" in result or "error" in other: return print(f"  {what}: not measured (wanted: {wanted})")
    busy = result["tokens_per_cpu_s"] / other["tokens_per_cpu_s"]
    by_cpu = f", {busy:.2f} × by CPU time" if key == "tokens_per_s" else ""
    print(f"  {what}: {result[key] / other[key]:.2f} ×{by_cpu} (wanted: {wanted})", flush=True)


def cpu(bench: Bench):
    batch = bench.options.batch or 2
    rows = bench.file(bench.training_set("ST")[:batch * (bench.warm + bench.steps)])
    for method in ("lora", "full"):
        result = {stack: bench.run(f"{method}, {stack}", rows, stack=stack, method=method, batch=batch)
                 for stack in ("trainer", "unsloth", "trl")}
        for stack in ("trainer", "trl"): ratio(f"unsloth, of {stack}", result["unsloth"], result[stack], ">= 1")


def packing(bench: Bench):
    import numpy as np

    from smoltraces.students.training import order
    batch, stack = bench.options.batch or (32 if bench.gpu else 4), "unsloth" if bench.gpu else "trl"
    sample = Random(0).choices(R1 if bench.gpu else [n // 4 for n in R1], k=512) # a CPU would take minutes a step
    for name, rows in (("ST", bench.training_set("ST")), ("ST-HC", bench.training_set("ST-HC")),
                       ("R1" if bench.gpu else "R1, a quarter as long", bench.of_lengths(sample))):
        lengths = np.array([len(row["input_ids"]) for row in rows])
        positions = {how: sum(len(k) * lengths[k].max() for k in np.array_split(at, len(rows) // batch)) / lengths.sum()
                     for how, at in (("random order", np.arange(len(rows))), ("grouped", order(lengths, 1, batch, 0)))}
        print(f"{name}: {len(rows)} rows of {lengths.min()} to {lengths.max()} tokens; padded to steps of {batch}, "
              + ", ".join(f"{n:.2f} positions a token in {how}" for how, n in positions.items()), flush=True)
        file = bench.file(rows[:batch * (bench.warm + bench.steps)])
        result = {layout: bench.run(f"{name}, {layout}, {stack}", file, stack=stack, layout=layout, batch=batch,
                                   checkpointing=bench.gpu)
                 for layout in ("padded", "packed")}
        ratio("packed, of padded", result["packed"], result["padded"], ">= 1.5")
    apart(bench, stack)


def apart(bench: Bench, stack: str):
    "The same rows packed, padded, and joined into one row, whose parts do see each other"
    rows, losses = bench.training_set("ST")[:6], {}
    joined = [{key: [token for row in rows[i:i + 3] for token in row[key]] for key in ("input_ids", "labels")}
              for i in (0, 3)]
    for layout in ("padded", "packed", "joined"):
        result = bench.run(f"loss, {layout}, {stack}", bench.file(joined if layout == "joined" else rows), stack=stack,
                          batch=1 if layout == "joined" else 3, precision="float32", warm=1,
                          layout="packed" if layout == "packed" else "padded")
        losses[layout] = result.get("losses")
    if None in losses.values(): return print("  packed rows: not compared")
    for layout, wanted in (("packed", "at most 1e-4"), ("joined", "more: these rows see each other")):
        gap = max(abs(a - b) for a, b in zip(losses[layout], losses["padded"], strict=True))
        print(f"  loss of {layout} rows: {gap:.1e} from that of padded ones over {len(losses[layout])} steps (wanted: "
              f"{wanted})", flush=True)


def gpu(bench: Bench):
    for name in bench.options.students:
        batch, length = bench.options.batch or {"135m": 32, "3b": 8}[name], bench.options.length or 1024
        rows = bench.file(bench.of_lengths([length] * batch * (bench.warm + bench.steps)))
        for checkpointing in (False, True):
            job, how = {"batch": batch, "checkpointing": checkpointing}, "on" if checkpointing else "off"
            result = {stack: bench.run(f"{name}, {stack}, checkpointing {how}", rows, stack=stack,
                                      student=bench.student(name), **job) for stack in ("trl", "unsloth")}
            ratio("tokens a second, of trl", result["unsloth"], result["trl"], ">= 1.5")
            ratio("peak memory, of trl", result["unsloth"], result["trl"], "<= 0.7", "memory")


def lengths(bench: Bench):
    longest, points = bench.options.longest or (16384 if bench.gpu else 2048), []
    for name in bench.options.students if bench.gpu else ["135m"]:
        for stack in ("unsloth", "trl"):
            for n in (n for n in (512, 1024, 2048, 4096, 8192, 16384) if n <= longest):
                rows = bench.file(bench.of_lengths([n] * (bench.warm + max(1, bench.steps // 2))))
                result = bench.run(f"{name}, {stack}, {n:,} tokens", rows, stack=stack, student=stretched(bench, name),
                                  batch=1, checkpointing=bench.gpu)
                if "error" not in result: points.append({"student": name, "stack": stack, "tokens": n,
                                                        "seconds": result["step_s"], "memory": result["memory"]})
    plot(points, bench)


def stretched(bench: Bench, name: str) -> str:
    "The student with a context that holds the longest rows; its positions are computed, not learnt"
    source, folder = Path(bench.student(name)), bench.folder / f"{name}-stretched"
    if not folder.exists():
        folder.mkdir()
        for file in source.iterdir():
            if file.name != "config.json": (folder / file.name).symlink_to(file)
        config = json.loads((source / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(config | {"max_position_embeddings": 131072}))
    return str(folder)


def plot(points: list[dict], bench: Bench):
    import matplotlib.pyplot as plt
    import pandas as pd
    figure, axes = plt.subplots(1, 2, figsize=(9, 3.4), layout="constrained")
    for (student, stack), part in pd.DataFrame(points).groupby(["student", "stack"]):
        for axis, column in zip(axes, ("seconds", "memory"), strict=True):
            axis.plot(part["tokens"], part[column], "o-" if stack == "unsloth" else "s--", markersize=4,
                      color="C0" if student == "135m" else "C1", label=f"{student}, {stack}")
    ticks = sorted({point["tokens"] for point in points})
    for axis, label in zip(axes, ("seconds a step", "GB at the peak"), strict=True):
        axis.set(xscale="log", xlabel="tokens in the step's one row", ylabel=label)
        axis.set_xticks(ticks, [f"{n:,}" for n in ticks])
        axis.minorticks_off()
        axis.spines[["top", "right"]].set_visible(False)
    axes[0].set_yscale("log")
    axes[1].set_ylim(0, None)
    axes[0].legend(frameon=False)
    figure.suptitle(f"LoRA in {bench.precision}, gradient checkpointing {'on' if bench.gpu else 'off'}: {bench.device}",
                    fontsize=10)
    bench.options.to.mkdir(parents=True, exist_ok=True)
    figure.savefig(bench.options.to / "lengths.png", dpi=150)


def memory(bench: Bench):
    from smoltraces.students.memory import available, estimate, shape
    for name in bench.options.students if bench.gpu else ["135m"]:
        for method, batch, n in (("lora", 1, 512), ("lora", 1, 2048), ("lora", 4, 512), ("full", 1, 512)):
            if method == "full" and name == "3b": continue # four bytes a weight, four times: beyond most cards
            rows = bench.file(bench.of_lengths([n] * batch * 2))
            result = bench.run(f"{name}, {method}, {batch} × {n:,} tokens", rows, method=method, batch=batch, warm=1,
                              student=bench.student(name), checkpointing=bench.gpu)
            if "error" in result: continue
            expected = estimate(shape(bench.student(name)), method, n, batch, bench.precision,
                                "cuda" if bench.gpu else "cpu", room=available("cuda" if bench.gpu else "cpu")[0]).total
            print(f"  expected {expected:.2f} GB, measured {result['device']:.2f}: {expected / result['device']:.2f} × "
                  "(wanted: 1 to 1.25)", flush=True)


if __name__ == "__main__":
    inner = {"one": one, "rate": rate, "three_billion": three_billion}
    if len(sys.argv) == 3 and sys.argv[1] in inner:
        print("\n" + json.dumps(inner[sys.argv[1]](json.loads(sys.argv[2]))))
        sys.exit()
    parts = {"cpu": cpu, "packing": packing, "gpu": gpu, "lengths": lengths, "memory": memory}
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", default=["cpu"], choices=parts)
    for option in ("steps", "warm", "batch", "length", "longest"): parser.add_argument(f"--{option}", type=int)
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--students", type=lambda text: text.split(","), default=["135m", "3b"])
    parser.add_argument("--to", type=Path, default=Path("outputs/benchmarks"))
    given = parser.parse_args()
    os.environ.update(QUIET)
    from smoltraces.files import write_json
    from smoltraces.settings import versions
    with tempfile.TemporaryDirectory() as temporary:
        bench = Bench(given, Path(temporary))
        print(f"{bench.device}, {bench.precision}", flush=True)
        for part in given.parts:
            parts[part](bench)
            write_json(given.to / f"training-{part}.json", {
                "device": bench.device, "machine": platform.machine(), "matrix_flops_per_s": bench.rates,
                "runs": bench.done, "versions": versions("torch", "transformers", "trl", "peft", "unsloth")})
            bench.done = []
