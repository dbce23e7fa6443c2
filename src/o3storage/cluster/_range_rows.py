"""Which span of keys a range holds: rows, and the commands that change them.

A span's bounds are row keys without their table byte, so that one cut goes through all tables.
All integers are big-endian.

Rows
    10 group u64 00             the span of a key range, as its own log says: format u8 = 1,
                                parent u32 (0: none), low (u16 and bytes), has high u8, high (u16
                                and bytes). Range 1 has none before it is cut: it holds all keys.
    FE 07 group u32             the same value, as range 0 was told of it: how a node that has no
                                replica of the range learns that there is one
    FE 08                       the last range number that was given: u32
    FE 09 group u32             who holds the range: index u64 of the entry of its log that says so,
                                and the configuration (raft.core)

Commands (FF 01 kind body)
    SPLIT     5   child u32, cut (u16 and bytes)        of the range that is cut
    ALLOCATE  6   nothing; its result is a number       of range 0
    PUBLISH   7   group u32, value of its row           of range 0
    HOLDERS   8   group u32, value of its row           of range 0

Invariants
- A range keeps its low bound for ever; its high bound only falls.
- Spans of ranges, each as its own log says at the same cut of history, never overlap.
- A child begins with the rows of its span as they are at the parent's SPLIT, on every replica, and
  with a log that begins behind (FIRST_INDEX, FIRST_TERM), as if that entry were the SPLIT.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Generator
from typing import NamedTuple

from o3storage.cluster._errors import ClusterError
from o3storage.raft.core import Configuration
from o3storage.runtime.state_machine import Get, Outcome, Read, ReadResult, StateMachine

Apply = Generator[Read, ReadResult, Outcome]

SPLIT, ALLOCATE, PUBLISH, HOLDERS = 5, 6, 7, 8
SPLIT_HEAD = b"\xff\x01\x05"
FIRST_INDEX, FIRST_TERM = 1, 1
"""A child's log begins behind this entry."""

MAX_RANGES = 2048
"""Key ranges of a cluster. Each costs every node a replica, some 20 KiB, and an election when its
leader is lost: twice as many as a cluster was measured with."""
MAX_BOUND_BYTES = 8 + 2 * 1024 + 2
"""A bucket id, and the longest key with all its bytes escaped."""
FIRST_KEY_GROUP = 1
COUNTER_KEY = b"\xfe\x08"
DIRECTORY_LOW, DIRECTORY_HIGH = b"\xfe\x07", b"\xfe\x08"
HOLDERS_LOW, HOLDERS_HIGH = b"\xfe\x09", b"\xfe\x0a"
BUCKET_BYTES = 8
END = b"\x00\x00"
_FORMAT = 1

_U16 = struct.Struct(">H")
_U32 = struct.Struct(">I")
_U64 = struct.Struct(">Q")


class SplitRefused(ClusterError):
    """The range was not cut; the message says why and what to do."""


class RangeMoved(ClusterError):
    """The key belongs to another range now. Nothing was done: it is proposed there."""


class Span(NamedTuple):
    """Keys low <= key < high; high None: to the end."""

    low: bytes
    high: bytes | None
    parent: int = 0
    """The range that it was cut off."""

    def holds(self, bound: bytes) -> bool:
        return bound >= self.low and (self.high is None or bound < self.high)

    def overlaps(self, other: Span) -> bool:
        return (other.high is None or self.low < other.high) and (
            self.high is None or other.low < self.high
        )

    def encode(self) -> bytes:
        high = self.high if self.high is not None else b""
        return b"".join(
            (
                bytes((_FORMAT,)),
                _U32.pack(self.parent),
                _U16.pack(len(self.low)),
                self.low,
                bytes((self.high is not None,)),
                _U16.pack(len(high)),
                high,
            )
        )

    @classmethod
    def decode(cls, value: bytes) -> Span:
        """Raises ValueError."""
        if value[:1] != bytes((_FORMAT,)):
            raise ValueError("not a span of this format")
        (parent,) = _U32.unpack(_exactly(value, 1, 4))
        low, at = _bytes16(value, 5)
        bounded = _exactly(value, at, 1)[0]
        high, at = _bytes16(value, at + 1)
        if at != len(value) or bounded > 1 or (high and not bounded) or (bounded and high <= low):
            raise ValueError("a span that cannot be")
        return cls(low, high if bounded else None, parent)


EVERYTHING = Span(b"", None)


class Holders(NamedTuple):
    """The members of a range as an entry of its log says."""

    entry_index: int
    configuration: Configuration

    def encode(self) -> bytes:
        return _U64.pack(self.entry_index) + self.configuration.encode()

    @classmethod
    def decode(cls, value: bytes) -> Holders:
        """Raises ValueError."""
        (index,) = _U64.unpack(_exactly(value, 0, 8))
        return cls(index, Configuration.decode(value[8:]))


class Split(NamedTuple):
    """The result of a SPLIT."""

    child: int
    lower: Span
    """What the parent keeps."""
    upper: Span
    """The child's."""


