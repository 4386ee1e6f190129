from __future__ import annotations

import json
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from tests import REPOSITORY
from tests.example_study import example, put
from tokinfo.cli.app import SCHEMA, app
from tokinfo.io.errors import FetchError
from tokinfo.study.study import Study

run = CliRunner().invoke
PACKAGE = REPOSITORY / "tokinfo"


@pytest.fixture(autouse=True)
def directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def write(path: str, content: object) -> str:
    Path(path).write_text(yaml.safe_dump(content))
    return path


def test_validate_reads_config_yaml_and_counts() -> None:
    write("config.yaml", example())
    result = run(app, ["validate"])
    assert result.exit_code == 0
    assert result.stdout == "Example: valid. 28 cells, 3 models, 2 prompts, outputs in results/\n"


def test_validate_lists_every_problem_on_standard_error_and_exits_with_1() -> None:
    raw = put(example(), ("solvers", "adam", "restarts"), 0)
    result = run(app, ["validate", "--configfile", write("a.yaml", {**raw, "thread": 1})])
    assert result.exit_code == 1
    assert result.stdout == ""
    first, second, last = result.stderr.splitlines()
    assert first.startswith("a.yaml: solvers.adam.restarts = 0: ")
    assert second.startswith("a.yaml: thread = 1: unknown key")
    assert last == "2 problems; nothing was started"


@pytest.mark.parametrize("command", ["validate", "cells", "plan", "clean"])
def test_outside_a_clone_a_command_says_what_it_needs(command: str, directory: Path) -> None:
    result = run(app, command.split())
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr.startswith(f"{directory}: holds no config.yaml; allowed: `--configfile")
    assert len(result.stderr.splitlines()) == 1
    result = run(app, [*command.split(), "--configfile", "nothere.yaml"])
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr.startswith("nothere.yaml: there is no such file\n")


def test_outside_a_clone_a_name_that_is_no_model_says_what_one_is() -> None:
    result = run(app, ["invert", "hi", "--model", "m", "--site", "block.1"])
    assert result.exit_code == 1
    assert "model 'm': there is none; allowed: a directory" in result.stderr
    assert len(result.stderr.splitlines()) == 1


def test_a_study_is_named_as_a_file_or_as_in_snakemake(directory: Path) -> None:
    named = write("a.yaml", example())
    both = [run(app, ["validate", *how]) for how in ([named], ["--configfile", named])]
    assert both[0].stdout == both[1].stdout
    assert both[0].exit_code == 0
    assert run(app, ["plan", named]).exit_code == 0
    twice = run(app, ["cells", named, "--configfile", named])
    assert "one of them" in twice.stderr


def test_the_version_is_the_packages() -> None:
    assert run(app, ["--version"]).stdout == f"tokinfo {metadata.version('tokinfo')}\n"


@pytest.mark.parametrize("command", ["validate", "cells", "plan", "invert", "sweep", "tokens"])
def test_help_shows_examples_within_80_columns(command: str) -> None:
    shown = run(app, [command, "--help"], env={"COLUMNS": "80"}).stdout
    assert f"\n    tokinfo {command} " in shown
    longest = max(len(line) for line in shown.splitlines() if "    tokinfo" not in line)
    assert longest <= 80


def test_several_configfiles_are_merged_in_order() -> None:
    first = write("a.yaml", example())
    second = write("b.yaml", {"name": "Second", "results": "out"})
    result = run(app, ["validate", "--configfile", first, "--configfile", second])
    assert result.stdout.startswith("Second: valid. 28 cells")
    assert result.stdout.endswith("outputs in out/\n")


def test_values_of_the_command_line_count_last_and_are_named_where_wrong() -> None:
    write("config.yaml", example())
    done = run(app, ["validate", "--config", "name=Mine", "--config", "results=elsewhere"])
    assert done.stdout == "Mine: valid. 28 cells, 3 models, 2 prompts, outputs in elsewhere/\n"
    done = run(app, ["cells", "--config", "solvers={adam: {restarts: 0}}"])
    assert done.exit_code == 1
    assert "solvers.adam.restarts" in done.stderr
    assert "--config" in done.stderr
    done = run(app, ["plan", "--config", "name"])
    assert (done.exit_code, done.stdout) == (1, "")
    assert done.stderr == "--config name: not of the form KEY=VALUE\n"


def test_cells_as_json_are_the_cells_of_the_study_with_their_files() -> None:
    result = run(app, ["cells", "--json", "--configfile", write("a.yaml", example())])
    expected = Study.model_validate(example()).cells()
    assert json.loads(result.stdout) == [
        {**cell.model_dump(), "path": f"results/{cell.path}"} for cell in expected
    ]


def test_cells_prints_one_unbroken_line_for_each_and_their_number() -> None:
    raw = put(example(), ("models", "a-model-" + "x" * 50), {"source": "smol"})
    raw["grids"][0]["models"].append("a-model-" + "x" * 50)
    result = run(app, ["cells", "--configfile", write("a.yaml", raw)])
    assert result.exit_code == 0
    rows = [line.split() for line in result.stdout.splitlines() if " sky " in f"{line} "]
    cells = Study.model_validate(raw).cells()
    assert [row[0] for row in rows] == [cell.model for cell in cells]
    assert [row[5] for row in rows] == [cell.mask.text for cell in cells]
    assert result.stdout.splitlines()[-1] == f"Example: {len(cells)} cells"


