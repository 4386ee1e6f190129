"""Preparing checkpoints: a full model, or random weights, cut after the deepest block needed."""

# mypy: allow-untyped-calls
# (transformers leaves many of its functions without types)

from __future__ import annotations

import logging
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import tokenizers
from pydantic import Field

from tokinfo.io.atomic import new_directory
from tokinfo.io.chats import TEMPLATE
from tokinfo.io.damaged import check, parse_json, reading
from tokinfo.io.errors import InvalidError
from tokinfo.models import remote_code
from tokinfo.models.agreement import check_cut
from tokinfo.models.checkpoint import FACTS, Facts, digest, family, read_config, shorter
from tokinfo.models.remote_code import trusted
from tokinfo.models.snapshots import read_facts
from tokinfo.models.streaming import write_decoder
from tokinfo.models.structure import held_blocks
from tokinfo.models.weights import weights_in, weights_of
from tokinfo.study.fields import Strict
from tokinfo.study.sources import Built, Model, Source
from tokinfo.text.tokenizer import check_ids, load_tokenizer

if TYPE_CHECKING:
    from transformers.configuration_utils import PretrainedConfig
    from transformers.modeling_utils import PreTrainedModel

log = logging.getLogger(__name__)


class Cut(Strict):
    """What cutting a checkpoint depends on, besides the files it is made from."""

    blocks: int
    built: bool = Field(description="Built from its source, with random weights, instead of read.")
    model: Model
    source: Source
    facts: dict[str, Any] = Field(description="Goes into tokinfo.json as it is.")
    snapshot: str = Field("", description="Directory below the origin, of one of a run's.")


def cut_checkpoint(cut: Cut, origin: Path, out: Path) -> None:
    """Write a checkpoint.

    Args:
        cut: which.
        origin: directory of the full model; of the tokenizer, where the model is built.
        out: directory to write.
    """
    # A run's snapshots lie in the directory of the model that it ended with.
    origin = origin / cut.snapshot
    built = cut.source if isinstance(cut.source, Built) else None
    with trusted(getattr(cut.source, "trust_remote_code", False)):
        prepare(
            built if built is not None and cut.built else origin,
            cut.model,
            cut.blocks,
            out,
            tokenizer=origin if cut.built else None,
            facts=cut.facts | ({} if cut.built else read_facts(origin)),
        )


def prepare(
    origin: Path | Built,
    model: Model,
    blocks: int,
    out: Path,
    *,
    tokenizer: Path | None = None,
    facts: dict[str, Any] | None = None,
) -> None:
    """Write the checkpoint of a model: embedding and first ``blocks`` blocks, quantised.

    It is then compared with the whole model (`tokinfo.models.agreement`).

    ``origin`` is the directory of a full model, or (untrained only) a source to build one from;
    then ``tokenizer`` names the directory of its tokenizer. A full model is read block by block;
    random weights are those of the full model with ``model.seed``, made as a whole and cut: they
    do not depend on ``blocks``. The language-model head is dropped: no site lies behind it.
    ``facts`` go into tokinfo.json as they are, beside what is measured here; an ``n_ctx`` among
    them is kept where the model's limit allows it.

    Raises:
        ValueError: an impossible combination, or a model that is damaged or incomplete.
        OSError: the disk is full.
    """
    words = tokenizer if tokenizer is not None else origin
    if not isinstance(words, Path):
        raise InvalidError(f"{out.name}: building from a source needs the tokenizer's directory")
    check(words)
    if isinstance(origin, Path) and origin != words:
        check(origin)
    vocabulary = load_tokenizer(words)
    config = read_config(origin) if isinstance(origin, Path) else None
    if model.state == "untrained":
        full = _random(origin, config, vocabulary.get_vocab_size(), model.seed)
        config = full.config
        depth = _check_depth(config, blocks, out.name)
        weights = weights_of(full, blocks)
        del full  # its head goes; the decoder's tensors live on in `weights`
    elif config is not None and isinstance(origin, Path):
        depth = _check_depth(config, blocks, out.name)
        weights = weights_in(origin, config, blocks)
    else:
        raise InvalidError(f"{out.name}: a trained model needs the directory of its weights")
    rows = int(config.vocab_size)
    check_ids(vocabulary, rows, out.name)
    limit = getattr(config, "max_position_embeddings", None)
    # XLNet states -1, where nothing limits it.
    limits = [n for n in (limit, (facts or {}).get("n_ctx")) if n is not None and n > 0]
    kept = shorter(config, blocks)
    with new_directory(out) as directory:
        unquantised = write_decoder(weights, kept, model, directory)
        if unquantised:
            log.warning(
                "%s: %s leaves these in %s: %s",
                *(out.name, model.quantization, model.activations, ", ".join(unquantised)),
            )
        for name in ("tokenizer.json", "tokenizer_config.json", TEMPLATE):
            if (words / name).is_file():
                shutil.copyfile(words / name, directory / name)
        remote_code.copy_code(words, directory)
        found = Facts.model_validate(
            {
                **(facts or {}),
                "family": family(config),
                "state": model.state,
                "seed": model.seed if model.state == "untrained" else None,
                "quantization": model.quantization,
                # bitsandbytes replaces the linear layers only.
                "dtype": model.activations,
                "outlier_threshold": (
                    model.outlier_threshold if model.quantization == "int8" else None
                ),
                "unquantised": unquantised,
                "blocks_kept": blocks,
                "depth": depth,
                "n_ctx": min(limits) if limits else None,
                "vocabulary": rows,
                "d_model": config.hidden_size,
                "pad_id": pad_id(words, vocabulary, config),
                "digest": digest(directory),
            }
        )
        text = found.model_dump_json(indent=2, exclude_unset=True)
        (directory / FACTS).write_text(text + "\n", encoding="utf-8")
        plain = model.state == "trained" and model.quantization == "float32"
        whole = origin if plain and isinstance(origin, Path) else None
        check_cut(directory, whole, blocks, out.name)


def pad_id(directory: Path, tokenizer: tokenizers.Tokenizer, config: PretrainedConfig) -> int:
    """Return the pad token's id: the tokenizer's, else the model's, else that of end of text."""
    path = directory / "tokenizer_config.json"
    names: dict[str, Any] = {}
    if path.is_file():
        with reading(path):
            names = parse_json(path.read_bytes())
    eos = config.eos_token_id if hasattr(config, "eos_token_id") else None
    for candidate in (
        names.get("pad_token"),
        getattr(config, "pad_token_id", None),
        names.get("eos_token"),
        *(eos if isinstance(eos, list) else [eos]),
    ):
        # A token is written as its text or as an object holding it.
        text = candidate.get("content") if isinstance(candidate, dict) else candidate
        found = tokenizer.token_to_id(text) if isinstance(text, str) else text
        if type(found) is int:
            return found
    return 0


def _random(
    origin: Path | Built,
    config: PretrainedConfig | None,
    vocabulary: int,
    seed: int,
) -> PreTrainedModel:
    from tokinfo.models.build import new_model, random_model

    if config is not None:
        return random_model(shorter(config, config.num_hidden_layers), seed)
    assert not isinstance(origin, Path)
    return new_model(origin, vocabulary, seed)


def _check_depth(config: PretrainedConfig, blocks: int, name: str) -> int:
    held = int(held_blocks(config) or 0)
    if not 0 <= blocks <= held:
        raise InvalidError(f"{name}: {blocks} blocks requested, the model has {held}")
    return int(config.num_hidden_layers)
