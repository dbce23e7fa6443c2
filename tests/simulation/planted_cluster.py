"""Defects of several nodes that the simulator must find, as in planted.py: each is a patch of the
product for one run of three nodes."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

from o3storage.catalog import _apply_objects, _range
from o3storage.catalog._rows import unpack_copy
from o3storage.cluster import MISS, Node
from o3storage.cluster._data import Fanout
from o3storage.cluster._repair import Repair
from o3storage.cluster._replica import Replica
from o3storage.cluster._snapshots import Snapshots
from o3storage.cluster._team import Team
from o3storage.raft.core import (
    NOBODY,
    Configuration,
    Core,
    DataGap,
    Entry,
    Persist,
    ReadReady,
    ReadResponse,
    Role,
    Send,
    _core,
    _reads,
    _replication,
)
from o3storage.raft.core._state import State
from o3storage.runtime.state_machine import Outcome
from o3storage.storage import SealedFrame, decode_piece, encode_piece
from tests.simulation.planted import Patch, Planted

PLANTED_IN_CLUSTER: list[Planted] = []


def planted(within: int) -> Callable[[Callable[[Patch], None]], Callable[[Patch], None]]:
    def note(plant: Callable[[Patch], None]) -> Callable[[Patch], None]:
        name = (plant.__doc__ or plant.__name__).rstrip(".")
        PLANTED_IN_CLUSTER.append(Planted(name, plant, within))
        return plant

    return note


@planted(5)
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
    original, original_now = Node.query, Node.query_now

    async def query(self: Node, query: Any, *rest: Any) -> Any:
        if repr(query) != "Query(list_objects)":
            # (Nor with the question for its bucket's range.)
            return await original(self, query, *rest[:1])
        replica = await self.find_range(query.route, query.group)
        assert not isinstance(replica, int)
        found = self._read_memory(query, replica)
        return await original(self, query, *rest) if found is MISS else found

    def query_now(self: Node, query: Any, *rest: Any) -> Any:
        return MISS if repr(query) == "Query(list_objects)" else original_now(self, query, *rest)

    patch.setattr(Node, "query", query)
    patch.setattr(Node, "query_now", query_now)


@planted(10)
def read_index_not_waited_for(patch: Patch) -> None:
    """A follower asks for the read index and does not wait until it has applied so far."""

    async def barrier(self: Replica, count: int | None = None) -> None:
        if self.team is not None:
            reads = self.team.reads
            await reads.index(reads.count() if count is None else count)

    patch.setattr(Replica, "barrier", barrier)


@planted(3)
def missing_frames_not_noticed(patch: Patch) -> None:
    """A replica that got an entry without its frames does not fetch them."""
    patch.setattr(Team, "_note", lambda self, entry: None)


# --- consensus


@planted(15)
def vote_not_persisted(patch: Patch) -> None:
    """A vote is not persisted."""
    original = Replica._persist

    def persist(self: Replica, output: Persist) -> None:
        if output.hard_state is not None:
            hard = dataclasses.replace(output.hard_state, vote=NOBODY)
            output = dataclasses.replace(output, hard_state=hard)
        original(self, output)

    patch.setattr(Replica, "_persist", persist)


@planted(15)
def answers_before_they_are_durable(patch: Patch) -> None:
    """Votes and acknowledgements leave before what they say is synced."""
    original = Core.drain

    def drain(self: Core) -> list[Any]:
        return [Send(o.message, 0) if isinstance(o, Send) else o for o in original(self)]

    patch.setattr(Core, "drain", drain)


@planted(15)
def commit_by_a_minority(patch: Patch) -> None:
    """A leader commits what one voter less than a majority holds."""

    def majority_mark(self: Configuration, marks: Mapping[int, int]) -> int:
        def reached(voters: tuple[int, ...]) -> int:
            found = sorted((marks.get(voter, 0) for voter in voters), reverse=True)
            return found[max(0, len(voters) // 2 - 1)]

        return min(reached(side) for side in (self.voters, self.outgoing) if side)

    patch.setattr(Configuration, "majority_mark", majority_mark)


@planted(5)
def read_index_without_a_round(patch: Patch) -> None:
    """A leader gives out a read index without asking the others whether it still leads."""

    def confirmed(state: State) -> None:
        while state.round_open:
            waiting, state.round_reads = state.round_reads, []
            state.round_open = False
            local = [token for node, token in waiting if node == state.id]
            if local:
                state.out.append(ReadReady(local, state.round_index))
            for node, token in waiting:
                if node != state.id:
                    response = ReadResponse(state.id, node, state.term, token, state.round_index)
                    state.sends.append(response)

    patch.setattr(_reads, "confirmed", confirmed)


@planted(15)
def truncation_off_by_one(patch: Patch) -> None:
    """A follower keeps the first entry that differs from its leader's."""
    original = _replication._cut

    def cut(state: State, index: int) -> None:
        original(state, min(index + 1, state.log.last + 1))

    patch.setattr(_replication, "_cut", cut)


@planted(10)
def snapshot_without_its_last_index(patch: Patch) -> None:
    """A snapshot lacks what the entry at its own index wrote."""
    finish, read = Replica._finish, Snapshots._read
    last: dict[Replica, dict[bytes, None]] = {}

    def remember(self: Replica, entry: Entry, outcome: Outcome) -> bool:
        if outcome.rows:
            last[self] = dict.fromkeys(key for key, _ in outcome.rows)
        return finish(self, entry, outcome)

    async def without(self: Snapshots, source: Any, number: int) -> tuple[bytes, bool]:
        data, end = await read(self, source, number)
        wrote = last.get(self._replica, {})
        return encode_piece([row for row in decode_piece(data) if row[0] not in wrote]), end

    patch.setattr(Replica, "_finish", remember)
    patch.setattr(Snapshots, "_read", without)


# --- bodies


@planted(30)
def acknowledged_with_a_minority_of_frames(patch: Patch) -> None:
    """A body is acknowledged, and its entry committed, when one node holds its frames."""

    async def durable(self: Fanout) -> None:
        return None

    patch.setattr(Fanout, "durable", durable)
    patch.setitem(_core._HANDLERS, DataGap, lambda state, event: None)


@planted(30)
def repair_from_a_bad_copy(patch: Patch) -> None:
    """A damaged frame is replaced by a copy that nobody checked, and which is bad, too."""
    original = Repair.fetch

    async def fetch(self: Repair, stream: bytes, number: int, frames: int) -> SealedFrame | None:
        frame = await original(self, stream, number, frames)
        if frame is None:
            return None
        bad = bytes(frame.data)
        return dataclasses.replace(frame, data=bytes((bad[0] ^ 1,)) + bad[1:])

    patch.setattr(Repair, "fetch", fetch)


@planted(30)
def put_into_a_deleted_bucket(patch: Patch) -> None:
    """A put commits though its bucket's deletion has begun."""

    def check_copy(value: bytes | None, bucket_id: int, epoch: int) -> Any:
        if value is None:
            return _range.check_copy(value, bucket_id, epoch)
        return unpack_copy(value)[1], None

    patch.setattr(_apply_objects, "check_copy", check_copy)
