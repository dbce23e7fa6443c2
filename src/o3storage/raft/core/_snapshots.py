"""Log compaction and snapshots in pieces (paper 7). The state is shipped by the driver; the core
decides who needs it and keeps the pieces in order."""

from __future__ import annotations

from o3storage.raft.core import _election, _membership, _replication
from o3storage.raft.core._state import Incoming, Progress, ProgressState, State
from o3storage.raft.core._types import (
    NOBODY,
    Compact,
    PieceStored,
    Restore,
    Restored,
    Role,
    RowsLost,
    SnapshotData,
    SnapshotFailed,
    SnapshotNeeded,
    SnapshotPiece,
    SnapshotResponse,
    StorePiece,
)


def compact(state: State, event: Compact) -> None:
    """Only what is applied may go; the driver decides how much a follower may still need."""
    index = min(event.index, state.applied)
    state.log.compact(index)


# --- the leader's side ---------------------------------------------------------------------------


def begin(state: State, node: int, progress: Progress) -> None:
    progress.state = ProgressState.SNAPSHOT
    progress.snapshot_index = 0
    progress.snapshot_asked = 1
    progress.snapshot_stored = 0
    progress.snapshot_last = -1
    progress.stalled_ticks = 0
    progress.inflight.clear()
    progress.inflight_bytes = 0
    state.out.append(SnapshotNeeded(node, 0))


def data(state: State, event: SnapshotData) -> None:
    progress = state.progress.get(event.peer)
    if progress is None or progress.state is not ProgressState.SNAPSHOT:
        return
    if event.number == 0:
        if event.index != progress.snapshot_index:
            # Begun anew (`nudge`): how many pieces the one before had says nothing of this one.
            progress.snapshot_index = event.index
            progress.snapshot_asked = 1
            progress.snapshot_stored = 0
            progress.snapshot_last = -1
    elif event.index != progress.snapshot_index:
        return
    state.sends.append(
        SnapshotPiece(
            state.id,
            event.peer,
            state.term,
            event.index,
            event.index_term,
            event.configuration,
            event.number,
            event.data,
            event.last,
        )
    )
    if event.last:
        progress.snapshot_last = event.number
    _ask_more(state, event.peer, progress)


def _ask_more(state: State, node: int, progress: Progress) -> None:
    while progress.snapshot_asked < progress.snapshot_stored + state.options.snapshot_window and (
        progress.snapshot_last < 0 or progress.snapshot_asked <= progress.snapshot_last
    ):
        state.out.append(SnapshotNeeded(node, progress.snapshot_asked))
        progress.snapshot_asked += 1


def response(state: State, message: SnapshotResponse) -> None:
    progress = state.progress.get(message.sender)
    if (
        state.role is not Role.LEADER
        or progress is None
        or progress.state is not ProgressState.SNAPSHOT
    ):
        return
    progress.active = True
    if message.refused:
        begin(state, message.sender, progress)
    elif message.index == progress.snapshot_index:
        if message.next_piece > progress.snapshot_stored:
            progress.snapshot_stored = message.next_piece
            progress.stalled_ticks = 0
        _ask_more(state, message.sender, progress)


def nudge(state: State, node: int, progress: Progress) -> None:
    """A piece or its answer may be lost: after a while ask again from the first not stored."""
    progress.stalled_ticks += state.options.heartbeat_ticks
    if progress.stalled_ticks >= 2 * state.options.election_ticks:
        progress.stalled_ticks = 0
        if 0 <= progress.snapshot_last < progress.snapshot_stored:
            # All pieces are there and the final answer was lost: the last one is sent again.
            progress.snapshot_stored = progress.snapshot_last
        progress.snapshot_asked = progress.snapshot_stored + 1
        state.out.append(SnapshotNeeded(node, progress.snapshot_stored))


def failed(state: State, event: SnapshotFailed) -> None:
    progress = state.progress.get(event.peer)
    if progress is not None and progress.state is ProgressState.SNAPSHOT:
        progress.probe()


# --- the follower's side -------------------------------------------------------------------------


