"""The sizes of every model, from the study and a config.json alone.

What a study will fetch, what its jobs will hold and how long they take is worked out before
anything is fetched and without torch: from depth, widths, heads and vocabulary. Tests hold these
sums to the models that are built.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from tokinfo.io.errors import InvalidError
from tokinfo.study.mistakes import MISSING, Mistake
from tokinfo.study.sources import Built, Gguf, GgufSource, MixerSource, Pretrained, Saved, located
from tokinfo.study.study import Study

PLAIN_MLP = {
    *("gpt2", "gpt_neo", "gpt_neox", "gptj", "gpt_bigcode", "opt", "bloom", "mpt", "codegen"),
    *("falcon", "phi", "starcoder2"),
}
"""Families whose MLP has two matrices; every other one is taken to have a gated one, of three."""
STORED = {"float64": 8, "float32": 4, "bfloat16": 2, "float16": 2}
"""Bytes of a weight in a repository, by the `dtype` of its config.json."""


@dataclass(frozen=True)
class Architecture:
    """Counts of weights, and what each takes as it is stored."""

    blocks: int
    width: int  # of an embedding
    vocabulary: int
    embedding: int  # weights outside the blocks, the output head left out
    block: int  # weights of one block
    stored_bytes: int = 4  # of one weight in the repository
    keys: int = 0  # width of a position's keys in one block; 0: as wide as an embedding
    mixing: int = 0  # weights of one block that each stand between two positions, as a mixer's do
    guessed: bool = False  # from the depth alone

    def weights(self, blocks: int) -> int:
        """Return how many weights the embedding and ``blocks`` blocks have."""
        return self.embedding + blocks * self.block

    def stored(self, blocks: int) -> int:
        """Return how many bytes are fetched for ``blocks`` blocks."""
        return self.weights(blocks) * self.stored_bytes

    def megabytes(self, blocks: int) -> int:
        """Return the size of the embedding and ``blocks`` blocks in float32, in MB."""
        return int(self.weights(blocks) * 4 / 1e6) + 1

    @property
    def block_megabytes(self) -> int:
        """The size of one block in float32, in MB."""
        return self.megabytes(1) - self.megabytes(0)


def sizes_of(study: Study, name: str) -> Architecture:
    """Return the sizes of a source's model, estimated where nothing is known yet."""
    source = study.sources[name]
    if isinstance(source, Built):
        return built(source, study.tokenizers[source.tokenizer].vocabulary)
    fetched = Path(study.results) / "sources" / name / "config"
    return architecture_of(source, fetched) or estimate(source)


def built(source: Built, vocabulary: int) -> Architecture:
    """Return the sizes of a model built here, to within its norms and biases.

    >>> built(MixerSource(form="flat", d_model=4, blocks=1, n_ctx=8, tokenizer="t"), 300).block
    192
    """
    width, mixing = source.d_model, 0
    if isinstance(source, MixerSource):
        within = 8 * width**2
        kernels = {"flat": 1.0, "expanded": 2 * source.expansion, "parallel": source.kernels}
        mixing = int(kernels[source.form] * source.n_ctx**2)
    else:
        within = 4 * width**2 + 3 * width * (source.intermediate or 4 * width)
    return Architecture(
        source.blocks, width, vocabulary, vocabulary * width, within + mixing, mixing=mixing
    )


