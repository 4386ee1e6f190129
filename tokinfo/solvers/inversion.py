"""What attention returned, from what the first block made of it.

At one position a block is a function of its own token and of what attention returned there: it
adds this to the residual stream and an MLP to that. Where the width allows, the function can be
inverted. Levenberg-Marquardt does it (J. Nocedal and S. Wright, Numerical Optimization, 2006,
section 10.3), in coordinates in which attention's returns over random prompts have unit
covariance: from the token alone it does not converge, as the MLP is many times as large as what
attention adds.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass

import torch
from torch import Tensor

from tokinfo.models.structure import find_block
from tokinfo.probe.attention import FirstAttention
from tokinfo.probe.probe import Probe
from tokinfo.solvers.watch import Watch

_STEPS = 12
_NEAR, _FAR = 1e-4, 5e-4
"""Relative residuals in float32 at which a search has converged, and above which it has failed."""
_PROVEN = 1e-5
"""Relative residual in float64 from which on a return counts as found."""
_CERTAIN = 0.02
"""Error along a direction, as a share of the return's typical component, that is still read."""
_ROUNDING = 1e-7
"""Relative error of activations that were computed in float32."""


@dataclass(frozen=True)
class Returned:
    """What attention returned at one position, and in which directions that is known.

    Attributes:
        value: [component], heads one after the other.
        directions: [direction, component] orthonormal, those that the activations determine.
    """

    value: Tensor
    directions: Tensor

    def completed(self, guess: Tensor) -> Tensor:
        """Return the value [component], as ``guess`` has it in directions that are not known."""
        return guess + (self.value - guess) @ self.directions.T @ self.directions


