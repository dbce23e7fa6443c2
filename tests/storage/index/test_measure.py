"""Sizes of spans of keys, and keys that lie evenly over them."""

from __future__ import annotations

import random
from itertools import pairwise

from hypothesis import given, settings
from hypothesis import strategies as st

from o3storage.simulation import SimDisk, run
from o3storage.storage.index import _measure
from tests.storage.index.support import open_index

LOW, HIGH = b"\x00", b"\xff"


async def filled(seed: int, batches: int):
    """An index with rows in level 0 and below."""
    rng = random.Random(seed)
    index = await open_index(SimDisk(seed), seed)
    for number in range(batches):
        keys = [b"%06d" % rng.randrange(1_000_000) for _ in range(60)]
        index.write([(key, rng.randbytes(rng.randrange(60))) for key in keys])
        await index.flush(b"%d" % number)
        if number % 3 == 2:
            await index.merge()
    return index


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 9), st.integers(1, 9), st.lists(st.integers(0, 1_000_000), max_size=6))
def test_the_parts_of_a_span_have_its_bytes(seed: int, batches: int, cuts: list[int]) -> None:
    async def main() -> None:
        index = await filled(seed, batches)
        whole = index.measure(LOW, HIGH)
        assert 0 < whole <= index.disk_bytes
        bounds = [LOW, *sorted({b"%06d" % cut for cut in cuts}), HIGH]
        parts = [index.measure(low, high) for low, high in pairwise(bounds)]
        assert sum(parts) == whole
        assert index.measure(b"7", b"8") <= whole / 4  # (a tenth of the keys)
        assert index.measure(b"a", HIGH) == 0
        await index.close()

    run(main(), seed)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 9), st.integers(1, 9), st.integers(1, 400))
def test_a_sample_stands_for_all_bytes_and_lies_in_the_span(
    seed: int, batches: int, most: int
) -> None:
    async def main() -> None:
        index = await filled(seed, batches)
        before = _measure.MAX_SAMPLES
        _measure.MAX_SAMPLES = most
        try:
            for low, high in ((LOW, HIGH), (b"2", b"6"), (b"55", b"56")):
                found = index.sample(low, high)
                assert sum(size for _, size in found) == index.measure(low, high)
                assert all(low <= key < high for key, _ in found)
                assert len(found) <= most + len(index._tables.state.tables)
        finally:
            _measure.MAX_SAMPLES = before
        await index.close()

    run(main(), seed)


def test_the_middle_of_a_sample_is_the_middle_of_the_rows() -> None:
    async def main() -> None:
        index = await filled(3, 9)
        found = sorted(index.sample(LOW, HIGH))
        half, passed = index.measure(LOW, HIGH) / 2, 0
        for key, size in found:
            passed += size
            if passed >= half:
                break
        assert b"450000" < key < b"550000"
        await index.close()

    run(main(), 1)


def test_a_table_that_cannot_be_read_is_left_out() -> None:
    async def main() -> None:
        index = await filled(4, 2)
        before = index.measure(LOW, HIGH)
        table = index._tables.view.level0[0]
        table.index = None
        assert 0 < index.measure(LOW, HIGH) < before
        assert sum(size for _, size in index.sample(LOW, HIGH)) == index.measure(LOW, HIGH)
        await index.close()

    run(main(), 2)
