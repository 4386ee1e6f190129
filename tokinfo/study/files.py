"""Configuration files: reading them strictly, and merging them as Snakemake does."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from yaml.constructor import ConstructorError

from tokinfo.io.errors import InvalidError
from tokinfo.study.mistakes import MISSING, Keys, Mistake, StudyError

COMMAND_LINE = "--config"
MOST = 1_000_000
"""Values of a configuration: some twenty times those of a study of thousands of prompts."""
LONGEST_NUMBER = 3000
"""Digits of a number; Python refuses to write one of more than 4,300 decimal ones."""


_COLON = ("but found ':'", "mapping values are not allowed here")
"""How YAML puts it where a colon stands in a text without quotes."""


@dataclass(frozen=True)
class Document:
    """One configuration file as read.

    Attributes:
        name: the file's.
        content: what it says.
        mistakes: what is wrong with its form.
        text: its characters.
        node: what YAML makes of them before it reads values; None: the file is JSON, or empty.
    """

    name: str
    content: Any
    mistakes: tuple[Mistake, ...] = ()
    text: str = ""
    node: yaml.Node | None = None

    def word(self, path: Keys) -> str:
        """Return how a value stands in the file, if without quotes on one line; else nothing.

        A text that YAML takes for something else stands there so: `1:3`, `no`, or the mask `1:`.
        """
        node = last = _node_at(self.node, path)
        if isinstance(node, yaml.MappingNode) and len(node.value) == 1:
            if self.text.startswith("{", node.start_mark.index):
                return ""
            node, last = node.value[0]
        if not (isinstance(node, yaml.ScalarNode) and isinstance(last, yaml.ScalarNode)):
            return ""
        word = self.text[node.start_mark.index : last.end_mark.index].strip()
        return "" if node.style or last.style or "\n" in word else word


class _Loader(yaml.SafeLoader):
    """Says where a value stands that is of the right form and is none, such as 2020-99-99."""

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        try:
            return super().construct_object(node, deep=deep)
        except ValueError as error:
            reason = f"{node.value}: {error}"
            raise ConstructorError(None, None, reason, node.start_mark) from None


def read(path: Path) -> Document:
    """Read one configuration file; whatever is wrong ends up in the document's mistakes."""
    name = str(path)
    try:
        document = load(path)
    except StudyError as error:
        return Document(name, {}, error.mistakes)
    if isinstance(document.content, dict):
        return document
    message = "must be a mapping of keys to values at its top level"
    return Document(name, {}, (Mistake((), MISSING, message, file=name),))


def load(path: Path) -> Document:
    """Read a file of any content as Snakemake does: as JSON if it is JSON, otherwise as YAML.

    Raises:
        StudyError: it cannot be read; one line names the file and, where it is wrong in form,
            the line of it.
    """
    name = str(path)
    try:
        text = path.read_bytes().decode()
        try:
            return _json(name, text)
        except ValueError as not_json:
            try:
                return _yaml(name, text)
            except StudyError:
                if path.suffix != ".json" or not isinstance(not_json, json.JSONDecodeError):
                    raise
            message = f"is not valid JSON: {not_json.msg}"
            raise _unreadable(name, message, not_json.lineno) from None
    except FileNotFoundError:
        raise _unreadable(name, "there is no such file") from None
    except OSError as error:
        raise _unreadable(name, f"cannot be read: {error.strerror}") from None
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        raise _unreadable(name, "is not text in UTF-8", line) from None
    except RecursionError:
        raise _unreadable(name, "is nested too deeply") from None


def _unreadable(name: str, message: str, line: int = 0) -> StudyError:
    return StudyError([Mistake((), MISSING, message, file=name, line=line)])


def _json(name: str, text: str) -> Document:
    """Return what a text says as JSON; raises ValueError."""
    # Objects themselves are kept: the numbers of those that are gone may come again.
    twice: list[tuple[dict[str, Any], list[str]]] = []

    def mapping(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        made = dict(pairs)
        if len(made) < len(pairs):
            counts = Counter(key for key, _ in pairs)
            twice.append((made, [key for key, count in counts.items() if count > 1]))
        return made

    content = json.loads(text, object_pairs_hook=mapping)
    repeated = {id(made): keys for made, keys in twice}

    def visit(value: Any, path: Keys) -> Iterator[Mistake]:
        for key in repeated.get(id(value), ()):
            yield _twice((*path, key), name)
        if isinstance(value, dict | list):
            items = value.items() if isinstance(value, dict) else enumerate(value)
            for part, inner in items:
                yield from visit(inner, (*path, part))

    return Document(name, content, tuple(visit(content, ())), text)


def _yaml(name: str, text: str) -> Document:
    """Return what a text says as YAML; raises StudyError."""
    try:
        loader = _Loader(text)
        node = loader.get_single_node()
        if node is None:
            return Document(name, {}, (), text)
        # Before anything is built from the nodes: building resolves `<<` in place.
        _check(node, {})
        mistakes = tuple(_duplicates(node, name))
        return Document(name, loader.construct_document(node), mistakes, text, node)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = mark.line + 1 if mark is not None else 0
        reason, begun = error.problem or error.context or "", error.context_mark
        if error.problem and begun is not None and begun.line + 1 < line:
            reason += f" ({error.context}, from line {begun.line + 1})"
        if any(sign in reason for sign in _COLON):
            reason += "; a text with a colon, such as a mask, stands in quotes, as in ':2'"
        raise _unreadable(name, f"is not valid YAML: {reason}", line) from None
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        message = f"is not valid YAML: the character U+{error.character:04X} is not allowed"
        raise _unreadable(name, message, line) from None
    except yaml.YAMLError as error:
        raise _unreadable(name, f"is not valid YAML: {error}") from None
    except IndexError:  # what the library makes of `!!int ''`
        raise _unreadable(name, "is not valid YAML: a number without a digit") from None


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


def _node_at(node: yaml.Node | None, path: Keys) -> yaml.Node | None:
    """Return the node that a path leads to; None: no node, or one that `<<` brings."""
    for part in path:
        if isinstance(node, yaml.SequenceNode) and isinstance(part, int):
            node = node.value[part] if part < len(node.value) else None
        elif isinstance(node, yaml.MappingNode):
            found = [inner for key, inner in node.value if key.value == str(part)]
            node = found[-1] if found else None
        else:
            return None
    return node


def _twice(path: Keys, file: str, where: str = "") -> Mistake:
    return Mistake(path, MISSING, f"the key is given twice{where}", "each key once", file)


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
                        yield _twice(inner, file, f", on lines {first[0]} and {line}")
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


def origin(path: Keys, documents: Sequence[Document]) -> Document | None:
    """Return the file that says what stands at a path.

    That is the last one to mention it, as later files override; for a key that none has, the
    last one with the part of the configuration in which it is missing.
    """
    for length in range(len(path), -1, -1):
        for document in reversed(documents):
            if value_at(document.content, path[:length]) is not MISSING:
                return document
    return None
