"""Columns are scored and mixed as if the dictionary had been formed."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from tests.families import tiny
from tests.tiny import tiny_llama
from tokinfo.probe.attention import FirstAttention
from tokinfo.probe.probe import Probe
from tokinfo.solvers.columns import Columns, _Equations
from tokinfo.solvers.inversion import Returned
from tokinfo.study.sites import Site

PROMPT = [3, 1, 41, 15, 92, 65, 35, 8]
UNKNOWN, VISIBLE = [1, 2, 5], [4, 6, 7]
KINDS = {"llama": True, "Llama 3": True, "Qwen3": True, "GPT-NeoX": True, "GPT-2": False}
"""Whether a score depends on the distance of positions alone."""


@dataclass(frozen=True)
class Case:
    columns: Columns
    attention: FirstAttention
    table: Tensor
    returned: dict[int, Returned]


def case_of(kind: str, *, blind: bool = False) -> Case:
    """The columns of a prompt, and what attention returned in it: all of it, or in part.

    Args:
        kind: of the model.
        blind: at one visible position the return is not known, at others in some directions.
    """
    model = tiny_llama(scale=0.2) if kind == "llama" else tiny(kind)
    table = model.get_input_embeddings().weight
    attention = FirstAttention(Probe(model.base_model, Site("block", 1)))
    ids = torch.tensor(PROMPT)
    truth = attention.attended(table[ids][None])[0].flatten(1)
    generator = torch.Generator().manual_seed(0)
    returned = {}
    for judge in VISIBLE[1:] if blind else VISIBLE:
        width = truth.shape[1]
        axes = torch.linalg.qr(torch.randn(width, width, generator=generator)).Q
        returned[judge] = Returned(truth[judge], axes[: width - 5 if blind else width])
    unseen = ids.clone()
    unseen[UNKNOWN] = 0
    common = torch.randperm(len(table), generator=generator)[:16]
    columns = Columns(attention, table, table[unseen], UNKNOWN, VISIBLE, common)
    return Case(columns, attention, table, returned)


def equations_of(case: Case) -> _Equations:
    """The equations of a round whose mixtures predict the true returns."""
    true = case.attention.attended(case.table[torch.tensor(PROMPT)][None])[0, VISIBLE].flatten(1)
    return _Equations(case.columns, case.returned, true)


def brute(case: Case, place: int, token: int, judge: int) -> tuple[Tensor, Tensor]:
    """Return a token's exponentials [head] for a judge, and its values [head, d], in float64.

    They are of the model's own scores, less those of the certain tokens' best.
    """
    ids = torch.tensor(PROMPT)
    ids[place] = token
    own = case.attention.parts(case.table[ids], torch.arange(len(ids)))
    share = own.queries.shape[1] // own.keys.shape[1]
    keys = own.keys.repeat_interleave(share, 1).double()
    values = own.values.repeat_interleave(share, 1).double()
    scores = torch.einsum("hd,ihd->hi", own.queries[judge].double(), keys[: judge + 1])
    certain = [p for p in range(judge + 1) if p not in UNKNOWN]
    best = scores[:, certain].amax(1)
    if place > judge:
        return torch.zeros_like(best), values[place]
    return (scores[:, place] - best).exp(), values[place]


def brute_column(case: Case, n: int, token: int) -> Tensor:
    """Return a token's column [equation], formed by itself from the equation in the docstring."""
    found = []
    for judge, one in case.returned.items():
        exponentials, values = brute(case, UNKNOWN[n], token, judge)
        away = values - one.value.view_as(values).double()
        unit = case.columns._unit[:, VISIBLE.index(judge)].flatten().double()
        column = ((unit * exponentials)[:, None] * away).flatten()
        found.append(one.directions.double() @ column)
    return torch.cat(found)


@pytest.mark.parametrize(("kind", "by_distance"), KINDS.items())
def test_the_keys_of_all_positions_are_one_table_where_scores_go_by_distance(
    kind: str, by_distance: bool
) -> None:
    columns = case_of(kind).columns
    assert columns._by_distance() == by_distance
    assert (columns._shared is not None) == by_distance


