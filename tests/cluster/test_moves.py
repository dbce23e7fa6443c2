"""Replicas that are to move: the command, the choice, and whole nodes."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from o3storage.cluster import MembershipRefused, Unavailable, _records
from o3storage.cluster import _node_records as nodes
from o3storage.cluster._elsewhere import propose_held
from o3storage.cluster._membership import Membership
from o3storage.cluster._moves import (
    MOVE,
    SPREAD_FROM,
    Move,
    encode_move,
    has_ended,
    move_key,
    spread,
)
from o3storage.cluster._node_records import Announcement, NodeRecord, NodeState
from o3storage.cluster._placement import next_change
from o3storage.cluster._range_rows import (
    EVERYTHING,
    HOLDERS_LOW,
    Holders,
    directory_key,
    encode_holders,
)
from o3storage.raft.core import Configuration
from o3storage.simulation import run
from tests.cluster.member_rig import Place, Places, patiently
from tests.cluster.support import body_of
from tests.cluster.test_elsewhere import SETTINGS, away, holders, settled, start
from tests.cluster.test_leaving_ranges import moved
from tests.cluster.test_node_records import Rows


def node(number: int, state: NodeState = NodeState.MEMBER, host: str = "") -> NodeRecord:
    key = bytes((number,)) * 32
    return NodeRecord(number, key, key, number, state, 0, Announcement(host=host))


def held(*members: int, joint: bool = False, index: int = 5) -> Holders:
    return Holders(index, Configuration(members, (1,) if joint else ()))


def rows_of(*records: NodeRecord, **ranges: Holders) -> Rows:
    rows = Rows()
    for record in records:
        rows[nodes.node_key(record.node)] = record.encode()
    for name, told in ranges.items():
        rows.apply(encode_holders(int(name[1:]), told))
    return rows


# --- the command


def test_a_move_is_begun_once_and_ended_by_its_own_name() -> None:
    rows = rows_of(*map(node, range(1, 6)), r2=held(1, 2, 3))
    assert rows.apply(encode_move(2, Move(1, 4), wanted=True)).result is True
    assert Move.decode(rows[move_key(2)]) == Move(1, 4)
    assert rows.apply(encode_move(2, Move(1, 4), wanted=True)).result is True
    again = rows.apply(encode_move(2, Move(2, 5), wanted=True))
    assert isinstance(again.error, MembershipRefused) and "range stay 2" in str(again.error)
    assert rows.apply(encode_move(2, Move(2, 5), wanted=False)).result is False
    assert Move.decode(rows[move_key(2)]) == Move(1, 4)
    assert rows.apply(encode_move(2, Move(1, 4), wanted=False)).result is True
    assert move_key(2) not in rows
    assert rows.apply(encode_move(2, Move(1, 4), wanted=False)).result is False


@pytest.mark.parametrize(
    ("group", "move", "why"),
    [
        (7, Move(1, 4), "no key range 7"),
        (3, Move(1, 4), "changing just now"),
        (2, Move(4, 5), "holds no replica"),
        (2, Move(1, 2), "already"),
        (2, Move(1, 9), "no node of the cluster"),
        (2, Move(1, 6), "draining"),
        (2, Move(1, 7), "same machine, m"),
    ],
)
def test_what_cannot_move_is_refused_with_the_reason(group: int, move: Move, why: str) -> None:
    drained = node(6, NodeState.DRAINING)
    records = [node(1), node(2), node(3, host="m"), node(4), node(5), drained, node(7, host="m")]
    rows = rows_of(*records, r2=held(1, 2, 3), r3=held(1, 2, 3, joint=True))
    outcome = rows.apply(encode_move(group, move, wanted=True))
    assert isinstance(outcome.error, MembershipRefused) and why in str(outcome.error)
    assert move_key(group) not in rows
    # To the machine that it leaves it may go.
    assert rows.apply(encode_move(2, Move(3, 7), wanted=True)).result is True


@pytest.mark.parametrize("data", [b"", bytes(20), bytes(22)])
def test_half_a_move_is_nobodys(data: bytes) -> None:
    with pytest.raises(ValueError, match="malformed"):
        Rows().apply(bytes((0xFF, 1, MOVE)) + data)
    with pytest.raises(ValueError, match="wrong size"):
        Move.decode(data)


def test_a_move_ends_when_it_is_done_or_cannot_be() -> None:
    move, target = Move(1, 4), node(4)
    assert not has_ended(move, held(1, 2, 3), target)
    assert not has_ended(move, held(2, 3, 4, joint=True), target)
    assert has_ended(move, held(2, 3, 4), target)
    learner = Holders(5, Configuration((2, 3), (), (4,)))
    assert not has_ended(move, learner, target)
    assert has_ended(move, held(1, 2, 3), node(4, NodeState.LEAVING))
    assert has_ended(move, held(1, 2, 3), None)
    assert has_ended(move, held(2, 3, 5), target), "the source left by itself"


# --- what is chosen


@settings(max_examples=200, deadline=None)
@given(
    st.integers(4, 8),
    st.lists(st.permutations(range(1, 9)), min_size=1, max_size=9),
    st.lists(st.sampled_from("abc"), min_size=8, max_size=8),
    st.booleans(),
)
def test_numbers_come_together_one_move_at_a_time(
    count: int, orders: list[list[int]], hosts: list[str], shared: bool
) -> None:
    records = [node(n, host=hosts[n - 1] if shared else "") for n in range(1, count + 1)]
    host = {record.node: record.host for record in records}
    ranges = {}
    for number, order in enumerate(orders, start=1):
        chosen: list[int] = []
        for n in order:
            if n <= count and len(chosen) < 3 and host[n] not in [host[c] for c in chosen]:
                chosen.append(n)
        ranges[number] = held(*sorted(chosen))
    for _ in range(3 * len(orders) * count):
        found = spread(records, ranges)
        if found is None:
            break
        group, move = found
        members = ranges[group].configuration.members()
        assert move.source in members and move.target not in members
        members = tuple(sorted(move.target if n == move.source else n for n in members))
        assert len({host[n] for n in members}) == len(members)
        ranges[group] = held(*members)
    else:
        raise AssertionError("it never comes to rest")
    numbers = [
        sum(n in h.configuration.members() for h in ranges.values()) for n in range(1, count + 1)
    ]
    if not shared:
        assert max(numbers) - min(numbers) < SPREAD_FROM


def test_nothing_is_spread_while_members_change_and_nothing_to_who_leaves() -> None:
    ranges = {number: held(1, 2, 3) for number in (1, 2)}
    assert spread([*map(node, range(1, 5))], ranges) is None
    ranges = {number: held(1, 2, 3) for number in (1, 2, 4)}
    assert spread([*map(node, range(1, 5))], ranges) == (1, Move(1, 4))
    assert spread([*map(node, range(1, 4)), node(4, NodeState.DRAINING)], ranges) is None
    assert spread([*map(node, range(1, 5))], {**ranges, 5: held(1, 2, 3, joint=True)}) is None


@pytest.mark.parametrize("source", [1, 2, 3])
def test_the_leader_makes_the_move_in_steps(source: int) -> None:
    """A learner, then one joint change, then the source goes, never less than three voters."""
    records = [node(n) for n in range(1, 7)]
    move = Move(source, 5)
    now, leader = Configuration((1, 2, 3)), 1
    seen = []
    for _ in range(8):
        up = {n: True for n in now.members() if n != leader}
        change = next_change(
            records, now, leader=leader, caught_up=up, replicas=3, group=9, move=move
        )
        if change is None:
            break
        if change.transfer_to:
            assert leader == source
            leader = change.transfer_to
            continue
        assert len(change.voters) == 3
        now = Configuration(change.voters, (), change.learners)
        seen.append((5 in now.learners, 5 in now.voters))
    wanted = tuple(sorted({1, 2, 3, 5} - {source}))
    assert now == Configuration(wanted) and seen == [(True, False), (False, True)]
    # And what was done stays, without the move.
    up = dict.fromkeys(wanted, True)
    assert next_change(records, now, leader=leader, caught_up=up, replicas=3, group=9) is None


def test_who_is_spare_goes_only_when_all_others_are_whole() -> None:
    records = [node(n) for n in range(1, 6)]
    now = Configuration((1, 2, 3), (), (4, 5))
    for up in ({2: True, 3: False}, {2: True}, {}):
        assert next_change(records, now, leader=1, caught_up=up, replicas=3) is None
    change = next_change(records, now, leader=1, caught_up={2: True, 3: True}, replicas=3)
    assert change is not None and change.learners == ()


# --- whole nodes


async def fill(places: Places) -> tuple[Any, dict[bytes, bytes]]:
    bucket = await patiently(places[1].bucket)
    bodies = {b"small": body_of(1, 5000), b"large": body_of(2, 600_000)}
    for key, body in bodies.items():
        await patiently(lambda k=key, b=body: places[2].put(bucket, k, b))  # type: ignore[misc]
    return bucket, bodies


async def whole(places: Places, bucket: Any, bodies: dict[bytes, bytes]) -> None:
    for place in places.all:
        if place.clustered:
            for key, body in bodies.items():
                found = await patiently(lambda p=place, k=key: p.get(bucket, k))  # type: ignore[misc]
                assert found == body


def leader_of(places: Places, group: int = 1) -> Place:
    return next(p for p in holders(places, group) if p.node._replicas[group].leads)


@pytest.mark.parametrize("leads", [False, True])
def test_a_replica_moves_by_command_and_the_source_keeps_nothing(leads: bool) -> None:
    async def main() -> None:
        async with Places(count=5) as places:
            await start(places)
            bucket, bodies = await fill(places)
            source = leader_of(places)
            if not leads:
                source = next(p for p in holders(places) if p is not source)
            target, asked = away(places)
            with pytest.raises(MembershipRefused, match="holds no replica"):
                await patiently(lambda: asked.node.ranges.move(1, asked.id, target.id))
            with pytest.raises(MembershipRefused, match="not moving"):
                await patiently(lambda: asked.node.ranges.stay(1))
            await patiently(lambda: asked.node.ranges.move(1, source.id, target.id))
            await moved(places, source)
            assert target.node.ranges.is_here(1) and len(holders(places)) == 3
            await whole(places, bucket, bodies)
            await places.until(lambda: not any(p.node.ranges.moves for p in places.all))

    run(main(), 31 + leads)


def test_a_move_goes_on_after_every_restart_and_can_be_taken_back() -> None:
    async def main() -> None:
        async with Places(count=5) as places:
            await start(places)
            bucket, bodies = await fill(places)
            target, other = away(places)
            source = next(p for p in holders(places) if p is not places[1])
            # Who is to take it is not there: the range goes on as it was.
            await target.die()
            await patiently(lambda: other.node.ranges.move(1, source.id, target.number_of()))
            await asyncio.sleep(5)
            assert len(holders(places)) == 3 and source in holders(places)
            leader = leader_of(places)
            await leader.die()
            await asyncio.sleep(3)
            await leader.up(next(p.host for p in places.all if p is not leader), **SETTINGS)
            await target.up(other.host, **SETTINGS)
            await moved(places, source)
            assert target.node.ranges.is_here(1)
            await whole(places, bucket, bodies)
            # And one that is taken back.
            await other.die()
            await patiently(lambda: source.node.ranges.move(1, target.id, other.number_of()))
            await asyncio.sleep(3)
            await patiently(lambda: source.node.ranges.stay(1))
            await other.up(source.host, **SETTINGS)
            await settled(places, 1)
            assert not other.node.ranges.is_here(1) and target.node.ranges.is_here(1)
            await whole(places, bucket, bodies)

    run(main(), 34)


def test_ranges_that_are_cut_spread_over_all_nodes() -> None:
    async def main() -> None:
        async with Places(count=5) as places:
            await start(places)
            bucket, bodies = await fill(places)
            for key in (b"b", b"lc", b"n", b"x"):
                route = places[1].node.machine.stream_route(bucket.bucket_id, key)
                await patiently(lambda r=route: places[1].node.ranges.split(r[1:]))  # type: ignore[misc]

            def spread_out() -> bool:
                counts = [sum(p.node.ranges.is_here(g) for g in range(1, 6)) for p in places.all]
                return sum(counts) == 15 and max(counts) - min(counts) < SPREAD_FROM

            await places.until(spread_out, 200.0)
            await settled(places, *range(1, 6))
            await asyncio.sleep(10)
            assert spread_out(), "it stays so"
            await whole(places, bucket, bodies)

    run(main(), 35)


def test_a_row_of_range_0_that_is_older_than_the_log_takes_nothing_away() -> None:
    async def main() -> None:
        async with Places(count=4) as places:
            await start(places, 4)
            bucket, bodies = await fill(places)
            place = holders(places)[1]
            keeper, replica = place.node.ranges, place.node._replicas[1]
            index = replica.core.configuration_index
            others = tuple(n for n in replica.core.configuration.voters if n != place.id)
            keeper.holders[1] = Holders(index - 1, Configuration(others))
            assert not keeper._has_left(1)
            for _ in range(2):
                keeper.look_away()
                await asyncio.sleep(10)
                keeper.holders[1] = Holders(index - 1, Configuration(others))
            assert place.node._replicas[1] is replica and keeper.is_here(1)
            # One that is as new is believed, but only after a while.
            keeper.holders[1] = Holders(index, Configuration(others))
            assert keeper._has_left(1)
            keeper.look_away()
            assert place.node._replicas[1] is replica
            await whole(places, bucket, bodies)

    run(main(), 36)


def test_a_cluster_that_held_everything_everywhere_goes_over_when_all_know_how(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    version = [nodes.PLACES_VERSION - 1]

    async def main() -> None:
        async with Places(count=5) as places:
            await places.start(5)
            everybody = [p.id for p in places.all]
            await places.until(
                lambda: all(
                    sorted(p.node._replicas[1].core.configuration.members()) == sorted(everybody)
                    for p in places.all
                    if 1 in p.node._replicas
                ),
                60.0,
            )
            bucket, bodies = await fill(places)
            assert len(holders(places)) == 5
            with pytest.raises(MembershipRefused, match="install this one on all nodes"):
                await places[1].node.ranges.move(1, everybody[0], everybody[1])
            version[0] = nodes.PLACES_VERSION
            await settled(places, 1)
            await places.until(lambda: len(holders(places)) == 3, 60.0)
            for place in away(places):
                await moved(places, place)
            await whole(places, bucket, bodies)

    announcement = Membership.announcement

    def older(self: Membership) -> Announcement:
        said = announcement(self)
        return Announcement(said.lowest, version[0], said.host, said.url, said.addresses)

    monkeypatch.setattr(Membership, "announcement", older)
    monkeypatch.setattr("o3storage.cluster._node.HIGHEST_VERSION", version[0])
    run(main(), 37)


def test_every_node_reads_and_writes_while_replicas_move() -> None:
    async def main() -> None:
        async with Places(count=5) as places:
            await start(places)
            bucket = await patiently(places[1].bucket)
            loop = asyncio.get_running_loop()
            longest_s = [0.0]
            refused: list[str] = []
            done = [0]
            over = asyncio.Event()

            async def client(place: Place) -> None:
                key, number, known = b"k%d" % place.number_of(), 0, b""
                maybe: list[bytes] = []
                while not over.is_set():
                    number += 1
                    value = b"%d" % number
                    began_s = loop.time()
                    try:
                        await place.put(bucket, key, value)
                        known, maybe = value, []
                    except Unavailable as error:
                        refused.append(f"put {place.host}: {error.reason}")
                        maybe.append(value)
                    longest_s[0] = max(longest_s[0], loop.time() - began_s)
                    began_s = loop.time()
                    try:
                        found = await place.get(bucket, key)
                        assert found in {known, *maybe} or (found is None and not known)
                        done[0] += 1
                    except Unavailable as error:
                        refused.append(f"get {place.host}: {error.reason}")
                    longest_s[0] = max(longest_s[0], loop.time() - began_s)
                    await asyncio.sleep(0.1)

            clients = [loop.create_task(client(place)) for place in places.all]
            for _ in range(3):
                source, target = leader_of(places), away(places)[0]
                await patiently(lambda s=source, t=target: t.node.ranges.move(1, s.id, t.id))  # type: ignore[misc]
                await places.until(lambda t=target: t.node.ranges.is_here(1), 60.0)  # type: ignore[misc]
                await moved(places, source)
            over.set()
            await asyncio.gather(*clients)
            assert longest_s[0] < 5.0, "a request is answered, or refused, within 5 s"
            assert done[0] > 200
            # Only who asks in the very moment in which its node's replica goes may be refused.
            assert len(refused) <= 2 * 3, refused

    run(main(), 38)


def test_rows_of_a_range_that_others_hold_are_swept_and_no_others() -> None:
    """A member missed a cut, a snapshot gave it the lower keys, and the upper went to others."""

    async def main() -> None:
        async with Places(count=5) as places:
            await start(places)
            bucket, bodies = await fill(places)
            route = places[1].node.machine.stream_route(bucket.bucket_id, b"m")
            await patiently(lambda: places[1].node.ranges.split(route[1:]))
            await patiently(lambda: places[1].put(bucket, b"z", body_of(3, 400_000)))
            bodies[b"z"] = body_of(3, 400_000)
            await settled(places, 1, 2)
            place = next(p for p in holders(places) if not p.node._replicas[2].leads)
            target = next(p for p in away(places, 2) if p not in holders(places))
            rows = await place.store.scan(b"\x20", b"\x30", 100)
            upper = [row for row in rows if row[0] >= b"\x20" + route[1:]]
            lower = [row for row in rows if row not in upper]
            assert lower and upper
            await patiently(lambda: place.node.ranges.move(2, place.id, target.id))
            await moved_alone(places, place, 2)
            assert await place.store.scan(b"\x20", b"\x30", 100) == lower
            await place.store._log.write_rows(list(upper))
            place.node.ranges._narrowed()
            for _ in range(100):
                if await place.store.scan(b"\x20", b"\x30", 100) == lower:
                    break
                await asyncio.sleep(0.1)
            assert await place.store.scan(b"\x20", b"\x30", 100) == lower
            await places.until(lambda: not place.node.ranges._leaving)
            await whole(places, bucket, bodies)

    run(main(), 39)


@pytest.mark.parametrize("was_here", [False, True])
def test_a_replica_that_was_made_before_range_0_said_who_has_the_range_goes_with_all_below_it(
    was_here: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A member missed a cut, and a snapshot gave it the lower keys. Range 0 named the upper range,
    and only then said that others have it: the replica that was made meanwhile never gets anything.
    (`was_here`: one had left the disk before.)"""

    async def main() -> None:
        async with Places(count=5) as places:
            await start(places)
            bucket, bodies = await fill(places)
            route = places[1].node.machine.stream_route(bucket.bucket_id, b"m")
            await patiently(lambda: places[1].node.ranges.split(route[1:]))
            await settled(places, 1, 2)
            place = next(p for p in holders(places) if not p.node._replicas[2].leads)
            target = next(p for p in away(places, 2) if p not in holders(places))
            other = next(p for p in away(places, 2) if p is not target)
            rows = await place.store.scan(b"\x20", b"\x30", 100)
            upper = [row for row in rows if row[0] >= b"\x20" + route[1:]]
            await patiently(lambda: place.node.ranges.move(2, place.id, target.id))
            await moved_alone(places, place, 2)
            if not was_here:
                place = other
            lower = await place.store.scan(b"\x20", b"\x30", 100)
            assert upper and not [row for row in lower if row in upper]
            keeper, scan = place.node.ranges, place.store.scan
            await place.store._log.write_rows(list(upper))
            keeper._narrowed()

            async def before_it_said_so(low: bytes, *rest: Any, **how: Any) -> Any:
                found = await scan(low, *rest, **how)
                return found[:1] if low == HOLDERS_LOW else found  # (of range 1)

            with monkeypatch.context() as patched:
                patched.setattr(place.store, "scan", before_it_said_so)
                await keeper.read_directory()
                await asyncio.gather(*keeper._opening.values())
            assert not place.node._replicas[2].applied
            await keeper.read_directory()
            assert 2 in place.node._replicas, "it may have become a member just now"
            await places.until(lambda: 2 not in place.node._replicas)
            await places.until(lambda: not keeper._leaving)
            assert await scan(b"\x20", b"\x30", 100) == lower
            await whole(places, bucket, bodies)
            # It comes when it is to come, as ever.
            source = next(p for p in holders(places, 2) if not p.node._replicas[2].leads)
            await patiently(lambda: place.node.ranges.move(2, source.id, place.id))
            await moved_alone(places, source, 2)
            assert keeper.is_here(2)
            await place.down()
            await place.up(places[1].host if place is not places[1] else "", **SETTINGS)
            await whole(places, bucket, bodies)

    run(main(), 42)


