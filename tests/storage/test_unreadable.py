"""Sectors that the medium does not give back: what they held is lost, and nothing else."""

from __future__ import annotations

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from o3storage.runtime.disk import DiskFault
from o3storage.simulation import Fault, SimDisk
from o3storage.storage import EntriesGone, verify
from o3storage.storage import _records as records
from o3storage.storage._unreadable import MAX_UNREADABLE_BLOCKS, UNREADABLE, read_around
from o3storage.storage._volume import BLOCK_BYTES, HEADER_BYTES

from .outcome_support import OPTIONS, begin, execute, row, rows_of
from .support import KEY, SimClock, SimEntropy, SimJobs, entry, hard, open_store, run, store_on
from .test_compaction import BULK, compact_all, release, upload, volumes
from .test_faults import places

KEPT = 1 << 20
FILE_BLOCKS = 9
FILE_BYTES = FILE_BLOCKS * BLOCK_BYTES - 700


def fail_block(disk, path, offset):
    """A physical sector of 4 KiB, as drives have them."""
    start = offset - offset % BLOCK_BYTES
    for sector in range(start, start + BLOCK_BYTES, 512):
        disk.fail_sector(path, sector)


async def check(disk, **how):
    return await verify(
        disk, disk_key=KEY, jobs=SimJobs(), clock=SimClock(), entropy=SimEntropy(1), **how
    )


