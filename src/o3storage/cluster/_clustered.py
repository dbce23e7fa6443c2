"""A node among others: its links, its membership, and then its replicas, in that order."""

from __future__ import annotations

from dataclasses import dataclass

from o3storage.cluster._lost_rows import mended
from o3storage.cluster._membership import ClusterOptions, Membership
from o3storage.cluster._node import Node, node_id
from o3storage.cluster._peers import Peers
from o3storage.crypto import NodeKeys
from o3storage.runtime.clock import Clock, Entropy
from o3storage.runtime.jobs import Jobs
from o3storage.runtime.network import Network
from o3storage.runtime.state_machine import StateMachine
from o3storage.storage import Store


@dataclass(slots=True)
class Clustered:
    """`close` it, then the network and the store."""

    node: Node
    membership: Membership
    peers: Peers

    async def close(self) -> None:
        """Hand over what this node leads, and leave. Idempotent."""
        await self.membership.close()
        await self.node.close()
        await self.peers.close()


async def open_clustered(
    store: Store,
    state_machine: StateMachine,
    *,
    keys: NodeKeys,
    jobs: Jobs,
    clock: Clock,
    entropy: Entropy,
    network: Network,
    options: ClusterOptions,
) -> Clustered:
    """As `Node.open`, with others. A node that was told of peers and has no data waits until one of
    them made it a member and it received the cluster's records; it makes no cluster of its own.
    Raises also MembershipRefused, SecretRefused, WrongCluster."""
    membership = Membership(
        keys, node=node_id(keys), options=options, network=network, clock=clock, entropy=entropy
    )
    peers = Peers(
        network,
        me=membership.node,
        session=int.from_bytes(entropy.random_bytes(8), "big"),
        admit=membership.gate.admit,
        hello=membership.gate.hello,
        entropy=entropy,
    )
    node: Node | None = None
    try:
        holds_data = bool(store.groups())
        if await membership.prepare(peers, holds_data=holds_data):
            await membership.join()
        elif holds_data:
            await mended(store, lambda: membership.check_cluster(store))
        node = await Node.open(
            store,
            state_machine,
            keys=keys,
            jobs=jobs,
            clock=clock,
            entropy=entropy,
            peers=peers,
            bootstrap=not membership.cluster_id,
        )
        membership.attach(node)
        await mended(store, membership.received)
        membership.start()
    except BaseException:
        await membership.close()
        if node is not None:
            await node.close()
        await peers.close()
        raise
    return Clustered(node, membership, peers)
