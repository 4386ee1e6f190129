from __future__ import annotations

import json
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tokinfo.study.masks import Mask
from tokinfo.study.prompts import ROLES

number = st.integers(-30, 30).map(str)
optional = st.one_of(st.just(""), number)
step = st.integers(1, 5).map(str)
texts = st.one_of(
    number,
    st.tuples(optional, optional).map(":".join),
    st.tuples(optional, optional, st.one_of(st.just(""), step)).map(":".join),
)


def python_slice(text: str, length: int) -> list[int]:
    """What Python makes of the text; an index outside leaves nothing visible."""
    positions = list(range(length))
    if ":" in text:
        return positions[slice(*(int(part) if part else None for part in text.split(":")))]
    return positions[int(text) :][:1] if -length <= int(text) < length else []


@given(texts, st.integers(0, 40))
def test_visible_positions_are_those_of_the_python_slice(text: str, length: int) -> None:
    assert Mask(text).visible(length) == python_slice(text, length)


unions = st.lists(texts, min_size=1, max_size=4).map(",".join)


@given(unions, st.integers(0, 40))
def test_a_union_leaves_visible_what_any_of_its_parts_does(text: str, length: int) -> None:
    parts = (python_slice(part, length) for part in text.split(","))
    assert Mask(text).visible(length) == sorted(set().union(*parts))


@given(texts)
def test_the_published_notation_names_the_positions_slice(text: str) -> None:
    assert Mask(f"[:, {text}, :]") == Mask(text)
    assert Mask(f"[ : ,{text},: ]") == Mask(text)


quoted = st.lists(st.text(min_size=1, max_size=6), min_size=1, max_size=3)


@given(quoted, st.sets(st.sampled_from(ROLES)))
def test_texts_in_quotes_are_hidden_wherever_spans_say(words: list[str], roles: set[str]) -> None:
    named = [*roles, *(json.dumps(word) for word in words)]
    mask = Mask(f"hide={','.join(named)}")
    assert mask.texts == tuple(dict.fromkeys(words))
    assert set(mask.roles) == roles
    assert Mask(mask.text) == mask
    where = {name: [place] for place, name in enumerate(mask.named)}
    assert mask.visible(20, where) == list(range(len(mask.named), 20))
    with pytest.raises(ValueError, match="there is no"):
        mask.visible(20, {})


@given(texts, st.integers(0, 40))
def test_count_is_the_number_of_visible_positions(text: str, length: int) -> None:
    assert Mask(text).count(length) == len(Mask(text).visible(length))


hidden = st.lists(st.sampled_from(ROLES), min_size=1).map(lambda roles: f"hide={','.join(roles)}")


@given(hidden, st.dictionaries(st.sampled_from(ROLES), st.sets(st.integers(0, 9))))
def test_a_mask_of_roles_leaves_all_but_their_contents(
    text: str, spans: dict[str, set[int]]
) -> None:
    mask, roles = Mask(text), text.removeprefix("hide=").split(",")
    assert (set(mask.roles), mask.hides, mask.leading) == (set(roles), True, None)
    given = {role: sorted(held) for role, held in spans.items()}
    if set(roles) <= set(spans):
        away = set().union(*(spans[role] for role in roles))
        assert mask.visible(10, given) == sorted(set(range(10)) - away)
        assert mask.count(10, given) == 10 - len(away)
    else:
        with pytest.raises(ValueError, match="there is no message of role"):
            mask.visible(10, given)


@pytest.mark.parametrize("text", ["hide=user, system", " hide=system,user,user "])
def test_roles_are_written_once_and_in_one_order(text: str) -> None:
    assert Mask(text).text == "hide=system,user"
    assert Mask(text).slug == "hide-system-user"


everything = unions | hidden | quoted.map(lambda w: "hide=" + ",".join(map(json.dumps, w)))


@given(everything, everything)
def test_slug_is_one_to_one_and_safe_in_a_file_name(first: str, second: str) -> None:
    one, two = Mask(first), Mask(second)
    assert (one.slug == two.slug) == (one == two)
    assert re.fullmatch(r"[A-Za-z0-9+-]+", one.slug)


@given(texts, texts)
def test_equal_masks_leave_the_same_visible_and_text_is_canonical(first: str, second: str) -> None:
    one, two = Mask(first), Mask(second)
    assert Mask(one.text) == one
    if one == two:
        assert all(one.visible(n) == two.visible(n) for n in range(70))


@pytest.mark.parametrize("text", [":", "0:", "::", "::1", "0::1", " : "])
def test_every_way_to_write_the_full_mask_is_the_full_mask(text: str) -> None:
    assert Mask(text) == Mask(":")
    assert not Mask(text).hides


@pytest.mark.parametrize("text", [":100", "-100:", "1:", "-1", "::2", ":0"])
def test_a_mask_with_a_limit_is_meant_to_hide_even_where_it_reaches_nothing(text: str) -> None:
    assert Mask(text).hides


@pytest.mark.parametrize(
    "text",
    [
        "",
        "a",
        "1-2",
        "1:2:3:4",
        "::0",
        "::-1",
        "1.5",
        "one:",
        "[1:]",
        "1:\n2 3",
        "+1",
        "hide=",
        "hide=me",
        "1:,",
        ":2,a",
        "[:, 1:]",
        "[:, 1:2, 3:, :]",
        'hide="a',
        'hide="a" b',
        'hide=""',
        "hide=system,",
    ],
)
def test_what_is_no_slice_is_refused_with_what_is_allowed(text: str) -> None:
    with pytest.raises(ValueError, match=r"mask .*(allowed|must be)"):
        Mask(text)


@pytest.mark.parametrize(
    ("text", "slug"),
    [(":", "all"), ("1:", "from1"), (":2", "to2"), ("2:5", "2to5"), ("-1", "at-1")],
)
def test_slugs_read_as_the_masks_do(text: str, slug: str) -> None:
    assert Mask(text).slug == slug
