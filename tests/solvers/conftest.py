"""What tests of several solvers share."""

from __future__ import annotations

import pytest

from tokinfo.solvers.batches import Batcher


@pytest.fixture
def batches_of_one_size(monkeypatch: pytest.MonkeyPatch) -> None:
    """Batch sizes that stay: they follow the clock, and the last bits of a sum follow them."""
    monkeypatch.setattr(Batcher, "_learn", lambda self, rate: None)
