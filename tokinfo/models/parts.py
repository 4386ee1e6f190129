"""Which tensors of a full model's files a decoder of a few blocks needs.

Found by building the decoder from its configuration on the meta device (no weights, no memory)
and matching the names in its state with the names in the files: both are paths through the same
modules, and the number after the list of blocks says which block a tensor belongs to. No table of
families is involved.
"""

# mypy: allow-untyped-calls
# (transformers leaves many of its functions without types)

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tokinfo.io.damaged import parsing
from tokinfo.io.errors import FetchError
from tokinfo.models import remote_code

if TYPE_CHECKING:
    from transformers.configuration_utils import PretrainedConfig

EMBEDDING = "embedding.safetensors"


def block_file(number: int) -> str:
    """Return the name of the file of one block (1-based).

    >>> block_file(3)
    'block-0003.safetensors'
    """
    return f"block-{number:04d}.safetensors"


@dataclass(frozen=True)
class Parts:
    """A model's tensors, sorted by what needs them.

    Both map a tensor's name in the part to its name in the full model's files.
    """

    embedding: dict[str, str]  # all that is outside the blocks, the output head left out
    blocks: tuple[dict[str, str], ...]  # block 1 first

    def upto(self, blocks: int) -> dict[str, dict[str, str]]:
        """Return the parts of a decoder of ``blocks`` blocks, by the names of their files."""
        kept = {block_file(number + 1): self.blocks[number] for number in range(blocks)}
        return {EMBEDDING: self.embedding, **kept}


def sort_tensors(config: PretrainedConfig, names: Iterable[str], model: str) -> Parts:
    """Sort the names in a full model's files into embedding and blocks.

    Where the files' names are not the decoder's (experts stored one by one, say), a part holds
    every tensor that may belong to it, and loading it decides.

    Args:
        config: of the full model.
        names: of all tensors in its files.
        model: what messages call it.

    Raises:
        FetchError: the files hold no list of as many blocks as the configuration states.
    """
    keys, ties = _state(config)
    in_files = list(names)
    depth = int(config.num_hidden_layers)
    prefix = _prefix(keys, in_files)
    outside, inside = _split(keys, depth)
    _, stored = _split(in_files, depth)
    if inside is None or stored is None:
        raise FetchError(f"{model}: no list of {depth} blocks among the names of its tensors")
    blocks = tuple(
        _pick([prefix + key for key in inside[number]], stored[number]) for number in range(depth)
    )
    listed = {name for block in stored for name in block}
    rest = [name for name in in_files if name not in listed]
    embedding = _pick([prefix + key for key in outside], rest, ties)
    return Parts(embedding, blocks)


def _state(config: PretrainedConfig) -> tuple[list[str], dict[str, str]]:
    """Return the names in the decoder's state, and of a causal model's tied tensors.

    The second maps the name of a tensor to that of another one that holds the same values.
    """
    import torch
    from transformers import AutoModel
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING

    import tokinfo.models.modeling_mixer  # noqa: F401 (registers the mixers)

    what = f"{config.model_type}: no model can be built of its configuration"
    with parsing(what), torch.device("meta"):
        decoder = AutoModel.from_config(config, trust_remote_code=remote_code.allowed())
    causal = MODEL_FOR_CAUSAL_LM_MAPPING.get(type(config), None)
    ties = getattr(causal, "_tied_weights_keys", None)
    tied = ties if isinstance(ties, dict) and config.tie_word_embeddings else {}
    return list(decoder.state_dict()), {kept: other for other, kept in tied.items()}


def _prefix(keys: Sequence[str], names: Sequence[str]) -> str:
    """Return what the files' names have in front of the decoder's (`model.`, or nothing)."""
    wanted = set(keys)
    found: Counter[str] = Counter()
    for name in names:
        path = name.split(".")
        for length in range(len(path)):
            if ".".join(path[length:]) in wanted:
                found["".join(f"{part}." for part in path[:length])] += 1
    return found.most_common(1)[0][0] if found else ""


def _split(names: Iterable[str], depth: int) -> tuple[list[str], list[list[str]] | None]:
    """Return the names outside the blocks, and those of each block.

    The blocks are the numbered list with one entry for each of ``depth`` blocks and no other;
    of several such lists, the one with most tensors. None: there is no such list.
    """
    lists: dict[str, dict[int, list[str]]] = {}
    rest = []
    for name in names:
        match = re.match(r"((?:[^.]+\.)*?)(\d+)\.", name)
        if match is None:
            rest.append(name)
        else:
            lists.setdefault(match[1], {}).setdefault(int(match[2]), []).append(name)
    fitting = [front for front in lists if set(lists[front]) == set(range(depth))]
    if not fitting:
        return rest, None
    chosen = max(fitting, key=lambda front: sum(map(len, lists[front].values())))
    for front, entries in lists.items():
        if front != chosen:
            rest += [name for names in entries.values() for name in names]
    return rest, [lists[chosen][number] for number in range(depth)]


def _pick(
    wanted: Sequence[str], stored: Sequence[str], ties: dict[str, str] | None = None
) -> dict[str, str]:
    """Return what to fetch for the names wanted; all that is stored where some are missing."""
    there = set(stored)
    chosen = {}
    for name in wanted:
        twin = (ties or {}).get(name)
        if name in there:
            chosen[name] = name
        elif twin in there:
            chosen[name] = str(twin)
        else:
            return {name: name for name in stored}
    return chosen
