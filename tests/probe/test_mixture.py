"""Mixtures of tokens: certain ones are prompts, others are what is written out by hand."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import Tensor, nn
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

from tests.families import BLOCKS, FAMILIES, WINDOW, tiny
from tests.probe.test_probe import other
from tests.tiny import in_double, tiny_llama, tiny_mixer
from tokinfo.io.errors import InvalidError
from tokinfo.models.checkpoint import input_table
from tokinfo.models.mixer import FORMS
from tokinfo.models.structure import StructureError
from tokinfo.probe.mixture import check, mix
from tokinfo.probe.probe import Probe
from tokinfo.study.sites import Site

REFUSED = ("Falcon, alibi",)
HONOURED = [family for family in FAMILIES if family not in REFUSED]
SITES = [
    Site("embedding", 0),
    *(Site(place, k) for place in ("attention", "mlp", "block") for k in range(1, BLOCKS + 1)),
]
POSITIONS = 10  # more than a sliding window is wide


def relative(a: Tensor, b: Tensor) -> float:
    return float((a - b).abs().max() / b.abs().max())


def scattered(ids: Tensor, vocabulary: int, absent: float) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Prompts among rivals that are not there: tokens, positions, weights, each token's entry.

    One to four candidates a position, in each row in an order of its own.
    """
    rows, n = ids.shape
    generator = torch.Generator().manual_seed(1)
    counts = 1 + torch.arange(n) % 4
    positions = torch.arange(n).repeat_interleave(counts)
    first = counts.cumsum(0) - counts
    entry = first + (torch.rand(rows, n, generator=generator) * counts).long()
    tokens = torch.randint(vocabulary, (rows, len(positions)), generator=generator)
    weights = torch.full((rows, len(positions)), absent).scatter(1, entry, 0.0)
    return tokens.scatter(1, entry, ids), positions, weights, entry


def at(activations: Tensor, entry: Tensor) -> Tensor:
    return activations.take_along_dim(entry[..., None], 1)


def llama(double: bool = False) -> nn.Module:
    """A tiny Llama decoder whose parts all show; in float64 without its norm's float32."""
    decoder: nn.Module = tiny_llama(scale=0.3).get_decoder()  # type: ignore[operator]
    return in_double(decoder) if double else decoder


def random_mixture(
    width: int, counts: tuple[int, ...], rows: int = 1, dtype: torch.dtype = torch.float32
) -> tuple[Tensor, Tensor, Tensor]:
    """Embeddings, positions and weights of a mixture that is certain of nothing."""
    generator = torch.Generator().manual_seed(2)
    positions = torch.arange(len(counts)).repeat_interleave(torch.tensor(counts))
    logits = torch.randn(rows, len(positions), generator=generator, dtype=dtype)
    weights = torch.cat([part.log_softmax(-1) for part in logits.split(counts, dim=1)], 1)
    embedded = torch.randn(rows, len(positions), width, generator=generator, dtype=dtype)
    return embedded, positions, weights


DECODERS: dict[str, Callable[[], nn.Module]] = {
    "llama": llama,
    **{form: partial(tiny_mixer, form) for form in FORMS},
}
each_decoder = pytest.mark.parametrize("make", DECODERS.values(), ids=DECODERS)


# --- what is certain ----------------------------------------------------------------------


def certain_ones_are_prompts(decoder: nn.Module, sites: list[Site], n: int) -> None:
    table = input_table(decoder)
    ids = torch.randint(len(table), (2, n), generator=torch.Generator().manual_seed(0))
    for site in sites:
        for residual in (True, False):
            probe = Probe(decoder, site, residual=residual)
            check(probe)
            expected = probe(table[ids])
            for absent in (float("-inf"), -1e9):
                tokens, positions, weights, entry = scattered(ids, len(table), absent)
                found = at(mix(probe, table[tokens], positions, weights), entry)
                assert relative(found, expected) <= 1e-5, (site, residual, absent)


@pytest.mark.parametrize("family", HONOURED)
def test_tokens_that_are_certain_are_a_prompt_at_every_site(family: str) -> None:
    certain_ones_are_prompts(tiny(family).base_model, SITES, POSITIONS)


