"""The bytes between nodes (docs/protocol.md): frames, their units, and the messages of consensus.

One frame of a link is a version byte and units, each kind u8, size u32, body. All integers are
big-endian. What a sender and a receiver of a message are called is not sent: the link says it.
Decoding raises WireError for anything that encoding does not write; nothing else comes out.
"""

from __future__ import annotations

import enum
import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

from o3storage.crypto import FRAME_BYTES
from o3storage.raft.core import (
    Append,
    AppendResponse,
    Configuration,
    Entry,
    Heartbeat,
    HeartbeatResponse,
    HoleAnswer,
    HoleQuery,
    Message,
    ReadRequest,
    ReadResponse,
    SnapshotPiece,
    SnapshotResponse,
    TimeoutNow,
    VoteRequest,
    VoteResponse,
)
from o3storage.runtime.disk import Buffer
from o3storage.runtime.network import MAX_FRAME_BYTES, Address
from o3storage.storage import SealedFrame

LOWEST_VERSION = 1
HIGHEST_VERSION = 3
"""Protocol versions that this program speaks; the highest that both sides speak is used."""
OPENING_VERSION = 0
"""Version byte of the frames that settle the version. Their layout never changes."""

MAX_UNIT_BYTES = 12 << 20
"""One unit, put together from its parts: the largest append that the store takes (8 MiB) with its
heads. A node holds at most one unfinished unit for each link."""
MAX_HELLO_BYTES = 4096
"""It comes from anybody who can connect."""
MAX_ADDRESSES = 16
MAX_HOST_BYTES = 64
"""An IP address as text, with a scope."""
MAX_CLUSTER_ID_BYTES = 32
MAX_PROOF_BYTES = 512
MAX_TEXT_BYTES = 512
"""Reasons and error messages: for one line of a log."""
MAX_STREAM_HEAD_BYTES = 64 << 10
MAX_PIECE_BYTES = 1 << 20
"""One piece of a stream: frames of 256 KiB or a piece of a snapshot; half a link frame."""

MAGIC = b"O3PP"
SEAL_BYTES = 16
"""What sealing adds to a frame of a body (Poly1305 tag)."""
MAX_ENTRY_KIND = 3


class WireError(ValueError):
    """These bytes are not the peer protocol's; the message says which rule they break."""


class Lane(enum.IntEnum):
    """What a link is for. Bulk data has its own, so that it cannot delay heartbeats."""

    CONSENSUS = 0
    BULK = 1
    GUEST = 2
    """A single call by one who is no member yet."""


class Unit(enum.IntEnum):
    """Kinds of units."""

    HELLO = 1
    ADMITTED = 2
    REFUSED = 3
    ALIVE = 4
    MESSAGE = 5
    CALL = 6
    ANSWER = 7
    ERROR = 8
    OPEN = 9
    PIECE = 10
    CREDIT = 11
    RESULT = 12
    RESET = 13
    FAILED = 14
    PART = 15


@dataclass(slots=True)
class Hello:
    """The first unit of either side of a link.

    `Peers` fills in versions, node, session, lane and attempt; who supplies the rest says which
    cluster this is (b"" for a node that has none yet), in which role it speaks, where it listens,
    and what proves it."""

    cluster: bytes = b""
    role: int = 0
    addresses: tuple[Address, ...] = ()
    proof: bytes = b""
    node: int = 0
    session: int = 0
    """Random for each start of a node: two of one node at a time are two processes."""
    lane: int = Lane.CONSENSUS
    attempt: int = 0
    """Ascends with the links that a session opens."""
    lowest: int = LOWEST_VERSION
    highest: int = HIGHEST_VERSION


# --- units

_UNIT = struct.Struct(">BI")
UNIT_HEAD_BYTES = _UNIT.size
FRAME_HEAD_BYTES = 1
MAX_PART_BYTES = MAX_FRAME_BYTES - FRAME_HEAD_BYTES - UNIT_HEAD_BYTES - 1
pack_unit = _UNIT.pack
_MESSAGE = int(Unit.MESSAGE)

