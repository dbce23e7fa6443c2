"""Reads of followers and of leaders: whose word counts, who is asked (dissertation 6.4)."""

from __future__ import annotations

from o3storage.raft.core import Heartbeat, Options, PeerLost, ReadResponse, Role
from tests.raft.model import Cluster, core_of


def test_a_followers_question_is_its_word_that_the_leader_leads() -> None:
    """Where the two are a majority no round is needed; nothing else is said to anybody."""
    cluster = Cluster(3).start()
    leader = cluster.elect(1)
    before = core_of(leader).round
    token = cluster.read(3)
    cluster.deliver()
    assert [type(m) for m in cluster.network] == [ReadResponse]
    cluster.deliver()
    assert cluster.nodes[3].ready_reads == [(token, 1)]
    assert core_of(leader).round == before


def test_of_five_a_followers_question_needs_a_round() -> None:
    cluster = Cluster(5).start()
    leader = cluster.elect(1)
    token = cluster.read(3)
    cluster.deliver()
    asked = [m.to for m in cluster.network if isinstance(m, Heartbeat)]
    assert len(asked) == 2, "with the leader they are a majority"
    assert core_of(leader).round == 1
    cluster.settle()
    assert cluster.nodes[3].ready_reads == [(token, 1)]


def test_of_five_two_that_are_cut_off_answer_no_read() -> None:
    cluster = Cluster(5).start()
    cluster.elect(1)
    token = cluster.read(2)
    held, cluster.network = cluster.network, []
    for node in (3, 4, 5):
        core_of(cluster.nodes[node]).leader = 0
        core_of(cluster.nodes[node]).election_elapsed = 99
    cluster.tick(3, 1)
    for _ in range(100):
        cluster.isolate(1, 2)
        for node in (3, 4, 5):
            cluster.flush(cluster.nodes[node])
        cluster.isolate(1, 2)
        if not cluster.network:
            break
        cluster.deliver()
    assert core_of(cluster.nodes[3]).role is Role.LEADER
    cluster.propose(3, b"new")
    for _ in range(100):
        for node in (3, 4, 5):
            cluster.flush(cluster.nodes[node])
        cluster.isolate(1, 2)
        if not cluster.network:
            break
        cluster.deliver()
    assert core_of(cluster.nodes[3]).commit > core_of(cluster.nodes[1]).commit
    late = cluster.read(2)
    cluster.network = [*held, *cluster.network]
    while cluster.network:
        cluster.deliver()
        cluster.isolate(1, 2)
    assert not cluster.nodes[2].ready_reads, (token, late)


def test_the_word_of_a_node_that_may_have_forgotten_its_vote_does_not_count() -> None:
    cluster = Cluster(3).start()
    leader = cluster.elect(1)
    core_of(cluster.nodes[3]).uncertain = True
    cluster.read(3)
    cluster.deliver()
    assert core_of(leader).round_open
    assert not [m for m in cluster.network if isinstance(m, ReadResponse)]


def test_a_question_of_a_follower_that_knows_of_a_later_term_is_not_answered() -> None:
    """A follower that has heard of a later term does not ask the old leader, nor count for it."""
    cluster = Cluster(3).start()
    cluster.elect(1)
    core = core_of(cluster.nodes[3])
    core.term += 1
    token = cluster.read(3)
    cluster.settle()
    assert all(ready != token for ready, _ in cluster.nodes[3].ready_reads)


def test_a_round_asks_who_answered_last_and_all_when_a_beat_is_due() -> None:
    cluster = Cluster(3, options=Options(quiesce_ticks=0)).start()
    leader = cluster.elect(1)
    core_of(leader).progress[3].round = 7
    core_of(leader).round = 7
    token = cluster.read(1)
    assert [m.to for m in cluster.network] == [3]
    cluster.network.clear()
    cluster.tick(1, 2)
    cluster.network = [m for m in cluster.network if m.to == 2]
    cluster.settle()
    assert leader.ready_reads == [(token, 1)]
    cluster.read(1)
    assert [m.to for m in cluster.network] == [2], "it answered the last round"


def test_when_the_one_that_was_asked_is_lost_the_others_are_asked() -> None:
    cluster = Cluster(3).start()
    leader = cluster.elect(1)
    token = cluster.read(1)
    [asked] = [m.to for m in cluster.network]
    cluster.nodes[asked].crash()
    cluster.network.clear()
    cluster.step(leader, PeerLost(asked))
    cluster.settle()
    assert leader.ready_reads == [(token, 1)]


def quiet() -> Cluster:
    """A group of three that has gone quiescent."""
    cluster = Cluster(3, options=Options(quiesce_ticks=6)).start()
    cluster.elect(1)
    cluster.tick_all(40)
    cluster.settle()
    assert all(core_of(node).quiescent for node in cluster.nodes.values())
    return cluster


def test_a_read_leaves_a_quiescent_group_quiescent() -> None:
    cluster = quiet()
    for node in (1, 2, 3):
        token = cluster.read(node)
        cluster.settle()
        assert cluster.nodes[node].ready_reads == [(token, 1)]
    assert all(core_of(node).quiescent for node in cluster.nodes.values())
    cluster.tick_all(30)
    assert cluster.network == []


def test_in_a_quiescent_group_a_second_question_wakes_the_leader_when_nobody_answers() -> None:
    cluster = quiet()
    first = cluster.read(1)
    asked = cluster.network.pop().to
    other = 5 - asked
    again = cluster.read(1)
    assert not core_of(cluster.nodes[1]).quiescent
    cluster.tick(1, 2)
    cluster.network = [m for m in cluster.network if asked not in (m.to, m.sender)]
    for _ in range(20):
        if not cluster.network:
            break
        cluster.deliver()
        cluster.flush(cluster.nodes[other])
        cluster.network = [m for m in cluster.network if asked not in (m.to, m.sender)]
    ready = [token for token, _ in cluster.nodes[1].ready_reads]
    assert ready == [first, again]
