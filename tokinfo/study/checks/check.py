"""The checks of a study that need more than one of its entries.

The schema says what one entry may be (`tokinfo.study.study`); these checks say whether the entries
fit together. Every check yields all it finds. A study with mistakes in its form is checked as far
as it could be read: `Draft` says what is missing from it, so that one mistake is one line.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from tokinfo.study.checks import claims, entries, grids, references
from tokinfo.study.checks.draft import Draft
from tokinfo.study.mistakes import Mistake


def check(draft: Draft) -> list[Mistake]:
    """Return everything that does not fit together."""
    found = [*references.mistakes(draft), *entries.mistakes(draft), *_needed(draft)]
    seen = {(mistake.path, mistake.message) for mistake in found}
    wrong, row_grids = claims.examine(draft)
    grids_alone = {"grids": [grid for *_, grid in row_grids], "claims": {}}
    testing = draft.study.model_copy(update=grids_alone)
    wrong += claims.of_rows(row_grids, _needed(replace(draft, study=testing)))
    found += [mistake for mistake in wrong if (mistake.path, mistake.message) not in seen]
    found += grids.size(draft.study)
    if draft.complete and not found:
        found += grids.paths(draft.study)
    return found


def _needed(draft: Draft) -> Iterator[Mistake]:
    """Yield what is wrong with a study's grids and the files that they need."""
    yield from entries.files(draft)
    yield from grids.mistakes(draft)
