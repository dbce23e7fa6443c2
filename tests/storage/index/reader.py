"""A reader of the index's files, written from docs/format-index.md alone (plus the AEAD, HKDF and
BLAKE3 of the native module). Slow and plain: the model that the tests hold the index to."""

from __future__ import annotations

import itertools
import struct
from dataclasses import dataclass, field

from o3storage import _native

MASK = (1 << 64) - 1
P = (
    0x9E3779B185EBCA87,
    0xC2B2AE3D27D4EB4F,
    0x165667B19E3779F9,
    0x85EBCA77C2B2AE63,
    0x27D4EB2F165667C5,
)

Row = tuple[bytes, int, int, bytes | None]
"""(key, prefix length, sequence, value)."""


class Damaged(Exception):
    pass


def need(condition: bool, what: str) -> None:
    if not condition:
        raise Damaged(what)


# --- XXH64 and filters


def rotl(x: int, n: int) -> int:
    return ((x << n) | (x >> (64 - n))) & MASK


def xxh_round(acc: int, word: int) -> int:
    return rotl((acc + word * P[1]) & MASK, 31) * P[0] & MASK


def xxh64(data: bytes) -> int:
    at = 0
    if len(data) >= 32:
        lanes = [(P[0] + P[1]) & MASK, P[1], 0, -P[0] & MASK]
        while at + 32 <= len(data):
            words = struct.unpack_from("<4Q", data, at)
            lanes = [xxh_round(a, w) for a, w in zip(lanes, words)]
            at += 32
        h = sum(rotl(a, n) for a, n in zip(lanes, (1, 7, 12, 18))) & MASK
        for lane in lanes:
            h = ((h ^ xxh_round(0, lane)) * P[0] + P[3]) & MASK
    else:
        h = P[4]
    h = (h + len(data)) & MASK
    while at + 8 <= len(data):
        h ^= xxh_round(0, struct.unpack_from("<Q", data, at)[0])
        h = (rotl(h, 27) * P[0] + P[3]) & MASK
        at += 8
    if at + 4 <= len(data):
        h ^= struct.unpack_from("<I", data, at)[0] * P[0] & MASK
        h = (rotl(h, 23) * P[1] + P[2]) & MASK
        at += 4
    for byte in data[at:]:
        h = rotl(h ^ (byte * P[4] & MASK), 11) * P[0] & MASK
    h = (h ^ (h >> 33)) * P[1] & MASK
    h = (h ^ (h >> 29)) * P[2] & MASK
    return h ^ (h >> 32)


