"""Offline: verify finds every damage, repairs without losing what is good; inspect shows it all."""

from __future__ import annotations

import asyncio

import pytest

from o3storage.simulation import Fault, SimClock, SimDisk, SimEntropy, SimJobs, run
from o3storage.storage import (
    DataDirLock,
    EntryKind,
    FrameBad,
    OfflineStore,
    Store,
    StoreDamaged,
    StoreLocked,
    StoreOutOfService,
    verify,
)
from o3storage.storage import _records as records
from o3storage.storage._scrub import placed_bad_frames

from .support import KEY, entry, frame, hard, small_options, stream_id
from .test_faults import batch_end, batch_starts, places


def parts():
    return {
        "disk_key": KEY,
        "jobs": SimJobs(1),
        "clock": SimClock(),
        "entropy": SimEntropy(1),
    }


async def opened(disk, **options):
    entropy = SimEntropy(f"{disk.image.sequence}")
    return await Store.open(
        disk, **{**parts(), "entropy": entropy}, options=small_options(**options)
    )


async def filled(seed=1):
    """A closed store with everything in it: rows, small and large frames, a flush, a compaction."""
    disk = SimDisk(seed)
    store = await opened(disk)
    for i in range(1, 31):
        await store.append(1, hard(1, 1, i - 1), [entry(i)], [frame(i, size=4000)])
        released = [stream_id(i - 1)] if i % 2 == 0 else []
        store.apply(1, i, [(b"\x10key%d" % i, b"value %d" % i)], released)
    writer = store.open_stream(stream_id(900))
    for n in range(4):
        await writer.write(frame(900, n, 20_000, last=n == 3))
    await writer.sync()
    await store.flush()
    while await store.compact():
        pass
    assert store.stats().compactions
    await store.append(1, None, [entry(31)], [frame(31)])
    return disk, store


def files(disk, suffix):
    return [n for n, node in sorted(disk.image.names.items()) if node and n.endswith(suffix)]


def content(disk):
    return {n: bytes(i.cached) for n, i in disk.image.names.items() if i is not None}


def test_a_good_store_is_clean_and_untouched():
    async def main():
        for way in ("close", "crash", "kill"):
            after, store = await filled()
            if way == "close":
                await store.close()
            else:
                after = getattr(after, way)()
            before = content(after)
            steps = []
            report = await verify(after, **parts(), on_progress=lambda *a: steps.append(a))
            assert report.clean, report.problems
            assert report.placed_frames == 15 + 1 + 4 and report.records > 40
            assert content(after) == before
            assert {name for name, _ in steps} >= {"volumes", "replay"}
            assert all(0 <= done <= 1 for _, done in steps)

    run(main(), 1)


def test_a_killed_store_is_clean_too():
    async def main():
        disk, _ = await filled()
        report = await verify(disk.crash(), **parts())
        assert report.clean, report.problems

    run(main(), 2)


def test_what_a_kill_left_unsynced_outlives_the_power_cut_after_it():
    async def main():
        disk = SimDisk(7)
        store = await opened(disk, bulk_allocate_bytes=4096)  # no more than the record takes
        await store.append(1, hard(1, 1, 0), [entry(1)])
        written = store._bulk.written_bytes
        await store.open_stream(stream_id(903)).write(frame(903, 0, 20_000))
        while store._bulk.written_bytes == written:
            await asyncio.sleep(0.01)
        (path,) = files(disk, ".bulk")
        disk = disk.kill()
        await (await opened(disk)).close()
        node = disk.image.lookup(path)

        def keep(change, sector):
            return getattr(change, "inode", None) is not node or sector % 2 == 0

        report = await verify(disk.crash(choose=keep), **parts())
        assert report.clean, report.problems

    run(main(), 7)


