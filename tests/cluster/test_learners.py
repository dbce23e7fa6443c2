"""Members without a vote: they ask nobody for anything, and must be told."""

from __future__ import annotations

import asyncio

import pytest

from o3storage.raft.core import Role
from o3storage.simulation import run
from tests.cluster.member_rig import Places, patiently


def idle(places: Places) -> bool:
    """Who leads range 0 says nothing any more."""
    cores = [p.node._replicas[0].core for p in places.all if p.clustered]
    return next(core.quiescent for core in cores if core.role is Role.LEADER)


@pytest.mark.parametrize("cut", [False, True])
def test_a_learner_that_comes_back_to_an_idle_cluster_hears_who_leads(cut: bool) -> None:
    async def main() -> None:
        async with Places(count=4) as places:
            await places.start(4)
            await places.until_voters(1, 2, 3, groups=(0,))
            bucket = await patiently(places[1].bucket)
            await patiently(lambda: places[1].put(bucket, b"k", b"v"))
            place = places[4]
            await asyncio.sleep(10)
            if cut:
                places.net.partition([place.host], [p.host for p in places.all if p is not place])
            else:
                await place.down()
            await asyncio.sleep(60)
            assert idle(places)
            if cut:
                places.net.heal()
            else:
                await place.up(places[1].host)
            await asyncio.sleep(15)
            assert place.node._replicas[0].core.leader
            assert await place.get(bucket, b"k") == b"v"
            await asyncio.sleep(30)
            assert idle(places)

    run(main(), 4)
