"""One node's part in one group: `step(input) -> outputs`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from o3storage.raft.core import _election, _membership, _reads, _replication, _snapshots
from o3storage.raft.core import _types as t
from o3storage.raft.core._state import ProgressState, State


class Core(State):
    """The consensus state of one group on one node: no I/O, no clock, no randomness.

    `step` takes one input and returns outputs, to be carried out in the order given. Persist may
    complete later (answered by Persisted, in order of tickets); further inputs may be stepped
    meanwhile. A Send waits for its ticket. Everything else is carried out at once.
    """

    __slots__ = ()

    def step(self, event: t.Input) -> list[t.Output]:
        _HANDLERS[type(event)](self, event)
        return self.drain()


def _receive(state: State, message: t.Message) -> None:
    """Compare terms (paper 5.1), then hand on."""
    assert message.to == state.id, "a message for another node"
    kind = type(message)
    if message.term > state.term:
        if kind is t.VoteRequest:
            assert isinstance(message, t.VoteRequest)
            if not message.transfer and _election.heard_from_leader_lately(state):
                # Perhaps its quiescence was not noticed there; a heartbeat will tell.
                if state.quiescent:
                    state.wake()
                return
            if not message.pre:
                _election.become_follower(state, message.term, t.NOBODY)
        elif (
            kind is t.VoteResponse
            and isinstance(message, t.VoteResponse)
            and message.pre
            and message.granted
        ):
            pass  # that term is only wished for
        else:
            leads = kind in (t.Append, t.Heartbeat, t.SnapshotPiece)
            _election.become_follower(state, message.term, message.sender if leads else t.NOBODY)
    elif message.term < state.term:
        if kind in (t.Append, t.Heartbeat, t.SnapshotPiece):
            # A leader of an older term learns here that it is one.
            state.gated.append(
                t.AppendResponse(
                    state.id, message.sender, state.term, rejected=True, uncertain=state.uncertain
                )
            )
        elif kind is t.VoteRequest and isinstance(message, t.VoteRequest) and message.pre:
            state.gated.append(
                t.VoteResponse(state.id, message.sender, state.term, granted=False, pre=True)
            )
        elif kind is t.HoleQuery and isinstance(message, t.HoleQuery):
            _election.hole_query(state, message)  # what is held here does not depend on terms
        return
    _MESSAGES[kind](state, message)


def _peer_lost(state: State, event: t.PeerLost) -> None:
    if event.peer == state.leader:
        state.wake()
    progress = state.progress.get(event.peer)
    if progress is not None:
        state.wake()
        progress.fetching = False
        progress.round = 0
        if state.round_open:
            _reads.send_round(state, [n for n in state.progress if state.configuration.votes(n)])
        if progress.state is ProgressState.REPLICATE:
            progress.probe()


def _retire(state: State, _: t.Retire) -> None:
    if not state.retired:
        state.retired = True
        if state.role is not t.Role.FOLLOWER:
            _election.become_follower(state, state.term, t.NOBODY)
        # Nothing unsynced may be acknowledged any more.
        state.gated = []


_MESSAGES: dict[type, Callable[[State, Any], None]] = {
    t.VoteRequest: _election.vote_request,
    t.VoteResponse: _election.vote_response,
    t.Append: _replication.append,
    t.AppendResponse: _replication.append_response,
    t.Heartbeat: _replication.heartbeat,
    t.HeartbeatResponse: _replication.heartbeat_response,
    t.SnapshotPiece: _snapshots.piece,
    t.SnapshotResponse: _snapshots.response,
    t.TimeoutNow: _election.timeout_now,
    t.ReadRequest: _reads.read_request,
    t.ReadResponse: _reads.read_response,
    t.HoleQuery: _election.hole_query,
    t.HoleAnswer: _election.hole_answer,
}

_HANDLERS: dict[type, Callable[[State, Any], None]] = {
    **dict.fromkeys(_MESSAGES, _receive),
    t.Start: _election.start,
    t.Tick: _election.tick,
    t.Propose: _replication.propose,
    t.ChangeConfiguration: _membership.change,
    t.Persisted: _replication.persisted,
    t.DataGap: _replication.data_gap,
    t.ReadIndex: _reads.read_index,
    t.TransferLeadership: _election.transfer,
    t.Compact: _snapshots.compact,
    t.Fetched: _replication.fetched,
    t.SnapshotData: _snapshots.data,
    t.SnapshotFailed: _snapshots.failed,
    t.PieceStored: _snapshots.piece_stored,
    t.Restored: _snapshots.restored,
    t.RowsLost: _snapshots.rows_lost,
    t.PeerLost: _peer_lost,
    t.Retire: _retire,
}
