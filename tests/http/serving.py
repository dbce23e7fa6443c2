"""A real server on a loopback port, over TCP or TLS, and small handlers for it."""

from __future__ import annotations

import asyncio
import contextvars
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from typing import Any

from o3storage.http import BlockPool, Limits, Request, Response, Server, ServerTls, frames
from o3storage.http._connection import Connection
from tests.http.clients import CERTIFICATES, PATIENCE_S, Client, TlsClient, trusting

PATIENT = Limits(tick_s=0.01)
"""Real limits, but deadlines are looked at often."""

OVER_TLS = contextvars.ContextVar("OVER_TLS", default=False)
"""Whether `serving` speaks TLS: set by the fixture `over` for tests that run both ways."""


@dataclass
class Served:
    server: Server
    port: int
    secure: bool
    reports: list[tuple[BaseException, Request | None]] = field(default_factory=list)

    @property
    def first_connection(self) -> Connection:
        return next(iter(self.server._connections))

    async def connect(self) -> Client:
        return await self.connect_tls() if self.secure else await self.connect_tcp()

    async def connect_tcp(self) -> Client:
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port, limit=2**24)
        return Client(reader, writer)

    async def connect_tls(self, context: ssl.SSLContext | None = None) -> TlsClient:
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port, limit=2**18)
        client = TlsClient(reader, writer, context or trusting())
        await client.handshake()
        return client


@asynccontextmanager
async def serving(
    handler: Callable[[Request], Awaitable[Response]], tls: ServerTls | None = None, **limits: Any
) -> AsyncIterator[Served]:
    served: Served
    server = Server(
        handler,
        limits=replace(PATIENT, **limits),
        report=lambda error, request: served.reports.append((error, request)),
    )
    if tls is None and OVER_TLS.get():
        tls = server_tls()
    _, port = await server.listen("127.0.0.1", 0, tls=tls)
    served = Served(server, port, tls is not None)
    try:
        yield served
    finally:
        await server.close()


def server_tls(name: str = "ecdsa") -> ServerTls:
    return ServerTls(str(CERTIFICATES / f"{name}.pem"), str(CERTIFICATES / f"{name}.key"))


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
