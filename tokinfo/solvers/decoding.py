"""Decoding: from a found embedding to tokens."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from safetensors.torch import load_file
from torch import Tensor

from tokinfo.io.atomic import save_sealed
from tokinfo.io.damaged import check_seal, reading
from tokinfo.models.checkpoint import load
from tokinfo.models.remote_code import trusted

Method = Literal["pseudo-inverse", "nearest"]

log = logging.getLogger(__name__)


def inverse_gram(embedding: Tensor) -> Tensor:
    """Return the (pseudo-)inverse of E'E in float64, [d, d], for an embedding matrix E [V, d].

    pinv(E) = inverse(E'E) E' for a matrix of full column rank. The d x d route takes about a
    second where an SVD of the tall matrix takes minutes, and in float64 the squared condition
    number costs nothing that float32 activations could show.
    """
    matrix = embedding.double()
    inverse: Tensor = torch.linalg.pinv(matrix.T @ matrix, hermitian=True)
    return inverse


def write_inverse_gram(checkpoint: Path, out: Path, *, trust_remote_code: bool = False) -> None:
    """Write the inverse Gram matrix of a checkpoint's embedding (once per model).

    Where it reads much less than the nearest neighbour would, the log says so.
    """
    with trusted(trust_remote_code):
        embedding = load(checkpoint).embedding
    gram = inverse_gram(embedding)
    published = read_through_noise(Decoder(embedding, gram))
    nearest = read_through_noise(Decoder(embedding, gram, "nearest"))
    if published < nearest / 2:
        log.warning(
            "through noise as large as the embedding the pseudo-inverse reads %.0f %% of tokens "
            "and the nearest neighbour %.0f %%: descend with `decode: {method: nearest}`",
            *(100 * published, 100 * nearest),
        )
    save_sealed({"inverse_gram": gram.contiguous()}, out)


def read_inverse_gram(path: Path) -> Tensor:
    """Read what `write_inverse_gram` wrote: float64 [d, d]; raises DamagedError."""
    with reading(path):
        check_seal(path)
        return load_file(str(path))["inverse_gram"]


@dataclass(frozen=True)
class Decoder:
    """Turns embeddings into ranked tokens.

    Attributes:
        embedding: [V, d] input embedding matrix.
        inverse_gram: float64 [d, d], of the whole matrix (also when candidates are few:
            the pseudo-inverse is of the model, the restriction of the search).
        method: ``pseudo-inverse`` (as published) or ``nearest`` (Euclidean).
        candidates: sorted token ids that may be returned; None: all.
    """

    embedding: Tensor
    inverse_gram: Tensor
    method: Method = "pseudo-inverse"
    candidates: Tensor | None = None

    @property
    def size(self) -> int:
        """Number of candidate tokens; chance is one over it."""
        return len(self.embedding) if self.candidates is None else len(self.candidates)

    @property
    def ids(self) -> Tensor:
        """Candidate token ids, int64 [candidate], sorted."""
        if self.candidates is not None:
            return self.candidates
        return torch.arange(len(self.embedding), device=self.embedding.device)

    def scores(self, found: Tensor) -> Tensor:
        """Return the score of every candidate, [..., candidate]; larger is better.

        Args:
            found: [..., d] embeddings.
        """
        matrix = self.embedding if self.candidates is None else self.embedding[self.candidates]
        if self.method == "pseudo-inverse":
            coordinates = (found.double() @ self.inverse_gram).to(matrix.dtype)
            return coordinates @ matrix.T
        found = found.to(matrix.dtype)
        return 2 * found @ matrix.T - (matrix * matrix).sum(-1)

    def top(self, found: Tensor, k: int = 5) -> Tensor:
        """Return the ids of the k best tokens, best first: [..., k].

        Where there are fewer than k candidates the last one is repeated.
        """
        return self.rank(self.scores(found), k)

    def rank(self, scores: Tensor, k: int = 5) -> Tensor:
        """Return the ids of the k largest scores, [..., k], from scores [..., candidate]."""
        best = scores.topk(min(k, scores.shape[-1]), dim=-1).indices
        if best.shape[-1] < k:
            best = torch.cat(
                [best, best[..., -1:].expand(*best.shape[:-1], k - best.shape[-1])], -1
            )
        return best if self.candidates is None else self.candidates[best]


def lead(lists: Tensor, ids: Tensor) -> Tensor:
    """Return lists [..., k] with ``ids`` [...] in front, the others in their order behind."""
    joined = torch.cat([ids[..., None], lists], dim=-1)
    repeats = joined == ids[..., None]
    repeats[..., 0] = False
    order = repeats.int().argsort(dim=-1, stable=True)
    return joined.gather(-1, order)[..., : lists.shape[-1]]


def read_through_noise(decoder: Decoder, noise: float = 1.0, *, tokens: int = 256) -> float:
    """Return the share of tokens that are read off their embedding plus gaussian noise.

    A descent ends near the embedding of a token, not on it. Where the vocabulary is as large as
    the width, the matrix is square, and its pseudo-inverse multiplies what is left over by a
    condition number of the order of the width (docs/evidence/decoding.csv).

    Args:
        decoder: what reads.
        noise: standard deviation, in that of the embedding's entries.
        tokens: how many are drawn, always the same ones.
    """
    generator = torch.Generator().manual_seed(0)
    drawn = torch.randperm(decoder.size, generator=generator)[:tokens]
    ids = decoder.ids.cpu()[drawn].to(decoder.embedding.device)
    there = decoder.embedding[ids].float()
    draw = torch.randn(there.shape, generator=generator).to(there.device)
    found = there + noise * decoder.embedding.float().std() * draw
    return (decoder.top(found, k=1)[:, 0] == ids).double().mean().item()
