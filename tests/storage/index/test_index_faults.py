"""The index on bad ground: wrong keys, damaged and missing files, full and failing disks."""

from __future__ import annotations

import random

import pytest

from o3storage.runtime.disk import DiskFault, DiskFull, OpenMode
from o3storage.simulation import Fault, SimDisk, run
from o3storage.storage.index import (
    BadBlock,
    IndexDamaged,
    IndexKeyWrong,
)
from tests.storage.index.support import (
    PREFIX,
    all_rows,
    apply,
    files_of,
    filled,
    open_index,
)


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


def test_a_start_on_a_full_disk_takes_back_what_a_crash_left():
    """What a merge had begun may hold the space that the start needs: it went after that only."""

    async def main() -> None:
        disk = SimDisk(13)
        index, model = await filled(disk, 200)
        await index.close()
        left = await disk.open("data/index/00000000000fffff.table", OpenMode.CREATE)
        await left.allocate(0, 2 << 20, zero_fill=False)
        await left.close()
        disk.capacity_bytes = disk.image.used_bytes() + 4000
        index = await open_index(disk)
        assert await all_rows(index) == model
        assert "00000000000fffff.table" not in files_of(disk)
        await index.close()
        index = await open_index(disk.crash(choose=lambda c, s: False))
        assert await all_rows(index) == model

    run(main(), 13)


def test_a_start_on_a_full_disk_first_makes_sure_of_the_manifest_that_it_read():
    """A kill came between the new name of CURRENT and the sync of it: the older manifest, which
    counts until then, may go only when the medium knows."""

    async def main() -> None:
        disk = SimDisk(13)
        index, model = await filled(disk, 200)
        await index.close()
        disk.inject(Fault("sync_dir", path_prefix="data/index", after=1))
        with pytest.raises(DiskFault):
            await open_index(disk)
        disk = disk.kill()
        disk.capacity_bytes = disk.image.used_bytes() + 4000
        disk.inject(Fault("write", path_prefix="data/index/MANIFEST"))
        with pytest.raises(DiskFault):
            await open_index(disk)
        disk = disk.crash(choose=lambda c, s: getattr(c, "removed", "") and c.added is None)
        disk.capacity_bytes = 1 << 40
        index = await open_index(disk)
        assert await all_rows(index) == model
        await index.close()

    run(main(), 13)


def test_starts_that_fail_on_a_full_disk_leave_it_as_it_was():
    async def main() -> None:
        disk = SimDisk(13)
        index, model = await filled(disk, 200)
        await index.close()
        names = set(files_of(disk))
        disk.capacity_bytes = disk.image.used_bytes() + 4000
        for _ in range(3):
            with pytest.raises(DiskFull):
                await open_index(disk)
            assert set(files_of(disk)) == names
        disk.capacity_bytes = 1 << 40
        index = await open_index(disk)
        assert await all_rows(index) == model
        await index.close()

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
