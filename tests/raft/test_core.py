"""What the core does beyond the paper: the sole voter, idle groups, entries whose frames are elsewhere
(DESIGN section 5), and what a disk has lost (DESIGN section 4; protocol-aware recovery, FAST'18)."""

from __future__ import annotations

import pytest

from o3storage.raft.core import (
    COMMAND,
    NO_OP,
    UNKNOWN,
    Append,
    AppendResponse,
    Configuration,
    Core,
    DataGap,
    Entry,
    HardState,
    HoleQuery,
    Log,
    Options,
    PeerLost,
    Persist,
    Persisted,
    ReadReady,
    Retire,
    Role,
    Send,
    Start,
    VoteRequest,
    VoteResponse,
)
from o3storage.raft.core._replication import HELD_ENTRIES
from tests.raft.model import (
    Cluster,
    change,
    cluster_with_logs,
    commands,
    core_of,
    held_appends,
    with_log,
)

# --- the sole voter: the same path without messages


def test_a_sole_voter_leads_at_once_and_commits_when_durable() -> None:
    cluster = Cluster(1).start()
    node = cluster.nodes[1]
    core = core_of(node)
    assert core.role is Role.LEADER
    assert core.commit == 0
    cluster.flush(node)
    assert core.commit == 1
    outputs = cluster.propose(1, b"a", b"b")
    assert [type(o).__name__ for o in outputs] == ["Accepted", "Persist"]
    cluster.read(1)
    assert node.ready_reads[-1][1] == 1
    cluster.flush(node)
    assert commands(node) == [b"a", b"b"]
    assert cluster.network == []


def test_a_sole_voter_that_lost_a_tail_goes_on_in_a_later_term() -> None:
    core_cluster = Cluster(1)
    durable = with_log([1, 1, 3])
    durable.configuration = Configuration((1,))
    durable.uncertain = True
    core_cluster.nodes[1].durable = durable
    core_cluster.start().settle()
    core = core_of(core_cluster.nodes[1])
    assert core.role is Role.LEADER and core.term == 4 and not core.uncertain


# --- what comes while the leader's disk writes


def test_what_comes_while_the_leader_writes_goes_as_one_append() -> None:
    cluster = Cluster(3, options=Options(quiesce_ticks=0)).start()
    leader = cluster.elect(1)

    def sent() -> list[list[bytes]]:
        found = [[e.data for e in m.entries] for m in held_appends(cluster, 2) if m.entries]
        cluster.network.clear()
        return found

    cluster.network.clear()
    cluster.propose(1, b"a")
    assert sent() == [[b"a"]], "before it is durable here"
    cluster.propose(1, b"b")
    cluster.propose(1, b"c")
    assert sent() == []
    cluster.write(leader)
    assert sent() == [[b"b", b"c"]]
    cluster.propose(1, b"d")
    assert sent() == []
    cluster.tick(1)
    assert sent() == [[b"d"]], "its disk takes long; theirs may not"


def test_only_so_much_waits_for_the_leaders_disk() -> None:
    cluster = Cluster(3, options=Options(quiesce_ticks=0)).start()
    cluster.elect(1)
    cluster.propose(1, b"first")
    cluster.network.clear()
    for number in range(HELD_ENTRIES):
        assert held_appends(cluster, 2) == []
        cluster.propose(1, b"%d" % number)
    cluster.propose(1, b"more")
    assert [len(m.entries) for m in held_appends(cluster, 2)] == [HELD_ENTRIES + 1]


# --- idle groups


def test_an_idle_group_is_quiet_and_wakes_by_a_proposal_or_a_lost_leader() -> None:
    cluster = Cluster(3, options=Options(quiesce_ticks=10)).start()
    leader = cluster.elect(1)
    cluster.tick_all(30)
    assert all(core_of(n).quiescent for n in cluster.nodes.values())
    for node in cluster.nodes:
        cluster.tick(node, 100)
    assert cluster.network == []
    cluster.propose(1, b"a")
    cluster.settle()
    assert commands(cluster.nodes[3]) == [b"a"] or core_of(cluster.nodes[3]).log.last == 2
    cluster.tick_all(40)
    leader.crash()
    cluster.tick(2, 100)
    assert cluster.leader() is None
    for node in (2, 3):
        cluster.step(cluster.nodes[node], PeerLost(1))
    cluster.tick_all(40)
    found = cluster.leader()
    assert found is not None and found.id != 1


# --- DESIGN 5: frames; DESIGN 4 and FAST'18: what the disk lost


