"""Which nodes belong to the cluster: their rows in range 0 and the commands that change them.

Commands, as in `_records` (0xFF | version 1 | kind | body, integers big-endian):
      ADD       node u64, record u16 + bytes, count u16, (epoch u32, wrapped key)*     a node joins
      ANNOUNCE  node u64, announcement          where a member listens and what it speaks
      STATE     node u64, state u8, flags u8, least u8      it is to be drained, leaves, or stays
      REMOVE    node u64, epoch u32, count u16, (node u64, wrapped key)*    it has left; a new epoch
      RAISE     version u16                     from now on every node speaks this version
      SHARE     name u8 + bytes, value u16 + bytes    a value that all nodes share, replaced

Each is checked again when it is applied, against the rows of that moment, so that two of them may
race; a refusal is a MembershipRefused and changes nothing.

Rows, table 0xFE of range 0:
    FE 02                   cluster id, 16 bytes
    FE 03 epoch u32 node u64    the epoch's key wrapped to the node
    FE 04 node u64          node record: identity 32 | exchange 32 | joined_ns u64 | and, unless the
                            node never announced itself: layout u8 = 1 | state u8 | flags u8 |
                            announcement
    FE 05                   the version that the cluster speaks, u16
    FE 06 name              a shared value
announcement: lowest u16 | highest u16 | host u8 + UTF-8 | url u8 + UTF-8 | count u8, (host u8 +
ASCII, port u16)*

A node that left keeps its row as a tombstone, so that it cannot come back by accident.
"""

from __future__ import annotations

import enum
import struct
from collections.abc import Generator, Sequence
from dataclasses import dataclass, replace

from o3storage.cluster._errors import MembershipRefused
from o3storage.crypto import WRAPPED_BYTES
from o3storage.runtime.fields import FieldReader
from o3storage.runtime.network import Address
from o3storage.runtime.state_machine import Get, Outcome, Read, ReadResult, Scan

Apply = Generator[Read, ReadResult, Outcome]

ADD, ANNOUNCE, STATE, REMOVE, RAISE, SHARE = 16, 17, 18, 19, 20, 21

FIRST_VERSION = 1
"""The version of commands and frames that every node of the first release speaks."""
RANGES_VERSION = 2
"""From this version on nodes know the commands of `_range_rows`; one that does not stops there."""
PLACES_VERSION = 3
"""From this version on a range need not have a replica on every node: others ask its holders."""
MAX_NODES = 21
"""5 voters and 16 learners of range 0 (raft/core); further nodes need a tree of ranges."""
MAX_NODE_ROWS = 1000
"""Members and tombstones; a cluster that removed more nodes than this has another problem."""
MAX_ADDRESSES = 8
"""Of one node: a handful of networks, IPv4 and IPv6."""
MAX_NAME_BYTES = 255
"""Host labels, URLs, addresses, names of shared values: one length byte."""
MAX_SHARED_BYTES = 4096
"""A shared value is a key or a setting."""
MAX_EPOCHS = 4000
"""Epoch keys that one ADD hands over: it stays below 1 MiB."""

SHRINK = 1
"""Record flag: fewer voters may remain than before, the operator said so."""

_FIXED = struct.Struct(">32s32sQ")
_U8 = struct.Struct(">B")
_U16 = struct.Struct(">H")
_U32 = struct.Struct(">I")
_U64 = struct.Struct(">Q")
_LAYOUT = 1


class NodeState(enum.IntEnum):
    MEMBER = 0
    DRAINING = 1
    """It keeps no replica that votes, but stays in the cluster."""
    LEAVING = 2
    """As draining, and removed once no range needs it."""
    REMOVED = 3


