"""The cluster's own commands and rows, beside those of the state machine.

An entry's data that begins with 0xFF is the cluster's, all else is the state machine's command.
All integers are big-endian.

    0xFF | version 1 | kind | body
      SET      count u16, (key u16 + bytes, value u32 + bytes)*   rows of table 0xFE; rows that
                                                                  exist already stay as they are
      OPEN     route u16 + bytes, session u64, started_ns u64, stream 16
                                      a body larger than one small frame begins to be stored
      CARRY    flags u8, route u16 + bytes, session u64, started_ns u64, stream 16, [frames u32,]
               then the state machine's command that names the stream
      CLOSE    release u8, count u16, (row key u16 + bytes)*      streams that were given up

Rows, table 0xFE (one copy, of range 0 unless a group is named):
    FE 01 group u32                 applied configuration: index u64 | raft configuration
    FE 02 to FE 06                  the cluster's nodes and keys: see `_node_records`
    FE 07, FE 08                    the key ranges: see `_range_rows`
Rows, table 0xFD (of the key range that the route names, and split with it):
    FD route[1:] stream 16          an open stream: route[0] u8 | session u64 | started_ns u64

An open stream's row goes with the entry that names the stream. What is left after a crash or a
failed upload is given up by the state machine's own command (`StateMachine.abandon`); only when
that has said "abandoned" does CLOSE release the frames.
"""

from __future__ import annotations

import struct
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from o3storage.cluster import _moves, _node_records, _range_rows
from o3storage.cluster._node_records import (
    CLUSTER_ID_KEY,
    epoch_key,
    epoch_prefix,
    node_key,
    split_epoch_key,
)
from o3storage.raft.core import COMMAND, Entry
from o3storage.runtime.state_machine import Get, Outcome, Read, ReadResult, StateMachine

__all__ = ["CLUSTER_ID_KEY", "epoch_key", "epoch_prefix", "node_key", "split_epoch_key"]

Apply = Generator[Read, ReadResult, Outcome]

OWN = 0xFF
VERSION = 1
SET, OPEN, CARRY, CLOSE = 1, 2, 3, 4
OF_RANGES = bytes((OPEN, CARRY, CLOSE, _range_rows.SPLIT))
"""Kinds of commands that a key range takes; all others are of range 0, and write its rows."""

CLOSE_ON_SUCCESS = 1
"""CARRY: the stream has an open row; it goes when the command succeeds."""
OPEN_ON_ERROR = 2
"""CARRY: the stream has no open row (its only frame rides with the entry); it gets one when the
command fails, so that the frame is given up like any other."""
COUNTED = 4
"""CARRY: the number of the stream's frames follows its id: a replica knows what it lacks."""

TABLE_CLUSTER = 0xFE
TABLE_OPEN_STREAM = 0xFD

STREAM_BYTES = 16

_STREAM = struct.Struct(">QQ16s")
_COUNTED_STREAM = struct.Struct(">QQ16sI")
_OPEN_VALUE = struct.Struct(">BQQ")
_U16 = struct.Struct(">H")
_U32 = struct.Struct(">I")


class Carried(NamedTuple):
    """Which frames an entry names."""

    stream: bytes
    frames: int
    """0: not said (an entry of before there was replication)."""
    rides: bool
    """Its only frame travels with the entry."""
    session: int


@dataclass(slots=True)
class OpenStream:
    """A row of table 0xFD."""

    row_key: bytes
    route: bytes
    stream: bytes
    session: int
    started_ns: int


# --- rows


def configuration_key(group: int) -> bytes:
    return b"\xfe\x01" + _U32.pack(group)


def node_record(identity: bytes, exchange: bytes, joined_ns: int, host: str) -> bytes:
    return identity + exchange + struct.pack(">Q", joined_ns) + host.encode()


def stream_key(route: bytes, stream: bytes) -> bytes:
    return b"\xfd" + route[1:] + stream


def unpack_stream_row(key: bytes, value: bytes) -> OpenStream:
    table, session, started_ns = _OPEN_VALUE.unpack(value)
    route = bytes((table,)) + key[1:-STREAM_BYTES]
    return OpenStream(key, route, key[-STREAM_BYTES:], session, started_ns)


# --- commands


def encode_set(rows: Sequence[tuple[bytes, bytes]]) -> bytes:
    parts = [bytes((OWN, VERSION, SET)), _U16.pack(len(rows))]
    for key, value in rows:
        parts += (_U16.pack(len(key)), key, _U32.pack(len(value)), value)
    return b"".join(parts)


def encode_open(route: bytes, session: int, started_ns: int, stream: bytes) -> bytes:
    return (
        b"\xff\x01\x02" + _U16.pack(len(route)) + route + _STREAM.pack(session, started_ns, stream)
    )


def encode_carry(
    flags: int,
    command: bytes,
    *,
    route: bytes,
    session: int,
    started_ns: int,
    stream: bytes,
    frames: int,
) -> bytes:
    return b"".join(
        (
            b"\xff\x01\x03",
            bytes((flags | COUNTED,)),
            _U16.pack(len(route)),
            route,
            _STREAM.pack(session, started_ns, stream),
            _U32.pack(frames),
            command,
        )
    )


def carries(entry: Entry) -> bool:
    """Whether it is a CARRY."""
    return entry.kind == COMMAND and entry.data[:3] == b"\xff\x01\x03"