@pytest.mark.parametrize("blind", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_columns_are_those_formed_one_by_one_in_float64(kind: str, blind: bool) -> None:
    case = case_of(kind, blind=blind)
    equations = equations_of(case)
    for n in range(len(UNKNOWN)):
        tokens = torch.tensor([0, 7, 41, 80])
        found = equations.columns(n, tokens).double()
        expected = torch.stack([brute_column(case, n, int(token)) for token in tokens])
        assert float((found - expected).norm()) <= 1e-4 * float(expected.norm())


@pytest.mark.parametrize("kind", KINDS)
def test_scores_are_products_with_columns_that_are_never_formed(kind: str) -> None:
    case = case_of(kind, blind=True)
    equations = equations_of(case)
    left = torch.randn(len(equations.target), generator=torch.Generator().manual_seed(1))
    gradient = equations.back(left)
    for n in range(len(UNKNOWN)):
        tokens = list(range(n, len(case.table), 3))
        expected = torch.stack([brute_column(case, n, token) for token in tokens]) @ left.double()
        for _ in range(2):  # the second time from what was kept
            found = equations.promise(n, gradient)[tokens].double()
            assert float((found - expected).norm()) <= 1e-4 * float(expected.norm())


@pytest.mark.parametrize("kind", KINDS)
def test_the_true_tokens_solve_the_equations(kind: str) -> None:
    case = case_of(kind)
    equations = equations_of(case)
    truth = [torch.tensor([PROMPT[place]]) for place in UNKNOWN]
    made = sum(equations.columns(n, one)[0] for n, one in enumerate(truth))
    assert float((made - equations.target).norm()) <= 1e-4 * float(equations.target.norm())


def test_what_is_not_known_of_a_return_is_taken_from_a_guess() -> None:
    axes = torch.linalg.qr(torch.randn(6, 6, generator=torch.Generator().manual_seed(0))).Q
    value, guess = torch.arange(6.0), torch.ones(6)
    completed = Returned(value, axes[:4]).completed(guess)
    torch.testing.assert_close(axes[:4] @ completed, axes[:4] @ value)
    torch.testing.assert_close(axes[4:] @ completed, axes[4:] @ guess)


@pytest.mark.parametrize("kind", KINDS)
def test_one_token_a_position_is_predicted_to_return_what_its_prompt_does(kind: str) -> None:
    case = case_of(kind)
    case.columns.lists = [torch.tensor([PROMPT[place], 80, 7]) for place in UNKNOWN]
    case.columns.weights = [torch.tensor([1.0, 0.0, 0.0]) for _ in UNKNOWN]
    embedded = case.table[torch.tensor(PROMPT)][None]
    expected = case.attention.attended(embedded)[0, VISIBLE].flatten(1)
    assert float((case.columns.predicted() - expected).norm()) <= 1e-5 * float(expected.norm())


@pytest.mark.parametrize("kind", KINDS)
def test_a_mixture_is_predicted_as_a_quotient_of_mixed_sums(kind: str) -> None:
    case = case_of(kind)
    case.columns.lists = [torch.tensor([3, 80, 7]) for _ in UNKNOWN]
    case.columns.weights = [torch.tensor([0.5, 0.3, 0.2]) for _ in UNKNOWN]
    found = case.columns.predicted()
    for row, judge in enumerate(VISIBLE):
        above, below = torch.zeros(()), torch.zeros(())
        certain = [p for p in range(judge + 1) if p not in UNKNOWN]
        for place in certain:
            e, v = brute(case, place, PROMPT[place], judge)
            above, below = above + e[:, None] * v, below + e
        for place in UNKNOWN:
            for token, weight in ((3, 0.5), (80, 0.3), (7, 0.2)):
                e, v = brute(case, place, token, judge)
                above, below = above + weight * e[:, None] * v, below + weight * e
        expected = (above / below[:, None]).flatten()
        assert float((found[row] - expected).norm()) <= 1e-4 * float(expected.norm())


@pytest.mark.parametrize("kind", KINDS)
def test_a_few_rounds_find_the_hidden_tokens_among_all(kind: str) -> None:
    case = case_of(kind)
    for _ in range(8):
        case.columns.round(case.returned)
    assert case.columns.best().tolist() == [PROMPT[place] for place in UNKNOWN]
    for listed, weights, ranked in zip(
        case.columns.lists, case.columns.weights, case.columns.ranked(5), strict=True
    ):
        assert len(set(listed.tolist())) == len(listed)
        assert float(weights.sum()) == pytest.approx(1, abs=1e-5)
        assert len(ranked) == 5
        assert ranked[0] == listed[weights.argmax()]
