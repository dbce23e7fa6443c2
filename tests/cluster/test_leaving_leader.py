"""A node that leaves while it leads a range, and that did not hear of it."""

from __future__ import annotations

import asyncio

from o3storage.raft.core import TransferLeadership
from o3storage.simulation import Blocked, run
from tests.cluster.member_rig import Place, Places, patiently


def leader(places: Places, group: int) -> Place | None:
    return next((p for p in places.all if p.node._replicas[group].leads), None)


def test_a_leader_that_misses_that_it_leaves_hears_it_later() -> None:
    """Range 0 must not let go of it before the range that it leads has."""

    async def main() -> None:
        async with Places(count=4) as places:
            await places.start(4)
            first = places[1]
            await places.until(
                lambda: all(len(first.voters(group)) == 3 for group in (0, 1)) and leader(places, 0)
            )
            both = [p for p in places.all if all(p.id in first.voters(g) for g in (0, 1))]
            boss = leader(places, 0)
            assert boss is not None
            victim = next(p for p in both if p is not boss)
            while leader(places, 1) is not victim:
                now = leader(places, 1)
                if now is not None:
                    now.node._replicas[1].step(TransferLeadership(victim.id))
                await asyncio.sleep(0.5)
            assert leader(places, 0) is boss
            # For a moment it does not hear the leader of range 0.
            for source, target in ((boss, victim), (victim, boss)):
                places.net.block(source.host, target.host, Blocked.VANISH)
            await patiently(lambda: boss.membership.remove(victim.id, shrink=False))
            await places.until(lambda: victim.id not in boss.voters(0))
            await asyncio.sleep(0.5)
            assert leader(places, 1) is victim
            places.net.heal()
            await places.until(lambda: boss.states()[victim.host] == "removed", 60)
            await places.until(lambda: leader(places, 1) not in {None, victim})

    run(main(), 31)
