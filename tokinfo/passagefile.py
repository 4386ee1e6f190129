"""The file of a set of passages: what cells and the check of the prompts read of it."""

from __future__ import annotations

import json
from pathlib import Path

from tokinfo.damaged import reading


def read_passages(path: Path) -> list[str]:
    """Return the texts of passages that `tokinfo.passages.write_passages` wrote."""
    with reading(path):
        told = json.loads(path.read_text(encoding="utf-8"))
        return [str(passage["text"]) for passage in told["passages"]]
