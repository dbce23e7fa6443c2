"""The volumes alone rebuild the index: after any history, with the index lost or damaged."""

from __future__ import annotations

import asyncio
import contextlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from o3storage.simulation import SimDisk, run
from o3storage.storage import Store, StoreError, _open, _rebuild
from o3storage.storage import _records as records
from o3storage.storage._span_repair import _Span

from .crash_model import Driver
from .dict_index import DictIndex
from .outcome_support import OPTIONS as ONE_VOLUME
from .outcome_support import begin, execute, rot, row, rows_of
from .support import (
    KEY,
    SimClock,
    SimEntropy,
    SimJobs,
    entry,
    frame,
    hard,
    open_store,
    small_options,
    store_on,
    stream_id,
)
from .test_faults import places

OPTIONS = {"log_volume_bytes": 40 * 1024, "bulk_volume_bytes": 64 * 1024}


@pytest.fixture(autouse=True)
def in_pieces(monkeypatch):
    """Volumes of these sizes are read in pieces too, the last one shorter."""
    monkeypatch.setattr(_open, "SCAN_BYTES", 9_000)


async def lose_index(disk):
    for directory in ("index", "index.rebuild"):
        try:
            names = await disk.list_dir(directory)
        except FileNotFoundError:
            continue
        for name in names:
            await disk.unlink(f"{directory}/{name}")


operations = st.lists(
    st.one_of(
        st.tuples(st.just("append"), st.integers(1, 3), st.integers(0, 3), st.integers(1, 3000)),
        st.tuples(st.just("apply"), st.integers(1, 4)),
        st.tuples(st.just("upload"), st.integers(1, 3), st.sampled_from([50, 5000])),
        st.tuples(st.just("flush")),
        st.tuples(st.just("compact")),
        st.tuples(st.just("kill")),
        st.tuples(st.just("close")),
    ),
    min_size=1,
    max_size=25,
)


async def play(script, seed, check_all=False):
    driver = Driver(SimDisk(seed), **OPTIONS)
    await driver.start()
    for name, *args in [*script, ("close",)]:
        if name == "append":
            driver.append(*args, vote=1)
            await driver.settle()
        elif name == "apply":
            driver.apply(args[0])
        elif name == "upload":
            await driver.upload(*args)
        elif name == "flush":
            await driver.flush()
        elif name == "compact":
            await driver.flush()
            await driver.store.compact()
        else:
            if name == "close":
                await driver.store.close()
                disk = driver.disk
            else:
                disk = driver.disk.kill()
            await lose_index(disk)
            await driver.reopen(disk)
    await driver.store.close()
    assert driver.store.stats() is not None


@settings(max_examples=60, deadline=None)
@given(script=operations, seed=st.integers(0, 1000))
def test_rebuild_finds_everything(script, seed):
    run(play(script, seed), seed)


def test_a_half_done_rebuild_starts_over():
    async def main():
        disk = SimDisk(1)
        driver = Driver(disk, **OPTIONS)
        await driver.start()
        for _ in range(8):
            driver.append(2, 2, 2000, vote=1)
            await driver.settle()
            driver.apply(2)
        await driver.store.close()
        await lose_index(disk)
        # the power goes at many instants of the rebuild
        for count in range(1, 60, 7):
            copy = disk.crash(choose=lambda *_: True)
            disk = copy
            left = [count]

            class Stop(Exception):
                pass

            original = disk._run

            async def limited(operation, path, size, effect, *, fault=None, original=original):
                left[0] -= 1
                if left[0] < 0:
                    raise Stop
                return await original(operation, path, size, effect, fault=fault)

            disk._run = limited
            with contextlib.suppress(Stop):
                await Driver(disk, **OPTIONS).start()
            disk._run = original
            disk = disk.crash()
        await driver.reopen(disk)

    run(main(), 5)


