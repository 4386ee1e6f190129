"""Columns of the long table: what one cell writes, and what every reader may rely on.

Polars only: the cell that writes these rows and the tables and figures that read them share
this one statement, and neither pulls in torch by it.
"""

from __future__ import annotations

from collections.abc import Mapping

import polars as pl

CELL_KEYS: tuple[str, ...] = (
    "model",
    "site",
    "residual",
    "causal",
    "padding",
    "mask",
    "metric",
    "parametrisation",
    "solver",
    "prompts",
    "target",
    "known",
    "seed",
)
"""The columns that name a cell: the fields of `tokinfo.study.study.Cell`."""

RECOVERY_COLUMNS: dict[str, tuple[pl.DataType, str]] = {
    # the cell
    "model": (pl.String(), "name of the model in the study"),
    "source": (pl.String(), "name of its source in the study"),
    "family": (pl.String(), "mixer-flat, mixer-expanded, mixer-parallel, llama, ..."),
    "state": (pl.String(), "trained or untrained"),
    "quantization": (pl.String(), "float32, bfloat16, float16, int8 or nf4"),
    "outlier_threshold": (
        pl.Float64(),
        "int8: columns with an input as large as this are multiplied in 16 bits; null: not int8",
    ),
    "width": (pl.Int64(), "width of an embedding (hidden size)"),
    "training_share": (
        pl.Float64(),
        "share of its training steps that a model trained here has had; null: untrained, or "
        "trained elsewhere",
    ),
    "training_tokens": (pl.Int64(), "tokens seen in them; null as above"),
    "held_out_loss": (pl.Float64(), "its loss on held-out text (nats per token); null as above"),
    "weights_note": (pl.String(), "how the weights differ from what the name suggests, or empty"),
    "site": (pl.String(), "where activations are read, resolved (block.8, never block.last)"),
    "block": (pl.Int64(), "number of the site's block, 0 for the embedding"),
    "depth": (pl.Int64(), "blocks of the full model"),
    "residual": (pl.Boolean(), "false: without the residual around self-attention"),
    "causal": (pl.Boolean(), "false: attention without a causal mask"),
    "padding": (pl.String(), "none, or n_ctx where prompts are padded to it"),
    "mask": (
        pl.String(),
        "Python slices over the positions that stay visible, or hide= and roles whose contents are "
        "hidden, or texts in quotes that are",
    ),
    "metric": (pl.String(), "l1, l2, cosine or l1+cosine"),
    "parametrisation": (pl.String(), "embedding, vocabulary or mixture"),
    "solver": (pl.String(), "name of the solver in the study"),
    "kind": (pl.String(), "its kind: chapter, adam, sequential, sweep, joint or mixture"),
    "seed": (pl.Int64(), "seed of the starts"),
    "prompts": (pl.String(), "name of the set of prompts"),
    "target": (
        pl.String(),
        "what is to be explained: own, or a control's: shuffled or of:MODEL; shares leave out all "
        "but own",
    ),
    "known": (
        pl.String(),
        "positions whose token the solver was given: none, visible or a Python slice",
    ),
    "noise": (
        pl.Float64(),
        "ratio to the signal of gaussian noise that was added to the visible activations; 0: none. "
        "noise_floor holds it",
    ),
    # the position
    "prompt_id": (pl.Int64(), "index of the prompt in its set, from 0"),
    "prompt": (pl.String(), "the prompt's text; of a chat, as its template has it"),
    "position": (pl.Int64(), "index of the token in its prompt, from 0"),
    "visible": (pl.Boolean(), "whether the solver saw this position's activations"),
    "role": (
        pl.String(),
        "of chats, the role of the message whose content is here; null: written by the template",
    ),
    "given": (
        pl.Boolean(),
        "whether the solver was given this position's token; shares leave such rows out",
    ),
    "independent": (
        pl.Boolean(),
        "whether nothing visible depends on this token, as on one right of every visible position; "
        "shares leave such rows out",
    ),
    "true_id": (pl.Int64(), "id of the prompt's token here"),
    "true_token": (pl.String(), "its text"),
    "found_id": (
        pl.Int64(),
        "id of the solver's token here; null: a sweep around the true prompt did not visit this "
        "position",
    ),
    "found_token": (pl.String(), "its text"),
    "top5_ids": (pl.List(pl.Int64()), "ids of the solver's five best tokens, best first"),
    "top5_tokens": (pl.List(pl.String()), "their texts"),
    "correct": (
        pl.Boolean(),
        "found_id equals true_id (top-1); null, as the next two and published_correct: nothing was "
        "sought here, because the token was given or because a sweep did not visit it",
    ),
    "in_top5": (pl.Boolean(), "true_id is among top5_ids"),
    "in_prompt": (
        pl.Boolean(),
        "unordered: true_id was found here or elsewhere in the prompt, each found token once, and "
        "first for a visible token",
    ),
    "reference_id": (pl.Int64(), "token re-decoded from the noisy embedding (chapter solver)"),
    "published_correct": (pl.Boolean(), "reference_id is among top5_ids (chapter solver)"),
    # the prompt, repeated at each of its positions
    "loss": (
        pl.Float64(),
        "distance at the end of the search, in the metric's units; null, as the next two and "
        "verdict: a sweep around the true prompt, which finds no prompt",
    ),
    "first_loss": (pl.Float64(), "distance at its start"),
    "found_loss": (pl.Float64(), "distance of the found TOKENS' activations"),
    "true_loss": (pl.Float64(), "distance of the true prompt itself (own target: rounding only)"),
    "noise_floor": (
        pl.Float64(),
        "largest change of the true prompt's activations when they are computed again",
    ),
    "position_loss": (
        pl.Float64(),
        "2-norm by which the found tokens' activations are off here; null: hidden",
    ),
    "position_floor": (
        pl.Float64(),
        "largest such change here when the true prompt is computed again; null: hidden",
    ),
    "prompt_exact": (
        pl.Boolean(),
        "whether every token in question was found in its place. In question are the hidden tokens "
        "that were not given and on which something visible depends; where nothing is hidden, all "
        "that were not given. Null, as the next two: nothing was searched, or none is in question",
    ),
    "token_f1": (
        pl.Float64(),
        "F1 of the found tokens as a bag: the share of the tokens in question that were found in "
        "any of their places",
    ),
    "edit_similarity": (
        pl.Float64(),
        "1 - d / n for n tokens in question, with d the insertions, deletions and substitutions "
        "(Levenshtein) between them and the found ones, in order",
    ),
    "verdict": (
        pl.String(),
        "certified (found_loss within noise_floor, position_loss within position_floor "
        "everywhere), search failure, undecided, or unexplained (controls); about the prompt",
    ),
    "around": (pl.String(), "prompt that was swept around: true or found; null: nothing swept"),
    "identified": (
        pl.String(),
        "identifiable, ambiguous or excluded (position), the other tokens known; null: not swept",
    ),
    "rank": (pl.Int64(), "rank of the true token among all candidates here, from 1"),
    "margin": (pl.Float64(), "best wrong candidate's distance minus the true token's"),
    "candidates": (
        pl.Int64(),
        "candidates that explain the activations: within twice the noise floor (cosines: four "
        "times)",
    ),
    "claimed_id": (
        pl.Int64(),
        "the only such candidate, right or wrong; null: several or none, or the prompt swept "
        "around is a found one that is not certified",
    ),
    "bits": (
        pl.Float64(),
        "information on the token, the others known, lower bound: log2 V - log2 |S|; null: no "
        "candidate explains the activations, or as claimed_id",
    ),
    "bits_high": (pl.Float64(), "its upper bound (only exact ties with the best left open)"),
    "prior_bits": (pl.Float64(), "as bits, under the unigram prior; null: the study names none"),
    "prior_bits_high": (pl.Float64(), "as bits_high, under the unigram prior"),
    "prior_entropy": (pl.Float64(), "bits a token holds on average under the unigram prior"),
    "noise_threshold": (
        pl.Float64(),
        "noise-to-signal ratio, at each position by itself, at which the true token stops being "
        "the best (median of draws)",
    ),
    "carried": (
        pl.List(pl.Float64()),
        "what all other tokens at this position change at each visible one, in order, at least: a "
        "share of the norm of the activations there; null: they do not depend on it",
    ),
    "carried_floor": (
        pl.List(pl.Float64()),
        "the noise floors of the same positions, as shares of the same norms",
    ),
    "noise_step": (
        pl.Float64(),
        "factor between the ratios tried, by which noise_threshold may be too high",
    ),
    "restart": (pl.Int64(), "which start was kept, from 0"),
    "restarts": (pl.Int64(), "number of starts"),
    "steps": (pl.Int64(), "steps of the kept start; of `mixture` solvers, rounds"),
    "path": (
        pl.String(),
        "by what the prompt was found: by mixtures of tokens, `convex` (behind the first block), "
        "`annealing` (behind later ones) or `descent` (in other models), or by the `moves` of a "
        "`joint` solver; null: of other solvers",
    ),
    "stopped": (
        pl.String(),
        "why a search or sweep was stopped before its end: `minutes` (its time was up) or "
        "`interrupted`; null: it was not, or the prompt was done by then",
    ),
    "curve_steps": (pl.List(pl.Int64()), "steps of the descent at which its loss was noted"),
    "curve": (pl.List(pl.Float64()), "the kept start's loss there; null: nothing descended"),
    "seconds": (pl.Float64(), "solver's wall time of this prompt: its batch's, shared equally"),
    "evaluations": (pl.Int64(), "forward passes spent on this prompt, all starts together"),
    # the run
    "device": (pl.String(), "cpu or cuda, with the device's name"),
    "dtype": (pl.String(), "what activations are computed in (the model's compute_dtype)"),
    "vocabulary": (pl.Int64(), "number of candidate tokens; chance is one over it"),
    "model_digest": (pl.String(), "digest of the checkpoint"),
    "code_digest": (pl.String(), "digest of the code that made the row"),
}
"""Type and meaning of each column of `recovery.parquet`, in file order."""