def may_hold(filter_: bytes, prefix: bytes) -> bool:
    lines = len(filter_) // 64
    if not lines:
        return True
    h = xxh64(prefix)
    line = filter_[((h >> 32) * lines >> 32) * 64 :][:64]
    bits = h * P[0] & MASK
    for _ in range(6):
        bit = bits & 511
        if not line[bit // 8] >> (bit % 8) & 1:
            return False
        bits >>= 9
    return True


# --- blocks


def varint(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        shift += 7
        if byte < 0x80:
            return value, at


def rows_of(block: bytes) -> list[Row]:
    """The rows of a plain block."""
    (base,) = struct.unpack_from("<Q", block)
    (restarts,) = struct.unpack_from("<I", block, len(block) - 4)
    end = len(block) - 4 - 4 * restarts
    points = struct.unpack_from(f"<{restarts}I", block, end)
    at, key, rows = 8, b"", []
    while at < end:
        if len(rows) % 8 == 0:
            need(points[len(rows) // 8] == at, "restart point")
        shared, at = varint(block, at)
        need(shared == 0 or len(rows) % 8 != 0, "shared at restart")
        size, at = varint(block, at)
        prefix, at = varint(block, at)
        delta, at = varint(block, at)
        value_size, at = varint(block, at)
        sequence = base + (delta >> 1 if delta % 2 == 0 else -(delta >> 1) - 1)
        key, at = key[:shared] + block[at : at + size], at + size
        value = None
        if value_size:
            value, at = block[at : at + value_size - 1], at + value_size - 1
        need(not rows or rows[-1][0] < key, "order")
        rows.append((key, prefix, sequence, value))
    need(at == end, "end of rows")
    return rows


# --- tables


def file_key(disk_key: bytes, salt: bytes) -> _native.ChaChaKey:
    return _native.ChaChaKey(_native.hkdf_sha256(disk_key, salt, b"o3storage/1 file", 32))


def nonce(offset: int) -> bytes:
    return offset.to_bytes(8, "little") + bytes(4)


def checked_head(data: bytes, magic: bytes) -> tuple[int, bytes]:
    """(number, salt) of a table's or manifest's header."""
    need(_native.blake3(data[:96]) == data[96:128], "header hash")
    need(data[:8] == magic and data[8:10] == b"\1\0" and data[10:16] == bytes(6), "header")
    return struct.unpack_from("<Q", data, 16)[0], data[24:56]


def record(data: bytes, at: int, key: _native.ChaChaKey) -> tuple[int, bytes, int]:
    """(kind, plaintext, offset behind it)."""
    kind, version, zero, size = struct.unpack_from("<BBHI", data, at)
    need(version == 1 and zero == 0, "record header")
    end = at + 24 + size
    need(_native.blake3(data[at:end]) == data[end : end + 32], "record hash")
    return kind, key.unseal(nonce(at), data[at : at + 8], data[at + 8 : end]), end + 32


def sized(data: bytes, at: int) -> tuple[bytes, int]:
    (size,) = struct.unpack_from("<I", data, at)
    return data[at + 4 : at + 4 + size], at + 4 + size


@dataclass
class TableFile:
    number: int
    rows: list[Row]
    blocks: list[list[Row]]
    lows: list[bytes]
    filter: bytes


def read_table(data: bytes, disk_key: bytes) -> TableFile:
    """Everything in a table file, cross-checked."""
    number, salt = checked_head(data[:128], b"O3TABLE\0")
    key = file_key(disk_key, salt)
    footer = data[-64:]
    need(_native.blake3(footer[:32]) == footer[32:], "footer hash")
    need(footer[24:32] == b"O3TABEND", "footer")
    filter_at, index_at, properties_at = struct.unpack_from("<3Q", footer)
    at, blocks, offsets = 128, [], []
    while at < filter_at:
        offsets.append(at)
        kind, plain, at = record(data, at, key)
        need(kind == 1, "kind")
        blocks.append(rows_of(plain))
    need(at == filter_at, "filter offset")
    kind, filter_, at = record(data, filter_at, key)
    need(kind == 2 and at == index_at and len(filter_) % 64 == 0, "filter")
    kind, index, at = record(data, index_at, key)
    need(kind == 3 and at == properties_at, "index")
    kind, properties, at = record(data, properties_at, key)
    need(kind == 4 and at == len(data) - 64, "properties")
    count, shared = struct.unpack_from("<II", index)
    at = 8 + shared
    need(list(struct.unpack_from(f"<{count + 1}I", index, at)) == [*offsets, filter_at], "offsets")
    starts = struct.unpack_from(f"<{count + 1}I", index, at + 4 * (count + 1))
    blob = index[at + 8 * (count + 1) :]
    need(starts[-1] == len(blob), "lower bounds")
    lows = [index[8 : 8 + shared] + blob[a:b] for a, b in itertools.pairwise(starts)]
    rows = [row for block in blocks for row in block]
    need(all(a[0] < b[0] for a, b in itertools.pairwise(rows)), "order of blocks")
    for number_, (low, block) in enumerate(zip(lows, blocks)):
        need(low <= block[0][0], "lower bound")
        need(number_ == 0 or blocks[number_ - 1][-1][0] < low, "lower bound above the last block")
    need(all(may_hold(filter_, row[0][: row[1]]) for row in rows), "filter")
    total, deleted, low_sequence, high_sequence = struct.unpack_from("<4Q", properties)
    first, at = sized(properties, 32)
    last, at = sized(properties, at)
    need(at == len(properties), "end of properties")
    need(total == len(rows) and deleted == sum(row[3] is None for row in rows), "counts")
    need(low_sequence == min(row[2] for row in rows), "lowest sequence")
    need(high_sequence == max(row[2] for row in rows), "highest sequence")
    need((first, last) == (rows[0][0], rows[-1][0]), "first and last key")
    return TableFile(number, rows, blocks, lows, filter_)


# --- manifests


@dataclass
class ManifestFile:
    number: int
    tables: dict[int, dict] = field(default_factory=dict)
    mark: bytes = b""
    sequence: int = 0
    next_number: int = 0
    drops: list[tuple[bytes, bytes | None, int]] = field(default_factory=list)
    edits: int = 0


def read_current(data: bytes) -> int:
    need(len(data) == 512 and _native.blake3(data[:24]) == data[24:56], "CURRENT hash")
    need(data[:8] == b"O3CURR\0\0" and data[56:] == b"\xff" * 456, "CURRENT")
    return struct.unpack_from("<Q", data, 16)[0]


def read_manifest(data: bytes, disk_key: bytes) -> ManifestFile:
    """All intact edits up to the first all-zero sector."""
    number, salt = checked_head(data[:128], b"O3MANIF\0")
    key = file_key(disk_key, salt)
    manifest = ManifestFile(number)
    at = 512
    while at < len(data) and data[at : at + 512].strip(b"\0"):
        magic, version, flags, edit, plain, padded = struct.unpack_from("<4sHHQII", data, at)
        need(magic == b"O3ED" and version == 1 and edit == manifest.edits, "edit header")
        need(flags == (1 if edit == 0 else 0) and padded % 512 == 0, "edit flags")
        need(_native.blake3(data[at : at + 32]) == data[at + 32 : at + 64], "edit header hash")
        end = at + 80 + plain
        need(_native.blake3(data[at:end]) == data[end : end + 32], "edit hash")
        need(data[end + 32 : at + padded].strip(b"\xff") == b"", "padding")
        apply_edit(manifest, key.unseal(nonce(at), data[at : at + 64], data[at + 64 : end]))
        manifest.edits += 1
        at += padded
    need(manifest.edits > 0, "snapshot")
    return manifest


def apply_edit(manifest: ManifestFile, data: bytes) -> None:
    at = 0
    added = {}
    while at < len(data):
        tag = data[at]
        at += 1
        if tag == 1:
            level, number, *numbers = struct.unpack_from("<B7Q", data, at)
            first, at = sized(data, at + 57)
            last, at = sized(data, at)
            names = ("size", "rows", "deleted", "low_sequence", "high_sequence", "applied")
            added[number] = dict(zip(names, numbers), level=level, first=first, last=last)
        elif tag == 2:
            del manifest.tables[struct.unpack_from("<Q", data, at)[0]]
            at += 8
        elif tag == 3:
            number, level = struct.unpack_from("<QB", data, at)
            manifest.tables[number]["level"] = level
            at += 9
        elif tag == 4:
            manifest.mark, at = sized(data, at)
        elif tag == 5:
            (manifest.sequence,) = struct.unpack_from("<Q", data, at)
            at += 8
        elif tag == 6:
            (manifest.next_number,) = struct.unpack_from("<Q", data, at)
            at += 8
        elif tag == 7:
            (sequence,) = struct.unpack_from("<Q", data, at)
            low, at = sized(data, at + 8)
            high, at = sized(data, at + 1) if data[at] else (None, at + 1)
            manifest.drops.append((low, high, sequence))
        elif tag == 8:
            (retired,) = struct.unpack_from("<Q", data, at)
            manifest.drops = [drop for drop in manifest.drops if drop[2] != retired]
            at += 8
        else:
            raise Damaged(f"tag {tag}")
    manifest.tables.update(added)


def read_index(files: dict[str, bytes], disk_key: bytes) -> tuple[bytes, dict[bytes, bytes]]:
    """(mark, all rows) of the index whose directory holds `files`."""
    number = read_current(files["CURRENT"])
    manifest = read_manifest(files[f"MANIFEST-{number:016x}"], disk_key)
    need(manifest.number == number, "manifest number")
    newest: dict[bytes, tuple[int, bytes | None]] = {}
    for table_number, info in manifest.tables.items():
        data = files[f"{table_number:016x}.table"]
        need(len(data) == info["size"], "table size")
        table = read_table(data, disk_key)
        need(table.number == table_number and len(table.rows) == info["rows"], "table")
        need((table.rows[0][0], table.rows[-1][0]) == (info["first"], info["last"]), "table span")
        for key, _, sequence, value in table.rows:
            gone = any(
                low <= key and (high is None or key < high) and sequence <= dropped
                for low, high, dropped in manifest.drops
            )
            if key not in newest or newest[key][0] < sequence:
                newest[key] = (sequence, None if gone else value)
    rows = {key: value for key, (_, value) in newest.items() if value is not None}
    return manifest.mark, dict(sorted(rows.items()))
