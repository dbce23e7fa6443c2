"""A request that may read what is applied here waits while a snapshot is being installed."""

from __future__ import annotations

import asyncio

import pytest

from o3storage import catalog
from o3storage.catalog import ListPage
from o3storage.cluster import ClusterError
from o3storage.simulation import run
from o3storage.storage import Miss, _install
from tests.cluster.team_support import equal, team
from tests.cluster.test_team_bodies import forget

KEYS = 20
LOOKS, LOOK_S = 3000, 0.0003
"""More than the snapshot takes, and less than a step of installing it."""


@pytest.mark.parametrize("now", [True, False], ids=["from memory", "behind a barrier"])
def test_no_page_mixes_what_was_applied_with_a_snapshot(
    monkeypatch: pytest.MonkeyPatch, *, now: bool
) -> None:
    monkeypatch.setattr(_install, "STEP_ROWS", 2)
    pages: list[list[int]] = []

    def look(page: ListPage) -> None:
        pages.append([entry[3] for entry in page.entries])

    async def main() -> None:
        async with team(seed=12, reload_log_bytes=0, keep_log_bytes=0) as group:
            bucket = await group.members[0].bucket()
            listing = catalog.list_objects(bucket.bucket_id)
            for number in range(KEYS):
                await group.members[0].put(bucket, b"k%02d" % number, b"x")
            await group.level()
            away = group.follower()
            others = [member for member in group.members if member is not away]
            last = away.store.log_state(1).last_index
            reads = away.node.reads()
            look(await reads.query(listing))
            group.net.cut([away.id], [member.id for member in others])
            await group.settled(others)
            for size in range(2, 5):
                for number in range(KEYS):
                    await others[0].put(bucket, b"k%02d" % number, b"x" * size)
            await group.level(others)
            for other in others:
                await forget(other, last)
            group.net.heal()
            for _ in range(LOOKS):
                if not now:
                    try:
                        async with asyncio.timeout(0.02):
                            look(await reads.query(listing))
                    except (ClusterError, TimeoutError):
                        continue
                elif (found := reads.query_now(listing)) is not Miss.MISS:
                    look(found)
                await asyncio.sleep(LOOK_S)
            await equal(group)
            assert sum(member.replica().team.snapshots.sent for member in group.members)
            assert pages[0] == [1] * KEYS
            assert pages[-1] == [4] * KEYS
            # Keys are written in their order: at no instant is a later one ahead.
            for sizes in pages:
                assert sizes == sorted(sizes, reverse=True)
                assert sizes[0] - sizes[-1] <= 1

    run(main(), 12)
