"""The contents of a chat are found in its text and its tokens, or the chat is refused."""

from __future__ import annotations

import json
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
import tokenizers
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import models, normalizers
from transformers.utils import chat_template_utils

from tests.chat_templates import CHATML, GEMMA, STYLES, TOKENS, byte_level
from tokinfo.io import chats
from tokinfo.io.chats import ChatTemplate, read_template
from tokinfo.io.errors import InvalidError
from tokinfo.io.tokenizers import Reading, read_prompt

ODD = (
    "\n\n",
    "  be  ",
    " é😀\n",
    "<|im_end|>",
    "<s>",
    "{{ x }}",
    "brief,  the",
    "\t",
    "user\n",
    "e",
)
contents = st.one_of(
    st.text(st.characters(codec="utf-8"), min_size=1, max_size=12),
    st.lists(st.sampled_from(ODD), min_size=1, max_size=4).map("".join),
).filter(lambda text: text.strip() and chats._MARK not in text)
TURNS = ("user", "assistant", "user")
BYTES = byte_level()


def chat(*texts: str, system: str | None = None) -> list[dict[str, str]]:
    first = [] if system is None else [{"role": "system", "content": system}]
    turns = zip(TURNS, texts, strict=False)
    return [*first, *({"role": role, "content": text} for role, text in turns)]


def template(style: str) -> ChatTemplate:
    return ChatTemplate(STYLES.get(style, style), TOKENS)


@pytest.mark.parametrize("style", STYLES)
@given(texts=st.lists(contents, min_size=1, max_size=3), system=st.none() | contents)
def test_a_chat_is_the_text_that_transformers_makes_of_it(
    style: str, texts: list[str], system: str | None
) -> None:
    messages = chat(*texts, system=None if style == "gemma" else system)
    (expected,), _ = chat_template_utils.render_jinja_template(
        [messages],
        chat_template=STYLES[style],
        date_string=chats.TODAY.strftime("%d %b %Y"),
        **TOKENS,
    )
    assert template(style).render(messages).text == expected


@pytest.mark.parametrize("style", STYLES)
@given(texts=st.lists(contents, min_size=1, max_size=3), system=st.none() | contents)
def test_every_span_holds_its_content_as_it_is_or_trimmed(
    style: str, texts: list[str], system: str | None
) -> None:
    messages = chat(*texts, system=None if style == "gemma" else system)
    rendered = template(style).render(messages)
    assert [role for role, *_ in rendered.spans] == [message["role"] for message in messages]
    for (_, start, end), message in zip(rendered.spans, messages, strict=True):
        content = message["content"]
        assert rendered.text[start:end] in (content, content.strip())


def by_bytes(reading: Reading, text: str, start: int, end: int) -> list[int]:
    """The tokens that hold a byte of a part of a text, by adding up how long tokens are."""
    first, last = (len(text[:place].encode()) for place in (start, end))
    found, place = [], 0
    for position, number in enumerate(reading.ids):
        length = len(BYTES.id_to_token(number))  # a character stands for each byte
        if place < last and first < place + length:
            found.append(position)
        place += length
    assert place == len(text.encode())
    return found


@given(texts=st.lists(contents, min_size=1, max_size=3), system=contents)
def test_positions_are_those_of_every_token_that_holds_a_byte_of_the_content(
    texts: list[str], system: str
) -> None:
    """White space too, which the offsets of a byte-level tokenizer leave out."""
    messages = chat(*texts, system=system)
    for style in ("chatml", "llama", "mistral"):
        rendered = template(style).render(messages)
        read = read_prompt(BYTES, template(style), messages)
        assert read.text == rendered.text
        expected: dict[str, set[int]] = {}
        for role, start, end in rendered.spans:
            expected.setdefault(role, set()).update(by_bytes(read, rendered.text, start, end))
        assert {role: set(held) for role, held in read.spans.items()} == expected
        hidden = BYTES.decode([read.ids[place] for place in read.spans["system"]], False)
        assert system.strip() in hidden


def sentencepiece() -> tokenizers.Tokenizer:
    """Of single characters and pairs of spaces, bytes for the others, and a space in front."""
    vocabulary = {token: number for number, token in enumerate(("<unk>", "<s>", "▁", "▁▁"))}
    for token in (*(f"<0x{byte:02X}>" for byte in range(256)), *"abcdefghijklmnopqrstuvwxyz"):
        vocabulary[token] = len(vocabulary)
    made = tokenizers.Tokenizer(
        models.BPE(vocabulary, [("▁", "▁")], unk_token="<unk>", byte_fallback=True)
    )
    made.add_special_tokens(["<s>"])
    made.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    made.decoder = tokenizers.decoders.Sequence(
        [
            tokenizers.decoders.Replace("▁", " "),
            tokenizers.decoders.ByteFallback(),
            tokenizers.decoders.Fuse(),
        ]
    )
    return made


PIECES = sentencepiece()


