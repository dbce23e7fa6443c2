"""Log replication (paper 5.3, 5.4.2): the leader's side and the follower's side."""

from __future__ import annotations

from o3storage.raft.core import _election, _membership, _reads, _snapshots
from o3storage.raft.core._configuration import Configuration
from o3storage.raft.core._log import ABSENT, ENTRY_OVERHEAD_BYTES, UNKNOWN
from o3storage.raft.core._state import Progress, ProgressState, State
from o3storage.raft.core._types import (
    COMMAND,
    CONFIGURATION,
    Accepted,
    Append,
    AppendResponse,
    DataGap,
    Entry,
    Fetch,
    Fetched,
    Heartbeat,
    HeartbeatResponse,
    Persisted,
    Propose,
    Role,
    TimeoutNow,
)

# --- the leader's side ---------------------------------------------------------------------------

ONLY_SNAPSHOT = (1 << 64) - 1
"""In place of the term of a hint: no entry helps, the state has to come as a snapshot."""
HELD_ENTRIES = 64
"""So many new entries wait, while the leader's own disk is writing those before them, to go to a
follower as one Append: it could not sync them sooner than its sync of those before allows, and each
Append is a message, a write and an answer. More are not held, as to one that catches up, and none
for longer than a tick, as where the leader's disk alone is slow."""


def propose(state: State, event: Propose) -> None:
    if _election.refuse_proposal(state, event.token):
        return
    if state.idle_ticks or state.quiescent:
        state.wake()
    low = state.log.last + 1
    add_entries(state, COMMAND, event.payloads, event.riding_bytes)
    state.out.append(Accepted(event.token, low, state.log.last, state.term))
    if state.progress:
        broadcast(state)


def add_entries(
    state: State, kind: int, payloads: list[bytes], riding_bytes: list[int] | None = None
) -> None:
    """A leader only ever appends (Leader Append-Only)."""
    index, term = state.log.last, state.term
    entries = [
        Entry(number, term, kind, data) for number, data in enumerate(payloads, start=index + 1)
    ]
    if not entries:
        return
    if riding_bytes is not None:
        for entry, size in zip(entries, riding_bytes, strict=True):
            entry.riding_bytes = size
    state.log.append(entries)
    if state.unsaved:
        state.unsaved.extend(entries)
    else:
        state.unsaved = entries
    if kind == CONFIGURATION:
        for entry in entries:
            state.adopt(entry.index, Configuration.decode(entry.data))


def persisted(state: State, event: Persisted) -> None:
    state.ticket_done = max(state.ticket_done, event.ticket)
    state.log.persisted(event.ticket)
    if state.role is Role.LEADER:
        maybe_commit(state)
        broadcast(state, held=True)
    trim(state)


def trim(state: State) -> None:
    """Whole entries stay in memory until they are durable, handed out and, within a limit, with
    every follower that is not being given a snapshot."""
    log = state.log
    done = min(log.stable, state.applied)
    if log.tail_bytes <= state.options.tail_bytes:
        for progress in state.progress.values():
            if progress.active and progress.match < done:
                done = progress.match
    log.trim(done)


def maybe_commit(state: State) -> None:
    """Commit what a majority holds with its data. An older term's entry counts only below one of
    this term that a majority holds in its log (5.4.2): nobody without it can be elected then, so
    nothing at or below it can be replaced, whoever lacks its data. An entry whose frames are on no
    machine therefore never keeps what lies below it from being committed and applied."""
    log = state.log
    own = state.data_here(log.stable)
    if not state.progress:
        index = own if state.configuration.sole_voter(state.id) else 0
    else:
        marks = {node: p.data for node, p in state.progress.items() if not p.uncertain}
        marks[state.id] = own
        index = state.configuration.majority_mark(marks)
    if index <= state.commit:
        return
    if log.term(index) != state.term and log.term(_held_by_majority(state)) != state.term:
        return
    state.commit = index
    _membership.committed(state)
    if state.role is Role.LEADER:
        _reads.first_commit(state)
        for node, progress in state.progress.items():
            _spread_commit(state, node, progress)


def _held_by_majority(state: State) -> int:
    """The highest index up to which a majority holds the log, with or without its data."""
    marks = {node: p.match for node, p in state.progress.items() if not p.uncertain}
    marks[state.id] = state.log.stable
    return state.configuration.majority_mark(marks)


def _spread_commit(state: State, node: int, progress: Progress) -> None:
    """Under load the commit index rides on the next Append; when there is none to come, it is sent
    on its own."""
    if (
        progress.commit_sent < state.commit
        and not progress.inflight
        and progress.match == state.log.last
    ):
        send_append(state, node, progress, [])


