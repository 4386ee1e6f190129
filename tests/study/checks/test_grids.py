"""What a grid names must exist, in its models and in its solvers."""

from __future__ import annotations

from tests.example_study import Row, check_one, each, example, mistakes, put, spoilt

GRIDS: list[Row] = [
    (("grids", 0, "sites", 0), "block.3", "is beyond the depth of `flat` (2 blocks)"),
    (("grids", 0, "sites", 0), "block.3", "block.1 to block.2, or block.last"),
    (("grids", 0, "sites", 0), "kv.1", "a mixer, which has no keys and values: `flat`"),
    (("grids", 0, "sites", 0), ["kv.1", "kv.2"], "a mixer, which has no keys and values",
     "grids[0].sites[0]"),
    (("grids", 1, "sites", 0), "kv.1", "residual: false"),
    (("grids", 0, "sites", 0), ["kv.1", "block.2"], "is not a site", "grids[0].sites[0]"),
    (("grids", 0, "sites", 0), "layer.1", "did you mean `block.1`?"),
    (("grids", 0, "models", 0), "org/name", "kind: hub, repository: org/name"),
    (("models", "flat", "quantization"), "8bit", "did you mean `int8`?"),
    (("grids", 0, "causal"), [True, False], "mixers are causal by construction: `flat`"),
    (("grids", 0, "padding"), ["n_ctx"], "pretrained models are not padded to n_ctx: `smol`"),
    (("grids", 1, "sites", 0), "mlp.1", "residual: false"),
    (("grids", 1, "sites", 0), "embedding", "residual: false"),
    (("sources", "flat", "d_model"), 512, "the pseudo-inverse of a square matrix",
     "grids[0].models[0]"),
    (("sources", "flat", "d_model"), 512, "`decode: {method: nearest}`", "grids[0].models[0]"),
    (("grids", 0, "identify"), ["adam"], "is of kind adam", "grids[0].identify[0]"),
    (("grids", 0, "identify"), ["adam"], "kind sweep, joint: none here", "grids[0].identify[0]"),
    (("grids", 0, "solvers"), [], "`identify` names no solver"),
    (("grids", 0, "seeds"), list(range(200_000)), "stand for 4,800,004 cells", "grids"),
]  # fmt: skip


@each(GRIDS)
def test_a_mistake_in_a_grid_is_one_line(row: Row) -> None:
    check_one(row)


def test_a_square_embedding_is_fine_where_the_nearest_neighbour_reads_it() -> None:
    square = (("sources", "flat", "d_model"), 512)
    nearest = (("solvers", "adam", "decode"), {"method": "nearest"})
    assert len(spoilt(square)) == 1
    assert spoilt(square, nearest) == []


def test_identify_takes_solvers_that_sweep_and_may_stand_alone() -> None:
    raw = put(example(), ("solvers", "sweep"), {"kind": "sweep"})
    raw["solvers"]["joint"] = {"kind": "joint"}
    raw["grids"][0] |= {"identify": ["sweep", "joint"]}
    assert mistakes(raw) == []
    assert mistakes(put(raw, ("grids", 0, "solvers"), [])) == []
    (line,) = mistakes(put(raw, ("grids", 0, "identify", 1), "chapter"))
    assert line.allowed == "solvers of kind sweep, joint: sweep, joint"


def test_identify_counts_once_for_each_setting() -> None:
    raw = put(example(), ("solvers", "sweep"), {"kind": "sweep"})
    raw["grids"][0] |= {"identify": ["sweep"], "solvers": [], "seeds": list(range(200_000))}
    assert mistakes(raw) == []
