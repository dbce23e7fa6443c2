"""What nobody thought of, in one task or one range of a member, is said, and ends neither that task
for good nor the other ranges."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

from o3storage.cluster import _audit
from o3storage.cluster._kinds import BODY
from o3storage.cluster._snapshots import RECEIVE, SEND
from o3storage.raft.core import SnapshotNeeded
from o3storage.simulation import run
from tests.cluster.support import body_of, rig
from tests.cluster.team_support import equal, team


def broken(*_: Any) -> Any:
    raise KeyError("nobody thought of it")


def test_a_range_that_cannot_tick_stops_and_the_others_of_its_node_go_on() -> None:
    async def main() -> None:
        async with team(seed=51) as group:
            bucket = await group.members[0].bucket()
            leader = group.leader()
            teams = leader.node.replication.awake._teams
            replicas = [leader.replica(0), leader.replica(1)]
            for replica in replicas:  # in the order of their ticks
                teams.pop(replica.team, None)
                replica.team.stir()
            replicas[0].team.tick = broken
            term = replicas[1].core.term
            await asyncio.sleep(10)
            assert "stopped at a tick" in replicas[0].fault
            assert leader.leads() and replicas[1].core.term == term
            others = [member for member in group.members if member is not leader]
            assert any(member.leads(0) for member in others)
            await others[0].put(bucket, b"key", b"body")

    run(main(), 51)


def test_frames_are_fetched_after_something_that_nobody_thought_of() -> None:
    async def main() -> None:
        async with team(seed=52, bulk_volume_bytes=32 << 20) as group:
            bucket = await group.members[0].bucket()
            leader, slow = group.leader(), group.follower()
            handlers = group.net.peers[slow.id].stream_handlers

            async def refuses(*_: Any) -> bytes:
                raise KeyError("no body comes this way")

            handlers[BODY] = refuses
            fetcher = slow.node.replication.fetcher
            missing, failed = fetcher.missing, 0

            async def fails_at_first(*wanted: Any) -> Any:
                nonlocal failed
                failed += 1
                return await missing(*wanted) if failed > 8 else broken()

            fetcher.missing = fails_at_first
            for number in range(8):
                await leader.put(bucket, b"key-%d" % number, body_of(number, 300_000))
            await equal(group)
            assert failed > 8 and fetcher.fetched_frames == 16

    run(main(), 52)


def test_looking_through_begins_again_and_owes_nothing_twice() -> None:
    async def main() -> None:
        async with team(seed=53) as group:
            found = group.follower().replica().team
            found.owe(b"s" * 16, 3)
            found.owe(b"s" * 16, 3)
            found.owe(b"t" * 16, 3)
            assert [wanted.stream[:1] for wanted in found.debt.values()] == [b"s", b"t"]
            found.debt.clear()
            found.owe(b"s" * 16, 3)  # it is not there any more
            assert len(found.debt) == 1
            found.debt.clear()

        looks = 0

        async def scan(*_: Any) -> list[Any]:
            nonlocal looks
            looks += 1
            return [] if looks > 3 else broken()

        async def at_once(_: int) -> None:
            return

        node: Any = SimpleNamespace(
            spans=lambda _: [(b"a", b"b")], store=SimpleNamespace(scan=scan)
        )
        member: Any = SimpleNamespace(group=1, debt_below=at_once)
        await _audit.look_through(member, node)
        assert looks == 4

    run(main(), 53)


def test_a_snapshot_that_is_let_go_while_it_is_read_ends_no_task() -> None:
    async def main() -> None:
        async with team(seed=54) as group:
            await group.members[0].bucket()
            await group.level()
            snapshots, peer = group.leader().replica().team.snapshots, group.follower().id
            snapshots._begin(peer)
            source = snapshots._sources[peer]
            source.starts *= 2
            source.snapshot.release()
            snapshots.needed(SnapshotNeeded(peer, 1))
            await snapshots._tasks[SEND]

    run(main(), 54)


def test_a_range_that_cannot_take_a_snapshot_stops() -> None:
    """Half of it is in the place of what stood: nothing may be applied or read any more."""

    async def main() -> None:
        async def fails() -> None:
            broken()

        async with team(seed=55) as group:
            replica = group.follower().replica()
            replica.team.snapshots._start(SEND, fails())
            await asyncio.sleep(0.1)
            assert not replica.fault
            replica.team.snapshots._start(RECEIVE, fails())
            await asyncio.sleep(0.1)
            assert "stopped at a snapshot" in replica.fault

    run(main(), 55)


def test_streams_are_collected_after_something_that_nobody_thought_of() -> None:
    async def main() -> None:
        async with rig(56) as r:
            bucket = await r.bucket()
            collector = r.node._collector
            abandon, failed = collector._abandon, 0

            async def fails_once(row: Any) -> str:
                nonlocal failed
                failed += 1
                return await abandon(row) if failed > 1 else broken()

            collector._abandon = fails_once  # type: ignore[method-assign]
            upload = r.node.new_stream(bucket.bucket_id, b"key")
            await upload.write(body_of(1, 256 << 10), False)
            upload.discard()
            await r.settle(60)
            assert failed > 1 and collector.collected == 1 and not collector.waiting

    run(main(), 56)
