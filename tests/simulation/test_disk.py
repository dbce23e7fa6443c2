from __future__ import annotations

import asyncio
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from o3storage.runtime.disk import DiskFault, DiskFull, OpenMode
from o3storage.simulation import Fault, FaultKind, PowerOffError, SimDisk, run

SECTOR = 512


async def put(disk: SimDisk, path: str, data: bytes, *, sync: bool = True, sync_dir: bool = True):
    file = await disk.open(path, OpenMode.CREATE)
    await file.write(0, [data])
    if sync:
        await file.sync()
    if sync_dir:
        await disk.sync_dir(path.rpartition("/")[0])
    return file


async def read(disk: SimDisk, path: str) -> bytes:
    file = await disk.open(path, OpenMode.READ)
    return await file.read(0, 1 << 20)


def lose_all(change, sector) -> bool:
    return False


def keep_all(change, sector) -> bool:
    return True


def test_synced_bytes_and_names_survive_a_crash():
    async def main() -> None:
        disk = SimDisk(1)
        await put(disk, "a", b"x" * 1000)
        after = disk.crash(choose=lose_all)
        assert await after.list_dir("") == ["a"]
        assert await read(after, "a") == b"x" * 1000

    run(main(), 1)


def test_a_name_without_sync_dir_and_bytes_without_sync_may_be_lost():
    async def main() -> None:
        disk = SimDisk(1)
        await put(disk, "named-only", b"x" * 1000, sync=False)
        await put(disk, "synced-only", b"y" * 1000, sync_dir=False)
        after = disk.crash(choose=lose_all)
        assert await after.list_dir("") == ["named-only"]
        assert await read(after, "named-only") == b""

    run(main(), 1)


def test_the_old_disk_is_off_after_a_crash():
    async def main() -> None:
        disk = SimDisk(1)
        file = await put(disk, "a", b"1")
        task = asyncio.get_running_loop().create_task(file.write(0, [b"2"]))
        await asyncio.sleep(0)
        after = disk.crash(choose=keep_all)
        with pytest.raises(PowerOffError):
            await task
        with pytest.raises(PowerOffError):
            await file.sync()
        assert await read(after, "a") == b"2"

    run(main(), 1)


def test_torn_writes_mix_sectors_of_old_and_new():
    async def main() -> None:
        seen = set()
        for seed in range(40):
            disk = SimDisk(seed)
            file = await put(disk, "a", b"o" * SECTOR * 4)
            await file.write(0, [b"n" * SECTOR * 4])
            data = await read(disk.crash(random.Random(seed)), "a")
            sectors = [data[i : i + SECTOR] for i in range(0, len(data), SECTOR)]
            assert all(s in (b"o" * SECTOR, b"n" * SECTOR) for s in sectors)
            seen.add(b"".join(s[:1] for s in sectors))
        assert len(seen) > 5

    run(main(), 1)


def test_a_sync_covers_only_writes_done_before_it_began():
    async def main() -> None:
        disk = SimDisk(1)
        file = await put(disk, "a", b"o" * SECTOR * 2)
        sync = asyncio.get_running_loop().create_task(file.sync())
        await asyncio.sleep(0)
        write = asyncio.get_running_loop().create_task(file.write(0, [b"n" * SECTOR]))
        await asyncio.gather(sync, write)
        after = disk.crash(choose=lose_all)
        assert await read(after, "a") == b"o" * SECTOR * 2

    run(main(), 1)


def test_a_kill_keeps_the_cache_but_not_durability():
    async def main() -> None:
        disk = SimDisk(1)
        file = await put(disk, "a", b"o" * 100)
        await file.write(0, [b"n" * 100])
        killed = disk.kill()
        assert await read(killed, "a") == b"n" * 100
        assert await killed.read_direct("a", 0, 100) == b"n" * 100
        cut = killed.crash(choose=lose_all)
        assert await read(cut, "a") == b"o" * 100

    run(main(), 1)


def test_after_a_failed_sync_the_cache_lies():
    async def main() -> None:
        disk = SimDisk(1)
        file = await put(disk, "a", b"o" * 100)
        await file.write(0, [b"n" * 100])
        disk.inject(Fault("sync"))
        with pytest.raises(DiskFault):
            await file.sync()
        assert await file.read(0, 100) == b"n" * 100
        assert await disk.read_direct("a", 0, 100) == b"o" * 100
        await file.sync()  # reports success and writes nothing
        assert await read(disk.crash(choose=keep_all), "a") == b"o" * 100

    run(main(), 1)


