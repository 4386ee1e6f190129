"""Chats: lists of messages, and the text that a model's chat template makes of them.

Templates are Jinja, as transformers runs them: in a sandbox, with the same filters and functions.
One function differs, so that a chat is the same text every day: `strftime_now` gives one fixed day.
The library is imported only where a chat is rendered.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tokinfo.io.damaged import check, parse_json, reading
from tokinfo.io.errors import InvalidError, first_line

if TYPE_CHECKING:
    from jinja2 import Template

Message = Mapping[str, str]
"""A message of a chat: its ``role`` and its ``content``."""

TEMPLATE = "chat_template.jinja"
"""The file that holds a chat template, beside a tokenizer; older ones are in its configuration."""
TODAY = datetime(2024, 7, 26)
"""The day that templates are given; it is the one that Llama's take where they are given none."""
_MARK = "\ue000\ue001"
"""Stands in for a content: in no text, changed neither by trimming nor by changes of case."""


@dataclass(frozen=True)
class Rendered:
    """A chat as one text.

    Attributes:
        text: what the template makes of it.
        spans: role, first character and end of each place where a message's content stands.
    """

    text: str
    spans: tuple[tuple[str, int, int], ...]


@dataclass(frozen=True)
class ChatTemplate:
    """A model's chat template.

    Attributes:
        source: its Jinja text.
        tokens: the special tokens that it may write, by name: ``bos_token`` and others.
    """

    source: str
    tokens: Mapping[str, str]

    def render(self, messages: Sequence[Message]) -> Rendered:
        """Return a chat as text, without a header that asks for an answer.

        Raises:
            InvalidError: the template refuses the chat, or changes a content by more than the
                white space around it, so that its place in the text is not certain.
        """
        text = self._text(messages)
        spans: list[tuple[str, int, int]] = []
        for number, message in enumerate(messages):
            pieces = self._with(messages, number, _MARK).split(_MARK)
            places = _places(text, pieces, message["content"])
            if len(pieces) > 2 and not self._alike(messages, number, pieces):
                places = None
            if places is None:
                raise InvalidError(
                    f"the chat template rewrites messages[{number}] (role {message['role']}): "
                    "the place of its content in the text is not certain"
                )
            spans += ((message["role"], start, end) for start, end in places)
        return Rendered(text, tuple(spans))

    def _with(self, messages: Sequence[Message], number: int, content: str) -> str:
        """Return the chat's text with another content of one message."""
        changed = {**messages[number], "content": content}
        return self._text([*messages[:number], changed, *messages[number + 1 :]])

    def _alike(self, messages: Sequence[Message], number: int, pieces: Sequence[str]) -> bool:
        """Return whether a content that stands in several places is trimmed alike in all."""
        # Of two kinds: which of them are left tells one side from the other.
        spaced = self._with(messages, number, f"\t{_MARK}\n")
        left = (f"{before}{_MARK}{after}" for before in ("", "\t") for after in ("", "\n"))
        return any(one.join(pieces) == spaced for one in left)

    def _text(self, messages: Sequence[Message]) -> str:
        try:
            return _compiled(self.source).render(
                messages=[dict(message) for message in messages],
                tools=None,
                documents=None,
                add_generation_prompt=False,
                **self.tokens,
            )
        except Exception as error:  # a template may raise anything that its expressions do
            reason = " ".join(str(error).split()) or first_line(error)
            raise InvalidError(f"the chat template refuses it: {reason}") from None


def read_template(directory: Path) -> ChatTemplate | None:
    """Return the chat template beside a tokenizer; None: there is none."""
    file, settings = directory / TEMPLATE, directory / "tokenizer_config.json"
    check(directory, file.name, settings.name)
    config: dict[str, Any] = {}
    source: str | None = None
    if settings.is_file():
        with reading(settings):
            config = parse_json(settings.read_bytes())
            source = config.get("chat_template")
            if isinstance(source, list):
                source = {entry["name"]: entry["template"] for entry in source}.get("default")
            if not isinstance(source, str | None):
                raise TypeError("chat_template is no text")
    if file.is_file():
        with reading(file):
            source = file.read_text(encoding="utf-8")
    if not source:
        return None
    # A token is written as its text or as an object holding it.
    named = {
        name: value.get("content") if isinstance(value, dict) else value
        for name, value in config.items()
        if name.endswith("_token")
    }
    return ChatTemplate(source, {n: value for n, value in named.items() if isinstance(value, str)})


def _places(text: str, pieces: Sequence[str], content: str) -> list[tuple[int, int]] | None:
    """Return where a content stands in a text: between these pieces, each time the same.

    None: the text is not these pieces and, between them, the content as it is or trimmed.
    """
    times = len(pieces) - 1
    over = len(text) - sum(map(len, pieces))
    if times == 0 or over <= 0 or over % times:
        return None
    start = len(pieces[0])
    written = text[start : start + over // times]
    whole = written in content and written.strip() == content.strip()
    if not whole or written.join(pieces) != text:
        return None
    found = []
    for piece in pieces[1:]:
        found.append((start, start + len(written)))
        start += len(written) + len(piece)
    return found


@functools.lru_cache(maxsize=16)
def _compiled(source: str) -> Template:
    from jinja2 import TemplateError, nodes
    from jinja2.ext import Extension
    from jinja2.parser import Parser
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    class Generation(Extension):
        """``{% generation %}`` marks what a model wrote; it changes nothing in the text."""

        tags = {"generation"}  # noqa: RUF012 (as the library declares it)

        def parse(self, parser: Parser) -> list[nodes.Node]:
            """Return the statements inside."""
            next(parser.stream)
            return list(parser.parse_statements(("name:endgeneration",), drop_needle=True))

    def refuse(message: str) -> None:
        raise TemplateError(message)

    def as_json(value: object, ensure_ascii: bool = False, **options: Any) -> str:
        return json.dumps(value, ensure_ascii=ensure_ascii, **options)

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, "jinja2.ext.loopcontrols"]
    )
    environment.filters["tojson"] = as_json
    environment.globals["raise_exception"] = refuse
    environment.globals["strftime_now"] = TODAY.strftime
    return environment.from_string(source)
