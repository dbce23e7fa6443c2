"""A test for each section and figure of the Raft paper that the core implements; the name of a test
begins with the section. Members and snapshots: `test_paper_members.py`; clients, reads and what the
dissertation adds: `test_paper_clients.py`."""

from __future__ import annotations

import random

import pytest

from o3storage.raft.core import (
    COMMAND,
    NO_OP,
    Append,
    AppendResponse,
    Entry,
    Heartbeat,
    Options,
    ProgressState,
    Role,
    VoteRequest,
    VoteResponse,
)
from tests.raft.model import (
    Cluster,
    cluster_with_logs,
    commands,
    core_of,
)

# --- paper 5.1: terms


def test_5_1_a_higher_term_makes_anyone_a_follower() -> None:
    cluster = Cluster(3).start()
    leader = cluster.elect(1)
    core = core_of(leader)
    cluster.step(leader, AppendResponse(2, 1, core.term + 5, rejected=True))
    assert core.role is Role.FOLLOWER
    assert core.term == 6


def test_5_1_a_message_of_an_older_term_is_answered_with_the_newer_one() -> None:
    cluster = Cluster(3).start()
    cluster.elect(1)
    cluster.elect(2)
    node = cluster.nodes[3]
    term = core_of(node).term
    cluster.step(node, Append(1, 3, term - 1, 0, 0, [Entry(1, 1, COMMAND, b"old")], 0))
    cluster.flush(node)
    answers = [m for m in cluster.network if isinstance(m, AppendResponse) and m.to == 1]
    assert answers and answers[-1].term == term and answers[-1].rejected
    cluster.settle()
    assert commands(node) == []


# --- paper 5.2: election


def test_5_2_all_start_as_followers_and_one_becomes_leader() -> None:
    cluster = Cluster(5).start()
    assert all(core_of(n).role is Role.FOLLOWER for n in cluster.nodes.values())
    cluster.tick_all(40)
    leading = [n.id for n in cluster.nodes.values() if core_of(n).role is Role.LEADER]
    assert len(leading) == 1
    assert all(core_of(n).leader == leading[0] for n in cluster.nodes.values())


def test_5_2_heartbeats_keep_followers_quiet() -> None:
    cluster = Cluster(3, options=Options(quiesce_ticks=0)).start()
    leader = cluster.elect(2)
    term = core_of(leader).term
    cluster.tick_all(200)
    assert core_of(leader).role is Role.LEADER
    assert core_of(leader).term == term


def test_5_2_each_votes_once_in_a_term_first_come_first_served() -> None:
    cluster = Cluster(3).start()
    node = cluster.nodes[3]
    cluster.step(node, VoteRequest(1, 3, 1, 0, 0))
    cluster.step(node, VoteRequest(2, 3, 1, 0, 0))
    cluster.step(node, VoteRequest(1, 3, 1, 0, 0))
    cluster.flush(node)
    answers = [(m.to, m.granted) for m in cluster.network if isinstance(m, VoteResponse)]
    assert answers == [(1, True), (2, False), (1, True)]


def test_5_2_a_vote_leaves_only_when_it_is_durable_and_survives_a_crash() -> None:
    cluster = Cluster(3).start()
    node = cluster.nodes[3]
    cluster.step(node, VoteRequest(1, 3, 1, 0, 0))
    assert cluster.network == []
    cluster.flush(node)
    assert [m.granted for m in cluster.network if isinstance(m, VoteResponse)] == [True]
    node.crash()
    node.start()
    cluster.network.clear()
    cluster.step(node, VoteRequest(2, 3, 1, 0, 0))
    cluster.flush(node)
    assert [m.granted for m in cluster.network if isinstance(m, VoteResponse)] == [False]


def test_5_2_a_candidate_yields_to_the_leader_of_its_term() -> None:
    cluster = Cluster(3).start()
    node = cluster.nodes[1]
    core = core_of(node)
    cluster.tick(1, 20)
    assert core.role is Role.PRE_CANDIDATE
    cluster.step(node, VoteResponse(2, 1, 1, True, pre=True))
    assert core.role is Role.CANDIDATE
    cluster.step(node, Heartbeat(2, 1, 1, 0))
    assert core.role is Role.FOLLOWER
    assert core.leader == 2


def test_5_2_a_split_vote_is_resolved_by_random_timeouts() -> None:
    cluster = Cluster(4).start()
    for node in cluster.nodes:
        core_of(cluster.nodes[node]).election_elapsed = 19
        core_of(cluster.nodes[node]).timeout = 20
    rng = random.Random(1)
    for _ in range(200):
        for node in cluster.nodes:
            cluster.tick(node, 1, rng.random())
        cluster.settle()
        if cluster.leader():
            break
    assert cluster.leader() is not None


