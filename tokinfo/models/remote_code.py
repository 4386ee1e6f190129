"""Models that come with code of their own: run only where the study allows it for that source.

Everywhere else the libraries get an explicit no; without one they would ask at the terminal. A
model whose type transformers knows needs no code of its own, so what its configuration names is
not looked at, trusted or not.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers.configuration_utils import PretrainedConfig

_TRUSTED: ContextVar[bool] = ContextVar("trusted", default=False)
_LOCAL = re.compile(r"[A-Za-z_]\w*\.[A-Za-z_]\w*")


@contextmanager
def trusted(yes: bool) -> Iterator[None]:
    """Let models' code be run in this block, if ``yes``: the source's `trust_remote_code`."""
    token = _TRUSTED.set(yes)
    try:
        yield
    finally:
        _TRUSTED.reset(token)


def allowed() -> bool:
    """Return whether a model's code may be run here; every call of transformers gets this."""
    return _TRUSTED.get()


def foreign(config: Mapping[str, Any]) -> list[str]:
    """Return the classes that a configuration names outside its directory.

    transformers would fetch those from another repository (``other/repository--module.Class``),
    at no stated commit.

    >>> foreign({"auto_map": {"AutoModel": "x/y--a.B", "AutoConfig": "a.C"}})
    ['x/y--a.B']
    """
    named = config.get("auto_map")
    found: list[object] = []
    for value in named.values() if isinstance(named, dict) else []:
        found += value if isinstance(value, list) else [value]
    return [str(name) for name in found if name is not None and not _LOCAL.fullmatch(str(name))]


def without_code(config: PretrainedConfig, *, known: bool) -> PretrainedConfig:
    """Take out of a configuration what names code; returns it.

    That is its attention, which may be a kernel on a hub (``owner/kernel``), and how its experts
    are computed; transformers then takes what it has. If the model's type is ``known``, so are the
    classes it names.
    """
    config._attn_implementation = None
    config._experts_implementation = None
    if known and hasattr(config, "auto_map"):
        del config.auto_map
    return config


def copy_code(origin: Path, out: Path) -> None:
    """Copy the modules beside a model, where its code may be run."""
    if allowed():
        for path in sorted(origin.glob("*.py")):
            shutil.copyfile(path, out / path.name)
