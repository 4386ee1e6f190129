"""What the visible activations identify at one position, whatever solver searched for it.

A sweep gives the distance of every candidate token at a position, the rest of the prompt
given. The functions here turn it into a rank, a margin, a verdict and a number of bits.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor


@dataclass(frozen=True)
class Identification:
    """What one sweep says about one position.

    Attributes:
        rank: of the true token among all candidates, from 1; ties count against it.
        true_residual: its distance.
        wrong_residual: the smallest distance of any other candidate (infinite: there is none).
        candidates: how many candidates explain the activations.
        verdict: ``identifiable`` (only the true one does), ``ambiguous`` (it and others do)
            or ``excluded`` (it does not).
        claimed: index of the only candidate that does, right or wrong; None: several do, or none.
        bits_low, bits_high: bounds of the information, see `bits`; None: no candidate explains the
            activations, so nothing says what they leave open.
        noise_threshold: noise-to-signal ratio at which the true token stops being the best;
            None: not measured.
        prior_bits_low, prior_bits_high: the same under the unigram prior; None without one, too.
        carried: of each visible position, by how much all other tokens change its activations at
            least (`tokinfo.solvers.sweep.carried`).
    """

    rank: int
    true_residual: float
    wrong_residual: float
    candidates: int
    verdict: str
    claimed: int | None
    bits_low: float | None
    bits_high: float | None
    noise_threshold: float | None = None
    prior_bits_low: float | None = None
    prior_bits_high: float | None = None
    carried: tuple[float | None, ...] = ()

    @property
    def margin(self) -> float:
        """How much worse the best wrong candidate is than the true one."""
        return self.wrong_residual - self.true_residual

    def unclaimed(self) -> Identification:
        """Return it without what holds only where the prompt around it explains the target."""
        return replace(
            self,
            claimed=None,
            bits_low=None,
            bits_high=None,
            prior_bits_low=None,
            prior_bits_high=None,
        )


def identify(
    residuals: Tensor, true: int, slack: float, prior: Tensor | None = None
) -> Identification:
    """Judge a sweep.

    Args:
        residuals: [candidate] distances.
        true: index of the true token among the candidates.
        slack: distance within which a candidate explains the activations (`Problem.slack`).
        prior: [candidate] probabilities before anything is seen; None: uniform only.

    Raises:
        ValueError: ``true`` is not an index of the candidates.
    """
    if not 0 <= true < len(residuals):
        raise ValueError(f"the true token is not among the {len(residuals)} candidates")
    residuals = residuals.double()
    true_residual = float(residuals[true])
    others = torch.cat([residuals[:true], residuals[true + 1 :]])
    within = residuals <= slack
    count = int(within.sum())
    if not bool(within[true]):
        verdict = "excluded"
    else:
        verdict = "identifiable" if count == 1 else "ambiguous"
    low, high = bits(residuals, slack) if count else (None, None)
    prior_low, prior_high = (
        bits(residuals, slack, prior) if count and prior is not None else (None, None)
    )
    return Identification(
        rank=1 + int((others <= true_residual).sum()),
        true_residual=true_residual,
        wrong_residual=float(others.min()) if len(others) else math.inf,
        candidates=count,
        verdict=verdict,
        claimed=int(within.nonzero()) if count == 1 else None,
        bits_low=low,
        bits_high=high,
        prior_bits_low=prior_low,
        prior_bits_high=prior_high,
    )


def bits(residuals: Tensor, slack: float, prior: Tensor | None = None) -> tuple[float, float]:
    """Return lower and upper bounds on the information about a token, in bits.

    The estimator is the log-ratio of the prior mass of all candidates to that of the set S
    the activations leave open: -log2 P(S), which for a uniform prior is log2 V - log2 |S|.
    It is the information gained when the posterior is the prior cut to S, as it is for
    noise of bounded size (Shannon 1948, section 6, for the uniform case). S is taken as the
    candidates within ``slack`` of the best one (the lower bound) and as those exactly as good as
    the best one (the upper bound). The rest of the prompt is taken as known, so that it bounds from
    above what an observer to whom no token is known could gain at this position.

    Args:
        residuals: [candidate] distances.
        slack: distance within which a candidate explains the activations.
        prior: [candidate] probabilities summing to one; None: uniform.
    """
    best = residuals.min()
    weight = (
        torch.full_like(residuals, 1 / len(residuals), dtype=torch.float64)
        if prior is None
        else prior.double()
    )
    found = []
    for further in (slack, 0.0):
        mass = float(weight[residuals <= best + further].sum())
        found.append(max(0.0, -math.log2(min(1.0, mass))) if mass > 0 else math.inf)
    return found[0], found[1]
