"""One link to a peer, from its hello to its end: what comes in, what goes out, calls.

Who opened the link says HELLO; the other side judges it, and answers REFUSED, or its own HELLO and
ADMITTED; that is judged too. The link is ready when both admitted. What is sent in one turn of the
loop leaves as one frame.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, Protocol

from o3storage.cluster import _wire
from o3storage.cluster._peer_streams import Streams
from o3storage.cluster._peer_types import (
    Admission,
    Code,
    PeerError,
    PeerLost,
    PeerOptions,
    PeerStats,
    PeerUnreachable,
    Verdict,
)
from o3storage.cluster._wire import Hello, Lane, Unit, WireError
from o3storage.raft.core import Message
from o3storage.runtime.disk import Buffer
from o3storage.runtime.network import MAX_FRAME_BYTES, Link, LinkClosed
from o3storage.storage import SealedFrame

MAX_CALL_BYTES = 4 << 20
"""A call's payload, and an answer: the largest entry (2 MiB) with its frames."""
MAX_GUEST_CALL_BYTES = 64 << 10
"""Of a guest's call."""
MAX_CALLS = 16_384
"""Calls of one link without an answer yet: half of the proposals that a group takes."""
MAX_SERVED = 4096
"""Calls of one link that are being served; the rest is told BUSY."""
MAX_BULK_SERVED = 64
"""Of a bulk link, whose answers are up to 1 MiB each and wait their turn."""
MAX_GUEST_SERVED = 4
MAX_SERVED_BYTES = 64 << 20
"""Payloads of all calls that are being served, of all links."""
LARGE_ANSWER_BYTES = 64 << 10
"""From this size on an answer waits until its link has room."""
MAX_WAITING_BYTES = 64 << 20
"""Of large answers that wait, of all links for calls: who asks for more while they are not taken is
told that it failed. (Those of bulk links are few, see MAX_BULK_SERVED.)"""
FLUSH_BYTES = 1 << 20
"""What waits for the end of the turn of the loop goes out at once when it is so much."""
REFUSAL_S = 1.0
"""A refused peer is given so long to read why, and hang up."""
NOT_A_MEMBER = "you are not a member of this cluster"
"""Told to whoever asks for a member's link and is none."""

_MESSAGE = int(Unit.MESSAGE)  # (an enum's member costs a look-up each time)

Handler = Callable[[int, memoryview], Coroutine[Any, Any, bytes]]


class Host(Protocol):
    """What a link asks of `Peers`."""

    options: PeerOptions
    stats: PeerStats
    me: int
    served_bytes: int
    waiting_bytes: int
    on_message: Callable[[int, int, Message, list[SealedFrame]], None]

    @property
    def busy(self) -> bool: ...
    def hello_for(self, link: PeerLink) -> Hello: ...
    def judge(self, link: PeerLink, hello: Hello) -> Verdict: ...
    def link_ready(self, link: PeerLink) -> None: ...
    def link_ended(self, link: PeerLink, reason: str) -> None: ...
    def flush_soon(self, link: PeerLink) -> None: ...
    def handler(self, kind: int) -> tuple[Handler, bool] | None: ...
    def stream_handler(self, kind: int) -> Any: ...
    def spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]: ...
    def failed(self, what: str, error: BaseException) -> None: ...
    def note(self, link: Link, problem: str, *, passing: bool = False) -> None: ...
    def received(self, link: PeerLink, size_bytes: int) -> None: ...
    def versions(self) -> tuple[int, int]: ...