@dataclass(frozen=True, slots=True)
class Announcement:
    """What a node says of itself. `lowest` and `highest`: versions spoken. `host`: the machine, for
    placing replicas apart; empty: a machine of its own. `url`: where it serves S3."""

    lowest: int = FIRST_VERSION
    highest: int = FIRST_VERSION
    host: str = ""
    url: str = ""
    addresses: tuple[Address, ...] = ()

    def encode(self) -> bytes:
        if len(self.addresses) > MAX_ADDRESSES:
            raise ValueError(f"a node has at most {MAX_ADDRESSES} addresses")
        parts = [
            _U16.pack(self.lowest),
            _U16.pack(self.highest),
            _short(self.host.encode()),
            _short(self.url.encode()),
            _U8.pack(len(self.addresses)),
        ]
        for address in self.addresses:
            parts += (_short(address.host.encode("ascii")), _U16.pack(address.port))
        return b"".join(parts)

    @classmethod
    def read(cls, reader: FieldReader) -> Announcement:
        """Raises ValueError."""
        lowest, highest = reader.u16(), reader.u16()
        if not 1 <= lowest <= highest:
            raise ValueError("the versions of an announcement are out of order")
        host, url = reader.bytes8().decode(), reader.bytes8().decode()
        count = reader.u8()
        if count > MAX_ADDRESSES:
            raise ValueError("an announcement has too many addresses")
        addresses = []
        for _ in range(count):
            name = reader.bytes8().decode("ascii")
            addresses.append(Address(name, reader.u16()))
        return cls(lowest, highest, host, url, tuple(addresses))


@dataclass(frozen=True, slots=True)
class NodeRecord:
    """A row of FE 04."""

    node: int
    identity: bytes
    """Ed25519 public key, 32 bytes."""
    exchange: bytes
    """X25519 public key, 32 bytes."""
    joined_ns: int
    state: NodeState = NodeState.MEMBER
    flags: int = 0
    announced: Announcement = Announcement()

    @property
    def host(self) -> str:
        """The machine: no two replicas of a range share one."""
        return self.announced.host or f"{self.node:016x}"

    def encode(self) -> bytes:
        """The row's value."""
        if len(self.identity) != 32 or len(self.exchange) != 32:
            raise ValueError("an identity and an exchange key have 32 bytes")
        fixed = _FIXED.pack(self.identity, self.exchange, self.joined_ns)
        return fixed + bytes((_LAYOUT, self.state, self.flags)) + self.announced.encode()

    @classmethod
    def decode(cls, node: int, value: bytes) -> NodeRecord:
        """Raises ValueError."""
        reader = FieldReader(value)
        identity, exchange, joined_ns = _FIXED.unpack(reader.take(_FIXED.size))
        if reader.done:
            return cls(node, identity, exchange, joined_ns)
        if reader.u8() != _LAYOUT:
            raise ValueError("a node record of an unknown layout")
        state, flags = NodeState(reader.u8()), reader.u8()
        announced = Announcement.read(reader)
        reader.end()
        return cls(node, identity, exchange, joined_ns, state, flags, announced)


# --- keys of rows


CLUSTER_ID_KEY = b"\xfe\x02"
VERSION_KEY = b"\xfe\x05"
NODES_LOW, NODES_HIGH = b"\xfe\x04", b"\xfe\x05"
EPOCHS_HIGH = b"\xfe\x04"


def epoch_prefix() -> bytes:
    return b"\xfe\x03"


def epoch_key(epoch: int, node: int) -> bytes:
    return b"\xfe\x03" + _U32.pack(epoch) + _U64.pack(node)


def split_epoch_key(key: bytes) -> tuple[int, int]:
    epoch, node = struct.unpack(">IQ", key[2:])
    return epoch, node


def node_key(node: int) -> bytes:
    return b"\xfe\x04" + _U64.pack(node)


def node_of_key(key: bytes) -> int:
    number: int = _U64.unpack(key[2:])[0]
    return number


def shared_key(name: str) -> bytes:
    return b"\xfe\x06" + name.encode()


# --- commands


def _head(kind: int) -> bytes:
    return bytes((0xFF, 1, kind))


def encode_add(record: NodeRecord, epochs: Sequence[tuple[int, bytes]]) -> bytes:
    """`epochs`: (epoch, its key wrapped to the node) of every epoch there is."""
    if len(epochs) > MAX_EPOCHS:
        raise ValueError("too many epochs for one command")
    value = record.encode()
    parts = [_head(ADD), _U64.pack(record.node), _U16.pack(len(value)), value]
    parts.append(_U16.pack(len(epochs)))
    for epoch, wrapped in epochs:
        parts += (_U32.pack(epoch), wrapped)
    return b"".join(parts)


