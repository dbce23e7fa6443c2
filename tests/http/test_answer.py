"""Responses over real sockets: framing, bodies in pieces, backpressure, and the abort rule."""

from __future__ import annotations

import asyncio
import os
import random
import socket
from collections.abc import AsyncGenerator, AsyncIterator

import pytest

from o3storage._native import FileHandle
from o3storage.http import HttpError, Piece, Request, Response, http_date
from o3storage.http._limits import WRITE_HIGH_BYTES
from o3storage.http._wire import response_head
from tests.http.serving import run, serving, until

H = "Host: h\r\n"
GET = f"GET / HTTP/1.1\r\n{H}\r\n"


async def pieces(*parts: bytes) -> AsyncIterator[bytes]:
    for part in parts:
        await asyncio.sleep(0)
        yield part


def test_body_of_known_length_in_pieces() -> None:
    async def handle(request: Request) -> Response:
        return Response(200, [], pieces(b"", b"a" * 10, memoryview(b"b" * 100_000)), 100_010)

    async def main() -> None:
        async with serving(handle) as served:
            client = await served.connect()
            for _ in range(2):
                answer = await client.ask(GET)
                assert answer.headers["content-length"] == "100010"
                assert answer.body == b"a" * 10 + b"b" * 100_000

    run(main())


def test_body_of_unknown_length_is_chunked() -> None:
    async def handle(request: Request) -> Response:
        return Response(200, [], pieces(b"a" * 10, b"", b"b" * 100_000))

    async def main() -> None:
        async with serving(handle) as served:
            client = await served.connect()
            for _ in range(2):
                answer = await client.ask(GET)
                assert answer.headers["transfer-encoding"] == "chunked"
                assert "content-length" not in answer.headers
                assert answer.body == b"a" * 10 + b"b" * 100_000
            client = await served.connect()
            answer = await client.ask("GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n")
            assert "transfer-encoding" not in answer.headers
            assert answer.headers["connection"] == "close"
            assert answer.body == b"a" * 10 + b"b" * 100_000

    run(main())


def test_empty_body_in_pieces() -> None:
    async def handle(request: Request) -> Response:
        return Response(200, [], pieces(), 0 if request.path == b"/0" else None)

    async def main() -> None:
        async with serving(handle) as served:
            client = await served.connect()
            assert (await client.ask(GET)).body == b""
            answer = await client.ask(f"GET /0 HTTP/1.1\r\n{H}\r\n")
            assert answer.headers["content-length"] == "0"

    run(main())


def test_large_bytes_body() -> None:
    body = bytes(range(256)) * 20_000

    async def handle(request: Request) -> Response:
        return Response(200, [], body)

    async def main() -> None:
        async with serving(handle) as served:
            client = await served.connect()
            for _ in range(2):
                assert (await client.ask(GET)).body == body

    run(main())


def test_head_has_the_length_and_no_body() -> None:
    async def handle(request: Request) -> Response:
        if request.path == b"/length":
            return Response(200, [], None, 5_000_000_000_000)
        if request.path == b"/bytes":
            return Response(200, [], b"12345")
        return Response(200, [], pieces(b"never asked for"), 7)

    async def main() -> None:
        async with serving(handle) as served:
            client = await served.connect()
            for path, length in (("/length", "5000000000000"), ("/bytes", "5"), ("/pieces", "7")):
                answer = await client.ask(f"HEAD {path} HTTP/1.1\r\n{H}\r\n", "HEAD")
                assert answer.headers["content-length"] == length
            assert (await client.ask(f"GET /bytes HTTP/1.1\r\n{H}\r\n")).body == b"12345"

    run(main())


def test_304_and_204_have_no_body() -> None:
    async def handle(request: Request) -> Response:
        return Response(int(request.path[1:]), [("ETag", '"e"')], b"dropped")

    async def main() -> None:
        async with serving(handle) as served:
            client = await served.connect()
            for path in (304, 204, 304):
                answer = await client.ask(f"GET /{path} HTTP/1.1\r\n{H}\r\n")
                assert (answer.status, answer.headers["etag"]) == (path, '"e"')
                assert "content-length" not in answer.headers

    run(main())


def test_iterator_is_closed_in_every_case() -> None:
    closed = []

    async def body(name: bytes) -> AsyncIterator[bytes]:
        try:
            yield b"x" * 10
            yield b"y" * 10
        finally:
            closed.append(name)

    async def handle(request: Request) -> Response:
        return Response(200, [], body(request.path), 20 if request.path != b"/long" else 15)

    async def main() -> None:
        async with serving(handle) as served:
            client = await served.connect()
            await client.ask(f"GET /all HTTP/1.1\r\n{H}\r\n")
            await client.ask(f"HEAD /head HTTP/1.1\r\n{H}\r\n", "HEAD")
            client.send(f"GET /long HTTP/1.1\r\n{H}\r\n")
            await until(lambda: served.server.connections == 0)
            assert closed == [b"/all", b"/long"]  # of /head nothing was ever started

    run(main())