CALL = struct.Struct(">BIIH")
"""Unit head; number of the call; kind. The payload follows."""
ANSWER = struct.Struct(">BII")
"""Unit head; number. ANSWER, RESULT: the payload follows."""
ERROR = struct.Struct(">BIIH")
"""Unit head; number; code. ERROR, FAILED, RESET: a text follows."""
OPEN = CALL
PIECE = struct.Struct(">BIIB")
"""Unit head; number of the stream; 1 if it is the last. The piece follows."""
CREDIT = struct.Struct(">BIII")
"""Unit head; number of the stream; bytes that were consumed."""
ADMITTED = struct.Struct(">BIB")
"""Unit head; whether as a guest."""

_NUMBER_KIND = struct.Struct(">IH")
_NUMBER_FLAG = struct.Struct(">IB")
_NUMBER_COUNT = struct.Struct(">II")
_NUMBER = struct.Struct(">I")


def split_units(frame: memoryview) -> list[tuple[int, memoryview]]:
    """(kind, body) of the units in a frame, behind its version byte. Raises WireError."""
    units: list[tuple[int, memoryview]] = []
    at, end = FRAME_HEAD_BYTES, len(frame)
    if at >= end:
        raise WireError("a frame without a unit")
    while at < end:
        if end - at < UNIT_HEAD_BYTES:
            raise WireError("a unit's head is cut short")
        kind, size = _UNIT.unpack_from(frame, at)
        at += UNIT_HEAD_BYTES
        if size > end - at:
            raise WireError(f"a unit of {size} bytes in the last {end - at} bytes of a frame")
        units.append((kind, frame[at : at + size]))
        at += size
    return units


def numbered_kind(body: memoryview) -> tuple[int, int, memoryview]:
    """CALL, OPEN, ERROR, FAILED, RESET: number, kind or code, rest."""
    if len(body) < _NUMBER_KIND.size:
        raise WireError("a call, a stream or an error without its head")
    number, kind = _NUMBER_KIND.unpack_from(body)
    return number, kind, body[_NUMBER_KIND.size :]


def numbered(body: memoryview) -> tuple[int, memoryview]:
    """ANSWER, RESULT: number, rest."""
    if len(body) < _NUMBER.size:
        raise WireError("an answer without its number")
    return _NUMBER.unpack_from(body)[0], body[_NUMBER.size :]


def piece(body: memoryview) -> tuple[int, bool, memoryview]:
    """PIECE: number of the stream, last, data."""
    if len(body) < _NUMBER_FLAG.size:
        raise WireError("a piece without its head")
    number, last = _NUMBER_FLAG.unpack_from(body)
    if last > 1 or len(body) - _NUMBER_FLAG.size > MAX_PIECE_BYTES:
        raise WireError("a piece breaks a limit")
    return number, bool(last), body[_NUMBER_FLAG.size :]


def credit(body: memoryview) -> tuple[int, int]:
    """CREDIT: number of the stream, bytes."""
    if len(body) != _NUMBER_COUNT.size:
        raise WireError("a credit of the wrong size")
    number, size = _NUMBER_COUNT.unpack(body)
    return number, size


def text_of(body: memoryview) -> str:
    """A reason, made printable."""
    if len(body) > MAX_TEXT_BYTES:
        raise WireError("a text is too long")
    text = bytes(body).decode("utf-8", "replace")
    return "".join(c if c.isprintable() else "?" for c in text)


def text_bytes(text: str) -> bytes:
    """At most MAX_TEXT_BYTES of it, cut between characters."""
    return text.encode()[:MAX_TEXT_BYTES].decode("utf-8", "ignore").encode()


# --- hello

_HELLO = struct.Struct(">4sBB")
_HELLO_BODY = struct.Struct(">QQQBBBBH")
"""node, session, attempt, lane, role, size of the cluster's id, addresses, size of the proof"""
_HOST = struct.Struct(">BH")


def encode_hello(hello: Hello) -> bytes:
    """The body of a HELLO. Raises ValueError for one that breaks a limit."""
    parts = [
        _HELLO.pack(MAGIC, hello.lowest, hello.highest),
        _HELLO_BODY.pack(
            hello.node,
            hello.session,
            hello.attempt,
            hello.lane,
            hello.role,
            len(hello.cluster),
            len(hello.addresses),
            len(hello.proof),
        ),
        hello.cluster,
        hello.proof,
    ]
    for host, port in hello.addresses:
        name = host.encode("ascii")
        if len(name) > MAX_HOST_BYTES:
            raise ValueError(f"{host}: too long for an address")
        parts += (_HOST.pack(len(name), port), name)
    if (
        len(hello.cluster) > MAX_CLUSTER_ID_BYTES
        or len(hello.proof) > MAX_PROOF_BYTES
        or len(hello.addresses) > MAX_ADDRESSES
    ):
        raise ValueError("a hello breaks a limit")
    return b"".join(parts)