def test_cells_of_a_wrong_study_are_not_listed() -> None:
    result = run(app, ["cells", "--configfile", write("a.yaml", {**example(), "grids": 1})])
    assert result.exit_code == 1
    assert result.stdout == ""


def test_schema_is_written_checked_and_found_out_of_date() -> None:
    absent = run(app, ["schema", "--check"])
    assert absent.exit_code == 1
    assert "there is no such file" in absent.stderr
    assert run(app, ["schema"]).exit_code == 0
    assert run(app, ["schema", "--check"]).exit_code == 0
    assert json.loads(SCHEMA.read_text())["$schema"].startswith("https://json-schema.org/")
    SCHEMA.write_text(SCHEMA.read_text() + " ")
    result = run(app, ["schema", "--check"])
    assert result.exit_code == 1
    assert "out of date" in result.stderr


def test_the_schema_in_docs_is_current() -> None:
    result = run(app, ["schema", "--check", "--out", str(REPOSITORY / SCHEMA)])
    assert result.exit_code == 0, "run `tokinfo schema`"


def test_the_schema_accepts_the_example_and_refuses_a_wrong_one() -> None:
    jsonschema = pytest.importorskip("jsonschema")
    validator = jsonschema.Draft202012Validator(json.loads((REPOSITORY / SCHEMA).read_text()))
    validator.check_schema(validator.schema)
    assert list(validator.iter_errors(example())) == []
    assert list(validator.iter_errors(put(example(), ("sources", "flat", "blocks"), 0)))


def test_help_needs_neither_torch_nor_the_schema() -> None:
    code = (
        "import sys; from tokinfo.cli.app import app\n"
        "try: app(['--help'])\n"
        "except SystemExit: pass\n"
        "heavy = {'torch', 'transformers', 'polars', 'pydantic', 'tokenizers', 'snakemake'}\n"
        "print('loaded:', *heavy & set(sys.modules))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "validate" in done.stdout
    assert done.stdout.splitlines()[-1].strip() == "loaded:"


def test_reading_a_study_imports_neither_torch_nor_transformers() -> None:
    path = write("a.yaml", example())
    code = (
        "import sys; from tokinfo.study.load import load_study\n"
        f"load_study({path!r}).cells()\n"
        "print(*{'torch', 'transformers', 'polars', 'tokenizers'} & set(sys.modules))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (MemoryError(), "out of memory"),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate"), "out of memory"),
        (OSError(28, "No space left on device", "a"), "No space left on device: 'a'"),
        (FetchError("nothing there"), "nothing there"),
    ],
    ids=["Python's memory", "torch's memory", "disk", "ours"],
)
def test_a_foreseen_error_of_any_command_is_one_line(
    monkeypatch: pytest.MonkeyPatch, error: Exception, line: str
) -> None:
    def fails(_: object) -> None:
        raise error

    monkeypatch.setattr("tokinfo.workflow.downloads.table", fails)
    done = run(app, ["plan", "--configfile", write("a.yaml", example())])
    assert done.exit_code == 1
    assert line in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_a_defect_of_a_command_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tokinfo.workflow.downloads.table", lambda _: {}["no such key"])
    done = run(app, ["plan", "--configfile", write("a.yaml", example())])
    assert isinstance(done.exception, KeyError)


@pytest.mark.parametrize("value", [10**400, -(10**400), "1" + "0" * 400, 2**53 + 1])
@pytest.mark.parametrize("path", [("solvers", "adam", "steps"), ("threads",)])
def test_a_number_too_large_to_compute_with_is_a_mistake(
    path: tuple[str, ...], value: object
) -> None:
    done = run(app, ["plan", "--configfile", write("a.yaml", put(example(), path, value))])
    assert done.exit_code == 1
    assert done.stderr.startswith(f"a.yaml: {'.'.join(path)} = ")
    assert len(done.stderr.splitlines()) == 2


@pytest.mark.parametrize("command", ["validate", "cells", "plan"])
def test_a_terminal_gets_no_control_characters_of_a_study(command: str) -> None:
    raw = example() | {"name": "\x1b[31mred\x9b2J \u202eleft", "description": "\x07"}
    done = run(app, [command, "--configfile", write("\x1b[2Ja.yaml", raw)])
    assert done.exit_code == 0
    assert all(line.isprintable() for line in done.output.splitlines())
    if command != "plan":
        assert r"\x1b[31mred\x9b2J \u202eleft: " in done.stdout
    done = run(app, [command, "--configfile", write("\x1b[2Ja.yaml", raw | {"\x1b[1m": "\x1b"})])
    assert done.exit_code == 1
    assert all(line.isprintable() for line in done.output.splitlines())


def test_commands_print_in_one_place() -> None:
    texts = {p.name: p.read_text(encoding="utf-8") for p in (PACKAGE / "cli").glob("*.py")}
    assert {name for name, text in texts.items() if "typer.echo(" in text} == {"options.py"}
    assert texts["options.py"].count("typer.echo(") == 1