@pytest.mark.parametrize("family", HONOURED)
@pytest.mark.parametrize("name", ["kv.1", "kv.1-3", "norm"])
def test_tokens_that_are_certain_are_a_prompt_in_a_cache_and_behind_the_final_norm(
    family: str, name: str
) -> None:
    decoder = tiny(family).base_model
    table = input_table(decoder)
    probe = Probe(decoder, Site.parse(name).resolve(BLOCKS))
    check(probe)  # one of its tokens is that of padding, whose embedding many families make zero
    ids = torch.randint(1, len(table), (2, POSITIONS), generator=torch.Generator().manual_seed(0))
    tokens, positions, weights, entry = scattered(ids, len(table), float("-inf"))
    found = at(mix(probe, table[tokens], positions, weights), entry)
    assert relative(found, probe(table[ids])) <= 1e-5


@pytest.mark.parametrize("form", FORMS)
def test_tokens_that_are_certain_are_a_prompt_to_a_mixer(form: str) -> None:
    # More entries than the convolutions have positions.
    certain_ones_are_prompts(tiny_mixer(form, blocks=BLOCKS, n_ctx=12), SITES, 12)


@pytest.mark.parametrize("family", REFUSED)
def test_what_does_not_honour_a_mixture_is_refused_by_name(family: str) -> None:
    for site in SITES[1:]:
        with pytest.raises(StructureError, match="FalconModel: cannot be given mixtures of tokens"):
            check(Probe(tiny(family).base_model, site))


@pytest.mark.parametrize(
    ("name", "settings", "reason"),
    [
        ("BloomModel", {"initializer_range": 0.2}, "it takes no mask"),
        ("MptModel", {"d_model": 32, "n_heads": 4, "n_layers": 2}, "a bias that counts entries"),
        (
            "GPTNeoModel",
            {"attention_types": [[["global", "local"], 1]], "num_heads": 4, "num_layers": 2},
            "one that is certain gives other activations",
        ),
        ("CodeGenModel", {"n_head": 4, "rotary_dim": 4}, "scales the mask"),
        ("MambaModel", {"state_size": 4}, "takes no mask of which position sees which"),
    ],
)
def test_other_decoders_are_refused_by_name(
    name: str, settings: dict[str, object], reason: str
) -> None:
    with pytest.raises(StructureError, match=f"{name}: .*{reason}"):
        check(Probe(other(name, **settings), Site("block", 1)))


class Thresholded(nn.Module):
    """A decoder that takes a mask for a choice of keys: it hides them or it does not."""

    def __init__(self, decoder: nn.Module) -> None:
        super().__init__()
        self.decoder = decoder
        self.layers, self.config = decoder.layers, decoder.config

    def get_input_embeddings(self) -> nn.Module:
        return self.decoder.get_input_embeddings()  # type: ignore[no-any-return, operator]

    def forward(self, attention_mask: Tensor | None, position_ids: Tensor, **more: object) -> None:
        if attention_mask is not None:
            attention_mask = attention_mask.masked_fill(attention_mask > -9, 0)
        self.decoder(attention_mask=attention_mask, position_ids=position_ids, **more)


def test_a_decoder_that_rounds_a_bias_to_a_mask_is_refused() -> None:
    with pytest.raises(StructureError, match="Thresholded: cannot be given mixtures"):
        check(Probe(Thresholded(llama()), Site("block", 1)))


@each_decoder
def test_one_candidate_a_position_is_the_plain_forward(make: Callable[[], nn.Module]) -> None:
    decoder = make()
    embedded, positions, weights = random_mixture(32, (1,) * POSITIONS, rows=3)
    for site in (Site("attention", 1), Site("mlp", 2), Site("block", 2)):
        probe = Probe(decoder, site)
        found = mix(probe, embedded, positions, weights)
        assert relative(found, probe(embedded)) <= 1e-5


# --- what is not ----------------------------------------------------------------------


