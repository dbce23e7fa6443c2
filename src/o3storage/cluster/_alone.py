"""Whether this node alone has the entries of a range: who asks is one that lost some of them.

Interface: `decides_alone` (what `verify --repair` may give up), `went_back` (a start).

A member gets what it lost from the others when it starts. An entry that it gave up would be
applied here as nothing, and there as what it says, and nobody would see it: behind it the log is
the same as theirs. And the node that made the cluster, where it lost the entries by which the
others came, would lead by itself.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING

from o3storage.cluster import _members_file
from o3storage.cluster._placement import may_decide_alone
from o3storage.cluster._reading import open_core
from o3storage.raft.core import Core
from o3storage.runtime.disk import Disk
from o3storage.storage import Store

if TYPE_CHECKING:
    from o3storage.cluster._replication import Replication


def went_back(core: Core, replication: Replication | None, *, rows_lost: bool) -> bool:
    """By what is left of its log the replica has the only vote, but there are other nodes: the log
    goes back to before they joined, and they have what is lost."""
    if replication is None or not core.sole:
        return False
    if not (core.log.holes or core.uncertain or rows_lost):
        return False
    return not may_decide_alone(replication.peers.known())


async def decides_alone(disk: Disk, node: int) -> Callable[[Store, int], Awaitable[bool]]:
    """For `storage.verify`, which asks it (store, group). Raises Unavailable if the file `members`
    is damaged, DiskError."""
    members = await _members_file.load(disk)
    others = len(members.nodes) if members is not None else 0

    async def alone(store: Store, group: int) -> bool:
        core, _ = await open_core(store, group, node)
        known = [found for _, found in core.configurations if found.members()]
        if not all(configuration.sole_voter(node) for configuration in known):
            return False
        return not others or (bool(known) and may_decide_alone(others))

    return alone
