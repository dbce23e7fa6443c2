"""Rows that a snapshot left as they were, and whose own record rot took: the member says so, over
restarts and rebuilds, until a snapshot of everything came."""

from __future__ import annotations

import asyncio

import pytest

from o3storage.simulation import SimDisk
from o3storage.storage import HardState, _rebuild, _store, encode_piece, verify
from o3storage.storage import _records as records
from o3storage.storage._install import decided_group
from o3storage.storage._rows import MAX_HOLES, Hole, decode_holes, encode_holes

from .outcome_support import OPTIONS, SPAN, begin, execute, rot, row, rows_of
from .support import KEY, SimClock, SimEntropy, SimJobs, hard, open_store, run, store_on
from .test_faults import batch_end, batch_starts, places
from .test_rebuild import _always, lose_index

ROWS = dict(map(row, range(1, 6)))
NEW = {**ROWS, b"\x20new": b"of the snapshot"}


async def receive(store, rows, index):
    await store.stage_piece(1, 0, encode_piece(sorted(rows.items())))
    own = (b"\xfe\x01", b"members")
    await store.install(1, index, 2, 1, [SPAN], HardState(2, 1, index), False, [own])


async def history(disk, *, installs=True):
    """Five outcomes, each in a batch of its own; then a snapshot that brings one row more."""
    store = await begin(disk, 6)
    await execute(store, ROWS.items())
    if installs:
        await receive(store, NEW, 9)
        assert await rows_of(store) == NEW
    disk = disk.crash()
    await store.close()
    return disk


@pytest.mark.parametrize("index_lost", [False, True])
@pytest.mark.parametrize("number", range(5))
def test_a_snapshot_behind_a_lost_outcome_is_not_whole(index_lost, number):
    async def main():
        disk = await history(SimDisk(7))
        rot(disk, places(disk, records.OUTCOME)[number])
        if index_lost:
            await lose_index(disk)
        async with store_on(disk, **OPTIONS) as store:
            state = store.log_state(1)
            assert await rows_of(store) != NEW
            assert state.rows_lost
            assert (state.applied_index, state.last_index) == (9, 9)
        # A clean stop, a rebuild, and a crash in it change nothing.
        async with store_on(disk, **OPTIONS) as store:
            assert store.log_state(1).rows_lost
        await lose_index(disk)
        async with store_on(disk, **OPTIONS) as store:
            assert store.log_state(1).rows_lost
            # One as old as what was applied here is enough; it is written whole.
            await receive(store, NEW, 9)
            assert not store.log_state(1).rows_lost
            assert await rows_of(store) == NEW
        for _ in range(2):
            async with store_on(disk, **OPTIONS) as store:
                assert not store.log_state(1).rows_lost
                assert await rows_of(store) == NEW
            await lose_index(disk)

    run(main(), 7)


@pytest.mark.parametrize("index_lost", [False, True])
def test_a_lost_piece_of_what_a_snapshot_wrote_is_not_passed_over(index_lost):
    async def main():
        disk = await history(SimDisk(8))
        count = len(places(disk, records.LOCAL))
        told = 0
        for number in range(count):
            copy = disk.crash(choose=lambda *_: True)
            rot(copy, places(copy, records.LOCAL)[number])
            if index_lost:
                await lose_index(copy)
            async with store_on(copy, **OPTIONS) as store:
                lost = store.log_state(1).rows_lost
                assert lost or await rows_of(store) == NEW
                told += lost
        assert told

    run(main(), 8)


@pytest.mark.parametrize("index_lost", [False, True])
def test_without_a_snapshot_the_entries_are_executed_again(index_lost):
    async def main():
        disk = await history(SimDisk(9), installs=False)
        rot(disk, places(disk, records.OUTCOME)[2])
        if index_lost:
            await lose_index(disk)
        async with store_on(disk, **OPTIONS) as store:
            state = store.log_state(1)
            assert not state.rows_lost
            assert state.applied_index == 2

    run(main(), 9)


