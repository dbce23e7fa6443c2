"""A running member that finds rows lost: its log votes, it applies nothing and does not lead, until
it has a snapshot. (Not of the paper, where a disk keeps what it was given.)"""

from __future__ import annotations

import pytest

from o3storage.raft.core import (
    Apply,
    Configuration,
    Core,
    HardState,
    Log,
    Options,
    PieceStored,
    Restore,
    Restored,
    Role,
    RowsLost,
    SnapshotPiece,
    Start,
    StorePiece,
    TransferLeadership,
)
from tests.raft.model import Cluster, Node, commands, core_of


def lose(cluster: Cluster, node: Node) -> None:
    for index in list(node.state):
        node.state[index] = b"wrong"
    cluster.step(node, RowsLost())


@pytest.mark.parametrize("quiet", [False, True], ids=["at work", "an idle group"])
def test_a_follower_gets_a_snapshot_of_all_that_it_had_applied(*, quiet: bool) -> None:
    cluster = Cluster(3, options=Options(quiesce_ticks=10 if quiet else 0)).start()
    leader = cluster.elect(1)
    cluster.propose(1, b"a", b"b")
    cluster.settle()
    if quiet:
        cluster.tick_all(40)
        assert core_of(leader).quiescent
    third = cluster.nodes[3]
    lose(cluster, third)
    if not quiet:
        # Nothing is applied onto what is not right.
        cluster.propose(1, b"c")
        cluster.settle()
        assert b"wrong" not in commands(third)
    cluster.tick_all(60)
    assert commands(third) == commands(leader)
    assert not core_of(third).wants_snapshot
    cluster.propose(1, b"d")
    cluster.tick_all(5)
    assert commands(third)[-1] == b"d"


def test_who_leads_steps_down_and_its_vote_elects_another() -> None:
    cluster = Cluster(3, options=Options(quiesce_ticks=0)).start()
    old = cluster.elect(1)
    cluster.propose(1, b"a")
    cluster.settle()
    cluster.nodes[3].crash()
    cluster.read(1)
    lose(cluster, old)
    assert core_of(old).role is Role.FOLLOWER
    assert len(old.refused_reads) + len(old.ready_reads) == 1
    cluster.tick_all(60)
    assert cluster.leader() is cluster.nodes[2]
    assert commands(old) == commands(cluster.nodes[2]) == [b"a"]


def test_it_is_handed_no_leadership() -> None:
    cluster = Cluster(3, options=Options(quiesce_ticks=0)).start()
    leader = cluster.elect(1)
    cluster.propose(1, b"a")
    cluster.settle()
    cluster.network.clear()
    lose(cluster, cluster.nodes[2])
    cluster.step(leader, TransferLeadership(2))
    cluster.settle()
    assert core_of(leader).role is Role.LEADER


def test_a_candidate_gives_up() -> None:
    cluster = Cluster(3).start()
    node = cluster.nodes[1]
    core = core_of(node)
    cluster.tick(1, 30)
    assert core.role is Role.PRE_CANDIDATE
    lose(cluster, node)
    assert core.role is Role.FOLLOWER


def test_who_votes_alone_goes_on() -> None:
    cluster = Cluster(1).start()
    cluster.settle()
    cluster.step(cluster.nodes[1], RowsLost())
    cluster.propose(1, b"a")
    cluster.settle()
    assert commands(cluster.nodes[1]) == [b"a"]


def restoring() -> tuple[Core, Configuration]:
    members = Configuration((1, 2, 3))
    core = Core(1, log=Log(), hard_state=HardState(1), applied=0, configuration=members)
    core.step(Start())
    outputs = core.step(SnapshotPiece(2, 1, 1, 5, 1, members, 0, b"rows", True))
    (store,) = [o for o in outputs if isinstance(o, StorePiece)]
    outputs = core.step(PieceStored(store.session, 0))
    assert [o for o in outputs if isinstance(o, Restore)]
    return core, members


def test_a_snapshot_that_is_being_installed_takes_the_place_of_what_was_lost() -> None:
    """Whether it wrote all of it is the driver's to say: it says so again if it did not."""
    core, _ = restoring()
    core.step(RowsLost())
    assert core.incoming is not None and core.wants_snapshot
    outputs = core.step(Restored(5))
    assert core.applied == 5 and not core.wants_snapshot
    assert not [o for o in outputs if isinstance(o, Apply)]


def test_a_snapshot_of_which_something_is_lost_is_received_again() -> None:
    core, members = restoring()
    core.step(RowsLost(abandoned=True))
    assert core.incoming is None and core.wants_snapshot and core.applied == 0
    outputs = core.step(SnapshotPiece(2, 1, 1, 5, 1, members, 0, b"rows", True))
    assert [o for o in outputs if isinstance(o, StorePiece)]
