"""The simulated network: `runtime.network.Network` between nodes in one process, on virtual time.

It lies above TLS: a link is an ordered stream of frames between two proven identities. Frames take
a seeded time, so that links overtake each other; what a broken link had sent arrived up to some
frame and no further. A path from one machine to another can be blocked by itself (a one-way
partition): its frames wait, or vanish, and each end of a link over it finds out by itself, after
its keep-alive time. All choices follow from the seed, path by path.

The ends of links are in `_link.py`.
"""

from __future__ import annotations

import asyncio
import contextvars
import ipaddress
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from o3storage.runtime.network import Address, Link, LinkClosed

from ._link import Blocked, SimLink

KEEP_ALIVE_S = 6.0
"""An end of a link whose path is blocked gives it up after this time, and up to a half more."""
RESET_S = 1.0
"""Longest time until an end learns that its peer's machine is up again and knows no such link."""
FIRST_PORT = 32_768
"""Ports that nobody asked for by number begin here."""
RETRY_SYN_S = 1.0
"""A connection attempt over a blocked path is repeated so often."""


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
