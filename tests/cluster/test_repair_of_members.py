"""`verify --repair` of a node among others: what it lost comes back from them, and is not given up."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from o3storage import catalog
from o3storage.cluster import decides_alone
from o3storage.simulation import SimClock, SimEntropy, SimJobs, run
from o3storage.storage import VerifyReport, verify
from o3storage.storage import _records as records
from tests.cluster.member_rig import Place, Places, patiently

ALL_ROWS = (b"\x10", b"\xfe")


async def repaired(place: Place) -> VerifyReport:
    return await verify(
        place.disk,
        disk_key=place.keys.disk_key,
        jobs=SimJobs(1),
        clock=SimClock(),
        entropy=SimEntropy(1),
        repair=True,
        prefix_length=catalog.prefix_length,
        decides_alone=await decides_alone(place.disk, place.number_of()),
    )


def spoil(place: Place, group: int, bad: Callable[[int], bool]) -> int:
    """Entries of the group, and what they did, by index; and the index is gone. How many."""
    spoiled = 0
    for path, node in sorted(place.disk.image.names.items()):
        if node is not None and path.startswith("index/"):
            del place.disk.image.names[path]
        if node is None or not path.endswith(".log"):
            continue
        data = bytes(node.cached)
        at = data.find(records.RECORD_MAGIC)
        while at >= 0:
            header = records.check_record(data, at - 32)
            names_it = header.kind in (records.ENTRY, records.OUTCOME) and header.group == group
            if names_it and bad(header.b):
                place.disk.rot(path, at - 32 + header.size_bytes - 1)
                spoiled += header.kind == records.ENTRY
            at = data.find(records.RECORD_MAGIC, at + 1)
    return spoiled


async def rows(place: Place) -> list[tuple[bytes, bytes]]:
    return await place.store.scan(*ALL_ROWS, 1000)


@pytest.mark.parametrize("number", [1, 3])
@pytest.mark.parametrize("group", [0, 1])
def test_what_a_member_lost_is_not_given_up(number: int, group: int) -> None:
    """Nor by the one that made the cluster, which goes back to when it was alone."""

    async def main() -> None:
        async with Places() as places:
            await places.start(3)
            await places.until_voters(1, 2, 3)
            bucket = await patiently(places[1].bucket)
            for at in range(8):
                await patiently(lambda at=at: places[1].put(bucket, b"k%d" % at, b"v"))
            place, other = places[number], places[2]
            await places.until(lambda: len(place.membership.members.nodes) == 2)
            await places.until(
                lambda: place.node._replicas[group].applied == other.node._replicas[group].applied
            )
            last = place.node._replicas[group].applied
            await place.die()
            assert spoil(place, group, lambda index: 2 <= index < last) > 2
            report = await repaired(place)
            assert any("not given up" in line for line in report.repaired), report
            assert not any("marked lost" in line for line in report.repaired)
            await place.up(other.host)
            replica = place.node._replicas[group]
            await places.until(lambda: replica.applied >= last and not replica.core.log.holes)
            await places.until_voters(1, 2, 3)
            assert not replica.lost_entries
            assert await rows(place) == await rows(other)
            assert await patiently(lambda: place.get(bucket, b"k7")) == b"v"

    run(main(), 5)


def test_who_has_the_entries_alone_gives_them_up() -> None:
    async def main() -> None:
        async with Places() as places:
            place = await places[1].up()
            bucket = await patiently(place.bucket)
            await patiently(lambda: place.put(bucket, b"k", b"v"))
            last = place.node._replicas[1].applied
            await place.die()
            assert spoil(place, 1, lambda index: index == last)
            report = await repaired(place)
            assert any("marked lost" in line for line in report.repaired), report
            await place.up()
            assert place.node._replicas[1].lost_entries == 1

    run(main(), 6)
