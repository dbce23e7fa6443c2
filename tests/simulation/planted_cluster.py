"""Defects of several nodes that the simulator must find, as in planted.py: each is a patch of the
product for one run of three nodes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from o3storage.cluster import Node
from o3storage.cluster._replica import Replica
from o3storage.cluster._team import Team
from o3storage.raft.core import Role
from tests.simulation.planted import Patch, Planted

PLANTED_IN_CLUSTER: list[Planted] = []


def planted(within: int) -> Callable[[Callable[[Patch], None]], Callable[[Patch], None]]:
    def note(plant: Callable[[Patch], None]) -> Callable[[Patch], None]:
        name = (plant.__doc__ or plant.__name__).rstrip(".")
        PLANTED_IN_CLUSTER.append(Planted(name, plant, within))
        return plant

    return note


@planted(20)
def leader_reads_by_itself(patch: Patch) -> None:
    """Whoever believes that it leads answers from memory, with other voters there."""

    def reads_now(self: Replica) -> bool:
        core = self.core
        return (
            core.role is Role.LEADER
            and not self.fault
            and core.commit >= core.term_start
            and self.applied >= core.term_start
        )

    patch.setattr(Replica, "reads_now", reads_now)


@planted(5)
def listing_from_an_unapplied_follower(patch: Patch) -> None:
    """A follower answers a listing from what it has applied, without asking the leader."""
    original = Node.query

    async def query(self: Node, query: Any) -> Any:
        if repr(query) != "Query(list_objects)":
            return await original(self, query)
        found = self._read_memory(query)
        return await original(self, query) if found is None else found

    patch.setattr(Node, "query", query)


@planted(15)
def read_index_not_waited_for(patch: Patch) -> None:
    """A follower asks for the read index and does not wait until it has applied so far."""

    async def barrier(self: Replica) -> None:
        if self.team is not None:
            await self.team.read_index()

    patch.setattr(Replica, "barrier", barrier)


@planted(3)
def missing_frames_not_noticed(patch: Patch) -> None:
    """A replica that got an entry without its frames does not fetch them."""
    patch.setattr(Team, "_note", lambda self, entry: None)
