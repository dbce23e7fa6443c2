"""Bodies that go from the page cache to a plain socket in one job for each piece.

A job that reads, checks, unseals and sends a frame does it while the frame is in one core's cache,
and two of them use two cores; by way of the loop's thread every frame visits both, and the system
call that sends it holds that thread (docs/performance.md, "Large bodies").

Interface: `send_stream`. What is not in the page cache, or does not hold, is read by `read_stream`,
which waits for the disk and asks other replicas.

Invariants
- A frame is sent only after its record's BLAKE3 and its seal were checked, as in `read_stream`.
- The first frame is read: a body that is gone or damaged is found before its head is sent.
- Where many bodies are sent at a time, none keeps more than REST_BYTES while its client is slow:
  what the socket had no room for is read, checked and unsealed again.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from typing import TYPE_CHECKING

from o3storage._native import FileHandle
from o3storage.cluster._bodies import Crowd, frame_count, frame_size, read_stream
from o3storage.cluster._reading import READ_FAULTS
from o3storage.crypto import FRAME_BYTES, TAG_BYTES, FramePlace, StreamRef, StreamSealer
from o3storage.runtime.disk import Buffer
from o3storage.runtime.jobs import Jobs
from o3storage.storage import PREFIX_BYTES, FrameReader, Store

if TYPE_CHECKING:
    from o3storage.cluster._repair import Repair

PIECE_FRAMES = 4
"""Frames of one job: 1 MiB, about a millisecond of one of the pool's threads, so that other jobs do
not wait long; each job costs two wake-ups of threads."""

READ_FRAMES = 16
"""Frames that are read ahead of the client behind one that the page cache did not have: what is not
there mostly comes in stretches."""

REST_BYTES = 16 * 1024
"""What a body keeps for a slow client, of many: enough that the transport tells when it went."""


class DirectPiece:
    """Consecutive frames, or what is wanted of them, that can be sent without being seen. See
    `http.DirectPiece`."""

    __slots__ = ("_at", "_body", "_ends", "_file", "_frames", "missed")

    def __init__(
        self, body: _Body, at: int, file: FileHandle, frames: list[FramePlace], size_bytes: int
    ) -> None:
        self._body = body
        self._at = at
        self._file = file
        self._frames = frames
        self._ends: list[int] = []
        end = 0
        for *_, low, high in frames:
            end += high - low
            self._ends.append(end)
        assert end == size_bytes
        self.missed = False
        """Some of it had to be read."""

    def __len__(self) -> int:
        return self._ends[-1]

    async def send(self, socket: FileHandle, start: int) -> tuple[int, bytes]:
        """See `http.DirectPiece.send`; `start` is 0 or what earlier calls took."""
        if self._file.closed:
            # The volume was compacted away, or others were opened, while a slow client took what
            # came before.
            return 0, b""
        body = self._body
        first = bisect_right(self._ends, start)
        frames = self._frames[first:]
        begun = start - self._ends[first - 1] if first else start
        if begun:
            number, offset, record_bytes, low, high = frames[0]
            frames[0] = number, offset, record_bytes, low + begun, high
        job = body.sealer.send_records_job(
            self._file, socket, frames, PREFIX_BYTES, frame_count(body.ref) - 1
        )
        taken, rest = await body.jobs.run(job)
        if len(rest) > REST_BYTES and body.crowd.is_dense:
            return taken - len(rest) + REST_BYTES, rest[:REST_BYTES]
        return taken, rest

    def read(self, start: int) -> AsyncGenerator[Buffer, None]:
        """See `http.DirectPiece.read`."""
        self.missed = True
        return self._body.read(self._at + start, len(self) - start)


class _Body:
    """What it takes to read one stream."""

    __slots__ = ("crowd", "jobs", "ref", "repair", "sealer", "store")

    def __init__(  # noqa: PLR0917
        self,
        store: Store,
        jobs: Jobs,
        sealer: StreamSealer,
        ref: StreamRef,
        repair: Repair | None,
        crowd: Crowd,
    ) -> None:
        self.store = store
        self.jobs = jobs
        self.sealer = sealer
        self.ref = ref
        self.repair = repair
        self.crowd = crowd

    def read(self, offset: int, length: int) -> AsyncGenerator[Buffer, None]:
        return read_stream(
            self.store,
            self.jobs,
            self.sealer,
            self.ref,
            offset=offset,
            length=length,
            repair=self.repair,
            crowd=self.crowd,
        )

    def piece(self, reader: FrameReader, at: int, end: int) -> DirectPiece | None:
        """The next frames from byte `at` on; None if they are to be read."""
        number = at // FRAME_BYTES
        count = min(PIECE_FRAMES, (end - 1) // FRAME_BYTES - number + 1)
        try:
            found = reader.places_now(number, count)
        except READ_FAULTS:
            return None
        if found is None:
            return None
        file, spots = found
        frames: list[FramePlace] = []
        begun = at
        for offset, record_bytes in spots:
            plain_bytes = frame_size(self.ref, number)
            if record_bytes != PREFIX_BYTES + plain_bytes + TAG_BYTES:
                return None
            base = number * FRAME_BYTES
            high = min(end - base, plain_bytes)
            frames.append((number, offset, record_bytes, at - base, high))
            at = base + high
            number += 1
        return DirectPiece(self, begun, file, frames, at - begun)


async def send_stream(
    store: Store,
    jobs: Jobs,
    sealer: StreamSealer,
    ref: StreamRef,
    *,
    offset: int,
    length: int,
    repair: Repair | None = None,
    crowd: Crowd | None = None,
) -> AsyncIterator[Buffer | DirectPiece]:
    """As `read_stream`, with pieces among the buffers that the caller sends, or reads, before it
    asks for the next. Raises what `read_stream` raises."""
    end = min(offset + length, ref.size_bytes)
    if offset < 0 or offset >= end:
        return
    crowd = crowd or Crowd()
    body = _Body(store, jobs, sealer, ref, repair, crowd)
    store.pin(ref.stream)
    crowd.bodies += 1
    try:
        reader = FrameReader(store, ref.stream)
        at = min(end, (offset // FRAME_BYTES + 1) * FRAME_BYTES)
        async with aclosing(body.read(offset, at - offset)) as buffers:
            first: list[Buffer | DirectPiece] = [buffer async for buffer in buffers]
        if crowd.is_dense and (again := body.piece(reader, offset, at)) is not None:
            first = [again]
        while first:
            yield first.pop()
        while at < end:
            piece = body.piece(reader, at, end)
            if piece is not None:
                yield piece
                at += len(piece)
            if piece is None or piece.missed:
                stop = min(end, (at // FRAME_BYTES + READ_FRAMES) * FRAME_BYTES)
                if at < stop:
                    async with aclosing(body.read(at, stop - at)) as buffers:
                        async for buffer in buffers:
                            yield buffer
                at = stop
    finally:
        crowd.bodies -= 1
        store.unpin(ref.stream)
