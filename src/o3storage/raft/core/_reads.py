"""Linearizable reads without a log entry (dissertation 6.4): read-index with shared rounds.

Reads that arrive while a round of heartbeats is under way share the next one.

A read index is valid for a read that began at t if a majority had not left the leader's term at
some moment after t: then no later leader can have committed anything before t, and what this one or
an earlier one committed before t is at or below this one's commit index now. Who asks the leader
says that for itself by its question, which names its term: where the two of them are a majority
(one voter of two or three asks), no round is needed. In the others the leader asks as many voters
as a majority takes, those first who answered last; each beat asks all.
"""

from __future__ import annotations

from collections.abc import Iterable

from o3storage.raft.core._state import State
from o3storage.raft.core._types import (
    Heartbeat,
    ReadIndex,
    ReadReady,
    ReadRefused,
    ReadRequest,
    ReadResponse,
    Role,
)


def read_index(state: State, event: ReadIndex) -> None:
    if state.role is Role.LEADER:
        _ask(state, state.id, event.token)
    elif state.leader and not state.retired:
        state.forwarded[event.token] = None
        certain = not state.uncertain
        state.sends.append(ReadRequest(state.id, state.leader, state.term, event.token, certain))
    else:
        state.out.append(ReadRefused([event.token]))


def read_request(state: State, message: ReadRequest) -> None:
    node, token = message.sender, message.token
    if state.role is not Role.LEADER:
        state.sends.append(ReadResponse(state.id, node, state.term, token, 0))
    elif (
        message.certain
        and state.commit >= state.term_start
        and state.configuration.decided([state.id, node])
    ):
        # (A quiescent group stays so: the question is all the proof that is needed.)
        state.sends.append(ReadResponse(state.id, node, state.term, token, state.commit))
    else:
        _ask(state, node, token)


def read_response(state: State, message: ReadResponse) -> None:
    if message.token not in state.forwarded:
        return
    del state.forwarded[message.token]
    if message.index:
        state.out.append(ReadReady([message.token], message.index))
    else:
        state.out.append(ReadRefused([message.token]))


def _ask(state: State, node: int, token: int) -> None:
    state.pending_reads.append((node, token))
    if not state.round_open:
        open_round(state)
    elif state.quiescent:
        # Who was asked does not answer: beats ask all.
        state.wake()


def open_round(state: State) -> None:
    """A leader knows what is committed only once an entry of its own term is (6.4 step 1). A
    quiescent group stays so: a look into a thousand idle ranges must not set all their timers
    going."""
    if state.commit < state.term_start or not state.pending_reads:
        return
    state.idle_ticks = 0
    state.round += 1
    state.round_open = True
    state.round_index = state.commit
    state.round_reads, state.pending_reads = state.pending_reads, []
    if not state.sole:
        send_round(state, _likely(state))
    confirmed(state)


def send_round(state: State, nodes: Iterable[int]) -> None:
    """Ask these members whether this node still leads."""
    for node in nodes:
        commit = min(state.progress[node].match, state.commit)
        quiesce = state.quiescent
        state.sends.append(Heartbeat(state.id, node, state.term, commit, state.round, quiesce))


def _likely(state: State) -> list[int]:
    """As many voters as make a majority with this node, those that answered last first; all of them
    in a joint phase, and where some are uncertain."""
    configuration, progress = state.configuration, state.progress
    voters = [node for node in progress if configuration.votes(node)]
    if configuration.joint or any(progress[node].uncertain for node in voters):
        return voters
    voters.sort(key=lambda node: -progress[node].round)
    count = len(configuration.voters) // 2
    if not configuration.votes(state.id):
        count += 1
    return voters[:count]


def first_commit(state: State) -> None:
    if state.pending_reads and not state.round_open:
        open_round(state)


def confirmed(state: State) -> None:
    """Release the round's reads once a majority said, after it began, that this node leads."""
    if not state.round_open:
        return
    agree = [n for n, p in state.progress.items() if p.round >= state.round and not p.uncertain]
    if not state.configuration.decided([state.id, *agree]):
        return
    reads, state.round_reads = state.round_reads, []
    state.round_open = False
    local = [token for node, token in reads if node == state.id]
    if local:
        state.out.append(ReadReady(local, state.round_index))
    for node, token in reads:
        if node != state.id:
            state.sends.append(ReadResponse(state.id, node, state.term, token, state.round_index))
    open_round(state)


def refuse_all(state: State) -> None:
    """Leadership moved: what waits here is refused and may be asked again."""
    waiting = [*state.round_reads, *state.pending_reads]
    state.round_reads, state.pending_reads = [], []
    state.round_open = False
    local = [token for node, token in waiting if node == state.id]
    local.extend(state.forwarded)
    state.forwarded.clear()
    if local:
        state.out.append(ReadRefused(local))
    for node, token in waiting:
        if node != state.id:
            state.sends.append(ReadResponse(state.id, node, state.term, token, 0))
