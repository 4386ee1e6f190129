"""Whether a study's entries test the chapter's rows: with the row's model, solver and prompt.

An entry that is not marked as a stand-in must have what the row is about, as far as a study says
what it has; its cells are checked as those of any grid.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from tokinfo.study.checks.draft import Draft
from tokinfo.study.checks.references import repeated, unknown
from tokinfo.study.claims import Claim, ClaimedModel, Claims, load_claims
from tokinfo.study.grid import Grid
from tokinfo.study.mistakes import Keys, Mistake, listing, suggestion
from tokinfo.study.solvers import SWEEPING, ChapterSolver
from tokinfo.study.sources import Built, MixerSource, Source
from tokinfo.study.study import Replication, Study

_NAMED = (
    ("models", "models", "model"),
    ("prompts", "prompts", "prompt set"),
    ("passages", "passages", "set of passages"),
    ("solvers", "solvers", "solver"),
    ("identify", "solvers", "solver"),
)
DESCENTS = ("adam", "chapter")

RowGrid = tuple[Keys, str, Grid]
"""The keys that lead to a row in an entry, its id, and a grid whose cells test it."""


def examine(draft: Draft) -> tuple[list[Mistake], list[RowGrid]]:
    """Return what is wrong with `claims` and `run`, and the grids of the entries that are right."""
    study = draft.study
    found: list[Mistake] = []
    for place, name in enumerate(study.run or []):
        found += unknown(draft, ("run", place), name, "claims entry", "claims")
    claims = load_claims()
    row_grids: list[RowGrid] = []
    tested: dict[str, str] = {}
    for name, entry in study.claims.items():
        wrong = [*_names(draft, name, entry, claims)] or [*_kinds(study, name, entry)]
        if not wrong and _readable(draft, entry):
            wrong = [*_rows(study, name, entry, claims, tested)]
            if not wrong and study.runs(name):
                for place, row in enumerate(entry.rows):
                    published, others = study.claim_grids(entry, claims.rows[row])
                    path = ("claims", name, "rows", place)
                    row_grids += [(path, row, grid) for grid in (*published, *others)]
        found += wrong
    return found, row_grids


def of_rows(row_grids: Sequence[RowGrid], mistakes: Iterable[Mistake]) -> Iterator[Mistake]:
    """Yield mistakes of a study of these grids alone as mistakes of their rows."""
    seen = set()
    for mistake in mistakes:
        if mistake.path[0] != "grids":
            yield mistake
        elif isinstance(index := mistake.path[1], int):
            path, row, _ = row_grids[index]
            axis = mistake.path[2]
            # Once a row, whichever of its models and solvers it is about.
            if (path, axis) not in seen:
                seen.add((path, axis))
                message = f"{axis} {mistake.value!r} {mistake.message}"
                yield Mistake(path, row, message, mistake.allowed)


def _names(draft: Draft, name: str, entry: Replication, claims: Claims) -> Iterator[Mistake]:
    for place, row in enumerate(entry.rows):
        if row not in claims.rows:
            message = f"unknown row{suggestion(row, list(claims.rows))}"
            allowed = "an id in tokinfo/data/claims.yaml"
            yield Mistake(("claims", name, "rows", place), row, message, allowed)
    for axis, section, what in _NAMED:
        for place, value in enumerate(getattr(entry, axis)):
            yield from unknown(draft, ("claims", name, axis, place), value, what, section)
    where = ("claims", name, "published")
    yield from unknown(draft, where, entry.published, "solver", "solvers")
    for axis in ("rows", "models", "prompts", "passages", "solvers", "identify", "seeds"):
        yield from repeated(("claims", name, axis), getattr(entry, axis))


def _readable(draft: Draft, entry: Replication) -> bool:
    """Return whether all that an entry names was read as it was written."""
    solvers = (entry.published, *entry.solvers, *entry.identify)
    return (
        all(draft.source(model) is not None for model in entry.models)
        and all(name in draft.study.solvers for name in solvers)
        and all(name in draft.study.prompts for name in entry.prompts)
        and all(name in draft.study.passages for name in entry.passages)
        and all(
            draft.sound("sources", draft.study.models[model].source, key)
            for model in entry.models
            for key in ("blocks", "d_model", "form", "n_ctx", "heads")
        )
    )


def _kinds(study: Study, name: str, entry: Replication) -> Iterator[Mistake]:
    wanted: list[tuple[Keys, str, tuple[str, ...]]] = [
        (("published",), entry.published, ("chapter",)),
        *((("solvers", place), one, DESCENTS) for place, one in enumerate(entry.solvers)),
        *((("identify", place), one, SWEEPING) for place, one in enumerate(entry.identify)),
    ]
    for key, solver, kinds in wanted:
        settings = study.solvers.get(solver)
        if settings is not None and settings.kind not in kinds:
            fitting = [n for n, other in study.solvers.items() if other.kind in kinds]
            yield Mistake(
                ("claims", name, *key),
                solver,
                f"is of kind {settings.kind}",
                f"solvers of kind {' or '.join(kinds)}: {listing(fitting, 'none here')}",
            )


def _rows(
    study: Study, name: str, entry: Replication, claims: Claims, tested: dict[str, str]
) -> Iterator[Mistake]:
    path: Keys = ("claims", name)
    published = study.solvers[entry.published]
    assert isinstance(published, ChapterSolver)
    for place, row in enumerate(entry.rows):
        where, claim = (*path, "rows", place), claims.rows[row]
        if not entry.stand_in and (other := tested.setdefault(row, name)) != name:
            message = f"is tested by claims.{other} already"
            yield Mistake(where, row, message, "one entry a row, besides stand-ins")
        if not any(claim.prompt in study.prompts[one] for one in entry.prompts):
            yield Mistake(
                (*path, "prompts"),
                entry.prompts,
                f"have no prompt of row {row}",
                f"a set with {claim.prompt!r}",
            )
        if published.decode.restricted_to != claim.restricted_to:
            message = f"decodes among other tokens than row {row}"
            allowed = f"decode.restricted_to: {claim.restricted_to!r}"
            yield Mistake((*path, "published"), entry.published, message, allowed)
        if entry.stand_in:
            continue
        claimed = claims.models[claim.model]
        for setting, value, right in _protocol(published, claimed):
            message = f"has {setting} {value:g}; row {row} had another"
            yield Mistake((*path, "published"), entry.published, message, right)
        for index, model in enumerate(entry.models):
            for what, has, needs in _unlike(study, model, claim, claimed):
                yield Mistake(
                    (*path, "models", index),
                    model,
                    f"has {what} {has}, and the model of row {row} {needs}",
                    "that model, or a `stand_in:` that says what stands in for it",
                )


def _protocol(solver: ChapterSolver, claimed: ClaimedModel) -> Iterator[tuple[str, float, str]]:
    """Yield what a solver has otherwise than the published protocol."""
    plain = ChapterSolver()
    if solver.learning_rate != claimed.learning_rate:
        yield "learning_rate", solver.learning_rate, f"{claimed.learning_rate:g}"
    if not 500 <= solver.steps <= 2000:
        yield "steps", solver.steps, "500 (up to 2000 for Llama)"
    for what in ("final_share", "start_scale"):
        if getattr(solver, what) != getattr(plain, what):
            yield what, getattr(solver, what), f"{getattr(plain, what):g}"


def _unlike(
    study: Study, name: str, claim: Claim, claimed: ClaimedModel
) -> Iterator[tuple[str, object, object]]:
    """Yield where a model differs from the one that a row is about, as far as the study says."""
    model, source = study.models[name], study.source_of(name)
    compared = {
        "state": (model.state, claim.state),
        "quantization": (model.quantization, claim.quantization),
        **{what: (has, getattr(claimed, what)) for what, has in _facts(source).items()},
    }
    for what, (has, needs) in compared.items():
        if has is not None and needs is not None and has != needs:
            yield what, has, needs


def _facts(source: Source) -> dict[str, object]:
    if isinstance(source, Built):
        return {
            "family": f"mixer-{source.form}" if isinstance(source, MixerSource) else "llama",
            "d_model": source.d_model,
            "blocks": source.blocks,
            "heads": getattr(source, "heads", None),
            "n_ctx": source.n_ctx,
        }
    config = source.config if isinstance(source.config, dict) else {}
    return {
        "family": config.get("model_type"),
        "d_model": config.get("hidden_size"),
        "blocks": source.blocks,
        "heads": config.get("num_attention_heads"),
    }
