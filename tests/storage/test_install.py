"""A snapshot of a group becomes its rows in one step, over crashes and rebuilds too."""

from __future__ import annotations

import asyncio
import contextlib
import random

import pytest

from o3storage.storage import HardState, StoreError, encode_piece

from .support import SimDisk, entry, open_store, run
from .test_rebuild import lose_index

SPANS = [(b"\x20", b"\x21"), (b"\x30", b"\x31")]
OTHER = (b"\x40kept", b"another group's")
OWN = (b"\xfe\x01", b"configuration")


def snapshot_rows(seed, count):
    rng = random.Random(seed)
    rows = {}
    for number in range(count):
        table = b"\x20" if number % 3 else b"\x30"
        rows[table + b"%05d" % rng.randrange(count * 2)] = rng.randbytes(rng.randrange(1, 60))
    return dict(sorted(rows.items()))


def pieces_of(rows, size=40):
    items = list(rows.items())
    return [encode_piece(items[at : at + size]) for at in range(0, max(len(items), 1), size)]


async def prepare(store, before, last):
    """A log of `last` entries, the first of which wrote `before`."""
    await store.append(1, HardState(2, 0, 0), [entry(n, 2) for n in range(1, last + 1)])
    await store.append(2, HardState(1, 0, 0), [entry(1)])
    store.apply(2, 1, [OTHER])
    rows = list(before.items())
    for number in range(3):
        store.apply(1, number + 1, rows[number::3])


async def install(store, rows, index, *, keep):
    pieces = pieces_of(rows)
    for number, piece in enumerate(pieces):
        await store.stage_piece(1, number, piece)
    await store.install(1, index, 5, len(pieces), SPANS, HardState(6, 3, index), keep, [OWN])


async def rows_of(store):
    found = {}
    for low, high in SPANS:
        found |= dict(await store.scan(low, high, 10_000))
    return found


async def is_new(store, rows, index, *, keep, last):
    state = store.log_state(1)
    assert await rows_of(store) == rows
    assert await store.get(OWN[0]) == OWN[1]
    assert state.applied_index == index
    assert state.hard_state == HardState(6, 3, index)
    assert state.last_index == (last if keep else index)
    assert store.term(1, index) == 5
    if keep:
        found = store.entries(1, index + 1, last + 1, 1 << 20)
        found = found if isinstance(found, list) else await found
        assert [e.index for e in found] == list(range(index + 1, last + 1))


async def is_sound(store):
    assert await store.get(OTHER[0]) == OTHER[1]
    assert await store._core.index.scan(b"\x05", b"\x06", 10) == []


@pytest.mark.parametrize("keep", [False, True])
@pytest.mark.parametrize("index_open", [None, "real"])
def test_rows_log_and_hard_state_are_the_snapshots(keep, index_open):
    async def main():
        disk = SimDisk(1)
        options = {"index": None} if index_open else {}
        before, after = snapshot_rows(1, 300), snapshot_rows(2, 400)
        store = await open_store(disk, **options)
        await prepare(store, before, 12)
        await install(store, after, 8, keep=keep)
        last = 12
        await is_new(store, after, 8, keep=keep, last=last)
        await is_sound(store)
        # The log goes on behind it.
        following = 13 if keep else 9
        await store.append(1, None, [entry(following, 6)])
        if not keep:
            store.apply(1, 9, [(b"\x20new", b"row")])
            after[b"\x20new"] = b"row"
        await store.close()
        store = await open_store(disk, **options)
        if keep:
            await is_new(store, after, 8, keep=True, last=13)
        else:
            assert await rows_of(store) == after
            assert store.log_state(1).applied_index == 9
        await is_sound(store)
        await store.close()
        await lose_index(disk)
        store = await open_store(disk, **options)
        assert await rows_of(store) == after
        assert store.log_state(1).applied_index == (8 if keep else 9)
        assert store.log_state(1).last_index == following
        await is_sound(store)
        await store.close()

    run(main(), 1)


@pytest.mark.parametrize("keep", [False, True])
def test_a_crash_at_any_time_leaves_the_old_state_or_the_new(keep):
    outcomes = {True: 0, False: 0}

    async def main(seed):
        disk = SimDisk(seed)
        rng = random.Random(seed)
        before, after = snapshot_rows(seed, 150), snapshot_rows(seed + 1000, 200)
        store = await open_store(disk)
        await prepare(store, before, 12)
        await store.append(1, None, [])
        if rng.random() < 0.3:
            await store.flush()
        task = asyncio.ensure_future(install(store, after, 8, keep=keep))
        await asyncio.sleep(rng.random() * 0.005)
        disk = disk.crash(rng)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        with contextlib.suppress(StoreError, OSError):
            await store.close()
        store = await open_store(disk)
        new = store.log_state(1).applied_index == 8
        outcomes[new] += 1
        if new:
            await is_new(store, after, 8, keep=keep, last=12)
        else:
            assert store.log_state(1).applied_index <= 3
            assert store.log_state(1).last_index == 12
            assert await store.get(OWN[0]) is None
            assert set(await rows_of(store)) <= set(before)
        assert await store._core.index.scan(b"\x05", b"\x06", 10) == []
        await store.close()

    for seed in range(60):
        run(main(seed), seed)
    assert outcomes[True] >= 10
    assert outcomes[False] >= 10


def test_pieces_that_nobody_made_are_refused():
    async def main():
        store = await open_store(SimDisk(3))
        with pytest.raises(ValueError):
            await store.stage_piece(1, 0, b"\x07\x00")
        with pytest.raises(ValueError, match="limit"):
            await store.stage_piece(1, 0, b"x" * (1 << 20))
        await store.close()

    run(main(), 3)


def test_notes_of_this_disk_alone_are_kept():
    async def main():
        disk = SimDisk(4)
        store = await open_store(disk)
        await store.note(b"name", b"value")
        assert await store.noted(b"name") == b"value"
        await store.close()
        store = await open_store(disk.crash())
        assert await store.noted(b"name") == b"value"
        await store.note(b"name", None)
        assert await store.noted(b"name") is None
        await store.close()

    run(main(), 4)