# --- paper 5.3: replication


def test_5_3_an_entry_is_committed_by_a_majority_and_applied_by_all() -> None:
    cluster = Cluster(3).start()
    leader = cluster.elect(1)
    cluster.propose(1, b"a", b"b")
    assert commands(leader) == []
    cluster.settle()
    cluster.tick_all(3)
    assert [commands(n) for n in cluster.nodes.values()] == [[b"a", b"b"]] * 3


def test_5_3_without_a_majority_nothing_is_committed() -> None:
    cluster = Cluster(5).start()
    leader = cluster.elect(1)
    for node in (3, 4, 5):
        cluster.nodes[node].crash()
    cluster.propose(1, b"a")
    cluster.settle()
    assert commands(leader) == []
    cluster.nodes[3].start()
    cluster.tick_all(4)
    assert commands(leader) == [b"a"]


@pytest.mark.parametrize(
    "follower",
    [
        pytest.param([1, 1, 1, 4, 4, 5, 5, 6, 6], id="a: lacks one"),
        pytest.param([1, 1, 1, 4], id="b: lacks many"),
        pytest.param([1, 1, 1, 4, 4, 5, 5, 6, 6, 6, 6], id="c: one too many"),
        pytest.param([1, 1, 1, 4, 4, 5, 5, 6, 6, 6, 7, 7], id="d: of a later term"),
        pytest.param([1, 1, 1, 4, 4, 4, 4], id="e: both"),
        pytest.param([1, 1, 1, 2, 2, 2, 3, 3, 3, 3, 3], id="f: both, of two terms"),
    ],
)
def test_figure_7_every_follower_log_becomes_the_leaders(follower: list[int]) -> None:
    ours = [1, 1, 1, 4, 4, 5, 5, 6, 6, 6]
    cluster = cluster_with_logs({1: ours, 2: follower, 3: ours}, {1: 7, 2: 7, 3: 7})
    cluster.elect(1)
    cluster.settle()
    cluster.tick_all(5)
    first, second = cluster.nodes[1], cluster.nodes[2]
    assert [(e.index, e.term) for _, e in sorted(second.entries.items())] == [
        (e.index, e.term) for _, e in sorted(first.entries.items())
    ]
    assert commands(second) == commands(first)
    assert len(commands(first)) == 10


def test_5_3_a_conflict_is_found_by_term_not_by_entry() -> None:
    """A thousand conflicting entries of one term cost few round trips."""
    cluster = cluster_with_logs(
        {1: [1] + [3] * 1000, 2: [1] + [2] * 1000, 3: [1] + [3] * 1000}, {1: 3, 2: 3, 3: 3}
    )
    cluster.elect(1)
    before = cluster.steps
    cluster.settle()
    assert core_of(cluster.nodes[2]).log.last == 1002
    assert cluster.steps - before < 60


def test_5_3_appends_are_pipelined_and_bounded() -> None:
    options = Options(max_inflight_messages=4, max_append_bytes=200, quiesce_ticks=0)
    cluster = Cluster(3, options=options).start()
    leader = cluster.elect(1)
    cluster.network.clear()
    for number in range(20):
        cluster.propose(1, b"%d" % number * 100)
        cluster.flush(leader)
    to_2 = [m for m in cluster.network if isinstance(m, Append) and m.to == 2]
    assert len(to_2) == 4, "more goes out without an answer, but only so much"
    progress = core_of(leader).progress[2]
    assert progress.state is ProgressState.REPLICATE
    cluster.settle()
    assert commands(cluster.nodes[2]) == commands(leader)


def test_5_3_an_append_may_come_twice_and_late() -> None:
    cluster = Cluster(3).start()
    cluster.elect(1)
    cluster.propose(1, b"a")
    first = next(m for m in cluster.network if isinstance(m, Append) and m.to == 2)
    cluster.settle()
    cluster.propose(1, b"b")
    cluster.settle()
    last = core_of(cluster.nodes[2]).log.last
    cluster.network.append(first)
    cluster.settle()
    assert core_of(cluster.nodes[2]).log.last == last
    assert commands(cluster.nodes[2])[:1] == [b"a"]


