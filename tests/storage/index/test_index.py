"""The index against a dict, on a simulated disk and virtual time. Faults: `test_index_faults.py`."""

from __future__ import annotations

import asyncio
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from o3storage.simulation import SimDisk, run
from o3storage.storage.index import (
    MAX_KEY_BYTES,
    STEP_ROWS,
    IndexFailure,
    IndexOptions,
    Miss,
)
from tests.storage.index import reader
from tests.storage.index.support import (
    BATCHES,
    DISK_KEY,
    KEYS,
    PREFIX,
    SMALL,
    all_rows,
    apply,
    drop,
    files_of,
    filled,
    open_index,
    random_rows,
)

STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("write"), BATCHES),
        st.tuples(st.just("write"), BATCHES),
        st.tuples(st.just("flush"), st.binary(max_size=8)),
        st.tuples(st.just("merge"), st.just(None)),
        st.tuples(st.just("drop"), st.tuples(KEYS, st.none() | KEYS)),
        st.tuples(st.just("snapshot"), st.just(None)),
        st.tuples(st.just("release"), st.just(None)),
        st.tuples(st.just("reopen"), st.booleans()),
    ),
    max_size=25,
)


async def check(index, model: dict[bytes, bytes], rng: random.Random, at=None) -> None:
    """Every kind of read agrees with the model."""
    rows = sorted(model.items())
    assert await index.scan(b"", None, 1 << 20, at=at) == rows
    keys = [
        b"%04d" % rng.randrange(42) + rng.choice([b"", b"\0", b"/a", b"\xff"]) for _ in range(8)
    ]
    for key in keys:
        assert await index.get(key, at=at) == model.get(key)
        now = index.get_now(key, at=at)
        assert now is Miss.MISS or now == model.get(key)
        prefix = key[:PREFIX]
        starting = [row for row in rows if row[0].startswith(prefix)]
        expected = starting[0] if starting else None
        assert await index.first(prefix, at=at) == expected
        now = index.first_now(prefix, at=at)
        assert now is Miss.MISS or now == expected
    low, high = sorted(keys[:2])
    limit = rng.randrange(1, 20)
    expected = [row for row in rows if low <= row[0] < high][:limit]
    assert await index.scan(low, high, limit, at=at) == expected
    now = index.scan_now(low, high, limit, at=at)
    assert now is Miss.MISS or now == expected


@settings(max_examples=80, deadline=None)
@given(STEPS, st.integers(0, 1 << 30))
def test_against_a_dict(steps, seed):
    async def main() -> None:
        rng = random.Random(seed)
        disk = SimDisk(seed, cached_share=rng.choice([0.0, 0.5, 1.0]))
        index = await open_index(disk, seed)
        model: dict[bytes, bytes] = {}
        durable: dict[bytes, bytes] = {}
        mark = b""
        snapshots = []
        for step, argument in steps:
            if step == "write":
                index.write(argument)
                apply(model, argument)
            elif step == "flush":
                await index.flush(argument)
                mark, durable = argument, dict(model)
            elif step == "merge":
                await index.merge()
            elif step == "drop":
                index.drop_range(*argument)
                drop(model, *argument)
            elif step == "snapshot":
                snapshots.append((index.snapshot(), dict(model)))
            elif step == "release" and snapshots:
                snapshots.pop(rng.randrange(len(snapshots)))[0].release()
            elif step == "reopen":
                for snapshot, _ in snapshots:
                    snapshot.release()
                snapshots = []
                await index.close()
                disk = disk.crash(rng) if argument else disk.kill()
                index = await open_index(disk, seed)
                assert index.mark == mark
                model = dict(durable)
            assert index.mark == mark
            await check(index, model, rng)
            for snapshot, then in snapshots:
                await check(index, then, rng, at=snapshot)
        await index.flush(b"end")
        while await index.merge():
            await check(index, model, rng)
            for snapshot, then in snapshots:
                await check(index, then, rng, at=snapshot)
        assert await index.verify() == []
        for snapshot, _ in snapshots:
            snapshot.release()
        await asyncio.sleep(1)
        await index.close()
        assert reader.read_index(files_of(disk), DISK_KEY) == (b"end", dict(sorted(model.items())))
        names = set(files_of(disk))
        manifest = reader.read_manifest(
            files_of(disk)[max(n for n in names if "MAN" in n)], DISK_KEY
        )
        assert len(names) == 2 + len(manifest.tables), "files that nothing names are removed"
        assert not manifest.drops, "drops go when no table needs them"

    run(main(), seed)


