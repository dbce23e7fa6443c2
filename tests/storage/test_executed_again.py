"""An outcome is lost, and its entries are executed again: only where what they find is what was
there then. Otherwise the group says that rows are lost, and a member takes a snapshot."""

from __future__ import annotations

import pytest

from o3storage.simulation import SimDisk
from o3storage.storage import _core, _rebuild
from o3storage.storage import _records as records

from .outcome_support import OPTIONS, rot
from .support import entry, hard, open_store, run, store_on
from .test_faults import batch_end, batch_starts, places
from .test_install_and_rot import span
from .test_rebuild import _always, lose_index
from .test_rows_lost import receive


async def grow(store, group, first, last, *, bulky=0):
    """Entries, each of which writes a row of its own; each outcome rides in the next batch."""
    for index in range(first, last + 1):
        await store.append(group, hard(1, 0, index - 1), [entry(index, data=bytes(bulky or 9))])
        store.apply(group, index, [(span(group)[0] + b"%03d" % index, b"of entry %d" % index)])
    await store.append(group, hard(1, 0, last), [])


async def treat(index, disk, monkeypatch):
    """`lost`: the log holds all there ever was, and is replayed; `rebuilt`: by its records alone."""
    if index != "kept":
        await lose_index(disk)
    if index == "rebuilt":
        monkeypatch.setattr(_rebuild, "_is_partial", _always)


async def states(disk):
    async with store_on(disk, **OPTIONS) as store:
        return {group: store.log_state(group) for group in store.groups()}


@pytest.mark.parametrize("index", ["kept", "lost", "rebuilt"])
@pytest.mark.parametrize("number", range(6))
def test_a_range_that_was_cut_behind_a_lost_outcome_is_not_executed_again(
    number, index, monkeypatch
):
    """Group 2 begins behind entry 3 of group 1: what is executed again before that would write
    rows of group 2's keys over what it has written since."""

    async def main():
        disk = SimDisk(number)
        store = await open_store(disk, **OPTIONS)
        await grow(store, 1, 1, 3)
        store.create_group(2, 1, 1)
        await grow(store, 2, 2, 4)
        await grow(store, 1, 4, 6)
        disk = disk.crash(choose=lambda *_: True)
        await store.close()
        outcomes = places(disk, records.OUTCOME)
        of_1 = [*outcomes[:3], *outcomes[6:]]
        rot(disk, of_1[number])
        for _ in range(2):  # and it stays known
            await treat(index, disk, monkeypatch)
            found = await states(disk)
            assert found[1].applied_index == number
            # (That of the first entry behind the cut may as well have been the cut itself.)
            lost = number <= 3
            assert {group: state.rows_lost for group, state in found.items()} == {1: lost, 2: lost}

    run(main(), number)


@pytest.mark.parametrize("index", ["kept", "lost", "rebuilt"])
def test_the_cut_of_another_life_than_the_loss_is_known_too(index, monkeypatch):
    """That the outcome is missing is seen by what the next volume says alone."""

    async def main():
        disk = SimDisk(1)
        store = await open_store(disk, **OPTIONS)
        await grow(store, 1, 1, 3)
        store.create_group(2, 1, 1)
        await grow(store, 2, 2, 4)
        disk = disk.kill()
        await store.close()
        store = await open_store(disk, **OPTIONS)
        await store.append(2, hard(1, 0, 4), [])
        disk = disk.kill()
        await store.close()
        rot(disk, places(disk, records.OUTCOME)[2])
        await treat(index, disk, monkeypatch)
        found = await states(disk)
        assert found[1].applied_index == 2
        assert found[1].rows_lost and found[2].rows_lost

    run(main(), 1)


@pytest.mark.parametrize("index", ["kept", "lost", "rebuilt"])
def test_a_cut_is_known_to_lie_behind_the_loss_when_nothing_of_its_group_follows(
    index, monkeypatch
):
    async def main():
        disk = SimDisk(6)
        store = await open_store(disk, **OPTIONS)
        await grow(store, 1, 1, 3)
        store.create_group(2, 1, 1)
        await grow(store, 2, 2, 4)
        disk = disk.crash(choose=lambda *_: True)
        await store.close()
        rot(disk, places(disk, records.OUTCOME)[1])
        await treat(index, disk, monkeypatch)
        found = await states(disk)
        assert found[1].applied_index == 1
        assert found[1].rows_lost and found[2].rows_lost

    run(main(), 6)


