"""Defects that the simulator found, each with the shortest way to it."""

from __future__ import annotations

import asyncio

import pytest

from o3storage.runtime.disk import DiskFault
from o3storage.simulation import Fault, FaultKind, SimClock, SimDisk, SimEntropy, SimJobs, run
from o3storage.storage import (
    FRAME_PLAIN_BYTES,
    BadFrame,
    Entry,
    FrameBad,
    HardState,
    SealedFrame,
    Store,
    StoreError,
    StoreOptions,
    VerifyReport,
    verify,
)
from o3storage.storage._frames import frame_place

KEY = bytes(range(32))
ONE, TWO = b"1" * 16, b"2" * 16


async def open_store(disk: SimDisk) -> Store:
    options = StoreOptions(
        log_volume_bytes=128 << 10,
        first_log_volume_bytes=64 << 10,
        bulk_volume_bytes=4 << 20,
        bulk_allocate_bytes=512 << 10,
        background=False,
    )
    return await Store.open(
        disk,
        disk_key=KEY,
        jobs=SimJobs(),
        clock=SimClock(),
        entropy=SimEntropy(disk.image.sequence),
        options=options,
    )


async def check(disk: SimDisk) -> VerifyReport:
    entropy = SimEntropy("verify")
    return await verify(
        disk, disk_key=KEY, jobs=SimJobs(), clock=SimClock(), entropy=entropy, return_disk=True
    )


def frame(stream: bytes, number: int, *, last: bool = False) -> SealedFrame:
    data = bytes([1 + number]) * (FRAME_PLAIN_BYTES + 16)
    return SealedFrame(stream, number, last, FRAME_PLAIN_BYTES, data)


async def write_two(store: Store) -> None:
    """Two bodies of three frames at once: one is cut into two runs by the other."""
    one, two = store.open_stream(ONE), store.open_stream(TWO)
    await one.write(frame(ONE, 0))
    await two.write(frame(TWO, 0))
    await two.write(frame(TWO, 1))
    await two.write(frame(TWO, 2, last=True))
    await one.write(frame(ONE, 1))
    await one.write(frame(ONE, 2, last=True))
    await one.sync()
    await two.sync()


async def release(store: Store, index: int, *streams: bytes) -> None:
    await store.append(1, HardState(1, 1, index), [Entry(index, 1, 0, b"entry")])
    store.apply(1, index, [(b"\x10row", b"%d" % index)], list(streams))


def test_compaction_replaces_every_placement_of_a_body_in_runs() -> None:
    """It joined the runs of a body and left the row of the second one, which pointed into the
    freed volume: all frames but the first could no longer be read."""

    async def main() -> None:
        disk = SimDisk(1)
        store = await open_store(disk)
        await write_two(store)
        await release(store, 1, TWO)
        await store.close()
        store = await open_store(disk)
        assert await store.compact() > 0
        for number in range(3):
            assert bytes(await store.read_frame(ONE, number)) == frame(ONE, number).data
        await store.close()
        assert (await check(disk)).clean

    run(main(), 1)


def test_compaction_forgets_no_frame_that_it_cannot_read() -> None:
    """It moved what was good of a run and placed that anew: the damaged frame between had no
    placement any more, so no scrub found it and nobody had it repaired."""

    async def main() -> None:
        disk = SimDisk(3)
        store = await open_store(disk)
        for stream in (ONE, TWO):
            writer = store.open_stream(stream)
            for number in range(3):
                await writer.write(frame(stream, number, last=number == 2))
            await writer.sync()
        await release(store, 1, TWO)
        await store.close()
        store = await open_store(disk)
        run_at, first = await store._frames.find(ONE, 1)
        offset, size = frame_place(run_at, 1 - first)
        disk.rot(store._core.volumes[run_at.volume].path, offset + size // 2, 0x10)
        await store.compact()
        for number in (0, 2):
            assert bytes(await store.read_frame(ONE, number)) == frame(ONE, number).data
        with pytest.raises(FrameBad):
            await store.read_frame(ONE, 1)
        found: list[BadFrame] = []
        await store.scrub(found.append)
        assert [(bad.stream, bad.number) for bad in found] == [(ONE, 1)]
        # Stored again, it is whole, and the volume can go.
        writer = store.open_stream(ONE)
        await writer.write(frame(ONE, 1))
        await writer.sync()
        for number in range(3):
            assert bytes(await store.read_frame(ONE, number)) == frame(ONE, number).data
        await store.close()

    run(main(), 3)


def test_frames_of_a_volume_that_is_gone_are_missing_and_not_held() -> None:
    """A write went astray, and with it the record that compaction had moved a body: its row told of
    a volume that was freed, so its replica took it for held and fetched nothing."""

    async def main() -> None:
        disk = SimDisk(5)
        store = await open_store(disk)
        await write_two(store)
        run_at, _ = await store._frames.find(ONE, 1)
        path = store._core.volumes[run_at.volume].path
        await store.flush()
        await store.close()
        await (await open_store(disk)).close()  # (or its number would be the next one again)
        await disk.unlink(path)
        store = await open_store(disk)
        assert await store.stream_frames(ONE) == [] and store.frames_held_now(ONE) in (0, None)
        await store.get(b"\x10")  # (the blocks of the rows are in memory now)
        assert store.frames_held_now(ONE) == 0
        with pytest.raises(FrameBad):
            await store.read_frame(ONE, 1)
        again = store.open_stream(ONE)
        for number in range(3):
            await again.write(frame(ONE, number, last=number == 2))
        await again.sync()
        assert await store.stream_frames(ONE) == [(0, 3)] and store.frames_held_now(ONE) == 3
        assert bytes(await store.read_frame(ONE, 1)) == frame(ONE, 1).data
        await store.close()

    run(main(), 5)


def test_verify_after_a_dead_volume_was_freed() -> None:
    """Its frames were released by entries whose outcomes were not durable yet: the offline check,
    which cannot apply entries, missed the frames."""

    async def main() -> None:
        disk = SimDisk(2)
        store = await open_store(disk)
        await write_two(store)
        await store.flush()
        await store.close()
        store = await open_store(disk)
        await release(store, 1, ONE, TWO)
        assert await store.compact() > 0
        disk = disk.kill()
        report = await check(disk)
        assert report.clean, report.problems

    run(main(), 2)


def test_a_disk_is_returned_after_a_write_of_the_log_failed() -> None:
    """Whatever the failed write left behind the last batch is no damage."""

    async def main(seed: int) -> None:
        disk = SimDisk(seed)
        store = await open_store(disk)
        for index in range(1, 4):
            await release(store, index)
        disk.inject(Fault("write", FaultKind.ERROR, path_prefix="volumes/"))
        entries = [Entry(4 + i, 1, 0, bytes([i + 1]) * 700) for i in range(9)]
        try:
            await store.append(1, None, entries)
        except (StoreError, DiskFault):
            pass
        else:
            raise AssertionError("the write failed")
        await asyncio.sleep(0.1)  # virtual: it notes that it is out of service
        disk = disk.crash()
        report = await check(disk)
        assert report.clean and report.returned, report.problems
        store = await open_store(disk)
        assert store.log_state(1).last_index == 3
        await store.close()

    for seed in range(40):
        run(main(seed), seed)
