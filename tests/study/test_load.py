"""From files and a command line to one study, or to everything that is wrong with it at once."""

from __future__ import annotations

import json
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.example_study import Row, at, example, keys, mistakes, put, says
from tests.study.checks.test_entries import ENTRIES
from tests.study.checks.test_grids import GRIDS
from tests.study.checks.test_prompts import MASKS
from tests.study.checks.test_references import REFERENCES
from tests.study.test_fields import FITS
from tests.study.test_form import FORM
from tokinfo.study.load import load_study
from tokinfo.study.mistakes import Mistake, StudyError
from tokinfo.study.study import Study

FLAT = ("sources", "flat")


def write(path: Path, content: object) -> Path:
    path.write_text(content if isinstance(content, str) else yaml.safe_dump(content))
    return path


def failure(*args: Any, **kwargs: Any) -> list[Mistake]:
    with pytest.raises(StudyError) as caught:
        load_study(*args, **kwargs)
    found = list(caught.value.mistakes)
    assert str(caught.value).splitlines() == [str(mistake) for mistake in found]
    return found


def places(found: list[Mistake]) -> list[str]:
    """Return the file and the key of each mistake."""
    return [f"{mistake.file}: {mistake.key}" for mistake in found]


def test_the_example_is_valid() -> None:
    assert mistakes(example()) == []
    assert load_study(example()) == Study.model_validate(example())


SENSE = [*REFERENCES, *ENTRIES, *GRIDS, *MASKS]


@pytest.mark.parametrize("rows", [FORM, FITS, SENSE], ids=["form", "fits", "sense"])
def test_mistakes_in_different_places_are_all_reported_at_once(rows: list[Row]) -> None:
    """As many as can be made together: each must still give its line."""
    raw, made, used = example(), [], set[Any]()
    for row in rows:
        # One mistake a top-level entry: some would hide or change others.
        if row[0][:2] not in used and len(row[0]) > 2:
            used.add(row[0][:2])
            put(raw, row[0], row[1])
            made.append(row)
    found = mistakes(raw)
    assert len(made) >= 4
    for row in made:
        assert any(m.key == at(row) and says(m, row[2]) for m in found), (row, found)


yaml_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=6,
)


