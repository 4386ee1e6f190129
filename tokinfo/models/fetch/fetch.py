"""Pretrained models: what a study reads of one, in one directory.

A directory holds config.json, the tokenizer and, for a number of blocks, the weights of the
embedding and of that many blocks. Its config.json is the full model's, and says how many blocks are
there as ``tokinfo_blocks``.
"""

# mypy: allow-untyped-calls
# (transformers leaves many of its functions without types)

from __future__ import annotations

import logging
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from tokinfo.io.atomic import new_directory
from tokinfo.io.chats import TEMPLATE
from tokinfo.io.damaged import parse_json, parsing
from tokinfo.io.errors import FetchError, InvalidError, first_line
from tokinfo.io.wheel import extract
from tokinfo.models.checkpoint import quiet, read_config, shorter
from tokinfo.models.fetch.gguf import GgufModel, gguf_digest, open_gguf
from tokinfo.models.fetch.hub import HubOrigin
from tokinfo.models.fetch.local import LocalOrigin
from tokinfo.models.fetch.partial import write_blocks
from tokinfo.models.remote_code import allowed, foreign, trusted
from tokinfo.models.structure import held_blocks
from tokinfo.study.sources import (
    GgufSource,
    HubSource,
    LocalSource,
    Pretrained,
    WheelSource,
    located,
)
from tokinfo.text.tokenizer import check_ids, load_tokenizer

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from transformers.configuration_utils import PretrainedConfig

TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    TEMPLATE,
    "special_tokens_map.json",
    "added_tokens.json",
    "tokenizer.model",
    "vocab.json",
    "merges.txt",
)
_CHANGING = {"add_prefix_space", "add_bos_token", "add_eos_token"}
"""Keys of a tokenizer_config.json that change which tokens a text has."""
_TEXTS = ("The sky is blue.", " two  spaces", "caf\u00e9\n1234")
log = logging.getLogger(__name__)


def fetch(source: Pretrained, blocks: int | None, out: Path, state: Path) -> None:
    """Write the first ``blocks`` blocks of a pretrained model and its tokenizer to ``out``.

    Args:
        source: where the model comes from.
        blocks: how many, beside the embedding; None: configuration and tokenizer alone.
        out: directory to write, as a whole or not at all.
        state: what is kept between jobs: wheels, parts of hub repositories and of GGUF files.

    Raises:
        FetchError: the model cannot be fetched, or is damaged.
        ValueError: it is not what the study states.
    """
    trust = getattr(source, "trust_remote_code", False)
    with trusted(trust), new_directory(out) as directory:
        match source:
            case WheelSource() | GgufSource():
                with _open_gguf(source, state) as model:
                    config = model.write_config(directory)
                    check_config(config, source)
                    _check_vocabulary(directory, config, model.name)
                    if blocks is not None:
                        model.write_blocks(config, blocks, directory)
            case HubSource() | LocalSource():
                origin = _origin(source, state)
                config = _read_config(origin, directory)
                check_config(config, source)
                _copy_tokenizer(origin, directory)
                _check_vocabulary(directory, config, origin.name)
                if isinstance(origin, HubOrigin):
                    config.tokinfo_commit = origin.commit
                if blocks is not None:
                    write_blocks(origin, config, blocks, directory)
        _write_config(config, blocks, directory)


def configuration(source: Pretrained, state: Path) -> PretrainedConfig:
    """Return the configuration of a pretrained model, which no study has stated anything of.

    Arguments and errors are those of `fetch`.
    """
    trust = getattr(source, "trust_remote_code", False)
    with trusted(trust), TemporaryDirectory() as scratch:
        match source:
            case WheelSource() | GgufSource():
                with _open_gguf(source, state) as model:
                    return model.write_config(Path(scratch))
            case HubSource() | LocalSource():
                return _read_config(_origin(source, state), Path(scratch))


def describe(source: Pretrained) -> str:
    """Name a source in one phrase, for messages."""
    match source:
        case WheelSource():
            return f"model {source.member} of {source.requirement}"
        case HubSource():
            return f"model {source.repository}@{source.revision} on the hub"
        case LocalSource() | GgufSource():
            return f"model {source.path}"


def check_config(config: PretrainedConfig, source: Pretrained) -> None:
    """Compare a model's configuration with the study; raises ValueError or FetchError."""
    for name in ("num_hidden_layers", "vocab_size"):
        number = getattr(config, name, None)
        if type(number) is not int or number < (name != "num_hidden_layers"):
            raise FetchError(f"{describe(source)}: its config.json says {name}: {number!r}")
    depth = held_blocks(config)
    if depth != source.blocks:
        raise InvalidError(
            f"{describe(source)}: has {depth} blocks, the study says blocks: {source.blocks}"
        )
    limit = getattr(config, "max_position_embeddings", None) or getattr(config, "n_ctx", None)
    if limit is not None and source.n_ctx > limit > 0:
        raise InvalidError(
            f"{describe(source)}: takes {limit} positions, the study says n_ctx: {source.n_ctx}"
        )
    if (packed := getattr(config, "quantization_config", None)) is not None:
        method = packed.get("quant_method") if isinstance(packed, dict) else None
        raise FetchError(
            f"{describe(source)}: its weights are stored quantised ({method or 'unknown'}); "
            "use the repository of the original weights"
        )


