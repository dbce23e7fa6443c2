"""Where the replicas of a range belong: a pure function of the nodes, the group's members and how
far each of them is. The leader of each range asks it for its own range, so that no node decides
for all and nobody has to be asked.

- A node that should hold a replica becomes a learner first.
- Voters change in one joint step, only to nodes that have caught up and owe no frames, and always
  to an odd number: one node votes alone, of two the second is a learner, of three all vote.
- Voters never become fewer than the replication factor unless the operator said so (`--shrink`): a
  node that is drained or leaves keeps its vote until another one can take it.
- A voter whose promises are in doubt (raft/core `uncertain`) becomes a learner, and a voter again
  when it has caught up: nothing else makes it count. Meanwhile an even number may vote: of three of
  whom one does not count, both others must agree, and so must they where only they vote.
- No two replicas of a range are on one host, unless there is no other way to keep their number.
- A replica that moves is one that its node may not keep and another must take.
- Who is no member any more goes only when all who stay have caught up.
- Leadership is handed over before the leader leaves.

Balancing by load, and groups of erasure-coded frames, will be further rules of this function.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from o3storage.cluster._moves import Move
from o3storage.cluster._node_records import SHRINK, NodeRecord, NodeState
from o3storage.raft.core import MAX_LEARNERS, Configuration

REPLICAS = 3
"""The replication factor of key ranges."""
SYSTEM_REPLICAS = 5
"""Voters of range 0, where there are so many nodes: it outlives any two of them."""


@dataclass(frozen=True, slots=True)
class Change:
    """Make these the members. `transfer_to`, unless 0: hand leadership to this voter instead, and
    ask there again."""

    voters: tuple[int, ...]
    learners: tuple[int, ...]
    transfer_to: int = 0


def voters_for(nodes: int, replicas: int) -> int:
    """How many of `nodes` vote: the greatest odd number that is at most `replicas`."""
    count = min(nodes, replicas)
    return count if count % 2 else max(count - 1, 1)


def may_decide_alone(others: int) -> bool:
    """Whether a range may have one voter where there are so many nodes beside it. (While they join
    it still may; who then finds that its log lost something takes itself for what it was before.)
    """
    return voters_for(others + 1, REPLICAS) == 1


def next_change(
    nodes: Sequence[NodeRecord],
    configuration: Configuration,
    *,
    leader: int,
    caught_up: Mapping[int, bool],
    replicas: int,
    everywhere: bool = False,
    group: int = 0,
    busy: Mapping[int, None] | None = None,
    move: Move | None = None,
    doubted: Mapping[int, None] | None = None,
) -> Change | None:
    """What `leader` should change next in its group, or None.

    `caught_up`: the other members, and whether each is heard from, holds nearly all entries and
    owes no frames. `everywhere`: every node holds a replica (range 0). `group`: spreads the choice
    among equals. `busy`: nodes that leave, but must go on hearing of it: they hold, and perhaps
    lead, other ranges yet. `move`: of one replica of this range, if it is to move. `doubted`:
    members that have heard who the members are, and whose promises are in doubt. (A change that
    names the same members says to learners in doubt that they are that, still.)"""
    doubted = doubted or {}
    if configuration.joint or not configuration.votes(leader):
        return None
    known = [record for record in nodes if record.state is not NodeState.REMOVED]
    known.sort(key=lambda record: _rank(record.node, group))
    first = 0
    if move is not None and move.source in configuration.members():
        first = move.target
        known = [_kept_from(record, move) for record in known]
        known.sort(key=lambda record: record.node != move.target)
    chosen = _voters(known, configuration, leader, caught_up, replicas, doubted=doubted)
    learners = _learners(
        known, chosen, configuration, replicas, everywhere=everywhere, busy=busy or {}, first=first
    )
    whole = all(caught_up.get(node) for node in chosen if node != leader)
    if not whole or len(chosen) % 2 == 0:
        # Their copies may be needed yet.
        states = {record.node: record.state for record in known}
        spare = [n for n in configuration.members() if n not in chosen and n not in learners]
        kept = [n for n in spare if states.get(n, NodeState.LEAVING) is not NodeState.LEAVING]
        learners = tuple(sorted((*learners, *kept)))
    if chosen == configuration.voters and learners == configuration.learners:
        told_again = any(node in doubted for node in learners)
        return Change(chosen, learners) if told_again else None
    if leader not in chosen:
        heirs = (n for n in chosen if n in configuration.voters and caught_up.get(n))
        heir = next(heirs, 0)
        if heir:
            return Change(configuration.voters, configuration.learners, heir)
    return Change(chosen, learners)


def _kept_from(record: NodeRecord, move: Move) -> NodeRecord:
    if record.node != move.source or record.state is not NodeState.MEMBER:
        return record
    return replace(record, state=NodeState.DRAINING, flags=0)


def _rank(node: int, group: int) -> int:
    """A fixed, even spread (multiplicative hashing with the golden ratio)."""
    return ((node ^ (group * 0x9E3779B97F4A7C15)) * 0x9E3779B97F4A7C15) >> 7 & (2**64 - 1)


class _Choice:
    """Nodes, at most `limit`, each on a host of its own."""

    def __init__(self, limit: int) -> None:
        self.nodes: dict[int, None] = {}
        self._hosts: dict[str, None] = {}
        self._limit = limit

    def take(self, records: Iterable[NodeRecord], *, share_host: bool = False) -> None:
        for record in records:
            if len(self.nodes) >= self._limit or record.node in self.nodes:
                continue
            if record.host not in self._hosts or share_host:
                self.nodes[record.node] = None
                self._hosts[record.host] = None


def _voters(
    known: Sequence[NodeRecord],
    configuration: Configuration,
    leader: int,
    caught_up: Mapping[int, bool],
    replicas: int,
    *,
    doubted: Mapping[int, None],
) -> tuple[int, ...]:
    now = configuration.voters
    counted = tuple(node for node in now if node not in doubted)
    if 2 * len(counted) <= len(now):  # they cannot decide anything
        counted = now
    stay = [record for record in known if record.state is NodeState.MEMBER]
    voting = [record for record in stay if record.node in counted]
    voting.sort(key=lambda r: (r.node != leader, not caught_up.get(r.node, False)))
    members = configuration.members()
    ready = [r for r in stay if r.node in members and r.node not in now and caught_up.get(r.node)]
    hosts = dict.fromkeys(record.host for record in (*voting, *ready))
    limit = voters_for(len(hosts), replicas)
    shrink = any(r.flags & SHRINK for r in known if r.state is not NodeState.MEMBER)
    late = [r for r in stay if r.node in members and r.node not in now and r not in ready]
    # An even number stays until who was in doubt has caught up; one below REPLICAS in any case.
    in_between = len(now) % 2 == 0 and (bool(late) or len(now) < REPLICAS)
    even = not shrink and (len(counted) < len(now) or in_between)
    if not shrink:
        limit = max(limit, len(counted) if even else min(len(now), REPLICAS))
    choice = _Choice(limit)
    choice.take(voting)
    choice.take(ready)
    if not shrink:  # nobody can take their place yet
        former = [record for record in known if record.node in counted]
        choice.take(former)
        choice.take(former, share_host=True)
    chosen = list(choice.nodes)
    if not chosen:  # everybody leaves: the group stays as it is
        return now
    count = len(chosen) if even else voters_for(len(chosen), len(chosen))
    return tuple(sorted(chosen[:count]))


def _learners(
    known: Sequence[NodeRecord],
    voters: tuple[int, ...],
    configuration: Configuration,
    replicas: int,
    *,
    everywhere: bool,
    busy: Mapping[int, None],
    first: int,
) -> tuple[int, ...]:
    if everywhere:
        wanted = [
            record.node
            for record in known
            if (record.state is not NodeState.LEAVING or record.node in busy)
            and record.node not in voters
        ]
        return tuple(sorted(wanted[:MAX_LEARNERS]))
    stay = [record for record in known if record.state is NodeState.MEMBER]
    members = configuration.members()
    choice = _Choice(replicas)
    choice.take(record for record in stay if record.node in voters)
    choice.take(record for record in stay if record.node == first)
    choice.take(record for record in stay if record.node in members)
    choice.take(stay)
    choice.take(stay, share_host=True)
    return tuple(sorted(node for node in choice.nodes if node not in voters))
