"""Configuration files: reading them strictly, and merging them as Snakemake does."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from tokinfo.io.errors import InvalidError
from tokinfo.study.mistakes import MISSING, Keys, Mistake

COMMAND_LINE = "--config"
MOST = 1_000_000
"""Values of a configuration: some twenty times those of a study of thousands of prompts."""
LONGEST_NUMBER = 3000
"""Digits of a number; Python refuses to write one of more than 4,300 decimal ones."""


@dataclass(frozen=True)
class Document:
    """One configuration file as read: its name, its content, and what is wrong with its form."""

    name: str
    content: dict[Any, Any]
    mistakes: tuple[Mistake, ...] = ()


def read(path: Path) -> Document:
    """Read one YAML (or JSON) file; whatever is wrong ends up in the document's mistakes."""
    name = str(path)
    try:
        loader = yaml.SafeLoader(path.read_text(encoding="utf-8"))
        node = loader.get_single_node()
        # Before anything is built from the nodes: building resolves `<<` in place.
        _check(node, {})
        mistakes = () if node is None else tuple(_duplicates(node, name))
        content = {} if node is None else loader.construct_document(node)
    except FileNotFoundError:
        return _failed(name, "there is no such file")
    except OSError as error:
        return _failed(name, f"cannot be read: {error.strerror}")
    except (yaml.YAMLError, UnicodeDecodeError, ValueError) as error:
        return _failed(name, f"is not valid YAML: {error}")
    except RecursionError:
        return _failed(name, "is nested too deeply")
    if not isinstance(content, dict):
        return _failed(name, "must be a mapping of keys to values at its top level")
    return Document(name, content, mistakes)


def _failed(name: str, message: str) -> Document:
    return Document(name, {}, (Mistake((), MISSING, message, file=name),))


def _check(node: yaml.Node | None, sizes: dict[int, int]) -> int:
    """Return how many values a node stands for, where each alias is what it refers to.

    Args:
        node: what was read.
        sizes: of the nodes before it.

    Raises:
        YAMLError: they are more than `MOST`, one contains itself, or a number is of no use.
    """
    if node is None:
        return 0
    if sizes.get(id(node)) == 0:
        raise yaml.YAMLError("an alias refers to what it stands in")
    if id(node) not in sizes:
        sizes[id(node)] = 0
        size = 1
        if isinstance(node, yaml.MappingNode):
            size += sum(_check(inner, sizes) for pair in node.value for inner in pair)
        elif isinstance(node, yaml.SequenceNode):
            size += sum(_check(inner, sizes) for inner in node.value)
        elif node.tag.endswith(":int") and len(node.value) > LONGEST_NUMBER:
            raise yaml.YAMLError(f"a number of {len(node.value)} digits")
        if size > MOST:
            raise yaml.YAMLError(f"its aliases stand for more than {MOST:,} values")
        sizes[id(node)] = size
    return sizes[id(node)]


def _duplicates(node: yaml.Node, file: str) -> Iterator[Mistake]:
    """Yield every key written twice in one mapping.

    YAML forbids it but PyYAML keeps the last in silence. The node graph is searched, where
    `<<` has not been resolved yet: a key that overrides a merged one is no duplicate.
    """
    seen: set[int] = set()

    def visit(node: yaml.Node, path: Keys) -> Iterator[Mistake]:
        if id(node) in seen:  # an anchor used again
            return
        seen.add(id(node))
        if isinstance(node, yaml.SequenceNode):
            for index, item in enumerate(node.value):
                yield from visit(item, (*path, index))
        elif isinstance(node, yaml.MappingNode):
            lines: dict[tuple[str, str], tuple[int, yaml.Node]] = {}
            for key, value in node.value:
                inner = (*path, str(key.value))
                if isinstance(key, yaml.ScalarNode):
                    line = key.start_mark.line + 1
                    first = lines.setdefault((key.tag, key.value), (line, key))
                    if first[1] is not key:
                        message = f"the key is given twice, on lines {first[0]} and {line}"
                        yield Mistake(inner, MISSING, message, "each key once", file)
                yield from visit(value, inner)

    yield from visit(node, ())


