"""What the rules of the workflow write, and the code that writes it.

One table of each, for the rules themselves and for all that must know what they leave behind.

This module imports neither torch nor transformers: the Snakefile reads it again in every
cluster job.
"""

from __future__ import annotations

import ast
import hashlib
import re
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from tokinfo.io.provenance import code_digest
from tokinfo.study.cell import CELL_PATH

if TYPE_CHECKING:
    from tokinfo.study.study import Study

OUTPUTS: dict[str, dict[str, str]] = {
    "corpus": {
        "train": "<results>/corpora/{corpus}.txt",
        "held_out": "<results>/corpora/{corpus}.held-out.txt",
    },
    "tokenizer": {"tokenizer": "<results>/tokenizers/{tokenizer}"},
    "tokens": {"tokens": "<results>/tokens/{tokenizer}.safetensors"},
    "passages": {"passages": "<results>/passages/{passages}.json"},
    "prompts": {"prompts": "<results>/prompts/{source}.json"},
    "train": {
        "model": "<results>/sources/{source}",
        "history": "<results>/training/{source}.csv",
    },
    "fetch": {"model": "<results>/sources/{source}/{part}"},
    "prepare": {"checkpoint": "<results>/checkpoints/{model}/{blocks}"},
    "embedding": {
        "checkpoint": "<results>/checkpoints/{model}/0",
        "decoder": "<results>/decoders/{model}.safetensors",
    },
    "unigram": {"unigrams": "<results>/unigrams/{model}.safetensors"},
    "invert": {"cell": f"<results>/{CELL_PATH}"},
}
"""What each rule writes whose files bear a name of the study. What has no suffix is a directory.

Figures, tables and pages have the same names in every study."""

_JOBS = {
    rule: "/".join([rule, *re.findall(r"\{\w+\}", next(iter(made.values())))])
    for rule, made in OUTPUTS.items()
} | {"invert": CELL_PATH.removesuffix(".parquet")}
LOGS = {rule: f"<logs>/{job}.log" for rule, job in _JOBS.items()}
BENCHMARKS = {rule: f"<benchmarks>/{job}.tsv" for rule, job in _JOBS.items()}

CODE: dict[str, tuple[str, ...]] = {
    "corpus": ("tokinfo.text.corpus",),
    "tokenizer": ("tokinfo.text.tokenizer",),
    "tokens": ("tokinfo.text.tokenizer",),
    "passages": ("tokinfo.text.passages",),
    "prompts": ("tokinfo.text.promptcheck",),
    "train": ("tokinfo.models.train",),
    "fetch": ("tokinfo.models.fetch.fetch",),
    "prepare": ("tokinfo.models.preparing",),
    "embedding": ("tokinfo.models.preparing", "tokinfo.solvers.decoding"),
    "unigram": ("tokinfo.models.unigram",),
    "invert": ("tokinfo.cell",),
    "collect": ("tokinfo.tables.recovery",),
    "recovery_csv": ("tokinfo.tables.recovery",),
    "summarise": ("tokinfo.tables.summary",),
    "figure": (),
    "noise_table": ("tokinfo.tables.identifiability",),
    "scaling": ("tokinfo.tables.scaling", "tokinfo.report.figures.scaling"),
    "page": (),
    "replication": ("tokinfo.tables.replication",),
}
"""The modules whose code, with all they import from this package, makes each rule's outputs.

Figures and pages have theirs one by one (`Shown.function`); so have cells, by their solver."""

AS_TEXT = 5_000
"""Prompts, counted once for each cell, up to which every run writes the long table as text, too.

That is about 35 MB. A study of 5,000 cells has ten times as much."""

SCRIPTS = Path(__file__).resolve().parents[2] / "rules" / "scripts"


class Shown(NamedTuple):
    """A figure or a page of the report.

    Attributes:
        function: what makes it, as `pkgutil.resolve_name` reads it (its module is too heavy to
            import here).
        table: what it is made from: `summary`, `recovery` (the long table), `replication`, or
            `histories` of trainings.
        category: where it stands in the report.
        label: what it is called there, where that is not its name.
    """

    function: str
    table: str
    category: str
    label: str = ""


FIGURES = {
    figure: Shown(f"tokinfo.report.figures.{module}:{figure}", table, category)
    for module, table, category, figures in (
        ("recovery", "summary", "Figures", ("found_by_mask", "hidden_vs_visible")),
        ("recovery", "summary", "Figures", ("by_site_depth",)),
        ("search", "summary", "Figures", ("by_metric", "by_solver", "descent_loss")),
        ("training", "histories", "Figures", ("training_curves",)),
        ("loss", "recovery", "Figures", ("loss_curves",)),
        ("identifiable", "recovery", "Identifiability", ("found_vs_identifiable",)),
        ("identifiable", "recovery", "Identifiability", ("rank_histogram",)),
        ("margins", "recovery", "Identifiability", ("margin_by_depth", "noise_threshold")),
        ("flow", "recovery", "Identifiability", ("flow_map",)),
    )
    for figure in figures
}

PAGES = {
    "strips": Shown(
        "tokinfo.report.pages.strips:write_strips",
        "recovery",
        "Prompts",
        "what came back, token by token",
    ),
    "identifiability": Shown(
        "tokinfo.report.pages.identifiability:write_identifiability",
        "recovery",
        "Identifiability",
        "not found, or not there?",
    ),
    "replication": Shown(
        "tokinfo.report.pages.replication:write_replication_page",
        "replication",
        "Replication",
        "does it agree?",
    ),
}


SCALING = ("width", "depth", "hidden", "training")
"""What the share found of hidden tokens is drawn against (its module is too heavy to import)."""

FEWEST = 3
"""Values along an axis that make a line of a figure."""


def pattern(names: Iterable[str]) -> str:
    r"""Return a regular expression that matches exactly these names (none: nothing at all).

    >>> print(pattern(["block.1", "a"]))
    a|block\.1
    """
    return "|".join(re.escape(name) for name in sorted(names)) or "(?!)"


def as_text(study: Study) -> bool:
    """Return whether every run of a study writes its long table as text, too."""
    return sum(study.prompt_count(cell.prompts) for cell in study.cells()) <= AS_TEXT


@cache
def code(rule: str, *more: str) -> str:
    """Return the digest of the code that makes a rule's outputs: its script and the modules.

    Args:
        rule: name of the rule.
        more: modules, or functions, that this output depends on besides those of every output of
            the rule.

    Comments do not count, in the script neither. This stands in for Snakemake's `code`
    trigger, which reruns a rule for a comment and overlooks the package.
    """
    script = ast.parse((SCRIPTS / f"{rule}.py").read_text(encoding="utf-8"))
    statements = [s for s in script.body if not _is_text(s)]
    modules = [name.partition(":")[0] for name in (*CODE[rule], *more)]
    text = "\n".join([code_digest(*modules), *map(ast.dump, statements)])
    return hashlib.sha256(text.encode()).hexdigest()


def _is_text(statement: ast.stmt) -> bool:
    """Return whether a statement is a string alone, as a docstring is."""
    return isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant)
