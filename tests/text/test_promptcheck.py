from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer
from tokenizers.processors import TemplateProcessing

from tests.chat_templates import CHATML, GEMMA, write_chat_model
from tokinfo.text.promptcheck import PromptError, check_prompts
from tokinfo.text.tokenizer import train_tokenizer


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tokenizer whose only tokens of a text are its bytes: lengths are known."""
    directory = tmp_path_factory.mktemp("tokenizer")
    text = directory / "text.txt"
    text.write_text("a", encoding="utf-8")
    train_tokenizer(text, 258, directory / "bytes")
    return directory / "bytes"


def test_a_mask_that_hides_special_tokens_alone_is_refused(tokenizer: Path, tmp_path: Path) -> None:
    words = Tokenizer.from_file(str(tokenizer / "tokenizer.json"))
    words.post_processor = TemplateProcessing(
        single="<|endoftext|> $A", special_tokens=[("<|endoftext|>", 0)]
    )
    words.save(str(tmp_path / "tokenizer.json"))
    out = tmp_path / "p.json"
    check_prompts(tmp_path, out, **settings(["abc"], ("2:", "none")))
    with pytest.raises(PromptError, match=r"mask '1:' hides special tokens.*prompts\.p\[0\]"):
        check_prompts(tmp_path, out, **settings(["abc"], ("1:", "none"), ("2:", "none")))


BARE = "{% for message in messages %}{{ message.content }}{% endfor %}"


def settings(texts: list[Any], *uses: tuple[str, ...], n_ctx: int = 8) -> dict[str, Any]:
    return {
        "n_ctx": n_ctx,
        "prompts": {"p": texts},
        "uses": [["p", mask, padding, *(known or ["none"])] for mask, padding, *known in uses],
    }


def test_passages_are_counted_and_checked_like_other_prompts(
    tokenizer: Path, tmp_path: Path
) -> None:
    file = tmp_path / "drawn.json"
    file.write_text(json.dumps({"passages": [{"text": "abcd"}, {"text": "ab"}]}), encoding="utf-8")
    arguments = settings(["abc"], (":", "none"))
    arguments["uses"].append(["drawn", "1:", "none", "none"])
    check_prompts(tokenizer, tmp_path / "p.json", [file], **arguments)
    counts = json.loads((tmp_path / "p.json").read_text(encoding="utf-8"))
    assert counts == {"p": [3], "drawn": [4, 2]}
    arguments["uses"].append(["drawn", "3:", "none", "none"])
    with pytest.raises(
        PromptError, match=r"mask '3:' leaves no visible position of passages\.drawn\[1\]"
    ):
        check_prompts(tokenizer, tmp_path / "p.json", [file], **arguments)


def test_counts_are_written_when_all_is_well(tokenizer: Path, tmp_path: Path) -> None:
    out = tmp_path / "p.json"
    check_prompts(tokenizer, out, **settings(["abc", "abcdefgh"], (":", "none"), ("1:", "none")))
    assert json.loads(out.read_text(encoding="utf-8")) == {"p": [3, 8]}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (settings(["abcdefghi"], (":", "none")), "9 tokens, more than n_ctx = 8"),
        (
            settings(["ab"], ("2:", "none")),
            "mask '2:' leaves no visible position of prompts.p[0] = 'ab'",
        ),
        (settings(["abc"], (":3", "none")), "mask ':3' hides no position"),
        (
            settings(["ab"], ("1:", "none", "0")),
            "known '0' under mask '1:' leaves nothing to find of prompts.p[0] = 'ab' (2 tokens)",
        ),
        (settings(["ab"], ("1:", "none", "2:")), "known '2:' under mask '1:' gives no token"),
        (settings(["ab"], ("-1", "n_ctx", "visible")), "known 'visible' under mask '-1' gives no"),
    ],
)
def test_what_is_wrong_is_named(
    tokenizer: Path, tmp_path: Path, arguments: dict[str, Any], message: str
) -> None:
    out = tmp_path / "p.json"
    with pytest.raises(PromptError) as failed:
        check_prompts(tokenizer, out, **arguments)
    assert message in str(failed.value)
    assert not out.exists()


CHAT = [{"role": "system", "content": "ab"}, {"role": "user", "content": "c"}]


@pytest.mark.parametrize(
    ("template", "uses", "n_ctx", "message"),
    [
        (None, [("1:", "none")], 99, "prompts.p[0] = [{"),
        (None, [("1:", "none")], 99, "the model has no chat template"),
        (GEMMA, [("1:", "none")], 99, "System role not supported"),
        (CHATML, [("1:", "none")], 9, "tokens, more than n_ctx = 9"),
        (CHATML, [("hide=user", "none", ":")], 99, "known ':' under mask 'hide=user' leaves noth"),
        (BARE, [("hide=system,user", "none")], 99, "'hide=system,user' leaves no visible position"),
    ],
)
def test_a_chat_that_cannot_be_used_is_named(
    tmp_path: Path,
    template: str | None,
    uses: list[tuple[str, ...]],
    n_ctx: int,
    message: str,
) -> None:
    write_chat_model(tmp_path / "model", template)
    with pytest.raises(PromptError) as failed:
        check_prompts(
            tmp_path / "model", tmp_path / "p.json", **settings([CHAT], *uses, n_ctx=n_ctx)
        )
    assert message in str(failed.value)
    assert "\n" not in str(failed.value)


def test_a_chat_is_counted_with_what_its_template_writes(tmp_path: Path) -> None:
    write_chat_model(tmp_path / "model", BARE)
    uses = [("hide=system", "none", "visible"), ("hide=user", "none", "0")]
    check_prompts(tmp_path / "model", tmp_path / "p.json", **settings([CHAT, "ab"], *uses[:0]))
    assert json.loads((tmp_path / "p.json").read_text()) == {"p": [3, 3]}
    check_prompts(tmp_path / "model", tmp_path / "p.json", **settings([CHAT], *uses))


def test_one_message_names_all_mistakes(tokenizer: Path, tmp_path: Path) -> None:
    arguments = settings(["abcdefghi", "ab"], (":", "none"), ("2:", "none"))
    with pytest.raises(PromptError) as failed:
        check_prompts(tokenizer, tmp_path / "p.json", **arguments)
    assert str(failed.value).count(";") == 1