def _origin(source: HubSource | LocalSource, state: Path) -> HubOrigin | LocalOrigin:
    if source.path is not None:
        return LocalOrigin(located(source.path))
    assert isinstance(source, HubSource)
    return HubOrigin(source.repository, source.revision, state)


def _read_config(origin: HubOrigin | LocalOrigin, directory: Path) -> PretrainedConfig:
    from transformers import CONFIG_MAPPING

    if "config.json" not in origin.files():
        raise FetchError(f"{origin.name}: no config.json there")
    shutil.copyfile(origin.whole("config.json"), directory / "config.json")
    with parsing(f"{origin.name}: its config.json cannot be used"):
        values = parse_json((directory / "config.json").read_bytes())
        if "auto_map" in values and values.get("model_type") not in CONFIG_MAPPING:
            _copy_code(origin, values, directory)
        try:
            return read_config(directory)
        except (FetchError, InvalidError) as error:
            # The file that it names will not be there.
            reason = str(error).removeprefix(f"{directory / 'config.json'}: ")
            raise ValueError(reason) from None


def _copy_code(origin: HubOrigin | LocalOrigin, config: dict[str, Any], directory: Path) -> None:
    """Copy the modules of a model that comes with code; raises FetchError."""
    if not allowed():
        raise FetchError(
            f"{origin.name}: {config.get('model_type')} models come with code of their own, "
            "which is not run (trust_remote_code)"
        )
    if outside := foreign(config):
        raise FetchError(
            f"{origin.name}: its code is in another repository ({outside[0]}), at no stated "
            "commit; that is not run"
        )
    for file in origin.files():
        if file.endswith(".py"):
            shutil.copyfile(origin.whole(file), directory / file)


def _copy_tokenizer(origin: HubOrigin | LocalOrigin, directory: Path) -> None:
    """Copy the tokenizer's files, and write tokenizer.json where only an older form is there."""
    there = origin.files()
    for file in TOKENIZER_FILES:
        if file in there:
            shutil.copyfile(origin.whole(file), directory / file)
    if "tokenizer.json" in there:
        _configure_tokenizer(directory)
        return
    if not {"tokenizer.model", "vocab.json"}.intersection(there):
        raise FetchError(
            f"{origin.name}: no tokenizer.json and no way to make one: neither tokenizer.model nor "
            "vocab.json is there"
        )
    from transformers import AutoTokenizer

    try:
        with quiet():
            tokenizer = AutoTokenizer.from_pretrained(directory, trust_remote_code=False)
            tokenizer.save_pretrained(directory)
    except Exception as error:
        reason = first_line(error)
        raise FetchError(
            f"{origin.name}: no tokenizer.json and no way to make one: {reason}"
        ) from None
    if not (directory / "tokenizer.json").is_file():
        raise FetchError(f"{origin.name}: no tokenizer.json and no fast form of its tokenizer")


def _configure_tokenizer(directory: Path) -> None:
    """Write tokenizer.json as AutoTokenizer reads it, where tokenizer_config.json changes it.

    It may say, beside the class of the tokenizer, whether a space is put in front of a text. Where
    AutoTokenizer cannot read it, tokenizer.json stands by itself.
    """
    path = directory / "tokenizer_config.json"
    try:
        said = parse_json(path.read_bytes()) if path.is_file() else {}
    except ValueError:
        return
    if not _CHANGING.intersection(said):
        return
    from transformers import AutoTokenizer

    try:
        with quiet():
            loaded = AutoTokenizer.from_pretrained(directory, trust_remote_code=False)
        configured: Tokenizer = loaded.backend_tokenizer
    except Exception as error:
        log.warning("%s: read without its settings: %s", path, first_line(error))
        return
    stated = load_tokenizer(directory)
    if any(configured.encode(text).ids != stated.encode(text).ids for text in _TEXTS):
        configured.save(str(directory / "tokenizer.json"))


def _check_vocabulary(directory: Path, config: PretrainedConfig, name: str) -> None:
    """Raise ValueError where the tokenizer has tokens that the embedding has no row for."""
    check_ids(load_tokenizer(directory), config.vocab_size, name)


def _write_config(config: PretrainedConfig, blocks: int | None, directory: Path) -> None:
    kept = config if blocks is None else shorter(config, blocks)
    kept.save_pretrained(directory)


@contextmanager
def _open_gguf(source: WheelSource | GgufSource, state: Path) -> Iterator[GgufModel]:
    name = describe(source)
    if isinstance(source, GgufSource):
        file = located(source.path)
        with open_gguf(name, gguf_digest(file, name), state, lambda _: file) as model:
            yield model
        return

    def unpack(scratch: Path) -> Path:
        extract(source, scratch / "model.gguf", state / "downloads")
        return scratch / "model.gguf"

    with open_gguf(name, source.sha256, state, unpack) as model:
        yield model
