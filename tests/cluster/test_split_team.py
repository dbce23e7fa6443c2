"""Key ranges that are cut in two, on three nodes."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from o3storage.cluster import ClusterError, _applying
from o3storage.cluster._newcomer import LOST
from o3storage.simulation import SimDisk, run
from o3storage.storage import Miss
from tests.cluster.split_support import KEYS, cut, level, listed, put
from tests.cluster.support import body_of
from tests.cluster.team_support import forget, team


def test_three_nodes_cut_a_range_while_they_write() -> None:
    async def main() -> None:
        for seed in range(3):
            async with team(seed=40 + seed) as group:
                bucket = await group.members[0].bucket()
                bodies: dict[bytes, bytes] = {}

                async def write(member: Any, mark: bytes) -> None:
                    for number in range(40):
                        key = KEYS[(number * 7) % 30] + mark
                        body = body_of(number, 300 + 9_000 * (number % 5))
                        await member.put(bucket, key, body)
                        bodies[key] = body
                        await asyncio.sleep(0.01)

                async def cuts() -> None:
                    for member, key in zip(group.members, (b"c0", b"e0", b"b0"), strict=True):
                        await asyncio.sleep(0.1)
                        await cut(member.node, bucket, key)

                writers = [write(m, b"-%d" % n) for n, m in enumerate(group.members)]
                await asyncio.gather(cuts(), *writers)
                await level(group, 4)
                for member in group.members:
                    assert (await listed(member.node, bucket, 7))[0] == sorted(bodies)
                    for key in sorted(bodies)[::11]:
                        assert await member.get(bucket, key) == bodies[key]
                await asyncio.sleep(5)  # (virtual) until the directory is known to all
                assert all(len(m.node.ranges.directory) == 4 for m in group.members)

    run(main(), 7)


@pytest.mark.parametrize("away_before", [True, False])
@pytest.mark.parametrize("fresh", [False, True])
def test_a_member_that_missed_the_cut_gets_both_parts_by_snapshot(
    fresh: bool, away_before: bool
) -> None:
    async def main() -> None:
        async with team(seed=50, reload_log_bytes=0, keep_log_bytes=0) as group:
            bucket = await group.members[0].bucket()
            bodies = {key + b"-early": body_of(n, 700 * n + 1) for n, key in enumerate(KEYS)}
            for key, body in bodies.items():
                await group.members[0].put(bucket, key, body)
            away = group.follower()
            await group.level()
            last = away.store.log_state(1).last_index
            if not away_before:
                await cut(group.leader().node, bucket, b"e0")
                await level(group, 2)
            await group.kill(away)
            await group.settled()
            member = group.up[0]
            await cut(member.node, bucket, b"c0")
            if away_before:
                await cut(member.node, bucket, b"e0")
            for number, key in enumerate(KEYS * 3):
                bodies[key] = body_of(number, 400 + (number % 7) * 900)
                await member.put(bucket, key, bodies[key])
            for other in group.up:
                await forget(other, last)
            if fresh:
                away.disk = SimDisk(9950)
                away.bootstrap = False
            await group.restart(away)
            await level(group, 3)
            for other in (m for m in list(group.up) if m is not away):
                await group.kill(other)
                await group.settled()
                break
            assert (await listed(away.node, bucket))[0] == sorted(bodies)
            for key in sorted(bodies)[::7]:
                assert await away.get(bucket, key) == bodies[key]
            await away.put(bucket, b"f-last", b"body")

    run(main(), 8)


@pytest.mark.parametrize("disk", ["whole", "without index", "lost something"])
@pytest.mark.parametrize("again", [False, True])
def test_a_member_that_missed_the_cut_votes_in_the_new_range(again: bool, disk: str) -> None:
    """One of the two that made the cut is gone for good, at once. (`again`: the one that missed it
    starts once more before it has the vote to give. `disk`: if it lost something once, it cannot
    know that it never took part.)"""
    lost = disk == "lost something"

    async def main() -> None:
        async with team(seed=80, reload_log_bytes=0, keep_log_bytes=0) as group:
            bucket = await group.members[0].bucket()
            for key in KEYS:
                await group.members[0].put(bucket, key, body_of(1, 900))
            await group.level()
            away = group.follower()
            if disk == "lost something":
                await away.store.note(LOST, b"")
            last = away.store.log_state(1).last_index
            await away.store.flush()
            await group.kill(away)
            if disk == "without index":
                for name in await away.disk.list_dir("index"):
                    if not name.endswith(".table"):
                        away.disk.rot(f"index/{name}", 40)
            await group.settled()
            left = next(m for m in group.up if not m.leads(1))
            gone = group.leader()
            child = await cut(gone.node, bucket, b"c0")
            for key in KEYS * 3:
                await gone.put(bucket, key, body_of(2, 900))
            await group.level()
            assert child in left.node._replicas and not left.node.ranges.directory
            await group.kill(gone)
            await forget(left, last)
            await group.restart(away)
            await group.settled()
            if again:
                while child not in away.node._replicas:
                    await asyncio.sleep(0.001)
                await group.kill(away)
                await group.restart(away)
                await group.settled()
            await asyncio.sleep(20)  # (virtual)
            assert left.leads(child) is not lost
            if lost:
                assert not away.replica(child).core.configuration.voters
                return
            await level(group, 2)
            await away.put(bucket, b"f-last", b"body")
            assert (await listed(away.node, bucket))[0] == sorted([*KEYS, b"f-last"])

    run(main(), 15)


def test_the_leader_dies_right_after_the_cut() -> None:
    async def main() -> None:
        for seed in range(4):
            async with team(seed=60 + seed) as group:
                bucket = await group.members[0].bucket()
                for key in KEYS[:8]:
                    await put(group.members[0], bucket, key)
                leader = group.leader()
                await cut(leader.node, bucket, b"b0")
                await group.kill(leader)
                member = group.up[0]
                for _ in range(100):
                    try:
                        await put(member, bucket, b"a0")
                        await put(member, bucket, b"b9")
                        break
                    except ClusterError:
                        await asyncio.sleep(0.1)
                assert (await listed(member.node, bucket))[0] == sorted([*KEYS[:8], b"b9"])
                await group.restart(leader)
                await level(group, 2)

    run(main(), 9)


def test_what_a_member_lacks_is_looked_for_in_the_part_that_was_cut_off() -> None:
    async def main() -> None:
        async with team(seed=70) as group:
            bucket = await group.members[0].bucket()
            for key in KEYS[:12]:
                await group.members[0].put(bucket, key, body_of(1, 3_000))
            member = group.follower()
            member.replica(1).team.mark_incomplete()
            child = await cut(group.leader().node, bucket, b"b0")
            while child not in member.node._replicas:
                await asyncio.sleep(0.001)
            assert member.replica(child).team._marked
            await put(member, bucket, b"b9")  # (something is appended after the mark)
            await group.kill(member)
            await group.settled()
            await group.restart(member)
            assert member.replica(child).team._marked
            await level(group, 2)
            others = [m.replica(child).team for m in group.members if m is not member]
            assert not any(other._marked for other in others)

    run(main(), 10)


def test_a_part_begins_though_the_other_left_this_node_meanwhile() -> None:
    async def main() -> None:
        async with team(seed=71) as group:
            bucket = await group.members[0].bucket()
            member = group.follower()
            keeper, parent = member.node.ranges, member.replica(1)
            opened = keeper._open_replica
            tasks: list[Any] = []

            async def slowly(number: int) -> Any:
                tasks.append(asyncio.current_task())
                found = await opened(number)
                del member.node._replicas[1]  # as `look_away` has it
                return found

            keeper._open_replica = slowly  # type: ignore[method-assign]
            await cut(group.leader().node, bucket, b"b0")
            while not tasks:
                await asyncio.sleep(0.001)
            await tasks[0]  # with the flush that keeps the cut from being made again
            member.node._replicas[1] = parent

    run(main(), 10)


def test_a_replica_that_was_stopped_while_it_applied_the_cut_does_not_make_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It may be leaving this node: its rows are erased then, and the other part would begin with
    what is left of them."""
    monkeypatch.setattr(_applying, "read_now", lambda *_: Miss.MISS)

    async def main() -> None:
        async with team(seed=72) as group:
            bucket = await group.members[0].bucket()
            member = group.follower()
            await group.level()
            replica = member.replica(1)
            entered, goes_on = asyncio.Event(), asyncio.Event()
            apply_entry = replica._run_entry

            async def slowly(*how: Any) -> Any:
                entered.set()
                await goes_on.wait()  # a row that it reads is on the disk
                return await apply_entry(*how)

            replica._run_entry = slowly
            child = await cut(group.leader().node, bucket, b"b0")
            await entered.wait()
            replica.fail("this node has no replica of the range any more")
            goes_on.set()
            await asyncio.sleep(1)
            assert child not in member.store.groups()
            assert child not in member.node._replicas

    run(main(), 10)
