"""`tokinfo invert` and `tokinfo sweep`: one prompt, or activations of one, in any model.

They are `tokinfo.api` with words in place of arguments, so their rows are those of a notebook and
of a cell.
"""

from __future__ import annotations

import json
import math
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tokinfo.cli import asking
from tokinfo.cli.options import Config, StudyFiles, read_messages, read_study, say
from tokinfo.io.errors import InvalidError, TokinfoError

if TYPE_CHECKING:
    from tokinfo.model import Model
    from tokinfo.report.answer import Result
    from tokinfo.study.prompts import Prompt
    from tokinfo.study.solvers import Solver
    from tokinfo.study.study import Study


@dataclass(frozen=True)
class Request:
    """Which model, and what to do with the answer."""

    model: str
    site: str
    study: Study | None
    named: list[str]
    device: str | None
    quantization: str
    dtype: str | None
    special_tokens: bool
    trust: bool
    as_json: bool
    out: Path | None


def invert(
    model: asking.ModelName,
    site: asking.SiteName,
    prompt: asking.PromptText = None,
    visible: asking.Visible = None,
    hide: asking.Hide = None,
    messages: asking.Messages = None,
    activations: asking.Activations = None,
    positions: asking.Positions = None,
    length: asking.Length = None,
    token: asking.Tokens = None,
    tolerance: asking.Tolerance = None,
    known: asking.Known = "none",
    solver: asking.SolverName = None,
    judge: asking.Judge = False,
    minutes: asking.Minutes = None,
    metric: asking.Metric = "l1",
    seed: asking.SeedNumber = 0,
    noise: asking.Noise = 0.0,
    study: StudyFiles = None,
    config: Config = None,
    device: asking.Device = None,
    quantization: asking.QuantizationName = "float32",
    dtype: asking.Dtype = None,
    no_special_tokens: asking.NoSpecialTokens = False,
    trust_remote_code: asking.Trust = False,
    as_json: asking.AsJson = False,
    out: asking.Out = None,
) -> None:
    """Search one prompt by its visible activations, and say what is certain of what was found.

    \b
    Examples:
      tokinfo invert "The sky is blue." --model HuggingFaceTB/SmolLM2-135M --site block.8
      tokinfo invert "I am Anna Bell." --model models/mine --site block.1 --hide "Anna Bell"
      tokinfo invert --activations kept.npz --model models/mine --site block.4 --length 12
    """
    request = request_of(
        *(model, site, study, config, device, quantization, dtype, not no_special_tokens),
        *(trust_remote_code, as_json, out),
    )
    name, settings = _solver(request, solver, "joint", minutes)
    if settings.kind == "sweep":
        raise InvalidError(f"solver {name!r}: is a sweep; `tokinfo sweep` runs it")
    common: dict[str, Any] = {"site": site, "metric": metric, "seed": seed}
    if activations is not None:
        if prompt is not None or messages is not None:
            raise InvalidError("give a prompt, or --messages FILE, or --activations FILE")
        if visible is not None or hide or known != "none" or noise:
            raise InvalidError(
                "--activations: allowed: --positions and --token in place of masks and noise"
            )
        common |= {"positions": asking.read_positions(positions, length), "length": length}
        common |= {"known": asking.read_tokens(token), "tolerance": tolerance, "judge": judge}
        found = opened(request).invert_activations(activations, solver=settings, **common)
    else:
        if positions or length or token or tolerance is not None:
            raise InvalidError("--positions, --length, --token and --tolerance: of --activations")
        text = prompt_of(prompt, messages)
        fields: dict[str, Any] = {"known": known, "noise": noise}
        fields |= asking.read_mask(visible, hide)
        found = _ask(request, text, name, settings, judge, **common, **fields)
    _print(found, request)


