"""One prompt on the command line, on tiny checkpoints made here."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import polars as pl
import pytest
import torch
import yaml
from safetensors.torch import save_file
from typer.testing import CliRunner

from tests.example_study import example
from tokinfo.cli.app import app
from tokinfo.io.atomic import SUMS
from tokinfo.models.build import new_model
from tokinfo.models.checkpoint import load, save_model
from tokinfo.models.preparing import prepare
from tokinfo.probe.probe import Probe
from tokinfo.study.sites import Site
from tokinfo.study.sources import Model, TransformerSource
from tokinfo.tables.schema import RECOVERY_SCHEMA
from tokinfo.text.tokenizer import train_tokenizer

run = CliRunner().invoke
PROMPT = "some words and others"
V = 300


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The embedding and first two blocks of a model of four."""
    root = tmp_path_factory.mktemp("tiny")
    (root / "text.txt").write_text("\n".join(f"some {i} words and others" for i in range(99)))
    train_tokenizer(root / "text.txt", V, root / "model")
    source = TransformerSource(d_model=32, blocks=4, heads=4, n_ctx=16, tokenizer="t")
    save_model(new_model(source, V, 3), root / "model")
    facts = {"source": "llama", "n_ctx": 16}
    (root / "model" / SUMS).unlink()  # its files are others now
    prepare(root / "model", Model(source="llama"), 2, root / "checkpoint", facts=facts)
    return root / "checkpoint"


@pytest.fixture(autouse=True)
def directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.chdir(tmp_path)
    threads = torch.get_num_threads()
    yield tmp_path
    torch.set_num_threads(threads)


def study(results: str = "results") -> str:
    raw = example() | {"results": results}
    quick = {"kind": "joint", "rounds": 3, "descent": {"steps": 40}}
    raw["solvers"] |= {
        "quick": quick,
        "asking": quick | {"sweep_found": True},
        "silent": quick | {"sweep_found": False},
    }
    Path("study.yaml").write_text(yaml.safe_dump(raw))
    return "study.yaml"


def of(checkpoint: Path, site: str = "block.1", visible: str | None = "1:") -> list[str]:
    """The options that name a checkpoint, a site and a mask."""
    mask = [] if visible is None else ["--visible", visible]
    return ["--model", str(checkpoint), "--site", site, *mask]


def in_study(name: str, site: str, visible: str = "1:") -> list[str]:
    """The options that name a model of the study."""
    return ["--study", study(), "--model", name, "--site", site, "--visible", visible]


def prepared(checkpoint: Path) -> None:
    """Make the checkpoint the study's."""
    home = Path("results/checkpoints/llama")
    home.mkdir(parents=True, exist_ok=True)
    (home / "2").symlink_to(checkpoint)


def cells(output: str) -> list[list[str]]:
    """The lines of the table, cut at two spaces or more."""
    lines = [line.strip() for line in output.splitlines() if line.strip()[:1].isdigit()]
    return [[part.strip() for part in line.split("  ") if part.strip()] for line in lines]


def test_a_sweep_ranks_the_true_token_at_every_hidden_position(checkpoint: Path) -> None:
    done = run(app, ["sweep", *of(checkpoint, "block.2", "2:"), PROMPT])
    assert done.exit_code == 0, done.output
    rows = cells(done.stdout)
    assert rows[0][1:5] == ["hidden", "some", "some", "1"]
    assert [row[-1] for row in rows[:2]] == ["identifiable"] * 2
    assert all(row[1] == "visible" and len(row) == 3 for row in rows[2:])
    assert "Identifiable: 2 of 2 swept positions" in done.stdout
    assert done.stderr == "", "no progress bar without a terminal"


def test_all_positions_are_swept_and_their_noise_found_where_asked(checkpoint: Path) -> None:
    done = run(app, ["sweep", *of(checkpoint), "--all", "--threshold", "--json", PROMPT])
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)
    assert all(row["rank"] is not None for row in found["rows"])
    assert all(row["noise_threshold"] is not None for row in found["rows"])
    assert found["certified"] is None


def test_an_inversion_says_what_is_certified_and_recovered(checkpoint: Path) -> None:
    prepared(checkpoint)
    arguments = [*in_study("llama", "block.1"), "--solver", "quick"]
    done = run(app, ["invert", "--judge", *arguments, PROMPT])
    assert done.exit_code == 0, done.output
    assert "Prompt: certified" in done.stdout
    assert "Recovered 1 of 1 hidden tokens: found (1), in a certified prompt (yes)" in done.stdout
    assert cells(done.stdout)[0][-1] == "found, identifiable"


