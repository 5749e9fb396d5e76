"""The import graph as a picture: a band a room, a box a module, a line an import.

Usage: python nbs/docs/graph.py OUT.svg
"""
import sys
from pathlib import Path

import grimp
import matplotlib
from matplotlib.figure import Figure

BANDS = [("cli", ["cli"]), ("running", []), ("evidence", []), ("evaluation", []), ("traces", []), ("students", []),
         ("style", []), ("problems", []), ("ground", ["hub", "schema", "files", "paper", "settings"])]
COLOURS = dict(zip((name for name, _ in BANDS), matplotlib.color_sequences["tab10"], strict=False))


def places() -> tuple[dict[str, tuple[float, float]], set[tuple[str, str]]]:
    "Where each module stands, and which imports which"
    graph = grimp.build_graph("smoltraces")
    where = {}
    for level, (room, own) in enumerate(BANDS):
        modules = own or sorted(m.rpartition(".")[2] for m in graph.find_children(f"smoltraces.{room}"))
        for n, module in enumerate(modules):
            name = f"smoltraces.{module}" if own else f"smoltraces.{room}.{module}"
            where[name] = ((n + 0.5) / len(modules), -level)
    edges = {(a, b) for a in where for b in graph.find_modules_directly_imported_by(a) if b in where}
    ground = {name for name in where if name.count(".") == 1}
    edges = {(a, b) for a, b in edges if b not in ground or a in ground} # every module imports some of the ground
    return where, edges


def draw(out: Path):
    "Write the picture"
    where, edges = places()
    figure = Figure(figsize=(11, 9), layout="constrained")
    axes = figure.subplots()
    for a, b in sorted(edges):
        (x, y), (u, v) = where[a], where[b]
        colour = COLOURS[next(room for level, (room, _) in enumerate(BANDS) if level == -y)]
        bend = "arc3,rad=-0.35" if y == v else "arc3,rad=0.06"
        axes.annotate("", (u, v), (x, y), arrowprops={"arrowstyle": "-|>", "color": colour, "alpha": 0.35, "lw": 0.8,
                                                      "connectionstyle": bend, "shrinkA": 9, "shrinkB": 9})
    for name, (x, y) in where.items():
        room = BANDS[int(-y)][0]
        axes.text(x, y, name.rpartition(".")[2], ha="center", va="center", fontsize=9,
                  bbox={"boxstyle": "round,pad=0.35", "facecolor": "white", "edgecolor": COLOURS[room]})
    for level, (room, _) in enumerate(BANDS):
        axes.text(-0.02, -level, room, ha="right", va="center", fontsize=10, fontweight="bold", color=COLOURS[room])
    axes.set(xlim=(-0.02, 1.02), ylim=(-len(BANDS) + 0.5, 0.5))
    axes.axis("off")
    figure.savefig(out, metadata={"Date": None})


if __name__ == "__main__": draw(Path(sys.argv[1]))
