"""The checker must be able to fail: each planted fault is caught within a stated number of seeds.

Run with `-s` for the table of docs/testing.md.
"""

from __future__ import annotations

import dataclasses
import inspect

import pytest

from o3storage.raft.core import Configuration, Log, Persist, Role, Send
from o3storage.raft.core import _election as election
from o3storage.raft.core import _reads as reads
from o3storage.raft.core import _replication as replication
from o3storage.raft.core import _snapshots as snapshots
from o3storage.raft.core._state import State
from tests.raft import test_paper
from tests.raft.model import Durable, Violation
from tests.raft.test_random import heal, run

SEEDS = 100


def caught(
    *, expect: type[Exception] | tuple[type[Exception], ...] = Violation, gaps: bool = False
) -> int:
    """The first seed, from 0 on, whose run breaks an invariant."""
    for seed in range(SEEDS):
        try:
            cluster = run(seed, 2500, gaps=gaps)
            heal(cluster)
        except expect as found:
            fault = inspect.stack()[1].function.removeprefix("test_").replace("_", " ")
            print(
                f"\n| {fault} | {seed} | {str(found).splitlines()[0][:70] if str(found) else ''} |"
            )
            return seed
        except Exception:
            continue  # the fault broke something, but not what this test is about
    raise AssertionError(f"not caught in {SEEDS} seeds")


def test_unpatched_code_has_no_violation() -> None:
    for seed in range(0, SEEDS, 7):
        heal(run(seed, 2500))
        heal(run(seed, 2500, gaps=True))


def test_vote_not_persisted(monkeypatch: pytest.MonkeyPatch) -> None:
    write = Durable.write

    def forgetful(self, persist, cluster):  # type: ignore[no-untyped-def]
        if persist.hard_state is not None:
            state = dataclasses.replace(persist.hard_state, vote=0)
            persist = dataclasses.replace(persist, hard_state=state)
        write(self, persist, cluster)

    monkeypatch.setattr(Durable, "write", forgetful)
    caught()


def test_answers_leave_before_they_are_durable(monkeypatch: pytest.MonkeyPatch) -> None:
    drain = State.drain

    def hasty(self):  # type: ignore[no-untyped-def]
        out = drain(self)
        return [Send(o.message, 0) if isinstance(o, Send) else o for o in out]

    monkeypatch.setattr("o3storage.raft.core._core.Core.drain", hasty)
    caught()


def test_leader_counts_itself_before_it_is_durable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(State, "data_here", lambda self, match: self.log.last)
    caught()


def test_commit_of_an_older_terms_entry(monkeypatch: pytest.MonkeyPatch) -> None:
    def counting(state):  # type: ignore[no-untyped-def]
        marks = {node: p.data for node, p in state.progress.items()}
        marks[state.id] = state.log.stable
        index = state.configuration.majority_mark(marks)
        state.commit = max(state.commit, index)

    monkeypatch.setattr(replication, "maybe_commit", counting)
    with pytest.raises((Violation, AssertionError)):
        test_paper.test_figure_8_entries_of_older_terms_are_not_committed_by_counting()


