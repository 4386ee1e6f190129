"""A cell's file says everything needed to reproduce and judge it."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import torch
from safetensors.torch import save_file

from tests.tiny import CELL
from tokinfo.cell import CellError, run_cell
from tokinfo.io.atomic import SUMS
from tokinfo.models.checkpoint import FACTS, Checkpoint, load
from tokinfo.models.preparing import prepare
from tokinfo.probe.probe import Probe
from tokinfo.solvers import relaxed, watch
from tokinfo.solvers.decoding import write_inverse_gram
from tokinfo.study.cell import CellSettings
from tokinfo.study.sites import Site
from tokinfo.study.sources import MixerSource, Model, TransformerSource
from tokinfo.study.targets import derangement
from tokinfo.tables.recovery import RECOVERED
from tokinfo.tables.schema import RECOVERY_SCHEMA
from tokinfo.text.tokenizer import load_tokenizer, train_tokenizer

V = 300
SOURCES = {
    "flat": MixerSource(form="flat", d_model=32, blocks=2, n_ctx=12, tokenizer="t"),
    "llama": TransformerSource(d_model=32, blocks=2, heads=4, n_ctx=12, tokenizer="t"),
}
WIDE = MixerSource(form="flat", d_model=64, blocks=2, n_ctx=12, tokenizer="t")
PROMPTS = ["some words and others", "others and some"]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Checkpoints and inverse Gram matrices of two untrained models."""
    root = tmp_path_factory.mktemp("cells")
    (root / "text.txt").write_text("\n".join(f"some {i} words and others" for i in range(99)))
    train_tokenizer(root / "text.txt", V, root / "words")
    for name, source in SOURCES.items():
        for quantization in ("float32", "bfloat16", "int8"):
            label = f"{name}-{quantization}"
            model = Model(source=name, state="untrained", quantization=quantization)
            facts = {"source": name, "n_ctx": 12}
            prepare(source, model, 1, root / label, tokenizer=root / "words", facts=facts)
            write_inverse_gram(root / label, root / f"{label}.safetensors")
    for name, source in (("other", SOURCES["flat"]), ("wide", WIDE)):
        model = Model(source=name, state="untrained", seed=1)
        facts = {"source": name, "n_ctx": 12}
        prepare(source, model, 1, root / name, tokenizer=root / "words", facts=facts)
    (root / "bytes.txt").write_text("\n".join(f"{i} {i}" for i in range(99)))
    train_tokenizer(root / "bytes.txt", V, root / "bytes")
    prepare(SOURCES["flat"], model, 1, root / "reader", tokenizer=root / "bytes", facts=facts)
    return root


def run(made: Path, out: Path, label: str = "flat-float32", **changed: Any) -> pl.DataFrame:
    name, quantization = label.split("-")
    solver = changed.pop("with_solver", {"kind": "adam", "steps": 60})
    settings = {
        "solver": solver,
        "prompts": changed.pop("texts", PROMPTS),
        "source": name,
        "state": "untrained",
        "quantization": quantization,
    }
    files = {name: changed.pop(f"{name}_file", None) for name in ("target", "prior", "passages")}
    run_cell(
        CellSettings.model_validate({"cell": {**CELL, "model": label, **changed}, **settings}),
        made / label,
        made / f"{label}.safetensors",
        out,
        **files,
        device="cpu",
        code_digest="abc",
    )
    return pl.read_parquet(out)


def test_rows_have_the_schema_one_for_each_prompt_and_position(made: Path, tmp_path: Path) -> None:
    frame = run(made, tmp_path / "cell.parquet")
    assert frame.schema == RECOVERY_SCHEMA
    words = load_tokenizer(made / "words")
    lengths = [len(words.encode(prompt).ids) for prompt in PROMPTS]
    assert frame.group_by("prompt_id").len().sort("prompt_id")["len"].to_list() == lengths
    assert frame.filter(~pl.col("visible"))["position"].unique().to_list() == [0]
    assert "".join(frame.filter(pl.col("prompt_id") == 0)["true_token"]) == PROMPTS[0]
    assert frame["model_digest"].str.len_chars().to_list() == [64] * len(frame)
    metadata = json.loads(pl.read_parquet_metadata(tmp_path / "cell.parquet")["tokinfo"])
    assert metadata["cell"]["mask"] == "1:"
    assert metadata["settings"]["solver"]["steps"] == 60
    assert "torch" in metadata["versions"]


@pytest.mark.parametrize("label", [f"{n}-{q}" for n in SOURCES for q in ("bfloat16", "int8")])
def test_every_precision_runs_and_its_true_prompt_lies_at_the_floor(
    label: str, made: Path, tmp_path: Path
) -> None:
    frame = run(made, tmp_path / "cell.parquet", label, mask=":")
    assert (frame["true_loss"] <= frame["noise_floor"]).all()
    held = label.split("-")[1]
    assert frame["quantization"].unique().to_list() == [held]
    assert frame["dtype"].unique().to_list() == ["float32" if held == "int8" else held]
    assert frame["outlier_threshold"].unique().to_list() == [6.0 if held == "int8" else None]


