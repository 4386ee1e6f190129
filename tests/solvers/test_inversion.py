"""What attention returned is read off the first block's activations."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from tests.families import tiny
from tests.tiny import VOCABULARY, tiny_llama
from tokinfo.probe.attention import FirstAttention
from tokinfo.probe.noise import alone
from tokinfo.probe.probe import Probe
from tokinfo.solvers.inversion import Inversion
from tokinfo.study.sites import Site

PROMPT = [3, 1, 4, 1, 5, 9, 2, 6]
FIRST = 3
"""Tokens from here on are known; random prompts have others before."""


def inversion_of(
    model: Any, site: str = "block.1", prompt: list[int] | None = None, below: int = VOCABULARY
) -> tuple[Inversion, Tensor]:
    """The visible positions of a prompt, and what attention returned there."""
    table = model.get_input_embeddings().weight
    probe = Probe(model.base_model, Site.parse(site))
    attention = FirstAttention(probe)
    ids = torch.tensor([PROMPT if prompt is None else prompt])
    truth = attention.attended(table[ids])[0, FIRST:].flatten(1)
    target = alone(probe, table, ids, torch.tensor([ids.shape[1]]))[0, FIRST:]
    drawn = torch.tensor([PROMPT]).repeat(truth.shape[1] + 512, 1)
    generator = torch.Generator().manual_seed(0)
    drawn[:, :FIRST] = torch.randint(below, (len(drawn), FIRST), generator=generator)
    samples = attention.attended(table[drawn])[:, FIRST:].flatten(2)
    places = torch.arange(FIRST, len(PROMPT))
    known = table[torch.tensor(PROMPT[FIRST:])]
    return Inversion(attention, places, known, target, samples), truth


def test_a_position_counts_where_positions_are_learned() -> None:
    """Also with more samples and components than there are positions."""
    inversion, truth = inversion_of(tiny("GPT-2"), below=96)
    for position, true in enumerate(truth):
        found = inversion.start(position, 3)
        assert found is not None
        assert len(found.directions) >= 0.9 * len(true)
        assert float((found.directions @ (found.value - true)).norm() / true.norm()) <= 1e-3
    assert max(inversion.left(truth)) <= 1e-5


@pytest.mark.parametrize("site", ["attention.1", "block.1"])
@pytest.mark.parametrize("scale", [0.05, 0.1])
def test_the_return_is_the_true_one_in_the_known_directions(scale: float, site: str) -> None:
    inversion, truth = inversion_of(tiny_llama(d_model=64, scale=scale), site)
    for position, true in enumerate(truth):
        found = inversion.start(position, 3)
        assert found is not None
        directions = found.directions
        assert len(directions) >= 0.9 * len(true), "few are known: this test proves little"
        torch.testing.assert_close(
            directions @ directions.T, torch.eye(len(directions)), rtol=0, atol=1e-5
        )
        away = directions @ (found.value - true)
        assert float(away.norm() / true.norm()) <= 1e-3
    assert max(inversion.left(truth)) <= 1e-5
    assert min(inversion.left(truth.roll(1, 0))) > 1e-2


def test_directions_that_the_activations_do_not_show_are_not_called_known() -> None:
    """An output projection without some of its columns hides what they are multiplied with."""
    model = tiny_llama(d_model=64, scale=0.05)
    with torch.no_grad():
        model.get_decoder().layers[0].self_attn.o_proj.weight[:, 10:30] = 0
    inversion, truth = inversion_of(model)
    for position, true in enumerate(truth):
        found = inversion.start(position, 3)
        assert found is not None
        assert 0 < len(found.directions) <= 64 - 20
        assert float(found.directions[:, 10:30].abs().max()) <= 1e-4
        assert float((found.directions @ (found.value - true)).norm() / true.norm()) <= 1e-3


def test_a_wrong_token_is_made_up_for_by_no_return_that_prompts_have() -> None:
    """As many components as the residual stream is wide can make up for any token."""
    model = tiny_llama(d_model=64, scale=0.05)
    inversion, _ = inversion_of(model, "attention.1", [*PROMPT[:-1], 77])
    drawn = inversion.samples - inversion.samples.mean(0)
    farthest = drawn.norm(dim=2).amax(0)
    for position in range(len(PROMPT) - FIRST):
        found = inversion.start(position, 3)
        assert found is not None
        away = float((found.value - inversion.samples[:, position].mean(0)).norm())
        assert (away > 2 * float(farthest[position])) == (position == len(PROMPT) - FIRST - 1)


def test_what_a_search_leaves_counts_as_error_of_what_it_read() -> None:
    """At this position it rests far from the return, in directions that hardly matter."""
    inversion, truth = inversion_of(tiny_llama(d_model=64, scale=0.2))
    found = inversion.start(2, 3)
    assert found is not None
    assert float((found.value - truth[2]).norm() / truth[2].norm()) > 0.01, "this proves nothing"
    assert float((found.directions @ (found.value - truth[2])).norm() / truth[2].norm()) <= 0.01


@pytest.mark.parametrize("scale", [0.05, 0.2])
def test_a_search_from_near_the_true_return_comes_there(scale: float) -> None:
    """At the larger scale a block is not one to one, and a search from afar may end elsewhere."""
    inversion, truth = inversion_of(tiny_llama(d_model=64, scale=scale))
    for position, true in enumerate(truth):
        found = inversion.search(position, true + 1e-3 * true.abs().mean())
        assert found is not None
        assert len(found.directions) >= 0.9 * len(true)
        assert float((found.directions @ (found.value - true)).norm() / true.norm()) <= 1e-3


def test_the_copy_in_float64_shares_all_but_the_first_block_with_the_decoder() -> None:
    model = tiny_llama(d_model=64, scale=0.2)
    before = {name: values.clone() for name, values in model.state_dict().items()}
    inversion, _ = inversion_of(model)
    assert inversion.start(0, 3) is not None
    for name, values in model.state_dict().items():
        assert values.dtype == before[name].dtype, name
        assert torch.equal(values, before[name]), name
    own, copied = model.get_decoder(), inversion._double.decoder
    assert copied is not own
    assert copied.embed_tokens is own.embed_tokens
    assert copied.rotary_emb is own.rotary_emb
    assert copied.layers[1] is own.layers[1]
    shared = {id(values) for values in own.layers[0].parameters()}
    for values in copied.layers[0].parameters():
        assert values.dtype == torch.float64
        assert id(values) not in shared
