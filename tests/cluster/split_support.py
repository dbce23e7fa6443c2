"""Key ranges that tests cut, and what must be the same behind it."""

from __future__ import annotations

import asyncio
from typing import Any

from o3storage import catalog
from o3storage.catalog import PutObject
from o3storage.cluster import Node
from tests.cluster.support import OWNER, Rig, body_of
from tests.cluster.team_support import Team

KEYS = [b"%c%d" % (letter, n) for letter in b"abcdef" for n in range(5)]


async def cut(node: Node, bucket: catalog.BucketInfo, key: bytes) -> int:
    return await node.ranges.split(node.machine.stream_route(bucket.bucket_id, key)[1:])


async def put(r: Rig, bucket: catalog.BucketInfo, key: bytes, size: int = 0) -> Any:
    """An empty object, unless `size`."""
    if size:
        return await r.put(bucket, key, body_of(len(key), size))
    command = PutObject(
        bucket.bucket_id, bucket.epoch, key, r.clock.wall_ns(), OWNER, 0, "0" * 32, bytes(32)
    )
    return await r.node.submit(command)


async def listed(node: Node, bucket: catalog.BucketInfo, limit: int = 1000, **how: Any) -> Any:
    """(keys, common prefixes, pages) of a whole listing, page after page."""
    keys: list[bytes] = []
    prefixes: list[bytes] = []
    pages = 0
    after = b""
    while True:
        query = catalog.list_objects(bucket.bucket_id, after=after, max_keys=limit, **how)
        page = await node.query(query)
        keys += [entry[0] for entry in page.entries]
        prefixes += page.common_prefixes
        pages += 1
        if not page.truncated:
            return keys, prefixes, pages
        assert page.next_after and page.next_after != after
        after = page.next_after


async def sums(node: Node) -> catalog.Counts:
    groups = [one["range"] for one in node.ranges.status()]
    return catalog.add_counts([await node.query(catalog.counts(group)) for group in groups])


async def level(group: Team, ranges: int) -> None:
    """All have so many key ranges, have applied the same and lack nothing; their rows are equal."""
    numbers = list(range(ranges + 1))
    for _ in range(1200):
        if all(list(m.node._replicas) and len(m.node._replicas) > ranges for m in group.up) and all(
            group._level(group.up, number) and any(m.leads(number) for m in group.up)
            for number in numbers
        ):
            break
        await asyncio.sleep(0.05)
    else:
        raise AssertionError([m.node.status() for m in group.up])
    first, *others = await group.catalogs()
    assert all(other == first for other in others)
