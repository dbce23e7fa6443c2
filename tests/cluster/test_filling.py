"""Members that lack what their leader no longer has in memory."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Any

import pytest

from o3storage.cluster import _team
from o3storage.cluster._kinds import FRAMES
from o3storage.simulation import run
from o3storage.storage import StoreError
from tests.cluster.support import body_of
from tests.cluster.team_support import NothingRides, equal, everywhere, team


def forget_soon(member: Any) -> None:
    """Its groups keep next to nothing in memory for others."""
    for replica in member.node._replicas.values():
        replica.core.options = replace(replica.core.options, tail_bytes=1000)


def test_a_member_is_filled_by_turns_and_gets_all() -> None:
    async def main() -> None:
        async with team(seed=41) as group:
            bucket = await group.members[0].bucket()
            leader, away = group.leader(), group.follower()
            forget_soon(leader)
            await group.kill(away)
            bodies = {b"key-%d" % n: body_of(n, 4000 + n) for n in range(300)}
            await asyncio.gather(*(leader.put(bucket, k, v) for k, v in bodies.items()))
            assert leader.node.replication.catch_up.turns == 0
            await group.restart(away)
            await equal(group)
            await everywhere(group, bucket, bodies)
            assert leader.node.replication.catch_up.turns > 0
            assert not leader.replica().team.filling._tasks
            assert away.node.replication.fetcher.fetched_frames == 0

    run(main(), 41)


def test_a_log_that_cannot_be_read_does_not_leave_a_member_behind() -> None:
    async def main() -> None:
        async with team(seed=44) as group:
            bucket = await group.members[0].bucket()
            leader, away = group.leader(), group.follower()
            forget_soon(leader)
            await group.kill(away)
            bodies = {b"key-%d" % n: body_of(n, 4000 + n) for n in range(300)}
            await asyncio.gather(*(leader.put(bucket, k, v) for k, v in bodies.items()))
            entries, failed = leader.store.entries, 0

            def failing(*wanted: int) -> Any:
                nonlocal failed
                failed += 1
                if failed == 1:
                    raise StoreError("[Errno 5] Input/output error")
                return entries(*wanted)

            leader.store.entries = failing  # type: ignore[method-assign]
            await group.restart(away)
            await equal(group)
            await everywhere(group, bucket, bodies)
            assert failed

    run(main(), 44)


def test_who_a_range_waits_for_is_filled_at_once() -> None:
    async def main() -> None:
        async with team(seed=42) as group:
            bucket = await group.members[0].bucket()
            leader = group.leader()
            other, away = (m for m in group.members if m is not leader)
            forget_soon(leader)
            await group.level()
            filling = leader.replica().team.filling
            assert filling._goes_on_without(away.id)
            assert filling._goes_on_without(other.id)
            await group.kill(away)
            assert not filling._goes_on_without(other.id)
            bodies = {b"key-%d" % n: body_of(n, 4000 + n) for n in range(300)}
            await asyncio.gather(*(leader.put(bucket, k, v) for k, v in bodies.items()))
            # Nobody else is left: each turn that somebody held now would be held for ever.
            pace = leader.node.replication.catch_up
            assert await pace.begin(lambda: False)
            await group.kill(other)
            await group.restart(away)
            await group.settled()
            await leader.put(bucket, b"then", b"body")
            assert await away.get(bucket, b"then") == b"body"
            assert pace.turns == 1
            await pace.end()

    run(main(), 42)


def test_what_was_overwritten_meanwhile_is_not_fetched(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_team, "LAGS_ENTRIES", 20)

    async def main() -> None:
        async with team(seed=43) as group:
            bucket = await group.members[0].bucket()
            leader, away = group.leader(), group.follower()
            forget_soon(leader)
            leader.node.replication.riding = NothingRides()
            asked: list[int] = []
            for number in group.net.peers:
                serve = group.net.peers[number].handlers[FRAMES]

                async def counted(node: int, body: memoryview, serve: Any = serve) -> bytes:
                    asked.append(node)
                    return await serve(node, body)

                group.net.peers[number].handlers[FRAMES] = counted
            await group.kill(away)
            bodies: dict[bytes, bytes] = {}
            for times in range(3):
                bodies = {b"key-%d" % n: body_of(n + times, 4000 + n) for n in range(100)}
                await asyncio.gather(*(leader.put(bucket, k, v) for k, v in bodies.items()))
            await group.restart(away)
            most = 0
            for _ in range(2000):
                most = max(most, len(away.replica().team.debt))
                await asyncio.sleep(0.001)
            assert most > 50  # it did find them missing
            await equal(group)
            await everywhere(group, bucket, bodies)
            assert asked.count(away.id) < 20
            assert not away.replica().team.lacked

    run(main(), 43)
