"""What a person may ask of one prompt: read, checked, and turned into the words of a study."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import TypeAdapter, ValidationError

from tokinfo.io.errors import InvalidError
from tokinfo.models.checkpoint import Checkpoint
from tokinfo.solvers.problem import Problem
from tokinfo.solvers.sweep import positions
from tokinfo.study.cell import Cell, CellSettings
from tokinfo.study.known import NONE, Known
from tokinfo.study.prompts import Prompt
from tokinfo.study.solvers import Solver

KINDS = ("mixture", "joint", "adam", "chapter", "sequential")
"""Kinds of solver that search."""
SOLVER: TypeAdapter[Solver] = TypeAdapter(Solver)
_PROMPT: TypeAdapter[Prompt] = TypeAdapter(Prompt)
_CELL: TypeAdapter[Cell] = TypeAdapter(Cell)


def read_prompt(prompt: Any) -> Prompt:
    """Return a text or a chat as a study has it; raises InvalidError."""
    found: Prompt = validated(_PROMPT, prompt)
    return found


def read_solver(solver: str | Mapping[str, Any] | Solver, minutes: float | None) -> Solver:
    """Return a solver by its kind or its settings; raises InvalidError."""
    if isinstance(solver, str) and solver not in (*KINDS, "sweep"):
        raise InvalidError(f"solver {solver!r}: allowed: {', '.join(KINDS)}")
    form: Any = {"kind": solver} if isinstance(solver, str) else solver
    found: Solver = validated(SOLVER, dict(form) if isinstance(form, Mapping) else form)
    if found.kind == "joint" and "sweep_found" not in found.model_fields_set:
        # They may take longer than the search.
        found = found.model_copy(update={"sweep_found": False})
    return found if minutes is None else found.model_copy(update={"minutes": minutes})


def read_mask(visible: str | None, hide: str | Sequence[str] | None) -> str:
    """Return the mask that leaves positions visible, or hides spans of text.

    >>> read_mask(None, None), read_mask(None, ["seven years", "score"])
    ('1:', 'hide="seven years","score"')
    """
    if hide is None:
        return "1:" if visible is None else visible
    if visible is not None:
        raise InvalidError("visible and hide: allowed: one of them")
    spans = [hide] if isinstance(hide, str) else list(hide)
    return "hide=" + ",".join(f'"{span}"' for span in spans)


def known_tokens(
    checkpoint: Checkpoint, known: Mapping[int, str | int] | None, length: int
) -> dict[int, int]:
    """Return ids by position; without any, of the special tokens that stand around a text."""
    tokenizer = checkpoint.tokenizer
    if known is None:
        ids = tokenizer.encode("a").ids
        special = set(checkpoint.special)
        front = next((n for n, token in enumerate(ids) if token not in special), len(ids))
        back = next((n for n, token in enumerate(ids[::-1]) if token not in special), len(ids))
        found = dict(enumerate(ids[:front]))
        return found | {length - 1 - n: ids[len(ids) - 1 - n] for n in range(back)}
    found = {}
    for position, token in known.items():
        if isinstance(token, str):
            one = tokenizer.token_to_id(token)
            ids = tokenizer.encode(token, add_special_tokens=False).ids if one is None else [one]
            if len(ids) != 1:
                raise InvalidError(f"known {position}: {token!r} is {len(ids)} tokens, not one")
            found[position] = ids[0]
        else:
            found[position] = token
    return found


def check_question(problem: Problem, solver: Solver, known: Known) -> None:
    """Refuse a prompt that leaves nothing to do."""
    layout, given = problem.layout, problem.given[0]
    length = int(layout.lengths[0])
    if known.text != NONE:
        hidden = layout.scored[0] & ~layout.visible[0]
        sought = hidden if hidden.any() else layout.scored[0]
        if not given.any():
            raise InvalidError(f"known {known.text!r}: gives none of {length} tokens")
        if not (sought & ~given).any():
            raise InvalidError(f"known {known.text!r}: leaves nothing to find")
    if solver.kind == "sweep" and not positions(problem, solver, 0):
        raise InvalidError(f"the mask hides none of {length} positions: there is nothing to sweep")


def one_cell(
    model: str, checkpoint: Checkpoint, solver: Solver, prompt: Prompt, **fields: Any
) -> CellSettings:
    """Return the cell that one prompt makes, as a model is usually run.

    Args:
        model: what messages call it.
        checkpoint: the model.
        solver: the solver.
        prompt: the prompt.
        fields: of the cell; what is left out is as usual.

    Raises:
        InvalidError: a field's value means nothing.
    """
    usual: dict[str, Any] = {"residual": True, "causal": True, "padding": "none", "seed": 0}
    usual |= {"parametrisation": "embedding", "prompts": "one", "known": NONE}
    names = {"model": model, "solver": solver.kind}
    facts = checkpoint.facts
    return CellSettings(
        cell=validated(_CELL, usual | names | fields),
        solver=solver,
        source=facts.source or model,
        state=facts.state,
        quantization=facts.quantization,
        prompts=(prompt,),
    )


def validated(adapter: TypeAdapter[Any], form: Any) -> Any:
    """Return what a form means; raises InvalidError of its first mistake, in one line."""
    try:
        return adapter.validate_python(form)
    except ValidationError as error:
        wrong = error.errors(include_url=False)[0]
        where = ".".join(map(str, wrong["loc"])) or "value"
        allowed = (wrong.get("ctx") or {}).get("allowed")
        more = f"; allowed: {allowed}" if allowed else ""
        raise InvalidError(f"{where} {wrong['input']!r}: {wrong['msg']}{more}") from None
