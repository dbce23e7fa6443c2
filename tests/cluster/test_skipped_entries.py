"""A member that was away gets a snapshot: frames that entries released which it skipped go, too."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import pytest

from o3storage.catalog import DeleteObject
from o3storage.cluster import _records
from o3storage.cluster._collector import LOOK_S
from o3storage.cluster._newcomer import LOST
from o3storage.cluster._range_rows import EVERYTHING, Span
from o3storage.cluster._snapshots import Snapshots
from o3storage.raft.core import COMMAND, Entry
from o3storage.simulation import run
from o3storage.storage import Unnamed
from tests.cluster.support import OWNER, body_of
from tests.cluster.team_support import equal, everywhere, forget, streams_of, team


@pytest.mark.parametrize("lossy", [False, True])
def test_frames_that_a_skipped_entry_released_go_with_the_snapshot(lossy: bool) -> None:
    """Not on a disk that lost something: rows may be there which are later than it knows."""

    async def main() -> None:
        async with team(seed=61, reload_log_bytes=0, keep_log_bytes=0) as group:
            bucket = await group.members[0].bucket()
            bodies = {b"small": body_of(1, 900), b"large": body_of(2, 700_000)}
            gone = {b"small": body_of(3, 800), b"large": body_of(4, 600_000), b"x": body_of(5, 90)}
            for key, body in gone.items():
                await group.members[0].put(bucket, key, body)
            away = group.follower()
            others = [member for member in group.members if member is not away]
            given_up, _ = await others[0].upload(bucket, b"given up", body_of(6, 300_000))
            kept, command = await others[0].upload(bucket, b"kept", body_of(7, 300_000))
            await group.level()
            last = away.store.log_state(1).last_index
            if lossy:
                await away.store.note(LOST, b"")
            before = set(await streams_of(away))
            group.net.cut([away.id], [member.id for member in others])
            await group.settled(others)
            for number in range(40):
                # (Their log goes on in further volumes.)
                bodies[b"more-%d" % number] = body_of(number, 20_000)
            for key, body in bodies.items():
                await others[0].put(bucket, key, body)
            now_ns = others[0].clock.wall_ns()
            delete = DeleteObject(bucket.bucket_id, bucket.epoch, b"x", now_ns, OWNER)
            await others[0].node.submit(delete)
            given_up.discard()
            await asyncio.sleep(2 * LOOK_S)
            await group.level(others)
            for other in others:
                await forget(other, last)
            group.net.heal()
            await equal(group)
            assert sum(member.replica().team.snapshots.sent for member in others)
            here, there = set(await streams_of(away)), set(await streams_of(others[0]))
            assert before - there, "some were released"
            assert here == (there | before if lossy else there)
            # What was open stays so: it is named now.
            await others[0].node.submit(command, kept.frames)
            bodies[b"kept"] = body_of(7, 300_000)
            await equal(group)
            await everywhere(group, bucket, bodies)
            assert lossy or await streams_of(away) == await streams_of(others[0])

    run(main(), 61)


def test_of_keys_beyond_the_snapshots_span_no_entry_says_anything() -> None:
    """Such an entry was refused, since a cut, and its frames were named in the other range by
    another entry: they are one and the same frames on this disk."""
    streams = [bytes((n,)) * 16 for n in range(6)]

    def carry(stream: bytes, key: bytes) -> bytes:
        return _records.encode_carry(
            _records.OPEN_ON_ERROR,
            b"command",
            route=b"\x20" + key,
            session=1,
            started_ns=2,
            stream=stream,
            frames=1,
        )

    datas = [carry(stream, bytes((key,))) for stream, key in zip(streams, b"axbyaz", strict=True)]
    entries = [Entry(index, 1, COMMAND, data) for index, data in enumerate(datas, start=1)]

    class Log:
        def log_state(self, _: int) -> Any:
            return SimpleNamespace(last_index=len(entries))

        def entries(self, _: int, low: int, high: int, __: int) -> list[Entry]:
            return entries[low - 1 : min(high - 1, low + 1)]

    def skipped(applied: int, index: int, span: Span, kept: Sequence[bytes] = ()) -> list[bytes]:
        replica = SimpleNamespace(applied=applied, group=1)
        snapshots = Snapshots(replica, SimpleNamespace(store=Log()))  # type: ignore[arg-type]
        unnamed = Unnamed(lambda key, value: [])
        asyncio.run(snapshots._skip(index, span, unnamed))
        unnamed.lost_name(kept)
        return list(unnamed.streams)

    assert skipped(0, 9, EVERYTHING) == streams
    assert skipped(0, 9, Span(b"", b"m")) == [streams[0], streams[2], streams[4]]
    assert skipped(2, 5, EVERYTHING) == streams[2:5], "those above may be committed yet"
    assert skipped(2, 4, Span(b"m", None)) == [streams[3]]
    assert skipped(4, 4, EVERYTHING, streams) == streams[:4], "rows may name what comes"
