"""Models that bring code of their own: never run, unless the study allows it for that source."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.example_study import example
from tests.models.fetch.hub_models import BLOCKS, write_model
from tokinfo.io.errors import FetchError
from tokinfo.models.checkpoint import load
from tokinfo.models.fetch.fetch import fetch
from tokinfo.models.preparing import Cut, cut_checkpoint
from tokinfo.models.remote_code import foreign, trusted
from tokinfo.study.load import load_study
from tokinfo.study.mistakes import StudyError
from tokinfo.study.sources import LocalSource
from tokinfo.study.study import Study
from tokinfo.workflow.plan import Plan

CONFIGURATION = """
from pathlib import Path
from transformers import LlamaConfig

Path({trace!r}).open("a").write("configuration ")

class MineConfig(LlamaConfig):
    model_type = "mine"
"""
MODELING = """
from pathlib import Path
from transformers import LlamaForCausalLM, LlamaModel
from .configuration_mine import MineConfig

Path({trace!r}).open("a").write("modeling ")

class MineModel(LlamaModel):
    config_class = MineConfig

    def forward(self, *arguments, **options):
        out = super().forward(*arguments, **options)
        out.last_hidden_state = 2 * out.last_hidden_state
        return out

class MineForCausalLM(LlamaForCausalLM):
    config_class = MineConfig
"""
COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def trace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file that the model's code writes to whenever it is run; no library asks for input."""

    def question(*_: object) -> str:
        raise AssertionError("a question at the terminal")

    monkeypatch.setattr("builtins.input", question)
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "m"))
    return tmp_path / "trace"


@pytest.fixture
def mine(tmp_path: Path, trace: Path) -> Path:
    directory = tmp_path / "mine"
    write_model(directory)
    config = json.loads((directory / "config.json").read_text())
    config |= {
        "model_type": "mine",
        "architectures": ["MineForCausalLM"],
        "auto_map": {
            "AutoConfig": "configuration_mine.MineConfig",
            "AutoModel": "modeling_mine.MineModel",
            "AutoModelForCausalLM": "modeling_mine.MineForCausalLM",
        },
    }
    (directory / "config.json").write_text(json.dumps(config))
    for name, text in (("configuration", CONFIGURATION), ("modeling", MODELING)):
        (directory / f"{name}_mine.py").write_text(text.format(trace=str(trace)))
    return directory


def source(directory: Path, *, trust: bool) -> LocalSource:
    return LocalSource(path=str(directory), blocks=BLOCKS, n_ctx=32, trust_remote_code=trust)


def test_its_code_is_not_run_by_default(mine: Path, trace: Path, tmp_path: Path) -> None:
    with pytest.raises(FetchError, match="code of their own, which is not run"):
        fetch(source(mine, trust=False), 1, tmp_path / "out", tmp_path / "state")
    assert not trace.exists()
    assert not (tmp_path / "out").exists()


def test_it_is_run_for_a_source_that_allows_it_and_nowhere_else(
    mine: Path, trace: Path, tmp_path: Path
) -> None:
    raw = example()
    raw["sources"]["mine"] = source(mine, trust=True).model_dump()
    raw["models"]["mine"] = {"source": "mine"}
    raw["grids"] = [raw["grids"][0] | {"models": ["mine"], "sites": ["block.2"]}]
    plan = Plan(Study.model_validate(raw))
    part, checkpoint = tmp_path / "part", tmp_path / "checkpoint"
    fetch(source(mine, trust=True), 2, part, tmp_path / "state")
    assert {"configuration", "modeling"} == set(trace.read_text().split())
    cut_checkpoint(Cut.model_validate(plan.prepare_settings("mine", 2)), part, checkpoint)

    trace.unlink()
    with pytest.raises(ValueError, match="trust_remote_code"):
        load(checkpoint)
    assert not trace.exists()
    with trusted(True):
        found = load(checkpoint)
    inputs = torch.zeros(1, 4, 64)
    with torch.no_grad():
        output = found.decoder(inputs_embeds=inputs + 1, use_cache=False).last_hidden_state
    assert type(found.decoder).__name__ == "MineModel"
    # The forward of its code doubles what the norm at the end made of size 1.
    assert output.square().mean().sqrt().item() == pytest.approx(2, rel=0.05)
    settings = [plan.cell_settings(cell) for cell in plan.cells.values()]
    assert all(each["trust_remote_code"] is True for each in settings)


def test_other_models_cells_say_nothing_of_it() -> None:
    plan = Plan(Study.model_validate(example()))
    assert not any("trust" in key for c in plan.cells.values() for key in plan.cell_settings(c))


@pytest.mark.parametrize(
    "named", ["some/repository--modeling_mine.MineModel", "../modeling.Model", "a.b.C", "/x.Y"]
)
def test_code_outside_the_repository_is_refused_even_so(
    mine: Path, trace: Path, tmp_path: Path, named: str
) -> None:
    config = json.loads((mine / "config.json").read_text())
    config["auto_map"]["AutoModel"] = named
    (mine / "config.json").write_text(json.dumps(config))
    with pytest.raises(FetchError, match=re.escape(named)):
        fetch(source(mine, trust=True), 1, tmp_path / "out", tmp_path / "state")
    assert not trace.exists()


def test_lists_of_classes_are_read_too() -> None:
    assert foreign({"auto_map": {"AutoTokenizer": ["a.B", None]}}) == []
    assert foreign({"auto_map": {"AutoTokenizer": ["x/y--a.B", None]}}) == ["x/y--a.B"]
    assert foreign({}) == []


def hub(**values: Any) -> dict[str, Any]:
    raw = example()
    raw["sources"]["smol"] = {"kind": "hub", "repository": "a/b", "blocks": 30} | values
    return raw


@pytest.mark.parametrize("revision", ["main", "v1.0", COMMIT[:12], COMMIT.upper(), f"{COMMIT}0"])
def test_a_study_may_trust_a_commit_only(revision: str) -> None:
    with pytest.raises(StudyError) as caught:
        load_study(hub(revision=revision, trust_remote_code=True))
    (mistake,) = caught.value.mistakes
    assert mistake.key == "sources.smol.revision"
    assert str(mistake).endswith(
        "is not a commit, which trust_remote_code needs; allowed: 40 hexadecimal digits"
    )
    load_study(hub(revision=revision))


def test_a_study_that_trusts_a_commit_is_valid() -> None:
    assert load_study(hub(revision=COMMIT, trust_remote_code=True))


def test_trust_is_a_matter_of_yes_or_no() -> None:
    with pytest.raises(StudyError, match=r"sources\.smol\.trust_remote_code"):
        load_study(hub(revision=COMMIT, trust_remote_code="perhaps"))