def carried(data: bytes) -> Carried | None:
    """The frames that a command entry names, if it is a CARRY. Raises ValueError."""
    if data[:3] != b"\xff\x01\x03":
        return None
    try:
        flags = data[3]
        at = 6 + (data[4] << 8 | data[5])
        if flags & COUNTED:
            session, _, stream, frames = _COUNTED_STREAM.unpack_from(data, at)
        else:
            session, _, stream = _STREAM.unpack_from(data, at)
            frames = 0
    except (IndexError, struct.error):
        raise ValueError("cluster command is cut short") from None
    return Carried(stream, frames, bool(flags & OPEN_ON_ERROR), session)


def carried_route(data: bytes) -> bytes:
    """The route of a CARRY that `carried` has read."""
    return data[6 : 6 + (data[4] << 8 | data[5])]


def encode_close(keys: Sequence[bytes], *, release: bool) -> bytes:
    parts = [bytes((OWN, VERSION, CLOSE, release)), _U16.pack(len(keys))]
    for key in keys:
        parts += (_U16.pack(len(key)), key)
    return b"".join(parts)


# --- apply


def apply(machine: StateMachine, data: bytes) -> Apply:
    """The generator that applies an entry's data. Raises ValueError for bytes nobody wrote."""
    if data[:1] != b"\xff":
        return machine.apply(data)
    if data[1:2] != b"\x01":
        raise ValueError(f"cluster command of version {data[1:2].hex()}")
    kind = _KINDS.get(_exactly(data, 2, 1)[0])
    if kind is None:
        raise ValueError(f"cluster command of kind {data[2]}")
    return kind(machine, data)


def _apply_set(_: StateMachine, data: bytes) -> Apply:
    count = _u16(data, 3)
    at = 5
    rows: list[tuple[bytes, bytes | None]] = []
    for _number in range(count):
        key, at = _bytes16(data, at)
        size = int.from_bytes(_exactly(data, at, 4), "big")
        value = _exactly(data, at + 4, size)
        at += 4 + size
        if key[0] != TABLE_CLUSTER:
            raise ValueError("SET writes only the cluster's own rows")
        if (yield Get(key)) is None:
            rows.append((key, value))
    if at != len(data):
        raise ValueError("malformed cluster command")
    return Outcome(len(rows), None, rows)


def _apply_open(_: StateMachine, data: bytes) -> Apply:
    yield from ()
    route, at = _bytes16(data, 3)
    session, started_ns, stream = _STREAM.unpack(_exactly(data, at, _STREAM.size))
    return Outcome(None, None, [_open_row(route, session, started_ns, stream)])


def _open_row(
    route: bytes, session: int, started_ns: int, stream: bytes
) -> tuple[bytes, bytes | None]:
    return stream_key(route, stream), _OPEN_VALUE.pack(route[0], session, started_ns)


def _apply_carry(machine: StateMachine, data: bytes) -> Apply:
    flags = _exactly(data, 3, 1)[0]
    route, at = _bytes16(data, 4)
    _exactly(data, at, _STREAM.size)
    command = at + _STREAM.size + (4 if flags & COUNTED else 0)
    outcome = yield from machine.apply(data[command:])
    if outcome.error is None:
        if flags & CLOSE_ON_SUCCESS:
            stream = data[at + _STREAM.size - STREAM_BYTES : at + _STREAM.size]
            outcome.rows = [*outcome.rows, (stream_key(route, stream), None)]
    elif flags & OPEN_ON_ERROR:
        session, started_ns, stream = _STREAM.unpack(_exactly(data, at, _STREAM.size))
        outcome.rows = [_open_row(route, session, started_ns, stream)]
    return outcome


def _apply_close(_: StateMachine, data: bytes) -> Apply:
    release = _exactly(data, 3, 1)[0]
    count = _u16(data, 4)
    at = 6
    rows: list[tuple[bytes, bytes | None]] = []
    released = []
    for _number in range(count):
        key, at = _bytes16(data, at)
        if key[0] != TABLE_OPEN_STREAM:
            raise ValueError("CLOSE names only open streams")
        if (yield Get(key)) is None:
            continue  # closed before
        rows.append((key, None))
        if release:
            released.append(key[-STREAM_BYTES:])
    if at != len(data):
        raise ValueError("malformed cluster command")
    return Outcome(len(rows), None, rows, released)


_KINDS = {
    SET: _apply_set,
    OPEN: _apply_open,
    CARRY: _apply_carry,
    CLOSE: _apply_close,
    **_range_rows.KINDS,
    **_node_records.KINDS,
    **_moves.KINDS,
}


def routes(data: bytes) -> list[bytes] | None:
    """Of the keys that a command of the cluster touches in a key range; None: it is the state
    machine's command, by itself. Raises ValueError."""
    if data[:1] != b"\xff":
        return None
    kind = _exactly(data, 2, 1)[0]
    if kind == OPEN:
        return [_bytes16(data, 3)[0]]
    if kind == CARRY:
        return [_bytes16(data, 4)[0]]
    found: list[bytes] = []
    if kind == CLOSE:
        at = 6
        for _number in range(_u16(data, 4)):
            key, at = _bytes16(data, at)
            found.append(key)
    return found


def _u16(data: bytes, at: int) -> int:
    return int.from_bytes(_exactly(data, at, 2), "big")


def _bytes16(data: bytes, at: int) -> tuple[bytes, int]:
    size = _u16(data, at)
    return _exactly(data, at + 2, size), at + 2 + size


def _exactly(data: bytes, at: int, size: int) -> bytes:
    if at + size > len(data):
        raise ValueError("cluster command is cut short")
    return data[at : at + size]