def broadcast(state: State, *, held: bool = False) -> None:
    """`held`: what waits for this leader's own disk goes as well (see HELD_ENTRIES)."""
    for node, progress in state.progress.items():
        send_to(state, node, progress, held=held)


def send_to(state: State, node: int, progress: Progress, *, held: bool = False) -> None:
    """Send what this member lacks, as far as its flow control allows."""
    options, log = state.options, state.log
    while not progress.fetching:
        if progress.state is ProgressState.SNAPSHOT:
            return
        if progress.state is ProgressState.PROBE:
            if progress.paused:
                return
        elif (
            progress.next > log.last
            or len(progress.inflight) >= options.max_inflight_messages
            or progress.inflight_bytes >= options.max_inflight_bytes
            or (not held and _waits_for_own_disk(state, progress))
        ):
            return
        if progress.next <= log.floor:
            _snapshots.begin(state, node, progress)
            return
        entries: list[Entry] = []
        if progress.next <= log.last:
            found = log.slice(progress.next, log.last, options.max_append_bytes)
            if found is None:
                progress.fetching = True
                high = min(log.last, log.tail[0].index - 1 if log.tail else log.last)
                state.out.append(Fetch(node, progress.next, high, options.max_append_bytes))
                return
            entries = found
        send_append(state, node, progress, entries)


def _waits_for_own_disk(state: State, progress: Progress) -> bool:
    return state.ticket_done < state.ticket and state.log.last - progress.next < HELD_ENTRIES


def send_append(state: State, node: int, progress: Progress, entries: list[Entry]) -> None:
    prev = progress.next - 1
    term = state.log.term(prev)
    if term < 0:
        assert prev <= state.log.floor, "a leader knows every term above its floor"
        _snapshots.begin(state, node, progress)
        return
    state.sends.append(
        Append(state.id, node, state.term, prev, term, entries, state.commit, state.round)
    )
    progress.commit_sent = state.commit
    if progress.state is ProgressState.PROBE:
        progress.paused = True
    elif entries:
        size = sum([len(e.data) + e.riding_bytes + ENTRY_OVERHEAD_BYTES for e in entries])
        progress.next = entries[-1].index + 1
        progress.inflight.append((entries[-1].index, size))
        progress.inflight_bytes += size


def fetched(state: State, event: Fetched) -> None:
    if event.hole:
        _election.hole_fetched(state, event)
        return
    progress = state.progress.get(event.peer)
    if progress is None or not progress.fetching:
        return
    progress.fetching = False
    entries = event.entries
    wanted = progress.next
    if not entries:
        _snapshots.begin(state, event.peer, progress)
        return
    # What was read is used only if it still is what this leader's log says.
    if (
        entries[0].index == wanted
        and progress.state is not ProgressState.SNAPSHOT
        and state.log.term(entries[-1].index) == entries[-1].term
        and wanted > state.log.floor
    ):
        send_append(state, event.peer, progress, entries)
    send_to(state, event.peer, progress)


def beat(state: State) -> None:
    """Heartbeats to all; quiesce when all is equal and nothing happened for a while."""
    log, options = state.log, state.options
    level = state.commit == log.last and all(
        p.match == log.last and p.data == log.last and not p.debt for p in state.progress.values()
    )
    calm = level and not state.round_open and not state.transfer_target
    state.idle_ticks = state.idle_ticks + options.heartbeat_ticks if calm else 0
    quiesce = 0 < options.quiesce_ticks <= state.idle_ticks and not state.configuration.joint
    for node, progress in state.progress.items():
        commit = min(progress.match, state.commit)
        state.sends.append(
            Heartbeat(state.id, node, state.term, commit, state.round, quiesce and calm)
        )
        if progress.state is ProgressState.SNAPSHOT:
            _snapshots.nudge(state, node, progress)
    if quiesce:
        state.quiescent = True


def append_response(state: State, message: AppendResponse) -> None:
    progress = state.progress.get(message.sender)
    if state.role is not Role.LEADER or progress is None:
        return
    progress.active = True
    progress.uncertain = message.uncertain
    progress.debt = message.debt
    if message.hole and (message.hole <= progress.match or progress.stalled_ticks > 1):
        _rotted(state, message.sender, progress, message.hole)
    elif message.rejected:
        _rejected(state, message, progress)
    else:
        _accepted(state, message, progress)
    if message.round > progress.round:
        progress.round = message.round
        _reads.confirmed(state)


