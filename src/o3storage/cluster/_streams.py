"""Bodies into the store: sealing, small frames beside their entry, large ones into the bulk.

A body of at most SMALL_FRAME_BYTES stays in memory until its entry is proposed and is written with
it, once. A larger one is announced first (a committed OPEN row), then its frames are sealed by jobs
of the pool and streamed to the bulk volume, which pushes back when its queue is full.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import TYPE_CHECKING, TypeVar

from o3storage._native import Digester
from o3storage.cluster import _records
from o3storage.cluster._errors import ClusterError, StorageFull, Unavailable
from o3storage.crypto import FRAME_BYTES, SALT_BYTES, STREAM_ID_BYTES, StreamRef, StreamSealer
from o3storage.runtime.disk import Buffer
from o3storage.runtime.state_machine import Outcome
from o3storage.storage import (
    SMALL_FRAME_BYTES,
    SealedFrame,
    StoreError,
    StoreFull,
    StreamWriter,
)

if TYPE_CHECKING:
    from o3storage.cluster._data import Fanout
    from o3storage.cluster._node import Node

JOB_BYTES = 64 * 1024
"""Below this, sealing in place costs less than the way to the pool and back."""

T = TypeVar("T")


async def settled(future: asyncio.Future[T]) -> T:
    """Await a job, also when cancelled: it reads the caller's buffer until it is done."""
    try:
        return await asyncio.shield(future)
    except asyncio.CancelledError:
        if not future.done():
            await asyncio.gather(future, return_exceptions=True)
        raise


class UploadFrames(list[SealedFrame]):
    """The frames of an upload that ride with the entry which names it (none of a large body),
    and whose they are. Hand it to `Node.submit` as it is."""

    __slots__ = ("upload",)

    def __init__(self, upload: StreamUpload, frames: Sequence[SealedFrame] = ()) -> None:
        super().__init__(frames)
        self.upload = upload


