"""A log that begins where an index that was rebuilt ends: what lies between that and the entries that
are left was lost to rot, and the term of the last applied one with it. The node votes as if it had
lost nothing, does not lead, and is filled, or given a snapshot."""

from __future__ import annotations

from o3storage.raft.core import (
    COMMAND,
    UNKNOWN,
    Append,
    AppendResponse,
    Configuration,
    Core,
    Entry,
    Fetch,
    Fetched,
    HardState,
    Log,
    Persist,
    Persisted,
    Role,
    Send,
    SnapshotNeeded,
    Start,
    Tick,
    VoteRequest,
    VoteResponse,
)

VOTERS = Configuration((1, 2, 3))
APPLIED, LAST, TERM = 5, 12, 3


def core(*, holes: list[tuple[int, int]]) -> Core:
    """Applied up to 5, entries 9 to 12 of term 3 are here, or all from 6 on."""
    found = Core(
        1,
        log=Log(APPLIED, UNKNOWN, [(APPLIED + 1, TERM)], LAST, holes),
        hard_state=HardState(TERM, 0, APPLIED),
        applied=APPLIED,
        configuration=VOTERS,
    )
    found.step(Start())
    return found


def sent(core: Core, message: object) -> object:
    """What it says once everything is durable."""
    outputs = core.step(message)  # type: ignore[arg-type]
    said = [o.message for o in outputs if isinstance(o, Send)]
    for output in outputs:
        if isinstance(output, Persist):
            core.step(Persisted(output.ticket))
    return said[-1] if said else None


def entries(low: int, high: int) -> list[Entry]:
    return [Entry(index, TERM, COMMAND, b"x") for index in range(low, high + 1)]


def test_it_does_not_campaign_and_votes_as_if_nothing_were_lost() -> None:
    lame = core(holes=[(6, 8)])
    for _ in range(100):
        lame.step(Tick(0.5))
    assert lame.role is Role.FOLLOWER
    for last, granted in ((LAST - 1, False), (LAST, True)):
        answer = sent(core(holes=[(6, 8)]), VoteRequest(2, 1, TERM + 1, last, TERM))
        assert isinstance(answer, VoteResponse) and answer.granted is granted


def test_entries_behind_what_is_applied_are_taken_back() -> None:
    lame = core(holes=[(6, 8)])
    probe = sent(lame, Append(2, 1, TERM + 1, LAST, TERM, [], APPLIED))
    assert isinstance(probe, AppendResponse) and not probe.rejected
    assert (probe.match, probe.hole) == (APPLIED, APPLIED + 1)
    answer = sent(lame, Append(2, 1, TERM + 1, APPLIED, TERM, entries(6, 8), APPLIED))
    assert isinstance(answer, AppendResponse) and not answer.rejected
    assert not lame.log.holes and lame.log.ceiling == LAST


def test_before_what_is_applied_the_terms_say_nothing_either() -> None:
    lame = core(holes=[(6, 8)])
    answer = sent(lame, Append(2, 1, TERM + 1, 3, 1, entries(4, 8), APPLIED))
    assert isinstance(answer, AppendResponse) and not answer.rejected and not lame.log.holes


def test_a_conflict_is_answered_by_a_hint_that_can_be_sent() -> None:
    lame = core(holes=[(6, 8)])
    answer = sent(lame, Append(2, 1, TERM + 1, 20, TERM + 1, [], APPLIED))
    assert isinstance(answer, AppendResponse) and answer.rejected
    assert (answer.hint_index, answer.hint_term) == (APPLIED, 0)


def test_once_whole_it_may_lead_and_gives_a_snapshot_to_who_needs_what_it_forgot() -> None:
    whole = core(holes=[])
    for _ in range(40):
        outputs = whole.step(Tick(0.5))
        if whole.role is Role.PRE_CANDIDATE:
            break
    sent(whole, VoteResponse(2, 1, whole.term + 1, True, pre=True))
    sent(whole, VoteResponse(2, 1, whole.term, True))
    assert whole.role is Role.LEADER
    last = whole.log.last
    outputs = whole.step(
        AppendResponse(
            3,
            1,
            whole.term,
            rejected=True,
            rejected_index=last - 1,
            hint_index=APPLIED,
            hint_term=0,
        )
    )
    asked = [o for o in outputs if isinstance(o, Fetch)]
    assert [(o.peer, o.low) for o in asked] == [(3, APPLIED + 1)]
    outputs = whole.step(Fetched(3, entries(APPLIED + 1, LAST)))
    assert [o.peer for o in outputs if isinstance(o, SnapshotNeeded)] == [3]