@pytest.mark.parametrize("index", ["kept", "lost", "rebuilt"])
def test_what_was_executed_again_before_the_cut_concerns_it_not(index, monkeypatch):
    async def main():
        disk = SimDisk(2)
        store = await open_store(disk, **OPTIONS)
        await grow(store, 1, 1, 3)
        disk = disk.crash(choose=lambda *_: True)
        await store.close()
        rot(disk, places(disk, records.OUTCOME)[1])
        store = await open_store(disk, **OPTIONS)
        assert store.log_state(1).applied_index == 1
        for again in (2, 3):
            store.apply(1, again, [(b"\x21%03d" % again, b"of entry %d" % again)])
        await grow(store, 1, 4, 4)
        store.create_group(2, 1, 1)
        await grow(store, 2, 2, 3)
        disk = disk.crash(choose=lambda *_: True)
        await store.close()
        await treat(index, disk, monkeypatch)
        found = await states(disk)
        assert (found[1].applied_index, found[2].applied_index) == (4, 3)
        assert not found[1].rows_lost and not found[2].rows_lost

    run(main(), 2)


async def compacted(disk, *, kept=True):
    """One row that each entry writes, and (`kept`) two that are never written again: compaction
    moves these out of the older volumes."""
    store = await open_store(disk, **OPTIONS)
    for index in range(1, 31):
        await store.append(1, hard(1, 0, index - 1), [entry(index, data=bytes(9000))])
        rows = [(b"\x21always", b"of entry %d" % index)]
        if kept and index in (1, 20):
            rows.append((b"\x21%03d" % index, b"once"))
        store.apply(1, index, rows)
    await store.append(1, hard(1, 0, 30), [])
    await store.flush()
    for _ in range(9):
        await store.compact()
    await grow(store, 1, 31, 34)
    disk = disk.crash(choose=lambda *_: True)
    await store.close()
    return disk


def test_what_is_executed_again_onto_rows_that_compaction_kept_is_not_believed():
    async def main():
        disk = await compacted(SimDisk(3))
        assert places(disk, records.STATE, ".bulk")
        await lose_index(disk)
        whole = await states(disk)
        assert whole[1].applied_index == 34 and not whole[1].rows_lost
        disk = await compacted(SimDisk(3))
        rot(disk, places(disk, records.OUTCOME)[-2])
        found = await states(disk)
        assert found[1].applied_index == 32 and not found[1].rows_lost, "the tables hold the rest"
        disk = await compacted(SimDisk(3))
        rot(disk, places(disk, records.OUTCOME)[-2])
        await lose_index(disk)
        async with store_on(disk, **OPTIONS) as store:
            state = store.log_state(1)
            assert state.applied_index == 32 and state.rows_lost
            rows = {b"\x20a": b"of the snapshot"}
            await receive(store, rows, 34)
            assert not store.log_state(1).rows_lost
        await lose_index(disk)
        found = await states(disk)
        assert found[1].applied_index == 34 and not found[1].rows_lost, "it was written whole"

    run(main(), 3)


@pytest.mark.parametrize("why", ["freed", "moved"])
def test_freed_volumes_alone_and_moved_rows_alone_are_enough(why, monkeypatch):
    """What replaced their rows lies behind the loss; or what was moved does, and the power went
    before a volume was freed."""

    async def keep(*_, **__):
        pass

    async def main():
        if why == "moved":
            monkeypatch.setattr(_core.Core, "drop_volume", keep)
        disk = await compacted(SimDisk(7), kept=why == "moved")
        assert bool(places(disk, records.STATE, ".bulk")) is (why == "moved")
        assert ("volumes/0000000001.log" in disk.image.names) is (why == "moved")
        rot(disk, places(disk, records.OUTCOME)[-2])
        await treat("rebuilt", disk, monkeypatch)
        found = await states(disk)
        assert found[1].applied_index == 32 and found[1].rows_lost

    run(main(), 7)


def test_a_log_whose_first_batch_is_lost_had_no_volume_before_it(monkeypatch):
    async def main():
        disk = SimDisk(8)
        store = await open_store(disk, **OPTIONS)
        await grow(store, 1, 1, 4)
        await store.close()
        rot(disk, places(disk, records.OUTCOME)[2])
        path, at = batch_starts(disk)[0]
        end = batch_end(disk, path, at)
        disk.rot(path, at + 50)
        disk.rot(path, end - 50)
        await treat("rebuilt", disk, monkeypatch)
        found = await states(disk)
        assert found[1].applied_index == 2 and not found[1].rows_lost

    run(main(), 8)


