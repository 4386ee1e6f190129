"""Decoding: from a found embedding to tokens."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from tokinfo.atomic import new_file
from tokinfo.damaged import reading
from tokinfo.models.checkpoint import load
from tokinfo.models.remote_code import trusted

Method = Literal["pseudo-inverse", "nearest"]


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
    """Write the inverse Gram matrix of a checkpoint's embedding (once per model)."""
    with trusted(trust_remote_code):
        gram = inverse_gram(load(checkpoint).embedding)
    with new_file(out) as partial:
        save_file({"inverse_gram": gram.contiguous()}, str(partial))


def read_inverse_gram(path: Path) -> Tensor:
    """Read what `write_inverse_gram` wrote: float64 [d, d]."""
    with reading(path):
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
