"""Nodes that are nothing but `Peers`, on the simulated network."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

from o3storage.cluster._peer_types import GUEST, MEMBER, PeerOptions, Verdict, refuse
from o3storage.cluster._peers import Peers
from o3storage.cluster._wire import HIGHEST_VERSION, LOWEST_VERSION, Hello
from o3storage.raft import core as raft
from o3storage.runtime.network import Address, Link, Network
from o3storage.simulation import SimEntropy, SimNet, run

PORT = 8081
CLUSTER = b"c" * 16
MEMBER_ROLE, GUEST_ROLE = 0, 1
ECHO, FAIL, REFUSE, SLOW = 1, 2, 3, 4
"""Kinds of calls."""


async def echo(node: int, payload: memoryview) -> bytes:
    return bytes(payload)


def host(node: int) -> str:
    return f"10.0.0.{node}"


def key(node: int) -> bytes:
    return bytes([node]) * 32


class Node:
    """One process. `heard` is every message, `seen` every change of a peer's state."""

    def __init__(
        self,
        net: SimNet,
        node: int,
        *,
        session: int = 0,
        role: int = MEMBER_ROLE,
        at: int = 0,
        identity: bytes = b"",
        **options: Any,
    ) -> None:
        self.id = node
        self.cluster = CLUSTER
        self.role = role
        self.network = net.network(host(at or node), identity or key(node))
        self.peers = self.make(self.network, session or node * 100, **options)
        self.heard: list[tuple[int, int, raft.Message, list[Any]]] = []
        self.seen: list[tuple[str, int]] = []
        self.peers.on_message = lambda *what: self.heard.append(what)
        self.peers.on_up = lambda other: self.seen.append(("up", other))
        self.peers.on_down = lambda other: self.seen.append(("down", other))

    def make(self, network: Network, session: int, **options: Any) -> Peers:
        versions = options.pop("versions", (LOWEST_VERSION, HIGHEST_VERSION))
        return Peers(
            network,
            me=self.id,
            session=session,
            admit=self.admit,
            hello=self.hello,
            entropy=SimEntropy(session),
            options=PeerOptions(**options),
            versions=versions,
        )

    def hello(self, link: Link) -> Hello:
        return Hello(cluster=self.cluster, role=self.role, proof=link.binding)

    def admit(self, link: Link, hello: Hello) -> Verdict:
        if hello.cluster != self.cluster:
            return refuse("another cluster")
        if hello.proof != link.binding:
            return refuse("no proof")
        return GUEST if hello.role == GUEST_ROLE else MEMBER

    async def listen(self, port: int = PORT) -> Node:
        await self.peers.listen(Address(self.network.host, port))
        return self

    def knows(self, *nodes: Node) -> None:
        self.peers.set_peers(
            {n.id: (n.network.identity, (Address(n.network.host, PORT),)) for n in nodes}
        )

    def kill(self) -> None:
        """The process is gone, and says nothing."""
        self.network.kill()
        self.peers.on_message = lambda *_: None
        asyncio.get_running_loop().create_task(self.peers.close())

    def links(self, other: int) -> list[Any]:
        return self.peers._peers[other].links


async def cluster(net: SimNet, count: int, **options: Any) -> list[Node]:
    nodes = [await Node(net, n + 1, **options).listen() for n in range(count)]
    for node in nodes:
        node.knows(*nodes)
    await until(lambda: all(whole(node, len(nodes)) for node in nodes))
    return nodes


def whole(node: Node, count: int) -> bool:
    """Both links to every other node are ready."""
    found = node.peers.status()
    return len(found) == count - 1 and all(
        peer["up"] and all(lane["up"] for lane in peer["lanes"].values()) for peer in found
    )


def open_links(node: Node) -> int:
    return len([link for link in node.network.links if not link.closed])


async def until(condition: Callable[[], bool], limit_s: float = 60.0) -> None:
    """Virtual time passes until it holds."""
    loop = asyncio.get_running_loop()
    end = loop.time() + limit_s
    while not condition():
        assert loop.time() < end, "the condition did not come true"
        await asyncio.sleep(0.01)


def play(work: Coroutine[Any, Any, Any], seed: int = 1) -> Any:
    return run(work, seed, limit_s=3600.0)


def heartbeat(sender: int, to: int, commit: int = 0) -> raft.Heartbeat:
    return raft.Heartbeat(sender, to, 1, commit)
