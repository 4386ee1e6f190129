"""`tokinfo flow` on a tiny checkpoint."""

from __future__ import annotations

import json
from pathlib import Path

from tests.cli.test_prompt import (
    PROMPT,
    cells,
    checkpoint,
    directory,
    in_study,
    prepared,
    run,
)
from tokinfo.cli.app import app

__all__ = ["checkpoint", "directory"]


def test_a_flow_map_is_printed_and_drawn_for_every_site(checkpoint: Path) -> None:
    prepared(checkpoint)
    where = [*in_study("llama", "block.1"), "--site", "block.2"]
    where = [part for part in where if part not in ("--visible", "1:")]
    done = run(app, ["flow", *where, "--out", "map.svg", PROMPT])
    assert done.exit_code == 0, done.output
    lines = cells(done.stdout)
    count = len(
        json.loads(run(app, ["tokens", "--model", str(checkpoint), "--json", PROMPT]).stdout)
    )
    assert len(lines) == 2 * count
    assert lines[0][1] == "some"
    assert lines[0][2].endswith("%")
    assert "<svg" in Path("map.svg").read_text()
    refused = run(app, ["flow", *where, "--out", "map.txt", PROMPT])
    assert "--out map.txt" in refused.stderr