def test_background_merges_keep_up_and_nothing_changes_under_readers():
    options = IndexOptions(**{**vars_of(SMALL), "background": True, "merge_bytes_per_s": 1 << 20})

    async def main() -> None:
        rng = random.Random(5)
        disk = SimDisk(5)
        index = await open_index(disk, 5, options)
        model: dict[bytes, bytes] = {}
        snapshot, then = index.snapshot(), {}
        for step in range(80):
            for _ in range(4):
                rows = random_rows(rng, 400, 30)
                index.write(rows)
                apply(model, rows)
            flush = asyncio.get_running_loop().create_task(index.flush(b"%d" % step))
            rows = random_rows(rng, 400, 10)
            index.write(rows)
            apply(model, rows)
            assert (
                await index.scan(b"0100", b"0200", 50)
                == sorted((k, v) for k, v in model.items() if b"0100" <= k < b"0200")[:50]
            )
            await flush
            if step % 9 == 0:
                assert await all_rows(index, snapshot) == then
                snapshot.release()
                snapshot, then = index.snapshot(), dict(model)
            assert len(index._tables.view.level0) <= options.level0_stall_tables + 8
        await asyncio.sleep(3600)
        assert await all_rows(index, snapshot) == then
        assert await all_rows(index) == model
        assert index.stats.merges > 5
        snapshot.release()
        await index.close()

    run(main(), 5)


def vars_of(options: IndexOptions) -> dict:
    return {name: getattr(options, name) for name in options.__slots__}


def test_a_flush_covers_what_was_written_before_it_and_nothing_else():
    """Two flushes at once: each mark stands for exactly the rows before its call."""

    async def main() -> None:
        disk = SimDisk(1)
        index = await open_index(disk)
        recorder = disk.record()
        loop = asyncio.get_running_loop()
        index.write([(b"a", b"1"), (b"x", b"1")])
        first = loop.create_task(index.flush(b"first"))
        await asyncio.sleep(0)
        index.write([(b"b", b"2")])
        index.drop_range(b"x", None)
        second = loop.create_task(index.flush(b"second"))
        await asyncio.sleep(0)
        index.write([(b"c", b"3")])
        third = loop.create_task(index.flush(b"third"))
        await asyncio.sleep(0)
        index.write([(b"d", b"4")])
        await asyncio.gather(first, second, third)
        assert await all_rows(index) == {b"a": b"1", b"b": b"2", b"c": b"3", b"d": b"4"}
        states = {
            b"": {},
            b"first": {b"a": b"1", b"x": b"1"},
            b"second": {b"a": b"1", b"b": b"2"},
            b"third": {b"a": b"1", b"b": b"2", b"c": b"3"},
        }
        seen = set()
        for state in recorder.crash_states(1, subsets=5):
            again = await open_index(SimDisk(2, image=state.image))
            assert await all_rows(again) == states[again.mark], state.label
            seen.add(again.mark)
            await again.close()
        assert seen == set(states)

    run(main(), 1)


def test_deleted_rows_leave_the_disk():
    async def main() -> None:
        options = IndexOptions(**{**vars_of(SMALL), "level1_bytes": 1 << 20})
        index = await open_index(SimDisk(2), options=options)
        keys = [b"%04d" % n for n in range(300)]
        for value in (b"v" * 30, None):
            for at in range(3):
                index.write([(key, value) for key in keys[at::3]])
                await index.flush(b"")
            while await index.merge():
                pass
            assert (index.disk_bytes > 0) == (value is not None)
        assert await all_rows(index) == {}
        await index.close()

    run(main(), 2)


