"""What every test has in common."""

from __future__ import annotations

from hypothesis import HealthCheck, settings

# Both of hypothesis's limits are wall time: on a busy machine they fail tests that are right.
settings.register_profile("tokinfo", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("tokinfo")
