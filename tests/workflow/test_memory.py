from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import tokenizers

from tests.workflow.run import smoke
from tests.workflow.test_runtime import cell as one_cell
from tests.workflow.test_runtime import study as smollm2
from tests.workflow.test_runtime import text
from tokinfo.study.architecture import sizes_of
from tokinfo.study.lengths import EXTRA_TOKENS
from tokinfo.study.sources import Model, TransformerSource
from tokinfo.study.study import Study
from tokinfo.workflow.memory import (
    cell_mb,
    checkpoint_mb,
    gpus,
    held_mb,
    longest_prompt,
    prepare_mb,
    training_mb,
)


def study(**changes: object) -> Study:
    return Study.model_validate(smoke() | changes)


@pytest.mark.parametrize(("device", "wanted"), [("cpu", 0), ("cuda", 1)])
def test_a_study_that_names_a_device_gets_it(device: str, wanted: int) -> None:
    assert gpus(study(device=device)) == wanted


def test_passages_not_drawn_yet_are_planned_for_at_their_longest() -> None:
    drawn = study()
    (cell,) = (c for c in drawn.cells() if c.prompts == "drawn" and c.model == "mixer-flat")
    assert longest_prompt(drawn, cell) == min(24, drawn.source_of(cell.model).n_ctx)
    many = {**drawn.passages["drawn"].model_dump(), "count": 2000}
    assert cell_mb(study(passages={"drawn": many}), cell) > cell_mb(drawn, cell)


@pytest.mark.parametrize(
    ("held", "computed", "on_disk", "in_memory"),
    [
        ("float32", None, 4, 4),
        ("bfloat16", None, 2, 2),
        ("bfloat16", "float32", 2, 4),
        ("float16", "float32", 2, 4),
    ],
)
def test_weights_are_held_in_what_they_compute_in(
    held: str, computed: str | None, on_disk: int, in_memory: int
) -> None:
    model = {"source": "transformer", "quantization": held, "compute_dtype": computed}
    made = study(models=smoke()["models"] | {"m": model})
    whole = sizes_of(made, "transformer").megabytes(1)
    assert checkpoint_mb(made, "m", 1) == pytest.approx(whole * on_disk / 4, abs=2)
    assert held_mb(made, "m", 1) == pytest.approx(whole * in_memory / 4, abs=2)


@pytest.mark.parametrize("held", ["int8", "nf4"])
@pytest.mark.parametrize(("computed", "size"), [(None, 4), ("bfloat16", 2)])
def test_the_embedding_of_a_packed_model_is_held_in_what_it_computes_in(
    held: str, computed: str | None, size: int
) -> None:
    model = {"source": "transformer", "quantization": held, "compute_dtype": computed}
    made = study(models=smoke()["models"] | {"m": model})
    embedding = sizes_of(made, "transformer").megabytes(0)
    assert held_mb(made, "m", 0) == pytest.approx(embedding * size / 4, abs=2)
    assert checkpoint_mb(made, "m", 1) == held_mb(made, "m", 1)


@pytest.mark.parametrize(
    ("held", "computed"),
    [
        *(("float32", None), ("bfloat16", "float32"), ("float16", None)),
        *(("int8", None), ("int8", "float16"), ("nf4", None), ("nf4", "bfloat16")),
    ],
)
def test_the_size_of_a_checkpoint_is_that_of_its_files(
    held: str, computed: str | None, tmp_path: Path
) -> None:
    from tokinfo.models.preparing import prepare

    source = TransformerSource(d_model=256, blocks=2, n_ctx=48, tokenizer="t")
    words = tokenizers.models.WordLevel({f"w{n}": n for n in range(20_000)}, unk_token="w0")
    tokenizers.Tokenizer(words).save(str(tmp_path / "tokenizer.json"))
    model = {"source": "s", "state": "untrained", "quantization": held, "compute_dtype": computed}
    prepare(source, Model.model_validate(model), 2, tmp_path / "out", tokenizer=tmp_path)
    raw = smoke()
    text = next(iter(raw["corpora"]))
    made = study(
        tokenizers=raw["tokenizers"] | {"t": {"corpus": text, "vocabulary": 20_000}},
        sources=raw["sources"] | {"s": source.model_dump()},
        models=raw["models"] | {"m": model},
    )
    real = sum(path.stat().st_size for path in (tmp_path / "out").glob("*.safetensors"))
    assert checkpoint_mb(made, "m", 2) == pytest.approx(real / 1e6, rel=0.03, abs=1.5)


def test_memory_grows_with_depth_and_attempts() -> None:
    made = study()
    sizes = sizes_of(made, "transformer")
    assert sizes.megabytes(1) <= sizes.megabytes(sizes.blocks)
    assert prepare_mb(made, "transformer", 1, 2) == 2 * prepare_mb(made, "transformer", 1)
    assert training_mb(made, "mixer-flat") > prepare_mb(made, "mixer-flat", 1)
    for cell in made.cells():
        assert cell_mb(made, cell, 2) >= 2 * cell_mb(made, cell) - 2