@pytest.mark.parametrize("installs", [False, True])
@pytest.mark.parametrize("spare", [False, True])
def test_the_last_batch_of_a_volume_is_missed_though_a_number_follows_that_no_volume_has(
    spare, installs, monkeypatch
):
    """The number of a spare volume that was never used is not that of one that was freed."""
    size = 64 * 1024 if spare else 1 << 20
    options = {"log_volume_bytes": size, "first_log_volume_bytes": size}

    async def main():
        disk = SimDisk(4)
        store = await open_store(disk, **options)
        await grow(store, 1, 1, 6)
        await store.close()
        path, at = batch_starts(disk)[-1]
        end = batch_end(disk, path, at)
        async with store_on(disk, **options) as store:
            await store.append(1, hard(1, 0, 6), [])
            if installs:
                await receive(store, {b"\x20a": b"of the snapshot"}, 9)
        first, second = sorted({path for path, _ in batch_starts(disk)})
        assert (first[-5:], second[-5:]) == ("1.log", "3.log" if spare else "2.log")
        assert path == first
        disk.rot(path, at + 50)
        disk.rot(path, end - 50)
        await treat("rebuilt", disk, monkeypatch)
        async with store_on(disk, **options) as store:
            state = store.log_state(1)
            if installs:
                assert state.rows_lost, "what differed from the rows that stood was written"
                return
            assert len(await store.scan(*span(1), 100)) == state.applied_index == 5
            assert state.last_index == 6 and not state.missing
            assert state.rows_lost is spare, "a volume may have been freed as well"

    run(main(), 4)


@pytest.mark.parametrize("index", ["kept", "lost", "rebuilt"])
def test_a_range_cut_off_one_that_lost_rows_lost_some_as_well(index, monkeypatch):
    """Group 1's rows are lost behind a snapshot that wrote only what differed."""

    async def main():
        disk = SimDisk(9)
        store = await open_store(disk, **OPTIONS)
        await grow(store, 1, 1, 4)
        await receive(store, {b"\x20a": b"of the snapshot"}, 9)
        store.create_group(2, 1, 1)
        await grow(store, 2, 2, 4)
        disk = disk.crash(choose=lambda *_: True)
        await store.close()
        rot(disk, places(disk, records.OUTCOME)[1])
        await treat(index, disk, monkeypatch)
        found = await states(disk)
        assert (found[1].applied_index, found[2].applied_index) == (9, 4)
        assert found[1].rows_lost and found[2].rows_lost

    run(main(), 9)


@pytest.mark.parametrize("index", ["kept", "lost", "rebuilt"])
def test_a_range_whose_cut_lost_its_outcome_in_the_batch_of_its_beginning_lost_rows(
    index, monkeypatch
):
    async def main():
        disk = SimDisk(10)
        store = await open_store(disk, **OPTIONS)
        await grow(store, 1, 1, 3)
        await store.append(1, hard(1, 0, 3), [entry(4)])
        store.apply(1, 4, [(b"\x22row", b"of the cut")])
        store.create_group(2, 1, 1)
        await grow(store, 2, 2, 4)
        disk = disk.crash(choose=lambda *_: True)
        await store.close()
        rot(disk, places(disk, records.OUTCOME)[3])
        await treat(index, disk, monkeypatch)
        found = await states(disk)
        assert (found[1].applied_index, found[2].applied_index) == (3, 4)
        assert found[2].rows_lost

    run(main(), 10)


@pytest.mark.parametrize("index", ["kept", "lost", "rebuilt"])
def test_outcomes_behind_a_snapshot_count_though_one_before_it_is_lost(index, monkeypatch):
    async def main():
        disk = SimDisk(11)
        store = await open_store(disk, **OPTIONS)
        await grow(store, 1, 1, 4)
        await receive(store, {b"\x20a": b"of the snapshot"}, 9)
        for number in (10, 11):
            await store.append(1, hard(2, 0, number - 1), [entry(number, 2)])
            store.apply(1, number, [(b"\x20b", b"%d" % number)])
        await store.append(1, hard(2, 0, 11), [])
        disk = disk.crash(choose=lambda *_: True)
        await store.close()
        rot(disk, places(disk, records.OUTCOME)[1])
        await treat(index, disk, monkeypatch)
        async with store_on(disk, **OPTIONS) as store:
            assert store.log_state(1).rows_lost and store.log_state(1).applied_index == 11
            assert await store.get(b"\x20b") == b"11"

    run(main(), 11)


def test_rows_that_compaction_moved_to_what_cannot_be_read_are_lost(monkeypatch):
    async def main():
        disk = await compacted(SimDisk(12))
        rot(disk, places(disk, records.STATE, ".bulk")[0])
        await treat("rebuilt", disk, monkeypatch)
        found = await states(disk)
        assert found[1].applied_index == 34 and found[1].rows_lost

    run(main(), 12)