RECOVERY_SCHEMA: pl.Schema = pl.Schema(
    {name: dtype for name, (dtype, _) in RECOVERY_COLUMNS.items()}
)
"""Exact schema of a cell's parquet file and of `recovery.parquet`."""

PROMPT_VERDICTS = ("certified", "search failure", "undecided")
"""Verdicts on a found prompt: it explains the activations to within the floor, it is worse than
the true prompt by more than the floor, or neither. Under a control's target there is only
`certified` and, in place of the others, `unexplained`: it may be that nothing is to be found."""

POSITION_VERDICTS = ("identifiable", "ambiguous", "excluded")
"""Verdicts on one position: only the true token explains it, several do, the true one does not."""

METADATA_KEY = "tokinfo"
"""Key of the parquet metadata that holds versions and settings as JSON."""


def schema_mismatch(schema: Mapping[str, pl.DataType]) -> str | None:
    """Return what is wrong with a cell's schema in one line, or None.

    Column order does not matter; a missing, extra or differently typed column does.
    """
    missing = [name for name in RECOVERY_SCHEMA if name not in schema]
    extra = [name for name in schema if name not in RECOVERY_SCHEMA]
    wrong = [
        f"{name} is {schema[name]}, not {dtype}"
        for name, dtype in RECOVERY_SCHEMA.items()
        if name in schema and schema[name] != dtype
    ]
    parts = [
        f"{title}: {', '.join(names)}"
        for title, names in (("missing", missing), ("unknown", extra), ("type", wrong))
        if names
    ]
    return "; ".join(parts) or None
