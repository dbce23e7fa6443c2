"""One connection at a time over real sockets: order, keep-alive, refusals, closing. Bodies:
`test_connection_bodies.py`."""

from __future__ import annotations

import asyncio
import socket
import ssl

import pytest

from o3storage.http import (
    HttpError,
    Request,
    Response,
    plain_error,
)
from o3storage.http._limits import PIPELINED_PER_STEP, WRITE_HIGH_BYTES
from tests.http.clients import Client
from tests.http.serving import echo, hello, run, serving, until

H = "Host: h\r\n"


def test_get_and_keep_alive() -> None:
    async def main() -> None:
        async with serving(hello) as served:
            client = await served.connect()
            for path in ("/a", "/b", "/c"):
                answer = await client.ask(f"GET {path} HTTP/1.1\r\n{H}\r\n")
                assert answer.status == 200
                assert answer.body == b"hello " + path.encode()
                assert answer.headers["server"] == "O3Storage"
                assert answer.headers["date"].endswith(" GMT")
                assert "connection" not in answer.headers
            assert served.server.stats.accepted == 1
            assert served.server.stats.requests == 3

    run(main())


def test_pipelined_requests_are_answered_in_order() -> None:
    async def slow_first(request: Request) -> Response:
        if request.path == b"/0":
            await asyncio.sleep(0)
            await asyncio.sleep(0)
        return await hello(request)

    async def main() -> None:
        async with serving(slow_first) as served:
            client = await served.connect()
            client.send("".join(f"GET /{n} HTTP/1.1\r\n{H}\r\n" for n in range(50)))
            for n in range(50):
                assert (await client.answer()).body == b"hello /%d" % n

    run(main())


def test_pipelined_requests_with_bodies() -> None:
    async def main() -> None:
        async with serving(echo) as served:
            client = await served.connect()
            client.send(
                f"PUT /a HTTP/1.1\r\n{H}Content-Length: 3\r\n\r\nabc"
                f"PUT /b HTTP/1.1\r\n{H}Transfer-Encoding: chunked\r\n\r\n2\r\nde\r\n0\r\n\r\n"
                f"PUT /c HTTP/1.1\r\n{H}Content-Length: 0\r\n\r\n"
                f"PUT /d HTTP/1.1\r\n{H}Content-Length: 1\r\n\r\nf"
            )
            assert [(await client.answer()).body for _ in range(4)] == [b"abc", b"de", b"", b"f"]

    run(main())


def test_pipelined_requests_share_the_loop() -> None:
    """However many came at once, on however many connections."""
    count, clients = 150, 3
    turn = 0
    turns: list[int] = []

    async def handle(request: Request) -> Response:
        turns.append(turn)
        return await hello(request)

    async def main() -> None:
        loop = asyncio.get_running_loop()

        def next_turn() -> None:
            nonlocal turn
            turn += 1
            if len(turns) < count * clients:
                loop.call_soon(next_turn)

        async with serving(handle) as served:
            asking = [await served.connect() for _ in range(clients)]
            next_turn()
            for client in asking:
                client.send("".join(f"GET /{n} HTTP/1.1\r\n{H}\r\n" for n in range(count)))
                client.half_close()
            for client in asking:
                for n in range(count):
                    assert (await client.answer()).body == b"hello /%d" % n
                assert await client.at_end()
            most = max(turns.count(number) for number in set(turns))
            assert most <= PIPELINED_PER_STEP + clients
            assert not served.server._pipelined

    run(main())


def test_more_pipelined_input_than_is_held() -> None:
    """The server stops reading, and goes on when it has answered."""
    gate = asyncio.Event

    async def main() -> None:
        opened = gate()

        async def handle(request: Request) -> Response:
            await opened.wait()
            return await echo(request)

        async with serving(handle) as served:
            client = await served.connect()
            body = b"x" * 9000
            one = f"PUT / HTTP/1.1\r\n{H}Content-Length: 9000\r\n\r\n".encode() + body
            client.send(one * 200)
            await until(lambda: any(c._paused for c in served.server._connections))
            opened.set()
            for _ in range(200):
                assert (await client.answer()).body == body

    run(main())


