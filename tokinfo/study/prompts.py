"""Prompts as a study writes them: a text, or a chat, which is a list of messages."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal, get_args

from pydantic import BeforeValidator, Discriminator, Field, Tag

from tokinfo.study.fields import Strict, misfit

Role = Literal["system", "developer", "user", "assistant", "tool"]
ROLES: tuple[str, ...] = get_args(Role)


def _not_blank(text: Any) -> Any:
    """Before its length is looked at, so that an empty prompt is as blank as spaces are."""
    if isinstance(text, str) and not text.strip():
        raise misfit("is blank: there is nothing to find", "a text")
    return text


Text = Annotated[str, Field(min_length=1), BeforeValidator(_not_blank)]


class Message(Strict):
    """One message of a chat."""

    role: Role = Field(description="Whose message it is; the chat template must know the role.")
    content: Text = Field(description="Its text.")


Chat = Annotated[list[Message], Field(min_length=1)]
"""The messages of a prompt, in their order."""


def _kind(value: object) -> str:
    return "array" if isinstance(value, list | Mapping) else "string"


# The tags are the types that JSON Schema has for the two.
Prompt = Annotated[
    Annotated[Text, Tag("string")] | Annotated[Chat, Tag("array")], Discriminator(_kind)
]


def written(prompt: Prompt) -> str | list[dict[str, str]]:
    """Return a prompt as a study's file holds it."""
    return prompt if isinstance(prompt, str) else [message.model_dump() for message in prompt]


def contents(prompt: Prompt) -> list[str]:
    """Return what a prompt says: its text, or what each message says."""
    return [prompt] if isinstance(prompt, str) else [message.content for message in prompt]


def roles(prompt: Prompt) -> set[str]:
    """Return the roles of a chat's messages; of a text, none."""
    return set() if isinstance(prompt, str) else {message.role for message in prompt}
