"""The server: listening sockets, all connections, one clock for their deadlines."""

from __future__ import annotations

import asyncio
import ipaddress
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass
from itertools import islice

from o3storage.http._connection import BUSY, Connection
from o3storage.http._errors import HttpError
from o3storage.http._limits import PIPELINED_PER_STEP, RECEIVE_BYTES, UNREAD_BYTES, Limits
from o3storage.http._listener import Listener
from o3storage.http._messages import Address, Handler, Request, Response
from o3storage.http._tls import ServerTls, TlsLayer
from o3storage.http._wire import http_date, plain_error
from o3storage.runtime.clock import Clock

TLS_OVERHEAD_BYTES = 4096
"""What records add to RECEIVE_BYTES of plaintext (about 22 bytes for each 16 KiB), with room."""

ErrorResponse = Callable[[Request | None, HttpError], Response]
Report = Callable[[BaseException, Request | None], None]


@dataclass(slots=True)
class ServerStats:
    """Counters since the start."""

    accepted: int = 0
    """Connections, those over the limit included."""
    requests: int = 0
    """Requests whose head was good."""
    refused: int = 0
    """Answers to what never became a request: bad heads, head timeouts, too many connections."""
    aborted: int = 0
    """Responses cut in the middle of their body."""
    too_slow: int = 0
    """Clients cut for moving less than the minimum rate."""
    handshake_failed: int = 0
    """TLS connections that ended before a request could be read."""


def silent(error: BaseException, request: Request | None) -> None:
    """A `report` that drops everything."""