# --- rows


def span_key(group: int) -> bytes:
    """The first of all rows of a group."""
    return b"\x10" + group.to_bytes(8, "big") + b"\x00"


def directory_key(group: int) -> bytes:
    return DIRECTORY_LOW + _U32.pack(group)


def holders_key(group: int) -> bytes:
    return HOLDERS_LOW + _U32.pack(group)


def group_of_directory_key(key: bytes) -> int:
    return int.from_bytes(key[2:], "big")


def check_cut(cut: bytes) -> None:
    """ValueError unless the cut goes between keys: it is a bucket id, or one with an escaped key
    and its terminator."""
    whole_key = len(cut) > BUCKET_BYTES + len(END) and cut.endswith(END)
    if len(cut) > MAX_BOUND_BYTES or not (len(cut) == BUCKET_BYTES or whole_key):
        raise ValueError("a cut that goes through a key")


# --- commands


def encode_split(child: int, cut: bytes) -> bytes:
    return SPLIT_HEAD + _U32.pack(child) + _U16.pack(len(cut)) + cut


def encode_allocate() -> bytes:
    return bytes((0xFF, 1, ALLOCATE))


def encode_publish(group: int, span: Span) -> bytes:
    return bytes((0xFF, 1, PUBLISH)) + _U32.pack(group) + span.encode()


def encode_holders(group: int, holders: Holders) -> bytes:
    return bytes((0xFF, 1, HOLDERS)) + _U32.pack(group) + holders.encode()


def apply_split(
    machine: StateMachine,
    group: int,
    span: Span | None,
    configuration_key: Callable[[int], bytes],
    data: bytes,
) -> Apply:
    """Cut `span` of `group`. Raises ValueError for bytes nobody wrote."""
    (child,) = _U32.unpack(_exactly(data, 3, 4))
    cut, at = _bytes16(data, 7)
    check_cut(cut)
    if at != len(data) or span is None or not FIRST_KEY_GROUP < child <= MAX_RANGES:
        raise ValueError("a SPLIT that nobody wrote")
    if not span.holds(cut) or cut == span.low:
        return _refused("the range does not hold that key any more, or begins with it")
    if (yield Get(span_key(child))) is not None:
        return _refused(f"there is a range {child} already")
    row: bytes | None = yield Get(configuration_key(group))
    if row is None:
        raise ValueError(f"range {group} has no members")
    if Configuration.decode(row[8:]).joint:
        return _refused("the range's members are changing just now; try again")
    rows = yield from machine.split(child, cut, span.high)
    if isinstance(rows, str):
        return _refused(rows)
    split = Split(child, Span(span.low, cut, span.parent), Span(cut, span.high, group))
    rows += [
        (span_key(group), split.lower.encode()),
        (span_key(child), split.upper.encode()),
        (configuration_key(child), FIRST_INDEX.to_bytes(8, "big") + row[8:]),
    ]
    return Outcome(split, None, rows)


def _refused(why: str) -> Outcome:
    return Outcome(None, SplitRefused(why))


def _apply_allocate(_: StateMachine, data: bytes) -> Apply:
    if len(data) != 3:
        raise ValueError("malformed cluster command")
    row = yield Get(COUNTER_KEY)
    number = FIRST_KEY_GROUP if row is None else _U32.unpack(row)[0]
    number += 1
    if number % 256 == 255:  # (see RangeTable.row_spans)
        number += 1
    if number > MAX_RANGES:
        return _refused(f"a cluster has at most {MAX_RANGES} ranges")
    return Outcome(number, None, [(COUNTER_KEY, _U32.pack(number))])


def _apply_publish(_: StateMachine, data: bytes) -> Apply:
    (group,) = _U32.unpack(_exactly(data, 3, 4))
    span = Span.decode(data[7:])
    key = directory_key(group)
    row = yield Get(key)
    if row is not None:
        known = Span.decode(row)
        if span.high is None or (known.high is not None and known.high <= span.high):
            return Outcome(False)  # an older one, told late
    return Outcome(True, None, [(key, span.encode())])


def _apply_holders(_: StateMachine, data: bytes) -> Apply:
    (group,) = _U32.unpack(_exactly(data, 3, 4))
    holders = Holders.decode(data[7:])
    key = holders_key(group)
    row = yield Get(key)
    if row is not None and Holders.decode(row).entry_index >= holders.entry_index:
        return Outcome(False)  # told late
    return Outcome(True, None, [(key, data[7:])])


KINDS = {ALLOCATE: _apply_allocate, PUBLISH: _apply_publish, HOLDERS: _apply_holders}


def _bytes16(data: bytes, at: int) -> tuple[bytes, int]:
    (size,) = _U16.unpack(_exactly(data, at, 2))
    return _exactly(data, at + 2, size), at + 2 + size


def _exactly(data: bytes, at: int, size: int) -> bytes:
    if at + size > len(data):
        raise ValueError("cluster command is cut short")
    return data[at : at + size]
