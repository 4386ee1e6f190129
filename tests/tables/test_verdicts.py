"""Whether runs agree with what is stated follows from shares alone."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from tokinfo.tables.intervals import Share
from tokinfo.tables.verdicts import OPTIMISER, settled, verdict

share = st.floats(0, 1)


@given(st.booleans(), share, share, share, st.none() | share, st.none() | share)
def test_a_found_or_missed_token_never_agrees_with_both_statements(
    found: bool,
    a: float,
    b: float,
    c: float,
    identifiable: float | None,
    searched: float | None,
) -> None:
    low, value, high = sorted((a, b, c))
    ours = Share(value, low, high, "wilson")
    first = verdict(found, None, ours, identifiable, searched)
    second = verdict(not found, None, ours, identifiable, searched)
    agreeing = [word.startswith("agrees") for word in (first, second)]
    # One run of two agrees with neither statement more than with the other.
    assert sum(agreeing) == (value != 0.5)
    assert ("undecided" in (first, second)) == (value == 0.5)
    # Only what neither found can be the optimiser's fault: where a sweep identifies it, or a
    # search given the same input finds it.
    there = any(value is not None and value > 0.5 for value in (identifiable, searched))
    assert (OPTIMISER in (first, second)) == (there and value < 0.5)
    assert verdict(found, None, None, identifiable, searched) == "not run"


@given(share, share, share, share, share)
def test_a_stated_share_agrees_exactly_where_the_interval_meets_it(
    a: float, b: float, c: float, d: float, e: float
) -> None:
    low, value, high = sorted((a, b, c))
    stated = (min(d, e), max(d, e))
    ours = Share(value, low, high, "wilson")
    meets = any(low <= point <= high for point in stated) or stated[0] <= low <= stated[1]
    assert verdict(None, stated, ours, 1.0, 1.0) == ("agrees" if meets else "differs")
    if not meets:
        assert settled(stated, ours, 5)


def test_nothing_is_settled_by_no_runs() -> None:
    assert settled(None, None, 0) is None
