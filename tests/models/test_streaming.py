"""Weights written part by part are those that reading and quantising the whole model gives."""

from __future__ import annotations

import gc
import json
import logging
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import tokenizers
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from tests import REPOSITORY
from tests.families import BLOCKS, VOCABULARY, tiny
from tests.models.plain import write_whole
from tokinfo.models import streaming
from tokinfo.models.build import random_model
from tokinfo.models.checkpoint import DTYPES, load, read_config, save_model, weight_files
from tokinfo.models.fetch.fetch import fetch
from tokinfo.models.preparing import prepare
from tokinfo.models.weights import INDEX
from tokinfo.study.sources import LocalSource, Model

PRECISIONS = ("float32", "bfloat16", "float16", "int8", "nf4")
# bitsandbytes' packing needs matrices of 64 and more.
WIDER = {"hidden_size": 64}
# Each has something special: experts stored one by one, tied or scaled embeddings, Conv1D,
# linear layers outside the blocks, and a fused projection.
SHAPES = {
    "Llama 2": {},
    "Llama 3": {},
    "Mixtral": {},
    "Gemma 3": {},
    "GPT-2": {},
    "OPT-350m": {"word_embed_proj_dim": 32},
    "Phi-3": {},
    "GPT-NeoX": {},
}


def model_of(precision: str, **more: Any) -> Model:
    return Model.model_validate({"source": "s", "quantization": precision, **more})


