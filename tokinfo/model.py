"""A model whose activations a person reads: `tokinfo.load` makes it."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch

from tokinfo.cell import make_rows
from tokinfo.io.errors import InvalidError
from tokinfo.models.borrowed import Borrowed
from tokinfo.models.checkpoint import Checkpoint
from tokinfo.models.opening import Named
from tokinfo.probe.captured import captured
from tokinfo.report.answer import Result, without_truth
from tokinfo.report.flow import Flow
from tokinfo.report.progress import watched
from tokinfo.solvers.capture import captured_problem
from tokinfo.solvers.decoding import Decoder, inverse_gram
from tokinfo.solvers.pose import make_probe, make_problem
from tokinfo.solvers.question import check_question, known_tokens, one_cell
from tokinfo.solvers.run import run
from tokinfo.solvers.sweep import around
from tokinfo.study.asked import SOLVER, read_mask, read_prompt, read_solver, validated
from tokinfo.study.known import NONE
from tokinfo.study.sites import Site
from tokinfo.study.solvers import MetricWeights, Solver


class Model:
    """A model whose activations are read; `load` makes it."""

    def __init__(self, opened: Named | Borrowed) -> None:
        self._opened = opened
        self._inverse: torch.Tensor | None = None

    @property
    def name(self) -> str:
        """What it was opened by; of a model in memory, its class."""
        return self._opened.name

    @property
    def depth(self) -> int:
        """How many blocks the whole model has."""
        return self._opened.depth

    def __repr__(self) -> str:
        return f"<model {self.name}: {self.depth} blocks>"

    def tokens(self, prompt: Any) -> list[str]:
        """Return the tokens of a prompt as text, in the order that masks count them from 0.

        Examples:
            >>> from tokinfo import load
            >>> from tokinfo.examples import tiny_model
            >>> load(*tiny_model()).tokens("The sky is blue.")
            ['The', ' sky', ' is', ' blue', '.']
        """
        with self._checkpoint(0) as checkpoint:
            (reading,) = checkpoint.read([read_prompt(prompt)])
            return [checkpoint.text(token) for token in reading.ids]

    def invert(
        self,
        prompt: Any,
        *,
        site: str,
        visible: str | None = None,
        hide: str | Sequence[str] | None = None,
        known: str = NONE,
        solver: str | Mapping[str, Any] | Solver = "mixture",
        judge: bool = False,
        metric: str = "l1",
        seed: int = 0,
        noise: float = 0.0,
        minutes: float | None = None,
        show_progress: bool = True,
    ) -> Result:
        """Hide tokens of a prompt, and look for them in the activations that stay visible.

        The search has the activations alone; the prompt only says afterwards what is right.

        Args:
            prompt: a text, or a chat: a list of messages with ``role`` and ``content``.
            site: where activations are read, such as ``block.8`` (docs/method.md).
            visible: the positions that stay visible, as a Python slice. None: ``1:``, or all but
                what ``hide`` says.
            hide: in its place, text in the prompt whose tokens are hidden, or several.
            known: positions whose token is given: ``none``, ``visible`` or a slice.
            solver: ``mixture``, ``joint``, ``adam``, ``chapter`` or ``sequential``; or settings, as
                a study writes them: ``{"kind": "joint", "restarts": 4}``.
            judge: sweep the hidden positions around the found prompt: which of its tokens are the
                only ones that fit. May take longer than the search.
            metric: ``l1``, ``l2``, ``cosine`` or ``l1+cosine``.
            seed: of the starts, and of the noise.
            noise: ratio to the signal of gaussian noise that is added to the visible activations
                before the search sees them. The searcher knows the ratio: a prompt within what such
                noise explains is certified.
            minutes: time after which the best so far is returned; Ctrl-C ends it early too.
            show_progress: a bar on a terminal, a line every ten seconds elsewhere.

        Raises:
            TokinfoError: the request does not suit the model or the prompt; one line.

        Examples:
            >>> from tokinfo import load
            >>> from tokinfo.examples import tiny_model
            >>> found = load(*tiny_model()).invert("The sky is blue.", site="block.1", visible="1:")
            >>> found.text, found.certified, found.correct
            ('The sky is blue.', True, 1)
        """
        settings = read_solver(solver, minutes)
        if settings.kind == "sweep":
            raise InvalidError("solver sweep: searches nothing; allowed: Model.sweep")
        fields: dict[str, Any] = {"known": known, "metric": metric, "seed": seed, "noise": noise}
        fields["mask"] = read_mask(visible, hide)
        return self.ask(prompt, settings, site, judge=judge, shown=show_progress, **fields)

    def sweep(
        self,
        prompt: Any,
        *,
        site: str,
        visible: str | None = None,
        hide: str | Sequence[str] | None = None,
        known: str = NONE,
        everywhere: bool = False,
        noise: bool | Mapping[str, Any] = False,
        metric: str = "l1",
        minutes: float | None = None,
        show_progress: bool = True,
    ) -> Result:
        """Test every token at each hidden position, the other tokens of the prompt known.

        This is no attack: it says what the activations identify, and so what any search could claim
        at best.

        Args:
            prompt: as for `invert`, and so below.
            site: where activations are read.
            visible: the positions that stay visible.
            hide: text whose tokens are hidden.
            known: positions whose token is given; they are not swept.
            everywhere: sweep visible positions too.
            noise: also find the noise at which each token is lost; or its settings
                (``{"draws": 16}``).
            metric: how activations are compared.
            minutes: positions that were not reached after this time have no rank.
            show_progress: whether progress is.

        Examples:
            >>> from tokinfo import load
            >>> from tokinfo.examples import tiny_model
            >>> swept = load(*tiny_model()).sweep("The sky is blue.", site="block.1", visible="2:")
            >>> [row["rank"] for row in swept.rows]
            [1, 1, None, None, None]
        """
        form: dict[str, Any] = {"kind": "sweep", "minutes": minutes}
        form["positions"] = "all" if everywhere else "hidden"
        if noise:
            form["noise"] = dict(noise) if isinstance(noise, Mapping) else {}
        fields: dict[str, Any] = {"known": known, "metric": metric}
        fields["mask"] = read_mask(visible, hide)
        solver = validated(SOLVER, form)
        return self.ask(prompt, solver, site, shown=show_progress, **fields)

    def flow(
        self,
        prompt: Any,
        *,
        site: str | Sequence[str],
        minutes: float | None = None,
        show_progress: bool = True,
    ) -> Flow:
        """Say which position carries which token: sweep every position, all of them visible.

        Args:
            prompt: a text, or a chat.
            site: where activations are read, or several sites.
            minutes: time for each site; positions that were not reached are left out.
            show_progress: whether progress is.

        Examples:
            >>> from tokinfo import load
            >>> from tokinfo.examples import tiny_model
            >>> flow = load(*tiny_model()).flow("The sky is blue.", site="block.2")
            >>> flow.maps[0].shares.shape
            (5, 5)
        """
        sites = [site] if isinstance(site, str) else list(site)
        solver = read_solver({"kind": "sweep", "positions": "all"}, minutes)
        fields: dict[str, Any] = {"mask": ":", "metric": "l2", "shown": show_progress}
        return Flow(tuple(self.ask(prompt, solver, one, **fields) for one in sites))

    def invert_activations(
        self,
        activations: Any,
        *,
        site: str,
        positions: Sequence[int] | None = None,
        length: int | None = None,
        known: Mapping[int, str | int] | None = None,
        tolerance: float | None = None,
        solver: str | Mapping[str, Any] | Solver = "mixture",
        judge: bool = True,
        metric: str = "l1",
        seed: int = 0,
        minutes: float | None = None,
        show_progress: bool = True,
    ) -> Result:
        """Look for the prompt behind activations that another program captured.

        Nobody knows the prompt, so the result says nothing of what is right: it has the found
        prompt, whether it is certified, and which of its tokens are the only ones that fit.

        Args:
            activations: [position, width] or [1, position, width] of one prompt, a tensor or an
                array, or a file of them: .safetensors, .npz, .npy or .pt. A file with several
                arrays calls them ``activations`` and ``positions``.
            site: where they were read; ``block.K`` is what transformers calls
                ``hidden_states[K]``, counted from 1 (before the final norm).
            positions: the position in the prompt of each row; None: the file's, or 0, 1, ...
            length: tokens of the prompt; None: up to the last position.
            known: tokens that are known, by position: ids, or their text. None: the special tokens
                that the tokenizer puts around a text.
            tolerance: share of their norm by which activations of the true prompt may differ from
                those computed here, where another precision or library made them. None: rounding.
            solver: as for `invert`, and so below.
            judge: whether to sweep around the found prompt.
            metric: how activations are compared.
            seed: of the starts.
            minutes: time after which the best so far is returned.
            show_progress: whether progress is.

        Raises:
            TokinfoError: shape, dtype, site or model do not fit; one line.

        Examples:
            >>> import torch
            >>> from tokinfo import load
            >>> from tokinfo.examples import tiny_model
            >>> llama, tokenizer = tiny_model()
            >>> ids = torch.tensor([tokenizer("The sky is blue.")["input_ids"]])
            >>> seen = llama.model(ids, output_hidden_states=True).hidden_states[1][0, 1:]
            >>> found = load(llama, tokenizer).invert_activations(
            ...     seen, site="block.1", positions=[1, 2, 3, 4]
            ... )
            >>> found.text, found.certified, found.claims
            ('The sky is blue.', True, {0: 'The'})
        """
        chosen = read_solver(solver, minutes)
        given = captured(activations, positions, length)
        where = Site.parse(site).resolve(self.depth)
        with self._checkpoint(where.block) as checkpoint:
            fields = {"site": str(where), "mask": ":", "metric": metric, "seed": seed}
            settings = one_cell(self.name, checkpoint, chosen, "?", **fields)
            table, cell = checkpoint.embedding, settings.cell
            gram = self._gram(checkpoint).to(table.device)
            problem = captured_problem(
                checkpoint,
                make_probe(checkpoint, cell),
                Decoder(table, gram, chosen.decode.method),
                cell,
                given,
                known_tokens(checkpoint, known, given.length),
                tolerance,
            )
            if not bool((problem.known < 0).any()):
                raise InvalidError("known: every token is known; there is nothing to find")
            nobody = torch.full_like(problem.known, -1)
            with watched(f"{chosen.kind}, {self.name}", shown=show_progress) as watch:
                result = run(problem, chosen, nobody, watch=watch)
                found = problem.layout.padded(result.top_ids[..., 0].to(nobody))
                if judge:
                    result = around(replace(problem, watch=watch), result, found)
            rows = make_rows(settings, checkpoint, problem, found, result)
            text = checkpoint.tokenizer.decode(found[0].tolist(), skip_special_tokens=True)
            count = len(given.positions)
            heading = (
                f"{self.name} at {where}, captured at {count} of {given.length} "
                f"positions, {metric}, {chosen.kind}"
            )
            return Result(without_truth(rows), heading, text)

    def ask(
        self,
        prompt: Any,
        solver: Solver,
        site: str,
        *,
        judge: bool = False,
        shown: bool = True,
        weights: MetricWeights | None = None,
        named: str | None = None,
        noise: float = 0.0,
        **fields: Any,
    ) -> Result:
        """Solve one prompt by any solver; `invert` and `sweep` do this.

        Args:
            prompt: as for `invert`.
            solver: its settings.
            site: as for `invert`.
            judge: as for `invert`.
            shown: whether progress is.
            weights: of the metric ``l1+cosine``.
            named: the solver's name; None: its kind.
            noise: as for `invert`.
            **fields: of the cell: ``mask``, ``known``, ``metric``, ``seed``.
        """
        text = read_prompt(prompt)
        if not 0 <= noise < math.inf:
            raise InvalidError(f"noise {noise}: allowed: 0 or more")
        where = Site.parse(site).resolve(self.depth)
        with self._checkpoint(where.block) as checkpoint:
            settings = one_cell(self.name, checkpoint, solver, text, site=str(where), **fields)
            cell = settings.cell
            (reading,) = checkpoint.read([text])
            length, limit = len(reading.ids), checkpoint.facts.n_ctx
            if limit is not None and length > limit:
                # Before anything asks for memory, which grows with the square of the length.
                raise InvalidError(f"the prompt has {length} tokens, the model holds {limit}")
            if isinstance(self._opened, Borrowed) and isinstance(text, str):
                self._opened.check_reading(text, reading.ids)
            problem, truth = make_problem(
                *(checkpoint, self._gram(checkpoint), cell, solver, weights or MetricWeights()),
                [text],
                ratio=noise,
            )
            check_question(problem, solver, cell.known)
            with watched(f"{solver.kind}, {self.name}", shown=shown) as watch:
                result = run(problem, solver, truth, watch=watch)
                if judge and result.identified is None:
                    result = around(replace(problem, watch=watch), result, truth)
            rows = make_rows(settings, checkpoint, problem, truth, result)
            found = None
            if solver.kind != "sweep":
                ids = [row["found_id"] for row in rows]
                found = checkpoint.tokenizer.decode(ids, skip_special_tokens=True)
        facts = checkpoint.facts
        heading = (
            f"{self.name} ({facts.family}, {facts.state}, {facts.quantization}) at {where}, mask "
            f"{cell.mask}, {cell.metric}, {named or solver.kind}"
            + ("" if cell.known.text == NONE else f", known {cell.known}")
            + (f", noise {noise:g}" if noise else "")
        )
        return Result(rows, heading, found)

    @contextmanager
    def _checkpoint(self, blocks: int) -> Iterator[Checkpoint]:
        with (
            torch.inference_mode(False),
            torch.enable_grad(),
            self._opened.checkpoint(blocks) as found,
        ):
            yield found

    def _gram(self, checkpoint: Checkpoint) -> torch.Tensor:
        """Return the inverse Gram matrix of the embedding, which is the same at any depth."""
        if self._inverse is None:
            self._inverse = inverse_gram(checkpoint.embedding)
        return self._inverse
