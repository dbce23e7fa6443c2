"""Batches: what one write and one fdatasync of the log make durable (docs/format.md, "Batches").

    | header | record | record | ... | 0xFF ... | trailer |     a multiple of 4 KiB

Interface: `BatchInfo`, `GroupInfo`, `BatchBuilder`, `parse_summary`, `find_trailer`, `zero_sector`.

Invariants
- Header and trailer say the same and lie in different 512-byte sectors, so a tear or one bad
  sector leaves one of them.
- No 512-byte sector of a batch is all zero: clear fields carry marks, padding is 0xFF, the rest is
  ciphertext. A sector of a zero-filled log that is still zero was therefore never written.
- Batch n names the hash of batch n-1; the hash of a batch is that of its header.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import NamedTuple

from o3storage._native import blake3
from o3storage.runtime.disk import Buffer
from o3storage.storage._records import HASH_BYTES
from o3storage.storage._volume import BLOCK_BYTES, PAD, align

SECTOR_BYTES = 512
MAX_BATCH_BYTES = 16 * 1024 * 1024
"""One append at its limit, its records' headers and outcomes that wait, with room to spare."""
MAX_BATCH_GROUPS = 48
"""Group summaries of one batch: header and trailer stay below one 4 KiB block each."""

_HEAD_MAGIC = b"O3BATCHh"
_TAIL_MAGIC = b"O3BATCHt"
_END_MAGIC = b"O3BTend\n"
_FIXED = struct.Struct("<8sQQQQ32s32sQIIII")
_GROUP = struct.Struct("<IIIIQQQQQQQQ")
_GROUP_MARK = int.from_bytes(b"GRUP", "little")
_FOOTER = struct.Struct("<I4s8s")
FOOTER_BYTES = _FOOTER.size
_FOOTER_FILL = b"\xff\xff\xff\xff"

FLAG_ENTRIES = 1
FLAG_HARD_STATE = 2
FLAG_RESTATED = 4
FLAG_UNCERTAIN = 8
FLAG_LAST_MISSING = 16

NO_HASH = bytes(HASH_BYTES)
"""The hash before the first batch of a disk."""


class SummaryBad(Exception):
    """The bytes are not a batch's header or trailer."""


class GroupInfo(NamedTuple):
    """What one batch did to one group.

    FLAG_ENTRIES: it holds the entries first_index..last_index. FLAG_HARD_STATE: term, vote and
    commit changed to these. FLAG_RESTATED: nothing changed; last_index and last_term, the hard
    state and applied_index are repeated, so that older volumes are not needed for them.
    FLAG_UNCERTAIN: the disk lost a batch without a trace, and the group is not out of it yet.
    FLAG_LAST_MISSING: the entry at last_index is known missing, and last_term a guess."""

    group: int
    flags: int
    incarnation: int
    first_index: int
    previous_term: int
    """Term of the entry before first_index."""
    last_index: int
    last_term: int
    hard_term: int
    vote: int
    commit: int
    applied_index: int


class BatchInfo(NamedTuple):
    """Header or trailer of a batch."""

    volume: int
    offset: int
    sequence: int
    epoch: int
    previous_hash: bytes
    payload_hash: bytes
    store_sequence: int
    """Highest sequence of changes given out so far."""
    size_bytes: int
    payload_bytes: int
    records: int
    groups: tuple[GroupInfo, ...]
    hash: bytes
    """Of the header: what the next batch names."""


def summary_bytes(groups: int) -> int:
    """Size of a header with so many groups; the trailer has a footer of 16 bytes more."""
    return HASH_BYTES + _FIXED.size + groups * _GROUP.size


