"""The parity report tells a probe that reads right from one that does not."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor, nn
from typer.testing import CliRunner

from tests.families import FAMILIES, VOCABULARY, tiny
from tests.tiny import tiny_mixer
from tokinfo.cli.app import app
from tokinfo.models import streaming
from tokinfo.models.build import new_model
from tokinfo.models.checkpoint import save_model
from tokinfo.models.structure import Block, StructureError, find_blocks
from tokinfo.probe import parity, probe
from tokinfo.probe.parity import Row, compare, references
from tokinfo.probe.probe import Probe
from tokinfo.study.sources import MixerSource

IDS = torch.randint(VOCABULARY, (2, 10), generator=torch.Generator().manual_seed(0))
run = CliRunner().invoke


def failing(rows: list[Row]) -> set[tuple[str, str]]:
    return {(row.site, row.read) for row in rows if not row.passes()}


def test_the_reference_is_computed_without_the_probe(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("the reference uses the probe")

    monkeypatch.setattr(parity, "Probe", refuse)
    for name in ("__init__", "__call__", "prefix"):
        monkeypatch.setattr(probe.Probe, name, refuse)
    assert len(references(tiny("GPT-J").base_model, IDS)) == 10


def test_the_last_block_is_followed_back_from_the_last_hidden_state() -> None:
    for family, behind in (("Gemma 3", "Gemma3RMSNorm"), ("GPT-2", "LayerNorm"), ("OPT", "LayerN")):
        last = references(tiny(family).base_model, IDS)[-1]
        assert last.what.startswith(f"last hidden state of transformers, before {behind}"), family


def test_a_probe_that_reads_the_wrong_activations_fails_everywhere(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    read = Probe.__call__

    def slightly_off(self: Probe, *arguments: Any, **named: Any) -> Tensor:
        return read(self, *arguments, **named) * (1 + 1e-4)

    monkeypatch.setattr(Probe, "__call__", slightly_off)
    rows = compare(tiny("Llama 2").base_model, IDS)
    assert len(failing(rows)) == len(rows) == 20


def test_a_cache_that_forgets_where_the_prefix_ended_fails_after_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What DynamicCache does by itself for a sliding window shorter than the prefix."""
    from transformers import DynamicCache

    monkeypatch.setattr(probe, "_new_cache", lambda decoder: DynamicCache(config=decoder.config))
    rows = compare(tiny("Mistral").base_model, IDS)
    assert {read for _, read in failing(rows)} == {"after a prefix of 5"}
    assert ("block.1", "after a prefix of 5") in failing(rows)


def test_an_unscaled_embedding_fails_for_a_family_that_scales_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def bare(decoder: nn.Module) -> Tensor:
        return decoder.get_input_embeddings().weight  # type: ignore[no-any-return, operator, union-attr]

    monkeypatch.setattr(parity, "input_table", bare)
    assert ("embedding", "whole") in failing(compare(tiny("Gemma 2").base_model, IDS))
    assert failing(compare(tiny("Llama 2").base_model, IDS)) == set()


def test_an_mlp_that_drowns_attention_raises_no_false_alarm() -> None:
    for family in ("Llama 2", "Gemma 2", "GPT-J", "OPT-350m"):
        model = tiny(family, num_hidden_layers=2, layer_types=None)
        for block in find_blocks(model):
            for values in Block(block).mlp.parameters():
                values *= 30
        assert failing(compare(model.base_model, IDS)) == set(), family


def test_hidden_states_that_begin_at_the_first_block_are_told_apart() -> None:
    config = transformers.MambaConfig(
        vocab_size=VOCABULARY, hidden_size=32, num_hidden_layers=3, state_size=4
    )
    found = references(transformers.MambaModel(config).eval(), IDS)
    what = {str(one.site): one.what for one in found if one.values is not None}
    assert what["block.1"] == "hidden state 0 of transformers"


def test_a_family_that_is_not_probed_raises_no_alarm(tmp_path: Path) -> None:
    """It is refused, and where other sites agree nothing is wrong with the model."""
    ctrl = transformers.CTRLConfig(
        vocab_size=VOCABULARY, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, dff=48
    )
    rows = compare(transformers.CTRLModel(ctrl).eval(), IDS)
    refusals = {row.refusal for row in rows if row.site == "block.2"}
    assert refusals == {"CTRLModel: writes into the embeddings given"}
    mamba = transformers.MambaConfig(
        vocab_size=VOCABULARY, hidden_size=32, num_hidden_layers=2, state_size=4
    )
    save_model(transformers.MambaForCausalLM(mamba), tmp_path / "model")
    result = run(app, ["parity", str(tmp_path / "model")])
    assert result.exit_code == 0, result.output
    assert "0 sub-modules look like self-attention" in result.stdout
    assert "6 of 14 agree" in result.stdout


