"""The summary: one row of shares per cell and kind of position, from the long table.

The long table is read a few cells at a time, so that memory follows the rows of the summary.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import lru_cache
from pathlib import Path

import polars as pl

from tokinfo.io.atomic import new_file
from tokinfo.tables.intervals import chance_unordered, clustered_share
from tokinfo.tables.recovery import OWN_TARGET, RECOVERED, ROW_GROUP, SOUGHT, open_table
from tokinfo.tables.schema import CELL_KEYS, PROMPT_VERDICTS, RECOVERY_SCHEMA

_FACTS = (
    "kind",
    "source",
    "family",
    "state",
    "quantization",
    "outlier_threshold",
    "width",
    "training_share",
    "training_tokens",
    "held_out_loss",
    "weights_note",
    "block",
    "depth",
    "vocabulary",
    "noise_step",
    "restarts",
    "device",
    "dtype",
    "model_digest",
    "code_digest",
)
"""Columns that are constant within a cell and carried into the summary."""

_PER_PROMPT = (
    "loss",
    "first_loss",
    "found_loss",
    "true_loss",
    "noise_floor",
    "steps",
    "evaluations",
)
"""Columns that are constant within a prompt, of which the summary gives medians."""

_BITS = ("bits", "bits_high", "prior_bits", "prior_bits_high")
"""Columns about a position, of which the summary gives means."""

SHARES: dict[str, str] = {
    "top1": "correct",
    "top5": "in_top5",
    "unordered": "in_prompt",
    "published": "published_correct",
    "identifiable": "identifiable",
    "recovered": "recovered",
}
"""Shares of positions, each with `_low` and `_high`, and the column each is a share of."""

_SHARES = (*SHARES, "certified")
"""All shares of the summary: `certified` is a share of prompts."""


def summarise(recovery: Path, summary: Path, summary_csv: Path) -> None:
    """Write one row per cell and kind of position (hidden, visible), as parquet and as CSV.

    Cells whose target is a control's are left out: the page on identifiability has them.
    Shares come with 95 % intervals over prompts (`intervals.clustered_share`) and with
    what a uniform guess among the candidates would give. Known tokens are left out, and those that
    nothing visible depends on. `whole` is the share of prompts with every position of the row's
    kind right, `prompt_whole` with every position right. Losses
    are medians over prompts; `descent` is the median of loss over first loss. `around` says what
    the cell's sweeps were run around; where it is ``true`` the other tokens were known, so `top1`
    is no search's result. `recovered` is the share of hidden positions found,
    certified and identifiable around the found prompt. `bits`, `prior_bits` and their upper ends
    are means, `margin` and `noise_threshold` medians over positions. What a solver does not give
    is null.

    Raises:
        TableError: the long table cannot be read or has another schema.
    """
    table = shares_by_cell(recovery)
    for path in (summary, summary_csv):
        with new_file(path) as partial:
            if path is summary:
                table.write_parquet(partial)
            else:
                table.write_csv(partial)


def shares_by_cell(recovery: Path, which: pl.Expr = OWN_TARGET) -> pl.DataFrame:
    """Return `shares` of every cell of the long table, holding the rows of a few at a time.

    A cell's rows stand together in the table that `collect` writes. Where they do not, all rows
    are held after all.

    Args:
        recovery: the long table.
        which: the rows that are counted.

    Raises:
        TableError: the long table cannot be read or has another schema.
    """
    every = open_table(recovery)
    rows = every.filter(which).drop(_UNUSED)
    whole: list[pl.DataFrame] = []
    done: set[int] = set()
    rest = rows.head(0).collect()
    together = True
    # Slices of the file: polars' generator of batches reads ahead.
    for start in range(0, every.select(pl.len()).collect().item(), ROW_GROUP):
        batch = every.slice(start, ROW_GROUP).filter(which).drop(_UNUSED).collect()
        if batch.is_empty():
            continue
        held = pl.concat([rest, batch])
        run = held.select(pl.struct(CELL_KEYS).rle_id()).to_series()
        # The last cell may go on in the next batch.
        part, rest = held.filter(run != run[-1]), held.filter(run == run[-1])
        first = [part.select(CELL_KEYS).unique(), rest.select(CELL_KEYS).head(1)]
        names = pl.concat(first).hash_rows().to_list()
        together = done.isdisjoint(names)
        if not together:
            break
        done.update(names[:-1])
        if len(part):
            whole.append(shares(part.lazy(), CELL_KEYS))
    if not together or rest.is_empty():
        return shares(rows, CELL_KEYS)
    return pl.concat([*whole, shares(rest.lazy(), CELL_KEYS)])


_UNUSED = (
    *("true_token", "found_token", "top5_ids", "top5_tokens"),
    *("curve_steps", "curve"),
)
"""Columns of the long table that no share is made from, the widest ones."""


def shares(rows: pl.LazyFrame, by: Sequence[str]) -> pl.DataFrame:
    """Return shares, intervals, chance and costs per group and kind of position.

    Tokens that the solver was given are left out, and those that nothing visible depends on:
    neither are found by anybody.

    Args:
        rows: rows of the long table.
        by: columns that make a group, such as `CELL_KEYS`, or ``["model"]`` to pool all cells
            of a model. A text stays ONE cluster whatever is pooled: in twenty cells, or in three
            sets of prompts, it is no more than one prompt.

    Returns:
        One row per group and value of `visible`, in order of first appearance, hidden first.
    """
    group = [*by, "visible"]
    facts = [name for name in _FACTS if name not in by]
    cell = [*dict.fromkeys([*group, *CELL_KEYS]), "prompt_id"]
    verdict = pl.col("verdict")
    per_prompt = (
        rows.filter(SOUGHT)
        .with_columns(
            identifiable=pl.col("identified") == "identifiable",
            recovered=RECOVERED,
            judged=verdict.is_in(PROMPT_VERDICTS),
        )
        .group_by(cell, maintain_order=True)
        .agg(
            *(pl.col(column).sum().alias(f"{name}_found") for name, column in SHARES.items()),
            *(pl.col(column).count().alias(f"{name}_of") for name, column in SHARES.items()),
            *(pl.col(name).first() for name in ("prompt", *_PER_PROMPT, "seconds", *facts)),
            *(pl.col(name).sum() for name in _BITS),
            *(pl.col(name).count().alias(f"with_{name}") for name in _BITS),
            certified_found=((verdict == "certified") & pl.col("judged")).any().cast(pl.Int64),
            certified_of=pl.col("judged").any().cast(pl.Int64),
            positions=pl.len(),
            ids=pl.col("true_id"),
            whole=pl.when(pl.col("correct").count() == pl.len()).then(pl.col("correct").all()),
            rank_first=(pl.col("rank") == 1).sum(),
            ranked=pl.col("rank").count(),
            margins=pl.col("margin").drop_nulls(),
            thresholds=pl.col("noise_threshold").drop_nulls(),
            around=pl.col("around").max(),
        )
        .collect(engine="streaming")
    )
    # `all` over both kinds of position, joined back to each of them.
    one_prompt = [*CELL_KEYS, "prompt_id"]
    both = per_prompt.group_by(one_prompt).agg(
        prompt_whole=pl.when(pl.col("whole").count() == pl.len()).then(pl.col("whole").all()),
        prompt_ids=pl.col("ids").list.explode(),
        around=pl.col("around").max(),
    )
    per_prompt = per_prompt.drop("around").join(both, on=one_prompt, maintain_order="left")
    groups = per_prompt.group_by(group, maintain_order=True)
    plain = groups.agg(*_plain(facts)).iter_rows(named=True)
    out = [row | _intervals(part) for row, (_, part) in zip(plain, groups, strict=True)]
    table = pl.DataFrame(out, schema=_summary_schema(group, facts))
    order = table.select(by).unique(maintain_order=True).with_row_index("_order")
    return (
        table.join(order, on=list(by), maintain_order="left")
        .sort("_order", "visible", maintain_order=True)
        .drop("_order")
    )


def _summary_schema(group: Sequence[str], facts: Sequence[str]) -> dict[str, pl.DataType]:
    schema: dict[str, pl.DataType] = {name: RECOVERY_SCHEMA[name] for name in (*group, *facts)}
    schema |= {"around": pl.String()}
    schema |= {"positions": pl.Int64(), "n_prompts": pl.Int64(), "interval": pl.String()}
    for name in _SHARES:
        schema |= {f"{name}{end}": pl.Float64() for end in ("", "_low", "_high")}
    rest = (
        "chance_top1 chance_top5 chance_unordered whole prompt_whole loss first_loss found_loss "
        "true_loss noise_floor descent rank_first margin bits bits_high prior_bits prior_bits_high "
        "noise_threshold steps evaluations seconds"
    )
    return schema | {name: pl.Float64() for name in rest.split()}


def _plain(facts: Sequence[str]) -> Iterator[pl.Expr]:
    """Yield what polars summarises by itself of a group's cells and prompts."""
    for name in (*facts, "around"):  # null where the cells of a group differ
        yield pl.when(pl.col(name).n_unique() == 1).then(pl.col(name).first()).alias(name)
    yield (pl.col("loss") / pl.col("first_loss")).median().alias("descent")
    yield from (pl.col(name).median() for name in _PER_PROMPT)
    yield from (pl.col(name).mean() for name in ("whole", "prompt_whole", "seconds"))


