"""What the server counts of each request."""

from __future__ import annotations

from typing import Any, cast

from o3storage.runtime import Registry
from o3storage.server._metrics import Metrics


def test_requests_are_counted_and_timed_by_operation() -> None:
    registry = Registry()
    metrics = Metrics(cast(Any, None), registry)
    for took_s in (0.0001, 0.0007, 0.3, 11.0):
        metrics.count_request("PutObject", 200, took_s)
    metrics.count_request("PutObject", 503, 0.0007)
    metrics.count_request("", 405, 0.002)
    lines = registry.expose().splitlines()
    assert 'o3_s3_requests_total{operation="PutObject",status="200"} 4' in lines
    assert 'o3_s3_requests_total{operation="none",status="405"} 1' in lines
    name = "o3_s3_request_seconds"
    for bound, count in (("0.0001", 1), ("0.0005", 1), ("0.001", 3), ("0.5", 4), ("10", 4)):
        assert f'{name}_bucket{{operation="PutObject",le="{bound}"}} {count}' in lines
    assert f'{name}_bucket{{operation="PutObject",le="+Inf"}} 5' in lines
    assert f'{name}_count{{operation="PutObject"}} 5' in lines
    (total,) = [line for line in lines if line.startswith(f'{name}_sum{{operation="PutObject"}}')]
    assert abs(float(total.split()[1]) - 11.3015) < 1e-9
    assert f'{name}_count{{operation="none"}} 1' in lines
