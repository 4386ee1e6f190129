"""The chapter's statements are whole, and mistakes in their file are named."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from tokinfo.study.claims import DATA, Claims, load_claims


def raw() -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load(DATA.read_text(encoding="utf-8"))
    return found


def test_every_statement_is_there_once_and_states_one_outcome() -> None:
    claims = load_claims()
    assert len(claims.rows) == len(claims.statements) == 55
    assert all((c.found is None) != (c.share is None) for c in claims.statements)
    assert {c.model for c in claims.statements} == set(claims.models)


def test_the_rows_that_hide_nothing_are_about_every_token() -> None:
    whole = [claim for claim in load_claims().statements if not claim.hides]
    assert {str(claim.mask) for claim in whole} == {":"}
    assert len(whole) == 8
    assert all("hidden" not in claim.criterion for claim in whole)


def test_mixers_are_padded_and_descend_slowly_and_llamas_neither() -> None:
    for name, model in load_claims().models.items():
        mixer = name.startswith("mixer")
        assert model.padding == ("n_ctx" if mixer else "none")
        assert model.learning_rate == (0.02 if mixer else 2)


def test_a_criterion_says_what_counts() -> None:
    rows = load_claims().rows
    assert rows["llama65b-block1-last-top5"].criterion == "hidden tokens, among the 5 best"
    some = rows["width8192-untrained-block1-last"].criterion
    assert some == "at least 50% of the hidden tokens, in any order"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model": "llama-9b"}, "unknown model"),
        ({"site": "block.90"}, "block.90 of"),
        ({"site": "blok.1"}, "allowed: embedding"),
        ({"mask": "x"}, "mask 'x'"),
        ({"found": None}, "exactly one of"),
        ({"share": [0.8, 0.2], "found": None}, "0 <= low <= high <= 1"),
        ({"share": [0.2, 0.8]}, "exactly one of"),
        ({"id": "llama7b-block1-first2"}, "given twice: llama7b-block1-first2"),
        ({"publishd": []}, "publishd"),
    ],
)
def test_a_mistake_in_the_file_is_named(
    change: dict[str, Any], message: str, tmp_path: Path
) -> None:
    content = raw()
    content["rows"][0] |= change
    file = tmp_path / "claims.yaml"
    file.write_text(yaml.safe_dump(content), encoding="utf-8")
    with pytest.raises(ValueError, match=message) as caught:
        load_claims(file)
    assert str(file) in str(caught.value)


def test_the_file_is_what_the_package_carries() -> None:
    assert Claims.model_validate(raw()) == load_claims()
