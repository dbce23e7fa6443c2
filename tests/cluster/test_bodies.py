"""Bodies: sealed in, verified out, and collected when nothing names them."""

from __future__ import annotations

import asyncio
import gc

import pytest

from o3storage import catalog
from o3storage.catalog import DeleteObject, PreconditionFailed, WriteCondition
from o3storage.cluster import BodyDamaged, BodyMissing, StreamUpload, Unavailable
from o3storage.crypto import FRAME_BYTES, StreamRef
from o3storage.simulation import run
from o3storage.storage import PREFIX_BYTES, SMALL_FRAME_BYTES
from o3storage.storage._frames import frame_place
from tests.cluster.support import OWNER, Rig, body_of, rig

SIZES = [
    1,
    4096,
    SMALL_FRAME_BYTES,
    SMALL_FRAME_BYTES + 1,
    FRAME_BYTES - 1,
    FRAME_BYTES,
    FRAME_BYTES + 1,
    3 * FRAME_BYTES,
    5 * FRAME_BYTES + 77,
]


@pytest.mark.parametrize("size", SIZES)
def test_a_body_comes_back_whole_and_by_ranges_also_after_a_crash(size: int) -> None:
    async def main() -> None:
        r = await Rig(size).start()
        b = await r.bucket()
        body = body_of(size, size)
        await r.put(b, b"k", body)
        version = await r.node.query(catalog.head_version(b.bucket_id, b"k"))
        ref = StreamRef.unpack(version.body)
        assert ref.size_bytes == size
        await r.crash()
        await r.start()
        assert await r.get(b, b"k") == body
        for offset, length in [
            (0, 1),
            (size - 1, 1),
            (size // 2, size),
            (FRAME_BYTES - 1, 2),
            (FRAME_BYTES, FRAME_BYTES),
            (size, 1),
            (7, 0),
        ]:
            assert await r.read(ref, offset, length) == body[offset : offset + length]
        await r.stop()

    run(main(), size)


def test_a_small_body_is_written_once_with_its_entry() -> None:
    async def main() -> None:
        async with rig(1) as r:
            b = await r.bucket()
            batches = r.store.stats().batches
            await r.put(b, b"k", b"x" * 4096)
            assert r.store.stats().batches == batches + 1
            version = await r.node.query(catalog.head_version(b.bucket_id, b"k"))
            assert r.node.read_small_now(StreamRef.unpack(version.body)) == b"x" * 4096

    run(main(), 1)


def test_blocks_of_the_wrong_size_are_refused() -> None:
    async def main() -> None:
        async with rig(2) as r:
            b = await r.bucket()
            upload = r.node.new_stream(b.bucket_id, b"k")
            for block, last in ((b"", True), (b"x", False), (b"x" * (FRAME_BYTES + 1), True)):
                with pytest.raises(ValueError, match="blocks are"):
                    await upload.write(block, last)
            await upload.write(b"x", True)
            with pytest.raises(ValueError, match="blocks are"):
                await upload.write(b"x", True)

    run(main(), 2)


async def open_rows(r: Rig) -> int:
    return len(await r.store.scan(b"\xfd", b"\xfe", 1000))


async def gone(r: Rig, ref: StreamRef) -> bool:
    try:
        await r.read(ref)
    except BodyMissing:
        return True
    return False


def test_an_upload_is_freed_with_its_last_reference() -> None:
    """A circle would keep its sealed bytes until the garbage collector comes, which is rare."""

    async def main() -> None:
        async with rig(3) as r:
            b = await r.bucket()
            gc.collect()
            gc.disable()
            try:
                upload, command = await r.upload(b, b"k", body_of(1, 4096))
                await r.node.submit(command, upload.frames)
                del upload, command
                assert not [o for o in gc.get_objects() if type(o) is StreamUpload]
            finally:
                gc.enable()

    run(main(), 3)


def test_a_named_large_body_leaves_no_open_row() -> None:
    async def main() -> None:
        async with rig(3) as r:
            b = await r.bucket()
            upload, command = await r.upload(b, b"k", body_of(1, 100_000))
            assert await open_rows(r) == 1
            await r.node.submit(command, upload.frames)
            assert await open_rows(r) == 0
            upload.discard()
            await r.settle()
            assert await r.get(b, b"k") == body_of(1, 100_000)

    run(main(), 3)


@pytest.mark.parametrize("blocks", [1, 3])
def test_a_discarded_upload_is_collected(blocks: int) -> None:
    async def main() -> None:
        async with rig(4) as r:
            b = await r.bucket()
            upload = r.node.new_stream(b.bucket_id, b"k")
            for _ in range(blocks):
                await upload.write(body_of(2, FRAME_BYTES), False)
            upload.discard()
            await r.settle()
            assert await open_rows(r) == 0
            assert await r.store.stream_frames(upload.ref.stream) == []
            assert r.node.status()["streams_collected"] == 1

    run(main(), 4)


@pytest.mark.parametrize("size", [100, 100_000])
def test_the_body_of_a_refused_command_is_collected(size: int) -> None:
    async def main() -> None:
        async with rig(5) as r:
            b = await r.bucket()
            await r.put(b, b"k", b"first")
            condition = WriteCondition(if_none_match="*")
            upload, command = await r.upload(b, b"k", body_of(3, size), condition=condition)
            with pytest.raises(PreconditionFailed):
                await r.node.submit(command, upload.frames)
            assert await open_rows(r) == 1
            # The same frames may be submitted again, and fail again.
            with pytest.raises(PreconditionFailed):
                await r.node.submit(command, upload.frames)
            upload.discard()
            await r.settle()
            assert await open_rows(r) == 0
            assert await gone(r, upload.ref)
            assert await r.get(b, b"k") == b"first"

    run(main(), 5)


@pytest.mark.parametrize("size", [100, 100_000])
def test_a_second_submit_of_the_same_frames_may_succeed(size: int) -> None:
    async def main() -> None:
        async with rig(6) as r:
            b = await r.bucket()
            upload, command = await r.upload(b, b"k", body_of(4, size))
            command.epoch += 1
            with pytest.raises(catalog.StaleEpoch):
                await r.node.submit(command, upload.frames)
            command.epoch -= 1
            await r.node.submit(command, upload.frames)
            assert await open_rows(r) == 0
            await r.settle()
            await r.kill()
            await r.start()
            await r.settle()
            assert await r.get(b, b"k") == body_of(4, size)

    run(main(), 6)


@pytest.mark.parametrize("size", [100, 100_000, 700_000])
def test_what_a_crash_left_unnamed_is_collected_at_the_next_start(size: int) -> None:
    async def main() -> None:
        r = await Rig(7).start()
        b = await r.bucket()
        condition = WriteCondition(if_none_match="*")
        await r.put(b, b"named", body_of(5, size))
        left, _ = await r.upload(b, b"left", body_of(6, size))
        refused, command = await r.upload(b, b"named", body_of(7, size), condition=condition)
        with pytest.raises(PreconditionFailed):
            await r.node.submit(command, refused.frames)
        await r.crash()
        await r.start()
        await r.settle()
        assert await open_rows(r) == 0
        assert await gone(r, left.ref)
        assert await gone(r, refused.ref)
        assert await r.get(b, b"named") == body_of(5, size)
        await r.stop()

    run(main(), 7)


def test_an_upload_in_progress_is_not_collected() -> None:
    async def main() -> None:
        async with rig(8) as r:
            b = await r.bucket()
            body = body_of(8, 2 * FRAME_BYTES)
            upload = r.node.new_stream(b.bucket_id, b"k")
            await upload.write(body[:FRAME_BYTES], False)
            other = r.node.new_stream(b.bucket_id, b"k")
            await other.write(body[:FRAME_BYTES], False)
            other.discard()
            await r.settle()
            await upload.write(body[FRAME_BYTES:], True)
            await r.bucket("another")  # its batch takes the placement along
            assert await r.read(upload.ref) == body

    run(main(), 8)


def test_a_large_put_waits_for_two_syncs_of_the_log() -> None:
    """One announces the stream; the placement rides with the entry."""

    async def main() -> None:
        async with rig(12) as r:
            b = await r.bucket()
            await r.settle()
            before = r.store.stats().batches
            await r.put(b, b"k", body_of(12, 2 * FRAME_BYTES))
            assert r.store.stats().batches - before == 2
            assert await r.get(b, b"k") == body_of(12, 2 * FRAME_BYTES)
            await r.crash()
            await r.start()
            assert await r.get(b, b"k") == body_of(12, 2 * FRAME_BYTES)

    run(main(), 12)


def test_a_reader_keeps_what_it_reads_until_it_ends() -> None:
    async def main() -> None:
        async with rig(9) as r:
            b = await r.bucket()
            body = body_of(9, 6 * FRAME_BYTES)
            await r.put(b, b"k", body)
            version = await r.node.query(catalog.head_version(b.bucket_id, b"k"))
            ref = StreamRef.unpack(version.body)
            reader = r.node.read_stream(ref)
            pieces = [bytes(await anext(reader))]
            command = DeleteObject(b.bucket_id, b.epoch, b"k", r.clock.wall_ns(), OWNER)
            await r.node.submit(command)
            await r.settle()
            pieces += [bytes(piece) async for piece in reader]
            assert b"".join(pieces) == body
            await r.settle()
            assert await gone(r, ref)

    run(main(), 9)


@pytest.mark.parametrize("cached", [0.0, 1.0])
def test_what_is_read_from_a_store_that_closed_is_not_to_be_had_now(cached: float) -> None:
    async def main() -> None:
        r = await Rig(13).start()
        b = await r.bucket()
        upload, command = await r.upload(b, b"k", body_of(13, 3 * FRAME_BYTES))
        await r.node.submit(command, upload.frames)
        await r.store.flush()
        r.disk.cached_share = cached
        reader = r.node.read_stream(upload.ref)
        await r.stop()
        with pytest.raises(Unavailable):
            await anext(reader)

    run(main(), 13)


def test_a_reader_that_stops_early_frees_what_it_held() -> None:
    async def main() -> None:
        async with rig(10) as r:
            b = await r.bucket()
            await r.put(b, b"k", body_of(10, 6 * FRAME_BYTES))
            version = await r.node.query(catalog.head_version(b.bucket_id, b"k"))
            ref = StreamRef.unpack(version.body)
            reader = r.node.read_stream(ref)
            await anext(reader)
            await reader.aclose()  # type: ignore[attr-defined]
            command = DeleteObject(b.bucket_id, b.epoch, b"k", r.clock.wall_ns(), OWNER)
            await r.node.submit(command)
            await r.settle()
            assert await gone(r, ref)

    run(main(), 10)


def test_a_wrong_reference_is_refused_not_served() -> None:
    async def main() -> None:
        async with rig(11) as r:
            b = await r.bucket()
            await r.put(b, b"k", body_of(11, 5000))
            version = await r.node.query(catalog.head_version(b.bucket_id, b"k"))
            ref = StreamRef.unpack(version.body)
            for wrong in (
                StreamRef(ref.stream, bytes(32), ref.epoch, ref.size_bytes),
                StreamRef(ref.stream, ref.salt, ref.epoch, ref.size_bytes + 1),
            ):
                with pytest.raises(BodyDamaged):
                    await r.read(wrong)
                with pytest.raises(BodyDamaged):
                    r.node.read_small_now(wrong)

    run(main(), 11)


@pytest.mark.parametrize("at", [PREFIX_BYTES + 5, 3, 60])
def test_a_damaged_frame_in_the_middle_ends_the_reading_before_it(at: int) -> None:
    async def main() -> None:
        async with rig(14) as r:
            b = await r.bucket()
            body = body_of(14, 5 * FRAME_BYTES)
            await r.put(b, b"k", body)
            version = await r.node.query(catalog.head_version(b.bucket_id, b"k"))
            ref = StreamRef.unpack(version.body)
            run_of, first = await r.store._frames.find(ref.stream, 3)
            volume = r.store._core.volumes[run_of.volume]
            assert volume.file is not None
            r.disk.rot(volume.file.path, frame_place(run_of, 3 - first)[0] + at)
            got = b""
            with pytest.raises(BodyDamaged):
                async for piece in r.node.read_stream(ref, 0, len(body)):
                    got += piece
            assert got == body[: 3 * FRAME_BYTES]
            with pytest.raises(BodyDamaged):
                await r.read(ref, 2 * FRAME_BYTES, 2 * FRAME_BYTES)

    run(main(), 14)


def test_many_uploads_at_once_come_back_right() -> None:
    async def main() -> None:
        async with rig(12) as r:
            b = await r.bucket()
            sizes = [(n * 37_123) % 900_000 + 1 for n in range(24)]
            await asyncio.gather(
                *(r.put(b, b"%d" % n, body_of(n, size)) for n, size in enumerate(sizes))
            )
            found = await asyncio.gather(*(r.get(b, b"%d" % n) for n in range(24)))
            assert found == [body_of(n, size) for n, size in enumerate(sizes)]

    run(main(), 12)


def test_a_cancelled_upload_leaves_nothing() -> None:
    async def main() -> None:
        async with rig(13) as r:
            b = await r.bucket()
            upload = r.node.new_stream(b.bucket_id, b"k")

            async def send() -> None:
                try:
                    for _ in range(50):
                        await upload.write(body_of(13, FRAME_BYTES), False)
                except asyncio.CancelledError:
                    upload.discard()
                    raise

            task = asyncio.ensure_future(send())
            await asyncio.sleep(0.004)
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            await r.settle()
            assert await open_rows(r) == 0
            assert await r.store.stream_frames(upload.ref.stream) == []

    run(main(), 13)
