"""The sections of the Raft paper and of the dissertation on clients, reads, transfer and pre-vote; the
name of a test begins with the section."""

from __future__ import annotations

from o3storage.raft.core import (
    NO_OP,
    HardState,
    Heartbeat,
    Options,
    Refusal,
    Refused,
    Role,
    TransferLeadership,
    VoteResponse,
)
from tests.raft.model import (
    Cluster,
    cluster_with_logs,
    commands,
    core_of,
)

# --- paper 8, dissertation 6: clients


def test_8_a_leader_commits_a_no_op_at_the_start_of_its_term() -> None:
    cluster = Cluster(3).start()
    leader = cluster.elect(1)
    assert leader.entries[1].kind == NO_OP
    assert core_of(leader).commit == 1


def test_6_2_a_leader_without_a_majority_steps_down() -> None:
    cluster = Cluster(3).start()
    leader = cluster.elect(1)
    cluster.nodes[2].crash()
    cluster.nodes[3].crash()
    cluster.tick(1, 30)
    assert core_of(leader).role is Role.FOLLOWER


def test_6_4_a_read_needs_a_round_and_reads_share_rounds() -> None:
    cluster = Cluster(3).start()
    leader = cluster.elect(1)
    first = cluster.read(1)
    others = [cluster.read(1) for _ in range(10)]
    beats = [m for m in cluster.network if isinstance(m, Heartbeat)]
    assert len(beats) == 1, "one round is under way, with one of two; the ten wait for the next"
    assert leader.ready_reads == []
    before = core_of(leader).round
    cluster.settle()
    assert [token for token, _ in leader.ready_reads] == [first, *others]
    assert core_of(leader).round == before + 1


def test_6_4_a_leader_cut_off_answers_no_read() -> None:
    cluster = Cluster(3).start()
    old = cluster.elect(1)
    cluster.read(1)
    cluster.network.clear()
    core_of(cluster.nodes[2]).election_elapsed = 99
    core_of(cluster.nodes[3]).election_elapsed = 99
    core_of(cluster.nodes[2]).leader = core_of(cluster.nodes[3]).leader = 0
    cluster.tick(2, 1)
    for _ in range(50):
        cluster.network = [m for m in cluster.network if 1 not in (m.to, m.sender)]
        if not cluster.network:
            break
        cluster.deliver()
        for node in (2, 3):
            cluster.flush(cluster.nodes[node])
    assert core_of(cluster.nodes[2]).role is Role.LEADER
    cluster.propose(2, b"new")
    cluster.tick(1, 40)
    cluster.isolate(1)
    assert old.ready_reads == []
    assert old.refused_reads


def test_6_4_a_follower_asks_the_leader_for_its_read_index() -> None:
    cluster = Cluster(3).start()
    cluster.elect(1)
    cluster.propose(1, b"a")
    cluster.settle()
    token = cluster.read(3)
    cluster.settle()
    assert cluster.nodes[3].ready_reads == [(token, 2)]


def test_6_4_a_new_leader_answers_reads_only_after_its_first_commit() -> None:
    cluster = cluster_with_logs({1: [1], 2: [1], 3: [1]})
    node = cluster.nodes[1]
    core = core_of(node)
    core.role, core.term, core.vote, core.votes = Role.CANDIDATE, 2, 1, {1: True}
    cluster.step(node, VoteResponse(2, 1, 2, True))
    assert core.role is Role.LEADER
    token = cluster.read(1)
    assert core.round == 0
    cluster.nodes[2].durable.hard_state = HardState(2, 1, 0)
    cluster.settle()
    assert node.ready_reads == [(token, 2)]


# --- dissertation 3.10: transfer


def test_3_10_leadership_is_handed_over_without_waiting_for_a_timeout() -> None:
    cluster = Cluster(3).start()
    leader = cluster.elect(1)
    cluster.propose(1, b"a")
    cluster.step(leader, TransferLeadership(3))
    refused = cluster.propose(1, b"b")
    assert [o.reason for o in refused if isinstance(o, Refused)] == [Refusal.TRANSFERRING]
    cluster.settle()
    found = cluster.leader()
    assert found is not None and found.id == 3
    assert commands(found) == [b"a"]


def test_3_10_a_transfer_that_does_not_succeed_is_given_up() -> None:
    cluster = Cluster(3, options=Options(quiesce_ticks=0)).start()
    leader = cluster.elect(1)
    cluster.nodes[3].crash()
    cluster.step(leader, TransferLeadership(3))
    cluster.settle()
    cluster.tick_all(12)
    assert core_of(leader).transfer_target == 0
    cluster.propose(1, b"b")
    cluster.settle()
    assert commands(leader) == [b"b"]


# --- dissertation 9.6: pre-vote


def test_9_6_a_node_that_was_cut_off_does_not_raise_the_term() -> None:
    cluster = Cluster(3, options=Options(quiesce_ticks=0)).start()
    leader = cluster.elect(1)
    term = core_of(leader).term
    for _ in range(100):
        cluster.tick(3)
        cluster.network.clear()
    assert core_of(cluster.nodes[3]).term == term
    cluster.tick_all(5)
    assert core_of(leader).role is Role.LEADER
    assert core_of(leader).term == term
    assert core_of(cluster.nodes[3]).leader == 1
