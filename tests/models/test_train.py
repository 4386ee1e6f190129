"""Training: it learns, repeats itself exactly, and goes on after a kill as if nothing happened."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.io.test_damaged import flip
from tokinfo.io.errors import DamagedError
from tokinfo.models import train
from tokinfo.models.train import batch_at, learning_rate, new_optimizer
from tokinfo.study.sources import Built, MixerSource, Training, TransformerSource
from tokinfo.text.tokenizer import encode_corpus, train_tokenizer

SETTINGS = Training(
    steps=12, batch=4, learning_rate=3e-3, warmup=2, evaluate_every=5, checkpoint_every=4
)
MIXER = MixerSource(form="flat", d_model=16, blocks=2, n_ctx=8, tokenizer="t", training=SETTINGS)
LLAMA = TransformerSource(d_model=16, blocks=1, heads=2, n_ctx=8, tokenizer="t", training=SETTINGS)


class Killed(Exception):
    """Stands for a kill at a chosen step."""


@pytest.fixture
def inputs(tmp_path: Path) -> tuple[Path, Path]:
    """A tokenizer of 40 words and a corpus that repeats itself."""
    from tokenizers import Tokenizer, models

    directory = tmp_path / "tokenizer"
    directory.mkdir()
    words = {f"w{i}": i for i in range(40)}
    Tokenizer(models.WordLevel(words, unk_token="w0")).save(str(directory / "tokenizer.json"))
    (directory / "tokenizer_config.json").write_text("{}")
    ids = torch.arange(2000, dtype=torch.int32) % 40
    save_file({"train": ids, "held_out": ids[:200].clone()}, tmp_path / "tokens.safetensors")
    return directory, tmp_path / "tokens.safetensors"


def run(
    source: Built, inputs: tuple[Path, Path], root: Path
) -> tuple[dict[str, torch.Tensor], list[dict[str, str]]]:
    train.train(source, *inputs, root / "out", root / "history.csv", root / "resume", "cpu")
    with (root / "history.csv").open() as stream:
        return load_file(root / "out" / "model.safetensors"), list(csv.DictReader(stream))


def killed_at_ten(
    monkeypatch: pytest.MonkeyPatch,
    source: Built,
    inputs: tuple[Path, Path],
    root: Path,
) -> None:
    """Train until the tenth step."""
    real = train.batch_at

    def batch_at(tokens: torch.Tensor, step: int, *rest: Any) -> torch.Tensor:
        if step == 10:
            raise Killed
        return real(tokens, step, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(train, "batch_at", batch_at)
        with pytest.raises(Killed):
            run(source, inputs, root)


@pytest.mark.parametrize("source", [MIXER, LLAMA], ids=["mixer", "transformer"])
def test_a_resumed_run_equals_an_uninterrupted_one_bit_for_bit(
    source: Built,
    inputs: tuple[Path, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    whole, rows = run(source, inputs, tmp_path / "whole")
    killed_at_ten(monkeypatch, source, inputs, tmp_path / "parts")
    assert not (tmp_path / "parts" / "out").exists()
    seen: list[int] = []
    real = train.batch_at
    monkeypatch.setattr(
        train,
        "batch_at",
        lambda tokens, step, *rest: (seen.append(step), real(tokens, step, *rest))[1],
    )
    parts, resumed = run(source, inputs, tmp_path / "parts")
    assert seen == [8, 9, 10, 11]
    assert whole.keys() == parts.keys()
    assert all(torch.equal(whole[name], parts[name]) for name in whole)
    for one, other in zip(rows, resumed, strict=True):
        assert {**one, "seconds": ""} == {**other, "seconds": ""}
    assert not (tmp_path / "parts" / "resume").exists()


def test_the_history_has_every_step_and_held_out_losses_where_measured(
    inputs: tuple[Path, Path], tmp_path: Path
) -> None:
    _, rows = run(MIXER, inputs, tmp_path)
    assert [int(row["step"]) for row in rows] == list(range(1, 13))
    assert [int(row["step"]) for row in rows if row["held_out_loss"]] == [5, 10, 12]
    assert int(rows[-1]["tokens"]) == 12 * 4 * 8
    assert float(rows[-1]["held_out_loss"]) < float(rows[4]["held_out_loss"])


def test_the_output_loads_with_the_auto_classes(inputs: tuple[Path, Path], tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    weights, _ = run(MIXER, inputs, tmp_path)
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert all(torch.equal(weights[name], value) for name, value in model.state_dict().items())
    assert (tmp_path / "out" / "tokenizer.json").is_file()


def test_a_resume_point_of_other_settings_is_not_used(
    inputs: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = train.new_model(MIXER, 40, 0)
    optimizer = new_optimizer(model, SETTINGS)
    progress = train.Progress(step=11)
    train.save_resume(tmp_path / "resume", model, optimizer, progress, "another run")
    _, rows = run(MIXER, inputs, tmp_path)
    assert len(rows) == 12
    assert "training starts anew" in capsys.readouterr().err


def test_a_resume_point_with_one_flipped_bit_costs_time_alone(
    inputs: tuple[Path, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    whole, _ = run(MIXER, inputs, tmp_path / "whole")
    killed_at_ten(monkeypatch, MIXER, inputs, tmp_path / "parts")
    flip(tmp_path / "parts" / "resume" / train.RESUME_FILE, -5)
    parts, _ = run(MIXER, inputs, tmp_path / "parts")
    assert (
        "resume.safetensors: damaged or cut short; training starts anew" in capsys.readouterr().err
    )
    assert all(torch.equal(whole[name], parts[name]) for name in whole)


def test_tokens_with_one_flipped_bit_are_not_trained_on(tmp_path: Path) -> None:
    for name in ("train", "held"):
        (tmp_path / name).write_text("some words of a text, and then others of it " * 99)
    train_tokenizer(tmp_path / "train", 270, tmp_path / "words")
    tokens = tmp_path / "tokens.safetensors"
    encode_corpus(tmp_path / "words", tmp_path / "train", tmp_path / "held", tokens)
    flip(tokens, -4)
    with pytest.raises(DamagedError, match=r"tokens\.safetensors: is not as it was written"):
        run(MIXER, (tmp_path / "words", tokens), tmp_path / "run")


def test_a_resume_point_of_other_code_is_not_used(
    inputs: tuple[Path, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """A schedule that changed would otherwise begin where the old one was interrupted."""
    monkeypatch.setattr(train, "code_digest", lambda _: "before")
    killed_at_ten(monkeypatch, MIXER, inputs, tmp_path)
    monkeypatch.setattr(train, "code_digest", lambda _: "after")
    _, rows = run(MIXER, inputs, tmp_path)
    assert len(rows) == 12
    assert "of other settings or other code; training starts anew" in capsys.readouterr().err


def test_a_loss_that_is_not_finite_stops_the_run(
    inputs: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        train, "next_token_loss", lambda model, _: model.lm_head.weight.sum() * float("nan")
    )
    with pytest.raises(FloatingPointError, match="the loss is nan at step 1"):
        run(MIXER, inputs, tmp_path)


def test_a_corpus_shorter_than_a_window_and_a_source_without_training_are_errors(
    inputs: tuple[Path, Path], tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match="exists untrained only"):
        run(MIXER.model_copy(update={"training": None}), inputs, tmp_path)
    with pytest.raises(ValueError, match="held_out has 200 tokens, a window needs 301"):
        run(MIXER.model_copy(update={"n_ctx": 300}), inputs, tmp_path)


def test_the_learning_rate_rises_to_the_peak_and_falls_to_the_final_share() -> None:
    settings = Training(steps=100, warmup=10, learning_rate=1.0, final_share=0.1)
    rates = [learning_rate(step, settings) for step in range(100)]
    assert rates[0] == pytest.approx(0.1)
    assert rates[9] == 1.0
    assert rates[10] == 1.0
    assert rates[-1] == pytest.approx(0.1)
    assert rates[10:] == sorted(rates[10:], reverse=True)


def test_a_batch_depends_on_seed_and_step_alone() -> None:
    tokens = torch.arange(1000)
    first = batch_at(tokens, 3, SETTINGS, 8)
    torch.manual_seed(123)
    assert torch.equal(first, batch_at(tokens, 3, SETTINGS, 8))
    assert not torch.equal(first, batch_at(tokens, 4, SETTINGS, 8))
    other = SETTINGS.model_copy(update={"seed": 1})
    assert not torch.equal(first, batch_at(tokens, 3, other, 8))


def test_only_matrices_decay() -> None:
    decayed, free = new_optimizer(train.new_model(MIXER, 40, 0), SETTINGS).param_groups
    assert all(parameter.ndim > 1 for parameter in decayed["params"])
    assert all(parameter.ndim == 1 for parameter in free["params"])
    assert free["weight_decay"] == 0


def test_resume_points_hold_no_pickle(tmp_path: Path) -> None:
    model = train.new_model(MIXER, 40, 0)
    train.save_resume(tmp_path, model, new_optimizer(model, SETTINGS), train.Progress(step=2), "d")
    (file,) = tmp_path.iterdir()
    size = int.from_bytes(file.read_bytes()[:8], "little")
    header = json.loads(file.read_bytes()[8 : 8 + size])
    assert json.loads(header["__metadata__"]["progress"])["step"] == 2
