"""Whether runs here agree with what the source chapter states.

What the chapter printed is one run, of which nothing says whether it is typical. So a statement
agrees where more than half of the runs here had the same outcome; `settled` says whether the
interval over runs leaves one half out.
"""

from __future__ import annotations

from tokinfo.tables.intervals import Share

AGREES, OPTIMISER, DIFFERS = "agrees", "agrees, but it is the optimiser", "differs"
UNDECIDED, HOLLOW, NOT_RUN = "undecided", "hollow", "not run"
VERDICTS = (AGREES, OPTIMISER, DIFFERS, UNDECIDED, HOLLOW, NOT_RUN)
"""Every verdict there is."""

FEWEST = 5
"""Runs that settle a verdict at least."""


def verdict(
    found: bool | None,
    share: tuple[float, float] | None,
    ours: Share | None,
    identifiable: float | None,
    searched: float | None,
    *,
    least: float = 1.0,
    visible: float | None = None,
) -> str:
    """Return whether runs here agree with a row of the chapter.

    Args:
        found: whether the chapter found the tokens in question; None: the row states a share.
        share: the range that the share of initialisations lies in, as stated.
        ours: share of runs in which they were found; None: there were none.
        identifiable: share of these tokens that a sweep identifies, those that were not swept
            counted as not identified; None: nothing was swept.
        searched: share of joint searches, given the same input as descent, that found these
            tokens and certified the prompt; None: there were none.
        least: part of the tokens that counts as found.
        visible: share of the visible tokens that the runs found; None: none is visible.

    Returns:
        - ``not run``.
        - ``hollow`` where the tokens may be missing only because the search failed: fewer than half
          of the *visible* ones were found, whose activations the search was given, so that it would
          have missed the others in any case. Neither agreement nor difference would be about the
          model. Where the statement is that hardly any token is found (``least`` below one half),
          that is no failure.
        - Of a stated share ``agrees`` where the interval meets it, else ``differs``.
        - Otherwise ``agrees`` where more than half of the runs had the stated outcome, ``differs``
          where fewer did and ``undecided`` where exactly half did. Where neither found the tokens
          although more than half are identifiable, or most of the joint searches found them:
          ``agrees, but it is the optimiser``.

    >>> verdict(False, None, Share(0.0, 0.0, 0.56, "clopper-pearson"), 1.0, None)
    'agrees, but it is the optimiser'
    >>> verdict(False, None, Share(0.0, 0.0, 0.56, "clopper-pearson"), 1.0, None, visible=0.1)
    'hollow'
    """
    if ours is None:
        return NOT_RUN
    missed = ours.value == 0 if share is not None else ours.value < 0.5
    if missed and least >= 0.5 and visible is not None and visible < 0.5:
        return HOLLOW
    if share is not None:
        return AGREES if ours.low <= share[1] and ours.high >= share[0] else DIFFERS
    assert found is not None, "a row states what was found, or a share"
    alike = ours.value if found else 1 - ours.value
    if alike == 0.5:
        return UNDECIDED
    if alike < 0.5:
        return DIFFERS
    if not found and max(identifiable or 0.0, searched or 0.0) > 0.5:
        return OPTIMISER
    return AGREES


def settled(share: tuple[float, float] | None, ours: Share | None, runs: int) -> bool | None:
    """Return whether more runs would hardly change a verdict; None: there were none.

    There are `FEWEST` runs or more, and their interval lies on one side of one half; of a stated
    share, inside it or apart from it.
    """
    if ours is None:
        return None
    if runs < FEWEST:
        return False
    if share is None:
        return ours.low > 0.5 or ours.high < 0.5
    low, high = share
    return (low <= ours.low and ours.high <= high) or ours.high < low or ours.low > high