def test_a_control_is_certified_and_recovers_nothing(checkpoint: Path) -> None:
    done = run(app, ["invert", "--judge", *of(checkpoint, visible=":2"), PROMPT])
    assert "Prompt: certified" in done.stdout
    assert "Nothing visible depends on" in done.stdout
    assert "Recovered" not in done.stdout
    assert cells(done.stdout)[-1][-1] == "a control"


@pytest.mark.parametrize(
    ("solver", "judge", "judged"),
    [
        ("quick", [], False),
        ("asking", [], True),
        ("silent", [], False),
        ("silent", ["--judge"], True),
        ("mixture", ["--judge"], True),
    ],
)
def test_a_found_prompt_is_swept_around_where_that_is_asked_for(
    solver: str, judge: list[str], judged: bool, checkpoint: Path
) -> None:
    prepared(checkpoint)
    done = run(app, ["invert", *in_study("llama", "block.1"), "--solver", solver, *judge, PROMPT])
    assert done.exit_code == 0, done.output
    assert "Prompt: certified" in done.stdout
    assert ("Recovered 1 of 1" in done.stdout) == judged
    assert ("nothing was swept around" in done.stdout) != judged
    assert (cells(done.stdout)[0][-1] == "found, identifiable") == judged


@pytest.mark.parametrize("named", [False, True])
def test_by_default_a_search_is_mixture_or_the_studys_joint(named: bool, checkpoint: Path) -> None:
    prepared(checkpoint)
    where = in_study("llama", "block.1") if named else of(checkpoint)
    done = run(app, ["invert", *where, PROMPT])
    assert done.exit_code == 0, done.output
    assert f"l1, {'asking' if named else 'mixture'}" in done.stdout
    assert "Prompt: certified" in done.stdout
    # The study's first joint solver asks for sweeps.
    assert ("nothing was swept around" in done.stdout) != named


def test_a_descent_claims_no_recovery(checkpoint: Path) -> None:
    done = run(app, ["invert", *of(checkpoint), "--solver", "adam", PROMPT])
    assert "so none counts as recovered" in done.stdout


def test_known_tokens_are_not_swept_and_not_counted(checkpoint: Path) -> None:
    done = run(app, ["sweep", *of(checkpoint, visible="3:"), "--known", "1:", PROMPT])
    assert done.exit_code == 0, done.output
    assert "sweep, known 1:" in done.stdout
    assert [row[1] for row in cells(done.stdout)][1:] == ["known"] * (len(cells(done.stdout)) - 1)
    assert "Identifiable: 1 of 1 swept positions" in done.stdout
    arguments = [*of(checkpoint, visible="3:"), "--known", "visible", "--solver", "adam"]
    done = run(app, ["invert", *arguments, PROMPT])
    assert done.exit_code == 0, done.output
    assert "of 3 hidden tokens" in done.stdout


CHAT = [{"role": "system", "content": "be"}, {"role": "user", "content": "why"}]


@pytest.mark.parametrize("written", [yaml.safe_dump, json.dumps])
def test_messages_take_the_prompts_place(
    written: Callable[[object], str], checkpoint: Path, directory: Path
) -> None:
    shutil.copytree(checkpoint, "chat", ignore=shutil.ignore_patterns(SUMS))
    Path("chat/chat_template.jinja").write_text(
        "{% for m in messages %}{{ m.content }}{% endfor %}"
    )
    Path("chat.txt").write_text(written(CHAT))
    arguments = ["sweep", *of(Path("chat"), visible="hide=system")]
    done = run(app, [*arguments, "--messages", "chat.txt", "--known", "visible"])
    assert done.exit_code == 0, done.output
    assert [row[1:4] for row in cells(done.stdout)] == [
        *(["hidden", letter, letter] for letter in "be"),
        *(["known", letter] for letter in "why"),
    ]


