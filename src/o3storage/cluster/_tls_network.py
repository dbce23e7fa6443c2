"""The real network between nodes: frames over TLS 1.3 over TCP, on the event loop.

Both sides show a certificate that carries their identity, and prove its key; nothing else in it
counts. On the TLS stream each frame is its size, u32 big-endian, and its bytes. TLS runs on the
loop, at most STEP_BYTES at a time.
"""

from __future__ import annotations

import asyncio
import ipaddress
import os
import socket
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol, cast

from o3storage import _native
from o3storage.crypto import NODE_SERVER_NAME, NodeKeys, ed25519_of, identity_certificate
from o3storage.runtime.disk import Buffer
from o3storage.runtime.network import MAX_FRAME_BYTES, Address, Link, LinkClosed

STEP_BYTES = 64 << 10
"""Plaintext that is encrypted, and wire that is decrypted, in one step: some 30 us."""
OVERHEAD_BYTES = 4096
"""What records and a handshake add to a step."""
FIRST_FRAME_BYTES = 8 << 10
"""The first frame of a link, from a peer that nothing is known of but its key: its hello."""
JOIN_BYTES = 16 << 10
"""Pieces up to this size are put together before they are encrypted: one record holds as much."""
JOIN_FRAME_BYTES = 128 << 10
"""A frame up to this size is put together whole: copying it costs less than looking at each of its
many small pieces."""
HEAD_BYTES = 4
HANDSHAKE_TIMEOUT_S = 5.0
MAX_HANDSHAKES = 64
"""Connections that others opened and that did not end their handshake; the oldest makes room."""
MAX_CONNECTIONS = 1024
"""All that others opened: twice what `Peers` keeps."""
MAX_ADDRESSES = 16
"""Of one name: more are left out."""
BACKLOG = 128
ALPN = "o3storage-peer"
EXPORTER_LABEL = b"EXPORTER-o3storage-peer"
BINDING_BYTES = 32


class Lookup(Protocol):
    """The part of `runtime.JobPool` that resolves names."""

    async def lookup(self, host: str, port: int) -> list[tuple[int, str, int]]: ...


@dataclass(slots=True)
class TlsNetworkStats:
    """Counters since the start."""

    accepted: int = 0
    connected: int = 0
    handshake_failed: int = 0
    """Of connections that others opened."""
    crowded_out: int = 0
    """Connections closed because too many were open, or in their handshake."""


class TlsNetwork:
    """`Network` for the node with these keys."""

    def __init__(self, keys: NodeKeys, pool: Lookup) -> None:
        chain, key = identity_certificate(keys.identity_seed)
        self.stats = TlsNetworkStats()
        self.identity = keys.identity
        self._pool = pool
        self._client = _native.TlsConfig.client(
            ca_pem=None, chain_pem=chain, key_pem=key, alpn=(ALPN,), tls13_only=True
        )
        self._server = _native.TlsConfig.server(
            chain, key, client_auth="identity", alpn=(ALPN,), tls13_only=True
        )
        self._listeners: list[asyncio.AbstractServer] = []
        self._links: dict[TlsLink, None] = {}
        self._closed = False
        # Used within one call each, by all links.
        self.wire_in = memoryview(bytearray(STEP_BYTES))
        self.wire_out = memoryview(bytearray(STEP_BYTES + OVERHEAD_BYTES))
        self.plain = memoryview(bytearray(STEP_BYTES + OVERHEAD_BYTES))

    async def listen(self, address: Address, on_link: Callable[[Link], None]) -> Address:
        sock = _socket(address.host)
        try:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if sock.family == socket.AF_INET6:
                sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            sock.bind((address.host, address.port))
            sock.listen(BACKLOG)
        except BaseException:
            sock.close()
            raise
        loop = asyncio.get_running_loop()
        server = await loop.create_server(
            lambda: TlsLink(self, _native.TlsConnection(self._server), on_link=on_link),
            sock=sock,
            backlog=BACKLOG,
        )
        self._listeners.append(server)
        name = sock.getsockname()
        return Address(str(name[0]), int(name[1]))

    async def connect(self, address: Address, timeout_s: float) -> Link:
        if self._closed:
            raise LinkClosed("the network is closed")
        loop = asyncio.get_running_loop()
        place = f"{address.host}:{address.port}"
        link: TlsLink | None = None
        try:
            async with asyncio.timeout(timeout_s):
                sock = _socket(address.host)
                try:
                    await loop.sock_connect(sock, (address.host, address.port))
                except BaseException:
                    sock.close()
                    raise
                link = TlsLink(self, _native.TlsConnection(self._client, NODE_SERVER_NAME))
                await loop.create_connection(lambda: link, sock=sock)
                await link.established
        except TimeoutError:
            if link is not None:
                link.close()
            raise LinkClosed(f"{place}: no answer within {timeout_s:g} s") from None
        except OSError as error:
            if link is not None:
                link.close()
            # (asyncio puts its own words in place of the reason.)
            why = os.strerror(error.errno) if error.errno else str(error)
            raise LinkClosed(f"{place}: {why}") from None
        except BaseException:
            if link is not None:
                link.close()
            raise
        self.stats.connected += 1
        return link

    async def resolve(self, name: str, port: int) -> list[Address]:
        found = await self._pool.lookup(name, port)
        return list(dict.fromkeys(Address(host, at) for _, host, at in found))[:MAX_ADDRESSES]

    async def close(self) -> None:
        self._closed = True
        for server in self._listeners:
            server.close()
        self._listeners.clear()
        for link in list(self._links):
            link.close()

    # --- called by links

    def opened(self, link: TlsLink) -> bool:
        """A connection: whether it may stay."""
        if self._closed:
            return False
        self._links[link] = None
        if link.outgoing:
            return True
        self.stats.accepted += 1
        coming = [other for other in self._links if not other.outgoing]
        if len(coming) > MAX_CONNECTIONS:
            self.stats.crowded_out += 1
            return False
        shaking = [other for other in coming if other.handshaking]
        if len(shaking) > MAX_HANDSHAKES:
            self.stats.crowded_out += 1
            shaking[0].lost("too many connections in their handshake")
        return True

    def gone(self, link: TlsLink, handshaking: bool) -> None:
        self._links.pop(link, None)
        if handshaking and not link.outgoing:
            self.stats.handshake_failed += 1


