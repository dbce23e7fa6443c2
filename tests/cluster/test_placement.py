"""Where replicas go: examples of the rules, and any course of joins, losses and departures."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from o3storage.cluster._moves import Move
from o3storage.cluster._node_records import SHRINK, Announcement, NodeRecord, NodeState
from o3storage.cluster._placement import REPLICAS, Change, next_change, voters_for
from o3storage.raft.core import Configuration


def node(
    number: int, state: NodeState = NodeState.MEMBER, flags: int = 0, host: str = ""
) -> NodeRecord:
    return NodeRecord(number, bytes(32), bytes(32), 0, state, flags, Announcement(host=host))


def ask(
    records: list[NodeRecord], voters: tuple[int, ...], learners: tuple[int, ...] = (), **given: Any
) -> Change | None:
    values: dict[str, Any] = {"leader": voters[0], "caught_up": {}, "replicas": 3, **given}
    return next_change(records, Configuration(voters, (), learners), **values)


def nodes(count: int) -> list[NodeRecord]:
    return [node(number) for number in range(1, count + 1)]


@pytest.mark.parametrize(
    ("count", "replicas", "voters"),
    [(1, 3, 1), (2, 3, 1), (3, 3, 3), (4, 3, 3), (4, 5, 3), (5, 5, 5), (9, 5, 5), (9, 3, 3)],
)
def test_an_odd_number_votes(count: int, replicas: int, voters: int) -> None:
    assert voters_for(count, replicas) == voters


def test_one_node_is_content() -> None:
    assert ask(nodes(1), (1,)) is None


def test_the_second_node_is_a_learner_and_stays_one() -> None:
    assert ask(nodes(2), (1,)) == Change((1,), (2,))
    assert ask(nodes(2), (1,), (2,), caught_up={2: True}) is None


def test_one_grows_to_three_in_one_change_when_both_caught_up() -> None:
    assert ask(nodes(3), (1,), (2,), caught_up={2: True}) == Change((1,), (2, 3))
    assert ask(nodes(3), (1,), (2, 3), caught_up={2: True, 3: False}) is None
    grown = ask(nodes(3), (1,), (2, 3), caught_up={2: True, 3: True})
    assert grown == Change((1, 2, 3), ())


def test_nothing_is_asked_in_a_joint_phase_or_of_a_follower() -> None:
    joint = Configuration((1, 2, 3), (1,))
    up = {2: True, 3: True}
    assert next_change(nodes(3), joint, leader=1, caught_up=up, replicas=3) is None
    plain = Configuration((1,), (), (2, 3))
    assert next_change(nodes(3), plain, leader=2, caught_up=up, replicas=3) is None


def test_the_fourth_and_fifth_node_of_range_0() -> None:
    up = {2: True, 3: True, 4: True, 5: True}
    system = {"replicas": 5, "everywhere": True, "caught_up": up}
    assert ask(nodes(4), (1, 2, 3), (), **system) == Change((1, 2, 3), (4,))
    assert ask(nodes(5), (1, 2, 3), (4,), **system) == Change((1, 2, 3), (4, 5))
    assert ask(nodes(5), (1, 2, 3), (4, 5), **system) == Change((1, 2, 3, 4, 5), ())
    # A key range has its three already.
    assert ask(nodes(5), (1, 2, 3), caught_up=up) is None


def test_a_node_that_leaves_keeps_its_vote_until_another_can_take_it() -> None:
    leaving = [node(1), node(2), node(3, NodeState.LEAVING)]
    up = {2: True, 3: False}
    assert ask(leaving, (1, 2, 3), caught_up=up) is None
    with_four = [*leaving, node(4)]
    assert ask(with_four, (1, 2, 3), caught_up=up) == Change((1, 2, 3), (4,))
    assert ask(with_four, (1, 2, 3), (4,), caught_up={**up, 4: False}) is None
    assert ask(with_four, (1, 2, 3), (4,), caught_up={**up, 4: True}) == Change((1, 2, 4), ())


def test_range_0_goes_back_to_three_voters_when_one_of_five_leaves() -> None:
    records = [*nodes(4), node(5, NodeState.LEAVING)]
    up = {2: True, 3: True, 4: True, 5: False}
    change = ask(records, (1, 2, 3, 4, 5), caught_up=up, replicas=5, everywhere=True)
    assert change is not None and len(change.voters) == 3 and 5 not in change.voters
    assert len(change.learners) == 1 and 5 not in change.learners


def test_shrinking_when_the_operator_said_so_drops_it_at_once() -> None:
    leaving = [node(1), node(2), node(3, NodeState.LEAVING, SHRINK)]
    assert ask(leaving, (1, 2, 3), caught_up={2: True}) == Change((1,), (2,))


def test_a_leader_that_leaves_hands_over_first() -> None:
    records = [node(1, NodeState.DRAINING), node(2), node(3), node(4)]
    up = {2: False, 3: True, 4: True}
    change = ask(records, (1, 2, 3), (4,), caught_up=up)
    assert change is not None and change.transfer_to == 3
    after = ask(records, (1, 2, 3), (4,), caught_up={1: True, 2: False, 4: True}, leader=3)
    # (What the second one lacks may be needed of the first.)
    assert after == Change((2, 3, 4), (1,))
    up = {1: True, 2: True, 4: True}
    assert ask(records, (2, 3, 4), (1,), caught_up=up, leader=3) == Change((2, 3, 4), ())


def test_a_drained_node_stays_a_learner_of_range_0_only() -> None:
    records = [node(1), node(2), node(3), node(4, NodeState.DRAINING)]
    up = {2: True, 3: True, 4: True}
    change = ask(records, (1, 2, 4), (3,), caught_up=up, replicas=5, everywhere=True)
    assert change == Change((1, 2, 3), (4,))
    assert ask(records, (1, 2, 4), (3,), caught_up=up) == Change((1, 2, 3), ())


def test_who_leaves_hears_of_range_0_until_it_holds_nothing_else() -> None:
    """It may lead another range, and only range 0 says that this one is to go to others."""
    records = [node(1), node(2), node(3), node(4, NodeState.LEAVING)]
    up = {2: True, 3: True, 4: True}
    busy = {4: None}
    change = ask(records, (1, 2, 4), (3,), caught_up=up, replicas=5, everywhere=True, busy=busy)
    assert change == Change((1, 2, 3), (4,))
    assert ask(records, (1, 2, 3), (4,), caught_up=up, everywhere=True, busy=busy) is None
    assert ask(records, (1, 2, 3), (4,), caught_up=up, everywhere=True) == Change((1, 2, 3), ())


def test_no_two_on_one_host() -> None:
    records = [node(1), node(2, host="m"), node(3, host="m"), node(4)]
    up = {2: True, 3: True, 4: True}
    change = ask(records, (1,), (2, 3, 4), caught_up=up)
    assert change is not None and len(change.voters) == 3 and not {2, 3} <= set(change.voters)
    # But what votes already goes on voting: fewer copies would be worse.
    assert ask(records[:3], (1, 2, 3), caught_up=up) is None


def test_a_voter_in_doubt_becomes_a_learner_and_votes_again_when_it_has_caught_up() -> None:
    up = {2: True, 3: False}
    assert ask(nodes(3), (1, 2, 3), caught_up=up) is None, "it may be only away"
    aside = ask(nodes(3), (1, 2, 3), caught_up=up, doubted={3: None})
    assert aside == Change((1, 2), (3,)), "both had to agree before it, too"
    assert ask(nodes(3), (1, 2), (3,), caught_up=up) is None
    assert ask(nodes(3), (1, 2), (3,), caught_up={2: True, 3: True}) == Change((1, 2, 3), ())
    # Who can take its place does; what it holds may be needed until all are whole.
    up |= {4: True}
    given = {"caught_up": up, "doubted": {3: None}, "replicas": 3}
    assert ask(nodes(4), (1, 2, 3), (4,), **given) == Change((1, 2, 4), ())


def test_a_doubt_costs_no_voter_that_counts() -> None:
    up = {2: True, 3: True, 4: True}
    system = {"replicas": 5, "everywhere": True, "caught_up": up}
    one = ask(nodes(5), (1, 2, 3, 4, 5), doubted={5: None}, **system)
    assert one == Change((1, 2, 3, 4), (5,))
    assert ask(nodes(5), (1, 2, 3, 4), (5,), **system) is None
    two = ask(nodes(5), (1, 2, 3, 4, 5), doubted={4: None, 5: None}, **system)
    assert two == Change((1, 2, 3), (4, 5))
    # Three in doubt are no minority: no change that the others make is committed.
    three = dict.fromkeys((3, 4, 5))
    assert ask(nodes(5), (1, 2, 3, 4, 5), doubted=three, **system) is None
    # One that leaves meanwhile takes nobody with it.
    leaving = [node(1), node(2), node(3, NodeState.LEAVING)]
    assert ask(leaving, (1, 2), (3,), caught_up={2: True}) == Change((1, 2), ())
    assert ask(nodes(2), (1, 2), caught_up={2: True}) is None
    leaving = [node(1), node(2), node(3, NodeState.LEAVING, SHRINK)]
    assert ask(leaving, (1, 2), (3,), caught_up={2: True}) == Change((1,), (2,))


def test_a_learner_in_doubt_is_told_again_what_it_is() -> None:
    up = {2: False}
    assert ask(nodes(2), (1,), (2,), caught_up=up) is None
    assert ask(nodes(2), (1,), (2,), caught_up=up, doubted={2: None}) == Change((1,), (2,))


def test_a_move_goes_on_though_another_voter_is_in_doubt() -> None:
    """The target votes; the source stays until the others are whole."""
    up = {2: True, 3: False, 4: True}
    given: dict[str, Any] = {"move": Move(4, 2), "caught_up": up}
    assert ask(nodes(5), (1, 2, 3), (4,), doubted={3: None}, **given) == Change((1, 2), (3, 4))
    assert ask(nodes(5), (1, 2), (3, 4), **given) is None
    up[3] = True
    assert ask(nodes(5), (1, 2), (3, 4), **given) == Change((1, 2, 3), ())


class Model:
    """One group over many nodes: applies what is asked for, as the consensus core would."""

    def __init__(self, replicas: int, *, everywhere: bool) -> None:
        self.records: dict[int, NodeRecord] = {1: node(1)}
        self.configuration = Configuration((1,))
        self.leader = 1
        self.dead: dict[int, None] = {}
        self.doubted: dict[int, None] = {}
        self.replicas = replicas
        self.everywhere = everywhere

    def caught_up(self) -> dict[int, bool]:
        members = self.configuration.members()
        absent = {**self.dead, **self.doubted}
        return {n: n not in absent for n in members if n != self.leader}

    def counted(self, voters: tuple[int, ...]) -> list[int]:
        return [n for n in voters if n not in self.dead and n not in self.doubted]

    def quorum(self) -> bool:
        return 2 * len(self.counted(self.configuration.voters)) > len(self.configuration.voters)

    def doubt(self, number: int) -> None:
        """It comes back and cannot tell what it promised; as long as the others can decide (more
        is for the operator)."""
        now = self.configuration.voters
        counted = [n for n in now if n not in self.doubted and n != number]
        if 2 * len(counted) > len(now):
            self.doubted[number] = None

    def step(self) -> bool:
        """One change, if there is one and a majority to make it."""
        if not self.quorum():
            return False
        now = self.configuration
        if self.leader not in self.counted(now.voters):
            self.leader = self.counted(now.voters)[0]
        change = next_change(
            list(self.records.values()),
            now,
            leader=self.leader,
            caught_up=self.caught_up(),
            replicas=self.replicas,
            everywhere=self.everywhere,
            group=7,
            doubted={n: None for n in self.doubted if n not in self.dead},
        )
        if change is None:
            return False
        if change.transfer_to:
            assert change.transfer_to in now.voters and change.transfer_to not in self.dead
            self.leader = change.transfer_to
            return True
        added = set(change.voters) - set(now.voters)
        assert all(n in now.members() and n not in self.dead for n in added), "not caught up"
        even = len(change.voters) % 2 == 0
        in_between = len(now.voters) % 2 == 0 or any(n in self.doubted for n in now.voters)
        assert in_between or not even, "nobody is in doubt"
        assert not set(change.voters) & set(change.learners)
        states = {n: r.state for n, r in self.records.items()}
        assert all(states[n] is NodeState.MEMBER for n in added), "a vote for one that leaves"
        shrink = any(
            r.flags & SHRINK and r.state is not NodeState.MEMBER for r in self.records.values()
        )
        sure = [n for n in now.voters if n not in self.doubted]
        assert shrink or len(change.voters) >= min(len(sure), REPLICAS)
        self.configuration = Configuration(change.voters, (), change.learners)
        for number in list(self.doubted):
            if number not in change.voters and number not in self.dead:
                del self.doubted[number]
        assert shrink or self.quorum(), "who decides can decide afterwards, too"
        return True

    def settle(self) -> None:
        for _ in range(30):
            if not self.step():
                return
        raise AssertionError(f"it never comes to rest: {self.configuration}")


moves = st.lists(
    st.tuples(
        st.sampled_from(
            ["join", "drain", "leave", "shrink", "stay", "die", "live", "doubt", "step"]
        ),
        st.integers(1, 7),
    ),
    max_size=30,
)


@settings(max_examples=400, deadline=None)
@given(moves, st.sampled_from([(3, False), (5, True)]))
def test_any_course_comes_to_rest_where_it_should(
    course: list[tuple[str, int]], kind: tuple[int, bool]
) -> None:
    replicas, everywhere = kind
    model = Model(replicas, everywhere=everywhere)
    states = {"drain": NodeState.DRAINING, "leave": NodeState.LEAVING, "shrink": NodeState.LEAVING}
    for what, number in course:
        if what == "join":
            model.records.setdefault(number, node(number))
        elif what == "die":
            model.dead[number] = None
        elif what == "live":
            model.dead.pop(number, None)
        elif what == "doubt":
            model.doubt(number)
        elif what == "step":
            model.step()
        elif number in model.records:
            stay = [n for n, r in model.records.items() if r.state is NodeState.MEMBER]
            if what == "stay":
                model.records[number] = node(number)
            elif stay != [number]:
                flags = SHRINK if what == "shrink" else 0
                model.records[number] = node(number, states[what], flags)
    model.settle()
    # Everyone lives again: now nothing hinders it.
    model.dead.clear()
    model.settle()
    stay = {n for n, r in model.records.items() if r.state is NodeState.MEMBER}
    voters = set(model.configuration.voters)
    learners = set(model.configuration.learners)
    known = set(model.records)
    assert voters <= known
    if len(stay) >= REPLICAS:
        assert voters <= stay and len(voters) == voters_for(len(stay), replicas)
    assert len(voters) >= voters_for(len(stay), replicas) or not stay
    if everywhere:
        leaving = {n for n, r in model.records.items() if r.state is NodeState.LEAVING}
        assert voters | learners | leaving == known
    else:
        assert len(voters | learners) <= max(replicas, len(voters))
        assert len((voters | learners) & stay) == min(replicas, len(stay)) or not stay
