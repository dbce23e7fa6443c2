"""A snapshot says who the members are at its own entry, not later."""

from __future__ import annotations

import asyncio

from o3storage.raft.core import ChangeConfiguration, SnapshotNeeded
from o3storage.simulation import run
from tests.cluster.team_support import team


def test_a_leader_that_is_slow_to_apply_sends_no_members_of_later() -> None:
    """A cut that lies between gives them to the new range: all replicas must read the same."""

    async def main() -> None:
        async with team(seed=24) as group:
            leader = group.leader()
            first, second = (m.id for m in group.members if m is not leader)
            await group.level()
            replica = leader.replica()
            replica._applying = True  # its disk is slow, or a block is being rebuilt
            replica.step(ChangeConfiguration(0, (leader.id, first), (second,)))
            while replica.core.configuration.joint or (
                replica.core.commit < replica.core.configuration_index
            ):
                await asyncio.sleep(0.01)
            snapshots = replica.team.snapshots
            snapshots.needed(SnapshotNeeded(second, 0))
            await asyncio.sleep(0.1)
            assert second not in snapshots._sources, "the members of then are not known any more"
            replica._applying = False
            replica._apply_ready()
            await group.level()
            snapshots.needed(SnapshotNeeded(second, 0))
            while second not in snapshots._sources:
                await asyncio.sleep(0.001)
            source = snapshots._sources[second]
            assert source.index == replica.applied
            assert source.configuration == replica.core.configuration

    run(main(), 24)
