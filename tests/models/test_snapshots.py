"""Snapshots: what one run was on its way, kept without changing where it goes."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.io.test_damaged import flip
from tokinfo.models import train
from tokinfo.models.build import new_model
from tokinfo.models.checkpoint import FACTS, load
from tokinfo.models.preparing import Cut, cut_checkpoint
from tokinfo.study.sources import Built, MixerSource, Training, TransformerSource
from tokinfo.study.study import Study
from tokinfo.text.tokenizer import train_tokenizer
from tokinfo.workflow.plan import Plan

V = 300
TRAINING = Training(
    steps=10, batch=4, learning_rate=3e-3, warmup=2, evaluate_every=5, checkpoint_every=4
)
KEEPING = TRAINING.model_copy(update={"snapshots": [0, 0.3, 0.6]})
MIXER = MixerSource(form="flat", d_model=16, blocks=2, n_ctx=8, tokenizer="t")
LLAMA = TransformerSource(d_model=16, blocks=1, heads=2, n_ctx=8, tokenizer="t")
each_family = pytest.mark.parametrize("source", [MIXER, LLAMA], ids=["mixer", "transformer"])
Weights = dict[str, torch.Tensor]


class Killed(Exception):
    """Stands for a kill at a chosen step."""


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A tokenizer, and tokens that repeat themselves."""
    root = tmp_path_factory.mktemp("inputs")
    text = "\n<|endoftext|>\n".join(f"a sentence of some {i} words and others" for i in range(99))
    (root / "text.txt").write_text(text)
    train_tokenizer(root / "text.txt", V, root / "tokenizer")
    ids = torch.arange(2000, dtype=torch.int32) % V
    save_file({"train": ids, "held_out": ids[:200].clone()}, root / "tokens.safetensors")
    return root / "tokenizer", root / "tokens.safetensors"


def run(
    source: Built,
    training: Training,
    inputs: tuple[Path, Path],
    root: Path,
) -> list[dict[str, str]]:
    changed = source.model_copy(update={"training": training})
    train.train(changed, *inputs, root / "out", root / "history.csv", root / "resume", "cpu")
    with (root / "history.csv").open() as stream:
        return [{**row, "seconds": ""} for row in csv.DictReader(stream)]


def weights(directory: Path) -> Weights:
    return load_file(directory / "model.safetensors")