@each_decoder
def test_the_same_token_twice_is_that_token(make: Callable[[], nn.Module]) -> None:
    decoder = make()
    embedded, positions, weights = random_mixture(32, (2,) * POSITIONS)
    embedded[:, ::2] = embedded[:, 1::2]
    for site in (Site("attention", 1), Site("block", 2)):
        probe = Probe(decoder, site)
        found = mix(probe, embedded, positions, weights)[:, 1::2]
        assert relative(found, probe(embedded[:, 1::2])) <= 1e-5


@each_decoder
def test_rivals_do_not_see_each_other_and_later_positions_see_both(
    make: Callable[[], nn.Module],
) -> None:
    probe = Probe(make(), Site("block", 2))
    embedded, positions, weights = random_mixture(32, (2, 3, 2))
    changed = embedded.clone()
    changed[0, 3] = torch.randn(32)  # the second of position 1
    before, after = (mix(probe, x, positions, weights)[0] for x in (embedded, changed))
    assert torch.equal(before[[0, 1, 2, 4]], after[[0, 1, 2, 4]])
    assert bool((before[[3, 5, 6]] != after[[3, 5, 6]]).any(-1).all())


@each_decoder
def test_rows_do_not_see_each_other_and_entries_come_in_any_order(
    make: Callable[[], nn.Module],
) -> None:
    probe = Probe(make(), Site("block", 2))
    embedded, positions, weights = random_mixture(32, (3, 1, 2, 3), rows=2)
    whole = mix(probe, embedded, positions, weights)
    for row in (0, 1):
        one = mix(probe, embedded[row : row + 1], positions, weights[row : row + 1])
        assert relative(one[0], whole[row]) <= 1e-5
    order = torch.randperm(len(positions), generator=torch.Generator().manual_seed(0))
    shuffled = mix(probe, embedded[:, order], positions[order], weights[:, order])
    assert relative(shuffled, whole[:, order]) <= 1e-5