def test_passages_come_from_their_file_and_are_kept_with_the_settings(
    made: Path, tmp_path: Path
) -> None:
    texts = [PROMPTS[1], PROMPTS[0]]
    file = tmp_path / "drawn.json"
    file.write_text(json.dumps({"passages": [{"text": text} for text in texts]}))
    drawn = run(made, tmp_path / "drawn.parquet", texts=[], passages_file=file)
    assert drawn["prompt"].unique(maintain_order=True).to_list() == texts
    metadata = json.loads(pl.read_parquet_metadata(tmp_path / "drawn.parquet")["tokinfo"])
    assert metadata["settings"]["prompts"] == texts
    written = run(made, tmp_path / "written.parquet", texts=texts)
    assert drawn.drop("seconds").equals(written.drop("seconds"))


def test_rows_say_how_wide_a_model_is_and_how_far_it_was_trained(
    made: Path, tmp_path: Path
) -> None:
    untrained = run(made, tmp_path / "cell.parquet")
    assert untrained["width"].unique().to_list() == [SOURCES["flat"].d_model]
    columns = ("training_share", "training_tokens", "held_out_loss")
    assert all(untrained[name].null_count() == len(untrained) for name in columns)
    trained = tmp_path / "trained"
    unheld = shutil.ignore_patterns(SUMS)
    shutil.copytree(made / "flat-float32", trained / "flat-float32", ignore=unheld)
    shutil.copy(made / "flat-float32.safetensors", trained)
    facts = json.loads((trained / "flat-float32" / FACTS).read_text())
    facts |= {"training_share": 0.3, "training_tokens": 96, "held_out_loss": 5.5}
    (trained / "flat-float32" / FACTS).write_text(json.dumps(facts))
    frame = run(trained, tmp_path / "trained.parquet")
    assert frame.select(columns).unique().rows() == [(0.3, 96, 5.5)]


def test_padding_to_n_ctx_scores_the_prompts_positions_only(made: Path, tmp_path: Path) -> None:
    plain = run(made, tmp_path / "plain.parquet")
    padded = run(made, tmp_path / "padded.parquet", padding="n_ctx")
    assert len(padded) == len(plain)
    assert padded["true_id"].to_list() == plain["true_id"].to_list()
    assert padded["first_loss"].to_list() > plain["first_loss"].to_list(), "pads are visible too"


@pytest.mark.parametrize("solver", ["chapter", "adam", "joint", "sweep"])
def test_rows_say_which_tokens_were_given_and_have_them_in_place(
    solver: str, made: Path, tmp_path: Path
) -> None:
    brief = {"steps": 5} if solver in ("chapter", "adam") else {}
    if solver == "joint":
        brief = {"rounds": 1, "restarts": 1, "detections": 0, "descent": {"steps": 5}}
    frame = run(
        *(made, tmp_path / "cell.parquet"), known="2:", with_solver={"kind": solver, **brief}
    )
    assert frame.schema == RECOVERY_SCHEMA
    assert frame["known"].unique().to_list() == ["2:"]
    assert (frame["given"] == (frame["position"] >= 2)).all()
    given = frame.filter("given")
    assert given["correct"].is_null().all(), "nothing was sought there"
    if solver != "sweep":
        assert (given["top5_ids"].list.first() == given["true_id"]).all()
    assert given["identified"].null_count() == len(given)
    assert not run(made, tmp_path / "plain.parquet")["given"].any()


@pytest.mark.parametrize(
    ("parametrisation", "kind"),
    [("embedding", "adam"), ("vocabulary", "adam"), ("mixture", "adam"), ("mixture", "chapter")],
)
@pytest.mark.parametrize("label", [f"{name}-float32" for name in SOURCES])
def test_a_restricted_vocabulary_finds_nothing_else(
    label: str, parametrisation: str, kind: str, made: Path, tmp_path: Path
) -> None:
    frame = run(
        *(made, tmp_path / "cell.parquet", label),
        parametrisation=parametrisation,
        with_solver={"kind": kind, "steps": 5, "decode": {"restricted_to": "some words"}},
    )
    allowed = set(load_tokenizer(made / "words").encode("some words").ids)
    assert set(frame["found_id"]) <= allowed
    assert frame["vocabulary"].unique().to_list() == [len(allowed)]
    assert frame["parametrisation"].unique().to_list() == [parametrisation]


