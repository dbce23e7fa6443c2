"""A member that starts again without the frames of an entry in its log."""

from __future__ import annotations

import asyncio
import contextlib
from typing import Any

import pytest

from o3storage.cluster._errors import ClusterError
from o3storage.cluster._kinds import FRAMES
from o3storage.raft.core import Append, AppendResponse
from o3storage.simulation import run
from tests.cluster.support import body_of
from tests.cluster.team_support import NothingRides, team


@pytest.mark.parametrize("seed", [81, 82, 83])
def test_it_does_not_say_that_it_has_them_before_it_has_looked(seed: int) -> None:
    async def main() -> None:
        async with team(seed=seed) as group:
            bucket = await group.members[0].bucket()
            await group.level()
            leader = group.leader()
            other, away = (member for member in group.members if member is not leader)
            await group.kill(away)
            leader.node.replication.riding = NothingRides()
            leader.node.replication.read_riding_now = lambda _: None

            async def none_here(*_: Any) -> bytes:
                raise ValueError("not now")

            serve = group.net.peers[leader.id].handlers[FRAMES]
            group.net.peers[leader.id].handlers[FRAMES] = none_here
            put = asyncio.ensure_future(leader.put(bucket, b"key", body_of(1, 9000)))
            while not other.replica().team.gaps:
                await asyncio.sleep(0.01)
            (index,) = other.replica().team.gaps
            await asyncio.sleep(0.5)
            assert leader.replica().core.commit < index
            await group.kill(other)
            await group.restart(other)
            replica, sent = other.replica(), []
            replica._send = sent.append
            term = replica.core.term
            asked = Append(leader.id, other.id, term, index, replica.core.log.term(index), [], 0, 0)
            replica.receive(asked)
            for _ in range(20):
                if sent:
                    break
                await asyncio.sleep(0.001)
            del replica._send
            said = [answer for answer in sent if isinstance(answer, AppendResponse)]
            assert said and all(answer.data < index <= answer.match for answer in said)
            for _ in range(300):
                assert leader.replica().core.commit < index
                assert not put.done() or put.exception()
                await asyncio.sleep(0.01)
            group.net.peers[leader.id].handlers[FRAMES] = serve
            with contextlib.suppress(ClusterError):
                await put
            await group.restart(away)
            await group.settled()
            await group.level()
            assert await other.get(bucket, b"key") in (None, body_of(1, 9000))

    run(main(), seed)
