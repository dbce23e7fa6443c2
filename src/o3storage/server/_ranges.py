"""The key ranges in the admin API: where each begins and ends, and cutting one in two."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from o3storage.catalog import (
    MAX_KEY_BYTES,
    BucketsPage,
    NoSuchBucket,
    get_bucket,
    list_buckets,
    split_bound,
)

from ._credentials import ROOT_OWNER
from ._errors import AdminError

if TYPE_CHECKING:
    from ._app import Application


async def listing(app: Application) -> dict[str, Any]:
    """The ranges that this node knows, in order of their keys. A bound is a bucket and a key in it
    ("" for the bucket's beginning); null for the beginning or the end of all. Sizes are estimates,
    in bytes of rows, null where this node has no replica; above the limit the range's leader cuts
    it. Raises Unavailable."""
    page: BucketsPage = await app.node.query(list_buckets(ROOT_OWNER))
    names = {bucket.bucket_id: bucket.name for bucket in page.buckets}
    found = [
        {
            "range": entry["range"],
            "first": _bound(entry["low"], names),
            "end": _bound(entry["high"], names),
            "cut_off": entry["parent"] or None,
            "size_bytes": entry["size_bytes"],
            "leader": f"{entry['leader']:016x}" if entry["leader"] else None,
            "voters": [f"{node:016x}" for node in entry["voters"]],
            "learners": [f"{node:016x}" for node in entry["learners"]],
        }
        for entry in app.node.ranges.status()
    ]
    return {"ranges": found, "limit_bytes": app.node.ranges.sizes.limit_bytes}


def summary(app: Application) -> str:
    """For `status`."""
    sizes = app.node.ranges.sizes
    known = app.node.ranges.status()
    here = [entry["size_bytes"] for entry in known if entry["size_bytes"] is not None]
    return (
        f"{len(known)} of keys, {len(here)} here, the largest {max(here, default=0):,} bytes of "
        f"rows; cut above {sizes.limit_bytes:,}"
    )


def _bound(bound: str | None, names: dict[int, str]) -> dict[str, Any] | None:
    if not bound:
        return None
    bucket_id, key = split_bound(bytes.fromhex(bound))
    return {
        "bucket_id": bucket_id,
        "bucket": names.get(bucket_id),
        "key": key.decode("utf-8", "backslashreplace"),
    }


async def split(app: Application, body: bytes) -> dict[str, Any]:
    """Cut the range that holds {"bucket", "key"} there. Raises AdminError, SplitRefused,
    Unavailable."""
    try:
        asked = json.loads(body)
        name, key = asked["bucket"], asked["key"].encode()
    except (ValueError, KeyError, TypeError, AttributeError):
        raise AdminError(400, 'the body must be JSON like {"bucket": "b", "key": "k"}') from None
    if not isinstance(name, str) or not 0 < len(key) <= MAX_KEY_BYTES:
        raise AdminError(400, f"a key has 1 to {MAX_KEY_BYTES} bytes")
    try:
        bucket = await app.node.query(get_bucket(name))
    except NoSuchBucket:
        raise AdminError(404, f"there is no bucket {name}") from None
    route = app.node.machine.stream_route(bucket.bucket_id, key)
    return {"range": await app.node.ranges.split(route[1:])}
