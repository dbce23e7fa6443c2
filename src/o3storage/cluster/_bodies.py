"""Bodies out of the store: verified, unsealed frames with a little read-ahead."""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import AsyncGenerator
from typing import Protocol

from o3storage.cluster._errors import BodyDamaged, BodyMissing, Unavailable
from o3storage.cluster._reading import READ_FAULTS
from o3storage.cluster._streams import JOB_BYTES, settled
from o3storage.crypto import FRAME_BYTES, TAG_BYTES, SealError, StreamRef, StreamSealer
from o3storage.runtime.disk import Buffer
from o3storage.runtime.jobs import Jobs
from o3storage.storage import (
    PREFIX_BYTES,
    FrameBad,
    FrameMissing,
    FrameReader,
    FrameUnread,
    SealedFrame,
    Store,
)


class Source(Protocol):
    """Other nodes' copies of frames: `_repair.Repair`, `_lending.FramesElsewhere`."""

    async def fetch(self, stream: bytes, number: int, frames: int) -> SealedFrame | None:
        """The frame from whoever has it; None: nobody has. `frames`: how many the stream has.
        Raises Unavailable: nobody gave it, and not all could say."""
        ...

    async def store_again(self, frame: SealedFrame) -> bool:
        """In the place of the damaged one. Raises StoreError."""
        ...


READ_AHEAD_FRAMES = 2
"""Frames read and unsealed beyond the one being sent: hides the disk; 768 KiB for each reader."""

CROWDED_BODIES = 128
"""Bodies of several frames on their way out, above which each keeps less of itself in memory: their
clients may be slow, and there may be as many as connections. Below, they take 128 MiB at most."""

CROWDED_READS = 32
"""Frames of a crowd that are read and unsealed at a time: more would only wait in memory for the
two threads that compute."""


class Crowd:
    """How many bodies of several frames a node is sending."""

    __slots__ = ("bodies", "turn")

    def __init__(self) -> None:
        self.bodies = 0
        self.turn = asyncio.Semaphore(CROWDED_READS)
        """Held by who reads a frame of a dense crowd; never while a client is waited for."""

    @property
    def is_dense(self) -> bool:
        return self.bodies > CROWDED_BODIES


