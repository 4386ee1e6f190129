"""Where the parts of a checkpoint go, and that nothing is left on the CPU in silence."""

from __future__ import annotations

import logging
from pathlib import Path

import accelerate
import pytest
import tokenizers
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.families import FAMILIES, VOCABULARY, tiny
from tokinfo.models import placement
from tokinfo.models.checkpoint import empty_decoder, input_table, load, save_model
from tokinfo.models.placement import device_map, gpus_for, place
from tokinfo.models.preparing import prepare
from tokinfo.probe.probe import Probe
from tokinfo.study.sites import Site
from tokinfo.study.sources import Model

BYTES = st.integers(0, 40)


@given(BYTES, st.lists(BYTES, max_size=12), st.lists(BYTES, min_size=1, max_size=4))
def test_no_gpu_is_given_more_than_it_has_room_for(
    outside: int, blocks: list[int], room: list[int]
) -> None:
    try:
        found = place(outside, blocks, room)
    except ValueError:
        # It is refused only when no cut of the row of blocks into as many runs fits.
        assert not fits(outside, blocks, room)
        return
    assert len(found) == len(blocks)
    assert found == sorted(found)
    assert found[:1] in ([], [0]) or outside + blocks[0] > room[0]
    for gpu, space in enumerate(room):
        held = sum(size for size, where in zip(blocks, found, strict=True) if where == gpu)
        assert held + (outside if gpu == 0 else 0) <= space


def fits(outside: int, blocks: list[int], room: list[int]) -> bool:
    """Whether any way to give each GPU a run of blocks, in order, fits."""
    if not room:
        return not blocks and outside == 0
    return any(
        outside + sum(blocks[:count]) <= room[0] and fits(0, blocks[count:], room[1:])
        for count in range(len(blocks) + 1)
    )


def test_what_fits_on_one_gpu_stays_there() -> None:
    assert place(1, [4] * 3, [13, 100]) == [0, 0, 0]
    assert place(1, [4] * 3, [12.9, 100]) == [0, 0, 1]


def test_a_refusal_states_what_is_needed_what_is_there_and_what_to_do() -> None:
    with pytest.raises(ValueError, match=r"^3\.60 GB of weights") as caught:
        place(1_100_000_000, [500_000_000] * 5, [1_700_000_000, 900_000_000])
    assert str(caught.value) == (
        "3.60 GB of weights (1.10 GB beside 5 blocks of up to 0.50 GB) do not fit into 2 GPUs "
        "with 1.70 GB, 0.90 GB free for them: read fewer blocks, use int8 or nf4, or give it "
        "more GPUs"
    )


@pytest.mark.parametrize("family", FAMILIES)
def test_every_tensor_has_one_device_and_no_block_is_torn(family: str) -> None:
    decoder = empty_decoder(tiny(family).base_model.config)
    where = device_map(decoder, ["a", "a", "b"], first="home")
    for name in decoder.state_dict():
        (found,) = {where[key] for key in where if name == key or name.startswith(f"{key}.")}
        place_ = next((n for n in range(3) if f".{n}." in f".{name}"), None)
        assert found == ("home" if place_ is None else "aab"[place_])
    assert next(iter(where.values())) == "home"


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    save_model(tiny("Llama 2"), tmp_path / "full")
    words = tokenizers.models.WordLevel({f"w{n}": n for n in range(VOCABULARY)}, unk_token="w0")
    tokenizers.Tokenizer(words).save(str(tmp_path / "full" / "tokenizer.json"))
    prepare(tmp_path / "full", Model(source="s"), 3, tmp_path / "cut")
    return tmp_path / "cut"


def pretend(monkeypatch: pytest.MonkeyPatch, *free: int) -> None:
    """Let this machine have GPUs with so many bytes free."""
    monkeypatch.setattr(torch.cuda, "device_count", lambda: len(free))
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda gpu: (free[gpu], 10 * free[gpu]))


def test_gpus_are_filled_by_the_sizes_of_the_files(
    checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes = [(checkpoint / f"block-000{n}.safetensors").stat().st_size for n in (1, 2, 3)]
    outside = (checkpoint / "embedding.safetensors").stat().st_size
    assert len(set(sizes)) == 1
    enough = int((outside + 3 * sizes[0]) / (1 - placement.LEFT)) + 2
    pretend(monkeypatch, enough)
    assert gpus_for(checkpoint, 3, 1, 0) == [0, 0, 0]
    pretend(monkeypatch, enough - 10, enough)
    assert gpus_for(checkpoint, 3, 1, 0) == [0, 0, 1]
    assert gpus_for(checkpoint, 3, 0.5, 0) == [0, 0, 0]
    assert gpus_for(checkpoint, 3, 1, sizes[0]) == [0, 1, 1]


def test_a_checkpoint_too_large_for_the_gpus_is_refused_not_left_on_the_cpu(
    checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pretend(monkeypatch, 20_000, 20_000)
    with pytest.raises(ValueError, match="do not fit into 2 GPUs with"):
        load(checkpoint, "cuda")


def test_a_warning_says_that_the_machine_has_too_little_memory(
    checkpoint: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    load(checkpoint)
    assert caplog.records == []
    monkeypatch.setattr(placement, "_available", lambda: 1000)
    load(checkpoint)
    (line,) = (
        record.getMessage() for record in caplog.records if record.levelno == logging.WARNING
    )
    assert line.endswith("0.00 GB of memory free: read fewer blocks, or use int8 or nf4")


@pytest.mark.parametrize("site", ["attention.3", "mlp.2", "block.3"])
def test_activations_and_gradients_go_through_every_device(site: str, checkpoint: Path) -> None:
    """Every device is the CPU here: the hooks that move tensors between GPUs are the same."""
    whole, split = load(checkpoint), load(checkpoint)
    where = device_map(split.decoder, ["cpu", "cpu", "cpu"], first="cpu")
    accelerate.dispatch_model(split.decoder, where, main_device="cpu", force_hooks=True)
    assert all(hasattr(layer, "_hf_hook") for layer in split.decoder.layers)
    x = input_table(whole.decoder)[torch.randint(VOCABULARY, (2, 6))]
    found = []
    for decoder in (whole.decoder, split.decoder):
        given_ = x.clone().requires_grad_()
        out = Probe(decoder, Site.parse(site))(given_)
        (gradient,) = torch.autograd.grad((out * torch.arange(out.shape[-1])).sum(), given_)
        prefix = Probe(decoder, Site.parse(site)).prefix(x[:1, :3])
        after = Probe(decoder, Site.parse(site))(x[:, 3:], prefix=prefix)
        found.append((out, gradient, after))
    for one, other in zip(*found, strict=True):
        assert torch.equal(one, other)
    assert found[0][1].abs().max() > 0
