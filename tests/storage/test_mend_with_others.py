"""A bad span of the index whose rows stood in a record that is bad, too, where others have them: its
groups count as having lost rows until a snapshot of each wrote all of them."""

from __future__ import annotations

import asyncio

import pytest

from o3storage.simulation import SimDisk, run
from o3storage.storage import BadBlock, SnapshotLost, StoreError, _install, encode_piece
from o3storage.storage._records import OUTCOME
from o3storage.storage._span_repair import AllGroups

from .support import entry, hard
from .test_faults import places
from .test_span_repair import tables
from .test_verify import opened

SPAN = (b"\x10", b"\x11")
KEYS = [b"\x10key%02d" % number for number in range(20)]


async def spoiled(disk):
    """Each row three times, the last half of the keys deleted at the end; the record of the last
    deletions is bad, and so is the table. Returns the store and what it must hold."""
    store = await opened(disk)
    index = 0
    for value in (b"a", b"b", b"c", None):
        for key in KEYS if value else KEYS[10:]:
            index += 1
            await store.append(1, hard(1), [entry(index)])
            store.apply(1, index, [(key, value * 30 if value else None)])
    await store.append(2, hard(1), [entry(1)])
    store.apply(2, 1, [(b"\x20other", b"group")])
    await store.flush()
    await store.close()
    found = places(disk, OUTCOME)
    for path, offset, size in found[-4:-1]:
        disk.rot(path, offset + size // 2)
    for table in tables(disk):
        disk.rot(table, len(disk.image.lookup(table).cached) - 20, 0x10)
    store = await opened(disk)
    return store, dict.fromkeys(KEYS[:10], b"c" * 30)


class Asked:
    """In the cluster's place."""

    def __init__(self, store, groups=(1,)):
        self.store = store
        self.groups = groups
        self.told = []
        self.spans = []

    async def may_lose(self, low, high, /):
        self.spans.append((low, high))
        if not self.groups:
            raise StoreError("not yet")
        return self.groups

    def lost(self, groups, /):
        assert self.store.log_state(1).rows_lost
        with pytest.raises(BadBlock):
            self.store.get_now(KEYS[5])  # what is left is not in its place yet
        self.told.append(tuple(groups))

    def places_lost(self):
        raise AssertionError("no place is in these spans")


async def install(store, rows):
    await store.stage_piece(1, 0, encode_piece(sorted(rows.items())))
    log = store.log_state(1)
    await store.install(1, log.applied_index, 1, 1, [SPAN], hard(1, 0, log.applied_index), True)


async def all_rows(store):
    return dict(await store.scan(*SPAN, 1000))


def test_the_groups_have_lost_rows_until_a_snapshot_wrote_all_of_them():
    async def main():
        disk = SimDisk(1)
        store, expected = await spoiled(disk)
        store.mend_with_others(asked := Asked(store))
        with pytest.raises(BadBlock):
            await all_rows(store)
        await store.repair_index()
        assert asked.told == [(1,)] and len(asked.spans) == 1
        assert store.stats().spans_lost == 1
        assert await all_rows(store) != expected  # (a deletion was lost: nobody may read this)
        assert store.log_state(1).rows_lost and not store.log_state(2).rows_lost
        await store.close()
        store = await opened(disk)
        assert store.log_state(1).rows_lost
        await install(store, expected)
        assert not store.log_state(1).rows_lost
        assert await all_rows(store) == expected
        assert await store.get(b"\x20other") == b"group"
        await store.close()
        store = await opened(disk)
        assert not store.log_state(1).rows_lost
        assert await all_rows(store) == expected
        await store.close()

    run(main(), 1)


@pytest.mark.parametrize("others", [False, True], ids=["alone", "not yet"])
def test_the_span_is_refused_while_nobody_can_give_its_rows_back(others):
    async def main():
        store, _ = await spoiled(SimDisk(1))
        store.mend_with_others(Asked(store, ()) if others else None)
        for _ in range(2):
            with pytest.raises(BadBlock):
                await all_rows(store)
            with pytest.raises(StoreError, match="not yet" if others else "verify --repair"):
                await store.repair_index()
        assert not store.log_state(1).rows_lost
        await store.append(1, None, [entry(71)])  # the rest serves
        await store.close()

    run(main(), 1)


def test_what_is_written_meanwhile_counts():
    async def main():
        store, expected = await spoiled(SimDisk(1))

        class Slow(Asked):
            async def may_lose(self, low, high, /):
                await asyncio.sleep(1)
                store.apply(1, 71, [(KEYS[0], b"new"), (KEYS[1], None)])
                return await super().may_lose(low, high)

        store.mend_with_others(Slow(store))
        await store.append(1, None, [entry(71)])
        with pytest.raises(BadBlock):
            await store.get(KEYS[5])
        await store.repair_index()
        assert await store.get(KEYS[0]) == b"new"
        assert await store.get(KEYS[1]) is None
        assert await store.get(KEYS[5]) == expected[KEYS[5]]
        await store.close()

    run(main(), 1)


@pytest.mark.parametrize("first", ["install", "repair"])
def test_an_install_is_before_or_behind_it(first):
    """An install that has passed a row does not end as if the row still stood as it was."""

    async def main():
        store, expected = await spoiled(SimDisk(1))
        asked = AllGroups(store._core)
        store.mend_with_others(asked)
        with pytest.raises(BadBlock):
            await all_rows(store)
        await store.repair_index()
        await install(store, expected)
        await store.append(1, None, [entry(71)])
        store.apply(1, 71, [])
        expected[b"\x10new"] = b"row"

        async def repair():
            store._spans.wanted(BadBlock(1, *SPAN, "rot"))
            await store.repair_index()

        async def other_begins(work):
            nonlocal other
            other = asyncio.ensure_future(work)
            await asyncio.wait({other}, timeout=60)

        other = None
        if first == "install":
            replace = store._installer._replace

            async def passing(*args, **options):
                await replace(*args, **options)
                await other_begins(repair())

            store._installer._replace = passing
            await store.stage_piece(1, 0, encode_piece(sorted(expected.items())))
            await store.install(1, 72, 1, 1, [SPAN], hard(1, 0, 72), True)
            assert not other.done() and await all_rows(store) == expected
            await other
            store._installer._replace = replace
            assert store.log_state(1).rows_lost
            await install(store, expected)
        else:
            may_lose = asked.may_lose

            async def slow(low, high, /):
                await other_begins(install(store, expected))
                return await may_lose(low, high)

            asked.may_lose = slow
            await repair()
            assert store.log_state(1).rows_lost
            await other
        assert store.stats().spans_lost == 2
        assert not store.log_state(1).rows_lost and await all_rows(store) == expected
        await store.close()

    run(main(), 1)


def test_a_snapshot_of_which_a_piece_is_lost_is_given_up():
    async def main():
        disk = SimDisk(1)
        store, expected = await spoiled(disk)
        store.mend_with_others(AllGroups(store._core))
        with pytest.raises(BadBlock):
            await all_rows(store)
        await store.repair_index()
        pieces = [encode_piece(rows) for rows in ([(KEYS[0], b"x")], [(KEYS[1], b"y")])]
        for number, piece in enumerate(pieces):
            await store.stage_piece(1, number, piece)
        low = _install.STAGING_TABLE + (1).to_bytes(4, "big")
        store._core.index.drop_range(low + (1).to_bytes(4, "big"), low + (2).to_bytes(4, "big"))
        index = store.log_state(1).applied_index
        with pytest.raises(SnapshotLost):
            await store.install(1, index, 1, 2, [SPAN], hard(1, 0, index), True)
        assert store.log_state(1).rows_lost
        assert not await store.scan(low, low + b"\xff" * 5, 10)
        await install(store, expected)
        assert not store.log_state(1).rows_lost and await all_rows(store) == expected
        await store.close()

    run(main(), 1)