def encode_announce(node: int, announced: Announcement) -> bytes:
    return _head(ANNOUNCE) + _U64.pack(node) + announced.encode()


def encode_state(node: int, state: NodeState, *, flags: int = 0, least: int = 0) -> bytes:
    """`least`: refuse it when fewer members than this would remain."""
    return _head(STATE) + _U64.pack(node) + bytes((state, flags, least))


def encode_remove(node: int, epoch: int, wrapped: Sequence[tuple[int, bytes]]) -> bytes:
    """`epoch`: the new one; `wrapped`: its key for every node that stays."""
    parts = [_head(REMOVE), _U64.pack(node), _U32.pack(epoch), _U16.pack(len(wrapped))]
    for member, key in wrapped:
        parts += (_U64.pack(member), key)
    return b"".join(parts)


def encode_raise(version: int) -> bytes:
    return _head(RAISE) + _U16.pack(version)


def encode_share(name: str, value: bytes) -> bytes:
    if len(value) > MAX_SHARED_BYTES:
        raise ValueError(f"a shared value has at most {MAX_SHARED_BYTES} bytes")
    return _head(SHARE) + _short(name.encode()) + _U16.pack(len(value)) + value


# --- apply: `data` begins with the head of 3 bytes


def _apply_add(_: object, data: bytes) -> Apply:
    reader = FieldReader(data, 3)
    node = reader.u64()
    record = NodeRecord.decode(node, reader.take(reader.u16()))
    epochs = [(reader.u32(), reader.take(WRAPPED_BYTES)) for _number in range(reader.u16())]
    reader.end()
    found = yield Get(node_key(node))
    if found is not None:
        before = NodeRecord.decode(node, found)
        if before.state is NodeState.REMOVED:
            return _refused(REMOVED_TEXT)
        if (before.identity, before.exchange) != (record.identity, record.exchange):
            return _refused("another node has the same number; start with an empty data directory")
        if before.joined_ns != record.joined_ns:
            return _refused(
                "a node with these keys is a member already, and here its data is gone: remove it "
                "(o3storage node replace), and start with an empty data directory"
            )
        # An answer that was lost: it joined already.
        return Outcome("member")
    version = yield Get(VERSION_KEY)
    spoken = _U16.unpack(version)[0] if version else FIRST_VERSION
    if not record.announced.lowest <= spoken <= record.announced.highest:
        return _refused(
            f"the cluster speaks version {spoken}, this node {record.announced.lowest} to "
            f"{record.announced.highest}; install the release that the cluster runs"
        )
    newest = max((epoch for epoch, _wrapped in epochs), default=0)
    later = yield Scan(epoch_key(newest + 1, 0), EPOCHS_HIGH, 1)
    if later or not epochs:
        return _refused("a newer epoch began meanwhile; try again")
    rows = yield Scan(NODES_LOW, NODES_HIGH, MAX_NODE_ROWS + 1)
    members = [1 for key, value in rows if _state(value) is not NodeState.REMOVED]
    if len(members) >= MAX_NODES or len(rows) > MAX_NODE_ROWS:
        return _refused(f"the cluster has {len(members)} nodes; more than {MAX_NODES} it cannot")
    joined = replace(record, state=NodeState.MEMBER, flags=0)
    written: list[tuple[bytes, bytes | None]] = [(node_key(node), joined.encode())]
    written += [(epoch_key(epoch, node), wrapped) for epoch, wrapped in epochs]
    return Outcome("joined", None, written)


def _apply_announce(_: object, data: bytes) -> Apply:
    reader = FieldReader(data, 3)
    node = reader.u64()
    announced = Announcement.read(reader)
    reader.end()
    record = yield from _member(node)
    if isinstance(record, Outcome):
        return record
    return Outcome(None, None, [(node_key(node), replace(record, announced=announced).encode())])


