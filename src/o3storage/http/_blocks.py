"""Blocks of memory for bodies, and a body cut into frames.

Blocks come in two sizes from one pool of a fixed number of bytes. They are made when first needed
and reused: glibc would map and unmap a new large buffer each time (739 against 3,329 MiB/s).
A quarter of the pool is kept for bodies above FAST_RATE_BYTES_PER_S: small blocks (half the pool
holds one for each of 4,096 connections) and large blocks of slow bodies (at most a quarter) cannot
take it.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable
from types import TracebackType
from typing import Protocol

from o3storage.http._errors import BodyTruncated
from o3storage.http._limits import (
    BLOCK_POOL_BYTES,
    FAST_RATE_BYTES_PER_S,
    FAST_SHARE,
    LARGE_BLOCK_BYTES,
    SMALL_BLOCK_BYTES,
)


class ByteSource(Protocol):
    """A stream of bytes: a request body, or a decoder over one.

    A source may also have what `Body` has, and `frames` then uses it: `ready` (so that no block
    waits for bytes), `fill_into` (fewer wake-ups; a short count is the end), `whole_now`.
    """

    @property
    def length(self) -> int | None:
        """Size in bytes of the whole stream if it is known beforehand and nothing follows the last
        byte; else None. A decoder that checks something behind it (a last signature, a trailer)
        says None, since a reader stops at a known length."""
        ...

    async def read_into(self, view: memoryview) -> int:
        """Read 1 to len(view) bytes into `view` (not empty); 0 means the end. Raises BodyError and
        whatever the decoder adds. Not to be called again while a call is under way."""
        ...


class Block:
    """A lent piece of memory. `buffer` is all of it, `size` the bytes filled, `view` those bytes.

    Whoever holds it calls `release` once, when nothing (no job, no pending write) uses its memory
    any more; after that no view of it may be used. A block that is dropped without `release` gives
    its share of the pool back but not its memory.
    """

    __slots__ = ("_pool", "buffer", "size")

    def __init__(self, pool: BlockPool | None, size_bytes: int) -> None:
        self._pool = pool
        self.buffer = memoryview(bytearray(size_bytes))
        self.size = 0

    @property
    def view(self) -> memoryview:
        """The filled part, writable."""
        return self.buffer[: self.size]

    def release(self) -> None:
        """Give the block back. Raises RuntimeError if that was done before."""
        pool = self._pool
        if pool is None:
            raise RuntimeError("block released twice")
        self._pool = None
        pool._give_back(self)

    def __del__(self) -> None:
        if self._pool is not None:
            self._pool._lost(len(self.buffer))

    def __repr__(self) -> str:
        return f"<Block {self.size} of {len(self.buffer)} bytes>"


class BlockPool:
    """All body blocks of a process; see the module's text. `total_bytes` bounds what is lent and
    what is kept for reuse together."""

    def __init__(self, total_bytes: int = BLOCK_POOL_BYTES) -> None:
        if total_bytes < 4 * LARGE_BLOCK_BYTES:
            raise ValueError(f"a block pool needs {4 * LARGE_BLOCK_BYTES} bytes or more")
        self.total_bytes = total_bytes
        self.lent_bytes = 0
        """Bytes of blocks in use."""
        self.waits = 0
        """How often a body had to wait for a block."""
        self.lost_blocks = 0
        """Blocks dropped without `release`: each one is a defect of its holder."""
        self._slow_large_bytes = 0
        self._slow_large_limit = int(total_bytes * FAST_SHARE)
        self._free: dict[int, list[Block]] = {SMALL_BLOCK_BYTES: [], LARGE_BLOCK_BYTES: []}
        self._kept_bytes = 0
        self._slow: set[int] = set()
        self._waiters: deque[tuple[asyncio.Future[Block], int, bool]] = deque()

    def take_now(self, size_bytes: int, *, fast: bool = True) -> Block | None:
        """A block of SMALL_BLOCK_BYTES or LARGE_BLOCK_BYTES, or None if there is none to be had or
        others wait."""
        if self._waiters:
            return None
        return self._take(size_bytes, fast)

    async def take(self, size_bytes: int, *, fast: bool = True) -> Block:
        """The same, waiting in line (fast bodies pass slow ones that wait)."""
        block = self.take_now(size_bytes, fast=fast)
        if block is not None:
            return block
        self.waits += 1
        future: asyncio.Future[Block] = asyncio.get_running_loop().create_future()
        self._waiters.append((future, size_bytes, fast))
        self._serve()
        try:
            return await future
        except asyncio.CancelledError:
            if future.done() and not future.cancelled():
                future.result().release()
            else:
                self._serve()
            raise

    def _take(self, size_bytes: int, fast: bool) -> Block | None:
        if self.lent_bytes + size_bytes > self.total_bytes:
            return None
        slow_large = not fast and size_bytes == LARGE_BLOCK_BYTES
        if slow_large and self._slow_large_bytes + size_bytes > self._slow_large_limit:
            return None
        free = self._free[size_bytes]
        if free:
            block = free.pop()
            self._kept_bytes -= size_bytes
            block.size = 0
            block._pool = self
        else:
            self._make_room(size_bytes)
            block = Block(self, size_bytes)
        self.lent_bytes += size_bytes
        if slow_large:
            self._slow_large_bytes += size_bytes
            self._slow.add(id(block))
        return block

    def _make_room(self, size_bytes: int) -> None:
        """Drop free blocks of the other size, so that lent and kept stay within the total."""
        for size, free in self._free.items():
            while free and self.lent_bytes + self._kept_bytes + size_bytes > self.total_bytes:
                free.pop()
                self._kept_bytes -= size

    def _give_back(self, block: Block) -> None:
        size_bytes = len(block.buffer)
        self.lent_bytes -= size_bytes
        if self._slow and id(block) in self._slow:
            self._slow.remove(id(block))
            self._slow_large_bytes -= size_bytes
        self._kept_bytes += size_bytes
        self._free[size_bytes].append(block)
        if self._waiters:
            self._serve()

    def _lost(self, size_bytes: int) -> None:
        self.lost_blocks += 1
        self.lent_bytes -= size_bytes
        if self._waiters:
            self._serve()

    def _serve(self) -> None:
        """Hand free blocks to those who wait: fast ones first, each kind in order of arrival."""
        for fast in (True, False):
            index = 0
            while index < len(self._waiters):
                future, size_bytes, is_fast = self._waiters[index]
                if future.done():
                    del self._waiters[index]
                    continue
                if is_fast is not fast:
                    index += 1
                    continue
                block = self._take(size_bytes, fast)
                if block is None:
                    if fast:
                        return  # what is left over is saved up for it
                    break
                del self._waiters[index]
                future.set_result(block)


class _NoMemory(BlockPool):
    """Where an empty block comes from and goes to."""

    def _give_back(self, block: Block) -> None:
        pass

    def _lost(self, size_bytes: int) -> None:
        pass


_NO_MEMORY = _NoMemory()


def _empty_block() -> Block:
    """A block that owns no memory of the pool, for an empty body."""
    return Block(_NO_MEMORY, 0)


class Frames(AsyncIterator[tuple[Block, bool]]):
    """See `frames`."""

    def __init__(self, source: ByteSource, pool: BlockPool) -> None:
        self._pool = pool
        self._length = source.length
        fill: Callable[[memoryview], Awaitable[int]] | None = getattr(source, "fill_into", None)
        self._read = fill or source.read_into
        self._fills = fill is not None
        """A short read is the end."""
        self._ready: Callable[[], Awaitable[bool]] | None = getattr(source, "ready", None)
        self._whole_now: Callable[[], int] | None = getattr(source, "whole_now", None)
        self._time = asyncio.get_running_loop().time
        self._block: Block | None = None
        self._ended = False
        self._waited_s = 0.0
        self.received_bytes = 0
        """Bytes read so far."""

    def __aiter__(self) -> Frames:
        return self

    def __enter__(self) -> Frames:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Release the block that is held, if any. Idempotent; the iteration is over."""
        self._ended = True
        block = self._block
        if block is not None:
            self._block = None
            block.release()

    async def __anext__(self) -> tuple[Block, bool]:
        if self._ended:
            raise StopAsyncIteration
        try:
            if self._whole_now is not None and not self.received_bytes:
                small = 0 < self._whole_now() <= SMALL_BLOCK_BYTES
                block = self._pool.take_now(SMALL_BLOCK_BYTES) if small else None
                if block is not None:  # it came with its head: one copy, no waiting
                    self._block = block
                    block.size = self.received_bytes = await self._read(block.buffer)
                    self._block = None
                    self._ended = True
                    return block, True
            return await self._next()
        except BaseException:
            self.close()
            raise

    async def _next(self) -> tuple[Block, bool]:
        block = self._block
        if block is None:
            large = self.received_bytes > 0 and self._is_fast()
            # No block is owned before the first byte.
            if not large and not await self._more():
                self._check_length()
                self._ended = True
                return _empty_block(), True
            block = self._block or await self._take(large)
        last = await self._fill(block)
        block = self._block
        assert block is not None
        self._block = None  # a full block is held back until more or the end is known
        try:
            last = last or not await self._more()
            if last:
                self._check_length()
        except BaseException:
            block.release()
            raise
        self._ended = last
        return block, last

    def _check_length(self) -> None:
        if self._length is not None and self.received_bytes != self._length:
            raise BodyTruncated("the body did not end at its declared length")

    async def _fill(self, block: Block) -> bool:
        """Fill the current block, growing it once. Returns True when the end was met."""
        while True:
            size = len(block.buffer)
            while block.size < size:
                view = block.buffer[block.size :] if block.size else block.buffer
                count = await self._timed_read(view)
                block.size += count
                if count == 0 or (self._fills and block.size < size):
                    return True
            if size == LARGE_BLOCK_BYTES:
                return False
            if self._ready is not None and not await self._ready():
                return True
            grown = await self._pool.take(LARGE_BLOCK_BYTES, fast=self._is_fast())
            grown.buffer[:size] = block.buffer
            grown.size = size
            self._block = grown
            block.release()
            block = grown

    async def _more(self) -> bool:
        """True if the source has more bytes. It is asked only if the length does not tell, and one
        that cannot tell is read into a new block."""
        if self._length is not None and self.received_bytes:
            return self.received_bytes < self._length
        if self._ready is not None:
            started = self._time()
            more = await self._ready()
            self._waited_s += self._time() - started
            return more
        block = await self._take(self.received_bytes > 0 and self._is_fast())
        block.size = await self._timed_read(block.buffer)
        if block.size == 0:
            self._block = None
            block.release()
            return False
        return True

    async def _take(self, large: bool) -> Block:
        size_bytes = LARGE_BLOCK_BYTES if large else SMALL_BLOCK_BYTES
        self._block = block = self._pool.take_now(size_bytes) or await self._pool.take(size_bytes)
        return block

    async def _timed_read(self, view: memoryview) -> int:
        started = self._time()
        count = await self._read(view)
        self._waited_s += self._time() - started
        self.received_bytes += count
        return count

    def _is_fast(self) -> bool:
        """By the time spent waiting for the client, not for the pool or the disk."""
        return self.received_bytes >= self._waited_s * FAST_RATE_BYTES_PER_S


def frames(source: ByteSource, pool: BlockPool) -> Frames:
    """Cut a body into blocks of exactly LARGE_BLOCK_BYTES (256 KiB) but the last: an asynchronous
    iterator of (block, last) that the caller releases each block of.

    A full block is held back until more bytes or the end are known, so `last` is True exactly once
    (an empty body gives one empty block). No block is owned before the first byte is there (if the
    source has `ready`, as `Body` does), a body starts with a small block, and a later block starts
    small if the body is slow. Errors of the source pass through; the blocks held inside are then
    released. Leave it early only through `close` or a `with` statement:

        with frames(request.body, pool) as cut:
            async for block, last in cut:
                ...
                block.release()
    """
    return Frames(source, pool)
