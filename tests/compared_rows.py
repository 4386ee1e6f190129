"""Rows of the chapter compared with made-up cells, and the long table of these."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tests.synthetic_recovery import FakeModel, cell_rows, frame
from tokinfo.study.cell import Cell
from tokinfo.study.claims import Comparison, load_claims
from tokinfo.tables.replication import replication
from tokinfo.tables.schema import CELL_KEYS

PROMPT = "a b c d"
FOUND, HIDDEN = "mixer-flat-d512-untrained-after1", "mixer-expanded-d512-untrained-after1"
Row = dict[str, Any]


def comparison(
    row: str, published: list[Row], others: list[Row] | None = None, **changes: Any
) -> Comparison:
    """Return a row compared with the cells that these rows of the long table are of."""
    claim = load_claims().rows[row]
    fields = {
        "claim": claim.model_copy(update={"prompt": PROMPT}),
        "criterion": claim.criterion,
        "hides": claim.hides,
        "claimed": load_claims().model_of(row),
        "entry": "mine",
        "runs": True,
        "models": tuple(dict.fromkeys(one["model"] for one in published)),
        "sources": ("source",),
        "size": "a size",
        "published": cells(published),
        "others": cells(others or []),
        "tflop": 1.0,
        "reason": "",
        "command": "snakemake --config 'run=[mine]'",
    }
    return Comparison.model_validate(fields | changes)


def cells(rows: list[Row]) -> tuple[Cell, ...]:
    found = (Cell.model_validate({key: row[key] for key in CELL_KEYS}) for row in rows)
    return tuple(dict.fromkeys(found))


def runs(found: list[bool], mask: str = "1:", *, visible: bool = True, **changes: Any) -> list[Row]:
    """Return one cell of the published protocol for each run: hidden tokens found or not."""
    out = []
    for number, hit in enumerate(found):
        model = FakeModel(f"m-{number}", "source", "mixer-flat", 8, state="untrained")
        for row in cell_rows(model, mask=mask, solver="chapter", texts=(PROMPT,)):
            right = visible if row["visible"] else hit
            wrong = row["true_id"] + 1
            out.append(
                row
                | {
                    "correct": right,
                    "in_prompt": right,
                    "found_id": row["true_id"] if right else wrong,
                    "found_token": row["true_token"] if right else " wrong",
                    "top5_ids": [row["true_id"] if right else wrong, 1, 2, 3, 4],
                }
                | changes
            )
    return out


def sweeps(published: list[Row], identified: str) -> list[Row]:
    """Return the cells of sweeps around the true prompt in which hidden tokens are so."""
    return [
        row
        | {
            "solver": "sweep",
            "kind": "sweep",
            "around": "true",
            "identified": None if row["visible"] else identified,
            "margin": None if row["visible"] else 30.0,
            "noise_floor": 0.5,
            "bits": None if row["visible"] else 12.0,
        }
        for row in published
    ]


def certified(found: list[Row]) -> list[Row]:
    """Return the cells of a joint search that certified what it found."""
    return [
        row
        | {
            "solver": "joint",
            "kind": "joint",
            "verdict": "certified",
            "around": "found",
            "identified": None if row["visible"] else "identifiable",
        }
        for row in found
    ]


def table(
    rows: list[Row], comparisons: list[Comparison], directory: Path, **histories: Path
) -> list[Row]:
    """Return the table `replication` that is made from rows of the long table."""
    recovery = directory / "recovery.parquet"
    frame(rows).write_parquet(recovery)
    return replication(recovery, comparisons, histories).to_dicts()
