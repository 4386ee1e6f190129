"""README's "Adding a model" works as it is written, for a model unlike those of the study."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import ByteLevel
from transformers import AutoModelForCausalLM, GPT2Config, PreTrainedTokenizerFast

from tests import REPOSITORY
from tokinfo.study.load import load_study
from tokinfo.study.mistakes import StudyError
from tokinfo.study.sources import LocalSource

README = (REPOSITORY / "README.md").read_text(encoding="utf-8")
RECIPE: dict[str, Any] = yaml.safe_load(
    re.findall(r"```yaml\n(.*?)```", README.partition("## Adding a model")[2], re.DOTALL)[0]
)


def write(model: Path, rows: int = 300) -> None:
    """Write a GPT-2 of 64 positions as `save_pretrained` does, beside a tokenizer of 300 tokens."""
    config = GPT2Config(n_embd=32, n_layer=3, n_head=4, n_positions=64, vocab_size=rows)
    AutoModelForCausalLM.from_config(config).save_pretrained(model)
    words = {f"w{number}": number for number in range(300)}
    tokenizer = Tokenizer(WordLevel(words, unk_token="w0"))
    tokenizer.pre_tokenizer = ByteLevel()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer).save_pretrained(model)


def study(tmp_path: Path) -> Path:
    raw = yaml.safe_load((REPOSITORY / "config.yaml").read_text(encoding="utf-8"))
    raw["grids"] = RECIPE["grids"]
    raw["sources"] |= RECIPE["sources"]
    raw["models"] |= RECIPE["models"]
    path = tmp_path / "study.yaml"
    path.write_text(yaml.safe_dump(raw))
    return path


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path / RECIPE["sources"]["mine"]["path"]


def test_the_recipe_reads_a_models_size_from_its_own_config(here: Path, tmp_path: Path) -> None:
    write(here)
    found = load_study([study(tmp_path)])
    mine = found.sources["mine"]
    assert isinstance(mine, LocalSource)
    assert (mine.blocks, mine.n_ctx) == (3, 64)
    solvers = {cell.solver for cell in found.cells() if cell.model == "mine"}
    assert {found.solvers[name].kind for name in solvers} >= {"sweep"}


def test_all_that_is_wrong_with_the_directory_is_said_at_once(here: Path, tmp_path: Path) -> None:
    with pytest.raises(StudyError) as raised:
        load_study([study(tmp_path)])
    assert "sources.mine.blocks" in str(raised.value)
    here.mkdir(parents=True)
    (here / "config.json").write_text('{"n_layer": 3, "n_positions": 64}')
    raw = yaml.safe_load(study(tmp_path).read_text())
    raw["sources"]["mine"] |= {"blocks": 4, "n_ctx": 128}
    (tmp_path / "study.yaml").write_text(yaml.safe_dump(raw))
    with pytest.raises(StudyError) as raised:
        load_study([tmp_path / "study.yaml"])
    assert [mistake.key for mistake in raised.value.mistakes] == [
        "sources.mine.path",
        "sources.mine.blocks",
        "sources.mine.n_ctx",
        "sources.mine.path",
    ]


def test_a_tokenizer_that_does_not_fit_the_embedding_is_refused(here: Path, tmp_path: Path) -> None:
    write(here, rows=299)
    with pytest.raises(StudyError, match=r"has the id 299, .* vocab_size of 299"):
        load_study([study(tmp_path)])
    (here / "tokenizer.json").write_text("{}")
    with pytest.raises(StudyError, match="holds no tokenizer"):
        load_study([study(tmp_path)])
