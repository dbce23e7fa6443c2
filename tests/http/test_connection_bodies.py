"""Bodies of requests over real sockets: asked for, cut into frames, broken off, left unread."""

from __future__ import annotations

import asyncio

import pytest

from o3storage.http import (
    BadChunk,
    BlockPool,
    BodyTruncated,
    Request,
    Response,
)
from tests.http.serving import Served, counting, echo, hello, run, serving, until

H = "Host: h\r\n"


def test_continue_is_sent_when_the_handler_first_reads() -> None:
    async def main() -> None:
        reading = asyncio.Event()

        async def handle(request: Request) -> Response:
            await reading.wait()
            return await echo(request)

        async with serving(handle) as served:
            client = await served.connect()
            client.send(f"PUT / HTTP/1.1\r\n{H}Content-Length: 2\r\nExpect: 100-continue\r\n\r\n")
            await until(lambda: served.server.stats.requests == 1)
            early = asyncio.ensure_future(client.reader.read(1))
            await asyncio.sleep(0)
            assert not early.done()
            reading.set()
            assert await client.patiently(early) == b"H"
            assert (
                await client.patiently(client.reader.readexactly(24))
                == b"TTP/1.1 100 Continue\r\n\r\n"
            )
            client.send("h")
            await until(lambda: reads_on(served))
            assert (await client.ask("i")).body == b"hi"  # and not another 100

    def reads_on(served: Served) -> bool:
        body = served.first_connection._body
        return body is not None and body.received_bytes == 1

    run(main())


def test_an_empty_body_is_continued_too() -> None:
    """botocore (aws cli) expects it for empty files, and does not survive a final answer alone."""

    async def main() -> None:
        async with serving(echo) as served:
            client = await served.connect()
            empty = f"PUT / HTTP/1.1\r\n{H}Content-Length: 0\r\nExpect: 100-continue\r\n\r\n"
            for _ in range(2):
                client.send(empty)
                proceed = b"HTTP/1.1 100 Continue\r\n\r\n"
                assert await client.patiently(client.reader.readexactly(len(proceed))) == proceed
                answer = await client.ask("")
                assert (answer.status, answer.body) == (200, b"")

    run(main())


def test_no_continue_when_the_handler_refuses() -> None:
    async def handle(request: Request) -> Response:
        return Response(403, [], b"no")

    async def main() -> None:
        async with serving(handle) as served:
            client = await served.connect()
            answer = await client.ask(
                f"PUT / HTTP/1.1\r\n{H}Content-Length: 2\r\nExpect: 100-continue\r\n\r\n"
            )
            assert answer.status == 403
            assert answer.headers["connection"] == "close"
            assert await client.at_end()

    run(main())


def test_no_continue_when_the_body_came_anyway_or_for_http_1_0() -> None:
    async def main() -> None:
        async with serving(echo) as served:
            client = await served.connect()
            answer = await client.ask(
                f"PUT / HTTP/1.1\r\n{H}Content-Length: 2\r\nExpect: 100-continue\r\n\r\nhi"
            )
            assert (answer.status, answer.body) == (200, b"hi")
            client.send(f"PUT / HTTP/1.0\r\n{H}Content-Length: 2\r\nExpect: 100-continue\r\n\r\n")
            await until(lambda: served.server.stats.requests == 2)
            assert (await client.ask("hi")).body == b"hi"

    run(main())


