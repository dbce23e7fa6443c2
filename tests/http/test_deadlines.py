"""Deadlines, slow clients and the drain: tiny limits and a clock moved by hand, no waiting."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

from o3storage.http import BlockPool, BodyTimeout, Request, Response
from tests.http.serving import counting, echo, hello, run, serving, until

H = "Host: h\r\n"
PUT = f"PUT / HTTP/1.1\r\n{H}Content-Length: 1000000\r\n\r\n"
NEVER = 3600.0


def test_head_that_does_not_end_is_answered_408() -> None:
    async def main() -> None:
        async with serving(hello, head_timeout_s=0.02) as served:
            client = await served.connect()
            answer = await client.ask("GET / HTTP/1.1\r\nHo")
            assert (answer.status, answer.headers["connection"]) == (408, "close")
            assert await client.at_end()

    run(main())


def test_bytes_that_trickle_in_do_not_extend_the_head_timeout() -> None:
    async def main() -> None:
        async with serving(hello, tick_s=NEVER) as served:
            client = await served.connect()
            client.send("GET / HTTP/1.1\r\n")
            await until(lambda: any(c._in_head for c in served.server._connections))
            connection = served.first_connection
            before = connection._deadline_s
            client.send("A: b\r\n")
            await until(lambda: b"A: b" in connection._unread)
            assert connection._deadline_s == before
            connection._tick(before - 0.001, 1.0)
            assert served.server.stats.refused == 0
            connection._tick(before, 1.0)
            assert (await client.answer()).status == 408

    run(main())


def test_idle_connections_are_closed_without_a_word() -> None:
    async def main() -> None:
        async with serving(hello, idle_timeout_s=0.02) as served:
            fresh = await served.connect()
            used = await served.connect()
            assert (await used.ask(f"GET / HTTP/1.1\r\n{H}\r\n")).status == 200
            assert await fresh.at_end()
            assert await used.at_end()

    run(main())


def test_idle_time_starts_again_after_a_request() -> None:
    async def main() -> None:
        async with serving(hello, tick_s=NEVER) as served:
            client = await served.connect()
            connection_seen = lambda: len(served.server._connections) == 1  # noqa: E731
            await until(connection_seen)
            connection = served.first_connection
            before = connection._deadline_s
            await client.ask(f"GET / HTTP/1.1\r\n{H}\r\n")
            assert connection._deadline_s > before

    run(main())


def test_slow_body_is_answered_408_and_cut() -> None:
    seen: list[BaseException] = []

    async def handle(request: Request) -> Response:
        try:
            return await echo(request)
        except BodyTimeout as error:
            seen.append(error)
            raise

    async def main() -> None:
        async with serving(handle, rate_window_s=0.05) as served:
            client = await served.connect()
            answer = await client.ask(PUT + "a few bytes")
            assert (answer.status, answer.headers["connection"]) == (408, "close")
            client.half_close()
            await until(lambda: served.server.connections == 0)
            assert len(seen) == 1
            assert served.server.stats.too_slow == 1

    run(main())


def test_body_at_the_least_rate_is_not_cut() -> None:
    """60 s with 1 KiB in each, then 60 s with one byte less: only the latter is cut."""

    async def main() -> None:
        async with serving(echo, tick_s=NEVER) as served:
            client = await served.connect()
            client.send(PUT)
            await until(lambda: served.server.stats.requests == 1)
            connection = served.first_connection
            total = 0
            for window in (61440, 61439):
                sent = 0
                for second in range(60):
                    piece = min(1024, window - sent)
                    client.send(bytes(piece))
                    sent += piece
                    total += piece
                    body = connection._body
                    assert body is not None
                    await until(lambda: body.received_bytes == total and body._waiting())
                    connection._tick(0.0, 1.0)
                    assert served.server.stats.too_slow == int(window == 61439 and second == 59)
            assert (await client.answer()).status == 408

    run(main())


def test_time_that_the_server_takes_is_not_the_clients() -> None:
    async def main() -> None:
        gate = asyncio.Event()

        async def handle(request: Request) -> Response:
            await gate.wait()
            return await echo(request)

        async with serving(handle, tick_s=NEVER) as served:
            client = await served.connect()
            client.send(f"PUT / HTTP/1.1\r\n{H}Content-Length: 2\r\n\r\n")
            await until(lambda: served.server.stats.requests == 1)
            connection = served.first_connection
            for _ in range(1000):
                connection._tick(0.0, 1.0)
            gate.set()
            assert (await client.ask("ok")).body == b"ok"

    run(main())


def test_client_that_does_not_read_is_cut() -> None:
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
        async with serving(handle, rate_window_s=0.05) as served:
            client = await served.connect()
            client.send(f"GET / HTTP/1.1\r\n{H}\r\n")
            await until(lambda: served.server.connections == 1)
            await until(lambda: served.server.connections == 0 and bool(closed))
            assert served.server.stats.too_slow == 1

    run(main())


def test_answer_that_is_never_read_does_not_hold_a_closing_connection() -> None:
    async def handle(request: Request) -> Response:
        return Response(200, [], bytes(50_000_000), close=True)

    async def main() -> None:
        async with serving(handle, rate_window_s=0.05) as served:
            client = await served.connect()
            client.send(f"GET / HTTP/1.1\r\n{H}\r\n")
            await until(lambda: served.server.connections == 1)
            await until(lambda: served.server.connections == 0)

    run(main())


def test_many_slow_uploads_leave_room_for_a_fast_one() -> None:
    """300 uploads that stall hold small blocks only, and a fast client is served."""

    async def main() -> None:
        pool = BlockPool()
        async with serving(counting(pool), tick_s=NEVER) as served:
            slow = [await served.connect() for _ in range(300)]
            for client in slow:
                client.send(PUT + "first bytes")
            await until(lambda: served.server.stats.requests == 300)
            await until(lambda: pool.lent_bytes == 300 * 16384)
            fast = await served.connect()
            body = bytes(1_000_000)
            for _ in range(3):
                answer = await fast.ask(PUT.encode() + body)
                assert answer.body.split()[-1] == b"213568."
            for client in slow:
                client.close()
            await until(lambda: pool.lent_bytes == 0)
            assert pool.lost_blocks == 0

    run(main())


def test_a_connection_owns_no_block_before_its_first_body_byte() -> None:
    async def main() -> None:
        pool = BlockPool()
        async with serving(counting(pool)) as served:
            client = await served.connect()
            client.send(f"PUT / HTTP/1.1\r\n{H}Transfer-Encoding: chunked\r\n\r\n5")
            await until(lambda: served.server.stats.requests == 1)
            client.send("\r\n")
            await asyncio.sleep(0)
            assert pool.lent_bytes == 0
            client.send("h")
            await until(lambda: pool.lent_bytes == 16384)
            assert (await client.ask("ello\r\n0\r\n\r\n")).body == b"5."

    run(main())


# --- drain


def test_drain_finishes_what_is_under_way() -> None:
    async def main() -> None:
        gate = asyncio.Event()

        async def handle(request: Request) -> Response:
            await gate.wait()
            return await echo(request)

        async with serving(handle) as served:
            idle, busy = await served.connect(), await served.connect()
            busy.send(f"PUT / HTTP/1.1\r\n{H}Content-Length: 2\r\n\r\nok")
            await until(lambda: served.server.stats.requests == 1)
            await until(lambda: served.server.connections == 2)
            drain = asyncio.ensure_future(served.server.drain(20.0))
            assert await idle.at_end()
            assert not drain.done()
            try:
                await served.connect()
                raise AssertionError("a new connection was accepted")
            except ConnectionRefusedError:
                pass
            gate.set()
            answer = await busy.answer()
            assert (answer.body, answer.headers["connection"]) == (b"ok", "close")
            await drain
            assert served.server.connections == 0

    run(main())


def test_drain_while_an_answer_is_being_sent() -> None:
    """Its head did not say close; the connection is closed all the same."""

    async def main() -> None:
        gate = asyncio.Event()

        async def body() -> AsyncIterator[bytes]:
            yield b"one "
            await gate.wait()
            yield b"two"

        async def handle(request: Request) -> Response:
            return Response(200, [], body(), 7)

        async with serving(handle) as served:
            client = await served.connect()
            client.send(f"GET / HTTP/1.1\r\n{H}\r\nGET /never HTTP/1.1\r\n{H}\r\n")
            _, headers = await client.head()
            assert "connection" not in headers
            drain = asyncio.ensure_future(served.server.drain(20.0))
            await asyncio.sleep(0)
            gate.set()
            assert await client.rest() == b"one two"
            client.half_close()
            await drain
            assert served.server.stats.requests == 1

    run(main())


def test_drain_ends_what_does_not_finish() -> None:
    async def main() -> None:
        cancelled = []

        async def handle(request: Request) -> Response:
            try:
                await asyncio.get_running_loop().create_future()
            except asyncio.CancelledError:
                cancelled.append(True)
                raise
            return Response(200)

        async with serving(handle) as served:
            client = await served.connect()
            client.send(f"GET / HTTP/1.1\r\n{H}\r\n")
            await until(lambda: served.server.stats.requests == 1)
            await served.server.drain(0.01)
            assert cancelled
            assert await client.at_end()

    run(main())


def test_drain_with_nothing_open() -> None:
    async def main() -> None:
        async with serving(hello) as served:
            await served.server.drain(20.0)
            await served.server.drain(20.0)

    run(main())
