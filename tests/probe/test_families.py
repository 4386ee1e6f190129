"""Every family of docs/families.md: parity, sub-layers, masks, and checkpoints that are cut."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tokenizers
import torch
from torch import Tensor, nn

from tests import REPOSITORY
from tests.families import BLOCKS, FAMILIES, POSITIONS, VOCABULARY, WIDTH, tiny
from tokinfo.models.checkpoint import input_table, load, read_config, save_model
from tokinfo.models.preparing import prepare
from tokinfo.models.structure import StructureError, find_block, find_blocks
from tokinfo.probe.mixture import check
from tokinfo.probe.parity import compare
from tokinfo.probe.probe import Probe
from tokinfo.study.sites import Site
from tokinfo.study.sources import Model

each_family = pytest.mark.parametrize("family", FAMILIES)
# More positions than a sliding window is wide, and the prefix of parity too.
IDS = torch.randint(VOCABULARY, (2, 12), generator=torch.Generator().manual_seed(0))
DOCUMENT = REPOSITORY / "docs" / "families.md"
ACAUSAL_REFUSED = ("Falcon, alibi",)


def relative(a: Tensor, b: Tensor) -> float:
    return float((a - b).abs().max() / b.abs().max())


@each_family
def test_every_site_agrees_with_transformers_whole_and_after_a_prefix(family: str) -> None:
    rows = compare(tiny(family).base_model, IDS)
    assert [row for row in rows if not row.passes()] == []
    places = [
        f"{place}.{number}" for number in (1, 2, 3) for place in ("attention", "mlp", "block")
    ]
    assert [row.site for row in rows[::2]] == ["embedding", *places]
    assert {row.read for row in rows} == {"whole", "after a prefix of 6"}


def run(block: nn.Module, names: tuple[str, ...], x: Tensor) -> dict[str, Tensor]:
    """The outputs of a block's sub-modules, each given the one before it."""
    found = {}
    for name in names:
        x = block.get_submodule(name)(x)
        found[name] = x
    return found


def written_out(family: str, model: nn.Module, number: int, residual: bool) -> dict[str, Tensor]:
    """What the sites of one block should be, from attention's recorded output alone."""
    shape, block = FAMILIES[family], find_blocks(model)[number - 1]
    recorded: list[Tensor] = []

    def record(_: nn.Module, __: Any, output: Any) -> None:
        recorded.append(output[0])

    with block.get_submodule(shape.attention).register_forward_hook(record):
        x = model(input_ids=IDS, output_hidden_states=True).hidden_states[number - 1]
    (added,) = [recorded[0], *run(block, shape.after, recorded[0]).values()][-1:]
    attention = (x if residual else 0) + added
    if family == "OPT-350m":  # the one with a norm behind each sum
        stream = block.get_submodule("self_attn_layer_norm")(attention)
    else:
        stream = attention
    branch = run(block, shape.branch, x if shape.parallel else stream)
    out = stream + branch[shape.branch[-1]]
    if family == "OPT-350m":
        out = block.get_submodule("final_layer_norm")(out)
    return {"attention": attention, "mlp": branch[shape.mlp], "block": out}


@each_family
@pytest.mark.parametrize("residual", [True, False])
def test_sub_layers_equal_the_block_written_out(family: str, residual: bool) -> None:
    model = tiny(family)
    embeddings = input_table(model.base_model)[IDS]
    for place, expected in written_out(family, model, 2, residual).items():
        probe = Probe(model.base_model, Site(place, 2), residual=residual)  # type: ignore[arg-type]
        assert relative(probe(embeddings), expected) <= 1e-5, place


@each_family
def test_without_the_residual_a_prefix_changes_nothing(family: str) -> None:
    model = tiny(family).base_model
    embeddings = input_table(model)[IDS]
    for place in ("attention", "mlp", "block"):
        probe = Probe(model, Site(place, 2), residual=False)  # type: ignore[arg-type]
        after = probe(embeddings[:, 5:], prefix=probe.prefix(embeddings[:, :5]))
        assert relative(after, probe(embeddings)[:, 5:]) <= 1e-5, place


@each_family
def test_without_a_causal_mask_positions_see_what_transformers_lets_them(family: str) -> None:
    """The reference is transformers' own bidirectional form of a decoder (`is_causal`).

    Its window is one wider than the causal one (distance <= window), so it is given one less.
    """
    model = tiny(family, attn_implementation="eager")
    embeddings = input_table(model.base_model)[IDS]
    if family in ACAUSAL_REFUSED:
        with pytest.raises(StructureError, match="without a causal mask: it takes no such mask"):
            Probe(model.base_model, Site("block", 2), causal=False)
        return
    found = Probe(model.base_model, Site("block", 2), causal=False)(embeddings)
    causal = model(input_ids=IDS, output_hidden_states=True).hidden_states[2]
    model.config.is_causal = False
    if FAMILIES[family].window is not None:
        model.config.sliding_window -= 1
    expected = model(input_ids=IDS, output_hidden_states=True).hidden_states[2]
    assert relative(causal, expected) > 0.01
    assert relative(found, expected) <= 1e-5


