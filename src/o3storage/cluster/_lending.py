"""Bodies that are read at other nodes: a holder of the range keeps their frames readable until the
reader has ended, though the version that named them goes meanwhile.

    HOLD      token u64, then streams, 16 bytes each: these are lent for LEND_S; none: what was lent
              under the token is lent for so long again. The answer is a byte: 1, or 0 if nothing is
              lent under it any more. At most MAX_LENT under one token
    LET_GO    token u64; the answer is empty

Both go by the bulk link, like the requests for frames (`_fetching`) that follow them, so they are
served in order. What is lent does not outlive the holder's process, nor a reader that is silent for
LEND_S.
"""

from __future__ import annotations

import asyncio
import struct
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from typing import TYPE_CHECKING

from o3storage.cluster import _bodies, _kinds
from o3storage.cluster._errors import ClusterError, Unavailable
from o3storage.cluster._peer_types import PeerError
from o3storage.cluster._wire import Lane
from o3storage.crypto import StreamRef, StreamSealer
from o3storage.runtime.disk import Buffer
from o3storage.storage import SealedFrame

if TYPE_CHECKING:
    from o3storage.cluster._elsewhere import Elsewhere
    from o3storage.cluster._node import Node

LEND_S = 30.0
"""A reader that died is waited for so long: space, nothing else."""
RENEW_S = 8.0
"""Three of these may be lost."""
CALL_S = 5.0
MAX_LOANS = 8192
"""Of one holder, at a time: as many readers as it serves itself (http/_limits)."""
MAX_STREAMS = 1024
"""Of one HOLD: a page of parts."""
MAX_LENT = 16_384
"""Of one loan: the parts of an object, of which there are 10,000 at most."""
STREAM_BYTES = 16
CODE_BUSY = 65
"""PeerError: this node lends as many as it can."""

_TOKEN = struct.Struct(">Q")