@pytest.mark.parametrize("half_close", [False, True])
def test_who_asks_on_and_does_not_read_gets_no_more_answers_made(
    over: object, half_close: bool
) -> None:
    count, size = 700, 100_000
    made = 0

    async def handle(request: Request) -> Response:
        nonlocal made
        made += 1
        return Response(200, [], request.path.ljust(size))

    async def main() -> None:
        async with serving(handle) as served:
            client = await served.connect()
            client.send("".join(f"GET /{n} HTTP/1.1\r\n{H}\r\n" for n in range(count)))
            if half_close:
                client.half_close()
            await until(lambda: served.server.connections == 1)
            connection = served.first_connection
            await until(lambda: connection._writing_paused and connection._paused)
            for n in range(count):
                held = connection._transport.get_write_buffer_size()
                assert held <= WRITE_HIGH_BYTES + 2 * size
                assert (await client.answer()).body == b"/%d" % n + b" " * (size - len(f"/{n}"))
            assert made == count

    run(main())


def test_who_asks_on_and_never_reads_is_cut() -> None:
    async def handle(request: Request) -> Response:
        return Response(200, [], bytes(200_000))

    async def main() -> None:
        async with serving(handle, rate_window_s=0.05) as served:
            client = await served.connect()
            client.writer.transport.pause_reading()  # type: ignore[attr-defined]
            client.send(f"GET / HTTP/1.1\r\n{H}\r\n" * 1000)
            await until(lambda: served.server.stats.too_slow == 1)
            await until(lambda: not served.server.connections)
            client.close()

    run(main())


@pytest.mark.parametrize("crowded", [False, True])
def test_where_much_is_unsent_slow_readers_are_cut(over: object, crowded: bool) -> None:
    async def handle(request: Request) -> Response:
        # (What the system's own buffers take is not unsent.)
        return Response(200, [], bytes(30_000_000 if request.path == b"/much" else 10))

    async def main() -> None:
        most = 10_000 if crowded else 1 << 40
        async with serving(handle, max_unsent_bytes=most, crowded_window_s=0.05) as served:
            stats = served.server.stats
            slow = await served.connect()
            reads = await served.connect()
            slow.writer.transport.pause_reading()  # type: ignore[attr-defined]
            slow.send(f"GET /much HTTP/1.1\r\n{H}\r\n")
            await until(lambda: stats.requests == 1)
            ticks = set()

            def watched() -> bool:
                ticks.add(served.server._last_tick_s)
                return bool(stats.too_slow) if crowded else len(ticks) > 20

            await until(watched)
            assert stats.too_slow == crowded
            assert (await reads.ask(f"GET /a HTTP/1.1\r\n{H}\r\n")).status == 200
            slow.close()

    run(main())


@pytest.mark.parametrize("step", [1, 2, 7])
def test_head_and_body_in_small_pieces(step: int) -> None:
    async def main() -> None:
        async with serving(echo) as served:
            client = await served.connect()
            client.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            data = (
                f"PUT /k HTTP/1.1\r\n{H}Transfer-Encoding: chunked\r\n\r\n"
                "5\r\nhello\r\n6\r\n world\r\n0\r\nX-T: v\r\n\r\n"
            )
            for at in range(0, len(data), step):
                client.send(data[at : at + step])
                await client.drain()
                await asyncio.sleep(0)
            assert (await client.answer()).body == b"hello world"

    run(main())


