"""A chat through the real workflow: its template comes with the model."""

from __future__ import annotations

from pathlib import Path

import polars as pl
import yaml

from tests.chat_templates import CHATML, write_chat_model
from tests.workflow.run import RESULTS, copy_repository, smoke, snakemake
from tokinfo.models.build import new_model
from tokinfo.models.checkpoint import save_model
from tokinfo.study.sources import TransformerSource
from tokinfo.study.study import Study

CHAT = [{"role": "system", "content": "be brief"}, {"role": "user", "content": "why"}]


def test_a_template_comes_with_a_models_copy_and_is_missed_before_any_job(tmp_path: Path) -> None:
    copy_repository(tmp_path)
    source = TransformerSource(d_model=32, blocks=2, heads=4, n_ctx=64, tokenizer="t")
    save_model(new_model(source, 300, 0), tmp_path / "model")
    write_chat_model(tmp_path / "model", None)
    copied = {"kind": "hub", "repository": "some/model", "path": "model", "blocks": 2, "n_ctx": 64}
    grid = {"models": ["real"], "sites": ["block.1"], "masks": ["hide=system"], "solvers": ["adam"]}
    raw = smoke() | {
        "sources": {"real": copied},
        "models": {"real": {"source": "real"}},
        "prompts": {"chats": [CHAT]},
        "grids": [grid | {"prompts": ["chats"], "known": ["visible"]}],
    }
    (tmp_path / "study.yaml").write_text(yaml.safe_dump(raw), encoding="utf-8")
    (cell,) = Study.model_validate(raw).cells()
    targets = [f"{RESULTS}/prompts/real.json", f"{RESULTS}/{cell.path}"]
    arguments = (*targets, "--cores", "2", "--configfile", "study.yaml")
    failed = snakemake(tmp_path, *arguments)
    assert failed.returncode == 1
    assert "prompts.chats[0] = [{" in failed.stderr
    assert "model `real` cannot read it: is a list of messages, and the model" in failed.stderr
    assert not (tmp_path / RESULTS).exists()
    (tmp_path / "model" / "chat_template.jinja").write_text(CHATML)
    done = snakemake(tmp_path, *arguments)
    assert done.returncode == 0, done.stderr[-5000:]
    rows = pl.read_parquet(tmp_path / RESULTS / cell.path)
    hidden = rows.filter(~pl.col("visible"))
    assert "".join(hidden["true_token"]) == "be brief"
    assert hidden["role"].unique().to_list() == ["system"]