def batch_bytes(groups: int, payload: int) -> int:
    """Size of the batch that holds `payload` bytes of records."""
    head = summary_bytes(groups)
    tail = head + _FOOTER.size
    head_sectors = -(-head // SECTOR_BYTES) * SECTOR_BYTES
    return align(max(head + payload, head_sectors) + tail)


def encode_batch(
    *,
    volume: int,
    offset: int,
    sequence: int,
    epoch: int,
    previous_hash: bytes,
    store_sequence: int,
    hashes: Sequence[bytes],
    payload: Sequence[Buffer],
    payload_bytes: int,
    groups: Sequence[GroupInfo],
) -> tuple[bytes, bytes]:
    """(the batch's bytes, its hash). `payload` are the buffers of its records, `hashes` their
    BLAKE3 values in order."""
    assert len(groups) <= MAX_BATCH_GROUPS and offset % BLOCK_BYTES == 0
    size = batch_bytes(len(groups), payload_bytes)
    assert size <= MAX_BATCH_BYTES
    fixed = (
        volume,
        offset,
        sequence,
        epoch,
        previous_hash,
        blake3(b"".join(hashes)),
        store_sequence,
        size,
        payload_bytes,
        len(hashes),
        len(groups),
    )
    rest = b"".join(
        [_GROUP.pack(info[0], _GROUP_MARK, info[1], info[2], *info[3:]) for info in groups]
    )
    head = _FIXED.pack(_HEAD_MAGIC, *fixed) + rest
    tail = _FIXED.pack(_TAIL_MAGIC, *fixed) + rest
    head_hash = blake3(head)
    pad = size - 2 * (HASH_BYTES + len(head)) - _FOOTER.size - payload_bytes
    footer = _FOOTER.pack(HASH_BYTES + len(tail) + _FOOTER.size, _FOOTER_FILL, _END_MAGIC)
    data = b"".join((head_hash, head, *payload, PAD * pad, blake3(tail), tail, footer))
    assert len(data) == size
    return data, head_hash


def parse_summary(data: Buffer, at: int, *, trailer: bool = False) -> BatchInfo:
    """The header (or trailer) at `data[at]`. Raises SummaryBad."""
    if at < 0 or at + HASH_BYTES + _FIXED.size > len(data):
        raise SummaryBad("cut off")
    fixed = _FIXED.unpack_from(data, at + HASH_BYTES)
    magic, volume, offset, sequence, epoch, previous, payload_hash, store_sequence = fixed[:8]
    size, payload_bytes, records, count = fixed[8:]
    if magic != (_TAIL_MAGIC if trailer else _HEAD_MAGIC):
        raise SummaryBad("no magic")
    end = at + summary_bytes(count)
    if count > MAX_BATCH_GROUPS or end > len(data) or size > MAX_BATCH_BYTES:
        raise SummaryBad("a size beyond its limit")
    view = memoryview(data)
    body = view[at + HASH_BYTES : end]
    digest = blake3(body)
    if digest != view[at : at + HASH_BYTES]:
        raise SummaryBad("BLAKE3 does not match")
    if size != batch_bytes(count, payload_bytes):
        raise SummaryBad("sizes do not belong together")
    groups: list[GroupInfo] = []
    for i in range(count):
        group, mark, flags, incarnation, *rest = _GROUP.unpack_from(
            data, at + HASH_BYTES + _FIXED.size + i * _GROUP.size
        )
        if mark != _GROUP_MARK:
            raise SummaryBad("a group without its mark")
        groups.append(GroupInfo(group, flags, incarnation, *rest))
    if trailer:  # the batch's hash is that of its header, which differs in the magic alone
        digest = blake3(_HEAD_MAGIC + bytes(body[len(_HEAD_MAGIC) :]))
    return BatchInfo(
        volume,
        offset,
        sequence,
        epoch,
        previous,
        payload_hash,
        store_sequence,
        size,
        payload_bytes,
        records,
        tuple(groups),
        digest,
    )


def parse_trailer(data: Buffer, end: int) -> BatchInfo:
    """The trailer of a batch that ends at `data[end]`. Raises SummaryBad."""
    if end < _FOOTER.size or end > len(data):
        raise SummaryBad("cut off")
    size, fill, magic = _FOOTER.unpack_from(data, end - _FOOTER.size)
    if magic != _END_MAGIC or fill != _FOOTER_FILL or size > end:
        raise SummaryBad("no trailer")
    info = parse_summary(data, end - size, trailer=True)
    if size != summary_bytes(len(info.groups)) + _FOOTER.size:
        raise SummaryBad("a trailer of another size")
    return info


def find_trailer(data: Buffer, start: int, limit: int, base: int) -> BatchInfo | None:
    """The trailer of the batch that starts at `data[start]`, when its header is unreadable;
    looked for up to `data[limit]`. `base` is the file offset of data[0]."""
    for end in range(start + BLOCK_BYTES, min(limit, start + MAX_BATCH_BYTES) + 1, BLOCK_BYTES):
        try:
            info = parse_trailer(data, end)
        except SummaryBad:
            continue
        return info if info.offset == base + start and info.size_bytes == end - start else None
    return None


_ZERO = bytes(SECTOR_BYTES)


def zero_sector(data: Buffer, start: int, end: int) -> int | None:
    """Where in data[start:end] the first all-zero sector lies. `start` is sector-aligned."""
    view = memoryview(data)
    for at in range(start, end, SECTOR_BYTES):
        sector = view[at : min(at + SECTOR_BYTES, end)]
        if sector[0] == 0 and sector == _ZERO[: len(sector)]:
            return at
    return None