def test_a_start_between_two_words_of_range_0_about_a_cut() -> None:
    """The part that was cut off is here, the other part never was, and range 0 was told of the
    first: what it says of the second is as before the cut."""

    async def main() -> None:
        async with Places(count=5) as places:
            await start(places)
            bucket, bodies = await fill(places)
            place = away(places)[0]
            await places.until(lambda: 1 not in place.node._replicas, 60.0)
            route = places[1].node.machine.stream_route(bucket.bucket_id, b"m")
            await patiently(lambda: places[1].node.ranges.split(route[1:]))
            await settled(places, 1, 2)
            source = next(p for p in holders(places, 2) if not p.node._replicas[2].leads)
            await patiently(lambda: place.node.ranges.move(2, source.id, place.id))
            await places.until(lambda: place.node.ranges.is_here(2), 60.0)
            await place.store._log.write_rows([(directory_key(1), EVERYTHING.encode())])
            await place.down()
            await place.up(places[1].host, **SETTINGS)
            assert place.node.ranges.is_here(2)
            await whole(places, bucket, bodies)

    run(main(), 43)


async def moved_alone(places: Places, place: Place, group: int) -> None:
    """As `moved`, of a node that holds another range."""
    await places.until(lambda: group not in place.node._replicas, 60.0)
    await places.until(lambda: not place.node.ranges._leaving, 60.0)
    await settled(places, group)


