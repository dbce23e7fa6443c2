"""A leader that becomes the only member: what the others acknowledged before they left counts."""

from __future__ import annotations

import asyncio

import pytest

from o3storage.raft.core import ChangeConfiguration
from o3storage.simulation import run
from tests.cluster.team_support import team


def test_who_is_alone_again_reads_nothing_older_than_what_the_others_acknowledged() -> None:
    async def main() -> None:
        async with team(2, seed=21) as group:
            leader, other = group.leader(), group.follower()
            bucket = await leader.bucket()
            await leader.put(bucket, b"key", b"before")
            await group.level()
            replica = leader.replica()
            replica._applying = True  # its disk is slow, or a block is being rebuilt
            await other.put(bucket, b"key", b"after")  # applied and acknowledged there
            replica.step(ChangeConfiguration(0, (leader.id,)))
            while replica.core.progress:
                await asyncio.sleep(0.01)
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.5):
                    assert await leader.get(bucket, b"key") == b"after"
            replica._applying = False
            replica._apply_ready()
            assert await leader.get(bucket, b"key") == b"after"

    run(main(), 21)
