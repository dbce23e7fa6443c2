"""What the store says of itself: /health, /health/live, /health/ready, /metrics, status.

/health/live and /health/ready reveal the status only. Nothing here names a bucket, key or owner.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any

from o3storage.catalog import Counts, add_counts, counts
from o3storage.cluster import Unavailable
from o3storage.http import Response

if TYPE_CHECKING:
    from o3storage.cluster import Node

    from ._app import Application

FRESH_S = 1.0
"""/health needs no key: of many ranges each is asked for its sums so often at most, by all."""
MAX_RANGES_ASKED = 4
"""As many are asked each time: somebody who has just put an object sees it counted."""
RETRY_AFTER_S = 5
"""Asked of probes while writes are refused: about the time an election or a clean-up takes."""
_JSON = ("Content-Type", "application/json")
_TEXT = ("Content-Type", "text/plain; charset=utf-8")


class ObjectCount:
    """How many objects the store has, as of at most FRESH_S ago. Those who ask while the ranges are
    being asked wait for that one answer, or for its failure."""

    def __init__(self, count: Callable[[], Awaitable[int | None]]) -> None:
        self._count = count
        self._asking = asyncio.Lock()
        self._known: int | None = None
        self._known_s = float("-inf")

    async def now(self) -> int | None:
        """None: it cannot be said."""
        loop = asyncio.get_running_loop()
        async with self._asking:
            if loop.time() - self._known_s >= FRESH_S:
                self._known = await self._count()
                self._known_s = loop.time()
            return self._known


async def count_objects(app: Application) -> int | None:
    # Without a leader the question would only wait for the time that a client is made to wait.
    if app.membership.why_no_writes() is None:
        with contextlib.suppress(Unavailable):
            return (await total_counts(app.node)).objects
    return None


def health_facts(app: Application, objects: int | None) -> dict[str, Any]:
    """The body of /health: plain data, sizes in bytes."""
    space = app.store.space()
    refused = write_refusal(app)
    membership = app.membership
    available = 0 if space.full else max(space.free_bytes - space.reserve_bytes, 0)
    cluster: dict[str, Any] = {
        "active_nodes": sum(membership.up(record.node) for record in membership.live()),
        "total_replicas": membership.replicas(),
        "write_enabled": refused is None,
    }
    if refused:
        cluster["reason"] = refused
    return {
        "status": "ok" if refused is None else "degraded",
        "cluster": cluster,
        "storage": {
            "total_objects": objects,
            "used_space_bytes": space.used_bytes,
            "available_space_bytes": available,
        },
    }


async def total_counts(node: Node) -> Counts:
    """The sums of the whole store. Raises Unavailable."""
    return add_counts([await node.query(counts(group)) for group in node.key_ranges()])


def write_refusal(app: Application) -> str | None:
    """Why writes are refused now, or None."""
    if app.stopping:
        return "the store is stopping"
    out = app.store.stats().out_of_service
    if out:
        return f"the disk is out of service: {out}"
    if app.store.space().full:
        return "the disk is full: delete something, or give it more space"
    return app.node.write_refusal() or app.membership.why_no_writes()


async def answer(app: Application, path: str) -> Response | None:
    """The answer for a health path, or None if `path` is none."""
    if path in {"/health/live", "/minio/health/live"}:
        return Response(200, [_TEXT], b"live\n")
    if path in {"/health/ready", "/minio/health/ready", "/minio/health/cluster"}:
        if write_refusal(app) is None:
            return Response(200, [_TEXT], b"ready\n")
        return Response(503, [_TEXT, ("Retry-After", str(RETRY_AFTER_S))], b"not ready\n")
    if path == "/health":
        if len(app.node.key_ranges()) <= MAX_RANGES_ASKED:
            objects = await count_objects(app)
        else:
            objects = await app.object_count.now()
        facts = health_facts(app, objects)
        status = 200 if facts["cluster"]["write_enabled"] else 503
        body = json.dumps(facts, indent=2).encode() + b"\n"
        return Response(status, [_JSON, ("Cache-Control", "no-store")], body)
    return None
