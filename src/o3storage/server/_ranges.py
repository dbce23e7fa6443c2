"""The key ranges in the admin API: where each begins and ends, and cutting one in two."""

from __future__ import annotations

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
from ._json_body import read_fields

if TYPE_CHECKING:
    from ._app import Application


async def listing(app: Application) -> dict[str, Any]:
    """The ranges that this node knows, in order of their keys. A bound is a bucket and a key in it
    ("" for the bucket's beginning); null for the beginning or the end of all. Sizes are estimates,
    in bytes of rows; above the limit the range's leader cuts it. Raises Unavailable."""
    page: BucketsPage = await app.node.query(list_buckets(ROOT_OWNER))
    names = {bucket.bucket_id: bucket.name for bucket in page.buckets}
    groups = {group["group"]: group for group in app.node.status()["groups"]}
    found = []
    for entry in app.node.ranges.status():
        group = groups.get(entry["range"])
        found.append(
            {
                "range": entry["range"],
                "first": _bound(entry["low"], names),
                "end": _bound(entry["high"], names),
                "cut_off": entry["parent"] or None,
                "size_bytes": entry["size_bytes"],
                "leader": f"{entry['leader']:016x}" if entry["leader"] else None,
                "voters": [f"{node:016x}" for node in group["voters"]] if group else [],
                "learners": [f"{node:016x}" for node in group["learners"]] if group else [],
            }
        )
    return {"ranges": found, "limit_bytes": app.node.ranges.sizes.limit_bytes}


def summary(app: Application) -> str:
    """For `status`."""
    sizes = app.node.ranges.sizes
    found = [sizes.measure(group) for group in app.node.key_ranges()]
    return (
        f"{len(found)} of keys, the largest {max(found, default=0):,} bytes of rows; "
        f"cut above {sizes.limit_bytes:,}"
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
    asked = read_fields(body, ("bucket", "key"), '{"bucket": "b", "key": "k"}')
    name, key = asked["bucket"], asked["key"].encode()
    if not 0 < len(key) <= MAX_KEY_BYTES:
        raise AdminError(400, f"a key has 1 to {MAX_KEY_BYTES} bytes")
    try:
        bucket = await app.node.query(get_bucket(name))
    except NoSuchBucket:
        raise AdminError(404, f"there is no bucket {name}") from None
    route = app.node.machine.stream_route(bucket.bucket_id, key)
    return {"range": await app.node.ranges.split(route[1:])}