def test_commit_waits_for_the_frames_but_log_matching_does_not() -> None:
    cluster = Cluster(3, options=Options(quiesce_ticks=0)).start()
    leader = cluster.elect(1)
    cluster.tick_all(2)
    for node in (2, 3):
        cluster.step(cluster.nodes[node], DataGap(2))
    cluster.propose(1, b"a")
    cluster.settle()
    core = core_of(leader)
    assert core.progress[2].match == 2 and core.progress[2].data == 1
    assert core.commit == 1
    cluster.step(cluster.nodes[2], DataGap(0))
    cluster.settle()
    assert core.commit == 2


def test_what_lies_below_an_entry_without_frames_is_committed_by_the_next_leader() -> None:
    """Its own first entry cannot be, for it lies above; but a majority holds that in its log, so
    nothing below can be replaced any more."""
    cluster = Cluster(3, options=Options(quiesce_ticks=0)).start()
    leader = cluster.elect(1)
    cluster.tick_all(2)
    low = core_of(leader).log.last + 1
    cluster.propose(1, b"whole")
    cluster.propose(1, b"frames are nowhere")
    gap = low + 1
    for node in cluster.nodes.values():
        cluster.step(node, DataGap(gap))
    cluster.flush(leader)
    for node in (2, 3):
        for message in held_appends(cluster, node):
            cluster.network.remove(message)
            cluster.step(cluster.nodes[node], message)
        cluster.flush(cluster.nodes[node])
    # The leader goes before it hears of it: nobody knows that the entry `low` is committed.
    leader.crash()
    cluster.network.clear()
    assert core_of(cluster.nodes[2]).commit < low
    next_leader = cluster.elect(2)
    core = core_of(next_leader)
    assert core.log.term(low) < core.term and core.log.last == gap + 1
    assert core.commit == low
    assert commands(next_leader) == [b"whole"]
    # And the rest as soon as a majority needs the frames no more.
    for node in (2, 3):
        cluster.step(cluster.nodes[node], DataGap(0))
    cluster.settle()
    assert core.commit == gap + 1
    assert commands(cluster.nodes[3]) == [b"whole", b"frames are nowhere"]


def test_an_older_terms_entry_is_not_committed_while_only_its_leader_has_a_newer_one() -> None:
    """As figure 8, with data: a majority holds the older entry and its frames."""
    logs = {1: [1, 2], 2: [1, 2], 3: [1, 2]}
    cluster = cluster_with_logs(logs, {1: 2, 2: 2, 3: 2})
    leader = cluster.nodes[1]
    core = core_of(leader)
    core.role = Role.CANDIDATE
    core.term, core.vote, core.votes = 3, 1, {1: True}
    cluster.step(leader, VoteResponse(2, 1, 3, True))
    assert core.role is Role.LEADER and core.log.last == 3
    cluster.network.clear()
    cluster.flush(leader)
    for follower in (2, 3):
        cluster.step(leader, AppendResponse(follower, 1, 3, match=2, data=2))
        assert core.commit == 0
    cluster.step(leader, AppendResponse(2, 1, 3, match=3, data=2))
    assert core.commit == 2  # two of three hold the newer one, one of them without its frames


def rotten(cluster: Cluster, node: int, *indexes: int) -> None:
    found = cluster.nodes[node]
    found.crash()
    for index in indexes:
        del found.durable.entries[index]
    found.start()


def test_a_node_with_a_hole_votes_by_its_last_entry_and_does_not_lead() -> None:
    cluster = Cluster(3, options=Options(quiesce_ticks=0)).start()
    leader = cluster.elect(1)
    cluster.nodes[3].crash()
    cluster.propose(1, b"a", b"b")
    cluster.settle()
    leader.crash()
    rotten(cluster, 2, 2, 3)
    cluster.nodes[3].start()
    cluster.tick_all(60)
    assert cluster.leader() is None, "2 may not lead, and knows that 3 lacks something"
    leader.start()
    cluster.tick_all(60)
    assert [commands(n) for n in cluster.nodes.values()] == [[b"a", b"b"]] * 3


def test_a_hole_is_refilled_from_the_leader() -> None:
    cluster = Cluster(3, options=Options(quiesce_ticks=0)).start()
    cluster.elect(1)
    cluster.propose(1, *[b"%d" % n for n in range(10)])
    cluster.settle()
    rotten(cluster, 2, 4, 5, 6)
    core = core_of(cluster.nodes[2])
    assert core.log.holes == [(4, 6)]
    cluster.tick_all(20)
    assert core.log.holes == []
    assert commands(cluster.nodes[2]) == commands(cluster.nodes[1])


