"""A hidden system prompt before a known user turn, from a model's directory to tables and pages."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from pkgutil import resolve_name
from typing import Any

import polars as pl
import pytest

from tests.chat_templates import CHATML, GEMMA, LLAMA, write_chat_model
from tests.tiny import CELL
from tokinfo.cell import CellError, run_cell
from tokinfo.models.build import new_model
from tokinfo.models.checkpoint import load, save_model
from tokinfo.models.preparing import prepare
from tokinfo.solvers.decoding import write_inverse_gram
from tokinfo.study.cell import CellSettings
from tokinfo.study.sources import Model, TransformerSource
from tokinfo.tables.recovery import collect
from tokinfo.tables.schema import RECOVERY_SCHEMA
from tokinfo.tables.summary import summarise
from tokinfo.workflow.rules import FIGURES, PAGES

V = 300
SWEEP = {"kind": "sweep", "positions": "hidden"}
SOURCE = TransformerSource(d_model=64, blocks=2, heads=4, n_ctx=96, tokenizer="t")
CHATS = [
    [{"role": "system", "content": " be é  "}, {"role": "user", "content": "why?"}],
    [
        {"role": "system", "content": "sky"},
        {"role": "user", "content": "is the sky blue"},
        {"role": "assistant", "content": "yes"},
    ],
]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Checkpoints of a model with one template or another."""
    root = tmp_path_factory.mktemp("chat")
    for name, template in (("chatml", CHATML), ("llama", LLAMA), ("gemma", GEMMA), ("bare", None)):
        write_chat_model(root / "full", template)
        save_model(new_model(SOURCE, V, 3), root / "full")
        prepare(root / "full", Model(source="chat"), 1, root / name, facts={"source": "chat"})
        write_inverse_gram(root / name, root / f"{name}.safetensors")
    return root


def run(
    made: Path,
    out: Path,
    template: str = "chatml",
    solver: Mapping[str, Any] = SWEEP,
    **changed: Any,
) -> pl.DataFrame:
    settings = {
        "solver": dict(solver),
        "prompts": changed.pop("prompts", CHATS),
        "source": "chat",
        "state": "trained",
        "quantization": "float32",
    }
    cell = {
        **CELL,
        "model": "chat",
        "prompts": "chats",
        "mask": "hide=system",
        "known": "visible",
        "solver": solver["kind"],
    }
    files = (made / template, made / f"{template}.safetensors", out)
    settings["cell"] = cell | changed
    run_cell(CellSettings.model_validate(settings), *files, device="cpu")
    return pl.read_parquet(out)


@pytest.mark.parametrize("template", ["chatml", "llama"])
def test_what_is_hidden_is_the_system_prompt_and_the_rest_is_known(
    template: str, made: Path, tmp_path: Path
) -> None:
    frame = run(made, tmp_path / "cell.parquet", template)
    assert frame.schema == RECOVERY_SCHEMA
    model = load(made / template)
    for number, messages in enumerate(CHATS):
        rows = frame.filter(prompt_id=number)
        assert model.template is not None
        rendered = model.template.render(messages)
        assert rows["prompt"].unique().to_list() == [rendered.text]
        ids = model.tokenizer.encode(rendered.text, add_special_tokens=False).ids
        assert rows["true_id"].to_list() == ids
        assert (rows["visible"] == (rows["role"] != "system").fill_null(value=True)).all()
        assert (rows["given"] == rows["visible"]).all()
        for message in messages:
            held = rows.filter(role=message["role"])["true_id"].to_list()
            assert message["content"].strip() in model.tokenizer.decode(held)
        written = rows.filter(pl.col("role").is_null())["true_token"]
        assert {"chatml": "<|im_start|>", "llama": "<|eot_id|>"}[template] in written
    hidden = frame.filter(~pl.col("visible"))
    assert (hidden["identified"] == "identifiable").all()
    metadata = json.loads(pl.read_parquet_metadata(tmp_path / "cell.parquet")["tokinfo"])
    assert metadata["settings"]["prompts"] == CHATS


SOLVERS = [
    {"kind": "chapter", "steps": 3},
    {"kind": "adam", "steps": 20},
    {"kind": "joint", "rounds": 2, "descent": {"steps": 20}},
    {"kind": "mixture", "rounds": 2, "descent": {"steps": 20}},
]


@pytest.mark.parametrize("solver", SOLVERS, ids=lambda solver: str(solver["kind"]))
def test_every_solver_takes_such_a_cell(solver: dict[str, Any], made: Path, tmp_path: Path) -> None:
    frame = run(made, tmp_path / "cell.parquet", solver=solver)
    known = frame.filter(pl.col("given"))
    assert (known["found_id"] == known["true_id"]).all()
    assert frame.filter(~pl.col("given"))["role"].unique().to_list() == ["system"]


@pytest.mark.parametrize(
    ("template", "changed", "reason"),
    [
        ("bare", {}, "prompt 0: is a list of messages, and the model has no chat template"),
        ("gemma", {}, "prompt 0: the chat template refuses it: System role not supported"),
        ("chatml", {"mask": "hide=tool"}, "mask 'hide=tool': there is no message of role tool"),
        ("chatml", {"prompts": ["why?"]}, "mask 'hide=system': there is no message of role system"),
    ],
)
def test_a_cell_that_cannot_be_is_one_line_that_names_model_and_prompts(
    template: str, changed: dict[str, Any], reason: str, made: Path, tmp_path: Path
) -> None:
    with pytest.raises(CellError) as failed:
        run(made, tmp_path / "cell.parquet", template, **changed)
    assert str(failed.value).startswith("cell cells/chat/")
    assert "_chats_s0.parquet: " in str(failed.value)
    assert reason in str(failed.value)
    assert "\n" not in str(failed.value)


def test_tables_figures_and_pages_take_such_cells(made: Path, tmp_path: Path) -> None:
    masks = ("hide=system", "hide=system,user", "1:")
    cells = []
    for number, mask in enumerate(masks):
        for name, solver in (("adam", SOLVERS[1]), ("sweep", SWEEP)):
            cells.append(tmp_path / f"{number}-{name}.parquet")
            run(made, cells[-1], solver=solver, mask=mask, known="none")
    recovery, summary = tmp_path / "recovery.parquet", tmp_path / "summary.parquet"
    collect(cells, recovery)
    summarise(recovery, summary, tmp_path / "summary.csv")
    assert set(pl.read_parquet(summary)["mask"]) == set(masks)
    for figure, shown in FIGURES.items():
        if shown.table in ("summary", "recovery"):
            table = {"summary": summary, "recovery": recovery}[shown.table]
            svg, png = tmp_path / f"{figure}.svg", tmp_path / f"{figure}.png"
            resolve_name(shown.function)(table, svg=svg, png=png)
    assert "system and user hidden" in (tmp_path / "found_by_mask.svg").read_text()
    for page in ("strips", "identifiability"):
        out = tmp_path / f"{page}.html"
        resolve_name(PAGES[page].function)(recovery, out, name="Chats", description="")
        assert "hide=system" in out.read_text(encoding="utf-8")