def hello_versions(body: memoryview) -> tuple[int, int]:
    """The versions that a peer speaks: readable in every version, whatever follows."""
    if len(body) < _HELLO.size or len(body) > MAX_HELLO_BYTES:
        raise WireError("a hello of the wrong size")
    magic, lowest, highest = _HELLO.unpack_from(body)
    if magic != MAGIC:
        raise WireError("this is not O3Storage's peer protocol")
    if not 1 <= lowest <= highest:
        raise WireError("a hello with impossible versions")
    return lowest, highest


def decode_hello(body: memoryview) -> Hello:
    """Raises WireError. Bytes behind the addresses are a later version's, and are left out."""
    lowest, highest = hello_versions(body)
    at = _HELLO.size
    if len(body) < at + _HELLO_BODY.size:
        raise WireError("a hello is cut short")
    node, session, attempt, lane, role, cluster_size, count, proof_size = _HELLO_BODY.unpack_from(
        body, at
    )
    at += _HELLO_BODY.size
    if (
        node == 0
        or lane > max(Lane)
        or cluster_size > MAX_CLUSTER_ID_BYTES
        or proof_size > MAX_PROOF_BYTES
        or count > MAX_ADDRESSES
    ):
        raise WireError("a hello breaks a limit")
    cluster = bytes(body[at : at + cluster_size])
    at += cluster_size
    proof = bytes(body[at : at + proof_size])
    at += proof_size
    addresses: list[Address] = []
    for _ in range(count):
        if at + _HOST.size > len(body):
            raise WireError("a hello is cut short")
        size, port = _HOST.unpack_from(body, at)
        at += _HOST.size
        name = bytes(body[at : at + size])
        at += size
        if size > MAX_HOST_BYTES or at > len(body) or not name.isascii():
            raise WireError("a hello with an address that is none")
        addresses.append(Address(name.decode("ascii"), port))
    if at > len(body):
        raise WireError("a hello is cut short")
    return Hello(
        cluster, role, tuple(addresses), proof, node, session, lane, attempt, lowest, highest
    )


# --- messages: type u8, group u32, term u64, fields; then entries, then frames

_VOTE_REQUEST = struct.Struct(">BIQQQB")
_VOTE_RESPONSE = struct.Struct(">BIQB")
_APPEND = struct.Struct(">BIQQQQQII")
_APPEND_RESPONSE = struct.Struct(">BIQQQQQQQQQB")
_HEARTBEAT = struct.Struct(">BIQQQB")
_HEARTBEAT_RESPONSE = struct.Struct(">BIQQQB")
_SNAPSHOT_PIECE = struct.Struct(">BIQQQQBH")
_SNAPSHOT_RESPONSE = struct.Struct(">BIQQQB")
_TIMEOUT_NOW = struct.Struct(">BIQ")
_READ_REQUEST = struct.Struct(">BIQQ")
_READ_RESPONSE = struct.Struct(">BIQQQ")
_HOLE_QUERY = struct.Struct(">BIQQQ")
_HOLE_ANSWER = struct.Struct(">BIQQBII")
_UNCERTAIN = 1 << 63
"""In the token of a ReadRequest: the sender's word does not count."""
_ENTRY = struct.Struct(">QQBI")
"""index, term, kind, size; the data follows"""
_FRAME = struct.Struct(">16sIBI")
"""stream, number, last, size of the plaintext; the ciphertext follows, 16 bytes longer"""

Encoder = Callable[[int, Any, list[Buffer]], int]
Decoded = tuple[int, Message, list[SealedFrame]]


def _vote_request(group: int, m: VoteRequest, out: list[Buffer]) -> int:
    flags = m.pre | m.transfer << 1
    out.append(_VOTE_REQUEST.pack(1, group, m.term, m.last_index, m.last_term, flags))
    return _VOTE_REQUEST.size


def _vote_response(group: int, m: VoteResponse, out: list[Buffer]) -> int:
    out.append(_VOTE_RESPONSE.pack(2, group, m.term, m.granted | m.pre << 1))
    return _VOTE_RESPONSE.size