def piece(state: State, message: SnapshotPiece) -> None:
    _replication.follow(state, message.sender)
    if state.retired:
        return
    incoming = state.incoming
    if incoming is not None and incoming.restoring:
        return
    if _held(state, message.sender, message.index, message.index_term):
        return
    if (
        incoming is None
        or incoming.sender != message.sender
        or incoming.index != message.index
        or incoming.index_term != message.index_term
    ):
        if message.number != 0:
            refusal = SnapshotResponse(
                state.id, message.sender, state.term, message.index, 0, refused=True
            )
            state.gated.append(refusal)
            return
        state.session += 1
        incoming = state.incoming = Incoming(
            message.sender,
            message.index,
            message.index_term,
            message.configuration,
            state.session,
        )
    if message.number != incoming.expected:
        state.gated.append(
            SnapshotResponse(state.id, message.sender, state.term, message.index, incoming.stored)
        )
        return
    incoming.expected += 1
    incoming.last = message.last
    state.out.append(
        StorePiece(
            incoming.session, message.index, message.index_term, message.number, message.data
        )
    )


def _held(state: State, leader: int, index: int, term: int) -> bool:
    """Whether the log reaches that far by itself. Then the snapshot is of no use, and installing it
    would undo what is applied above it."""
    log = state.log
    if state.wants_snapshot:
        # (Its log may reach that far, its rows do not. What is older than they are helps nobody;
        # the leader asks again, with a newer one.)
        return index < state.applied
    agrees = not log.holes and log.term(index) == term
    if index > min(state.commit, log.ceiling) and not agrees:
        return False
    state.incoming = None
    if index > state.commit:
        state.commit = index
        _membership.committed(state)
    state.verified = max(state.verified, index)
    _replication.answer(state, leader, max(index, state.commit), 0)
    return True


def piece_stored(state: State, event: PieceStored) -> None:
    incoming = state.incoming
    if incoming is None or event.session != incoming.session or event.number != incoming.stored:
        return
    if _held(state, incoming.sender, incoming.index, incoming.index_term):
        return  # (entries came while it was being written)
    incoming.stored += 1
    state.gated.append(
        SnapshotResponse(state.id, incoming.sender, state.term, incoming.index, incoming.stored)
    )
    if incoming.last and incoming.stored == incoming.expected:
        incoming.restoring = True
        hard_state = state.hard_state()
        hard_state.commit = incoming.index
        keep = state.log.goes_on(incoming.index, incoming.index_term)
        incoming.keep = keep
        state.out.append(
            Restore(incoming.index, incoming.index_term, incoming.configuration, hard_state, keep)
        )


def restored(state: State, event: Restored) -> None:
    incoming = state.incoming
    if incoming is None or not incoming.restoring or incoming.index != event.index:
        return
    state.incoming = None
    state.wants_snapshot = False
    index = incoming.index
    later = [pair for pair in state.configurations if pair[0] > index]
    if incoming.keep:
        state.log.rebase(index, incoming.index_term)
        state.configurations = [(index, incoming.configuration), *later]
    else:
        state.log.reset(index, incoming.index_term, state.ticket + 1)
        state.configurations = [(index, incoming.configuration)]
        state.unsaved = []
        state.fills = []
    state.commit = max(state.commit, index) if incoming.keep else index
    state.applied = index
    state.configuration = state.configurations[-1][1]
    state.data_gap = 0
    state.verified = incoming.index
    if state.uncertain and not incoming.configuration.votes(state.id):
        state.uncertain = False
    if state.leader and state.leader != state.id:
        _replication.answer(state, state.leader, incoming.index, 0)


def rows_lost(state: State, event: RowsLost) -> None:
    """Who votes alone goes on with what there is: nobody else has the rows."""
    if event.abandoned:
        state.incoming = None
    if state.sole or state.retired:
        return
    state.wants_snapshot = True
    # It takes a leader's word again, and asks who leads if there is none: what was quiescent wakes.
    _election.become_follower(state, state.term, NOBODY)
