"""The bytes of proposals that one node hands to another, and of the answer.

    batch    group u32, count u16, then for each proposal:
             flags u8 (1: a full disk refuses it), frames u8, size u32, data,
             then for each frame: stream 16, number u32, last u8, size u32 of the plaintext, sealed
    answer   status u8, low u64, term u64, text

All integers are big-endian. Decoding raises ValueError for what encoding does not write.
"""

from __future__ import annotations

import enum
import struct
from collections.abc import Sequence
from typing import NamedTuple, Protocol

from o3storage.storage import (
    MAX_ENTRY_BYTES,
    SEAL_TAG_BYTES,
    SMALL_FRAME_BYTES,
    SealedFrame,
)

ADDS = 1
MOVED_AWAY = "this node has no replica of the range any more; try again"
MAX_RIDING_FRAMES = 4
"""Small frames with one proposal: a body of one frame today."""

_BATCH = struct.Struct(">IH")
_PROPOSAL = struct.Struct(">BBI")
_FRAME = struct.Struct(">16sIBI")
_ANSWER = struct.Struct(">BQQ")


class Status(enum.IntEnum):
    """What became of a batch. All but TAKEN are definite refusals of all of it."""

    TAKEN = 0
    NOT_LEADER = 1
    FULL = 2
    """What adds something is refused; the rest may be proposed by itself."""
    CRAMPED = 3
    """Everything is refused: there is no space for the log."""
    BUSY = 4


class Answer(NamedTuple):
    """`low`, `term`: TAKEN: the first entry of the batch and the term of all of them."""

    status: Status
    low: int = 0
    term: int = 0
    text: str = ""


class Proposals(Protocol):
    """`_team.Batch`."""

    @property
    def payloads(self) -> Sequence[bytes]: ...
    @property
    def framed(self) -> Sequence[tuple[int, Sequence[SealedFrame]]]: ...
    @property
    def adds(self) -> Sequence[bool]: ...


def encode_batch(group: int, batch: Proposals) -> bytes:
    framed = dict(batch.framed)
    parts: list[bytes | memoryview] = [_BATCH.pack(group, len(batch.payloads))]
    for number, data in enumerate(batch.payloads):
        frames = framed.get(number, ())
        flags = ADDS if batch.adds[number] else 0
        parts += (_PROPOSAL.pack(flags, len(frames), len(data)), data)
        for frame in frames:
            parts.append(_FRAME.pack(frame.stream, frame.number, frame.last, frame.plain_size))
            parts.append(memoryview(frame.data))
    return b"".join(parts)


def decode_batch(
    body: memoryview,
) -> tuple[int, list[bytes], list[tuple[int, list[SealedFrame]]], list[bool]]:
    """(group, payloads, framed, adds) as `_team.Batch` holds them. Raises ValueError."""
    group, count = _BATCH.unpack(_take(body, 0, _BATCH.size))
    at = _BATCH.size
    payloads: list[bytes] = []
    framed: list[tuple[int, list[SealedFrame]]] = []
    adds: list[bool] = []
    for number in range(count):
        flags, frame_count, size = _PROPOSAL.unpack(_take(body, at, _PROPOSAL.size))
        at += _PROPOSAL.size
        if flags > ADDS or frame_count > MAX_RIDING_FRAMES or size > MAX_ENTRY_BYTES:
            raise ValueError("a proposal that nobody wrote")
        payloads.append(bytes(_take(body, at, size)))
        adds.append(bool(flags & ADDS))
        at += size
        frames: list[SealedFrame] = []
        for _ in range(frame_count):
            stream, frame, last, plain = _FRAME.unpack(_take(body, at, _FRAME.size))
            at += _FRAME.size
            if last > 1 or not 0 < plain <= SMALL_FRAME_BYTES:
                raise ValueError("a frame that nobody wrote")
            sealed = bytes(_take(body, at, plain + SEAL_TAG_BYTES))
            at += len(sealed)
            frames.append(SealedFrame(stream, frame, bool(last), plain, sealed))
        if frames:
            framed.append((number, frames))
    if at != len(body) or not payloads:
        raise ValueError("a batch with bytes left over, or of nothing")
    return group, payloads, framed, adds


def encode_answer(answer: Answer) -> bytes:
    return _ANSWER.pack(answer.status, answer.low, answer.term) + answer.text.encode()


def decode_answer(body: bytes) -> Answer:
    """Raises ValueError."""
    status, low, term = _ANSWER.unpack(_take(memoryview(body), 0, _ANSWER.size))
    return Answer(Status(status), low, term, body[_ANSWER.size :].decode("utf-8", "replace"))


def _take(body: memoryview, at: int, size: int) -> memoryview:
    if at + size > len(body):
        raise ValueError("cut short")
    return body[at : at + size]


def small_frame(stream: bytes, data: bytes | memoryview) -> SealedFrame:
    """The only frame of a stream, from what is stored of it."""
    return SealedFrame(stream, 0, True, len(data) - SEAL_TAG_BYTES, data)
