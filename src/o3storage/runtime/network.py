"""The network between nodes as an interface: the real one is TLS over TCP on the event loop, the
simulated one lies above TLS, on virtual time.

A `Link` is one authenticated connection to one peer: an ordered, reliable sequence of frames, until
it is closed by either side or lost. What was sent before a loss may or may not have arrived. A
link proves that the peer holds the private key of `peer`; whether that key belongs to a member is
decided above.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol

from o3storage.runtime.disk import Buffer

MAX_FRAME_BYTES = 2 << 20
"""One append of the log (1 MiB of entries and frames) with its heads, and room; a snapshot piece is
smaller."""


class Address(NamedTuple):
    """Where a node listens for its peers: an IP address as text (never a name) and a port."""

    host: str
    port: int


class LinkClosed(ConnectionError):
    """The link is down; the message says why."""


class Link(Protocol):
    """One side of a connection. All methods run on the event loop's thread."""

    @property
    def peer(self) -> bytes:
        """The peer's Ed25519 public key, 32 bytes, proven by the connection."""
        ...

    @property
    def binding(self) -> bytes:
        """32 bytes that both sides of this connection know and nobody else (the TLS exporter), so
        that a proof made over them cannot be used on another connection."""
        ...

    @property
    def outgoing(self) -> bool:
        """Whether this side opened the connection."""
        ...

    @property
    def address(self) -> Address:
        """The peer's address, as this side sees it."""
        ...

    @property
    def unsent_bytes(self) -> int:
        """Bytes that `send` took and the connection did not take yet."""
        ...

    def begin(
        self, on_frame: Callable[[memoryview], None], on_closed: Callable[[LinkClosed], None]
    ) -> None:
        """From now on every frame received is handed to `on_frame`, in order, in its own turn or
        several in one; the view is valid during the call only. `on_closed` is called once, also
        when this side closes. Frames that came before `begin` wait for it."""
        ...

    def send(self, pieces: Sequence[Buffer]) -> None:
        """One frame, given in pieces (at most MAX_FRAME_BYTES in all); never blocks, the pieces may
        not change until `unsent_bytes` is 0 or the link is closed. After the link went down it does
        nothing. The caller looks at `unsent_bytes`. Raises ValueError for a frame too large."""
        ...

    async def drain(self, limit_bytes: int) -> None:
        """Return when `unsent_bytes` is at most `limit_bytes`. Raises LinkClosed."""
        ...

    def pause(self) -> None:
        """Read nothing more (the peer's sending stalls) until `resume`."""
        ...

    def resume(self) -> None: ...

    def close(self) -> None:
        """End it at once; what is unsent is lost. Idempotent."""
        ...


class Network(Protocol):
    """One node's network."""

    async def listen(self, address: Address, on_link: Callable[[Link], None]) -> Address:
        """Accept links at `address` (port 0: any free one); returns the address as bound. Only
        links whose handshake succeeded are handed on. Raises OSError."""
        ...

    async def connect(self, address: Address, timeout_s: float) -> Link:
        """Raises LinkClosed: nobody there, handshake failed, or too slow."""
        ...

    async def resolve(self, name: str, port: int) -> list[Address]:
        """All addresses of a host name, or the one that `name` spells. Raises OSError."""
        ...

    async def close(self) -> None:
        """Stop listening and close every link. Idempotent."""
        ...
