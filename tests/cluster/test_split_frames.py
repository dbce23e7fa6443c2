"""Frames that somebody lacks whose range is cut before they are fetched."""

from __future__ import annotations

import asyncio
from typing import Any

from o3storage.cluster._fetching import NONE_HERE, SUPERSEDED
from o3storage.simulation import run
from tests.cluster.split_support import cut, level
from tests.cluster.support import body_of
from tests.cluster.team_support import team


def test_frames_of_a_part_that_was_cut_off_are_not_called_needless_by_who_lacks_them() -> None:
    async def main() -> None:
        async with team(seed=71) as group:
            bucket = await group.members[0].bucket()
            upload, command = await group.members[0].upload(bucket, b"k", body_of(1, 600_000))
            await group.members[0].node.submit(command, upload.frames)
            child = await cut(group.leader().node, bucket, b"b")
            await level(group, 2)
            holder = group.members[1]
            index = holder.replica(1).applied
            why = holder.node.replication.fetcher._why_missing
            stream = upload.ref.stream
            assert why(1, index, bytes(16)) == SUPERSEDED
            holder.replica(child).team.owe(stream, 3)
            assert why(1, index, stream) == NONE_HERE
            assert why(1, index, bytes(16)) == SUPERSEDED
            holder.replica(child).team.debt.clear()
            holder.replica(child).team.complete = False
            assert why(1, index, stream) == NONE_HERE
            holder.replica(child).team.complete = True

    run(main(), 10)


def test_who_was_told_that_frames_are_needless_looks_for_them_in_a_part_that_is_cut_off() -> None:
    """It had not applied the cut yet, and who told it had: in its part, nobody needed them."""

    async def main() -> None:
        async with team(seed=72) as group:
            bucket = await group.members[0].bucket()
            upload, command = await group.members[0].upload(bucket, b"k", body_of(1, 600_000))
            await group.members[0].node.submit(command, upload.frames)
            await group.level()
            stream, member = upload.ref.stream, group.follower()
            peers, lacking = member.node.replication.peers, member.replica(1).team
            call = peers.call

            async def superseded(*_: Any, **__: Any) -> bytes:
                return bytes((SUPERSEDED,))

            member.store.release_again(stream)
            peers.call = superseded
            lacking.owe(stream, 3)
            while lacking.debt:
                await asyncio.sleep(0.1)
            peers.call = call
            await asyncio.sleep(10.0)
            assert not lacking._marked, "nothing is missing, as far as this range goes"
            child = await cut(group.leader().node, bucket, b"b")
            while child not in member.node._replicas:
                await asyncio.sleep(0.001)
            await level(group, 2)
            assert await member.store.stream_frames(stream) == [(0, 3)]

    run(main(), 10)