def frame_count(ref: StreamRef) -> int:
    return max(1, -(-ref.size_bytes // FRAME_BYTES))


def frame_size(ref: StreamRef, number: int) -> int:
    """Plaintext bytes of a frame."""
    return min(FRAME_BYTES, ref.size_bytes - number * FRAME_BYTES)


def spans_frames(offset: int, end: int) -> bool:
    """Whether bytes [offset, end) lie in more than one frame."""
    return offset < end and offset // FRAME_BYTES != (end - 1) // FRAME_BYTES


def read_small_now(store: Store, sealer: StreamSealer, ref: StreamRef) -> bytes | None:
    """The whole body of one frame, if no disk I/O is needed; else None.
    Raises BodyMissing, BodyDamaged, Unavailable."""
    if ref.size_bytes > FRAME_BYTES:
        return None
    try:
        sealed = store.read_frame_now(ref.stream, 0)
    except READ_FAULTS as error:
        raise _refusal(error, ref, 0) from error
    if sealed is None:
        return None
    return _unseal_now(sealer, ref, 0, sealed)


def _unseal_now(sealer: StreamSealer, ref: StreamRef, number: int, sealed: Buffer) -> bytes:
    _check_size(ref, number, sealed)
    try:
        return sealer.unseal_frame(number, sealed, number == frame_count(ref) - 1)
    except SealError as error:
        raise _damaged(ref, number, str(error)) from error


def _check_size(ref: StreamRef, number: int, sealed: Buffer) -> None:
    if len(sealed) != frame_size(ref, number) + TAG_BYTES:
        raise _damaged(ref, number, "it has the wrong size")


def _damaged(ref: StreamRef, number: int, why: str) -> BodyDamaged:
    return BodyDamaged(
        f"frame {number} of stream {ref.stream.hex()} is damaged ({why}) and there is no other "
        "copy; run `o3storage verify`"
    )


class _Unread(Unavailable):
    """This node's disk failed to read a frame."""


def _refusal(error: Exception, ref: StreamRef, number: int) -> Exception:
    if isinstance(error, FrameMissing):
        return BodyMissing(f"frame {number} of stream {ref.stream.hex()} is not here")
    if isinstance(error, FrameBad):
        return _damaged(ref, number, str(error))
    if isinstance(error, FrameUnread):
        return _Unread(str(error))
    return Unavailable(str(error))


async def _read_frame(  # noqa: PLR0917
    store: Store,
    jobs: Jobs,
    sealer: StreamSealer,
    ref: StreamRef,
    number: int,
    repair: Source | None,
) -> bytes:
    """One frame's plaintext, checked twice: BLAKE3 of what is stored, then its seal. One that is
    bad here, or not here, or cannot be read, is asked of the other replicas."""
    try:
        return await _read_own(store, jobs, sealer, ref, number)
    except (BodyMissing, BodyDamaged, Unavailable) as error:
        if repair is None:
            raise
        try:
            frame = await repair.fetch(ref.stream, number, frame_count(ref))
        except Unavailable as why:
            if not isinstance(error, BodyDamaged):
                raise error from why
            where = f"frame {number} of stream {ref.stream.hex()}"
            raise Unavailable(f"{where} is damaged on this node, and {why}") from error
        if frame is None:
            raise
        plain = _unseal_now(sealer, ref, number, frame.data)
        if isinstance(error, BodyDamaged | _Unread):
            with contextlib.suppress(*READ_FAULTS):
                await repair.store_again(frame)
        return plain


async def _read_own(
    store: Store, jobs: Jobs, sealer: StreamSealer, ref: StreamRef, number: int
) -> bytes:
    try:
        sealed = store.read_frame_now(ref.stream, number)
        if sealed is None:
            sealed = await store.read_frame(ref.stream, number)
    except READ_FAULTS as error:
        raise _refusal(error, ref, number) from error
    if len(sealed) < JOB_BYTES:
        return _unseal_now(sealer, ref, number, sealed)
    _check_size(ref, number, sealed)
    last = number == frame_count(ref) - 1
    try:
        job = sealer.unseal_frame_job(number, sealed, last)
        return await settled(asyncio.ensure_future(jobs.run(job)))
    except SealError as error:
        raise _damaged(ref, number, str(error)) from error


async def read_stream(
    store: Store,
    jobs: Jobs,
    sealer: StreamSealer,
    ref: StreamRef,
    *,
    offset: int,
    length: int,
    repair: Source | None = None,
    crowd: Crowd | None = None,
) -> AsyncGenerator[Buffer, None]:
    """Plaintext bytes [offset, offset + length), cut at the end of the body, in pieces of at most
    a frame, each verified before it is yielded. The stream is pinned while the iterator lives; it
    counts in `crowd`, and does not read ahead where that is dense.

    Raises BodyMissing, BodyDamaged, Unavailable; a piece that was yielded is right whatever
    follows."""
    end = min(offset + length, ref.size_bytes)
    if offset < 0 or offset >= end:
        return
    number = offset // FRAME_BYTES
    final = (end - 1) // FRAME_BYTES
    stream = ref.stream
    store.pin(stream)
    ahead: deque[asyncio.Future[bytes]] = deque()
    crowd = crowd or Crowd()
    crowd.bodies += 1
    try:
        if number == final and not crowd.is_dense:
            # One frame: no task, no read-ahead.
            plain = await _read_frame(store, jobs, sealer, ref, number, repair)
            base = number * FRAME_BYTES
            yield _cut(plain, offset - base, end - base)
            return
        reader = FrameReader(store, stream)
        next_number = number
        while number <= final:
            base = number * FRAME_BYTES
            if crowd.is_dense and not ahead:
                async with crowd.turn:
                    plain = await _read_frame(store, jobs, sealer, ref, number, repair)
                yield _cut(plain, max(offset - base, 0), min(end - base, len(plain)))
                number += 1
                next_number = number
                continue
            while next_number <= final and len(ahead) <= READ_AHEAD_FRAMES and not crowd.is_dense:
                opened = _open_now(reader, jobs, sealer, ref, next_number)
                ahead.append(
                    opened
                    or asyncio.ensure_future(
                        _read_frame(store, jobs, sealer, ref, next_number, repair)
                    )
                )
                next_number += 1
            try:
                plain = await ahead[0]
            except SealError:
                # Which of its checks failed, and what is to be done, is found out there.
                plain = await _read_frame(store, jobs, sealer, ref, number, repair)
            ahead.popleft()
            yield _cut(plain, max(offset - base, 0), min(end - base, len(plain)))
            number += 1
    finally:
        for task in ahead:
            task.cancel()
        if ahead:
            # Their reads end before the pin goes.
            await asyncio.gather(*ahead, return_exceptions=True)
        crowd.bodies -= 1
        store.unpin(stream)


def _open_now(
    reader: FrameReader, jobs: Jobs, sealer: StreamSealer, ref: StreamRef, number: int
) -> asyncio.Future[bytes] | None:
    """The plaintext of a frame that is in the page cache, by one job that checks and unseals its
    record; None if it is not, or is not what it should be. The future may raise SealError."""
    try:
        record = reader.record_now(number)
    except READ_FAULTS:
        return None
    if record is None or len(record) != PREFIX_BYTES + frame_size(ref, number) + TAG_BYTES:
        return None
    last = number == frame_count(ref) - 1
    job = sealer.open_record_job(number, record, PREFIX_BYTES, last)
    return asyncio.ensure_future(jobs.run(job))


def _cut(plain: bytes, low: int, high: int) -> Buffer:
    if low == 0 and high == len(plain):
        return plain
    return memoryview(plain)[low:high]
