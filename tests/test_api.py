"""The Python front door: any model, in memory or by name, in one call."""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import torch
from accelerate import cpu_offload
from rich.console import Console
from tokenizers.processors import TemplateProcessing
from transformers import (
    Gemma2Config,
    Gemma2ForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
)

import tokinfo as ti
from tokinfo.examples import tiny_model
from tokinfo.io.errors import InvalidError
from tokinfo.report.answer import Result
from tokinfo.tables.schema import RECOVERY_SCHEMA

PROMPT = "The sky is blue."
QUIET: dict[str, Any] = {"show_progress": False}


def in_family(family: str, vocabulary: int, **more: Any) -> Any:
    torch.manual_seed(0)
    size = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "head_dim": 8}
    size |= {"intermediate_size": 64, "num_key_value_heads": 2, "vocab_size": vocabulary}
    size |= {"max_position_embeddings": 64}
    if family == "gpt2":
        config = GPT2Config(
            n_embd=32, n_layer=2, n_head=4, vocab_size=vocabulary, n_positions=64, **more
        )
        return GPT2LMHeadModel(config)
    if family == "gemma2":
        return Gemma2ForCausalLM(Gemma2Config(**size, **more))
    return LlamaForCausalLM(LlamaConfig(**size, **more))


def state(model: Any) -> dict[str, Any]:
    """Everything about a model that a call might change."""
    return {
        "modes": [module.training for module in model.modules()],
        "wanted": [parameter.requires_grad for parameter in model.parameters()],
        "grads": [parameter.grad is None for parameter in model.parameters()],
        "hooks": [
            (len(module._forward_hooks), len(module._forward_pre_hooks), "forward" in vars(module))
            for module in model.modules()
        ],
        "devices": [parameter.device.type for parameter in model.parameters()],
        "dtypes": [parameter.dtype for parameter in model.parameters()],
        "buffers": [id(buffer) for buffer in model.buffers()],
        "config": model.config.to_dict(),
        "values": [
            parameter.detach().clone() for parameter in model.parameters() if not parameter.is_meta
        ],
    }


def same(before: dict[str, Any], after: dict[str, Any]) -> None:
    values = before.pop("values"), after.pop("values")
    assert before == after
    assert all(torch.equal(one, other) for one, other in zip(*values, strict=True))


def llama(**more: Any) -> Callable[[int], Any]:
    return lambda vocabulary: in_family("llama", vocabulary, **more)


@pytest.mark.parametrize(
    "make",
    [
        pytest.param(llama(), id="untied"),
        pytest.param(llama(tie_word_embeddings=True), id="tied"),
        pytest.param(lambda v: llama()(v).to(torch.bfloat16), id="bfloat16"),
        pytest.param(lambda v: llama(attention_dropout=0.5)(v).train(), id="training"),
        pytest.param(lambda v: llama()(v).requires_grad_(False), id="no gradients"),
        pytest.param(lambda v: cpu_offload(llama()(v)), id="accelerate"),
        pytest.param(lambda v: in_family("gpt2", v), id="gpt2"),
        pytest.param(lambda v: in_family("gemma2", v), id="gemma2"),
        pytest.param(lambda v: llama()(v).base_model, id="no head"),
    ],
)
def test_a_model_in_memory_answers_and_is_left_as_it_was(make: Callable[[int], Any]) -> None:
    _, tokenizer = tiny_model()
    model = make(tokenizer.vocab_size)
    before = state(model)
    with torch.inference_mode():
        swept = ti.load(model, tokenizer).sweep(PROMPT, site="block.2", visible="1:", **QUIET)
        found = ti.load(model, tokenizer).invert(PROMPT, site="block.1", visible="1:", **QUIET)
    same(before, state(model))
    assert swept.rows[0]["identified"] == "identifiable"
    assert found.certified
    assert found.text == PROMPT


def test_a_model_that_ran_under_inference_mode_descends() -> None:
    _, tokenizer = tiny_model()
    scaled = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10000.0}
    model = in_family("llama", tokenizer.vocab_size, rope_parameters=scaled)
    with torch.inference_mode():
        model(torch.arange(90)[None])  # longer than its positions: frequencies are worked out anew
    before = state(model)
    found = ti.load(model, tokenizer).invert(PROMPT, site="block.1", **QUIET)
    same(before, state(model))
    assert found.certified


