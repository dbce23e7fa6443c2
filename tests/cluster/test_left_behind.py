"""A replica leaves while a body is on its way to it."""

from __future__ import annotations

import asyncio

import pytest

from o3storage.catalog import head_version
from o3storage.cluster import _kinds
from o3storage.cluster._lending import MAX_LENT, MAX_STREAMS, STREAM_BYTES
from o3storage.cluster._peer_types import PeerError
from o3storage.cluster._wire import Lane
from o3storage.crypto import FRAME_BYTES, StreamRef
from o3storage.simulation import run
from tests.cluster.member_rig import Places, patiently
from tests.cluster.support import body_of
from tests.cluster.test_elsewhere import away, holders, settled, start
from tests.cluster.test_leaving_ranges import moved
from tests.cluster.test_moves import leader_of, moved_alone


def test_frames_of_an_upload_that_ends_after_a_member_left() -> None:
    async def main() -> None:
        async with Places(count=5) as places:
            await start(places)
            bucket = await patiently(places[1].bucket)
            await patiently(lambda: places[1].put(bucket, b"x", b"1"))
            stranger, target = away(places)
            body = body_of(3, 3 * FRAME_BYTES)
            upload = stranger.node.new_stream(bucket.bucket_id, b"k")
            await upload.write(body[:FRAME_BYTES], False)
            source = next(p for p in holders(places) if p is not leader_of(places))
            await patiently(lambda: target.node.ranges.move(1, source.id, target.id))
            await moved(places, source)
            await upload.write(body[:FRAME_BYTES], False)
            await upload.write(body[:FRAME_BYTES], True)
            await asyncio.sleep(5)
            assert source.id not in upload.held
            upload.discard()
            await asyncio.sleep(60)
            for place in places.all:
                assert not await place.store.stream_frames(upload.ref.stream)

    run(main(), 61)


def test_a_coordinator_keeps_nothing_of_a_body_whose_range_left_it_during_the_upload() -> None:
    async def main() -> None:
        async with Places(count=5) as places:
            await start(places)
            bucket = await patiently(places[1].bucket)
            await patiently(lambda: places[1].put(bucket, b"x", b"1"))
            source = next(p for p in holders(places) if p is not leader_of(places))
            target = away(places)[0]
            body = body_of(3, 3 * FRAME_BYTES)
            node = source.node
            upload = node.new_stream(bucket.bucket_id, b"k")
            await upload.write(body[:FRAME_BYTES], False)
            await patiently(lambda: target.node.ranges.move(1, source.id, target.id))
            await moved(places, source)
            await upload.write(body[FRAME_BYTES : 2 * FRAME_BYTES], False)
            await upload.write(body[2 * FRAME_BYTES :], True)
            await source.store.flush()
            assert await source.store.stream_frames(upload.ref.stream) == []
            assert upload.held and source.id not in upload.held
            upload.discard()

    run(main(), 65)


def test_frames_that_a_range_which_was_cut_off_may_name_are_kept() -> None:
    """The upload began in the range that was cut, and leaves this disk; the new one stays."""

    async def main() -> None:
        async with Places(count=5) as places:
            await start(places)
            bucket = await patiently(places[1].bucket)
            await patiently(lambda: places[1].put(bucket, b"a", b"1"))
            stranger, target = away(places)
            node = stranger.node
            body = body_of(3, 3 * FRAME_BYTES)
            upload = node.new_stream(bucket.bucket_id, b"x")
            await upload.write(body[:FRAME_BYTES], False)
            stay = node.machine.stream_route(bucket.bucket_id, b"m")[1:]
            await patiently(lambda: node.ranges.split(stay))
            await settled(places, 1, 2)
            had = holders(places)
            source = next(p for p in had if p is not leader_of(places))
            keeper = source.node.ranges
            await patiently(lambda: keeper.move(1, source.id, target.id))
            await moved_alone(places, source, 1)
            assert keeper.is_here(2) and not keeper.keeps_nothing_of(1)
            await upload.write(body[FRAME_BYTES : 2 * FRAME_BYTES], False)
            await upload.write(body[2 * FRAME_BYTES :], True)
            await asyncio.sleep(5)
            assert sorted(upload.held) == sorted(place.id for place in had)
            stream = upload.ref.stream
            for place in had:
                assert await place.store.stream_frames(stream) == [(0, 3)]
                assert not place.node.replication.fetcher.fetched_frames
            # When that one has left too, nothing keeps what comes.
            others = [p for p in places.all if p not in holders(places, 2)]
            await patiently(lambda: keeper.move(2, source.id, others[0].id))
            await moved_alone(places, source, 2)
            assert keeper.keeps_nothing_of(1) and keeper.keeps_nothing_of(2)
            assert not keeper.keeps_nothing_of(3), "it never was here"
            assert not others[0].node.ranges.keeps_nothing_of(2)
            # And there is one again.
            await patiently(lambda: keeper.move(1, target.id, source.id))
            await places.until(lambda: keeper.is_here(1), 60.0)
            assert not keeper.keeps_nothing_of(1) and keeper.keeps_nothing_of(2)

    run(main(), 63)


def test_a_range_comes_back_only_when_readers_of_its_frames_have_ended() -> None:
    """What they hold goes when they end: a replica that counted it as its own would lack it, and
    not know."""

    async def main() -> None:
        async with Places(count=4) as places:
            await start(places, 4)
            bucket = await patiently(places[1].bucket)
            body = body_of(3, 900_000)
            await patiently(lambda: places[1].put(bucket, b"k", body))
            version = await patiently(
                lambda: places[1].node.query(head_version(bucket.bucket_id, b"k"))
            )
            stream = StreamRef.unpack(version.body).stream
            first, second = [p for p in holders(places) if p is not places[1]]
            first.store.pin(stream)
            keeper = first.node.ranges
            await patiently(lambda: places[1].membership.drain(first.id, shrink=False))
            await places.until(lambda: 1 in keeper._leaving, 60.0)
            await patiently(lambda: places[1].membership.stay(first.id))
            await patiently(lambda: places[1].membership.drain(second.id, shrink=False))
            await asyncio.sleep(30)
            assert await first.store.stream_frames(stream) == [(0, 4)], "it is read"
            assert 1 in keeper._leaving and 1 not in first.node._replicas
            first.store.unpin(stream)
            await places.until(lambda: keeper.is_here(1), 60.0)
            await moved(places, second)
            await places.until(lambda: not first.node._replicas[1].team.debt, 60.0)
            assert await first.store.stream_frames(stream) == [(0, 4)]
            assert await patiently(lambda: first.get(bucket, b"k")) == body

    run(main(), 64)


def test_one_loan_has_an_end() -> None:
    async def main() -> None:
        async with Places(count=5) as places:
            await start(places)
            holder, reader = holders(places)[0], away(places)[0]
            peers = reader.node.replication.peers

            async def ask(first: int) -> bytes:
                streams = range(first, first + MAX_STREAMS)
                hold = bytes(8) + b"".join([s.to_bytes(STREAM_BYTES, "big") for s in streams])
                return await peers.call(holder.id, _kinds.HOLD, hold, timeout_s=5.0, lane=Lane.BULK)

            for first in range(0, MAX_LENT, MAX_STREAMS):
                assert await ask(first) == b"\x01"
            with pytest.raises(PeerError):
                await ask(MAX_LENT)
            assert await ask(0) == b"\x01", "these are lent already"

    run(main(), 62)
