"""The sections of the Raft paper and of the dissertation on members and snapshots; the name of a test
begins with the section."""

from __future__ import annotations

import pytest

from o3storage.raft.core import (
    COMMAND,
    CONFIGURATION,
    Append,
    AppendResponse,
    Apply,
    Configuration,
    Core,
    DataGap,
    Entry,
    HardState,
    Log,
    Options,
    PeerLost,
    Persisted,
    PieceStored,
    ProgressState,
    Refusal,
    Role,
    Send,
    SnapshotPiece,
    Start,
    StorePiece,
    VoteRequest,
)
from tests.raft.model import (
    Cluster,
    change,
    commands,
    core_of,
)

# --- paper 6, dissertation 4: members


def test_6_one_voter_grows_to_three_in_one_joint_change() -> None:
    cluster = Cluster(1, extra=2).start()
    cluster.settle()
    cluster.propose(1, b"a")
    cluster.settle()
    change(cluster, 1, (1, 2, 3))
    cluster.tick_all(20)
    for node in cluster.nodes.values():
        assert core_of(node).configuration == Configuration((1, 2, 3))
        assert commands(node) == [b"a"]
    kinds = [e.kind for _, e in sorted(cluster.nodes[1].entries.items())]
    assert kinds.count(CONFIGURATION) == 3, "learners first, then joint, then new"


def test_figure_11_while_joint_both_majorities_are_needed() -> None:
    cluster = Cluster(3, extra=2, options=Options(quiesce_ticks=0)).start()
    leader = cluster.elect(1)
    change(cluster, 1, (1, 2, 3), (4, 5))
    cluster.tick_all(10)
    core = core_of(leader)
    change(cluster, 1, (1, 4, 5))
    assert core.configuration.joint
    joint = core.log.last
    # 4 and 5 hold it: a majority of the new voters only.
    cluster.network = [m for m in cluster.network if m.to in (4, 5)]
    while cluster.network:
        message = cluster.network.pop(0)
        if message.to in (1, 4, 5):
            cluster.step(cluster.nodes[message.to], message)
        for node in cluster.nodes.values():
            cluster.flush(node)
    assert core.commit < joint
    cluster.tick_all(10)
    assert core.configuration == Configuration((1, 4, 5))
    assert core.commit >= joint + 1


def test_6_a_configuration_is_used_from_the_log_and_falls_back_when_cut() -> None:
    cluster = Cluster(3, extra=1, options=Options(quiesce_ticks=0)).start()
    cluster.elect(1)
    cluster.tick_all(3)
    before = core_of(cluster.nodes[1]).configuration
    change(cluster, 1, (1, 2, 3), (4,))
    cluster.network.clear()
    cluster.flush(cluster.nodes[1])
    assert core_of(cluster.nodes[1]).configuration.learners == (4,)
    cluster.nodes[1].crash()
    cluster.elect(2)
    cluster.propose(2, b"x")
    cluster.settle()
    cluster.nodes[1].start()
    assert core_of(cluster.nodes[1]).configuration.learners == (4,)
    cluster.tick_all(10)
    assert core_of(cluster.nodes[1]).configuration == before


def test_6_a_leader_that_is_removed_steps_down_when_it_is_committed() -> None:
    cluster = Cluster(3, options=Options(quiesce_ticks=0)).start()
    leader = cluster.elect(1)
    change(cluster, 1, (2, 3))
    cluster.settle()
    assert core_of(leader).role is Role.FOLLOWER
    assert not core_of(leader).may_campaign()
    cluster.tick_all(40)
    found = cluster.leader()
    assert found is not None and found.id in (2, 3)
    assert core_of(found).configuration == Configuration((2, 3))


def test_6_a_removed_server_does_not_disturb() -> None:
    cluster = Cluster(3, options=Options(quiesce_ticks=0)).start()
    leader = cluster.elect(1)
    term = core_of(leader).term
    cluster.step(cluster.nodes[2], VoteRequest(3, 2, term + 1, 99, term))
    assert core_of(cluster.nodes[2]).term == term, "it hears a leader, so it does not listen"


def test_4_2_1_a_learner_is_promoted_only_when_caught_up_and_without_debt() -> None:
    options = Options(caught_up_entries=5, quiesce_ticks=0)
    cluster = Cluster(1, extra=1, options=options).start()
    cluster.settle()
    for number in range(100):
        cluster.propose(1, b"%d" % number)
    cluster.settle()
    change(cluster, 1, (1, 2))
    core = core_of(cluster.nodes[1])
    assert core.configuration == Configuration((1,), (), (2,))
    assert core.change_wanted is not None
    cluster.step(cluster.nodes[2], DataGap(0, debt=3))
    cluster.tick_all(5)
    assert core.configuration.voters == (1,), "it owes frames of committed entries"
    cluster.step(cluster.nodes[2], DataGap(0, debt=0))
    cluster.tick_all(5)
    assert core.configuration == Configuration((1, 2))


@pytest.mark.parametrize("probed", [False, True])
def test_4_2_1_a_learner_whose_word_that_it_owes_nothing_was_lost_is_promoted(probed: bool) -> None:
    """Nothing else is proposed: heartbeats alone do not say it."""
    cluster = Cluster(1, extra=1, options=Options(quiesce_ticks=0)).start()
    cluster.settle()
    change(cluster, 1, (1, 2))
    learner = cluster.nodes[2]
    cluster.step(learner, DataGap(0, debt=3))
    cluster.tick_all(5)
    core = core_of(cluster.nodes[1])
    assert core.progress[2].debt == 3
    cluster.step(learner, DataGap(0, debt=0))
    while learner.writes:
        cluster.write(learner)
    assert cluster.network
    cluster.network.clear()
    if probed:
        cluster.step(cluster.nodes[1], PeerLost(2))
    assert (core.progress[2].state is ProgressState.PROBE) == probed
    cluster.tick_all(5)
    assert core.configuration == Configuration((1, 2))