def test_a_head_returns_the_mean_under_p_times_the_exponential_of_the_scores() -> None:
    decoder, head = llama(double=True), 3
    block, rotary = decoder.layers[0], decoder.rotary_emb  # type: ignore[index]
    embedded, positions, weights = random_mixture(32, (3, 2, 4, 1), dtype=torch.float64)
    seen: list[Tensor] = []
    probe = Probe(decoder, Site("attention", 1), dtype=torch.float64)
    with block.self_attn.o_proj.register_forward_pre_hook(lambda _, x: seen.append(x[0])):
        mix(probe, embedded, positions, weights)
    normed = block.input_layernorm(embedded)
    projections = (block.self_attn.q_proj, block.self_attn.k_proj, block.self_attn.v_proj)
    q, k, v = (p(normed).unflatten(-1, (-1, 8)).transpose(1, 2) for p in projections)
    q, k = apply_rotary_pos_emb(q, k, *rotary(normed, positions[None]))
    e = (q[0, head] @ k[0, head // 2].T / 8**0.5).exp()  # two heads share keys and values
    p = weights[0].exp()
    for i in range(len(positions)):
        shares = e[i] * torch.where(positions < positions[i], p, 0.0)
        shares[i] = e[i, i]
        expected = shares @ v[0, head // 2] / shares.sum()
        assert relative(seen[0][0, i, 8 * head : 8 * head + 8], expected) <= 1e-12


def test_a_convolution_is_given_the_mean_of_the_normed_states_under_p() -> None:
    mixer = tiny_mixer("expanded").double()
    embedded, positions, weights = random_mixture(32, (3, 2, 4), dtype=torch.float64)
    probe = Probe(mixer, Site("attention", 1), residual=False, dtype=torch.float64)
    found = mix(probe, embedded, positions, weights)[0]
    block = mixer.blocks[0]
    normed, p = block.mixing_norm(embedded[0]), weights[0].exp()[:, None]
    means = torch.stack([(p * normed)[:3].sum(0), (p * normed)[3:5].sum(0)])
    for i in range(5, 9):
        expected = block.mixing(torch.cat([means, normed[i : i + 1]])[None])[0, 2]
        assert relative(found[i], expected) <= 1e-12


@pytest.mark.parametrize("site", ["attention.1", "mlp.2", "block.2"])
@pytest.mark.parametrize("kind", ["llama", *FORMS])
def test_the_gradient_is_that_of_finite_differences(kind: str, site: str) -> None:
    decoder = llama(double=True) if kind == "llama" else tiny_mixer(kind).double()
    probe = Probe(decoder, Site.parse(site), dtype=torch.float64)
    embedded, positions, weights = random_mixture(32, (2, 1, 2, 1), 2, torch.float64)
    generator = torch.Generator().manual_seed(3)
    directions = torch.randn(embedded.shape, generator=generator, dtype=torch.float64)
    some = torch.randn(embedded.shape, generator=generator, dtype=torch.float64)

    def along(weights: Tensor, step: Tensor) -> Tensor:
        out = mix(probe, embedded + step * some, positions, weights)
        return (out * directions).sum(dim=(1, 2))

    inputs = (weights.requires_grad_(), torch.zeros(1, dtype=torch.float64, requires_grad=True))
    torch.autograd.gradcheck(along, inputs, eps=1e-5, atol=1e-8, rtol=1e-4)
    slopes = torch.autograd.grad(along(*inputs).sum(), inputs)
    assert all(bool(slope.abs().max() > 1e-3) for slope in slopes)


def test_the_gradient_is_finite_where_a_candidate_is_not_there() -> None:
    for decoder in (llama(), tiny_mixer()):
        embedded, positions, weights = random_mixture(32, (2, 2, 1))
        weights[0, 0] = float("-inf")
        weights.requires_grad_()
        mix(Probe(decoder, Site("block", 2)), embedded, positions, weights).sum().backward()
        assert weights.grad is not None
        assert bool(weights.grad.isfinite().all())
        assert weights.grad[0, 0] == 0


@pytest.mark.parametrize("family", ["Mistral", "Gemma 2", "Gemma 3", "Phi-3"])
def test_a_sliding_window_counts_positions_not_entries(family: str) -> None:
    probe = Probe(tiny(family).base_model, Site("attention", 1))
    embedded, positions, weights = random_mixture(32, (3,) * POSITIONS)
    before = mix(probe, embedded, positions, weights)[0]
    for k in range(POSITIONS):
        changed = weights.clone()
        changed[:, 3 * k : 3 * k + 3] = torch.tensor([0.0, -50.0, -50.0])
        moved = (mix(probe, embedded, positions, changed)[0] != before).any(-1)
        assert torch.equal(moved, (k < positions) & (positions < k + WINDOW)), k


# --- what is not allowed --------------------------------------------------------------------


def test_a_position_without_entries_has_no_key() -> None:
    probe = Probe(llama(), Site("block", 2))
    embedded, positions, weights = random_mixture(32, (2, 2, 2, 1))
    there = positions != 1
    absent = mix(probe, embedded[:, there], positions[there], weights[:, there])
    weights[:, ~there] = float("-inf")
    hidden = mix(probe, embedded, positions, weights)
    assert relative(absent, hidden[:, there]) <= 1e-5


def test_a_mixer_needs_every_position_within_its_n_ctx() -> None:
    probe = Probe(tiny_mixer(n_ctx=4), Site("block", 1))
    embedded, weights = torch.randn(1, 3, 32), torch.zeros(1, 3)
    with pytest.raises(InvalidError, match="without an entry at position 1"):
        mix(probe, embedded, torch.tensor([0, 0, 2]), weights)
    with pytest.raises(InvalidError, match="a mixture of 5 positions is longer than the n_ctx = 4"):
        mix(probe, embedded, torch.tensor([0, 1, 4]), weights)


def test_a_probe_without_a_causal_mask_is_refused() -> None:
    probe = Probe(llama(), Site("block", 1), causal=False)
    embedded, positions, weights = random_mixture(32, (2, 1))
    with pytest.raises(InvalidError, match="causal: false"):
        mix(probe, embedded, positions, weights)
    with pytest.raises(InvalidError, match="causal: false"):
        check(probe)


@each_decoder
def test_hooks_are_gone_after_a_call(make: Callable[[], nn.Module]) -> None:
    decoder = make()
    mix(Probe(decoder, Site("block", 1), residual=False), *random_mixture(32, (2, 1)))
    assert all(
        not module._forward_hooks and not module._forward_pre_hooks for module in decoder.modules()
    )
