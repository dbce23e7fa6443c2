"""Reading a volume record by record: what is found, and how much is looked at for it."""

from __future__ import annotations

import asyncio
import random
from types import SimpleNamespace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from o3storage.simulation import SimDisk, run
from o3storage.storage import _records as records
from o3storage.storage import _scan
from o3storage.storage._core import Volume
from o3storage.storage._records import HASH_BYTES, PREFIX_BYTES, RECORD_MAGIC, frame_parts
from o3storage.storage._volume import HEADER_BYTES, VolumeHeader, VolumeKind, align

from .support import entry, frame, hard, stream_id
from .test_faults import places
from .test_verify import filled, opened

STEP = _scan.SEARCH_BYTES
GAPS = (0, 1, 40, STEP - 80, STEP - 1, STEP, STEP + 1, 3 * STEP - 37, 40 * STEP + 5)


def record(n, size):
    parts = []
    frame_parts(parts, frame(n, 0, size), 0)
    return b"".join(parts)


def junk(size, seed):
    """Bytes that are no record and no padding; here and there they look like the start of one."""
    noise = random.Random(seed)
    data = bytearray(noise.randbytes(size))
    for at in range(100, size - 8, 700):
        data[at : at + len(RECORD_MAGIC)] = RECORD_MAGIC
    return bytes(data)


def scanned(content):
    """(records as (offset, stream), bad spans as (start, end)) of a bulk volume."""

    class Disk:
        async def read_direct(self, _, offset, size):
            return content[offset : offset + size]

    async def main():
        header = VolumeHeader(VolumeKind.BULK, 1, 1, 0, bytes(32), bytes(16))
        volume = Volume(header, len(content), None)
        records, bad = [], []
        async for found in _scan.scan_records(SimpleNamespace(disk=Disk()), volume):
            if found.header is None:
                bad.append((found.offset, found.offset + found.size_bytes))
            else:
                assert found.data == content[found.offset : found.offset + found.size_bytes]
                records.append((found.offset, found.header.a))
        return records, bad

    return run(main(), 1)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.sampled_from(GAPS), st.integers(0, 9_000)), min_size=1, max_size=6),
    st.sampled_from([1 << 14, 1 << 22]),
)
def test_every_record_is_found_behind_whatever_lies_before_it(layout, window):
    content = bytearray(HEADER_BYTES)
    expected, spans = [], []
    for n, (gap, size) in enumerate(layout):
        if gap:
            spans.append((len(content), len(content) + gap))
        content += junk(gap, n)
        expected.append((len(content), stream_id(n)))
        content += record(n, size)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_scan, "WINDOW_BYTES", window)
        records, bad = scanned(bytes(content))
    assert records == expected
    assert bad == spans


def test_padding_is_no_damage_and_an_altered_record_is():
    first, second, third = record(1, 3_000), record(2, 3_000), record(3, 100)
    content = bytearray(HEADER_BYTES) + first
    content += b"\xff" * (align(len(content)) - len(content))
    at = len(content)
    content += second + third
    assert scanned(bytes(content))[1] == []
    content[at + 2_000] ^= 1
    records, bad = scanned(bytes(content))
    assert [stream for _, stream in records] == [stream_id(1), stream_id(3)]
    assert bad == [(at, at + len(second))]


def test_padding_that_a_power_cut_tore_is_no_damage():
    """Its record is whole, so that the volume goes on behind it; of the sectors that only pad the
    write, which no sync had covered, some were kept."""
    content = bytearray(HEADER_BYTES) + record(1, 300)
    at = len(content)
    content += b"\xff" * (align(at) - at)
    sector = align(at) - 3 * 512
    content[sector : sector + 512] = bytes(512)
    content += record(2, 100)
    assert scanned(bytes(content)) == (
        [(HEADER_BYTES, stream_id(1)), (align(at), stream_id(2))],
        [],
    )
    for byte in (sector + 5, at + 7):
        torn = bytearray(content)
        torn[byte] ^= 0x10
        assert len(scanned(bytes(torn))[1]) == 1


def test_the_search_behind_a_batch_looks_at_little():
    """A volume of many small batches: each has padding behind its records, and the search that
    passes over it must not copy a whole window each time."""
    content = bytearray(HEADER_BYTES)
    count = 300
    for n in range(count):
        content += record(n, 500)
        content += b"\xff" * (align(len(content)) - len(content))
    copied = 0

    def counting(view):
        nonlocal copied
        copied += view if isinstance(view, int) else len(view)
        return bytes(view)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_scan, "bytes", counting, raising=False)
        records, bad = scanned(bytes(content))
    assert len(records) == count
    assert bad == []
    assert copied < count * 4 * STEP