def test_what_nobody_holds_is_dropped_only_when_every_voter_answered() -> None:
    cluster = Cluster(3, options=Options(quiesce_ticks=0)).start()
    leader = cluster.elect(1)
    cluster.propose(1, b"lost")
    cluster.network.clear()
    cluster.flush(leader)
    rotten(cluster, 1, 2)
    cluster.nodes[3].crash()
    core = core_of(leader)
    cluster.tick_all(40)
    assert core.log.holes == [(2, 2)]
    cluster.nodes[3].start()
    cluster.tick_all(40)
    assert core.log.holes == []
    assert cluster.leader() is not None


def test_a_hole_query_is_answered_with_the_entry() -> None:
    cluster = Cluster(3).start()
    cluster.elect(1)
    cluster.propose(1, b"a")
    cluster.settle()
    cluster.network.clear()
    cluster.step(cluster.nodes[3], HoleQuery(2, 3, 1, 2, 2))
    cluster.flush(cluster.nodes[3])
    answer = cluster.network[0]
    assert answer.holds and answer.entries[0].data == b"a"  # type: ignore[attr-defined]


@pytest.mark.parametrize("rotted", [3, 4])
def test_another_entry_in_the_place_of_a_lost_one_is_not_taken_for_it(rotted: int) -> None:
    """2 has the tail of a deposed leader there: nobody holds what 1 lost. (Of a last entry that is
    missing the term may be a guess.)"""
    cluster = cluster_with_logs({1: [1, 2, 2, 2], 2: [1, 1, 1, 1], 3: [1]})
    rotten(cluster, 1, rotted)
    core = core_of(cluster.nodes[1])
    assert core.log.holes == [(rotted, rotted)]
    cluster.tick(1, 30)
    cluster.settle()
    if rotted == 3:
        assert (core.log.holes, core.log.last) == ([], 2)
    else:
        assert (core.log.holes, core.log.last) == ([(4, 4)], 4)


def test_an_uncertain_node_gives_no_vote_and_counts_for_nothing_until_made_a_learner() -> None:
    cluster = Cluster(3, options=Options(quiesce_ticks=0)).start()
    leader = cluster.elect(1)
    cluster.nodes[3].crash()
    cluster.nodes[3].durable.uncertain = True
    cluster.nodes[3].start()
    third = core_of(cluster.nodes[3])
    cluster.step(cluster.nodes[3], VoteRequest(2, 3, 9, 99, 9, transfer=True))
    cluster.flush(cluster.nodes[3])
    assert [m.granted for m in cluster.network if isinstance(m, VoteResponse)] == [False]
    cluster.network.clear()
    cluster.tick_all(40)
    leader = cluster.leader()  # type: ignore[assignment]
    assert leader is not None and leader.id != 3
    other = 3 - leader.id
    cluster.nodes[other].crash()
    cluster.propose(leader.id, b"a")
    cluster.settle()
    assert commands(leader) == [], "the uncertain one is no majority"
    cluster.nodes[other].start()
    cluster.tick_all(10)
    change(cluster, leader.id, (1, 2), (3,))
    cluster.tick_all(10)
    assert not third.uncertain
    cluster.nodes[3].durable.uncertain = False
    change(cluster, leader.id, (1, 2, 3))
    cluster.tick_all(10)
    assert third.configuration == Configuration((1, 2, 3))
    assert commands(cluster.nodes[3]) == [b"a"]


def test_a_learner_in_doubt_is_sure_again_when_the_members_are_named_once_more() -> None:
    cluster = Cluster(2, extra=1, options=Options(quiesce_ticks=0)).start()
    leader = cluster.elect(1)
    change(cluster, leader.id, (1, 2), (3,))
    cluster.tick_all(10)
    last = core_of(leader).log.last
    change(cluster, leader.id, (1, 2), (3,))
    assert core_of(leader).log.last == last, "nobody is in doubt"
    cluster.nodes[3].crash()
    cluster.nodes[3].durable.uncertain = True
    cluster.nodes[3].start()
    cluster.tick_all(10)
    assert core_of(cluster.nodes[3]).uncertain
    change(cluster, leader.id, (1, 2), (3,))
    cluster.tick_all(10)
    assert not core_of(cluster.nodes[3]).uncertain
    assert core_of(leader).log.last == last + 1


def test_a_replica_without_state_never_votes() -> None:
    cluster = Cluster(1, extra=1).start()
    cluster.settle()
    node = cluster.nodes[2]
    cluster.step(node, VoteRequest(1, 2, 5, 10, 4))
    cluster.flush(node)
    assert [m.granted for m in cluster.network if isinstance(m, VoteResponse)] == [False]