def read_architecture(config: Mapping[str, Any]) -> Architecture:
    """Return the sizes of the model that a config.json describes.

    Biases and norms count in the families that have them. For a family unlike Llama, GPT-2 and
    their relatives the sizes are rough.

    Raises:
        ValueError: it does not say how deep, wide or many-worded the model is.
    """
    width = _number(config, "hidden_size", "n_embd", "d_model")
    blocks = _number(config, "num_hidden_layers", "n_layer", "num_layers", "n_layers")
    vocabulary = _number(config, "vocab_size")
    family = str(config.get("model_type", ""))
    plain = family in PLAIN_MLP
    inner = _number(config, "intermediate_size", "ffn_dim", "n_inner", "ffn_hidden_size", default=0)
    inner = inner or 4 * width
    heads = _number(config, "num_attention_heads", "n_head", "n_heads", default=1)
    groups = _number(config, "num_key_value_heads", default=heads)
    if family == "falcon" and config.get("multi_query"):
        groups = 1
    head = _number(config, "head_dim", default=0) or width // heads
    attention = 2 * width * heads * head + 2 * width * groups * head
    mlp = (2 if plain else 3) * width * inner
    experts = _number(config, "num_local_experts", "num_experts", "n_routed_experts", default=1)
    router = experts * width if experts > 1 else 0
    norms = 2 * width
    if plain and family != "falcon":
        # Biases of both products, and norms with a bias.
        norms = (2 if family == "phi" else 4) * width
        attention += (heads + 2 * groups) * head + width
        mlp += inner + width
    elif family.startswith("qwen2"):
        attention += (heads + 2 * groups) * head
    elif family.startswith("gemma") and family != "gemma":
        norms *= 2
    embedding = vocabulary * width + (2 if plain else 1) * width
    if family in ("gpt2", "opt"):
        positions = _number(config, "n_positions", "max_position_embeddings", default=0)
        embedding += (positions + (2 if family == "opt" else 0)) * width
    if (narrow := config.get("word_embed_proj_dim", width)) != width:
        embedding += 2 * narrow * width - vocabulary * (width - narrow)
    if family == "bloom":
        embedding += 2 * width
    dtype = str(config.get("dtype") or config.get("torch_dtype") or "float32")
    return Architecture(
        blocks=blocks,
        width=width,
        vocabulary=vocabulary,
        embedding=embedding,
        block=attention + experts * mlp + router + norms,
        stored_bytes=STORED.get(dtype.removeprefix("torch."), 4),
        keys=groups * head,
    )


def _number(config: Mapping[str, Any], *names: str, default: int | None = None) -> int:
    """Return the first of these fields that is there; families call the same thing differently."""
    for name in names:
        value = config.get(name)
        if isinstance(value, int) and not isinstance(value, bool):
            return value
    if default is None:
        raise InvalidError(f"says nothing of {names[0]}")
    return default


def architecture_of(source: Pretrained, fetched: Path | None = None) -> Architecture | None:
    """Return the sizes of a source's model, from what is at hand without a network.

    That is what the study says of it, the directory it is in, or ``fetched``, where an earlier
    run has put its config.json. None: there is none yet, or it makes no sense.
    """
    if isinstance(source.config, dict):
        return read_architecture(source.config)  # checked with the study
    directory = source.path if isinstance(source, Saved) else None
    places = [Path(source.config)] if source.config is not None else []
    places += [located(directory) / "config.json"] if directory else []
    places += [fetched / "config.json"] if fetched is not None else []
    for place in places:
        if place.is_file():
            return _read(place)
    return None


def estimate(source: Pretrained) -> Architecture:
    """Return sizes estimated from a model's depth alone, rather too large than too small.

    A GGUF weight takes four bits or more, and no wheel of the package index 100 MB. Any other
    model is taken to be as wide as large ones are for their depth (about 100 to 128 a block:
    Llama 7B to 65B), with their largest vocabularies, stored in two bytes.
    """
    if isinstance(source, Gguf):
        path = located(source.path) if isinstance(source, GgufSource) else None
        size = path.stat().st_size if path is not None and path.is_file() else 100_000_000
        total = 2 * size
        embedding, width = total // 4, 1024
        vocabulary, block, stored = embedding // width, total // source.blocks, 4
    else:
        width, vocabulary, stored = 128 * source.blocks, 128_000, 2
        embedding, block = vocabulary * width, 12 * width * width
    return Architecture(source.blocks, width, vocabulary, embedding, block, stored, guessed=True)


def mistakes(path: tuple[str, str], source: Pretrained) -> Iterator[Mistake]:
    """Yield the mistakes in a source's stated sizes, and in its GGUF file."""
    if isinstance(source, GgufSource) and not located(source.path).is_file():
        yield Mistake((*path, "path"), source.path, "there is no such file", "a GGUF file")
    where, config = (*path, "config"), source.config
    if config is None:
        return
    if isinstance(config, str):
        try:
            config = json.loads(Path(config).read_text(encoding="utf-8"))
        except OSError:
            yield Mistake(
                where, config, "there is no such file", "a copy of the model's config.json"
            )
            return
        except ValueError:
            config = None
    if not isinstance(config, dict):
        yield Mistake(where, source.config, "is not a JSON object", "the model's config.json")
        return
    try:
        found = read_architecture(config)
    except ValueError as error:
        yield Mistake(where, MISSING, str(error), "the model's config.json")
        return
    if found.blocks != source.blocks:
        message = "is not the number of blocks in `config`"
        yield Mistake((*path, "blocks"), source.blocks, message, str(found.blocks))


@cache
def _read(path: Path) -> Architecture | None:
    try:
        return read_architecture(json.loads(path.read_text(encoding="utf-8")))
    except (ValueError, AttributeError):
        return None  # the loader says what is wrong with it
