"""What a cell hands to its solver: known special tokens, and numbers that are finite."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import tokenizers
import torch

from tests.tiny import CELL
from tokinfo.io.errors import InvalidError
from tokinfo.models.build import new_model
from tokinfo.models.checkpoint import Checkpoint, load, save_model
from tokinfo.models.preparing import prepare
from tokinfo.solvers import sweep
from tokinfo.solvers.decoding import inverse_gram
from tokinfo.solvers.pose import make_problem
from tokinfo.solvers.problem import Problem, SolverError
from tokinfo.study.cell import Cell
from tokinfo.study.solvers import MetricWeights, SweepSolver
from tokinfo.study.sources import Model, TransformerSource
from tokinfo.text.tokenizer import load_tokenizer, train_tokenizer

PROMPTS = ["some words and others", "others and some"]


def posed(
    checkpoint: Checkpoint, solver: SweepSolver | None = None, **changed: Any
) -> tuple[Problem, torch.Tensor]:
    cell = Cell.model_validate({**CELL, "model": "mine", **changed})
    gram = inverse_gram(checkpoint.embedding.nan_to_num())
    return make_problem(checkpoint, gram, cell, solver or SweepSolver(), MetricWeights(), PROMPTS)


@pytest.fixture
def checkpoint(tmp_path: Path) -> Checkpoint:
    """A Llama whose tokenizer puts a special token in front."""
    (tmp_path / "text.txt").write_text("\n".join(f"some {i} words and others" for i in range(99)))
    train_tokenizer(tmp_path / "text.txt", 300, tmp_path / "words")
    words = load_tokenizer(tmp_path / "words")
    words.post_processor = tokenizers.processors.TemplateProcessing(
        single="<|endoftext|> $A", special_tokens=[("<|endoftext|>", 0)]
    )
    source = TransformerSource(d_model=32, blocks=2, heads=4, n_ctx=12, tokenizer="t")
    save_model(new_model(source, 300, 5), tmp_path / "full")
    words.save(str(tmp_path / "full" / "tokenizer.json"))
    prepare(tmp_path / "full", Model(source="s"), 1, tmp_path / "out", facts={"source": "s"})
    return load(tmp_path / "out")


def test_special_tokens_are_known_whatever_the_cell_gives(checkpoint: Checkpoint) -> None:
    problem, truth = posed(checkpoint, mask="2:")
    assert (truth[:, 0] == 0).all()
    assert problem.given[:, 0].all()
    assert not problem.given[:, 1:].any()
    problem, _ = posed(checkpoint, mask="2:", known="visible")
    assert problem.given[:, 0].all()
    assert not problem.given[:, 1].any()


def test_the_first_swept_position_is_that_of_a_real_token(checkpoint: Checkpoint) -> None:
    settings = SweepSolver(first=1)
    problem, truth = posed(checkpoint, settings, mask="3:")
    result = sweep.solve(problem, settings, truth)
    assert [list(row) for row in result.identified or ()] == [[1], [1]]


def test_an_embedding_that_is_no_number_is_refused_by_its_token(checkpoint: Checkpoint) -> None:
    checkpoint.embedding[17, 3] = torch.nan
    with pytest.raises(InvalidError, match=r"mine.*token 17"):
        posed(checkpoint)


def test_activations_that_overflow_are_refused_by_model_site_and_precision(
    checkpoint: Checkpoint,
) -> None:
    layer: Any = checkpoint.decoder.layers[0]  # type: ignore[union-attr, index]
    layer.mlp.down_proj.weight *= 3e38
    layer.mlp.down_proj.weight *= 3e38
    with pytest.raises(InvalidError, match=r"mine.*prompt 0.*block\.1.*float32"):
        posed(checkpoint)


def test_a_candidate_whose_activations_overflow_ends_the_sweep_by_its_name(
    checkpoint: Checkpoint,
) -> None:
    problem, truth = posed(checkpoint, mask=":")
    # The sum of differences leaves float32's range.
    problem.decoder.embedding[200] = 3e38
    with pytest.raises(SolverError, match=r"token 200 at position 1"):
        sweep.solve(problem, SweepSolver(positions="all"), truth)