def test_with_the_real_index():
    async def open_real(disk):
        return await Store.open(
            disk,
            disk_key=KEY,
            jobs=SimJobs(1),
            clock=SimClock(),
            entropy=SimEntropy(f"{disk.image.sequence}"),
            options=small_options(**OPTIONS),
        )

    async def main():
        disk = SimDisk(1)
        driver = Driver(disk, **OPTIONS)

        async def start():
            driver.store = await open_real(driver.disk)

        driver.start = start
        await driver.start()
        for round_ in range(12):
            driver.append(2, 2, 2000, vote=round_)
            await driver.settle()
            driver.apply(2)
            if round_ == 5:
                await driver.upload(3, 9000)
                await driver.flush()
        for after in ("close", "lose", "damage", "kill"):
            if after == "kill":
                driver.disk = driver.disk.kill()
            else:
                await driver.store.close()
            if after == "lose":
                await lose_index(driver.disk)
            elif after == "damage":
                for name in await driver.disk.list_dir("index"):
                    if "MANIFEST" in name.upper():
                        driver.disk.rot(f"index/{name}", 100, 0xFF)
            await driver.reopen(driver.disk)
            driver.append(1, 1, 100, vote=1)
            await driver.settle()
            driver.apply(1)
        await driver.store.close()

    run(main(), 3)


def test_memory_of_a_rebuild_does_not_grow_with_the_log(monkeypatch):
    kept = []
    mark_of = _rebuild._mark_of

    def looking(core, last):
        kept.append(sum(len(group.places) for group in core.groups.values()))
        return mark_of(core, last)

    monkeypatch.setattr(_rebuild, "_mark_of", looking)

    async def main():
        driver = Driver(SimDisk(1), **OPTIONS)
        await driver.start()
        for round_ in range(80):
            driver.append(2, 2, 2000, vote=1)
            await driver.settle()
            driver.apply(2)
            if round_ == 20:
                await driver.flush()
                while await driver.store.compact():
                    pass
        await driver.store.close()
        await lose_index(driver.disk)
        await driver.reopen(driver.disk)
        assert driver.store.stats().index_rebuilt

    run(main(), 6)
    assert kept == [0]  # every entry is applied


def test_an_outcome_that_rotted_is_not_passed_over():
    """What lies behind it is executed again; nothing is lost in silence."""

    async def main():
        disk = SimDisk(5)
        store = await begin(disk, 6)
        await execute(store, map(row, range(1, 6)))
        disk = disk.crash()
        await store.close()
        rot(disk, places(disk, records.OUTCOME)[2])
        await lose_index(disk)
        async with store_on(disk, **ONE_VOLUME) as store:
            assert store.log_state(1).applied_index == 2
            assert store.log_state(1).last_index == 6
            assert await rows_of(store) == dict(map(row, (1, 2)))

    run(main(), 5)


@pytest.mark.parametrize("index_lost", [False, True])
def test_an_outcome_in_the_place_of_another_does_not_count(index_lost):
    """A sector that went to the wrong place: the record in it is whole, its seal knows better."""

    async def main():
        disk = SimDisk(5)
        store = await begin(disk, 6)
        await execute(store, map(row, range(1, 6)))
        disk = disk.crash()
        await store.close()
        found = places(disk, records.OUTCOME)
        (path, one, size), (_, other, _) = found[0], found[2]
        assert one % 512 == other % 512
        node = disk.image.lookup(path)
        for data in (node.cached, node.durable):
            data[other : other + size] = data[one : one + size]
        if index_lost:
            await lose_index(disk)
        async with store_on(disk, **ONE_VOLUME) as store:
            assert store.log_state(1).applied_index == 2
            assert await rows_of(store) == dict(map(row, (1, 2)))

    run(main(), 5)


def test_what_rotted_behind_an_outcome_of_its_batch_is_not_taken_for_moved():
    """The last outcome of its group in its volume; the next volume was freed, and the one behind it
    says how far the group had applied."""

    async def main():
        disk = SimDisk(5)
        store = await begin(disk, 4)
        for index in (1, 2, 3):
            store.apply(1, index, [row(index)])
        await store.append(2, hard(1), [entry(1)])  # all three outcomes ride with it
        await store.close()
        for life in (2, 3):  # each begins a volume
            async with store_on(disk, **ONE_VOLUME) as store:
                await store.append(2, hard(1), [entry(life)])
        logs = sorted(name for name in await disk.list_dir("volumes") if name.endswith(".log"))
        await disk.unlink(f"volumes/{logs[1]}")
        await disk.sync_dir("volumes")
        place = places(disk, records.OUTCOME)[2]
        assert place[0].endswith(logs[0])
        rot(disk, place)
        await lose_index(disk)
        async with store_on(disk, **ONE_VOLUME) as store:
            assert store.log_state(1).rows_lost

    run(main(), 5)


