"""What every test has in common."""

from __future__ import annotations

import logging
from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, settings

# Both of hypothesis's limits are wall time: on a busy machine they fail tests that are right.
settings.register_profile("tokinfo", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("tokinfo")


@pytest.fixture(autouse=True)
def logging_level() -> Iterator[None]:
    """A command silences the package's warnings for its process, which here is the tests'."""
    logger = logging.getLogger("tokinfo")
    before = logger.level
    yield
    logger.setLevel(before)