@pytest.mark.parametrize("size", [0, 1, 16383, 16384, 16385, 262143, 262144, 262145, 1_000_000])
@pytest.mark.parametrize("chunk", [0, 1000, 65536, 10_000_000])
def test_bodies_are_cut_into_frames(size: int, chunk: int) -> None:
    async def main() -> None:
        pool = BlockPool()
        async with serving(counting(pool)) as served:
            client = await served.connect()
            body = bytes(size)
            if chunk:
                coded = b"".join(
                    b"%x\r\n%b\r\n" % (len(body[at : at + chunk]), body[at : at + chunk])
                    for at in range(0, size, chunk)
                )
                data = f"PUT / HTTP/1.1\r\n{H}Transfer-Encoding: chunked\r\n\r\n".encode()
                data += coded + b"0\r\n\r\n"
            else:
                data = f"PUT / HTTP/1.1\r\n{H}Content-Length: {size}\r\n\r\n".encode() + body
            whole = [262144] * (size // 262144)
            if size % 262144 or not whole:
                whole.append(size % 262144)
            expected = " ".join(str(n) for n in whole) + "."
            for _ in range(2):
                assert (await client.ask(data)).body.decode() == expected
            assert pool.lent_bytes == 0
            assert pool.lost_blocks == 0

    run(main())


def test_trailers() -> None:
    async def handle(request: Request) -> Response:
        assert request.body.trailers is None
        body = await request.body.read(100)
        assert request.body.trailers is not None
        return Response(200, [], body + (request.body.trailers.get("x-sum") or "").encode())

    async def main() -> None:
        async with serving(handle) as served:
            client = await served.connect()
            answer = await client.ask(
                f"PUT / HTTP/1.1\r\n{H}Transfer-Encoding: chunked\r\n\r\n1\r\na\r\n0\r\nX-Sum: 7\r\n\r\n"
            )
            assert answer.body == b"a7"

    run(main())


def test_read_limit() -> None:
    async def handle(request: Request) -> Response:
        return Response(200, [], await request.body.read(10))

    async def main() -> None:
        async with serving(handle) as served:
            for head in ("Content-Length: 11\r\n\r\n", "Transfer-Encoding: chunked\r\n\r\nb\r\n"):
                client = await served.connect()
                answer = await client.ask(f"PUT / HTTP/1.1\r\n{H}{head}01234567890")
                assert answer.status == 413

    run(main())


@pytest.mark.parametrize(
    "coded", ["5\r\nhel", "5\r\nhello", "5\r\nhello\r\n", "5\r\nhello\r\n0\r\n", ""]
)
@pytest.mark.parametrize("reset", [False, True])
def test_client_gone_in_the_middle_of_a_body(coded: str, reset: bool) -> None:
    async def main() -> None:
        seen: list[BaseException] = []

        async def handle(request: Request) -> Response:
            try:
                await request.body.read(1000)
            except BodyTruncated as error:
                seen.append(error)
                raise
            return Response(200)

        async with serving(handle) as served:
            client = await served.connect()
            client.send(f"PUT / HTTP/1.1\r\n{H}Transfer-Encoding: chunked\r\n\r\n{coded}")
            await until(lambda: served.server.stats.requests == 1)
            if reset:
                client.reset()
            else:
                client.half_close()
                assert (await client.answer()).status == 400
            await until(lambda: served.server.connections == 0)
            assert len(seen) == 1
            assert not served.reports  # a client's fault is not a defect

    run(main())


def test_bad_chunk_reaches_the_handler_and_the_client() -> None:
    async def main() -> None:
        seen: list[BaseException] = []

        async def handle(request: Request) -> Response:
            try:
                return await echo(request)
            except BadChunk as error:
                seen.append(error)
                with pytest.raises(BadChunk):
                    await request.body.read(1)
                raise

        async with serving(handle) as served:
            client = await served.connect()
            client.send(f"PUT / HTTP/1.1\r\n{H}Transfer-Encoding: chunked\r\n\r\n")
            await until(lambda: served.server.stats.requests == 1)
            answer = await client.ask("10000000000000000\r\n")
            assert answer.status == 400
            assert b"16 hexadecimal" in answer.body
            assert await client.at_end()
            assert len(seen) == 1

    run(main())


def test_unread_body_at_hand_is_skipped_and_the_connection_kept() -> None:
    async def main() -> None:
        async with serving(hello) as served:
            client = await served.connect()
            for coded in (
                "Content-Length: 3\r\n\r\nabc",
                "Transfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n",
            ):
                answer = await client.ask(f"POST /x HTTP/1.1\r\n{H}{coded}")
                assert answer.status == 200
                assert "connection" not in answer.headers
            assert (await client.ask(f"GET /y HTTP/1.1\r\n{H}\r\n")).body == b"hello /y"

    run(main())


def test_drain_rule_the_client_reads_the_answer_and_not_a_reset() -> None:
    """A client that writes its whole 200 KB before it looks still finds the 403."""

    async def handle(request: Request) -> Response:
        return Response(403, [], b"no")

    async def main() -> None:
        async with serving(handle) as served:
            client = await served.connect()
            client.send(f"PUT / HTTP/1.1\r\n{H}Content-Length: 200000\r\n\r\n")
            await client.head()
            client.send(bytes(200_000))
            await client.drain()
            assert await client.rest() == b"no"
            client.half_close()
            await until(lambda: served.server.connections == 0)

    run(main())


def test_drain_is_bounded_and_lingering_ends() -> None:
    async def handle(request: Request) -> Response:
        return Response(403, [], b"no")

    async def main() -> None:
        async with serving(handle, tick_s=3600.0) as served:
            client = await served.connect()
            client.send(f"PUT / HTTP/1.1\r\n{H}Content-Length: 100000000\r\n\r\n")
            assert (await client.answer()).body == b"no"
            connection = served.first_connection
            client.send(bytes(20_000_000))
            await until(lambda: connection._paused)
            assert 256 * 1024 < connection._received_bytes <= 256 * 1024 + 64 * 1024
            connection._tick(connection._deadline_s - 0.001, 1.0)
            assert served.server.connections == 1
            connection._tick(connection._deadline_s, 1.0)
            await until(lambda: served.server.connections == 0)

    run(main())


@pytest.mark.parametrize("chunks", [100, 1000])
def test_a_chunked_body_that_nobody_reads_is_not_taken_apart_for_long(chunks: int) -> None:
    """Behind a short one the connection goes on; a long one ends it, though it is all here."""

    async def main() -> None:
        async with serving(hello) as served:
            client = await served.connect()
            body = "1\r\nx\r\n" * chunks + "0\r\n\r\n"
            head = f"PUT /a HTTP/1.1\r\n{H}Transfer-Encoding: chunked\r\n\r\n"
            answer = await client.ask(head + body)
            assert answer.body == b"hello /a"
            if chunks == 100:
                assert "connection" not in answer.headers
                assert (await client.ask(f"GET /b HTTP/1.1\r\n{H}\r\n")).body == b"hello /b"
            else:
                assert answer.headers["connection"] == "close"

    run(main())
