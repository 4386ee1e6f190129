"""Keys and values that stand still give the model's forward, or the model is refused."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from tests.families import FAMILIES, NOT_TAKEN_APART, tiny
from tests.tiny import in_double, tiny_llama, tiny_mixer
from tokinfo.models.structure import StructureError
from tokinfo.probe.mixture import mix
from tokinfo.probe.probe import Probe
from tokinfo.probe.streams import Entries, Streams, joined
from tokinfo.study.sites import Site

SITES = ("block.1", "attention.2", "mlp.3", "block.3")
WHY_NOT = {
    **NOT_TAKEN_APART,
    # Its later blocks' window is shorter than the prompts that are compared.
    "Qwen2, sliding": "is no weighted mean of values",
}


def table_of(probe: Probe) -> Tensor:
    return probe.decoder.get_input_embeddings().weight.detach()


def drawn(probe: Probe, count: int, seed: int = 1) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(len(table_of(probe)), (count,), generator=generator)


def one_a_position(streams: Streams, ids: Tensor, positions: int) -> Entries:
    """Certain tokens as entries, from the left."""
    table, entries = table_of(streams.probe), None
    for place in range(positions):
        one = streams.entries(table[ids[place, None]], place, entries, torch.zeros(place))
        entries = one if entries is None else joined([entries, one])
    assert entries is not None
    return entries


def relative(found: Tensor, expected: Tensor) -> float:
    return float(((found - expected).norm(dim=-1) / expected.norm(dim=-1)).max())


@pytest.mark.parametrize("family", FAMILIES)
def test_with_one_entry_a_position_it_is_the_plain_forward_or_is_refused(family: str) -> None:
    decoder = tiny(family).base_model
    before = decoder.config._attn_implementation
    for site in SITES:
        probe = Probe(decoder, Site.parse(site))
        # Where only later blocks have a window, the first one does not.
        if family in WHY_NOT and (family, site) != ("Qwen2, sliding", "block.1"):
            with pytest.raises(StructureError, match=WHY_NOT[family]) as raised:
                Streams(probe)
            assert type(decoder).__name__ in str(raised.value)
            continue
        streams, ids = Streams(probe), drawn(probe, 9)
        expected = probe(table_of(probe)[ids][None])[0]
        behind = torch.arange(4, 9)
        with torch.no_grad():
            found = streams.activations(
                table_of(probe)[ids[behind]],
                behind,
                one_a_position(streams, ids, 4),
                torch.zeros(4),
            )
        assert relative(found, expected[behind]) <= 1e-5
    assert decoder.config._attn_implementation == before


@pytest.mark.parametrize("family", ["Mistral", "Phi-3", "Gemma 3"])
def test_a_window_that_spans_the_prompts_is_named(family: str) -> None:
    probe = Probe(tiny(family, sliding_window=16).base_model, Site("block", 3))
    streams, ids = Streams(probe), drawn(probe, 9)
    assert streams.reach == 16
    with torch.no_grad():
        expected = probe(table_of(probe)[ids][None])[0, 6:]
        found = streams.activations(
            table_of(probe)[ids[6:]],
            torch.arange(6, 9),
            one_a_position(streams, ids, 6),
            torch.zeros(6),
        )
    assert relative(found, expected) <= 1e-5


def test_at_the_first_block_weights_mix_as_the_relaxation_does() -> None:
    """There keys and values depend on no other token: nothing stands still that would move."""
    probe = Probe(tiny_llama(blocks=2, scale=0.2).get_decoder(), Site("block", 1))
    table, streams = table_of(probe), Streams(probe)
    candidates, known = drawn(probe, 10).view(2, 5), drawn(probe, 3, seed=2)
    logs = torch.randn(2, 5, generator=torch.Generator().manual_seed(3)).log_softmax(-1)
    entries = joined(
        [streams.entries(table[candidates[n]], n, None, torch.zeros(0)) for n in range(2)]
    )
    behind = torch.arange(2, 5)
    with torch.no_grad():
        found = streams.activations(table[known], behind, entries, logs.flatten())
        positions = torch.cat([torch.arange(2).repeat_interleave(5), behind])
        expected = mix(
            probe,
            table[torch.cat([candidates.flatten(), known])][None],
            positions,
            torch.cat([logs.flatten(), torch.zeros(3)])[None],
        )[0, 10:]
    assert relative(found, expected) <= 1e-5


def test_a_token_sees_no_entry_at_its_own_position_or_behind() -> None:
    probe = Probe(tiny_llama(blocks=2, scale=0.2).get_decoder(), Site("block", 2))
    table, streams, ids = table_of(probe), Streams(probe), drawn(probe, 5)
    entries = one_a_position(streams, ids, 4)
    with torch.no_grad():
        whole = streams.activations(
            table[ids[[1, 4]]], torch.tensor([1, 4]), entries, torch.zeros(4)
        )
        few = entries[torch.tensor([0])]
        alone = streams.activations(table[ids[[1]]], torch.tensor([1]), few, torch.zeros(1))
    torch.testing.assert_close(whole[0], alone[0])


def test_an_entry_of_weight_zero_changes_nothing_and_equal_ones_share_theirs() -> None:
    probe = Probe(tiny_llama(blocks=2, scale=0.2).get_decoder(), Site("block", 2))
    table, streams, ids = table_of(probe), Streams(probe), drawn(probe, 4)
    one = streams.entries(table[ids[[0]]], 0, None, torch.zeros(0))
    two = streams.entries(table[ids[[0, 0, 3]]], 0, None, torch.zeros(0))
    weights = torch.tensor([0.25, 0.75, 0.0]).log()
    behind = torch.tensor([1, 2])
    with torch.no_grad():
        expected = streams.activations(table[ids[behind]], behind, one, torch.zeros(1))
        found = streams.activations(table[ids[behind]], behind, two, weights)
    torch.testing.assert_close(found, expected)


def test_the_gradient_of_the_weights_is_that_of_finite_differences() -> None:
    decoder = in_double(tiny_llama(blocks=2, scale=0.2).get_decoder())
    probe = Probe(decoder, Site("block", 2), dtype=torch.float64)
    table, streams, ids = table_of(probe), Streams(probe), drawn(probe, 8)
    first = streams.entries(table[ids[:3]], 0, None, table.new_zeros(0))
    logs = torch.tensor([0.2, 0.3, 0.5], dtype=torch.float64).log()
    entries = joined([first, streams.entries(table[ids[3:6]], 1, first, logs)])
    behind = torch.tensor([2, 3])
    weights = logs.repeat(2).requires_grad_(True)
    assert torch.autograd.gradcheck(
        lambda given: streams.activations(table[ids[6:]], behind, entries, given),
        (weights,),
        eps=1e-5,
        atol=1e-7,
        rtol=1e-4,
    )


def test_mixers_sites_without_attention_and_probes_without_causal_mask_are_refused() -> None:
    decoder = tiny_llama().get_decoder()
    for probe in (
        Probe(tiny_mixer("flat"), Site("block", 1)),
        Probe(decoder, Site("embedding", 0)),
        Probe(decoder, Site("block", 2), causal=False),
    ):
        with pytest.raises(StructureError):
            Streams(probe)
