"""Measure how much information passes between the tokens of a language model.

>>> import tokinfo as ti
>>> model = ti.load("HuggingFaceTB/SmolLM2-135M")                                # doctest: +SKIP
>>> found = model.invert("The sky is blue.", site="block.8", visible="1:")       # doctest: +SKIP
>>> found.text, found.certified                                                  # doctest: +SKIP
('The sky is blue.', True)
"""

from importlib import import_module
from typing import Any

__all__ = ["Flow", "Model", "Result", "invert", "load"]


def __getattr__(name: str) -> Any:
    """Return a name of `tokinfo.api`, which imports torch: only once it is asked for."""
    if name in __all__:
        return getattr(import_module("tokinfo.api"), name)
    raise AttributeError(f"module 'tokinfo' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
