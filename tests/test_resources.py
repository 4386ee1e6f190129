from __future__ import annotations

from pathlib import Path

import pytest

from tests.workflow.run import smoke
from tokinfo.resources import (
    block_parameters,
    cell_mb,
    gpu_visible,
    gpus,
    prepare_mb,
    training_mb,
    weights_mb,
)
from tokinfo.sources import MixerSource, TransformerSource
from tokinfo.study import Study


def study(**changes: object) -> Study:
    return Study.model_validate(smoke() | changes)


def test_a_gpu_is_found_by_its_device_file_unless_hidden(tmp_path: Path) -> None:
    assert not gpu_visible({}, tmp_path)
    (tmp_path / "nvidiactl").touch()
    assert not gpu_visible({}, tmp_path)
    (tmp_path / "nvidia3").touch()
    assert gpu_visible({}, tmp_path)
    assert not gpu_visible({"CUDA_VISIBLE_DEVICES": ""}, tmp_path)
    assert not gpu_visible({"CUDA_VISIBLE_DEVICES": "-1"}, tmp_path)
    assert gpu_visible({"CUDA_VISIBLE_DEVICES": "1"}, tmp_path)


@pytest.mark.parametrize(("device", "wanted"), [("cpu", 0), ("cuda", 1)])
def test_a_study_that_names_a_device_gets_it(device: str, wanted: int) -> None:
    assert gpus(study(device=device)) == wanted


@pytest.mark.parametrize("form", ["flat", "expanded", "parallel"])
def test_block_sizes_of_mixers_are_right_to_a_few_percent(form: str) -> None:
    from tokinfo.models.build import new_model

    source = MixerSource.model_validate(
        {"form": form, "d_model": 64, "blocks": 3, "n_ctx": 48, "expansion": 2, "tokenizer": "t"}
    )
    model = new_model(source, 300, 0)
    real = sum(p.numel() for p in model.base_model.parameters()) - 300 * 64
    assert 3 * block_parameters(source) == pytest.approx(real, rel=0.05)


def test_block_sizes_of_transformers_are_right_to_a_few_percent() -> None:
    from tokinfo.models.build import new_model

    source = TransformerSource(d_model=64, blocks=3, n_ctx=48, tokenizer="t")
    model = new_model(source, 300, 0)
    real = sum(p.numel() for p in model.base_model.parameters()) - 300 * 64
    assert 3 * block_parameters(source) == pytest.approx(real, rel=0.05)


def test_memory_grows_with_depth_and_attempts() -> None:
    made = study()
    assert weights_mb(made, "transformer", 1) <= weights_mb(made, "transformer")
    assert prepare_mb(made, "transformer", 1, 2) == 2 * prepare_mb(made, "transformer", 1)
    assert training_mb(made, "mixer-flat") > prepare_mb(made, "mixer-flat", 1)
    for cell in made.cells():
        assert cell_mb(made, cell, 2) >= 2 * cell_mb(made, cell) - 2