class Inversion:
    """Attention's returns at single positions of one prompt.

    Args:
        attention: of the first block.
        places: int64 [position] where they are in the prompt.
        embedded: [position, d_model] tokens at the positions.
        target: [position, width] activations there.
        samples: [sample, position, component] attention's returns in random prompts of the same
            known tokens; more of them than components.
        watch: looked at between the steps of a search.
    """

    def __init__(
        self,
        attention: FirstAttention,
        places: Tensor,
        embedded: Tensor,
        target: Tensor,
        samples: Tensor,
        watch: Watch | None = None,
    ) -> None:
        self.attention, self.places = attention, places
        self.embedded, self.target, self.samples = embedded, target, samples
        self.watch = watch or Watch()
        self._double = _in_double(attention.probe)
        self._scales: dict[int, tuple[Tensor, Tensor]] = {}

    def start(self, position: int, starts: int) -> Returned | None:
        """Return what attention returned at a position, from samples; None: not found.

        The search begins at their mean, then at those whose activations are nearest.

        Args:
            position: which of the positions, from 0.
            starts: how many searches are begun at most.
        """
        drawn = self.samples[:, position]
        with torch.no_grad():
            made = self._carried(position, drawn)
        near = (made - self.target[position]).norm(dim=1).argsort()[: starts - 1]
        for begin in (drawn.mean(0), *drawn[near]):
            found = self.search(position, begin)
            if found is not None:
                return found
        return None

    def search(self, position: int, begin: Tensor) -> Returned | None:
        """Return what attention returned, near ``begin`` [component]; None: not found."""
        value = self._descend(position, begin)
        return None if value is None else self._proven(position, value)

    def left(self, values: Tensor) -> list[float]:
        """Return what returns [position, component] leave of each target, as a share of it."""
        with torch.no_grad():
            heads = values.view(len(values), -1, self.attention.width)
            made = self.attention.carried(self.embedded, heads, self.places)
        share: list[float] = ((made - self.target).norm(dim=1) / self.target.norm(dim=1)).tolist()
        return share

    def _descend(self, position: int, begin: Tensor) -> Tensor | None:
        mean, lower = self._scale(position)
        target = self.target[position]
        size = target.norm()
        place = torch.linalg.solve_triangular(lower, (begin - mean)[:, None], upper=False)[:, 0]
        damping = 1e-2
        made, slopes = self._linearised(position, mean + lower @ place)
        left = made - target
        away = float(left.norm() / size)
        for _ in range(_STEPS):
            self.watch.check()
            across = slopes @ lower
            normal, slope = across.T @ across, across.T @ left
            for _ in range(8):
                damped = normal.clone()
                damped.diagonal().add_(damping * normal.diagonal().mean())
                factor, failed = torch.linalg.cholesky_ex(damped)
                if not failed:
                    step = torch.cholesky_solve(slope[:, None], factor)[:, 0]
                    with torch.no_grad():
                        there = mean + lower @ (place - step)
                        tried = self._carried(position, there[None])[0] - target
                    if float(tried.norm() / size) < away:
                        break
                damping *= 4
            else:
                break
            place, left, damping = place - step, tried, max(damping / 8, 1e-12)
            away = float(left.norm() / size)
            if away < _NEAR:
                break
            _, slopes = self._linearised(position, mean + lower @ place)
        return mean + lower @ place if away < _FAR else None

    def _proven(self, position: int, value: Tensor) -> Returned | None:
        """Refine a return in float64 with one Jacobian, and say what is known of it."""
        value, target = value.double(), self.target[position].double()
        made, slopes = self._linearised(position, value, self._double)
        inverse = torch.linalg.pinv(slopes)
        left = made - target
        for _ in range(6):
            step = value - inverse @ left
            with torch.no_grad():
                tried = self._carried(position, step[None], self._double)[0] - target
            if not float(tried.norm()) < float(left.norm()):
                break
            value, left = step, tried
        size = float(target.norm())
        if float(left.norm()) > _PROVEN * size:
            return None
        _, strengths, directions = torch.linalg.svd(slopes, full_matrices=False)
        typical = float(value.norm()) / len(value) ** 0.5
        # A search that came to rest early is wrong by more than rounding.
        error = max(_ROUNDING * size, float(left.norm()))
        read = error / strengths < _CERTAIN * typical
        return Returned(value.to(self.target), directions[read].to(self.target))

    def _scale(self, position: int) -> tuple[Tensor, Tensor]:
        """Return the mean and the Cholesky factor of the covariance of sampled returns."""
        if position not in self._scales:
            drawn = self.samples[:, position]
            covariance = torch.cov(drawn.T)
            covariance.diagonal().add_(1e-3 * covariance.diagonal().mean())
            self._scales[position] = (drawn.mean(0), torch.linalg.cholesky(covariance))
        return self._scales[position]

    def _linearised(
        self, position: int, value: Tensor, probe: Probe | None = None
    ) -> tuple[Tensor, Tensor]:
        """Return the activations [width] of a return, and their derivatives [width, component]."""
        rows = value.expand(self.target.shape[1], -1).clone().requires_grad_(True)
        made = self._carried(position, rows, probe)
        (slopes,) = torch.autograd.grad(made.diagonal().sum(), rows)
        return made[0].detach(), slopes

    def _carried(self, position: int, values: Tensor, probe: Probe | None = None) -> Tensor:
        """Return activations [value, width] of returns [value, component] at a position."""
        own = self.embedded[position].to(values)
        heads = values.view(len(values), -1, self.attention.width)
        places = self.places[position].expand(len(values))
        return self.attention.carried(own.expand(len(values), -1), heads, places, probe)


def _in_double(probe: Probe) -> Probe:
    """Return a probe of a copy of the decoder whose first block computes in float64.

    Everything else is shared with the decoder.
    """
    block = find_block(probe.decoder, 1).module
    within = set(block.modules())
    shared = {id(part): part for part in _roots(probe.decoder, within)}
    decoder = copy.deepcopy(probe.decoder, shared)
    find_block(decoder, 1).module.double()
    return Probe(decoder, probe.site, dtype=torch.float64)


def _roots(decoder: torch.nn.Module, within: set[torch.nn.Module]) -> list[torch.nn.Module]:
    """Return the modules of a decoder that share nothing with those ``within``."""
    return [
        part
        for part in decoder.modules()
        if part not in within and within.isdisjoint(part.modules())
    ]
