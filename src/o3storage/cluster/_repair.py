"""Frames that are damaged here are taken from another replica and stored again, with a placement of
their own; the record that rotted becomes garbage.

A holder checks the BLAKE3 of what it sends; a reader unseals it as well before it is used.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from typing import TYPE_CHECKING

from o3storage.cluster._errors import ClusterError
from o3storage.cluster._reading import READ_FAULTS
from o3storage.storage import BadFrame, SealedFrame, StoreError

if TYPE_CHECKING:
    from o3storage.cluster._replication import Replication

MAX_WAITING = 10_000
"""Bad frames remembered; a scrub finds the rest again."""
TRIES = 3
RETRY_S = 2.0


class Repair:
    """`fetch` for a reader, `wanted` for what scrub found."""

    def __init__(self, node: Replication) -> None:
        self.repaired_frames = 0
        """Damaged here, taken from another replica and stored again, since the start."""
        self.unrepaired_frames = 0
        """Damaged here, and no replica that could be asked has a good copy."""
        self._node = node
        self._queue: deque[tuple[bytes, int]] = deque()
        self._task: asyncio.Task[None] | None = None

    def wanted(self, bad: BadFrame) -> None:
        """Have it repaired, soon. (What is no frame is nothing that others hold: it is reported,
        and found missing at the next start that reads it.)"""
        if bad.stream and len(self._queue) < MAX_WAITING:
            self._queue.append((bad.stream, bad.number))
            if self._task is None or self._task.done():
                self._task = asyncio.get_running_loop().create_task(self._run())

    async def settled(self) -> None:
        """Return when all that was wanted is repaired, or was tried."""
        if self._task is not None:
            await asyncio.gather(self._task, return_exceptions=True)

    async def close(self) -> None:
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    async def _run(self) -> None:
        while self._queue:
            stream, number = self._queue.popleft()
            for attempt in range(TRIES):
                if attempt:
                    await asyncio.sleep(RETRY_S)
                with contextlib.suppress(ClusterError, StoreError, *READ_FAULTS):
                    if await self._repair(stream, number):
                        break
            else:
                self.unrepaired_frames += 1

    async def _repair(self, stream: bytes, number: int) -> bool:
        """Whether it is good now, or not wanted any more. Raises as its steps do."""
        store = self._node.store
        # Pinned: what is released meanwhile (an entry says so, or the range leaves this disk) goes
        # when this has ended, and with it what is stored here.
        store.pin(stream)
        try:
            runs = await store.stream_frames(stream)
            frames = max((first + count for first, count in runs), default=0)
            if number >= frames:
                return True  # released before
            frame = await self.fetch(stream, number, frames)
            return frame is not None and await self.store_again(frame)
        finally:
            store.unpin(stream)

    async def fetch(self, stream: bytes, number: int, frames: int) -> SealedFrame | None:
        """The frame from whoever has it; None: nobody has. `frames`: how many the stream has.
        Raises Unavailable: nobody gave it, and not all could say."""
        node = self._node
        return await node.fetcher.fetch_one(node.everyone(), stream, number, frames)

    async def store_again(self, frame: SealedFrame) -> bool:
        """In the place of the damaged one, of a stream that the caller pins. Raises StoreError."""
        node = self._node
        if node.was_released(frame.stream):
            return True
        writer = node.store.open_stream(frame.stream)
        try:
            await writer.write(frame)
            await writer.sync()
            node.stored_late(frame.stream)
        finally:
            writer.discard()
        self.repaired_frames += 1
        return True