@pytest.mark.parametrize(
    ("arguments", "content", "says"),
    [
        ([], "", "give a prompt, or --messages FILE"),
        ([PROMPT, "--messages", "m"], "", "give a prompt, or --messages FILE"),
        (["--messages", "absent"], "", "absent: there is no such file"),
        (["--messages", "m"], "[{", "m:1: is not valid YAML"),
        (["--messages", "m"], "[{role: king, content: x}]", "m: messages[0].role = 'king'"),
        (["--messages", "m"], "[]", "m: messages = []"),
        (["--messages", "m"], json.dumps(CHAT), "the model has no chat template"),
        ([PROMPT, "--known", "a"], "", "known 'a': allowed: none, visible"),
        ([PROMPT, "--known", "99:"], "", "known '99:': gives none of"),
        ([PROMPT, "--known", ":"], "", "known ':': leaves nothing to find"),
        ([PROMPT, "--out", "rows.csv"], "", "--out rows.csv"),
        ([PROMPT, "--solver", "adam"], "", "solver 'adam' is of kind adam"),
        ([PROMPT, "--hide", "some"], "", "visible and hide: allowed: one of them"),
    ],
)
def test_what_does_not_suit_a_prompt_is_one_line(
    arguments: list[str], content: str, says: str, checkpoint: Path
) -> None:
    Path("m").write_text(content)
    done = run(app, ["sweep", *of(checkpoint), *arguments])
    assert done.exit_code == 1
    assert says in done.stderr
    assert done.stderr.count("\n") == 1


def test_a_mask_may_begin_with_a_minus(checkpoint: Path) -> None:
    for mask in ("-1", "-2:"):
        done = run(app, ["sweep", *of(checkpoint, "mlp.1", mask), PROMPT])
        assert done.exit_code == 0, done.output
        assert cells(done.stdout)[-1][1] == "visible"


def test_the_studys_checkpoint_is_used_the_smallest_that_holds_the_site(checkpoint: Path) -> None:
    prepared(checkpoint)
    deeper = Path("results/checkpoints/llama/3")
    deeper.mkdir()
    (deeper / "tokinfo.json").write_text("never read")
    done = run(app, ["sweep", *in_study("llama", "attention.1"), PROMPT])
    assert done.exit_code == 0, done.output
    assert done.stdout.startswith("llama (llama, trained, float32) at attention.1, mask 1:, l1")


def test_a_model_that_is_no_path_is_looked_up_in_the_study_here(checkpoint: Path) -> None:
    prepared(checkpoint)
    Path(study()).rename("config.yaml")
    done = run(app, ["sweep", "--model", "llama", "--site", "block.1", PROMPT])
    assert done.exit_code == 0, done.output


@pytest.mark.parametrize(("site", "blocks"), [("embedding", 0), ("block.1", 1), ("block.last", 4)])
def test_a_missing_checkpoint_is_answered_with_the_command_that_makes_it(
    site: str, blocks: int
) -> None:
    done = run(app, ["sweep", *in_study("llama", site), PROMPT])
    assert done.exit_code == 1
    target = f"results/checkpoints/llama/{blocks}"
    command = f"snakemake {target} --cores all --configfile study.yaml"
    assert done.stderr == f"{target}: not prepared yet; this makes it: {command}\n"
    done = run(app, ["sweep", *in_study("llama", site), "--config", "threads=1", PROMPT])
    assert done.stderr.endswith(f"{command} --config threads=1\n")


BAD = {
    "model": (["absent", "block.1"], [], "model 'absent': allowed: flat, llama, smol"),
    "depth": (["llama", "block.9"], [], "site block.9"),
    "site": (["llama", "head.1"], [], "head.1"),
    "solver": (["llama", "block.1"], ["--solver", "x"], "solver 'x': allowed: adam, asking"),
    "kind": (["llama", "block.1"], ["--solver", "adam"], "solver 'adam' is of kind adam"),
    "precision": (["llama", "block.1"], ["--dtype", "float32"], "a study's model has its own"),
}


