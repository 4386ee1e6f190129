"""Hidden tokens by mixing candidates inside attention, instead of averaging their embeddings.

A free embedding at a hidden position can absorb any residual, so descent on it does not find
hidden tokens. Here a hidden position holds a probability over candidate tokens, and each of them
takes part in attention as itself, weighted by its probability: a relaxation whose points are
mixtures of tokens. Visible tokens that are not known are proposed by descent on embeddings, which
finds those.

One of three searches follows, and each prompt's result names it:

``convex``: behind the first block, where what attention returned can be read off the activations
and is linear in the probabilities (`tokinfo.solvers.convex`);
``annealing``: behind any other block of attention, by descent on the probabilities of all tokens
at once, whose keys and values stand still meanwhile (`tokinfo.solvers.annealing`);
``descent``: in other models, by descent on mixtures of shortlists that detection and the gradient
make (`tokinfo.solvers.shortlists`).
"""

from __future__ import annotations

from contextlib import suppress

import torch

from tokinfo.io.errors import InvalidError
from tokinfo.models.structure import StructureError
from tokinfo.probe import mixture
from tokinfo.solvers import adam, shortlists
from tokinfo.solvers.apart import Search, through_attention
from tokinfo.solvers.batches import Batcher
from tokinfo.solvers.best import Best
from tokinfo.solvers.problem import Problem, Result, SolverError
from tokinfo.solvers.watch import Stopped
from tokinfo.study.solvers import MixtureSolver


def solve(problem: Problem, settings: MixtureSolver) -> Result:
    """Search each prompt of the problem; see the module's docstring for how.

    When the run is to end early, the best prompts so far are returned.

    Raises:
        SolverError: the model cannot be given mixtures, or the descent failed.
    """
    search = _search(problem)
    start = adam.solve(problem, settings.descent)
    batcher = Batcher(watch=problem.watch)
    found: list[Best] = []
    stopped: list[str | None] = []
    for row in range(len(problem.target)):
        one = problem.rows(torch.tensor([row]))
        best = Best(one, settings, batcher, start.top_ids[row])
        with suppress(Stopped):
            search.run(best)
        found.append(best)
        stopped.append(None if best.certified else problem.watch.stopped)
    return Result(
        top_ids=torch.stack([best.top for best in found]),
        loss=torch.tensor([best.loss for best in found]),
        first_loss=start.first_loss,
        steps=torch.tensor([best.rounds for best in found]),
        restart=torch.zeros(len(found), dtype=torch.int64),
        restarts=1,
        evaluations=start.evaluations + torch.tensor([best.evaluations for best in found]),
        path=[search.path] * len(found),
        stopped=stopped,
    )


def _search(problem: Problem) -> Search:
    """Return the search that applies."""
    found = through_attention(problem)
    if found is not None:
        return found
    try:
        mixture.check(problem.probe)
    except (InvalidError, StructureError) as error:
        raise SolverError(str(error)) from error
    return Search("descent", shortlists.search)
