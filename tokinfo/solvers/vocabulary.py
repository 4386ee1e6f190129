"""Where a descent stands among the token embeddings: the nearest ones, and the box around all."""

from __future__ import annotations

from functools import cached_property

import torch
from torch import Tensor

from tokinfo.solvers.problem import Problem

_MOST_SCORES = 1 << 24  # distances computed at a time; 64 MiB of float32


class Vocabulary:
    """The embeddings of the tokens that a problem's decoder may return.

    Args:
        problem: gives the embedding matrix, the candidates and the parametrisation.
    """

    def __init__(self, problem: Problem) -> None:
        decoder = problem.decoder
        self.parametrisation = problem.parametrisation
        self.embedding = decoder.embedding
        self.candidates = decoder.candidates
        self.matrix = self.embedding if self.candidates is None else self.embedding[self.candidates]

    @cached_property
    def variance(self) -> float:
        """Variance of the whole matrix's entries; its root is the unit of a step."""
        return float(self.embedding.var())

    @cached_property
    def _squares(self) -> Tensor:
        return torch.einsum("vd,vd->v", self.matrix, self.matrix)

    @cached_property
    def _box(self) -> tuple[Tensor, Tensor]:
        if self.parametrisation == "vocabulary":
            # The tokens are the unit vectors there.
            return self.matrix.new_zeros(()), self.matrix.new_ones(())
        return self.matrix.amin(0), self.matrix.amax(0)

    def clamp(self, free: Tensor) -> Tensor:
        """Return a free variable with each component in its range over the tokens."""
        return free.clamp(*self._box)

    def nearest(self, embedded: Tensor) -> Tensor:
        """Return the ids [row, position] of the tokens nearest to embeddings (Euclidean).

        It costs a product with the whole matrix, in parts of bounded memory.

        Args:
            embedded: [row, position, d].
        """
        points = embedded.detach().flatten(0, -2)
        size = max(1, _MOST_SCORES // len(self.matrix))
        found = torch.cat(
            [
                torch.addmm(self._squares, part, self.matrix.T, alpha=-2).argmin(-1)
                for part in torch.split(points, size)
            ]
        ).view(embedded.shape[:-1])
        return found if self.candidates is None else self.candidates[found]

    def away(self, embedded: Tensor, nearest: Tensor, seen: Tensor) -> Tensor:
        """Return the mean squared distance [row] to the nearest tokens, over the variance.

        The mean is over components and over the row's positions, so that what a batch pads a row
        with changes nothing. At the distance of a typical entry of the embedding it is about 1.

        Args:
            embedded: [row, position, d], what the gradient flows to.
            nearest: int64 [row, position], from `nearest`.
            seen: int64 [row], positions of each row.
        """
        squared = (embedded - self.embedding[nearest]).square().mean(-1)
        inside = torch.arange(squared.shape[1], device=squared.device) < seen[:, None]
        return torch.where(inside, squared, 0).sum(-1) / seen / self.variance

    def projected(self, embedded: Tensor, nearest: Tensor) -> Tensor:
        """Return the nearest tokens' embeddings, with the gradient of ``embedded``."""
        # The bracket is exactly 0, so the model sees a token and not its neighbourhood.
        return self.embedding[nearest] + (embedded - embedded.detach())
