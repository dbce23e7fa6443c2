"""The index against a dict, on a simulated disk and virtual time."""

from __future__ import annotations

import asyncio
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from o3storage.runtime.disk import DiskFault, DiskFull
from o3storage.simulation import Fault, SimDisk, run
from o3storage.storage.index import (
    MAX_KEY_BYTES,
    STEP_ROWS,
    BadBlock,
    IndexDamaged,
    IndexFailure,
    IndexKeyWrong,
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


def test_wrong_key_and_damaged_manifest_files():
    async def main() -> None:
        disk = SimDisk(1)
        index = await open_index(disk)
        index.write([(b"a", b"1")])
        await index.flush(b"m")
        await index.close()
        with pytest.raises(IndexKeyWrong):
            await open_index(SimDisk(2, image=disk.image.crash(lambda c, s: True)), key=b"x" * 32)
        names = files_of(disk)
        manifest = next(name for name in names if name.startswith("MANIFEST"))
        for name in ("CURRENT", manifest):
            for at in range(0, 56 if name == "CURRENT" else 900, 5):
                copy = SimDisk(3, image=disk.image.crash(lambda c, s: True))
                if copy.image.lookup(f"data/index/{name}").cached[at] == 0xFF:
                    continue  # padding
                copy.rot(f"data/index/{name}", at, 0x40)
                with pytest.raises(IndexDamaged):
                    await open_index(copy)
        for name in ("CURRENT", manifest):
            copy = SimDisk(3, image=disk.image.crash(lambda c, s: True))
            await copy.unlink(f"data/index/{name}")
            with pytest.raises(IndexDamaged):
                await open_index(copy)

    run(main(), 1)


async def filled(disk: SimDisk, rows: int = 600, seed: int = 7):
    """An index with three levels, its model."""
    rng = random.Random(seed)
    index = await open_index(disk, seed)
    model: dict[bytes, bytes] = {}
    for n in range(rows // 50):
        batch = random_rows(rng, 300, 50)
        index.write(batch)
        apply(model, batch)
        await index.flush(b"%d" % n)
        if n % 2:
            await index.merge()
    return index, model


def test_every_flipped_bit_of_a_table_is_found_and_the_rest_serves():
    """A read gives the right rows or BadBlock with a span that holds the key; never wrong rows."""

    async def main() -> None:
        disk = SimDisk(7)
        index, model = await filled(disk)
        await index.close()
        clean = disk.image.crash(lambda c, s: True)
        tables = sorted(name for name in files_of(disk) if name.endswith(".table"))
        assert len(tables) > 4
        rng = random.Random(1)
        keys = sorted({*model, *(b"%04d/1" % n for n in range(300))})
        outcomes = {"served": 0, "refused": 0}
        for name in tables:
            size = len(files_of(disk)[name])
            for at in [0, 40, 70, 127, 128, 129, 135, size - 1, size - 40, size - 64] + [
                rng.randrange(size) for _ in range(12)
            ]:
                copy = SimDisk(8, image=clean.crash(lambda c, s: True))
                copy.rot(f"data/index/{name}", at, 1 << rng.randrange(8))
                index = await open_index(copy)
                bad = await index.verify()
                for key in rng.sample(keys, 25):
                    try:
                        assert await index.get(key) == model.get(key)
                        outcomes["served"] += 1
                    except BadBlock as error:
                        outcomes["refused"] += 1
                        assert error.key_low <= key or error.key_low <= key[:PREFIX]
                        assert error.key_high is None or key < error.key_high
                        assert error.table == int(name[:16], 16)
                        assert any(error.key_low == other.key_low for other in bad)
                low = rng.choice(keys)
                try:
                    rows = await index.scan(low, None, 10)
                    assert rows == [row for row in sorted(model.items()) if row[0] >= low][:10]
                except BadBlock:
                    assert bad
                await index.close()
        assert outcomes["served"] > outcomes["refused"] > 0

    run(main(), 7)


def test_a_bad_span_is_repaired_by_dropping_and_writing_it():
    async def main() -> None:
        disk = SimDisk(9)
        index, model = await filled(disk)
        await index.close()
        name = max(
            (n for n in files_of(disk) if n.endswith(".table")),
            key=lambda n: len(files_of(disk)[n]),
        )
        for place in (200, -70):  # a block of rows; the block index
            size = len(files_of(disk)[name])
            disk.rot(f"data/index/{name}", place % size, 4)
        heard: list[BadBlock] = []
        index = await open_index(disk, on_bad_block=heard.append)
        with pytest.raises(BadBlock) as caught:
            await all_rows(index)
        bad = caught.value
        for _ in range(40):
            try:
                if not await index.merge():
                    break
            except BadBlock as error:
                assert error.table == bad.table
        index.drop_range(bad.key_low, bad.key_high)
        index.write(
            [
                (key, value)
                for key, value in model.items()
                if bad.key_low <= key and (bad.key_high is None or key < bad.key_high)
            ]
        )
        assert await all_rows(index) == model
        await index.flush(b"repaired")
        assert await all_rows(index) == model
        while await index.merge():
            assert await all_rows(index) == model
        assert await index.verify() == []
        assert name not in files_of(disk)
        await index.close()

    run(main(), 9)


def test_a_missing_table_and_an_unreadable_sector():
    async def main() -> None:
        disk = SimDisk(11)
        index, model = await filled(disk)
        await index.close()
        clean = disk.image.crash(lambda c, s: True)
        names = sorted(name for name in files_of(disk) if name.endswith(".table"))
        copy = SimDisk(12, image=clean.crash(lambda c, s: True))
        await copy.unlink(f"data/index/{names[0]}")
        index = await open_index(copy)
        with pytest.raises(BadBlock):
            await all_rows(index)
        await index.close()
        copy = SimDisk(12, image=clean.crash(lambda c, s: True))
        copy.fail_sector(f"data/index/{names[0]}", 512)
        index = await open_index(copy)
        with pytest.raises(BadBlock, match="unreadable sector"):
            await all_rows(index)
        assert len(await index.verify()) >= 1
        served = 0
        for key in model:
            try:
                assert await index.get(key) == model[key]
                served += 1
            except BadBlock:
                continue
        assert served > len(model) // 2
        await index.close()

    run(main(), 11)


def test_a_full_disk_refuses_a_flush_cleanly_and_recovers():
    async def main() -> None:
        disk = SimDisk(13)
        index, model = await filled(disk, 200)
        names = set(files_of(disk))
        rows = [(b"%04d/9" % n, bytes(100)) for n in range(100)]
        index.write(rows)
        apply(model, rows)
        disk.capacity_bytes = disk.image.used_bytes() + 4000
        with pytest.raises(DiskFull):
            await index.flush(b"full")
        assert set(files_of(disk)) == names
        assert index.mark != b"full"
        assert await all_rows(index) == model
        disk.capacity_bytes = 1 << 40
        index.write([(b"more", b"1")])
        model[b"more"] = b"1"
        await index.flush(b"again")
        assert await all_rows(index) == model
        await index.close()
        index = await open_index(disk.crash(choose=lambda c, s: False))
        assert index.mark == b"again" and await all_rows(index) == model

    run(main(), 13)


def test_a_barrier_that_fails_leaves_the_flush_undone():
    async def main() -> None:
        disk = SimDisk(14)
        index, model = await filled(disk, 200)
        names, mark = set(files_of(disk)), index.mark
        rows = [(b"%04d/9" % n, b"v") for n in range(100)]
        index.write(rows)
        apply(model, rows)
        seen = []

        async def refuse() -> None:
            seen.append(index.mark)
            raise RuntimeError("not yet")

        with pytest.raises(RuntimeError):
            await index.flush(b"refused", barrier=refuse)
        assert seen == [mark] == [index.mark]
        assert set(files_of(disk)) == names
        assert await all_rows(index) == model
        await index.flush(b"done")
        assert await all_rows(index) == model
        await index.close()

    run(main(), 14)


@pytest.mark.parametrize("operation", ["write", "sync", "sync_dir"])
@pytest.mark.parametrize("after", range(4))
def test_a_failed_write_or_sync_stops_the_index_for_writing(operation, after):
    """And what a restart finds is the last flush that was acknowledged, or the one that failed."""

    async def main() -> None:
        disk = SimDisk(15)
        index, model = await filled(disk, 200)
        before, mark = dict(model), index.mark
        rows = [(b"%04d/9" % n, bytes(30)) for n in range(50)]
        index.write(rows)
        apply(model, rows)
        disk.inject(Fault(operation, after=after))
        try:
            await index.flush(b"new")
        except DiskFault:
            assert index.mark == mark
            if index._tables.failure is not None:
                with pytest.raises(DiskFault):
                    await index.flush(b"again")
        else:
            before, mark = model, b"new"
        assert await all_rows(index) == model
        again = await open_index(disk.crash(random.Random(after)))
        assert (again.mark, await all_rows(again)) in ((mark, before), (b"new", model))

    run(main(), 15)


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
