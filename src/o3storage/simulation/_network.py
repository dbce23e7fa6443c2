"""The simulated network: `runtime.network.Network` between nodes in one process, on virtual time.

It lies above TLS: a link is an ordered stream of frames between two proven identities. Frames take
a seeded time, so that links overtake each other; what a broken link had sent arrived up to some
frame and no further. A path from one machine to another can be blocked by itself (a one-way
partition): its frames wait, or vanish, and each end of a link over it finds out by itself, after
its keep-alive time. All choices follow from the seed, path by path.

The strictness is deliberate: a frame's pieces are read when the connection takes them and not when
they are given to `send`, and a received view is overwritten when its call returns.
"""

from __future__ import annotations

import asyncio
import contextvars
import enum
import ipaddress
import random
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from o3storage.runtime.disk import Buffer
from o3storage.runtime.network import MAX_FRAME_BYTES, Address, Link, LinkClosed

WINDOW_BYTES = 256 << 10
"""What a connection takes before its peer has read it: about the socket buffers of both ends."""
KEEP_ALIVE_S = 6.0
"""An end of a link whose path is blocked gives it up after this time, and up to a half more."""
RETRANSMIT_S = 0.4
"""Longest time after which what was waiting goes on over a path that is open again."""
RESET_S = 1.0
"""Longest time until an end learns that its peer's machine is up again and knows no such link."""
FIRST_PORT = 32_768
"""Ports that nobody asked for by number begin here."""
ALL_ARRIVE_SHARE = 0.5
"""Chance that everything that was in the air when a link ended still arrives."""
ORDER_S = 1e-9
"""Frames of one link are at least so far apart."""
RETRY_SYN_S = 1.0
"""A connection attempt over a blocked path is repeated so often."""


class Blocked(enum.Enum):
    """What becomes of frames on a blocked path."""

    STALL = "stall"
    """They wait, and arrive if the path opens before an end gives the link up."""
    VANISH = "vanish"
    """They are gone, and with them the link: nothing later can arrive on it either."""


@dataclass(frozen=True, slots=True)
class Quality:
    """One path's delay and bandwidth. Each frame takes `delay_s` plus up to `jitter_s`; one in
    1 / `spike_share` up to `spike_s` more."""

    delay_s: float = 100e-6
    jitter_s: float = 150e-6
    spike_share: float = 0.01
    spike_s: float = 0.02
    bytes_per_s: float = 1e9
    connect_failure_share: float = 0.0
    """Chance that a connection attempt is lost (it then fails by its time-out, or at once)."""


