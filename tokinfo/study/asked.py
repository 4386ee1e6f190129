"""What a person writes of one prompt, read as a study's words."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import TypeAdapter, ValidationError

from tokinfo.io.errors import InvalidError
from tokinfo.study.fields import Strict
from tokinfo.study.mistakes import suggestion
from tokinfo.study.prompts import Prompt
from tokinfo.study.solvers import Solver

KINDS = ("mixture", "joint", "adam", "chapter", "sequential")
"""Kinds of solver that search."""
SOLVER: TypeAdapter[Solver] = TypeAdapter(Solver)
_PROMPT: TypeAdapter[Prompt] = TypeAdapter(Prompt)


def read_prompt(prompt: Any) -> Prompt:
    """Return a text or a chat as a study has it; raises InvalidError."""
    found: Prompt = validated(_PROMPT, prompt)
    return found


def read_solver(solver: str | Mapping[str, Any] | Solver, minutes: float | None) -> Solver:
    """Return a solver by its kind or its settings; raises InvalidError."""
    if isinstance(solver, str) and solver not in (*KINDS, "sweep"):
        close = suggestion(solver, KINDS)
        raise InvalidError(f"solver {solver!r}{close}: allowed: {', '.join(KINDS)}")
    form: Any = {"kind": solver} if isinstance(solver, str) else solver
    if minutes is not None:
        form = form.model_dump(exclude_unset=True) if isinstance(form, Strict) else dict(form)
        form["minutes"] = minutes
    found: Solver = validated(SOLVER, dict(form) if isinstance(form, Mapping) else form)
    if found.kind == "joint" and "sweep_found" not in found.model_fields_set:
        # They may take longer than the search.
        found = found.model_copy(update={"sweep_found": False})
    return found


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
    return "hide=" + ",".join(json.dumps(span, ensure_ascii=False) for span in spans)


def validated(adapter: TypeAdapter[Any], form: Any) -> Any:
    """Return what a form means; raises InvalidError of its first mistake, in one line."""
    try:
        return adapter.validate_python(form)
    except ValidationError as error:
        wrong = error.errors(include_url=False)[0]
        where = ".".join(map(str, wrong["loc"])) or "value"
        allowed = (wrong.get("ctx") or {}).get("allowed")
        more = f"; allowed: {allowed}" if allowed else ""
        if wrong["type"] == "literal_error":
            listed = re.findall(r"'([^']*)'", wrong["ctx"]["expected"])
            more += suggestion(wrong["input"], listed)
        raise InvalidError(f"{where} {wrong['input']!r}: {wrong['msg']}{more}") from None
