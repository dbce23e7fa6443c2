"""A bad span of the index whose frames' places were their records, which are bad, too: the span is put
right without them, and whoever knows which frames there must be is told."""

from __future__ import annotations

import pytest

from o3storage.simulation import SimDisk, run
from o3storage.storage import PLACES_LOST, BadBlock, FrameMissing, _rebuild
from o3storage.storage._records import FRAME

from .support import entry, frame, hard, stream_id
from .test_faults import places
from .test_rebuild import _always, lose_index
from .test_span_repair import tables
from .test_verify import opened

COUNT = 20
LAST = stream_id(COUNT)


async def spoiled(disk, kind, *, table=False):
    """Frames with a row each; the last record of a kind is bad, and so is the index's table if it
    is to be: an open meets that."""
    store = await opened(disk)
    for i in range(1, COUNT + 1):
        await store.append(1, hard(1), [entry(i)], [frame(i, size=900)])
        store.apply(1, i, [(b"\x10key%d" % i, b"value")])
    await store.flush()
    await store.close()
    if kind is not None:
        path, offset, size = places(disk, kind)[-1]
        disk.rot(path, offset + size // 2)
    if table:
        (path,) = tables(disk)
        disk.rot(path, len(disk.image.lookup(path).cached) - 20, 0x10)
    return await opened(disk)


class Told:
    """In the cluster's place: what stands when it is told."""

    def __init__(self, store):
        self.store = store
        self.saw = []

    async def may_lose(self, low, high, /):
        raise AssertionError("no row is lost")

    def lost(self, groups, /):
        raise AssertionError("no row is lost")

    def places_lost(self):
        noted = self.store._core.index.get_now(b"\x06" + PLACES_LOST)
        self.saw.append((noted, self.store._frames.held_now(LAST)))


async def repair(store, low, high):
    """As a read does that met a bad block."""
    store._spans.wanted(BadBlock(1, low, high, "rot"))
    await store.repair_index()


async def is_whole_but_for_the_last(store):
    with pytest.raises(FrameMissing):
        await store.read_frame(LAST, 0)
    for i in range(1, COUNT):
        assert bytes(await store.read_frame(stream_id(i), 0)) == frame(i, size=900).data
    assert await store.get(b"\x10key%d" % COUNT) == b"value"


@pytest.mark.parametrize("when", ["at the open", "alone", "with others"])
def test_a_place_that_is_lost_is_noted_before_and_told(when):
    async def main():
        disk = SimDisk(1)
        store = await spoiled(disk, FRAME, table=when == "at the open")
        if when != "at the open":
            assert store._frames.held_now(LAST) == 1
            others = Told(store) if when == "with others" else None
            store.mend_with_others(others)
            await repair(store, b"\x01", b"\x02")
            assert others is None or others.saw == [(b"", 1), (b"", 0)]
        await is_whole_but_for_the_last(store)
        await store.flush()
        disk = disk.crash()
        store = await opened(disk)
        await is_whole_but_for_the_last(store)
        assert await store.noted(PLACES_LOST) == b""
        await store.close()

    run(main(), 1)


@pytest.mark.parametrize("kind", [FRAME, None], ids=["a frame", "nothing"])
def test_a_rebuild_without_a_frame_is_remembered_by_the_next_open(monkeypatch, kind):
    async def main():
        disk = SimDisk(1)
        store = await spoiled(disk, kind)
        await store.close()
        await lose_index(disk)
        monkeypatch.setattr(_rebuild, "_is_partial", _always)  # (else so little is replayed)
        store = await opened(disk)
        assert store.stats().index_rebuilt
        disk = disk.crash()
        store = await opened(disk)
        assert not store.stats().index_rebuilt
        assert (await store.noted(PLACES_LOST) is not None) is (kind is not None)
        await store.close()

    run(main(), 1)


@pytest.mark.parametrize(
    ("kind", "low", "high"),
    [(FRAME, b"\x02", b"\xff"), (FRAME, b"\x10", None), (None, b"\x01", b"\x02")],
    ids=["behind places", "rows", "nothing is bad"],
)
def test_where_no_place_was_lost_none_is_missed(kind, low, high):
    async def main():
        disk = SimDisk(1)
        store = await spoiled(disk, kind)
        store.mend_with_others(others := Told(store))
        await repair(store, low, high)
        assert not others.saw and await store.noted(PLACES_LOST) is None
        await store.close()

    run(main(), 1)