def test_what_rots_behind_an_install_or_is_in_the_tables_concerns_it_not():
    async def main():
        disk = SimDisk(10)
        async with store_on(await history(disk), **OPTIONS) as store:
            disk = store._core.disk
            await store.flush()
        rot(disk, places(disk, records.OUTCOME)[2])
        async with store_on(disk, **OPTIONS) as store:
            assert not store.log_state(1).rows_lost
            assert await rows_of(store) == NEW

    run(main(), 10)


def test_the_end_of_an_install_is_known_by_its_key():
    assert decided_group(b"\x05" + (7).to_bytes(4, "big") + b"\xff" * 4) == 7
    assert decided_group(b"\x05" + (7).to_bytes(4, "big") + b"\0" * 4) is None
    assert decided_group(b"\x09" + (7).to_bytes(4, "big")) is None


def test_verify_says_it_and_does_not_call_it_damage():
    async def main():
        disk = await history(SimDisk(11))
        rot(disk, places(disk, records.OUTCOME)[1])
        async with store_on(disk, **OPTIONS) as store:
            assert store.log_state(1).rows_lost
        report = await verify(
            disk, disk_key=KEY, jobs=SimJobs(), clock=SimClock(), entropy=SimEntropy(1)
        )
        assert [note for note in report.notes if note.startswith("group 1: rows are lost")]
        assert not [problem for problem in report.problems if "rows" in problem.detail]

    run(main(), 11)


def treat(index, monkeypatch):
    if index == "rebuilt":
        monkeypatch.setattr(_rebuild, "_is_partial", _always)


async def deletes(disk):
    """Entry 3 deletes what entry 1 wrote; then a snapshot, behind the loss of the outcome of 2."""
    store = await begin(disk, 6)
    changes = [(b"\x20a", b"1"), (b"\x20b", b"2"), (b"\x20a", None), (b"\x20c", b"4")]
    await execute(store, changes)
    await receive(store, NEW, 9)
    disk = disk.crash()
    await store.close()
    deletion = places(disk, records.OUTCOME)[2]
    rot(disk, places(disk, records.OUTCOME)[1])
    return disk, deletion


@pytest.mark.parametrize("old", [False, True])
@pytest.mark.parametrize("index", ["kept", "lost", "rebuilt"])
def test_a_deletion_that_is_lost_behind_a_whole_snapshot_is_not_undone_in_silence(
    index, old, monkeypatch
):
    """What the snapshot deleted is what stood: not the row whose deletion could be read then."""

    async def main():
        disk, deletion = await deletes(SimDisk(12))
        treat(index, monkeypatch)
        if old:  # a program that did not say which holes it knew
            monkeypatch.setattr(_store, "encode_holes", lambda _: b"")
        store = await open_store(disk, **OPTIONS)
        assert store.log_state(1).rows_lost
        await receive(store, NEW, 9)
        assert await rows_of(store) == NEW
        disk = disk.crash(choose=lambda *_: True)
        await store.close()
        if index != "kept":
            await lose_index(disk)
        copy = SimDisk(12, image=disk.image.crash(lambda *_: True))
        async with store_on(copy, **OPTIONS) as store:
            assert not store.log_state(1).rows_lost, "the hole was known"
            assert await rows_of(store) == NEW
        if old:
            return
        rot(disk, deletion)
        async with store_on(disk, **OPTIONS) as store:
            assert store.log_state(1).rows_lost
            await receive(store, NEW, 9)
            disk = store._core.disk
        for _ in range(2):
            async with store_on(disk, **OPTIONS) as store:
                assert not store.log_state(1).rows_lost
                assert await rows_of(store) == NEW
            await lose_index(disk)

    run(main(), 12)


@pytest.mark.parametrize("index", ["lost", "rebuilt"])
def test_a_snapshot_of_differences_behind_a_whole_one_is_as_whole(index, monkeypatch):
    async def main():
        disk, _ = await deletes(SimDisk(13))
        treat(index, monkeypatch)
        store = await open_store(disk, **OPTIONS)
        await receive(store, NEW, 9)
        newer = {**NEW, b"\x20newer": b"of the next"}
        await receive(store, newer, 12)
        await store.close()
        await lose_index(disk)
        async with store_on(disk, **OPTIONS) as store:
            assert not store.log_state(1).rows_lost
            assert await rows_of(store) == newer

    run(main(), 13)


