"""What descends as mixtures: tokens where it is certain, and a way to hidden tokens where not."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.families import tiny
from tests.tiny import problem_of, tiny_mixer, tiny_problem, true_ids
from tokinfo.probe.metrics import distance
from tokinfo.probe.probe import Probe
from tokinfo.solvers import adam, chapter, relaxed
from tokinfo.solvers.problem import Problem, SolverError
from tokinfo.solvers.run import run
from tokinfo.study.solvers import MOST_ENTRIES, AdamSolver, ChapterSolver, Solver

FAMILIES = ("llama", "flat", "expanded", "parallel")
PROMPTS = [[3, 1, 4, 1, 205], [9, 2, 206], [5, 3, 5, 8, 209, 207]]
"""Of several lengths; the last tokens are no candidates."""
FEW = range(12)


def mixtures(family: str = "llama", **settings: Any) -> Problem:
    settings = {"prompts": PROMPTS, "mask": "1:", "candidates": FEW} | settings
    return problem_of(family, parametrisation="mixture", **settings)


def certain(problem: Problem, ids: Tensor) -> Tensor:
    """Logits that leave no doubt of these tokens, where they are candidates."""
    return 100.0 * (ids[..., None] == problem.decoder.ids)


def doubtful(problem: Problem) -> Tensor:
    return problem.start(restart=3)


# --- what it stands for -------------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("site", ["embedding", "attention.1", "mlp.2", "block.2"])
@pytest.mark.parametrize("known", ["none", "-1", "visible"])
def test_certain_tokens_are_as_far_as_the_models_own_forward_says(
    family: str, site: str, known: str
) -> None:
    problem = mixtures(family, site=site, known=known)
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(len(FEW), problem.known.shape, generator=generator)
    found = relaxed.loss(problem, certain(problem, ids))
    torch.testing.assert_close(found, problem.token_loss(problem.put(ids)), rtol=1e-4, atol=1e-4)


def test_the_truth_lies_at_the_floor() -> None:
    problem = mixtures(known="-2:")
    loss = relaxed.loss(problem, certain(problem, true_ids(PROMPTS)))
    assert bool((loss <= 10 * problem.floor).all())


@pytest.mark.parametrize("family", FAMILIES)
def test_activations_are_weighted_by_probability(family: str) -> None:
    problem = mixtures(family, site="embedding", metric="l2")
    free = doubtful(problem)
    mean = free.softmax(-1) @ problem.decoder.embedding[problem.decoder.ids]
    expected = distance(mean, problem.target, problem.layout.visible, "l2")
    torch.testing.assert_close(relaxed.loss(problem, free), expected)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("known", ["none", "-1"])
def test_the_gradient_is_that_of_finite_differences(family: str, known: str) -> None:
    problem = mixtures(family, site="block.2", mask="2:", metric="l2", known=known)
    decoder = problem.probe.decoder.double()
    problem = replace(
        problem,
        probe=Probe(decoder, problem.probe.site, dtype=torch.float64),
        decoder=replace(problem.decoder, embedding=problem.decoder.embedding.double()),
    )
    free = doubtful(problem).requires_grad_(True)
    (gradient,) = torch.autograd.grad(relaxed.loss(problem, free).sum(), free)
    along = torch.randn(free.shape, generator=torch.Generator().manual_seed(1)).double()
    # A Llama's norms compute in float32 in any model.
    step = 1e-2 if family == "llama" else 1e-5
    with torch.no_grad():
        ahead, behind = (relaxed.loss(problem, free + s * along) for s in (step, -step))
    slope = (gradient * along).sum((1, 2))
    torch.testing.assert_close(slope, (ahead - behind) / (2 * step), rtol=1e-2, atol=1e-4)


@pytest.mark.parametrize("family", ["llama", "flat"])
def test_nothing_depends_on_the_logits_of_a_known_token_or_behind_the_prompt(family: str) -> None:
    problem = mixtures(family, known="-2:")
    free = doubtful(problem).requires_grad_(True)
    (gradient,) = torch.autograd.grad(relaxed.loss(problem, free).sum(), free)
    place = torch.arange(free.shape[1])
    idle = problem.given | (place >= problem.layout.seen[:, None])
    assert bool(torch.isfinite(gradient).all())
    assert not gradient[idle].any()
    assert gradient[~idle].any(-1).all()


def test_tokens_are_read_off_the_logits_and_known_ones_lead() -> None:
    problem = mixtures(known="-1", candidates=[1, 5, 7, 9])
    free = doubtful(problem)
    lists = problem.decode(free, 3)
    best = torch.tensor([1, 5, 7, 9])[free.argsort(-1, descending=True)[..., :3]]
    assert torch.equal(lists[~problem.given], best[~problem.given])
    assert lists[problem.given][:, 0].tolist() == [205, 206, 207]


# --- batches ------------------------------------------------------------------------------


@pytest.mark.parametrize("parametrisation", ["embedding", "vocabulary", "mixture"])
@pytest.mark.parametrize("count", [3, 20, 32])
def test_a_prompt_starts_from_the_same_point_in_any_batch(count: int, parametrisation: str) -> None:
    problem = problem_of(mask="1:", candidates=range(count), parametrisation=parametrisation)
    whole = problem.start(0)
    shorter = replace(problem, target=problem.target[:, :4]).start(0)
    assert torch.equal(whole[:, :4], shorter)
    assert not torch.equal(whole[0], whole[1])


@pytest.mark.parametrize("family", ["llama", "flat"])
@pytest.mark.parametrize("solver", [ChapterSolver(steps=20), AdamSolver(steps=20, restarts=2)])
def test_a_prompt_alone_and_in_a_batch_descend_alike(family: str, solver: Solver) -> None:
    problem = mixtures(family, known="-1")
    together = run(problem, solver, true_ids(PROMPTS))
    for row, prompt in enumerate(PROMPTS):
        alone = run(mixtures(family, known="-1", prompts=[prompt]), solver, true_ids([prompt]))
        if row == 0:  # starts differ from one number of a prompt to another
            torch.testing.assert_close(alone.loss, together.loss[:1], rtol=1e-3, atol=1e-4)
        one = run(problem.rows(torch.tensor([row])), solver, true_ids(PROMPTS)[row : row + 1])
        torch.testing.assert_close(one.loss, together.loss[row : row + 1], rtol=1e-3, atol=1e-4)


# --- what is found ------------------------------------------------------------------------


def hidden_found(problem: Problem, solver: Solver, prompts: list[list[int]]) -> float:
    found = run(problem, solver, true_ids(prompts)).top_ids[..., 0]
    return float((found == true_ids(prompts))[~problem.layout.visible].double().mean())


@pytest.mark.parametrize(
    ("family", "known", "solver"),
    [
        ("llama", "visible", AdamSolver(steps=150)),
        ("llama", "visible", ChapterSolver(steps=200, learning_rate=3)),
        ("llama", "none", AdamSolver(steps=150)),
        ("llama", "visible", AdamSolver(steps=80, window=4, restarts=2)),
        ("flat", "none", AdamSolver(steps=150)),
        ("flat", "none", ChapterSolver(steps=200, learning_rate=1)),
        ("parallel", "none", AdamSolver(steps=150)),
    ],
)
def test_mixtures_find_hidden_tokens_that_embeddings_do_not(
    family: str, known: str, solver: Solver
) -> None:
    """Half of six tokens are hidden; there are twenty candidates."""
    generator = torch.Generator().manual_seed(5)
    prompts = torch.randint(20, (3, 6), generator=generator).tolist()
    settings = {"prompts": prompts, "mask": "3:", "site": "block.2", "candidates": range(20)}
    shares = [
        hidden_found(
            problem_of(family, parametrisation=way, known=known, **settings), solver, prompts
        )
        for way in ("embedding", "mixture")
    ]
    assert shares[1] > 0.5
    assert shares[1] > shares[0] + 0.3


def test_the_first_start_of_adam_holds_all_candidates_equally_likely() -> None:
    problem = mixtures()
    normal = torch.cat([problem.start(restart) for restart in range(2)])
    free, unit = adam._place(normal, problem)
    assert unit == 1
    assert float(free[: len(PROMPTS)].abs().max()) < 0.01
    assert torch.equal(free[len(PROMPTS) :], normal[len(PROMPTS) :])
    first = chapter.solve(problem, ChapterSolver(steps=1, start_scale=0.5)).first_loss
    torch.testing.assert_close(first, relaxed.loss(problem, 0.5 * problem.start(0)))


@pytest.mark.parametrize("family", ["llama", "flat"])
@pytest.mark.parametrize("solver", [ChapterSolver(steps=5), AdamSolver(steps=5)])
def test_negative_control_right_of_all_visible_tokens_the_start_is_returned(
    family: str, solver: Solver
) -> None:
    problem = mixtures(family, mask=":2")
    found = run(problem, solver, true_ids(PROMPTS)).top_ids[:, 2:, 0]
    assert torch.equal(found, problem.decode(problem.start(0))[:, 2:, 0])
    assert len(found.unique()) > 3


def test_adam_stops_where_the_tokens_rest_and_returns_what_it_has_when_time_is_up() -> None:
    problem = mixtures("flat", known="-2:")
    early = adam.solve(problem, AdamSolver(steps=400, tolerance=0.05))
    assert int(early.steps.max()) < 400
    for kind in (AdamSolver, ChapterSolver):
        late = run(problem, kind(minutes=1e-9), true_ids(PROMPTS))
        assert late.stopped == ["minutes"] * 3
        assert late.steps.tolist() == [1] * 3
        assert bool(torch.isin(late.top_ids[~problem.given], torch.arange(len(FEW))).all())


# --- what is refused ----------------------------------------------------------------------


@pytest.mark.parametrize("solver", [ChapterSolver(steps=1), AdamSolver(steps=1)])
def test_more_entries_than_allowed_are_refused_before_anything_runs(solver: Solver) -> None:
    long = [list(range(17))]
    problem = mixtures(prompts=long, candidates=None)
    with pytest.raises(SolverError, match="restricted_to") as raised:
        run(problem, solver, true_ids(long))
    assert "4,352 entries" in str(raised.value)
    assert "\n" not in str(raised.value)


def test_a_known_token_is_one_entry() -> None:
    long = [list(range(40))]
    relaxed.check(mixtures(prompts=long, mask="15:", known="visible", candidates=None))
    with pytest.raises(SolverError, match="4,120 entries"):
        relaxed.check(mixtures(prompts=long, mask="16:", known="visible", candidates=None))


def test_a_mixer_may_have_more_entries() -> None:
    mixer = tiny_mixer(n_ctx=17)
    problem = tiny_problem(
        mixer, mixer.embed_tokens.weight, [list(range(17))], parametrisation="mixture"
    )
    relaxed.check(problem)
    assert 17 * problem.decoder.size > MOST_ENTRIES


def test_a_model_that_takes_no_mixtures_is_refused_by_name() -> None:
    model = tiny("Falcon, alibi")
    problem = tiny_problem(
        *(model.base_model, model.get_input_embeddings().weight, [[3, 1, 4]]),
        parametrisation="mixture",
        candidates=FEW,
    )
    for solve, settings in ((adam.solve, AdamSolver()), (chapter.solve, ChapterSolver())):
        with pytest.raises(SolverError, match="FalconModel: cannot be given mixtures"):
            solve(problem, settings)


def test_a_probe_without_a_causal_mask_is_refused() -> None:
    problem = mixtures()
    probe = Probe(problem.probe.decoder, problem.probe.site, causal=False)
    with pytest.raises(SolverError, match="causal: false"):
        relaxed.check(replace(problem, probe=probe))
