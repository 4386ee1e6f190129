"""Exact search finds what descent does not, and the controls come out as they must."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from tests.tiny import PROMPTS, VOCABULARY, problem_of, tiny_llama, tiny_problem, true_ids
from tokinfo.solvers import adam, annealing, convex, joint, sequential, sweep
from tokinfo.solvers.batches import Batcher
from tokinfo.solvers.detect import Responses
from tokinfo.solvers.problem import Problem, Result, SolverError
from tokinfo.solvers.run import run
from tokinfo.study.solvers import (
    AdamSolver,
    JointSolver,
    NoiseSettings,
    SequentialSolver,
    SweepSolver,
)

TRUE = true_ids(PROMPTS)


@pytest.mark.parametrize("family", ["llama", "flat", "parallel"])
def test_the_true_token_is_rank_one_by_a_margin_where_neighbours_see_it(family: str) -> None:
    problem = problem_of(family, mask="1:", site="block.2")
    result = sweep.solve(problem, SweepSolver(), TRUE)
    for row, prompt in enumerate(PROMPTS):
        (found,) = result.identified[row].values()
        assert (found.rank, found.verdict, found.candidates) == (1, "identifiable", 1)
        assert found.bits_low == 8.0
        assert result.top_ids[row, 0, 0] == prompt[0]
        assert found.margin > 100 * max(found.true_residual, 1e-6)


@pytest.mark.parametrize("family", ["llama", "flat"])
def test_negative_control_positions_right_of_all_visible_ones_carry_no_bits(family: str) -> None:
    """Right-hand tokens cannot reach left-hand activations in a causal model."""
    problem = problem_of(family, mask=":2")
    result = sweep.solve(problem, SweepSolver(), TRUE)
    for row in range(len(PROMPTS)):
        for found in result.identified[row].values():
            assert found.verdict == "ambiguous"
            assert found.candidates == VOCABULARY
            assert (found.bits_low, found.bits_high) == (0.0, 0.0)
    searched = joint.solve(problem, JointSolver(descent=AdamSolver(steps=100)))
    assert bool((searched.loss <= 2 * problem.floor + 1e-3).all()), "certified all the same"


def test_wrong_model_control_gives_no_certificate() -> None:
    problem = problem_of(mask="1:", site="block.2")
    other = tiny_llama(d_model=64, seed=1)
    stranger = tiny_problem(
        other.get_decoder(),
        other.get_input_embeddings().weight,
        PROMPTS,
        mask="1:",
        site="block.2",
    )
    mixed = replace(problem, target=stranger.target)
    result = joint.solve(mixed, JointSolver(descent=AdamSolver(steps=60), rounds=3))
    assert bool((result.loss > 100 * problem.floor.clamp_min(1e-4)).all())


def test_shuffled_target_control_does_not_give_back_the_prompt() -> None:
    problem = problem_of(mask="1:", site="block.2", prompts=PROMPTS[:1])
    order = torch.tensor([0, 3, 1, 4, 2])
    shuffled = replace(problem, target=problem.target[:, order])
    result = joint.solve(shuffled, JointSolver(descent=AdamSolver(steps=60), rounds=3))
    assert float(result.loss) > 100 * max(float(problem.floor), 1e-4)
    assert result.top_ids[0, 1:, 0].tolist() != PROMPTS[0][1:]


@pytest.mark.parametrize("family", ["llama", "flat", "expanded"])
def test_joint_certifies_a_hidden_token_that_descent_misses(family: str) -> None:
    problem = problem_of(family, mask="1:", site="block.1")
    descended = adam.solve(problem, AdamSolver(steps=100))
    result = run(problem, JointSolver(descent=AdamSolver(steps=100)), TRUE)
    for row, prompt in enumerate(PROMPTS):
        assert result.top_ids[row, : len(prompt), 0].tolist() == prompt
        assert float(result.loss[row]) <= 2 * float(problem.floor[row]) + 1e-3
        assert result.identified[row][0].verdict == "identifiable"
    missed = [int(descended.top_ids[row, 0, 0]) != prompt[0] for row, prompt in enumerate(PROMPTS)]
    if family != "flat":
        assert any(missed), "the descent alone would do: this test proves nothing"


@pytest.mark.parametrize(
    ("site", "mixtures", "path"),
    [
        ("block.1", True, "convex"),
        ("block.1", False, "moves"),
        ("block.2", True, "annealing"),
        ("block.2", False, "moves"),
    ],
)
def test_joint_finds_three_hidden_tokens_and_says_how(site: str, mixtures: bool, path: str) -> None:
    problem = problem_of(mask="3:", site=site, prompts=[[3, 1, 4, 1, 5, 9, 2, 6]])
    settings = JointSolver(descent=AdamSolver(steps=150), mixtures=mixtures)
    result = joint.solve(problem, settings)
    assert result.top_ids[0, :, 0].tolist() == [3, 1, 4, 1, 5, 9, 2, 6]
    assert result.path == [path]


def test_one_hidden_token_behind_a_later_block_is_left_to_detection(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    sought: list[list[int]] = []
    monkeypatch.setattr(annealing, "search", lambda best, *_: sought.append(best.unknown))
    monkeypatch.setattr(joint._Search, "_swapped", lambda _: False)
    monkeypatch.setattr(joint._Search, "_extended", lambda *_: False)
    settings = JointSolver(descent=AdamSolver(steps=5), restarts=1, detections=0)
    for mask in ("1:", "2:"):
        joint.solve(problem_of(mask=mask, site="block.2", prompts=[[3, 1, 4, 1]]), settings)
    assert sought == [[0, 1]]


def test_moves_go_on_from_the_prompt_that_mixtures_came_to(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    prompt = [3, 1, 4, 1, 5]
    problem = problem_of(mask="2:", site="block.1", prompts=[prompt])
    came_to = torch.tensor([3, 77, 4, 1, 5])
    swapped: list[list[int]] = []
    swap = joint._Search._swapped

    def watched(self: joint._Search) -> bool:
        swapped.append(self.ids.tolist())
        return swap(self)

    monkeypatch.setattr(convex, "search", lambda best, _: best.keep(came_to))
    monkeypatch.setattr(joint._Search, "_swapped", watched)
    settings = JointSolver(descent=AdamSolver(steps=100), sweep_found=False)
    result = joint.solve(problem, settings)
    assert swapped[0] == came_to.tolist()
    assert result.top_ids[0, :, 0].tolist() == prompt
    assert result.path == ["moves"]


def test_every_start_draws_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    """The detection of a second start with the first one's draws would fail as the first did."""
    seeds: list[int] = []
    monkeypatch.setattr(joint._Search, "run", lambda self: seeds.append(self.problem.seed))
    problem = problem_of(mask="3:", site="block.1", prompts=PROMPTS[:1])
    joint.solve(problem, JointSolver(restarts=3, descent=AdamSolver(steps=1), sweep_found=False))
    assert len(set(seeds)) == 3


