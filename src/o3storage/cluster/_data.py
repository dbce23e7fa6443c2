"""A body on its way to the other members while it is uploaded: each gets its frames by a stream of
its own, in parallel, and the upload waits for a majority only.

    head    group u32, stream 16
    piece   number u32, last u8, sealed

A member that is too far behind, or fails, is dropped from the stream: it fetches what it lacks when
the entry comes. The entry is proposed only when a majority holds the frames durably: an entry whose
frames one machine alone holds would keep its range waiting if that machine were lost.
"""

from __future__ import annotations

import asyncio
import struct
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING

from o3storage.cluster import _kinds
from o3storage.cluster._errors import ClusterError, Unavailable
from o3storage.cluster._peer_streams import InStream
from o3storage.cluster._peer_types import PeerError
from o3storage.raft.core import Configuration
from o3storage.storage import SEAL_TAG_BYTES, SealedFrame, StoreError

if TYPE_CHECKING:
    from o3storage.cluster._replication import Replication

BEHIND_BYTES = 8 << 20
"""What waits in memory for one member; one that is further behind than a majority is dropped."""
MAX_WAITING_BYTES = 128 << 20
"""What waits for all members, of all uploads of a node: a quarter of the memory that it may take.
Beyond it a member is dropped from an upload for less, its even share of this."""
OPEN_S = 2.0
FINISH_S = 20.0
"""The slowest sync and placement of a member that is waited for."""
CODE_STORAGE = 64
"""PeerError: the member cannot store the frames."""
NOT_A_MEMBER = "this node has no replica of the range any more"

_HEAD = struct.Struct(">I16s")
_PIECE = struct.Struct(">IB")


