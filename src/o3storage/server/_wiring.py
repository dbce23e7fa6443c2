"""Disk -> store -> node: the order in which a node's rooms are opened, for the server and for the
simulation alike."""

from __future__ import annotations

from dataclasses import dataclass

from o3storage.catalog import Catalog, prefix_length
from o3storage.cluster import Node
from o3storage.crypto import NodeKeys
from o3storage.runtime import Clock, Entropy
from o3storage.runtime.disk import Disk
from o3storage.runtime.jobs import Jobs
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
    store = await Store.open(
        disk,
        disk_key=keys.disk_key,
        jobs=jobs,
        clock=clock,
        entropy=entropy,
        options=options,
        prefix_length=prefix_length,
    )
    try:
        node = await Node.open(store, Catalog(), keys=keys, jobs=jobs, clock=clock, entropy=entropy)
    except BaseException:
        await store.close()
        raise
    return OpenedNode(store, node)
