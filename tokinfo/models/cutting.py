"""Checkpoints from what the workflow says of them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import TypeAdapter

from tokinfo.models.preparing import prepare
from tokinfo.models.remote_code import trusted
from tokinfo.snapshots import read_facts
from tokinfo.sources import MixerSource, Model, TransformerSource

if TYPE_CHECKING:
    from collections.abc import Mapping

_BUILT: TypeAdapter[MixerSource | TransformerSource] = TypeAdapter(MixerSource | TransformerSource)


def cut_checkpoint(settings: Mapping[str, Any], origin: Path, out: Path) -> None:
    """Write a checkpoint from the settings of `tokinfo.workflow.Plan.prepare_settings`.

    Args:
        settings: ``source``, ``model``, ``blocks``, ``facts`` and ``built`` (whether the model is
            built from its source instead of read); ``snapshot``, where it is one of a run's.
        origin: directory of the full model; of the tokenizer, where the model is built.
        out: directory to write.
    """
    built = settings["built"]
    # A run's snapshots lie in the directory of the model that it ended with.
    origin = origin / settings.get("snapshot", "")
    with trusted(settings["source"].get("trust_remote_code", False)):
        prepare(
            _BUILT.validate_python(settings["source"]) if built else origin,
            Model.model_validate(settings["model"]),
            settings["blocks"],
            out,
            tokenizer=origin if built else None,
            facts=settings["facts"] | ({} if built else read_facts(origin)),
        )