@each_family
def test_without_a_causal_mask_padding_is_invisible(family: str) -> None:
    if family in ACAUSAL_REFUSED:
        return
    model = tiny(family).base_model
    embeddings = input_table(model)[IDS]
    probe = Probe(model, Site("block", 3), causal=False)
    padded = probe(embeddings, torch.tensor([7, 12]))
    assert relative(padded[:1, :7], probe(embeddings[:1, :7])) <= 1e-5
    assert relative(padded[1:], probe(embeddings[1:])) <= 1e-5


@pytest.mark.parametrize("family", [name for name in FAMILIES if FAMILIES[name].window])
@pytest.mark.parametrize("window", [2, 4, 11, 12, 40])
def test_prefixes_are_exact_in_windows_shorter_and_longer_than_the_prompt(
    family: str, window: int
) -> None:
    model = tiny(family, sliding_window=window)
    expected = model(input_ids=IDS, output_hidden_states=True).hidden_states[2]
    embeddings = input_table(model.base_model)[IDS]
    probe = Probe(model.base_model, Site("block", 2))
    for split in (1, 3, 4, 11):
        prefix = probe.prefix(embeddings[:, :split])
        after = probe(embeddings[:, split:], prefix=prefix)
        assert relative(torch.cat([prefix.activations, after], 1), expected) <= 1e-5, split


@each_family
def test_one_prefix_serves_a_batch_of_any_size(family: str) -> None:
    model = tiny(family).base_model
    embeddings = input_table(model)[torch.tensor([[5, 6, 7, 8, 9, 3], [5, 6, 7, 8, 9, 4]])]
    probe = Probe(model, Site("block", 3))
    after = probe(embeddings[:, 5:], prefix=probe.prefix(embeddings[:1, :5]))
    assert relative(after, probe(embeddings)[:, 5:]) <= 1e-5


@each_family
def test_a_checkpoint_cut_after_one_block_computes_what_the_full_model_does(
    family: str, tmp_path: Path
) -> None:
    model = tiny(family)
    save_model(model, tmp_path / "full")
    words = tokenizers.models.WordLevel({f"w{n}": n for n in range(VOCABULARY)}, unk_token="w0")
    tokenizers.Tokenizer(words).save(str(tmp_path / "full" / "tokenizer.json"))
    prepare(tmp_path / "full", Model(source="s"), 1, tmp_path / "cut")
    checkpoint = load(tmp_path / "cut")
    assert len(find_blocks(checkpoint.decoder)) == 1
    expected = model(input_ids=IDS, output_hidden_states=True).hidden_states[1]
    found = Probe(checkpoint.decoder, Site("block", 1))(checkpoint.embedding[IDS])
    assert relative(found, expected) <= 1e-6
    facts = {"depth": BLOCKS, "blocks_kept": 1, "d_model": WIDTH, "vocabulary": VOCABULARY}
    assert {name: getattr(checkpoint.facts, name) for name in facts} == facts
    alone = FAMILIES[family].settings.get("alibi")
    assert checkpoint.facts.n_ctx == POSITIONS or alone


@each_family
def test_untrained_checkpoints_are_the_leading_blocks_of_one_model(
    family: str, tmp_path: Path
) -> None:
    (tmp_path / "full").mkdir()
    FAMILIES[family].config().save_pretrained(tmp_path / "full")
    words = tokenizers.models.WordLevel({"a": 0}, unk_token="a")
    tokenizers.Tokenizer(words).save(str(tmp_path / "full" / "tokenizer.json"))
    model = Model(source="s", state="untrained", seed=3)
    found = []
    for blocks in (1, BLOCKS):
        prepare(tmp_path / "full", model, blocks, tmp_path / str(blocks))
        checkpoint = load(tmp_path / str(blocks))
        found.append(Probe(checkpoint.decoder, Site("block", 1))(checkpoint.embedding[IDS]))
    assert torch.equal(*found)


# --- the document -------------------------------------------------------------------------


def verdict(decoder: nn.Module, site: str, **options: Any) -> str:
    return said(lambda: Probe(decoder, Site.parse(site), **options)(input_table(decoder)[IDS]))


def said(run: Callable[[], object]) -> str:
    try:
        run()
    except StructureError:
        return "refused"
    return "yes"


@each_family
def test_the_document_lists_what_runs(family: str) -> None:
    table, _, _ = DOCUMENT.read_text().partition("\n## ")
    lines = [line.split(" | ") for line in table.splitlines() if line[:2] == "| "]
    rows = {line[0].removeprefix("| "): line[1:-1] for line in lines}
    assert list(rows)[1:] == list(FAMILIES)
    decoder = tiny(family).base_model
    blocks = find_block(decoder, 1).module
    found = [
        f"`{FAMILIES[family].model}`",
        "beside" if FAMILIES[family].parallel else "before",
        "all" if all(row.passes() for row in compare(decoder, IDS)) else "some",
        verdict(decoder, "block.1", residual=False),
        verdict(decoder, "block.1", causal=False),
        said(lambda: check(Probe(decoder, Site("block", BLOCKS)))),
    ]
    assert blocks is find_blocks(decoder)[0]
    assert rows[family] == found


def test_a_model_of_several_parts_is_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "gemma3"}))
    with pytest.raises(ValueError, match="a gemma3 holds its decoder beside other parts"):
        read_config(tmp_path)
