"""What does not fit inside one entry is reported beside its field, and hides nothing else."""

from __future__ import annotations

import pytest

from tests import REPOSITORY
from tests.example_study import Row, check_one, each, example, keys, mistakes, put, spoilt

TRAINING = ("sources", "flat", "training")
LLAMA = ("sources", "llama")
PASSAGES = {"corpus": "bible", "tokenizer": "bpe", "count": 2, "tokens": [8, 4]}

FITS: list[Row] = [
    (("name",), "  ", "is blank"),
    (("results",), "../out", "relative path"),
    (("results",), "/tmp/out", "relative path"),
    (("results",), "a//b", "relative path"),
    (("results",), ".", "relative path"),
    (("results",), "docs", "`docs` is part of the project"),
    (("results",), "Tests/out", "`Tests` is part of the project"),
    (("results",), ".snakemake", "`.snakemake` is part of the project"),
    (("corpora", "a.held-out"), example()["corpora"]["bible"], "taken by held-out texts"),
    (("prompts", "sky", 0), "", "is blank"),
    (("prompts", "sky", 0), " \n", "is blank"),
    (("prompts", "sea"), [], "is an empty set"),
    ((*TRAINING, "warmup"), 11, "0 to 10"),
    ((*LLAMA, "heads"), 5, "does not divide d_model = 32"),
    ((*LLAMA, "heads"), 5, "1, 2, 4, 8, 16"),
    ((*LLAMA, "heads"), 32, "makes heads of 1 of d_model = 32"),
    ((*LLAMA, "d_model"), 33, "choose an even one", "sources.llama.heads"),
    (("passages",), {"p": PASSAGES}, "[fewest, most]", "passages.p.tokens"),
    (("models", "flat", "compute_dtype"), "float16", "rounded once more to compute in float16"),
    (("models", "flat", "compute_dtype"), "float16", "null, float32, or quantization float16"),
    (("solvers", "adam", "decode"), {"restricted_to": " "}, "is blank",
     "solvers.adam.decode.restricted_to"),
    (("grids", 0, "sites", 0), "blok.1", "attention.K"),
    (("grids", 0, "masks", 1), "x", "a Python slice"),
    (("grids", 0, "masks", 1), "::0", "the step of a mask must be 1 or more"),
    (("grids", 0, "targets"), ["mine"], "own, shuffled or of:MODEL", "grids[0].targets[0]"),
    (("grids", 0, "targets"), ["of:"], "is not a target", "grids[0].targets[0]"),
]  # fmt: skip


@each(FITS)
def test_what_does_not_fit_is_one_line(row: Row) -> None:
    check_one(row)


def test_no_entry_of_the_repository_is_a_place_for_results() -> None:
    # A study that writes to `results/` there, and editors' own folders, make what is not listed.
    listed = REPOSITORY / ".gitignore"
    ignored = {line.strip("/") for line in listed.read_text(encoding="utf-8").split()}
    for entry in REPOSITORY.iterdir():
        if entry.name not in ignored and not entry.name.endswith(".egg-info"):
            assert keys(spoilt((("results",), f"{entry.name}/x"))) == ["results"], entry


def test_a_default_that_does_not_fit_what_is_written_is_a_mistake() -> None:
    (warmup,) = spoilt((TRAINING, {"steps": 10}))
    assert (warmup.key, warmup.value) == ("sources.flat.training.warmup", 20)


def test_nothing_is_judged_beside_a_field_that_is_wrong_itself() -> None:
    assert keys(spoilt(((*LLAMA, "d_model"), "wide"), ((*LLAMA, "heads"), 5))) == [
        "sources.llama.d_model"
    ]
    half = {"source": "smol", "quantization": "half", "compute_dtype": "float16"}
    assert keys(spoilt((("models", "smol"), half))) == ["models.smol.quantization"]


def test_an_entry_with_a_misfit_is_otherwise_read_as_written() -> None:
    """The number of blocks is judged still, and no name of the entry is unknown."""
    found = spoilt(((*LLAMA, "heads"), 5), (("grids", 1, "sites", 0), "block.5"))
    assert keys(found) == ["sources.llama.heads", "grids[1].sites[0]"]
    raw = put(example(), (*TRAINING, "warmup"), 11)
    raw["models"]["flat"]["at"] = 0.5
    assert keys(mistakes(raw)) == ["sources.flat.training.warmup", "models.flat.at"]


@pytest.mark.parametrize(
    ("held", "computed"),
    [
        *(("int8", dtype) for dtype in ("float32", "bfloat16", "float16")),
        *(("nf4", dtype) for dtype in ("float32", "bfloat16", "float16")),
        ("float32", "float32"),
        ("bfloat16", "bfloat16"),
        ("bfloat16", "float32"),
        ("float16", "float32"),
    ],
)
def test_what_may_be_computed_in_is_what_does_not_round_the_weights_again(
    held: str, computed: str
) -> None:
    precision = {"source": "smol", "quantization": held, "compute_dtype": computed}
    assert spoilt((("models", "smol"), precision)) == []