# --- the abort rule


@pytest.mark.parametrize("length", [30, None])
@pytest.mark.parametrize("version", ["1.1", "1.0"])
def test_failing_body_resets_the_connection(length: int | None, version: str) -> None:
    async def body() -> AsyncIterator[bytes]:
        yield b"x" * 10
        await asyncio.sleep(0)
        raise OSError("a bad frame")

    async def handle(request: Request) -> Response:
        return Response(200, [], body(), length)

    async def main() -> None:
        async with serving(handle) as served:
            client = await served.connect()
            client.send(f"GET / HTTP/{version}\r\n{H}\r\n")
            received = b""
            with pytest.raises(ConnectionError):
                while piece := await client.patiently(client.reader.read(1000)):
                    received += piece
                raise AssertionError("the connection ended in good order")
            assert b"\r\n0\r\n" not in received
            assert served.server.stats.aborted == 1
            assert [type(e) for e, _ in served.reports] == [OSError]
            await until(lambda: served.server.connections == 0)

    run(main())


@pytest.mark.parametrize("length", [5, 15])
def test_body_of_another_length_than_declared_is_cut(length: int) -> None:
    async def handle(request: Request) -> Response:
        return Response(200, [], pieces(b"x" * 10), length)

    async def main() -> None:
        async with serving(handle) as served:
            client = await served.connect()
            client.send(GET)
            with pytest.raises((ConnectionError, asyncio.IncompleteReadError)):
                await client.answer()
            assert served.server.stats.aborted == 1

    run(main())


def test_error_before_the_first_byte_is_still_answered() -> None:
    async def body(error: Exception) -> AsyncIterator[bytes]:
        await asyncio.sleep(0)
        raise error
        yield b""

    async def handle(request: Request) -> Response:
        return Response(
            200, [], body(HttpError("gone", 503) if request.path == b"/1" else OSError()), 9
        )

    async def main() -> None:
        async with serving(handle) as served:
            for path, status in (("/1", 503), ("/2", 500)):
                client = await served.connect()
                assert (await client.ask(f"GET {path} HTTP/1.1\r\n{H}\r\n")).status == status
            assert served.server.stats.aborted == 0

    run(main())


# --- pieces that go to the socket on their own


class Direct:
    """A `DirectPiece` that takes, sends and misses what its dice say."""

    def __init__(self, data: bytes, dice: random.Random) -> None:
        self.data = data
        self.dice = dice
        self.sent = 0
        self.was_read = False

    def __len__(self) -> int:
        return len(self.data)

    async def send(self, handle: FileHandle, start: int) -> tuple[int, bytes]:
        if self.dice.random() < 0.2:
            return 0, b""
        wanted = self.data[start : start + self.dice.randrange(1, 300_000)]
        with socket.socket(fileno=os.dup(handle.fileno())) as own:
            own.setblocking(False)
            try:
                sent = own.send(wanted)
            except BlockingIOError:
                sent = 0
        self.sent += sent
        return len(wanted), wanted[sent:]

    async def read(self, start: int) -> AsyncGenerator[bytes, None]:
        self.was_read = True
        for at in range(start, len(self.data), 100_000):
            await asyncio.sleep(0)
            yield self.data[at : at + 100_000]


@pytest.mark.parametrize("length_known", [True, False])
def test_direct_pieces_come_in_order_to_a_slow_client(over: object, length_known: bool) -> None:
    dice = random.Random(length_known)
    direct = [Direct(dice.randbytes(dice.randrange(1, 1_500_000)), dice) for _ in range(8)]
    buffers = [dice.randbytes(dice.randrange(300_000)) for _ in direct]
    whole = b"".join([part for pair in zip(buffers, direct) for part in (pair[0], pair[1].data)])

    async def body() -> AsyncIterator[Piece]:
        for pair in zip(buffers, direct):
            for piece in pair:
                yield piece

    async def handle(request: Request) -> Response:
        return Response(200, [], body(), len(whole) if length_known else None)

    async def main() -> None:
        async with serving(handle) as served:
            client = await served.connect()
            answer = await client.ask(GET)
            assert answer.body == whole
            if served.secure:
                assert all(piece.was_read for piece in direct)
            else:
                assert any(piece.sent for piece in direct)
                limits = served.first_connection._transport.get_write_buffer_limits()
                assert limits[1] == WRITE_HIGH_BYTES  # as it was

    run(main())