@pytest.mark.parametrize("later", [False, True])
def test_a_batch_that_is_gone_is_not_taken_for_moved_by_compaction(later):
    """With it went an outcome, the last one of its group in its volume; the next volume says how
    far the group had applied. (`later`: when that volume began, the outcome had been noticed to be
    lost, and its entry was executed again.)"""

    async def main():
        disk = SimDisk(5)
        store = await begin(disk, 4)
        for index in (1, 2, 3):
            store.apply(1, index, [row(index)])
            await store.append(2, hard(1), [entry(index)])  # the outcome rides with it
        await store.append(2, hard(1), [entry(4)])
        if not later:
            await store.close()
            store = await open_store(disk, **ONE_VOLUME)  # a new volume
        disk = disk.crash()
        await store.close()
        path, gone, _ = places(disk, records.OUTCOME)[2]
        node = disk.image.lookup(path)
        for data in (node.cached, node.durable):
            data[gone - gone % 4096 : gone - gone % 4096 + 4096] = bytes(4096)
        if later:
            for _ in range(2):  # the second life's volume says that it was executed again
                async with store_on(disk, **ONE_VOLUME) as store:
                    for index in range(store.log_state(1).applied_index + 1, 4):
                        store.apply(1, index, [row(index)])
                    await store.append(3, hard(1), [entry(store.log_state(3).last_index + 1)])
        await lose_index(disk)
        async with store_on(disk, **ONE_VOLUME) as store:
            wanted = 3 if later else 2
            assert store.log_state(1).applied_index == wanted
            assert store.log_state(1).last_index == 4
            assert await rows_of(store) == dict(map(row, range(1, wanted + 1)))

    run(main(), 5)


def test_a_row_that_is_deleted_while_compaction_moves_it_does_not_come_back():
    """The volume that takes the old row is made after the deletion, which is compacted later, when
    no other volume is older than it."""

    async def main():
        disk = SimDisk(1)
        store = await open_store(disk)
        compactor, log = store._compactor, store._log
        needed_rows = compactor._needed_rows
        index = 0

        async def change(rows, data=b""):
            nonlocal index
            index += 1
            await store.append(1, hard(1), [entry(index, data=data)])
            store.apply(1, index, rows)

        async def fill_volume():
            volume = log.volume
            while log.volume is volume:
                await change([], b"e" * 8000)
            await store.flush()

        async def deleted_meanwhile(volume, found):
            rows = await needed_rows(volume, found)
            if any(key == b"\x10k" for _, key, _ in rows):
                await change([(b"\x10k", None)])
                await change([])  # the outcome rides with it
            return rows

        first = log.volume
        await change([(b"\x10k", b"v"), (b"\x10l", b"w")])
        await fill_volume()
        compactor._needed_rows = deleted_meanwhile
        await compactor.compact(first)
        compactor._needed_rows = needed_rows
        assert store.get_now(b"\x10k") is None
        for _ in range(3):
            await fill_volume()
        logs = [v for v in store._core.volumes.values() if v.path.endswith(".log")]
        for volume in reversed(logs):
            await compactor.compact(volume)
        disk = disk.crash()
        await store.close()
        await lose_index(disk)
        async with store_on(disk) as store:
            assert store.stats().index_rebuilt
            assert store.get_now(b"\x10l") == b"w"
            assert store.get_now(b"\x10k") is None

    run(main(), 1)


@pytest.mark.parametrize("opens", [0, 1, 2])
def test_what_is_known_to_be_missing_behind_all_that_is_applied_stays_known(opens):
    """Only the batch that held it names it, in a volume of an earlier start."""

    async def main():
        disk = SimDisk(1)
        store = await open_store(disk)
        for index in range(1, 5):
            await store.append(1, hard(1, 1), [entry(index)])
        for index in range(1, 4):
            store.apply(1, index, [(b"\x10k%d" % index, b"v")])
        await store.append(2, hard(1), [])  # the outcomes ride with it
        disk = disk.crash()
        await store.close()
        rot(disk, places(disk, records.ENTRY)[3])
        for _ in range(opens):
            store = await open_store(disk)
            assert store.log_state(1).missing == [(4, 4)]
            await store.append(2, hard(1), [])
            disk = disk.crash()
            await store.close()
        await DictIndex(disk, "index").flush(_rebuild.REBUILDING)
        for rebuilt in (True, False):
            store = await open_store(disk)
            assert store.stats().index_rebuilt == rebuilt
            assert store.log_state(1).missing == [(4, 4)]
            disk = disk.crash()
            await store.close()

    run(main(), 1)


