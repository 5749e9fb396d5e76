"""How fast the tables of evidence are made, and how often their 95% intervals hold the truth.

    python tests/benchmarks/intervals.py speed [RESAMPLES]  summarise + comparisons of 3 students × 3 benchmarks ×
        6 variants × 3 seeds, and the ratios to scipy.stats.bootstrap and to a plain loop, for the same intervals
    python tests/benchmarks/intervals.py coverage [DRAWS]   per setting, in per cent, with half the interval's mean
        width in points; those outside 93 to 97 are marked

For coverage, problems have difficulties and runs have luck, both normal on the scale of log-odds; the truth is the mean
over all of both. Differences are between a variant at the given accuracy and one at 0.7 of it, on the same problems.
"""
import sys
import time

import numpy as np
import pandas as pd

from smoltraces.evaluation.evaluate import check_predictions
from smoltraces.evidence.statistics import PAIRS, accuracy_interval, comparisons, difference, scores, summarise

SIZES = {"math500": 500, "aime24": 30, "gpqa_diamond": 198}
SHARES = {"Base": 0.1, "ST-NT": 0.2, "SBS": 0.3, "ST-HC-W": 0.35, "ST-HC": 0.5, "ST": 0.55}


def table(seed: int = 0) -> pd.DataFrame:
    "Predictions of three invented students"
    rng, parts = np.random.default_rng(seed), []
    for student in ("one/3B", "two/8B", "three/32B"):
        for benchmark, n in SIZES.items():
            ease = rng.normal(size=n)
            for variant, share in SHARES.items():
                for run in (0, 1, 2) if variant != "Base" else (0,):
                    right = ease + rng.normal(size=n) / 2 > np.quantile(ease, 1 - share)
                    parts.append(pd.DataFrame({
                        "student": student, "variant": variant, "seed": run, "benchmark": benchmark,
                        "problem_id": [f"p{i}" for i in range(n)], "sample": 0, "extracted": np.where(right, "7", "3"),
                        "correct": right, "n_tokens": 100, "truncated": False,
                        "cluster": [f"family {i % 7}" for i in range(n)], "revision": "0123456789abcdef"}))
    return pd.concat(parts, ignore_index=True)


def plain_loop(values: np.ndarray, n_boot: int) -> tuple[float, float]:
    rng = np.random.default_rng(0)
    means = [values[rng.integers(len(values), size=len(values))].mean() for _ in range(n_boot)]
    return tuple(np.quantile(means, [0.025, 0.975]))


def speed(n_boot: int = 10_000):
    from scipy.stats import bootstrap
    predictions = table()
    summarise(predictions[predictions.benchmark == "aime24"], 100)  # imports statsmodels, which takes a second or two
    check_predictions(predictions)
    start, used = time.perf_counter(), time.process_time()
    results, compared = summarise(predictions, n_boot), comparisons(predictions, n_boot=n_boot)
    ours, used = time.perf_counter() - start, time.process_time() - used
    print(f"{len(predictions)} predictions, {len(results)} accuracies, {len(compared)} differences, {n_boot} resamples"
          f": {ours:.2f} s, {used:.2f} s of processor time")
    means = []
    for _, rows in predictions.groupby(["student", "benchmark"], sort=False):
        of = {variant: score.mean(axis=0) for variant, score in scores(rows).items()}
        means += [*of.values(), *(of[a] - of[b] for a, b in PAIRS)]
    for name, interval in {
        "scipy.stats.bootstrap": lambda v: bootstrap((v,), np.mean, n_resamples=n_boot, method="percentile", rng=0),
        "a plain loop": lambda v: plain_loop(v, n_boot),
    }.items():
        start = time.perf_counter()
        for values in means[::8]: interval(values)  # every eighth, for it takes long
        theirs = (time.perf_counter() - start) * len(means) / len(means[::8])
        print(f"{theirs / ours:5.1f} times as fast as {name}, problems alone ({theirs:.1f} s)")


def evaluations(shares, n, runs, samples, spread, luck, draws, rng):
    "Scores, draws × runs × problems for each share; the same problems, runs of their own"
    from scipy.optimize import brentq
    from scipy.special import expit
    nodes, weights = np.polynomial.hermite_e.hermegauss(61)
    ease, both = rng.normal(scale=spread, size=(draws, 1, n)), np.hypot(spread, luck)
    for share in shares:
        level = brentq(lambda x, share=share: weights @ expit(x + both * nodes) / weights.sum() - share, -40, 40)
        own = rng.normal(scale=luck, size=(draws, runs, 1))
        yield rng.binomial(samples, expit(level + ease + own), size=(draws, runs, n)) / samples


def coverage(draws: int = 2000, sizes=(30, 80, 198, 500), n_boot: int = 1000):
    settings = [(1, 1, 1.5, 0), (1, 4, 1.5, 0), (3, 1, 1.5, 0), (3, 1, 1.5, 0.2), (3, 1, 1.5, 0.5), (3, 4, 1.5, 0.3),
                (5, 1, 1.5, 0.3)]
    shares = (0.05, 0.1, 0.3, 0.5, 0.7, 0.9)
    print("runs, samples, sd of difficulty, sd of luck |   n | accuracy at", *shares, "| difference at", *shares)
    for setting in settings:
        for n in sizes:
            cells = {"accuracy": [], "difference": []}
            for share in shares:
                one, two = evaluations((share, 0.7 * share), n, *setting, draws, np.random.default_rng(n))
                for what, ends, truth in (
                        ("accuracy", np.array([accuracy_interval(a, n_boot)[1:] for a in one]), share),
                        ("difference", np.array([difference(a, b, n_boot)[1:] for a, b in zip(one, two, strict=True)]),
                         0.3 * share)):
                    held = 100 * np.mean((ends[:, 0] <= truth) & (truth <= ends[:, 1]))
                    mark = " " if 93 <= held <= 97 else "*"
                    cells[what].append(f"{held:5.1f}{mark}±{50 * np.ptp(ends, axis=1).mean():4.1f}")
            print(*setting, f"| {n:3} |", *cells["accuracy"], "|", *cells["difference"], flush=True)


if __name__ == "__main__":
    {"speed": speed, "coverage": coverage}[sys.argv[1]](*map(int, sys.argv[2:]))