def test_beyond_their_limit_pieces_are_read_and_none_keeps_a_place() -> None:
    dice = random.Random(5)
    pieces = [Direct(dice.randbytes(100_000), dice) for _ in range(20)]

    async def body() -> AsyncIterator[Piece]:
        for piece in pieces:
            yield piece

    async def handle(request: Request) -> Response:
        return Response(200, [], body(), 2_000_000)

    async def main() -> None:
        async with serving(handle, max_direct=1) as served:
            client = await served.connect()
            assert (await client.ask(GET)).body == b"".join([piece.data for piece in pieces])
            assert served.secure or any(piece.sent for piece in pieces)
            assert served.server.direct == 0
            served.server.direct = 1
            for piece in pieces:
                piece.sent, piece.was_read = 0, False
            assert (await client.ask(GET)).body == b"".join([piece.data for piece in pieces])
            assert all(piece.was_read and not piece.sent for piece in pieces)

    run(main())


def test_a_client_that_is_gone_ends_a_direct_piece() -> None:
    closed = []

    async def body() -> AsyncIterator[Piece]:
        try:
            while True:
                yield Direct(bytes(1_000_000), random.Random(1))
        finally:
            closed.append(True)

    async def handle(request: Request) -> Response:
        return Response(200, [], body())

    async def main() -> None:
        async with serving(handle) as served:
            client = await served.connect()
            client.send(GET)
            await client.head()
            client.close()
            await until(lambda: closed)
            assert not served.reports

    run(main())


# --- backpressure


def test_slow_reader_holds_the_body_back() -> None:
    made = 0

    async def body() -> AsyncIterator[memoryview]:
        nonlocal made
        block = memoryview(bytearray(262144))  # one buffer, reused for every piece
        for n in range(200):
            block[:] = bytes([n]) * 262144
            made += 1
            yield block

    async def handle(request: Request) -> Response:
        return Response(200, [], body(), 200 * 262144)

    async def main() -> None:
        async with serving(handle) as served:
            client = await served.connect()
            client.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65536)
            client.send(GET)
            await client.head()
            connection = served.first_connection
            await until(connection._write_waits)
            assert connection._transport.get_write_buffer_size() <= 2 * 262144
            assert made < 100
            for n in range(200):
                piece = await client.patiently(client.reader.readexactly(262144))
                assert piece == bytes([n]) * 262144

    run(main())


def test_client_gone_in_the_middle_of_a_response_frees_it() -> None:
    closed = []

    async def body() -> AsyncIterator[bytes]:
        try:
            while True:
                yield bytes(262144)
        finally:
            closed.append(True)

    async def handle(request: Request) -> Response:
        return Response(200, [], body())

    async def main() -> None:
        async with serving(handle) as served:
            for _ in range(3):
                client = await served.connect()
                client.send(GET)
                await client.head()
                client.close()
            await until(lambda: served.server.connections == 0 and len(closed) == 3)
            assert not served.reports  # that a client leaves is no defect
            assert served.server.stats.aborted == 3

    run(main())


# --- heads


def test_header_values_cannot_split_the_response() -> None:
    async def handle(request: Request) -> Response:
        return Response(200, [("X-A", "b\r\nSet-Cookie: c")], b"body")

    async def main() -> None:
        async with serving(handle) as served:
            client = await served.connect()
            answer = await client.ask(GET)
            assert answer.status == 500
            assert "set-cookie" not in answer.headers
            assert len(served.reports) == 1

    run(main())


@pytest.mark.parametrize("value", ["a\nb", "a\rb", "a\0b", "a\x7f", "\r\n", "\u20ac"])
def test_response_head_refuses(value: str) -> None:
    with pytest.raises(ValueError, match=r"control character|codec"):
        response_head(Response(200, [("A", value)]), "Date: x\r\n", 0, None)


def test_response_head() -> None:
    common = "Date: d\r\nServer: s\r\n"
    assert response_head(Response(206, [("A", "\xfc\t")]), common, 5, "close") == (
        b"HTTP/1.1 206 Partial Content\r\nDate: d\r\nServer: s\r\nA: \xfc\t\r\n"
        b"Content-Length: 5\r\nConnection: close\r\n\r\n"
    )
    assert response_head(Response(299), "", -1, None) == (
        b"HTTP/1.1 299 \r\nTransfer-Encoding: chunked\r\n\r\n"
    )


def test_http_date() -> None:
    assert http_date(784111777) == "Sun, 06 Nov 1994 08:49:37 GMT"
