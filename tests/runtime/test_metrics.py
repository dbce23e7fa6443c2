"""Prometheus text exposition."""

from __future__ import annotations

import pytest

from o3storage.runtime import Registry
from o3storage.runtime.metrics import LABEL_SETS_MAX


def test_exposition() -> None:
    registry = Registry()
    requests = registry.counter("o3_requests_total", "Requests.\nBy \\ kind.", ["op", "code"])
    requests.labels("GET", "200").inc()
    requests.labels("GET", "200").inc(2)
    requests.labels('a"b\\c\nd', "500").inc(0.5)
    gauge = registry.gauge("o3_disk_bytes", "Free.")
    gauge.set(1 << 40)
    live = registry.gauge("o3_live", "Read when asked.")
    live.set_function(lambda: 2.5)
    registry.counter("o3_plain_total", "None yet.")
    assert registry.expose() == (
        "# HELP o3_requests_total Requests.\\nBy \\\\ kind.\n"
        "# TYPE o3_requests_total counter\n"
        'o3_requests_total{op="GET",code="200"} 3\n'
        'o3_requests_total{op="a\\"b\\\\c\\nd",code="500"} 0.5\n'
        "# HELP o3_disk_bytes Free.\n"
        "# TYPE o3_disk_bytes gauge\n"
        "o3_disk_bytes 1099511627776\n"
        "# HELP o3_live Read when asked.\n"
        "# TYPE o3_live gauge\n"
        "o3_live 2.5\n"
        "# HELP o3_plain_total None yet.\n"
        "# TYPE o3_plain_total counter\n"
    )
    gauge.inc(-1)
    assert gauge.labels().current() == (1 << 40) - 1


def test_histogram_buckets_are_cumulative_and_bounds_inclusive() -> None:
    registry = Registry()
    seconds = registry.histogram("o3_seconds", "Time.", ["op"], bounds=(0.1, 1.0))
    child = seconds.labels("PUT")
    for value in (0.05, 0.1, 0.5, 2.0):
        child.observe(value)
    assert child.count == 4
    assert registry.expose().splitlines()[2:] == [
        'o3_seconds_bucket{op="PUT",le="0.1"} 2',
        'o3_seconds_bucket{op="PUT",le="1"} 3',
        'o3_seconds_bucket{op="PUT",le="+Inf"} 4',
        'o3_seconds_sum{op="PUT"} 2.65',
        'o3_seconds_count{op="PUT"} 4',
    ]


def test_refusals() -> None:
    registry = Registry()
    counter = registry.counter("a_total", "A.", ["x"])
    for name in ("a_total", "0a", "a-b", ""):
        with pytest.raises(ValueError, match="metric"):
            registry.counter(name, "")
    with pytest.raises(ValueError, match="label"):
        registry.counter("b_total", "", ["le gal"])
    with pytest.raises(ValueError, match="ascend"):
        registry.histogram("h", "", bounds=(2, 1))
    with pytest.raises(ValueError, match="has the labels"):
        counter.inc()
    for number in range(LABEL_SETS_MAX):
        counter.labels(str(number))
    with pytest.raises(ValueError, match="label sets"):
        counter.labels("one more")
    assert Registry().expose() == ""