class Sending:
    """What waits in memory for the members, of all uploads of a node."""

    __slots__ = ("branches", "bytes")

    def __init__(self) -> None:
        self.bytes = 0
        self.branches = 0

    def most(self) -> int:
        """Bytes that may wait for one member of one upload."""
        if self.bytes < MAX_WAITING_BYTES:
            return BEHIND_BYTES
        return min(BEHIND_BYTES, max(MAX_WAITING_BYTES // max(self.branches, 1), 1))


class Fanout:
    """The coordinator's side of one body. `write` its frames in order, then `durable`; or
    `abort`."""

    def __init__(
        self,
        node: Replication,
        group: int,
        stream: bytes,
        configuration: Callable[[], Configuration],
        *,
        own: bool = True,
    ) -> None:
        """`configuration`: of the range, as it is now. `own`: this node stores the body itself."""
        self._node = node
        self._configuration = configuration
        self._began = configuration()
        self._own = [node.id] if own else []
        self._head = _HEAD.pack(group, stream)
        self._changed: deque[asyncio.Future[None]] = deque()
        self._branches = {
            member: _Branch(self, member)
            for member in self._began.members()
            if member != node.id and node.peers.is_up(member)
        }
        for branch in self._branches.values():
            branch.start()

    async def write(self, frame: SealedFrame) -> None:
        """Hand it to every member; waits while a majority is behind. Raises Unavailable as soon
        as no majority will hold it: the client need not send the rest."""
        while True:
            able = [*self._own, *(b.member for b in self._branches.values() if b.open or b.done)]
            if not self._decided(able):
                raise self._refusal(able, "can take")
            most = self._node.sending.most()
            late = [b for b in self._branches.values() if b.open and b.bytes >= most]
            if not late:
                break
            behind = {branch.member for branch in late}
            able = [b.member for b in self._branches.values() if b.open and b.member not in behind]
            if self._configuration().decided([*self._own, *able]):
                for branch in late:
                    branch.drop()
                break
            await self._change()
        for branch in self._branches.values():
            if branch.open:
                branch.put(frame)

    async def durable(self) -> None:
        """Return when a majority, this node included, holds all frames durably. (Of the members
        at the start, if they changed meanwhile: newcomers fetch.)

        Raises Unavailable when no more members will hold them; nothing was proposed then."""
        while True:
            holders = self.holders()
            if self._configuration().decided(holders):
                return
            if not any(branch.open for branch in self._branches.values()):
                if self._began.decided(holders):
                    return
                raise self._refusal(holders, "hold")
            await self._change()

    def _decided(self, nodes: list[int]) -> bool:
        return self._configuration().decided(nodes) or self._began.decided(nodes)

    def _refusal(self, nodes: list[int], do: str) -> Unavailable:
        return Unavailable(
            f"only {len(nodes)} of {len(self._began.members())} nodes {do} the body, "
            "which is no majority; try again"
        )

    def holders(self) -> list[int]:
        """Nodes that hold all frames durably by now; this one once its own are."""
        return [*self._own, *(b.member for b in self._branches.values() if b.done)]

    def drop_own(self) -> None:
        """This node does not keep the body."""
        self._own = []

    def abort(self) -> None:
        for branch in self._branches.values():
            branch.drop()

    async def _change(self) -> None:
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._changed.append(future)
        await future

    def changed(self) -> None:
        while self._changed:
            future = self._changed.popleft()
            if not future.done():
                future.set_result(None)

    @property
    def node(self) -> Replication:
        return self._node

    @property
    def head(self) -> bytes:
        return self._head


class _Branch:
    """One member's stream."""

    def __init__(self, fanout: Fanout, member: int) -> None:
        self.member = member
        self.open = True
        """It may still come to hold all frames."""
        self.done = False
        self.bytes = 0
        self._fanout = fanout
        self._sending = fanout.node.sending
        self._sending.branches += 1
        self._queue: deque[SealedFrame] = deque()
        self._wake: asyncio.Future[None] | None = None
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        self._task = asyncio.get_running_loop().create_task(self._run())
        self._fanout.node.keep(self._task)

    def put(self, frame: SealedFrame) -> None:
        self._queue.append(frame)
        self._count(len(frame.data))
        self._kick()

    def drop(self) -> None:
        if self.open:
            self._end()
            if self._task is not None:
                self._task.cancel()  # (perhaps before its first step)

    def _count(self, size: int) -> None:
        self.bytes += size
        self._sending.bytes += size

    def _end(self) -> None:
        """Nothing more waits here. Idempotent."""
        if self.open:
            self.open = False
            self._queue.clear()
            self._count(-self.bytes)
            self._sending.branches -= 1

    def _kick(self) -> None:
        wake, self._wake = self._wake, None
        if wake is not None and not wake.done():
            wake.set_result(None)

    async def _run(self) -> None:
        peers = self._fanout.node.peers
        out = None
        try:
            out = await peers.open_stream(
                self.member, _kinds.BODY, self._fanout.head, timeout_s=OPEN_S
            )
            last = False
            while not last:
                while not self._queue:
                    self._wake = asyncio.get_running_loop().create_future()
                    await self._wake
                frame = self._queue.popleft()
                last = frame.last
                head = _PIECE.pack(frame.number, frame.last)
                await out.write(frame.data, last, head=head)
                self._count(-len(frame.data))
                self._fanout.changed()
            await out.finish(FINISH_S)
            self.done = True
        except ClusterError:
            pass  # it fetches what it lacks
        finally:
            self._end()
            if out is not None and not self.done:
                out.abort()
            self._fanout.changed()


class BodyReceiver:
    """The members' side."""

    def __init__(self, node: Replication) -> None:
        self._node = node

    async def serve(self, _: int, head: bytes, pieces: InStream) -> bytes:
        if len(head) != _HEAD.size:
            raise ValueError("a stream of a body with a bad head")
        group, stream = _HEAD.unpack(head)
        if self._node.keeps_nothing_of(group):
            raise PeerError(CODE_STORAGE, NOT_A_MEMBER)
        if stream in self._node.writing:
            raise PeerError(CODE_STORAGE, "the frames of this stream are being stored already")
        store = self._node.store
        writer = None
        self._node.writing[stream] = None
        try:
            expected = 0
            async for piece in pieces:
                if writer is None:
                    writer = store.open_stream(stream)
                await writer.write(decode_piece(stream, piece, expected))
                expected += 1
            if writer is not None and not self._node.was_released(stream):
                await writer.sync()
                if not self._node.stored_late(stream, group):
                    raise PeerError(CODE_STORAGE, NOT_A_MEMBER)
        except StoreError as error:
            raise PeerError(CODE_STORAGE, str(error)) from error
        finally:
            del self._node.writing[stream]
            if writer is not None:
                writer.discard()
        return b""


def decode_piece(stream: bytes, piece: bytes, expected: int) -> SealedFrame:
    """The frame of a piece. Raises ValueError."""
    if len(piece) <= _PIECE.size + SEAL_TAG_BYTES:
        raise ValueError("a piece of a body is cut short")
    number, last = _PIECE.unpack_from(piece)
    if number != expected or last > 1:
        raise ValueError("a piece of a body that nobody sent")
    data = memoryview(piece)[_PIECE.size :]
    return SealedFrame(stream, number, bool(last), len(data) - SEAL_TAG_BYTES, data)
