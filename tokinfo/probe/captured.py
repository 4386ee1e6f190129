"""Activations that another program captured: read from a file, checked, and laid out.

The layout is one vector a position, ``[position, width]``; a leading axis of one prompt, as hooks
give it, may stand before it. Files are those that PyTorch, NumPy and safetensors write.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tokinfo.io.damaged import parsing
from tokinfo.io.errors import InvalidError

ACTIVATIONS, POSITIONS = "activations", "positions"
ALLOWED = "a file of safetensors, .npz, .npy, .pt or .pth"
_FLOATS = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


@dataclass(frozen=True)
class Captured:
    """What was captured of one prompt.

    Attributes:
        activations: [position, width], one row for each of ``positions``.
        positions: where they were captured, counted from 0, rising.
        length: tokens of the prompt.
    """

    activations: Tensor
    positions: tuple[int, ...]
    length: int


def captured(activations: Any, positions: Sequence[int] | None, length: int | None) -> Captured:
    """Return captured activations in one form.

    Args:
        activations: [position, width] or [1, position, width], a tensor or an array; or the path of
            a file that `read_file` reads.
        positions: the position of each row. None: those in the file, or else 0, 1, ... Where there
            is a row for every token of the prompt, they say which rows count.
        length: tokens of the prompt. None: up to the last position.

    Raises:
        InvalidError: they do not fit each other, or are no finite numbers.
    """
    if isinstance(activations, str | Path):
        activations, stated = read_file(Path(activations))
        positions = stated if positions is None else positions
    try:
        found = torch.as_tensor(activations).detach()
    except (TypeError, ValueError, RuntimeError) as error:
        raise InvalidError(f"activations: no tensor ({' '.join(str(error).split())})") from None
    if found.dtype not in _FLOATS:
        raise InvalidError(f"activations: of {_name(found.dtype)}; allowed: a floating-point type")
    if found.ndim == 3 and len(found) == 1:
        found = found[0]
    if found.ndim != 2 or 0 in found.shape:
        raise InvalidError(
            f"activations: of shape {list(found.shape)}; allowed: [position, width], of one prompt"
        )
    where = list(range(len(found))) if positions is None else [int(place) for place in positions]
    length = max(where, default=-1) + 1 if length is None else length
    where = [place + length if place < 0 else place for place in where]
    if not where or sorted(set(where)) != where or where[0] < 0 or where[-1] >= length:
        raise InvalidError(
            f"positions {where}: allowed: rising, each once, from 0 to {length - 1} (length - 1)"
        )
    if len(found) == length:
        found = found[where]
    if len(found) != len(where):
        raise InvalidError(
            f"activations: {len(found)} rows for {len(where)} positions of {length} tokens; "
            "allowed: one row for each position, or for each token"
        )
    if not bool(found.isfinite().all()):
        raise InvalidError("activations: not all are finite numbers")
    return Captured(found, tuple(where), length)


def read_file(path: Path) -> tuple[Tensor, list[int] | None]:
    """Return the activations in a file, and the positions beside them where it has any.

    A file with one array holds the activations; one with several names them ``activations`` and
    ``positions``. A .pt file is read without running what it holds.

    Raises:
        InvalidError: the file is missing, of another kind, or holds neither.
    """
    if not path.is_file():
        raise InvalidError(f"{path}: there is no such file")
    with parsing(f"{path}: cannot be read as activations"):
        held = _arrays(path)
    if isinstance(held, Mapping):
        named = {str(name): value for name, value in held.items()}
        if ACTIVATIONS in named:
            places = named.get(POSITIONS)
            return named[ACTIVATIONS], None if places is None else torch.as_tensor(places).tolist()
        if len(named) != 1:
            names = ", ".join(sorted(named)) or "nothing"
            raise InvalidError(
                f"{path}: holds {names}; allowed: one array, or one called {ACTIVATIONS}"
            )
        (held,) = named.values()
    return torch.as_tensor(held), None


def _arrays(path: Path) -> Any:
    kind = path.suffix.lower()
    if kind == ".safetensors":
        from safetensors.torch import load_file

        return load_file(path)
    if kind in (".pt", ".pth"):
        return torch.load(path, map_location="cpu", weights_only=True)
    if kind in (".npz", ".npy"):
        import numpy as np

        held = np.load(path, allow_pickle=False)
        return {name: torch.as_tensor(held[name]) for name in held} if kind == ".npz" else held
    raise InvalidError(f"{path}: of another kind; allowed: {ALLOWED}")


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
