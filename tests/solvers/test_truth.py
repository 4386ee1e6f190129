"""A search does not see the truth: what it receives does not hold it, and nothing depends on it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from importlib import import_module
from types import ModuleType
from typing import Any, get_args

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor

from tests import tiny
from tests.tiny import VOCABULARY, tiny_llama, true_ids
from tokinfo.cell import make_rows
from tokinfo.models.checkpoint import Checkpoint, Facts
from tokinfo.solvers import annealing, best, joint
from tokinfo.solvers.decoding import inverse_gram
from tokinfo.solvers.pose import activations, make_problem
from tokinfo.solvers.problem import Problem, Result
from tokinfo.solvers.run import run
from tokinfo.study.cell import Cell, CellSettings
from tokinfo.study.solvers import (
    MIXING,
    SWEEPING,
    AdamSolver,
    ChapterSolver,
    DecodeSettings,
    JointSolver,
    MetricWeights,
    MixtureSolver,
    NoiseSettings,
    SequentialSolver,
    Solver,
    SweepSolver,
)

PROMPTS = [[3, 1, 4, 1, 5], [9, 2, 6], [5, 3, 5, 8, 9, 7]]
TRUE = true_ids(PROMPTS)
SCRAMBLED = (TRUE + torch.arange(1, 1 + TRUE.numel()).view_as(TRUE)) % VOCABULARY
DESCENT = AdamSolver(steps=40, window=8)
BRIEF = {"descent": DESCENT, "rounds": 1, "restarts": 1, "detections": 1, "detection_rounds": 2}


pytestmark = pytest.mark.usefixtures("batches_of_one_size")


@pytest.fixture(autouse=True)
def _few_random_prompts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Their Gram matrix is what most of a mixture's time would go to."""
    monkeypatch.setattr(best, "_PROMPTS", 128)
    monkeypatch.setattr(annealing, "_TIMES", 1)
    monkeypatch.setattr(joint, "MixtureSolver", partial(MixtureSolver, rounds=1, steps=5))


# --- what a search receives -----------------------------------------------------------------


def reachable(thing: object) -> Iterator[object]:
    """Yield an object and all that can be reached from it, but for modules and classes."""
    left, met = [thing], {}
    while left:
        one = left.pop()
        if id(one) in met or isinstance(one, ModuleType | type):
            continue
        met[id(one)] = one  # kept, so that no other object gets its id
        yield one
        if isinstance(one, dict):
            left += [*one, *one.values()]
        elif isinstance(one, list | tuple | set | frozenset):
            left += one
        if isinstance(one, Tensor):
            left.append(one._base)  # what a view was cut from
        left += getattr(one, "__dict__", {}).values()
        left += [cell.cell_contents for cell in getattr(one, "__closure__", None) or ()]
        left += [getattr(one, name, None) for name in ("__self__", "__func__", "__defaults__")]


def holds(thing: object, prompt: list[int], embedding: Tensor) -> bool:
    """Whether a prompt can be reached, as token ids in a row or as their embeddings."""
    ids, embedded = torch.tensor(prompt)[:, None], embedding[prompt]
    for one in reachable(thing):
        if isinstance(one, list | tuple) and one and all(isinstance(x, int) for x in one):
            one = torch.tensor(one)
        if not isinstance(one, Tensor):
            continue
        wanted = embedded if one.is_floating_point() else ids
        width = wanted.shape[1]
        if one.numel() < wanted.numel() or one.numel() % width:
            continue
        if one.is_floating_point() and one.shape[-1] != width:
            continue
        windows = one.reshape(-1, width).unfold(0, len(prompt), 1)
        if bool((windows == wanted.T).all((1, 2)).any()):
            return True
    return False


