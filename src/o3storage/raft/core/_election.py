"""Leader election (paper 5.2, 5.4.1), pre-vote and check-quorum (dissertation 9.6, 6.2), and
leadership transfer (3.10)."""

from __future__ import annotations

from o3storage.raft.core import _membership, _reads, _replication
from o3storage.raft.core._state import Progress, State
from o3storage.raft.core._types import (
    NO_OP,
    NOBODY,
    DropMissing,
    Fetch,
    Fetched,
    HoleAnswer,
    HoleQuery,
    Refusal,
    Refused,
    Role,
    Start,
    Tick,
    TimeoutNow,
    TransferLeadership,
    VoteRequest,
    VoteResponse,
)


def start(state: State, _: Start) -> None:
    if state.sole and not state.retired and not state.log.holes:
        # Nobody else can have voted in a later term, whatever this disk has lost.
        state.uncertain = False
        campaign(state, pre=False)


def tick(state: State, event: Tick) -> None:
    state.sample = event.sample
    if state.quiescent or state.retired:
        return
    state.election_elapsed += 1
    if state.role is not Role.LEADER:
        if state.election_elapsed >= state.timeout:
            state.reset_timer()
            if state.incoming is not None and not state.incoming.restoring:
                state.incoming = None
            if state.may_campaign():
                campaign(state, pre=True)
            elif state.configuration.votes(state.id) and not state.sole:
                # (What a sole voter lost is for `verify --repair` and its operator to decide.)
                if state.log.holes:
                    ask_for_missing(state)
                if state.leader == NOBODY:
                    ask_who_leads(state)
        return
    if state.election_elapsed >= state.options.election_ticks:
        state.election_elapsed = 0
        check_quorum(state)
        if state.role is not Role.LEADER:
            return
    if state.transfer_target:
        state.transfer_elapsed += 1
        if state.transfer_elapsed >= state.options.election_ticks:
            state.transfer_target = NOBODY
    if state.ticket_done < state.ticket:
        _replication.broadcast(state, held=True)
    state.heartbeat_elapsed += 1
    if state.heartbeat_elapsed >= state.options.heartbeat_ticks:
        state.heartbeat_elapsed = 0
        _replication.beat(state)


def check_quorum(state: State) -> None:
    """A leader that a majority no longer hears steps down, so that its clients look elsewhere."""
    active = [node for node, progress in state.progress.items() if progress.active]
    if not state.configuration.decided([state.id, *active]):
        become_follower(state, state.term, NOBODY)
        return
    for progress in state.progress.values():
        progress.active = False


def campaign(state: State, *, pre: bool, transfer: bool = False) -> None:
    if pre and state.sole:
        pre = False
    state.votes = {state.id: True}
    if pre:
        state.set_role(Role.PRE_CANDIDATE, NOBODY)
        term = state.term + 1
    else:
        state.term += 1
        state.vote = state.id
        state.set_role(Role.CANDIDATE, NOBODY)
        term = state.term
    state.reset_timer()
    if state.configuration.decided([state.id]):
        # The vote for oneself becomes durable with the first entry of the term, in one write;
        # nothing leaves this node and nothing commits before that.
        become_leader(state)
        return
    last, last_term = state.log.last, state.log.last_term
    for node in sorted({*state.configuration.voters, *state.configuration.outgoing}):
        if node != state.id:
            request = VoteRequest(state.id, node, term, last, last_term, pre, transfer)
            (state.sends if pre else state.gated).append(request)


def become_follower(state: State, term: int, leader: int) -> None:
    assert term >= state.term
    was_leader = state.role is Role.LEADER
    if was_leader or leader != state.leader or term > state.term:
        _reads.refuse_all(state)
        state.verified = 0
    if term > state.term:
        state.term = term
        state.vote = NOBODY
    state.votes = {}
    state.wake()
    state.reset_timer()
    if was_leader:
        state.progress = {}
        state.transfer_target = NOBODY
        _membership.abandon(state)
    if state.incoming is not None and not state.incoming.restoring:
        state.incoming = None
    state.set_role(Role.FOLLOWER, leader)


def become_leader(state: State) -> None:
    assert state.may_campaign(), "a node with holes or without certainty never leads"
    log = state.log
    state.progress = {
        node: Progress(next=log.last + 1)
        for node in state.configuration.members()
        if node != state.id
    }
    state.election_elapsed = 0
    state.heartbeat_elapsed = 0
    state.term_start = log.last + 1
    state.round_open = False
    state.set_role(Role.LEADER, state.id)
    # An entry of its own term is what lets a leader learn what is committed (5.4.2, 8).
    _replication.add_entries(state, NO_OP, [b""])
    _replication.broadcast(state)


def vote_request(state: State, message: VoteRequest) -> None:
    """Terms were compared by the caller: message.term >= state.term (or pre)."""
    newer = message.pre and message.term > state.term
    free = (
        state.vote == message.sender or (state.vote == NOBODY and state.leader == NOBODY) or newer
    )
    log = state.log
    up_to_date = (message.last_term, message.last_index) >= (log.last_term, log.last)
    # A replica without state (no configuration yet) votes only where that is because it never took
    # part; nor does an uncertain one vote: it may have promised what it cannot remember.
    known = bool(state.configuration.voters) or state.newcomer
    able = known and not state.uncertain and not state.retired
    granted = free and up_to_date and able
    if granted and not message.pre:
        state.vote = message.sender
        state.reset_timer()
    term = message.term if granted else state.term
    state.gated.append(VoteResponse(state.id, message.sender, term, granted, message.pre))


