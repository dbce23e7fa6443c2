"""A bad block of the index: its span is refused, repaired from the volumes, and serves again."""

from __future__ import annotations

import asyncio

import pytest

from o3storage.simulation import SimDisk, run
from o3storage.storage import BadBlock, FrameMissing, Miss, StoreError, encode_piece, verify
from o3storage.storage._records import ENTRY, OUTCOME, STATE
from o3storage.storage.index import MAX_BATCH_ROWS

from .support import entry, frame, hard, stream_id
from .test_faults import places
from .test_verify import opened, parts


async def history(disk, count=120):
    """A store with a flush, a compaction and rows of all sorts; returns what it must hold."""
    store = await opened(disk)
    rows, kept = {}, set()
    for i in range(1, count + 1):
        await store.append(1, hard(1, 1, i - 1), [entry(i)], [frame(i, size=900)])
        changes = [(b"\x10key%d" % (i % 50), b"value %d " % i * 9), (b"\x11clock", b"%d" % i)]
        if i % 9 == 0:
            changes.append((b"\x10key%d" % ((i + 20) % 50), None))
        released = [stream_id(i - 1)] if i % 3 == 0 else []
        store.apply(1, i, changes, released)
        for key, value in changes:
            if value is None:
                rows.pop(key, None)
            else:
                rows[key] = value
        kept.add(i)
        kept -= {i - 1} if released else set()
        if i == count // 2:
            await store.flush()
            while await store.compact():
                pass
    await store.flush()
    return store, rows, kept


async def read_all(store):
    """Every row and frame by the face; BadBlock passes through."""
    rows = dict(await store.scan(b"\x10", b"\xff", 1000))
    for key, value in rows.items():
        assert await store.get(key) == value
    return rows


async def frames_held(store, count=120):
    held = set()
    for i in range(1, count + 1):
        try:
            data = await store.read_frame(stream_id(i), 0)
        except FrameMissing:
            continue
        assert bytes(data) == frame(i, size=900).data
        held.add(i)
    return held


def tables(disk):
    return [n for n in disk.image.names if n.startswith("index/") and n.endswith(".table")]


@pytest.mark.parametrize("at", [5, 60, 4100, 5000, 9000, -700, -20])
def test_each_bad_block_is_repaired_from_the_volumes(at):
    async def main():
        disk = SimDisk(1)
        store, rows, kept = await history(disk)
        await store.close()
        for path in tables(disk):
            size = len(disk.image.lookup(path).cached)
            if abs(at) < size:
                disk.rot(path, at % size, 0x10)
        store = await opened(disk)
        met = 0
        for _ in range(20):
            try:
                assert await read_all(store) == rows
                assert await frames_held(store) == kept
                break
            except BadBlock:
                met += 1
            # the rest serves meanwhile, and what is written meanwhile counts
            await store.append(1, None, [entry(120 + met)])
            change = (b"\x10key%d" % (met % 50), b"meanwhile %d" % met)
            repair = store.repair_index()
            task = __import__("asyncio").ensure_future(repair)
            await __import__("asyncio").sleep(0.0001)
            store.apply(1, 120 + met, [change])
            rows[change[0]] = change[1]
            await task
        else:
            raise AssertionError("it is never good again")
        await store.close()
        store = await opened(disk)
        assert await read_all(store) == rows and await frames_held(store) == kept
        await store.close()
        return met

    assert run(main(), 1) >= 0


def test_some_of_these_bits_do_meet_a_bad_block():
    async def main():
        disk = SimDisk(1)
        store, _, _ = await history(disk)
        await store.close()
        for path in tables(disk):
            disk.rot(path, 5000)
        store = await opened(disk)
        with pytest.raises(BadBlock):
            await read_all(store)
            await frames_held(store)
        assert await store.repair_index() > 0
        assert store.stats().spans_repaired == 1
        await store.close()

    run(main(), 2)


