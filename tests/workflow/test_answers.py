"""What the replication table is given of each row: its cells, its cost and what it would need."""

from __future__ import annotations

import itertools
import json
import shlex
from typing import Any

import pytest

from tests.claims_study import claims_study
from tokinfo.study.claims import Comparison, load_claims
from tokinfo.study.files import parse
from tokinfo.study.sites import Site
from tokinfo.study.study import Study
from tokinfo.workflow.answers import answers, command, flop
from tokinfo.workflow.plan import canonical

FILES = ["studies/mine.yaml", "more.yaml"]


def compared(study: dict[str, Any] | None = None) -> list[Comparison]:
    return answers(Study.model_validate(study or claims_study()), FILES)


def one(row: str, **fields: Any) -> Comparison:
    found = [a for a in compared() if a.claim.id == row]
    (found,) = [a for a in found if all(getattr(a, key) == fields[key] for key in fields)]
    return found


def test_every_row_is_there_its_own_model_before_stand_ins() -> None:
    found = compared()
    assert list(dict.fromkeys(a.claim.id for a in found)) == list(load_claims().rows)
    assert len(found) == 55 + 3
    for before, after in itertools.pairwise(found):
        assert before.claim.id != after.claim.id or not before.stand_in


def test_rows_come_back_as_they_were_from_the_parameters_of_a_rule() -> None:
    given = canonical({"answers": [row.model_dump() for row in compared()]})["answers"]
    assert json.loads(json.dumps(given)) == given
    assert [Comparison.model_validate(row) for row in given] == compared()


def test_a_row_that_nothing_answers_says_so() -> None:
    assert one("llama30b-block8-after1-l1").reason == "no entry tests it"
    stood_in = one("mixer-flat-d2048-untrained-block8", entry=None)
    assert stood_in.reason == "only stand-ins test it in this study"
    assert (stood_in.runs, stood_in.command) == (False, "")


def test_a_row_whose_weights_are_elsewhere_says_how_much_and_what_would_run_it() -> None:
    found = one("llama7b-block1-after2")
    assert not found.runs
    assert found.reason.startswith(
        "weights not at hand: 0.7 GB to fetch from huggyllama/llama-7b; a job asks for up to 3."
    )
    assert found.command == (
        "snakemake --cores all --configfile studies/mine.yaml more.yaml "
        "--config 'run=[exact, smaller, trained, hub]'"
    )


def test_a_copy_of_the_weights_is_at_hand() -> None:
    study = claims_study()
    study["sources"]["llama"]["path"] = "/models/llama-7b"
    (found,) = [a for a in compared(study) if a.claim.id == "llama7b-block1-after2"]
    assert found.reason == ""


def test_without_run_the_command_needs_no_choice() -> None:
    study = claims_study()
    del study["run"]
    made = Study.model_validate(study)
    assert command(made, "hub", ["a.yaml"], {}) == "snakemake --cores all --configfile a.yaml"


def test_the_command_keeps_what_the_command_line_said() -> None:
    made = Study.model_validate(claims_study())
    over = {"corpora": {"harbour": {"path": "a b.txt"}}, "run": ["exact"]}
    _, *words = shlex.split(command(made, "hub", ["a.yaml"], over))
    assert words[:5] == ["--cores", "all", "--configfile", "a.yaml", "--config"]
    assert parse(words[5:]) == over | {"run": ["exact", "smaller", "trained", "hub"]}


@pytest.mark.parametrize(("width", "blocks", "tflop"), [(512, 1, 2.42), (1024, 8, 73.0)])
def test_the_published_protocol_costs_what_its_products_do(
    width: int, blocks: int, tflop: float
) -> None:
    """500 steps, two passes: 16 d² for each position and 2 n² d for each sequence and block."""
    study = claims_study()
    study["sources"]["d32"]["d_model"] = width
    study["prompts"]["mario"] = study["prompts"]["mario"][:1]
    made = Study.model_validate(study)
    (cell,) = [c for c in made.cells() if c.model == "d32-untrained" and c.solver == "chapter"]
    deeper = cell.model_copy(update={"site": Site("block", blocks)})
    exact = 1000 * blocks * (16 * width**2 * 512 + 2 * 512**2 * width)
    assert flop(made, deeper) == pytest.approx(exact)
    assert flop(made, deeper) / 1e12 == pytest.approx(tflop, rel=0.01)


def test_the_own_length_costs_less_than_padding() -> None:
    made = Study.model_validate(claims_study())
    (cell,) = [c for c in made.cells() if c.model == "d32-untrained" and c.solver == "chapter"]
    assert flop(made, cell.model_copy(update={"padding": "none"})) < flop(made, cell) / 20


def test_sizes_are_in_words() -> None:
    assert one("mixer-untrained-block1-full").size == ("flat mixer, width 32, 8 blocks, n_ctx 512")
    assert one("llama7b-block1-full").size == "llama, width 4096, 32 blocks"


def test_passages_count_with_the_tokens_asked_for() -> None:
    study = claims_study()
    drawn = {"corpus": "harbour", "tokenizer": "small", "count": 3, "tokens": [4, 6]}
    study["passages"] = {"drawn": drawn}
    study["claims"]["smaller"]["passages"] = ["drawn"]
    row = "mixer-flat-d512-untrained-after1"
    cells = next(a for a in Study.model_validate(study).answers() if a.claim.id == row).published
    costs = [flop(Study.model_validate(study), cell) for cell in cells if cell.prompts == "drawn"]
    assert len(costs) == 1
    (more,) = [a for a in compared(study) if a.claim.id == row and a.entry]
    assert more.tflop - one(row, entry="smaller").tflop == pytest.approx(costs[0] / 1e12)
    # Two passes of 10 steps; 15 tokens in 16 d^2 products, and the square of each length in 2 d.
    products = 15 * 16 * 16**2 + 2 * 16 * (4**2 + 5**2 + 6**2)
    assert costs[0] == pytest.approx(2 * 10 * products, rel=0.02)