def _append_response(group: int, m: AppendResponse, out: list[Buffer]) -> int:
    out.append(
        _APPEND_RESPONSE.pack(
            4,
            group,
            m.term,
            m.match,
            m.data,
            m.rejected_index,
            m.hint_index,
            m.hint_term,
            m.round,
            m.debt,
            m.hole,
            m.rejected | m.uncertain << 1,
        )
    )
    return _APPEND_RESPONSE.size


def _heartbeat(group: int, m: Heartbeat, out: list[Buffer]) -> int:
    out.append(_HEARTBEAT.pack(5, group, m.term, m.commit, m.round, m.quiesce))
    return _HEARTBEAT.size


def _heartbeat_response(group: int, m: HeartbeatResponse, out: list[Buffer]) -> int:
    out.append(_HEARTBEAT_RESPONSE.pack(6, group, m.term, m.round, m.hole, m.uncertain))
    return _HEARTBEAT_RESPONSE.size


def _snapshot_piece(group: int, m: SnapshotPiece, out: list[Buffer]) -> int:
    members = m.configuration.encode()
    out.append(
        _SNAPSHOT_PIECE.pack(
            7, group, m.term, m.index, m.index_term, m.number, m.last, len(members)
        )
    )
    out.append(members)
    out.append(m.data)
    return _SNAPSHOT_PIECE.size + len(members) + len(m.data)


def _snapshot_response(group: int, m: SnapshotResponse, out: list[Buffer]) -> int:
    out.append(_SNAPSHOT_RESPONSE.pack(8, group, m.term, m.index, m.next_piece, m.refused))
    return _SNAPSHOT_RESPONSE.size


def _timeout_now(group: int, m: TimeoutNow, out: list[Buffer]) -> int:
    out.append(_TIMEOUT_NOW.pack(9, group, m.term))
    return _TIMEOUT_NOW.size


def _read_request(group: int, m: ReadRequest, out: list[Buffer]) -> int:
    token = m.token if m.certain else m.token | _UNCERTAIN
    out.append(_READ_REQUEST.pack(10, group, m.term, token))
    return _READ_REQUEST.size


def _read_response(group: int, m: ReadResponse, out: list[Buffer]) -> int:
    out.append(_READ_RESPONSE.pack(11, group, m.term, m.token, m.index))
    return _READ_RESPONSE.size


def _hole_query(group: int, m: HoleQuery, out: list[Buffer]) -> int:
    out.append(_HOLE_QUERY.pack(12, group, m.term, m.low, m.high))
    return _HOLE_QUERY.size


_ENCODERS: dict[type[Message], Encoder] = {
    VoteRequest: _vote_request,
    VoteResponse: _vote_response,
    AppendResponse: _append_response,
    Heartbeat: _heartbeat,
    HeartbeatResponse: _heartbeat_response,
    SnapshotPiece: _snapshot_piece,
    SnapshotResponse: _snapshot_response,
    TimeoutNow: _timeout_now,
    ReadRequest: _read_request,
    ReadResponse: _read_response,
    HoleQuery: _hole_query,
}


def encode_message(
    group: int, message: Message, frames: Sequence[SealedFrame], out: list[Buffer]
) -> int:
    """Append a MESSAGE unit in pieces to `out`; returns its size in bytes. Pieces are the entries'
    and frames' own data. Only Append and HoleAnswer carry `frames`.
    Raises ValueError when it is larger than MAX_UNIT_BYTES."""
    at = len(out)
    out.append(b"")
    kind = type(message)
    if kind is Append:
        append: Any = message
        entries = append.entries
        out.append(
            _APPEND.pack(
                3,
                group,
                append.term,
                append.prev_index,
                append.prev_term,
                append.commit,
                append.round,
                len(entries),
                len(frames),
            )
        )
        size = _APPEND.size
    elif kind is HoleAnswer:
        answer: Any = message
        entries = answer.entries
        out.append(
            _HOLE_ANSWER.pack(
                13, group, answer.term, answer.low, answer.holds, len(entries), len(frames)
            )
        )
        size = _HOLE_ANSWER.size
    else:
        if frames:
            raise ValueError(f"a {kind.__name__} carries no frames")
        size = _ENCODERS[kind](group, message, out)
        out[at] = _UNIT.pack(_MESSAGE, size)
        return size + UNIT_HEAD_BYTES
    for entry in entries:
        data = entry.data
        length = len(data)
        out.append(_ENTRY.pack(entry.index, entry.term, entry.kind, length))
        out.append(data)
        size += _ENTRY.size + length
    for frame in frames:
        sealed = frame.data
        length = len(sealed)
        if length != frame.plain_size + SEAL_BYTES:
            raise ValueError("a frame that is not as long as it says")
        out.append(_FRAME.pack(frame.stream, frame.number, frame.last, frame.plain_size))
        out.append(sealed)
        size += _FRAME.size + length
    if size > MAX_UNIT_BYTES:
        raise ValueError(f"a message of {size} bytes; at most {MAX_UNIT_BYTES} can be sent")
    out[at] = _UNIT.pack(_MESSAGE, size)
    return size + UNIT_HEAD_BYTES