class Lender:
    """The holder's side."""

    def __init__(self, node: Node) -> None:
        self._node = node
        self._loans: dict[tuple[int, int], tuple[float, dict[bytes, None]]] = {}
        """(reader, token) -> (until when, streams that are pinned)."""
        self._timer: asyncio.TimerHandle | None = None

    @property
    def loans(self) -> int:
        return len(self._loans)

    async def serve_hold(self, reader: int, body: memoryview) -> bytes:
        if len(body) < _TOKEN.size or (len(body) - _TOKEN.size) % STREAM_BYTES:
            raise ValueError("a loan of half a stream")
        if len(body) > _TOKEN.size + MAX_STREAMS * STREAM_BYTES:
            raise ValueError("a loan of too many streams")
        loop, store = asyncio.get_running_loop(), self._node.store
        key = reader, _TOKEN.unpack_from(body)[0]
        found = self._loans.get(key)
        data = bytes(body[_TOKEN.size :])
        if found is None:
            if not data:
                return b"\x00"
            if len(self._loans) >= MAX_LOANS:
                raise PeerError(CODE_BUSY, "this node lends as many bodies as it can")
        streams = found[1] if found is not None else {}
        asked = dict.fromkeys(
            [data[at : at + STREAM_BYTES] for at in range(0, len(data), STREAM_BYTES)]
        )
        new = [stream for stream in asked if stream not in streams]
        if len(streams) + len(new) > MAX_LENT:
            raise ValueError("a loan of too many streams")
        for stream in new:
            store.pin(stream)
            streams[stream] = None
        self._loans[key] = loop.time() + LEND_S, streams
        if self._timer is None:
            self._timer = loop.call_later(LEND_S / 2, self._sweep)
        return b"\x01"

    async def serve_let_go(self, reader: int, body: memoryview) -> bytes:
        if len(body) != _TOKEN.size:
            raise ValueError("a token of the wrong size")
        self._end((reader, _TOKEN.unpack(body)[0]))
        return b""

    def _end(self, key: tuple[int, int]) -> None:
        found = self._loans.pop(key, None)
        for stream in found[1] if found is not None else ():
            self._node.store.unpin(stream)

    def _sweep(self) -> None:
        self._timer = None
        now_s = asyncio.get_running_loop().time()
        for key in [key for key, (until_s, _) in self._loans.items() if until_s <= now_s]:
            self._end(key)
        if self._loans:
            loop = asyncio.get_running_loop()
            self._timer = loop.call_later(LEND_S / 2, self._sweep)

    def close(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


class Loan:
    """The reader's side: `take`, then `end`."""

    def __init__(self, elsewhere: Elsewhere, group: int, token: int) -> None:
        self.group = group
        self.holder = 0
        """Who lends; 0: nobody yet."""
        self._elsewhere = elsewhere
        self._token = _TOKEN.pack(token)
        self._renewal: asyncio.Task[None] | None = None

    async def take(self, streams: Sequence[bytes]) -> None:
        """Have a holder of the range keep these. Raises Unavailable."""
        why = "no node that holds it can be reached from this one"
        for holder in self._elsewhere.order(self.group):
            try:
                for at in range(0, len(streams), MAX_STREAMS):
                    part = streams[at : at + MAX_STREAMS]
                    await self._call(holder, _kinds.HOLD, b"".join((self._token, *part)))
            except ClusterError as error:
                why = str(error)
                self._elsewhere.spawn(self._let_go(holder))
                continue
            self.holder = holder
            self._renewal = self._elsewhere.spawn(self._renew(streams))
            return
        raise Unavailable(f"the body is not on this node: {why}; try again")

    def end(self) -> None:
        """It need not be kept any more. Idempotent."""
        renewal, self._renewal = self._renewal, None
        if renewal is not None:
            renewal.cancel()
            self._elsewhere.spawn(self._let_go(self.holder))

    async def _renew(self, streams: Sequence[bytes]) -> None:
        lent = len(streams)
        while True:
            await asyncio.sleep(RENEW_S)
            try:
                kept = await self._call(self.holder, _kinds.HOLD, self._token)
                if kept == b"\x00":
                    # It was started again, and forgot: what it still has is kept from now on.
                    lent = 0
                while lent < len(streams):
                    part = streams[lent : lent + MAX_STREAMS]
                    await self._call(self.holder, _kinds.HOLD, b"".join((self._token, *part)))
                    lent += len(part)
            except ClusterError:
                continue  # others may have the frames

    async def _let_go(self, holder: int) -> None:
        try:
            await self._call(holder, _kinds.LET_GO, self._token)
        except ClusterError:
            return  # it ends by itself

    async def _call(self, holder: int, kind: int, payload: bytes) -> bytes:
        peers = self._elsewhere.peers
        return await peers.call(holder, kind, payload, timeout_s=CALL_S, lane=Lane.BULK)


class FramesElsewhere:
    """Frames of a range without a replica here (`_bodies.Source`)."""

    def __init__(self, elsewhere: Elsewhere, group: int, loan: Loan | None) -> None:
        self._elsewhere = elsewhere
        self._group = group
        self._loan = loan

    async def fetch(self, stream: bytes, number: int, frames: int) -> SealedFrame | None:
        """From who lends it, else from any holder, else from any node. Raises Unavailable."""
        first = [self._loan.holder] if self._loan is not None else []
        holders = self._elsewhere.order(self._group)
        nodes = dict.fromkeys([*first, *holders, *self._elsewhere.everyone()])
        return await self._elsewhere.fetcher.fetch_one(nodes, stream, number, frames)

    async def store_again(self, frame: SealedFrame) -> bool:
        """There is nothing here to mend."""
        del frame
        return False


async def read_elsewhere(  # noqa: PLR0917
    elsewhere: Elsewhere, group: int, sealer: StreamSealer, ref: StreamRef, offset: int, length: int
) -> AsyncGenerator[Buffer, None]:
    """As `_bodies.read_stream`, of a range without a replica here. Raises BodyMissing, BodyDamaged,
    Unavailable."""
    node = elsewhere.node
    end = min(offset + length, ref.size_bytes)
    loan: Loan | None = None
    try:
        if _bodies.spans_frames(offset, end):
            loan = elsewhere.loan(group)
            await loan.take([ref.stream])
        pieces = _bodies.read_stream(
            node.store,
            node.jobs,
            sealer,
            ref,
            offset=offset,
            length=length,
            repair=FramesElsewhere(elsewhere, group, loan),
        )
        async with aclosing(pieces) as buffers:
            async for buffer in buffers:
                yield buffer
    finally:
        if loan is not None:
            loan.end()
