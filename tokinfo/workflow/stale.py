"""What a study's results directory holds that the study no longer has.

Only what the workflow itself writes is ever looked at: a path must fit one of the patterns below
and belong to nothing in the study. A reader's own notes beside the cells, another study's results
in a directory of their own, and the report stay. No link is followed.

This module imports neither torch nor polars: cleaning up must not wait for them.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from tokinfo.study.cell import CELL_PATH
from tokinfo.study.study import Study
from tokinfo.workflow.plan import CONFIG, Plan

DIRECTORIES = (
    "tokenizers/{tokenizer}",
    "sources/{source}",
    "sources/{source}/{part}",
    "checkpoints/{model}/{blocks}",
)
"""Outputs that are directories, each removed as a whole."""

FILES = (
    "corpora/{corpus}.txt",
    "tokens/{tokenizer}.safetensors",
    "passages/{passages}.json",
    "prompts/{source}.json",
    "training/{source}.csv",
    "decoders/{model}.safetensors",
    "unigrams/{model}.safetensors",
    CELL_PATH,
)
"""Outputs that are files."""

TOLD = (
    "corpus/{corpus}",
    "tokenizer/{tokenizer}",
    "tokens/{tokenizer}",
    "passages/{passages}",
    "prompts/{source}",
    "train/{source}",
    "fetch/{source}/{part}",
    "prepare/{model}/{blocks}",
    "embedding/{model}",
    "unigram/{model}",
    CELL_PATH.removesuffix(".parquet"),
)
"""What every job leaves below logs/ (.log) and benchmarks/ (.tsv)."""

_BESIDE = {"logs": ".log", "benchmarks": ".tsv"}
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
        root: the results directory, links in its own path resolved.
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
    folders = sorted({pattern.split("/")[0] for pattern in (*DIRECTORIES, *FILES, *_BESIDE)})
    for folder in folders:
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
    for directory, file, told in _named(plan):
        yield from directory
        yield from file
        for folder, suffix in _BESIDE.items():
            yield from (f"{folder}/{path}{suffix}" for path in told)


_Paths = tuple[list[str], list[str], list[str]]


def _named(plan: Plan) -> Iterator[_Paths]:
    """Yield the directories and files of each job, and the names of its log and benchmark."""
    study = plan.study
    for source in plan.sources:
        yield [], [f"prompts/{source}.json"], [f"prompts/{source}"]
        if source in plan.trained:
            yield [f"sources/{source}"], [f"training/{source}.csv"], [f"train/{source}"]
        if source in plan.fetched:
            yield [f"sources/{source}/{CONFIG}"], [], [f"fetch/{source}/{CONFIG}"]
        if (name := plan.tokenizer_of(source)) is not None:
            yield from _tokenizer(study, name)
            yield [], [f"tokens/{name}.safetensors"], [f"tokens/{name}"]
    for name in {cell.prompts for cell in plan.cells.values()} & set(study.passages):
        yield [], [f"passages/{name}.json"], [f"passages/{name}"]
        yield _corpus(study.passages[name].corpus)
        yield from _tokenizer(study, study.passages[name].tokenizer)
    if study.prior is not None:
        yield _corpus(study.prior)
    depths = {
        tuple(path.split("/")[-2:])
        for cell in plan.cells.values()
        for path in (plan.checkpoint(cell), *plan.target(cell))
    }
    for model, blocks in sorted(depths | {(model, "0") for model in plan.models}):
        yield [f"checkpoints/{model}/{blocks}"], [], [f"prepare/{model}/{blocks}"]
        _, kind, *origin = plan.origin(model, int(blocks)).split("/")
        if kind == "sources" and len(origin) == 2:
            yield [f"{kind}/{'/'.join(origin)}"], [], [f"fetch/{'/'.join(origin)}"]
    for model in plan.models:
        yield [], [f"decoders/{model}.safetensors"], [f"embedding/{model}"]
    for cell in plan.cells.values():
        yield [], [cell.path], [cell.path.removesuffix(".parquet")]
        if plan.prior(cell):
            yield [], [f"unigrams/{cell.model}.safetensors"], [f"unigram/{cell.model}"]


def _tokenizer(study: Study, name: str) -> Iterator[_Paths]:
    yield [f"tokenizers/{name}"], [], [f"tokenizer/{name}"]
    yield _corpus(study.tokenizers[name].corpus)


def _corpus(name: str) -> _Paths:
    return [], [f"corpora/{name}.txt", f"corpora/{name}.held-out.txt"], [f"corpus/{name}"]


def _unwanted(root: Path, folder: str, wanted: set[str]) -> Iterator[str]:
    """Yield what lies in a folder, fits a pattern, and is not wanted."""
    suffix = _BESIDE.get(folder)
    if suffix is None:
        files = [_regex(pattern) for pattern in FILES]
        directories = [_regex(pattern) for pattern in DIRECTORIES]
    else:
        files, directories = [_regex(f"{folder}/{pattern}{suffix}") for pattern in TOLD], []

    def below(path: str) -> Iterator[str]:
        with os.scandir(root / path) as entries:
            for entry in sorted(entries, key=lambda entry: entry.name):
                own = f"{path}/{entry.name}"
                # What an attempt that was killed left under a name nobody reads.
                named = re.sub(r"/\.([^/]+)\.partial$", r"/\1", own)
                if own in wanted:
                    continue
                if not entry.is_dir(follow_symlinks=False):
                    fitting = (*files, *directories) if entry.is_symlink() else files
                    if _fits(fitting, named):
                        yield own
                elif _fits(directories, named) and (named != own or _is_made(root / own)):
                    yield own
                else:
                    yield from below(own)

    yield from below(folder)


def _is_made(directory: Path) -> bool:
    """Return whether a directory is an output rather than something of a reader's own."""
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
