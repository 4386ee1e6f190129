"""From configuration to a study, or to the list of everything that is wrong with it.

The form of a study, and what fits inside one entry, its schema says (`tokinfo.study.study`); that
the entries fit together `tokinfo.study.checks` says, of a broken study as far as it can be read.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from tokinfo.study import form
from tokinfo.study.checks.check import check
from tokinfo.study.checks.draft import Draft
from tokinfo.study.fields import MISFIT
from tokinfo.study.files import COMMAND_LINE, Document, merge, origin, read, value_at
from tokinfo.study.mistakes import MISSING, Mistake, StudyError
from tokinfo.study.salvage import salvage
from tokinfo.study.study import Study


def load_study(
    study: Mapping[str, Any] | Path | str | Sequence[Path | str],
    overrides: Mapping[str, Any] | None = None,
    *,
    files: Iterable[Path | str] = (),
) -> Study:
    """Return the study that a configuration describes.

    Args:
        study: the merged configuration, or the file or files to read and merge it from.
        overrides: values given on the command line, merged last.
        files: where ``study`` is a mapping, the files that it came from: mistakes name
            them, and keys given twice in them (which merging forgot) are mistakes too.

    Raises:
        StudyError: with every mistake, in one line each.
    """
    if isinstance(study, Mapping):
        documents = [read(Path(file)) for file in files]
    else:
        paths = [study] if isinstance(study, str | Path) else study
        documents = [read(Path(path)) for path in paths]
    try:
        from_files = merge(*(document.content for document in documents))
        raw = merge(study if isinstance(study, Mapping) else from_files, overrides or {})
    except RecursionError:
        raise StudyError([Mistake((), MISSING, "is nested too deeply")]) from None
    found = [mistake for document in documents for mistake in document.mistakes]
    # A file that could not be read at all would only add that everything is missing.
    if any(not mistake.path for mistake in found):
        raise StudyError(found)
    loaded, wrong = _examine(raw)
    found += [_with_origin(mistake, documents, from_files, raw) for mistake in wrong]
    if loaded is None or found:
        raise StudyError(found)
    return loaded


def _examine(raw: Mapping[str, Any]) -> tuple[Study | None, list[Mistake]]:
    """Return the study if its form is right, and everything that is wrong with it."""
    try:
        try:
            study = Study.model_validate(raw)
            return study, check(Draft(study))
        except ValidationError as error:
            errors = [(form.path_of(e, raw), e) for e in error.errors(include_url=False)]
        misread = [(path, e) for path, e in errors if e["type"] != MISFIT]
        sense = check(salvage(raw, misread))
    except RecursionError:
        return None, [Mistake((), MISSING, "is nested too deeply")]
    # One mistake, one line: that a name is unknown (did you mean ...) says more than the form it
    # broke; otherwise what is wrong in form is not judged again.
    named = {mistake.path for mistake in sense}
    vague = ("string_pattern_mismatch", "string_too_long")
    wrong = [(path, e) for path, e in errors if not (e["type"] in vague and path in named)]
    found = [form.mistake(path, error) for path, error in wrong]
    places = {path for path, _ in wrong}
    for mistake in sense:
        if places.isdisjoint(mistake.path[:end] for end in range(1, len(mistake.path) + 1)):
            found.append(mistake)
    return None, found


def _with_origin(
    mistake: Mistake,
    documents: Sequence[Document],
    from_files: Mapping[str, Any],
    raw: Mapping[str, Any],
) -> Mistake:
    path = mistake.path
    overridden = value_at(raw, path)
    written = value_at(from_files, path)
    same = overridden is written or overridden == written
    if documents and overridden is not MISSING and not same:
        return replace(mistake, file=COMMAND_LINE)
    said = origin(path, documents)
    if said is None:
        return mistake
    return replace(form.unquoted(mistake, said.word(path)), file=said.name)
