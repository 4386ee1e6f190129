r"""How many hidden tokens come back from how few visible positions, trained beside untrained.

    OMP_NUM_THREADS=1 python benchmarks/capacity.py RESULTS docs/evidence/capacity.csv

RESULTS is the results directory of the default study. `mixture` searches behind the first block,
the visible tokens known, in passages of the held-out text. For each number of visible positions,
hidden tokens are added until fewer than half of the prompts are certified. The figure
docs/images/capacity.png is drawn from the table (`--draw` draws it alone). Its line is the count of
compressed sensing: one of V tokens at each of h positions needs about 2 h ln V equations, and a
visible position gives as many as attention has components.
"""

from __future__ import annotations

import argparse
import csv
import math
from pathlib import Path

import matplotlib.pyplot as plt
import torch
from common import write
from mixture import posed, searched

from tokinfo.models.checkpoint import load
from tokinfo.report.figures.style import INK
from tokinfo.study.solvers import MixtureSolver

FIGURE = Path(__file__).resolve().parents[1] / "docs" / "images" / "capacity.png"
VISIBLE = (1, 2, 4, 8, 16)
# A search that fails takes minutes with 24 hidden tokens and one visible position.
SMALL = 4, {1: (4, 8, 16)} | dict.fromkeys(VISIBLE[1:], (4, 8, 16, 24))
LARGE = 2, dict.fromkeys((1, 4, 16), (8, 16, 32))
PLAN = {
    "transformer": SMALL,
    "transformer-untrained": SMALL,
    "smollm2": LARGE,
    "smollm2-untrained": LARGE,
}
"""Prompts of each cell, and numbers of hidden tokens by visible positions, for each model."""


def measured(results: Path, out: Path) -> None:
    """Search every cell; the table is written anew after each of them."""
    text = results / "corpora" / "king-james.held-out.txt"
    rows: list[dict[str, object]] = []
    for model, (count, cells) in PLAN.items():
        facts = load(results / "checkpoints" / model / "1").facts
        width, most = facts.d_model, facts.n_ctx
        for visible, numbers in cells.items():
            for hidden in numbers:
                if most is not None and hidden + visible > most:
                    break
                case = f"{model}/1:visible:{hidden}+{visible}:{count}"
                what, problem, truth = posed(results, text, case)
                found = searched("mixture", problem, truth, MixtureSolver())
                bits = hidden * math.log2(problem.decoder.size)
                line = visible * width / (2 * math.log(problem.decoder.size))
                rows.append(what | found | {"bits": round(bits), "line": round(line, 1)})
                write(out, rows)
                if 2 * int(str(found["prompts_certified"])) < count:
                    break


def draw(table: Path, png: Path) -> None:
    """Draw certified shares over visible positions and hidden tokens, a panel a model."""
    with table.open(encoding="utf-8") as stream:
        rows = list(csv.DictReader(stream))
    models = list(dict.fromkeys(row["model"] for row in rows))
    figure, panels = plt.subplots(
        1, len(models), figsize=(3.1 * len(models), 3.6), sharey=True, layout="constrained"
    )
    for model, panel in zip(models, panels, strict=True):
        of = [row for row in rows if row["model"] == model]
        x, y = ([int(row[name]) for row in of] for name in ("visible", "hidden_leading"))
        shares = [int(row["prompts_certified"]) / int(row["prompts"]) for row in of]
        dots = panel.scatter(x, y, c=shares, cmap="viridis", vmin=0, vmax=1, s=130, edgecolor=INK)
        lines = sorted({(float(row["visible"]), float(row["line"])) for row in of})
        panel.plot(*zip(*lines, strict=True), color=INK, linestyle="--", linewidth=1)
        panel.set_xscale("log", base=2)
        panel.set_yscale("log", base=2)
        panel.set_xlim(0.8, 20)
        panel.set_ylim(3, 64)
        panel.set_xticks(VISIBLE, [str(one) for one in VISIBLE])
        panel.set_yticks([4, 8, 16, 32], ["4", "8", "16", "32"])
        panel.set_title(f"{model}\n{int(of[0]['vocabulary']):,} tokens", fontsize=10)
        panel.set_xlabel("visible positions")
    panels[0].set_ylabel("hidden tokens")
    figure.colorbar(dots, ax=panels, label="share of prompts certified", format="{x:.0%}")
    figure.savefig(png, dpi=150)


def main() -> None:
    """Measure, unless only the figure is asked for, and draw."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("results", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--draw", action="store_true", help="draw the table that is there")
    options = parser.parse_args()
    torch.set_num_threads(1)
    if not options.draw:
        measured(options.results, options.out)
    draw(options.out, FIGURE)


if __name__ == "__main__":
    main()