def test_a_small_record_that_was_torn_behind_a_whole_one_in_its_block_is_cut_off():
    async def main():
        disk = SimDisk(8)
        store = await opened(disk, bulk_allocate_bytes=64 * 1024)
        await store.append(1, hard(1, 1, 0), [entry(1)])
        stream = store.open_stream(stream_id(904))
        await stream.write(frame(904, 0, 20_000))
        await stream.sync()
        written = store._bulk.written_bytes
        for number, size in (1, 4200), (2, 3000):
            await stream.write(frame(904, number, size))
        while store._bulk.written_bytes == written:
            await asyncio.sleep(0.01)
        (path,) = files(disk, ".bulk")
        node = disk.image.lookup(path)
        data = bytes(node.cached)
        starts = [i for i in range(4096, len(data), 2) if data[i + 32 : i + 36] == b"O3Rc"]
        assert starts[1] % 4096 == 0 != starts[2] % 4096
        torn = starts[2] // 512 + 2

        def keep(change, sector):
            return getattr(change, "inode", None) is not node or sector != torn

        disk = disk.crash(choose=keep)
        await (await opened(disk)).close()
        assert len(bytes(disk.image.lookup(path).cached)) == starts[1]
        report = await verify(disk, **parts())
        assert report.clean, report.problems

    run(main(), 8)


@pytest.mark.parametrize("suffix", [".log", ".bulk"])
def test_every_flipped_bit_in_a_record_is_found(suffix):
    async def main():
        base, store = await filled()
        await store.close()
        tried = 0
        for path in files(base, suffix):
            data = bytes(base.image.lookup(path).cached)
            at = data.find(records.RECORD_MAGIC)
            while at >= 0:
                header = records.check_record(data, at - 32)
                for offset in (0, 31, 36, 50, 79, header.size_bytes - 1):
                    if (tried := tried + 1) % 7:
                        continue
                    disk = base.crash(choose=lambda *_: True)
                    disk.rot(path, at - 32 + offset)
                    report = await verify(disk, **parts())
                    assert not report.clean, (path, at, offset, header)
                at = data.find(records.RECORD_MAGIC, at + 1)
        assert tried > 50

    run(main(), 3)


def test_index_damage_is_found_and_repaired():
    async def main():
        base, store = await filled()
        await store.close()
        for path in [n for n in base.image.names if n.startswith("index/")]:
            size = len(base.image.lookup(path).cached)
            if not size:
                continue
            disk = base.crash(choose=lambda *_: True)
            disk.rot(path, min(size - 1, 70), 0x40)
            report = await verify(disk, **parts(), repair=True)
            if report.clean:
                continue  # a second copy stood in, or the byte says nothing
            assert [p.kind for p in report.problems if p.kind != "index"] == [], report.problems
            assert report.repaired
            store = await opened(disk)
            assert store.get_now(b"\x10key30") == b"value 30"
            assert bytes(await store.read_frame(stream_id(30), 0)) == frame(30, size=4000).data
            await store.close()
            assert (await verify(disk, **parts())).clean

    run(main(), 4)


def test_lost_headers_go_to_quarantine():
    async def main():
        disk, store = await filled()
        await store.close()
        path = files(disk, ".bulk")[0]
        disk.rot(path, 100)
        disk.rot(path, 4196)
        with pytest.raises(StoreDamaged, match="verify"):
            await opened(disk)
        report = await verify(disk, **parts())
        assert {p.kind for p in report.problems} == {"header", "frame"}
        report = await verify(disk, **parts(), repair=True)
        assert report.repaired
        assert await disk.list_dir("quarantine")
        store = await opened(disk)
        assert store.get_now(b"\x10key30") == b"value 30"
        await store.close()

    run(main(), 5)


def test_lost_entries_are_marked_lost():
    async def main():
        disk = SimDisk(1)
        store = await opened(disk)
        await store.append(1, hard(1, 1, 0), [entry(1), entry(2), entry(3)])
        await store.append(1, None, [entry(4)])
        disk = disk.kill()
        path, offset, _ = places(disk, records.ENTRY)[1]
        disk.rot(path, offset + 90)
        report = await verify(disk, **parts())
        assert {p.kind for p in report.problems} == {"batch", "entries", "record"}
        report = await verify(disk, **parts(), repair=True)
        assert any("lost" in line for line in report.repaired)
        # Its volume holds entries that are not applied yet, so it stays for now.
        assert any("still needed" in line for line in report.repaired)
        store = await opened(disk)
        state = store.log_state(1)
        assert state.missing == [] and state.last_index == 4 and state.hard_state == hard(1, 1, 0)
        found = await store.entries(1, 1, 5, 1 << 20)
        assert [e.kind for e in found] == [0, EntryKind.LOST, 0, 0]
        assert [e.data for e in found] == [b"entry 1", b"", b"entry 3", b"entry 4"]
        for index in (1, 2, 3, 4):
            rows = [] if index == 2 else [(b"\x10key%d" % index, b"value")]
            store.apply(1, index, rows)
        await store.close()
        report = await verify(disk, **parts(), repair=True)
        assert await disk.list_dir("quarantine"), report.repaired
        assert (await verify(disk, **parts())).clean
        for _ in range(2):  # as it stands, then with an index made from what is left
            store = await opened(disk)
            state = store.log_state(1)
            assert state.last_index == state.applied_index == 4
            rows_now = await store.scan(b"\x10", b"\x11", 10)
            assert [key for key, _ in rows_now] == [b"\x10key1", b"\x10key3", b"\x10key4"]
            await store.close()
            for name in [n for n in disk.image.names if n.startswith("index/")]:
                await disk.unlink(name)

    run(main(), 6)


