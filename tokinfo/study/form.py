"""Mistakes in the form of a study: what pydantic finds, by its keys and in words of its schema."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import replace
from datetime import date
from functools import cache
from typing import Any

from pydantic_core import ErrorDetails

from tokinfo.study.fields import MISFIT
from tokinfo.study.files import value_at
from tokinfo.study.mistakes import MISSING, Keys, Mistake, listing, suggestion
from tokinfo.study.study import Study

_NOT_TEXT = "should be a text"
_MESSAGES = {
    "string_pattern_mismatch": "is not of the right form",
    "string_type": _NOT_TEXT,
    "string_unicode": "has characters that are not text (lone surrogates)",
    "dict_type": "must be a mapping of keys to values",
    "model_type": "must be a mapping of keys to values",
    "model_attributes_type": "must be a mapping of keys to values",
    "list_type": "must be a list",
    "missing": "is missing",
    "too_short": "is empty",
    "string_too_short": "is empty",
    "literal_error": "is not one of the choices",
}


def path_of(error: ErrorDetails, raw: Mapping[str, Any]) -> Keys:
    """Return the keys that lead to an error, without what pydantic adds to them.

    That is the tag of a union after the entry's name or a prompt's index, and `[key]` for a key.
    """
    path = list(error["loc"])
    if path[-1] == "[key]":
        path.pop()
    if len(path) > 2 and "oneOf" in _node(path[:2]):
        entry = value_at(raw, tuple(path[:2]))
        if isinstance(entry, Mapping) and entry.get("kind") == path[2]:
            del path[2]
    if len(path) > 3 and "oneOf" in _node(path[:3]):
        del path[3]
    return tuple(path)


def mistake(path: Keys, error: ErrorDetails) -> Mistake:
    """Return an error as a mistake, in words that a reader of a study knows."""
    kind, value, loc = error["type"], error["input"], error["loc"]
    if kind.startswith("union_tag"):
        kinds = list(_node(loc)["discriminator"]["mapping"])
        if kind == "union_tag_not_found":
            return Mistake((*path, "kind"), MISSING, "is missing", listing(kinds))
        hint = suggestion(tag := error["ctx"]["tag"], kinds)
        return Mistake((*path, "kind"), tag, f"unknown kind{hint}", listing(kinds))
    if loc[-1] == "[key]":
        value = MISSING
    if kind == MISFIT:
        return Mistake(path, value, error["msg"], error["ctx"]["allowed"])
    if loc[-1] == "[key]":
        allowed = (
            "lower-case letters, digits, dots and hyphens, at most 64, a letter or digit first"
        )
        return Mistake(path, value, "the name is not allowed", allowed)
    if kind == "extra_forbidden":
        keys = list(_node(loc[:-1]).get("properties", {}))
        hint = suggestion(path[-1], keys)
        return Mistake(path, value, f"unknown key{hint}", listing(keys, "no key"))
    message = _MESSAGES.get(kind) or error["msg"].removeprefix("Input ")
    if kind == "string_type" and isinstance(value, int | float):
        message += "; write it in quotes"
    if kind == "list_type" and loc[-1] == "array" and isinstance(value, Mapping):
        message = f"{_NOT_TEXT} or a list of messages"
    if kind == "missing":
        value = MISSING
    if kind == "literal_error":
        message += suggestion(value, choices(error))
    return Mistake(path, value, message[:1].lower() + message[1:], _allowed(loc))


def choices(error: ErrorDetails) -> list[str]:
    """Return the texts that an error of a choice says are expected."""
    return re.findall(r"'([^']*)'", error["ctx"]["expected"])


def unquoted(mistake: Mistake, word: str) -> Mistake:
    """Return a mistake with what YAML made of a word that should be a text, and how to write it.

    Args:
        mistake: of any kind; others stay as they are.
        word: what stands in the file, without quotes; empty: it is not known.
    """
    if not word or not mistake.message.startswith(_NOT_TEXT):
        return mistake
    kind = {bool: "a truth value", int: "a number", float: "a number", dict: "a mapping"}
    taken = kind.get(
        type(mistake.value), "a date" if isinstance(mistake.value, date) else "nothing"
    )
    quoted = f"'{word}'" if "'" not in word else json.dumps(word, ensure_ascii=False)
    message = f"{mistake.message.partition(';')[0]}, and YAML reads {word} as {taken}"
    return replace(mistake, message=message, allowed=f"{quoted}, in quotes")


@cache
def _schema() -> dict[str, Any]:
    return Study.model_json_schema()


def schema_text() -> str:
    """Return the JSON Schema of a study as it is kept in `docs/`."""
    head = {"$schema": "https://json-schema.org/draft/2020-12/schema"}
    return json.dumps({**head, **_schema()}, indent=2, ensure_ascii=False) + "\n"


def _node(loc: Iterable[str | int]) -> dict[str, Any]:
    """Return the part of the JSON Schema that describes a location of pydantic's."""
    node = _resolve(_schema())
    for part in loc:
        if "oneOf" in node:
            reference = node.get("discriminator", {}).get("mapping", {}).get(part)
            typed = (one for one in node["oneOf"] if one.get("type") == part)
            node = {"$ref": reference} if reference else next(typed, {})
        elif isinstance(part, int):
            node = node.get("items", {})
        elif part in node.get("properties", {}):
            node = node["properties"][part]
        else:
            named = node.get("patternProperties", {}) or {"": node.get("additionalProperties")}
            found = next(iter(named.values()))
            node = found if isinstance(found, dict) else {}
        node = _resolve(node)
    return node


def _resolve(node: dict[str, Any]) -> dict[str, Any]:
    """Follow a reference, and the part of a nullable value that is not null."""
    described = node.get("description")
    while True:
        if "$ref" in node:
            node = _schema()["$defs"][node["$ref"].rsplit("/", 1)[-1]]
        elif "anyOf" in node:
            node = next(part for part in node["anyOf"] if part.get("type") != "null")
        else:
            break
    return {**node, "description": described} if described else node


def _allowed(loc: Iterable[str | int]) -> str:
    """Return in words what the schema allows at a location of pydantic's."""
    node = _node(loc)
    values = _values(node)
    about = str(node.get("description", "")).split(". ")[0].rstrip(".")
    if values and about:
        return f"{values} ({about})"
    return values or about


def _values(node: Mapping[str, Any]) -> str:
    if "enum" in node or "const" in node:
        return listing(map(str, node.get("enum", [node.get("const")])))
    if "oneOf" in node:
        return f"a mapping with a kind: {listing(node['discriminator']['mapping'])}"
    words = {
        "integer": "a whole number",
        "number": "a number",
        "string": "a text",
        "boolean": "true or false",
        "array": "a list",
        "object": "a mapping",
    }
    parts = [words.get(str(node.get("type")), "")]
    for key, text in (
        ("minimum", "at least {}"),
        ("exclusiveMinimum", "above {}"),
        ("maximum", "at most {}"),
        ("exclusiveMaximum", "below {}"),
        ("minLength", "of {} or more characters"),
        ("maxLength", "of at most {} characters"),
        ("minItems", "of {} or more"),
        ("minProperties", "of {} or more"),
        ("pattern", "matching {}"),
    ):
        if key in node:
            parts.append(text.format(node[key]))
    return " ".join(filter(None, parts))
