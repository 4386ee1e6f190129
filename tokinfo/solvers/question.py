"""One prompt as a cell: the settings that are usual, and what leaves nothing to do."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import TypeAdapter

from tokinfo.io.errors import InvalidError
from tokinfo.models.checkpoint import Checkpoint
from tokinfo.solvers.problem import Problem
from tokinfo.solvers.sweep import positions
from tokinfo.study.asked import validated
from tokinfo.study.cell import Cell, CellSettings
from tokinfo.study.known import NONE, Known
from tokinfo.study.prompts import Prompt
from tokinfo.study.solvers import Solver

_CELL: TypeAdapter[Cell] = TypeAdapter(Cell)


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
