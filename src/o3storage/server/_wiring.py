"""Disk -> store -> node: the order in which a node's rooms are opened, for the server and for the
simulation alike."""

from __future__ import annotations

from dataclasses import dataclass

from o3storage.catalog import Catalog, prefix_length
from o3storage.cluster import (
    Clustered,
    ClusterOptions,
    Node,
    open_clustered,
    others_have_rows,
)
from o3storage.crypto import NodeKeys
from o3storage.runtime import Clock, Entropy
from o3storage.runtime.disk import Disk
from o3storage.runtime.jobs import Jobs
from o3storage.runtime.network import Network
from o3storage.storage import Store, StoreOptions


@dataclass(slots=True)
class OpenedNode:
    """Close `node`, then `store`."""

    store: Store
    node: Node


async def open_node(
    disk: Disk,
    *,
    keys: NodeKeys,
    jobs: Jobs,
    clock: Clock,
    entropy: Entropy,
    options: StoreOptions | None = None,
) -> OpenedNode:
    """Open the store on `disk` and the node over it. Raises StoreError, ClusterError, DiskError;
    nothing stays open then."""
    store = await _open_store(
        disk, keys=keys, jobs=jobs, clock=clock, entropy=entropy, options=options
    )
    try:
        node = await Node.open(store, Catalog(), keys=keys, jobs=jobs, clock=clock, entropy=entropy)
    except BaseException:
        await store.close()
        raise
    return OpenedNode(store, node)


async def open_member(
    disk: Disk,
    *,
    keys: NodeKeys,
    jobs: Jobs,
    clock: Clock,
    entropy: Entropy,
    network: Network,
    cluster: ClusterOptions,
    options: StoreOptions | None = None,
) -> tuple[Store, Clustered]:
    """As `open_node`, as a node among others; it may wait until it has joined them. Close the
    second, then the first."""
    store = await _open_store(
        disk,
        keys=keys,
        jobs=jobs,
        clock=clock,
        entropy=entropy,
        options=options,
        others=await others_have_rows(cluster.disk),
    )
    try:
        clustered = await open_clustered(
            store,
            Catalog(),
            keys=keys,
            jobs=jobs,
            clock=clock,
            entropy=entropy,
            network=network,
            options=cluster,
        )
    except BaseException:
        await store.close()
        raise
    return store, clustered


async def _open_store(
    disk: Disk,
    *,
    keys: NodeKeys,
    jobs: Jobs,
    clock: Clock,
    entropy: Entropy,
    options: StoreOptions | None,
    others: bool = False,
) -> Store:
    return await Store.open(
        disk,
        disk_key=keys.disk_key,
        jobs=jobs,
        clock=clock,
        entropy=entropy,
        options=options,
        prefix_length=prefix_length,
        others=others,
    )
