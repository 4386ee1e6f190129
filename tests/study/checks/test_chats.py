"""Chats in a study: their form, the roles that masks hide, and the models that read them."""

from __future__ import annotations

import copy
import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests import REPOSITORY
from tests.chat_templates import CHATML, GEMMA, write_chat_model
from tests.example_study import Row, at, each, example, keys, mistakes, put, says
from tokinfo.study.cell import CellSettings
from tokinfo.study.load import load_study
from tokinfo.study.mistakes import Mistake
from tokinfo.workflow import memory
from tokinfo.workflow.plan import Plan

CHAT = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "What is it?"}]


def study(*changes: tuple[tuple[str | int, ...], object]) -> dict[str, Any]:
    """A study of one cell, whose system prompt is hidden and whose user turn is known."""
    raw = example()
    raw["prompts"]["chats"] = [copy.deepcopy(CHAT)]
    raw["grids"] = [
        {
            "models": ["smol"],
            "sites": ["block.1"],
            "masks": ["hide=system"],
            "known": ["visible"],
            "solvers": ["adam"],
            "prompts": ["chats"],
        }
    ]
    for path, value in changes:
        put(raw, path, value)
    return raw


def test_a_hidden_system_prompt_before_a_known_user_turn_is_a_cell() -> None:
    (cell,) = load_study(study()).cells()
    assert cell.path == (
        "cells/smol/block.1+known-visible/hide-system/l1_embedding_adam_chats_s0.parquet"
    )


def test_a_study_written_as_yaml_is_the_same() -> None:
    text = yaml.safe_dump(study()).replace("'hide=system'", "hide=system")
    assert load_study(yaml.safe_load(text)) == load_study(study())


def test_the_entry_that_the_documentation_prints_loads() -> None:
    text = (REPOSITORY / "docs" / "method.md").read_text(encoding="utf-8")
    blocks = re.findall(r"```yaml\n(.*?)```", text, re.DOTALL)
    (entry,) = (block for block in blocks if "hide=" in block)
    (cell,) = load_study(example() | yaml.safe_load(entry)).cells()
    assert (cell.mask.text, cell.known.text) == ("hide=system", "visible")


def test_jobs_are_given_the_messages_as_they_are_written() -> None:
    plan = Plan(load_study(study()))
    (cell,) = plan.cells.values()
    settings = plan.cell_settings(cell)
    assert settings["prompts"] == plan.prompt_settings("smol")["prompts"]["chats"] == [CHAT]
    assert repr(settings) == repr(plan.cell_settings(cell))
    (prompt,) = CellSettings.model_validate(json.loads(json.dumps(settings))).prompts
    assert [message.model_dump() for message in prompt] == CHAT


FORM: list[Row] = [
    (("prompts", "chats", 0), [], "is empty"),
    (("prompts", "chats", 0), {"role": "user", "content": "x"}, "list of messages"),
    (("prompts", "chats", 0), 5, "should be a text; write it in quotes"),
    (("prompts", "chats", 0), ["x"], "must be a mapping", "prompts.chats[0][0]"),
    (("prompts", "chats", 0, 0, "role"), "sytem", "system, developer, user, assistant, tool"),
    (("prompts", "chats", 0, 1, "content"), " \n", "is blank"),
    (("prompts", "chats", 0, 1, "content"), 5, "write it in quotes"),
    (("prompts", "chats", 0, 1), {"role": "user"}, "is missing", "prompts.chats[0][1].content"),
    (("prompts", "chats", 0, 1, "name"), "x", "unknown key"),
    (("prompts", "chats"), [CHAT, CHAT], "repeats prompts.chats[0]", "prompts.chats[1]"),
]


@each(FORM)
def test_a_mistake_in_the_form_of_a_chat_is_one_line(row: Row) -> None:
    found = mistakes(study(row[:2]))
    assert keys(found) == [at(row)], found
    assert says(found[0], row[2]), found