def test_prompts_that_a_run_has_counted_are_planned_for_as_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    made = study()
    cell = next(c for c in made.cells() if c.prompts == "sea" and c.model == "mixer-flat")
    guessed = longest_prompt(made, cell)
    counts = Path(made.results) / "prompts" / "mixer-flat.json"
    counts.parent.mkdir(parents=True)
    counts.write_text(json.dumps({"sea": [4, 6]}))
    assert longest_prompt(made, cell) == 6 < guessed
    # Counted once more, or of another number of prompts, or damaged.
    counts.write_text(json.dumps({"sea": [4, 7]}))
    os.utime(counts, (1, 1))
    assert longest_prompt(made, cell) == 7
    for time, damaged in enumerate(('{"sea": [4]}', "{"), 2):
        counts.write_text(damaged)
        os.utime(counts, (time, time))
        assert longest_prompt(made, cell) == guessed


def test_tokens_that_are_known_are_not_detected() -> None:
    raw = smoke()
    grid = {"models": ["mixer-flat"], "sites": ["block.1"], "masks": ["1:"], "solvers": ["joint"]}
    made = study(grids=[{**raw["grids"][0], **grid, "known": ["none", "visible"]}])
    none, visible = (cell_mb(made, cell) for cell in made.cells())
    (tokenizer,) = made.tokenizers.values()
    positions = longest_prompt(made, made.cells()[0])
    kept = (positions - 1) * tokenizer.vocabulary * 640 * 4 / 1e6
    assert none - visible == pytest.approx(kept, abs=1)


def test_what_a_detection_keeps_of_every_token_is_asked_for() -> None:
    raw = smoke()
    solvers = {**raw["solvers"], "blind": {"kind": "joint", "detections": 0}}
    grids = [{**raw["grids"][0], "solvers": ["joint", "blind"]}]
    made = study(solvers=solvers, grids=grids)
    cells = {cell.solver: cell for cell in made.cells()}
    positions = longest_prompt(made, cells["joint"])
    (tokenizer,) = made.tokenizers.values()
    vocabulary = tokenizer.vocabulary
    kept = positions * vocabulary * 640 * 4 / 1e6
    assert cell_mb(made, cells["joint"]) >= cell_mb(made, cells["blind"]) + int(kept)


def test_the_entries_of_mixtures_are_asked_for_up_to_the_most_that_run() -> None:
    raw = smoke()
    grid = {**raw["grids"][0], "parametrisations": ["embedding", "mixture"], "solvers": ["mine"]}

    def asked(text: str, parametrisation: str, model: str) -> int:
        mine = {"kind": "adam", "decode": {"restricted_to": text}}
        made = study(solvers=raw["solvers"] | {"mine": mine}, grids=[grid])
        cells = {(c.model, c.parametrisation): c for c in made.cells() if c.block}
        return cell_mb(made, cells[model, parametrisation])

    for model in grid["models"]:
        plain = asked("x" * 99, "embedding", model)
        few, many, most = (asked("x" * n, "mixture", model) for n in (99, 9_999, 99_999))
        assert plain == asked("x", "embedding", model)
        assert plain < few < many <= most, model


def test_a_cell_that_explains_a_larger_models_activations_asks_for_that_one_too() -> None:
    raw = smoke()
    (tokenizer,) = raw["tokenizers"]
    wide = TransformerSource(d_model=1024, blocks=2, n_ctx=48, tokenizer=tokenizer)
    made = study(
        sources=raw["sources"] | {"wide": wide.model_dump()},
        models=raw["models"] | {"other": {"source": "wide", "state": "untrained"}},
    )
    cell = next(cell for cell in made.cells() if len(cell.models) == 1)
    crossed = cell.model_copy(update={"target": "of:other"})
    assert crossed.models == (cell.model, "other")
    larger = max(held_mb(made, name, cell.block) for name in crossed.models)
    more = larger - held_mb(made, cell.model, cell.block)
    assert more > 0
    assert cell_mb(made, crossed) == pytest.approx(cell_mb(made, cell) + more, abs=1)


# Of SmolLM2-135M on the CPU: the largest resident memory of searches that did not end early.
@pytest.mark.parametrize(
    ("kind", "site", "mask", "known", "tokens", "measured"),
    [
        ("mixture", "block.1", "4:", "visible", 25, 1022),
        ("mixture", "block.8", "8:", "visible", 16, 4645),
        ("mixture", "block.8", "4:", "none", 5, 5337),
    ],
)
def test_what_was_measured_fits_and_is_not_a_small_part_of_it(
    kind: str, site: str, mask: str, known: str, tokens: int, measured: int
) -> None:
    made = smollm2({"kind": kind}, prompts={"sea": [text(tokens)]})
    asked = cell_mb(made, one_cell(made, site=site, mask=mask, known=known))
    assert measured < asked < 2 * measured


def test_a_joint_search_holds_its_mixtures_or_its_detections() -> None:
    def asked(**settings: object) -> int:
        made = smollm2({"kind": "joint", **settings})
        return cell_mb(made, one_cell(made, site="block.8", mask="4:"))

    neither = asked(mixtures=False, detections=0)
    mixtures, detections = asked(detections=0), asked(mixtures=False)
    assert neither < min(mixtures, detections)
    assert asked() == max(mixtures, detections)


def test_the_text_of_a_prompt_in_a_large_vocabulary_is_planned_for_as_words() -> None:
    def longest(sky: str) -> int:
        made = smollm2({"kind": "adam"}, prompts={"sea": [sky]})
        return longest_prompt(made, one_cell(made))

    # A text of digits or in other letters has one for each byte at most.
    sky = "The sky is blue, and so is the sea below it."
    assert 11 < longest(sky) <= len(sky) // 2 + 1 + EXTRA_TOKENS
    assert longest("0123456789") == 10 + EXTRA_TOKENS
    assert longest("небо") == 8 + EXTRA_TOKENS