def test_a_call_that_fails_leaves_the_model_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    model, tokenizer = tiny_model()
    before = state(model.train())

    def fail(*_: object, **__: object) -> None:
        raise KeyError("in the middle")

    monkeypatch.setattr("tokinfo.model.run", fail)
    with pytest.raises(KeyError):
        ti.load(model, tokenizer).invert(PROMPT, site="block.1", **QUIET)
    same(before, state(model))


def test_the_rows_are_those_of_the_model_by_any_name(tmp_path: Path) -> None:
    model, tokenizer = tiny_model()
    model.save_pretrained(tmp_path / "saved")
    tokenizer.save_pretrained(tmp_path / "saved")
    named = ti.load(tmp_path / "saved", device="cpu")
    memory = ti.load(model, tokenizer)
    assert named.depth == memory.depth == 2
    drop = ("model", "source", "model_digest", "device")
    for site in ("block.1", "block.last", "attention.2"):
        tables = [
            one.sweep(PROMPT, site=site, visible="2:", **QUIET).to_polars().drop(drop)
            for one in (named, memory)
        ]
        assert tables[0].equals(tables[1])
        assert tables[0]["site"][0] == site.replace("last", "2")


def test_only_the_blocks_that_a_site_needs_are_held(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TOKINFO_CACHE", str(tmp_path / "cache"))
    model, tokenizer = tiny_model(blocks=4)
    model.save_pretrained(tmp_path / "saved")
    tokenizer.save_pretrained(tmp_path / "saved")
    named = ti.load(tmp_path / "saved", device="cpu")
    with named._checkpoint(1) as checkpoint:
        assert checkpoint.facts.blocks_kept == 1
        assert len(checkpoint.decoder.layers) == 1
    assert list((tmp_path / "cache").iterdir()) == [], "checkpoints are not kept"


def test_special_tokens_are_known_and_in_no_count() -> None:
    model, tokenizer = tiny_model()
    end = tokenizer.vocab_size - 1
    tokenizer.add_special_tokens({"bos_token": tokenizer.convert_ids_to_tokens(end)})
    bos = tokenizer.bos_token
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single=f"{bos} $A", special_tokens=[(bos, end)]
    )
    opened = ti.load(model, tokenizer)
    found = opened.invert(PROMPT, site="block.1", visible="2:", **QUIET)
    assert found.rows[0]["given"]
    assert found.hidden == [1]
    assert found.correct == 1
    bare = ti.load(model, tokenizer, special_tokens=False)
    assert bare.tokens(PROMPT) == opened.tokens(PROMPT)[1:]


def test_a_text_is_hidden_wherever_it_stands() -> None:
    opened = ti.load(*tiny_model())
    swept = opened.sweep("Mario the man versus Mario the idea.", site="block.1", hide="Mario")
    hidden = [row for row in swept.rows if not row["visible"]]
    assert "".join(row["true_token"] for row in hidden).count("Mario") == 2
    assert hidden[0]["position"] == 0
    assert swept.rows[0]["mask"] == 'hide="Mario"'
    with pytest.raises(InvalidError, match="there is no"):
        opened.sweep(PROMPT, site="block.1", hide="Mario")


@pytest.mark.parametrize(
    ("model", "reason"),
    [
        (lambda v: torch.nn.Linear(2, 2), "no model of transformers"),
        (lambda v: llama()(v).double(), "float64"),
    ],
)
def test_what_cannot_be_probed_is_refused_by_name(model: Callable[[int], Any], reason: str) -> None:
    _, tokenizer = tiny_model()
    with pytest.raises(InvalidError, match=reason):
        ti.load(model(tokenizer.vocab_size), tokenizer).sweep(PROMPT, site="block.1", **QUIET)


def test_a_model_made_under_inference_mode_is_refused() -> None:
    with torch.inference_mode():
        made = tiny_model()
    with pytest.raises(InvalidError, match="inference_mode"):
        ti.load(*made)


