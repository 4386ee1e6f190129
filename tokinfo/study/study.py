"""The study: one validated configuration, and the cells it stands for.

A study says which models are probed, where (sites), what stays visible (masks), how
activations are compared (metrics) and which solvers search. Its grids are products of
those axes; the union of the grids is the set of cells, each of which is one job.

This module imports neither torch nor transformers: the Snakefile reads it again in every
cluster job. Modules that need a part of it import that part (`tokinfo.study.sources`,
`tokinfo.study.solvers`): a change to one solver's settings then reruns no training.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Annotated, Literal

from pydantic import Field

from tokinfo.study.cell import Cell
from tokinfo.study.claims import Claim, load_claims
from tokinfo.study.fields import Integer, Name, Padding, Parametrisation, Seed, Strict, fits, misfit
from tokinfo.study.grid import Grid
from tokinfo.study.known import Known
from tokinfo.study.masks import Mask
from tokinfo.study.prompts import Prompt
from tokinfo.study.sites import Site
from tokinfo.study.solvers import MetricWeights, Solver
from tokinfo.study.sources import Corpus, Model, Passages, Source, Tokenizer
from tokinfo.study.targets import OWN


def _stand_in_padding(padding: str | None, stand_in: str) -> None:
    if padding is not None and not stand_in:
        message = "only a stand-in may have another padding than its rows"
        raise misfit(message, "null, or a `stand_in:`")


def _stand_in_depth(depth: str, stand_in: str) -> None:
    if depth == "same" and not stand_in:
        message = "says where a stand-in is read, and nothing stands in here"
        raise misfit(message, "relative, or a `stand_in:`")


class Replication(Strict):
    """Rows of the source chapter, and the models, prompts and solvers whose cells test them.

    Site, mask, metric, parametrisation, residual, causality and padding are the row's.
    """

    rows: list[Name] = Field(
        min_length=1, description="Ids of rows, as in `tokinfo/data/claims.yaml`."
    )
    models: list[Name] = Field(
        min_length=1,
        description="Models that test them: the row's, each with other random weights, or "
        "what stands in for it.",
    )
    stand_in: str = Field(
        "",
        description="What stands in for the rows' model, and why; empty: nothing does. A "
        "stand-in is read at the same relative depth, `block.1` at its first block.",
    )
    depth: Annotated[Literal["relative", "same"], fits(_stand_in_depth, "stand_in")] = Field(
        "relative",
        description="`same`: a stand-in is read behind the row's block instead, as suits one of "
        "fewer such blocks.",
    )
    prompts: list[Name] = Field(
        min_length=1,
        description="Names of prompt sets; a row is run on those that have its prompt.",
    )
    passages: list[Name] = Field(
        [],
        description="Names of sets of `passages` that every row is run on as well, in the first "
        "model and with the first seed: how much does a row's outcome depend on its prompt?",
    )
    published: Name = Field(
        description="Name of the solver of kind `chapter` that is the published protocol."
    )
    solvers: list[Name] = Field([], description="Names of other solvers, in the same cells.")
    identify: list[Name] = Field(
        [],
        description="Names of `sweep` and `joint` solvers that say what is identifiable. Sweeps "
        "of hidden positions are made for rows that hide some, of all positions for the others.",
    )
    padding: Annotated[Padding | None, fits(_stand_in_padding, "stand_in")] = Field(
        None, description="In place of the rows' padding (null: theirs); stand-ins only."
    )
    identify_padding: Padding | None = Field(
        None,
        description="Padding of the cells that `identify` makes (null: as the others). Without "
        "pads fewer positions are visible: margins and floors are not those of the padded row.",
    )
    seeds: list[Seed] = Field(
        [0], min_length=1, description="Seeds of the published protocol's starts."
    )


@dataclass(frozen=True)
class Answer:
    """One row of the chapter and the cells that test it.

    Attributes:
        name: of the `claims` entry.
        claim: the row.
        entry: the entry.
        published: cells of the published protocol, one for each model, prompt set and seed.
        others: cells of the other solvers, descents before those that identify.
        runs: whether the study runs them.
    """

    name: str
    claim: Claim
    entry: Replication
    published: tuple[Cell, ...]
    others: tuple[Cell, ...]
    runs: bool


_IDENTIFY_BY: tuple[Parametrisation, ...] = ("embedding",)


OURS = frozenset(
    (
        *("benchmarks", "build", "docs", "envs", "profiles", "report", "rules", "studies"),
        *("tests", "tokinfo", "changelog.md", "citation.cff", "config.yaml", "license"),
        *("makefile", "mkdocs.yml", "pyproject.toml", "readme.md", "requirements.lock"),
        "snakefile",
    )
)
"""What is in the project's directory, in lower case: no place for results."""