@pytest.mark.parametrize("what", BAD)
def test_what_the_study_does_not_have_is_one_line(what: str) -> None:
    named, more, says = BAD[what]
    done = run(app, ["sweep", *in_study(*named), *more, PROMPT])
    assert done.exit_code == 1
    assert says in done.stderr
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("site", "visible", "more", "says"),
    [
        ("block.3", "1:", [PROMPT], "the checkpoint holds 2 of 4 blocks"),
        ("block.1", "a:", [PROMPT], "mask 'a:'"),
        ("block.1", ":", [PROMPT], "there is nothing to sweep"),
        ("block.1", "99:", [PROMPT], "leaves none of"),
        ("block.1", "1:", [PROMPT * 9], "tokens, the model holds 16"),
        ("block.1", "1:", ["a" * 120_000], "tokens, the model holds 16"),
        ("block.1", "1:", ["a\udcff"], "the prompt is not UTF-8"),
        ("block.1", "a\udcff\x1b:", [PROMPT], r"mask 'a\udcff\x1b:'"),
        ("block.1", "1:", [PROMPT, "--metric", "l3"], "metric 'l3'"),
        ("block.1", "1:", [PROMPT, "--quantization", "int8"], "precision is fixed"),
    ],
)
def test_what_does_not_suit_a_checkpoint_is_one_line(
    site: str, visible: str, more: list[str], says: str, checkpoint: Path
) -> None:
    done = run(app, ["sweep", *of(checkpoint, site, visible), *more])
    assert done.exit_code == 1
    assert says in done.stderr
    assert done.stderr.count("\n") == 1
    assert done.stdout == ""


@pytest.mark.parametrize(
    ("model", "says"), [(".", "no config.json there"), ("nothing", "save_pretrained")]
)
def test_a_directory_that_is_no_model_is_one_line(
    model: str, says: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("TOKINFO_CACHE", str(tmp_path / "cache"))
    done = run(app, ["invert", "--model", model, "--site", "block.1", PROMPT])
    assert done.exit_code == 1
    assert says in done.stderr
    assert done.stderr.count("\n") == 1


def test_rows_are_written_as_a_cell_writes_them(checkpoint: Path) -> None:
    done = run(app, ["invert", *of(checkpoint), "--out", "rows.parquet", "--json", PROMPT])
    assert done.exit_code == 0, done.output
    table = pl.read_parquet("rows.parquet")
    assert dict(table.schema) == RECOVERY_SCHEMA
    said = json.loads(done.stdout)
    assert said["text"] == PROMPT
    assert said["certified"]
    assert [row["found_id"] for row in said["rows"]] == table["found_id"].to_list()


def test_tokens_are_numbered_as_masks_count_them(checkpoint: Path) -> None:
    done = run(app, ["tokens", "--model", str(checkpoint), "some words"])
    assert done.exit_code == 0, done.output
    lines = [line.split(maxsplit=1) for line in done.stdout.splitlines()]
    assert [number for number, _ in lines] == list(map(str, range(len(lines))))
    as_json = run(app, ["tokens", "--model", str(checkpoint), "--json", "some words"])
    assert "".join(json.loads(as_json.stdout)) == "some words"


def test_activations_take_the_prompts_place(checkpoint: Path) -> None:
    loaded = load(checkpoint)
    ids = loaded.tokenizer.encode(PROMPT).ids
    probe = Probe(loaded.decoder, Site.parse("block.1"))
    kept = probe(loaded.embedding[ids][None])[0, 1:]
    save_file({"activations": kept.contiguous()}, "kept.safetensors")
    where = ["--model", str(checkpoint), "--site", "block.1", "--activations", "kept.safetensors"]
    for more in (
        ["--positions", "1:", "--length", str(len(ids))],
        ["--positions", f"1:{len(ids)}"],
    ):
        done = run(app, ["invert", *where, *more, "--judge", "--json"])
        assert done.exit_code == 0, done.output
        said = json.loads(done.stdout)
        assert said["text"] == PROMPT
        assert said["claims"] == {"0": "some"}
        assert said["correct"] is None
    for more, says in (
        ([PROMPT], "give a prompt, or --messages FILE, or --activations FILE"),
        (["--visible", "1:"], "in place of masks"),
        (["--positions", "1:"], "needs --length"),
        (["--positions", "1:9", "--token", "x"], "POSITION=TEXT"),
    ):
        done = run(app, ["invert", *where, *more])
        assert done.exit_code == 1
        assert says in done.stderr


def test_what_can_be_refused_without_torch_is() -> None:
    arguments = ["sweep", *in_study("llama", "block.1"), "x"]
    code = (
        "import sys; from tokinfo.cli.app import app\n"
        f"try: app({arguments!r})\n"
        "except SystemExit: pass\n"
        "print({'torch', 'transformers'} & set(sys.modules))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "not prepared yet" in done.stderr
    assert done.stdout.strip() == "set()"