@pytest.mark.parametrize("index", ["lost", "rebuilt"])
def test_the_holes_that_an_earlier_start_found_are_known_to_a_later_one(index, monkeypatch):
    """The second start finds none: the tables hold what lies before them."""

    async def main():
        disk, _ = await deletes(SimDisk(14))
        treat(index, monkeypatch)
        async with store_on(disk, **OPTIONS) as store:
            assert store.log_state(1).rows_lost
        async with store_on(disk, **OPTIONS) as store:
            assert store.log_state(1).rows_lost and not store._core.holes
            await receive(store, NEW, 9)
        await lose_index(disk)
        async with store_on(disk, **OPTIONS) as store:
            assert not store.log_state(1).rows_lost
            assert await rows_of(store) == NEW

    run(main(), 14)


@pytest.mark.parametrize("index", ["lost", "rebuilt"])
@pytest.mark.parametrize("beside", [False, True])
def test_a_deletion_that_the_tables_know_is_not_made_up_for(beside, index, monkeypatch):
    """Its record is lost, its effect is not: so the snapshot does not delete the row either, and an
    index that is rebuilt must not show it. (`beside`: its batch holds what is above the mark.)"""

    async def main():
        disk = SimDisk(15)
        store = await begin(disk, 6, reload_log_bytes=1 << 20)
        store.apply(1, 1, [(b"\x20a", b"1")])
        await store.append(1, hard(1, 0, 1), [])
        store.apply(1, 2, [(b"\x20a", None)])
        flush = asyncio.ensure_future(store.flush())
        await asyncio.sleep(0)
        if beside:
            store.note(b"beside", b"it")
        await flush
        for number in (3, 4):
            store.apply(1, number, [(b"\x20row", b"%d" % number)])
            await store.append(1, hard(1, 0, number), [])
        await receive(store, NEW, 9)
        disk = disk.crash(choose=lambda *_: True)
        await store.close()
        found = places(disk, records.OUTCOME)
        for place in (found[1], found[2]):
            rot(disk, place)
        store = await open_store(disk, reload_log_bytes=1 << 20, **OPTIONS)
        assert store.log_state(1).rows_lost
        await receive(store, NEW, 9)
        disk = disk.crash(choose=lambda *_: True)
        await store.close()
        treat(index, monkeypatch)
        await lose_index(disk)
        async with store_on(disk, **OPTIONS) as store:
            assert store.log_state(1).rows_lost

    run(main(), 15)


def test_a_batch_below_the_mark_that_is_gone_is_none_of_a_replay_s_holes():
    async def main():
        disk = SimDisk(16)
        options = {**OPTIONS, "reload_log_bytes": 1 << 20}
        store = await begin(disk, 6, **options)
        await execute(store, [(b"\x20row", b"%d" % number) for number in (1, 2, 3)])
        await store.flush()
        await store.append(1, hard(1, 0, 3), [])
        await receive(store, NEW, 9)
        disk = disk.crash(choose=lambda *_: True)
        await store.close()
        path, offset, _ = places(disk, records.OUTCOME)[1]
        at = max(start for where, start in batch_starts(disk) if where == path and start < offset)
        end = batch_end(disk, path, at)
        disk.rot(path, at + 50)
        disk.rot(path, end - 50)
        async with store_on(disk, **options) as store:
            assert not store._core.holes
            assert store.log_state(1).uncertain and not store.log_state(1).rows_lost
            assert await rows_of(store) == NEW

    run(main(), 16)


def test_the_holes_that_are_known_stand_in_a_row_of_limited_size():
    holes = {Hole(7, 0, 2), Hole(9, 3, 0)}
    assert decode_holes(encode_holes(holes)) == holes
    assert decode_holes(encode_holes([])) == set()
    assert decode_holes(b"") is None
    many = [Hole(number, 1, 0) for number in range(MAX_HOLES + 5)]
    assert decode_holes(encode_holes(many)) == set(many[:MAX_HOLES])