async def _always(*_):
    return True


def test_of_a_key_that_comes_twice_in_an_outcome_the_last_counts(monkeypatch):
    monkeypatch.setattr(_rebuild, "_is_partial", _always)
    rows = [(b"\x10a", b"first"), (b"\x10a", b"last"), (b"\x10b", b"there"), (b"\x10b", None)]

    async def main():
        disk = SimDisk(1)
        async with store_on(disk) as store:
            await store.append(1, hard(1), [entry(1)])
            store.apply(1, 1, rows)
            assert await store.scan(b"\x10", b"\xff", 10) == [(b"\x10a", b"last")]
        await lose_index(disk)
        async with store_on(disk) as store:
            assert store.stats().index_rebuilt
            assert await store.scan(b"\x10", b"\xff", 10) == [(b"\x10a", b"last")]

    run(main(), 1)
    span = _Span(b"\x10", b"\x11")
    span.take([(7, key, value) for key, value in rows])
    assert span.rows == {b"\x10a": (7, b"last"), b"\x10b": (7, None)}


def test_frames_that_were_stored_again_beside_each_other_are_found_after_a_rebuild(monkeypatch):
    """What is left of the run they cut begins, for the first of them, where the second stands."""
    monkeypatch.setattr(_rebuild, "_is_partial", _always)
    size = 66_000

    async def main():
        disk = SimDisk(1)
        async with store_on(disk, bulk_volume_bytes=1 << 20) as store:
            first = store.open_stream(stream_id(1))
            for number in range(5):
                await first.write(frame(1, number, size, last=number == 4))
            await first.sync()
            again, other = (store.open_stream(stream_id(stream)) for stream in (1, 2))
            await again.write(frame(1, 1, size, last=False))
            await other.write(frame(2, 0, 9000))
            await again.write(frame(1, 2, size, last=False))
            await again.sync()
            places = [await store._frames.find(stream_id(1), number) for number in range(5)]
            assert [at for _, at in places] == [0, 1, 2, 3, 3]
        await lose_index(disk)
        async with store_on(disk, bulk_volume_bytes=1 << 20) as store:
            assert store.stats().index_rebuilt
            for number in range(5):
                assert await store._frames.find(stream_id(1), number) == places[number]

    run(main(), 1)


@pytest.mark.parametrize("synced", [False, True])
def test_only_what_was_synced_of_moved_rows_can_be_lost(monkeypatch, synced):
    """Found by the simulator, seeds 1049, 1085 and 1094 of three nodes: the power went while
    compaction wrote, and the rebuild took the torn tail of its volume for rows that were lost."""

    async def main():
        disk = SimDisk(1)
        store = await open_store(disk)
        log = store._log
        value = bytes(range(1, 256)) * 16
        first = log.volume
        await store.append(1, hard(1), [entry(1)])
        store.apply(1, 1, [(b"\x10k", value)])
        index = 1
        while log.volume is first or not store.stats().flushes:
            index += 1
            await store.append(1, None, [entry(index, data=b"e" * 8000)])
            store.apply(1, index, [])
            await store.flush()
        reached = asyncio.Event()

        async def never():
            reached.set()
            await asyncio.Event().wait()

        if not synced:
            store._bulk.sync = never
        moving = asyncio.ensure_future(store._compactor.compact(first))
        await (moving if synced else reached.wait())
        await asyncio.sleep(0.1)
        disk = disk.crash(choose=lambda _, sector: sector % 2 == 0)
        moving.cancel()
        await asyncio.gather(moving, return_exceptions=True)
        with contextlib.suppress(StoreError):
            await store.close()
        if synced:
            for path, offset, size in places(disk, records.STATE, ".bulk"):
                disk.rot(path, offset + size // 2)
        await lose_index(disk)
        monkeypatch.setattr(_rebuild, "_is_partial", _always)
        async with store_on(disk) as store:
            assert store.stats().index_rebuilt
            assert store.log_state(1).rows_lost == synced
            assert bool(store.stats().rotted_records) == synced
            assert store.stats().rebuilt_in_part == synced
            assert synced or await store.get(b"\x10k") == value

    run(main(), 1)
