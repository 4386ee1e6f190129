"""Whether a study's answers to the chapter's rows are answers: the row's model, solver and prompt.

An entry that is not marked as a stand-in has to be what the row is about, as far as a study says
so; the cells that follow from it are checked as those of any grid.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING

from tokinfo.study.claims import Claim, ClaimedModel, Claims, load_claims
from tokinfo.study.mistakes import MISSING, Path, Problem, listing, suggestion
from tokinfo.study.solvers import SWEEPING, ChapterSolver
from tokinfo.study.sources import MixerSource, Source, TransformerSource
from tokinfo.study.study import Grid, Replication, Study

if TYPE_CHECKING:
    from tokinfo.study.checks.draft import Draft

_NAMED = (
    ("models", "models", "model"),
    ("prompts", "prompts", "prompt set"),
    ("passages", "passages", "set of passages"),
    ("solvers", "solvers", "solver"),
    ("identify", "solvers", "solver"),
)
DESCENTS = ("adam", "chapter")


def problems(draft: Draft, check_grids: Callable[[Study], Iterable[Problem]]) -> Iterator[Problem]:
    """Yield everything about `claims` and `run` that does not fit.

    Args:
        draft: the study, as far as it could be read.
        check_grids: the checks of a study's grids and of the files they need.
    """
    study = draft.study
    known = draft.names("claims")
    for place, name in enumerate(study.run or []):
        if name not in known:
            yield Problem(
                ("run", place),
                name,
                f"unknown claims entry{suggestion(name, known)}",
                listing(known, "none here"),
            )
    claims = load_claims()
    grids: list[Grid] = []
    origins: list[tuple[str, int]] = []
    answered: dict[str, str] = {}
    for name, entry in study.claims.items():
        found = [*_names(draft, name, entry, claims)]
        found = found or [*_kinds(study, name, entry)]
        if not found and _readable(draft, entry):
            found = [*_rows(study, name, entry, claims, answered)]
            if not found and study.runs(name):
                for place, row in enumerate(entry.rows):
                    published, others = study.claim_grids(entry, claims.rows[row])
                    asked = [*published, *others]
                    grids += asked
                    origins += [(name, place)] * len(asked)
        yield from found
    told = set()
    for problem in check_grids(study.model_copy(update={"grids": grids, "claims": {}})):
        if problem.path[0] != "grids":
            yield problem
        elif isinstance(index := problem.path[1], int):
            entry_name, place = origins[index]
            row = study.claims[entry_name].rows[place]
            message = f"{problem.path[2]} {problem.value!r} {problem.message}"
            # Once a row, whichever of its models and solvers it is about.
            if (entry_name, place, problem.path[2]) not in told:
                told.add((entry_name, place, problem.path[2]))
                path = ("claims", entry_name, "rows", place)
                yield Problem(path, row, message, problem.allowed)


def _names(draft: Draft, name: str, entry: Replication, claims: Claims) -> Iterator[Problem]:
    for place, row in enumerate(entry.rows):
        if row not in claims.rows:
            message = f"unknown row{suggestion(row, list(claims.rows))}"
            allowed = "an id in tokinfo/data/claims.yaml"
            yield Problem(("claims", name, "rows", place), row, message, allowed)
    named: list[tuple[Path, str, str, str]] = [
        (("claims", name, axis, place), value, section, what)
        for axis, section, what in _NAMED
        for place, value in enumerate(getattr(entry, axis))
    ]
    named.append((("claims", name, "published"), entry.published, "solvers", "solver"))
    for path, value, section, what in named:
        known = draft.names(section)
        if section not in draft.sections and value not in known:
            yield Problem(path, value, f"unknown {what}{suggestion(value, known)}", listing(known))
    for axis in ("rows", "models", "prompts", "passages", "solvers", "identify", "seeds"):
        values = getattr(entry, axis)
        for place, value in enumerate(values):
            if (first := values.index(value)) != place:
                again = Problem(("claims", name, axis, first), MISSING, "").key
                path = ("claims", name, axis, place)
                yield Problem(path, value, f"repeats {again}", "each value once")


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


def _kinds(study: Study, name: str, entry: Replication) -> Iterator[Problem]:
    wanted: list[tuple[Path, str, tuple[str, ...]]] = [
        (("published",), entry.published, ("chapter",)),
        *((("solvers", place), one, DESCENTS) for place, one in enumerate(entry.solvers)),
        *((("identify", place), one, SWEEPING) for place, one in enumerate(entry.identify)),
    ]
    for key, solver, kinds in wanted:
        known = study.solvers.get(solver)
        if known is not None and known.kind not in kinds:
            fitting = [n for n, other in study.solvers.items() if other.kind in kinds]
            yield Problem(
                ("claims", name, *key),
                solver,
                f"is of kind {known.kind}",
                f"solvers of kind {' or '.join(kinds)}: {listing(fitting, 'none here')}",
            )


def _rows(
    study: Study, name: str, entry: Replication, claims: Claims, answered: dict[str, str]
) -> Iterator[Problem]:
    path: Path = ("claims", name)
    published = study.solvers[entry.published]
    assert isinstance(published, ChapterSolver)
    if not entry.stand_in:
        if entry.padding is not None:
            message = "is only another one than the rows' own in a stand-in"
            yield Problem((*path, "padding"), entry.padding, message, "null, or a `stand_in:`")
        if entry.depth == "same":
            message = "says where a stand-in is read; the rows' own model is anyway"
            yield Problem((*path, "depth"), entry.depth, message, "relative, or a `stand_in:`")
    for place, row in enumerate(entry.rows):
        where, claim = (*path, "rows", place), claims.rows[row]
        if not entry.stand_in and (other := answered.setdefault(row, name)) != name:
            message = f"is answered by claims.{other} already"
            yield Problem(where, row, message, "one entry a row, besides stand-ins")
        if not any(claim.prompt in study.prompts[one] for one in entry.prompts):
            yield Problem(
                (*path, "prompts"),
                entry.prompts,
                f"have no prompt of row {row}",
                f"a set with {claim.prompt!r}",
            )
        if published.decode.restricted_to != claim.restricted_to:
            message = f"decodes among other tokens than row {row}"
            allowed = f"decode.restricted_to: {claim.restricted_to!r}"
            yield Problem((*path, "published"), entry.published, message, allowed)
        if entry.stand_in:
            continue
        own = claims.models[claim.model]
        for setting, value, right in _protocol(published, own):
            message = f"has {setting} {value:g}; row {row} had another"
            yield Problem((*path, "published"), entry.published, message, right)
        for index, model in enumerate(entry.models):
            for what, has, needs in _unlike(study, model, claim, own):
                yield Problem(
                    (*path, "models", index),
                    model,
                    f"has {what} {has}, and the model of row {row} {needs}",
                    "that model, or a `stand_in:` that says what stands in for it",
                )


def _protocol(solver: ChapterSolver, own: ClaimedModel) -> Iterator[tuple[str, float, str]]:
    """Yield what a solver has otherwise than the published protocol."""
    plain = ChapterSolver()
    if solver.learning_rate != own.learning_rate:
        yield "learning_rate", solver.learning_rate, f"{own.learning_rate:g}"
    if not 500 <= solver.steps <= 2000:
        yield "steps", solver.steps, "500 (up to 2000 for Llama)"
    for what in ("final_share", "start_scale"):
        if getattr(solver, what) != getattr(plain, what):
            yield what, getattr(solver, what), f"{getattr(plain, what):g}"


def _unlike(
    study: Study, name: str, claim: Claim, own: ClaimedModel
) -> Iterator[tuple[str, object, object]]:
    """Yield what a model has otherwise than the one that a row is about, as far as is known."""
    model, source = study.models[name], study.source_of(name)
    known = {
        "state": (model.state, claim.state),
        "quantization": (model.quantization, claim.quantization),
        **{what: (has, getattr(own, what)) for what, has in _facts(source).items()},
    }
    for what, (has, needs) in known.items():
        if has is not None and needs is not None and has != needs:
            yield what, has, needs


def _facts(source: Source) -> dict[str, object]:
    if isinstance(source, MixerSource):
        return {
            "family": f"mixer-{source.form}",
            "d_model": source.d_model,
            "blocks": source.blocks,
            "n_ctx": source.n_ctx,
        }
    if isinstance(source, TransformerSource):
        return {
            "family": "llama",
            "d_model": source.d_model,
            "blocks": source.blocks,
            "heads": source.heads,
            "n_ctx": source.n_ctx,
        }
    config = source.config if isinstance(source.config, dict) else {}
    return {
        "family": config.get("model_type"),
        "d_model": config.get("hidden_size"),
        "blocks": source.blocks,
        "heads": config.get("num_attention_heads"),
    }
