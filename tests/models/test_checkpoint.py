"""Checkpoints: cut, cast, quantised; the same weights, gradients and form for every family."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import tokenizers
import torch

from tests import REPOSITORY
from tests.io.test_damaged import flip
from tokinfo.io.atomic import SUMS, new_directory
from tokinfo.io.errors import DamagedError
from tokinfo.io.tokenizers import read_tokenizer
from tokinfo.models.build import new_model
from tokinfo.models.checkpoint import digest, load, save_model
from tokinfo.models.preparing import prepare
from tokinfo.solvers.decoding import inverse_gram, read_inverse_gram, write_inverse_gram
from tokinfo.study.sources import MixerSource, Model, TransformerSource
from tokinfo.text.tokenizer import load_tokenizer, train_tokenizer

V = 300
MIXER = MixerSource(form="expanded", d_model=64, blocks=3, n_ctx=12, tokenizer="t")
LLAMA = TransformerSource(d_model=64, blocks=3, heads=4, n_ctx=12, tokenizer="t")
SOURCES = {"mixer": MIXER, "transformer": LLAMA}
each_family = pytest.mark.parametrize("family", SOURCES)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("words")
    (root / "text.txt").write_text(
        "\n<|endoftext|>\n".join(f"a sentence of some {i} words and others" for i in range(99))
    )
    train_tokenizer(root / "text.txt", V, root / "tokenizer")
    return root / "tokenizer"


@pytest.fixture(scope="module")
def full(tokenizer: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Full models in directories, as training or fetching leaves them."""
    found = {}
    for name, source in SOURCES.items():
        found[name] = tmp_path_factory.mktemp(name)
        save_model(new_model(source, V, 5), found[name])
        (found[name] / "tokenizer.json").write_bytes((tokenizer / "tokenizer.json").read_bytes())
    return found