def merge(*contents: Mapping[Any, Any]) -> dict[Any, Any]:
    """Merge configurations as Snakemake does: mappings key by key, all else replaced.

    >>> merge({"a": {"b": 1, "c": [1, 2]}}, {"a": {"c": [3]}})
    {'a': {'b': 1, 'c': [3]}}
    """
    merged: dict[Any, Any] = {}
    for content in contents:
        for key, value in content.items():
            if isinstance(value, Mapping):
                earlier = merged.get(key)
                merged[key] = merge(earlier if isinstance(earlier, Mapping) else {}, value)
            else:
                merged[key] = value
    return merged


def parse(entries: Iterable[str]) -> dict[str, Any]:
    """Return what arguments of `--config` say, each KEY=VALUE, read as Snakemake reads them.

    >>> parse(["run=[a, b]", "threads=2", "corpora={text: {path: a.txt}}"])
    {'run': ['a', 'b'], 'threads': 2, 'corpora': {'text': {'path': 'a.txt'}}}

    Raises:
        ValueError: one is not of that form, or its value is not valid YAML.
    """
    values: dict[str, Any] = {}
    for entry in entries:
        key, equals, text = entry.partition("=")
        text = text.strip("'\"")
        if not equals or not re.fullmatch(r"[a-zA-Z_][\w-]*\w", key):
            raise InvalidError(f"--config {entry}: not of the form KEY=VALUE")
        values = merge(values, {key: _value(entry, text)})
    return values


def _value(entry: str, text: str) -> Any:
    if text in ("", "True", "False"):
        return {"True": True, "False": False}.get(text)
    for number in (int, float):
        with suppress(ValueError):
            return number(text)
    try:
        # Numbers inside stay text, as they do there; the study's fields read them.
        loader = yaml.BaseLoader(text)
        node = loader.get_single_node()
        _check(node, {})
        return None if node is None else loader.construct_document(node)
    except RecursionError:
        raise InvalidError(f"--config {entry[:60]}...: is nested too deeply") from None
    except (yaml.YAMLError, ValueError) as error:
        reason = getattr(error, "problem", None) or str(error) or "cannot be read"
        raise InvalidError(f"--config {entry}: not valid YAML: {reason}") from None


def arguments(values: Mapping[str, Any]) -> list[str]:
    """Return the arguments of `--config` that say these values: the inverse of `parse`.

    >>> arguments({"run": ["a", "b"], "threads": 2, "corpora": {"text": {"path": "a.txt"}}})
    ['run=[a, b]', 'threads=2', 'corpora={text: {path: a.txt}}']
    """
    return [f"{key}={_written(value)}" for key, value in values.items()]


def _written(value: Any) -> str:
    if value is None or isinstance(value, str | bool | int | float):
        return "" if value is None else str(value)
    return yaml.safe_dump(
        _plain(value),
        default_flow_style=True,
        sort_keys=False,
        width=float("inf"),
        allow_unicode=True,
    ).strip()


def _plain(value: Any) -> Any:
    """Return a value without the ordered mappings of Snakemake, which YAML has no words for."""
    if isinstance(value, Mapping):
        return {key: _plain(inner) for key, inner in value.items()}
    return [_plain(inner) for inner in value] if isinstance(value, list | tuple) else value


def beyond(config: Mapping[Any, Any], files: Iterable[Path | str]) -> dict[Any, Any]:
    """Return what a merged configuration says that its files do not: the command line's part."""
    return _beyond(config, merge(*(read(Path(file)).content for file in files)))


def _beyond(whole: Mapping[Any, Any], part: Mapping[Any, Any]) -> dict[Any, Any]:
    found: dict[Any, Any] = {}
    for key, value in whole.items():
        written = part.get(key, MISSING)
        if isinstance(value, Mapping) and isinstance(written, Mapping):
            if inner := _beyond(value, written):
                found[key] = inner
        elif value != written:
            found[key] = value
    return found


def value_at(content: object, path: Keys) -> object:
    """Return the value a path leads to, or `MISSING`."""
    for part in path:
        try:
            content = content[part]  # type: ignore[index]
        except (TypeError, KeyError, IndexError):
            return MISSING
    return content


def origin(path: Keys, documents: Sequence[Document]) -> str:
    """Return the name of the file that says what stands at a path.

    That is the last one to mention it, as later files override; for a key that none has, the
    last one with the part of the configuration in which it is missing.
    """
    for length in range(len(path), -1, -1):
        for document in reversed(documents):
            whole = length == len(path) or document.name != COMMAND_LINE
            if whole and value_at(document.content, path[:length]) is not MISSING:
                return document.name
    return ""
