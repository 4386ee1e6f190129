"""What can be read of a broken study, so that its mistakes of form do not hide the others."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, get_args

from pydantic import TypeAdapter, ValidationError
from pydantic_core import ErrorDetails

from tokinfo.study.checks.draft import Draft
from tokinfo.study.fields import FORM_ALONE
from tokinfo.study.files import value_at
from tokinfo.study.grid import Grid
from tokinfo.study.mistakes import Keys
from tokinfo.study.prompts import Chat, Prompt
from tokinfo.study.study import Study

_CHAT: TypeAdapter[Chat] = TypeAdapter(Chat)
Errors = Sequence[tuple[Keys, ErrorDetails]]
"""Errors of form, each with the keys that lead to it."""


def salvage(raw: Mapping[str, Any], errors: Errors) -> Draft:
    """Return as much of a study as can be read, and note what cannot."""
    values: dict[str, Any] = {}
    broken: set[tuple[str, str]] = set()
    repaired: set[tuple[str, str, str]] = set()
    absent: set[str] = set()
    for name, info in Study.model_fields.items():
        if name == "grids":
            values[name] = list(_grids(raw.get("grids")))
            continue
        if not str(info.annotation).startswith("dict["):
            values[name] = info.get_default(call_default_factory=True)
            if info.is_required():
                values[name] = "unreadable"
            if name in raw and not any(path[:1] == (name,) for path, _ in errors):
                whole: TypeAdapter[Any] = TypeAdapter(info.rebuild_annotation())
                values[name] = whole.validate_python(raw[name], context=FORM_ALONE)
            continue
        values[name] = {}
        entries = raw.get(name)
        if not isinstance(entries, Mapping):
            if entries is not None or info.is_required():
                absent.add(name)
            continue
        one: TypeAdapter[Any] = TypeAdapter(get_args(info.annotation)[1])
        for key, entry in entries.items():
            if name == "prompts" and isinstance(entry, list):
                values[name][str(key)] = list(map(_prompt, entry))
                continue
            here = [(path, error) for path, error in errors if path[:2] == (name, key)]
            found, changed = _entry(one, entry, here)
            if found is None:
                broken.add((name, str(key)))
            else:
                values[name][str(key)] = found
            repaired |= {(name, str(key), part) for part in changed}
    return Draft(Study.model_construct(**values), broken, repaired, absent, complete=False)


def _entry(adapter: TypeAdapter[Any], entry: object, errors: Errors) -> tuple[Any, set[str]]:
    """Return an entry without what is wrong in it (None if that leaves none), and what changed.

    That is the keys below which a value was left to its default. Unknown keys are taken out
    too, which changes nothing.
    """
    entry = copy.deepcopy(entry)
    changed: set[str] = set()
    # The deepest first: a part that is gone cannot be looked into.
    for path, error in sorted(errors, key=lambda item: len(item[0]), reverse=True):
        parent = value_at(entry, path[2:-1])
        if len(path) > 2 and isinstance(parent, dict):
            parent.pop(path[-1], None)
            if error["type"] != "extra_forbidden":
                changed.add(str(path[2]))
    try:
        return adapter.validate_python(entry, context=FORM_ALONE), changed
    except ValidationError:
        return None, changed


def _grids(raw: object) -> Iterator[Grid]:
    """Yield every grid, right or wrong, with each value in the place where it was written."""
    for grid in raw if isinstance(raw, list) else []:
        axes: dict[str, Any] = {}
        for name, info in Grid.model_fields.items():
            given = grid.get(name) if isinstance(grid, Mapping) else None
            default = [] if info.is_required() else info.get_default()
            axes[name] = default
            if given and isinstance(given, list):
                kept = name in ("residual", "causal", "seeds")
                axes[name] = [value if kept else _text(value) for value in given]
        yield Grid.model_construct(**axes)


def _prompt(value: object) -> Prompt:
    """Return a prompt, blank where it cannot be read."""
    try:
        return _text(value) if isinstance(value, str) else _CHAT.validate_python(value)
    except ValidationError:
        return ""


def _text(value: object) -> str:
    """Return a value as text that can be encoded, whatever it is."""
    return str(value).encode("utf-8", "replace").decode()
