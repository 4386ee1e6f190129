"""Foreseen errors: one line, without control characters, whatever it quotes."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tokinfo.io.errors import FetchError, foreseen, plain


@given(st.text(st.characters(exclude_categories=[])))
def test_any_text_is_shown_in_printable_characters(text: str) -> None:
    shown = plain(text)
    assert all(line.isprintable() for line in shown.split("\n"))
    assert plain(shown) == shown
    shown.encode()
    if text.isprintable():
        assert shown == text


def test_what_an_error_quotes_moves_no_cursor() -> None:
    error = FetchError("model.\x1b[2Jweight\r: \u202edamaged")
    assert str(error) == r"model.\x1b[2Jweight\r: \u202edamaged"
    assert foreseen(error) == str(error)


@pytest.mark.parametrize("error", [ValueError("a"), KeyError("a"), RuntimeError("a"), OSError()])
def test_other_errors_are_defects(error: Exception) -> None:
    assert foreseen(error) is None
