"""Checkpoints: what a cell loads, and no more: the embedding and the blocks the study reads.

`prepare` makes one from a full model (or random weights), cut after the deepest block the study
needs, cast or quantised. The language-model head is dropped: no site lies behind it. `load`
gives every model the same face; no code after it asks which family a model is of.
"""

# mypy: allow-untyped-calls
# (transformers leaves many of its functions without types)

from __future__ import annotations

import hashlib
import json
import logging
import shutil
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import tokenizers
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from tokinfo.atomic import new_directory
from tokinfo.models.mixer import MODEL_TYPE, MixerSpec, MixerStack
from tokinfo.sources import MixerSource, Model, TransformerSource
from tokinfo.tokenizer import load_tokenizer

if TYPE_CHECKING:
    from transformers.configuration_utils import PretrainedConfig
    from transformers.modeling_utils import PreTrainedModel

FACTS = "tokinfo.json"
WEIGHTS = "model.safetensors"
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True)
class Checkpoint:
    """A model as a cell sees it."""

    # Called as decoder(inputs_embeds=[batch, positions, d], attention_mask=..., use_cache=False);
    # in eval mode, no parameter requires a gradient.
    decoder: nn.Module
    embedding: Tensor  # [vocabulary, d], float32 copy (or view) of the decoder's own
    tokenizer: tokenizers.Tokenizer
    pad_id: int
    facts: dict[str, Any]  # contents of tokinfo.json

    @property
    def dtype(self) -> torch.dtype:
        """What the decoder computes in, and wants ``inputs_embeds`` in."""
        return DTYPES[self.facts["dtype"]]


# --- preparing ----------------------------------------------------------------------------


def prepare(
    origin: Path | MixerSource | TransformerSource,
    model: Model,
    blocks: int,
    out: Path,
    *,
    tokenizer: Path | None = None,
    facts: dict[str, Any] | None = None,
) -> None:
    """Write the checkpoint of a model: embedding and first ``blocks`` blocks, quantised.

    ``origin`` is the directory of a full model, or (untrained only) a source to build one from;
    then ``tokenizer`` names the directory of its tokenizer. Untrained weights are those of the
    full model with ``model.seed``, cut: they do not depend on ``blocks``. ``facts`` go into
    tokinfo.json as they are, beside what is measured here; an ``n_ctx`` among them is kept where
    the model's own limit allows it. Raises ValueError for a combination that cannot be.
    """
    words = tokenizer if tokenizer is not None else origin
    if not isinstance(words, Path):
        raise ValueError(f"{out.name}: building from a source needs the tokenizer's directory")
    vocabulary = load_tokenizer(words)
    config = read_config(origin) if isinstance(origin, Path) else None
    if model.state == "untrained":
        full = _random(origin, config, vocabulary.get_vocab_size(), model.seed)
        config = full.config
        depth = _check_depth(config, blocks, out.name)
        decoder = cut(full, blocks)
    elif config is not None and isinstance(origin, Path):
        depth = _check_depth(config, blocks, out.name)
        decoder = read_decoder(origin, shorter(config, blocks))
    else:
        raise ValueError(f"{out.name}: a trained model needs the directory of its weights")
    rows = len(input_table(decoder))
    if vocabulary.get_vocab_size() > rows:
        raise ValueError(
            f"{out.name}: the tokenizer has {vocabulary.get_vocab_size()} tokens, "
            f"the embedding {rows} rows"
        )
    decoder.config.tokinfo_depth = depth
    limit = getattr(config, "max_position_embeddings", None)
    limits = [n for n in (limit, (facts or {}).get("n_ctx")) if n is not None]
    with new_directory(out) as directory:
        save_model(quantize(decoder, model.quantization), directory)
        for name in ("tokenizer.json", "tokenizer_config.json"):
            if (words / name).is_file():
                shutil.copyfile(words / name, directory / name)
        found = {
            **(facts or {}),
            "family": family(config),
            "state": model.state,
            "seed": model.seed if model.state == "untrained" else None,
            "quantization": model.quantization,
            # What activations are computed in; bitsandbytes replaces the linear layers only.
            "dtype": model.quantization if model.quantization in DTYPES else "float32",
            "blocks_kept": blocks,
            "depth": depth,
            "n_ctx": min(limits) if limits else None,
            "vocabulary": rows,
            "d_model": config.hidden_size,
            "pad_id": pad_id(words, vocabulary, config),
            "digest": digest(directory),
        }
        (directory / FACTS).write_text(
            json.dumps(found, indent=2, ensure_ascii=False) + "\n", encoding="utf-8"
        )


