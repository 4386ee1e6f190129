"""Pretrained sources: local directories are copied and checked, pickle is refused."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tokinfo.models.build import new_model
from tokinfo.models.checkpoint import save_model
from tokinfo.models.pretrained import check_config, fetch
from tokinfo.sources import HubSource, LocalSource, TransformerSource, WheelSource
from tokinfo.tokenizer import train_tokenizer
from tokinfo.wheel import FetchError


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("model")
    (root / "text.txt").write_text("some words of a text, and then others of it " * 99)
    train_tokenizer(root / "text.txt", 270, root / "local")
    source = TransformerSource(d_model=16, blocks=2, heads=2, n_ctx=8, tokenizer="t")
    save_model(new_model(source, 270, 0), root / "local")
    return root / "local"


def test_a_local_model_is_copied_without_other_files(model: Path, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    (model / "pytorch_model.bin").write_bytes(b"pickle")
    (model / "modeling_evil.py").write_text("raise SystemExit")
    source = LocalSource(path=str(model), blocks=2, n_ctx=8)
    fetch(source, tmp_path / "out", tmp_path / "cache")
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
    }
    one = AutoModelForCausalLM.from_pretrained(model, use_safetensors=True).state_dict()
    other = AutoModelForCausalLM.from_pretrained(tmp_path / "out").state_dict()
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_what_the_study_says_is_checked(model: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="has 2 blocks, the study says blocks: 3"):
        fetch(LocalSource(path=str(model), blocks=3, n_ctx=8), tmp_path / "out", tmp_path)
    with pytest.raises(ValueError, match="takes 8 positions, the study says n_ctx: 2048"):
        fetch(LocalSource(path=str(model), blocks=2), tmp_path / "out", tmp_path)
    assert not (tmp_path / "out").exists()


def test_directories_without_config_or_safetensors_are_refused(tmp_path: Path) -> None:
    source = LocalSource(path=str(tmp_path), blocks=1)
    with pytest.raises(FetchError, match=r"no config.json"):
        fetch(source, tmp_path / "out", tmp_path)
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "pytorch_model.bin").write_bytes(b"pickle")
    with pytest.raises(FetchError, match="pickled weights are refused"):
        fetch(source, tmp_path / "out", tmp_path)


def test_a_missing_shard_is_named(model: Path, tmp_path: Path) -> None:
    for name in ("config.json", "tokenizer.json", "model.safetensors"):
        (tmp_path / name).write_bytes((model / name).read_bytes())
    (tmp_path / "model.safetensors.index.json").write_text(
        '{"weight_map": {"x": "model-00002-of-00002.safetensors"}}'
    )
    with pytest.raises(FetchError, match=r"names model-00002-of-00002.safetensors"):
        fetch(LocalSource(path=str(tmp_path), blocks=2), tmp_path / "out", tmp_path)


def test_an_unreachable_hub_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    asked: dict[str, object] = {}

    def unreachable(repository: str, **options: object) -> str:
        asked.update(options, repository=repository)
        raise OSError("no route\nand more")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", unreachable)
    source = HubSource(repository="some/model", revision="abc", blocks=1)
    with pytest.raises(
        FetchError, match=r"some/model@abc on the hub: cannot be fetched: no route$"
    ):
        fetch(source, tmp_path / "out", tmp_path)
    assert asked["revision"] == "abc"
    patterns = asked["allow_patterns"]
    assert isinstance(patterns, list)
    assert "*.safetensors" in patterns
    assert not any("bin" in pattern or pattern == "*" for pattern in patterns)


def test_a_config_without_a_limit_takes_any_n_ctx() -> None:
    source = WheelSource(requirement="a==1", member="m.gguf", sha256="0" * 64, blocks=1, n_ctx=4096)
    check_config({"num_hidden_layers": 1}, source)
