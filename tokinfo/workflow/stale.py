"""What a study's results directory holds that the study no longer has.

Only what the workflow itself writes is ever looked at: a path must fit one of the patterns below
and belong to nothing in the study. A reader's notes beside the cells, another study's results in
another directory, and the report stay. No link is followed.

This module imports neither torch nor polars: cleaning up must not wait for them.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from tokinfo.study.study import Study
from tokinfo.workflow.plan import CONFIG, Plan
from tokinfo.workflow.rules import BENCHMARKS, LOGS, OUTPUTS

PATTERNS = {
    rule: [
        pattern.replace("<results>/", "").replace("<", "").replace(">", "")
        for pattern in (*OUTPUTS[rule].values(), LOGS[rule], BENCHMARKS[rule])
    ]
    for rule in OUTPUTS
}
"""What a job of each rule leaves, below the results directory."""
_ALL = [pattern for left in PATTERNS.values() for pattern in left]

STAMPS = (".snakemake_timestamp", "config.json", "tokenizer.json")
_KEPT = {
    ".state": "downloads and resume points of trainings, which outlive studies; remove it yourself "
    "to have them fetched and trained from the beginning",
}


@dataclass(frozen=True)
class Stale:
    """One file, directory or link to be removed.

    Attributes:
        path: below the results directory.
        size: bytes it holds; 0 for a link, whose target stays.
    """

    path: str
    size: int


@dataclass(frozen=True)
class Found:
    """What `find` found.

    Attributes:
        root: the results directory, links in its path resolved.
        stale: what belongs to nothing in the study, by path.
        notes: what is left alone, and why, one line each.
    """

    root: Path
    stale: tuple[Stale, ...]
    notes: tuple[str, ...]


def find(studies: Iterable[Study]) -> Found:
    """Return what lies in the results directory and belongs to none of the studies.

    All studies write to the same directory. An unfinished output (``.name.partial``) belongs to
    none of them: call this while nothing runs.
    """
    plans = [Plan(study) for study in studies]
    root = Path(plans[0].study.results).resolve()
    wanted = {path for plan in plans for path in outputs(plan)}
    stale, notes = [], []
    for folder in sorted({pattern.split("/")[0] for pattern in _ALL}):
        top = root / folder
        if top.is_symlink():
            notes.append(f"{folder}: a link, not followed; what is behind it stays")
        elif top.is_dir():
            stale += [Stale(path, _size(root / path)) for path in _unwanted(root, folder, wanted)]
    notes += [
        f"{name}: {size(_size(root / name))} of {why}"
        for name, why in _KEPT.items()
        if _size(root / name)
    ]
    return Found(root, tuple(sorted(stale, key=lambda entry: entry.path)), tuple(notes))


def outputs(plan: Plan) -> Iterator[str]:
    """Yield the paths below the results directory of all that a study's jobs write."""
    for rule, wildcards in jobs(plan):
        yield from (pattern.format(**wildcards) for pattern in PATTERNS[rule])


def jobs(plan: Plan) -> Iterator[tuple[str, dict[str, str]]]:
    """Yield the rule and the wildcards of each job whose files bear a name of the study."""
    study, cells = plan.study, plan.cells.values()
    passages = {cell.prompts for cell in cells} & set(study.passages)
    drawn = [study.passages[name] for name in passages]
    encoded = {name for source in plan.sources if (name := plan.tokenizer_of(source)) is not None}
    tokenizers = encoded | {each.tokenizer for each in drawn}
    corpora = {study.tokenizers[name].corpus for name in tokenizers}
    corpora |= {each.corpus for each in drawn} | ({study.prior} if study.prior else set())
    counted = {cell.model for cell in cells if plan.prior(cell)}
    for rule, wildcard, names in (
        ("prompts", "source", plan.sources),
        ("train", "source", plan.trained),
        ("tokens", "tokenizer", encoded),
        ("tokenizer", "tokenizer", tokenizers),
        ("passages", "passages", passages),
        ("corpus", "corpus", corpora),
        ("unigram", "model", counted),
    ):
        yield from ((rule, {wildcard: name}) for name in names)
    yield from (("fetch", {"source": source, "part": CONFIG}) for source in plan.fetched)
    depths = {
        tuple(path.split("/")[-2:])
        for cell in cells
        for path in (plan.checkpoint(cell), *plan.target(cell), f"{cell.model}/0")
    }
    for model, blocks in depths:
        rule = "embedding" if blocks == "0" else "prepare"
        yield rule, {"model": model, "blocks": blocks}
        _, kind, *origin = plan.origin(model, int(blocks)).split("/")
        if kind == "sources" and len(origin) == 2:
            yield "fetch", dict(zip(("source", "part"), origin, strict=True))
    yield from (("invert", cell.wildcards) for cell in cells)