def _apply_state(_: object, data: bytes) -> Apply:
    reader = FieldReader(data, 3)
    node = reader.u64()
    state, flags, least = NodeState(reader.u8()), reader.u8(), reader.u8()
    reader.end()
    if state is NodeState.REMOVED:
        raise ValueError("STATE does not remove")
    record = yield from _member(node)
    if isinstance(record, Outcome):
        return record
    if state is not NodeState.MEMBER:
        rows = yield Scan(NODES_LOW, NODES_HIGH, MAX_NODE_ROWS + 1)
        left = [
            key
            for key, value in rows
            if key != node_key(node) and _state(value) is NodeState.MEMBER
        ]
        if not left:
            return _refused("it is the last node; a cluster cannot be without one")
        if len(left) < least:
            return _refused(
                f"{len(left)} nodes would remain for {least} replicas of each range: add a node "
                "first, or say --shrink to keep fewer replicas"
            )
    changed = replace(record, state=state, flags=flags)
    return Outcome(None, None, [(node_key(node), changed.encode())])


def _apply_remove(_: object, data: bytes) -> Apply:
    reader = FieldReader(data, 3)
    node, epoch = reader.u64(), reader.u32()
    wrapped = [(reader.u64(), reader.take(WRAPPED_BYTES)) for _number in range(reader.u16())]
    reader.end()
    record = yield from _member(node)
    if isinstance(record, Outcome):
        return record
    if record.state is not NodeState.LEAVING:
        return _refused("the node is not leaving any more")
    later = yield Scan(epoch_key(epoch, 0), EPOCHS_HIGH, 1)
    before = yield Scan(epoch_key(epoch - 1, 0), epoch_key(epoch, 0), 1)
    if later or not before:
        return _refused("another epoch began meanwhile")
    rows = yield Scan(NODES_LOW, NODES_HIGH, MAX_NODE_ROWS + 1)
    stay = [node_of_key(key) for key, value in rows if _state(value) is not NodeState.REMOVED]
    stay.remove(node)
    if sorted(stay) != sorted(member for member, _key in wrapped):
        return _refused("the members changed meanwhile")
    gone = replace(record, state=NodeState.REMOVED)
    written: list[tuple[bytes, bytes | None]] = [(node_key(node), gone.encode())]
    written += [(epoch_key(epoch, member), key) for member, key in wrapped]
    return Outcome(None, None, written)


def _apply_raise(_: object, data: bytes) -> Apply:
    reader = FieldReader(data, 3)
    version = reader.u16()
    reader.end()
    now = yield Get(VERSION_KEY)
    spoken = _U16.unpack(now)[0] if now else FIRST_VERSION
    rows = yield Scan(NODES_LOW, NODES_HIGH, MAX_NODE_ROWS + 1)
    records = [NodeRecord.decode(node_of_key(key), value) for key, value in rows]
    live = [record for record in records if record.state is not NodeState.REMOVED]
    if version <= spoken:
        return _refused(f"the cluster speaks version {spoken} already")
    if any(not r.announced.lowest <= version <= r.announced.highest for r in live):
        return _refused(f"not every node speaks version {version}")
    return Outcome(version, None, [(VERSION_KEY, _U16.pack(version))])


def _apply_share(_: object, data: bytes) -> Apply:
    yield from ()
    reader = FieldReader(data, 3)
    name = reader.bytes8()
    value = reader.take(reader.u16())
    reader.end()
    return Outcome(None, None, [(b"\xfe\x06" + name, value)])


KINDS = {
    ADD: _apply_add,
    ANNOUNCE: _apply_announce,
    STATE: _apply_state,
    REMOVE: _apply_remove,
    RAISE: _apply_raise,
    SHARE: _apply_share,
}

REMOVED_TEXT = (
    "this node was removed from the cluster and cannot come back; to use the machine again, start "
    "with an empty data directory"
)


def _member(node: int) -> Generator[Read, ReadResult, NodeRecord | Outcome]:
    found = yield Get(node_key(node))
    if found is None:
        return _refused(f"the cluster has no node {node:016x}")
    record = NodeRecord.decode(node, found)
    if record.state is NodeState.REMOVED:
        return _refused(f"node {node:016x} was removed")
    return record


def _state(value: bytes) -> NodeState:
    return NodeState(value[_FIXED.size + 1]) if len(value) > _FIXED.size else NodeState.MEMBER


def _refused(text: str) -> Outcome:
    return Outcome(error=MembershipRefused(text))


def _short(data: bytes) -> bytes:
    if len(data) > MAX_NAME_BYTES:
        raise ValueError(f"a name has at most {MAX_NAME_BYTES} bytes")
    return _U8.pack(len(data)) + data
