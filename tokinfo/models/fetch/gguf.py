"""GGUF files: their first blocks as float32 safetensors, their tokenizer as tokenizer.json.

Nothing is made of a file twice. Its configuration and tokenizer are kept, and one file for the
embedding and for each block; a depth's directory is made of links to them, and a deeper one
converts the blocks that are new.
"""

# mypy: allow-untyped-calls
# (transformers leaves many of its functions without types)

from __future__ import annotations

import hashlib
import importlib.metadata
import itertools
import json
import shutil
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from tokinfo.io.atomic import new_directory
from tokinfo.io.damaged import parsing
from tokinfo.io.errors import FetchError, first_line
from tokinfo.io.locks import exclusive
from tokinfo.io.provenance import code_digest
from tokinfo.models.checkpoint import decoder_class, quiet, read_config, shorter
from tokinfo.models.fetch.gguf_checks import HEAD, check_gguf
from tokinfo.models.fetch.partial import held_tensors, link, write_index
from tokinfo.models.parts import EMBEDDING, block_file
from tokinfo.models.structure import blocks_path
from tokinfo.models.weights import write_part

if TYPE_CHECKING:
    from transformers.configuration_utils import PretrainedConfig
    from transformers.modeling_utils import PreTrainedModel

UNCOPIED = ("GGUF.", "general.architecture", "general.alignment", "tokenizer.")
"""Fields that a cut file does not take over: those that its writer sets, and the vocabulary."""


class GgufModel:
    """A GGUF file, and what has been made of it.

    Args:
        name: what messages call it.
        root: directory of what is made of a file of these bytes.
        find: returns the file, given a directory to put it where it is not at hand; called only
            when something is to be made of it.
    """

    def __init__(self, name: str, root: Path, find: Callable[[Path], Path]) -> None:
        self.name, self.root, self._find = name, root, find
        self.scratch = root / "scratch"

    @cached_property
    def file(self) -> Path:
        """The file itself."""
        self.scratch.mkdir(parents=True, exist_ok=True)
        return self._find(self.scratch)

    @cached_property
    def kept(self) -> Path:
        """Directory of what this code and these libraries make of the file.

        What other code or libraries made of it is deleted.
        """
        makers = {name: importlib.metadata.version(name) for name in ("transformers", "gguf")}
        makers["code"] = code_digest("tokinfo.models.fetch.gguf")
        text = json.dumps(makers, sort_keys=True, separators=(",", ":"))
        kept = self.root / hashlib.sha256(text.encode()).hexdigest()[:16]
        if self.root.is_dir():
            for other in self.root.iterdir():
                if other not in (kept, self.scratch):
                    shutil.rmtree(other)
        return kept

    def write_config(self, out: Path) -> PretrainedConfig:
        """Write config.json and the tokenizer to ``out``; returns the configuration.

        Raises FetchError when the file is not GGUF, or holds what transformers cannot read.
        """
        kept = self.kept / "config"
        if not kept.is_dir():
            with new_directory(kept) as partial:
                read_gguf_config(self.file, self.name).save_pretrained(partial)
                write_gguf_tokenizer(self.file, partial, self.name)
        shutil.copytree(kept, out, dirs_exist_ok=True)
        return read_config(out)

    def write_blocks(self, config: PretrainedConfig, blocks: int, out: Path) -> None:
        """Write the embedding and first ``blocks`` blocks to ``out``, dequantised to float32.

        Args:
            config: of the full model.
            blocks: how many.
            out: a directory, which gets one safetensors file for each of them, and an index.

        Raises:
            FetchError: a tensor is missing, or cannot be converted.
            OSError: the disk is full.
        """
        wanted = [EMBEDDING, *(block_file(number + 1) for number in range(blocks))]
        missing = [part for part in wanted if held_tensors(self.kept / part) is None]
        if missing:
            self._convert(config, missing)
        for part in wanted:
            link(self.kept / part, out / part)
        write_index(out, wanted)

    def _convert(self, config: PretrainedConfig, missing: Sequence[str]) -> None:
        """Write parts that are not kept yet, each under its name once it is complete."""
        numbers = {block_file(number + 1): number for number in range(config.num_hidden_layers)}
        inside = [numbers[part] for part in missing if part != EMBEDDING]
        # transformers dequantises every tensor of a file, so the file is cut first. Blocks keep
        # their places: in hybrid families, the place decides of what kind a block is.
        cut = self.scratch / "cut.gguf"
        try:
            _cut(self.file, inside, cut, embedding=EMBEDDING in missing)
        except OSError as error:  # numpy gives the number of bytes written, and no reason
            reason = error.strerror or f"the disk is full? ({error})"
            raise OSError(f"{self.name}: {cut} cannot be written: {reason}") from error
        decoder, absent = _read(cut, shorter(config, max(inside, default=-1) + 1), self.name)
        path = blocks_path(decoder) if inside else ""
        state = decoder.state_dict()
        parts = {}
        for part in missing:
            prefix = f"{path}." if part == EMBEDDING else f"{path}.{numbers[part]}."
            inner = {name for name in state if path and name.startswith(prefix)}
            parts[part] = sorted(set(state) - inner if part == EMBEDDING else inner)
        if lost := sorted(absent.intersection(itertools.chain(*parts.values()))):
            raise FetchError(f"{self.name}: no tensor for {lost[0]} ({len(lost)} missing)")
        for part, names in parts.items():
            stored = _as_stored(decoder, {name: state[name] for name in names})
            write_part(stored, self.kept / part, sealed=True)


