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
from tokinfo.study.mistakes import Keys, Mistake, StudyError
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


@pytest.mark.parametrize("name", ["study.json", "study.yaml"])
def test_json_is_read_as_json(tmp_path: Path, name: str) -> None:
    # In YAML the two halves of such a character are no text, and a tab indents nothing.
    raw = put(example(), ("prompts", "sky", 1), "The sky is \U0001f600.")
    text = json.dumps(raw, indent="\t")
    assert "\\ud83d\\ude00" in text
    assert load_study(write(tmp_path / name, text)) == load_study(raw)


def test_json_that_is_wrong_in_form_is_named_by_line(tmp_path: Path) -> None:
    (found,) = failure(write(tmp_path / "study.json", '{"name": "a",\n"threads" 2}'))
    assert str(found).startswith(f"{tmp_path / 'study.json'}:2: is not valid JSON: ")
    # YAML in a file of that name is read, as Snakemake reads it.
    assert load_study(write(tmp_path / "yaml.json", example())) == load_study(example())


def test_keys_given_twice_in_json_are_reported(tmp_path: Path) -> None:
    text = json.dumps(example())
    text = text.replace('"kind": "adam"', '"kind": "adam", "kind": "adam"')
    found = failure(write(tmp_path / "study.json", text[:-1] + ', "name": "Second"}'))
    assert keys(found) == ["name", "solvers.adam.kind"]


@pytest.mark.parametrize(
    ("path", "word", "taken"),
    [
        (("grids", 0, "masks", 0), "1:", "a mapping"),
        (("grids", 0, "masks", 0), "-1:", "a mapping"),
        (("grids", 0, "masks", 0), "1:3", "a number"),
        (("grids", 0, "masks", 1), "-1", "a number"),
        (("grids", 0, "models", 0), "no", "a truth value"),
        (("prompts", "sky", 0), "2020-01-01", "a date"),
        (("prompts", "sky", 0), "Note: this", "a mapping"),
        (("name",), "null", "nothing"),
    ],
)
@pytest.mark.parametrize("flow", [None, True])
def test_a_text_without_quotes_says_what_yaml_made_of_it_and_how_to_write_it(
    tmp_path: Path, path: Keys, word: str, taken: str, flow: bool | None
) -> None:
    text = yaml.safe_dump(put(example(), path, "WORD"), default_flow_style=flow, width=9999)
    (found,) = failure(write(tmp_path / "study.yaml", text.replace("WORD", word)))
    assert says(found, f"YAML reads {word} as {taken}")
    assert says(found, f"'{word}', in quotes")


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
    ("text", "line", "message"),
    [
        ("a: [1, 2\nb: 3\n", 2, "is not valid YAML"),
        ("- a\n- b\n", 0, "must be a mapping of keys to values at its top level"),
        ('"a"', 0, "must be a mapping of keys to values at its top level"),
        ("\na: !!python/object:os.system {}", 2, "is not valid YAML"),
        ("{[1]: 2}", 1, "is not valid YAML"),
        ("a: 1\nb: [2020-99-99]", 2, "is not valid YAML: 2020-99-99"),
        ("a: 1\n\x00", 2, "is not valid YAML: the character U+0000"),
        ("masks: [:2]", 1, "stands in quotes, as in ':2'"),
        ("masks: 1:", 1, "stands in quotes, as in ':2'"),
        ("a: b\n- c: 1", 2, "from line 1)"),
        ("[" * 3000, 0, "is nested too deeply"),
    ],
)
def test_what_cannot_be_read_is_one_line_that_names_file_and_line(
    tmp_path: Path, text: str, line: int, message: str
) -> None:
    path = write(tmp_path / "study.yaml", text)
    (found,) = failure(path)
    assert message in str(found)
    assert str(found).startswith(f"{path}:{line}: is not" if line else f"{path}: ")
    assert "unicode string" not in str(found)


def test_a_missing_file_a_directory_and_bytes_that_are_no_text_are_told(tmp_path: Path) -> None:
    binary = tmp_path / "binary.yaml"
    binary.write_bytes(b"\xff\xfe\xfa")
    found = failure([tmp_path / "no.yaml", tmp_path, binary])
    assert len(found) == 3
    assert says(found[0], "there is no such file")
    assert says(found[1], "cannot be read")
    assert str(found[2]) == f"{binary}:1: is not text in UTF-8"


def test_a_file_that_contains_itself_ends_in_one_line(tmp_path: Path) -> None:
    path = write(tmp_path / "study.yaml", "name: &a [*a]\nsources: &b {flat: *b}\n")
    assert failure(path)


def test_an_empty_file_misses_everything(tmp_path: Path) -> None:
    path = write(tmp_path / "study.yaml", "# nothing yet\n")
    assert f"{path}: models: is missing" in "\n".join(map(str, failure(path)))