def _rotted(state: State, node: int, progress: Progress, hole: int) -> None:
    """Rot took back what this member acknowledged: replicate again from there."""
    progress.stalled_ticks = 0
    progress.match = min(progress.match, hole - 1)
    progress.data = min(progress.data, progress.match)
    if progress.state is not ProgressState.SNAPSHOT:
        progress.probe()
        send_to(state, node, progress)


def _rejected(state: State, message: AppendResponse, progress: Progress) -> None:
    if message.hint_term == ONLY_SNAPSHOT:
        if progress.state is not ProgressState.SNAPSHOT:
            _snapshots.begin(state, message.sender, progress)
        return
    if progress.state is ProgressState.REPLICATE:
        if message.rejected_index <= progress.match:
            return  # an old answer
        progress.probe()
    elif progress.state is ProgressState.PROBE:
        if message.rejected_index != progress.next - 1:
            return
        # Skip all terms that cannot agree in one round trip (5.3).
        before = progress.next
        agree, _ = state.log.find_at_most(message.hint_index, message.hint_term)
        at = min(message.rejected_index, agree + 1)
        progress.next = max(at, progress.match + 1)
        if message.hint_index < state.log.floor:
            progress.next = max(message.hint_index, progress.match) + 1
        # (Who refuses what cannot go further back is asked again at the pace of heartbeats.)
        progress.paused = progress.next >= before
        if progress.paused:
            return
    else:
        return
    send_to(state, message.sender, progress)


def _accepted(state: State, message: AppendResponse, progress: Progress) -> None:
    log = state.log
    if message.match > log.last:
        # An answer of this term cannot name what this leader never sent.
        return
    moved = message.match > progress.match
    if moved:
        progress.match = message.match
        progress.stalled_ticks = 0
        if progress.next <= message.match:
            progress.next = message.match + 1
    if message.data > progress.data:
        progress.data = min(message.data, progress.match)
    if progress.state is ProgressState.SNAPSHOT:
        if progress.snapshot_index and progress.match >= progress.snapshot_index:
            progress.probe()
    elif progress.state is ProgressState.PROBE:
        # They agree up to there. (A node with a hole says less than was asked, see `ceiling`.)
        progress.paused = False
        progress.state = ProgressState.REPLICATE
        progress.next = progress.match + 1
    inflight = progress.inflight
    while inflight and inflight[0][0] <= message.match:
        progress.inflight_bytes -= inflight.popleft()[1]
    maybe_commit(state)
    if state.role is not Role.LEADER or message.sender not in state.progress:
        return
    send_to(state, message.sender, progress)
    _spread_commit(state, message.sender, progress)
    _membership.caught_up(state)
    if state.transfer_target == message.sender and progress.match == log.last:
        state.sends.append(TimeoutNow(state.id, message.sender, state.term))


def heartbeat_response(state: State, message: HeartbeatResponse) -> None:
    progress = state.progress.get(message.sender)
    if state.role is not Role.LEADER or progress is None:
        return
    progress.active = True
    progress.uncertain = message.uncertain
    if 0 < message.hole <= progress.match:
        _rotted(state, message.sender, progress, message.hole)
    elif progress.state is ProgressState.PROBE:
        progress.paused = False
        if progress.match < state.log.last:
            send_to(state, message.sender, progress)
        elif progress.debt:
            send_append(state, message.sender, progress, [])
    elif progress.state is ProgressState.REPLICATE and progress.inflight:
        # Perhaps the last Append was lost: an empty one makes the follower say so.
        if progress.stalled_ticks:
            send_append(state, message.sender, progress, [])
        progress.stalled_ticks += 1
    elif progress.state is ProgressState.REPLICATE and (
        progress.data < progress.match or progress.debt
    ):
        # Perhaps what said that nothing is missing any more was lost.
        send_append(state, message.sender, progress, [])
    if message.round > progress.round:
        progress.round = message.round
        _reads.confirmed(state)


# --- the follower's side -------------------------------------------------------------------------