@pytest.mark.parametrize(
    ("call", "reason"),
    [
        (lambda m: m.invert(PROMPT, site="layer.1"), "site 'layer.1'"),
        (lambda m: m.invert(PROMPT, site="block.9"), "block"),
        (lambda m: m.invert(PROMPT, site="block.1", solver="magic"), "solver 'magic'"),
        (lambda m: m.invert(PROMPT, site="block.1", solver="mixtur"), "did you mean `mixture`"),
        (lambda m: m.invert(PROMPT, site="layer.1"), "did you mean `block.1`"),
        (lambda m: ti.load("x/y", quantization="8bit"), "did you mean `int8`"),
        (lambda m: m.invert(PROMPT, site="block.1", solver="sweep"), "Model.sweep"),
        (lambda m: m.invert(PROMPT, site="block.1", metric="l7"), "metric"),
        (lambda m: m.invert(PROMPT, site="block.1", visible="x"), "mask 'x'"),
        (lambda m: m.invert(PROMPT, site="block.1", visible="1:", hide="sky"), "one of them"),
        (lambda m: m.invert("", site="block.1"), "blank"),
        (lambda m: m.invert(PROMPT * 40, site="block.1"), "the model holds 64"),
        (lambda m: m.sweep(PROMPT, site="block.1", visible=":"), "nothing to sweep"),
        (lambda m: m.invert(PROMPT, site="block.1", known=":"), "leaves nothing to find"),
    ],
)
def test_a_request_that_does_not_suit_is_one_line(
    call: Callable[[ti.Model], Any], reason: str
) -> None:
    with pytest.raises(InvalidError, match=reason) as raised:
        call(ti.load(*tiny_model()))
    assert "\n" not in str(raised.value)


def test_a_name_of_nothing_is_refused_with_what_is_allowed() -> None:
    with pytest.raises(InvalidError, match=r"save_pretrained.*gguf.*OWNER/NAME"):
        ti.load("no such model")
    with pytest.raises(InvalidError, match="commit"):
        ti.load("owner/name", trust_remote_code=True)


def test_a_call_in_another_thread_works() -> None:
    found: list[Result] = []
    opened = ti.load(*tiny_model())
    thread = threading.Thread(
        target=lambda: found.append(opened.sweep(PROMPT, site="block.1", **QUIET))
    )
    thread.start()
    thread.join()
    assert found[0].rows[0]["rank"] == 1


# --- the result -----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def judged() -> Result:
    return ti.load(*tiny_model()).invert(
        PROMPT, site="block.2", visible="2:", solver="joint", judge=True, **QUIET
    )


def test_a_result_is_the_rows_of_a_cell(judged: Result) -> None:
    table = judged.to_polars()
    assert dict(table.schema) == RECOVERY_SCHEMA
    hidden = table.filter(~pl.col("visible"))
    assert judged.correct == hidden["correct"].sum() == 2
    whole = (hidden["verdict"] == "certified") & hidden["correct"]
    assert judged.recovered == (whole & (hidden["identified"] == "identifiable")).sum() == 2
    assert judged.claims == {0: "The", 1: " sky"}
    assert table.select("prompt_exact", "token_f1", "edit_similarity").row(0) == (True, 1.0, 1.0)
    swept = ti.load(*tiny_model()).sweep(PROMPT, site="block.1", **QUIET).to_polars()
    assert swept["prompt_exact"].null_count() == len(swept)


def test_nothing_counts_as_recovered_without_a_sweep_around_it() -> None:
    found = ti.load(*tiny_model()).invert(PROMPT, site="block.1", **QUIET)
    assert found.correct == 1
    assert found.recovered is None
    assert found.claims == {}


def test_a_table_fits_80_columns_and_breaks_no_word(judged: Result) -> None:
    rows = copy.deepcopy(judged.rows)
    rows[0] |= {"true_token": "x" * 60, "found_token": "y" * 60, "correct": False}
    rows[0] |= {"rank": 49152, "margin": 1.2345e-7, "bits_high": 15.5, "noise_threshold": 0.0123}
    rows[0] |= {"noise_step": 1.33, "identified": "identifiable"}
    console = Console(width=80, force_terminal=True, record=True)
    Result(rows, "heading", "text").show(console)
    lines = console.export_text().splitlines()
    assert max(map(len, lines)) <= 80
    table = "\n".join(lines)
    for word in ("49,152", "1.23e-07", "0.0123", "identifiable", "not found"):
        assert word in table, table


def test_markup_in_a_token_is_text_in_html(judged: Result) -> None:
    rows = copy.deepcopy(judged.rows)
    rows[0] |= {"found_token": "<script>alert(1)</script>", "true_token": "<b>"}
    shown = Result(rows, "<i>heading", "text")._repr_html_()
    assert "<script" not in shown
    assert "<i>" not in shown
    assert "&lt;script" in shown
