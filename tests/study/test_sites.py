from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tokinfo.study.sites import Site

places = st.sampled_from(["attention", "mlp", "block"])


@given(places, st.integers(1, 500))
def test_a_site_is_read_back_from_its_name(place: str, block: int) -> None:
    site = Site.parse(f"{place}.{block}")
    assert (site.place, site.block) == (place, block)
    assert Site.parse(str(site)) == site


@given(places, st.integers(1, 500))
def test_last_is_the_last_block_of_the_model(place: str, blocks: int) -> None:
    site = Site.parse(f"{place}.last")
    assert str(site) == f"{place}.last"
    assert site.resolve(blocks) == Site.parse(f"{place}.{blocks}")


def test_the_embedding_is_before_every_block() -> None:
    assert Site.parse("embedding").resolve(8) == Site("embedding", 0)
    assert str(Site.parse("embedding")) == "embedding"


@pytest.mark.parametrize(
    "text",
    ["", "block", "block.0", "block.-1", "block.1.2", "blok.1", "embedding.1", "Block.1",
     "block.01", "block. 1", "block.1\n", "block:1", "block.last2"],
)  # fmt: skip
def test_any_other_name_is_refused_with_what_is_allowed(text: str) -> None:
    with pytest.raises(ValueError, match=r"allowed: embedding, or attention\.K"):
        Site.parse(text)