def test_no_entry_names_a_body_that_no_majority_of_the_members_has() -> None:
    """All who got it leave the range during the upload; its entry would keep the range waiting for
    ever."""

    async def main() -> None:
        async with Places(count=5) as places:
            await start(places)
            bucket, bodies = await fill(places)
            first, second = away(places)
            upload, command = await first.upload(bucket, b"one", body_of(3, 600_000))
            late, late_command = await second.upload(bucket, b"two", body_of(4, 600_000))
            await asyncio.sleep(5)
            had = holders(places)
            assert len(upload.held) == len(late.held) == 3
            # One change of members: those who stay have it.
            await patiently(lambda: first.node.ranges.move(1, had[0].id, first.id))
            await moved(places, had[0])
            await first.node.submit(command, upload.frames)
            bodies[b"one"] = body_of(3, 600_000)
            await whole(places, bucket, bodies)
            # And a second, and a third.
            for source, target in ((had[1], second), (had[2], had[0])):
                await patiently(lambda s=source, t=target: t.node.ranges.move(1, s.id, t.id))  # type: ignore[misc]
                await moved(places, source)
            loop = asyncio.get_running_loop()
            begun_s = loop.time()
            with pytest.raises(Unavailable) as refused:
                await second.node.submit(late_command, late.frames)
            assert not refused.value.uncertain and loop.time() - begun_s < 5
            await whole(places, bucket, bodies)
            await patiently(lambda: first.put(bucket, b"three", b"3"), 5.0)

    run(main(), 40)


def test_who_leads_judges_who_has_a_body_in_the_turn_that_it_proposes_it() -> None:
    async def main() -> None:
        async with Places(count=5) as places:
            await start(places)
            await fill(places)
            leader = leader_of(places)
            core = leader.node._replicas[1].core
            members = list(core.configuration.members())
            for place in holders(places):
                replica = place.node._replicas[1]
                last = replica.core.log.last
                few = [members[:1], [away(places)[0].id]]
                for held in few if place is leader else [*few, members]:
                    with pytest.raises(Unavailable) as refused:
                        propose_held(replica, b"", held, adds=True)
                    assert not refused.value.uncertain and replica.core.log.last == last
            # (What is in the log already when it returns, no later change of members comes before.)
            command = _records.encode_close([], release=False)
            before = core.log.last
            outcome = propose_held(leader.node._replicas[1], command, members[:2], adds=True)
            assert core.log.last == before + 1
            assert (await outcome).error is None

    run(main(), 41)