def test_http_1_0() -> None:
    async def main() -> None:
        async with serving(hello) as served:
            client = await served.connect()
            answer = await client.ask("GET /x HTTP/1.0\r\n\r\n")
            assert (answer.status, answer.body) == (200, b"hello /x")
            assert answer.headers["connection"] == "close"
            assert await client.at_end()
            client = await served.connect()
            for _ in range(2):
                answer = await client.ask("GET /x HTTP/1.0\r\nConnection: keep-alive\r\n\r\n")
                assert answer.headers["connection"] == "keep-alive"

    run(main())


def test_connection_close() -> None:
    async def main() -> None:
        async with serving(hello) as served:
            client = await served.connect()
            answer = await client.ask(f"GET /x HTTP/1.1\r\n{H}Connection: close\r\n\r\n")
            assert answer.headers["connection"] == "close"
            assert await client.at_end()

    run(main())


def test_response_close() -> None:
    async def handle(request: Request) -> Response:
        return Response(403, [], b"no", close=True)

    async def main() -> None:
        async with serving(handle) as served:
            client = await served.connect()
            answer = await client.ask(f"GET /x HTTP/1.1\r\n{H}\r\n")
            assert (answer.status, answer.headers["connection"]) == (403, "close")
            assert await client.at_end()

    run(main())


def test_client_that_half_closes_is_answered() -> None:
    async def handle(request: Request) -> Response:
        await asyncio.sleep(0)
        return await hello(request)

    async def main() -> None:
        async with serving(handle) as served:
            client = await served.connect()
            client.send(f"GET /1 HTTP/1.1\r\n{H}\r\nGET /2 HTTP/1.1\r\n{H}\r\n")
            client.half_close()
            both = await client.rest()
            assert both.count(b"hello /") == 2
            await until(lambda: served.server.connections == 0)

    run(main())


def test_one_empty_line_before_a_request_is_ignored() -> None:
    async def main() -> None:
        async with serving(hello) as served:
            client = await served.connect()
            assert (await client.ask(f"\r\nGET /x HTTP/1.1\r\n{H}\r\n")).status == 200
            assert (await client.ask(f"\r\n\r\nGET /x HTTP/1.1\r\n{H}\r\n")).status == 400

    run(main())


def test_request_tells_both_ends() -> None:
    seen: list[Request] = []

    async def handle(request: Request) -> Response:
        seen.append(request)
        return Response(204)

    async def main() -> None:
        async with serving(handle) as served:
            client = await served.connect()
            answer = await client.ask(f"GET /p?secret HTTP/1.1\r\n{H}\r\n")
            assert answer.status == 204
            assert "content-length" not in answer.headers
            name = client.writer.get_extra_info("sockname")
            assert seen[0].peer == (name[0], name[1])
            assert seen[0].local == ("127.0.0.1", served.port)
            assert seen[0].secure == served.secure
            assert "secret" not in repr(seen[0])

    run(main())


# --- refusals


@pytest.mark.parametrize(
    ("data", "status"),
    [
        ("GET / HTTP/1.1\r\n\r\n", 400),
        ("GET / HTTP/1.1\r\nHost: a\r\nHost: a\r\n\r\n", 400),
        (f"GET / HTTP/1.1\r\n{H}A : b\r\n\r\n", 400),
        (f"GET / HTTP/1.1\r\n{H}A: b\r\n c\r\n\r\n", 400),
        (f"GET / HTTP/1.1\r\n{H}A: b\0c\r\n\r\n", 400),
        (f"PUT / HTTP/1.1\r\n{H}Content-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n", 400),
        (f"PUT / HTTP/1.1\r\n{H}Transfer-Encoding: gzip\r\n\r\n", 400),
        (f"PUT / HTTP/1.1\r\n{H}Content-Length: 1\r\nContent-Length: 2\r\n\r\n", 400),
        ("GET / HTTP/1.1\nHost: h\n\n", 400),
        (f"GET / HTTP/1.1\r\n{H}A: b\n", 400),
        ("GET / HTTP/2.0\r\n\r\n", 505),
        (f"GET / HTTP/1.1\r\n{H}Expect: x\r\n\r\n", 417),
        ("\x16\x03\x01\x02\0\x01\0\x01\xfc\x03\x03\n", 400),
        (f"GET /{'x' * 17000}", 431),
        (f"GET / HTTP/1.1\r\n{H}A: {'x' * 17000}\r\n\r\n", 431),
        (
            f"GET / HTTP/1.1\r\n{H}{''.join(f'A{n}: b' + chr(13) + chr(10) for n in range(100))}\r\n",
            431,
        ),
    ],
)
def test_bad_head_is_answered_and_the_connection_closed(data: str, status: int) -> None:
    async def main() -> None:
        async with serving(hello) as served:
            client = await served.connect()
            answer = await client.ask(data)
            assert answer.status == status
            assert answer.headers["connection"] == "close"
            assert await client.at_end()
            assert served.server.stats.refused == 1
            assert served.server.stats.requests == 0

    run(main())


