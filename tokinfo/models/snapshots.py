"""Snapshots of a training run: a model as it was after some share of its steps."""

# mypy: allow-untyped-calls
# (transformers leaves many of its functions without types)

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tokinfo.io.atomic import new_directory
from tokinfo.io.damaged import check, reading
from tokinfo.io.errors import DamagedError
from tokinfo.models.checkpoint import save_model
from tokinfo.study.sources import Training

if TYPE_CHECKING:
    from transformers.modeling_utils import PreTrainedModel

TRAINING = "training.json"
"""File beside weights trained here that records how far they were trained."""


def directory_name(step: int) -> str:
    """Return the name of a snapshot's directory, in the directory of the model at the end."""
    return f"at-{step}"


def write_facts(
    directory: Path, training: Training, step: int, n_ctx: int, held_out_loss: float
) -> None:
    """Record beside a model's weights what training they had; tables have these as columns."""
    facts = {
        "training_share": step / training.steps,
        "training_tokens": step * training.batch * n_ctx,
        "held_out_loss": held_out_loss,
    }
    (directory / TRAINING).write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")


def read_facts(directory: Path) -> dict[str, Any]:
    """Return what `write_facts` wrote; nothing of weights from elsewhere."""
    path = directory / TRAINING
    if not path.is_file():
        return {}
    with reading(path):
        facts: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return facts


@dataclass(frozen=True)
class Snapshots:
    """Where one run's snapshots wait for its end, so that an interrupted run keeps them.

    Attributes:
        waiting: directory of this run alone.
        training: its settings.
        n_ctx: positions of a window.
    """

    waiting: Path
    training: Training
    n_ctx: int

    @property
    def steps(self) -> frozenset[int]:
        """The steps after which the model is kept."""
        return frozenset(map(self.training.step_at, self.training.snapshots))

    def keep(self, model: PreTrainedModel, step: int, held_out_loss: float) -> None:
        """Write the model as it is now, whole or not at all."""
        with new_directory(self.waiting / directory_name(step)) as directory:
            save_model(model, directory)
            write_facts(directory, self.training, step, self.n_ctx, held_out_loss)

    def missing(self, step: int) -> list[int]:
        """Return the steps of snapshots that a run of ``step`` steps lacks, or has damaged."""
        due = sorted(at for at in self.steps if at <= step)
        return [at for at in due if not self._is_whole(self.waiting / directory_name(at))]

    def _is_whole(self, directory: Path) -> bool:
        try:
            check(directory)
        except DamagedError:
            return False
        return (directory / TRAINING).is_file()

    def clear(self) -> None:
        """Remove what another run left."""
        shutil.rmtree(self.waiting, ignore_errors=True)

    def copy(self, directory: Path) -> None:
        """Copy the snapshots into the directory of the finished model."""
        for step in sorted(self.steps):
            name = directory_name(step)
            shutil.copytree(self.waiting / name, directory / name)