def sweep(
    model: asking.ModelName,
    site: asking.SiteName,
    prompt: asking.PromptText = None,
    visible: asking.Visible = None,
    hide: asking.Hide = None,
    messages: asking.Messages = None,
    known: asking.Known = "none",
    everywhere: asking.Everywhere = False,
    threshold: asking.Threshold = False,
    solver: asking.SweepName = None,
    minutes: asking.Minutes = None,
    metric: asking.Metric = "l1",
    study: StudyFiles = None,
    config: Config = None,
    device: asking.Device = None,
    quantization: asking.QuantizationName = "float32",
    dtype: asking.Dtype = None,
    no_special_tokens: asking.NoSpecialTokens = False,
    trust_remote_code: asking.Trust = False,
    as_json: asking.AsJson = False,
    out: asking.Out = None,
) -> None:
    """Test every token at each hidden position of one prompt, its other tokens known.

    \b
    Examples:
      tokinfo sweep "The sky is blue." --model HuggingFaceTB/SmolLM2-135M --site block.8
      tokinfo sweep "I am Anna Bell." --model models/mine --site block.1 --threshold
    """
    request = request_of(
        *(model, site, study, config, device, quantization, dtype, not no_special_tokens),
        *(trust_remote_code, as_json, out),
    )
    name, settings = _solver(request, solver, "sweep", minutes)
    if settings.kind != "sweep":
        raise InvalidError(f"solver {name!r} is of kind {settings.kind}; `tokinfo invert` runs it")
    more: dict[str, Any] = {"positions": "all", "first": None} if everywhere else {}
    if threshold and settings.noise is None:
        more["noise"] = {}
    if more:
        settings = type(settings).model_validate(settings.model_dump(exclude_unset=True) | more)
    text = prompt_of(prompt, messages)
    fields = {"site": site, "metric": metric, "known": known, **asking.read_mask(visible, hide)}
    _print(_ask(request, text, name, settings, False, **fields), request)


def tokens(
    model: asking.ModelName,
    prompt: asking.PromptText = None,
    messages: asking.Messages = None,
    study: StudyFiles = None,
    config: Config = None,
    no_special_tokens: asking.NoSpecialTokens = False,
    trust_remote_code: asking.Trust = False,
    as_json: Annotated[bool, typer.Option("--json", help="A JSON list of the tokens.")] = False,
) -> None:
    """Number the tokens of a prompt as masks count them.

    \b
    Examples:
      tokinfo tokens "The sky is blue." --model HuggingFaceTB/SmolLM2-135M
    """
    request = request_of(
        *(model, "embedding", study, config, None, "float32", None, not no_special_tokens),
        *(trust_remote_code, as_json, None),
    )
    found = opened(request).tokens(prompt_of(prompt, messages))
    if as_json:
        say(json.dumps(found))
        return
    from tokinfo.report.tokens import show

    wide = len(str(len(found) - 1))
    for number, token in enumerate(found):
        say(f"{number:>{wide}}  {show(token)}")


# --- what is used -------------------------------------------------------------------------


def request_of(
    model: str,
    site: str,
    files: list[Path] | None,
    config: list[str] | None,
    device: str | None,
    quantization: str,
    dtype: str | None,
    special_tokens: bool,
    trust: bool,
    as_json: bool,
    out: Path | None,
) -> Request:
    """Return what the options say, and the study where the model is one of its."""
    from tokinfo.study.sites import Site

    if out is not None and out.suffix != ".parquet":
        raise InvalidError(f"--out {out}: allowed: a file that ends in .parquet")
    Site.parse(site)
    # What is no path and no repository is a model of the study in this directory.
    plain = "/" not in model and not Path(model).exists()
    if files is None and plain and Path("config.yaml").is_file():
        files = [Path("config.yaml")]
    study = read_study(files, config) if files else None
    named = ["--configfile", *map(str, files)] if files and files != [Path("config.yaml")] else []
    named += ["--config", *config] if config else []
    return Request(
        *(model, site, study, named, device, quantization, dtype, special_tokens, trust),
        *(as_json, out),
    )


def prompt_of(text: str | None, messages: Path | None) -> Prompt:
    """Return the prompt of the command line, or that of a file of messages."""
    if (text is None) == (messages is None):
        raise InvalidError("give a prompt, or --messages FILE in its place")
    if messages is not None:
        return read_messages(messages)
    # Other bytes than UTF-8 come as surrogates.
    if any("\ud800" <= letter <= "\udfff" for letter in text or ""):
        raise InvalidError("the prompt is not UTF-8")
    return text or ""


def _solver(
    request: Request, wanted: str | None, kind: str, minutes: float | None
) -> tuple[str, Solver]:
    """Return the requested solver with its name; without one, the study's first of a kind."""
    from tokinfo.study.asked import KINDS, read_solver
    from tokinfo.study.mistakes import suggestion

    solvers: dict[str, Solver] = dict(request.study.solvers) if request.study else {}
    usual = "sweep" if kind == "sweep" else "mixture"
    name = wanted or next((n for n in solvers if solvers[n].kind == kind), usual)
    if name not in solvers and name not in (*KINDS, "sweep"):
        names = list(dict.fromkeys([*solvers, *KINDS, "sweep"]))
        allowed = f"{suggestion(name, names)}: allowed: {', '.join(names)}"
        raise InvalidError(f"solver {name!r}{allowed}")
    return name, read_solver(solvers.get(name) or name, minutes)


