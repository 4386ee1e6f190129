"""What the config.json of a model on this machine says of its size."""

from __future__ import annotations

import json
from pathlib import Path

_DEPTHS = ("num_hidden_layers", "n_layer", "num_layers", "n_layers")
_LIMITS = ("max_position_embeddings", "n_positions", "n_ctx")
LONGEST = 2048
"""Most positions of a model of which a study says nothing."""


def stated(directory: Path) -> dict[str, int]:
    """Return the blocks and positions that a directory's config.json states; nothing without it."""
    try:
        config = json.loads((directory / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    if not isinstance(config, dict):
        return {}
    found = {}
    for key, names in (("blocks", _DEPTHS), ("n_ctx", _LIMITS)):
        numbers = (config.get(name) for name in names)
        number = next((n for n in numbers if type(n) is int and n > 0), None)
        if number is not None:
            found[key] = number
    return found