def everywhere(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    if not isinstance(value, dict | list):
        return [path]
    items = value.items() if isinstance(value, dict) else enumerate(value)
    return [path, *(found for key, inner in items for found in everywhere(inner, (*path, key)))]


@settings(
    max_examples=150,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(st.lists(st.tuples(st.sampled_from(everywhere(example())[1:]), yaml_values), max_size=4))
def test_no_configuration_ends_in_a_traceback(changes: list[tuple[tuple[Any, ...], Any]]) -> None:
    raw = example()
    for path, value in sorted(changes, key=lambda change: -len(change[0])):
        put(raw, path, value)
    found = mistakes(raw)
    assert len("\n".join(map(str, found)).splitlines()) == len(found)
    assert found or load_study(raw).cells()


def test_a_study_is_read_from_a_file(tmp_path: Path) -> None:
    path = write(tmp_path / "study.yaml", example())
    assert load_study(path) == load_study([path]) == load_study(str(path)) == load_study(example())


def test_json_is_read_too(tmp_path: Path) -> None:
    assert load_study(write(tmp_path / "s.json", json.dumps(example()))) == load_study(example())


def test_files_merge_as_in_snakemake_and_each_mistake_names_its_file(tmp_path: Path) -> None:
    utils = pytest.importorskip("snakemake.utils")
    first = write(tmp_path / "first.yaml", example())
    second = write(
        tmp_path / "second.yaml",
        {"threads": 0, "sources": {"flat": {"d_model": 1}}, "prompts": {"sky": ["Blue sky"]}},
    )
    assert places(failure([first, second], {"device": "gpu"})) == [
        "--config: device",
        f"{second}: threads",
        f"{second}: sources.flat.d_model",
    ]
    merged = example()
    utils.update_config(merged, yaml.safe_load(second.read_text()))
    merged["threads"] = merged["sources"]["flat"]["d_model"] = 4
    good = load_study([first, second], {"threads": 4, "sources": {"flat": {"d_model": 4}}})
    assert good == load_study(merged)
    assert good.prompts == {"sky": ["Blue sky"]}


def test_a_merged_configuration_still_names_its_files(tmp_path: Path) -> None:
    path = write(tmp_path / "study.yaml", put(example(), (*FLAT, "d_model"), 1))
    merged = OrderedDict(yaml.safe_load(path.read_text()))
    merged["threads"] = 0
    assert places(failure(merged, files=[path])) == [
        "--config: threads",
        f"{path}: sources.flat.d_model",
    ]
    assert keys(failure(merged)) == ["threads", "sources.flat.d_model"]


def test_keys_given_twice_are_reported_with_their_lines(tmp_path: Path) -> None:
    text = yaml.safe_dump(example(), sort_keys=False) + "threads: 1\nname: Second\n"
    path = write(tmp_path / "study.yaml", text + "solvers:\n  adam: {kind: adam, kind: adam}\n")
    last = len(text.splitlines())
    solvers = text.splitlines().index("solvers:") + 1
    found = [mistake for mistake in failure(path) if says(mistake, "given twice")]
    assert places(found) == [f"{path}: {key}" for key in ("name", "solvers", "solvers.adam.kind")]
    name, again, kind = (mistake.message for mistake in found)
    assert f"on lines 1 and {last}" in name
    assert f"on lines {solvers} and {last + 1}" in again
    assert f"on lines {last + 2} and {last + 2}" in kind
    merged = failure(example(), files=[path])
    assert [mistake for mistake in merged if says(mistake, "given twice")] == found


def test_a_key_that_overrides_a_merged_one_is_no_duplicate(tmp_path: Path) -> None:
    raw = example()
    del raw["sources"]["flat"]
    text = yaml.safe_dump(raw).replace(
        "sources:\n",
        "sources:\n"
        "  base: &base {kind: mixer, form: flat, d_model: 8, blocks: 2, n_ctx: 16,"
        " tokenizer: bpe}\n"
        "  flat: {<<: *base, d_model: 16, training: {steps: 20}}\n",
    )
    study = load_study(write(tmp_path / "study.yaml", text))
    assert [study.sources[name].d_model for name in ("base", "flat")] == [8, 16]  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: [1, 2", "is not valid YAML"),
        ("- a\n- b\n", "must be a mapping of keys to values at its top level"),
        ("a: !!python/object:os.system {}", "is not valid YAML"),
        ("{[1]: 2}", "is not valid YAML"),
        ("a: 2020-99-99", "is not valid YAML"),
        ("\x00", "is not valid YAML"),
        ("[" * 3000, "is n"),
    ],
)
def test_what_cannot_be_read_is_one_line_that_names_the_file(
    tmp_path: Path, text: str, message: str
) -> None:
    path = write(tmp_path / "study.yaml", text)
    (found,) = failure(path)
    assert places([found]) == [f"{path}: (the whole file)"]
    assert found.message.startswith(message)


def test_a_missing_file_a_directory_and_bytes_that_are_no_text_are_told(tmp_path: Path) -> None:
    binary = tmp_path / "binary.yaml"
    binary.write_bytes(b"\xff\xfe\xfa")
    found = failure([tmp_path / "no.yaml", tmp_path, binary])
    assert len(found) == 3
    assert says(found[0], "there is no such file")
    assert says(found[1], "cannot be read")


def test_a_file_that_contains_itself_ends_in_one_line(tmp_path: Path) -> None:
    path = write(tmp_path / "study.yaml", "name: &a [*a]\nsources: &b {flat: *b}\n")
    assert failure(path)


def test_an_empty_file_misses_everything(tmp_path: Path) -> None:
    path = write(tmp_path / "study.yaml", "# nothing yet\n")
    assert f"{path}: models: is missing" in "\n".join(map(str, failure(path)))
