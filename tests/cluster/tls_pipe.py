"""Two ends of the real network's links over a pipe in memory, on virtual time: TCP's whims by seed."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from typing import Any

from o3storage import _native
from o3storage.cluster._tls_network import TlsLink, TlsNetwork
from o3storage.crypto import NODE_SERVER_NAME, NodeKeys
from o3storage.runtime.network import Link
from o3storage.simulation import SimEntropy


class Nobody:
    """No names."""

    async def lookup(self, host: str, port: int) -> list[tuple[int, str, int]]:
        raise OSError("no names here")


NETWORKS = [(NodeKeys.generate(SimEntropy(number))) for number in (1, 2)]


class Transport(asyncio.Transport):
    """One end: what is written arrives at `peer` in pieces of any size, after any time. It takes
    only so much at once; `damage` may change bytes on the way."""

    def __init__(self, rng: random.Random, damage: Callable[[bytes], bytes]) -> None:
        super().__init__()
        self.peer: Transport
        self.protocol: TlsLink
        self._rng, self._damage = rng, damage
        self._loop = asyncio.get_running_loop()
        self._capacity = rng.choice([3000, 70_000, 1 << 30])
        self._buffer = b""  # not taken by "the kernel" yet
        self._air = b""  # taken, not arrived
        self._due = False
        self._paused = self._blocked = self._closing = self._lost = False

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return ("10.0.0.1", 5) if name == "peername" else default

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        assert high == 0

    def get_write_buffer_size(self) -> int:
        return len(self._buffer)

    def write(self, data: Any) -> None:
        assert not self._closing
        self._buffer += self._damage(bytes(data))
        self._take()
        if self._buffer and not self._blocked:
            self._blocked = True
            self.protocol.pause_writing()

    def _take(self) -> None:
        room = max(self._capacity - len(self._air), 0)
        self._air, self._buffer = self._air + self._buffer[:room], self._buffer[room:]
        self._soon()

    def _soon(self) -> None:
        if not self._due and (self._air or self._closing):
            self._due = True
            self._loop.call_later(self._rng.random() / 1000, self._arrive)

    def _arrive(self) -> None:
        self._due = False
        peer = self.peer
        if peer._lost:
            return
        if self._air and not peer._paused:
            size = self._rng.choice([1, 3, 100, 5000, *[65_536] * 8])
            room = peer.protocol.get_buffer(-1)
            part = self._air[: min(size, len(room))]
            self._air = self._air[len(part) :]
            room[: len(part)] = part
            peer.protocol.buffer_updated(len(part))
            self._take()
            if not self._buffer and self._blocked and not self._lost:
                self._blocked = False
                self.protocol.resume_writing()
        if self._closing and not self._air and not self._buffer:
            if not peer._closing:
                peer.protocol.eof_received()
            peer.close()
            return
        self._soon()

    def pause_reading(self) -> None:
        self._paused = True

    def resume_reading(self) -> None:
        self._paused = False
        self.peer._soon()

    def close(self) -> None:
        if not self._closing:
            self._closing = True
            self._soon()
            self._loop.call_soon(self._gone)

    def abort(self) -> None:
        self._air = self._buffer = b""
        self.close()

    def _gone(self) -> None:
        self._lost = True
        self.protocol.connection_lost(None)


def pipe(
    rng: random.Random, damage: Callable[[bytes], bytes] = lambda data: data
) -> tuple[TlsLink, TlsLink, list[Link]]:
    """(who connects, who accepts, what the latter was handed)."""
    one, two = (TlsNetwork(keys, Nobody()) for keys in NETWORKS)
    accepted: list[Link] = []
    near = TlsLink(one, _native.TlsConnection(one._client, NODE_SERVER_NAME))
    far = TlsLink(two, _native.TlsConnection(two._server), on_link=accepted.append)
    ends = [Transport(rng, damage), Transport(rng, damage)]
    for end, other, link in zip(ends, ends[::-1], (near, far), strict=True):
        end.peer, end.protocol = other, link
    for end in ends:
        end.protocol.connection_made(end)
    return near, far, accepted
