"""Made-up runs with all that a report reads: predictions, results, funnel, manifest, records; harmless or hostile."""
import numpy as np
import pandas as pd
from browser import ATTACKS, HOSTILE
from conftest import project

from smoltraces.evaluation.benchmarks import seal
from smoltraces.evaluation.evaluate import read_predictions
from smoltraces.evidence.claims import judge
from smoltraces.evidence.figures import FIGURES
from smoltraces.evidence.report import all_files
from smoltraces.evidence.statistics import comparisons, summarise
from smoltraces.files import write_json, write_parquet, write_text
from smoltraces.problems.corpora import embedded_problems
from smoltraces.settings import Settings, load_settings

SHARES = {"Base": 0.1, "ST-NT": 0.2, "SBS": 0.3, "ST-HC-W": 0.35, "ST-HC": 0.5, "ST": 0.55, "HC": 0.9}
KINDS = [attack for attack in ATTACKS if attack != "\ud800"]  # half a character, which no Parquet file can hold
WHOLE = HOSTILE.replace("\ud800", "")
CANARY = "heptadecagonal chrysanthemum"
EVIL = "evil/<img src=x onerror=window.pwned=1>'\"&"


def thinking(answer: str, i: int) -> str:
    long = "I add the next one. " * (400 if i % 9 == 0 else 3)
    return f"<think>\nWhat if I add them? {long}Wait, that is wrong. Let me check.\n</think>\n\nSo \\boxed{{{answer}}}."


def answers(cfg: Settings, hostile: bool = False):
    "Every file of predictions that the settings ask for, with right, wrong and cut-off outputs"
    problems = embedded_problems(cfg.tasks, 0, cfg.n_test, cfg.n_hard)
    if hostile: problems["question"] = [WHOLE + str(i) for i in range(len(problems))]
    write_parquet(cfg.path("problems.parquet"), problems)
    for (student, variant, seed, benchmark), file in all_files(cfg).items():
        asked = problems[problems["split"] == benchmark]
        if benchmark == "gpqa_diamond": asked = problems.head(20)
        luck = np.random.default_rng([len(variant), seed, len(student), len(benchmark)]).random(len(asked))
        outcomes = np.where(luck < SHARES[variant], "right", np.where(luck > 0.85, "cut off", "wrong"))
        rows = []
        for i, (p, outcome) in enumerate(zip(asked.itertuples(), outcomes.tolist(), strict=True)):
            right, cut = outcome == "right", outcome == "cut off"
            attack = KINDS[i % len(KINDS)]
            output = f"{WHOLE} <think>{attack}" if hostile else thinking(p.answer if right else "7", i)
            if benchmark == "gpqa_diamond": output = seal(CANARY) if i % 2 else CANARY
            rows.append(dict(
                student=student, variant=variant, seed=seed, benchmark=benchmark, problem_id=p.id, sample=0,
                output=output, extracted=attack if hostile else None if cut else "7",
                answer=attack if hostile else p.answer, correct=right, n_tokens=40, truncated=cut, cluster=p.source,
                revision=("a" if benchmark == "embedded" else "b") * 16))
        write_parquet(file, rows)
        write_json(file.with_suffix(".json"), {"basis": {"versions": {"torch": "2.13.0"}}, "run": {
            "seconds": 3.5, "tokens": 4000, "device": "cpu", "cost_usd": 0.125}})


def results(cfg: Settings):
    "What 5_figures and the stages before it leave"
    predictions, teacher = read_predictions(cfg), read_predictions(cfg, of="teacher")
    both = [predictions, *([teacher] if len(teacher) else [])]
    pairs = pd.concat([comparisons(p, cfg.equivalence / 100, cfg.bootstrap) for p in both], ignore_index=True)
    found = pd.concat([summarise(p, cfg.bootstrap) for p in both], ignore_index=True)
    write_parquet(cfg.path("results.parquet"), found)
    write_parquet(cfg.path("comparisons.parquet"), pairs)
    write_parquet(cfg.path("claims.parquet"), judge(pairs, None, None, cfg.bootstrap))
    for name in FIGURES:
        write_text(cfg.path("figures", f"{name}.svg"), '<svg xmlns="http://www.w3.org/2000/svg" width="300" '
                   'height="90"><style>*{fill:#009}</style><rect width="40" height="40" style="fill:#090"/></svg>')
    write_json(cfg.path("problems", "funnel.json"), {
        "repeats": {"train": {"chain_sum": 3, "simple_equations": 4}},
        "drawn": {"train": {"chain_sum": 1234, "simple_equations": 77}}})
    write_json(cfg.path("data", "manifest.json"), {
        "funnel": [{"step": "seed problems", "problems": 168, "math": 168},
                   {"step": "chosen", "problems": 24, "math": 24}],
        "problems": {"sha256": "c" * 64}, "spent": {"gpt-4o": {"answers": 10, "usd": 1.5}},
        "variants": {"ST": {"file": "ST.parquet", "sha256": "d" * 64, "rows": 24, "teacher": "/home/ana/teacher",
                            "prompt": "emergent@1", "asked": 168, "usable": 160, "dropped": {"wrong answer": 8}}}})
    for stage in ("1_build_data", "3_finetune-x", "5_figures"):
        write_json(cfg.path("runs", f"{stage}.json"), {
            "stage": stage, "code": "e" * 64, "seconds": 61.5, "outputs": {f"students/{stage}": "f" * 64},
            "machine": {"system": "Linux", "cpu": "x86_64", "cores": 2, "python": "3.11.7"},
            "versions": {"trl": "1.15.0"}})


def run(folder, hostile: bool = False, **keys) -> Settings:
    cfg = load_settings("laptop", start=project(folder), bootstrap=100, **{
        "n_test": 30, "n_hard": 10, "students": "made-up/one, made-up/two"} | keys)
    answers(cfg, hostile)
    results(cfg)
    return cfg
