"""From configuration to a study, or to the list of everything that is wrong with it.

The form of a study is checked by its schema, the way its parts fit together by
`tokinfo.study.checks`. Mistakes of form must not hide the others, so whatever can be read of a
broken study is salvaged and checked too.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, get_args

from pydantic import TypeAdapter, ValidationError

from tokinfo.study.checks import entries as checks
from tokinfo.study.checks import prompts as prompt_fit
from tokinfo.study.checks.draft import Draft
from tokinfo.study.files import COMMAND_LINE, Document, merge, origin, read, value_at
from tokinfo.study.mistakes import MISSING, Problem, StudyError, listing, suggestion
from tokinfo.study.mistakes import Path as KeyPath
from tokinfo.study.solvers import MetricWeights
from tokinfo.study.study import Grid, Study

__all__ = ["Problem", "StudyError", "load_study", "problems", "prompt_problems", "schema_text"]

_UNSAID = {
    "string_pattern_mismatch": "is not of the right form",
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
_VAGUE = ("string_pattern_mismatch", "string_too_short", "string_too_long")


def load_study(
    study: Mapping[str, Any] | Path | str | Sequence[Path | str],
    overrides: Mapping[str, Any] | None = None,
    *,
    files: Iterable[Path | str] = (),
) -> Study:
    """Return the study that a configuration describes.

    Args:
        study: the merged configuration, or the file or files to read and merge it from.
        overrides: values given on the command line, merged last.
        files: where ``study`` is a mapping, the files that it came from: problems name
            them, and keys given twice in them (which merging forgot) are problems too.

    Raises:
        StudyError: with every problem, in one line each.
    """
    if isinstance(study, Mapping):
        documents = [read(Path(file)) for file in files]
    else:
        paths = [study] if isinstance(study, str | Path) else study
        documents = [read(Path(path)) for path in paths]
    try:
        from_files = merge(*(document.content for document in documents))
        raw = merge(study if isinstance(study, Mapping) else from_files, overrides or {})
    except RecursionError:
        raise StudyError([Problem((), MISSING, "is nested too deeply")]) from None
    found = [problem for document in documents for problem in document.problems]
    # A file that could not be read at all would only add that everything is missing.
    if any(not problem.path for problem in found):
        raise StudyError(found)
    loaded, wrong = _examine(raw)
    found += [_with_origin(problem, documents, from_files, raw) for problem in wrong]
    if loaded is None or found:
        raise StudyError(found)
    return loaded


def problems(raw: Mapping[str, Any]) -> list[Problem]:
    """Return everything that is wrong with a configuration (nothing: it can run)."""
    return _examine(raw)[1]


def prompt_problems(
    study: Study, model: str, token_counts: Mapping[str, Sequence[int]]
) -> list[Problem]:
    """Return the prompts that are too long for a model and the masks that do not suit one.

    Args:
        study: a valid study.
        model: name of a model.
        token_counts: number of tokens of every prompt under the model's own tokenizer, by
            prompt set; sets that are not there are not checked.
    """
    exact = {name: [(count, count) for count in counts] for name, counts in token_counts.items()}
    return list(prompt_fit.problems(study, {model: exact}))


def _with_origin(
    problem: Problem,
    documents: Sequence[Document],
    from_files: Mapping[str, Any],
    raw: Mapping[str, Any],
) -> Problem:
    path = problem.path
    overridden = value_at(raw, path)
    written = value_at(from_files, path)
    same = overridden is written or overridden == written
    if documents and overridden is not MISSING and not same:
        file = COMMAND_LINE
    else:
        file = origin(path, documents)
    return Problem(path, problem.value, problem.message, problem.allowed, file)


def _examine(raw: Mapping[str, Any]) -> tuple[Study | None, list[Problem]]:
    """Return the study if its form is right, and every problem of form or sense."""
    try:
        try:
            study = Study.model_validate(raw)
            return study, checks.check(Draft(study))
        except ValidationError as error:
            errors = [(_path(e["loc"], raw), e) for e in error.errors(include_url=False)]
            draft = _salvage(raw, errors)
            sense = checks.check(draft)
    except RecursionError:
        return None, [Problem((), MISSING, "is nested too deeply")]
    # One mistake, one line: that a name is unknown (did you mean ...) or a prompt blank says
    # more than the form a text broke; otherwise what is wrong in form is not judged again.
    told = {problem.path for problem in sense}
    form = [(path, e) for path, e in errors if not (e["type"] in _VAGUE and path in told)]
    malformed = {path for path, _ in form}
    return None, [
        *(_problem(path, error) for path, error in form),
        *(problem for problem in sense if not _within(problem.path, malformed)),
    ]


def _within(path: KeyPath, places: set[KeyPath]) -> bool:
    """Return whether a path leads to or through one of these places."""
    return any(path[:length] in places for length in range(1, len(path) + 1))


# --- mistakes of form ---------------------------------------------------------------------


def _path(loc: tuple[str | int, ...], raw: Mapping[str, Any]) -> KeyPath:
    """Return the keys that lead to an error, without what pydantic adds of its own.

    That is the tag of a discriminated union after the entry's name, and `[key]` for a key.
    """
    path = list(loc)
    if path[-1] == "[key]":
        path.pop()
    if len(path) > 2 and path[0] in _tagged():
        entry = value_at(raw, tuple(path[:2]))
        if isinstance(entry, Mapping) and entry.get("kind") == path[2]:
            del path[2]
    return tuple(path)


@cache
def _tagged() -> frozenset[str]:
    """Return the sections of a study whose entries are of several kinds."""
    tagged = set()
    for name, info in Study.model_fields.items():
        metadata = getattr((get_args(info.annotation) or (None,))[-1], "__metadata__", ())
        if any(getattr(item, "discriminator", None) for item in metadata):
            tagged.add(name)
    return frozenset(tagged)


def _problem(path: KeyPath, error: Mapping[str, Any]) -> Problem:
    kind, value = str(error["type"]), error["input"]
    if kind == "union_tag_not_found":
        return Problem((*path, "kind"), MISSING, "is missing", _allowed((*path, "kind"), error))
    if kind == "union_tag_invalid":
        tags = str(error["ctx"]["expected_tags"]).replace("'", "").split(", ")
        tags.sort()
        tag = error["ctx"]["tag"]
        return Problem((*path, "kind"), tag, f"unknown kind{suggestion(tag, tags)}", listing(tags))
    if error["loc"][-1] == "[key]":
        return Problem(path, MISSING, "the name is not allowed", _NAMES)
    if kind == "extra_forbidden":
        known = _keys(error["loc"][:-1])
        hint = suggestion(path[-1], known)
        return Problem(path, value, f"unknown key{hint}", listing(known, "no key"))
    message = _UNSAID.get(kind) or str(error["msg"]).removeprefix("Input ")
    if kind == "string_type" and isinstance(value, int | float):
        message = "should be a text; write it in quotes"
    missing = kind == "missing"
    return Problem(path, MISSING if missing else value, _lower(message), _allowed(path, error))


_NAMES = "lower-case letters, digits, dots and hyphens, at most 64, a letter or digit first"


def _lower(text: str) -> str:
    return text[:1].lower() + text[1:]


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
            node = {"$ref": reference} if reference else {}
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


def _keys(loc: Iterable[str | int]) -> list[str]:
    return list(_node(loc).get("properties", {}))


def _allowed(path: KeyPath, error: Mapping[str, Any]) -> str:
    """Return in words what the schema allows where an error is."""
    loc = error["loc"]
    if str(error["type"]).startswith("union_tag"):
        return listing(_node(loc).get("discriminator", {}).get("mapping", {}))
    node = _node(loc)
    said = _values(node)
    about = str(node.get("description", "")).split(". ")[0].rstrip(".")
    if said and about:
        return f"{said} ({about})"
    return said or about


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
    said = [words.get(str(node.get("type")), "")]
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
            said.append(text.format(node[key]))
    return " ".join(filter(None, said))


# --- what can be read of a broken study ---------------------------------------------------

Errors = Sequence[tuple[KeyPath, Mapping[str, Any]]]


def _salvage(raw: Mapping[str, Any], errors: Errors) -> Draft:
    """Return as much of a study as can be read, and note what cannot."""
    values: dict[str, Any] = {}
    broken: set[tuple[str, str]] = set()
    repaired: set[tuple[str, str, str]] = set()
    absent: set[str] = set()
    for name, info in Study.model_fields.items():
        if name == "grids":
            values[name] = list(_grids(raw.get("grids")))
            continue
        default = info.get_default(call_default_factory=True)
        adapter: TypeAdapter[Any] = TypeAdapter(info.rebuild_annotation())
        if not str(info.annotation).startswith("dict["):
            bad = any(path[0] == name for path, _ in errors if path)
            given = name in raw and not bad
            values[name] = adapter.validate_python(raw[name]) if given else default
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
                values[name][str(key)] = [_text(p) if isinstance(p, str) else "" for p in entry]
                continue
            own = [(path, error) for path, error in errors if path[:2] == (name, key)]
            found, changed = _entry(one, entry, own)
            if found is None:
                broken.add((name, str(key)))
            else:
                values[name][str(key)] = found
            repaired |= {(name, str(key), part) for part in changed}
    if not isinstance(values["metric_weights"], MetricWeights):
        values["metric_weights"] = MetricWeights()
    for name in ("name", "results"):
        if not isinstance(values[name], str):
            values[name] = "unreadable"
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
        return adapter.validate_python(entry), changed
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


def _text(value: object) -> str:
    """Return a value as text that can be encoded, whatever it is."""
    return str(value).encode("utf-8", "replace").decode()
