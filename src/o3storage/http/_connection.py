"""One connection: input side, order of requests, deadlines.

    OPEN      idle, or a head is arriving
    BUSY      a request is with the handler, or its answer is being sent
    LINGER    the last answer is out, our side is closed; input is discarded for a while
    CLOSED    the transport is closed or closing

All connections of a server share one piece of receive memory: a selector transport asks for it
(`get_buffer`), fills it and reports (`buffer_updated`) without returning to the loop. Only what is
left over is copied into the connection's own `_unread`. While a body read waits, the reader's own
memory is received into instead.

The transport is a socket's, or a `TlsLayer` over one.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
from typing import TYPE_CHECKING, cast

from o3storage.http._answer import Answer
from o3storage.http._body import Body
from o3storage.http._chunked import ChunkedDecoder
from o3storage.http._eager import Started, start
from o3storage.http._errors import (
    BadHead,
    BodyTimeout,
    BodyTruncated,
    HeadTimeout,
    HttpError,
)
from o3storage.http._head import Head, parse_head
from o3storage.http._limits import (
    FAST_RATE_BYTES_PER_S,
    RECEIVE_BYTES,
    UNREAD_BYTES,
    WRITE_HIGH_BYTES,
)
from o3storage.http._messages import Address, Request, Response
from o3storage.http._wire import CONTINUE

if TYPE_CHECKING:
    from o3storage.http._server import Server

OPEN, BUSY, LINGER, CLOSED = range(4)

_RESET = struct.pack("ii", 1, 0)
"""SO_LINGER that makes close send a reset: the peer must not take a cut answer for a whole one."""


class Connection(Answer, asyncio.BufferedProtocol):
    __slots__ = (
        "_body",
        "_deadline_s",
        "_direct",
        "_eof",
        "_expects_continue",
        "_in_head",
        "_keep_alive",
        "_local",
        "_paused",
        "_peer",
        "_rate_bytes",
        "_rate_waited_s",
        "_received_bytes",
        "_secure",
        "_server",
        "_state",
        "_task",
        "_unread",
        "_unread_at",
    )

    def __init__(self, server: Server, *, secure: bool) -> None:
        super().__init__()
        self._server = server
        self._secure = secure
        self._state = OPEN
        self._unread = b""
        self._unread_at = 0
        self._body: Body | None = None
        self._direct = False
        self._eof = False
        self._in_head = False
        self._paused = False
        self._expects_continue = False
        self._keep_alive = True
        self._task: Started | None = None
        self._deadline_s = 0.0
        self._received_bytes = 0
        self._rate_bytes = 0
        self._rate_waited_s = 0.0
        self._local: Address = ("", 0)
        self._peer: Address = ("", 0)

    # --- called by the transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._transport.set_write_buffer_limits(high=WRITE_HIGH_BYTES)
        self._local = _address(transport.get_extra_info("sockname"))
        self._peer = _address(transport.get_extra_info("peername"))
        self._deadline_s = self._server.loop.time() + self._server.limits.idle_timeout_s
        refusal = self._server._admit(self)
        if refusal is not None:
            self._answer_error(refusal)

    def _refused(self) -> bool:
        return self._state != OPEN

    def get_buffer(self, sizehint: int) -> memoryview:  # noqa: ARG002
        self._direct = False
        body = self._body
        if body is not None and body._waiting():
            target = body._target()
            if target is not None:
                self._direct = True
                return target
            if body._room() >= RECEIVE_BYTES:
                return self._server._memory
        return self._server._small_memory

    def _reads_much(self) -> bool:
        """True if a reader waits for more than is worth holding for it."""
        body = self._body
        return body is not None and body._waiting() and body._room() >= RECEIVE_BYTES

    def buffer_updated(self, count: int) -> None:
        self._received_bytes += count
        state = self._state
        if state == BUSY:
            if self._direct:
                cast(Body, self._body)._advance(count)
            else:
                self._input(self._server._memory[:count])
        elif state == OPEN:
            data = bytes(self._server._memory[:count])
            if self._unread_at < len(self._unread):
                data = self._unread[self._unread_at :] + data
            self._unread = data
            self._unread_at = 0
            self._next_requests()
        elif state == LINGER and self._received_bytes > self._server.limits.drain_bytes:
            self._pause()

    def resume_writing(self) -> None:
        super().resume_writing()
        if self._state == OPEN:
            self._next_requests()

    def eof_received(self) -> bool:
        """The client sends no more. It may still read, so what it asked for is finished."""
        self._eof = True
        if self._state == BUSY:
            if self._body is not None:
                self._body._fail(BodyTruncated("the connection ended inside the request body"))
            return True
        if self._state == OPEN:
            self._state = CLOSED
        return False

    def connection_lost(self, error: Exception | None) -> None:  # noqa: ARG002
        self._state = CLOSED
        self._eof = True
        if self._body is not None:
            self._body._fail(BodyTruncated("the connection was lost inside the request body"))
        self._writing_ended()
        self._server._gone(self)

    # --- input

    def _input(self, data: memoryview) -> None:
        """Input while a request is under way: for its body, or to be kept."""
        body = self._body
        if body is not None and body._waiting() and self._unread_at == len(self._unread):
            data = data[body._feed(data) :]
        if len(data):
            self._unread = self._unread[self._unread_at :] + bytes(data)
            self._unread_at = 0
            if len(self._unread) >= UNREAD_BYTES:
                self._pause()

    def _pause(self) -> None:
        if not self._paused and not self._eof and self._state != CLOSED:
            self._paused = True
            self._transport.pause_reading()

    def _resume(self) -> None:
        if self._paused:
            self._paused = False
            if not self._eof and self._state != CLOSED:
                self._transport.resume_reading()

    def _body_wanted(self) -> None:
        if self._eof or self._state != BUSY:
            error = BodyTruncated("the connection ended inside the request body")
            cast(Body, self._body)._fail(error)
            raise error
        if self._expects_continue:
            self._expects_continue = False
            self._transport.write(CONTINUE)
        self._resume()

    # --- requests

    def _next_requests(self, most: int = 1) -> None:
        """Serve whole heads that were received, until one request has to wait; those behind the
        first `most` in a later step of the loop."""
        while self._state == OPEN:
            if self._writing_paused:
                # Who asks on and does not read what was answered has us keep no more of it.
                self._pause()
                return
            data = self._unread
            at = self._unread_at
            if at == len(data) and not self._eof:
                self._unread = b""
                self._unread_at = 0
                self._resume()
                return
            if data.startswith(b"\r\n", at):
                at += 2  # RFC 9112, section 2.2: one empty line before a request is ignored
            end = data.find(b"\r\n\r\n", at)
            limit = self._server.limits.max_head_bytes
            if end < 0 or end - at > limit:
                self._partial_head(data, at, limit)
                return
            if most == 0:
                self._pause()
                self._server._later(self)
                return
            most -= 1
            try:
                head = parse_head(data[at:end], self._server.limits.max_headers)
            except BadHead as error:
                self._answer_error(error)
                return
            self._unread_at = end + 4
            if self._unread_at == len(data):
                self._unread = b""  # a request may take long
                self._unread_at = 0
            self._begin(head)

    def _partial_head(self, data: bytes, at: int, limit: int) -> None:
        if len(data) - at > limit:
            self._answer_error(BadHead(f"the request head has more than {limit} bytes", 431))
        elif data.count(b"\n", at) != data.count(b"\r\n", at):
            # Said now: the empty line that would end this head may never come.
            self._answer_error(BadHead("a line of the request head ends in a bare LF"))
        elif self._eof:
            self._state = CLOSED
            self._transport.close()
        else:
            if not self._in_head:
                self._in_head = True
                self._deadline_s = self._server.loop.time() + self._server.limits.head_timeout_s
            self._resume()

    def _begin(self, head: Head) -> None:
        server = self._server
        server.stats.requests += 1
        length = head.length
        body = Body(self, length, head.declared, ChunkedDecoder() if length is None else None)
        self._body = body
        self._state = BUSY
        self._in_head = False
        self._keep_alive = head.keep_alive
        self._expects_continue = head.expects_continue
        if head.expects_continue and length == 0:
            # A 100 that nobody needs: after a final answer alone, botocore reads the answer to its
            # next request on this connection without its status line, and waits for a minute.
            self._expects_continue = False
            self._transport.write(CONTINUE)
        self._rate_bytes = self._received_bytes = 0
        self._rate_waited_s = 0.0
        request = Request(
            head.method,
            head.target,
            head.path,
            head.query,
            head.http_version,
            head.host,
            head.headers,
            body,
            self._secure,
            self._local,
            self._peer,
        )
        self._task = start(server.loop, self._serve(request))
        if self._task is not None:
            self._task.when_ended(self._ended)

    def _ended(self, started: Started) -> None:
        self._task = None
        error = started.error
        if isinstance(error, asyncio.CancelledError):
            self._abort()
            return
        if error is not None:  # a defect of `error_response`, or of this room
            self._server._report(error, None)
            self._abort()
            return
        self._next_requests()

    def _error_answer(self, request: Request | None, error: BaseException) -> Response:
        if not isinstance(error, HttpError):
            error = HttpError("internal error", 500)
        return self._server.error_response(request, error)

    def _answer_error(self, error: HttpError) -> None:
        """Answer what never became a request, and close."""
        self._server.stats.refused += 1
        self._keep_alive = False
        self._send_now(None, self._error_answer(None, error), close=True)
        self._linger()

    # --- the end

    def _done(self, close: bool) -> None:
        """The answer is out."""
        body = cast(Body, self._body)
        self._body = None
        if self._state != BUSY:
            return
        if not close and not self._server.draining:
            self._state = OPEN
            self._received_bytes = 0
            self._deadline_s = self._server.loop.time() + self._server.limits.idle_timeout_s
            return
        if body.ended and self._unread_at == len(self._unread):
            self._state = CLOSED
            self._transport.close()
        else:
            self._linger()

    def _linger(self) -> None:
        """Close our side; take in what the client still sends, so that it reads the answer and
        not a reset."""
        if self._state == CLOSED:
            return
        if self._eof:
            self._state = CLOSED
            self._transport.close()
            return
        self._state = LINGER
        self._unread = b""
        self._unread_at = 0
        self._received_bytes = 0
        self._deadline_s = self._server.loop.time() + self._server.limits.linger_s
        with contextlib.suppress(OSError):  # reset since; the end of the input will say so
            self._transport.write_eof()
        self._resume()

    def _abort(self) -> None:
        """End at once, so that the client sees a broken connection and not the end of a body."""
        self._state = CLOSED
        sock: socket.socket | None = self._transport.get_extra_info("socket")
        if sock is not None:
            with contextlib.suppress(OSError):  # it may be closed already
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
        self._transport.abort()

    def _close_if_idle(self) -> None:
        """For a drain: nothing new begins here."""
        if self._state == OPEN:
            self._state = CLOSED
            self._transport.close()

    def _kill(self) -> None:
        """End at once, with whatever is under way."""
        if self._task is not None:
            self._task.cancel()
        self._abort()

    # --- time

    def _tick(self, now_s: float, passed_s: float) -> None:
        """`now_s` on the loop's clock, `passed_s` since the last call."""
        state = self._state
        if state == BUSY:
            if self._write_waits():
                self._rate(passed_s, self._written_bytes())
            elif self._body is not None and self._body._waiting():
                self._rate(passed_s, self._received_bytes)
        elif (
            state != OPEN or self._writing_paused or self._server.crowded
        ) and self._unsent_bytes():
            # The last answer is not out: the time to read it, or to ask on, has not begun.
            limits = self._server.limits
            self._deadline_s = now_s + (limits.idle_timeout_s if state == OPEN else limits.linger_s)
            self._rate(passed_s, self._written_bytes())
        elif now_s >= self._deadline_s:
            if state != OPEN:
                self._abort()
            elif self._in_head:
                self._answer_error(HeadTimeout("the request head did not arrive in time"))
            else:
                self._state = CLOSED
                self._transport.close()

    def _rate(self, passed_s: float, total_bytes: int) -> None:
        """Time in which we waited for the client, against the bytes it moved meanwhile."""
        limits = self._server.limits
        least, window_s = limits.min_rate_bytes_per_s, limits.rate_window_s
        if self._server.crowded and (self._state != BUSY or self._write_waits()):
            least, window_s = FAST_RATE_BYTES_PER_S, limits.crowded_window_s
        self._rate_waited_s += passed_s
        if self._rate_waited_s < window_s:
            return
        moved = total_bytes - self._rate_bytes
        slow = moved < least * self._rate_waited_s
        self._rate_bytes = total_bytes
        self._rate_waited_s = 0.0
        if not slow:
            return
        self._server.stats.too_slow += 1
        if self._state == BUSY and not self._write_waits():
            cast(Body, self._body)._fail(BodyTimeout("the request body came too slowly"))
        else:
            self._abort()


def _address(name: object) -> Address:
    return (str(name[0]), int(name[1])) if isinstance(name, tuple) else ("", 0)
