"""What the style measures are worth on labelled traces, and where the weights in lexicon.toml come from.

    python tests/benchmarks/quality.py FOLDER          measure the package as it is on FOLDER/*.jsonl
    python tests/benchmarks/quality.py FOLDER --fit    fit the weights again, with each model (and for backtracking
                                                       also each fifth of the questions) held out in turn

A row: id, model, kind (rlm or instruct), trace, annotated: the trace cut into sections, each between a label in
brackets and ["end-section"]. The labels are those of a judge model and noisy. Models of the two kinds answered the
same questions; the last part of an id is the question's number.
"""
import argparse
import json
import re
from collections import defaultdict
from pathlib import Path

import numpy as np
import pandas as pd
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import f1_score, precision_score, recall_score, roc_auc_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from smoltraces.style.measure import PIVOT_TYPES, coverage, lexicon, measure, read_trace, stages, style_parts

LABELS = "initializing|deduction|adding-knowledge|example-testing|uncertainty-estimation|backtracking"
SECTION = re.compile(rf'\[\s*"?\s*(?:\d+\.\s*)?"?({LABELS})"?\s*\](.*?)(?=\[\s*"?\s*(?:end-section|(?:\d+\.\s*)?"?(?:'
                     rf'{LABELS}))|\Z)', re.S)


def sections(row: dict) -> list[tuple[int, int, str]]:
    "The labelled sections as spans of the trace, found in order, blank space apart"
    places = [i for i, c in enumerate(row["trace"]) if not c.isspace()]
    text, at, found = "".join(row["trace"][i] for i in places), 0, []
    for label, body in SECTION.findall(row["annotated"]):
        body = "".join(body.split())
        start = text.find(body, at) if body else -1
        if not 0 <= start - at <= 3000: continue
        found.append((places[start], places[start + len(body) - 1] + 1, label))
        at = start + len(body)
    return found


def first_words(text: str, n: int) -> str: return "".join(re.findall(r"\s*\S+", text)[:n])


def backtracking(rows: list[dict], chosen) -> tuple[np.ndarray, np.ndarray]:
    "Per labelled section: is it labelled backtracking; does a chosen sentence begin in it"
    true, said = [], []
    for row in rows:
        starts = chosen(row)
        for a, z, label in sections(row):
            true.append(label == "backtracking")
            said.append(any(a <= s < z for s in starts))
    return np.array(true), np.array(said)


def scores(true, said): return precision_score(true, said), recall_score(true, said), f1_score(true, said)


def report(models: dict[str, list[dict]]):
    kind = {m: rows[0]["kind"] for m, rows in models.items()}
    full = {m: measure(rows) for m, rows in models.items()}
    short = {m: measure([r | {"trace": first_words(r["trace"], 150)} for r in rows]) for m, rows in models.items()}
    table = {}
    for m, rows in models.items():
        table[m] = {"kind": kind[m], "coverage": coverage(full[m]),
                    **{t: (full[m][f"pivots_{t}"] > 0).mean() for t in PIVOT_TYPES},
                    "style_score": full[m].style_score.mean(), "backtracks": full[m].backtracks.mean()}
        if kind[m] == "rlm":
            true, said = backtracking(rows, lambda r: [a for a, _, _, back in read_trace(r["trace"]).sentences
                                                       if back])
            table[m] |= dict(zip(("precision", "recall", "F1"), scores(true, said), strict=True))
            wait = re.compile(r"\bwait\b", re.I)
            true, said = backtracking(rows, lambda r, wait=wait: [w.start() for w in wait.finditer(r["trace"])])
            table[m]["F1 of 'wait'"] = scores(true, said)[2]
            firsts = [(st.stage == "framing", label == "initializing") for r in rows for a, z, label in sections(r)
                      for st in stages(r["trace"]) if a <= st.start < z]
            table[m]["framing F1"] = f1_score(*zip(*firsts, strict=True))
    print(pd.DataFrame(table).T.to_string(float_format="{:.3f}".format))
    for name, measured in (("whole", full), ("first 150 words", short)):
        x = pd.concat([measured[m].assign(rlm=kind[m] == "rlm") for m in models])
        print(f"style score, {name}: AUC {roc_auc_score(x.rlm, x.style_score.fillna(0)):.4f};",
              f"density of pivots alone: {roc_auc_score(x.rlm, x.pivots_per_100_words.fillna(0)):.4f};",
              f"Brier {np.mean((x.style_score - x.rlm) ** 2):.4f}")