MASKS: list[Row] = [
    (("grids", 0, "masks"), ["1:", "hide=assistant"], "which prompts.chats[0] does not have",
     "grids[0].masks[1]"),
    (("grids", 0, "masks"), ["hide=user, tool"], "hides user and tool", "grids[0].masks[0]"),
    (("grids", 0, "prompts"), ["chats", "sky"], "prompts.sky[0] and 1 more",
     "grids[0].masks[0]"),
    (("grids", 0, "masks"), ["hide=someone"], "system, developer, user", "grids[0].masks[0]"),
    (("grids", 0, "masks"), ["hide='zzz'"], "which prompts.chats[0]", "grids[0].masks[0]"),
    (("grids", 0, "masks"), ["hide="], "is not a mask", "grids[0].masks[0]"),
    (("grids", 0, "masks"), ["hide=system,user", "hide=user,system"], "repeats grids[0].masks[0]",
     "grids[0].masks[1]"),
    (("grids", 0, "known"), ["hide=system"], "is not a choice of known tokens",
     "grids[0].known[0]"),
]  # fmt: skip


@each(MASKS)
def test_a_mask_of_a_role_that_some_prompt_lacks_is_one_line(row: Row) -> None:
    found = mistakes(study(row[:2]))
    assert keys(found) == [at(row)], found
    assert says(found[0], row[2]), found


def test_passages_have_no_roles() -> None:
    passages = {"corpus": "bible", "tokenizer": "bpe", "count": 2, "tokens": [4, 6]}
    raw = study((("passages",), {"drawn": passages}), (("grids", 0, "prompts"), ["drawn"]))
    (found,) = mistakes(raw)
    assert found.key == "grids[0].masks[0]"
    assert says(found, "passages.drawn does not have")


def test_a_model_with_a_tokenizer_made_here_reads_no_chats() -> None:
    (found,) = mistakes(study((("grids", 0, "models"), ["smol", "flat", "llama"])))
    assert (found.key, found.value) == ("grids[0].prompts[0]", "chats")
    assert says(found, "has a chat, prompts.chats[0]")
    assert says(found, "have no chat template: `flat`, `llama`")


# --- models whose tokenizer is here -----------------------------------------------------------


def local(template: str | None, *changes: tuple[tuple[str | int, ...], object]) -> list[Mistake]:
    """Mistakes of a study of a model in a directory, of 64 positions."""
    write_chat_model(Path("model"), template)
    config = {"model_type": "llama", "num_hidden_layers": 30, "max_position_embeddings": 64}
    Path("model/config.json").write_text(json.dumps(config))
    source = {"kind": "local", "path": "model", "blocks": 30, "n_ctx": 64}
    return mistakes(study((("sources", "smol"), source), *changes))


def test_the_template_of_a_model_on_this_machine_is_read_at_once() -> None:
    assert local(CHATML) == []
    (none,) = local(None)
    assert none.key == "prompts.chats[0]"
    assert says(none, "model `smol` cannot read it: is a list of messages, and the model has no")
    (refused,) = local(GEMMA)
    assert refused.key == "prompts.chats[0]"
    assert says(refused, "System role not supported")
    (rewritten,) = local("{{ messages[0].content | upper }}")
    assert says(rewritten, "rewrites messages[0] (role system)")


def test_what_an_earlier_run_left_without_a_template_refuses_nothing() -> None:
    write_chat_model(Path("results/sources/smol/config"), None)
    assert mistakes(study()) == []


def test_a_chat_that_is_too_long_is_counted_with_its_template() -> None:
    (long,) = local(CHATML, (("prompts", "chats", 0, 1, "content"), "z" * 60))
    assert long.key == "prompts.chats[0]"
    assert says(long, "tokens, more than n_ctx = 64, counted with model/tokenizer.json")


def test_without_a_tokenizer_only_what_is_certain_of_a_chat_is_refused() -> None:
    many = (("prompts", "chats", 0, 1, "content"), "word " * 60)
    assert mistakes(study(many)) == []
    (long,) = mistakes(study(many, (("sources", "smol", "n_ctx"), 32)))
    assert long.key == "prompts.chats[0]"
    # Of 62 words one may continue the last one before it.
    assert says(long, "more than n_ctx = 32")


@pytest.mark.parametrize(("mask", "hidden"), [("hide=system", 5), ("hide=system,user", 11)])
def test_memory_counts_a_chats_words_and_what_the_template_adds(mask: str, hidden: int) -> None:
    loaded = load_study(study((("grids", 0, "masks"), [mask]), (("grids", 0, "known"), ["none"])))
    (cell,) = loaded.cells()
    # A token for two letters or spaces, and one for each sign.
    assert memory.longest_prompt(loaded, cell) == 5 + 6 + memory.TEMPLATE_TOKENS
    assert memory.most_hidden(loaded, cell, 100) == hidden
    assert memory.most_hidden(loaded, cell, 4) == 4
