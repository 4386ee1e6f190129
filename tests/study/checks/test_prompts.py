"""Prompts that are too long for a model, and masks that do not suit a prompt."""

from __future__ import annotations

from pathlib import Path

import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st

from tests import REPOSITORY
from tests.example_study import Row, check_one, each, example, keys, mistakes, put, says, spoilt
from tokinfo.io.tokenizers import read_prompt, read_tokenizer
from tokinfo.study.checks import prompts
from tokinfo.study.lengths import bounds
from tokinfo.study.load import load_study
from tokinfo.study.mistakes import Mistake
from tokinfo.text.promptcheck import PromptError, check_prompts

MASKS: list[Row] = [
    (("grids", 0, "masks", 1), "90:", "leaves no visible position of prompts."),
    (("grids", 0, "masks", 1), ":0", "leaves no visible position of prompts."),
    (("grids", 0, "masks", 1), ":90", "hides no position of prompts."),
]


@each(MASKS)
def test_a_mask_that_suits_no_length_is_one_line(row: Row) -> None:
    check_one(row)


KNOWN: list[Row] = [
    (("grids", 1, "known"), [":"], "leaves nothing to find of prompts.sky[0] = 'The sky is blue.'",
     "grids[1].known[0]"),
    (("grids", 1, "known"), ["none", "0"], "some hidden token of every prompt of its grid unknown",
     "grids[1].known[1]"),
    (("grids", 0, "known"), ["visible"], "(model `flat`) under mask ':' and 5 more",
     "grids[0].known[0]"),
    (("grids", 1, "known"), ["90:"], "gives no token of prompts.", "grids[1].known[0]"),
]  # fmt: skip


@each(KNOWN)
def test_known_tokens_that_leave_nothing_to_find_or_give_nothing_are_one_line(row: Row) -> None:
    check_one(row)


@pytest.mark.parametrize("known", [["none"], ["visible"], ["1:", "-1"], ["none", "visible", "3:"]])
def test_known_tokens_that_leave_a_hidden_one_to_find_are_fine(known: list[str]) -> None:
    assert spoilt((("grids", 1, "known"), known)) == []


def test_known_tokens_that_may_suit_wait_for_the_tokenizer() -> None:
    """Four to sixteen tokens: the sixth may be there."""
    assert spoilt((("grids", 1, "known"), ["5"])) == []


def test_an_unsuited_mask_is_not_reported_again_for_what_is_known() -> None:
    found = spoilt((("grids", 1, "masks"), ["90:"]), (("grids", 1, "known"), ["visible"]))
    assert keys(found) == ["grids[1].masks[0]"]


def byte_level(vocabulary: int, texts: list[str]) -> tokenizers.Tokenizer:
    made = tokenizers.Tokenizer(tokenizers.models.BPE())
    made.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=["<|endoftext|>"],
        initial_alphabet=sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    made.train_from_iterator(texts, trainer)
    return made


LICENSE = REPOSITORY / "LICENSE"  # English prose that is always there
TOKENIZER = byte_level(400, LICENSE.read_text().splitlines())


@given(st.text(min_size=1))
@settings(max_examples=300, deadline=None)
def test_bounds_contain_the_number_of_tokens_of_byte_level_bpe(prompt: str) -> None:
    low, high = bounds(prompt, pretrained=False)
    assert low <= len(TOKENIZER.encode(prompt).ids) <= high


def test_a_prompt_that_fits_or_not_by_its_exact_length_waits_for_the_tokenizer() -> None:
    """Seventeen words cannot fit 16 positions; sixteen may."""
    assert spoilt((("prompts", "sky", 0), " ".join("a" * 16))) == []
    found = spoilt((("prompts", "sky", 0), " ".join("a" * 17)))
    assert [mistake.message for mistake in found] == [
        "has 17 to 33 tokens, more than n_ctx = 16 (model `flat`)",
        "has 17 to 33 tokens, more than n_ctx = 16 (model `llama`)",
    ]


def save_tokenizer(directory: Path) -> None:
    directory.mkdir(parents=True)
    TOKENIZER.save(str(directory / "tokenizer.json"))


def test_with_the_tokenizer_of_an_earlier_run_prompts_are_counted(working_directory: Path) -> None:
    save_tokenizer(working_directory / "results/tokenizers/bpe")
    prompt = "zqxj" * 5  # one word that this tokenizer takes byte by byte
    count = len(TOKENIZER.encode(prompt).ids)
    assert count > 16
    raw = put(example(), ("tokenizers", "bpe", "vocabulary"), TOKENIZER.get_vocab_size())
    found = mistakes(put(raw, ("prompts", "sky", 0), prompt))
    assert keys(found) == ["prompts.sky[0]"] * 2
    for mistake, model in zip(found, ("flat", "llama"), strict=True):
        assert says(mistake, f"has {count} tokens, more than n_ctx = 16, counted with ")
        assert says(mistake, f"results/tokenizers/bpe/tokenizer.json (model `{model}`)")
        assert mistake.allowed == "1 to 16 tokens"