def test_a_write_error_and_a_transient_read_error():
    async def main() -> None:
        disk = SimDisk(1)
        file = await put(disk, "dir-less", b"o" * 5000)
        disk.inject(Fault("write", after=1))
        await file.write(0, [b"1"])
        with pytest.raises(DiskFault):
            await file.write(0, [b"2"])
        await file.write(0, [b"3"])
        disk.inject(Fault("read", path_prefix="dir", count=2))
        for _ in range(2):
            with pytest.raises(DiskFault):
                await file.read(0, 1)
        assert await file.read(0, 1) == b"3"

    run(main(), 1)


def test_a_latent_sector_error_lasts_until_it_is_overwritten():
    async def main() -> None:
        disk = SimDisk(1)
        file = await put(disk, "a", b"o" * SECTOR * 3)
        disk.fail_sector("a", SECTOR + 5)
        assert file.read_now(SECTOR, 10) is None
        with pytest.raises(DiskFault):
            await file.read(0, SECTOR + 1)
        assert await file.read(0, SECTOR) == b"o" * SECTOR
        await file.write(SECTOR, [b"n" * SECTOR])
        assert await file.read(SECTOR, 1) == b"n"

    run(main(), 1)


def test_rot_is_silent_and_survives():
    async def main() -> None:
        disk = SimDisk(1)
        await put(disk, "a", b"\0" * 10)
        disk.rot("a", 3, 0x80)
        assert await read(disk, "a") == b"\0\0\0\x80" + b"\0" * 6
        assert await read(disk.crash(choose=lose_all), "a") == b"\0\0\0\x80" + b"\0" * 6

    run(main(), 1)


def test_a_misdirected_write_lands_in_another_sector():
    async def main() -> None:
        disk = SimDisk(3)
        file = await put(disk, "a", b"o" * SECTOR * 64)
        disk.inject(Fault("write", FaultKind.MISDIRECTED))
        await file.write(0, [b"n" * SECTOR])
        data = await file.read(0, SECTOR * 64)
        assert data[:SECTOR] == b"o" * SECTOR
        assert data.count(b"n") == SECTOR

    run(main(), 1)


def test_full_refuses_to_allocate_and_recovers():
    async def main() -> None:
        disk = SimDisk(1, capacity_bytes=10_000)
        await put(disk, "a", b"x" * 6000)
        file = await disk.open("b", OpenMode.CREATE)
        with pytest.raises(DiskFull):
            await file.allocate(0, 5000, zero_fill=True)
        with pytest.raises(DiskFault):
            await file.write(0, [b"y" * 5000])
        await disk.unlink("a")
        assert (await disk.space()).free_bytes == 10_000
        await file.allocate(0, 5000, zero_fill=True)
        assert await file.size() == 5000

    run(main(), 1)


def test_slow_and_stuck_operations():
    async def main() -> None:
        loop = asyncio.get_running_loop()
        disk = SimDisk(1)
        file = await put(disk, "a", b"x")
        disk.inject(Fault("sync", FaultKind.SLOW, delay_s=30))
        before = loop.time()
        await file.sync()
        assert loop.time() - before >= 30
        disk.inject(Fault("read", FaultKind.STUCK))
        task = loop.create_task(file.read(0, 1))
        await asyncio.sleep(1000)
        assert not task.done()
        disk.release_stuck()
        assert await task == b"x"

    run(main(), 1)


def test_a_cancelled_task_does_not_end_its_operation():
    async def main() -> None:
        disk = SimDisk(1)
        file = await put(disk, "a", b"o")
        task = asyncio.get_running_loop().create_task(file.write(0, [b"n"]))
        await asyncio.sleep(0)
        task.cancel()
        await asyncio.sleep(1)
        assert await file.read(0, 1) == b"n"

    run(main(), 1)


def test_rename_replaces_and_is_atomic_over_a_crash():
    async def main() -> None:
        disk = SimDisk(1)
        await put(disk, "current", b"old")
        await put(disk, "new", b"new")
        await disk.rename("new", "current")
        assert await read(disk, "current") == b"new"
        assert await disk.list_dir("") == ["current"]
        for seed in range(20):
            copy = SimDisk(seed, image=disk.image.crash(lambda c, s: seed % 2 == 0))
            names = await copy.list_dir("")
            if names == ["current"]:
                assert await read(copy, "current") == b"new"
            else:
                assert names == ["current", "new"]
                assert await read(copy, "current") == b"old"

    run(main(), 1)


