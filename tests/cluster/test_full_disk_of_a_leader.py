"""A leader whose disk is full hands its range to a member that may have space."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from o3storage.cluster import StorageFull
from o3storage.cluster._replication import GIVE_WAY_S
from o3storage.simulation import run
from tests.cluster.support import body_of
from tests.cluster.team_support import Member, team


class Full:
    """Whether its disk is."""

    def __init__(self, member: Member) -> None:
        self.now = False
        self.log_too = False
        store: Any = member.store
        space = store.space

        def told() -> Any:
            found = space()
            found.full = found.full or self.now
            return found

        store.space = told
        cls = type(store)
        full = self

        class Cramped(cls):  # type: ignore[misc, valid-type]
            @property
            def log_full(self) -> bool:
                return full.log_too

        store.__class__ = Cramped


@pytest.mark.parametrize("log_too", [False, True])
@pytest.mark.parametrize("at_leader", [False, True])
def test_a_full_leader_hands_over_and_the_write_is_taken(log_too: bool, at_leader: bool) -> None:
    async def main() -> None:
        async with team() as group:
            bucket = await group.members[0].bucket()
            leader = group.leader()
            full = Full(leader)
            full.now, full.log_too = True, log_too
            writer = leader if at_leader else group.follower()
            await writer.put(bucket, b"key", body_of(1, 900))
            assert not leader.leads() and group.leader() is not leader
            for member in group.members:
                assert await member.get(bucket, b"key") == body_of(1, 900)

    run(main(), 3)


def test_where_all_disks_are_full_a_write_is_refused_and_the_leader_stays_a_while() -> None:
    async def main() -> None:
        async with team() as group:
            bucket = await group.members[0].bucket()
            for member in group.members:
                Full(member).now = True
            terms = []
            for _ in range(20):
                with pytest.raises(StorageFull):
                    await group.follower().put(bucket, b"key", body_of(1, 900))
                terms.append(group.leader().replica().core.term)
            # Each of the three was asked once, and none again.
            assert terms[-1] - terms[0] <= 2 and terms[3:] == [terms[-1]] * 17
            await asyncio.sleep(GIVE_WAY_S)
            with pytest.raises(StorageFull):
                await group.follower().put(bucket, b"key", body_of(1, 900))
            assert group.leader().replica().core.term > terms[-1]

    run(main(), 4)
