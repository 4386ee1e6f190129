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


@given(st.integers(1, 300), st.integers(1, 300))
def test_keys_and_values_of_blocks_that_follow_each_other_are_one_site(one: int, more: int) -> None:
    last = one + more
    site = Site.parse(f"kv.{one}-{last}")
    assert (site.place, site.first, site.block) == ("kv", one, last)
    assert Site.parse(str(site)) == site
    assert Site.parse("+".join(f"kv.{block}" for block in range(one, min(last, one + 9) + 1))) == (
        Site("kv", min(last, one + 9), one)
    )
    assert Site.parse(f"kv.{one}-last").resolve(last) == site


@pytest.mark.parametrize(
    "text", ["kv.1+kv.3", "kv.1+block.2", "block.1+block.2", "kv.2-1", "kv.2-2", "kv.last-3", "kv",
             "kv.last+kv.1", "norm.1"],
)  # fmt: skip
def test_what_cannot_be_read_at_once_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="allowed:"):
        Site.parse(text)


def test_the_final_norm_lies_behind_the_last_block() -> None:
    assert Site.parse("norm").resolve(7) == Site("norm", 7)
    assert str(Site("norm", 7)) == "norm"


@pytest.mark.parametrize(
    ("text", "meant"),
    [("layer.1", "block.1"), ("layers[12]", "block.12"), ("resid_post.3", "block.3"),
     ("attn.2", "attention.2"), ("mlp4", "mlp.4"), ("kv_cache.2", "kv.2"), ("ln_f", "norm"),
     ("hidden_states.last", "block.last")],
)  # fmt: skip
def test_what_other_tools_call_a_place_is_understood_and_not_taken(text: str, meant: str) -> None:
    with pytest.raises(ValueError, match=rf"did you mean `{meant}`"):
        Site.parse(text)
    Site.parse(meant)
