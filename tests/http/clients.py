"""Raw HTTP clients, byte by byte: over TCP, and over TLS with every end of the stream told apart.

The TLS one drives the standard library's `ssl` over memory, so that a close_notify and a bare end of
the TCP stream are two different things to a test.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
import struct
from collections.abc import Awaitable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

PATIENCE_S = 20.0
"""No answer within this is a failed test, not a wait."""

CERTIFICATES = Path(__file__).with_name("certificates")


class Truncated(ConnectionError):
    """The TCP stream ended, by FIN or reset, without close_notify."""


@dataclass
class Answer:
    status: int
    headers: dict[str, str]
    body: bytes


class Client:
    """Over TCP."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    @property
    def socket(self) -> Any:
        return self.writer.get_extra_info("socket")

    def send(self, data: bytes | str) -> None:
        self.writer.write(data.encode("latin-1") if isinstance(data, str) else data)

    async def drain(self) -> None:
        await self.writer.drain()

    def half_close(self) -> None:
        """Say that nothing more will be sent."""
        self.writer.write_eof()

    def close(self) -> None:
        self.writer.transport.abort()

    def reset(self) -> None:
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.close()

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
        except ConnectionError:
            return True

    async def patiently(self, what: Awaitable[Any]) -> Any:
        return await asyncio.wait_for(what, PATIENCE_S)


class TlsClient(Client):
    """Over TLS. Reading past an end without close_notify raises Truncated."""

    def __init__(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, context: ssl.SSLContext
    ) -> None:
        super().__init__(asyncio.StreamReader(limit=2**24), writer)
        self.wire = reader
        self.incoming = ssl.MemoryBIO()
        self.outgoing = ssl.MemoryBIO()
        self.tls = context.wrap_bio(self.incoming, self.outgoing, server_hostname="localhost")
        self.closed_cleanly = False
        self.task: asyncio.Task[None] | None = None

    async def handshake(self) -> None:
        while True:
            try:
                self.tls.do_handshake()
                break
            except ssl.SSLWantReadError:
                self.flush()
                data = await self.patiently(self.wire.read(65536))
                if not data:
                    raise Truncated from None
                self.incoming.write(data)
        self.flush()
        self.task = asyncio.ensure_future(self.pump())

    async def pump(self) -> None:
        """Decrypt what comes; slow when the test does not read."""
        try:
            while True:
                try:
                    while data := self.tls.read(65536):
                        self.reader.feed_data(data)
                    raise ssl.SSLZeroReturnError  # said in one way or the other
                except ssl.SSLZeroReturnError:
                    self.closed_cleanly = True
                    self.reader.feed_eof()
                    return
                except ssl.SSLWantReadError:
                    pass
                while len(self.reader._buffer) > 2**23:  # type: ignore[attr-defined]
                    await asyncio.sleep(0.001)
                wire = await self.wire.read(65536)
                if not wire:
                    raise Truncated
                self.incoming.write(wire)
        except (Truncated, ConnectionError, ssl.SSLError) as error:
            self.reader.set_exception(Truncated(str(error)))

    def flush(self) -> None:
        data = self.outgoing.read()
        if data:
            self.writer.write(data)

    def send(self, data: bytes | str) -> None:
        self.tls.write(data.encode("latin-1") if isinstance(data, str) else data)
        self.flush()

    def half_close(self) -> None:
        self.say_close()
        self.writer.write_eof()

    def say_close(self) -> None:
        """close_notify, the TCP stream left open."""
        with contextlib.suppress(ssl.SSLWantReadError, ssl.SSLError):
            self.tls.unwrap()
        self.flush()

    def cut(self) -> None:
        """End the TCP stream without close_notify."""
        self.writer.write_eof()

    def close(self) -> None:
        if self.task is not None:
            self.task.cancel()
        super().close()


def trusting(name: str = "ecdsa", version: ssl.TLSVersion | None = None) -> ssl.SSLContext:
    """A client context that trusts one of the test certificates."""
    context = ssl.create_default_context(cafile=str(CERTIFICATES / f"{name}.pem"))
    if version is not None:
        context.minimum_version = context.maximum_version = version
    return context