def test_what_is_probed_may_be_cut_and_the_reference_is_not() -> None:
    model, other = tiny("Llama 2").base_model, tiny("Llama 2").base_model
    other.layers[1].input_layernorm.weight += 1  # type: ignore[index, union-attr, operator]
    asked: list[int] = []

    def cut(number: int) -> nn.Module:
        asked.append(number)
        return other if number == 2 else model

    rows = compare(model, IDS, cut)
    assert asked == [0, 1, 2, 3]
    assert {site for site, _ in failing(rows)} == {"attention.2", "mlp.2", "block.2"}


def test_mixers_agree_too() -> None:
    rows = compare(tiny_mixer("expanded", blocks=3), IDS)
    assert failing(rows) == set()
    assert rows[-1].site == "block.3"


def test_a_checkpoint_without_blocks_has_an_embedding_to_compare() -> None:
    for family in ("Gemma 2", "GPT-2"):
        rows = compare(tiny(family, num_hidden_layers=0, layer_types=None).base_model, IDS)
        assert [row.site for row in rows] == ["embedding", "embedding"]
        assert failing(rows) == set()


def test_a_model_of_one_block_is_compared_once() -> None:
    rows = compare(tiny_mixer(blocks=1), IDS)
    assert [row.site for row in rows[::2]] == ["embedding", "attention.1", "mlp.1", "block.1"]


def test_a_refusal_and_a_missing_number_do_not_pass() -> None:
    assert not Row("block.1", "whole", "", None, "no").passes()
    assert not Row("block.1", "whole", "", math.nan).passes()
    assert Row("block.1", "whole", "", 1e-6).passes()


def test_a_site_that_the_probe_refuses_is_a_row_that_says_why(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refuse(self: Probe, *_: Any, **__: Any) -> None:
        raise StructureError("not understood")

    monkeypatch.setattr(Probe, "prefix", refuse)
    rows = compare(tiny("GPT-2").base_model, IDS)
    assert {row.refusal for row in rows} == {"", "not understood"}
    assert {read for _, read in failing(rows)} == {"after a prefix of 5"}


# --- the command --------------------------------------------------------------------------


def test_the_command_reads_checkpoints_that_end_at_blocks_1_and_2(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Here the study's way to the weights is made to go wrong, and only that."""
    save_model(tiny("Llama 2"), tmp_path / "model")
    write = streaming.write_part

    def doubled(tensors: dict[str, Tensor], file: Path) -> None:
        write({name: 2 * x if "layernorm" in name else x for name, x in tensors.items()}, file)

    monkeypatch.setattr(streaming, "write_part", doubled)
    result = run(app, ["parity", str(tmp_path / "model")])
    assert result.exit_code == 1
    differing = {line.split()[0] for line in result.stdout.splitlines() if "DIFFERS" in line}
    places = ("attention", "mlp", "block")
    assert differing == {f"{place}.{number}" for number in (1, 2) for place in places}


def test_the_command_prints_a_table_and_what_it_was_made_with(tmp_path: Path) -> None:
    save_model(tiny("Gemma 3"), tmp_path / "model")
    result = run(app, ["parity", str(tmp_path / "model"), "--seed", "7", "--tokens", "9"])
    assert result.exit_code == 0, result.output
    rows = [line.split() for line in result.stdout.splitlines() if line.endswith("ok      ")]
    assert [row[0] for row in rows][::2] == [
        "embedding",
        *(f"{place}.{number}" for number in (1, 2, 3) for place in ("attention", "mlp", "block")),
    ]
    assert "Gemma3TextModel, 2 prompts of 9 random tokens (seed 7): 20 of 20 agree" in result.stdout


def test_the_command_says_that_a_window_was_not_left(tmp_path: Path) -> None:
    save_model(tiny("Mistral", sliding_window=40), tmp_path / "model")
    result = run(app, ["parity", str(tmp_path / "model")])
    assert "The sliding window (40) is not left; --tokens 42 would do so." in result.stdout


def test_a_prompt_is_no_longer_than_the_model(tmp_path: Path) -> None:
    mixer = MixerSource(form="flat", d_model=32, blocks=2, n_ctx=8, tokenizer="t")
    save_model(new_model(mixer, VOCABULARY, 0), tmp_path / "model")
    result = run(app, ["parity", str(tmp_path / "model"), "--tokens", "20"])
    assert result.exit_code == 0, result.output
    assert "2 prompts of 8 random tokens" in result.stdout


def test_a_difference_is_printed_and_the_command_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_model(tiny("GPT-2"), tmp_path / "model")
    monkeypatch.setattr(parity, "input_table", lambda decoder: torch.ones(VOCABULARY, 32))
    result = run(app, ["parity", str(tmp_path / "model")])
    assert result.exit_code == 1
    assert result.stdout.count("DIFFERS") == 20
    assert "0 of 20 agree" in result.stdout


def test_what_is_no_model_is_one_line_and_no_traceback(tmp_path: Path) -> None:
    result = run(app, ["parity", str(tmp_path)])
    assert result.exit_code == 1
    assert result.stderr.count("\n") == 1
    assert "not a model directory" in result.stderr
    FAMILIES["GPT-2"].config().save_pretrained(tmp_path)
    result = run(app, ["parity", str(tmp_path)])
    assert result.exit_code == 1
    assert result.stderr.count("\n") == 1
