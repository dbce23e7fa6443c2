"""Table files: their header, footer and properties, opening them, and reading their blocks."""

from __future__ import annotations

import struct
from dataclasses import dataclass

from o3storage._native import BlockError, ChaChaKey, TableIndex, blake3, index_open
from o3storage.crypto import FileSealer
from o3storage.runtime.disk import Disk, DiskFault, File, OpenMode

from ._types import BadBlock

HEADER_BYTES = 128
FOOTER_BYTES = 64
MAX_META_BYTES = 96 << 20
"""Filter, block index and properties of the largest table that the native module writes."""

KIND_FILTER = 2
KIND_BLOCK_INDEX = 3

_MAGIC = b"O3TABLE\0"
_FOOTER_MAGIC = b"O3TABEND"
_VERSION = 1
_header = struct.Struct("<8sHHIQ32s40x")
_footer = struct.Struct("<QQQ8s")

BLOCK_NUMBER_BITS = 24
"""Blocks of one table: a table is below 4 GiB and a block record above 256 bytes."""


@dataclass(frozen=True, slots=True)
class TableInfo:
    """What the manifest says about a table."""

    number: int
    size_bytes: int
    rows: int
    deleted: int
    min_sequence: int
    max_sequence: int
    applied: int
    """Drops up to this sequence were applied when it was written."""
    first: bytes
    last: bytes


def table_name(number: int) -> str:
    return f"{number:016x}.table"


def encode_header(number: int, salt: bytes) -> bytes:
    """HEADER_BYTES bytes."""
    head = _header.pack(_MAGIC, _VERSION, 0, 0, number, salt)
    return head + blake3(head)


def decode_header(data: bytes, number: int) -> bytes:
    """The salt. Raises ValueError with what does not hold."""
    head, digest = data[: _header.size], data[_header.size :]
    if len(data) != HEADER_BYTES or blake3(head) != digest:
        raise ValueError("the file's header does not match its checksum")
    magic, version, _, _, found, salt = _header.unpack(head)
    if magic != _MAGIC or version != _VERSION:
        raise ValueError("the file is not a table of this version")
    if found != number:
        raise ValueError(f"the file holds table {found:016x}")
    return bytes(salt)


class Table:
    """An open table. Reference counted by the views that show it."""

    __slots__ = (
        "base",
        "damage",
        "dead",
        "file",
        "first",
        "index",
        "info",
        "key",
        "last",
        "max_sequence",
        "merging",
        "path",
        "references",
        "suspect",
    )

    def __init__(self, path: str, info: TableInfo) -> None:
        self.path = path
        self.info = info
        self.first = info.first
        self.last = info.last
        self.max_sequence = info.max_sequence
        self.base = info.number << BLOCK_NUMBER_BITS
        """Cache key of its block 0."""
        self.file: File | None = None
        self.key: ChaChaKey | None = None
        self.index: TableIndex | None = None
        self.damage = ""
        """Why `index` is None: nothing of the table can be read."""
        self.references = 0
        self.dead = False
        """No longer in the manifest: its file goes with the last reference."""
        self.merging = False
        self.suspect = False
        """A merge found a bad block in it; it rests until the span is dropped."""

    def bad(self, number: int, reason: str) -> BadBlock:
        """The error for a request that touches block `number`."""
        assert self.index is not None
        high = (
            self.index.lower(number + 1)
            if number + 1 < self.index.blocks
            else self.info.last + b"\0"
        )
        return BadBlock(self.info.number, self.index.lower(number), high, reason)

    def bad_whole(self) -> BadBlock:
        return BadBlock(self.info.number, self.first, self.last + b"\0", self.damage)

    async def open(self, disk: Disk, disk_key: bytes) -> None:
        """Read header, filter and block index. Damage is kept in `damage`, not raised: the rest of
        the index serves."""
        try:
            await self._open(disk, disk_key)
        except (ValueError, FileNotFoundError, DiskFault) as error:
            self.index = None
            self.damage = f"the table cannot be opened: {error.args[-1]}"

    async def _open(self, disk: Disk, disk_key: bytes) -> None:
        self.file = await disk.open(self.path, OpenMode.READ)
        salt = decode_header(await self.file.read(0, HEADER_BYTES), self.info.number)
        self.key = FileSealer(disk_key, salt).native_key
        footer_at = self.info.size_bytes - FOOTER_BYTES
        footer = await self.file.read(footer_at, FOOTER_BYTES)
        if len(footer) != FOOTER_BYTES or blake3(footer[: _footer.size]) != footer[_footer.size :]:
            raise ValueError("its footer does not match its checksum")
        filter_at, index_at, properties_at, magic = _footer.unpack(footer[: _footer.size])
        if magic != _FOOTER_MAGIC or not (
            HEADER_BYTES <= filter_at < index_at < properties_at < footer_at
            and footer_at - filter_at <= MAX_META_BYTES
        ):
            raise ValueError("its footer is not one of this version")
        filter_record = await self.file.read(filter_at, index_at - filter_at)
        index_record = await self.file.read(index_at, properties_at - index_at)
        self.index = TableIndex(
            index_open(self.key, KIND_FILTER, filter_at, filter_record),
            index_open(self.key, KIND_BLOCK_INDEX, index_at, index_record),
        )
        if self.index.blocks >> BLOCK_NUMBER_BITS:
            raise ValueError("it has too many blocks")

    async def close(self) -> None:
        if self.file is not None:
            await self.file.close()


__all__ = ["BlockError", "Table", "TableInfo", "decode_header", "encode_header", "table_name"]