@given(text=contents, system=contents)
def test_a_tokenizer_that_puts_spaces_in_hides_all_of_the_content(text: str, system: str) -> None:
    for source in ("{{bos_token}}{% for m in messages %}{{ m.content }}<s>{% endfor %}", CHATML):
        read = read_prompt(PIECES, ChatTemplate(source, TOKENS), chat(text, system=system))
        hidden = PIECES.decode([read.ids[place] for place in read.spans["system"]], False)
        assert system.replace(" ", "") in hidden.replace(" ", "")


def test_nothing_is_added_to_what_the_template_writes() -> None:
    read = read_prompt(BYTES, template("mistral"), chat("be brief"))
    assert [BYTES.id_to_token(token) for token in read.ids].count("<s>") == 1
    text = read_prompt(BYTES, None, "be brief")
    assert BYTES.id_to_token(text.ids[0]) == "<s>"
    assert read_prompt(BYTES, None, "be brief", special_tokens=False).ids == text.ids[1:]
    assert BYTES.encode("be brief").ids == text.ids, "the tokenizer is left as it was"


def test_a_token_across_the_border_counts_as_content() -> None:
    words = byte_level(["ab"] * 9)
    source = "{% for m in messages %}a{{ m.content }}{% endfor %}"
    read = read_prompt(words, ChatTemplate(source, {}), chat("b c", system="b"))
    assert [words.id_to_token(token) for token in read.ids] == ["ab", "ab", "Ġ", "c"]
    assert read.spans == {"system": [0], "user": [1, 2, 3]}


def test_a_content_that_is_repeated_is_found_each_time() -> None:
    source = "{{ messages[0].content }}: {{ messages[1].content }} ({{ messages[0].content }})"
    rendered = ChatTemplate(source, {}).render(chat("why?", system="be brief"))
    assert rendered.text == "be brief: why? (be brief)"
    assert rendered.spans == (("system", 0, 8), ("system", 16, 24), ("user", 10, 14))


@pytest.mark.parametrize(
    "content",
    [
        "m.content | upper",
        "m.content | length ~ m.content",
        "m.content[:4]",
        "m.content.split(' ') | last",
        "m.content | replace('brief', 'short')",
        "'' if 'brief' in m.content else m.content",
        "m.content ~ (m.content | trim)",
        "m.content | tojson",
        "m.role",
    ],
)
def test_a_template_that_rewrites_a_content_is_refused_in_one_line(content: str) -> None:
    source = "{% for m in messages %}<{{ " + content + " }}>{% endfor %}"
    with pytest.raises(InvalidError, match=r"rewrites messages\[0\] \(role system\)") as failed:
        ChatTemplate(source, {}).render(chat("why", system=' be "brief" '))
    assert "\n" not in str(failed.value)


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        (GEMMA, "System role not supported"),
        ("{{ messages", "unexpected"),
        ("{{ messages[0].content + absent }}", "'absent' is undefined"),
        ("{{ raise_exception('a\nb') }}", "refuses it: a b"),
        ("{{ ''.__class__.__mro__ }}", "unsafe"),
    ],
)
def test_what_a_template_refuses_is_one_line(source: str, reason: str) -> None:
    with pytest.raises(InvalidError, match=r"the chat template refuses it: ") as failed:
        ChatTemplate(source, TOKENS).render(chat("why", system="be brief"))
    assert reason in str(failed.value)
    assert "\n" not in str(failed.value)


def test_a_chat_needs_a_template() -> None:
    with pytest.raises(InvalidError, match="no chat template"):
        read_prompt(BYTES, None, chat("why"))


def test_a_chat_is_the_same_text_on_every_day(monkeypatch: pytest.MonkeyPatch) -> None:
    source = "{{ strftime_now('%Y-%m-%d') }} {{ messages[0].content }}"
    assert ChatTemplate(source, {}).render(chat("why")).text == "2024-07-26 why"
    assert datetime.now() > chats.TODAY


@pytest.mark.parametrize(
    ("config", "jinja", "source"),
    [
        ({}, None, None),
        ({"chat_template": None}, None, None),
        ({"chat_template": "a"}, None, "a"),
        ({"chat_template": "a"}, "b", "b"),
        ({"chat_template": [{"name": "tool_use", "template": "a"}]}, None, None),
        ({"chat_template": [{"name": "default", "template": "a"}]}, None, "a"),
    ],
)
def test_a_template_is_read_wherever_transformers_keeps_one(
    config: dict[str, Any], jinja: str | None, source: str | None, tmp_path: Path
) -> None:
    tokens = {"bos_token": {"content": "<s>", "lstrip": False}, "eos_token": "</s>"}
    written = {**config, **tokens, "pad_token": None, "add_bos_token": True}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(written))
    if jinja is not None:
        (tmp_path / "chat_template.jinja").write_text(jinja)
    found = read_template(tmp_path)
    assert (found and found.source) == source
    assert found is None or found.tokens == TOKENS


def test_a_directory_without_settings_has_no_template(tmp_path: Path) -> None:
    assert read_template(tmp_path) is None