def test_directories_hold_names_and_vanish_with_them():
    async def main() -> None:
        disk = SimDisk(1)
        await disk.make_dir("a/b")
        await put(disk, "a/b/f", b"1")
        assert await disk.list_dir("a") == ["b"]
        with pytest.raises(FileNotFoundError):
            await disk.list_dir("c")
        with pytest.raises(FileExistsError):
            await disk.open("a/b/f", OpenMode.CREATE)
        assert await disk.crash(choose=lose_all).list_dir("") == []
        disk = SimDisk(1)
        await disk.make_dir("a/b")
        await put(disk, "a/b/f", b"1")
        await disk.sync_dir("a")
        await disk.sync_dir("")
        after = disk.crash(choose=lose_all)
        assert await after.list_dir("a/b") == ["f"]

    run(main(), 1)


def test_it_works_on_an_ordinary_event_loop():
    async def main() -> None:
        disk = SimDisk(1)
        file = await put(disk, "a", b"x" * 10)
        await file.write_sync(5, [b"yy", memoryview(b"zz")])
        assert await disk.crash(choose=lose_all).list_dir("") == ["a"]

    asyncio.run(main())


def test_direct_writes_must_be_aligned():
    async def main() -> None:
        disk = SimDisk(1)
        file = await disk.open("a", OpenMode.CREATE, direct=True)
        await file.write(4096, [disk.aligned_buffer(8192)])
        with pytest.raises(OSError):
            await file.write(100, [disk.aligned_buffer(4096)])

    run(main(), 1)


# --- against a plain model: what a crash leaves is, sector by sector, something that was there


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.one_of(
            st.tuples(st.just("write"), st.integers(0, 3000), st.binary(min_size=1, max_size=1500)),
            st.tuples(st.just("truncate"), st.integers(0, 4000), st.just(b"")),
            st.tuples(st.just("sync"), st.just(0), st.just(b"")),
        ),
        max_size=12,
    ),
    st.integers(0, 1 << 30),
)
def test_crash_against_a_model(steps, seed):
    async def main() -> None:
        disk = SimDisk(seed)
        file = await put(disk, "a", b"")
        content = bytearray()
        versions: list[bytes] = [b""]  # contents since the last sync, oldest first
        for step, at, data in steps:
            if step == "write":
                await file.write(at, [data])
                content.extend(bytes(max(0, at + len(data) - len(content))))
                content[at : at + len(data)] = data
            elif step == "truncate":
                await file.truncate(at)
                del content[at:]
                content.extend(bytes(at - len(content)))
            else:
                await file.sync()
                versions = []
            versions.append(bytes(content))
            assert await file.read(0, 1 << 20) == content
        assert await read(SimDisk(1, image=disk.image.crash(lose_all)), "a") == versions[0]
        assert await read(SimDisk(1, image=disk.image.crash(keep_all)), "a") == content
        after = await read(disk.crash(random.Random(seed)), "a")
        assert len(after) <= max(len(v) for v in versions)
        for low in range(0, len(after), SECTOR):
            sector = after[low : low + SECTOR].ljust(SECTOR, b"\0")
            seen = {v[low : low + SECTOR].ljust(SECTOR, b"\0") for v in versions}
            if any(step == "truncate" for step, _, _ in steps):
                continue  # a cut that is kept among writes that are lost mixes freely
            assert sector in seen or not sector.strip(b"\0")

    run(main(), seed)


def test_recorder_makes_old_or_new_states_and_finds_a_missing_sync():
    """The classic replace-by-rename, with each sync left out in turn."""

    async def main():
        disk = SimDisk(1)
        await put(disk, "current", b"old" * 500)
        recorder = disk.record()
        file = await disk.open("new", OpenMode.CREATE)
        await file.write(0, [b"new" * 500])
        await file.sync()
        await disk.rename("new", "current")
        await disk.sync_dir("")
        recorder.mark("done")
        return recorder

    recorder = run(main(), 1)

    def holds(skip: set[int]) -> bool:
        for state in recorder.crash_states(7, skip=skip):
            node = state.image.names.get("current")
            content = bytes(node.cached) if node is not None else None
            old, new = content == b"old" * 500, content == b"new" * 500
            if not (new or (old and "done" not in state.marks)):
                return False
        return True

    assert holds(set())
    points = recorder.sync_points()
    assert len(points) == 2
    for point in points:
        assert not holds({point})