def test_return_disk():
    async def main():
        disk = SimDisk(1)
        store = await opened(disk)
        await store.append(1, hard(1), [entry(1)], [frame(1)])
        disk.inject(Fault("sync", path_prefix="volumes"))
        with pytest.raises(StoreOutOfService):
            await store.append(1, None, [entry(2)])
        await store.close()
        assert (await verify(disk, **parts())).out_of_service
        with pytest.raises(StoreOutOfService):
            await opened(disk)
        report = await verify(disk, **parts(), return_disk=True)
        assert report.clean and report.returned
        store = await opened(disk)
        assert store.log_state(1).last_index == 1
        await store.close()

    run(main(), 7)


def test_inspect():
    async def main():
        disk, store = await filled()
        await store.close()
        before = content(disk)
        offline = await OfflineStore.open(disk, **parts())
        kinds = set()
        for volume in offline.volumes():
            async for record in offline.records(volume.volume):
                kinds.add(record.kind)
                detail = await offline.record(volume.volume, record.offset)
                assert detail.sound and detail.summary == record
        assert kinds == {"frame", "entry", "outcome", "placement", "state"}
        found = await offline.stream_places(stream_id(900))
        assert [p.number for p in found] == [0, 1, 2, 3]
        assert await offline.get(b"\x10key3") == b"value 3"
        assert len(await offline.scan(b"\x10", b"\x11", 100)) == 30
        with pytest.raises(StoreDamaged):
            await offline.record(volume.volume, 8193)
        await offline.close()
        assert content(disk) == before

    run(main(), 8)


def test_the_directory_is_locked_with_the_pid(tmp_path):
    lock = DataDirLock.acquire(str(tmp_path))
    with pytest.raises(StoreLocked, match="in use"):
        DataDirLock.acquire(str(tmp_path))
    lock.release()
    lock.release()
    DataDirLock.acquire(str(tmp_path)).release()


def test_batches_of_a_log_do_not_count_as_bad():
    async def main():
        disk, store = await filled()
        await store.close()
        path, at = batch_starts(disk)[-1]
        disk.rot(path, batch_end(disk, path, at) - 30)
        report = await verify(disk, **parts())
        assert not report.clean

    run(main(), 9)


