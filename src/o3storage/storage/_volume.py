"""Volume files: their names and their header (docs/format.md, "Volumes").

Interface: `VolumeHeader`, `encode_header`, `decode_header`, `volume_path`, `parse_name`.

Invariants
- The header block stands twice, so that one bad block does not cost the salt.
- A volume id is given once per disk, to one file of one kind, ascending in order of creation.
- The salt is random and belongs to one file: the file's key is HKDF(disk key, salt) and record
  offsets are its nonces, so a file is never rewritten with other bytes.
- `born_sequence` is at most the sequence of any change that is recorded in the volume after its
  creation; what it tells the tombstone rule is in _compaction.py.
"""

from __future__ import annotations

import enum
import struct
from typing import NamedTuple

from o3storage._native import blake3
from o3storage.crypto import FileSealer, SealError
from o3storage.runtime.disk import Buffer
from o3storage.storage._types import (
    SEAL_TAG_BYTES,
    FormatVersionUnknown,
    StoreDamaged,
    StoreKeyWrong,
)

VOLUME_DIR = "volumes"
FORMAT_VERSION = 1
BLOCK_BYTES = 4096
"""Batches and bulk writes start and end at multiples of this (direct I/O)."""
HEADER_BYTES = 2 * BLOCK_BYTES
"""Two equal blocks; records and batches start behind them."""
SALT_BYTES = 32
PAD = b"\xff"
"""Padding: never 0, so that no sector that was written is all zero."""

_MAGIC = b"O3VOLUME"
_FIELDS = struct.Struct("<8sIIQQQ32s16s")
_HASH_BYTES = 32
_CHECK_AT = _HASH_BYTES + _FIELDS.size
_END = _CHECK_AT + SEAL_TAG_BYTES
STORE_ID_BYTES = 16


class VolumeKind(enum.IntEnum):
    LOG = 1
    BULK = 2


_SUFFIX = {VolumeKind.LOG: ".log", VolumeKind.BULK: ".bulk"}


class VolumeHeader(NamedTuple):
    """First block of a volume. `store_id` is equal in all volumes of one disk."""

    kind: VolumeKind
    volume: int
    epoch: int
    born_sequence: int
    salt: bytes
    store_id: bytes


def volume_path(kind: VolumeKind, volume: int) -> str:
    return f"{VOLUME_DIR}/{volume:010d}{_SUFFIX[kind]}"


def parse_name(name: str) -> tuple[VolumeKind, int] | None:
    """Kind and id by file name, None for another file."""
    for kind, suffix in _SUFFIX.items():
        stem = name.removesuffix(suffix)
        if stem != name and len(stem) == 10 and stem.isascii() and stem.isdigit():
            return kind, int(stem)
    return None


def encode_header(header: VolumeHeader, disk_key: bytes) -> tuple[bytes, FileSealer]:
    """The first bytes of a new volume, and the sealer of its records."""
    fields = _FIELDS.pack(
        _MAGIC,
        FORMAT_VERSION,
        header.kind,
        header.volume,
        header.epoch,
        header.born_sequence,
        header.salt,
        header.store_id,
    )
    sealer = FileSealer(disk_key, header.salt)
    rest = (fields + sealer.seal(0, fields, b"")).ljust(BLOCK_BYTES - _HASH_BYTES, PAD)
    return (blake3(rest) + rest) * 2, sealer


def decode_header(data: Buffer, path: str) -> VolumeHeader:
    """Raises StoreDamaged, FormatVersionUnknown. Does not need the key."""
    block = good_block(data, path)
    magic, version, kind, volume, epoch, born, salt, store_id = _FIELDS.unpack_from(
        block, _HASH_BYTES
    )
    if magic != _MAGIC:
        raise StoreDamaged(f"{path}: not a volume")
    if version != FORMAT_VERSION:
        raise FormatVersionUnknown(
            f"{path}: format version {version}; this program reads version {FORMAT_VERSION}. "
            "Use the version of o3storage that wrote it."
        )
    if kind not in tuple(VolumeKind):
        raise StoreDamaged(f"{path}: volume kind {kind}")
    return VolumeHeader(VolumeKind(kind), volume, epoch, born, salt, store_id)


def good_block(data: Buffer, path: str) -> bytes:
    """The first of the two header blocks that is unaltered. Raises StoreDamaged."""
    for at in (0, BLOCK_BYTES):
        block = bytes(data[at : at + BLOCK_BYTES])
        if len(block) == BLOCK_BYTES and blake3(block[_HASH_BYTES:]) == block[:_HASH_BYTES]:
            return block
    raise StoreDamaged(
        f"{path}: both copies of the volume's header are damaged; `o3storage verify --repair` sets "
        "it aside"
    )


def open_sealer(data: Buffer, header: VolumeHeader, disk_key: bytes, path: str) -> FileSealer:
    """The sealer of the volume's records. Raises StoreKeyWrong, StoreDamaged."""
    sealer = FileSealer(disk_key, header.salt)
    block = good_block(data, path)
    try:
        sealer.unseal(0, block[_HASH_BYTES:_CHECK_AT], block[_CHECK_AT:_END])
    except SealError as error:
        raise StoreKeyWrong(
            f"{path} was sealed with another key: put back the master.key and node.keys that "
            "belong to this data directory"
        ) from error
    return sealer


def align(size: int) -> int:
    """Up to the next multiple of BLOCK_BYTES."""
    return -(-size // BLOCK_BYTES) * BLOCK_BYTES