def test_a_tokenizer_of_another_size_is_a_leftover_and_not_used(working_directory: Path) -> None:
    save_tokenizer(working_directory / "results/tokenizers/bpe")
    assert spoilt((("prompts", "sky", 0), "zqxj" * 5)) == []


def test_a_file_that_is_no_tokenizer_is_not_used(working_directory: Path) -> None:
    directory = working_directory / "results/sources/smol/config"
    directory.mkdir(parents=True)
    (directory / "tokenizer.json").write_text("{}")
    assert mistakes(example()) == []


def test_exact_lengths_say_exactly_what_does_not_fit() -> None:
    study = load_study(put(example(), ("grids", 0, "masks"), [":", "3:", "-1"]))

    def found(*counts: int) -> list[Mistake]:
        exact = {"flat": {"sky": [(count, count) for count in counts]}}
        return list(prompts.mistakes(study, exact))

    assert found(5, 16) == []
    long, blind, open_ = found(1, 17)
    assert (long.key, long.value) == ("prompts.sky[1]", "This is a prompt sentence")
    assert says(long, "has 17 tokens, more than n_ctx = 16")
    only = "position of prompts.sky[0] = 'The sky is blue.' of 1 token"
    assert (blind.key, blind.value) == ("grids[0].masks[1]", "3:")
    assert says(blind, f"leaves no visible {only}")
    assert (open_.key, open_.value) == ("grids[0].masks[2]", "-1")
    assert says(open_, f"hides no {only}")
    assert [mistake.message for mistake in found(0, 9)] == ["has no token (model `flat`)"]


def test_the_mask_of_a_padded_prompt_applies_to_the_pads_too() -> None:
    """`90:` and `:90` of 16 positions, whatever the prompt; `10:` leaves pads visible."""
    grid = {**example()["grids"][0], "models": ["flat"], "padding": ["n_ctx"]}
    for mask, wrong in (("10:", 0), (":10", 0), ("16:", 1), (":16", 1), ("-16:", 1)):
        found = spoilt((("grids",), [{**grid, "masks": [mask]}]))
        assert len(found) == wrong, (mask, found)


def test_tokens_are_counted_as_the_tokenizer_adds_special_ones(tmp_path: Path) -> None:
    TOKENIZER.save(str(tmp_path / "tokenizer.json"))
    texts = ["The sky", "<|endoftext|>", "blue"]
    expected = [len(TOKENIZER.encode(text).ids) for text in texts]
    read = read_tokenizer(tmp_path / "tokenizer.json")
    assert [len(read_prompt(read, None, text).ids) for text in texts] == expected


def test_special_tokens_are_left_out_where_a_source_says_so(tmp_path: Path) -> None:
    begun = byte_level(400, ["The sky is blue."])
    begun.post_processor = tokenizers.processors.TemplateProcessing(
        single="<|endoftext|> $A", special_tokens=[("<|endoftext|>", 0)]
    )
    begun.save(str(tmp_path / "tokenizer.json"))
    texts = ["The sky", "blue"]
    bare = [len(begun.encode(text, add_special_tokens=False).ids) for text in texts]
    read = read_tokenizer(tmp_path / "tokenizer.json")
    for text, count in zip(texts, bare, strict=True):
        assert len(read_prompt(read, None, text).ids) == count + 1
        assert len(read_prompt(read, None, text, special_tokens=False).ids) == count
    # The one in front is what the mask would hide, and it is known; without it no token is left.
    study = {"n_ctx": 8, "prompts": {"p": ["b"]}, "uses": [["p", "1:", "none", "none"]]}
    with pytest.raises(PromptError, match="special tokens alone"):
        check_prompts(tmp_path, tmp_path / "counts.json", **study)
    with pytest.raises(PromptError, match="leaves no visible position"):
        check_prompts(tmp_path, tmp_path / "counts.json", **study, special_tokens=False)


def drawn(tokens: list[int], mask: str) -> list[Mistake]:
    """Mistakes of a study whose first grid is given passages of these lengths, under one mask."""
    raw = example()
    raw["passages"] = {"p": {"corpus": "bible", "tokenizer": "bpe", "count": 2, "tokens": tokens}}
    raw["grids"][0] |= {"models": ["flat", "smol"], "prompts": ["p"], "masks": [mask]}
    return mistakes(raw)


def test_lengths_of_passages_are_known_before_they_are_drawn() -> None:
    assert drawn([4, 6], "3:") == []
    (blind,) = drawn([4, 6], "5:")
    # Only to the tokenizer that counts them: SmolLM2 may find more tokens in the same text.
    assert blind.key == "grids[0].masks[0]"
    assert says(
        blind, "leaves no visible position of passages.p.tokens = [4, 6] of 4 tokens (model `flat`)"
    )
    (long,) = drawn([4, 20], "3:")
    assert str(long) == (
        "passages.p.tokens = [4, 20]: has 20 tokens, more than n_ctx = 16 (model `flat`); "
        "allowed: 1 to 16 tokens"
    )