def test_4_one_change_at_a_time() -> None:
    cluster = Cluster(3, extra=1, options=Options(quiesce_ticks=0)).start()
    cluster.elect(1)
    change(cluster, 1, (1, 2))
    change(cluster, 1, (1, 3))
    assert cluster.nodes[1].refused[-1].reason is Refusal.CHANGE_PENDING
    cluster.tick_all(5)
    change(cluster, 1, ())
    assert cluster.nodes[1].refused[-1].reason is Refusal.BAD_CHANGE
    change(cluster, 1, tuple(range(1, 9)))
    assert cluster.nodes[1].refused[-1].reason is Refusal.BAD_CHANGE


# --- paper 7: snapshots


def test_figure_12_a_follower_far_behind_gets_the_state_in_pieces() -> None:
    cluster = Cluster(3, options=Options(quiesce_ticks=0)).start()
    leader = cluster.elect(1)
    cluster.nodes[3].crash()
    for number in range(40):
        cluster.propose(1, b"%d" % number)
    cluster.settle()
    cluster.compact(1)
    assert core_of(leader).log.floor > 40
    cluster.nodes[3].start()
    cluster.tick_all(20)
    third = core_of(cluster.nodes[3])
    assert commands(cluster.nodes[3]) == commands(leader)
    assert third.log.floor == core_of(leader).log.floor
    cluster.propose(1, b"more")
    cluster.tick_all(3)
    assert commands(cluster.nodes[3])[-1] == b"more"


def test_7_a_lost_piece_is_sent_again() -> None:
    cluster = Cluster(3, options=Options(quiesce_ticks=0)).start()
    leader = cluster.elect(1)
    cluster.nodes[3].crash()
    for number in range(40):
        cluster.propose(1, b"%d" % number)
    cluster.settle()
    cluster.compact(1)
    cluster.nodes[3].start()
    dropped = 0
    for _ in range(120):
        for node in cluster.nodes:
            cluster.tick(node, 1, 0.3)
        for _ in range(200):
            if not cluster.network and not any(n.writes for n in cluster.nodes.values()):
                break
            for message in [m for m in cluster.network if isinstance(m, SnapshotPiece)]:
                if dropped < 2:
                    cluster.network.remove(message)
                    dropped += 1
            if cluster.network:
                cluster.deliver()
            for node in cluster.nodes.values():
                cluster.flush(node)
    assert dropped == 2
    assert commands(cluster.nodes[3]) == commands(leader)


def test_7_a_snapshot_that_is_begun_anew_may_have_more_pieces() -> None:
    """All of the first one is lost; meanwhile the state has grown."""
    cluster = Cluster(3, options=Options(quiesce_ticks=0)).start()
    cluster.nodes[3].crash()
    leader = cluster.elect(1)
    cluster.settle()
    cluster.compact(1)
    cluster.nodes[3].start()
    lost: list[SnapshotPiece] = []
    for round_number in range(120):
        for node in cluster.nodes:
            cluster.tick(node, 1, 0.3)
        if any(piece.last for piece in lost) and len(commands(leader)) < 20:
            cluster.propose(1, b"%d" % round_number)
        for _ in range(200):
            if not cluster.network and not any(n.writes for n in cluster.nodes.values()):
                break
            if len(commands(leader)) < 20:
                pieces = [m for m in cluster.network if isinstance(m, SnapshotPiece)]
                lost += pieces
                for message in pieces:
                    cluster.network.remove(message)
            if cluster.network:
                cluster.deliver()
            for node in cluster.nodes.values():
                cluster.flush(node)
    assert any(piece.last and piece.number == 1 for piece in lost)
    assert len(commands(leader)) == 20
    assert commands(cluster.nodes[3]) == commands(leader)


def test_7_a_follower_that_holds_the_log_keeps_it() -> None:
    cluster = Cluster(3).start()
    leader = cluster.elect(1)
    cluster.propose(1, b"a")
    cluster.settle()
    node = cluster.nodes[2]
    last = core_of(node).log.last
    piece = SnapshotPiece(
        1, 2, core_of(leader).term, 1, 1, core_of(node).configuration, 0, b"{}", True
    )
    cluster.step(node, piece)
    assert core_of(node).log.last == last
    assert core_of(node).incoming is None


def test_7_a_snapshot_that_entries_overtake_while_it_is_stored_is_not_restored() -> None:
    """What is applied above it would be undone, and done twice."""
    members = Configuration((1, 2, 3))
    core = Core(1, log=Log(), hard_state=HardState(1), applied=0, configuration=members)
    core.step(Start())
    outputs = core.step(SnapshotPiece(2, 1, 1, 5, 1, members, 0, b"rows", True))
    (store,) = [o for o in outputs if isinstance(o, StorePiece)]
    entries = [Entry(index, 1, COMMAND, b"x") for index in range(1, 7)]
    core.step(Append(2, 1, 1, 0, 0, entries, 6))
    outputs = core.step(Persisted(core.ticket))
    assert [(o.low, o.high) for o in outputs if isinstance(o, Apply)] == [(1, 6)]
    (sent,) = core.step(PieceStored(store.session, 0))
    assert core.incoming is None and core.applied == 6
    assert isinstance(sent, Send) and isinstance(sent.message, AppendResponse)
    assert sent.message.match == 6