def test_joint_membership_with_one_majority(monkeypatch: pytest.MonkeyPatch) -> None:
    def only_new(self, marks):  # type: ignore[no-untyped-def]
        reached = sorted((marks.get(v, 0) for v in self.voters), reverse=True)
        return reached[len(self.voters) // 2]

    monkeypatch.setattr(Configuration, "majority_mark", only_new)
    caught()


def test_commit_by_a_minority(monkeypatch: pytest.MonkeyPatch) -> None:
    """One voter short of a majority is enough."""

    def generous(self, marks):  # type: ignore[no-untyped-def]
        def reached(voters):  # type: ignore[no-untyped-def]
            found = sorted((marks.get(v, 0) for v in voters), reverse=True)
            return found[max(0, len(voters) // 2 - 1)]

        return min(reached(side) for side in (self.voters, self.outgoing) if side)

    monkeypatch.setattr(Configuration, "majority_mark", generous)
    caught()


def test_snapshot_without_its_last_index(monkeypatch: pytest.MonkeyPatch) -> None:
    """A snapshot says that it holds one entry more than it does."""

    def off_by_one(state, event):  # type: ignore[no-untyped-def]
        index = min(event.index + 1, state.commit)
        event = dataclasses.replace(event, index=index, index_term=state.log.term(index))
        snapshots.data(state, event)

    from o3storage.raft.core import _core

    monkeypatch.setitem(_core._HANDLERS, type_of("SnapshotData"), off_by_one)
    caught(expect=(Violation, AssertionError))


def test_joint_election_with_one_majority(monkeypatch: pytest.MonkeyPatch) -> None:
    def only_new(self, agree):  # type: ignore[no-untyped-def]
        return 2 * len(set(agree) & set(self.voters)) > len(self.voters)

    monkeypatch.setattr(Configuration, "decided", only_new)
    caught()


def test_vote_without_comparing_logs(monkeypatch: pytest.MonkeyPatch) -> None:
    vote = election.vote_request

    def generous(state, message):  # type: ignore[no-untyped-def]
        vote(state, dataclasses.replace(message, last_term=1 << 60))

    monkeypatch.setitem(_messages(), type_of("VoteRequest"), generous)
    caught()


def test_two_votes_in_one_term(monkeypatch: pytest.MonkeyPatch) -> None:
    vote = election.vote_request

    def fickle(state, message):  # type: ignore[no-untyped-def]
        state.vote = 0
        vote(state, message)

    monkeypatch.setitem(_messages(), type_of("VoteRequest"), fickle)
    caught(expect=(Violation, AssertionError))


def test_read_index_without_a_round(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reads, "confirmed", _release)
    caught()


def _release(state: State) -> None:
    from o3storage.raft.core import ReadReady

    if state.round_open:
        state.round_open = False
        local = [token for node, token in state.round_reads if node == state.id]
        state.round_reads = []
        if local:
            state.out.append(ReadReady(local, state.round_index))


def test_truncation_off_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    cut = replication._cut

    def off_by_one(state, index):  # type: ignore[no-untyped-def]
        cut(state, min(index + 1, state.log.last + 1))

    monkeypatch.setattr(replication, "_cut", off_by_one)
    caught(expect=(Violation, AssertionError))


def test_leading_with_a_hole(monkeypatch: pytest.MonkeyPatch) -> None:
    def bold(self):  # type: ignore[no-untyped-def]
        self.log.holes = []
        return self.configuration.votes(self.id)

    monkeypatch.setattr(State, "may_campaign", bold)
    caught(expect=(Violation, AssertionError, KeyError))


def test_a_write_that_was_overtaken_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    """A truncation does not lower what counts as durable."""
    truncate = Log.truncate

    def sloppy(self, index, next_ticket):  # type: ignore[no-untyped-def]
        stable = self.stable
        truncate(self, index, 0)
        self.stable = stable

    monkeypatch.setattr(Log, "truncate", sloppy)
    caught(expect=(Violation, AssertionError))


def test_a_learner_is_promoted_with_repair_debt(monkeypatch: pytest.MonkeyPatch) -> None:
    hear = replication.append_response

    def forgiving(state, message):  # type: ignore[no-untyped-def]
        hear(state, dataclasses.replace(message, debt=0))

    monkeypatch.setitem(_messages(), type_of("AppendResponse"), forgiving)
    caught(gaps=True)


def test_applied_twice_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    drain = State.drain

    def repeating(self):  # type: ignore[no-untyped-def]
        out = drain(self)
        if any(isinstance(o, Persist) for o in out) and self.applied > 3:
            self.applied -= 1
        return out

    monkeypatch.setattr("o3storage.raft.core._core.Core.drain", repeating)
    caught()


def _messages() -> dict:  # type: ignore[type-arg]
    from o3storage.raft.core import _core

    return _core._MESSAGES


def type_of(name: str) -> type:
    from o3storage.raft import core

    return getattr(core, name)


def test_role_names_stay() -> None:
    assert {role.value for role in Role} == {"follower", "pre-candidate", "candidate", "leader"}