def _ask(
    request: Request, text: Prompt, name: str, solver: Solver, judge: bool, **fields: Any
) -> Result:
    study = request.study
    model = opened(request)
    weights = study.metric_weights if study else None
    try:
        return model.ask(text, solver, judge=judge, weights=weights, named=name, **fields)
    except TokinfoError as error:
        words = " ".join(str(error).split())
        raise InvalidError(f"{request.model} at {request.site}: {words}") from None


def opened(request: Request) -> Model:
    """Return the model, of a study the checkpoint that it has prepared."""
    study = request.study
    if study is None:
        from tokinfo.api import load

        return load(
            request.model,
            device=request.device or "auto",
            quantization=request.quantization,
            dtype=request.dtype,
            special_tokens=request.special_tokens,
            trust_remote_code=request.trust,
        )
    fixed = (request.quantization, request.dtype, request.special_tokens, request.trust)
    if fixed != ("float32", None, True, False):
        raise InvalidError(
            "--quantization, --dtype, --no-special-tokens and --trust-remote-code: a study's model "
            "has its own"
        )
    directory = _prepared(request, study)
    # Imported late: what can be refused without torch is refused at once.
    from tokinfo.model import Model
    from tokinfo.models.opening import Named

    source = study.source_of(request.model)
    return Model(
        Named(
            str(directory),
            device=request.device or study.device,
            trust_remote_code=getattr(source, "trust_remote_code", False),
            called=request.model,
        )
    )


def _prepared(request: Request, study: Study) -> Path:
    """Return the study's checkpoint for a model and site.

    Of several that hold enough blocks the smallest is taken.

    Raises:
        InvalidError: unknown model or site; or not prepared yet, with the command that does it.
    """
    from tokinfo.study.mistakes import suggestion
    from tokinfo.study.sites import Site

    if request.model not in study.models:
        close = suggestion(request.model, study.models)
        raise InvalidError(f"model {request.model!r}{close}: allowed: {', '.join(study.models)}")
    depth = study.source_of(request.model).blocks
    site = Site.parse(request.site).resolve(depth)
    if site.block > depth:
        raise InvalidError(f"site {request.site}: {request.model} has {depth} blocks")
    folder = Path(study.results) / "checkpoints" / request.model
    there = [
        int(path.parent.name)
        for path in folder.glob("*/tokinfo.json")
        if path.parent.name.isdecimal() and int(path.parent.name) >= site.block
    ]
    if there:
        return folder / str(min(there))
    # Snakemake makes the checkpoints that some cell of the study loads, and no others.
    planned = {cell.block for cell in study.cells() if cell.model == request.model}
    deep_enough = sorted(
        block for block in planned | ({0} if planned else set()) if block >= site.block
    )
    if not deep_enough:
        raise InvalidError(
            f"{request.model} at {request.site}: no cell of the study reads that deep; add the "
            "site to a grid"
        )
    target = folder / str(deep_enough[0])
    # `--configfile` takes every file that follows it, so the target comes first.
    command = ["snakemake", str(target), "--cores", "all", *request.named]
    raise InvalidError(f"{target}: not prepared yet; this makes it: {shlex.join(command)}")


# --- what is printed ----------------------------------------------------------------------


def _print(found: Result, request: Request) -> None:
    if request.out is not None:
        from tokinfo.io.atomic import new_file

        with new_file(request.out) as partial:
            found.to_polars().write_parquet(partial)
    if not request.as_json:
        found.show()
        return
    text = {
        "heading": found.heading,
        "text": found.text,
        "certified": None if found.sweep else found.certified,
        "correct": None if found.sweep else found.correct,
        "recovered": found.recovered,
        "claims": found.claims,
        "sentences": list(found.sentences()),
        "rows": found.rows,
    }
    say(json.dumps(_finite(text), allow_nan=False))


def _finite(value: Any) -> Any:
    """Return a value as JSON can hold it: numbers that are not finite as their names."""
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, dict):
        return {key: _finite(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(inner) for inner in value]
    return value