def test_another_start_is_made_for_prompts_without_a_certificate_only(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    descended: list[list[int]] = []
    solve, search = adam.solve, joint._Search.run

    def counted(problem: Problem, settings: AdamSolver) -> Result:
        descended.append(problem.numbers.tolist())
        return solve(problem, settings)

    def lost(self: joint._Search) -> None:
        """Search as ever, but for the second prompt, which no start finds."""
        if int(self.problem.numbers) != 1:
            search(self)

    monkeypatch.setattr(joint.adam, "solve", counted)
    monkeypatch.setattr(joint._Search, "run", lost)
    problem = problem_of("flat", mask="1:", site="block.1")
    result = joint.solve(problem, JointSolver(restarts=3, descent=AdamSolver(steps=60)))
    assert descended == [list(range(len(PROMPTS))), [1], [1]]
    for row, prompt in enumerate(PROMPTS):
        whole = result.top_ids[row, : len(prompt), 0].tolist() == prompt
        assert whole == (row != 1)
    assert int(result.evaluations[1]) > 0


def test_the_whole_vocabulary_is_tried_once_around_what_the_leading_tokens_came_to(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """These would bring the prompt a little nearer each time, and never there."""
    detected: list[int] = []
    around: list[list[int]] = []
    came_to: list[list[int]] = []
    detect = joint._Search._detect

    def watched(
        self: joint._Search, ids: torch.Tensor, vocabulary: torch.Tensor, near: int | None
    ) -> torch.Tensor:
        detected.append(len(vocabulary))
        around.append(ids.tolist())
        found = detect(self, ids, vocabulary, near)
        came_to.append(found.tolist())
        return found

    monkeypatch.setattr(joint._Search, "_detect", watched)
    monkeypatch.setattr(joint._Search, "_swapped", lambda self: False)
    prompt = [200, 1, 4, 1, 5]
    problem = problem_of(mask="1:", site="block.1", prompts=[prompt])
    settings = JointSolver(
        leading=32, descent=AdamSolver(steps=100), mixtures=False, sweep_found=False
    )
    result = joint.solve(problem, settings)
    assert result.top_ids[0, :, 0].tolist() == prompt
    assert detected == [32, VOCABULARY]
    assert around[1] == came_to[0]
    assert around[0] != around[1]


def test_the_stages_of_detection_come_in_the_order_of_their_cost(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    stages: list[tuple[int, int | None, int]] = []

    def lost(
        self: joint._Search, ids: torch.Tensor, vocabulary: torch.Tensor, near: int | None
    ) -> torch.Tensor:
        stages.append((len(vocabulary), near, int(ids[0])))
        return torch.full_like(ids, 100 + len(stages))

    monkeypatch.setattr(joint, "enough", lambda problem: 1)
    monkeypatch.setattr(joint._Search, "_detect", lost)
    search = search_of(problem_of(mask="1:", site="block.2", prompts=[[200, 1, 4]]), [9, 8, 7])
    search.settings = JointSolver(leading=32, rounds=1)
    search._swapped = search._extended = lambda *_: False  # type: ignore[method-assign]
    search.run()
    assert [stage[:2] for stage in stages] == [
        *((32, 1), (32, None)),
        *((VOCABULARY, 1), (VOCABULARY, None)),
    ]
    assert [stage[2] for stage in stages[2:]] == [101, 102], "around what the leading ones came to"


def test_a_rare_token_is_found_behind_right_ones_by_its_own_positions_vocabulary_alone() -> None:
    prompt = [3, 20, 200, 1, 4, 1, 5]
    problem = problem_of(mask="3:", site="block.1", prompts=[prompt])
    search = search_of(problem, [100, 101, 102, 1, 4, 1, 5])
    behind = torch.tensor([3, 20, 31, 1, 4, 1, 5])
    spent = search.evaluations
    assert search._detect(behind, problem.decoder.ids, 2).tolist() == prompt
    assert search.certified
    # And the likeliest ones there as prompts, and what is visible as it is.
    assert search.evaluations - spent <= VOCABULARY + search.settings.screen + len(prompt)


def search_of(problem: Problem, ids: list[int]) -> joint._Search:
    """Return a search that holds these tokens."""
    lists = torch.tensor(ids)[:, None]
    return joint._Search(problem, JointSolver(), Batcher(), 0, lists)


@pytest.mark.parametrize("family", ["llama", "flat"])
def test_visible_tokens_behind_matching_ones_are_mended_from_left_to_right(family: str) -> None:
    prompt = [200, 3, 1, 4, 1, 5, 9, 2]
    problem = problem_of(family, mask="2:", site="block.2", prompts=[prompt])
    search = search_of(problem, [200, 3, 1, 77, 1, 88, 99, 2])
    assert search._extended(search.ids)
    assert search.ids.tolist() == prompt
    # Three tokens of the whole vocabulary at most, and every position once as it is.
    assert search.evaluations <= 3 * VOCABULARY + 3 * 1 + len(prompt) + 2


@pytest.mark.parametrize("family", ["llama", "flat"])
def test_nothing_is_mended_behind_a_wrong_hidden_token(family: str) -> None:
    """Its activations would not tell: what is there depends on the hidden token too."""
    prompt = [200, 3, 1, 4, 1, 5, 9, 2]
    problem = problem_of(family, mask="1:", site="block.2", prompts=[prompt])
    wrong = [100, 3, 1, 77, 1, 88, 99, 2]
    search = search_of(problem, wrong)
    spent = search.evaluations
    assert not search._extended(search.ids)
    assert search.ids.tolist() == wrong
    assert search.evaluations - spent == 2, "its first visible position, and the prompt as a whole"


def test_a_right_prompt_is_known_by_its_nearest_positions_though_others_are_wrong() -> None:
    """Wrong visible tokens at the far end must not hide that the hidden ones are found."""
    prompt = [200, 3, 1, 4, 1, 5, 9, 2]
    problem = problem_of(mask="1:", site="block.2", prompts=[prompt])
    search = search_of(problem, [100, 3, 1, 4, 1, 5, 88, 99])
    every = problem.decoder.ids
    candidates = dict.fromkeys([0, 1], every)
    responses = Responses(problem, search.ids, candidates, 1, Batcher(), search.drawn)
    prompts, _ = next(search._proposed(responses, [0, 1]))
    away, likeliest = search._distances(prompts, 2).min(0)
    assert float(away) <= 2 * float(problem.floor)
    assert prompts[likeliest].tolist() == [200, 3, 1, 4, 1, 5, 88, 99]
    assert search._extended(prompts[likeliest])
    assert search.ids.tolist() == prompt


def test_a_visible_token_that_is_certain_stays_where_a_wrong_one_is_nearer() -> None:
    """Wrong hidden tokens can make it so; the next detection must not be made behind it again."""
    problem = problem_of(mask="1:", site="block.2", prompts=[[200, 3, 1, 4]])
    search = search_of(problem, [100, 77, 1, 4])
    nearer, further = torch.tensor([[200, 77, 1, 4]]), torch.tensor([[100, 3, 1, 4]])
    if float(search._distances(nearer)) > float(search._distances(further)):
        nearer, further = further, nearer
    token = further[0, 1]
    search._proposed = lambda *_: iter([(nearer, {}), (further, {1: token})])
    search._swapped = search._extended = lambda *_: False
    found = search._detect(search.ids, problem.decoder.ids, None)
    assert found.tolist() == [nearer[0, 0], token, 1, 4]


@pytest.mark.parametrize("family", ["flat", "expanded", "parallel"])
def test_swaps_alone_find_hidden_tokens_of_a_mixer(family: str) -> None:
    """The cheap move comes first: no position is put through the vocabulary."""
    problem = problem_of(family, mask="3:", site="block.1", prompts=[[3, 1, 4, 1, 5, 9, 2, 6]])
    descent = AdamSolver(steps=100)
    found = joint.solve(problem, JointSolver(descent=descent, sweep_found=False))
    assert found.top_ids[0, :, 0].tolist() == [3, 1, 4, 1, 5, 9, 2, 6]
    spent = found.evaluations - adam.solve(problem, descent).evaluations
    assert int(spent) < 3 * VOCABULARY


@pytest.mark.parametrize("family", ["llama", "flat", "expanded", "parallel"])
@pytest.mark.parametrize("site", ["block.1", "block.2"])
def test_sequential_is_exact_and_cheaper_than_a_sweep(family: str, site: str) -> None:
    problem = problem_of(family, site=site)
    result = sequential.solve(problem, SequentialSolver())
    for row, prompt in enumerate(PROMPTS):
        assert result.top_ids[row, : len(prompt), 0].tolist() == prompt
        assert int(result.evaluations[row]) < VOCABULARY * len(prompt)


def test_sequential_falls_back_on_the_whole_vocabulary() -> None:
    problem = problem_of(site="block.2")
    result = sequential.solve(problem, SequentialSolver(steps=1, check_every=1, attempts=1))
    for row, prompt in enumerate(PROMPTS):
        assert result.top_ids[row, : len(prompt), 0].tolist() == prompt
    assert int(result.evaluations.sum()) >= VOCABULARY


def test_sequential_refuses_hidden_positions() -> None:
    with pytest.raises(SolverError, match="every position visible"):
        sequential.solve(problem_of(mask="1:"), SequentialSolver())


@pytest.mark.parametrize("family", ["llama", "flat"])
def test_the_noise_threshold_is_where_a_brute_force_search_loses_the_token(family: str) -> None:
    problem = problem_of(family, mask="1:", metric="l2", prompts=PROMPTS[:1])
    settings = NoiseSettings(draws=1, levels=25)
    true = true_ids(PROMPTS[:1])
    (found,) = sweep.solve(problem, SweepSolver(noise=settings), true).identified[0].values()
    embedding, target = problem.decoder.embedding, problem.target
    ids = true.repeat(VOCABULARY, 1)
    ids[:, 0] = torch.arange(VOCABULARY)
    every = problem.probe(embedding[ids])[:, 1:].flatten(1)
    noise = torch.randn(target[0].shape, generator=torch.Generator().manual_seed(0))
    # In units of each position's own activations.
    noise = (noise * target[0].square().mean(1, keepdim=True).sqrt())[1:].flatten()
    threshold = float("inf")
    for level in torch.logspace(-4, 2, 25).tolist():
        noisy = target[0, 1:].flatten() + level * noise
        if int((every - noisy).norm(dim=1).argmin()) != PROMPTS[0][0]:
            threshold = level
            break
    assert found.noise_threshold == pytest.approx(threshold, rel=1e-5)


def test_a_token_that_nothing_shows_has_no_noise_to_lose() -> None:
    problem = problem_of(mask=":2", prompts=PROMPTS[:1])
    settings = SweepSolver(noise=NoiseSettings(draws=1, levels=3))
    result = sweep.solve(problem, settings, true_ids(PROMPTS[:1]))
    assert [found.noise_threshold for found in result.identified[0].values()] == [0.0] * 3