async def torn_in_the_middle(seed=1):
    """A disk after a power cut: in a bulk volume a placed frame, a released one, then, never
    synced, one that is torn and behind it a whole one. Returns it with the volume's path."""
    disk = SimDisk(seed)
    store = await opened(disk)
    await store.append(1, hard(1, 1, 0), [entry(1)])
    for number in (901, 902):
        writer = store.open_stream(stream_id(number))
        await writer.write(frame(number, 0, 20_000))
        await writer.sync()
    store.apply(1, 1, [(b"\x10k", b"v")], [stream_id(902)])
    await store.append(1, None, [entry(2)])
    (path,) = files(disk, ".bulk")
    torn_at = store._bulk.volume.size_bytes
    for number in (903, 904):
        written = store._bulk.written_bytes
        await store.open_stream(stream_id(number)).write(frame(number, 0, 20_000))
        while store._bulk.written_bytes == written:
            await asyncio.sleep(0.01)
    node = disk.image.lookup(path)

    def keep(change, sector):
        in_bulk = getattr(change, "inode", None) is node
        return not (in_bulk and sector == torn_at // 512 + 9)

    return disk.crash(choose=keep), path, torn_at


def test_what_was_torn_in_a_bulk_volume_is_not_taken_for_rot():
    """Though a whole frame stands behind it, and though the volume counts as closed later on."""

    async def main():
        disk, path, torn_at = await torn_in_the_middle()
        assert len(bytes(disk.image.lookup(path).cached)) > torn_at
        report = await verify(disk, **parts())
        assert report.clean, report.problems
        store = await opened(disk)
        await store.flush()  # from here on the volume counts as closed
        await store.close()
        report = await verify(disk, **parts())
        assert report.clean, report.problems
        assert len(bytes(disk.image.lookup(path).cached)) == torn_at
        store = await opened(disk)
        assert bytes(await store.read_frame(stream_id(901), 0)) == frame(901, 0, 20_000).data
        await store.close()

    run(main(), 1)


@pytest.mark.parametrize("which", [0, 1])
def test_rot_in_what_was_synced_is_never_taken_for_a_torn_write(which):
    """Not even a whole sector that reads as zeros, in a frame that nobody names any more."""

    async def main():
        disk, path, torn_at = await torn_in_the_middle()
        data = disk.image.lookup(path).cached
        at = [i for i in range(4096, torn_at, 4096) if data[i + 32 : i + 36] == b"O3Rc"][which]
        for image in (disk.image.lookup(path).cached, disk.image.lookup(path).durable):
            image[at + 1024 : at + 1536] = bytes(512)
        report = await verify(disk, **parts())
        assert [p.kind for p in report.problems if p.kind == "record"] == ["record"]
        store = await opened(disk)
        await store.flush()
        assert len(bytes(disk.image.lookup(path).cached)) == torn_at
        await store.close()
        assert not (await verify(disk, **parts())).clean

    run(main(), 1)


def test_the_end_of_a_bulk_volume_is_known_without_the_index():
    """The rows that say so are rebuilt from the volumes like all others."""

    async def main():
        disk, _, torn_at = await torn_in_the_middle()
        for name in files(disk, ".table"):
            await disk.unlink(name)
        for name in [n for n in disk.image.names if n.startswith("index/")]:
            await disk.unlink(name)
        store = await opened(disk)
        assert store.stats().index_rebuilt or store.get_now(b"\x10k") == b"v"
        await store.flush()
        await store.close()
        assert (await verify(disk, **parts())).clean
        rows = await rows_of(disk, b"\x04", b"\x05")
        assert max(int.from_bytes(value, "little") for _, value in rows) == torn_at

    run(main(), 1)


async def rows_of(disk, low, high):
    offline = await OfflineStore.open(disk, **parts())
    try:
        return await offline.scan(low, high, 100)
    finally:
        await offline.close()


def test_a_mark_of_another_layout_has_the_index_rebuilt():
    async def main():
        disk, store = await filled()
        await store.close()
        store = await opened(disk)
        old = store._core.index
        mark = bytearray(old.mark)
        mark[0] = 1
        await old.flush(bytes(mark))
        disk = disk.kill()
        report = await verify(disk, **parts())
        assert [(p.kind, "another version" in p.detail) for p in report.problems] == [
            ("index", True)
        ]
        store = await opened(disk)
        assert store.stats().index_rebuilt
        assert await store.get(b"\x10key3") == b"value 3"
        assert bytes(await store.read_frame(stream_id(900), 3)) == frame(900, 3, 20_000).data
        await store.close()
        assert (await verify(disk, **parts())).clean

    run(main(), 4)


async def repaired(disk):
    """What a repair and the check behind it say; and that the store opens between them."""
    report = await verify(disk, **parts(), repair=True)
    assert not report.clean and report.repaired
    return report, await verify(disk, **parts())


@pytest.mark.parametrize("kind", [records.OUTCOME, records.ENTRY, records.LOCAL, records.FRAME])
def test_a_bad_record_is_set_aside_and_nothing_else_is_lost(kind):
    async def main():
        disk, store = await filled()
        store.apply(1, 31, [(b"\x10key3", None)])
        await store.close()
        path, offset, size = places(disk, kind)[-1]
        disk.rot(path, offset + size - 1)
        report, again = await repaired(disk)
        assert await disk.list_dir("quarantine"), report.repaired
        lost = [p for p in again.problems if p.kind == "frame"]
        assert len(again.problems) == len(lost) == (kind == records.FRAME), again.problems
        for _ in range(2):  # as it stands, then with an index made from what is left
            store = await opened(disk)
            for i in range(1, 31):
                value = None if i == 3 else b"value %d" % i
                assert await store.get(b"\x10key%d" % i) == value
                if i % 2 == 0:
                    frame_read = await store.read_frame(stream_id(i), 0)
                    assert bytes(frame_read) == frame(i, size=4000).data
            for n in range(4):
                assert bytes(await store.read_frame(stream_id(900), n))
            if kind == records.FRAME:
                with pytest.raises(FrameBad):
                    await store.read_frame(stream_id(31), 0)
            else:
                assert bytes(await store.read_frame(stream_id(31), 0)) == frame(31).data
            assert store.log_state(1).last_index == store.log_state(1).applied_index == 31
            await store.append(1, None, [])
            await store.close()
            for name in [n for n in disk.image.names if n.startswith("index/")]:
                await disk.unlink(name)

    run(main(), 9)


def test_lost_frames_of_a_large_stream_are_named_until_it_is_released():
    async def main():
        disk, store = await filled()
        await store.close()
        offline = await OfflineStore.open(disk, **parts())
        places_ = await offline.stream_places(stream_id(900))
        await offline.close()
        disk.rot(f"volumes/{places_[2].volume:010d}.bulk", places_[2].offset + 500)
        _, again = await repaired(disk)
        assert [p.where for p in again.problems] == [f"stream {stream_id(900).hex()} frame 2"]
        named = []

        async def name(_, streams):
            named.extend(streams)
            return {stream_id(900): "s3://bucket/key"}

        again = await verify(disk, **parts(), name_streams=name)
        assert named == [stream_id(900)] and again.lost == {"s3://bucket/key": ["frames 2"]}
        store = await opened(disk)
        for n in (0, 1, 3):
            assert bytes(await store.read_frame(stream_id(900), n))
        with pytest.raises(FrameBad, match="frame 2"):
            await store.read_frame(stream_id(900), 2)
        index = store.log_state(1).last_index
        store.apply(1, index, []) if store.log_state(1).applied_index < index else None
        await store.append(1, None, [entry(index + 1)])
        store.apply(1, index + 1, [], [stream_id(900)])
        await store.close()
        assert (await verify(disk, **parts())).clean

    run(main(), 10)


def test_a_frame_that_was_stored_again_is_looked_for_where_it_is_now():
    """As a replica does with a frame that rotted, in the middle and at the end of its stream."""

    async def main():
        disk, store = await filled()
        await store.close()
        offline = await OfflineStore.open(disk, **parts())
        places_ = await offline.stream_places(stream_id(900))
        await offline.close()
        store = await opened(disk)
        for n in (1, 3):
            writer = store.open_stream(stream_id(900))
            await writer.write(frame(900, n, 20_000, last=n == 3))
            await writer.sync()
        assert store.frames_held_now(stream_id(900)) == 4  # none counts twice
        await store.close()
        for n in (1, 3):
            disk.rot(f"volumes/{places_[n].volume:010d}.bulk", places_[n].offset + 500)
        report = await verify(disk, **parts())
        assert [p.kind for p in report.problems] == ["record", "record"]
        assert report.lost == {}
        store = await opened(disk)
        for n in range(4):
            assert bytes(await store.read_frame(stream_id(900), n))
        bad = await placed_bad_frames(store._core, places_[1].volume)
        assert bad == []
        await store.close()

    run(main(), 11)


@pytest.mark.parametrize("alone", [False, True])
def test_a_repair_forgets_a_last_entry_only_where_nobody_else_votes(alone):
    """Its term decides votes, and whether what a leader sends follows: others are asked for it."""

    async def main():
        disk, store = await filled()
        await store.append(1, hard(2), [entry(32, term=2)])
        for index in (31, 32):
            store.apply(1, index, [])
        await store.close()
        path, offset, size = places(disk, records.ENTRY)[-1]
        disk.rot(path, offset + size - 1)

        async def decides_alone(store, group):
            return alone

        report = await verify(disk, **parts(), repair=True, decides_alone=decides_alone)
        assert await disk.list_dir("quarantine"), report.repaired
        assert any("the last one comes back" in line for line in report.repaired) != alone
        for _ in range(2):
            store = await opened(disk)
            state = store.log_state(1)
            assert (state.last_index, state.applied_index) == (32, 32)
            assert state.missing == ([] if alone else [(32, 32)])
            await store.close()
        if alone:
            return
        store = await opened(disk)
        await store.fill(1, [entry(32, term=2)])
        await store.flush()
        await store.close()
        store = await opened(disk)
        assert store.term(1, 32) == 2 and not store.log_state(1).missing
        await store.close()

    run(main(), 9)