def _bad(what: str) -> NoReturn:
    raise WireError(what)


def _flags(value: int, most: int) -> int:
    if value > most:
        raise WireError("a flag that nobody wrote")
    return value


def _entries(body: memoryview, at: int, count: int, previous: int) -> tuple[list[Entry], int]:
    """`count` entries with ascending indexes above `previous`."""
    end = len(body)
    if count * _ENTRY.size > end - at:
        _bad("more entries than bytes")
    found: list[Entry] = []
    unpack, head = _ENTRY.unpack_from, _ENTRY.size
    for _ in range(count):
        if end - at < head:
            _bad("an entry is cut short")
        index, term, kind, size = unpack(body, at)
        at += head
        if size > end - at:
            _bad("an entry is cut short")
        if index <= previous or term == 0 or kind > MAX_ENTRY_KIND:
            _bad("an entry that nobody wrote")
        found.append(Entry(index, term, kind, bytes(body[at : at + size])))
        at += size
        previous = index
    return found, at


def _frames(body: memoryview, at: int, count: int) -> list[SealedFrame]:
    """`count` frames, which end the message."""
    end = len(body)
    if count * (_FRAME.size + SEAL_BYTES) > end - at:
        _bad("more frames than bytes")
    found: list[SealedFrame] = []
    for _ in range(count):
        if end - at < _FRAME.size:
            _bad("a frame is cut short")
        stream, number, last, plain = _FRAME.unpack_from(body, at)
        at += _FRAME.size
        size = plain + SEAL_BYTES
        if size > end - at:
            _bad("a frame is cut short")
        if last > 1 or not 0 < plain <= FRAME_BYTES:
            _bad("a frame that nobody wrote")
        found.append(SealedFrame(stream, number, bool(last), plain, bytes(body[at : at + size])))
        at += size
    if at != end:
        _bad("bytes behind the end of a message")
    return found


def _decode_append(body: memoryview, sender: int, me: int) -> Decoded:
    if len(body) < _APPEND.size:
        _bad("a message is cut short")
    _, group, term, index, index_term, commit, read_round, entry_count, frame_count = (
        _APPEND.unpack_from(body)
    )
    entries, at = _entries(body, _APPEND.size, entry_count, index)
    if entries and entries[-1].index != index + entry_count:
        _bad("an append with a gap")
    frames = _frames(body, at, frame_count)
    return group, Append(sender, me, term, index, index_term, entries, commit, read_round), frames


def _decode_hole_answer(body: memoryview, sender: int, me: int) -> Decoded:
    if len(body) < _HOLE_ANSWER.size:
        _bad("a message is cut short")
    _, group, term, low, holds, entry_count, frame_count = _HOLE_ANSWER.unpack_from(body)
    entries, at = _entries(body, _HOLE_ANSWER.size, entry_count, max(low, 1) - 1)
    frames = _frames(body, at, frame_count)
    return group, HoleAnswer(sender, me, term, low, bool(_flags(holds, 1)), entries), frames


def _decode_snapshot_piece(body: memoryview, sender: int, me: int) -> Decoded:
    if len(body) < _SNAPSHOT_PIECE.size:
        _bad("a message is cut short")
    _, group, term, index, index_term, number, last, size = _SNAPSHOT_PIECE.unpack_from(body)
    at = _SNAPSHOT_PIECE.size
    if size > len(body) - at:
        _bad("a message is cut short")
    try:
        members = Configuration.decode(bytes(body[at : at + size]))
    except ValueError as error:
        raise WireError(str(error)) from None
    data = bytes(body[at + size :])
    message = SnapshotPiece(
        sender, me, term, index, index_term, members, number, data, bool(_flags(last, 1))
    )
    return group, message, []