@contextmanager
def open_gguf(
    name: str, sha256: str, state: Path, find: Callable[[Path], Path]
) -> Iterator[GgufModel]:
    """Give a GGUF model to one job at a time; see `GgufModel` for ``name`` and ``find``.

    Args:
        name: what messages call it.
        sha256: of the file, by which what is made of it is found again.
        state: directory that is kept between jobs.
        find: returns the file.
    """
    root = state / "gguf" / sha256
    with exclusive(root):
        model = GgufModel(name, root, find)
        # What a killed job may have left.
        shutil.rmtree(model.scratch, ignore_errors=True)
        try:
            yield model
        finally:
            shutil.rmtree(model.scratch, ignore_errors=True)
            with suppress(OSError):  # of a file that was refused nothing is kept
                model.kept.rmdir()
            with suppress(OSError):
                root.rmdir()


def gguf_digest(file: Path, name: str) -> str:
    """Return the SHA-256 of a GGUF file; raises FetchError where it is none."""
    if not file.is_file():
        raise FetchError(f"{name}: there is no such file")
    with file.open("rb") as stream:
        if stream.read(4) != b"GGUF":
            raise FetchError(f"{name}: not a GGUF file")
        stream.seek(0)
        return hashlib.file_digest(stream, "sha256").hexdigest()


def read_gguf_config(file: Path, name: str) -> PretrainedConfig:
    """Return the configuration of a GGUF model.

    Raises FetchError when the file is damaged, of an architecture that transformers does not know,
    or says or holds what is not read of it (`tokinfo.models.fetch.gguf_checks`); ``name`` is what
    the message calls it.
    """
    from transformers import AutoConfig

    try:
        with quiet():
            config: PretrainedConfig = AutoConfig.from_pretrained(file.parent, gguf_file=file.name)
    except Exception as error:  # of many types: unknown architecture, cut file
        line = first_line(error)
        reason = line if "not supported" in line else f"damaged or cut short: {line}"
        raise FetchError(f"{name}: {reason}") from None
    values = config.to_dict()
    # The weights are written dequantised, so the file's quantisation is not theirs.
    values.pop("quantization_config", None)
    found: PretrainedConfig = type(config).from_dict(values)
    with parsing(f"{name}: damaged or cut short"):
        check_gguf(file, found, name)
    return found


def write_gguf_tokenizer(file: Path, out: Path, name: str) -> None:
    """Write tokenizer.json from the vocabulary inside a GGUF file; raises FetchError."""
    from transformers import AutoTokenizer

    where: dict[str, Any] = {"gguf_file": file.name}
    try:
        with quiet():
            AutoTokenizer.from_pretrained(file.parent, **where).save_pretrained(out)
    except Exception as error:
        raise FetchError(f"{name}: no tokenizer inside: {first_line(error)}") from None


def _cut(file: Path, blocks: Collection[int], out: Path, *, embedding: bool) -> None:
    """Copy a GGUF file with the tensors of some blocks, and with ``embedding`` those outside."""
    from gguf import GGUFReader, GGUFValueType, GGUFWriter

    reader = GGUFReader(file)
    writer = GGUFWriter(
        out, reader.fields["general.architecture"].contents(), endianess=reader.endianess
    )
    for field in reader.fields.values():
        if field.name.startswith(UNCOPIED) or (value := field.contents()) == []:
            continue
        inner = field.types[-1] if field.types[0] == GGUFValueType.ARRAY else None
        writer.add_key_value(field.name, value, field.types[0], sub_type=inner)
    chosen = []
    for tensor in reader.tensors:
        where = tensor.name.split(".")
        number = int(where[1]) if where[0] == "blk" and where[1].isdecimal() else None
        if number in blocks if number is not None else embedding and tensor.name not in HEAD:
            chosen.append(tensor)
            data = tensor.data
            writer.add_tensor_info(
                tensor.name, data.shape, data.dtype, data.nbytes, tensor.tensor_type
            )
    try:
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        for tensor in chosen:
            writer.write_tensor_data(tensor.data, tensor_endianess=reader.endianess)
        writer.close()
    except OSError:
        with suppress(OSError):  # what could not be written cannot be flushed
            writer.close()
        raise


def _read(file: Path, config: PretrainedConfig, name: str) -> tuple[PreTrainedModel, set[str]]:
    """Return the decoder of a GGUF file in float32, and the names of what the file lacks."""
    from transformers import GgufConfig

    try:
        with quiet():
            decoder, info = decoder_class(config).from_pretrained(
                file.parent,
                gguf_file=file.name,
                config=config,
                dtype=torch.float32,
                quantization_config=GgufConfig(dequantize=True),
                output_loading_info=True,
            )
    except Exception as error:
        raise FetchError(f"{name}: cannot be converted: {first_line(error)}") from error
    return decoder, set(info["missing_keys"])


def _as_stored(decoder: PreTrainedModel, state: dict[str, torch.Tensor]) -> dict[str, Any]:
    """Return tensors as `save_pretrained` would have named and formed them."""
    from transformers.core_model_loading import revert_weight_conversion

    decoder._weight_conversions = None  # type: ignore[assignment]  # those of its class count
    stored = revert_weight_conversion(decoder, state)
    return {name: tensor.contiguous() for name, tensor in stored.items()}