@given(
    st.sets(st.integers(0, FILE_BLOCKS - 1)),
    st.integers(0, FILE_BYTES - 1),
    st.integers(0, FILE_BYTES),
)
@example({0, 1, 2, 8}, 5000, FILE_BYTES)
def test_all_is_read_but_the_blocks_that_fail(bad, offset, size):
    content = bytes(1 + at % 251 for at in range(FILE_BYTES))

    async def read(at, count):
        touched = range(at // BLOCK_BYTES, (at + max(count, 1) - 1) // BLOCK_BYTES + 1)
        if count and bad.intersection(touched):
            raise DiskFault(5, "simulated")
        return content[at : at + count]

    async def main():
        size_ = min(size, FILE_BYTES - offset)
        wanted = bytearray(content[offset : offset + size_])
        for at in range(size_):
            if (offset + at) // BLOCK_BYTES in bad:
                wanted[at] = UNREADABLE[0]
        assert await read_around(read, offset, size_) == wanted

    run(main(), 1)


def test_a_disk_that_gives_nothing_back_is_an_error():
    asked = []

    async def read(at, count):
        asked.append(count)
        raise DiskFault(5, "simulated")

    async def main():
        with pytest.raises(DiskFault):
            await read_around(read, 0, 1 << 30)
        assert asked.count(BLOCK_BYTES) == MAX_UNREADABLE_BLOCKS + 1
        assert len(asked) < 2 * MAX_UNREADABLE_BLOCKS + 30

    run(main(), 1)


@pytest.mark.parametrize("index_lost", [False, True])
def test_a_store_opens_without_what_a_sector_of_its_log_held(index_lost):
    async def main():
        disk = SimDisk(5)
        store = await begin(disk, 6)
        await execute(store, map(row, range(1, 6)))
        disk = disk.crash()
        await store.close()
        path, offset, _ = places(disk, records.OUTCOME)[2]
        fail_block(disk, path, offset)
        if index_lost:
            for name in await disk.list_dir("index"):
                await disk.unlink(f"index/{name}")
        report = await check(disk)
        assert any(path in problem.where for problem in report.problems)
        async with store_on(disk, **OPTIONS) as store:
            assert store.log_state(1).applied_index == 2
            assert store.log_state(1).last_index == 6
            assert await rows_of(store) == dict(map(row, (1, 2)))

    run(main(), 5)


def test_one_copy_of_a_volume_s_header_is_enough():
    async def main():
        disk = SimDisk(6)
        store = await begin(disk, 3)
        await execute(store, map(row, range(1, 3)))
        disk = disk.crash()
        await store.close()
        (path,) = [name for name in disk.image.names if name.endswith(".log")]
        fail_block(disk, path, HEADER_BYTES // 2)
        async with store_on(disk, **OPTIONS) as store:
            assert await rows_of(store) == dict(map(row, (1, 2)))

    run(main(), 6)


@pytest.mark.parametrize("times", [1, 2])
def test_an_index_whose_manifest_cannot_be_read_is_rebuilt(times):
    """... but not for one error that does not come again."""

    async def main():
        disk = SimDisk(7)
        store = await begin(disk, 3, index=None)
        await execute(store, map(row, range(1, 3)))
        await store.flush()
        await store.close()
        disk.inject(Fault("read", path_prefix="index/MANIFEST", count=times))
        async with store_on(disk, index=None, **OPTIONS) as store:
            assert store.stats().index_rebuilt == (times > 1)
            assert await rows_of(store) == dict(map(row, (1, 2)))

    run(main(), 7)


def test_a_log_whose_last_volume_begins_with_it_opens():
    async def main():
        disk = SimDisk(9)
        store = await begin(disk, 3)
        await execute(store, map(row, range(1, 3)))
        disk = disk.crash()
        await store.close()
        path, offset, _ = places(disk, records.ENTRY)[0]
        for at in (HEADER_BYTES, offset):
            fail_block(disk, path, at)
        async with store_on(disk, **OPTIONS) as store:
            state = store.log_state(1)
            assert state.missing == [(1, state.last_index)]
            assert state.uncertain, "how many entries there were is not known"

    run(main(), 9)


def test_entries_are_read_up_to_it():
    async def main():
        disk = SimDisk(10)
        store = await open_store(disk, **OPTIONS)
        await store.append(1, hard(1), [entry(n, data=bytes(9000)) for n in range(1, 5)])
        await store.close()
        store = await open_store(disk, reload_log_bytes=1 << 20, **OPTIONS)
        store._core.groups[1].cache.clear()
        path, offset, _ = places(disk, records.ENTRY)[2]
        fail_block(disk, path, offset + 4500)
        assert [found.index for found in await store.entries(1, 1, 5, KEPT)] == [1, 2]
        with pytest.raises(EntriesGone) as gone:
            await store.entries(1, 3, 5, KEPT)
        assert gone.type is EntriesGone, "not as if the next try could help"
        assert [found.index for found in await store.entries(1, 4, 5, KEPT)] == [4]
        await store.close()

    run(main(), 10)


def test_verify_names_the_frame_that_it_took():
    async def main():
        disk = SimDisk(11)
        store = await open_store(disk, **OPTIONS)
        await upload(store, 1, 6)
        await store.close()
        path, offset, size = places(disk, records.FRAME, ".bulk")[2]
        fail_block(disk, path, offset + size // 2)
        report = await check(disk)
        assert [problem.kind for problem in report.problems] == ["record", "frame"]
        assert "frame 2" in report.problems[1].where
        assert report.frames == 5

    run(main(), 11)


def test_other_dead_volumes_are_freed():
    async def main():
        disk = SimDisk(12)
        async with store_on(disk, **BULK) as store:
            await upload(store, 1, 18)
            first, second, _ = sorted(volumes(disk))
            fail_block(disk, first, HEADER_BYTES)
            await release(store, 1, [1])
            for _ in range(3):
                await compact_all(store)
            assert first in volumes(disk), "what stood there may have said how rows changed"
            assert second not in volumes(disk)

    run(main(), 12)


def test_compaction_goes_around_it():
    async def main():
        disk = SimDisk(8)
        store = await open_store(disk, **OPTIONS)
        await store.close()
        store = await begin(disk, 40)
        await execute(store, [(b"\x20same", b"%d" % n * 900) for n in range(1, 41)])
        await store.flush()
        oldest = min(name for name in disk.image.names if name.endswith(".log"))
        fail_block(disk, oldest, HEADER_BYTES + 20_000)
        while await store.compact():
            pass
        assert await rows_of(store) == {b"\x20same": b"40" * 900}
        assert not store.stats().out_of_service
        await store.close()

    run(main(), 8)
