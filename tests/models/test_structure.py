"""Blocks, attention and MLP are found from the module tree, or named as missing."""

from __future__ import annotations

from typing import Any

import pytest
import transformers
from torch import nn

from tests.families import BLOCKS, FAMILIES, tiny
from tests.tiny import tiny_mixer
from tokinfo.models.structure import Block, StructureError, find_block, find_blocks


@pytest.mark.parametrize("family", FAMILIES)
def test_the_parts_of_every_family_are_found(family: str) -> None:
    model, shape = tiny(family), FAMILIES[family]
    for decoder in (model, model.base_model):
        blocks = find_blocks(decoder)
        assert len(blocks) == BLOCKS
        block = find_block(decoder, 2)
        assert block.module is blocks[1]
        assert block.attention is blocks[1].get_submodule(shape.attention)
        assert block.mlp is blocks[1].get_submodule(shape.mlp)


@pytest.mark.parametrize("form", ["flat", "expanded", "parallel"])
def test_a_mixer_has_mixing_in_the_place_of_attention(form: str) -> None:
    mixer = tiny_mixer(form)
    block = find_block(mixer, 2)
    assert block.attention is mixer.blocks[1].mixing
    assert block.mlp is mixer.blocks[1].mlp


def module(**children: nn.Module) -> nn.Module:
    found = nn.Module()
    for name, child in children.items():
        found.add_module(name, child)
    return found


def line() -> nn.Linear:
    return nn.Linear(4, 4)


def test_a_longer_list_inside_a_block_is_not_the_list_of_blocks() -> None:
    experts = [nn.ModuleList(line() for _ in range(8)) for _ in range(2)]
    layers = nn.ModuleList(module(self_attn=line(), moe=module(experts=e)) for e in experts)
    assert find_blocks(module(layers=layers)) is layers
    assert find_block(module(layers=layers), 1).mlp is layers[0].moe


def test_of_several_lists_the_one_as_deep_as_the_configuration_is_taken() -> None:
    layers = nn.ModuleList([module(self_attn=line()), module(self_attn=line())])
    decoder = module(projections=nn.ModuleList(line() for _ in range(5)), layers=layers)
    decoder.config = transformers.LlamaConfig(num_hidden_layers=2)  # type: ignore[assignment]
    assert find_blocks(decoder) is layers


def test_of_lists_of_one_length_the_one_with_attention_is_taken() -> None:
    layers = nn.ModuleList([module(self_attn=line()), module(self_attn=line())])
    decoder = module(gates=nn.ModuleList([line(), line()]), layers=layers)
    assert find_blocks(decoder) is layers


def test_blocks_that_differ_are_found_and_only_a_missing_part_is_refused() -> None:
    layers = nn.ModuleList([module(ssm=line(), mlp=line()), module(self_attn=line(), mlp=line())])
    decoder = module(layers=layers)
    assert find_block(decoder, 1).module is layers[0]
    with pytest.raises(StructureError, match="0 sub-modules look like self-attention"):
        _ = find_block(decoder, 1).attention
    assert find_block(decoder, 2).attention is layers[1].self_attn


@pytest.mark.parametrize(
    ("children", "part", "message"),
    [
        ({"mlp": line()}, "attention", "Module: 0 sub-modules look like self-attention; it has: m"),
        (
            {"attn": line(), "crossattention": line()},
            "attention",
            "2 sub-modules look like self-attention; it has: attn, crossattention",
        ),
        (
            {"norm_attn_norm": module(norm=nn.LayerNorm(4), attn=module(q=line()))},
            "attention",
            "Module holds more than self-attention: norm, attn",
        ),
        ({"attn": line()}, "mlp", "0 sub-modules look like the MLP; it has: attn"),
        ({"attn": line(), "moe": line(), "shared_mlp": module(w=line())}, "mlp", "2 sub-modules"),
        ({"attn": line(), "up": nn.Linear(4, 8), "down": nn.Linear(8, 2)}, "mlp", "0 sub-modules"),
    ],
)
def test_what_is_not_understood_is_named(
    children: dict[str, nn.Module], part: str, message: str
) -> None:
    with pytest.raises(StructureError, match=message):
        getattr(Block(module(**children)), part)


def test_missing_and_ambiguous_lists_are_named() -> None:
    with pytest.raises(StructureError, match="Linear: no list of decoder blocks was found"):
        find_blocks(line())
    two: dict[str, Any] = {name: nn.ModuleList([module(attn=line())]) for name in ("a", "b")}
    with pytest.raises(StructureError, match=r"2 lists look like its 1 .*it has: a \(1\), b \(1\)"):
        find_blocks(module(**two))
    with pytest.raises(StructureError, match="block 3 requested, 2 held"):
        find_block(tiny_mixer(), 3)
