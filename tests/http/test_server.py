"""Listening, counters and the pieces that stand alone."""

from __future__ import annotations

import asyncio
import socket

import pytest

from o3storage.http import Server, _server
from o3storage.http._eager import start
from tests.http.serving import hello, run, serving, until


def test_several_addresses() -> None:
    async def main() -> None:
        async with serving(hello) as served:
            host, port = await served.server.listen("::1", 0)
            assert host == "::1"
            reader, writer = await asyncio.open_connection("::1", port)
            writer.write(b"GET /six HTTP/1.0\r\n\r\n")
            assert (await reader.read()).endswith(b"hello /six")
            assert len(served.server.addresses) == 2
            writer.close()

    run(main())


def test_answers_are_sent_without_delay() -> None:
    """Else the second write of an answer may wait 40 ms for the client's delayed acknowledgement."""

    async def main() -> None:
        async with serving(hello) as served:
            client = await served.connect_tcp()
            await until(lambda: served.server.connections == 1)
            sock = served.first_connection._transport.get_extra_info("socket")
            assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
            client.writer.close()

    run(main())


def test_taken_port() -> None:
    async def main() -> None:
        async with serving(hello) as served:
            with pytest.raises(OSError, match="in use"):
                await Server(hello).listen("127.0.0.1", served.port)

    run(main())


def test_names_are_not_resolved_here() -> None:
    async def main() -> None:
        with pytest.raises(ValueError, match="does not appear to be"):
            await Server(hello).listen("store.example", 0)

    run(main())


def test_far_too_many_connections_are_reset(monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        monkeypatch.setattr(_server, "REFUSED_SPARE", 1)
        async with serving(hello, max_connections=1) as served:
            # Held by a name: a connection that nothing refers to is closed by the collector.
            held = await served.connect()
            await until(lambda: served.server.connections == 1)
            told = await served.connect()
            await until(lambda: served.server.connections == 2)
            unheard = await served.connect()
            assert await unheard.at_end()
            assert (await told.answer()).status == 503
            held.close()

    run(main())


def test_date_follows_the_clock_it_was_given() -> None:
    class Fixed:
        def wall_ns(self) -> int:
            return 784111777_999_999_999

        def boot_s(self) -> float:
            return 0.0

    async def main() -> None:
        server = Server(hello, clock=Fixed(), server_name="")
        await server.listen("localhost", 0)
        assert server.common_lines == "Date: Sun, 06 Nov 1994 08:49:37 GMT\r\n"
        await server.close()

    run(main())


# --- starting a coroutine at once


def test_eager_start_without_a_wait_makes_no_task() -> None:
    async def main() -> None:
        out: list[object] = []

        async def quick() -> None:
            out.append(asyncio.current_task())

        loop = asyncio.get_running_loop()
        loop.call_soon(lambda: out.append(start(loop, quick())))
        await asyncio.sleep(0)
        assert out[0] is not None
        assert out[1] is None

    run(main())


def test_eager_start_raises_what_the_first_step_raises() -> None:
    async def main() -> None:
        async def broken() -> None:
            raise LookupError

        loop = asyncio.get_running_loop()
        seen: list[BaseException] = []

        def call() -> None:
            try:
                start(loop, broken())
            except LookupError as error:
                seen.append(error)

        loop.call_soon(call)
        await asyncio.sleep(0)
        assert len(seen) == 1

    run(main())


def test_eager_start_goes_on_as_a_task() -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        out: list[object] = []
        ready: asyncio.Future[int] = loop.create_future()

        async def slow() -> None:
            out.append(await ready)
            await asyncio.sleep(0)
            try:
                await loop.create_future()
            except asyncio.CancelledError:
                out.append("cancelled")
                await asyncio.sleep(0)
                raise

        tasks: list[asyncio.Task[None] | None] = []
        loop.call_soon(lambda: tasks.append(start(loop, slow())))
        await asyncio.sleep(0)
        ready.set_result(5)
        while not out:
            await asyncio.sleep(0)
        await asyncio.sleep(0)
        (task,) = tasks
        assert task is not None
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert out == [5, "cancelled"]

    run(main())


def test_cancelling_before_the_rest_has_begun() -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        out: list[str] = []

        async def slow() -> None:
            try:
                await loop.create_future()
            except asyncio.CancelledError:
                out.append("cancelled")
                await asyncio.sleep(0)
                out.append("cleaned up")
                raise

        tasks: list[asyncio.Task[None] | None] = []

        def begin_and_cancel() -> None:
            task = start(loop, slow())
            assert task is not None
            tasks.append(task)
            task.cancel()

        loop.call_soon(begin_and_cancel)
        await asyncio.sleep(0)
        (task,) = tasks
        assert task is not None
        with pytest.raises(asyncio.CancelledError):
            await task
        assert out == ["cancelled", "cleaned up"]

    run(main())
