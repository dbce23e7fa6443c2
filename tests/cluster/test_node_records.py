"""Node rows and the commands that change them, against a model of who is in the cluster."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from o3storage.cluster import _node_records as nodes
from o3storage.cluster import _records
from o3storage.cluster._errors import MembershipRefused
from o3storage.cluster._node_records import Announcement, NodeRecord, NodeState
from o3storage.crypto import WRAPPED_BYTES
from o3storage.runtime.network import Address
from o3storage.runtime.state_machine import Get, Outcome, Scan

WRAPPED = bytes(WRAPPED_BYTES)


class Rows(dict[bytes, bytes]):
    """Rows of range 0, with the commands applied to them."""

    def apply(self, data: bytes) -> Outcome:
        generator = _records.apply(None, data)  # type: ignore[arg-type]
        try:
            read = next(generator)
            while True:
                read = generator.send(self._read(read))
        except StopIteration as stop:
            outcome: Outcome = stop.value
        for key, value in outcome.rows:
            if value is None:
                self.pop(key, None)
            else:
                self[key] = value
        return outcome

    def _read(self, read: Any) -> Any:
        if isinstance(read, Get):
            return self.get(read.key)
        assert isinstance(read, Scan)
        found = [(key, self[key]) for key in sorted(self) if read.low <= key < read.high]
        return found[: read.limit]

    def records(self) -> dict[int, NodeRecord]:
        low, high = nodes.NODES_LOW, nodes.NODES_HIGH
        found = [key for key in self if low <= key < high]
        return {
            n: NodeRecord.decode(n, self[nodes.node_key(n)]) for n in map(nodes.node_of_key, found)
        }

    def states(self) -> dict[int, NodeState]:
        return {node: record.state for node, record in self.records().items()}


def record(node: int, **changes: Any) -> NodeRecord:
    key = bytes((node,)) * 32
    return NodeRecord(node, key, key, node * 10, **changes)


def cluster(*members: int) -> Rows:
    rows = Rows()
    first = record(members[0])
    value = first.identity + first.exchange + first.joined_ns.to_bytes(8, "big")
    rows.apply(
        _records.encode_set(
            [(nodes.epoch_key(1, first.node), WRAPPED), (nodes.node_key(first.node), value)]
        )
    )
    for node in members[1:]:
        assert rows.apply(nodes.encode_add(record(node), [(1, WRAPPED)])).result == "joined"
    return rows


def refused(outcome: Outcome) -> str:
    assert isinstance(outcome.error, MembershipRefused) and outcome.rows == []
    return str(outcome.error)


hosts = st.text("abcdefghij.:0123456789", min_size=1, max_size=40)
announcements = st.builds(
    Announcement,
    st.integers(1, 5),
    st.integers(5, 65535),
    st.text(max_size=60),
    st.text(max_size=60),
    st.lists(st.builds(Address, hosts, st.integers(0, 65535)), max_size=8).map(tuple),
)


@given(
    announcements,
    st.sampled_from(NodeState),
    st.integers(0, 255),
    st.binary(min_size=32, max_size=32),
    st.integers(1, 2**63),
)
def test_a_record_survives_its_encoding(
    announced: Announcement, state: NodeState, flags: int, key: bytes, node: int
) -> None:
    made = NodeRecord(node, key, key[::-1], 17, state, flags, announced)
    assert NodeRecord.decode(node, made.encode()) == made


@given(announcements, st.data())
def test_a_cut_or_lengthened_record_is_refused(announced: Announcement, data: Any) -> None:
    value = record(1, announced=announced).encode()
    cut = data.draw(st.integers(0, len(value) - 1))
    if cut != 72:  # the record of a node that never announced itself
        with pytest.raises(ValueError):
            NodeRecord.decode(1, value[:cut])
    with pytest.raises(ValueError):
        NodeRecord.decode(1, value + b"x")


@given(st.binary(max_size=200), st.sampled_from(sorted(nodes.KINDS)))
def test_bytes_that_nobody_wrote_are_a_value_error(body: bytes, kind: int) -> None:
    rows = cluster(1, 2)
    before = dict(rows)
    try:
        outcome = rows.apply(b"\xff\x01" + bytes((kind,)) + body)
    except ValueError:
        assert rows == before
    else:
        assert outcome.error is None or rows == before


def test_joining_twice_is_joining_once() -> None:
    rows = cluster(1, 2)
    before = dict(rows)
    again = rows.apply(nodes.encode_add(record(2), [(1, WRAPPED)]))
    assert again.result == "member" and again.error is None and rows == before


def test_who_may_not_join() -> None:
    rows = cluster(1, 2, 3)
    rows.apply(nodes.encode_state(3, NodeState.LEAVING))
    assert rows.apply(nodes.encode_remove(3, 2, [(1, WRAPPED), (2, WRAPPED)])).error is None
    both = [(1, WRAPPED), (2, WRAPPED)]
    assert "removed" in refused(rows.apply(nodes.encode_add(record(3), both)))
    other = NodeRecord(2, bytes(32), bytes(32), 0)
    assert "same number" in refused(rows.apply(nodes.encode_add(other, both)))
    # Made before the removal, so without the newest epoch's key.
    assert "try again" in refused(rows.apply(nodes.encode_add(record(4), [(1, WRAPPED)])))
    assert "try again" in refused(rows.apply(nodes.encode_add(record(4), [])))
    future = record(4, announced=Announcement(2, 3))
    assert "speaks version 1" in refused(rows.apply(nodes.encode_add(future, both)))
    for node in range(4, nodes.MAX_NODES + 2):
        assert rows.apply(nodes.encode_add(record(node), both)).result == "joined"
    assert "nodes" in refused(rows.apply(nodes.encode_add(record(99), both)))


def test_nobody_joins_as_anything_but_a_member() -> None:
    rows = cluster(1)
    crooked = record(2, state=NodeState.REMOVED, flags=nodes.SHRINK)
    rows.apply(nodes.encode_add(crooked, [(1, WRAPPED)]))
    assert rows.records()[2] == record(2)


def test_removal_needs_leaving_all_members_and_the_next_epoch() -> None:
    rows = cluster(1, 2, 3)
    stay = [(1, WRAPPED), (2, WRAPPED)]
    assert "not leaving" in refused(rows.apply(nodes.encode_remove(3, 2, stay)))
    rows.apply(nodes.encode_state(3, NodeState.LEAVING))
    assert "members changed" in refused(rows.apply(nodes.encode_remove(3, 2, stay[:1])))
    assert "epoch" in refused(rows.apply(nodes.encode_remove(3, 1, stay)))
    assert "epoch" in refused(rows.apply(nodes.encode_remove(3, 3, stay)))
    assert rows.apply(nodes.encode_remove(3, 2, stay)).error is None
    assert nodes.epoch_key(2, 3) not in rows and rows[nodes.epoch_key(2, 1)] == WRAPPED
    assert "removed" in refused(rows.apply(nodes.encode_announce(3, Announcement())))
    assert "removed" in refused(rows.apply(nodes.encode_state(3, NodeState.MEMBER)))


def test_too_few_may_not_remain() -> None:
    rows = cluster(1, 2, 3)
    leaving = nodes.encode_state(3, NodeState.LEAVING, least=3)
    assert "--shrink" in refused(rows.apply(leaving))
    assert rows.apply(nodes.encode_add(record(4), [(1, WRAPPED)])).error is None
    assert rows.apply(leaving).error is None
    # The one that leaves does not count as one that remains.
    assert "--shrink" in refused(rows.apply(nodes.encode_state(4, NodeState.DRAINING, least=3)))
    rows.apply(nodes.encode_state(2, NodeState.LEAVING, flags=nodes.SHRINK))
    rows.apply(nodes.encode_state(4, NodeState.LEAVING, flags=nodes.SHRINK))
    assert "last node" in refused(rows.apply(nodes.encode_state(1, NodeState.LEAVING)))
    assert rows.apply(nodes.encode_state(3, NodeState.MEMBER)).error is None
    assert rows.states()[3] is NodeState.MEMBER


def test_the_version_rises_when_every_node_speaks_it() -> None:
    rows = cluster(1, 2)
    assert "not every node" in refused(rows.apply(nodes.encode_raise(2)))
    for node in (1, 2):
        rows.apply(nodes.encode_announce(node, Announcement(1, 2)))
    assert rows.apply(nodes.encode_raise(2)).result == 2
    assert "already" in refused(rows.apply(nodes.encode_raise(2)))
    assert "install" in refused(rows.apply(nodes.encode_add(record(3), [(1, WRAPPED)])))


def test_a_shared_value_is_replaced() -> None:
    rows = cluster(1)
    rows.apply(nodes.encode_share("root key", b"one"))
    rows.apply(nodes.encode_share("root key", b"two"))
    assert rows[nodes.shared_key("root key")] == b"two"


steps = st.lists(
    st.tuples(
        st.sampled_from(["add", "drain", "leave", "stay", "remove"]),
        st.integers(1, 6),
        st.sampled_from([0, 1, 3]),
    ),
    max_size=40,
)


@settings(max_examples=200)
@given(steps)
def test_any_sequence_of_changes_as_a_model_has_it(sequence: list[tuple[str, int, int]]) -> None:
    rows = cluster(1)
    model = {1: NodeState.MEMBER}
    epoch = 1
    for what, node, least in sequence:
        state = model.get(node)
        if what == "add":
            keys = [(e, WRAPPED) for e in range(1, epoch + 1)]
            ok = state is not NodeState.REMOVED
            if state is None:
                model[node] = NodeState.MEMBER
            outcome = rows.apply(nodes.encode_add(record(node), keys))
        elif what == "remove":
            stay = [n for n, s in model.items() if s is not NodeState.REMOVED and n != node]
            ok = state is NodeState.LEAVING
            if ok:
                epoch += 1
                model[node] = NodeState.REMOVED
            wrapped = [(n, WRAPPED) for n in stay]
            outcome = rows.apply(nodes.encode_remove(node, epoch if ok else epoch + 1, wrapped))
        else:
            new = {
                "drain": NodeState.DRAINING,
                "leave": NodeState.LEAVING,
                "stay": NodeState.MEMBER,
            }[what]
            left = [n for n, s in model.items() if s is NodeState.MEMBER and n != node]
            ok = state is not None and state is not NodeState.REMOVED
            if ok and new is not NodeState.MEMBER:
                ok = len(left) >= max(least, 1)
            if ok:
                model[node] = new
            outcome = rows.apply(nodes.encode_state(node, new, least=least))
        assert (outcome.error is None) == ok, (what, node, outcome.error)
        assert rows.states() == model
        for member, found in model.items():
            has = {e for e in range(1, epoch + 1) if nodes.epoch_key(e, member) in rows}
            if found is not NodeState.REMOVED:
                assert has == set(range(1, epoch + 1)), "every member holds every epoch's key"
            else:
                assert epoch not in has or epoch == 1, "who left has no key of a later epoch"
