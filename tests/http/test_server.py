"""Listening, counters and the pieces that stand alone."""

from __future__ import annotations

import asyncio
import errno
import socket

import pytest

from o3storage.http import Server
from o3storage.http._connection import Connection
from o3storage.http._eager import Started, start
from o3storage.http._listener import ACCEPTS_PER_STEP
from tests.http.serving import hello, run, serving, until

GET = "GET / HTTP/1.1\r\nHost: h\r\n\r\n"
NEVER = 3600.0


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


def test_far_too_many_connections_are_reset() -> None:
    async def main() -> None:
        async with serving(hello, max_connections=1, max_refused=1) as served:
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


def test_many_connections_are_not_accepted_at_once() -> None:
    async def main() -> None:
        async with serving(hello) as served:
            clients = [
                socket.create_connection(("127.0.0.1", served.port))
                for _ in range(2 * ACCEPTS_PER_STEP + 1)
            ]
            most = before = 0
            while before < len(clients):
                await asyncio.sleep(0)
                accepted = served.server.stats.accepted
                most, before = max(most, accepted - before), accepted
            assert most <= ACCEPTS_PER_STEP
            for client in clients:
                client.close()

    run(main())


def test_no_descriptor_left_is_said_once_a_second(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("asyncio.constants.ACCEPT_RETRY_DELAY", 0.05)
    said: list[object] = []

    def exhausted(sock: socket.socket) -> tuple[int, object]:
        raise OSError(errno.EMFILE, "Too many open files")

    async def main() -> None:
        asyncio.get_running_loop().set_exception_handler(
            lambda _, context: said.append(context["exception"])
        )
        async with serving(hello) as served:
            with monkeypatch.context() as patch, socket.socket() as client:
                patch.setattr(socket.socket, "_accept", exhausted)
                client.setblocking(False)
                client.connect_ex(("127.0.0.1", served.port))
                for count in (1, 2, 3):
                    await until(lambda: len(said) >= count)
                    assert len(said) == count
            await until(lambda: served.server.stats.accepted == 1)
            assert (await (await served.connect()).ask(GET)).status == 200

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


def test_client_that_goes_when_its_deadline_comes() -> None:
    """In the same step of the loop: it resets the connection at the answer, whose other half cannot
    be closed then. The deadlines of others are kept all the same."""

    async def main() -> None:
        async with serving(hello, tick_s=NEVER) as served:
            with socket.create_connection(("127.0.0.1", served.port)) as client:
                client.send(b"GET / HTTP/1.1\r\nHo")
                await until(lambda: any(c._in_head for c in served.server._connections))
                served.first_connection._deadline_s = 0.0
            ticker = served.server._ticker
            served.server._tick()
            assert served.server._ticker is not ticker
            await until(lambda: not served.server._connections)
            assert served.server.stats.refused == 1
            assert not served.reports

    run(main())


def test_a_connection_that_fails_does_not_stop_the_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(connection: Connection, now_s: float, passed_s: float) -> None:
        raise ValueError("a defect")

    async def main() -> None:
        async with serving(hello) as served:
            client = await served.connect()
            await until(lambda: served.server.connections == 1)
            monkeypatch.setattr(Connection, "_tick", fails)
            await until(lambda: not served.server.connections)
            assert [str(error) for error, _ in served.reports] == ["a defect"]
            assert await client.at_end()
            before = served.server._last_tick_s
            await until(lambda: served.server._last_tick_s > before)

    run(main())


# --- starting a coroutine at once


def end_of(started: Started) -> asyncio.Future[BaseException | None]:
    ended: asyncio.Future[BaseException | None] = asyncio.get_running_loop().create_future()
    started.when_ended(lambda it: ended.set_result(it.error))
    return ended


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


@pytest.mark.parametrize("fails", [False, True])
def test_one_wait_makes_no_task(fails: bool) -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        ready: asyncio.Future[int] = loop.create_future()
        seen: list[object] = []

        async def waits_once() -> None:
            seen.append(asyncio.current_task())
            try:
                seen.append(await ready)
            finally:
                seen.append(asyncio.current_task())

        begun: list[asyncio.Future[BaseException | None]] = []

        def begin() -> None:
            started = start(loop, waits_once())
            assert started is not None
            seen.append(started)
            begun.append(end_of(started))

        loop.call_soon(begin)
        await asyncio.sleep(0)
        if fails:
            ready.set_exception(LookupError())
            assert isinstance(await begun[0], LookupError)
            assert seen == [seen[0], seen[0], seen[0]]
        else:
            ready.set_result(7)
            assert await begun[0] is None
            assert seen == [seen[0], seen[0], 7, seen[0]]
        assert isinstance(seen[0], Started)
        assert seen[0].done()
        assert seen[0].task is None

    run(main())


@pytest.mark.parametrize("resolved", [False, True])
def test_cancelled_in_its_one_wait(resolved: bool) -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        ready: asyncio.Future[int] = loop.create_future()
        out: list[str] = []

        async def waits_once() -> None:
            try:
                await ready
            except asyncio.CancelledError:
                out.append("cancelled")
                raise

        begun: list[Started] = []
        ends: list[asyncio.Future[BaseException | None]] = []

        def begin() -> None:
            started = start(loop, waits_once())
            assert started is not None
            begun.append(started)
            ends.append(end_of(started))

        loop.call_soon(begin)
        await asyncio.sleep(0)
        if resolved:
            ready.set_result(1)  # its callback has not run yet
        begun[0].cancel()
        assert isinstance(await ends[0], asyncio.CancelledError)
        assert out == ["cancelled"]
        assert begun[0].done()

    run(main())


def test_eager_start_goes_on_as_a_task() -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        out: list[object] = []
        ready: asyncio.Future[int] = loop.create_future()

        async def slow() -> None:
            out.append(await ready)
            await asyncio.sleep(0)
            out.append("waits again")
            try:
                await loop.create_future()
            except asyncio.CancelledError:
                out.append("cancelled")
                await asyncio.sleep(0)
                raise

        tasks: list[Started | None] = []
        loop.call_soon(lambda: tasks.append(start(loop, slow())))
        await asyncio.sleep(0)
        ready.set_result(5)
        while len(out) < 2:
            await asyncio.sleep(0)
        (task,) = tasks
        assert task is not None
        ended = end_of(task)
        task.cancel()
        assert isinstance(await ended, asyncio.CancelledError)
        assert out == [5, "waits again", "cancelled"]

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

        tasks: list[Started | None] = []

        def begin_and_cancel() -> None:
            task = start(loop, slow())
            assert task is not None
            tasks.append(task)
            task.cancel()

        loop.call_soon(begin_and_cancel)
        await asyncio.sleep(0)
        (task,) = tasks
        assert task is not None
        assert isinstance(await end_of(task), asyncio.CancelledError)
        assert out == ["cancelled", "cleaned up"]

    run(main())