def vote_response(state: State, message: VoteResponse) -> None:
    wanted = Role.PRE_CANDIDATE if message.pre else Role.CANDIDATE
    if state.role is not wanted or message.term != state.term + (
        1 if message.pre and message.granted else 0
    ):
        return
    state.votes[message.sender] = message.granted
    agree = [node for node, granted in state.votes.items() if granted]
    if state.configuration.decided(agree):
        if not state.may_campaign():
            become_follower(state, state.term, NOBODY)
        elif message.pre:
            campaign(state, pre=False)
        else:
            become_leader(state)
    elif state.configuration.lost([n for n, granted in state.votes.items() if not granted]):
        become_follower(state, state.term, NOBODY)


def heard_from_leader_lately(state: State) -> bool:
    """Then a vote request is ignored (6.2 of the paper: a removed server must not disturb)."""
    return state.leader != NOBODY and (
        state.quiescent or state.election_elapsed < state.options.election_ticks
    )


def transfer(state: State, event: TransferLeadership) -> None:
    target = state.progress.get(event.target)
    if state.role is not Role.LEADER or target is None:
        return
    if not state.configuration.votes(event.target) or target.uncertain:
        return
    state.wake()
    state.transfer_target = event.target
    state.transfer_elapsed = 0
    if target.match == state.log.last:
        state.sends.append(TimeoutNow(state.id, event.target, state.term))
    else:
        _replication.send_to(state, event.target, target)


def timeout_now(state: State, message: TimeoutNow) -> None:
    if message.sender == state.leader and state.may_campaign():
        state.wake()
        campaign(state, pre=False, transfer=True)


def ask_who_leads(state: State) -> None:
    """A quiescent group takes notice of who hears no leader by its pre-vote request. Who may not
    campaign sends one all the same, and takes no answer for a vote."""
    last, last_term = state.log.last, state.log.last_term
    for node in sorted({*state.configuration.voters, *state.configuration.outgoing}):
        if node != state.id:
            term = state.term + 1
            state.sends.append(VoteRequest(state.id, node, term, last, last_term, pre=True))


def ask_for_missing(state: State) -> None:
    """Every other voter is asked: for the lost entries themselves, so that the node with the
    longest log can lead again, and whether anyone holds them, so that a tail which nobody holds
    cannot block for ever."""
    state.hole_answers = {state.id: False}
    low, high = state.log.holes[0]
    for node in sorted({*state.configuration.voters, *state.configuration.outgoing}):
        if node != state.id:
            state.gated.append(HoleQuery(state.id, node, state.term, low, high))


def hole_query(state: State, message: HoleQuery) -> None:
    # Uncertain nodes cannot say; they stay silent and so the asker waits.
    if state.uncertain or state.retired or not state.configuration.voters:
        return
    log, low = state.log, message.low
    if low <= log.floor or (low <= log.last and not log.missing(low)):
        if low > log.floor:
            high = next((at - 1 for at, _ in log.holes if at > low), log.last)
            high = min(high, message.high + 1)
            state.out.append(
                Fetch(message.sender, low, high, state.options.max_append_bytes, hole=low)
            )
        else:
            state.gated.append(HoleAnswer(state.id, message.sender, state.term, low, True))
    else:
        state.gated.append(HoleAnswer(state.id, message.sender, state.term, low, False))


def hole_fetched(state: State, event: Fetched) -> None:
    answer = HoleAnswer(state.id, event.peer, state.term, event.hole, True, event.entries)
    state.gated.append(answer)


def hole_answer(state: State, message: HoleAnswer) -> None:
    log = state.log
    if not log.holes or message.low != log.holes[0][0] or not state.hole_answers:
        return
    low, high = log.holes[0]
    entries = message.entries
    term = log.hole_term(low, high)
    if entries and entries[0].index != low:
        return
    # What another node holds is what was lost here if an entry right above the hole is the same
    # on both (Log Matching), or if the term of the lost ones is certain.
    above = high + 1 - low
    same = len(entries) > above and entries[above].term == log.term(high + 1)
    # Another entry at that place, as a deposed leader's tail has, is not the lost one. (The term
    # of a missing last entry may be a guess.)
    other = bool(entries) and high < log.last and term >= 0 and entries[0].term != term
    state.hole_answers[message.sender] = message.holds and not other
    if not message.holds or other:
        drop_missing(state, low)
        return
    for entry in entries[:above]:
        if not same and entry.term != term:
            break
        _replication.fill(state, entry)


def drop_missing(state: State, low: int) -> None:
    """Entries are dropped only when every voter answered and none holds them (FAST'18)."""
    voters = {*state.configuration.voters, *state.configuration.outgoing}
    answers = state.hole_answers
    known_lost = voters <= answers.keys() and not any(answers[node] for node in voters)
    if known_lost and low > state.commit and state.role is not Role.LEADER:
        state.hole_answers = {}
        state.log.truncate(low, state.ticket + 1)
        state.forget_configurations(low)
        state.out.append(DropMissing(low))


def refuse_proposal(state: State, token: int) -> bool:
    """True when a proposal was refused here."""
    if state.role is not Role.LEADER or state.retired:
        state.out.append(Refused(token, Refusal.NOT_LEADER, state.leader))
        return True
    if state.transfer_target:
        state.out.append(Refused(token, Refusal.TRANSFERRING, state.leader))
        return True
    return False
