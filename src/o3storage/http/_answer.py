"""The output side of a connection: call the handler, send what it answers."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterable, AsyncIterator
from contextlib import aclosing
from typing import TYPE_CHECKING, Any, cast

from o3storage._native import FileHandle, dup_socket
from o3storage.http._errors import BodyError, ConnectionGone, HttpError
from o3storage.http._limits import RECEIVE_BYTES, WRITE_HIGH_BYTES
from o3storage.http._messages import Buffer, DirectPiece, Piece, Request, Response
from o3storage.http._wire import bodiless, plain_error, response_head

if TYPE_CHECKING:
    from o3storage.http._body import Body
    from o3storage.http._server import Server

JOIN_BYTES = 64 * 1024
"""A body piece up to this size is joined to its head: the copy costs less than a send."""

WRITE_KEEPS_VIEWS = sys.version_info >= (3, 12)
"""asyncio copies what it cannot send at once up to 3.11, and keeps a reference from 3.12 on."""


class _WrongLength(Exception):
    """A response body is longer or shorter than it said."""


class Answer:
    """Mixed into `Connection`, which owns the order of things."""

    __slots__ = ("_drained", "_sent_bytes", "_transport", "_writing_paused")

    if TYPE_CHECKING:
        _server: Server
        _secure: bool
        _body: Body | None
        _keep_alive: bool
        _expects_continue: bool

        def _error_answer(self, request: Request | None, error: BaseException) -> Response: ...
        def _done(self, close: bool) -> None: ...
        def _abort(self) -> None: ...

    def __init__(self) -> None:
        self._transport: asyncio.Transport
        self._writing_paused = False
        self._drained: asyncio.Future[None] | None = None
        self._sent_bytes = 0

    # --- called by the transport

    def pause_writing(self) -> None:
        self._writing_paused = True

    def resume_writing(self) -> None:
        self._writing_paused = False
        if self._drained is not None and not self._drained.done():
            self._drained.set_result(None)

    def _writing_ended(self) -> None:
        """The connection is lost."""
        if self._drained is not None and not self._drained.done():
            self._drained.set_exception(ConnectionGone("the client is gone"))

    def _write_waits(self) -> bool:
        return self._drained is not None

    def _unsent_bytes(self) -> int:
        return self._transport.get_write_buffer_size()

    def _written_bytes(self) -> int:
        """Bytes that the client's side has taken."""
        return self._sent_bytes - self._transport.get_write_buffer_size()

    # --- one request

    async def _serve(self, request: Request) -> None:
        try:
            response = await self._server.handler(request)
        except Exception as error:
            response = self._failed(request, error)
        body = response.body
        if body is None or isinstance(body, bytes | bytearray | memoryview):
            if body is None or len(body) <= JOIN_BYTES or not self._secure:
                self._done(self._send_now(request, response, close=response.close))
                return
            response.length = len(body)
            body = _one_piece(body)
        await self._send_pieces(request, response, body)

    def _failed(self, request: Request, error: Exception) -> Response:
        if not isinstance(error, BodyError):
            self._server._report(error, request)
        return self._error_answer(request, error)

    def _close_after(self, request: Request | None, response: Response, skip: bool) -> bool:
        """True if the connection ends with this answer, which then says so."""
        if response.close or not self._keep_alive or self._server.draining or request is None:
            return True
        body = request.body
        if body.ended:
            return False
        # What did not come yet may never come (a client that still waits for 100 Continue), or be
        # far too much: the connection is kept only if the rest of the body is here.
        if not skip or body._error is not None:
            return True
        try:
            body._skip_unread(self._server._memory)
        except BodyError:
            return True
        return not body.ended

    def _connection_option(self, request: Request | None, close: bool) -> str | None:
        if close:
            return "close"
        return "keep-alive" if request is not None and request.http_version == "1.0" else None

    def _send_now(self, request: Request | None, response: Response, *, close: bool) -> bool:
        """Send an answer whose body is at hand. Returns True if the connection is to end."""
        close = close or self._close_after(request, response, skip=True)
        body = cast("Buffer | None", response.body)
        head_only = request is not None and request.method == "HEAD"
        length: int | None = 0 if body is None else len(body)
        if body is None and head_only:
            length = response.length
        if bodiless(response.status):
            length = response.length if response.status == 304 else None
            body = None
        try:
            head = response_head(
                response, self._server.common_lines, length, self._connection_option(request, close)
            )
        except ValueError as error:  # UnicodeEncodeError is one
            self._server._report(error, request)
            response = plain_error(request, HttpError("internal error", 500))
            return self._send_now(request, response, close=True)
        if body is None or head_only:
            self._write(head)
        elif len(body) <= JOIN_BYTES:
            self._write(head + body)
        else:
            self._write(head)
            self._write(body)
        return close

    def _write(self, data: Buffer) -> None:
        self._sent_bytes += len(data)
        self._transport.write(data)

    # --- a body in pieces

    async def _send_pieces(
        self, request: Request, response: Response, body: AsyncIterable[Piece]
    ) -> None:
        pieces = aiter(body)
        try:
            if request.method == "HEAD" or bodiless(response.status):
                whole = Response(response.status, response.headers, None, response.length)
                close = self._send_now(request, whole, close=response.close)
            else:
                close = await self._send_body(request, response, pieces)
        except asyncio.CancelledError:
            self._abort()
            raise
        finally:
            aclose: Any = getattr(pieces, "aclose", None)
            if aclose is not None:
                await aclose()
        self._done(close)

    async def _send_body(
        self, request: Request, response: Response, pieces: AsyncIterator[Piece]
    ) -> bool:
        try:
            first: Piece | None = await anext(pieces, None)
        except Exception as error:
            # Nothing was sent yet, so the client can still be told.
            return self._send_now(request, self._failed(request, error), close=True)
        try:
            return await self._pieces(request, response, first, pieces)
        except Exception as error:
            self._server.stats.aborted += 1
            if not isinstance(error, ConnectionGone):
                self._server._report(error, request)
            self._abort()
            return True

    async def _pieces(
        self,
        request: Request,
        response: Response,
        piece: Piece | None,
        pieces: AsyncIterator[Piece],
    ) -> bool:
        """Head and body. Returns True if the connection is to end; raises to have it aborted."""
        length = response.length
        chunked = length is None and request.http_version == "1.1"
        close = self._close_after(request, response, skip=False)
        close = close or (length is None and not chunked)
        ahead = response_head(
            response,
            self._server.common_lines,
            -1 if chunked else length,
            self._connection_option(request, close),
        )
        sent = 0
        line_end = b""  # of the chunk before
        while piece is not None:
            size = len(piece)
            sent += size
            if length is not None and sent > length:
                raise _WrongLength(f"a response body is longer than its {length} bytes")
            if size:
                if chunked:
                    ahead += b"%b%x\r\n" % (line_end, size)
                    line_end = b"\r\n"
                if isinstance(piece, bytes | memoryview | bytearray):
                    await self._send_piece(ahead, piece)
                else:
                    if ahead:
                        self._write(ahead)
                    await self._send_direct(piece)
                ahead = b""
            piece = await anext(pieces, None)
        if length is not None and sent < length:
            raise _WrongLength(f"a response body ended at {sent} of its {length} bytes")
        if chunked:
            ahead += line_end + b"0\r\n\r\n"
        if ahead:
            self._write(ahead)
        return close

    async def _send_piece(self, ahead: bytes, piece: Buffer) -> None:
        if self._transport.is_closing():
            raise ConnectionGone("the client is gone")
        if ahead and len(piece) <= JOIN_BYTES:
            self._write(ahead + piece)
        else:
            if ahead:
                self._write(ahead)
            if self._secure:
                await self._encrypt_piece(piece)
            else:
                # The piece's memory is reused when the next one is asked for.
                self._write(bytes(piece) if WRITE_KEEPS_VIEWS else piece)
        if self._writing_paused:
            await self._wait_until_drained()

    async def _send_direct(self, piece: DirectPiece) -> None:
        """What a job sends must find nothing of the transport's under way, so that output that
        waits pauses the writer at once meanwhile."""
        if self._secure:
            await self._send_read(piece, 0)
            return
        transport = self._transport
        transport.set_write_buffer_limits(high=0)
        if self._writing_paused:
            await self._wait_until_drained()
        at = 0
        while at < len(piece) and not transport.get_write_buffer_size():
            if transport.is_closing():
                raise ConnectionGone("the client is gone")
            taken, rest = await self._send_by_job(piece, at)
            if not taken:
                break
            at += taken
            self._sent_bytes += taken - len(rest)
            if rest:
                self._write(rest)
                if self._writing_paused:
                    await self._wait_until_drained()
        if at < len(piece):
            await self._send_read(piece, at)
        transport.set_write_buffer_limits(high=WRITE_HIGH_BYTES)

    async def _send_by_job(self, piece: DirectPiece, at: int) -> tuple[int, Buffer]:
        """As `DirectPiece.send`. A slow client's second descriptor is not kept while it waits."""
        server = self._server
        if server.direct >= server.limits.max_direct:
            return 0, b""
        socket = self._own_socket()
        if socket is None:
            return 0, b""
        server.direct += 1
        try:
            return await piece.send(socket, at)
        except OSError as error:
            raise ConnectionGone("the client is gone") from error
        finally:
            server.direct -= 1

    async def _send_read(self, piece: DirectPiece, start: int) -> None:
        async with aclosing(piece.read(start)) as buffers:
            async for buffer in buffers:
                await self._send_piece(b"", buffer)

    def _own_socket(self) -> FileHandle | None:
        """The transport may close its descriptor while a job sends, and the number would then be
        another connection's: jobs have one of their own."""
        socket = self._transport.get_extra_info("socket")
        try:
            return None if socket is None else dup_socket(socket.fileno())
        except OSError:  # no descriptor left
            return None

    async def _encrypt_piece(self, piece: Buffer) -> None:
        """A step of the loop encrypts at most RECEIVE_BYTES."""
        view = memoryview(piece)
        self._write(view[:RECEIVE_BYTES])
        for at in range(RECEIVE_BYTES, len(view), RECEIVE_BYTES):
            if self._writing_paused:
                await self._wait_until_drained()
            else:
                await asyncio.sleep(0)
                if self._transport.is_closing():
                    raise ConnectionGone("the client is gone")
            self._write(view[at : at + RECEIVE_BYTES])

    async def _wait_until_drained(self) -> None:
        if self._transport.is_closing():
            raise ConnectionGone("the client is gone")
        self._drained = asyncio.get_running_loop().create_future()
        try:
            await self._drained
        finally:
            self._drained = None


async def _one_piece(body: Buffer) -> AsyncIterator[Buffer]:
    yield body
