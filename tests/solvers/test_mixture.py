"""Mixing tokens inside attention finds hidden ones, and finds none where there are none to find."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.families import tiny
from tests.tiny import VOCABULARY, tiny_llama, tiny_mixer, tiny_problem, true_ids
from tokinfo.probe.probe import Probe
from tokinfo.solvers import adam, best, mixture
from tokinfo.solvers.problem import Problem, Result, SolverError
from tokinfo.solvers.run import run
from tokinfo.study.solvers import AdamSolver, MixtureSolver

DESCENT = AdamSolver(steps=100)
BRIEF = MixtureSolver(descent=AdamSolver(steps=5))
"""Descent alone finds next to nothing by then."""


pytestmark = pytest.mark.usefixtures("batches_of_one_size")


@pytest.fixture(autouse=True)
def _few_random_prompts(monkeypatch: pytest.MonkeyPatch) -> None:
    """A tiny model needs no more; their Gram matrix is what most of the time would go to."""
    monkeypatch.setattr(best, "_PROMPTS", 512)


def drawn(count: int, length: int, seed: int = 0, below: int = VOCABULARY) -> list[list[int]]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(below, (count, length), generator=generator).tolist()


def brief(**changed: Any) -> MixtureSolver:
    return BRIEF.model_copy(update=changed)


def problem_of(prompts: list[list[int]], kind: str = "llama", **settings: Any) -> Problem:
    """A problem of a tiny model whose first block is one to one where prompts are."""
    seed = settings.pop("model_seed", 0)
    if kind == "llama":
        model = tiny_llama(d_model=64, scale=0.05, seed=seed)
        decoder, embedding = model.get_decoder(), model.get_input_embeddings().weight
    elif kind in ("flat", "expanded", "parallel"):
        decoder = tiny_mixer(kind, seed=seed)
        embedding = decoder.embed_tokens.weight
    else:
        model = tiny(kind)
        decoder, embedding = model.base_model, model.get_input_embeddings().weight
    return tiny_problem(decoder, embedding, prompts, **settings)


def found(result: Result, problem: Problem) -> list[list[int]]:
    rows = zip(result.top_ids[..., 0], problem.layout.seen.tolist(), strict=True)
    return [ids[:length].tolist() for ids, length in rows]


def hidden_right(result: Result, problem: Problem, prompts: list[list[int]]) -> int:
    visible = problem.layout.visible
    return sum(
        int(result.top_ids[row, place, 0]) == token
        for row, prompt in enumerate(prompts)
        for place, token in enumerate(prompt)
        if not visible[row, place]
    )


# --- what is found --------------------------------------------------------------------------


@pytest.mark.parametrize("site", ["block.1", "attention.1"])
@pytest.mark.parametrize(
    ("mask", "known", "length"),
    [
        ("4:", "visible", 10),  # behind a suffix that is known
        ("4:", "none", 10),  # and one that is not
        ("-1:", "visible", 6),  # from the last position alone
        ("-1:", "none", 4),
        ("2::3", "visible", 9),  # hidden ones between visible ones
    ],
)
def test_every_hidden_token_is_found_behind_the_first_block(
    mask: str, known: str, length: int, site: str
) -> None:
    prompts = drawn(2, length)
    problem = problem_of(prompts, mask=mask, known=known, site=site)
    result = mixture.solve(problem, MixtureSolver(descent=DESCENT))
    assert result.path == ["convex", "convex"]
    assert found(result, problem) == prompts
    assert bool((result.loss <= problem.floor).all())
    assert result.stopped == [None, None]
    assert bool((result.steps >= 1).all()), "descent alone would do: this test proves nothing"


@pytest.mark.parametrize("kind", ["GPT-2", "GPT-NeoX", "OPT", "Qwen2", "Qwen3"])
@pytest.mark.parametrize("site", ["block.1", "attention.1"])
def test_other_families_too(kind: str, site: str) -> None:
    prompts = drawn(2, 6, below=96)
    problem = problem_of(prompts, kind, mask="3:", known="visible", site=site)
    result = mixture.solve(problem, BRIEF)
    assert result.path == ["convex", "convex"]
    assert found(result, problem) == prompts


@pytest.mark.parametrize(
    ("mask", "known", "length", "site"),
    [
        ("2:", "visible", 7, "block.2"),  # behind a suffix that is known
        ("2:", "visible", 7, "attention.2"),
        ("2:", "none", 7, "block.2"),  # and one that is not
        ("-1:", "visible", 4, "block.2"),  # from the last position alone
        ("1::3", "visible", 8, "block.2"),  # hidden ones between visible ones
        ("3:", "0", 7, "attention.2"),  # behind a hidden token that is known
    ],
)
def test_behind_later_blocks_all_probabilities_are_annealed(
    mask: str, known: str, length: int, site: str
) -> None:
    prompts = drawn(2, length)
    problem = problem_of(prompts, mask=mask, known=known, site=site)
    settings = BRIEF if known == "visible" else MixtureSolver(descent=DESCENT)
    result = mixture.solve(problem, settings)
    assert result.path == ["annealing", "annealing"]
    assert found(result, problem) == prompts
    assert bool((result.steps >= 1).all()), "descent alone would do: this test proves nothing"


@pytest.mark.parametrize("form", ["flat", "expanded", "parallel"])
def test_a_mixer_is_descended_on_too(form: str) -> None:
    prompts = drawn(2, 7)
    problem = problem_of(prompts, form, mask="2:", known="visible", site="block.1")
    result = mixture.solve(problem, BRIEF)
    assert result.path == ["descent", "descent"]
    assert found(result, problem) == prompts
    assert bool((result.steps >= 1).all()), "descent alone would do: this test proves nothing"


@pytest.mark.parametrize("kind", ["GPT-J", "Gemma 2", "Falcon", "Mistral"])
def test_attention_that_cannot_be_taken_apart_is_descended_on(kind: str) -> None:
    prompts = drawn(1, 6, below=96)
    problem = problem_of(prompts, kind, mask="1:", known="visible", site="block.1")
    result = mixture.solve(problem, BRIEF)
    assert result.path == ["descent"]
    assert found(result, problem) == prompts


def test_a_window_shorter_than_the_prompts_is_descended_on() -> None:
    prompts = drawn(1, 7, below=96)
    for window, path in ((7, "convex"), (6, "descent")):
        model = tiny("Phi-3", sliding_window=window)
        embedding = model.get_input_embeddings().weight
        problem = tiny_problem(model.base_model, embedding, prompts, mask="1:", known="visible")
        assert mixture.solve(problem, brief(rounds=1, steps=3, shortlist=4)).path == [path]


# --- what is not ----------------------------------------------------------------------------


CONTROLS = [
    ("block.1", "visible"),
    ("block.1", "none"),
    ("attention.1", "visible"),
    ("attention.1", "none"),
    ("block.2", "visible"),
]


@pytest.mark.parametrize(("site", "known"), CONTROLS)
def test_the_targets_of_another_model_are_certified_by_nothing(site: str, known: str) -> None:
    prompts = drawn(1, 6)
    settings = {"mask": "2:", "known": known, "site": site}
    stranger = problem_of(prompts, model_seed=1, **settings)
    problem = replace(problem_of(prompts, **settings), target=stranger.target)
    result = mixture.solve(problem, brief(rounds=1, steps=5, shortlist=8))
    assert bool((result.loss > 100 * problem.floor.clamp_min(1e-4)).all())
    assert hidden_right(result, problem, prompts) == 0


@pytest.mark.parametrize(("site", "known"), CONTROLS)
def test_shuffled_targets_are_certified_by_nothing(site: str, known: str) -> None:
    prompts = drawn(1, 6)
    problem = problem_of(prompts, mask="2:", known=known, site=site)
    order = torch.tensor([0, 1, 4, 2, 5, 3])
    problem = replace(problem, target=problem.target[:, order])
    result = mixture.solve(problem, brief(rounds=1, steps=5, shortlist=8))
    assert bool((result.loss > 100 * problem.floor.clamp_min(1e-4)).all())
    assert hidden_right(result, problem, prompts) == 0


@pytest.mark.parametrize("kind", ["llama", "flat"])
@pytest.mark.parametrize("site", ["block.1", "block.2"])
def test_negative_control_tokens_right_of_all_visible_ones_are_not_sought(
    site: str, kind: str
) -> None:
    prompts = drawn(4, 8)
    problem = problem_of(prompts, kind, mask=":2", known="visible", site=site)
    result = mixture.solve(problem, BRIEF)
    assert result.steps.tolist() == [0] * 4
    assert hidden_right(result, problem, prompts) <= 1  # 24 of them, by chance in 256


def test_a_model_that_takes_no_mixtures_is_refused_in_one_line_by_name() -> None:
    problem = problem_of(drawn(1, 4, below=96), "Falcon, alibi", mask="1:", site="block.1")
    with pytest.raises(SolverError, match="FalconModel: cannot be given mixtures") as raised:
        mixture.solve(problem, BRIEF)
    assert "\n" not in str(raised.value)


def test_a_probe_without_a_causal_mask_is_refused_in_one_line() -> None:
    problem = problem_of(drawn(1, 4), mask="1:", site="block.1")
    probe = Probe(problem.probe.decoder, problem.probe.site, causal=False)
    with pytest.raises(SolverError, match="causal: false") as raised:
        mixture.solve(replace(problem, probe=probe), BRIEF)
    assert "\n" not in str(raised.value)


# --- what it keeps to -----------------------------------------------------------------------


def restricted(problem: Problem, candidates: Tensor) -> Problem:
    return replace(problem, decoder=replace(problem.decoder, candidates=candidates))


@pytest.mark.parametrize(
    ("site", "known", "leading"),
    [
        ("block.1", "visible", 8192),
        ("block.1", "none", 16),
        ("attention.1", "visible", 16),
        ("block.2", "visible", 8192),
    ],
)
def test_only_candidates_are_returned_and_the_true_ones_among_them_are_found(
    site: str, known: str, leading: int
) -> None:
    prompt = [201, 41, 9, 77, 130, 9, 8]
    candidates = torch.tensor(sorted({*prompt, *range(40, 240, 5)}))
    problem = problem_of([prompt], mask="2:", known=known, site=site)
    settings = brief(leading=leading, descent=DESCENT)
    result = mixture.solve(restricted(problem, candidates), settings)
    assert found(result, problem) == [prompt]
    assert bool(torch.isin(result.top_ids, candidates).all())


@pytest.mark.parametrize("site", ["block.1", "block.2"])
@pytest.mark.parametrize("count", [1, 3, 60])
def test_without_the_true_ones_among_them_other_candidates_are_returned(
    count: int, site: str
) -> None:
    prompt = [201, 41, 9, 77, 130]
    candidates = torch.tensor([t for t in range(2, VOCABULARY, 4) if t not in prompt][:count])
    problem = problem_of([prompt], mask="2:", known="visible", site=site)
    settings = brief(rounds=1, steps=5, shortlist=8)
    result = mixture.solve(restricted(problem, candidates), settings)
    assert found(result, problem)[0][2:] == prompt[2:]
    assert bool(torch.isin(result.top_ids[:, :2], candidates).all())
    assert bool((result.loss > problem.floor).all())


@pytest.mark.parametrize("site", ["block.1", "block.2"])
@pytest.mark.parametrize("known", ["visible", "none", "-2:"])
def test_when_time_is_up_the_prompts_so_far_are_returned_and_no_other_is_searched(
    known: str, site: str
) -> None:
    prompts = drawn(2, 7)
    problem = problem_of(prompts, mask="3:", known=known, site=site)
    result = run(problem, brief(minutes=1e-9), true_ids(prompts))
    assert result.stopped == ["minutes"] * 2
    assert result.top_ids.shape == (2, 7, 5)
    ids = result.top_ids[..., 0]
    assert torch.equal(ids[problem.given], problem.known[problem.given])
    # Here it was up after a step of the descent: what that has found is judged, and that is all.
    start = run(problem, BRIEF.descent.model_copy(update={"minutes": 1e-9}), true_ids(prompts))
    assert start.steps.tolist() == [1, 1]
    assert torch.equal(ids, problem.put(start.top_ids[..., 0]))
    assert torch.equal(result.evaluations, start.evaluations + 1)
    torch.testing.assert_close(result.loss, problem.token_loss(ids), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("kind", "site"), [("llama", "block.1"), ("llama", "block.2"), ("flat", "block.1")]
)
def test_a_prompt_is_the_same_in_any_batch(kind: str, site: str) -> None:
    """Also where it is not found: the rounds are too few for that."""
    prompts = [drawn(1, length, seed=length)[0] for length in (5, 7)]
    problem = problem_of(prompts, kind, mask="3:", known="visible", site=site)
    settings = brief(rounds=1, steps=3, shortlist=4)
    whole = mixture.solve(problem, settings)
    for row in range(2):
        alone = mixture.solve(problem.rows(torch.tensor([row])), settings)
        length = len(prompts[row])
        assert torch.equal(alone.top_ids[0, :length], whole.top_ids[row, :length])
        assert torch.equal(alone.steps[0], whole.steps[row])
        torch.testing.assert_close(alone.loss[0], whole.loss[row], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("kind", "site"),
    [("llama", "block.1"), ("llama", "block.2"), ("flat", "block.1")],
)
@pytest.mark.parametrize("known", ["visible", "-2:", "0"])
def test_known_tokens_never_change_right_or_wrong(known: str, kind: str, site: str) -> None:
    right = problem_of(drawn(1, 5), kind, mask="2:", known=known, site=site)
    wrong = torch.where(right.given, (right.known + 17) % VOCABULARY, -1)
    settings = brief(rounds=1, steps=3, shortlist=4)
    for problem in (right, replace(right, known=wrong)):
        ids = mixture.solve(problem, settings).top_ids[..., 0]
        assert torch.equal(ids[problem.given], problem.known[problem.given])


def test_what_is_found_is_not_there_for_descent_alone() -> None:
    """The reason for all this: averaged embeddings do not show hidden tokens."""
    prompts = drawn(2, 10)
    problem = problem_of(prompts, mask="4:", known="visible", site="block.1")
    descended = adam.solve(problem, AdamSolver(steps=300, window=16))
    assert hidden_right(descended, problem, prompts) < 4