def _unwanted(root: Path, folder: str, wanted: set[str]) -> Iterator[str]:
    """Yield what lies in a folder, fits a pattern, and is not wanted."""
    files = [_regex(pattern) for pattern in _ALL if Path(pattern).suffix]
    directories = [_regex(pattern) for pattern in _ALL if not Path(pattern).suffix]

    def below(path: str) -> Iterator[str]:
        with os.scandir(root / path) as entries:
            for entry in sorted(entries, key=lambda entry: entry.name):
                inner = f"{path}/{entry.name}"
                # What an attempt that was killed left under a name that nothing reads.
                named = re.sub(r"/\.([^/]+)\.partial$", r"/\1", inner)
                if inner in wanted:
                    continue
                if not entry.is_dir(follow_symlinks=False):
                    fitting = (*files, *directories) if entry.is_symlink() else files
                    if _fits(fitting, named):
                        yield inner
                elif _fits(directories, named) and (named != inner or _is_made(root / inner)):
                    yield inner
                else:
                    yield from below(inner)

    yield from below(folder)


def _is_made(directory: Path) -> bool:
    """Return whether a directory is an output rather than a reader's files."""
    return any((directory / name).is_file() for name in STAMPS)


def _fits(patterns: Iterable[re.Pattern[str]], path: str) -> bool:
    return any(pattern.fullmatch(path) for pattern in patterns)


def _regex(pattern: str) -> re.Pattern[str]:
    """Return what fits a pattern; no name begins with a dot."""
    special = {"blocks": r"\d+", "part": rf"\d+|{CONFIG}", "seed": r"\d+"}
    parts = re.split(r"\{(\w+)\}", pattern)
    return re.compile(
        "".join(
            f"(?:{special.get(part, r'[^./][^/]*')})" if index % 2 else re.escape(part)
            for index, part in enumerate(parts)
        )
    )


def remove(found: Found) -> None:
    """Remove what was found, and the directories that this leaves empty.

    A link is removed, never what it leads to.
    """
    for entry in found.stale:
        path = found.root / entry.path
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
        for parent in Path(entry.path).parents[:-1]:
            try:
                (found.root / parent).rmdir()
            except OSError:  # something is left in it
                break


def _size(path: Path) -> int:
    """Return the bytes of a file or of all files below a directory; no link is followed."""
    if path.is_symlink():
        return 0
    if not path.is_dir():
        return path.stat().st_size if path.exists() else 0
    total = 0
    for directory, _, files in os.walk(path):
        for file in files:
            total += os.lstat(os.path.join(directory, file)).st_size
    return total


def size(count: int) -> str:
    """Return a number of bytes as a reader takes it in.

    >>> size(999), size(2_150_000)
    ('999 B', '2.1 MB')
    """
    value, units = float(count), ["B", "kB", "MB", "GB", "TB"]
    while value >= 1000 and len(units) > 1:
        value, units = value / 1000, units[1:]
    return f"{count} B" if units[0] == "B" else f"{value:.1f} {units[0]}"
