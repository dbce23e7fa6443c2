"""Rows that this node's disk cannot bring back, and other nodes have: what `storage.Others` asks.

Interface: `LostRows` (for `Store.mend_with_others`), `others_have_rows` (for `Store.open`), and
`mended` (what a start cannot do without).

Invariants
- A replica loses rows only while another node leads its range: somebody has them then.
  (Without one, those that lost rows might be the only ones with the newest entries, which may not
  lead.) One that leads hands over first; if nobody takes over, the span stays refused, and this
  node goes on leading and serves the rest.
- Who votes alone in a range, or runs without other nodes, loses nothing: what cannot be read is
  refused, and `verify --repair` is its operator's decision.
- In the turn of the loop in which rows are lost, its replica stops to read, to apply and to lead;
  a replica that is opened later finds it in its group's `LogState`.
- Where nothing but the places of frames is lost, no rows are: all that is applied is looked through
  for frames that are not here, and what an old row says of one is checked when it is read. Until
  each replica remembers that, the disk does (`PLACES_LOST`).
- Rows of range 0 that are lost are not acted upon (`Node._follow_records`, `Membership.follow`).
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import TypeVar

from o3storage.cluster import _members_file, _records
from o3storage.cluster._newcomer import LOST
from o3storage.cluster._placement import may_decide_alone
from o3storage.cluster._ranges import SYSTEM_GROUP, RangeTable
from o3storage.cluster._replica import Replica
from o3storage.cluster._replication import Peers, successors
from o3storage.raft.core import NOBODY, Role, TransferLeadership
from o3storage.runtime import Logger
from o3storage.runtime.disk import Disk
from o3storage.storage import PLACES_LOST, BadBlock, GroupId, Store, StoreError

T = TypeVar("T")

MAX_MENDS = 16
"""Damaged blocks of the index that a start waits for: it reads a handful of rows."""
HAND_OVERS = 3
"""Voters that are asked to lead, one after the other, before the span is left for later."""
HAND_OVER_S, HAND_OVER_LOOK_S = 2.0, 0.1
"""... each for so long: the time in which a core gives up handing over, and an election."""
PLACEMENT_END = b"\x04"
"""Below it stands where frames are, and what was released: no more than frames is lost there."""
FIRST_CATALOG_BYTE = b"\x10"
"""Below it are a store's own rows, notes that say of any range what is here of it among them."""

_log = Logger("lost rows")


class LostRows:
    """One node's."""

    def __init__(
        self, store: Store, peers: Peers, ranges: RangeTable, replicas: Mapping[int, Replica]
    ) -> None:
        """`replicas` by group: the node's own table, which may grow. `ranges`: their spans."""
        self.complete = False
        """The table of ranges is, and so are the replicas: before, any group may have rows
        anywhere, and nothing of it is read or applied yet."""
        self._store = store
        self._peers = peers
        self._ranges = ranges
        self._replicas = replicas

    async def may_lose(self, low: bytes, high: bytes | None) -> Sequence[GroupId]:
        """See `storage.Others`."""
        groups = self._groups(low, high) if self.complete else self._store.groups()
        replicas = [self._replicas[group] for group in groups if group in self._replicas]
        if self.complete and groups:
            alone = any(replica.core.sole for replica in replicas)
        else:
            alone = may_decide_alone(self._peers.known())
        if alone:
            raise StoreError(
                "rows of the index are lost, and no other node has them: stop the store and run "
                "`o3storage verify --repair`"
            )
        if not self.complete:
            return groups
        for asked in range(HAND_OVERS):
            groups = self._groups(low, high)
            if not self._unled(groups):
                return groups
            for replica in self._unled(groups):
                able = successors(replica)
                if replica.core.role is Role.LEADER and able:
                    replica.step(TransferLeadership(able[asked % len(able)]))
            for _ in range(int(HAND_OVER_S / HAND_OVER_LOOK_S)):
                if not self._unled(groups):
                    break
                await asyncio.sleep(HAND_OVER_LOOK_S)
        groups = self._groups(low, high)
        waits = self._unled(groups)
        if waits:
            raise StoreError(
                f"rows of range {waits[0].group} are lost here, and no other node leads it that "
                "could give them back; it is tried again"
            )
        return groups

    def lost(self, groups: Sequence[GroupId]) -> None:
        """See `storage.Others`. Raises StoreError."""
        # What is noted of ranges that were never here may be lost with them (`_newcomer`).
        self._store.note(LOST, b"")
        for group in groups:
            _log.error("range.rows_lost", range=group)
            replica = self._replicas.get(group)
            if replica is not None:
                replica.lose_rows()

    def places_lost(self) -> None:
        """See `storage.Others`."""
        if not self.complete:
            return  # `begin` hears of it
        for replica in self._replicas.values():
            # (One that stopped hears of it when the node starts again.)
            if replica.team is not None and not replica.fault:
                replica.team.mark_incomplete()
                replica.team.look_through()

    async def begin(self) -> None:
        """The table of ranges is complete, and so are the replicas. Raises StoreError, BadBlock."""
        noted = await self._store.noted(PLACES_LOST) is not None
        self.complete = True
        if noted:
            self.places_lost()
            self._store.note(PLACES_LOST, None)

    def _groups(self, low: bytes, high: bytes | None) -> list[GroupId]:
        """Those with rows in the span."""
        here = {SYSTEM_GROUP, *self._ranges.here()}
        known = [group for group in self._store.groups() if group in here]
        if high is not None and high <= PLACEMENT_END:
            return []
        if low < FIRST_CATALOG_BYTE:
            return known
        found = []
        for group in known:
            own = _records.configuration_key(group)
            spans = [*self._ranges.row_spans(group), (own, own + b"\0")]
            if any(low < end and (high is None or start < high) for start, end in spans):
                found.append(group)
        return found

    def _unled(self, groups: Sequence[GroupId]) -> list[Replica]:
        """Replicas that no other node is known to lead. (One that stopped reads nothing; one that
        has nothing, or lost rows before, loses nothing more.)"""
        found = [self._replicas[group] for group in groups if group in self._replicas]
        return [
            replica
            for replica in found
            if not replica.fault
            and replica.applied
            and not replica.rows_lost
            and (replica.core.role is Role.LEADER or replica.core.leader == NOBODY)
        ]


async def others_have_rows(disk: Disk) -> bool:
    """By the file `members`. Raises Unavailable if it is damaged, DiskError."""
    members = await _members_file.load(disk)
    return members is not None and not may_decide_alone(len(members.nodes))


async def mended(store: Store, read: Callable[[], Awaitable[T]]) -> T:
    """What `read` returns. A node cannot start without its own rows and the cluster's records: a
    damaged block of the index is put right first. Raises what `read` does, StoreError."""
    for _ in range(MAX_MENDS):
        try:
            return await read()
        except BadBlock:
            await store.repair_index()
    return await read()