def read_config(directory: Path) -> PretrainedConfig:
    """Read config.json of a full model; raises FileNotFoundError naming a missing file."""
    from transformers import AutoConfig

    import tokinfo.models.modeling_mixer  # noqa: F401 (registers the mixers)

    if not (directory / "config.json").is_file():
        raise FileNotFoundError(f"{directory / 'config.json'}: not a model directory")
    config: PretrainedConfig = AutoConfig.from_pretrained(directory)
    return config


def shorter(config: PretrainedConfig, blocks: int) -> PretrainedConfig:
    """Return a copy of a configuration with its first ``blocks`` blocks only."""
    values = config.to_dict()
    copy = type(config).from_dict(values)
    copy.num_hidden_layers = blocks
    # Per-layer lists (kinds of attention) must be as long as the model is deep.
    if isinstance(values.get("layer_types"), list):
        copy.layer_types = values["layer_types"][:blocks]
    return copy


def read_decoder(directory: Path, config: PretrainedConfig) -> PreTrainedModel:
    """Read the decoder (no head) of a full model in float32, only the layers of ``config``.

    Raises ValueError when the directory lacks weights that the configuration asks for.
    """
    from transformers import AutoModel

    with quiet():
        decoder, info = AutoModel.from_pretrained(
            directory,
            config=config,
            dtype=torch.float32,
            use_safetensors=True,
            output_loading_info=True,
        )
    if info["missing_keys"]:
        missing = sorted(info["missing_keys"])
        raise ValueError(f"{directory}: no weights for {missing[0]} ({len(missing)} missing)")
    found: PreTrainedModel = decoder
    return found


def cut(full: PreTrainedModel, blocks: int) -> PreTrainedModel:
    """Return the decoder of a model with its first ``blocks`` blocks, the same weights."""
    from transformers import AutoModel

    with quiet(), torch.random.fork_rng(devices=[]):
        decoder: PreTrainedModel = AutoModel.from_config(
            shorter(full.config, blocks), dtype=torch.float32
        )
    missing, _ = decoder.load_state_dict(full.base_model.state_dict(), strict=False)
    if missing:
        raise ValueError(f"{family(full.config)}: cannot be cut after block {blocks}: {missing[0]}")
    return decoder


def quantize(decoder: PreTrainedModel, quantization: str) -> PreTrainedModel:
    """Return the decoder cast, or with its linear layers replaced by bitsandbytes' (int8, nf4).

    int8 is LLM.int8 (absmax per row, outlier columns above 6.0 in 16 bits); nf4 has blocks of 64,
    without double quantisation. Embedding, norms, a mixer's convolutions and the activations
    stay in float32 in both; LLM.int8 itself multiplies inputs rounded to 16 bits.
    """
    if quantization in DTYPES:
        # Parameters only: `.to` would round the rotary frequencies too, which from_pretrained
        # (and so `load`) keeps in float32.
        for parameter in decoder.parameters():
            parameter.data = parameter.data.to(DTYPES[quantization])
        return decoder
    import_bitsandbytes()
    from transformers import AutoModel, BitsAndBytesConfig

    settings = (
        BitsAndBytesConfig(load_in_8bit=True)
        if quantization == "int8"
        else BitsAndBytesConfig(
            load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.float32
        )
    )
    with tempfile.TemporaryDirectory() as directory:
        save_model(decoder, Path(directory))
        with quiet():
            quantized: PreTrainedModel = AutoModel.from_pretrained(
                directory, quantization_config=settings, dtype=torch.float32, device_map="cpu"
            )
    return quantized


def save_model(model: PreTrainedModel, directory: Path) -> None:
    """Write config.json and one model.safetensors, without a progress bar."""
    with quiet():
        model.save_pretrained(directory, max_shard_size="1TB")
    # safetensors are written readable by their owner alone; others may share the results.
    shutil.copymode(directory / "config.json", directory / WEIGHTS)


def input_table(decoder: nn.Module) -> Tensor:
    """Return the embedding matrix [vocabulary, d] of a decoder, in its own precision."""
    table: nn.Embedding = decoder.get_input_embeddings()  # type: ignore[operator]
    return table.weight.detach()


def family(config: PretrainedConfig) -> str:
    """Name the family of a model as the tables do: `mixer-flat`, ..., or its model_type."""
    if config.model_type == MODEL_TYPE:
        return f"mixer-{config.form}"
    return str(config.model_type)


