"""Several nodes with their membership, over the simulated network, each started as by its command."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from typing import Any

from o3storage.catalog import Catalog
from o3storage.cluster import (
    ClusterError,
    ClusterOptions,
    ClusterSecret,
    Node,
    node_id,
    parse_peers,
)
from o3storage.cluster._clustered import Clustered, open_clustered
from o3storage.cluster._membership import Membership
from o3storage.cluster._node_records import NodeRecord
from o3storage.cluster._peer_types import Admission, Verdict
from o3storage.cluster._peers import Peers
from o3storage.cluster._wire import Hello
from o3storage.crypto import NodeKeys
from o3storage.runtime.network import Address, Link
from o3storage.simulation import SimClock, SimDisk, SimEntropy, SimJobs, SimNet
from o3storage.storage import StoreError
from tests.cluster.support import Rig

SECRET = "0123456789abcdef0123456789abcdef"
PORT = 8081


class Place(Rig):
    """One machine: its disk and keys stay, the process comes and goes."""

    def __init__(self, net: SimNet, number: int, **options: Any) -> None:
        super().__init__(number, **options)
        self.net = net
        self.host = f"10.0.0.{number}"
        self.said: list[str] = []
        self.clustered: Clustered | None = None
        self.settings: dict[str, Any] = {}

    def fresh(self) -> None:
        """Another node on the same machine: disk and keys are gone."""
        self.disk = SimDisk(f"{self.seed} anew")
        self.entropy = SimEntropy(f"{self.seed} anew")
        self.keys = NodeKeys.generate(self.entropy)

    async def up(self, peers: str = "", secret: str | None = SECRET, **settings: Any) -> Place:
        """Start it as `o3storage --ip HOST --peers PEERS` would."""
        network = self.net.network(self.host, self.keys.identity)
        store = await self.open_store()
        options = ClusterOptions(
            disk=self.disk,
            listen=Address(self.host, PORT),
            peers=parse_peers(peers, PORT) if peers else (),
            secret=ClusterSecret(secret) if secret else None,
            say=self.said.append,
        )
        for name, value in settings.items():
            setattr(options, name, value)
        self.network = network
        try:
            self.clustered = await open_clustered(
                store,
                Catalog(),
                keys=self.keys,
                jobs=SimJobs(self.seed),
                clock=SimClock(),
                entropy=self.entropy,
                network=network,
                options=options,
            )
        except BaseException:
            await network.close()
            await store.close()
            raise
        self.store, self.node = store, self.clustered.node
        return self

    @property
    def membership(self) -> Membership:
        assert self.clustered is not None
        return self.clustered.membership

    def number_of(self) -> int:
        """Its id, also while it is down."""
        return node_id(self.keys)

    @property
    def id(self) -> int:
        return self.membership.node

    async def down(self) -> None:
        """Stop it in good order. Idempotent."""
        clustered, self.clustered = self.clustered, None
        if clustered is not None:
            await clustered.close()
            await self.network.close()
            await self.store.close()

    async def die(self) -> None:
        """Kill the process; what it had synced stays."""
        disk = self.disk.kill()
        self.network.kill()
        clustered, self.clustered = self.clustered, None
        with contextlib.suppress(StoreError, ClusterError, OSError):
            await self.store.close()
        if clustered is not None:
            with contextlib.suppress(StoreError, ClusterError, OSError):
                await clustered.close()
        self.disk = disk

    def states(self) -> dict[str, str]:
        """Host -> state, as range 0 has it here."""
        return {
            entry["addresses"][0].rsplit(":", 1)[0] if entry["addresses"] else entry["node"]: entry[
                "state"
            ]
            for entry in self.membership.status()["nodes"]
        }

    def voters(self, group: int) -> list[int]:
        return list(self.node._replicas[group].core.configuration.voters)


class Places:
    """Machines 10.0.0.1, 10.0.0.2, ..."""

    def __init__(self, seed: int = 1, count: int = 3) -> None:
        self.net = SimNet(seed)
        self.all = [Place(self.net, number) for number in range(1, count + 1)]

    def __getitem__(self, number: int) -> Place:
        return self.all[number - 1]

    async def __aenter__(self) -> Places:
        return self

    async def __aexit__(self, *_: object) -> None:
        for place in self.all:
            await place.down()

    async def start(self, count: int) -> None:
        """The first alone, the others with --peers naming it."""
        await self[1].up()
        for number in range(2, count + 1):
            await self[number].up(self[1].host)

    async def until(self, true: Callable[[], Any], limit_s: float = 30.0) -> None:
        """Wait, on virtual time, for a condition."""
        end_s = asyncio.get_running_loop().time() + limit_s
        while not true():
            assert asyncio.get_running_loop().time() < end_s, [
                (p.host, p.node.status()["groups"], p.membership.status())
                for p in self.all
                if p.clustered
            ]
            await asyncio.sleep(0.1)

    async def until_voters(self, *numbers: int, groups: tuple[int, ...] = (0, 1)) -> None:
        wanted = sorted(self[n].id for n in numbers)
        await self.until(lambda: all(self[numbers[0]].voters(g) == wanted for g in groups))


async def patiently(call: Callable[[], Awaitable[Any]], limit_s: float = 20.0) -> Any:
    """Again while the cluster says 503."""
    from o3storage.cluster import Unavailable

    end_s = asyncio.get_running_loop().time() + limit_s
    while True:
        try:
            return await call()
        except Unavailable:
            assert asyncio.get_running_loop().time() < end_s
            await asyncio.sleep(0.2)


__all__ = ["PORT", "SECRET", "Node", "Place", "Places", "patiently"]


class Stranger:
    """Somebody with keys of its own, and with or without the secret, who says what it likes."""

    def __init__(self, places: Places, secret: str | None, number: int = 66) -> None:
        entropy = SimEntropy(number)
        self.keys = NodeKeys.generate(entropy)
        self.network = places.net.network(f"10.0.0.{number}", self.keys.identity)
        self.secret = ClusterSecret(secret) if secret else None
        self.cluster = b""
        self.role = "connect"
        self.peers = Peers(
            self.network,
            me=node_id(self.keys),
            session=1,
            admit=lambda link, hello: Verdict(Admission.GUEST),
            hello=self.hello,
            entropy=entropy,
        )

    def hello(self, link: Link) -> Hello:
        proof = b""
        if self.secret is not None:
            proof = self.secret.proof(link.binding, self.keys.identity, link.peer, self.role)
        return Hello(cluster=self.cluster, proof=proof)

    def record(self, keys: NodeKeys | None = None) -> NodeRecord:
        keys = keys or self.keys
        return NodeRecord(node_id(keys), keys.identity, keys.exchange, 7)

    async def ask(self, kind: int, payload: bytes) -> bytes:
        _identity, answer = await self.peers.call_address(
            Address("10.0.0.1", PORT), kind, payload, 5.0
        )
        return answer

    async def close(self) -> None:
        await self.peers.close()
        await self.network.close()