def _socket(host: str) -> socket.socket:
    try:
        literal = ipaddress.ip_address(host)
    except ValueError:
        raise OSError(f"{host} is not an IP address") from None
    if "%" in host:
        raise OSError(f"{host}: addresses with a scope are not supported")
    family = socket.AF_INET if literal.version == 4 else socket.AF_INET6
    # (asyncio sends small frames without delay only when the protocol is named.)
    sock = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    sock.setblocking(False)
    return sock


class TlsLink(asyncio.BufferedProtocol):
    """One connection."""

    def __init__(
        self,
        network: TlsNetwork,
        tls: _native.TlsConnection,
        *,
        on_link: Callable[[Link], None] | None = None,
    ) -> None:
        """`on_link`: it was opened by the peer, and is handed on after the handshake."""
        self.handshaking = True
        self.established: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._network = network
        self._tls = tls
        self._on_link = on_link
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.Transport | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._peer = b""
        self._binding = b""
        self._address = Address("", 0)
        self._ended = ""
        self._on_frame: Callable[[memoryview], None] | None = None
        self._on_closed: Callable[[LinkClosed], None] | None = None
        # out
        self._queue: deque[memoryview] = deque()
        self._queued_bytes = 0
        self._blocked = False
        self._pump_due = False
        self._drains: list[tuple[int, asyncio.Future[None]]] = []
        # in
        self._reading = True
        self._wire = b""
        """Received and not decrypted, because this side reads nothing now."""
        self._kept = b""
        """Decrypted and not handed on: because this side reads nothing, or the beginning of a
        frame's head."""
        self._frame: bytearray | None = None
        """A frame of which a part came."""
        self._filled = 0
        self._limit = FIRST_FRAME_BYTES

    # --- Link

    @property
    def peer(self) -> bytes:
        return self._peer

    @property
    def binding(self) -> bytes:
        return self._binding

    @property
    def outgoing(self) -> bool:
        return self._on_link is None

    @property
    def address(self) -> Address:
        return self._address

    @property
    def unsent_bytes(self) -> int:
        transport = self._transport
        if not self._blocked or transport is None:
            return self._queued_bytes
        return self._queued_bytes + transport.get_write_buffer_size()

    def begin(
        self, on_frame: Callable[[memoryview], None], on_closed: Callable[[LinkClosed], None]
    ) -> None:
        if self._on_frame is not None:
            raise RuntimeError("this link was begun before")
        self._on_frame, self._on_closed = on_frame, on_closed
        if self._ended:
            self._loop.call_soon(self._tell_closed)
        else:
            self.resume()

    def send(self, pieces: Sequence[Buffer]) -> None:
        size = 0
        for piece in pieces:
            size += len(piece)
        if size > MAX_FRAME_BYTES:
            raise ValueError(f"a frame of {size} bytes; at most {MAX_FRAME_BYTES} are allowed")
        if self._ended:
            return
        head = size.to_bytes(HEAD_BYTES, "big")
        queue = self._queue
        if size <= JOIN_FRAME_BYTES:
            queue.append(memoryview(b"".join((head, *pieces))))
        else:
            # Small pieces together, large ones as they are.
            gathered: list[Buffer] = [head]
            gathered_bytes = HEAD_BYTES
            for piece in pieces:
                length = len(piece)
                if gathered_bytes + length <= JOIN_BYTES:
                    gathered.append(piece)
                    gathered_bytes += length
                    continue
                if gathered:
                    queue.append(memoryview(b"".join(gathered)))
                gathered, gathered_bytes = [piece], length
                if length > JOIN_BYTES:
                    queue.append(memoryview(piece).cast("B"))
                    gathered, gathered_bytes = [], 0
            if gathered:
                queue.append(memoryview(b"".join(gathered)))
        self._queued_bytes += size + HEAD_BYTES
        if not self._blocked and not self._pump_due:
            self._pump()

    async def drain(self, limit_bytes: int) -> None:
        if not self._ended and self.unsent_bytes > limit_bytes:
            future: asyncio.Future[None] = self._loop.create_future()
            self._drains.append((limit_bytes, future))
            await future
        if self._ended:
            raise LinkClosed(self._ended)

    def pause(self) -> None:
        self._reading = False

    def resume(self) -> None:
        self._reading = True
        if self._on_frame is not None and not self._ended:
            self._loop.call_soon(self._read_on)

    def close(self) -> None:
        self._end("closed by this side")

    # --- the end

    def lost(self, reason: str) -> None:
        self._end(reason)

    def _end(self, reason: str) -> None:
        if self._ended:
            return
        self._ended = reason
        if self._timer is not None:
            self._timer.cancel()
        self._network.gone(self, self.handshaking)
        self._queue.clear()
        self._queued_bytes = 0
        self._wire = self._kept = b""
        self._frame = None
        transport = self._transport
        if transport is not None:
            if transport.get_write_buffer_size():
                transport.abort()
            else:
                if not self.handshaking:
                    self._tls.close()
                    self._say_rest()
                transport.close()
        drains, self._drains = self._drains, []
        for _, future in drains:
            if not future.done():
                future.set_exception(LinkClosed(reason))
        if not self.established.done():
            self.established.set_exception(LinkClosed(reason))
            self.established.exception()  # (nobody asks on the side that accepts)
        if self._on_closed is not None:
            self._loop.call_soon(self._tell_closed)

    def _say_rest(self) -> None:
        """What TLS itself has to say: an alert, or the end."""
        if self._transport is not None and (rest := self._tls.take()):
            self._transport.write(rest)

    def _tell_closed(self) -> None:
        on_closed, self._on_closed = self._on_closed, None
        if on_closed is not None:
            on_closed(LinkClosed(self._ended))

    # --- called by the transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        # Paused at the first byte that the kernel does not take, told when it took all.
        self._transport.set_write_buffer_limits(high=0)
        name = transport.get_extra_info("peername")
        self._address = Address(str(name[0]), int(name[1])) if name else Address("", 0)
        if not self._network.opened(self):
            self._end("too many connections")
            return
        self._timer = self._loop.call_later(
            HANDSHAKE_TIMEOUT_S, self._end, "the handshake took too long"
        )
        self._flush_tls()

    def get_buffer(self, sizehint: int) -> memoryview:  # noqa: ARG002
        return self._network.wire_in

    def buffer_updated(self, count: int) -> None:
        if not self._ended:
            self._step(self._network.wire_in[:count])

    def eof_received(self) -> bool:
        self._end("closed by the peer")
        return False

    def connection_lost(self, error: Exception | None) -> None:
        reason = getattr(error, "strerror", "") or str(error or "") or "closed by the peer"
        self._end(reason)
        self._transport = None

    def pause_writing(self) -> None:
        self._blocked = True

    def resume_writing(self) -> None:
        self._blocked = False
        self._pump()

    # --- out

    def _pump(self) -> None:
        """Encrypt and send at most one step."""
        self._pump_due = False
        if self._ended or self._blocked:
            return
        transport, tls, out, queue = self._transport, self._tls, self._network.wire_out, self._queue
        assert transport is not None
        taken = made = 0
        try:
            while queue and taken < STEP_BYTES and made < STEP_BYTES:
                view = queue[0]
                used, written = tls.send_into(view[: STEP_BYTES - taken], out[made:])
                made += written
                taken += used
                if used == len(view):
                    queue.popleft()
                elif used:
                    queue[0] = view[used:]
                elif not written:
                    break
            if not queue and tls.wants_write:
                made += tls.take_into(out[made:])
        except _native.TlsError as error:
            self._end(f"TLS failed: {error}")
            return
        self._queued_bytes -= taken
        if made:
            transport.write(bytes(out[:made]))
        if (queue or tls.wants_write) and not self._blocked:
            self._pump_due = True
            self._loop.call_soon(self._pump)
        if self._drains:
            self._tell_drains()

    def _tell_drains(self) -> None:
        unsent = self.unsent_bytes
        waiting, self._drains = self._drains, []
        for limit, future in waiting:
            if unsent > limit:
                self._drains.append((limit, future))
            elif not future.done():
                future.set_result(None)

    def _flush_tls(self) -> None:
        """Send what TLS has to say before or beside frames."""
        if not self._blocked and not self._pump_due:
            self._pump()

    # --- in

    def _step(self, wire: memoryview) -> None:
        """Decrypt `wire`, and what waits inside the TLS object, until this side reads no more."""
        tls, plain = self._tls, self._network.plain
        while True:
            if not self.handshaking and (not self._reading or self._on_frame is None):
                self._wire = bytes(wire)
                if self._transport is not None:
                    self._transport.pause_reading()
                return
            if len(self._kept) >= HEAD_BYTES and not self.handshaking:
                known, self._kept = self._kept, b""
                self._deliver(memoryview(known))
                if self._ended:
                    return
                continue
            frame = self._frame
            kept = 0
            if frame is not None:
                target = memoryview(frame)[self._filled :]
            elif kept := len(self._kept):
                plain[:kept] = self._kept
                target = plain[kept:]
            else:
                target = plain
            try:
                consumed, produced = tls.feed(wire, target)
            except _native.TlsError as error:
                self._tls_failed(error)
                return
            wire = wire[consumed:]
            if self.handshaking and not tls.handshaking and not self._introduced():
                return
            if tls.wants_write:
                self._flush_tls()
            if produced:
                if frame is not None:
                    self._fill(frame, produced)
                else:
                    self._kept = b""
                    self._deliver(plain[: kept + produced])
            if self._ended:
                return
            if not wire and not tls.pending_plaintext:
                break
        if tls.peer_closed:
            self._end("closed by the peer")

    def _read_on(self) -> None:
        """After `begin` or `resume`."""
        if self._ended or not self._reading:
            return
        wire, self._wire = self._wire, b""
        self._step(memoryview(wire))
        if self._reading and not self._ended and self._transport is not None:
            self._transport.resume_reading()

    def _fill(self, frame: bytearray, count: int) -> None:
        self._filled += count
        if self._filled == len(frame):
            self._frame = None
            self._hand_on(memoryview(frame))

    def _deliver(self, view: memoryview) -> None:
        """Hand on the whole frames in `view`; keep what follows them."""
        at, end = 0, len(view)
        while end - at >= HEAD_BYTES:
            if self._ended:
                return
            if not self._reading or self._on_frame is None:
                break
            size = int.from_bytes(view[at : at + HEAD_BYTES], "big")
            if size > self._limit:
                self._end(f"the peer sends a frame of {size} bytes; allowed are {self._limit}")
                return
            begin = at + HEAD_BYTES
            if begin + size > end:
                self._frame = bytearray(size)
                self._filled = end - begin
                self._frame[: self._filled] = view[begin:]
                return
            at = begin + size
            self._hand_on(view[begin:at])
        if not self._ended:
            self._kept = bytes(view[at:])

    def _hand_on(self, frame: memoryview) -> None:
        assert self._on_frame is not None
        self._limit = MAX_FRAME_BYTES
        self._on_frame(frame)

    def _introduced(self) -> bool:
        """The handshake is done: who is it? Hand the link on."""
        peer = ed25519_of(self._tls.peer_public_key)
        if peer is None or self._tls.alpn != ALPN:
            self._end("the peer is no O3Storage node")
            return False
        self._peer = peer
        self._binding = self._tls.export_keying_material(BINDING_BYTES, EXPORTER_LABEL, None)
        self.handshaking = False
        if self._timer is not None:
            self._timer.cancel()
        if not self.established.done():
            self.established.set_result(None)
        if self._on_link is not None:
            # Not within the step: what it does may take a while, and end this link.
            self._loop.call_soon(self._hand_over)
        return True

    def _hand_over(self) -> None:
        if not self._ended and self._on_link is not None:
            self._on_link(self)

    def _tls_failed(self, error: Exception) -> None:
        """The peer is told by an alert; nothing else is sent."""
        self._say_rest()
        self._end(f"TLS failed: {error}")