@pytest.mark.parametrize("suffix", [".log", ".bulk"])
def test_a_bad_span_tells_whether_rows_may_have_stood_there(suffix):
    """Wherever in a batch, or in a block, the record stands."""

    async def main():
        disk, _ = await filled()
        kinds = {}
        for kind in records.RECORD_TYPES:
            for place in places(disk, kind, suffix):
                kinds[place] = kind
        store = await opened(disk)
        met = set()
        for (path, offset, size), kind in kinds.items():
            volume = next((v for v in store._core.volumes.values() if v.path == path), None)
            if volume is None:
                continue
            disk.rot(path, offset + size - 1)
            bad = [s async for s in _scan.scan_records(store._core, volume) if s.header is None]
            disk.rot(path, offset + size - 1)
            assert [span.offset for span in bad] == [offset]
            expected = kind not in {records.FRAME, records.ENTRY}
            assert bad[0].may_hold_rows is expected, (path, offset, kind)
            met.add(kind)
        assert met >= ({records.FRAME, records.ENTRY} if suffix == ".log" else {records.FRAME})
        assert met - {records.FRAME, records.ENTRY}
        await store.close()

    run(main(), 1)


MAGIC_AT, KIND_AT, SEQUENCE_AT = HASH_BYTES, HASH_BYTES + 4, PREFIX_BYTES - 3


@pytest.mark.parametrize("byte", [MAGIC_AT, KIND_AT, SEQUENCE_AT])
def test_a_batch_tells_what_a_record_was_whose_header_is_bad(byte):
    """It names its entries. If as many records are missing, these are the entries."""

    async def main():
        disk, _ = await filled()
        kinds = {}
        for kind in records.RECORD_TYPES:
            for place in places(disk, kind):
                kinds[place] = kind
        store = await opened(disk)
        volumes = {volume.path: volume for volume in store._core.volumes.values()}
        met = set()
        for (path, offset, _), kind in kinds.items():
            if path not in volumes or kind == records.FRAME:
                continue
            disk.rot(path, offset + byte)
            bad = [s async for s in _scan.scan_records(store._core, volumes[path]) if not s.header]
            disk.rot(path, offset + byte)
            assert [span.offset <= offset < span.offset + span.size_bytes for span in bad] == [True]
            assert bad[0].may_hold_rows is (kind != records.ENTRY), (path, offset, kind)
            met.add(kind)
        assert met >= {records.ENTRY, records.OUTCOME, records.LOCAL}
        await store.close()

    run(main(), 1)


async def one_batch(disk):
    """The entries 2 and 3 in one batch, behind the outcome of 1: the places of all three."""
    store = await opened(disk)
    await store.append(1, hard(1), [entry(1)])
    store.apply(1, 1, [(b"\x10key", b"value")], [])
    await asyncio.gather(*(store.append(1, None, [entry(i)]) for i in (2, 3)))
    await store.append(1, None, [entry(4)])
    await store.close()
    _, second, third, _ = places(disk, records.ENTRY)
    outcome = max(place for place in places(disk, records.OUTCOME) if place < second)
    assert outcome[1] // 4096 == third[1] // 4096
    return outcome, second, third


async def judged(disk, path):
    """What is said of each bad span of that volume."""
    store = await opened(disk)
    volume = next(v for v in store._core.volumes.values() if v.path == path)
    found = [s async for s in _scan.scan_records(store._core, volume) if s.header is None]
    await store.close()
    return [span.may_hold_rows for span in found]


@pytest.mark.parametrize(
    ("spoiled", "expected"),
    [
        (["second"], [False]),
        (["second", "third"], [False]),
        (["outcome", "third"], [True, True]),
        (["outcome", "second", "third"], [True]),
    ],
)
def test_a_batch_of_which_more_than_entries_is_missing_may_have_held_rows(spoiled, expected):
    async def main():
        disk = SimDisk(1)
        stood = dict(zip(("outcome", "second", "third"), await one_batch(disk), strict=True))
        for name in spoiled:
            path, offset, _ = stood[name]
            disk.rot(path, offset + MAGIC_AT)
        assert await judged(disk, path) == expected

    run(main(), 1)


@pytest.mark.parametrize("where", ["neither", "header", "trailer", "both"])
def test_of_several_batches_in_one_bad_span_each_is_asked(where):
    """Its header says as much as its trailer."""

    async def main():
        disk = SimDisk(1)
        store = await opened(disk)
        for i in range(1, 6):
            await store.append(1, None, [entry(i)])
        await store.close()
        found = places(disk, records.ENTRY)[1:4]
        path = found[0][0]
        for _, offset, _ in found:
            disk.rot(path, offset + MAGIC_AT)
        block = found[1][1] - found[1][1] % 4096
        if where in {"header", "both"}:
            disk.rot(path, block + 40)
        if where in {"trailer", "both"}:
            disk.rot(path, block + 4096 - 50)
        assert await judged(disk, path) == [where == "both"]

    run(main(), 1)


def test_a_batch_of_many_blocks_is_found_by_its_header_alone(monkeypatch):
    """What is bad lies further behind it than is read at a time."""

    async def main():
        disk = SimDisk(1)
        store = await opened(disk)
        await store.append(1, hard(1), [entry(i, data=bytes(9000)) for i in range(1, 31)])
        await store.append(1, None, [entry(31)])
        await store.close()
        found = places(disk, records.ENTRY)
        path, last, size = found[29]
        disk.rot(path, last + MAGIC_AT)
        disk.rot(path, align(last + size) - 50)
        assert await judged(disk, path) == [False]
        disk.rot(path, found[0][1] - found[0][1] % 4096 + 40)
        assert True in await judged(disk, path)

    monkeypatch.setattr(_scan, "WINDOW_BYTES", 1 << 15)
    run(main(), 1)
