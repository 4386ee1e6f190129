"""Training: one plain PyTorch loop for mixers and transformers.

AdamW, linear warm-up and cosine decay, gradient clipping, next-token loss on windows of n_ctx
tokens. The batch of a step is a function of (seed, step) alone, so a run that is killed goes on
from its last resume point and ends in the same weights, bit for bit on one machine with one
number of threads.
"""

# mypy: allow-untyped-calls
# (transformers leaves many of its functions without types)

from __future__ import annotations

import csv
import hashlib
import json
import math
import shutil
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor, nn
from tqdm import tqdm  # type: ignore[import-untyped]
from transformers.modeling_utils import PreTrainedModel

from tokinfo.io.atomic import new_directory, new_file, save_sealed
from tokinfo.io.damaged import check, check_seal, reading
from tokinfo.io.errors import DamagedError, InvalidError
from tokinfo.io.provenance import code_digest
from tokinfo.models.build import new_model
from tokinfo.models.checkpoint import save_model
from tokinfo.models.snapshots import Snapshots, write_facts
from tokinfo.study.sources import Built, Training
from tokinfo.text.tokenizer import load_tokenizer

COLUMNS = ("step", "tokens", "seconds", "learning_rate", "train_loss", "held_out_loss")
HELD_OUT_WINDOWS = 128  # enough for a standard error of about 0.02 nats at n_ctx 32
RESUME_FILE = "resume.safetensors"


@dataclass
class Progress:
    """How far a run is: what a resume point holds beside the tensors."""

    step: int = 0  # steps done
    seconds: float = 0.0  # wall time spent in steps, over all attempts
    rows: list[dict[str, Any]] = field(default_factory=list)  # of the history


