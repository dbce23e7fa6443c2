"""One end of a link of the simulated network: what waits, what is in the air, what came.

The strictness is deliberate: a frame's pieces are read when the connection takes them and not when
they are given to `send`, and a received view is overwritten when its call returns.
"""

from __future__ import annotations

import asyncio
import enum
from collections import deque
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from o3storage.runtime.disk import Buffer
from o3storage.runtime.network import MAX_FRAME_BYTES, Address, LinkClosed

if TYPE_CHECKING:
    from ._network import SimNetwork

WINDOW_BYTES = 256 << 10
"""What a connection takes before its peer has read it: about the socket buffers of both ends."""
RETRANSMIT_S = 0.4
"""Longest time after which what was waiting goes on over a path that is open again."""
ALL_ARRIVE_SHARE = 0.5
"""Chance that everything that was in the air when a link ended still arrives."""
ORDER_S = 1e-9
"""Frames of one link are at least so far apart."""


class Blocked(enum.Enum):
    """What becomes of frames on a blocked path."""

    STALL = "stall"
    """They wait, and arrive if the path opens before an end gives the link up."""
    VANISH = "vanish"
    """They are gone, and with them the link: nothing later can arrive on it either."""


class SimLink:
    """One end of a link; `remote` is the other."""

    remote: SimLink

    def __init__(
        self, network: SimNetwork, binding: bytes, address: Address, *, outgoing: bool
    ) -> None:
        self.network = network
        self.closed = ""
        """Why this end is closed; empty while it is open."""
        self._net = network.net
        self._binding = binding
        self._address = address
        self._outgoing = outgoing
        # out: what `send` took, what the connection took, what is on its way
        self._queue: deque[tuple[Sequence[Buffer], int]] = deque()
        self._unsent = 0
        self._unread = 0  # taken by the connection, not yet read by the peer
        self._held_acks = 0  # read by the peer, which cannot say so
        self._stalled: deque[bytearray] = deque()
        self._in_air: deque[asyncio.TimerHandle] = deque()
        self._free_s = 0.0
        self._last_arrival_s = 0.0
        self._vanished = False
        self._drains: list[tuple[int, asyncio.Future[None]]] = []
        # in: what came and was not handed on
        self._inbox: deque[bytearray] = deque()
        self._reading = False
        self._delivering = False
        self._on_frame: Callable[[memoryview], None] | None = None
        self._on_closed: Callable[[LinkClosed], None] | None = None

    def join(self, remote: SimLink) -> None:
        self.remote, remote.remote = remote, self
        self.network.links[self] = None
        remote.network.links[remote] = None

    # --- Link

    @property
    def peer(self) -> bytes:
        return self.remote.network.identity

    @property
    def binding(self) -> bytes:
        return self._binding

    @property
    def outgoing(self) -> bool:
        return self._outgoing

    @property
    def address(self) -> Address:
        return self._address

    @property
    def unsent_bytes(self) -> int:
        return self._unsent

    def begin(
        self, on_frame: Callable[[memoryview], None], on_closed: Callable[[LinkClosed], None]
    ) -> None:
        if self._on_frame is not None:
            raise RuntimeError("this link was begun before")
        self._on_frame = on_frame
        self._on_closed = on_closed
        self._reading = True
        loop = asyncio.get_running_loop()
        if self.closed:
            loop.call_soon(self._tell_closed)
        elif self._inbox:
            loop.call_soon(self._deliver)

    def send(self, pieces: Sequence[Buffer]) -> None:
        size = sum(memoryview(piece).nbytes for piece in pieces)
        if size > MAX_FRAME_BYTES:
            raise ValueError(f"a frame of {size} bytes; at most {MAX_FRAME_BYTES} are allowed")
        if self.closed:
            return
        self._queue.append((pieces, size))
        self._unsent += size
        self._pump()

    async def drain(self, limit_bytes: int) -> None:
        if not self.closed and self._unsent > limit_bytes:
            future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._drains.append((limit_bytes, future))
            await future
        if self.closed:
            raise LinkClosed(self.closed)

    def pause(self) -> None:
        self._reading = False

    def resume(self) -> None:
        if not self._reading and self._on_frame is not None:
            self._reading = True
            if self._inbox and not self.closed:
                asyncio.get_running_loop().call_soon(self._deliver)

    def close(self) -> None:
        self.end("closed by this side", tell=True)

    # --- out

    def _pump(self) -> None:
        """The connection takes what its window has room for."""
        queue = self._queue
        while queue and (not self._unread or self._unread + queue[0][1] <= WINDOW_BYTES):
            pieces, size = queue.popleft()
            self._unsent -= size
            self._unread += size
            self._leave(bytearray(b"").join(pieces))
        if self._drains:
            waiting, self._drains = self._drains, []
            for limit, future in waiting:
                if self._unsent > limit:
                    self._drains.append((limit, future))
                elif not future.done():
                    future.set_result(None)

    def _leave(self, frame: bytearray) -> None:
        net, source, target = self._net, self.network.host, self.remote.network.host
        if self._vanished or self.remote.closed:
            return
        how = net.blocked(source, target)
        if how is Blocked.VANISH:
            self._vanished = True
            patience = net.keep_alive_s * (1.0 + net.rng(source, target).random() / 2)
            net.later(patience, self.lost, "timed out: nothing heard from the peer")
        elif how is Blocked.STALL:
            self._stalled.append(frame)
        else:
            self._travel(frame, 0.0)

    def _travel(self, frame: bytearray, extra_s: float) -> None:
        net, source, target = self._net, self.network.host, self.remote.network.host
        now = asyncio.get_running_loop().time()
        bytes_per_s = net.quality(source, target).bytes_per_s
        self._free_s = max(self._free_s, now) + len(frame) / bytes_per_s
        arrival = self._free_s + net.transit_s(source, target) + extra_s
        # (Never the same instant: timers of one instant have no order.)
        self._last_arrival_s = max(self._last_arrival_s + ORDER_S, arrival)
        self._in_air.append(
            asyncio.get_running_loop().call_at(
                self._last_arrival_s,
                self.remote.arrives,
                frame,
                context=self.remote.network.context,
            )
        )

    def path_opens(self) -> None:
        """The path to the peer is open again: what waited goes on, and so does word of an end."""
        if self.closed:
            return
        stalled, self._stalled = self._stalled, deque()
        if stalled and not self._vanished:
            rng = self._net.rng(self.network.host, self.remote.network.host)
            extra = rng.random() * RETRANSMIT_S
            for frame in stalled:
                self._travel(frame, extra)

    def acknowledges(self, size: int) -> None:
        """The peer read `size` bytes: the window has room again, if word of it gets here."""
        if self._net.is_blocked(self.remote.network.host, self.network.host):
            self._held_acks += size
            return
        self._unread -= size
        self._pump()

    def ack_all(self) -> None:
        held, self._held_acks = self._held_acks, 0
        if held and not self.closed:
            self._unread -= held
            self._pump()

    # --- in

    def arrives(self, frame: bytearray) -> None:
        """In this process' turn (a paused one reads nothing)."""
        in_air = self.remote._in_air
        in_air.popleft()
        if self.closed:
            return
        self._net.frames += 1
        self._inbox.append(frame)
        if self._reading and not self._delivering:
            self._deliver()

    def _deliver(self) -> None:
        if self._delivering:
            return
        self._delivering = True
        try:
            while self._inbox and self._reading and not self.closed:
                frame = self._inbox.popleft()
                assert self._on_frame is not None
                try:
                    self._on_frame(memoryview(frame).toreadonly())
                except Exception:
                    self.lost("this side failed over a frame")
                    raise
                finally:
                    size = len(frame)
                    frame[:] = b"\xdd" * size  # the view was valid during the call only
                    self.remote.acknowledges(size)
        finally:
            self._delivering = False

    # --- the end

    def lost(self, reason: str) -> None:
        """This end learns that the link is gone."""
        self.end(reason, tell=True)

    def end(self, reason: str, *, tell: bool) -> None:
        """Close this end; `tell` the peer, if a path is open."""
        if self.closed:
            return
        self.closed = reason
        self.network.links.pop(self, None)
        self._queue.clear()
        self._stalled.clear()
        self._inbox.clear()
        self._unsent = 0
        self._cut_air()
        drains, self._drains = self._drains, []
        for _, future in drains:
            if not future.done():
                future.set_exception(LinkClosed(reason))
        if self._on_closed is not None:
            asyncio.get_running_loop().call_soon(self._tell_closed, context=self.network.context)
        if tell and not self.remote.closed:
            self._tell_peer()

    def _cut_air(self) -> None:
        """What is on its way arrives up to some frame. The rest had not left this machine."""
        rng = self._net.rng(self.network.host, self.remote.network.host)
        if rng.random() < ALL_ARRIVE_SHARE:
            return
        keep = rng.randrange(len(self._in_air) + 1)
        while len(self._in_air) > keep:
            self._in_air.pop().cancel()

    def _tell_peer(self) -> None:
        net, source, target = self._net, self.network.host, self.remote.network.host
        if self.remote.closed:
            return
        if net.is_blocked(source, target):
            # Its own keep-alive ends it, unless the path opens before.
            net.later(RETRANSMIT_S, self._tell_peer)
            return
        now = asyncio.get_running_loop().time()
        arrival = max(self._last_arrival_s, now + net.transit_s(source, target))
        net.later(arrival - now + ORDER_S, self._end_arrives)

    def _end_arrives(self) -> None:
        # In the peer's turn, behind what arrived before it.
        remote = self.remote
        asyncio.get_running_loop().call_soon(
            remote.lost, "closed by the peer", context=remote.network.context
        )

    def _tell_closed(self) -> None:
        on_closed, self._on_closed = self._on_closed, None
        if on_closed is not None:
            on_closed(LinkClosed(self.closed))
