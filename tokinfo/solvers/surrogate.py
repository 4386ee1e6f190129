"""Which token to try next at one position, from the activations of those tried so far.

Behind many blocks descent on a free embedding rests in local minima, but tokens alike in meaning
still leave alike activations. A Gaussian process from embeddings to activations (C. E. Rasmussen
and C. K. I. Williams, *Gaussian Processes for Machine Learning*, 2006, chapter 2), fitted to the
tokens tried, says how likely each other token is to give the target; the likeliest are tried and
the process is fitted again (active search: R. Garnett et al., ICML 2012, arXiv 1206.6406). It
proposes only: what a token gives is always taken from the forward model.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional

COMPONENTS = 96
"""Random projections of the activations, standardised, that the process explains."""
NOISE = 0.05
"""Variance of what the embedding does not explain, as a share of the prior variance."""
WIDTH = 0.5
"""Width of the kernel, in 1 - cosine of embeddings."""


class Surrogate:
    """A Gaussian process over the vocabulary for one position behind one prefix.

    Each projected activation has the kernel cos(x, y) + exp((cos(x, y) - 1) / WIDTH) of the
    centred embeddings x and y, and the same noise. Tokens are likely beforehand as Zipf's law has
    it of their ids, because byte-pair tokenizers number tokens in the order learned.

    Memory: ``tried x vocabulary`` float32.

    Args:
        directions: [token, d] centred embeddings of unit length (`directions_of`).
        generator: draws the projections.
    """

    def __init__(self, directions: Tensor, generator: torch.Generator) -> None:
        self.directions = directions
        self.generator = generator
        size = len(directions)
        # -log of Zipf's law, but for a constant; offset, as the first ids are bytes and signs.
        self.rarity = torch.log(torch.arange(size, device=directions.device) + 50.0)
        self.tried = torch.zeros(0, dtype=torch.int64, device=directions.device)
        self.activations: Tensor | None = None  # [tried, d_model]
        self.projection: Tensor | None = None  # [d_model, COMPONENTS]
        # Of the tried tokens' covariance: its Cholesky factor L, and L^-1 k(tried, every).
        self.factor = directions.new_zeros(0, 0)
        self.solved = directions.new_zeros(0, size)

    def add(self, tokens: Tensor, activations: Tensor) -> None:
        """Learn the activations [tried, d_model] of tokens [tried] not added before."""
        every = _kernel(self.directions[tokens] @ self.directions.T)
        across = self.solved[:, tokens]  # L21, transposed
        within = every[:, tokens] - across.T @ across
        within += NOISE * _VARIANCE * torch.eye(len(tokens), device=within.device)
        lower = torch.linalg.cholesky(within)
        rest = every - across.T @ self.solved
        new = torch.linalg.solve_triangular(lower, rest, upper=False)
        top = torch.cat([self.factor, across.new_zeros(across.shape)], dim=1)
        self.factor = torch.cat([top, torch.cat([across.T, lower], dim=1)])
        self.solved = torch.cat([self.solved, new])
        self.tried = torch.cat([self.tried, tokens])
        kept = [] if self.activations is None else [self.activations]
        self.activations = torch.cat([*kept, activations.float()])

    def likeliest(self, target: Tensor, count: int) -> Tensor:
        """Return the tokens [count] not tried yet that best explain a target [d_model]."""
        assert self.activations is not None, "nothing has been added"
        if self.projection is None:
            shape = (self.activations.shape[1], COMPONENTS)
            drawn = torch.randn(shape, generator=self.generator) / math.sqrt(COMPONENTS)
            self.projection = drawn.to(self.activations)
        mean = self.activations.mean(0)
        scale = self.activations.std(0) + 1e-6
        measured = (self.activations - mean) / scale @ self.projection
        wanted = (target.float() - mean) / scale @ self.projection
        weights = torch.linalg.solve_triangular(self.factor, measured, upper=False)
        unit = weights.square().mean()  # prior variance of a component, by maximum likelihood
        left = (_VARIANCE - self.solved.square().sum(0)).clamp_min(1e-3) + NOISE * _VARIANCE
        away = (self.solved.T @ weights - wanted).square().sum(1)
        # -2 log of the posterior, but for a constant.
        score = away / (left * unit) + COMPONENTS * left.log() + 2 * self.rarity
        score[self.tried] = torch.inf
        left_over = len(score) - len(self.tried)
        best: Tensor = score.topk(min(count, left_over), largest=False).indices
        return best


def directions_of(embedding: Tensor) -> Tensor:
    """Return embeddings [token, d], centred and of unit length."""
    return functional.normalize(embedding.float() - embedding.float().mean(0), dim=1)


_VARIANCE = 2.0
"""The kernel of a token with itself."""


def _kernel(cosine: Tensor) -> Tensor:
    return cosine + torch.exp((cosine - 1) / WIDTH)