def test_a_newcomer_votes_as_any_voter_with_an_empty_log() -> None:
    """It has no state because it never took part, as its driver knows for certain."""
    cluster = Cluster(1, extra=1).start()
    cluster.settle()
    node = cluster.nodes[2]
    core_of(node).newcomer = True
    cluster.step(node, VoteRequest(1, 2, 5, 10, 4))
    cluster.flush(node)
    votes = [m for m in cluster.network if isinstance(m, VoteResponse)]
    assert [(m.to, m.granted) for m in votes] == [(1, True)]
    assert node.durable.hard_state.vote == 1


def test_who_refuses_what_cannot_go_further_back_is_not_asked_at_once() -> None:
    cluster = Cluster(3, options=Options(quiesce_ticks=0)).start()
    leader = cluster.elect(1)
    cluster.propose(1, b"a")
    cluster.settle()
    core = core_of(leader)
    progress = core.progress[2]
    progress.probe()
    refusal = AppendResponse(
        2,
        1,
        core.term,
        rejected=True,
        rejected_index=progress.match,
        hint_index=progress.match,
        hint_term=0,
    )
    for _ in range(2):
        outputs = core.step(refusal)
        assert not [o for o in outputs if isinstance(o, Send)] and progress.paused
    cluster.propose(1, b"b")
    cluster.tick_all(10)
    assert core.progress[2].match == core.log.last


def test_a_node_whose_disk_failed_leads_votes_and_acknowledges_nothing() -> None:
    cluster = Cluster(3, options=Options(quiesce_ticks=0)).start()
    leader = cluster.elect(1)
    cluster.propose(1, b"a")
    cluster.step(leader, Retire())
    assert core_of(leader).role is Role.FOLLOWER
    cluster.network.clear()
    cluster.step(leader, VoteRequest(2, 1, 7, 99, 6))
    assert not [m for m in cluster.network if isinstance(m, VoteResponse) and m.granted]
    cluster.tick_all(40)
    found = cluster.leader()
    assert found is not None and found.id != 1


def test_what_was_sent_after_persist_waits_for_its_ticket() -> None:
    cluster = Cluster(3).start()
    node = cluster.nodes[2]
    outputs = cluster.step(
        node, Append(1, 2, 1, 0, 0, [Entry(1, 1, NO_OP, b""), Entry(2, 1, COMMAND, b"a")], 0)
    )
    persist = [o for o in outputs if isinstance(o, Persist)]
    sends = [o for o in outputs if isinstance(o, Send)]
    assert len(persist) == 1 and [s.after_ticket for s in sends] == [persist[0].ticket]
    assert cluster.network == []
    cluster.flush(node)
    assert [m.match for m in cluster.network if isinstance(m, AppendResponse)] == [2]


def test_a_restart_replays_the_log_and_the_commit_hint() -> None:
    cluster = Cluster(1).start()
    cluster.settle()
    for number in range(5):
        cluster.propose(1, b"%d" % number)
        cluster.settle()
    before = commands(cluster.nodes[1])
    cluster.nodes[1].crash()
    cluster.nodes[1].start()
    cluster.settle()
    assert commands(cluster.nodes[1]) == before
    core = core_of(cluster.nodes[1])
    assert core.term == 2


def test_steps_are_pure() -> None:
    """Two cores that are told the same say the same."""
    from o3storage.raft.core import Core, Propose

    outs = []
    for _ in range(2):
        core = Core(
            1, log=Log(), hard_state=HardState(), applied=0, configuration=Configuration((1,))
        )
        said = [core.step(Start()), core.step(Persisted(1)), core.step(Propose(7, [b"x"]))]
        said.append(core.step(Persisted(2)))
        outs.append(repr(said))
    assert outs[0] == outs[1]


def test_read_ready_outputs_name_the_tokens() -> None:
    cluster = Cluster(1).start()
    cluster.settle()
    outputs = cluster.step(
        cluster.nodes[1], __import__("o3storage.raft.core", fromlist=["x"]).ReadIndex(5)
    )
    assert outputs == [ReadReady([5], 1)]


def test_a_log_is_kept_behind_a_snapshot_of_its_floor_whose_term_nobody_knew() -> None:
    log = Log(4, UNKNOWN, [(5, 3)], 6)
    assert log.goes_on(4, 2)
    log.rebase(4, 2)
    assert (log.floor, log.floor_term, log.last, log.term(4), log.term(5)) == (4, 2, 6, 2, 3)


def test_who_waits_for_a_snapshot_does_not_lead_as_empty_as_it_may_be() -> None:
    for applied, last in ((0, 0), (1, 1), (0, 1)):
        core = Core(
            1,
            log=Log(0, 0, [(1, 1)] if last else [], last),
            hard_state=HardState(1, 0, 0),
            applied=applied,
            configuration=Configuration((1,)),
        )
        assert core.may_campaign()
        core.wants_snapshot = True
        assert not core.may_campaign()