def test_5_3_lost_appends_are_noticed_by_the_heartbeats() -> None:
    cluster = Cluster(3, options=Options(quiesce_ticks=0)).start()
    leader = cluster.elect(1)
    cluster.propose(1, b"a")
    cluster.propose(1, b"b")
    cluster.network = [m for m in cluster.network if m.to != 2]
    cluster.settle()
    cluster.tick_all(10)
    assert commands(cluster.nodes[2]) == commands(leader) == [b"a", b"b"]


def test_5_3_leader_sends_before_its_own_disk_is_done_and_counts_itself_after() -> None:
    """Dissertation 10.2.1."""
    cluster = Cluster(3).start()
    leader = cluster.elect(1)
    cluster.propose(1, b"a")
    assert any(isinstance(m, Append) and m.entries for m in cluster.network)
    while cluster.network:
        cluster.deliver()
        for node in (2, 3):
            cluster.flush(cluster.nodes[node])
    assert commands(leader) == [], "committed by the two others, but not durable here"
    assert core_of(leader).commit == core_of(leader).log.last
    cluster.flush(leader)
    assert commands(leader) == [b"a"]


# --- paper 5.4: safety


def test_5_4_1_a_candidate_with_an_older_log_is_refused() -> None:
    cluster = cluster_with_logs({1: [1, 1, 1], 2: [1, 1, 2], 3: [1]}, {1: 2, 2: 2, 3: 2})
    node = cluster.nodes[2]
    for last, last_term, granted in ((3, 1, False), (2, 2, False), (3, 2, True), (1, 3, True)):
        cluster.network.clear()
        core_of(node).vote = 0
        cluster.step(node, VoteRequest(1, 2, core_of(node).term + 1, last, last_term))
        cluster.flush(node)
        answer = [m.granted for m in cluster.network if isinstance(m, VoteResponse)]
        assert answer == [granted], (last, last_term)


def test_figure_8_entries_of_older_terms_are_not_committed_by_counting() -> None:
    """S1 leads term 2, S5 term 3, S1 again term 4 and copies its entry of term 2 to a majority:
    that alone commits nothing, for S5 may still overwrite it."""
    logs = {1: [1, 2], 2: [1, 2], 3: [1], 4: [1], 5: [1, 3]}
    cluster = cluster_with_logs(logs, {1: 3, 2: 2, 3: 3, 4: 3, 5: 3})
    leader = cluster.nodes[1]
    core = core_of(leader)
    core.role = Role.CANDIDATE
    core.term, core.vote, core.votes = 4, 1, {1: True, 2: True, 3: True}
    cluster.step(leader, VoteResponse(3, 1, 4, True))
    assert core.role is Role.LEADER
    # The entry of term 2 reaches S3 (a majority of five), the new one of term 4 nobody.
    cluster.network.clear()
    cluster.flush(leader)
    for follower in (2, 3):
        cluster.step(leader, AppendResponse(follower, 1, 4, match=2, data=2))
    assert core.commit == 0
    # S5 wins with the votes of S3 and S4 and overwrites: no invariant breaks.
    leader.crash()
    cluster.network.clear()
    for node in (3, 4, 5):
        core_of(cluster.nodes[node]).term = 4
    cluster.elect(5)
    cluster.settle()
    assert cluster.nodes[5].entries[2].term == 3


def test_5_4_2_an_entry_of_its_own_term_commits_the_older_ones() -> None:
    cluster = cluster_with_logs({1: [1, 2], 2: [1], 3: [1]}, {1: 2, 2: 2, 3: 2})
    leader = cluster.elect(1)
    assert core_of(leader).commit == 3
    assert leader.entries[3].kind == NO_OP
    assert len(commands(leader)) == 2


# --- paper 5.5, 5.6: crashes and timing


def test_5_5_a_follower_that_was_away_catches_up() -> None:
    cluster = Cluster(3).start()
    leader = cluster.elect(1)
    cluster.nodes[3].crash()
    for number in range(50):
        cluster.propose(1, b"%d" % number)
    cluster.settle()
    cluster.nodes[3].start()
    cluster.tick_all(10)
    assert commands(cluster.nodes[3]) == commands(leader)
    assert len(commands(leader)) == 50


def test_5_6_timeouts_are_spread_by_the_samples_handed_in() -> None:
    options = Options(election_ticks=10)
    timeouts = set()
    for sample in (0.0, 0.25, 0.5, 0.99):
        cluster = Cluster(3, options=options).start()
        cluster.tick(1, 1, sample)
        cluster.step(cluster.nodes[1], Heartbeat(2, 1, 1, 0))
        timeouts.add(core_of(cluster.nodes[1]).timeout)
    assert len(timeouts) == 4
    assert min(timeouts) == 10
    assert max(timeouts) == 19
