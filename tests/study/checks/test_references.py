"""Names that nothing has, and values that are given twice."""

from __future__ import annotations

from tests.example_study import Row, check_one, each, keys, spoilt

PASSAGES = {"corpus": "bible", "tokenizer": "bpe", "count": 2, "tokens": [4, 6]}

REFERENCES: list[Row] = [
    (("tokenizers", "bpe", "corpus"), "bibel", "unknown corpus (did you mean `bible`?)"),
    (("sources", "flat", "tokenizer"), "bpf", "unknown tokenizer (did you mean `bpe`?)"),
    (("models", "smol", "source"), "smoll", "unknown source (did you mean `smol`?)"),
    (("grids", 0, "models", 0), "flta", "unknown model (did you mean `flat`?)"),
    (("grids", 0, "models", 0), "Flat", "unknown model (did you mean `flat`?)"),
    (("grids", 0, "solvers", 0), "sgd", "unknown solver"),
    (("grids", 0, "identify"), ["sgd"], "unknown solver", "grids[0].identify[0]"),
    (("grids", 0, "prompts", 0), "sea", "unknown prompt set"),
    (("grids", 1, "targets"), ["of:smoll"], "unknown model (did you", "grids[1].targets[0]"),
    (("passages",), {"p": PASSAGES | {"corpus": "bibel"}}, "unknown corpus", "passages.p.corpus"),
    (("passages",), {"p": PASSAGES | {"tokenizer": "bp"}}, "unknown tokenizer",
     "passages.p.tokenizer"),
    (("passages",), {"sky": PASSAGES}, "names a set of `prompts` too", "passages.sky"),
    (("prior",), "bibel", "unknown corpus (did you mean `bible`?)"),
    (("prior",), "bibel", "bible"),
    (("grids", 0, "masks", 1), "0:", "repeats grids[0].masks[0]", "grids[0].masks[1]"),
    (("grids", 0, "models"), ["flat"] * 2, "repeats grids[0].models[0]", "grids[0].models[1]"),
    (("grids", 0, "seeds"), [1, 1], "repeats grids[0].seeds[0]", "grids[0].seeds[1]"),
    (("grids", 0, "targets"), ["own"] * 2, "repeats grids[0].targets[0]", "grids[0].targets[1]"),
    (("prompts", "sky", 0), "This is a prompt sentence", "repeats prompts.sky[0]",
     "prompts.sky[1]"),
]  # fmt: skip


@each(REFERENCES)
def test_a_name_or_a_repeated_value_is_one_line(row: Row) -> None:
    check_one(row)


def test_nothing_is_unknown_where_the_section_could_not_be_read() -> None:
    assert keys(spoilt((("passages",), 3), (("grids", 0, "prompts", 0), "drawn"))) == ["passages"]
