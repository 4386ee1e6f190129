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
from tokinfo.models.structure import held_blocks, leave_out_blocks

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
    depth = int(held_blocks(config) or 0)
    prefix = _prefix(keys, in_files)
    front = _front(_lists(keys), depth)
    stored = _lists(in_files)
    chosen = f"{prefix}{front}"
    # Further blocks may be stored behind these (of multi-token prediction): no site lies there.
    if front is None or not set(stored.get(chosen, ())) >= set(range(depth)):
        chosen = _front(stored, depth) or ""
    if front is None or chosen not in stored:
        raise FetchError(f"{model}: no list of {depth} blocks among the names of its tensors")
    inside = _lists(keys)[front]
    blocks = tuple(
        _pick([prefix + key for key in inside[number]], stored[chosen][number])
        for number in range(depth)
    )
    listed = {name for block in stored[chosen].values() for name in block}
    rest = [name for name in in_files if name not in listed]
    outside = [key for key in keys if not re.match(rf"{re.escape(front)}\d+\.", key)]
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

    what = f"{config.model_type}: no decoder can be built"
    with parsing(what), torch.device("meta"):
        decoder = AutoModel.from_config(config, trust_remote_code=remote_code.allowed())
    leave_out_blocks(decoder)
    causal = MODEL_FOR_CAUSAL_LM_MAPPING.get(type(config), None)
    ties = getattr(causal, "_tied_weights_keys", None)
    tied = ties if isinstance(ties, dict) and getattr(config, "tie_word_embeddings", False) else {}
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


def _lists(names: Iterable[str]) -> dict[str, dict[int, list[str]]]:
    """Return the names in numbered lists: by what stands in front of the number, and by number."""
    found: dict[str, dict[int, list[str]]] = {}
    for name in names:
        if match := re.match(r"((?:[^.]+\.)*?)(\d+)\.", name):
            found.setdefault(match[1], {}).setdefault(int(match[2]), []).append(name)
    return found


def _front(lists: dict[str, dict[int, list[str]]], depth: int) -> str | None:
    """Return the list with one entry for each of ``depth`` blocks and no other.

    Of several it is the one with most tensors. None: there is no such list.
    """
    fitting = [front for front, entries in lists.items() if set(entries) == set(range(depth))]
    return max(fitting, key=lambda front: sum(map(len, lists[front].values())), default=None)


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
