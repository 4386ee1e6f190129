"""What others wrote is read, or refused in one line: headers, indexes, configurations, listings."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from tests.models.fetch.hub_models import BLOCKS, local, write_model
from tokinfo.io.chats import read_template
from tokinfo.io.errors import TokinfoError
from tokinfo.models.checkpoint import read_config, read_decoder
from tokinfo.models.fetch.fetch import fetch
from tokinfo.models.fetch.hub import HubOrigin
from tokinfo.models.preparing import pad_id
from tokinfo.models.weights import weights_in
from tokinfo.text.tokenizer import load_tokenizer

DEEP = b"[" * 100_000 + b"]" * 100_000
JSON: st.SearchStrategy[Any] = st.recursive(
    st.one_of(
        st.none(),
        st.booleans(),
        st.integers(-3, 300),
        st.sampled_from([10**20, -(10**9), 1.5, float("inf"), "0", "llama", "a.b", "\x1b["]),
        st.text(max_size=4),
    ),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner),
    max_leaves=5,
)
fuzzed = settings(
    max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("borders") / "model"
    write_model(directory)
    return directory


@pytest.fixture
def place(model: Path, tmp_path: Path) -> Callable[[str, bytes], Path]:
    """Return a model one of whose files holds something else, afresh for each example."""

    def changed(name: str, content: bytes) -> Path:
        directory = tmp_path / "changed"
        shutil.rmtree(directory, ignore_errors=True)
        directory.mkdir()
        for path in model.iterdir():
            (directory / path.name).symlink_to(path)
        (directory / name).unlink(missing_ok=True)
        (directory / name).write_bytes(content)
        return directory

    return changed


def read(*actions: Callable[[], object]) -> None:
    """Assert that each action works, or ends in one line of text."""
    for action in actions:
        try:
            action()
        except TokinfoError as error:
            line = str(error)
        except FileNotFoundError as error:
            line = str(error)
        else:
            continue
        assert line.isprintable(), line


def whole(directory: Path, tmp_path: Path) -> None:
    read(
        lambda: fetch(local(directory), 1, tmp_path / "out", tmp_path / "state"),
        lambda: read_config(directory),
    )


KEYS = (
    *("model_type", "num_hidden_layers", "num_attention_heads", "num_key_value_heads"),
    *("hidden_size", "vocab_size", "head_dim", "rope_parameters", "rope_scaling", "hidden_act"),
    *("layer_types", "text_config", "auto_map", "attn_implementation", "quantization_config"),
    *("architectures", "tie_word_embeddings", "pad_token_id", "max_position_embeddings", "dtype"),
)


@given(key=st.sampled_from(KEYS), value=JSON)
@example(key="num_attention_heads", value=0)
@example(key="num_hidden_layers", value=10**9)
@example(key="vocab_size", value=10**20)
@example(key="model_type", value=["llama"])
@fuzzed
def test_any_value_in_a_configuration(
    place: Any, model: Path, tmp_path: Path, key: str, value: Any
) -> None:
    config = json.loads((model / "config.json").read_text()) | {key: value}
    whole(place("config.json", json.dumps(config).encode()), tmp_path)


@given(
    content=st.one_of(st.binary(max_size=40), JSON.map(lambda value: json.dumps(value).encode()))
)
@example(content=DEEP)
@example(content=b'{"model_type":' + DEEP + b"}")
@example(content=b"{}")
@fuzzed
@pytest.mark.parametrize("name", ["config.json", "model.safetensors.index.json", "tokenizer.json"])
def test_any_bytes_in_a_file(place: Any, name: str, tmp_path: Path, content: bytes) -> None:
    whole(place(name, content), tmp_path)


@given(value=JSON)
@fuzzed
def test_any_index_of_weights(place: Any, model: Path, tmp_path: Path, value: Any) -> None:
    index = json.loads((model / "model.safetensors.index.json").read_text())
    index["weight_map"][next(iter(index["weight_map"]))] = value
    directory = place("model.safetensors.index.json", json.dumps(index).encode())
    whole(directory, tmp_path)
    read(lambda: weights_in(directory, read_config(directory), 1))


@given(
    content=st.one_of(
        st.binary(max_size=20),
        st.dictionaries(
            st.sampled_from(["chat_template", "pad_token", "eos_token", "bos_token"]), JSON
        ).map(lambda value: json.dumps(value).encode()),
    )
)
@example(content=b'{"pad_token":' + DEEP + b"}")
@example(content=b'{"chat_template": [{"name": "default"}]}')
@fuzzed
def test_any_configuration_of_a_tokenizer(place: Any, model: Path, content: bytes) -> None:
    directory = place("tokenizer_config.json", content)
    words, config = load_tokenizer(model), read_config(model)
    read(lambda: read_template(directory), lambda: pad_id(directory, words, config))
    read(lambda: read_template(place("chat_template.jinja", content)))


@given(
    content=st.one_of(
        st.binary(max_size=20),
        st.fixed_dictionaries({"sha": JSON, "siblings": JSON}),
        st.lists(st.fixed_dictionaries({"rfilename": JSON, "size": JSON, "lfs": JSON})).map(
            lambda files: {"sha": "0" * 40, "siblings": files}
        ),
    )
)
@example(content=DEEP)
@fuzzed
def test_any_listing_of_a_hub(tmp_path: Path, content: Any) -> None:
    body = content if isinstance(content, bytes) else json.dumps(content).encode()
    shutil.rmtree(tmp_path / "hub", ignore_errors=True)
    with mock.patch.object(HubOrigin, "_read", return_value=body):
        read(lambda: HubOrigin("a/b", "main", tmp_path).listing)


def test_the_model_itself_is_read(model: Path, tmp_path: Path) -> None:
    fetch(local(model), BLOCKS, tmp_path / "out", tmp_path / "state")
    read_decoder(model, read_config(model))