@pytest.mark.parametrize("seed", range(8))
def test_the_first_row_of_a_prefix_in_several_runs_and_tables(seed):
    """Each source may hold another version of the row, another row, or a deletion."""

    async def main() -> None:
        rng = random.Random(seed)
        index = await open_index(SimDisk(seed))
        model: dict[bytes, bytes] = {}
        answered = 0
        for n in range(120):
            keys = [b"%04d/%d" % (rng.randrange(6), rng.randrange(3)) for _ in range(3)]
            rows = [(key, b"%d" % n if rng.random() < 0.85 else None) for key in keys]
            index.write(rows)
            apply(model, rows)
            index._memtable.seal_head()
            if rng.random() < 0.1:
                await index.flush(b"")
            for number in range(6):
                prefix = b"%04d" % number
                starting = [row for row in sorted(model.items()) if row[0].startswith(prefix)]
                found = index.first_now(prefix)
                if found is not Miss.MISS:
                    assert found == (starting[0] if starting else None)
                    answered += 1
        assert answered > 600

    run(main(), seed)


def test_many_small_writes_and_one_large_batch():
    async def main() -> None:
        rng = random.Random(3)
        index = await open_index(SimDisk(3))
        model: dict[bytes, bytes] = {}
        for n in range(3000):
            rows = random_rows(rng, 2000, 2)
            index.write(rows)
            apply(model, rows)
            if n % 100 == 0:
                await asyncio.sleep(0)
        large = [(b"%08d" % n, b"v") for n in range(5000)]
        index.write(large)
        apply(model, large)
        assert await index.scan(b"", None, 1 << 20) == sorted(model.items())
        assert index.scan_now(b"", None, STEP_ROWS + 1) is Miss.MISS
        await asyncio.sleep(10)
        assert len(index._memtable.runs) < 60
        assert await all_rows(index) == model
        assert index.memtable_bytes > 0 and index.rows_estimate >= len(model)
        await index.flush(b"")
        assert index.memtable_bytes == 0
        assert await all_rows(index) == model

    run(main(), 3)


def test_limits():
    async def main() -> None:
        index = await open_index(SimDisk(1))
        sequence = index.sequence
        for rows in (
            [(b"ok", b"1"), (b"", b"x")],
            [(b"ok", b"1"), (b"k" * (MAX_KEY_BYTES + 1), b"x")],
            [(b"ok", b"1"), (b"k", bytes(3 << 20))],
            [(b"%d" % n, b"") for n in range(20_000)],
        ):
            with pytest.raises(ValueError):
                index.write(rows)
        assert index.sequence == sequence and index.get_now(b"ok") is None
        with pytest.raises(ValueError):
            await index.flush(bytes(2 << 20))
        index.write([(b"k" * MAX_KEY_BYTES, bytes(1 << 20)), (b"l", b"")])
        await index.flush(bytes(1 << 20))
        assert await index.get(b"k" * MAX_KEY_BYTES) == bytes(1 << 20)
        assert await index.get(b"l") == b""
        assert len(index.mark) == 1 << 20
        await index.close()
        await index.close()
        with pytest.raises(IndexFailure):
            await index.flush(b"")

    run(main(), 1)


def test_blocks_that_are_not_in_memory_are_a_miss_and_the_cache_is_bounded():
    async def main() -> None:
        disk = SimDisk(17, cached_share=0.0)
        index, model = await filled(disk, 1000)
        misses = 0
        for key in model:
            if index.get_now(key) is Miss.MISS:
                misses += 1
                assert await index.get(key) == model[key]
        assert misses > 10
        assert index._tables.cache.size_bytes <= SMALL.cache_bytes
        assert index.scan_now(b"", None, 1000) is Miss.MISS
        assert await index.scan(b"", None, 1000) == sorted(model.items())[:1000]
        await index.close()

    run(main(), 17)


def test_a_snapshot_holds_its_files_until_it_is_released():
    async def main() -> None:
        disk = SimDisk(19)
        index, model = await filled(disk, 300)
        snapshot, then = index.snapshot(), dict(model)
        held = {table.path for table in snapshot.view.tables()}
        index.drop_range(b"", None)
        await index.flush(b"gone")
        while await index.merge():
            pass
        await asyncio.sleep(1)
        assert await all_rows(index) == {}
        assert await all_rows(index, snapshot) == then
        assert held <= set(disk.image.names)
        snapshot.release()
        snapshot.release()
        await asyncio.sleep(1)
        assert not held & set(disk.image.names)
        with pytest.raises(ValueError):
            index.get_now(b"a", at=snapshot)
        await index.close()

    run(main(), 19)


def test_works_on_an_ordinary_event_loop():
    async def main() -> None:
        index, model = await filled(SimDisk(21))
        assert await all_rows(index) == model
        await index.close()

    asyncio.run(main())