HELD_OUT = ".held-out"
"""Ending of a corpus's second file, `corpora/{corpus}.held-out.txt`."""


def _titled(name: str) -> None:
    if not name.strip():
        raise misfit("is blank", "a title for the report")


def _below_here(results: str) -> None:
    path = PurePosixPath(results)
    if path.is_absolute() or ".." in path.parts or str(path) != results or not path.parts:
        raise misfit(
            "must be a relative path without `.`, `..` or a slash at its end",
            "such as results or results/smoke",
        )
    if path.parts[0].lower() in OURS or path.parts[0].startswith("."):
        raise misfit(f"`{path.parts[0]}` is part of the project", "a directory for results alone")


def _free_name(corpus: str) -> None:
    if corpus.endswith(HELD_OUT):
        raise misfit(f"names that end in `{HELD_OUT}` are taken by held-out texts", "another name")


def _not_empty(prompts: list[Prompt]) -> None:
    if not prompts:
        raise misfit("is an empty set", "at least one prompt")


class Study(Strict):
    """One validated configuration."""

    name: Annotated[str, fits(_titled)] = Field(min_length=1, description="Title of the report.")
    description: str = Field("", description="One paragraph for the report's first page.")
    results: Annotated[str, fits(_below_here)] = Field(
        "results", pattern=r"^[A-Za-z0-9._/-]+$", description="Directory of all outputs."
    )
    device: Literal["auto", "cpu", "cuda"] = Field(
        "auto", description="`auto`: a GPU where one is visible, otherwise the CPU."
    )
    threads: Integer = Field(1, ge=1, description="CPU threads of one cell.")
    cells_per_submission: Integer = Field(
        1,
        ge=1,
        description="Cells of one model in one submission to a cluster, solved one after another; "
        "without effect on a workstation.",
    )
    corpora: dict[Annotated[Name, fits(_free_name)], Corpus] = Field(
        default_factory=dict, description="Texts, by name."
    )
    tokenizers: dict[Name, Tokenizer] = Field(default_factory=dict, description="By name.")
    sources: dict[Name, Source] = Field(
        min_length=1, description="Where weights come from, by name."
    )
    models: dict[Name, Model] = Field(min_length=1, description="What is probed, by name.")
    prompts: dict[Name, Annotated[list[Prompt], fits(_not_empty)]] = Field(
        default_factory=dict,
        description="Sets of prompts, by name. A prompt is a text, or a chat: a list of messages, "
        "each with a `role` and a `content`, which the model's chat template makes a text of.",
    )
    passages: dict[Name, Passages] = Field(
        default_factory=dict,
        description="Sets of prompts drawn from held-out text, by name; a name is that of one set "
        "only, here or in `prompts`.",
    )
    metric_weights: MetricWeights = Field(
        default_factory=lambda: MetricWeights(), description="Weights of the `l1+cosine` metric."
    )
    solvers: dict[Name, Solver] = Field(min_length=1, description="Solvers, by name.")
    prior: Name | None = Field(
        None,
        description="Name of the corpus whose tokens' frequencies are the prior of `prior_bits` "
        "in cells of kind `sweep` and `joint` (null: none).",
    )
    grids: list[Grid] = Field(
        default_factory=list, description="Products of axes; their union is probed."
    )
    claims: dict[Name, Replication] = Field(
        default_factory=dict,
        description="Which cells test which rows of the source chapter, by a name for `run`; "
        "they are probed beside the grids' and make the table `replication`.",
    )
    run: list[Name] | None = Field(
        None,
        description="Names of the `claims` that are run (null: all). The others' rows are listed "
        "as not run, with the reason and the command that would run them.",
    )

    def source_of(self, model: str) -> Source:
        """Return the source of a model, by the model's name."""
        return self.sources[self.models[model].source]

    def prompt_count(self, prompts: str) -> int:
        """Return how many prompts a set of `prompts` or `passages` has."""
        if prompts in self.passages:
            return self.passages[prompts].count
        return len(self.prompts[prompts])

    def cells(self) -> tuple[Cell, ...]:
        """Return every cell once: of the grids in their order, then of the claims that run."""
        gridded = (cell for grid in self.grids for cell in self._cells(grid))
        testing = (
            cell
            for answer in self.answers()
            if answer.runs
            for cell in (*answer.published, *answer.others)
        )
        return tuple(dict.fromkeys((*gridded, *testing)))

    def runs(self, entry: str) -> bool:
        """Return whether an entry of `claims` is run."""
        return self.run is None or entry in self.run

    def answers(self) -> tuple[Answer, ...]:
        """Return every row that an entry of `claims` tests, with its cells."""
        return tuple(
            Answer(
                name=name,
                claim=claim,
                entry=entry,
                published=tuple(cell for grid in published for cell in self._cells(grid)),
                others=tuple(cell for grid in others for cell in self._cells(grid)),
                runs=self.runs(name),
            )
            for name, entry in self.claims.items()
            for claim in map(load_claims().rows.get, entry.rows)
            if claim is not None
            for published, others in [self.claim_grids(entry, claim)]
        )

    def claim_grids(self, entry: Replication, claim: Claim) -> tuple[list[Grid], list[Grid]]:
        """Return the grids whose cells test a row of the chapter in an entry's models.

        Returns:
            Those of the published protocol, and those of the other solvers.
        """
        padding = entry.padding or load_claims().models[claim.model].padding
        axes: dict[str, object] = {
            "masks": [claim.mask.text],
            "metrics": [claim.metric],
            "residual": [claim.residual],
            "causal": [claim.causal],
        }
        suiting = [name for name in entry.prompts if claim.prompt in self.prompts[name]]
        wanted = [(model, suiting, entry.seeds) for model in entry.models]
        if entry.passages:
            # They vary the prompt, not the weights or the start: one of each is enough.
            wanted.append((entry.models[0], entry.passages, entry.seeds[:1]))
        published: list[Grid] = []
        others: list[Grid] = []
        for model, prompts, seeds in wanted:
            here = axes | {"models": [model], "sites": [self._claimed_site(entry, claim, model)]}
            here |= {"prompts": prompts}
            descent = here | {"parametrisations": [claim.parametrisation], "padding": [padding]}
            identify = [name for name in entry.identify if self._sweeps_its_tokens(name, claim)]
            pads = [entry.identify_padding or padding]
            first = {"solvers": [entry.published], "seeds": seeds}
            published.append(Grid.model_validate(descent | first))
            others.append(Grid.model_validate(descent | {"solvers": entry.solvers}))
            others.append(Grid.model_validate(here | {"identify": identify, "padding": pads}))
        return published, [grid for grid in others if grid.solvers or grid.identify]

    def _sweeps_its_tokens(self, solver: str, claim: Claim) -> bool:
        """Return whether a solver that identifies sweeps the tokens in question of a row."""
        positions = getattr(self.solvers[solver], "positions", None)
        return positions is None or (positions == "hidden") == claim.hides

    def _claimed_site(self, entry: Replication, claim: Claim, model: str) -> str:
        """Return a row's site in a model: of most stand-ins, that of the same relative depth."""
        site, blocks = claim.site, self.source_of(model).blocks
        if not entry.stand_in or site.block <= 1 or entry.depth == "same":
            return str(site.resolve(blocks))
        deep = load_claims().models[claim.model].blocks
        return str(Site(site.place, max(1, round(site.block * blocks / deep))))

    def _cells(self, grid: Grid) -> Iterator[Cell]:
        settings = itertools.product(
            itertools.product(grid.models, grid.sites, grid.masks, grid.prompts),
            itertools.product(grid.residual, grid.causal, grid.padding, map(Known, grid.known)),
        )
        searches = [
            *itertools.product(
                grid.solvers, grid.metrics, grid.parametrisations, grid.seeds, grid.targets
            ),
            *itertools.product(
                grid.identify, grid.metrics[:1], _IDENTIFY_BY, grid.seeds[:1], (OWN,)
            ),
        ]
        for (model, site, text, prompts), (residual, causal, padding, known) in settings:
            where = Site.parse(site).resolve(self.source_of(model).blocks)
            mask = Mask(text)
            for solver, metric, parametrisation, seed, target in searches:
                yield Cell(
                    model=model,
                    site=where,
                    residual=residual,
                    causal=causal,
                    padding=padding,
                    mask=mask,
                    metric=metric,
                    parametrisation=parametrisation,
                    solver=solver,
                    prompts=prompts,
                    target=target,
                    known=known,
                    seed=seed,
                )
