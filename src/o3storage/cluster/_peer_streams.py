"""Streams of one bulk link: pieces one way under a window, one answer back.

Many streams share the link. Each may have a window's worth of bytes sent and not consumed; the
streams that have room take turns, piece by piece, so that little waits inside the link at a time.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable, Coroutine
from typing import TYPE_CHECKING, Any

from o3storage.cluster import _wire
from o3storage.cluster._peer_types import Code, PeerError, PeerLost, PeerUnreachable
from o3storage.cluster._wire import Unit, WireError
from o3storage.runtime.disk import Buffer
from o3storage.runtime.network import LinkClosed

if TYPE_CHECKING:
    from o3storage.cluster._peer_link import PeerLink

MAX_STREAMS = 1024
"""Streams of one link, each way: as many uploads as a node serves at a time, with room."""
MAX_RESULT_BYTES = 1 << 20
CREDIT_STEP_BYTES = 512 << 10
"""Consumed bytes are told by so much, or when nothing waits: some 16 credits a window."""

StreamHandler = Callable[[int, bytes, "InStream"], Coroutine[Any, Any, bytes]]


class OutStream:
    """A stream that this side opened. One writer at a time."""

    __slots__ = (
        "_credit_waiter",
        "_error",
        "_finished",
        "_result",
        "_streams",
        "_window_bytes",
        "number",
        "sent_bytes",
        "unconsumed_bytes",
    )

    def __init__(self, streams: Streams, number: int, window_bytes: int) -> None:
        """Use `Peers.open_stream`."""
        self.number = number
        self.sent_bytes = 0
        self.unconsumed_bytes = 0
        """Sent, or given to `write`, and not yet consumed by the peer: how far it is behind."""
        self._streams = streams
        self._window_bytes = window_bytes
        self._finished = False
        self._error: Exception | None = None
        self._result: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
        self._credit_waiter: asyncio.Future[None] | None = None

    @property
    def answered(self) -> bool:
        """The peer answered already, or the stream failed: more pieces are of no use."""
        return self._result.done() or self._error is not None

    def has_room(self, size_bytes: int) -> bool:
        """Whether a piece of this size fits the window now."""
        return not self.unconsumed_bytes or self.unconsumed_bytes + size_bytes <= self._window_bytes

    async def write(self, piece: Buffer, last: bool = False, *, head: bytes = b"") -> None:
        """Send one piece, `head` and `piece` together (at most MAX_PIECE_BYTES), once window and
        link have room. It may not change until the stream ended. After an early answer of the
        peer it does nothing. Raises PeerError (the peer's handler failed), PeerLost."""
        size = len(head) + len(piece)
        if size > _wire.MAX_PIECE_BYTES:
            raise ValueError(f"a piece of {size} bytes; at most {_wire.MAX_PIECE_BYTES}")
        if self._finished:
            raise ValueError("the last piece was written already")
        if self._credit_waiter is not None:
            raise RuntimeError("two writers of one stream")
        while not self.answered and not self.has_room(size):
            waiter = self._credit_waiter = asyncio.get_running_loop().create_future()
            try:
                await waiter
            finally:
                self._credit_waiter = None
        if self._error is not None:
            raise self._error
        if self._result.done():
            return
        self._finished = last
        self.unconsumed_bytes += size
        self.sent_bytes += size
        await self._streams.take_turn(self, head, piece, last)

    async def finish(self, timeout_s: float) -> bytes:
        """The peer's answer, after the last piece (which it sends, empty, if none was written as
        the last). Raises PeerError, PeerLost (too slow: the stream is given up)."""
        if not self._finished and not self.answered:
            await self.write(b"", last=True)
        if self._error is not None:
            raise self._error
        timer = asyncio.get_running_loop().call_later(timeout_s, self._too_late, timeout_s)
        try:
            return await self._result
        finally:
            timer.cancel()
            self._streams.forget_out(self)

    def abort(self, reason: str = "") -> None:
        """Give it up: the peer's handler sees PeerError. Idempotent, and nothing after the end."""
        if not self.answered:
            self._streams.reset(self, reason or "given up by the sender")
            self.fail(PeerLost("this side gave the stream up"))

    def _too_late(self, timeout_s: float) -> None:
        if not self.answered:
            self._streams.reset(self, "no answer in time")
            self.fail(PeerLost(f"the peer did not answer a stream within {timeout_s:g} s"))

    # --- called by Streams

    def consumed(self, size: int) -> None:
        if size > self.unconsumed_bytes:
            raise WireError("a credit for bytes that were not sent")
        self.unconsumed_bytes -= size
        self._wake()

    def answer(self, result: bytes) -> None:
        if not self._result.done():
            self._result.set_result(result)
        self._wake()

    def fail(self, error: Exception) -> None:
        if self.answered:
            return
        self._error = error
        self._result.set_exception(error)
        self._result.exception()  # (it may be that nobody asks)
        self._wake()
        self._streams.forget_out(self)

    def _wake(self) -> None:
        if self._credit_waiter is not None and not self._credit_waiter.done():
            self._credit_waiter.set_result(None)


class InStream:
    """A stream that the peer opened: `async for piece in stream`. What was taken counts as
    consumed. Raises PeerError (the sender gave it up) or PeerLost inside the loop."""

    __slots__ = (
        "_error",
        "_last",
        "_pieces",
        "_streams",
        "_uncredited_bytes",
        "_waiter",
        "number",
        "received_bytes",
        "waiting_bytes",
    )

    def __init__(self, streams: Streams, number: int) -> None:
        self.number = number
        self.received_bytes = 0
        self.waiting_bytes = 0
        self._streams = streams
        self._pieces: deque[bytes] = deque()
        self._uncredited_bytes = 0
        self._last = False
        self._error: Exception | None = None
        self._waiter: asyncio.Future[None] | None = None

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self

    async def __anext__(self) -> bytes:
        while not self._pieces:
            if self._error is not None:
                raise self._error
            if self._last:
                raise StopAsyncIteration
            self._waiter = asyncio.get_running_loop().create_future()
            await self._waiter
        piece = self._pieces.popleft()
        size = len(piece)
        self.waiting_bytes -= size
        self._streams.took(size)
        self._uncredited_bytes += size
        if self._uncredited_bytes >= CREDIT_STEP_BYTES or not self._pieces:
            credit, self._uncredited_bytes = self._uncredited_bytes, 0
            if credit and not self._last:
                self._streams.credit(self.number, credit)
        return piece

    # --- called by Streams

    def came(self, data: memoryview, last: bool, window_bytes: int) -> None:
        size = len(data)
        if self._error is not None:
            return
        if self._last:
            raise WireError("a piece behind the last one of its stream")
        if self.waiting_bytes + self._uncredited_bytes + size > window_bytes + (
            _wire.MAX_PIECE_BYTES
        ):
            raise WireError("more pieces than the window allows")
        self._last = last
        if size:
            self.received_bytes += size
            self.waiting_bytes += size
            self._pieces.append(bytes(data))
            self._streams.took(-size)
        self._wake()

    def fail(self, error: Exception) -> None:
        """What waits is dropped: a body cut short is of no use."""
        self._streams.took(self.waiting_bytes)
        self.waiting_bytes = 0
        self._pieces.clear()
        if self._error is None:
            self._error = error
        self._wake()

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)


