"""Decoding equals its definition by brute force."""

from __future__ import annotations

import itertools
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tokinfo.solvers import decoding
from tokinfo.solvers.decoding import (
    Decoder,
    inverse_gram,
    lead,
    read_inverse_gram,
    read_through_noise,
    write_inverse_gram,
)


def matrix(vocabulary: int = 40, width: int = 8, seed: int = 0) -> torch.Tensor:
    return torch.randn(vocabulary, width, generator=torch.Generator().manual_seed(seed))


@given(seed=st.integers(0, 1000), width=st.integers(2, 12))
def test_pseudo_inverse_scores_equal_the_pseudo_inverse_of_the_tall_matrix(
    seed: int, width: int
) -> None:
    embedding = matrix(width=width, seed=seed)
    found = torch.randn(3, width, generator=torch.Generator().manual_seed(seed + 1))
    expected = found.double() @ torch.linalg.pinv(embedding.double())
    scores = Decoder(embedding, inverse_gram(embedding)).scores(found)
    torch.testing.assert_close(scores.double(), expected, rtol=1e-4, atol=1e-5)


def test_a_rank_deficient_matrix_has_its_pseudo_inverse() -> None:
    embedding = matrix(vocabulary=5, width=9)
    found = embedding[2] + 0.0
    expected = found.double() @ torch.linalg.pinv(embedding.double())
    scores = Decoder(embedding, inverse_gram(embedding)).scores(found)
    torch.testing.assert_close(scores.double(), expected, rtol=1e-4, atol=1e-5)


@given(seed=st.integers(0, 1000))
def test_nearest_is_the_smallest_euclidean_distance(seed: int) -> None:
    embedding = matrix(seed=seed)
    found = torch.randn(4, 8, generator=torch.Generator().manual_seed(seed + 1))
    top = Decoder(embedding, inverse_gram(embedding), "nearest").top(found, k=3)
    order = torch.cdist(found, embedding).argsort(-1)[:, :3]
    assert torch.equal(top, order)


@pytest.mark.parametrize("method", ["pseudo-inverse", "nearest"])
@given(ids=st.sets(st.integers(0, 39), min_size=1, max_size=12), seed=st.integers(0, 100))
def test_only_candidates_are_returned_in_the_order_of_the_full_ranking(
    method: str, ids: set[int], seed: int
) -> None:
    embedding = matrix()
    found = torch.randn(2, 8, generator=torch.Generator().manual_seed(seed))
    gram = inverse_gram(embedding)
    restricted = Decoder(embedding, gram, method, torch.tensor(sorted(ids))).top(found, k=5)
    full = Decoder(embedding, gram, method).top(found, k=40)
    for row in range(2):
        expected = [token for token in full[row].tolist() if token in ids][:5]
        assert restricted[row].tolist()[: len(expected)] == expected
        assert set(restricted[row].tolist()) <= ids


def test_every_embedding_decodes_to_its_own_token() -> None:
    embedding = matrix(vocabulary=200, width=32)
    gram = inverse_gram(embedding)
    for method in ("pseudo-inverse", "nearest"):
        assert Decoder(embedding, gram, method).top(embedding, k=1)[:, 0].tolist() == list(
            range(200)
        )


@pytest.mark.parametrize("width", [64, 128, 512, 1024])
def test_a_square_matrix_is_what_the_pseudo_inverse_cannot_read(width: int) -> None:
    """Off the diagonal both decoders read random embeddings through noise as large as they are."""
    embedding = matrix(vocabulary=256, width=width)
    gram = inverse_gram(embedding)
    assert read_through_noise(Decoder(embedding, gram)) > 0.95
    square = matrix(vocabulary=256, width=256)
    gram = inverse_gram(square)
    assert read_through_noise(Decoder(square, gram)) < 0.3
    assert read_through_noise(Decoder(square, gram, "nearest")) == 1.0


def test_without_noise_the_nearest_neighbour_reads_every_candidate() -> None:
    embedding = matrix()
    few = torch.tensor([3, 5, 17])
    for candidates in (None, few):
        decoder = Decoder(embedding, inverse_gram(embedding), "nearest", candidates)
        assert read_through_noise(decoder, 0.0) == 1.0


@pytest.mark.parametrize(("vocabulary", "warned"), [(256, True), (1024, False)])
def test_the_log_says_that_a_models_embedding_cannot_be_read(
    vocabulary: int,
    warned: bool,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    model = SimpleNamespace(embedding=matrix(vocabulary=vocabulary, width=256))
    monkeypatch.setattr(decoding, "load", lambda _: model)
    # Not `caplog`: what another test did to logging must not matter here.
    said: list[str] = []
    monkeypatch.setattr(decoding.log, "warning", lambda text, *of: said.append(text % of))
    write_inverse_gram(tmp_path / "model", tmp_path / "decoder.safetensors")
    assert ["decode: {method: nearest}" in line for line in said] == [True] * warned
    torch.testing.assert_close(
        read_inverse_gram(tmp_path / "decoder.safetensors"), inverse_gram(model.embedding)
    )


def test_the_leading_token_is_in_front_once_and_the_others_keep_their_order() -> None:
    lists = torch.tensor([[5, 6, 7], [5, 6, 7], [5, 6, 7]])
    led = lead(lists, torch.tensor([5, 7, 9]))
    assert led.tolist() == [[5, 6, 7], [7, 5, 6], [9, 5, 6]]
    for order in itertools.permutations(range(3)):
        assert lead(torch.tensor(order), torch.tensor(2)).tolist()[0] == 2
