"""Where in a prompt's tokens is what a mask names."""

from __future__ import annotations

import itertools
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

from tokinfo.io.chats import ChatTemplate
from tokinfo.io.tokenizers import Spans, read_prompt

WORDS = "Four score and seven years ago our fathers brought forth a na\u00efve \U0001f600 nation"


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    found = Tokenizer(models.BPE())
    found.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    found.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=320,
        show_progress=False,
        special_tokens=["<s>"],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
    )
    found.train_from_iterator([WORDS] * 3, trainer)
    return found


def held(tokenizer: Tokenizer, prompt: str, text: str) -> str:
    """What the tokens that hold a text of a prompt decode to."""
    one = read_prompt(tokenizer, None, prompt)
    places = one.spans[json.dumps(text)]
    return str(tokenizer.decode([one.ids[place] for place in places]))


@pytest.mark.parametrize(
    "text", ["seven years", "core", "na\u00efve", "\U0001f600", "Four", "nation"]
)
@pytest.mark.parametrize("front", [False, True])
def test_the_tokens_of_a_text_hold_all_of_it_and_little_more(
    tokenizer: Tokenizer, text: str, front: bool
) -> None:
    if front:
        tokenizer.post_processor = processors.TemplateProcessing(
            single="<s> $A", special_tokens=[("<s>", 0)]
        )
    try:
        found = held(tokenizer, WORDS, text)
    finally:
        tokenizer.post_processor = None
    assert text in found
    # No more than the rest of the first and of the last token.
    assert len(found) <= len(text) + 16
    assert "<s>" not in found


def test_every_place_where_it_stands_is_held(tokenizer: Tokenizer) -> None:
    one = read_prompt(tokenizer, None, "aaa b aaa")
    assert len(one.spans['"aa"']) == 6
    assert '"zz"' not in one.spans


def test_in_a_chat_it_is_looked_for_in_contents_alone(tokenizer: Tokenizer) -> None:
    template = ChatTemplate("{% for m in messages %}{{ m.role }}: {{ m.content }} {% endfor %}", {})
    chat = [{"role": "system", "content": "a user"}, {"role": "user", "content": "hi"}]
    one = read_prompt(tokenizer, template, chat)
    assert "".join(tokenizer.decode([one.ids[p]]) for p in one.spans['"user"']).strip() == "user"
    assert set(one.spans) == {"system", "user"}
    assert set(one.spans['"user"']) <= set(one.spans["system"])


@given(st.text("abc", min_size=1, max_size=12), st.text("abc", min_size=1, max_size=3), st.data())
def test_a_token_is_held_where_its_characters_overlap_a_place(
    text: str, sought: str, data: st.DataObject
) -> None:
    cuts = sorted(data.draw(st.sets(st.integers(1, max(1, len(text) - 1)))))
    edges = [0, *(cut for cut in cuts if cut < len(text)), len(text)]
    offsets = list(itertools.pairwise(edges))
    spans = Spans(text, offsets, [("", 0, len(text))])
    places = [i for i in range(len(text)) if text.startswith(sought, i)]
    letters = {i + k for i in places for k in range(len(sought))}
    expected = [n for n, (a, b) in enumerate(offsets) if letters & set(range(a, b))]
    name = json.dumps(sought)
    assert spans.get(name, []) == expected