class SimNet:
    """The network between all machines, each known by its address' host. One per run."""

    def __init__(
        self,
        seed: int | str,
        *,
        quality: Quality | None = None,
        keep_alive_s: float = KEEP_ALIVE_S,
    ) -> None:
        self.keep_alive_s = keep_alive_s
        self.frames = 0
        """Frames that arrived."""
        self._seed = seed
        self._quality = quality if quality is not None else Quality()
        self._qualities: dict[tuple[str, str], Quality] = {}
        self._rngs: dict[tuple[str, str], random.Random] = {}
        self._blocked: dict[tuple[str, str], Blocked] = {}
        self._block_count = 0
        self._block_numbers: dict[tuple[str, str], int] = {}
        self._names: dict[str, list[str]] = {}
        self._listeners: dict[Address, _Listener] = {}
        self._networks: dict[str, list[SimNetwork]] = {}
        self._down: dict[str, None] = {}
        self._next_port = FIRST_PORT
        self._outside = contextvars.Context()
        """The network itself goes on while a process is paused (`SimLoop.pause`)."""

    def network(self, host: str, identity: bytes) -> SimNetwork:
        """The network of a new process on machine `host` (an IP address), in whose context this is
        called. Ends that still think they are connected to an earlier one are told."""
        network = SimNetwork(self, host, identity)
        self._down.pop(host, None)
        living = [other for other in self._networks.get(host, ()) if not other.off]
        self._networks[host] = [*living, network]
        for other in self._all_networks():
            for link in list(other.links):
                if link.remote.network.host == host and link.remote.network.off:
                    delay = self.rng(host, other.host).random() * RESET_S
                    self.later(delay, link.lost, "reset: the peer's machine was started again")
        return network

    # --- what a run does to it

    def name(self, name: str, hosts: Sequence[str]) -> None:
        """Make `resolve(name)` answer these addresses; none: unknown again."""
        self._names[name] = list(hosts)

    def set_quality(self, source: str, target: str, quality: Quality | None) -> None:
        """Of the path from `source` to `target`; None: the usual one."""
        if quality is None:
            self._qualities.pop((source, target), None)
        else:
            self._qualities[source, target] = quality

    def block(self, source: str, target: str, how: Blocked = Blocked.STALL) -> None:
        """Nothing passes from `source` to `target` until `unblock`; the way back stays."""
        path = source, target
        if path in self._blocked:
            return
        self._block_count += 1
        self._blocked[path] = how
        self._block_numbers[path] = self._block_count
        for link in self._links_between(source, target):
            patience = self.keep_alive_s * (1.0 + self.rng(*path).random() / 2)
            self.later(patience, self._give_up, link, path, self._block_count)

    def unblock(self, source: str, target: str) -> None:
        how = self._blocked.pop((source, target), None)
        if how is None:
            return
        for link in self._links_between(source, target):
            if link.network.host == source:
                link.path_opens()
            else:
                link.remote.ack_all()

    def is_blocked(self, source: str, target: str) -> bool:
        return (source, target) in self._blocked

    def partition(self, *sides: Sequence[str], how: Blocked = Blocked.STALL) -> None:
        """Block both ways between machines of different sides. A machine may stand on several
        sides (a partial partition), and one that is not named is not touched."""
        members = list(dict.fromkeys(host for side in sides for host in side))
        for one in members:
            for other in members:
                together = any(one in side and other in side for side in sides)
                if one != other and not together:
                    self.block(one, other, how)

    def heal(self) -> None:
        """Unblock every path and make each as good as usual."""
        for source, target in list(self._blocked):
            self.unblock(source, target)
        self._qualities.clear()

    def break_links(self, one: str, other: str) -> int:
        """End every link between two machines now: what was sent arrived up to some frame. Returns
        how many there were."""
        links = [link for link in self._links_between(one, other) if link.network.host == one]
        for link in links:
            link.lost("reset by the network")
            self.later(self.transit_s(one, other), link.remote.lost, "reset by the network")
        return len(links)

    # --- for networks and links

    def rng(self, source: str, target: str) -> random.Random:
        path = source, target
        rng = self._rngs.get(path)
        if rng is None:
            rng = self._rngs[path] = random.Random(f"{self._seed}/network/{source}>{target}")
        return rng

    def quality(self, source: str, target: str) -> Quality:
        return self._qualities.get((source, target), self._quality)

    def blocked(self, source: str, target: str) -> Blocked | None:
        return self._blocked.get((source, target)) if self._blocked else None

    def transit_s(self, source: str, target: str) -> float:
        quality = self.quality(source, target)
        rng = self.rng(source, target)
        delay = quality.delay_s + rng.random() * quality.jitter_s
        if rng.random() < quality.spike_share:
            delay += rng.random() * quality.spike_s
        return delay

    def later(
        self, delay_s: float, callback: Callable[..., object], *args: object
    ) -> asyncio.TimerHandle:
        """Something that happens in the network, whichever process is paused."""
        loop = asyncio.get_running_loop()
        return loop.call_later(delay_s, callback, *args, context=self._outside)

    def port(self) -> int:
        self._next_port += 1
        return self._next_port

    def listener(self, address: Address) -> _Listener | None:
        return self._listeners.get(address)

    def bind(self, address: Address, listener: _Listener) -> None:
        if address in self._listeners:
            raise OSError(f"{address.host}:{address.port} is in use")
        self._listeners[address] = listener

    def unbind(self, address: Address) -> None:
        self._listeners.pop(address, None)

    def is_up(self, host: str) -> bool:
        """Whether a machine answers at that address at all."""
        return host in self._networks and host not in self._down

    def goes_down(self, host: str) -> None:
        self._down[host] = None

    def addresses(self, name: str) -> list[str]:
        try:
            return [str(ipaddress.ip_address(name))]
        except ValueError:
            return self._names.get(name, [])

    def _all_networks(self) -> list[SimNetwork]:
        return [network for networks in self._networks.values() for network in networks]

    def _links_between(self, one: str, other: str) -> list[SimLink]:
        """Every open end, of the links between two machines."""
        return [
            link
            for host in dict.fromkeys((one, other))
            for network in self._networks.get(host, ())
            for link in network.links
            if link.remote.network.host == (other if host == one else one)
        ]

    def _give_up(self, link: SimLink, path: tuple[str, str], number: int) -> None:
        if path in self._blocked and self._block_numbers[path] == number:
            link.lost("timed out: nothing heard from the peer")


@dataclass(slots=True)
class _Listener:
    network: SimNetwork
    on_link: Callable[[Link], None]