class Server:
    """Serves HTTP on any number of addresses with one handler.

    `handler`: `async def (Request) -> Response`, see `Request` and `Response`. It may let
    `HttpError`s pass; any other exception is answered 500. It is not cancelled when the client
    goes away: its next read of the body raises BodyTruncated, its response iterator is closed.

    `error_response(request, error)` makes the answer for what the HTTP layer refuses itself
    (request None: there never was a whole head) and for errors that the handler let pass.
    `report(error, request)` hears of handler defects and of responses that were cut.
    `clock` gives the Date header. `server_name` is the Server header, "" for none.
    """

    def __init__(
        self,
        handler: Handler,
        *,
        limits: Limits | None = None,
        error_response: ErrorResponse = plain_error,
        report: Report = silent,
        clock: Clock | None = None,
        server_name: str = "O3Storage",
    ) -> None:
        self.handler = handler
        self.limits = limits or Limits()
        self.error_response = error_response
        self.stats = ServerStats()
        self.draining = False
        self._patient = True
        self.crowded = False
        """Too much is unsent: slow clients are not waited for."""
        self.direct = 0
        """Pieces of bodies that jobs are sending now."""
        self.addresses: list[Address] = []
        """Where it listens, ports as bound."""
        self.loop = asyncio.get_running_loop()
        self.common_lines = ""
        """Date and Server lines of this second."""
        self._report = report
        self._wall_ns = time.time_ns if clock is None else clock.wall_ns
        self._server_line = f"Server: {server_name}\r\n" if server_name else ""
        self._memory = memoryview(bytearray(RECEIVE_BYTES))
        self._small_memory = self._memory[:UNREAD_BYTES]
        self._wire_in = memoryview(bytearray(RECEIVE_BYTES))
        self._wire_out = memoryview(bytearray(RECEIVE_BYTES + TLS_OVERHEAD_BYTES))
        self._connections: dict[Connection, None] = {}
        self._pipelined: dict[Connection, None] = {}
        """Connections with more requests at hand; those that wait longest first."""
        self._serves_pipelined = False
        """Whether the next turn of the loop goes on with them."""
        self._listeners: list[asyncio.AbstractServer] = []
        self._ticker: asyncio.TimerHandle | None = None
        self._last_tick_s = self.loop.time()
        self._all_gone: asyncio.Future[None] | None = None

    @property
    def connections(self) -> int:
        """Open connections."""
        return len(self._connections)

    @property
    def busy(self) -> int:
        """Connections with a request in flight."""
        return sum([connection._state == BUSY for connection in self._connections])

    async def listen(self, host: str, port: int, *, tls: ServerTls | None = None) -> Address:
        """Listen on one IP address (IPv4 or IPv6 literal, or "localhost" for 127.0.0.1); port 0
        takes a free one. With `tls` only TLS is spoken there. Returns the address as bound. Raises
        OSError if it is taken, ValueError if `host` is not an address: names are resolved
        elsewhere, without blocking the loop."""

        def accepted() -> asyncio.BufferedProtocol:
            return Connection(self, secure=False) if tls is None else TlsLayer(self, tls)

        sock = _bind(host, port, self.limits.backlog)
        listener = await self.loop.create_server(accepted, sock=sock, backlog=self.limits.backlog)
        self._listeners.append(listener)
        name = sock.getsockname()
        address = (str(name[0]), int(name[1]))
        self.addresses.append(address)
        if self._ticker is None:
            self._tick()
        return address

    async def drain(self, timeout_s: float) -> None:
        """Stop in good order: accept nothing new, close idle connections, let requests in flight
        finish (their answers say `Connection: close`), abort what is left after `timeout_s`."""
        self._stop_listening()
        self.draining = True
        for connection in list(self._connections):
            connection._close_if_idle()
        if self._connections:
            self._all_gone = self.loop.create_future()
            timer = self.loop.call_later(timeout_s if self._patient else 0.0, self._abort_all)
            try:
                await self._all_gone
            finally:
                timer.cancel()
                self._all_gone = None
        self._stop_ticking()

    def cut(self) -> None:
        """End what is in flight at once: a drain under way, or to come, waits for nobody."""
        self._patient = False
        self._abort_all()

    async def close(self) -> None:
        """Stop at once; requests in flight are cut."""
        await self.drain(0.0)

    def _stop_listening(self) -> None:
        for listener in self._listeners:
            listener.close()
        self._listeners.clear()

    def _stop_ticking(self) -> None:
        if self._ticker is not None:
            self._ticker.cancel()
            self._ticker = None

    def _abort_all(self) -> None:
        for connection in list(self._connections):
            connection._kill()

    # --- called by connections

    def _admit(self, connection: Connection) -> HttpError | None:
        """A new connection. Returns what to refuse it with, or None."""
        self.stats.accepted += 1
        self._connections[connection] = None
        over = len(self._connections) - self.limits.max_connections
        if self.draining or over > self.limits.max_refused:
            connection._abort()
            return None
        return HttpError("too many connections; try again later", 503) if over > 0 else None

    def _gone(self, connection: Connection) -> None:
        self._connections.pop(connection, None)
        if not self._connections and self._all_gone is not None and not self._all_gone.done():
            self._all_gone.set_result(None)

    def _later(self, connection: Connection) -> None:
        """`connection` goes on with the requests that it has, in a later step of the loop."""
        self._pipelined[connection] = None
        if not self._serves_pipelined:
            self._serves_pipelined = True
            self.loop.call_soon(self._serve_pipelined)

    def _serve_pipelined(self) -> None:
        self._serves_pipelined = False
        turn = list(islice(self._pipelined, PIPELINED_PER_STEP))
        for connection in turn:
            del self._pipelined[connection]
        if self._pipelined:  # (who is served now comes behind them)
            self._serves_pipelined = True
            self.loop.call_soon(self._serve_pipelined)
        for connection in turn:
            try:
                connection._next_requests(PIPELINED_PER_STEP // len(turn))
            except Exception as error:
                self._broken(connection, error)

    def _broken(self, connection: Connection, error: Exception) -> None:
        """A defect shows at one connection: the others are not to suffer by it."""
        self._report(error, None)
        connection._abort()

    # --- time

    def _tick(self) -> None:
        now_s = self.loop.time()
        date = http_date(self._wall_ns() // 1_000_000_000)
        self.common_lines = f"Date: {date}\r\n{self._server_line}"
        passed_s = now_s - self._last_tick_s
        self._last_tick_s = now_s
        unsent = sum([connection._unsent_bytes() for connection in self._connections])
        self.crowded = unsent > self.limits.max_unsent_bytes
        # Before anything that could fail: without it no deadline is kept any more.
        self._ticker = self.loop.call_later(self.limits.tick_s, self._tick)
        for connection in list(self._connections):
            try:
                connection._tick(now_s, passed_s)
            except Exception as error:
                self._broken(connection, error)


def _bind(host: str, port: int, backlog: int) -> socket.socket:
    address = ipaddress.ip_address("127.0.0.1" if host == "localhost" else host)
    family = socket.AF_INET6 if address.version == 6 else socket.AF_INET
    # (asyncio sets TCP_NODELAY on accepted sockets only when the protocol is named.)
    sock = Listener(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        sock.bind((str(address), port))
        sock.listen(backlog)
        sock.setblocking(False)
    except BaseException:
        sock.close()
        raise
    return sock
