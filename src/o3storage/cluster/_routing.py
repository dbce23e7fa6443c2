"""Which replica, or which other nodes, answer for a key: the half of a node that commands, queries
and bodies share."""

from __future__ import annotations

import asyncio

from o3storage.cluster._elsewhere import Elsewhere
from o3storage.cluster._errors import Unavailable
from o3storage.cluster._ranges import RangeTable
from o3storage.cluster._replica import Replica
from o3storage.cluster._replication import Replication
from o3storage.runtime.state_machine import StateMachine
from o3storage.storage import Store

REROUTE_S, REROUTE_LOOK_S = 4.5, 0.01
"""A key whose range is not here yet, or has just begun, is waited for so long: a client gets its
503 within 5 s."""
MOVED_LOOK_S = 0.1
"""A leader tells range 0 of a cut within a second or so."""


class Routing:
    """What `_node.Node` knows of ranges."""

    store: Store
    machine: StateMachine
    replication: Replication | None
    _ranges: RangeTable
    _replicas: dict[int, Replica]
    _elsewhere: Elsewhere
    _closing: bool

    @property
    def closing(self) -> bool:
        return self._closing

    def replica_here(self, group: int) -> Replica | None:
        """The replica of a range, if this node has one that may be asked."""
        return None if group in self._ranges.elsewhere else self._replicas.get(group)

    def leader_of(self, group: int) -> int:
        """As far as this node knows, or was told when it asked last; 0: nobody."""
        replica = self.replica_here(group)
        return replica.core.leader if replica is not None else self._elsewhere.leader(group)

    def replica_of(self, route: bytes) -> Replica:
        """Of the range of a route. Raises Unavailable: it is not here (yet)."""
        replica = self.replica_here(self._ranges.group_of(route))
        if replica is None:
            raise Unavailable("this node has not received the range of that key yet; try again")
        return replica

    async def find_range(self, route: bytes, group: int | None = None) -> Replica | int:
        """Of the range of a route, or of that group, once it is known: the replica here, or the
        group, if other nodes are to be asked. Raises Unavailable."""
        loop = asyncio.get_running_loop()
        end_s = loop.time() + REROUTE_S
        while True:
            at = self._ranges.group_of(route) if group is None else group
            if at in self._ranges.elsewhere:
                return at
            replica = self._replicas.get(at)
            if replica is not None:
                return replica
            if self._closing or loop.time() >= end_s:
                raise Unavailable("this node has not received the range of that key yet; try again")
            await asyncio.sleep(REROUTE_LOOK_S)

    async def _moved_away(self, version: int, end_s: float) -> float:
        """A range elsewhere was cut, or is held by others now: return when range 0 may say more.
        Returns when to give up, which `end_s` is unless 0. Raises Unavailable."""
        loop = asyncio.get_running_loop()
        end_s = end_s or loop.time() + REROUTE_S
        if loop.time() >= end_s or self._closing:
            raise Unavailable("the range of that key is moving; try again")
        if self._ranges.version == version:
            await asyncio.sleep(MOVED_LOOK_S)
        return end_s

    async def _moved_on(self, version: int) -> None:
        """Return when another range is here than at that version of the table. Raises
        Unavailable."""
        loop = asyncio.get_running_loop()
        end_s = loop.time() + REROUTE_S
        while self._ranges.version == version:
            if self._closing or loop.time() >= end_s:
                raise Unavailable("this node has not received the range of that key yet; try again")
            await asyncio.sleep(REROUTE_LOOK_S)