class PeerLink:
    """Made with a new `Link`; ends when that does, or by `close`."""

    def __init__(self, host: Host, link: Link, lane: int, expected: int = 0) -> None:
        """`lane` and the `expected` node are known to the side that connected."""
        self.host = host
        self.link = link
        self.lane = lane
        self.node = expected
        self.version = 0
        self.attempt = 0
        self.hello: Hello | None = None
        """The peer's."""
        self.verdict: Verdict | None = None
        """Ours on the peer."""
        self.ready = False
        self.ended = ""
        """Why it ended; empty while it lives."""
        self.refused = ""
        """Why one side refused it."""
        self.made_s = 0.0
        """loop.time() of its making, of the last frame in, of the last frame out."""
        self.heard_s = 0.0
        self.sent_s = 0.0
        self.heard = False
        self.sent = False
        self.paused = False
        self.sent_bytes = 0
        self.received_bytes = 0
        self.pending: list[Buffer] = []
        self.pending_bytes = 0
        self.streams = Streams(self)
        self.settled: asyncio.Future[None] | None = None
        """Set by who waits until it is ready or ended."""
        self._loop = asyncio.get_running_loop()
        self._admitted_by_peer = False
        self._calls: dict[int, asyncio.Future[bytes]] = {}
        self._call_number = 0
        self._served: dict[int, None] = {}
        self._part = bytearray()
        self._part_kind = 0

    def begin(self, now_s: float) -> None:
        self.made_s = self.heard_s = self.sent_s = now_s
        if self.outgoing:
            self._say_hello()
        self.link.begin(self._on_frame, self._on_closed)

    def _say_hello(self) -> None:
        hello = self.host.hello_for(self)
        if self.outgoing:
            self.attempt = hello.attempt
        self._send_opening(Unit.HELLO, _wire.encode_hello(hello))

    @property
    def outgoing(self) -> bool:
        return self.link.outgoing

    @property
    def guest(self) -> bool:
        """Whether the peer is one."""
        return self.verdict is not None and self.verdict.admission is Admission.GUEST

    @property
    def unsent_bytes(self) -> int:
        return self.link.unsent_bytes + self.pending_bytes

    # --- the end

    def close(self, reason: str) -> None:
        """End it now. Idempotent."""
        if not self.ended:
            self._end(reason)
            self.link.close()

    def _on_closed(self, error: LinkClosed) -> None:
        if not self.ended:
            self._end(str(error) or "the connection was lost")

    def _end(self, reason: str) -> None:
        self.ended = reason
        self.ready = False
        self.pending = []
        self.pending_bytes = 0
        self._part = bytearray()
        calls, self._calls = self._calls, {}
        for future in calls.values():
            if not future.done():
                future.set_exception(PeerLost(f"the link to the peer was lost: {reason}"))
        self.streams.end(reason)
        self._served.clear()
        if self.settled is not None and not self.settled.done():
            self.settled.set_result(None)
        self.host.link_ended(self, reason)

    def _malformed(self, reason: str) -> None:
        self.host.stats.malformed += 1
        self.close(f"the peer broke the protocol: {reason}")

    def refuse(self, reason: str) -> None:
        """Say why, give the peer a moment to read it, and hang up."""
        if not self.refused:
            self.refused = reason
            self.host.stats.links_refused += 1
            self._send_opening(Unit.REFUSED, _wire.text_bytes(reason))
            self.link.pause()  # nothing more is taken from it
            self._loop.call_later(REFUSAL_S, self.close, f"refused: {reason}")

    # --- out

    def _send_opening(self, kind: Unit, body: bytes) -> None:
        head = bytes((_wire.OPENING_VERSION,)) + _wire.pack_unit(kind, len(body))
        self._send([head, body], len(head) + len(body))

    def _send(self, pieces: list[Buffer], size: int) -> None:
        if self.ended:
            return
        stats = self.host.stats
        stats.frames_sent += 1
        stats.bytes_sent += size
        self.sent_bytes += size
        self.sent = True
        self.link.send(pieces)

    def queue(self, pieces: Sequence[Buffer], size: int) -> None:
        """Send these pieces, which are whole units, with what else this turn of the loop brings."""
        if self.ended:
            return
        if not self.pending:
            self.host.flush_soon(self)
        self.pending.extend(pieces)
        self.pending_bytes += size
        if self.pending_bytes >= FLUSH_BYTES:
            self.flush()

    def flush(self) -> None:
        pieces, size = self.pending, self.pending_bytes
        if not pieces:
            return
        self.pending = []
        self.pending_bytes = 0
        if size < MAX_FRAME_BYTES:
            pieces.insert(0, self._version_byte)
            self._send(pieces, size + 1)
        else:
            self._send_in_parts(pieces)

    @property
    def _version_byte(self) -> bytes:
        return bytes((self.version,))

    def _send_in_parts(self, pieces: list[Buffer]) -> None:
        """Units that together fill more than one frame: each part is the next bytes of them."""
        rest = memoryview(b"".join(pieces))
        while rest:
            taken, rest = rest[: _wire.MAX_PART_BYTES], rest[_wire.MAX_PART_BYTES :]
            head = self._version_byte + _wire.pack_unit(Unit.PART, len(taken) + 1)
            flag = b"\0" if len(rest) else b"\1"
            self._send([head, flag, taken], len(head) + 1 + len(taken))

    def say_alive(self) -> None:
        self.queue((_wire.pack_unit(Unit.ALIVE, 0),), _wire.UNIT_HEAD_BYTES)

    # --- in

    def _on_frame(self, frame: memoryview) -> None:
        if self.ended:
            return
        self.heard = True
        size = len(frame)
        self.received_bytes += size
        stats = self.host.stats
        stats.frames_received += 1
        stats.bytes_received += size
        try:
            units = _wire.split_units(frame)
            if frame[0] != self.version and frame[0] != _wire.OPENING_VERSION:
                raise WireError(f"a frame of version {frame[0]}, agreed was {self.version}")
            for kind, body in units:
                if kind == _MESSAGE:
                    self._message(body)
                else:
                    self._unit(kind, body)
                if self.ended:
                    return
        except WireError as error:
            self._malformed(str(error))

    def _message(self, body: memoryview) -> None:
        if not self.ready or self.lane == Lane.GUEST:
            raise WireError("a message where none belongs")
        group, message, frames = _wire.decode_message(body, self.node, self.host.me)
        self.host.stats.messages_received += 1
        self.host.on_message(self.node, group, message, frames)

    def _unit(self, kind: int, body: memoryview) -> None:
        if self.refused:
            return
        if not self.ready:
            self._opening(kind, body)
        elif kind == Unit.CALL:
            self._called(body)
        elif kind == Unit.ANSWER:
            number, answer = _wire.numbered(body)
            if len(answer) > MAX_CALL_BYTES:
                raise WireError("an answer is too long")
            self._answered(number, bytes(answer), None)
        elif kind == Unit.ERROR:
            number, code, rest = _wire.numbered_kind(body)
            self._answered(number, b"", PeerError(code, _wire.text_of(rest)))
        elif kind == Unit.ALIVE:
            if len(body):
                raise WireError("a sign of life with a body")
        elif kind == Unit.PART:
            self._part_came(body)
        elif Unit.OPEN <= kind <= Unit.FAILED:
            if self.lane != Lane.BULK or self.guest:
                raise WireError("a stream where none belongs")
            self.streams.unit(kind, body)
        elif kind == Unit.REFUSED:
            self._was_refused(body)
        else:
            raise WireError(f"a unit of kind {kind} where none belongs")

    def _opening(self, kind: int, body: memoryview) -> None:
        if kind == Unit.HELLO and self.hello is None:
            self._hello_came(body)
        elif kind == Unit.ADMITTED and self.verdict is not None and not self._admitted_by_peer:
            if len(body) != 1 or body[0] > 1:
                raise WireError("an admission that nobody wrote")
            if body[0] and self.lane != Lane.GUEST:
                raise WireError("a member's link was admitted as a guest's")
            self._admitted_by_peer = True
            self.ready = True
            self.host.link_ready(self)
            if self.settled is not None and not self.settled.done():
                self.settled.set_result(None)
        elif kind == Unit.REFUSED:
            self._was_refused(body)
        else:
            raise WireError(f"a unit of kind {kind} before the link was ready")

    def _was_refused(self, body: memoryview) -> None:
        self.refused = _wire.text_of(body)
        self.host.stats.links_refused += 1
        # Also said by members that have not heard yet of a node that has just joined.
        self.host.note(self.link, f"refuses: {self.refused}", passing=self.refused == NOT_A_MEMBER)
        self.close(f"refused by the peer: {self.refused}")

    def _hello_came(self, body: memoryview) -> None:
        low, high = self.host.versions()
        lowest, highest = _wire.hello_versions(body)
        version = min(high, highest)
        if version < max(low, lowest):
            self.refuse(
                f"no common version of the peer protocol: this node speaks {low} to {high}, "
                f"the other {lowest} to {highest}; upgrade the older of the two first"
            )
            return
        hello = _wire.decode_hello(body)
        if self.outgoing and hello.lane != self.lane:
            raise WireError("a hello for another lane")
        if self.outgoing and self.node and hello.node != self.node:
            self.refuse(f"this is not node {hello.node:016x}'s link but node {self.node:016x}'s")
            return
        self.hello = hello
        self.lane = hello.lane
        self.node = hello.node
        if not self.outgoing:
            self.attempt = hello.attempt
        verdict = self.host.judge(self, hello)
        if verdict.admission is Admission.GUEST and self.lane != Lane.GUEST:
            verdict = Verdict(Admission.REFUSED, NOT_A_MEMBER)
        if verdict.admission is Admission.REFUSED:
            self.refuse(verdict.reason)
            return
        if not self.outgoing:
            self._say_hello()
        self.verdict = verdict
        self.version = version
        head = _wire.ADMITTED.pack(Unit.ADMITTED, 1, verdict.admission is Admission.GUEST)
        self._send([self._version_byte, head], len(head) + 1)

    def _part_came(self, body: memoryview) -> None:
        if self.guest or len(body) < 2 or body[0] > 1:
            raise WireError("a part where none belongs")
        self._part += body[1:]
        if len(self._part) > _wire.MAX_UNIT_BYTES + FLUSH_BYTES:
            raise WireError("a unit is too large")
        if body[0]:
            whole, self._part = self._part, bytearray()
            for kind, unit in _wire.split_units(memoryview(b"\0" + whole)):
                if kind == Unit.PART:
                    raise WireError("a part inside a part")
                if kind == Unit.MESSAGE:
                    self._message(unit)
                else:
                    self._unit(kind, unit)
                if self.ended:
                    return

    # --- calls out

    async def call(self, kind: int, payload: Buffer, timeout_s: float) -> bytes:
        """Raises PeerUnreachable, PeerLost, PeerError; ValueError for a payload too long."""
        size = len(payload)
        if size > MAX_CALL_BYTES:
            raise ValueError(f"a call of {size} bytes; at most {MAX_CALL_BYTES} can be sent")
        if not self.ready:
            raise PeerUnreachable(f"there is no link to node {self.node:016x}")
        if len(self._calls) >= MAX_CALLS or self.unsent_bytes > self.host.options.max_unsent_bytes:
            raise PeerUnreachable(f"too much waits for node {self.node:016x} already")
        self._call_number = number = (self._call_number + 1) & 0xFFFFFFFF
        future: asyncio.Future[bytes] = self._loop.create_future()
        self._calls[number] = future
        self.host.stats.calls_sent += 1
        head = _wire.CALL.pack(Unit.CALL, 6 + size, number, kind)
        self.queue((head, payload), len(head) + size)
        timer = self._loop.call_later(timeout_s, self._too_late, number, timeout_s)
        try:
            return await future
        finally:
            timer.cancel()
            self._calls.pop(number, None)

    def _too_late(self, number: int, timeout_s: float) -> None:
        future = self._calls.pop(number, None)
        if future is not None and not future.done():
            future.set_exception(
                PeerLost(f"node {self.node:016x} did not answer within {timeout_s:g} s")
            )

    def _answered(self, number: int, answer: bytes, error: PeerError | None) -> None:
        future = self._calls.pop(number, None)
        if future is None or future.done():
            return  # nobody waits any more
        if error is None:
            future.set_result(answer)
        else:
            future.set_exception(error)

    # --- calls in

    def _called(self, body: memoryview) -> None:
        number, kind, payload = _wire.numbered_kind(body)
        if len(payload) > (MAX_GUEST_CALL_BYTES if self.guest else MAX_CALL_BYTES):
            raise WireError("a call is too long")
        if number in self._served:
            raise WireError("two calls of one number")
        found = self.host.handler(kind)
        if found is None:
            self._answer_error(number, Code.UNKNOWN_KIND, f"this node serves no call {kind}")
        elif self.guest and not found[1]:
            self._answer_error(number, Code.NOT_ALLOWED, f"call {kind} is for members only")
        elif len(self._served) >= self._most_served() or self.host.busy:
            self._answer_error(number, Code.BUSY, "this node serves as many calls as it can")
        else:
            self.host.stats.calls_served += 1
            copy = memoryview(bytes(payload))
            self._served[number] = None
            self.host.served_bytes += len(payload)
            self.host.spawn(self._serve(number, kind, found[0], copy))

    def _most_served(self) -> int:
        if self.guest:
            return MAX_GUEST_SERVED
        return MAX_BULK_SERVED if self.lane == Lane.BULK else MAX_SERVED

    async def _serve(self, number: int, kind: int, handler: Handler, payload: memoryview) -> None:
        try:
            try:
                answer = await handler(self.node, payload)
            finally:
                self.host.served_bytes -= len(payload)
            if len(answer) > MAX_CALL_BYTES:
                raise ValueError(f"an answer of {len(answer)} bytes")
            if len(answer) >= LARGE_ANSWER_BYTES:
                await self._room(len(answer))
        except PeerError as error:
            self._served.pop(number, None)
            self._answer_error(number, error.code, error.message)
        except Exception as error:
            self._served.pop(number, None)
            self.host.failed(f"call {kind}", error)
            self._answer_error(number, Code.FAILED, f"call {kind} failed at the other node")
        else:
            self._served.pop(number, None)
            head = _wire.ANSWER.pack(Unit.ANSWER, 4 + len(answer), number)
            self.queue((head, answer), len(head) + len(answer))

    async def _room(self, size: int) -> None:
        """Wait until less is unsent than streams, or calls, may leave. Raises PeerError when too
        much waits already."""
        host = self.host
        bulk = self.lane == Lane.BULK
        limit = host.options.bulk_unsent_bytes if bulk else host.options.max_unsent_bytes
        if self.unsent_bytes < limit:
            return
        if not bulk and host.waiting_bytes + size > MAX_WAITING_BYTES:
            # Not BUSY: what was asked may have been done.
            raise PeerError(Code.FAILED, "too many large answers of this node wait to be sent")
        counted = 0 if bulk else size
        host.waiting_bytes += counted
        try:
            while self.unsent_bytes >= limit and not self.ended:
                self.flush()
                with contextlib.suppress(LinkClosed):
                    await self.link.drain(limit // 2)
        finally:
            host.waiting_bytes -= counted

    def _answer_error(self, number: int, code: int, message: str) -> None:
        self.host.stats.calls_refused += 1
        self.queue_text(Unit.ERROR, number, code, message)

    def queue_text(self, kind: Unit, number: int, code: int, message: str) -> None:
        text = _wire.text_bytes(message)
        head = _wire.ERROR.pack(kind, 6 + len(text), number, code)
        self.queue((head, text), len(head) + len(text))
