"""Who holds what in a cluster with more nodes than replicas, as far as membership goes: whether a
node is still needed, and how ranges spread. The leader of range 0 begins moves, one after another,
until every node holds about as many replicas as any other."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from o3storage.cluster._moves import spread
from o3storage.cluster._node_records import PLACES_VERSION, NodeRecord, NodeState
from o3storage.cluster._range_rows import FIRST_KEY_GROUP, Holders
from o3storage.cluster._ranges import SYSTEM_GROUP
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


def busy(member: Membership) -> dict[int, None]:
    """Nodes that leave and still belong to key ranges. (Only by way of range 0 do they hear that
    what they lead is to go to others.)"""
    leaving = [r.node for r in member.live() if r.state is NodeState.LEAVING]
    return {node: None for node in leaving if is_needed(member, node, but_system=True)}


def is_needed(member: Membership, node: int, *, but_system: bool = False) -> bool:
    """Whether some range still counts the node among its members, as far as is known here;
    `but_system`: whether a key range does."""
    ranges = member.ranges
    for group in dict.fromkeys([*ranges.elsewhere(), *ranges.directory]):
        if ranges.is_here(group):
            continue
        holders = ranges.holders.get(group)
        if holders is None or holders.configuration.joint:
            return True
        if node in holders.configuration.members():
            return True
    for group, replica in member.replicas_here.items():
        if but_system if group == SYSTEM_GROUP else not ranges.is_here(group):
            continue
        core = replica.core
        if core.configuration.joint or core.configuration_index > core.commit:
            return True
        if node in core.configuration.members():
            return True
    return False


class Spreading:
    """What the leader of range 0 does for it."""

    def __init__(self, member: Membership) -> None:
        self._member = member
        self._even: tuple[Mapping[int, Holders], list[int]] | None = None
        """Holders and nodes that were found to be spread as well as they can be."""

    async def begin(self, nodes: Sequence[NodeRecord]) -> None:
        """The next move, if nothing moves and all nodes are well: a move is work for disks and
        network. Raises MembershipRefused, Unavailable, StorageFull, StoreError."""
        member, ranges = self._member, self._member.ranges
        numbers = [record.node for record in nodes]
        if self._even is not None and self._even[0] is ranges.holders and self._even[1] == numbers:
            return
        if ranges.moves or all_hold_all(member, nodes):
            return
        if not all(r.state is NodeState.MEMBER and member.up(r.node) for r in nodes):
            return
        groups = dict.fromkeys([FIRST_KEY_GROUP, *ranges.directory])
        if any(group not in ranges.holders for group in groups):
            return
        if any(ranges.holders[group].configuration.joint for group in groups):
            return
        found = spread(nodes, {group: ranges.holders[group] for group in groups})
        if found is None:
            self._even = ranges.holders, numbers
            return
        group, move = found
        await ranges.move(group, move.source, move.target)
        await ranges.read_directory()
        source, target = f"{move.source:016x}", f"{move.target:016x}"
        _log.info("range.moves", range=group, source=source, target=target)
