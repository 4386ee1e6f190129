"""What sweeps say, beside what searches found: the long table read for identifiability.

"Not found" and "not there" are distinguished here. In a sweep around the TRUE prompt the other
tokens are known: it says what is there at best. A sweep around a FOUND prompt says what an
observer without the truth could claim. Figures, the page and `noise.csv` all read these functions.

Controls never enter a share. A token that nothing visible depends on, such as one right of every
visible position of a causal model, is one: it must come out ambiguous with the whole vocabulary.
A cell with a target that no prompt explains is another: nothing may be certified there.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl

from tokinfo.io.atomic import new_file
from tokinfo.tables.intervals import Share, clustered_median, clustered_share
from tokinfo.tables.recovery import RECOVERED, SOUGHT, display_order, scan
from tokinfo.tables.schema import CELL_KEYS, POSITION_VERDICTS, PROMPT_VERDICTS

SETTING = ("model", "site", "residual", "causal", "padding", "mask", "known", "prompts")
"""What is measured, as against who searches and how."""

_FACTS = (
    *("source", "family", "state", "quantization", "outlier_threshold", "dtype", "weights_note"),
    *("block", "depth", "kind", "vocabulary", "prior_entropy"),
)
_COLUMNS = (
    *(*CELL_KEYS, *_FACTS, "prompt_id", "prompt", "position", "visible", "given", "correct"),
    *("independent", "verdict", "around", "identified", "rank", "margin", "candidates"),
    *("bits", "bits_high", "claimed_id", "true_id"),
    *("prior_bits", "prior_bits_high", "noise_threshold", "noise_step", "noise_floor"),
)
_GROUP = (*SETTING, "metric", "solver")
_KINDS = ("chapter", "adam", "sequential", "mixture", "joint")

# 0 / 0 is not a number: no margin and no floor are no evidence either way.
_MARGIN_FLOORS = (pl.col("margin") / pl.col("noise_floor")).fill_nan(0.0)


def hidden_rows(recovery: Path, wanted: pl.Expr | None = None) -> pl.DataFrame:
    """Return the rows about hidden positions, controls' targets and known tokens left out.

    Only those are held, and of them only the ones ``wanted`` is true of.

    Adds `control` (bool: nothing visible can depend on this token) and `recovered` (see
    `tokinfo.tables.recovery.RECOVERED`).

    Raises:
        TableError: the long table cannot be read or has another schema.
    """
    hidden = scan(recovery).select(_COLUMNS).filter(~pl.col("visible") & ~pl.col("given"))
    hidden = hidden if wanted is None else hidden.filter(wanted)
    rows = hidden.with_columns(recovered=RECOVERED).rename({"independent": "control"})
    return rows.collect(engine="streaming")


# --- the finding --------------------------------------------------------------------------


@dataclass(frozen=True)
class Finding:
    """Shares of the same hidden tokens, found by a search and identified by a sweep.

    Attributes:
        settings: number of settings (model, site, mask, ...) where both ran.
        positions: number of hidden tokens there, controls left out.
        prompts: number of prompts; a text in several sets is one.
        identifiable: share that a sweep around the true prompt identifies.
        found: share that the search found.
        certified: share of prompts that the search certified; None: it gave no verdict.
        recovered: share found, certified and identifiable around the found prompt; None:
            nothing was swept around it.
        margin_floors: median of how much further off the best wrong token is than the true one,
            in noise floors.
        noise_threshold: median noise-to-signal ratio at which the true token stops being the
            best; None: not measured.
    """

    settings: int
    positions: int
    prompts: int
    identifiable: Share
    found: Share
    certified: Share | None
    recovered: Share | None
    margin_floors: float | None
    noise_threshold: float | None


def searches(rows: pl.DataFrame) -> list[tuple[str, str]]:
    """Return name and kind of each solver that searched, descents first and joint search last."""
    found = rows.filter(pl.col("kind") != "sweep").select("solver", "kind").unique().rows()
    return sorted(found, key=lambda row: (_KINDS.index(row[1]) if row[1] in _KINDS else 0, row[0]))


def finding(rows: pl.DataFrame, solver: str) -> Finding | None:
    """Compare a search with the sweep, in the settings where both ran.

    Solvers are not pooled: they search with different strength. Of several cells of one solver in a
    setting (metrics, parametrisations, seeds) the one that recovered most is taken, in hindsight,
    or that found most, where nothing was swept around what it found.

    Args:
        rows: what `hidden_rows` returned.
        solver: name of the solver that searched.

    Returns:
        the shares, or None where no setting has both.
    """
    rows = rows.filter(~pl.col("control"))
    swept = best_cells(rows.filter(kind="sweep"), pl.col("identified") == "identifiable")
    searched = rows.filter(pl.col("kind") != "sweep", solver=solver)
    asked = searched["recovered"].count() > 0
    found = best_cells(searched, pl.col("recovered" if asked else "correct"))
    where = [*SETTING, "prompt_id", "position"]
    both = found.join(
        swept.filter(pl.col("identified").is_not_null()).select(
            *where,
            there=pl.col("identified") == "identifiable",
            margin_floors=_MARGIN_FLOORS,
            noise=pl.col("noise_threshold"),
        ),
        on=where,
        how="inner",
        maintain_order="left",
    )
    if both.is_empty():
        return None
    prompts = both.unique([*SETTING, "prompt_id"], maintain_order=True)
    return Finding(
        settings=both.select(SETTING).n_unique(),
        positions=len(both),
        prompts=both["prompt"].n_unique(),
        identifiable=_required(share(both, pl.col("there"))),
        found=_required(share(both, pl.col("correct"))),
        certified=share(prompts, pl.col("verdict") == "certified"),
        recovered=share(both, pl.col("recovered")),
        margin_floors=both["margin_floors"].quantile(0.5, "lower"),
        noise_threshold=both["noise"].quantile(0.5, "lower"),
    )


def best_cells(rows: pl.DataFrame, outcome: pl.Expr) -> pl.DataFrame:
    """Return, for each setting, the rows of the one cell with the largest share of an outcome."""
    shares = rows.group_by(CELL_KEYS, maintain_order=True).agg(outcome.mean().alias("_share"))
    best = shares.sort("_share", descending=True, nulls_last=True, maintain_order=True).unique(
        SETTING, keep="first", maintain_order=True
    )
    return rows.join(best, on=list(CELL_KEYS), how="semi", maintain_order="left")


def share(rows: pl.DataFrame, outcome: pl.Expr) -> Share | None:
    """Return the share of rows with an outcome, prompts as clusters; None: no row has one."""
    clusters = (
        rows.group_by("prompt", maintain_order=True)
        .agg(found=outcome.sum(), of=outcome.count())
        .filter(pl.col("of") > 0)
    )
    if clusters.is_empty():
        return None
    return clustered_share(clusters["found"].to_list(), clusters["of"].to_list())


def _required(found: Share | None) -> Share:
    assert found is not None, "an outcome that is never null"
    return found


# --- tables -------------------------------------------------------------------------------


def verdicts(rows: pl.DataFrame) -> list[dict[str, Any]]:
    """Return one row per setting, metric and solver that swept: counts of verdicts and medians.

    Seeds are pooled, controls left out. `margin_floors` is the median of margin over noise
    floor, infinite where the floor is 0; None: no margin. `claims` counts the tokens that an
    observer without the truth would claim, around certified prompts, and `claims_wrong` those that
    are not the true ones.
    """
    rows = rows.filter(pl.col("around").is_not_null() & ~pl.col("control"))
    claimed = pl.when(around="found").then(pl.col("claimed_id"))
    prompt = pl.struct("prompt_id", "seed")
    table = rows.group_by(_GROUP, maintain_order=True).agg(
        *(pl.col(name).first() for name in (*_FACTS, "around")),
        *((pl.col("identified") == name).sum().alias(name) for name in POSITION_VERDICTS),
        *(
            prompt.filter(pl.col("verdict") == name).n_unique().alias(name)
            for name in PROMPT_VERDICTS
        ),
        *(pl.col(name).mean() for name in ("bits", "bits_high", "prior_bits", "prior_bits_high")),
        positions=pl.col("identified").count(),
        n_prompts=pl.col("prompt").n_unique(),
        claims=claimed.count(),
        claims_wrong=(claimed != pl.col("true_id")).sum(),
        margin_floors=_MARGIN_FLOORS.quantile(0.5, "lower"),
    )
    found = [row for row in table.to_dicts() if row["positions"]]
    return sorted(found, key=lambda row: (display_order(row), row["block"], row["kind"]))


def independent(rows: pl.DataFrame) -> list[dict[str, Any]]:
    """Return the results at positions that nothing visible depends on.

    One row per setting, metric and solver that swept some. `as_must`: every swept position is
    ambiguous with the whole vocabulary and 0 bits. `found` of `positions` tokens are right there,
    by chance alone.
    """
    rows = rows.filter(pl.col("around").is_not_null() & pl.col("control"))
    empty = (
        (pl.col("identified") == "ambiguous")
        & (pl.col("candidates") == pl.col("vocabulary"))
        & (pl.col("bits") == 0)
        & (pl.col("bits_high") == 0)
    )
    table = rows.group_by(_GROUP, maintain_order=True).agg(
        *(pl.col(name).first() for name in (*_FACTS, "around")),
        positions=pl.len(),
        swept=pl.col("identified").count(),
        ambiguous=(pl.col("identified") == "ambiguous").sum(),
        whole=(pl.col("candidates") == pl.col("vocabulary")).sum(),
        bits=pl.col("bits_high").max(),
        as_must=(empty | pl.col("identified").is_null()).all(),
        found=pl.col("correct").sum(),
        certified=pl.col("prompt_id").filter(pl.col("verdict") == "certified").n_unique(),
        n_prompts=pl.col("prompt_id").n_unique(),
    )
    found = [row for row in table.to_dicts() if row["swept"]]
    return sorted(found, key=lambda row: (display_order(row), row["block"], row["kind"]))


def unexplained(recovery: Path) -> list[dict[str, Any]]:
    """Return the results under targets that no prompt explains.

    One row per setting, metric, solver and target. `as_must`: no prompt is certified, and no
    swept position identifiable. `found` of `positions` hidden tokens are right: near chance for
    another model's activations, and not judged for shuffled ones, which still hold their prompt's
    tokens.

    Raises:
        TableError: the long table cannot be read or has another schema.
    """
    rows = scan(recovery, controls=True).select(_COLUMNS).collect(engine="streaming")
    prompt, hidden = pl.struct("prompt_id", "seed"), ~pl.col("visible") & SOUGHT
    table = rows.group_by(*_GROUP, "target", maintain_order=True).agg(
        *(pl.col(name).first() for name in _FACTS),
        n_prompts=prompt.n_unique(),
        certified=prompt.filter(pl.col("verdict") == "certified").n_unique(),
        swept=pl.col("identified").count(),
        identifiable=(pl.col("identified") == "identifiable").sum(),
        positions=hidden.sum(),
        found=(pl.col("correct") & hidden).sum(),
    )
    found = table.with_columns(
        as_must=(pl.col("certified") == 0) & (pl.col("identifiable") == 0)
    ).to_dicts()
    return sorted(found, key=lambda row: (display_order(row), row["block"], row["target"]))


NOISE_SCHEMA: dict[str, pl.DataType] = {
    **dict.fromkeys(("model", "source", "family", "state", "quantization"), pl.String()),
    "outlier_threshold": pl.Float64(),
    **dict.fromkeys(("dtype", "site"), pl.String()),
    "block": pl.Int64(),
    "depth": pl.Int64(),
    "residual": pl.Boolean(),
    "causal": pl.Boolean(),
    **dict.fromkeys(("padding", "mask", "known", "metric", "solver", "prompts"), pl.String()),
    **dict.fromkeys(("positions", "n_prompts", "none", "above"), pl.Int64()),
    **dict.fromkeys(("threshold", "threshold_low", "threshold_high", "step"), pl.Float64()),
}
"""Columns of `noise.csv`. `step`: the factor between the ratios tried, of which `threshold` is one.
`none`: positions whose token is not the only best one without noise (threshold 0); `above`: still
the best one at the largest noise tried (threshold infinite)."""


def noise_table(rows: pl.DataFrame) -> pl.DataFrame:
    """Return the median noise threshold with its interval, per setting, metric and solver.

    Seeds are pooled and controls left out. The interval is about other prompts
    (`tokinfo.tables.intervals.clustered_median`), null where there are fewer than six.
    """
    rows = rows.filter(pl.col("noise_threshold").is_not_null() & ~pl.col("control"))
    out = []
    for _, part in rows.group_by(_GROUP, maintain_order=True):
        by_prompt = part.group_by("prompt", maintain_order=True).agg("noise_threshold")
        median = clustered_median(by_prompt["noise_threshold"].to_list())
        first = part.row(0, named=True)
        values = part["noise_threshold"]
        out.append(
            {name: first[name] for name in NOISE_SCHEMA if name in first}
            | {
                "positions": len(part),
                "n_prompts": len(by_prompt),
                "none": int((values == 0).sum()),
                "above": int(values.is_infinite().sum()),
                "threshold": median.value,
                "threshold_low": median.low,
                "threshold_high": median.high,
                "step": first["noise_step"],
            }
        )
    return _in_order(pl.DataFrame(out, schema=NOISE_SCHEMA))


def write_noise_table(recovery: Path, out: Path) -> None:
    """Write `noise_table` of the long table as CSV; without thresholds, its header alone.

    The rows of one model are held at a time.
    """
    measured = pl.col("noise_threshold").is_not_null()
    models = scan(recovery).filter(measured).select("model").unique().collect(engine="streaming")
    parts = [
        noise_table(hidden_rows(recovery, measured & (pl.col("model") == name)))
        for name in models["model"].sort()
    ]
    with new_file(out) as partial:
        _in_order(pl.concat([pl.DataFrame(schema=NOISE_SCHEMA), *parts])).write_csv(partial)


def _in_order(table: pl.DataFrame) -> pl.DataFrame:
    rows = sorted(table.to_dicts(), key=lambda row: (display_order(row), row["block"]))
    return pl.DataFrame(rows, schema=NOISE_SCHEMA)