def checkpoint(seed: int = 0) -> Checkpoint:
    """A tiny model whose tokens are the words w0 to w255."""
    words = Tokenizer(models.WordLevel({f"w{i}": i for i in range(VOCABULARY)}, unk_token="w0"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    llama = tiny_llama(scale=0.2, seed=seed)
    facts = Facts(
        family="llama",
        state="untrained",
        seed=seed,
        quantization="float32",
        dtype="float32",
        outlier_threshold=None,
        unquantised=(),
        blocks_kept=2,
        depth=2,
        n_ctx=8,
        vocabulary=VOCABULARY,
        d_model=32,
        pad_id=0,
        digest="",
    )
    embedding = llama.get_input_embeddings().weight
    return Checkpoint(llama.get_decoder(), embedding, words, facts.pad_id, facts)


TEXTS = [" ".join(f"w{token}" for token in prompt) for prompt in PROMPTS]


def cell_of(**changed: Any) -> Cell:
    fields = {"model": "llama", "site": "block.1", "residual": True, "causal": True}
    fields |= {"padding": "none", "mask": "1:", "metric": "l1", "solver": "mine", "seed": 0}
    fields |= {"parametrisation": "embedding", "prompts": "few"}
    return Cell.model_validate(fields | changed)


def posed(solver: Solver, **changed: Any) -> tuple[Problem, Tensor]:
    """The problem of a cell, and the truth, as a cell's job makes them."""
    model, cell = checkpoint(), cell_of(**changed)
    other = activations(checkpoint(seed=1), cell, TEXTS) if "of:" in cell.target else None
    prior = torch.full((VOCABULARY,), 1 / VOCABULARY, dtype=torch.float64)
    gram = inverse_gram(model.embedding)
    return make_problem(model, gram, cell, solver, MetricWeights(), TEXTS, other=other, prior=prior)


SEARCHES: dict[str, Solver] = {
    "chapter": ChapterSolver(steps=5),
    "adam": AdamSolver(steps=5, restarts=2, window=4),
    "sequential": SequentialSolver(steps=1, check_every=1, attempts=1, guesses=0),
    "joint": JointSolver(restarts=1, rounds=1, detections=0, descent=AdamSolver(steps=5)),
    "mixture": MixtureSolver(rounds=1, steps=1, shortlist=5, descent=AdamSolver(steps=5)),
}


@pytest.mark.parametrize(
    ("kind", "changed"),
    [
        (kind, changed if kind != "sequential" else changed | {"mask": ":"})
        for kind in SEARCHES
        for changed in (
            {},
            {"padding": "n_ctx"},
            {"target": "shuffled"},
            {"target": "of:other"},
            {"known": "1:"},
            {"known": "1:", "padding": "n_ctx"},
            *([{"site": "embedding"}] if kind != "sequential" else []),
            *(
                [{"parametrisation": "mixture"}, {"parametrisation": "mixture", "known": "1:"}]
                if kind in MIXING
                else []
            ),
        )
    ],
    ids=lambda value: value if isinstance(value, str) else "-".join(value.values()),
)
def test_nothing_that_a_search_receives_holds_a_prompt(
    kind: str, changed: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = SEARCHES[kind]
    if "parametrisation" in changed:
        few = DecodeSettings(restricted_to=" ".join(f"w{token}" for token in range(10)))
        settings = settings.model_copy(update={"decode": few})
    problem, truth = posed(settings, **changed)
    solver = import_module(f"tokinfo.solvers.{kind}")
    given: list[object] = []

    def solve(*arguments: object, **named: object) -> Result:
        given.append((arguments, named))
        return search(*arguments, **named)

    search = solver.solve
    monkeypatch.setattr(solver, "solve", solve)
    run(problem, settings, truth)
    assert len(given) == 1
    for prompt in PROMPTS:
        assert not holds(given, prompt, problem.decoder.embedding)
        assert holds((given, truth), prompt, problem.decoder.embedding)
    hidden = ~problem.layout.visible
    assert not problem.target[hidden].any()
    for prompt in PROMPTS if "known" in changed else ():
        assert holds(given, prompt[1:], problem.decoder.embedding)


@pytest.mark.parametrize("padding", ["none", "n_ctx"])
@pytest.mark.parametrize(
    ("known", "places"),
    [
        ("none", [[], [], []]),
        ("visible", [[2, 3, 4], [2], [2, 3, 4, 5]]),
        ("3:", [[3, 4], [], [3, 4, 5]]),
        ("-1", [[4], [2], [5]]),
    ],
)
def test_the_known_tokens_of_a_problem_are_those_of_the_known_positions_and_of_no_other(
    known: str, places: list[list[int]], padding: str
) -> None:
    problem, truth = posed(ChapterSolver(), mask="2:", known=known, padding=padding)
    given = torch.zeros_like(problem.layout.visible)
    for row, positions in enumerate(places):
        given[row, positions] = True
    assert torch.equal(problem.given, given)
    assert torch.equal(problem.known, torch.where(given, truth, -1))


def test_what_is_tucked_away_is_reached() -> None:
    """The test above can fail."""
    problem, _ = posed(ChapterSolver())
    embedding, truth = problem.decoder.embedding, TRUE.clone()

    def kept() -> Tensor:
        return truth

    for place in (truth[:, :0], [PROMPTS], {"few": (truth,)}, kept, embedding[truth]):
        problem.probe.cache = place  # type: ignore[attr-defined]
        assert all(holds(problem, prompt, embedding) for prompt in PROMPTS)
    del problem.probe.cache  # type: ignore[attr-defined]
    assert not any(holds(problem, prompt, embedding) for prompt in PROMPTS)
    # The first block's input itself: with what is hidden left in, the target holds the tokens.
    problem, _ = posed(ChapterSolver(), site="embedding")
    model = checkpoint()
    leaking = replace(problem, target=activations(model, cell_of(site="embedding"), TEXTS)[1])
    assert all(holds(leaking, prompt, embedding) for prompt in PROMPTS)


# --- what a search returns ------------------------------------------------------------------


def problem_of(family: str, **settings: Any) -> Problem:
    if settings.get("parametrisation") == "mixture":
        settings["candidates"] = range(12)
    return tiny.problem_of(family, llama={"scale": 0.2}, prompts=PROMPTS, **settings)


def judged(result: Result) -> list[tuple[int, int, int, float]]:
    return [
        (row, position, found.rank, found.margin)
        for row, swept in enumerate(result.identified or [])
        for position, found in swept.items()
    ]


@pytest.mark.parametrize("family", ["llama", "flat"])
@pytest.mark.parametrize(
    ("solver", "settings"),
    [
        (ChapterSolver(steps=20), {"mask": "1:"}),
        (ChapterSolver(steps=20), {"mask": "1:", "parametrisation": "vocabulary"}),
        (AdamSolver(steps=40, restarts=2, window=8), {"mask": "1:"}),
        (AdamSolver(steps=40, window=4), {"mask": ":2", "parametrisation": "vocabulary"}),
        (ChapterSolver(steps=20), {"mask": "1:", "parametrisation": "mixture"}),
        (
            AdamSolver(steps=40, restarts=2, window=4),
            {"mask": "2:", "parametrisation": "mixture", "known": "-1"},
        ),
        (
            AdamSolver(steps=40, nearest_penalty=0.01, clamp=True, second_moment="row"),
            {"mask": "2:", "metric": "l2"},
        ),
        (AdamSolver(steps=40, project="nearest", window=4), {"mask": "1:", "metric": "cosine"}),
        (SequentialSolver(), {"site": "block.2"}),
        (SequentialSolver(steps=1, check_every=1, attempts=1, expected=0, guesses=64), {}),
        (JointSolver(descent=DESCENT, rounds=2), {"mask": "1:"}),
        (JointSolver(**BRIEF), {"mask": "2:", "metric": "l2"}),
        (
            JointSolver(**BRIEF | {"restarts": 2, "leading": 64, "sweep_found": False}),
            {"mask": "2:", "site": "block.2"},
        ),
        (ChapterSolver(steps=20), {"mask": "1:", "known": "-2:"}),
        (AdamSolver(steps=40, project="nearest", window=4), {"mask": "1:", "known": "-2:"}),
        (SequentialSolver(), {"site": "block.2", "known": "1"}),
        (JointSolver(**BRIEF), {"mask": "2:", "known": "-1"}),
        (MixtureSolver(descent=DESCENT, rounds=2, steps=3, shortlist=8), {"mask": "1:"}),
        (MixtureSolver(descent=DESCENT, rounds=1, steps=3), {"mask": "2:", "site": "attention.1"}),
        (
            MixtureSolver(descent=DESCENT, rounds=1, steps=3, shortlist=4),
            {"mask": "2:", "site": "block.2", "known": "-1"},
        ),
    ],
    ids=lambda value: value.kind if hasattr(value, "kind") else "-".join(value.values()),
)
def test_with_the_truth_scrambled_a_search_returns_the_same(
    solver: Solver, settings: dict[str, Any], family: str
) -> None:
    problem = problem_of(family, **settings)
    found, again = run(problem, solver, TRUE), run(problem, solver, SCRAMBLED)
    for name in ("top_ids", "loss", "first_loss", "steps", "restart", "evaluations"):
        torch.testing.assert_close(getattr(found, name), getattr(again, name), rtol=0, atol=0)
    for name in ("curve", "curve_steps", "path", "stopped"):
        assert getattr(found, name) == getattr(again, name)
    assert (found.identified is not None) == getattr(solver, "sweep_found", False)
    if found.identified is not None:
        assert judged(found) != judged(again), "what was found is judged by the truth"


@pytest.mark.parametrize("positions", ["hidden", "all"])
def test_with_the_truth_scrambled_a_sweep_says_something_else(positions: str) -> None:
    problem = problem_of("llama", mask="1:")
    settings = SweepSolver(positions=positions, noise=NoiseSettings(draws=1, levels=3))
    found, again = run(problem, settings, TRUE), run(problem, settings, SCRAMBLED)
    assert {rank for _, _, rank, _ in judged(found)} == {1}
    assert {rank for _, _, rank, _ in judged(again)} != {1}
    assert not torch.equal(found.top_ids, again.top_ids)
    # It searches no prompt, so there is no distance of one.
    assert found.loss.isnan().all()


def test_every_kind_is_either_tried_above_or_no_search() -> None:
    kinds = {one.model_fields["kind"].default for one in get_args(get_args(Solver)[0])}
    assert {*SEARCHES, "sweep"} == kinds
    assert {*SWEEPING} <= kinds


def test_with_the_truth_scrambled_a_cells_rows_hold_the_same_tokens() -> None:
    solver = JointSolver(restarts=1, rounds=2, descent=DESCENT)
    problem, truth = posed(solver)
    settings = CellSettings(
        cell=cell_of(),
        solver=solver,
        prompts=tuple(TEXTS),
        source="llama",
        state="untrained",
        quantization="float32",
    )
    rows = {}
    for name, ids in (("true", truth), ("scrambled", SCRAMBLED)):
        result = run(problem, solver, ids)
        rows[name] = make_rows(settings, checkpoint(), problem, ids, result)
    same = ("found_id", "top5_ids", "loss", "found_loss", "noise_floor", "steps", "evaluations")
    for before, after in zip(rows["true"], rows["scrambled"], strict=True):
        assert [before[name] for name in same] == [after[name] for name in same]
        assert before["true_id"] != after["true_id"]
    assert any(row["correct"] for row in rows["true"])
    assert not any(row["correct"] for row in rows["scrambled"])