def test_a_large_span_is_repaired_in_steps_while_the_store_is_used():
    """No step of the loop handles more than 1,000 rows; what is read meanwhile is right, or the
    bad block; what is written meanwhile stays."""
    total = 5200

    async def main():
        disk = SimDisk(3)
        store = await opened(disk)
        await store.append(1, hard(1), [entry(i) for i in range(1, 27)])
        for i in range(26):
            changes = [(b"\x10%05d" % (i * 200 + n), b"v%d" % i * 20) for n in range(200)]
            store.apply(1, i + 1, changes)
        await store.flush()
        await store.close()
        (path,) = tables(disk)
        disk.rot(path, len(disk.image.lookup(path).cached) - 20, 0x10)  # the whole table is bad
        store = await opened(disk)
        await store.append(1, None, [entry(i) for i in range(27, 60)])
        with pytest.raises(BadBlock):
            await store.get(b"\x10%05d" % 7)
        expected = {b"\x10%05d" % n: b"v%d" % (n // 200) * 20 for n in range(total)}
        sizes, write, index = [], store._core.index.write, 27
        drops = []
        drop = store._core.index.drop_range
        right = 0

        def between():
            """Runs between two steps of the repair."""
            nonlocal index, right
            for n in (5, 999, 1001, 3000, total - 1):
                try:
                    value = store.get_now(b"\x10%05d" % n)
                except BadBlock:
                    continue
                if value is not Miss.MISS:
                    right += 1
                    assert value == expected.get(b"\x10%05d" % n), n
            changed = [(b"\x10%05d" % (index * 170), b"new"), (b"\x10%05d" % (index * 7), None)]
            store.apply(1, index, changed)
            index += 1
            expected[changed[0][0]] = b"new"
            expected.pop(changed[1][0], None)

        def dropping(low, high):
            drops.append(low)
            asyncio.get_running_loop().call_soon(between)
            return drop(low, high)

        store._core.index.write = lambda rows: (sizes.append(len(rows)), write(rows))[1]
        store._core.index.drop_range = dropping
        await store.repair_index()
        await asyncio.sleep(0)
        assert index > 30 and right
        assert len(drops) > 5 and max(sizes) <= 1000
        found = {}
        low = b"\x10"
        while rows := await store.scan(low, b"\x11", 1000):
            found.update(rows)
            low = rows[-1][0] + b"\0"
        assert found == expected
        await store.flush()
        while await store._core.index.merge():
            pass
        await store.close()
        store = await opened(disk)
        assert await store.get(b"\x10%05d" % 4999) == expected[b"\x10%05d" % 4999]
        await store.close()

    run(main(), 1)


@pytest.mark.parametrize("call", ["stage", "install", "erase", "noted", "frames", "sync"])
def test_whatever_meets_a_bad_block_has_it_repaired(call):
    """Nobody else may ever read there."""

    async def main():
        store, _, _ = await history(SimDisk(1))
        span = (b"\x10", b"\x11")
        await store.append(2, hard(1), [entry(1)])
        writer = store.open_stream(stream_id(1000))
        await writer.write(frame(1000))
        calls = {
            "stage": lambda: store.stage_piece(2, 0, encode_piece([])),
            "install": lambda: store.install(2, 5, 1, 0, [span], hard(1, 0, 5), False),
            "erase": lambda: store.erase(2, [span], []),
            "noted": lambda: store.noted(b"name"),
            "frames": lambda: store.stream_frames(stream_id(1)),
            "sync": writer.sync,
        }
        index = store._core.index
        scan, get = index.scan, index.get

        async def bad(*_, **__):
            index.scan, index.get = scan, get
            raise BadBlock(1, *span, "rot")

        index.scan = index.get = bad
        with pytest.raises(BadBlock):
            await calls[call]()
        assert await store.repair_index() > 0
        await calls[call]()
        await store.close()

    run(main(), 1)


def test_a_bad_block_that_only_a_merge_meets_is_repaired_and_merges_go_on():
    async def main():
        disk = SimDisk(1)
        store = await opened(disk)
        index = 0

        async def write_all():
            nonlocal index
            for i in range(60):
                index += 1
                await store.append(1, hard(1, 1, index - 1), [entry(index)])
                store.apply(1, index, [(b"\x10key%03d" % i, b"%d " % index * 100)])
            await store.flush()

        await write_all()
        await store.close()
        (path,) = tables(disk)
        disk.rot(path, len(disk.image.lookup(path).cached) // 2, 0x10)
        store = await opened(disk, background=True)
        for _ in range(7):
            await write_all()
            await asyncio.sleep(30)
        assert store.stats().spans_repaired == 1
        assert store._core.index.stats.merges
        assert len(tables(disk)) < 6
        rows = await read_all(store)
        assert sorted(rows) == [b"\x10key%03d" % i for i in range(60)]
        await store.close()

    run(main(), 1)


def test_more_is_written_to_a_span_meanwhile_than_the_index_takes_at_once():
    """In one place, so that it falls into one part of what is put in place."""
    written = MAX_BATCH_ROWS // 1000 + 3

    async def main():
        disk = SimDisk(1)
        store = await opened(disk)
        expected = {b"\x10%05d" % n: b"v%d" % n * 20 for n in range(3000)}
        await store.append(1, hard(1), [entry(i) for i in range(1, written + 4)])
        for i in range(3):
            store.apply(1, i + 1, [*expected.items()][i * 1000 : i * 1000 + 1000])
        await store.flush()
        await store.close()
        (path,) = tables(disk)
        disk.rot(path, len(disk.image.lookup(path).cached) - 20, 0x10)  # the whole table is bad
        store = await opened(disk)
        with pytest.raises(BadBlock):
            await store.get(b"\x10%05d" % 7)
        sizes, write = [], store._core.index.write
        store._core.index.write = lambda rows: (sizes.append(len(rows)), write(rows))[1]
        repair = asyncio.ensure_future(store.repair_index())
        while store._core.watch is None:
            await asyncio.sleep(0)
        for i in range(written):
            changes = [(b"\x10%05d/%02d%04d" % (1500, i, n), b"new") for n in range(1000)]
            changes.append((b"\x10%05d" % i, None))
            store.apply(1, 4 + i, changes)
            expected.update(changes[:-1])
            del expected[changes[-1][0]]
        assert not repair.done()
        await repair
        assert max(sizes) <= 1001
        found = {}
        low = b"\x10"
        while rows := await store.scan(low, b"\x11", 1000):
            found.update(rows)
            low = rows[-1][0] + b"\0"
        assert found == expected
        await store.close()

    run(main(), 1)


@pytest.mark.parametrize("kind", [OUTCOME, STATE])
def test_a_span_is_not_mended_from_volumes_that_lack_what_belongs_there(kind):
    """What an older record says would be served as if it were right."""

    async def main():
        disk = SimDisk(1)
        store = await opened(disk)
        expected = {}
        for i in range(1, 61):
            await store.append(1, hard(1), [entry(i)], [frame(i, size=3000)])
            expected[b"\x10key%d" % (i % 20)] = b"value %d " % i * 20
            store.apply(1, i, [(b"\x10key%d" % (i % 20), b"value %d " % i * 20)], [stream_id(i)])
            if i == 50 and kind == STATE:
                await store.flush()
                while await store.compact():
                    await store.flush()
        await store.flush()
        await store.close()
        path, offset, size = places(disk, kind, ".bulk" if kind == STATE else ".log")[-1]
        disk.rot(path, offset + size // 2)
        for table in tables(disk):
            disk.rot(table, len(disk.image.lookup(table).cached) - 20, 0x10)
        for _ in range(2):
            with pytest.raises(StoreError, match="verify --repair"):
                store = await opened(disk)  # (it may look there itself)
                with pytest.raises(BadBlock):
                    await read_all(store)
                try:
                    await store.repair_index()
                finally:
                    await store.close()
        # What it asks for: it is told of. Outcomes are found again from their entries.
        report = await verify(disk, **parts(), repair=True)
        assert {problem.kind for problem in report.problems} >= {"record", "index"}
        assert {problem.kind for problem in report.problems} >= {"record", "index"}
        store = await opened(disk)
        state = store.log_state(1)
        for index in range(state.applied_index + 1, state.last_index + 1):
            value = b"value %d " % index * 20
            store.apply(1, index, [(b"\x10key%d" % (index % 20), value)], [])
        rows = await read_all(store)
        if kind == OUTCOME:
            assert rows == expected
        await store.append(1, None, [entry(61)])
        await store.flush()
        await store.close()
        await verify(disk, **parts(), repair=True)  # (the log still needed the volume before)
        store = await opened(disk)
        store._spans.wanted(BadBlock(1, b"\x10", b"\x11", "rot"))
        await store.repair_index()  # nothing is in its way any more
        assert await read_all(store) == rows
        await store.close()

    run(main(), 1)


def test_a_span_is_mended_beside_entries_whose_headers_are_bad():
    """Entries say nothing of rows. (Seed 820110 of three nodes: the span was refused for good.)"""

    async def main():
        disk = SimDisk(1)
        store = await opened(disk)
        expected = {}
        for i in range(1, 31):
            await store.append(1, hard(1), [entry(i)])
            expected[b"\x10key%d" % (i % 20)] = b"value %d " % i * 20
            store.apply(1, i, [(b"\x10key%d" % (i % 20), b"value %d " % i * 20)], [])
        await store.flush()
        await store.close()
        for (path, offset, _), byte in zip(
            places(disk, ENTRY)[10:14], (32, 36, 77, 79), strict=True
        ):
            disk.rot(path, offset + byte)  # (magic, kind, sequence)
        for table in tables(disk):
            disk.rot(table, len(disk.image.lookup(table).cached) - 20, 0x10)
        store = await opened(disk)
        store._spans.wanted(BadBlock(1, b"\x10", b"\x11", "rot"))
        await store.repair_index()
        assert await read_all(store) == expected
        await store.close()

    run(main(), 1)
