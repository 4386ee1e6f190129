"""The pages' templates: how they are filled in, and how values are written in them.

What comes from a study, a prompt, a tokenizer or a model is text: every template escapes it.
A page's template has the name of its module; what several share begins with an underscore
(`tokinfo.io.provenance` counts both to the module's code).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jinja2

from tokinfo.io.atomic import new_file
from tokinfo.study.known import NONE

TEMPLATES = jinja2.Environment(
    loader=jinja2.PackageLoader("tokinfo.report.pages"),
    autoescape=True,
    undefined=jinja2.StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
    keep_trailing_newline=True,
)


def write_page(page: Path, template: str, **values: object) -> None:
    """Write a page, whole or not at all.

    Args:
        page: HTML file to write.
        template: name of its template.
        **values: the template's variables.
    """
    text = TEMPLATES.get_template(template).render(values)
    with new_file(page) as partial:
        partial.write_text(text, encoding="utf-8")


def _percent(share: float, digits: int = 0) -> str:
    return f"{100 * share:.{digits}f}"


def _number(value: float | None, above: str, below: str = "none") -> str:
    """Return a number in three digits; infinite ones in words, one that is not there as nothing."""
    if value is None:
        return ""
    if math.isinf(value):
        return above if value > 0 else below
    return f"{value:.3g}" if abs(value) < 1e5 else f"{value:.1e}"


def _variants(row: Mapping[str, Any]) -> list[str]:
    """Return in what a cell differs from how a model is usually run."""
    parametrisation = row.get("parametrisation", "embedding")
    known = row.get("known", NONE)
    words = {
        "no residual": not row["residual"],
        "acausal": not row["causal"],
        "padded": row["padding"] != "none",
        f"known {known}": known != NONE,
        parametrisation: parametrisation != "embedding",
    }
    return [word for word, differs in words.items() if differs]


TEMPLATES.filters |= {
    "count": "{:,}".format,
    "log2": math.log2,
    "number": _number,
    "percent": _percent,
    "variants": _variants,
}
