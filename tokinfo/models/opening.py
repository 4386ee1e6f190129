"""Any model by its name: a checkpoint, a directory, a GGUF file or a repository on the hub.

Only what a site needs is read: of a hub repository, the bytes of the embedding and of the blocks
before it. What was fetched, and what was converted of a GGUF file, is kept in `cache`; checkpoints
are written to a temporary directory there and read at once.
"""

# mypy: allow-untyped-calls
# (transformers leaves many of its functions without types)

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from tokinfo.io.damaged import reading
from tokinfo.io.errors import InvalidError
from tokinfo.models.checkpoint import FACTS, Checkpoint, Facts, load
from tokinfo.models.fetch.fetch import configuration, fetch
from tokinfo.models.placement import pick_device
from tokinfo.models.preparing import prepare
from tokinfo.models.remote_code import trusted
from tokinfo.models.structure import held_blocks
from tokinfo.study.sources import GgufSource, HubSource, LocalSource, Model, Pretrained, located

ALLOWED = (
    "a directory written by save_pretrained, a checkpoint of a study, a .gguf file, or a "
    "repository on the hub, as OWNER/NAME or OWNER/NAME@REVISION"
)
_COMMIT = re.compile(r"[0-9a-f]{40}")
_HUB = re.compile(r"([A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*)(?:@([\w./-]+))?\Z")


def cache() -> Path:
    """Return where fetched and converted parts of models are kept.

    It is ``TOKINFO_CACHE``, or ``tokinfo`` in the user's directory for caches.
    """
    if stated := os.environ.get("TOKINFO_CACHE"):
        return located(stated)
    return located(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "tokinfo"


class Named:
    """A model that is loaded from files, as deep as it is needed.

    Args:
        name: what `ALLOWED` lists.
        model: its precision (``source`` is of no account); None: float32.
        device: ``auto``, ``cpu`` or ``cuda``.
        special_tokens: whether prompts get the special tokens that the tokenizer adds.
        trust_remote_code: run the code that the model brings with it; a hub repository needs a
            commit as its revision then.
        called: what messages and tables call it; None: its file's name, or its repository's.

    Raises:
        InvalidError: there is no such model.
    """

    def __init__(
        self,
        name: str,
        model: Model | None = None,
        *,
        device: str = "auto",
        special_tokens: bool = True,
        trust_remote_code: bool = False,
        called: str | None = None,
    ) -> None:
        self.name, self.model = name, model or Model(source="it")
        self._trust = trust_remote_code
        self.device = pick_device(device)
        self._held: Checkpoint | None = None
        self._directory: Path | None = None
        self._source: Pretrained | None = None
        path = located(name)
        if path.exists():
            self.name = path.resolve().name
        common: dict[str, Any] = {"blocks": 1, "special_tokens": special_tokens}
        saved = common | {"trust_remote_code": trust_remote_code}
        if (path / FACTS).is_file():
            self._directory = path
            self.name = self._facts.model or self.name
            if self.model != Model(source="it"):
                raise InvalidError(f"{name}: a checkpoint's precision is fixed; use the model's")
        elif path.is_dir():
            self._source = LocalSource(path=name, **saved)
        elif path.is_file():
            self._source = GgufSource(path=name, **common)
        elif match := _HUB.match(name):
            if trust_remote_code and not _COMMIT.fullmatch(match[2] or ""):
                raise InvalidError(f"{name}: trust_remote_code needs a commit: OWNER/NAME@COMMIT")
            self._source = HubSource(repository=match[1], revision=match[2] or "main", **saved)
        else:
            raise InvalidError(f"model {name!r}: there is none; allowed: {ALLOWED}")
        self.name = called or self.name

    @cached_property
    def depth(self) -> int:
        """How many blocks the whole model has."""
        if self._directory is not None:
            return self._facts.depth
        return int(held_blocks(self._config) or 0)

    @property
    def _facts(self) -> Facts:
        assert self._directory is not None
        path = self._directory / FACTS
        with reading(path):
            return Facts.model_validate_json(path.read_text(encoding="utf-8"))

    @contextmanager
    def checkpoint(self, blocks: int) -> Iterator[Checkpoint]:
        """Give the model's embedding and at least its first ``blocks`` blocks.

        Raises:
            InvalidError: it is not that deep, or cannot be used.
            FetchError: it cannot be fetched or converted, or is damaged.
        """
        if blocks > self.depth:
            raise InvalidError(f"{self.name}: has {self.depth} blocks, block {blocks} requested")
        deeper = self._held is not None and self._held.facts.blocks_kept < blocks
        if self._held is None or (deeper and self._directory is None):
            self._held = None  # memory need not hold both
            self._held = self._load(blocks)
        if blocks > self._held.facts.blocks_kept:
            kept = self._held.facts.blocks_kept
            raise InvalidError(f"{self.name}: the checkpoint holds {kept} of {self.depth} blocks")
        yield self._held

    def _load(self, blocks: int) -> Checkpoint:
        if self._directory is not None:
            with trusted(self._trust):
                return load(self._directory, self.device)
        source = self._source
        assert source is not None
        limit = getattr(self._config, "max_position_embeddings", None)
        known = {"blocks": self.depth}
        if isinstance(limit, int) and limit > 1:
            known["n_ctx"] = limit
        source = source.model_copy(update=known)
        with (
            trusted(self._trust),
            TemporaryDirectory(dir=self._state, prefix="checkpoint-") as scratch,
        ):
            origin, out = Path(scratch) / "model", Path(scratch) / "checkpoint"
            fetch(source, blocks, origin, self._state)
            facts = {"special_tokens": source.special_tokens, "model": self.name}
            prepare(origin, self.model, blocks, out, facts=facts)
            # Its files are mapped into memory and outlive their names.
            return load(out, self.device)

    @cached_property
    def _config(self) -> Any:
        assert self._source is not None
        return configuration(self._source, self._state)

    @property
    def _state(self) -> Path:
        found = cache()
        found.mkdir(parents=True, exist_ok=True)
        return found
