"""A configuration that names code elsewhere brings none here, trusted or not."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.hub_server import Hub
from tests.models.fetch.hub_models import ID, local
from tokinfo.io.errors import TokinfoError
from tokinfo.models.checkpoint import load, read_config, read_decoder
from tokinfo.models.fetch.fetch import fetch
from tokinfo.models.preparing import prepare
from tokinfo.models.remote_code import trusted
from tokinfo.study.sources import Model

ELSEWHERE = {
    "AutoConfig": f"{ID}--configuration_evil.EvilConfig",
    "AutoModel": f"{ID}--modeling_evil.EvilModel",
    "AutoModelForCausalLM": f"{ID}--modeling_evil.EvilForCausalLM",
}


@pytest.fixture
def evil(
    copy: tuple[Path, Any], server: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Path:
    """A model on this machine; the repository of its name on the hub holds code."""
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "m"))
    server.repositories[ID] = tmp_path / "repository"
    server.repositories[ID].mkdir()
    for name in ("configuration_evil.py", "modeling_evil.py"):
        (server.repositories[ID] / name).write_text("raise SystemExit(3)\n")
    return copy[0]


def change(directory: Path, **values: Any) -> None:
    config = json.loads((directory / "config.json").read_text())
    (directory / "config.json").write_text(json.dumps(config | values))


@pytest.mark.parametrize("trust", [True, False])
@pytest.mark.parametrize(
    "values",
    [
        {"auto_map": ELSEWHERE},
        {"auto_map": {"AutoModel": "modeling_evil.EvilModel"}},
        {"attn_implementation": ID},
        {"_attn_implementation": f"{ID}:attention"},
        {"attn_implementation": "flash_attention_2"},
        {"attn_implementation": {"": ID}},
        {"experts_implementation": ID},
    ],
    ids=str,
)
def test_a_known_model_is_read_without_the_code_it_names(
    evil: Path, server: Hub, values: dict[str, Any], trust: bool, tmp_path: Path
) -> None:
    with trusted(trust):
        expected = read_decoder(evil, read_config(evil)).state_dict()
        change(evil, **values)
        fetch(local(evil, trust_remote_code=trust), 2, tmp_path / "part", tmp_path / "state")
        prepare(tmp_path / "part", Model(source="s"), 2, tmp_path / "out")
        found = load(tmp_path / "out")
        # As `tokinfo parity` reads it.
        whole = read_decoder(evil, read_config(evil)).state_dict()
    assert server.requests == []
    assert type(found.decoder).__module__.startswith("transformers.models.llama.")
    kept = found.decoder.state_dict()
    assert all(torch.equal(kept[name], expected[name]) for name in kept)
    assert all(torch.equal(whole[name], expected[name]) for name in expected)


@pytest.mark.parametrize("trust", [True, False])
def test_an_unknown_model_with_code_elsewhere_is_refused(
    evil: Path, server: Hub, trust: bool, tmp_path: Path
) -> None:
    change(evil, model_type="evil", auto_map=ELSEWHERE)
    with pytest.raises(TokinfoError, match=r"another repository|which is not run"):
        fetch(local(evil, trust_remote_code=trust), 1, tmp_path / "part", tmp_path / "state")
    with trusted(trust), pytest.raises(TokinfoError, match="another repository"):
        read_config(evil)
    assert server.requests == []


@pytest.mark.parametrize("values", [{"auto_map": ELSEWHERE}, {"attn_implementation": ID}], ids=str)
def test_a_checkpoint_from_elsewhere_is_loaded_without_the_code_it_names(
    evil: Path, server: Hub, values: dict[str, Any], tmp_path: Path
) -> None:
    fetch(local(evil), 1, tmp_path / "part", tmp_path / "state")
    prepare(tmp_path / "part", Model(source="s"), 1, tmp_path / "out")
    (tmp_path / "out" / "tokinfo.sha256").unlink()
    change(tmp_path / "out", **values)
    with trusted(True):
        assert type(load(tmp_path / "out").decoder).__name__ == "LlamaModel"
    assert server.requests == []
