"""The consensus core over the peer protocol over the simulated network, with machines that die and
networks that part, and Raft's invariants checked after every step (tests/raft/model.py)."""

from __future__ import annotations

import asyncio
import random

import pytest

from o3storage.cluster._peer_types import MEMBER, PeerOptions
from o3storage.cluster._peers import Peers
from o3storage.cluster._wire import Hello
from o3storage.raft.core import Message as RaftMessage
from o3storage.raft.core import Options, PeerLost, Persist, Role, Tick
from o3storage.runtime.network import Address
from o3storage.simulation import Blocked, SimEntropy, SimNet, SimNetwork, run
from tests.raft.model import Cluster, Node

GROUP = 7
PORT = 9000
TICK_S = 0.1
RUN_S = 40.0
OPTIONS = Options(election_ticks=10, heartbeat_ticks=1, max_append_bytes=4000)


def host(node: int) -> str:
    return f"10.0.0.{node}"


def identity(node: int) -> bytes:
    return bytes([node]) * 32


class NetCluster(Cluster):
    """A cluster whose messages travel, and whose disks take their time."""

    def __init__(self, seed: int, voters: int) -> None:
        super().__init__(voters, options=OPTIONS)
        self.net = SimNet(seed)
        self.rng = random.Random(f"{seed}/cluster")
        self.seed = seed
        self.loop = asyncio.get_running_loop()
        self.peers: dict[int, Peers] = {}
        self.networks: dict[int, SimNetwork] = {}
        self.lives = 0
        self.value = 0
        self.broken: list[Exception] = []

    def step(self, node: Node, event: object) -> list[object]:
        try:
            return super().step(node, event)
        except Exception as error:
            self.broken.append(error)  # wherever it is raised, the test sees it
            raise

    def write(self, node: Node) -> None:
        try:
            super().write(node)
        except Exception as error:
            self.broken.append(error)
            raise

    def leave(self, node: Node, message: RaftMessage) -> None:
        super().leave(node, message)
        peers = self.peers.get(node.id)
        for sent in self.network:
            if peers is not None:
                peers.send(sent.to, GROUP, sent)
        self.network.clear()

    async def boot(self, node: Node) -> None:
        self.lives += 1
        network = self.net.network(host(node.id), identity(node.id))
        peers = Peers(
            network,
            me=node.id,
            session=self.lives,
            admit=lambda link, hello: MEMBER,
            hello=lambda link: Hello(cluster=b"c" * 16),
            entropy=SimEntropy(f"{self.seed}/{self.lives}"),
            options=PeerOptions(retry_high_s=0.5),
        )
        self.peers[node.id], self.networks[node.id] = peers, network

        def received(sender: int, group: int, message: RaftMessage, frames: object) -> None:
            assert group == GROUP and message.to == node.id and message.sender == sender
            if node.up and self.peers.get(node.id) is peers:
                self.step(node, message)

        def lost(other: int) -> None:
            if node.up and self.peers.get(node.id) is peers:
                self.step(node, PeerLost(other))

        peers.on_message, peers.on_down = received, lost
        node.start()
        await peers.listen(Address(host(node.id), PORT))
        others = {
            other: (identity(other), (Address(host(other), PORT),))
            for other in self.nodes
            if other != node.id
        }
        peers.set_peers(others)

    async def kill(self, node: Node, *, power: bool) -> None:
        peers, network = self.peers.pop(node.id), self.networks.pop(node.id)
        node.crash(self.rng)
        if power:
            network.power_off()
        else:
            network.kill()
        await peers.close()

    async def live(self, node: Node) -> None:
        """Ticks and disk of one machine."""
        while True:
            await asyncio.sleep(TICK_S * (0.9 + 0.2 * self.rng.random()))
            if node.up:
                self.step(node, Tick(self.rng.random()))

    async def disk(self, node: Node) -> None:
        while True:
            await asyncio.sleep(self.rng.random() * 0.004)
            if node.up and (node.writes or node.fetches):
                self.flush(node)

    async def clients(self) -> None:
        while True:
            await asyncio.sleep(self.rng.random() * 0.05)
            node = self.nodes[self.rng.choice(list(self.nodes))]
            if not node.up:
                continue
            if self.rng.random() < 0.3:
                self.read(node.id)
                continue
            self.value += 1
            self.propose(node.id, b"%d" % self.value)

    async def nemesis(self) -> None:
        rng = self.rng
        while True:
            await asyncio.sleep(rng.random() * 3)
            hosts = [host(node) for node in self.nodes]
            rng.shuffle(hosts)
            what = rng.choice(("kill", "cut", "one-way", "break", "power"))
            if what in ("kill", "power"):
                node = self.nodes[rng.choice(list(self.nodes))]
                await self.kill(node, power=what == "power")
                await asyncio.sleep(rng.random() * 3)
                await self.boot(node)
            elif what == "cut":
                self.net.partition(hosts[:1], hosts[1:])
            elif what == "one-way":
                self.net.block(hosts[0], hosts[1], rng.choice(list(Blocked)))
            else:
                self.net.break_links(hosts[0], hosts[1])
            await asyncio.sleep(rng.choice((0.5, 3.0, 8.0)))
            self.net.heal()


async def play(seed: int, voters: int) -> NetCluster:
    cluster = NetCluster(seed, voters)
    for node in cluster.nodes.values():
        await cluster.boot(node)
    loop = cluster.loop
    always = [
        loop.create_task(work)
        for node in cluster.nodes.values()
        for work in (cluster.live(node), cluster.disk(node))
    ]
    for_now = [loop.create_task(cluster.clients()), loop.create_task(cluster.nemesis())]
    await asyncio.sleep(RUN_S)
    for task in for_now:
        task.cancel()
    await asyncio.gather(*for_now, return_exceptions=True)
    cluster.net.heal()
    for node in cluster.nodes.values():
        if node.id not in cluster.peers:
            await cluster.boot(node)
    await asyncio.sleep(30.0)
    for task in always:
        task.cancel()
    if cluster.broken:
        raise cluster.broken[0]
    return cluster


@pytest.mark.parametrize(("seed", "voters"), [(1, 3), (2, 5), (3, 3), (4, 5)])
def test_raft_over_peers_and_links(seed: int, voters: int) -> None:
    async def main() -> None:
        cluster = await play(seed, voters)
        cluster.check_equal()
        leading = [n for n in cluster.nodes.values() if n.core and n.core.role is Role.LEADER]
        assert len(leading) == 1
        assert len(cluster.committed) > 50 and leading[0].ready_reads is not None
        assert sum(len(node.ready_reads) for node in cluster.nodes.values()) > 20
        assert all(node.applied == leading[0].applied for node in cluster.nodes.values())

    run(main(), seed, limit_s=200.0)


def test_a_disk_that_forgets_its_vote_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """The checks are alive: with votes and terms lost at a crash, some seed breaks an invariant."""
    from tests.raft import model

    original = model.Durable.write

    def forgetful(self: model.Durable, persist: Persist, cluster: Cluster) -> None:
        before = self.hard_state
        original(self, persist, cluster)
        if not persist.entries:
            self.hard_state = before

    monkeypatch.setattr(model.Durable, "write", forgetful)
    with pytest.raises(AssertionError):
        for seed in range(6):
            run(play(seed, 3), seed, limit_s=200.0)
