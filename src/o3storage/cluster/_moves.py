"""Replicas that are to move: which range, from which node, to which. All integers are big-endian.

Row of range 0
    FE 0A group u32         source u64, target u64: the range's replica moves from one to the other

Command (FF 01 kind body) of range 0
    MOVE      9   group u32, source u64, target u64, wanted u8: 1 begins it, 0 ends it, if it is
                  this one that goes on

The leader of the range reads the row and has `_placement` make the change; when the target votes
and the source is no member, or the target is no member of the cluster any more, it ends the move.
So a move outlives every node that takes part in it, and goes on after any restart.

The leader of range 0 begins moves by itself, one at a time, while some node holds at least three
replicas more than another (`spread`). Balancing by load will be a further rule of that function.
"""

from __future__ import annotations

import struct
from collections.abc import Generator, Mapping, Sequence
from typing import NamedTuple

from o3storage.cluster._errors import MembershipRefused
from o3storage.cluster._node_records import (
    NODES_HIGH,
    NODES_LOW,
    NodeRecord,
    NodeState,
    node_of_key,
)
from o3storage.cluster._range_rows import Holders, holders_key
from o3storage.runtime.state_machine import Get, Outcome, Read, ReadResult, Scan

Apply = Generator[Read, ReadResult, Outcome]

MOVE = 9
MOVES_LOW, MOVES_HIGH = b"\xfe\x0a", b"\xfe\x0b"
SPREAD_FROM = 3
"""Replicas that one node has more than another, and one of them moves. With two, the move of an
operator would be undone at once where all had the same number."""
MAX_ROWS = 1000
"""Node records read to judge a move: as many as there may be."""

_ROW = struct.Struct(">QQ")
_COMMAND = struct.Struct(">IQQB")


class Move(NamedTuple):
    source: int
    target: int

    def encode(self) -> bytes:
        return _ROW.pack(*self)

    @classmethod
    def decode(cls, value: bytes) -> Move:
        """Raises ValueError."""
        if len(value) != _ROW.size:
            raise ValueError("a move of the wrong size")
        return cls(*_ROW.unpack(value))


def move_key(group: int) -> bytes:
    return MOVES_LOW + group.to_bytes(4, "big")


def encode_move(group: int, move: Move, *, wanted: bool) -> bytes:
    return bytes((0xFF, 1, MOVE)) + _COMMAND.pack(group, *move, wanted)


def _apply_move(_: object, data: bytes) -> Apply:
    if len(data) != 3 + _COMMAND.size:
        raise ValueError("malformed cluster command")
    group, source, target, wanted = _COMMAND.unpack_from(data, 3)
    move, key = Move(source, target), move_key(group)
    row = yield Get(key)
    now = Move.decode(row) if row is not None else None
    if not wanted:
        return Outcome(now == move, None, [(key, None)] if now == move else [])
    if now == move:
        return Outcome(True)
    if now is not None:
        return _refused(
            f"range {group} is moving from {now.source:016x} to {now.target:016x}: wait for it, or "
            f"take it back with `o3storage range stay {group}`"
        )
    found = yield Get(holders_key(group))
    if found is None:
        return _refused(
            f"there is no key range {group}, or nobody has told who holds it yet; "
            "`o3storage range list` shows all"
        )
    configuration = Holders.decode(found).configuration
    if configuration.joint:
        return _refused(f"the members of range {group} are changing just now; try again")
    if source not in configuration.members():
        return _refused(f"node {source:016x} holds no replica of range {group}")
    if target in configuration.members():
        return _refused(f"node {target:016x} holds a replica of range {group} already")
    rows = yield Scan(NODES_LOW, NODES_HIGH, MAX_ROWS)
    nodes = {node_of_key(k): NodeRecord.decode(node_of_key(k), value) for k, value in rows}
    record = nodes.get(target)
    if record is None or record.state is not NodeState.MEMBER:
        state = "no node of the cluster" if record is None else record.state.name.lower()
        return _refused(f"node {target:016x} is {state}: it takes no replica")
    others = [nodes[n] for n in configuration.members() if n != source and n in nodes]
    if any(other.host == record.host for other in others):
        return _refused(
            f"another replica of range {group} is on the same machine, {record.host}: name a node "
            "elsewhere"
        )
    return Outcome(True, None, [(key, move.encode())])


def _refused(text: str) -> Outcome:
    return Outcome(error=MembershipRefused(text))


KINDS = {MOVE: _apply_move}


def has_ended(move: Move, holders: Holders, target: NodeRecord | None) -> bool:
    """Whether there is nothing left to do: it is done, or cannot be."""
    if target is None or target.state is not NodeState.MEMBER:
        return True
    configuration = holders.configuration
    if configuration.joint or move.source in configuration.members():
        return False
    return configuration.votes(move.target) or move.target not in configuration.members()


def spread(nodes: Sequence[NodeRecord], holders: Mapping[int, Holders]) -> tuple[int, Move] | None:
    """(range, move) that brings the nodes' numbers of replicas closer together; None: they differ
    by less than SPREAD_FROM, or no move between the fullest and the emptiest keeps replicas on
    machines of their own. `holders` names all key ranges."""
    stay = [record for record in nodes if record.state is NodeState.MEMBER]
    if any(h.configuration.joint for h in holders.values()):
        return None
    counts = {record.node: 0 for record in stay}
    for held in holders.values():
        for node in held.configuration.members():
            if node in counts:
                counts[node] += 1
    hosts = {record.node: record.host for record in nodes}
    for target in sorted(stay, key=lambda record: (counts[record.node], record.node)):
        fuller = [node for node in counts if counts[node] >= counts[target.node] + SPREAD_FROM]
        for source in sorted(fuller, key=lambda node: (-counts[node], node)):
            for group in sorted(holders):
                members = holders[group].configuration.members()
                if source not in members or target.node in members:
                    continue
                if any(hosts.get(n) == target.host for n in members if n != source):
                    continue
                return group, Move(source, target.node)
    return None