def test_a_mixture_of_too_many_entries_is_refused_by_the_name_of_its_cell(
    made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(relaxed, "MOST_ENTRIES", V)
    with pytest.raises(CellError, match=r"cell cells/.*entries of the sequence.*restricted_to"):
        run(made, tmp_path / "cell.parquet", "llama-float32", parametrisation="mixture")
    assert not (tmp_path / "cell.parquet").exists()


@pytest.mark.parametrize("kind", ["chapter", "sweep", "joint"])
def test_columns_that_a_solver_gives_are_there_and_others_null(
    kind: str, made: Path, tmp_path: Path
) -> None:
    settings = {"chapter": {"steps": 5}, "sweep": {}, "joint": {"descent": {"steps": 20}}}[kind]
    frame = run(made, tmp_path / "cell.parquet", with_solver={"kind": kind, **settings})
    hidden = frame.filter(~pl.col("visible"))
    assert hidden["rank"].is_null().all() == (kind == "chapter")
    assert frame.filter(pl.col("visible"))["rank"].is_null().all()
    assert frame["kind"].unique().to_list() == [kind]
    assert frame["published_correct"].is_null().all() == (kind != "chapter")
    assert hidden["around"].to_list() == [{"sweep": "true", "joint": "found"}.get(kind)] * 2


@pytest.mark.parametrize(("kind", "around"), [("sweep", "true"), ("joint", None)])
def test_a_cell_whose_time_is_up_is_whole_and_says_nothing_of_what_was_not_swept(
    kind: str, around: str | None, made: Path, tmp_path: Path
) -> None:
    solver = {"kind": kind, "minutes": 1e-9}
    frame = run(made, tmp_path / "cell.parquet", with_solver=solver)
    assert frame.schema == RECOVERY_SCHEMA
    assert frame["stopped"].unique().to_list() == ["minutes"]
    assert frame["around"].unique().to_list() == [around]
    assert frame.select("rank", "identified", "margin", "bits").null_count().row(0) == (
        (len(frame),) * 4
    )
    assert frame["found_loss"].is_null().all() == (kind == "sweep")
    assert frame.select(RECOVERED.is_null().all()).item()


def test_the_log_of_a_cell_says_how_far_it_is(
    made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(watch, "EVERY", 0)
    run(made, tmp_path / "cell.parquet", with_solver={"kind": "adam", "steps": 5})
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) >= 5
    assert all(line.startswith("adam: 0:0") and "residual" in line for line in lines)


# --- controls -----------------------------------------------------------------------------

JOINT = {"kind": "joint", "descent": {"steps": 60}}


def test_a_search_that_certifies_prompts_certifies_no_control(made: Path, tmp_path: Path) -> None:
    out = tmp_path / "cell.parquet"
    plain = run(made, out, with_solver=JOINT)
    assert plain["verdict"].unique().to_list() == ["certified"]
    assert plain["target"].unique().to_list() == ["own"]
    for target, file in (("shuffled", None), ("of:other", made / "other")):
        control = run(made, out, with_solver=JOINT, target=target, target_file=file)
        assert control["verdict"].unique().to_list() == ["unexplained"]
        assert control["target"].unique().to_list() == [target]
        assert (control["found_loss"] > 1000 * control["noise_floor"]).all()
        # What is hidden, the true tokens and the noise floor stay this model's.
        same = ("true_id", "visible", "noise_floor", "model_digest")
        assert control.select(same).equals(plain.select(same))


def block_output(model: Checkpoint, prompt: str) -> torch.Tensor:
    """Activations [position, width] after the first block, by the model itself."""
    ids = torch.tensor(model.tokenizer.encode(prompt).ids)
    found = Probe(model.decoder, Site("block", 1))(model.embedding[ids][None])
    return found[0].double()


def test_a_shuffled_targets_true_loss_is_the_distance_of_the_permuted_activations(
    made: Path, tmp_path: Path
) -> None:
    """Position by position, with nothing of the cell's code."""
    model = load(made / "flat-float32")
    frame = run(made, tmp_path / "cell.parquet", target="shuffled", mask="2:")
    for number, prompt in enumerate(PROMPTS):
        states = block_output(model, prompt)
        order = derangement(len(states))
        expected = sum(
            float((states[place] - states[order[place]]).abs().sum())
            for place in range(2, len(states))
        )
        (true_loss,) = frame.filter(pl.col("prompt_id") == number)["true_loss"].unique()
        assert true_loss == pytest.approx(expected, rel=1e-4)


def test_another_models_true_loss_is_the_distance_of_two_models(made: Path, tmp_path: Path) -> None:
    out = tmp_path / "cell.parquet"
    there = run(made, out, target="of:other", target_file=made / "other", mask=":")
    metadata = json.loads(pl.read_parquet_metadata(out)["tokinfo"])
    digest = json.loads((made / "other" / FACTS).read_text())["digest"]
    assert metadata["settings"]["target_digest"] == digest
    assert there["model_digest"].unique().to_list() != [digest]
    losses = there.group_by("prompt_id").agg(pl.col("true_loss").first()).sort("prompt_id")
    for prompt, loss in zip(PROMPTS, losses["true_loss"], strict=True):
        mine, theirs = (
            block_output(load(made / name), prompt) for name in ("flat-float32", "other")
        )
        assert loss == pytest.approx(float((mine - theirs).abs().sum()), rel=1e-4)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"target": "of:wide"}, "target of:wide: its activations are 64 wide, this model's 32"),
        (
            {"target": "of:reader", "texts": ["some and"]},
            "target of:reader: its tokenizer reads the prompts as other tokens",
        ),
        ({"target": "shuffled", "mask": "-1"}, "prompt 0: 1 of its .* visible; .* needs two"),
    ],
)
def test_a_target_that_does_not_suit_is_reported_in_one_line(
    changes: dict[str, Any], says: str, made: Path, tmp_path: Path
) -> None:
    other = changes["target"].removeprefix("of:")
    file = made / other if (made / other).is_dir() else None
    with pytest.raises(CellError, match=says):
        run(made, tmp_path / "cell.parquet", target_file=file, **changes)


