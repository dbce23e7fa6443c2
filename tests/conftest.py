"""Settings of all suites."""

from __future__ import annotations

from hypothesis import HealthCheck, settings

# The same examples in every run, here and in CI, whatever else the machine does meanwhile: what
# fails fails again. `--hypothesis-profile=random` looks at others.
settings.register_profile(
    "steady",
    derandomize=True,
    database=None,
    deadline=None,
    print_blob=True,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.register_profile("random", deadline=None, print_blob=True)
settings.load_profile("steady")