def _decode_vote_request(body: memoryview, sender: int, me: int) -> Decoded:
    _, group, term, index, index_term, flags = _VOTE_REQUEST.unpack(body)
    _flags(flags, 3)
    pre, transfer = bool(flags & 1), bool(flags & 2)
    return group, VoteRequest(sender, me, term, index, index_term, pre, transfer), []


def _decode_vote_response(body: memoryview, sender: int, me: int) -> Decoded:
    _, group, term, flags = _VOTE_RESPONSE.unpack(body)
    _flags(flags, 3)
    return group, VoteResponse(sender, me, term, bool(flags & 1), bool(flags & 2)), []


def _decode_append_response(body: memoryview, sender: int, me: int) -> Decoded:
    (
        _,
        group,
        term,
        match,
        data,
        rejected_index,
        hint,
        hint_term,
        read_round,
        debt,
        hole,
        flags,
    ) = _APPEND_RESPONSE.unpack(body)
    _flags(flags, 3)
    message = AppendResponse(
        sender,
        me,
        term,
        match,
        data,
        bool(flags & 1),
        rejected_index,
        hint,
        hint_term,
        read_round,
        bool(flags & 2),
        debt,
        hole,
    )
    return group, message, []


def _decode_heartbeat(body: memoryview, sender: int, me: int) -> Decoded:
    _, group, term, commit, read_round, quiesce = _HEARTBEAT.unpack(body)
    quiet = bool(_flags(quiesce, 1))
    return group, Heartbeat(sender, me, term, commit, read_round, quiet), []


def _decode_heartbeat_response(body: memoryview, sender: int, me: int) -> Decoded:
    _, group, term, read_round, hole, uncertain = _HEARTBEAT_RESPONSE.unpack(body)
    unsure = bool(_flags(uncertain, 1))
    return group, HeartbeatResponse(sender, me, term, read_round, unsure, hole), []


def _decode_snapshot_response(body: memoryview, sender: int, me: int) -> Decoded:
    _, group, term, index, next_piece, refused = _SNAPSHOT_RESPONSE.unpack(body)
    no = bool(_flags(refused, 1))
    return group, SnapshotResponse(sender, me, term, index, next_piece, no), []


def _decode_timeout_now(body: memoryview, sender: int, me: int) -> Decoded:
    _, group, term = _TIMEOUT_NOW.unpack(body)
    return group, TimeoutNow(sender, me, term), []


def _decode_read_request(body: memoryview, sender: int, me: int) -> Decoded:
    _, group, term, token = _READ_REQUEST.unpack(body)
    certain = token < _UNCERTAIN
    return group, ReadRequest(sender, me, term, token & (_UNCERTAIN - 1), certain), []


def _decode_read_response(body: memoryview, sender: int, me: int) -> Decoded:
    _, group, term, token, index = _READ_RESPONSE.unpack(body)
    return group, ReadResponse(sender, me, term, token, index), []


def _decode_hole_query(body: memoryview, sender: int, me: int) -> Decoded:
    _, group, term, low, high = _HOLE_QUERY.unpack(body)
    return group, HoleQuery(sender, me, term, low, high), []


_DECODERS: tuple[Callable[[memoryview, int, int], Decoded], ...] = (
    _decode_vote_request,
    _decode_vote_response,
    _decode_append,
    _decode_append_response,
    _decode_heartbeat,
    _decode_heartbeat_response,
    _decode_snapshot_piece,
    _decode_snapshot_response,
    _decode_timeout_now,
    _decode_read_request,
    _decode_read_response,
    _decode_hole_query,
    _decode_hole_answer,
)


def decode_message(body: memoryview, sender: int, me: int) -> Decoded:
    """(group, message, frames) of a MESSAGE unit that `sender` sent to `me`; copies all it keeps.
    Raises WireError."""
    if not len(body) or not 1 <= body[0] <= len(_DECODERS):
        raise WireError("a message of an unknown type")
    try:
        return _DECODERS[body[0] - 1](body, sender, me)
    except struct.error:
        raise WireError("a message of the wrong size") from None
