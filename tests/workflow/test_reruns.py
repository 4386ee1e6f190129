"""A change in a study reruns the jobs that it touches: all of them, and no other."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.workflow.expected import (
    AGGREGATE,
    ALL_SOURCES,
    PAGES,
    TRAINED_FLAT,
    cells,
    checkpoints,
    checks,
)
from tests.workflow.run import pending, smoke
from tokinfo.study.cell import Cell
from tokinfo.study.study import Study

Change = Callable[[dict[str, Any]], None]


def test_a_finished_run_has_nothing_left_to_do(finished: Path) -> None:
    assert pending(finished, smoke()) == set()


# --- changes that touch nothing -----------------------------------------------------------


def _reorder(study: dict[str, Any]) -> None:
    study["models"] = dict(reversed(study["models"].items()))
    study["sources"] = dict(reversed(study["sources"].items()))
    study["grids"].reverse()
    for grid in study["grids"]:
        grid["models"].reverse()
        grid["masks"].reverse()


def _unused(study: dict[str, Any]) -> None:
    study["solvers"]["other"] = {"kind": "adam", "steps": 7}
    study["prompts"]["other"] = ["Nobody asks."]
    study["models"]["other"] = {"source": "transformer", "state": "untrained", "seed": 5}
    study["metric_weights"] = {"l1": 3.0}


@pytest.mark.parametrize(
    "change",
    [
        pytest.param(_reorder, id="models, sources, grids and masks reordered"),
        pytest.param(lambda study: study.update(threads=2), id="threads"),
        pytest.param(lambda study: study.update(device="cuda"), id="device"),
        pytest.param(_unused, id="entries that no grid uses"),
    ],
)
def test_what_no_result_depends_on_reruns_nothing(finished: Path, change: Change) -> None:
    study = smoke()
    change(study)
    assert pending(finished, study) == set()


@pytest.mark.parametrize(
    "arguments", [("--resources", "gpu=0"), ("--set-threads", "invert=2"), ("--cores", "1")]
)
def test_resources_on_the_command_line_rerun_nothing(
    finished: Path, arguments: tuple[str, ...]
) -> None:
    assert pending(finished, smoke(), *arguments) == set()


def test_the_reports_words_rerun_the_pages_that_show_them(finished: Path) -> None:
    study = smoke() | {"name": "Another title"}
    assert pending(finished, study) == PAGES


# --- axes ---------------------------------------------------------------------------------


def test_a_mask_added_runs_its_cells(finished: Path) -> None:
    study = smoke()
    study["grids"][0]["masks"].append("2:")
    new = cells(study, lambda cell: cell.mask.text == "2:")
    mixers = ("mixer-flat", "mixer-expanded", "mixer-parallel")
    assert len(new) == 4
    assert pending(finished, study) == new | AGGREGATE | checks(*mixers)


def test_known_tokens_added_run_their_cells(finished: Path) -> None:
    study = smoke()
    study["grids"][1]["known"] = ["none", "visible"]
    new = cells(study, lambda cell: cell.known.text == "visible")
    assert new
    sources = {study["models"][model]["source"] for model in study["grids"][1]["models"]}
    assert pending(finished, study) == new | AGGREGATE | checks(*sources)


def test_a_mask_removed_reruns_the_aggregate_alone(finished: Path) -> None:
    study = smoke()
    study["grids"][0]["masks"].remove(":")
    mixers = ("mixer-flat", "mixer-expanded", "mixer-parallel")
    assert pending(finished, study) == AGGREGATE | checks(*mixers)


def test_a_metric_added_runs_its_cells(finished: Path) -> None:
    study = smoke()
    study["grids"][1]["metrics"].append("l2")
    new = cells(study, lambda cell: cell.metric == "l2")
    assert len(new) == 1
    assert pending(finished, study) == new | AGGREGATE


def test_weights_of_the_combined_metric_rerun_its_cells_alone(finished: Path) -> None:
    study = smoke()
    study["grids"][1]["metrics"].append("l1+cosine")
    study["metric_weights"] = {"l1": 0.5}
    new = cells(study, lambda cell: cell.metric == "l1+cosine")
    assert len(new) == 1
    assert pending(finished, study) == new | AGGREGATE


def test_a_seed_added_runs_its_cells(finished: Path) -> None:
    study = smoke()
    study["grids"][1]["seeds"] = [0, 1]
    new = cells(study, lambda cell: cell.seed == 1)
    assert len(new) == 2
    assert pending(finished, study) == new | AGGREGATE


def test_a_metric_removed_reruns_the_aggregate_alone(finished: Path) -> None:
    study = smoke()
    study["grids"][1]["metrics"].remove("cosine")
    assert pending(finished, study) == AGGREGATE


def test_a_seed_replaced_runs_the_new_ones_cells_alone(finished: Path) -> None:
    study = smoke()
    study["grids"][1]["seeds"] = [1]
    new = cells(study, lambda cell: cell.seed == 1)
    assert len(new) == 2
    assert pending(finished, study) == new | AGGREGATE


def test_a_solver_removed_from_a_grid_reruns_the_aggregate_alone(finished: Path) -> None:
    study = smoke()
    del study["grids"][5]
    assert pending(finished, study) == AGGREGATE


def test_a_deeper_site_leaves_the_models_other_cells_alone(finished: Path) -> None:
    study = smoke()
    study["grids"][3]["sites"].append("block.2")
    new = cells(study, lambda cell: cell.solver == "adam" and str(cell.site) == "block.2")
    assert len(new) == 2
    # The transformer's block 2 is there already, for the chapter's solver.
    assert pending(finished, study) == new | AGGREGATE | {"prepare transformer-int8 2"}


def test_a_deeper_site_and_another_change_run_together(finished: Path) -> None:
    study = smoke()
    study["grids"][3]["sites"].append("block.2")
    study["solvers"]["adam"]["steps"] = 41
    touched = cells(study, lambda cell: cell.solver == "adam")
    assert pending(finished, study) == touched | AGGREGATE | {"prepare transformer-int8 2"}


def test_a_model_added_runs_its_checkpoint_and_cells(finished: Path) -> None:
    study = smoke()
    study["models"]["mixer-flat-nf4"] = {"source": "mixer-flat", "quantization": "nf4"}
    study["grids"][0]["models"].append("mixer-flat-nf4")
    new = cells(study, lambda cell: cell.model == "mixer-flat-nf4")
    assert len(new) == 2
    assert pending(finished, study) == new | AGGREGATE | checkpoints("mixer-flat-nf4", 2)


def test_a_model_removed_reruns_the_aggregate_alone(finished: Path) -> None:
    study = smoke()
    study["grids"][0]["models"].remove("mixer-parallel-untrained")
    assert pending(finished, study) == AGGREGATE


def test_a_control_added_runs_its_cell(finished: Path) -> None:
    study = smoke()
    study["grids"][-1]["masks"].append("2:")
    study["grids"][-1]["targets"] = ["shuffled"]
    kept = study["grids"][-1] | {"masks": ["1:"], "targets": ["of:transformer-other"]}
    study["grids"].append(kept)
    new = cells(study, lambda cell: cell.target == "shuffled" and cell.mask.text == "2:")
    assert len(new) == 1
    assert pending(finished, study) == new | AGGREGATE | checks("transformer")


def test_another_model_to_explain_brings_its_checkpoint(finished: Path) -> None:
    study = smoke()
    study["grids"][-1]["targets"].append("of:mixer-flat-untrained")
    new = cells(study, lambda cell: cell.target == "of:mixer-flat-untrained")
    # It has the width and the tokenizer, and is there already at this depth and for this mask.
    assert pending(finished, study) == new | AGGREGATE
    study["models"]["third"] = {"source": "transformer", "state": "untrained", "seed": 3}
    study["grids"][-1]["targets"][-1] = "of:third"
    new = cells(study, lambda cell: cell.target == "of:third")
    assert pending(finished, study) == new | AGGREGATE | {"prepare third 2"}


def test_a_changed_model_reruns_what_explains_it(finished: Path) -> None:
    study = smoke()
    study["models"]["transformer-other"]["seed"] = 5
    new = cells(study, lambda cell: cell.target == "of:transformer-other")
    assert pending(finished, study) == new | AGGREGATE | {"prepare transformer-other 2"}


def test_identify_adds_one_cell_a_setting(finished: Path) -> None:
    study = smoke()
    study["grids"][2]["identify"] = ["sweep"]
    new = cells(
        study, lambda cell: cell.model == "transformer-untrained" and cell.solver == "sweep"
    )
    assert len(new) == 1
    assert pending(finished, study) == new | AGGREGATE


# --- settings -----------------------------------------------------------------------------


def test_prompts_of_one_set_rerun_their_cells(finished: Path) -> None:
    study = smoke()
    study["prompts"]["sea"][1] = "She wrote down the sky."
    touched = cells(study, lambda cell: cell.prompts == "sea")
    assert pending(finished, study) == touched | AGGREGATE | checks(*ALL_SOURCES)


def test_other_passages_are_drawn_and_rerun_their_cells(finished: Path) -> None:
    study = smoke()
    study["passages"]["drawn"]["seed"] = 1
    touched = cells(study, lambda cell: cell.prompts == "drawn") | checks("mixer-flat")
    assert pending(finished, study) == touched | AGGREGATE | {"passages drawn"}


@pytest.mark.parametrize("change", ["added", "removed"])
def test_a_prompt_added_or_removed_reruns_the_cells_of_its_set(finished: Path, change: str) -> None:
    study = smoke()
    if change == "added":
        study["prompts"]["sea"].append("The boats were out.")
    else:
        study["prompts"]["sea"].pop()
    touched = cells(study, lambda cell: cell.prompts == "sea")
    assert pending(finished, study) == touched | AGGREGATE | checks(*ALL_SOURCES)


def test_prompts_of_a_second_set_leave_the_first_sets_cells_alone(finished: Path) -> None:
    study = smoke()
    study["prompts"]["land"] = ["The road was made long ago."]
    study["grids"][1]["prompts"].append("land")
    new = cells(study, lambda cell: cell.prompts == "land")
    assert len(new) == 2
    assert pending(finished, study) == new | AGGREGATE | checks("mixer-flat")


def test_settings_of_one_solver_rerun_its_cells(finished: Path) -> None:
    study = smoke()
    study["solvers"]["chapter"]["learning_rate"] = 0.05
    touched = cells(study, lambda cell: cell.solver == "chapter")
    assert pending(finished, study) == touched | AGGREGATE


def _counts_bits(cell: Cell) -> bool:
    return cell.solver in ("sweep", "joint")


def test_a_prior_dropped_reruns_the_cells_that_count_bits(finished: Path) -> None:
    study = smoke() | {"prior": None}
    assert pending(finished, study) == cells(study, _counts_bits) | AGGREGATE


def test_another_prior_is_counted_and_reruns_the_cells_that_count_bits(finished: Path) -> None:
    study = smoke() | {"prior": "port"}
    study["corpora"]["port"] = study["corpora"]["harbour"] | {"held_out": 0.2}
    counted = {cell.model for cell in Study.model_validate(study).cells() if _counts_bits(cell)}
    made = {f"unigram {model}" for model in counted} | {"corpus port"}
    assert pending(finished, study) == cells(study, _counts_bits) | made | AGGREGATE


def test_training_of_one_model_reruns_what_is_made_from_it(finished: Path) -> None:
    study = smoke()
    study["sources"]["mixer-flat"]["training"]["learning_rate"] = 0.002
    # The untrained twin has the same source and stays.
    assert pending(finished, study) == TRAINED_FLAT | AGGREGATE


def test_another_snapshot_trains_again_and_reruns_what_is_made_from_it(finished: Path) -> None:
    study = smoke()
    study["sources"]["mixer-flat"]["training"]["snapshots"].append(0.5)
    assert pending(finished, study) == TRAINED_FLAT | AGGREGATE


def test_a_model_at_a_kept_share_runs_its_checkpoint_and_cells_alone(finished: Path) -> None:
    study = smoke()
    study["models"]["early-int8"] = {"source": "mixer-flat", "at": 0.3, "quantization": "int8"}
    study["grids"][1]["models"].append("early-int8")
    new = cells(study, lambda cell: cell.model == "early-int8")
    assert len(new) == 2
    assert pending(finished, study) == new | checkpoints("early-int8", 1) | AGGREGATE


def test_a_model_at_another_kept_share_is_another_model(finished: Path) -> None:
    study = smoke()
    study["models"]["mixer-flat-30"]["at"] = 0
    touched = cells(study, lambda cell: cell.model == "mixer-flat-30")
    made = checkpoints("mixer-flat-30", 1)
    # Two shares are left of three, too few for a figure along the training.
    rest = AGGREGATE - {"scaling scaling_training"}
    assert pending(finished, study) == touched | made | rest


def test_quantisation_of_one_model_reruns_its_checkpoint_and_cells(finished: Path) -> None:
    study = smoke()
    study["models"]["transformer-int8"]["quantization"] = "nf4"
    touched = cells(study, lambda cell: cell.model == "transformer-int8")
    made = checkpoints("transformer-int8", 1)
    assert pending(finished, study) == touched | made | AGGREGATE


def test_seed_of_an_untrained_model_reruns_its_checkpoint_and_cells(finished: Path) -> None:
    study = smoke()
    study["models"]["transformer-untrained"]["seed"] = 2
    touched = cells(study, lambda cell: cell.model == "transformer-untrained")
    made = checkpoints("transformer-untrained", 2) | {"unigram transformer-untrained"}
    assert pending(finished, study) == touched | made | AGGREGATE


def test_the_vocabulary_reruns_everything_made_with_it(finished: Path) -> None:
    study = smoke()
    study["tokenizers"]["small"]["vocabulary"] = 500
    jobs = pending(finished, study)
    assert {"tokenizer small", "tokens small", "train mixer-flat"} <= jobs
    assert cells(study) | AGGREGATE | checks(*ALL_SOURCES) <= jobs
    assert "corpus harbour" not in jobs
