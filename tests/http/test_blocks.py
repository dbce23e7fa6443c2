"""The block pool, and bodies cut into frames, without any connection."""

from __future__ import annotations

import asyncio
import gc
import itertools
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from o3storage.http import (
    LARGE_BLOCK_BYTES,
    SMALL_BLOCK_BYTES,
    Block,
    BlockPool,
    BodyTruncated,
    frames,
)
from tests.http.serving import run, until

MIB = 1024 * 1024


class Pieces:
    """A source that gives `data` in pieces of random sizes, then fails with `error` if any."""

    def __init__(
        self,
        data: bytes,
        seed: int = 0,
        error: Exception | None = None,
        length: int | None = None,
    ) -> None:
        self.length = length
        self.data = data
        self.at = 0
        self.rng = random.Random(seed)
        self.error = error

    async def read_into(self, view: memoryview) -> int:
        assert len(view) > 0
        if self.rng.random() < 0.2:
            await asyncio.sleep(0)
        if self.at == len(self.data):
            if self.error is not None:
                raise self.error
            return 0
        count = min(len(view), len(self.data) - self.at, self.rng.choice((1, 1000, 100_000, 10**9)))
        view[:count] = self.data[self.at : self.at + count]
        self.at += count
        return count


@given(st.integers(0, 5), st.integers(-2, 2), st.booleans(), st.integers(0, 2**32))
@settings(max_examples=60, deadline=None)
def test_frames_against_slices(blocks: int, around: int, known: bool, seed: int) -> None:
    size = max(0, blocks * LARGE_BLOCK_BYTES // 2 + around)
    data = random.Random(seed).randbytes(size)

    async def main() -> None:
        pool = BlockPool(4 * MIB)
        found = []
        async for block, last in frames(Pieces(data, seed, length=size if known else None), pool):
            found.append((bytes(block.view), last))
            block.release()
        cuts = range(0, max(size, 1), LARGE_BLOCK_BYTES)
        assert [b for b, _ in found] == [data[at : at + LARGE_BLOCK_BYTES] for at in cuts]
        assert [last for _, last in found] == [False] * (len(cuts) - 1) + [True]
        assert pool.lent_bytes == 0
        assert pool.lost_blocks == 0

    run(main())


def test_small_body_takes_a_small_block() -> None:
    async def main() -> None:
        pool = BlockPool()
        async for block, last in frames(Pieces(bytes(4096)), pool):
            assert last
            assert len(block.buffer) == SMALL_BLOCK_BYTES
            assert pool.lent_bytes == SMALL_BLOCK_BYTES
            block.release()

    run(main())


@pytest.mark.parametrize("size", [0, 100, 20_000, 300_000])
def test_failing_source_frees_every_block(size: int) -> None:
    async def main() -> None:
        pool = BlockPool()
        with pytest.raises(BodyTruncated):
            async for block, _ in frames(Pieces(bytes(size), error=BodyTruncated("gone")), pool):
                block.release()
        assert pool.lent_bytes == 0
        assert pool.lost_blocks == 0

    run(main())


@pytest.mark.parametrize("size", [0, 100, LARGE_BLOCK_BYTES])
def test_a_source_that_ends_before_its_length_is_an_error(size: int) -> None:
    async def main() -> None:
        pool = BlockPool()
        with pytest.raises(BodyTruncated):
            async for block, _ in frames(Pieces(bytes(size), length=size + 1), pool):
                block.release()
        assert pool.lent_bytes == 0

    run(main())


def test_leaving_early_frees_what_is_held() -> None:
    async def main() -> None:
        pool = BlockPool()
        with frames(Pieces(bytes(MIB)), pool) as cut:
            async for block, _ in cut:
                block.release()
                break
        assert pool.lent_bytes == 0
        with pytest.raises(StopAsyncIteration):
            await anext(cut)

    run(main())


def test_cancelling_frees_what_is_held() -> None:
    class Stuck(Pieces):
        async def read_into(self, view: memoryview) -> int:
            if self.at == len(self.data):
                await asyncio.get_running_loop().create_future()
            return await super().read_into(view)

    async def main() -> None:
        pool = BlockPool()
        task = asyncio.ensure_future(anext(frames(Stuck(bytes(20_000)), pool)))
        await until(lambda: pool.lent_bytes == LARGE_BLOCK_BYTES)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert pool.lent_bytes == 0

    run(main())


def test_later_blocks_of_a_slow_body_start_small() -> None:
    async def sizes(slow: bool) -> list[tuple[int, bool]]:
        pool = BlockPool()
        lent = []
        take = pool._take

        def noted(size_bytes: int, fast: bool) -> Block | None:
            lent.append((size_bytes, fast))
            return take(size_bytes, fast)

        pool._take = noted  # type: ignore[method-assign]
        cut = frames(Pieces(bytes(LARGE_BLOCK_BYTES + 100)), pool)
        if slow:
            clock = itertools.count(0, 10)
            cut._time = lambda: float(next(clock))  # every look at it is 10 s later
        async for block, _ in cut:
            block.release()
        return lent

    async def main() -> None:
        small, large = SMALL_BLOCK_BYTES, LARGE_BLOCK_BYTES
        assert await sizes(slow=False) == [(small, True), (large, True), (large, True)]
        assert await sizes(slow=True) == [(small, True), (large, False), (small, True)]

    run(main())


# --- the pool


def test_blocks_are_reused() -> None:
    pool = BlockPool()
    block = pool.take_now(LARGE_BLOCK_BYTES)
    assert block is not None
    memory = block.buffer
    block.size = 5
    block.release()
    again = pool.take_now(LARGE_BLOCK_BYTES)
    assert again is block
    assert again.buffer is memory
    assert again.size == 0
    again.release()


def test_second_release_is_an_error() -> None:
    block = BlockPool().take_now(SMALL_BLOCK_BYTES)
    assert block is not None
    block.release()
    with pytest.raises(RuntimeError, match="twice"):
        block.release()


def test_dropped_block_is_counted_and_its_share_comes_back() -> None:
    pool = BlockPool()
    block = pool.take_now(LARGE_BLOCK_BYTES)
    assert block is not None
    view = block.view
    del block
    gc.collect()
    assert pool.lost_blocks == 1
    assert pool.lent_bytes == 0
    assert len(view) == 0


def take_all(pool: BlockPool, size: int, *, fast: bool) -> list[Block]:
    blocks = []
    while (block := pool.take_now(size, fast=fast)) is not None:
        blocks.append(block)
    return blocks


def test_a_quarter_is_kept_for_fast_bodies() -> None:
    pool = BlockPool()  # 128 MiB
    slow_large = take_all(pool, LARGE_BLOCK_BYTES, fast=False)
    assert len(slow_large) * LARGE_BLOCK_BYTES == 32 * MIB
    small = [pool.take_now(SMALL_BLOCK_BYTES) for _ in range(4096)]  # one for each connection
    assert None not in small
    fast = take_all(pool, LARGE_BLOCK_BYTES, fast=True)
    assert len(fast) * LARGE_BLOCK_BYTES == 32 * MIB
    for block in [*slow_large, *small, *fast]:
        assert block is not None
        block.release()
    assert pool.lent_bytes == 0
    assert len(take_all(pool, LARGE_BLOCK_BYTES, fast=False)) * LARGE_BLOCK_BYTES == 32 * MIB


def test_waiting_for_a_block_fast_ones_first() -> None:
    async def main() -> None:
        pool = BlockPool(MIB)
        held = take_all(pool, LARGE_BLOCK_BYTES, fast=True)
        assert len(held) == 4
        order = []

        async def want(name: str, size: int, fast: bool) -> None:
            block = await pool.take(size, fast=fast)
            order.append(name)
            block.release()

        tasks = [
            asyncio.ensure_future(want(name, size, fast))
            for name, size, fast in (
                ("slow", LARGE_BLOCK_BYTES, False),
                ("fast 1", LARGE_BLOCK_BYTES, True),
                ("cancelled", SMALL_BLOCK_BYTES, True),
                ("fast 2", SMALL_BLOCK_BYTES, True),
            )
        ]
        await until(lambda: pool.waits == 4)
        assert pool.take_now(SMALL_BLOCK_BYTES) is None
        tasks[2].cancel()
        await asyncio.sleep(0)
        held.pop().release()
        await asyncio.gather(*tasks, return_exceptions=True)
        assert order == ["fast 1", "fast 2", "slow"]
        for block in held:
            block.release()
        assert pool.lent_bytes == 0

    run(main())


def test_what_comes_back_is_saved_up_for_a_fast_body() -> None:
    async def main() -> None:
        pool = BlockPool(MIB)
        held = [pool.take_now(LARGE_BLOCK_BYTES) for _ in range(3)]
        small = take_all(pool, SMALL_BLOCK_BYTES, fast=True)
        assert len(small) == 16
        slow = asyncio.ensure_future(pool.take(SMALL_BLOCK_BYTES, fast=False))
        fast = asyncio.ensure_future(pool.take(LARGE_BLOCK_BYTES, fast=True))
        await until(lambda: pool.waits == 2)
        for block in small:
            assert not slow.done()
            assert not fast.done()
            block.release()
        assert len((await fast).buffer) == LARGE_BLOCK_BYTES
        assert not slow.done()
        (await fast).release()
        (await slow).release()
        for block in held:
            assert block is not None
            block.release()
        assert pool.lent_bytes == 0

    run(main())


def test_cancelled_in_the_moment_of_being_served() -> None:
    async def main() -> None:
        pool = BlockPool(MIB)
        held = take_all(pool, LARGE_BLOCK_BYTES, fast=True)
        task = asyncio.ensure_future(pool.take(LARGE_BLOCK_BYTES))
        await until(lambda: pool.waits == 1)
        held.pop().release()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert pool.lent_bytes == 3 * LARGE_BLOCK_BYTES
        for block in held:
            block.release()
        assert pool.lost_blocks == 0

    run(main())


@given(st.integers(0, 2**32))
@settings(max_examples=60, deadline=None)
def test_the_pool_keeps_its_bounds(seed: int) -> None:
    rng = random.Random(seed)
    pool = BlockPool(2 * MIB)
    held: list[Block] = []
    for _ in range(300):
        if held and rng.random() < 0.45:
            held.pop(rng.randrange(len(held))).release()
        else:
            size = rng.choice((SMALL_BLOCK_BYTES, LARGE_BLOCK_BYTES))
            block = pool.take_now(size, fast=rng.random() < 0.5)
            if block is not None:
                assert len(block.buffer) == size
                assert all(block is not other for other in held)
                held.append(block)
        assert pool.lent_bytes == sum(len(b.buffer) for b in held)
        assert pool.lent_bytes + pool._kept_bytes <= 2 * MIB
    for block in held:
        block.release()
    assert pool._slow_large_bytes == 0


def test_too_small_a_pool_is_refused() -> None:
    with pytest.raises(ValueError, match="needs"):
        BlockPool(LARGE_BLOCK_BYTES)
