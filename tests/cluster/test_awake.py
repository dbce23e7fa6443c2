"""What is done again and again goes by what happened: a quiescent group gets no tick, and still it
hears of a leader that is gone, answers, takes proposals, and refuses what cannot be; members are
looked at where something changed."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from o3storage.cluster import Unavailable, _awake, _placing
from o3storage.cluster._awake import LOOKS_BESIDE, MOST_LOOKS, Awake, Looks
from o3storage.cluster._barriers import ASK_AGAIN_TICKS
from o3storage.cluster._ranges import SYSTEM_GROUP
from o3storage.cluster._replication import TICK_S
from o3storage.cluster._team import STUCK_TICKS
from o3storage.raft.core import ReadRequest
from o3storage.simulation import run
from tests.cluster.member_rig import Places
from tests.cluster.split_support import cut
from tests.cluster.team_support import Member, Team, equal, team

QUIET_S = 12.0
"""Quiescent after 5 s, whatever the start left to do."""
ELECTED_S = 3.0
"""Two election timeouts and some messages."""


def asleep(member: Member) -> bool:
    """None of its groups gets a tick."""
    replicas = member.node._replicas.values()
    return not len(member.node.replication.awake) and all(r.core.quiescent for r in replicas)


async def quiet(group: Team) -> None:
    await asyncio.sleep(QUIET_S)
    assert all(asleep(member) for member in group.up)


def test_quiescent_groups_get_no_ticks_and_wake_for_a_write() -> None:
    async def main() -> None:
        async with team(seed=31) as group:
            bucket = await group.members[0].bucket()
            await quiet(group)
            before = [(m.replica(g).team.now, group.net.messages) for m in group.up for g in (0, 1)]
            await asyncio.sleep(60.0)
            later = [(m.replica(g).team.now, group.net.messages) for m in group.up for g in (0, 1)]
            assert later == before
            await group.follower().put(bucket, b"key", b"body")
            awake = [len(m.node.replication.awake) for m in group.up]
            assert awake == [1, 1, 1]  # range 0 sleeps on
            assert await group.follower().get(bucket, b"key") == b"body"
            await quiet(group)
            await equal(group)

    run(main(), 31)


def test_a_leader_lost_from_a_quiescent_group_is_replaced_without_being_asked() -> None:
    async def main() -> None:
        async with team(seed=32) as group:
            bucket = await group.members[0].bucket()
            await group.members[0].put(bucket, b"key", b"body")
            for _ in range(2):
                await quiet(group)
                lost = group.leader()
                await group.kill(lost)
                await asyncio.sleep(ELECTED_S)
                assert any(m.leads() for m in group.up) and any(m.leads(0) for m in group.up)
                for member in group.up:
                    assert await member.get(bucket, b"key") == b"body"
                await group.up[1].put(bucket, b"key", b"body")
                await group.restart(lost)
                await group.settled()
            await equal(group)

    run(main(), 32)


def test_a_question_that_was_lost_in_a_quiescent_group_is_asked_again() -> None:
    async def main() -> None:
        async with team(seed=33) as group:
            bucket = await group.members[0].bucket()
            await group.members[0].put(bucket, b"key", b"body")
            await quiet(group)
            lost: list[Any] = []

            def drop(message: Any) -> bool:
                if isinstance(message, ReadRequest) and not lost:
                    lost.append(message)
                    return True
                return False

            group.net.drop = drop
            loop = asyncio.get_running_loop()
            began_s = loop.time()
            assert await group.follower().get(bucket, b"key") == b"body"
            assert lost and loop.time() - began_s < 2 * ASK_AGAIN_TICKS * TICK_S

    run(main(), 33)


def test_a_write_of_a_quiescent_member_that_hears_nothing_more_is_given_up() -> None:
    """The leader took it by a call, and no message of the group comes through afterwards."""

    async def main() -> None:
        async with team(seed=34) as group:
            bucket = await group.members[0].bucket()
            await quiet(group)
            deaf = group.follower()
            group.net.drop = lambda message: message.to == deaf.id
            with pytest.raises(Unavailable) as caught:
                async with asyncio.timeout(2 * STUCK_TICKS * TICK_S):
                    await deaf.put(bucket, b"key", b"body")
            assert caught.value.uncertain
            group.net.drop = lambda _: False
            await group.leader().put(bucket, b"other", b"body")
            await equal(group)

    run(main(), 34)


def test_who_waits_for_an_entry_of_a_quiescent_group_is_told_that_it_does_not_come() -> None:
    async def main() -> None:
        async with team(seed=35) as group:
            await quiet(group)
            replica = group.follower().replica()
            with pytest.raises(Unavailable):
                async with asyncio.timeout(2 * STUCK_TICKS * TICK_S):
                    await replica.barrier_applied(replica.applied + 5)

    run(main(), 35)


def test_a_mark_that_was_made_in_a_quiescent_group_is_taken_back() -> None:
    async def main() -> None:
        async with team(seed=36) as group:
            await quiet(group)
            found = group.follower().replica().team
            found.mark_incomplete()
            await quiet(group)
            assert not found._marked

    run(main(), 36)


def test_a_node_that_joins_gets_every_range_though_they_are_quiescent(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """By what happened alone: without the looks beside."""
    monkeypatch.setattr(_awake, "LOOKS_BESIDE", 0)
    monkeypatch.setattr(_awake, "MOST_LOOKS", 3)
    looked: dict[int, int] = {}
    real = _placing.next_change

    def counted(*args: Any, **fields: Any) -> Any:
        looked[fields["group"]] = looked.get(fields["group"], 0) + 1
        return real(*args, **fields)

    monkeypatch.setattr(_placing, "next_change", counted)
    cuts = 8

    async def main() -> None:
        async with Places(37, 3) as places:
            await places.start(2)
            groups = (0, 1, *range(2, cuts + 2))
            bucket = await places[1].bucket()
            for number in reversed(range(cuts)):
                await cut(places[1].node, bucket, b"key-%d" % number)
            await asyncio.sleep(2 * QUIET_S)
            looked.clear()
            await asyncio.sleep(30.0)
            assert list(looked) == [SYSTEM_GROUP]
            await places[3].up(places[1].host)
            await places.until_voters(1, 2, 3, groups=groups)
            # Who can be reached counts by itself: a learner may have to wait for nothing else.
            await asyncio.sleep(2 * QUIET_S)
            looked.clear()
            for number in (1, 2, 3):
                monkeypatch.setattr(places[number].membership.peers, "is_up", lambda _: False)
            await asyncio.sleep(QUIET_S)
            assert sorted(looked) == sorted(groups)

    run(main(), 37)


@given(st.lists(st.tuples(st.integers(0, 2000), st.booleans()), max_size=30), st.integers(1, 1500))
def test_looks_miss_nothing_and_repeat_nothing(steps: list[tuple[int, bool]], count: int) -> None:
    """Against a plain dict of what is due: whatever was stirred, or all when what counts for all
    changed, comes within as many looks as it takes; range 0 each time."""
    groups = dict.fromkeys(range(count))
    looks, awake, known = Looks(), Awake(), 0
    due: dict[int, None] = dict.fromkeys(groups)
    needless = 0
    last = [(0, False)] * (count // MOST_LOOKS + 2)
    for calls, (group, changed) in enumerate([*steps, *last], start=1):
        if changed:
            known += 1
            due |= groups
        awake._stirred[group] = None
        if group in groups:
            due[group] = None
        found = looks.next(groups, awake, known)
        assert found[0] == SYSTEM_GROUP and len(found) <= MOST_LOOKS + 1
        assert len(set(found)) == len(found) and all(each in groups for each in found)
        needless += len([each for each in found if each not in due])
        assert needless <= calls * (LOOKS_BESIDE + 1)
        for each in found:
            due.pop(each, None)
    assert not due


def test_every_group_has_its_turn_though_nothing_happens() -> None:
    looks, groups = Looks(), dict.fromkeys(range(1000))
    for _ in range(20):
        looks.next(groups, None, "the same")
    seen: dict[int, None] = {}
    for _ in range(1000 // LOOKS_BESIDE + 2):
        found = looks.next(groups, None, "the same")
        assert len(found) <= LOOKS_BESIDE + 1
        seen.update(dict.fromkeys(found))
    assert len(seen) == 1000
