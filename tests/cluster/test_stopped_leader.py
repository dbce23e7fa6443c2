"""A leader that stopped, on a node that goes on: nobody hears that it is gone."""

from __future__ import annotations

import asyncio

import pytest

from o3storage.simulation import run
from tests.cluster.member_rig import Place, Places, patiently


@pytest.mark.parametrize("writes", [False, True])
def test_a_quiescent_group_finds_another_leader(writes: bool) -> None:
    """Its disk fails while nothing happens; the links stay, and there were no heartbeats before."""

    async def main() -> None:
        async with Places(count=3) as places:
            await places.start(3)
            await places.until_voters(1, 2, 3)
            bucket = await patiently(places[1].bucket)
            await patiently(lambda: places[1].put(bucket, b"k", b"1"))
            await asyncio.sleep(30)
            lead = next(p for p in places.all if p.node._replicas[1].leads)
            others: list[Place] = [p for p in places.all if p is not lead]
            assert all(p.node._replicas[1].core.quiescent for p in places.all)
            lead.node._disk_failed("the disk failed")
            await asyncio.sleep(30)
            if writes:
                await patiently(lambda: others[0].put(bucket, b"k", b"2"))
            for place in others:
                found = await patiently(lambda p=place: p.get(bucket, b"k"))  # type: ignore[misc]
                assert found == (b"2" if writes else b"1")
            assert any(p.node._replicas[1].leads for p in others)

    run(main(), 51 + writes)


def test_a_leader_that_was_only_slow_stays() -> None:
    async def main() -> None:
        async with Places(count=3) as places:
            await places.start(3)
            await places.until_voters(1, 2, 3)
            bucket = await patiently(places[1].bucket)
            await patiently(lambda: places[1].put(bucket, b"k", b"1"))
            await asyncio.sleep(30)
            terms = [p.node._replicas[1].core.term for p in places.all]
            doubts = next(p for p in places.all if not p.node._replicas[1].leads)
            doubts.node._replicas[1].doubt_leader()
            assert not doubts.node._replicas[1].core.quiescent
            await asyncio.sleep(30)
            assert [p.node._replicas[1].core.term for p in places.all] == terms
            assert all(p.node._replicas[1].core.quiescent for p in places.all)

    run(main(), 53)
