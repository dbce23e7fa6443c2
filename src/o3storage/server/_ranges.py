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
from o3storage.cluster import show_address

from ._credentials import ROOT_OWNER
from ._errors import AdminError
from ._json_body import read_fields
from ._nodes import find

if TYPE_CHECKING:
    from ._app import Application

MAX_NUMBER_CHARS = 9
"""Of a range: far more than there may be."""


async def listing(app: Application) -> dict[str, Any]:
    """The ranges that this node knows, in order of their keys. A bound is a bucket and a key in it
    ("" for the bucket's beginning); null for the beginning or the end of all. Sizes are estimates,
    in bytes of rows, null where this node has no replica; above the limit the range's leader cuts
    it. `moves`: from which node to which one replica is on its way, or null. Raises
    Unavailable."""
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
            "moves": _moving(entry["move"]),
        }
        for entry in app.node.ranges.status()
    ]
    nodes = {
        f"{record.node:016x}": show_address(record.announced.addresses[0])
        for record in app.membership.live()
        if record.announced.addresses
    }
    limit = app.node.ranges.sizes.limit_bytes
    return {"ranges": found, "nodes": nodes, "limit_bytes": limit}


def _moving(move: tuple[int, int] | None) -> dict[str, str] | None:
    if move is None:
        return None
    return {"from": f"{move[0]:016x}", "to": f"{move[1]:016x}"}


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


async def act(app: Application, number: str, body: bytes) -> dict[str, Any]:
    """Begin to move a replica of the range, with {"action": "move", "from", "to"}, or take that
    back, with {"action": "stay"}. Raises AdminError, MembershipRefused, Unavailable."""
    action = read_fields(body, ("action",), '{"action": "stay"}')["action"]
    if not number.isascii() or not number.isdigit() or len(number) > MAX_NUMBER_CHARS:
        raise AdminError(404, f"a range has a number; {number} is none")
    group = int(number)
    if group == 0:
        raise AdminError(409, "range 0 is on every node: it does not move")
    ranges = app.node.ranges
    if action == "stay":
        await ranges.stay(group)
        return {"range": group, "moves": None}
    if action != "move":
        raise AdminError(400, "the action is move or stay")
    asked = read_fields(body, ("from", "to"), '{"action": "move", "from": "a", "to": "b"}')
    source, target = find(app, asked["from"]), find(app, asked["to"])
    if source == target:
        raise AdminError(400, f"{asked['from']} and {asked['to']} are one node")
    await ranges.move(group, source, target)
    return {"range": group, "moves": _moving((source, target))}