@pytest.fixture(scope="module")
def full(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Full models in directories of several shards, in bfloat16 as most are published."""
    found = {}
    for family in SHAPES:
        directory = tmp_path_factory.mktemp("full") / "model"
        tiny(family, **WIDER, **SHAPES[family]).to(torch.bfloat16).save_pretrained(
            directory, max_shard_size="60KB"
        )
        words = tokenizers.models.WordLevel({f"w{n}": n for n in range(VOCABULARY)}, unk_token="w0")
        tokenizers.Tokenizer(words).save(str(directory / "tokenizer.json"))
        found[family] = directory
    return found


def state(directory: Path) -> dict[str, Tensor]:
    files = [load_file(path) for path in weight_files(directory)]
    assert sum(map(len, files)) == len({name for file in files for name in file})
    return {name: tensor for file in files for name, tensor in file.items()}


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("family", SHAPES)
def test_every_tensor_and_setting_is_that_of_the_whole_model(
    family: str, precision: str, full: dict[str, Path], tmp_path: Path
) -> None:
    prepare(full[family], model_of(precision), 2, tmp_path / "out")
    write_whole(full[family], 2, precision, tmp_path / "whole")
    found, expected = state(tmp_path / "out"), state(tmp_path / "whole")
    assert found.keys() == expected.keys()
    for name, tensor in found.items():
        assert tensor.dtype == expected[name].dtype, name
        assert torch.equal(tensor, expected[name]), name
    configs = [json.loads((tmp_path / d / "config.json").read_text()) for d in ("out", "whole")]
    assert configs[0]["tokinfo_blocks"] == 2
    assert configs[0] == configs[1]
    if precision in ("int8", "nf4"):
        stored = {name.rpartition(".")[2] for name in found}
        marks = {"int8": {"SCB", "weight_format"}, "nf4": {"absmax", "quant_map"}}[precision]
        assert marks <= stored


@pytest.mark.parametrize("precision", ["float32", "int8"])
def test_random_weights_are_cut_and_quantised_as_those_in_files(
    precision: str, full: dict[str, Path], tmp_path: Path
) -> None:
    for family in ("Llama 3", "Mixtral", "OPT-350m"):
        out = tmp_path / family
        drawn = {"state": "untrained", "seed": 4}
        prepare(full[family], model_of(precision, **drawn), 2, out / "cut")
        random = random_model(read_config(full[family]), 4)
        save_model(random, out / "full")
        write_whole(out / "full", 2, precision, out / "whole")
        found, expected = state(out / "cut"), state(out / "whole")
        assert found.keys() == expected.keys()
        for name, tensor in found.items():
            assert torch.equal(tensor, expected[name]), name


@pytest.mark.parametrize("blocks", [0, 2])
@pytest.mark.parametrize("family", ["Llama 3", "Mixtral", "GPT-2"])
def test_parts_that_were_fetched_give_what_the_full_model_gives(
    family: str, blocks: int, full: dict[str, Path], tmp_path: Path
) -> None:
    source = LocalSource(path=str(full[family]), blocks=BLOCKS, n_ctx=8)
    fetch(source, blocks, tmp_path / "parts", tmp_path / "state")
    for origin in (tmp_path / "parts", full[family]):
        prepare(origin, model_of("int8"), blocks, tmp_path / f"from {origin.name}")
    found, expected = state(tmp_path / "from parts"), state(tmp_path / "from model")
    assert found.keys() == expected.keys()
    for name, tensor in found.items():
        assert torch.equal(tensor, expected[name]), name
    assert load(tmp_path / "from parts").facts.depth == BLOCKS


def alive() -> int:
    """The bytes of all tensors that are in memory, each storage once."""
    gc.collect()
    tensors = [found for found in gc.get_objects() if issubclass(type(found), Tensor)]
    storages = {found.untyped_storage().data_ptr(): found.untyped_storage() for found in tensors}
    return sum(storage.nbytes() for address, storage in storages.items() if address)


def test_one_block_at_a_time_is_in_memory(
    full: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    held: list[tuple[str, int]] = []
    write = streaming.write_part

    def weigh(tensors: dict[str, Tensor], file: Path) -> None:
        held.append((file.name, alive()))
        write(tensors, file)

    monkeypatch.setattr(streaming, "write_part", weigh)
    before = alive()
    for precision in ("bfloat16", "int8", "nf4"):
        held.clear()
        prepare(full["Llama 2"], model_of(precision), BLOCKS, tmp_path / precision)
        sizes = {path.name: path.stat().st_size for path in weight_files(tmp_path / precision)}
        assert [name for name, _ in held] == [
            *(f"block-{number + 1:04d}.safetensors" for number in range(BLOCKS)),
            "embedding.safetensors",
        ]
        for name, count in held:
            # Beside the part: rotary frequencies, and tables that bitsandbytes keeps.
            assert count - before <= sizes[name] + 10_000, (precision, name)


# --- other precisions of activations ------------------------------------------------------


def test_half_precision_weights_may_compute_in_float32(
    full: dict[str, Path], tmp_path: Path
) -> None:
    plain = model_of("bfloat16")
    wide = model_of("bfloat16", compute_dtype="float32")
    prepare(full["Llama 2"], plain, 1, tmp_path / "plain")
    prepare(full["Llama 2"], wide, 1, tmp_path / "wide")
    assert state(tmp_path / "plain").keys() == state(tmp_path / "wide").keys()
    narrow, checkpoint = load(tmp_path / "plain"), load(tmp_path / "wide")
    assert (narrow.dtype, checkpoint.dtype) == (torch.bfloat16, torch.float32)
    for name, parameter in checkpoint.decoder.named_parameters():
        assert parameter.dtype == torch.float32
        assert torch.equal(parameter, narrow.decoder.get_parameter(name).float()), name
    assert torch.equal(narrow.embedding, checkpoint.embedding)


@pytest.mark.parametrize("precision", ["int8", "nf4"])
@pytest.mark.parametrize("computed", ["float32", "bfloat16", "float16"])
def test_packed_weights_are_the_same_whatever_is_computed_in(
    precision: str, computed: str, full: dict[str, Path], tmp_path: Path
) -> None:
    prepare(full["OPT-350m"], model_of(precision), 1, tmp_path / "plain")
    prepare(full["OPT-350m"], model_of(precision, compute_dtype=computed), 1, tmp_path / "out")
    found, plain = state(tmp_path / "out"), state(tmp_path / "plain")
    parameters = {name for name, _ in load(tmp_path / "plain").decoder.named_parameters()}
    for name, tensor in found.items():
        rounded = name in parameters and plain[name].is_floating_point()
        expected = plain[name].to(DTYPES[computed]) if rounded else plain[name]
        assert tensor.dtype == expected.dtype, name
        assert torch.equal(tensor, expected), name
    checkpoint = load(tmp_path / "out")
    assert checkpoint.dtype == DTYPES[computed]
    x = torch.randn(1, 5, checkpoint.embedding.shape[1]).to(checkpoint.dtype).requires_grad_()
    out = checkpoint.decoder(inputs_embeds=x).last_hidden_state
    assert out.dtype == checkpoint.dtype
    assert torch.autograd.grad(out.sum(), x)[0].isfinite().all()


def test_int8_keeps_fewer_columns_apart_above_a_higher_threshold(
    full: dict[str, Path], tmp_path: Path
) -> None:
    outputs = []
    x = 3 * torch.randn(1, 6, 64, generator=torch.Generator().manual_seed(0))
    for threshold in (0.5, 6.0, 1e6):
        out = tmp_path / str(threshold)
        prepare(full["Llama 2"], model_of("int8", outlier_threshold=threshold), 1, out)
        checkpoint = load(out)
        assert checkpoint.facts.outlier_threshold == threshold
        config = json.loads((out / "config.json").read_text())["quantization_config"]
        assert config["llm_int8_threshold"] == threshold
        with torch.no_grad():
            outputs.append(checkpoint.decoder(inputs_embeds=x).last_hidden_state)
    with torch.no_grad():
        prepare(full["Llama 2"], model_of("float32"), 1, tmp_path / "float32")
        exact = load(tmp_path / "float32").decoder(inputs_embeds=x).last_hidden_state
    apart, _, none = ((out - exact).norm() for out in outputs)
    assert apart < none


# --- what bitsandbytes leaves -------------------------------------------------------------


def test_experts_that_are_one_tensor_stay_in_float32_and_are_named(
    full: dict[str, Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    prepare(full["Mixtral"], model_of("int8"), 2, tmp_path / "out")
    left = ["layers.*.mlp.experts.down_proj", "layers.*.mlp.experts.gate_up_proj"]
    (line,) = (r.getMessage() for r in caplog.records if r.levelno == logging.WARNING)
    assert line.startswith("out: int8 leaves these in float32: ")
    facts = load(tmp_path / "out").facts
    assert set(left) <= set(facts.unquantised)
    assert all(name in line for name in left)
    prepare(full["Llama 2"], model_of("int8"), 2, tmp_path / "plain")
    assert load(tmp_path / "plain").facts.unquantised == ()


def test_a_model_of_which_nothing_would_be_quantised_is_refused(tmp_path: Path) -> None:
    """Falcon's linear layers are of a class that bitsandbytes does not replace."""
    save_model(tiny("Falcon"), tmp_path / "full")
    words = tokenizers.models.WordLevel({"w0": 0}, unk_token="w0")
    tokenizers.Tokenizer(words).save(str(tmp_path / "full" / "tokenizer.json"))
    with pytest.raises(ValueError, match="quantises none of the linear layers of FalconModel"):
        prepare(tmp_path / "full", model_of("int8"), 1, tmp_path / "out")
    assert not (tmp_path / "out").exists()


# --- damaged models and full disks --------------------------------------------------------


@pytest.fixture
def copy(full: dict[str, Path], tmp_path: Path) -> Path:
    shutil.copytree(full["Llama 2"], tmp_path / "copy")
    return tmp_path / "copy"


def refused(directory: Path, tmp_path: Path, precision: str = "int8") -> str:
    with pytest.raises((ValueError, OSError)) as caught:
        prepare(directory, model_of(precision), 2, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    assert not list(tmp_path.glob(".*"))
    message = str(caught.value)
    assert "\n" not in message
    return message


def shard(directory: Path, tensor: str) -> Path:
    index = json.loads((directory / INDEX).read_text())
    return directory / index["weight_map"][tensor]


KEY = "model.layers.1.mlp.up_proj.weight"


def test_a_shard_cut_short_is_named(copy: Path, tmp_path: Path) -> None:
    file = shard(copy, KEY)
    file.write_bytes(file.read_bytes()[:-100])
    assert refused(copy, tmp_path).startswith(f"{file}: damaged or cut short: ")


def test_a_shard_that_is_not_there_is_named(copy: Path, tmp_path: Path) -> None:
    file = shard(copy, KEY)
    file.unlink()
    assert refused(copy, tmp_path) == f"{file}: is missing"


def test_a_tensor_that_its_shard_lacks_is_named_with_the_shard(copy: Path, tmp_path: Path) -> None:
    file = shard(copy, KEY)
    tensors = load_file(file)
    del tensors[KEY]
    save_file(tensors, file, metadata={"format": "pt"})
    message = f"{file}: the index says that it holds {KEY}; it does not"
    assert refused(copy, tmp_path) == message


def test_a_tensor_in_no_file_is_named(copy: Path, tmp_path: Path) -> None:
    index = json.loads((copy / INDEX).read_text())
    del index["weight_map"][KEY]
    (copy / INDEX).write_text(json.dumps(index))
    expected = f"{copy}: no weights for layers.1.mlp.up_proj.weight (1 missing)"
    assert refused(copy, tmp_path) == expected


@pytest.mark.parametrize("precision", ["float32", "nf4"])
def test_a_tensor_of_another_shape_is_named(precision: str, copy: Path, tmp_path: Path) -> None:
    file = shard(copy, KEY)
    save_file({**load_file(file), KEY: torch.zeros(48, 32)}, file, metadata={"format": "pt"})
    expected = f"{file}: {KEY} has the shape [48, 32], config.json makes it [48, 64]"
    assert refused(copy, tmp_path, precision) == expected


def test_an_index_that_is_none_is_named(copy: Path, tmp_path: Path) -> None:
    (copy / INDEX).write_text("{")
    assert refused(copy, tmp_path).startswith(f"{copy / INDEX}: damaged or cut short (")


def test_a_full_disk_is_one_line_and_leaves_nothing(full: dict[str, Path], tmp_path: Path) -> None:
    """The disk is as if full: no file may grow beyond 30 kB."""
    code = f"""
import resource
from pathlib import Path
from tokinfo.workflow.jobs import job
from tokinfo.models.preparing import prepare
from tokinfo.study.sources import Model

with job({str(tmp_path / "log")!r}, "prepare"):
    resource.setrlimit(resource.RLIMIT_FSIZE, (30_000, 30_000))
    prepare(Path({str(full["Llama 2"])!r}), Model(source="s"), 2, Path({str(tmp_path / "out")!r}))
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=REPOSITORY
    )
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert line.startswith("tokinfo: prepare: ")
    assert "block-0001.safetensors: cannot be written: " in line
    assert "File too large" in line
    assert sorted(path.name for path in tmp_path.iterdir()) == ["log"]
