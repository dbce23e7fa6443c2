"""Seeded random runs of a group under loss, reordering, duplication, crashes that lose unpersisted
state, rotten entries and changes of members, with Raft's invariants checked after every step."""

from __future__ import annotations

import os
import random

import pytest

from o3storage.raft.core import (
    CONFIGURATION,
    ChangeConfiguration,
    Configuration,
    DataGap,
    Options,
    PeerLost,
    Role,
    TransferLeadership,
)
from tests.raft.model import Cluster

SLOW_SEEDS = int(os.environ.get("O3_RAFT_SEEDS", "600"))
"""Of the slow lane, for each of its two tests."""

PAID_SHARE = 0.1
"""How often a node that is asked has all frames that it owed: so most owe them for long."""
OPTIONS = Options(
    election_ticks=5,
    heartbeat_ticks=1,
    max_append_bytes=400,
    max_inflight_messages=4,
    max_inflight_bytes=2000,
    tail_bytes=600,
    quiesce_ticks=12,
    caught_up_entries=2,
)


def run(
    seed: int,
    steps: int = 1500,
    *,
    voters: int | None = None,
    check: bool = True,
    gaps: bool = False,
) -> Cluster:
    """With `gaps`, nodes now and then lack the frames of some entry that is not committed, and who
    is no member at first owes some until it is paid."""
    rng = random.Random(seed)
    lacking = random.Random(f"{seed}/gaps")
    voters = voters or rng.choice([1, 2, 3, 3, 3, 4, 5, 7])
    cluster = Cluster(voters, options=OPTIONS, extra=rng.choice([0, 1, 2]), check=check)
    if gaps:
        for node in [*cluster.nodes.values()][voters:]:
            node.debt = lacking.choice([0, 2])
    cluster.start()
    rotter = rng.choice([0, 1, 2]) if voters >= 3 else 0
    ids = list(cluster.nodes)
    loss = rng.choice([0.0, 0.05, 0.2])
    crashes = rng.choice([0.0, 0.002, 0.01])
    wall: set[int] = set()
    value = 0
    for _ in range(steps):
        roll = rng.random()
        node = cluster.nodes[rng.choice(ids)]
        if gaps and lacking.random() < 0.05:
            lack(cluster, lacking)
        if roll < 0.45 and cluster.network:
            # Mostly in order, sometimes not.
            number = 0 if rng.random() < 0.6 else rng.randrange(len(cluster.network))
            message = cluster.network[number]
            if (message.to in wall) != (message.sender in wall) or rng.random() < loss:
                cluster.network.pop(number)
            else:
                if rng.random() < 0.05:
                    cluster.network.append(message)
                cluster.deliver(number)
            if len(cluster.network) > 300:
                del cluster.network[: rng.randint(0, 200)]
        elif roll < 0.65:
            busy = [n for n in cluster.nodes.values() if n.up and n.writes]
            if busy:
                cluster.write(rng.choice(busy))
        elif roll < 0.70:
            busy = [n for n in cluster.nodes.values() if n.up and n.fetches]
            if busy:
                cluster.fetch(rng.choice(busy))
        elif roll < 0.80:
            cluster.tick(node.id, 1, rng.random())
        elif roll < 0.92:
            leader = cluster.leader()
            target = leader if leader and rng.random() < 0.8 else node
            if target.up:
                values = []
                for _ in range(rng.randint(1, 3)):
                    value += 1
                    values.append(b"%d" % value * rng.randint(1, 30))
                cluster.propose(target.id, *values)
        elif roll < 0.95:
            if node.up:
                cluster.read(node.id)
        elif roll < 0.96:
            if node.up:
                cluster.compact(node.id)
        elif roll < 0.97:
            if node.up and rng.random() < 0.3:
                cluster.step(node, TransferLeadership(rng.choice(ids)))
            elif node.up:
                cluster.step(node, PeerLost(rng.choice([i for i in ids if i != node.id] or [99])))
        elif roll < 0.975:
            leader = cluster.leader()
            if leader is not None:
                members = rng.sample(ids, rng.randint(1, len(ids)))
                learners = rng.sample(members, rng.randint(0, len(members) - 1))
                rest = [m for m in members if m not in learners]
                cluster.tokens += 1
                change = ChangeConfiguration(cluster.tokens, tuple(rest), tuple(learners))
                cluster.step(leader, change)
        elif roll < 0.98:
            wall = set(rng.sample(ids, rng.randint(0, len(ids) // 2)))
        if rng.random() < crashes and node.up:
            node.crash(rng)
            if node.id == rotter and rng.random() < 0.5:
                held = sorted(node.durable.entries)
                configurations = [
                    Configuration.decode(e.data)
                    for e in node.durable.entries.values()
                    if e.kind == CONFIGURATION
                ]
                newest = [*configurations[-1:], node.durable.configuration][0]
                if held and len(newest.voters) > 1:
                    rotter = 0  # once a run
                    low = rng.choice(held)
                    for index in range(low, low + rng.randint(1, 3)):
                        node.durable.entries.pop(index, None)
        elif not node.up and rng.random() < 0.3:
            node.start()
    return cluster


def lack(cluster: Cluster, rng: random.Random) -> None:
    """One node lacks frames from some entry on, or has all of them again."""
    node = cluster.nodes[rng.choice(list(cluster.nodes))]
    core = node.core
    if not node.up or core is None:
        return
    if rng.random() < PAID_SHARE:
        node.debt = 0
    index = rng.randint(core.commit + 1, core.log.last + 2)
    gap = 0 if rng.random() < 0.4 or index > core.log.last else index
    cluster.step(node, DataGap(gap, node.debt))


def heal(cluster: Cluster) -> None:
    for node in cluster.nodes.values():
        if not node.up:
            node.start()
        node.debt = 0
        cluster.step(node, DataGap(0))
    rng = random.Random(7)
    for round_number in range(400):
        for node in cluster.nodes:
            cluster.tick(node, 1, rng.random())
        cluster.settle()
        leader = cluster.leader()
        if leader is None or leader.core is None or round_number < 40:
            continue
        members = leader.core.configuration.members()
        if leader.core.configuration.joint or leader.core.commit < leader.core.log.last:
            continue
        if leader.core.quiescent or all(
            cluster.nodes[m].applied == leader.core.commit for m in members
        ):
            break
    if any(n.core and n.core.sole and n.core.log.holes for n in cluster.nodes.values()):
        return  # rot in the only voter left: its operator's to decide
    leader = cluster.leader()
    assert leader is not None and leader.core is not None, "no leader after healing"
    cluster.propose(leader.id, b"after")
    for _ in range(30):
        cluster.tick_all()
    assert leader.core.role is Role.LEADER
    for member in leader.core.configuration.members():
        assert cluster.nodes[member].state == leader.state, f"node {member} differs"


@pytest.mark.parametrize("seed", range(120))
def test_random_run_keeps_the_invariants(seed: int) -> None:
    cluster = run(seed)
    heal(cluster)


@pytest.mark.parametrize("seed", range(500, 540))
def test_random_run_with_missing_frames_keeps_the_invariants(seed: int) -> None:
    heal(run(seed, gaps=True))


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(5000, 5000 + SLOW_SEEDS))
def test_many_random_runs_with_missing_frames(seed: int) -> None:
    heal(run(seed, 4000, gaps=True))


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(1000, 1000 + SLOW_SEEDS))
def test_many_random_runs(seed: int) -> None:
    heal(run(seed, 4000))