def _intervals(part: pl.DataFrame) -> dict[str, object]:
    """Return shares of a group with their intervals, and what is weighted by positions.

    Args:
        part: one row per cell and prompt of the group.
    """
    row: dict[str, object] = {}
    clusters = part.group_by("prompt", maintain_order=True).agg(
        pl.col("positions").sum(), pl.col("^.*_(found|of)$").sum()
    )
    row["positions"], row["n_prompts"] = part["positions"].sum(), len(clusters)
    for name in _SHARES:
        judged = clusters.filter(pl.col(f"{name}_of") > 0)
        if len(judged):
            found, of = (judged[f"{name}_{end}"].to_list() for end in ("found", "of"))
            share = clustered_share(found, of)
            row |= {name: share.value, f"{name}_low": share.low, f"{name}_high": share.high}
            if name == "top1":
                row["interval"] = share.method
    weights = part["positions"]
    row |= {
        "chance_top1": _mean(1 / part["vocabulary"], weights),
        "chance_top5": _mean((5 / part["vocabulary"]).clip(upper_bound=1.0), weights),
        "chance_unordered": _mean(_chances(part), weights),
        "rank_first": _ratio(part["rank_first"], part["ranked"]),
        "margin": part["margins"].explode(empty_as_null=False).median(),
        **{name: _ratio(part[name], part[f"with_{name}"]) for name in _BITS},
        # The lower of two middle values: a threshold may be infinite, a mean with it says nothing.
        "noise_threshold": part["thresholds"].explode(empty_as_null=False).quantile(0.5, "lower"),
    }
    return row


def _chances(part: pl.DataFrame) -> pl.Series:
    pairs = zip(part["prompt_ids"].to_list(), part["vocabulary"].to_list(), strict=True)
    return pl.Series([_chance(tuple(sorted(ids)), vocabulary) for ids, vocabulary in pairs])


# The same prompt is scored in every cell of the study.
_chance = lru_cache(maxsize=4096)(chance_unordered)


def _mean(values: pl.Series, weights: pl.Series) -> float:
    return float((values * weights).sum()) / float(weights.sum())


def _ratio(total: pl.Series, count: pl.Series) -> float | None:
    trials = float(count.sum())
    return float(total.sum()) / trials if trials else None