def same(one: Weights, other: Weights) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@each_family
def test_snapshots_are_the_runs_weights_and_leave_the_run_as_it_was(
    source: Built,
    inputs: tuple[Path, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    plain = run(source, TRAINING, inputs, tmp_path / "plain")
    before: dict[int, Weights] = {}
    real = train.next_token_loss

    def noting(model: Any, windows: torch.Tensor) -> torch.Tensor:
        if model.training:
            state = {name: value.clone() for name, value in model.named_parameters()}
            before[len(before)] = state
        return real(model, windows)

    monkeypatch.setattr(train, "next_token_loss", noting)
    kept = run(source, KEEPING, inputs, tmp_path / "kept")
    assert same(weights(tmp_path / "plain" / "out"), weights(tmp_path / "kept" / "out"))
    for one, other in zip(plain, kept, strict=True):
        assert {**other, "held_out_loss": one["held_out_loss"] or ""} == one
    assert sorted(path.name for path in (tmp_path / "kept" / "out").glob("at-*")) == [
        *("at-0", "at-3", "at-6")
    ]
    for step in (0, 3, 6):
        assert same(weights(tmp_path / "kept" / "out" / f"at-{step}"), before[step])


@each_family
def test_before_the_first_step_a_model_is_its_untrained_twin_of_that_seed(
    source: Built, inputs: tuple[Path, Path], tmp_path: Path
) -> None:
    training = KEEPING.model_copy(update={"seed": 5})
    run(source, training, inputs, tmp_path)
    twin = dict(new_model(source, V, 5).named_parameters())
    assert same(weights(tmp_path / "out" / "at-0"), twin)


def test_a_snapshot_records_how_far_its_training_was(
    inputs: tuple[Path, Path], tmp_path: Path
) -> None:
    rows = run(MIXER, KEEPING, inputs, tmp_path)
    records = {
        name: json.loads((tmp_path / "out" / name / "training.json").read_text())
        for name in ("at-0", "at-3", "at-6", ".")
    }
    assert [facts["training_share"] for facts in records.values()] == [0, 0.3, 0.6, 1]
    assert [facts["training_tokens"] for facts in records.values()] == [0, 96, 192, 320]
    losses = {int(row["step"]): row["held_out_loss"] for row in rows}
    for name, step in (("at-3", 3), ("at-6", 6), (".", 10)):
        assert records[name]["held_out_loss"] == float(losses[step])
    assert records["."]["held_out_loss"] < records["at-0"]["held_out_loss"]


@each_family
def test_an_interrupted_run_ends_with_the_same_snapshots(
    source: Built,
    inputs: tuple[Path, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    run(source, KEEPING, inputs, tmp_path / "whole")
    real = train.batch_at
    seen: list[int] = []

    def killed_at_seven(tokens: torch.Tensor, step: int, *rest: Any) -> torch.Tensor:
        if step == 7 and 7 not in seen:
            seen.append(step)
            raise Killed
        seen.append(step)
        return real(tokens, step, *rest)

    monkeypatch.setattr(train, "batch_at", killed_at_seven)
    with pytest.raises(Killed):
        run(source, KEEPING, inputs, tmp_path / "parts")
    run(source, KEEPING, inputs, tmp_path / "parts")
    # Step 6 was taken, and its snapshot kept, before the kill and after it.
    assert seen == [*range(8), *range(4, 10)]
    for name in (".", "at-0", "at-3", "at-6"):
        one, other = (tmp_path / part / "out" / name for part in ("whole", "parts"))
        assert same(weights(one), weights(other))
        assert (one / "training.json").read_bytes() == (other / "training.json").read_bytes()


@pytest.mark.parametrize("damage", ["gone", "flipped"])
def test_a_resume_point_without_its_snapshots_is_not_used(
    damage: str,
    inputs: tuple[Path, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    run(MIXER, KEEPING, inputs, tmp_path / "whole")
    whole = weights(tmp_path / "whole" / "out" / "at-3")
    real = train.batch_at

    def killed(tokens: torch.Tensor, step: int, *rest: Any) -> torch.Tensor:
        if step == 7:
            raise Killed
        return real(tokens, step, *rest)

    monkeypatch.setattr(train, "batch_at", killed)
    with pytest.raises(Killed):
        run(MIXER, KEEPING, inputs, tmp_path)
    snapshot = tmp_path / "resume" / "snapshots" / "at-3"
    if damage == "gone":
        shutil.rmtree(snapshot)
    else:
        flip(snapshot / "model.safetensors", -1)
    monkeypatch.setattr(train, "batch_at", real)
    rows = run(MIXER, KEEPING, inputs, tmp_path)
    assert "its snapshots are gone or damaged; training starts anew" in capsys.readouterr().err
    assert len(rows) == 10
    assert same(weights(tmp_path / "out" / "at-3"), whole)


@pytest.mark.parametrize(
    ("at", "share", "place"), [(0.3, 0.3, "at-3"), (1, 1, "."), (0, 0, "at-0")]
)
def test_a_model_along_the_training_is_cut_from_its_snapshot_with_its_facts(
    inputs: tuple[Path, Path], tmp_path: Path, at: float, share: float, place: str
) -> None:
    run(MIXER, KEEPING, inputs, tmp_path)
    study = Study.model_validate(
        {
            "name": "Example",
            "sources": {"flat": MIXER.model_dump() | {"training": KEEPING.model_dump()}},
            "models": {
                "m": {"source": "flat", "at": at},
                "u": {"source": "flat", "state": "untrained"},
            },
            "prompts": {"p": ["a"]},
            "solvers": {"adam": {"kind": "adam"}},
            "grids": [
                {
                    "models": ["m"],
                    "sites": ["block.1"],
                    "masks": [":"],
                    "solvers": ["adam"],
                    "prompts": ["p"],
                }
            ],
        }
    )
    settings = Plan(study).prepare_settings("m", 1)
    cut_checkpoint(Cut.model_validate(settings), tmp_path / "out", tmp_path / "cut")
    facts = json.loads((tmp_path / "cut" / FACTS).read_text())
    assert facts["training_share"] == share
    assert facts["state"] == "trained"
    snapshot = weights(tmp_path / "out" / place)
    (table,) = (value for name, value in snapshot.items() if "embed" in name)
    assert torch.equal(load(tmp_path / "cut").embedding, table)
    twin = Cut.model_validate(Plan(study).prepare_settings("u", 1))
    cut_checkpoint(twin, inputs[0], tmp_path / "twin")
    assert "training_share" not in json.loads((tmp_path / "twin" / FACTS).read_text())