class Streams:
    """All streams of one link, both ways."""

    def __init__(self, link: PeerLink) -> None:
        self._link = link
        self._out: dict[int, OutStream] = {}
        self._in: dict[int, InStream] = {}
        self._number = 0
        self._turns: deque[tuple[OutStream, bytes, Buffer, bool, asyncio.Future[None]]] = deque()
        self._pumping = False

    def __len__(self) -> int:
        return len(self._out) + len(self._in)

    # --- out

    def open(self, kind: int, head: bytes) -> OutStream:
        link = self._link
        if len(head) > _wire.MAX_STREAM_HEAD_BYTES:
            raise ValueError("the head of a stream is too long")
        if not link.ready:
            raise PeerUnreachable(f"there is no link to node {link.node:016x}")
        if len(self._out) >= MAX_STREAMS:
            raise PeerUnreachable(f"too many streams to node {link.node:016x} are open already")
        self._number = number = (self._number + 1) & 0xFFFFFFFF
        stream = OutStream(self, number, link.host.options.stream_window_bytes)
        self._out[number] = stream
        unit = _wire.OPEN.pack(Unit.OPEN, 6 + len(head), number, kind)
        link.queue((unit, head), len(unit) + len(head))
        return stream

    async def take_turn(self, stream: OutStream, head: bytes, piece: Buffer, last: bool) -> None:
        """Send the piece when the link has room and those before had their turn."""
        if not self._turns and self._link.unsent_bytes < self._link.host.options.bulk_unsent_bytes:
            self._send_piece(stream, head, piece, last)
            return
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._turns.append((stream, head, piece, last, turn))
        if not self._pumping:
            self._pumping = True
            self._link.host.spawn(self._pump())
        await turn
        if stream._error is not None:
            raise stream._error

    async def _pump(self) -> None:
        link = self._link
        limit = link.host.options.bulk_unsent_bytes
        try:
            while self._turns:
                if link.unsent_bytes >= limit:
                    link.flush()
                    await link.link.drain(limit // 2)
                    continue
                stream, head, piece, last, turn = self._turns.popleft()
                if not stream.answered:
                    self._send_piece(stream, head, piece, last)
                if not turn.done():
                    turn.set_result(None)
        except LinkClosed:
            pass
        finally:
            self._pumping = False
            if link.ended:
                self._release_turns()

    def _send_piece(self, stream: OutStream, head: bytes, piece: Buffer, last: bool) -> None:
        size = len(head) + len(piece)
        unit = _wire.PIECE.pack(Unit.PIECE, 5 + size, stream.number, last)
        self._link.queue((unit, head, piece), len(unit) + size)

    def _release_turns(self) -> None:
        while self._turns:
            turn = self._turns.popleft()[-1]
            if not turn.done():
                turn.set_result(None)

    def reset(self, stream: OutStream, reason: str) -> None:
        if stream.number in self._out:
            self._link.queue_text(Unit.RESET, stream.number, Code.GIVEN_UP, reason)

    def forget_out(self, stream: OutStream) -> None:
        self._out.pop(stream.number, None)

    # --- in

    def took(self, size: int) -> None:
        """A handler took bytes that waited (negative: they came)."""
        if size:
            self._link.host.received(self._link, -size)

    def credit(self, number: int, size: int) -> None:
        if number in self._in:
            unit = _wire.CREDIT.pack(Unit.CREDIT, 8, number, size)
            self._link.queue((unit,), len(unit))

    def unit(self, kind: int, body: memoryview) -> None:
        """A unit of kind OPEN to FAILED. Raises WireError. One that names no stream comes too
        late, for a stream that ended."""
        if kind == Unit.PIECE:
            number, last, data = _wire.piece(body)
            stream = self._in.get(number)
            if stream is not None:
                stream.came(data, last, self._link.host.options.stream_window_bytes)
        elif kind == Unit.CREDIT:
            number, size = _wire.credit(body)
            if (out := self._out.get(number)) is not None:
                out.consumed(size)
        elif kind == Unit.RESULT:
            number, result = _wire.numbered(body)
            if len(result) > MAX_RESULT_BYTES:
                raise WireError("an answer is too long")
            if (out := self._out.pop(number, None)) is not None:
                out.answer(bytes(result))
        else:
            number, code, rest = _wire.numbered_kind(body)
            if kind == Unit.OPEN:
                self._opened(number, code, rest)
                return
            error = PeerError(code, _wire.text_of(rest))
            if kind == Unit.FAILED:
                if (out := self._out.get(number)) is not None:
                    out.fail(error)
            elif (given_up := self._in.get(number)) is not None:
                given_up.fail(error)

    def _opened(self, number: int, kind: int, head: memoryview) -> None:
        link = self._link
        if len(head) > _wire.MAX_STREAM_HEAD_BYTES or number in self._in:
            raise WireError("a stream that cannot be opened")
        handler = link.host.stream_handler(kind)
        if handler is None:
            self._failed(number, Code.UNKNOWN_KIND, f"this node takes no stream {kind}")
        elif link.host.busy or len(self._in) >= MAX_STREAMS:
            self._failed(number, Code.BUSY, "this node takes as many streams as it can")
        else:
            stream = self._in[number] = InStream(self, number)
            link.host.spawn(self._serve(stream, kind, handler, bytes(head)))

    async def _serve(
        self, stream: InStream, kind: int, handler: StreamHandler, head: bytes
    ) -> None:
        link, number = self._link, stream.number
        try:
            result = await handler(link.node, head, stream)
            if len(result) > MAX_RESULT_BYTES:
                raise ValueError(f"an answer of {len(result)} bytes")
        except PeerError as error:
            self._failed(number, error.code, error.message)
        except PeerLost:
            pass  # there is nobody to tell
        except Exception as error:
            link.host.failed(f"stream {kind}", error)
            self._failed(number, Code.FAILED, f"stream {kind} failed at the other node")
        else:
            unit = _wire.ANSWER.pack(Unit.RESULT, 4 + len(result), number)
            link.queue((unit, result), len(unit) + len(result))
        finally:
            # What still comes of it is dropped.
            stream.fail(PeerLost("the stream has ended"))
            self._in.pop(number, None)

    def _failed(self, number: int, code: int, message: str) -> None:
        self._link.queue_text(Unit.FAILED, number, code, message)

    # --- the end

    def end(self, reason: str) -> None:
        error = PeerLost(f"the link to the peer was lost: {reason}")
        for out in list(self._out.values()):
            out.fail(error)
        self._out.clear()
        for stream in list(self._in.values()):
            stream.fail(error)
        if not self._pumping:
            self._release_turns()