def fit(models: dict[str, list[dict]]):
    lex, kind = lexicon(), {m: rows[0]["kind"] for m, rows in models.items()}
    rlms, others = ([m for m in models if kind[m] == k] for k in ("rlm", "instruct"))
    # The style score: log(1 + rate), one model of each kind held out at a time.
    names = [k for k in lex.score if k != "bias"]
    rates = {(m, n): np.log1p([style_parts(first_words(r["trace"], n)).per_100_words[names] for r in rows])
             for m, rows in models.items() for n in (10 ** 9, 150)}
    def logistic(): return make_pipeline(StandardScaler(), LogisticRegression(C=0.3))
    def xy(some, n=10 ** 9): return np.vstack([rates[m, n] for m in some]), np.repeat([kind[m] == "rlm" for m in some],
                                                                                      [len(models[m]) for m in some])
    for r in rlms:
        for o in others:
            model = logistic().fit(*xy([m for m in models if m not in (r, o)]))
            aucs = [roc_auc_score(y, model.predict_proba(x)[:, 1]) for x, y in (xy((r, o)), xy((r, o), 150))]
            print(f"held out {r} and {o}: AUC {aucs[0]:.4f}, first 150 words {aucs[1]:.4f}")
    model = logistic().fit(*xy(models))
    weights = model[-1].coef_[0] / model[0].scale_
    print("style", dict(zip(names, weights.round(2).tolist(), strict=True)),
          "bias", round(float(model[-1].intercept_[0] - weights @ model[0].mean_), 2))
    # Backtracking: one sentence a row, the groups of cues seen in it.
    groups = [i for i, g in enumerate(lex.groups) if g.startswith("backtracking.")]
    data = defaultdict(list)
    for m in rlms:
        for d, row in enumerate(models[m]):
            labelled = [(a, z) for a, z, label in sections(row) if label == "backtracking"]
            found = read_trace(row["trace"], lex)
            for (start, _, _, _), cues in zip(found.sentences, found.cues, strict=True):
                data["x"].append([cues >> g & 1 for g in groups])
                data["y"].append(any(a <= start < z for a, z in labelled))
                data["where"].append((m, d, start))
                data["fold"].append(int(row["id"].rsplit("-", 1)[-1]) % 5)
    x, y, fold = np.array(data["x"], float), np.array(data["y"]), np.array(data["fold"])
    model_of = np.array([m for m, _, _ in data["where"]])
    def regression(): return LogisticRegression(C=0.5, max_iter=1000)
    out = np.zeros(len(y))
    for m in rlms:
        for f in range(5):
            test, train = (model_of == m) & (fold == f), (model_of != m) & (fold != f)
            out[test] = regression().fit(x[train], y[train]).predict_proba(x[test])[:, 1]
    for threshold in np.arange(0.14, 0.42, 0.04):
        line = []
        for m in rlms:
            starts = defaultdict(list)
            for (n, d, start), p in zip(data["where"], out, strict=True):
                if n == m and p > threshold: starts[d].append(start)
            index = {id(row): d for d, row in enumerate(models[m])}
            line.append("P {:.2f} R {:.2f} F1 {:.3f}".format(
                *scores(*backtracking(models[m], lambda r, s=starts, i=index: s[i[id(r)]]))))
        print(f"backtracking held out, threshold {threshold:.2f}:", "; ".join(line))
    whole = regression().fit(x, y)
    print("backtracking", dict(zip([lex.groups[g][13:] for g in groups], whole.coef_[0].round(2).tolist(),
                                   strict=True)),
          "bias at 0.5", round(float(whole.intercept_[0]), 2))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--fit", action="store_true")
    args = parser.parse_args()
    rows = {f.stem: [json.loads(line) for line in f.open(encoding="utf-8")]
            for f in sorted(args.folder.glob("*.jsonl"))}
    (fit if args.fit else report)(rows)