def train(
    source: Built,
    tokenizer: Path,
    tokens: Path,
    out: Path,
    history: Path,
    resume: Path,
    device: str,
) -> None:
    """Train a new model and write it with its tokenizer to ``out``, its losses to ``history``.

    Each snapshot of the source's `training` is a directory in ``out``.
    ``tokens`` holds ``train`` and ``held_out`` (int32 [tokens]). ``resume`` is a directory of
    this run alone; it is removed at the end. Raises ValueError for a source without training
    or a corpus shorter than a window, FloatingPointError when a loss is not finite.
    """
    training = source.training
    if training is None:
        raise InvalidError("this source has no `training`: it exists untrained only")
    check(tokenizer)
    with reading(tokens):
        check_seal(tokens)
        data = {name: part.long() for name, part in load_file(tokens).items()}
    for name, part in data.items():
        if len(part) <= source.n_ctx:
            raise InvalidError(
                f"{tokens.name}: {name} has {len(part)} tokens, a window needs {source.n_ctx + 1}"
            )
    vocabulary = load_tokenizer(tokenizer).get_vocab_size()
    model = new_model(source, vocabulary, training.seed).train()
    nn.Module.to(model, torch.device(device))
    optimizer = new_optimizer(model, training)
    digest = run_digest(source, vocabulary, data)
    snapshots = Snapshots(resume / "snapshots", training, source.n_ctx)
    progress = load_resume(resume, model, optimizer, digest, snapshots)
    with _deterministic(device):
        _run(model, optimizer, source.n_ctx, training, data, progress, resume, digest, snapshots)
    last = progress.rows[-1]
    with new_file(history) as partial, partial.open("w", newline="") as stream:
        writer = csv.DictWriter(stream, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(progress.rows)
    with new_directory(out) as directory:
        save_model(model.eval().cpu(), directory)
        write_facts(directory, training, training.steps, source.n_ctx, last["held_out_loss"])
        snapshots.copy(directory)
        for place in (directory, *(path for path in directory.iterdir() if path.is_dir())):
            for name in ("tokenizer.json", "tokenizer_config.json"):
                shutil.copyfile(tokenizer / name, place / name)
    shutil.rmtree(resume, ignore_errors=True)
    print(
        f"{out.name}: {training.steps} steps, {progress.seconds:.0f} s, "
        f"loss {last['train_loss']:.3f}, held-out {last['held_out_loss']:.3f}",
        file=sys.stderr,
    )


def _run(
    model: PreTrainedModel,
    optimizer: torch.optim.Optimizer,
    n_ctx: int,
    training: Training,
    data: dict[str, Tensor],
    progress: Progress,
    resume: Path,
    digest: str,
    snapshots: Snapshots,
) -> None:
    device = next(model.parameters()).device
    per_step = training.batch * n_ctx
    bar = tqdm(
        total=training.steps * per_step,
        initial=progress.step * per_step,
        unit="tok",
        unit_scale=True,
        disable=None,  # quiet when stderr is not a terminal
    )
    started = time.perf_counter() - progress.seconds
    if progress.step == 0 and 0 in snapshots.steps:
        snapshots.keep(model, 0, held_out_loss(model, data["held_out"], training, n_ctx))
    while progress.step < training.steps:
        step = progress.step
        rate = learning_rate(step, training)
        for group in optimizer.param_groups:
            group["lr"] = rate
        windows = batch_at(data["train"], step, training, n_ctx).to(device)
        optimizer.zero_grad(set_to_none=True)
        loss = next_token_loss(model, windows)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), training.clip)
        value = loss.item()
        if not math.isfinite(value):
            raise FloatingPointError(
                f"the loss is {value} at step {step + 1}: lower training.learning_rate ({rate:g})"
            )
        optimizer.step()
        progress.step = step + 1
        last = progress.step == training.steps
        held_out = None
        kept = progress.step in snapshots.steps
        if last or kept or progress.step % training.evaluate_every == 0:
            held_out = held_out_loss(model, data["held_out"], training, n_ctx)
            if kept:
                snapshots.keep(model, progress.step, held_out)
        progress.seconds = time.perf_counter() - started
        progress.rows.append(
            {
                "step": progress.step,
                "tokens": progress.step * per_step,
                "seconds": round(progress.seconds, 3),
                "learning_rate": rate,
                "train_loss": value,
                "held_out_loss": held_out,
            }
        )
        bar.update(per_step)
        bar.set_postfix(loss=f"{value:.3f}", refresh=False)
        if not last and progress.step % training.checkpoint_every == 0:
            save_resume(resume, model, optimizer, progress, digest)
    bar.close()


def learning_rate(step: int, training: Training) -> float:
    """Return the learning rate of a step (0-based): linear warm-up, then cosine to the last."""
    peak, warmup = training.learning_rate, min(training.warmup, training.steps)
    if step < warmup:
        return peak * (step + 1) / warmup
    share = (step - warmup) / max(1, training.steps - 1 - warmup)
    low = training.final_share
    return peak * (low + (1 - low) * 0.5 * (1 + math.cos(math.pi * share)))


def batch_at(tokens: Tensor, step: int, training: Training, n_ctx: int) -> Tensor:
    """Return the windows of a step, int64 [batch, n_ctx + 1], chosen by (seed, step) alone."""
    name = f"{training.seed}/{step}".encode()
    generator = torch.Generator().manual_seed(
        int.from_bytes(hashlib.sha256(name).digest()[:7], "big")
    )
    starts = torch.randint(len(tokens) - n_ctx, (training.batch,), generator=generator)
    return tokens[starts[:, None] + torch.arange(n_ctx + 1)]


def next_token_loss(model: PreTrainedModel, windows: Tensor) -> Tensor:
    """Return the mean cross-entropy (nats) of each next token of windows [batch, n + 1]."""
    # bfloat16 where it is fast; the parameters and the loss stay float32.
    with torch.autocast(windows.device.type, torch.bfloat16, enabled=windows.is_cuda):
        logits = model(input_ids=windows[:, :-1], use_cache=False).logits
    return nn.functional.cross_entropy(logits.flatten(0, 1).float(), windows[:, 1:].flatten())


