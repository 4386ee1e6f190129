"""Every figure is drawn for any study, twice the same, and says when there is nothing to draw."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from pkgutil import resolve_name
from typing import Any

import polars as pl
import pytest
from PIL import Image

from tests.synthetic_recovery import (
    FakeModel,
    cell_rows,
    default_models,
    frame,
    identifiability_study,
    known_rows,
    swept_rows,
    write_tables,
)
from tokinfo.report.figures import data, style
from tokinfo.report.figures.loss import loss_curves
from tokinfo.report.figures.panels import note_weights
from tokinfo.report.figures.training import training_curves
from tokinfo.workflow.rules import FIGURES

FLAT, SMOL = default_models()[0], default_models()[8]
SUMMARY = [name for name, figure in FIGURES.items() if figure.table == "summary"]
IDENTIFIABILITY = [name for name, f in FIGURES.items() if f.category == "Identifiability"]


def draw(name: str, table: Path, svg: Path, png: Path) -> None:
    resolve_name(FIGURES[name].function)(table, svg=svg, png=png)


def study(kind: str) -> list[dict[str, Any]]:
    """Rows of a small study that lacks something."""
    if kind == "nothing hidden":
        return cell_rows(FLAT, mask=":")
    if kind == "nothing visible is scored":
        return cell_rows(FLAT, mask="1:", visible=False, padding="n_ctx")
    if kind == "everything visible is known":
        return known_rows(cell_rows(FLAT)) + known_rows(swept_rows(SMOL)) + cell_rows(FLAT)
    if kind == "one cell of one block":
        return cell_rows(FakeModel("a", "a", "new-family", depth=1))
    if kind == "embedding and odd sites":
        rows = cell_rows(FLAT, block=0) + cell_rows(FLAT, site="attention.3", block=3)
        return rows + cell_rows(FLAT, site="mlp.8", block=8)
    if kind == "everything that varies":
        rows = []
        for model in (FLAT, SMOL, FakeModel("x-nf4", "x", "gpt2", 12, quantization="nf4")):
            for mask in (":", ":2", "::2", "-1", "0", "2:5", "-3:"):
                for block in (1, 2, model.depth):
                    rows += cell_rows(model, mask=mask, block=block, metric="l1+cosine")
            rows += cell_rows(model, solver="chapter", seed=3, causal=False)
            rows += cell_rows(model, solver="chapter", seed=4, causal=False)
            rows += cell_rows(model, prompts="other", residual=False)
        return rows
    if kind == "solvers on different cells":
        return cell_rows(FLAT, solver="adam") + cell_rows(SMOL, solver="chapter")
    if kind == "loss of zero":
        return cell_rows(FLAT, loss=0.0) + cell_rows(FLAT, block=2, loss=-1e-9)
    if kind == "few candidates":
        return cell_rows(FLAT, vocabulary=12)
    if kind == "sweeps alone":
        return swept_rows(FLAT) + swept_rows(SMOL, block=30, mask="3:")
    if kind == "joint searches alone":
        return swept_rows(FLAT, around="found") + swept_rows(SMOL, around="found", mask="-1")
    if kind == "controls alone":
        return swept_rows(FLAT, mask=":2") + swept_rows(FLAT, around="found", mask=":2")
    if kind == "targets that nothing explains alone":
        return [row | {"target": "shuffled"} for row in cell_rows(FLAT) + swept_rows(FLAT)]
    if kind == "no noise and no floor":
        return swept_rows(FLAT, floor=0.0, threshold=None) + cell_rows(FLAT)
    if kind == "thresholds beyond both ends":
        rows = swept_rows(FLAT, threshold=float("inf")) + swept_rows(SMOL, there=0.0)
        return rows + swept_rows(FLAT, mask="3:", there=0.5, threshold=float("inf"))
    raise AssertionError(kind)


KINDS = (
    "nothing hidden",
    "nothing visible is scored",
    "everything visible is known",
    "one cell of one block",
    "embedding and odd sites",
    "everything that varies",
    "solvers on different cells",
    "loss of zero",
    "few candidates",
    "sweeps alone",
    "joint searches alone",
    "controls alone",
    "targets that nothing explains alone",
    "no noise and no floor",
    "thresholds beyond both ends",
)


def tables(rows: list[dict[str, Any]], directory: Path) -> Path:
    return write_tables(frame(rows), directory)[0]


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    rows = []
    for model in default_models()[:4] + default_models()[8:10]:
        for mask in (":", "1:", "3:"):
            for metric in ("l1", "cosine"):
                for solver in ("adam", "chapter"):
                    rows += cell_rows(model, mask=mask, metric=metric, solver=solver)
    return write_tables(frame(rows), tmp_path_factory.mktemp("small"))[0]


@pytest.mark.parametrize("name", SUMMARY)
def test_a_figure_is_an_svg_and_a_png_of_page_width(name: str, small: Path, tmp_path: Path) -> None:
    draw(name, small, tmp_path / "f.svg", tmp_path / "f.png")
    assert (tmp_path / "f.svg").read_text().lstrip().startswith("<?xml")
    with Image.open(tmp_path / "f.png") as image:
        assert image.width == 1500
        assert image.height < 3000
        assert len(image.convert("RGB").getcolors(1 << 24) or []) > 20
    assert sorted(p.name for p in tmp_path.iterdir()) == ["f.png", "f.svg"]


@pytest.mark.parametrize("name", SUMMARY)
def test_a_figure_is_the_same_file_every_time(name: str, small: Path, tmp_path: Path) -> None:
    for copy in ("a", "b"):
        draw(name, small, tmp_path / f"{copy}.svg", tmp_path / f"{copy}.png")
    for form in ("svg", "png"):
        assert (tmp_path / f"a.{form}").read_bytes() == (tmp_path / f"b.{form}").read_bytes()


@pytest.mark.filterwarnings("error")  # the layout warns when panels have no room
@pytest.mark.parametrize("kind", KINDS)
def test_every_figure_copes_with_a_study_of(kind: str, tmp_path: Path) -> None:
    summary = tables(study(kind), tmp_path)
    for name in (*SUMMARY, *IDENTIFIABILITY):
        table = summary if name in SUMMARY else tmp_path / "recovery.parquet"
        draw(name, table, tmp_path / f"{name}.svg", tmp_path / f"{name}.png")
        assert (tmp_path / f"{name}.png").stat().st_size > 5_000


@pytest.mark.parametrize("name", SUMMARY)
def test_an_empty_summary_still_makes_a_figure(name: str, small: Path, tmp_path: Path) -> None:
    pl.read_parquet(small).clear().write_parquet(tmp_path / "summary.parquet")
    draw(name, tmp_path / "summary.parquet", tmp_path / "f.svg", tmp_path / "f.png")
    assert (tmp_path / "f.png").exists()


def test_nothing_hidden_is_said_in_words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    monkeypatch.setattr(style, "message", lambda figure, text: said.append(text))
    summary = tables(study("nothing hidden"), tmp_path)
    draw("found_by_mask", summary, tmp_path / "f.svg", tmp_path / "f.png")
    assert said == ["No hidden positions in this study: every mask leaves all tokens visible."]


def test_a_killed_figure_leaves_no_file(
    small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from matplotlib.figure import Figure

    def broken(self: Figure, path: Path, **_: Any) -> None:
        path.write_text("half")
        raise OSError("disk full")

    monkeypatch.setattr(Figure, "savefig", broken)
    with pytest.raises(OSError, match="disk full"):
        draw("by_metric", small, tmp_path / "f.svg", tmp_path / "f.png")
    assert not list(tmp_path.iterdir())


def test_figures_and_tables_need_no_torch() -> None:
    code = (
        "import sys, tokinfo.report.figures, tokinfo.tables.summary, tokinfo.report.pages.strips; "
        "print(sorted({'torch', 'transformers'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.fixture(scope="module")
def swept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("swept")
    models = default_models()[:3] + default_models()[8:10]
    return write_tables(identifiability_study(models), directory)[1]


@pytest.mark.parametrize("name", IDENTIFIABILITY)
def test_a_figure_on_identifiability_is_the_same_file_every_time(
    name: str, swept: Path, tmp_path: Path
) -> None:
    for copy in ("a", "b"):
        draw(name, swept, tmp_path / f"{copy}.svg", tmp_path / f"{copy}.png")
    for form in ("svg", "png"):
        assert (tmp_path / f"a.{form}").read_bytes() == (tmp_path / f"b.{form}").read_bytes()
    with Image.open(tmp_path / "a.png") as image:
        assert image.width == 1500
        assert image.height < 3000
        assert len(image.convert("RGB").getcolors(1 << 24) or []) > 20


@pytest.mark.parametrize("name", IDENTIFIABILITY)
def test_figures_of_a_study_without_sweeps_say_so(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    monkeypatch.setattr(style, "message", lambda figure, text: said.append(text))
    tables(cell_rows(FLAT), tmp_path)
    draw(name, tmp_path / "recovery.parquet", tmp_path / "f.svg", tmp_path / "f.png")
    assert len(said) == 1
    assert "sweep in this study" in said[0]


def test_figures_of_recovery_show_descents_alone(tmp_path: Path) -> None:
    rows = cell_rows(FLAT) + swept_rows(FLAT) + swept_rows(FLAT, around="found")
    # A joint search that swept nothing is none either.
    rows += cell_rows(FLAT, solver="joint", mask="3:")
    loaded = data.load(tables(rows, tmp_path))
    assert {row["solver"] for row in loaded} == {"adam"}


def test_controls_change_no_figure(tmp_path: Path) -> None:
    rows = cell_rows(FLAT) + swept_rows(FLAT) + swept_rows(FLAT, around="found")
    rows = [row | {"curve_steps": [0, 9], "curve": [5.0, 0.5]} for row in rows]
    changes = {"target": "of:other", "correct": True, "curve": [5.0, 4.0], "identified": None}
    drawn = []
    for name, extra in (("without", []), ("with", [row | changes for row in rows])):
        directory = tmp_path / name
        directory.mkdir()
        summary = tables(rows + extra, directory)
        for figure in (*SUMMARY, *IDENTIFIABILITY):
            table = summary if figure in SUMMARY else directory / "recovery.parquet"
            draw(figure, table, directory / f"{figure}.svg", directory / f"{figure}.png")
        loss_curves(directory / "recovery.parquet", directory / "l.svg", directory / "l.png")
        drawn.append({path.name: path.read_bytes() for path in directory.glob("*.svg")})
    assert len(drawn[0]) == len(SUMMARY) + len(IDENTIFIABILITY) + 1
    assert drawn[0] == drawn[1]


# --- what is drawn ------------------------------------------------------------------------


def test_models_stand_in_the_order_of_families_and_states(small: Path) -> None:
    assert data.distinct(data.load(small), "label") == [
        "flat",
        "flat-untrained",
        "expanded",
        "expanded-untrained",
        "smollm2",
        "smollm2-int8",
    ]


def test_seeds_are_averaged_and_variants_keep_a_line_each(tmp_path: Path) -> None:
    rows = [row for seed in (0, 1, 2) for row in cell_rows(FLAT, seed=seed)]
    rows += cell_rows(FLAT, causal=False)
    loaded = data.hidden(data.load(tables(rows, tmp_path)))
    assert [(row["label"], row["n_seeds"]) for row in loaded] == [
        ("flat", 3),
        ("flat (acausal)", 1),
    ]
    shares = pl.read_parquet(tmp_path / "summary.parquet").filter(
        ~pl.col("visible") & pl.col("causal")
    )
    assert loaded[0]["top1"] == pytest.approx(shares["top1"].mean())


def test_the_last_block_of_models_of_different_depth_is_one_place(tmp_path: Path) -> None:
    rows = cell_rows(FLAT, block=8) + cell_rows(SMOL, block=30) + cell_rows(SMOL, block=8)
    loaded = data.load(tables(rows, tmp_path))
    assert {(row["model"], row["block"]): row["place"] for row in loaded} == {
        ("flat", 8): "last block",
        ("smollm2", 30): "last block",
        ("smollm2", 8): "block 8",
    }


def test_many_places_become_the_shallowest_and_the_deepest(tmp_path: Path) -> None:
    rows = [row for block in (1, 2, 4, 8) for row in cell_rows(FLAT, block=block)]
    kept = data.at_few_places(data.load(tables(rows, tmp_path)))
    assert {(row["block"], row["place"]) for row in kept} == {
        (1, "shallowest site"),
        (8, "deepest site"),
    }


def test_many_masks_become_a_few_and_the_others_are_counted(tmp_path: Path) -> None:
    rows = [
        row for mask in ("1:", "2:", "3:", "4:", "5:", "6:") for row in cell_rows(FLAT, mask=mask)
    ]
    masks, sentence = data.few_masks(data.load(tables(rows, tmp_path)))
    assert masks[0] == "1:"
    assert masks[-1] == "6:"
    assert (len(masks), sentence) == (4, "2 more masks are in the tables. ")


def test_solvers_are_compared_only_where_both_ran(tmp_path: Path) -> None:
    rows = cell_rows(FLAT, solver="adam", mask="1:") + cell_rows(FLAT, solver="chapter", mask="1:")
    rows += cell_rows(FLAT, solver="adam", mask="3:") + cell_rows(FLAT, solver="short", mask="-1")
    rows += cell_rows(SMOL, solver="adam", mask="3:")
    loaded = data.load(tables(rows, tmp_path))
    kept = data.matched(loaded, "solver")
    assert {(row["model"], row["mask"], row["solver"]) for row in kept} == {
        ("flat", "1:", "adam"),
        ("flat", "1:", "chapter"),
        ("smollm2", "3:", "adam"),
    }
    labels = {row["label"] for row in data.by_search(loaded)}
    assert labels == {"flat, adam", "flat, chapter", "flat, short", "smollm2, adam"}


def test_weights_that_are_not_what_they_seem_are_noted(small: Path) -> None:
    assert note_weights(data.load(small)) == "smollm2: dequantised from 4-bit Q4_1."


def test_named_families_keep_their_colour_and_others_get_one_each() -> None:
    alone = style.family_colours(["llama"])
    many = style.family_colours(["z", "llama", "y"])
    assert alone["llama"] == many["llama"]
    assert len({many["z"], many["y"], many["llama"]}) == 3


# --- training curves ----------------------------------------------------------------------

HEADER = "step,tokens,seconds,learning_rate,train_loss,held_out_loss\n"


def history(path: Path, steps: int, every: int) -> Path:
    lines = [
        f"{i},{i * 100},{i / 10},0.001,{8 / i**0.3},{8.1 / i**0.3 if i % every == 0 else ''}\n"
        for i in range(1, steps + 1)
    ]
    path.write_text(HEADER + "".join(lines))
    return path


def test_training_curves_are_drawn_and_reproducible(tmp_path: Path) -> None:
    histories = [
        history(tmp_path / "flat.csv", 60, 10),
        history(tmp_path / "my-transformer.csv", 30, 10),
        history(tmp_path / "flat-never-measured.csv", 5, 10),
    ]
    for name in ("a", "b"):
        training_curves(*histories, svg=tmp_path / f"{name}.svg", png=tmp_path / f"{name}.png")
    assert (tmp_path / "a.svg").read_bytes() == (tmp_path / "b.svg").read_bytes()


@pytest.mark.parametrize("content", [None, HEADER])
def test_no_training_is_said_in_words(
    content: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    monkeypatch.setattr(style, "message", lambda figure, text: said.append(text))
    histories = []
    if content is not None:
        histories = [tmp_path / "flat.csv"]
        histories[0].write_text(content)
    training_curves(*histories, svg=tmp_path / "f.svg", png=tmp_path / "f.png")
    assert said == ["No model is trained in this study."]


@pytest.mark.parametrize(
    ("content", "says"),
    [("", "cannot be read"), ("step,loss\n1,2\n", "missing tokens, train_loss, held_out_loss")],
)
def test_a_bad_history_is_one_line_that_names_it(content: str, says: str, tmp_path: Path) -> None:
    path = tmp_path / "flat.csv"
    path.write_text(content)
    with pytest.raises(ValueError, match=says) as caught:
        training_curves(path, svg=tmp_path / "f.svg", png=tmp_path / "f.png")
    assert str(caught.value).startswith(str(path))
    assert "\n" not in str(caught.value)


def test_loss_curves_are_drawn_from_the_long_table(tmp_path: Path) -> None:
    rows = [row for model in default_models()[:3] for row in cell_rows(model)]
    for row in rows:
        row |= {"curve_steps": [0, 100, 300], "curve": [10.0, 1.0, 0.1]}
    rows += [row | {"solver": "other", "family": "gpt2"} for row in rows]
    frame(rows).write_parquet(tmp_path / "recovery.parquet")
    for name in ("a", "b"):
        loss_curves(tmp_path / "recovery.parquet", tmp_path / f"{name}.svg", tmp_path / "a.png")
    svg = (tmp_path / "a.svg").read_text(encoding="utf-8")
    assert svg == (tmp_path / "b.svg").read_text(encoding="utf-8")
    assert "How far does descent get?" in svg
    assert "Nothing descends" not in svg


def test_loss_curves_say_when_nothing_descends(tmp_path: Path) -> None:
    frame(cell_rows(default_models()[0])).write_parquet(tmp_path / "recovery.parquet")
    loss_curves(tmp_path / "recovery.parquet", tmp_path / "a.svg", tmp_path / "a.png")
    assert "Nothing descends" in (tmp_path / "a.svg").read_text(encoding="utf-8")
