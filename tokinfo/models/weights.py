"""The weights of a decoder, part by part: in files, or in a model in memory."""

# mypy: allow-untyped-calls
# (transformers leaves many of its functions without types)

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from tokinfo.io.atomic import new_file, save_sealed
from tokinfo.io.damaged import parse_json, reading
from tokinfo.io.errors import InvalidError, cure
from tokinfo.models.checkpoint import empty_decoder, family, shorter
from tokinfo.models.parts import EMBEDDING, block_file, sort_tensors
from tokinfo.models.structure import blocks_path, held_blocks

if TYPE_CHECKING:
    from transformers.configuration_utils import PretrainedConfig
    from transformers.modeling_utils import PreTrainedModel

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"

Part = Mapping[str, tuple[Path, str] | Tensor]
"""Tensors by name: each in a file, under the name it has there, or in memory."""


@dataclass(frozen=True)
class Weights:
    """The tensors that a decoder of some blocks is made from, part by part.

    Attributes:
        name: what messages call the model.
        parts: the blocks' in their order, last the one with all that lies outside them.
        stored: whether they are named as in files, so that transformers may have to convert them.
    """

    name: str
    parts: tuple[Part, ...]
    stored: bool


def weights_in(directory: Path, config: PretrainedConfig, blocks: int) -> Weights:
    """Return the weights of the first ``blocks`` blocks of a model in a directory; reads headers.

    ``config`` is that of the model as it lies there.

    Raises:
        ValueError: there are no safetensors, or they are damaged or incomplete.
        FetchError: no list of blocks is found among the names of their tensors.
    """
    where = _locate(directory)
    if held_blocks(config):
        sorted_ = sort_tensors(config, where, str(directory)).upto(blocks)
        parts = [sorted_[block_file(number + 1)] for number in range(blocks)]
        parts.append(sorted_[EMBEDDING])
    else:
        parts = [{name: name for name in where}]
    placed = ({new: (where[old], old) for new, old in part.items()} for part in parts)
    return Weights(str(directory), tuple(placed), stored=True)


def weights_of(full: PreTrainedModel, blocks: int) -> Weights:
    """Return the weights of the first ``blocks`` blocks of a model in memory, which is not copied.

    Raises ValueError when a decoder of that depth has tensors that the full model lacks.
    """
    state: dict[str, Tensor] = full.base_model.state_dict()
    wanted = empty_decoder(shorter(full.config, blocks)).state_dict()
    if missing := sorted(set(wanted) - set(state)):
        raise InvalidError(
            f"{family(full.config)}: cannot be cut after block {blocks}: {missing[0]}"
        )
    path = blocks_path(full.base_model)
    parts = [
        {name: state[name] for name in wanted if name.startswith(f"{path}.{number}.")}
        for number in range(blocks)
    ]
    parts.append({name: state[name] for name in wanted if not name.startswith(f"{path}.")})
    return Weights(family(full.config), tuple(parts), stored=False)


def _locate(directory: Path) -> dict[str, Path]:
    """Return the file that holds each tensor, as transformers finds it.

    A single file stands before an index beside it, which is left from before.
    """
    index = directory / INDEX
    if (directory / SINGLE).is_file() or not index.is_file():
        return {name: directory / SINGLE for name in _names(directory / SINGLE)}
    with reading(index):
        named: dict[str, str] = dict(parse_json(index.read_bytes())["weight_map"])
    for file in named.values():
        if not isinstance(file, str) or Path(file).name != file:
            raise InvalidError(f"{index}: names {file!r}, which is no file beside it")
    held = {file: _names(directory / file) for file in sorted(set(named.values()))}
    for name, file in named.items():
        if name not in held[file]:
            raise InvalidError(
                f"{directory / file}: the index says that it holds {name}; it does not"
            )
    return {name: directory / file for name, file in named.items()}


def _names(file: Path) -> set[str]:
    with ExitStack() as opened:
        return set(_opened(file, opened).keys())


def _opened(file: Path, opened: ExitStack) -> Any:
    if not file.is_file():
        raise InvalidError(f"{file}: is missing{cure(file)}")
    try:
        return opened.enter_context(safe_open(file, framework="pt"))
    except SafetensorError as error:
        raise InvalidError(f"{file}: damaged or cut short: {error}{cure(file)}") from None


def open_part(part: Part, opened: ExitStack) -> dict[str, Any]:
    """Return tensors, or slices of files that read a tensor only when they are indexed."""
    files: dict[Path, Any] = {}
    found: dict[str, Any] = {}
    for name, place in part.items():
        if isinstance(place, Tensor):
            found[name] = place
            continue
        file, old = place
        if file not in files:
            files[file] = _opened(file, opened)
        found[name] = files[file].get_slice(old)
    return found


def check_shapes(part: Part, shapes: Mapping[str, torch.Size], prefix: str) -> None:
    """Raise ValueError for a tensor in a file whose shape is not that of config.json.

    Tensors that are converted first have other names or shapes; converting them checks these.
    """
    stored = {name: place for name, place in part.items() if not isinstance(place, Tensor)}
    with ExitStack() as opened:
        for name, tensor in open_part(stored, opened).items():
            shape, held = shapes.get(name.removeprefix(f"{prefix}.")), tensor.get_shape()
            if shape is not None and list(shape) != held:
                file, old = stored[name]
                raise InvalidError(
                    f"{file}: {old} has the shape {held}, config.json makes it {list(shape)}"
                )


def write_part(tensors: dict[str, Tensor], file: Path, *, sealed: bool = False) -> None:
    """Write tensors as safetensors, as a whole or not at all; raises OSError on a full disk.

    ``sealed``: with a digest of the file in it, where no directory holds one.
    """
    metadata = {"format": "pt"}
    try:
        if sealed:
            save_sealed(tensors, file, metadata)
            return
        with new_file(file) as partial:
            save_file(tensors, partial, metadata=metadata)
    except SafetensorError as error:
        raise OSError(f"{file}: cannot be written: {error}") from None
