"""Key ranges spread over a cluster with more nodes than replicas: the leader of range 0 begins
moves, one after another, until every node holds about as many replicas as any other."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from o3storage.cluster._moves import spread
from o3storage.cluster._node_records import PLACES_VERSION, NodeRecord, NodeState
from o3storage.cluster._range_rows import FIRST_KEY_GROUP
from o3storage.runtime import Logger

if TYPE_CHECKING:
    from o3storage.cluster._membership import Membership

_log = Logger("ranges")


def all_hold_all(member: Membership, nodes: Sequence[NodeRecord]) -> bool:
    """Whether every node holds a replica of every key range: where there are no more nodes than
    replicas, and while some node does not know that it may be otherwise."""
    options = member.options
    few = len(nodes) <= options.replicas
    return few or options.everywhere or member.version < PLACES_VERSION


async def begin(member: Membership, nodes: Sequence[NodeRecord]) -> None:
    """The next move, if nothing moves and all nodes are well: a move is work for disks and network.
    Raises MembershipRefused, Unavailable, StorageFull, StoreError."""
    ranges = member.ranges
    if ranges.moves or all_hold_all(member, nodes):
        return
    if not all(record.state is NodeState.MEMBER and member.up(record.node) for record in nodes):
        return
    groups = dict.fromkeys([FIRST_KEY_GROUP, *ranges.directory])
    if any(group not in ranges.holders for group in groups):
        return
    found = spread(nodes, {group: ranges.holders[group] for group in groups})
    if found is None:
        return
    group, move = found
    await ranges.move(group, move.source, move.target)
    await ranges.read_directory()
    source, target = f"{move.source:016x}", f"{move.target:016x}"
    _log.info("range.moves", range=group, source=source, target=target)
