"""Members that range 0 here does not name yet: the other members are asked for them.

A node takes connections from those alone that it knows as members, and hears of new ones by range
0. One that was away while another was added and came to lead range 0 would know neither that node
nor any entry that names it: it refuses the only one that could tell it. So a node that does not
hear the leader of range 0, or that is called upon by somebody of its own cluster whom it does not
know, asks the members that it reaches which nodes there are.

What they say decides nothing but with whom there are links. They are members, whose entries of
range 0 are believed as well; who votes where, and which keys there are, still comes by the log
alone. Only a node that range 0 here has no row of is taken from them, and nobody else is asked than
who has a row here, or stands in the file `members`. A node that was removed has a row that says so.
With that row here, nothing that others say of it counts; if one of those who are asked has it,
nothing that the rest say; and if none has it, they let that node in themselves. When the rows come,
they alone count. Nothing of it is kept over a restart.

MEMBERS  nothing
answer   count u16, (node u64)*, those that were removed | the answer to JOIN (`_join`)
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from o3storage.cluster import _join, _kinds
from o3storage.cluster._errors import ClusterError
from o3storage.cluster._node import number_of
from o3storage.cluster._node_records import (
    MAX_NODE_ROWS,
    MAX_NODES,
    Announcement,
    NodeRecord,
    NodeState,
)
from o3storage.cluster._ranges import SYSTEM_GROUP
from o3storage.raft.core import NOBODY
from o3storage.runtime import Logger
from o3storage.runtime.fields import FieldReader

if TYPE_CHECKING:
    from o3storage.cluster._membership import Membership

UNHEARD_S = 5.0
"""Without a leader of range 0, or with a stranger at the door, the others are asked after so long,
and again as often: an election takes two seconds, and whoever joins is in range 0 sooner."""
TIMEOUT_S = 1.0
"""Who does not answer so quickly is asked the next time."""

_log = Logger("membership")

Said = tuple[bytes, dict[int, tuple[bytes, Announcement]], list[int]]
"""The cluster's id, its members, and the ids of those that were removed."""


def encode(cluster_id: bytes, records: dict[int, NodeRecord]) -> bytes:
    """The answer to MEMBERS."""
    ordered = [records[node] for node in sorted(records)]
    gone = [record.node for record in ordered if record.state is NodeState.REMOVED]
    live = [record for record in ordered if record.state is not NodeState.REMOVED]
    head = len(gone).to_bytes(2, "big") + b"".join(node.to_bytes(8, "big") for node in gone)
    return head + _join.encode_welcome(cluster_id, live)


def decode(data: bytes) -> Said:
    """Raises ValueError."""
    reader = FieldReader(data)
    count = reader.u16()
    if count > MAX_NODE_ROWS:
        raise ValueError("too many nodes that were removed")
    gone = [reader.u64() for _number in range(count)]
    cluster_id, members = _join.decode_welcome(data[2 + 8 * count :])
    if len(members) > MAX_NODES:
        raise ValueError("more members than a cluster has")
    if any(number_of(identity) != node for node, (identity, _announced) in members.items()):
        raise ValueError("a member whose id does not come from its key")
    return cluster_id, members, gone


class Introductions:
    """`heard`: what others said of nodes that have no row here; see above."""

    def __init__(self, member: Membership) -> None:
        self.heard: dict[int, tuple[bytes, Announcement]] = {}
        self._member = member
        self._strangers: dict[int, None] = {}
        self._heard_s = asyncio.get_running_loop().time()
        """When nothing was amiss, or the others were asked."""

    async def serve(self, _node: int, _payload: memoryview) -> bytes:
        return encode(self._member.cluster_id, self._member.records)

    def called_upon(self, node: int) -> None:
        """By who belongs to this cluster, as it says, and is not known here."""
        if len(self._strangers) < MAX_NODES:
            self._strangers[node] = None

    def knows(self, node: int, identity: bytes) -> bool:
        found = self.heard.get(node)
        return found is not None and found[0] == identity

    def drop_known(self) -> bool:
        """Rows have come: they alone count for their nodes. Whether one of `heard` had none."""
        records = self._member.records
        before = len(self.heard)
        self.heard = {node: said for node, said in self.heard.items() if node not in records}
        return len(self.heard) < before

    async def tend(self) -> None:
        """Ask the others if it is time to."""
        now_s = asyncio.get_running_loop().time()
        records = self._member.records
        self._strangers = {node: None for node in self._strangers if node not in records}
        if self._hears_leader() and not self._strangers:
            self._heard_s = now_s
        elif now_s - self._heard_s >= UNHEARD_S:
            self._heard_s = now_s
            self._strangers = {}
            await self._ask_all()

    def _hears_leader(self) -> bool:
        member = self._member
        replica = member.replicas_here.get(SYSTEM_GROUP)
        leader = replica.core.leader if replica is not None else NOBODY
        return leader != NOBODY and member.up(leader)

    def reached(self) -> list[int]:
        """Members to which there are links: those with a row here, or in the file `members`."""
        member = self._member
        known = {record.node: None for record in member.live()}
        if member.members is not None:
            known |= dict.fromkeys(n for n in member.members.nodes if n not in member.records)
        return [n for n in sorted(known) if n != member.node and member.peers.is_up(n)]

    async def _ask_all(self) -> None:
        answers = await asyncio.gather(*(self._ask(node) for node in self.reached()))
        self._take([said for said in answers if said is not None])

    async def _ask(self, node: int) -> Said | None:
        try:
            answer = await self._member.peers.call(node, _kinds.MEMBERS, b"", timeout_s=TIMEOUT_S)
            said = decode(answer)
        except (ClusterError, ValueError) as error:
            _log.debug("node.no_introduction", by=f"{node:016x}", reason=str(error))
            return None
        return said if said[0] == self._member.cluster_id else None

    def _take(self, answers: list[Said]) -> None:
        """Once removed is removed for good, so the order of the answers does not matter."""
        member = self._member
        heard = dict(self.heard)
        for _cluster_id, members, _gone in answers:
            heard |= members
        gone = {node: None for _cluster_id, _members, ids in answers for node in ids}
        known = member.members.nodes if member.members is not None else {}
        heard = {
            node: said
            for node, said in heard.items()
            if not (node in gone or node in known or node in member.records or node == member.node)
        }
        while len(heard) > MAX_NODES:
            heard.popitem()
        if heard == self.heard:
            return
        for node in heard:
            if node not in self.heard:
                _log.info("node.heard_of", node=f"{node:016x}")
        self.heard = heard
        member.show_peers()
