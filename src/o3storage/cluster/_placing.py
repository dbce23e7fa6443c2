"""Each range led here is asked about, again and again: what `_placement` says is changed next is
begun."""

from __future__ import annotations

from typing import TYPE_CHECKING

from o3storage.cluster import _spreading
from o3storage.cluster._awake import Awake, Looks
from o3storage.cluster._placement import next_change
from o3storage.cluster._ranges import SYSTEM_GROUP
from o3storage.raft.core import ChangeConfiguration, TransferLeadership

if TYPE_CHECKING:
    from o3storage.cluster._membership import Membership
    from o3storage.cluster._peers import Peers
    from o3storage.cluster._replica import Replica

CAUGHT_UP_ENTRIES = 256
"""A replica this close to the end of the log counts as caught up (raft/core Options)."""


class Placing:
    """A part of `Membership`, which calls `step`."""

    def __init__(self, member: Membership) -> None:
        self.awake: Awake | None = None
        self._member = member
        self._looks = Looks()

    def step(self) -> None:
        """One step towards where the replicas of each range led here belong."""
        member = self._member
        nodes = member.live()
        if member.node not in member.records:
            return
        up = [node for node in member.records if member.up(node)]
        counts = (member.version, member.records, dict(member.ranges.moves), up)
        for group in self._looks.next(member.replicas_here, self.awake, counts):
            replica = member.replicas_here[group]
            core = replica.core
            if core.leader != member.node or not core.configuration.votes(member.node):
                continue
            system = group == SYSTEM_GROUP
            change = next_change(
                nodes,
                core.configuration,
                leader=member.node,
                caught_up=caught_up(member.peers, replica),
                replicas=member.options.system_replicas if system else member.options.replicas,
                everywhere=system or _spreading.all_hold_all(member, nodes),
                group=group,
                busy=_spreading.busy(member) if system else None,
                move=member.ranges.moves.get(group),
                doubted=doubted(replica),
            )
            if change is None:
                continue
            if change.transfer_to:
                replica.step(TransferLeadership(change.transfer_to))
            else:
                replica.step(ChangeConfiguration(0, change.voters, change.learners))


def caught_up(peers: Peers, replica: Replica) -> dict[int, bool]:
    """The other members, as `next_change` asks for them; `replica` leads."""
    core = replica.core
    found: dict[int, bool] = {}
    for node, progress in core.progress.items():
        found[node] = (
            peers.is_up(node)
            and not progress.debt
            and not progress.uncertain
            and progress.data + CAUGHT_UP_ENTRIES >= core.log.last
            and progress.data >= core.term_start
        )
    return found


def doubted(replica: Replica) -> dict[int, None]:
    """Members whose promises are in doubt; not who has yet to hear of the last change, which may
    end the doubt."""
    core = replica.core
    return {
        node: None
        for node, progress in core.progress.items()
        if progress.uncertain and progress.match >= core.configuration_index
    }