def pad_id(directory: Path, tokenizer: tokenizers.Tokenizer, config: PretrainedConfig) -> int:
    """Return the pad token's id: the tokenizer's own, else the model's, else the end of text's."""
    path = directory / "tokenizer_config.json"
    names = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    eos = config.eos_token_id if hasattr(config, "eos_token_id") else None
    for candidate in (
        names.get("pad_token"),
        getattr(config, "pad_token_id", None),
        names.get("eos_token"),
        eos[0] if isinstance(eos, list) else eos,
    ):
        # A token is written as its text or as an object holding it.
        text = candidate.get("content") if isinstance(candidate, dict) else candidate
        found = tokenizer.token_to_id(text) if isinstance(text, str) else text
        if found is not None:
            return int(found)
    return 0


def digest(directory: Path) -> str:
    """Return the SHA-256 of the weights' bytes followed by config.json's."""
    found = hashlib.sha256()
    for name in (WEIGHTS, "config.json"):
        with (directory / name).open("rb") as stream:
            while chunk := stream.read(1 << 20):
                found.update(chunk)
    return found.hexdigest()


def _random(
    origin: Path | MixerSource | TransformerSource,
    config: PretrainedConfig | None,
    vocabulary: int,
    seed: int,
) -> PreTrainedModel:
    from tokinfo.models.build import new_model, random_model

    if config is not None:
        return random_model(config, seed)
    assert not isinstance(origin, Path)
    return new_model(origin, vocabulary, seed)


def _check_depth(config: PretrainedConfig, blocks: int, name: str) -> int:
    depth = int(config.num_hidden_layers)
    if not 0 <= blocks <= depth:
        raise ValueError(f"{name}: {blocks} blocks asked for, the model has {depth}")
    return depth


# --- loading ------------------------------------------------------------------------------


def load(directory: Path, device: str = "cpu") -> Checkpoint:
    """Load a checkpoint that `prepare` wrote; raises FileNotFoundError when it is not one."""
    path = directory / FACTS
    if not path.is_file():
        raise FileNotFoundError(f"{path}: not a checkpoint (the `prepare` rule writes it)")
    facts = json.loads(path.read_text(encoding="utf-8"))
    config = json.loads((directory / "config.json").read_text(encoding="utf-8"))
    decoder: nn.Module
    if config["model_type"] == MODEL_TYPE and "quantization_config" not in config:
        # Importing transformers takes about 3 s, as much as a warm mixer cell may cost in all.
        decoder = _load_mixer(directory, config, device)
    else:
        decoder = _load_auto(directory, device)
    decoder.eval().requires_grad_(False)
    return Checkpoint(
        decoder=decoder,
        embedding=input_table(decoder).float(),
        tokenizer=load_tokenizer(directory),
        pad_id=facts["pad_id"],
        facts=facts,
    )


def _load_mixer(directory: Path, config: dict[str, Any], device: str) -> MixerStack:
    # Random weights that are thrown away are cheaper than the meta device, whose first
    # initialisation imports the compiler (1 s).
    with torch.random.fork_rng(devices=[]):
        stack = MixerStack(MixerSpec.from_config(config))
    # assign: the memory-mapped tensors become the parameters; nothing is copied.
    stack.load_state_dict(load_file(directory / WEIGHTS, device=device), assign=True)
    return stack


def _load_auto(directory: Path, device: str) -> PreTrainedModel:
    from transformers import AutoModel

    import tokinfo.models.modeling_mixer  # noqa: F401 (registers the mixers)

    config = json.loads((directory / "config.json").read_text(encoding="utf-8"))
    if "quantization_config" in config:
        import_bitsandbytes()
    with quiet():
        decoder: PreTrainedModel = AutoModel.from_pretrained(
            directory, dtype="auto", use_safetensors=True, device_map={"": device}
        )
    return decoder


def import_bitsandbytes() -> None:
    """Import bitsandbytes without its use of `torch.compile`.

    Its fallback kernels compile themselves where the machine has a C++ compiler and run as they
    are where it has none: one checkpoint, two sets of numbers. Without it there is one, and the
    import is 1 s shorter.
    """

    def plain(function: Any = None, **_: Any) -> Any:
        return function if function is not None else plain

    # It says at every int8 product that inputs are cast to float16 (see `quantize`), and at its
    # import that an optional kernel is not there.
    logging.getLogger("bitsandbytes").setLevel(logging.CRITICAL)
    compiler = torch.compile
    torch.compile = plain  # type: ignore[assignment]
    try:
        import bitsandbytes  # noqa: F401
    finally:
        torch.compile = compiler


@contextmanager
def quiet() -> Iterator[None]:
    """Keep transformers' notes and bars out of the logs: unused head weights are meant here."""
    from transformers.utils import logging as notes

    before, bars = notes.get_verbosity(), notes.is_progress_bar_enabled()
    notes.set_verbosity_error()
    notes.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", module="bitsandbytes")
            yield
    finally:
        notes.set_verbosity(before)
        if bars:
            notes.enable_progress_bar()