@torch.no_grad()
def held_out_loss(model: PreTrainedModel, tokens: Tensor, training: Training, n_ctx: int) -> float:
    """Return the mean loss (nats a token) over evenly spaced windows, the same at every call."""
    device = next(model.parameters()).device
    count = max(1, min(HELD_OUT_WINDOWS, len(tokens) // (n_ctx + 1)))
    starts = torch.linspace(0, len(tokens) - n_ctx - 1, count).long()
    windows = tokens[starts[:, None] + torch.arange(n_ctx + 1)]
    model.eval()
    total = 0.0
    for part in windows.split(training.batch):
        total += next_token_loss(model, part.to(device)).item() * len(part)
    model.train()
    return total / count


def new_optimizer(model: nn.Module, training: Training) -> torch.optim.Optimizer:
    """Return AdamW that decays matrices only (biases and LayerNorms are free)."""
    parameters = list(model.parameters())
    groups = [
        {"params": [p for p in parameters if p.ndim > 1], "weight_decay": training.weight_decay},
        {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=training.learning_rate, betas=(0.9, 0.95), fused=True)


# --- resume points ------------------------------------------------------------------------


def run_digest(source: Built, vocabulary: int, data: dict[str, Tensor]) -> str:
    """Return a digest of all that decides a run; a resume point of another run is not used."""
    code = f"{code_digest('tokinfo.models.train')} {torch.__version__}"
    digest = hashlib.sha256(f"{source.model_dump_json()} {vocabulary} {code}".encode())
    for name in sorted(data):
        digest.update(data[name].numpy().tobytes())
    return digest.hexdigest()


def save_resume(
    resume: Path,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    progress: Progress,
    digest: str,
) -> None:
    """Write one safetensors file: weights, AdamW's moments, and the progress as its metadata."""
    tensors = {f"model.{name}": value.detach() for name, value in model.named_parameters()}
    for index, moments in optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer.{index}.{key}": value for key, value in moments.items()}
    state = {"step": progress.step, "seconds": progress.seconds, "rows": progress.rows}
    save_sealed(
        {name: value.contiguous() for name, value in tensors.items()},
        resume / RESUME_FILE,
        {"digest": digest, "progress": json.dumps(state)},
    )


def load_resume(
    resume: Path,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    digest: str,
    snapshots: Snapshots,
) -> Progress:
    """Restore the state that `save_resume` wrote, if it is of this very run; else start anew.

    A damaged resume point costs the time it stood for, nothing else: the result is the same.
    """
    path = resume / RESUME_FILE
    if not path.is_file():
        snapshots.clear()
        return Progress()
    try:
        check_seal(path)
        with reading(path), safe_open(path, "pt") as file:
            metadata = file.metadata()
            other = metadata.get("digest") != digest
            if other or snapshots.missing(json.loads(metadata["progress"])["step"]):
                gone = "its snapshots are gone or damaged"
                why = "of other settings or other code" if other else gone
                print(f"{path}: {why}; training starts anew", file=sys.stderr)
                snapshots.clear()
                return Progress()
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except DamagedError:
        print(f"{path}: damaged or cut short; training starts anew", file=sys.stderr)
        snapshots.clear()
        return Progress()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(tensors[f"model.{name}"])
    moments: dict[int, dict[str, Tensor]] = {}
    for name, value in tensors.items():
        if name.startswith("optimizer."):
            _, index, key = name.split(".")
            moments.setdefault(int(index), {})[key] = value
    optimizer.load_state_dict(
        {"state": moments, "param_groups": optimizer.state_dict()["param_groups"]}
    )
    return Progress(**json.loads(metadata["progress"]))


@contextmanager
def _deterministic(device: str) -> Iterator[None]:
    """Ask CUDA for deterministic kernels while training; the CPU's are, for a thread count."""
    before = torch.are_deterministic_algorithms_enabled()
    if device != "cpu":
        torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before)
