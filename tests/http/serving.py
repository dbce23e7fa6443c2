"""A real server on a loopback port, and a raw client to speak to it byte by byte."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from typing import Any

from o3storage.http import BlockPool, Limits, Request, Response, Server, frames

PATIENCE_S = 20.0
"""No answer within this is a failed test, not a wait."""

PATIENT = Limits(tick_s=0.01)
"""Real limits, but deadlines are looked at often."""


@dataclass
class Served:
    server: Server
    port: int
    reports: list[tuple[BaseException, Request | None]] = field(default_factory=list)

    async def connect(self) -> Client:
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port, limit=2**24)
        return Client(reader, writer)


@dataclass
class Answer:
    status: int
    headers: dict[str, str]
    body: bytes


class Client:
    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    def send(self, data: bytes | str) -> None:
        self.writer.write(data.encode("latin-1") if isinstance(data, str) else data)

    async def head(self) -> tuple[int, dict[str, str]]:
        raw = await self.patiently(self.reader.readuntil(b"\r\n\r\n"))
        lines = raw.decode("latin-1").split("\r\n")
        headers = {}
        for line in lines[1:-2]:
            name, _, value = line.partition(": ")
            assert name.lower() not in headers, f"{name} twice"
            headers[name.lower()] = value
        return int(lines[0].split(" ")[1]), headers

    async def answer(self, method: str = "GET") -> Answer:
        status, headers = await self.head()
        body = b""
        if method == "HEAD" or status in (100, 204, 304):
            pass
        elif "content-length" in headers:
            body = await self.patiently(self.reader.readexactly(int(headers["content-length"])))
        elif headers.get("transfer-encoding") == "chunked":
            while True:
                line = await self.patiently(self.reader.readuntil(b"\r\n"))
                piece = await self.patiently(self.reader.readexactly(int(line, 16) + 2))
                assert piece.endswith(b"\r\n")
                if piece == b"\r\n":
                    break
                body += piece[:-2]
        else:
            body = await self.rest()
        return Answer(status, headers, body)

    async def ask(self, data: bytes | str, method: str = "GET") -> Answer:
        self.send(data)
        return await self.answer(method)

    async def rest(self) -> bytes:
        """All bytes to the end of the connection."""
        return await self.patiently(self.reader.read())

    async def at_end(self) -> bool:
        """True if the server ended the connection without another byte."""
        try:
            return await self.rest() == b""
        except ConnectionResetError:
            return True

    async def patiently(self, what: Awaitable[Any]) -> Any:
        return await asyncio.wait_for(what, PATIENCE_S)

    def close(self) -> None:
        self.writer.transport.abort()


@asynccontextmanager
async def serving(
    handler: Callable[[Request], Awaitable[Response]], **limits: Any
) -> AsyncIterator[Served]:
    served: Served
    server = Server(
        handler,
        limits=replace(PATIENT, **limits),
        report=lambda error, request: served.reports.append((error, request)),
    )
    _, port = await server.listen("127.0.0.1", 0)
    served = Served(server, port)
    try:
        yield served
    finally:
        await server.close()


async def until(condition: Callable[[], bool]) -> None:
    """Let the loop turn until `condition` holds."""
    end = asyncio.get_running_loop().time() + PATIENCE_S
    while not condition():
        assert asyncio.get_running_loop().time() < end, "the condition never came true"
        await asyncio.sleep(0.001)


async def hello(request: Request) -> Response:
    """Answers without looking at the body."""
    return Response(200, [], b"hello " + request.path)


async def echo(request: Request) -> Response:
    """Answers the body, read whole."""
    return Response(200, [], await request.body.read(10_000_000))


def counting(pool: BlockPool) -> Callable[[Request], Awaitable[Response]]:
    """A handler that answers the sizes of the blocks that a body is cut into."""

    async def handle(request: Request) -> Response:
        sizes = []
        with frames(request.body, pool) as cut:
            async for block, last in cut:
                sizes.append(f"{len(block.view)}{'.' if last else ''}")
                block.release()
        return Response(200, [], " ".join(sizes).encode())

    return handle


def run(coroutine: Awaitable[None]) -> None:
    asyncio.run(asyncio.wait_for(coroutine, 4 * PATIENCE_S))
