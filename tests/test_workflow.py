"""What jobs are given: enough, and nothing that another job's result depends on."""

from __future__ import annotations

import ast
from typing import Any

import pytest

from tests.workflow.run import REPOSITORY, smoke
from tokinfo import workflow
from tokinfo.study import Study
from tokinfo.workflow import Plan, canonical, pattern


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
    assert made.origin("mixer-flat") == "<results>/sources/mixer-flat"
    assert made.origin("mixer-flat-untrained") == "<results>/tokenizers/small"
    assert made.prepare_settings("mixer-flat", 1)["built"] is False
    assert made.prepare_settings("mixer-flat-untrained", 1)["built"] is True


def test_a_fetched_models_twin_is_made_from_the_fetched_config() -> None:
    source = {"kind": "local", "path": "somewhere", "blocks": 3}
    models = {"twin": {"source": "real", "state": "untrained"}}
    grid = {
        "models": ["twin"],
        "sites": ["block.last"],
        "masks": [":"],
        "solvers": ["adam"],
        "prompts": ["sea"],
    }
    made = plan(sources={"real": source}, models=models, grids=[grid])
    assert made.fetched == ("real",)
    assert made.trained == ()
    assert made.origin("twin") == "<results>/sources/real"
    assert made.tokenizer_path("real") == "<results>/sources/real"
    assert made.prepare_settings("twin", 3)["built"] is False
    assert made.fetch_files("real") == ["somewhere/config.json"]


def test_each_cell_loads_a_checkpoint_of_its_own_depth() -> None:
    made = plan()
    for cell in made.cells.values():
        blocks = cell.site.removeprefix("block.")
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


def test_a_cells_wildcards_lead_back_to_it() -> None:
    made = plan()
    for cell in made.cells.values():
        assert made.cell(cell.wildcards) == cell


def test_settings_do_not_depend_on_the_order_of_keys() -> None:
    assert repr(canonical({"b": {"y": 1, "x": (2, 3)}, "a": 0})) == repr(
        canonical({"a": 0, "b": {"x": [2, 3], "y": 1}})
    )


@pytest.mark.parametrize(
    ("names", "matching", "others"),
    [
        (["block.1", "a"], ["block.1", "a"], ["blockx1", "block.10", ""]),
        (["l1+cosine"], ["l1+cosine"], ["l11cosine"]),
        ([], [], ["", "a"]),
    ],
)
def test_patterns_match_the_names_and_nothing_else(
    names: list[str], matching: list[str], others: list[str]
) -> None:
    import re

    compiled = re.compile(f"^(?P<name>{pattern(names)})$")
    assert all(compiled.match(name) for name in matching)
    assert not any(compiled.match(name) for name in others)


def test_every_rule_with_a_script_has_its_code_digested() -> None:
    scripts = {path.stem for path in (REPOSITORY / "rules" / "scripts").glob("*.py")}
    assert set(workflow.CODE) == scripts
    rules = "".join(p.read_text(encoding="utf-8") for p in (REPOSITORY / "rules").glob("*.smk"))
    for script in scripts:
        assert f'code=plans.code("{script}")' in rules
        assert len(workflow.code(script)) == 64


def test_what_a_script_imports_is_in_its_digest() -> None:
    """Only logs, devices and the schema may be used without counting."""
    for rule, modules in workflow.CODE.items():
        text = (REPOSITORY / "rules" / "scripts" / f"{rule}.py").read_text(encoding="utf-8")
        imported = {
            node.module
            for node in ast.walk(ast.parse(text))
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("tokinfo")
        }
        assert imported - {"tokinfo.jobs", "tokinfo.study", "tokinfo.sources"} == set(modules)


def test_the_figures_are_those_that_can_be_drawn() -> None:
    from tokinfo.figures import FIGURES, IDENTIFIABILITY

    assert tuple(FIGURES) == workflow.FIGURES
    assert tuple(IDENTIFIABILITY) == workflow.IDENTIFIABILITY