class SimNetwork:
    """One process' network. `kill` and `power_off` end it as the process or machine does."""

    def __init__(self, net: SimNet, host: str, identity: bytes) -> None:
        """Use `SimNet.network`."""
        self.net = net
        self.host = host
        self.identity = identity
        self.links: dict[SimLink, None] = {}
        """Ends that are open, in order of their making."""
        self.off = False
        self.context = contextvars.copy_context()
        self._bound: list[Address] = []
        self._connecting: dict[_Attempt, None] = {}

    async def listen(self, address: Address, on_link: Callable[[Link], None]) -> Address:
        if self.off:
            raise OSError("the network is closed")
        if address.host not in (self.host, "0.0.0.0", "::"):
            raise OSError(f"{address.host} is not an address of this machine")
        bound = Address(self.host, address.port or self.net.port())
        self.net.bind(bound, _Listener(self, on_link))
        self._bound.append(bound)
        return bound

    async def connect(self, address: Address, timeout_s: float) -> Link:
        if self.off:
            raise LinkClosed("the network is closed")
        attempt = _Attempt(self, address, timeout_s)
        self._connecting[attempt] = None
        try:
            return await attempt.future
        finally:
            attempt.forget()
            self._connecting.pop(attempt, None)

    async def resolve(self, name: str, port: int) -> list[Address]:
        rng = self.net.rng(self.host, "names")
        await asyncio.sleep(rng.random() * 0.005)
        hosts = self.net.addresses(name)
        if not hosts:
            raise OSError(f"no address for {name!r}")
        return [Address(host, port) for host in hosts]

    async def close(self) -> None:
        self._end()
        for link in list(self.links):
            link.close()

    def kill(self) -> None:
        """The process is gone; its machine ends its connections."""
        self._end()
        for link in list(self.links):
            link.end("the process was killed", tell=True)

    def power_off(self) -> None:
        """The machine is gone without a word: peers find out by themselves."""
        self._end()
        self.net.goes_down(self.host)
        for link in list(self.links):
            link.end("the machine is off", tell=False)
            patience = self.net.keep_alive_s * (1.0 + self.net.rng(self.host, "off").random() / 2)
            self.net.later(patience, link.remote.lost, "timed out: nothing heard from the peer")

    def _end(self) -> None:
        self.off = True
        for address in self._bound:
            self.net.unbind(address)
        self._bound.clear()
        for attempt in list(self._connecting):
            attempt.fail("the network is closed")


class _Attempt:
    """A connection that is being made: there, accepted, and back."""

    def __init__(self, network: SimNetwork, address: Address, timeout_s: float) -> None:
        self.network = network
        self.address = address
        self.future: asyncio.Future[Link] = asyncio.get_running_loop().create_future()
        net = self.net = network.net
        self._timer = net.later(timeout_s, self.fail, "no answer in time")
        quality = net.quality(network.host, address.host)
        rng = net.rng(network.host, address.host)
        if rng.random() >= quality.connect_failure_share:
            self._leave()
        elif rng.random() < 0.5:
            net.later(
                net.transit_s(network.host, address.host), self.fail, "reset in the handshake"
            )

    def _leave(self) -> None:
        """The first packet, again and again while nothing passes."""
        net, source, target = self.net, self.network.host, self.address.host
        if self.future.done():
            return
        if net.is_blocked(source, target):
            net.later(RETRY_SYN_S, self._leave)
        else:
            net.later(net.transit_s(source, target), self._knock)

    def _knock(self) -> None:
        net, source, target = self.net, self.network.host, self.address.host
        listener = net.listener(self.address)
        if listener is None:
            if net.is_up(target) and not net.is_blocked(target, source):
                net.later(net.transit_s(target, source), self.fail, "connection refused")
            return
        # The handshake needs the process there, and a round.
        delay = net.transit_s(target, source) + net.transit_s(source, target)
        asyncio.get_running_loop().call_later(
            delay, self._accept, listener, context=listener.network.context
        )

    def _accept(self, listener: _Listener) -> None:
        net, source, target = self.net, self.network.host, self.address.host
        if self.future.done() or self.network.off or listener.network.off:
            return
        if net.is_blocked(source, target) or net.is_blocked(target, source):
            return
        binding = net.rng(source, target).randbytes(32)
        back = Address(source, net.port())
        near = SimLink(self.network, binding, self.address, outgoing=True)
        far = SimLink(listener.network, binding, back, outgoing=False)
        near.join(far)
        asyncio.get_running_loop().call_later(
            net.transit_s(target, source), self._made, near, context=self.network.context
        )
        listener.on_link(far)

    def _made(self, link: SimLink) -> None:
        if self.future.done():
            link.close()
        else:
            self.future.set_result(link)

    def fail(self, reason: str) -> None:
        if not self.future.done():
            self.future.set_exception(
                LinkClosed(f"{self.address.host}:{self.address.port}: {reason}")
            )

    def forget(self) -> None:
        self._timer.cancel()


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