def test_a_prompt_that_explains_its_shuffled_activations_is_refused(
    made: Path, tmp_path: Path
) -> None:
    """Attention over one repeated token gives the same at every position."""
    texts = [PROMPTS[0], "aaaa"]
    with pytest.raises(CellError, match="prompt 1: explains target 'shuffled'"):
        run(made, tmp_path / "c.parquet", "llama-float32", target="shuffled", texts=texts)


# --- the prior ----------------------------------------------------------------------------


def write_prior(path: Path, size: int = V) -> tuple[Path, list[float]]:
    weights = [1.0 + (7 * token) % 11 for token in range(size)]
    probability = torch.tensor(weights, dtype=torch.float64)
    save_file({"probability": probability / probability.sum()}, path)
    return path, weights


@pytest.mark.parametrize("restricted", [None, "some words and others\nothers some"])
@pytest.mark.parametrize("solver", [{"kind": "sweep"}, JOINT], ids=["sweep", "joint"])
def test_bits_under_a_prior_are_the_surprise_of_an_identified_token(
    solver: dict[str, Any], restricted: str | None, made: Path, tmp_path: Path
) -> None:
    prior, weights = write_prior(tmp_path / "prior.safetensors")
    words = load_tokenizer(made / "words")
    candidates = list(range(V)) if restricted is None else sorted({*words.encode(restricted).ids})
    frame = run(
        made,
        tmp_path / "cell.parquet",
        with_solver={**solver, "decode": {"restricted_to": restricted}},
        prior_file=prior,
    )
    total = sum(weights[token] for token in candidates)
    chances = [weights[token] / total for token in candidates]
    average = -sum(chance * math.log2(chance) for chance in chances)
    assert frame["prior_entropy"].to_list() == pytest.approx([average] * len(frame))
    hidden = frame.filter(pl.col("identified") == "identifiable")
    assert len(hidden) == len(PROMPTS)
    for token, low, high in hidden.select("true_id", "prior_bits", "prior_bits_high").iter_rows():
        assert low == high == pytest.approx(-math.log2(weights[token] / total))


def test_without_a_prior_there_are_no_prior_bits(made: Path, tmp_path: Path) -> None:
    frame = run(made, tmp_path / "cell.parquet", with_solver={"kind": "sweep"})
    for name in ("prior_bits", "prior_bits_high", "prior_entropy"):
        assert frame[name].is_null().all()


def test_a_prior_of_another_vocabulary_is_refused(made: Path, tmp_path: Path) -> None:
    prior, _ = write_prior(tmp_path / "prior.safetensors", V - 1)
    with pytest.raises(CellError, match=f"the prior has {V - 1} tokens, the embedding {V} rows"):
        run(made, tmp_path / "c.parquet", with_solver={"kind": "sweep"}, prior_file=prior)


def test_a_failing_cell_is_named_and_leaves_no_file(made: Path, tmp_path: Path) -> None:
    out = tmp_path / "cell.parquet"
    with pytest.raises(CellError, match=r"cells/flat-float32/block.1/from1/.*non-finite"):
        run(made, out, with_solver={"kind": "chapter", "learning_rate": 1e38})
    with pytest.raises(CellError, match=r"flat-float32.*allowed: 1 to 12"):
        run(made, out, padding="n_ctx", texts=["words " * 30])
    with pytest.raises(CellError, match=r"flat-float32.*every position visible"):
        run(made, out, with_solver={"kind": "sequential"})
    assert list(tmp_path.iterdir()) == []