def hidden(decoder: Any, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The decoder's output and the gradient of a scalar of it to the input."""
    x = x.clone().requires_grad_()
    out = decoder(inputs_embeds=x, attention_mask=None, use_cache=False).last_hidden_state
    (gradient,) = torch.autograd.grad((out.float() * torch.arange(64)).sum(), x)
    return out.detach(), gradient


def test_prompts_get_the_tokenizers_special_tokens_or_not(
    full: dict[str, Path], tmp_path: Path
) -> None:
    """Llama's tokenizer puts one in front, which mask `1:` would then hide in place of a word."""
    origin = Path(shutil.copytree(full["mixer"], tmp_path / "origin"))
    words = load_tokenizer(origin)
    words.post_processor = tokenizers.processors.TemplateProcessing(
        single="<|endoftext|> $A", special_tokens=[("<|endoftext|>", 0)]
    )
    words.save(str(origin / "tokenizer.json"))
    bare = words.encode("a sentence", add_special_tokens=False).ids
    for facts, expected in (({}, [0, *bare]), ({"special_tokens": False}, bare)):
        out = tmp_path / str(len(facts))
        prepare(origin, Model(source="s"), 1, out, facts={"source": "s", **facts})
        assert [one.ids for one in load(out).read(["a sentence"])] == [expected]


@each_family
def test_the_kept_blocks_compute_what_the_full_model_computes(
    family: str, full: dict[str, Path], tmp_path: Path
) -> None:
    prepare(full[family], Model(source="s"), 2, tmp_path / "out", facts={"source": "s"})
    checkpoint = load(tmp_path / "out")
    model = new_model(SOURCES[family], V, 5).eval()
    ids = torch.randint(V, (2, 7))
    expected = model(input_ids=ids, output_hidden_states=True).hidden_states[2]
    # The output has gone through the final norm; compare in front of it.
    seen: list[torch.Tensor] = []
    checkpoint.decoder.norm.register_forward_pre_hook(lambda _, args: seen.append(args[0]))  # type: ignore[union-attr, operator]
    checkpoint.decoder(inputs_embeds=checkpoint.embedding[ids], use_cache=False)
    assert torch.equal(seen[0], expected)
    assert torch.equal(checkpoint.embedding, model.get_input_embeddings().weight)
    assert not any(p.requires_grad for p in checkpoint.decoder.parameters())
    assert not checkpoint.decoder.training


@each_family
def test_facts_say_what_was_kept(family: str, full: dict[str, Path], tmp_path: Path) -> None:
    prepare(full[family], Model(source="s"), 1, tmp_path / "out", facts={"source": "s", "n_ctx": 8})
    facts = load(tmp_path / "out").facts
    expected = {
        "source": "s",
        "family": {"mixer": "mixer-expanded", "transformer": "llama"}[family],
        "state": "trained",
        "seed": None,
        "quantization": "float32",
        "dtype": "float32",
        "blocks_kept": 1,
        "depth": 3,
        "n_ctx": 8,
        "vocabulary": V,
        "d_model": 64,
        "digest": digest(tmp_path / "out"),
    }
    assert facts.model_dump(include=set(expected)) == expected
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["num_hidden_layers"] == 3
    assert config["tokinfo_blocks"] == 1


@each_family
def test_untrained_weights_do_not_depend_on_the_cut_or_on_the_kind_of_origin(
    family: str, full: dict[str, Path], tokenizer: Path, tmp_path: Path
) -> None:
    model = Model(source="s", state="untrained", seed=9)
    prepare(SOURCES[family], model, 1, tmp_path / "source", tokenizer=tokenizer)
    prepare(full[family], model, 3, tmp_path / "directory")
    one, other = load(tmp_path / "source"), load(tmp_path / "directory")
    expected = other.decoder.state_dict()
    for name, value in one.decoder.state_dict().items():
        assert torch.equal(value, expected[name]), name
    assert one.facts.seed == 9
    assert one.facts.state == "untrained"
    assert one.pad_id == load_tokenizer(tokenizer).token_to_id("<|pad|>")


@each_family
@pytest.mark.parametrize("quantization", ["bfloat16", "float16", "int8", "nf4"])
def test_a_reloaded_checkpoint_has_identical_output_and_gradients(
    family: str, quantization: str, full: dict[str, Path], tmp_path: Path
) -> None:
    from tests.models.plain import write_whole
    from tokinfo.models.checkpoint import read_config, read_decoder, shorter

    prepare(full[family], Model(source="s", quantization=quantization), 2, tmp_path / "out")  # type: ignore[arg-type]
    checkpoint = load(tmp_path / "out")
    config = shorter(read_config(full[family]), 2)
    plain = read_decoder(full[family], config).eval().requires_grad_(False)
    x = torch.randn(2, 7, 64)
    exact, _ = hidden(plain, x)
    before: Any = write_whole(full[family], 2, quantization, tmp_path / "whole")
    expected, slope = hidden(before.eval().requires_grad_(False), x.to(checkpoint.dtype))
    found, gradient = hidden(checkpoint.decoder, x.to(checkpoint.dtype))
    assert torch.equal(found, expected)
    assert torch.equal(gradient, slope)
    assert gradient.abs().max() > 0
    assert checkpoint.embedding.dtype == torch.float32
    error = (found.float() - exact).norm() / exact.norm()
    assert 0 < error < 0.2


@each_family
def test_no_block_at_all_keeps_the_embedding(
    family: str, full: dict[str, Path], tmp_path: Path
) -> None:
    for quantization in ("float32", "int8"):
        model = Model(source="s", quantization=quantization)  # type: ignore[arg-type]
        prepare(full[family], model, 0, tmp_path / quantization)
        assert load(tmp_path / quantization).embedding.shape == (V, 64)


def test_impossible_combinations_are_named(full: dict[str, Path], tmp_path: Path) -> None:
    out = tmp_path / "out"
    with pytest.raises(ValueError, match="out: 4 blocks requested, the model has 3"):
        prepare(full["mixer"], Model(source="s"), 4, out)
    with pytest.raises(ValueError, match="needs the tokenizer's directory"):
        prepare(MIXER, Model(source="s", state="untrained"), 1, out)
    with pytest.raises(ValueError, match="needs the directory of its weights"):
        prepare(MIXER, Model(source="s"), 1, out, tokenizer=full["mixer"])
    with pytest.raises(FileNotFoundError, match="not a checkpoint"):
        load(tmp_path)
    assert not out.exists()


def swap_two_tokens(path: Path) -> None:
    words = json.loads(path.read_text())
    ids = words["model"]["vocab"]
    ids["a"], ids["e"] = ids["e"], ids["a"]
    path.write_text(json.dumps(words))


@each_family
def test_a_changed_checkpoint_is_not_loaded(
    family: str, full: dict[str, Path], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    prepare(full[family], Model(source="s"), 1, out)
    names = sorted(path.name for path in out.iterdir() if path.name != SUMS)
    assert {"config.json", "tokenizer.json", "tokinfo.json", "embedding.safetensors"} <= set(names)
    for name in names:
        before = (out / name).read_bytes()
        flip(out / name, -3)
        with pytest.raises(DamagedError, match=f"{re.escape(name)}: is not as it was written"):
            load(out)
        (out / name).write_bytes(before)
    load(out)
    swap_two_tokens(out / "tokenizer.json")
    with pytest.raises(DamagedError, match=r"tokenizer\.json: is not as it was written"):
        load(out)


def test_no_checkpoint_is_cut_from_a_changed_origin(tokenizer: Path, tmp_path: Path) -> None:
    with new_directory(tmp_path / "origin") as origin:
        save_model(new_model(MIXER, V, 5), origin)
        shutil.copyfile(tokenizer / "tokenizer.json", origin / "tokenizer.json")
    flip(tmp_path / "origin" / "model.safetensors", -1)
    with pytest.raises(DamagedError, match=r"model\.safetensors: is not as it was written"):
        prepare(tmp_path / "origin", Model(source="s"), 1, tmp_path / "out")
    words = Path(shutil.copytree(tokenizer, tmp_path / "words"))
    swap_two_tokens(words / "tokenizer.json")
    for build in (
        lambda: load_tokenizer(words),
        lambda: read_tokenizer(words / "tokenizer.json"),
        lambda: prepare(MIXER, Model(source="s", state="untrained"), 1, words, tokenizer=words),
    ):
        with pytest.raises(DamagedError, match=r"tokenizer\.json: is not as it was written"):
            build()


def test_a_changed_decoder_is_not_read(full: dict[str, Path], tmp_path: Path) -> None:
    prepare(full["mixer"], Model(source="s"), 0, tmp_path / "out")
    write_inverse_gram(tmp_path / "out", tmp_path / "gram.safetensors")
    whole = read_inverse_gram(tmp_path / "gram.safetensors")
    assert torch.equal(whole, inverse_gram(load(tmp_path / "out").embedding))
    flip(tmp_path / "gram.safetensors", -1)
    with pytest.raises(DamagedError, match=r"gram\.safetensors: is not as it was written"):
        read_inverse_gram(tmp_path / "gram.safetensors")


def test_an_unquantised_mixer_loads_without_transformers(
    full: dict[str, Path], tmp_path: Path
) -> None:
    prepare(full["mixer"], Model(source="s"), 3, tmp_path / "out")
    code = (
        "import sys; from pathlib import Path; from tokinfo.models.checkpoint import load; "
        f"load(Path({str(tmp_path / 'out')!r})); "
        "assert not {'transformers', 'torch._dynamo'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=REPOSITORY)
