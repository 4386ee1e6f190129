"""Whether runs here agree with what the source chapter states.

What the chapter printed is one run, of which nothing says whether it is typical. So a statement
agrees where at least half of the runs here had the same outcome; `settled` says whether the
interval over runs leaves one half out.
"""

from __future__ import annotations

from tokinfo.tables.intervals import Share

VERDICTS = ("agrees", "agrees, but it is the optimiser", "differs", "not run")
"""Every verdict there is."""


def verdict(
    found: bool | None,
    share: tuple[float, float] | None,
    ours: Share | None,
    identifiable: float | None,
    searched: float | None,
) -> str:
    """Return whether runs here agree with a row of the chapter.

    Args:
        found: whether the chapter found the tokens in question; None: the row states a share.
        share: the range that the share of initialisations lies in, as stated.
        ours: share of runs in which they were found; None: there were none.
        identifiable: share of these tokens that a sweep identifies; None: nothing was swept.
        searched: share of joint searches, given the same input as descent, that found these
            tokens and certified the prompt; None: there were none.

    Returns:
        ``not run``; for a stated share ``agrees`` where the interval meets it, else ``differs``;
        otherwise ``agrees`` where at least half of the runs had the stated outcome, else
        ``differs``. Where neither found them although most are identifiable, or most of the joint
        searches found them: ``agrees, but it is the optimiser``.

    >>> verdict(False, None, Share(0.0, 0.0, 0.56, "wilson"), 1.0, None)
    'agrees, but it is the optimiser'
    """
    if ours is None:
        return "not run"
    if share is not None:
        return "agrees" if ours.low <= share[1] and ours.high >= share[0] else "differs"
    assert found is not None, "a row states what was found, or a share"
    if (ours.value if found else 1 - ours.value) < 0.5:
        return "differs"
    if not found and max(identifiable or 0.0, searched or 0.0) > 0.5:
        return "agrees, but it is the optimiser"
    return "agrees"


def hollow(found: bool | None, least: float, ours: Share, visible: float | None) -> bool:
    """Return whether tokens may be missing only because the search failed.

    Fewer than half of the *visible* tokens were found, whose activations the search was given: it
    would have missed the hidden ones in any case, and neither verdict means more than that. The
    same holds for a stated share (``found`` is None) where no run found them. Where the statement
    is that hardly any token is found (``least`` below one half), that is no failure.

    >>> nothing = Share(0.0, 0.0, 0.43, "wilson")
    >>> hollow(False, 1.0, nothing, 0.1), hollow(False, 1.0, nothing, 0.9)
    (True, False)
    >>> hollow(True, 1.0, nothing, 0.1), hollow(None, 1.0, nothing, 0.1)
    (True, True)
    >>> hollow(False, 1.0, Share(1.0, 0.57, 1.0, "wilson"), 0.1)
    False
    """
    missed = ours.value == 0 if found is None else ours.value < 0.5
    return missed and least >= 0.5 and visible is not None and visible < 0.5


def settled(share: tuple[float, float] | None, ours: Share | None) -> bool | None:
    """Return whether more runs would hardly change a verdict; None: there were none.

    The interval lies on one side of one half; of a stated share, inside it or apart from it.
    """
    if ours is None:
        return None
    if share is None:
        return ours.low > 0.5 or ours.high < 0.5
    low, high = share
    return (low <= ours.low and ours.high <= high) or ours.high < low or ours.low > high