class StreamUpload:
    """One body, or part, on its way into the store (one attempt: a retry is another upload).

    `write` its blocks in order, then name `ref` in one command submitted with `frames`; or
    `discard` it.
    """

    __slots__ = (
        "_announced",
        "_ended",
        "_fanout",
        "_frames",
        "_group",
        "_node",
        "_number",
        "_sealer",
        "_writer",
        "has_row",
        "ref",
        "route",
        "started_ns",
        "submitted",
    )

    def __init__(self, node: Node, route: bytes, started_ns: int, epoch: int, kek: bytes) -> None:
        """Use `Node.new_stream`."""
        random = node.entropy.random_bytes(STREAM_ID_BYTES + SALT_BYTES)
        stream, salt = random[:STREAM_ID_BYTES], random[STREAM_ID_BYTES:]
        self._node = node
        self._sealer = StreamSealer(kek, salt, stream)
        self._number = 0
        self._ended = False
        self._frames: tuple[SealedFrame, ...] = ()
        self._announced: asyncio.Future[Outcome] | None = None
        self._writer: StreamWriter | None = None
        self._fanout: Fanout | None = None
        self._group = 0
        """The range when the first frame was stored."""
        self.ref = StreamRef(stream, salt, epoch, 0)
        """What a command names; whole once the last block was written."""
        self.route = route
        self.started_ns = started_ns
        self.has_row = False
        """A committed row says that the stream is open (or may say so)."""
        self.submitted = False
        """A command with these frames was proposed."""

    @property
    def frames(self) -> UploadFrames:
        """What rides with the entry. Made at each call: kept here it would close a circle, and
        the sealed bytes would live until the garbage collector comes by."""
        return UploadFrames(self, self._frames)

    @property
    def small(self) -> bool:
        return bool(self._frames)

    async def write(self, block: Buffer, last: bool, digester: Digester | None = None) -> None:
        """Seal and store a block of exactly 256 KiB, fewer only with `last` (not none). With
        `digester` its plaintext is digested in the same pass. The block may be reused on return;
        with `last`, all frames are durable then, on a majority of the members. A small body becomes
        so with its entry, as the placement of a large one does.

        Raises StorageFull, Unavailable."""
        size = len(block)
        if self._ended or size == 0 or size > FRAME_BYTES or (size < FRAME_BYTES and not last):
            raise ValueError("blocks are 256 KiB, the last one 1 byte to 256 KiB, in order")
        self._ended = last
        number = self._number
        self._number += 1
        ref = self.ref
        ref.size_bytes += size
        if number == 0 and last and size <= SMALL_FRAME_BYTES:
            data = self._sealer.seal_frame(0, block, True, digester)
            self._frames = (SealedFrame(ref.stream, 0, True, size, data),)
            return
        if number == 0:
            # Announced while the first frame is sealed; durable before the frame is written, so
            # that no crash leaves frames that nobody knows of.
            self.has_row = True
            self._announced = self._node.announce(self)
        try:
            if size < JOB_BYTES:
                data = self._sealer.seal_frame(number, block, last, digester)
            else:
                job = self._sealer.seal_frame_job(number, block, last, digester)
                data = await settled(asyncio.ensure_future(self._node.jobs.run(job)))
            if self._announced is not None:
                announced, self._announced = self._announced, None
                await announced
            if number == 0:
                self._group = self._node.group_of(self.route)
                self._fanout = self._node.fan_out(self)
                if self._node.holds(self.route):
                    self._writer = self._node.store.open_stream(ref.stream)
            frame = SealedFrame(ref.stream, number, last, size, data)
            if self._fanout is not None:
                await self._fanout.write(frame)
            if self._writer is not None:
                await self._writer.write(frame)
            if last and self._writer is None and self._fanout is not None:
                await self._fanout.durable()  # (its members hold it; this node does not)
            elif last and self._writer is not None:
                # In a group of one the placement may ride in the batch of the entry that will name
                # the stream, or before it. Others ask for the frames as soon as they hear of the
                # entry, so theirs must be placed by then.
                await self._writer.sync(wait_placement=self._fanout is not None or self._shared())
                self._keep_own()
                if self._fanout is not None:
                    await self._fanout.durable()
        except StoreFull as error:
            raise StorageFull(str(error)) from error
        except StoreError as error:
            raise Unavailable(str(error)) from error

    def _keep_own(self) -> None:
        """The body is placed on this disk: it goes again, if its range left the disk meanwhile.
        Nothing here will name it, and nothing would release it. Raises Unavailable."""
        replication = self._node.replication
        if replication is None or replication.stored_late(self.ref.stream, self._group):
            return
        if self._fanout is None:
            raise Unavailable("the range left this node during the upload; try again")
        self._fanout.drop_own()

    def _shared(self) -> bool:
        """Whether the range has other members than this node."""
        node = self._node
        if not node.holds(self.route):
            return True
        core = node.replica_of(self.route).core
        return not core.sole or bool(core.progress)

    @property
    def held(self) -> list[int]:
        """Nodes that hold all frames of a large body durably."""
        if self._fanout is not None:
            return self._fanout.holders()
        return [] if self._writer is None else [self._node.id]

    def discard(self) -> None:
        """The body is not wanted. What was stored of it goes, by committed commands only; nothing
        may name it any more. Idempotent."""
        self._ended = True
        if self._fanout is not None and not self.submitted:
            self._fanout.abort()
        if self._writer is not None:
            # (An error keeps whom it met alive, until the garbage collector comes by: so long its
            # volume could not be compacted.)
            self._writer.discard()
        announced, self._announced = self._announced, None
        if announced is not None:
            announced.add_done_callback(_seen)
        if self.has_row:
            self._node.give_up(_records.stream_key(self.route, self.ref.stream), self.route)


def _seen(future: asyncio.Future[Outcome]) -> None:
    """Whoever waited is gone; an error is no news to anyone."""
    if not future.cancelled() and isinstance(future.exception(), ClusterError):
        return