def test_error_response_hook() -> None:
    async def main() -> None:
        async with serving(hello) as served:

            def own(request: Request | None, error: HttpError) -> Response:
                assert request is None
                return Response(error.status, [("Content-Type", "application/xml")], b"<E/>")

            served.server.error_response = own
            client = await served.connect()
            answer = await client.ask("nonsense\r\n\r\n")
            assert (answer.status, answer.body) == (400, b"<E/>")
            assert answer.headers["connection"] == "close"

    run(main())


def test_too_many_connections() -> None:
    async def main() -> None:
        async with serving(hello, max_connections=2) as served:
            first, second = await served.connect(), await served.connect()
            assert (await first.ask(f"GET / HTTP/1.1\r\n{H}\r\n")).status == 200
            assert (await second.ask(f"GET / HTTP/1.1\r\n{H}\r\n")).status == 200
            if served.secure:  # it is not worth a handshake
                with pytest.raises((ConnectionError, ssl.SSLError)):
                    await served.connect()
            else:
                third = await served.connect()
                assert (await third.answer()).status == 503
                third.close()
            first.close()
            await until(lambda: served.server.connections == 1)
            fourth = await served.connect()
            assert (await fourth.ask(f"GET / HTTP/1.1\r\n{H}\r\n")).status == 200

    run(main())


def test_handler_that_fails_is_answered_500_and_reported() -> None:
    async def handle(request: Request) -> Response:
        if request.path == b"/later":
            await asyncio.sleep(0)
        raise RuntimeError("a secret detail")

    async def main() -> None:
        async with serving(handle) as served:
            client = await served.connect()
            for path in ("/now", "/later"):
                answer = await client.ask(f"GET {path} HTTP/1.1\r\n{H}\r\n")
                assert answer.status == 500
                assert b"secret" not in answer.body
            assert [type(e) for e, _ in served.reports] == [RuntimeError, RuntimeError]

    run(main())


def test_error_response_that_fails_ends_the_connection() -> None:
    async def handle(request: Request) -> Response:
        await asyncio.sleep(0)
        raise RuntimeError

    async def main() -> None:
        async with serving(handle) as served:

            def broken(request: Request | None, error: HttpError) -> Response:
                raise LookupError

            served.server.error_response = broken
            client = await served.connect()
            client.send(f"GET / HTTP/1.1\r\n{H}\r\n")
            assert await client.at_end()
            assert LookupError in [type(e) for e, _ in served.reports]
            served.server.error_response = plain_error

    run(main())


def test_timeout_in_the_first_step_of_a_handler() -> None:
    async def handle(request: Request) -> Response:
        try:
            async with asyncio.timeout(0.01):
                await asyncio.get_running_loop().create_future()
        except TimeoutError:
            return Response(200, [], b"timed out")
        return Response(500)

    async def main() -> None:
        async with serving(handle) as served:
            client: Client = await served.connect()
            for _ in range(2):
                assert (await client.ask(f"GET / HTTP/1.1\r\n{H}\r\n")).body == b"timed out"

    run(main())