def append(state: State, message: Append) -> None:
    """Terms were compared by the caller: the sender leads this term."""
    follow(state, message.sender)
    if state.retired or (state.incoming is not None and state.incoming.restoring):
        return
    # (One that knows less to be committed could not bring what was applied here: it gets an answer
    # like any leader, so that it can commit more.)
    if state.wants_snapshot and message.commit >= state.applied:
        response = _response(state, message.sender, message.round)
        response.rejected = True
        response.rejected_index = message.prev_index
        response.hint_term = ONLY_SNAPSHOT
        state.gated.append(response)
        return
    log = state.log
    entries, prev, prev_term = message.entries, message.prev_index, message.prev_term
    # Everything up to here is committed and readable, so it is the same on the leader.
    known = min(state.commit, log.ceiling)
    if prev < known:
        skip = min(known - prev, len(entries))
        if skip == len(entries):
            answer(state, message.sender, known, message.round)
            return
        prev_term = entries[skip - 1].term
        prev += skip
        entries = entries[skip:]
    here = log.term(prev)
    if here != prev_term and not (here == UNKNOWN and prev == known):
        hint, hint_term = log.find_at_most(min(prev, log.last), prev_term)
        response = _response(state, message.sender, message.round)
        response.rejected = True
        response.rejected_index = message.prev_index
        response.hint_index, response.hint_term = hint, max(hint_term, 0)
        state.gated.append(response)
        return
    _store(state, entries)
    last = prev + len(entries)
    state.verified = max(state.verified, last)
    commit = min(message.commit, last)
    if commit > state.commit:
        state.commit = commit
        _membership.committed(state)
    answer(state, message.sender, last, message.round)


def _store(state: State, entries: list[Entry]) -> None:
    """Skip what is here, fill what was missing, cut at a conflict, append the rest."""
    log = state.log
    for number, entry in enumerate(entries):
        term = log.term(entry.index)
        if term == entry.term:
            continue
        if term == UNKNOWN:
            fill(state, entry)
            if entry.index < log.last and 0 <= log.term(entry.index + 1) < entry.term:
                _cut(state, entry.index + 1)
            continue
        if term != ABSENT:
            _cut(state, entry.index)
        rest = entries[number:]
        log.append(rest)
        state.unsaved.extend(rest)
        for added in rest:
            if added.kind == CONFIGURATION:
                state.adopt(added.index, Configuration.decode(added.data))
        return


def fill(state: State, entry: Entry) -> None:
    """A lost entry came back."""
    state.log.fill(entry, state.ticket + 1)
    state.fills.append(entry)
    if entry.kind == CONFIGURATION:
        _insert_configuration(state, entry)


def _cut(state: State, index: int) -> None:
    assert index > state.commit, "a committed entry is never replaced"
    state.log.truncate(index, state.ticket + 1)
    state.forget_configurations(index)
    state.unsaved = [entry for entry in state.unsaved if entry.index < index]


def _insert_configuration(state: State, entry: Entry) -> None:
    later = [pair for pair in state.configurations if pair[0] > entry.index]
    earlier = [pair for pair in state.configurations if pair[0] < entry.index]
    state.configurations = [*earlier, (entry.index, Configuration.decode(entry.data)), *later]
    state.configuration = state.configurations[-1][1]


def heartbeat(state: State, message: Heartbeat) -> None:
    follow(state, message.sender)
    commit = min(message.commit, state.match_here())
    if commit > state.commit:
        state.commit = commit
        _membership.committed(state)
    if not state.retired:
        state.gated.append(
            HeartbeatResponse(
                state.id,
                message.sender,
                state.term,
                message.round,
                state.uncertain,
                _hole(state) or (state.applied if state.wants_snapshot else 0),
            )
        )
    if message.quiesce and state.commit == state.log.last:
        state.quiescent = True


def follow(state: State, leader: int) -> None:
    """A message of this term's leader arrived."""
    assert state.role is not Role.LEADER, "two leaders in one term (Election Safety)"
    if state.role is not Role.FOLLOWER or state.leader != leader:
        _election.become_follower(state, state.term, leader)
    state.wake()
    state.election_elapsed = 0


def answer(state: State, leader: int, match: int, round_number: int) -> None:
    """Say what will be durable here once this step's write is; the message waits for it."""
    if state.retired:
        return
    response = _response(state, leader, round_number)
    response.match = min(match, state.log.ceiling)
    response.data = state.data_here(response.match)
    state.gated.append(response)


def _response(state: State, leader: int, round_number: int) -> AppendResponse:
    return AppendResponse(
        state.id,
        leader,
        state.term,
        round=round_number,
        uncertain=state.uncertain,
        debt=state.debt,
        hole=_hole(state),
    )


def _hole(state: State) -> int:
    return state.log.holes[0][0] if state.log.holes else 0


def data_gap(state: State, event: DataGap) -> None:
    """Frames arrived or went missing here; a leader counts its own mark, a follower reports."""
    state.data_gap = event.index
    state.debt = event.debt
    if state.role is Role.LEADER:
        maybe_commit(state)
    elif state.leader:
        answer(state, state.leader, state.verified, 0)
