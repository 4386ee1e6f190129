"""Packed layers give the same numbers before and after, and leave their inputs as they were."""

from __future__ import annotations

from pathlib import Path

import pytest
import tokenizers
import torch
from torch import Tensor

from tests.families import VOCABULARY, tiny
from tokinfo.models.checkpoint import Checkpoint, load, save_model
from tokinfo.models.preparing import prepare
from tokinfo.probe.batch import make_batch
from tokinfo.probe.metrics import distance
from tokinfo.probe.noise import alone, floor
from tokinfo.probe.probe import Probe
from tokinfo.study.masks import Mask
from tokinfo.study.sites import Site
from tokinfo.study.sources import Model

# 64 suits the blocks of nf4; 48 and 96 do not divide into any of bitsandbytes' own tiles.
WIDTHS = (48, 64, 96)


def packed(directory: Path, width: int, precision: str, **more: str) -> Checkpoint:
    if not (directory / "full").is_dir():
        save_model(tiny("Llama 2", hidden_size=width), directory / "full")
        words = tokenizers.models.WordLevel({f"w{n}": n for n in range(VOCABULARY)}, unk_token="w0")
        tokenizers.Tokenizer(words).save(str(directory / "full" / "tokenizer.json"))
    model = Model.model_validate({"source": "s", "quantization": precision, **more})
    prepare(directory / "full", model, 2, directory / precision)
    return load(directory / precision)


def output(checkpoint: Checkpoint, x: Tensor) -> tuple[Tensor, Tensor]:
    x = x.to(checkpoint.dtype).requires_grad_()
    out = checkpoint.decoder(inputs_embeds=x, use_cache=False).last_hidden_state
    (gradient,) = torch.autograd.grad((out.float() * torch.arange(x.shape[-1])).sum(), x)
    return out.detach(), gradient


@pytest.mark.parametrize("precision", ["int8", "nf4"])
@pytest.mark.parametrize("width", WIDTHS)
def test_a_pass_without_gradients_changes_neither_outputs_nor_gradients(
    width: int, precision: str, tmp_path: Path
) -> None:
    checkpoint = packed(tmp_path, width, precision)
    x = torch.randn(2, 5, width)
    expected, slope = output(checkpoint, x)
    with torch.no_grad():
        plain = checkpoint.decoder(inputs_embeds=x, use_cache=False).last_hidden_state
    found, gradient = output(checkpoint, x)
    assert torch.equal(found, expected)
    assert torch.equal(gradient, slope)
    assert float((plain - expected).norm() / expected.norm()) < 1e-5


def test_the_gradient_of_nf4_is_that_of_its_weights_written_out(tmp_path: Path) -> None:
    import bitsandbytes.functional

    checkpoint = packed(tmp_path, 64, "nf4")
    exact = packed(tmp_path, 64, "float32")
    with torch.no_grad():
        checkpoint.decoder(inputs_embeds=torch.randn(1, 3, 64))
        for name, module in checkpoint.decoder.named_modules():
            if type(module).__name__ == "Linear4bit":
                weight = bitsandbytes.functional.dequantize_4bit(
                    module.weight.data, module.weight.quant_state
                )
                exact.decoder.get_submodule(name).weight.copy_(weight)
    x = torch.randn(2, 5, 64)
    for one, other in zip(output(checkpoint, x), output(exact, x), strict=True):
        assert float((one - other).norm() / other.norm()) < 1e-5


def test_int8_leaves_half_precision_inputs_as_they_were(tmp_path: Path) -> None:
    checkpoint = packed(tmp_path, 64, "int8", compute_dtype="float16")
    layer = checkpoint.decoder.layers[0].mlp.up_proj  # type: ignore[union-attr, index]
    x = 10 * torch.randn(3, 64, dtype=torch.float16)
    before, version = x.clone(), x._version
    with torch.no_grad():
        layer(x)
    assert torch.equal(x, before)
    assert x._version == version


def test_every_precision_has_a_noise_floor_of_its_own(tmp_path: Path) -> None:
    batch = make_batch([[3, 1, 4, 1, 5], [9, 2, 6, 8]], Mask("1:"), pad_id=0)
    floors, targets = {}, {}
    for precision in ("float32", "int8", "nf4"):
        checkpoint = packed(tmp_path, 64, precision)
        probe = Probe(checkpoint.decoder, Site.parse("block.2"), dtype=checkpoint.dtype)
        target = alone(probe, checkpoint.embedding, batch.ids, batch.layout.seen)
        floors[precision] = floor(probe, checkpoint.embedding, batch, target, "l1").distance
        targets[precision] = target
        assert floors[precision].isfinite().all()
        assert (floors[precision] > 0).all()
    # LLM.int8 computes a row by what else is in its batch; the others do not.
    assert (floors["int8"] > 10 * floors["float32"]).all()
    assert not torch.equal(floors["nf4"], floors["float32"])
    for precision in ("int8", "nf4"):
        away = distance(targets[precision], targets["float32"], batch.layout.visible, "l1")
        assert (away > floors["float32"]).all(), precision
