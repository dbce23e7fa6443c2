"""The manifest: a file of atomic edits that says which tables make up the index.

An edit is on disk whole or not at all. Records start at sector boundaries of a file that was
filled with zeros before, no sector is written twice, and no sector of a record is all zero. So a
record that does not check, but has an all-zero sector, was never synced (a power cut): it is cut
off. One without was synced and has rotted: the manifest is damaged.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass, field

from o3storage._native import blake3
from o3storage.crypto import FileSealer, SealError
from o3storage.runtime.disk import Disk, DiskFault, DiskFull, File, OpenMode

from ._table import TableInfo
from ._types import MAX_KEY_BYTES, MAX_MARK_BYTES, IndexDamaged, IndexKeyWrong

SECTOR_BYTES = 512
FILE_BYTES = 1 << 20
"""Zero-filled at least this far; some 5,000 edits of a flush or merge."""
MAX_FILE_BYTES = 256 << 20
"""No manifest is larger: a snapshot of 100,000 tables and a mark fit many times."""
MAX_LEVELS = 8
CURRENT = "CURRENT"
CURRENT_NEW = "CURRENT.new"

_FILE_MAGIC = b"O3MANIF\0"
_CURRENT_MAGIC = b"O3CURR\0\0"
_RECORD_MAGIC = b"O3ED"
_VERSION = 1
_file_header = struct.Struct("<8sHHIQ32s40x")
_current = struct.Struct("<8sHHIQ")
_record = struct.Struct("<4sHHQII8x")
_table = struct.Struct("<BQQQQQQQ")
_u32 = struct.Struct("<I")
_u64 = struct.Struct("<Q")
HASH_BYTES = 32
TAG_BYTES = 16
RECORD_HEADER_BYTES = _record.size + HASH_BYTES

_ADD, _REMOVE, _MOVE, _MARK, _SEQUENCE, _NEXT, _DROP, _RETIRE = range(1, 9)
_SNAPSHOT_FLAG = 1

Drop = tuple[bytes, bytes | None, int]


def manifest_name(number: int) -> str:
    return f"MANIFEST-{number:016x}"


@dataclass(slots=True)
class Edit:
    """One atomic change. The first edit of a file is a snapshot: it starts from nothing."""

    added: list[tuple[int, TableInfo]] = field(default_factory=list)
    """(level, table)."""
    removed: list[int] = field(default_factory=list)
    moved: list[tuple[int, int]] = field(default_factory=list)
    """(table, new level)."""
    mark: bytes | None = None
    sequence: int | None = None
    """All rows up to it are in the tables."""
    next_number: int | None = None
    """Tables and manifests below it may exist."""
    drops: list[Drop] = field(default_factory=list)
    retired: list[int] = field(default_factory=list)
    """Sequences of drops that no table needs any more."""

    def encode(self) -> bytes:
        parts: list[bytes] = []
        for level, info in self.added:
            parts.append(bytes([_ADD]))
            parts.append(
                _table.pack(
                    level,
                    info.number,
                    info.size_bytes,
                    info.rows,
                    info.deleted,
                    info.min_sequence,
                    info.max_sequence,
                    info.applied,
                )
            )
            parts.extend((_bytes(info.first), _bytes(info.last)))
        parts.extend(bytes([_REMOVE]) + _u64.pack(number) for number in self.removed)
        for number, level in self.moved:
            parts.append(bytes([_MOVE]) + _u64.pack(number) + bytes([level]))
        if self.mark is not None:
            parts.append(bytes([_MARK]) + _bytes(self.mark))
        if self.sequence is not None:
            parts.append(bytes([_SEQUENCE]) + _u64.pack(self.sequence))
        if self.next_number is not None:
            parts.append(bytes([_NEXT]) + _u64.pack(self.next_number))
        for low, high, sequence in self.drops:
            end = b"\0" if high is None else b"\1" + _bytes(high)
            parts.append(bytes([_DROP]) + _u64.pack(sequence) + _bytes(low) + end)
        parts.extend(bytes([_RETIRE]) + _u64.pack(sequence) for sequence in self.retired)
        return b"".join(parts)

    @classmethod
    def decode(cls, data: bytes) -> Edit:
        """Raises ValueError."""
        edit = cls()
        reader = _Reader(data)
        while not reader.at_end():
            tag = reader.byte()
            if tag == _ADD:
                level, number, size, rows, deleted, low_sequence, high_sequence, applied = (
                    _table.unpack(reader.take(_table.size))
                )
                if level >= MAX_LEVELS:
                    raise ValueError("no such level")
                first, last = reader.bytes(MAX_KEY_BYTES), reader.bytes(MAX_KEY_BYTES)
                info = TableInfo(
                    number,
                    size,
                    rows,
                    deleted,
                    low_sequence,
                    high_sequence,
                    applied,
                    first,
                    last,
                )
                edit.added.append((level, info))
            elif tag == _REMOVE:
                edit.removed.append(reader.u64())
            elif tag == _MOVE:
                edit.moved.append((reader.u64(), reader.byte()))
            elif tag == _MARK:
                edit.mark = reader.bytes(MAX_MARK_BYTES)
            elif tag == _SEQUENCE:
                edit.sequence = reader.u64()
            elif tag == _NEXT:
                edit.next_number = reader.u64()
            elif tag == _DROP:
                sequence, low = reader.u64(), reader.bytes(MAX_KEY_BYTES)
                high = reader.bytes(MAX_KEY_BYTES) if reader.byte() else None
                edit.drops.append((low, high, sequence))
            elif tag == _RETIRE:
                edit.retired.append(reader.u64())
            else:
                raise ValueError(f"unknown part {tag} of an edit")
        return edit


def _bytes(data: bytes) -> bytes:
    return _u32.pack(len(data)) + data


class _Reader:
    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    def at_end(self) -> bool:
        return self._at == len(self._data)

    def take(self, size: int) -> bytes:
        part = self._data[self._at : self._at + size]
        if len(part) != size:
            raise ValueError("an edit is cut off")
        self._at += size
        return part

    def byte(self) -> int:
        return self.take(1)[0]

    def u64(self) -> int:
        return int.from_bytes(self.take(8), "little")

    def bytes(self, limit: int) -> bytes:
        size = int.from_bytes(self.take(4), "little")
        if size > limit:
            raise ValueError("a part of an edit is too large")
        return self.take(size)


@dataclass(slots=True)
class State:
    """What all edits together say."""

    tables: dict[int, tuple[int, TableInfo]] = field(default_factory=dict)
    mark: bytes = b""
    sequence: int = 0
    next_number: int = 1
    drops: list[Drop] = field(default_factory=list)

    def apply(self, edit: Edit) -> None:
        """Raises ValueError for an edit that does not fit."""
        for number in edit.removed:
            if self.tables.pop(number, None) is None:
                raise ValueError("an edit removes a table that is not there")
        for number, level in edit.moved:
            if number not in self.tables:
                raise ValueError("an edit moves a table that is not there")
            self.tables[number] = (level, self.tables[number][1])
        for level, info in edit.added:
            if info.number in self.tables:
                raise ValueError("an edit adds a table twice")
            self.tables[info.number] = (level, info)
        if edit.mark is not None:
            self.mark = edit.mark
        if edit.sequence is not None:
            self.sequence = edit.sequence
        if edit.next_number is not None:
            self.next_number = edit.next_number
        self.drops.extend(edit.drops)
        self.drops = [drop for drop in self.drops if drop[2] not in edit.retired]

    def snapshot(self) -> Edit:
        return Edit(
            added=[self.tables[number] for number in sorted(self.tables)],
            mark=self.mark,
            sequence=self.sequence,
            next_number=self.next_number,
            drops=list(self.drops),
        )


def encode_record(sealer: FileSealer, offset: int, number: int, edit: Edit, flags: int) -> bytes:
    """A record for file offset `offset`: a multiple of SECTOR_BYTES, padded with 0xFF."""
    plain = edit.encode()
    size = RECORD_HEADER_BYTES + len(plain) + TAG_BYTES + HASH_BYTES
    padded = -(-size // SECTOR_BYTES) * SECTOR_BYTES
    head = _record.pack(_RECORD_MAGIC, _VERSION, flags, number, len(plain), padded)
    head += blake3(head)
    sealed = head + sealer.seal(offset, head, plain)
    record = sealed + blake3(sealed)
    return record + b"\xff" * (padded - len(record))


def encode_file_header(number: int, salt: bytes) -> bytes:
    """One sector."""
    head = _file_header.pack(_FILE_MAGIC, _VERSION, 0, 0, number, salt)
    return (head + blake3(head)).ljust(SECTOR_BYTES, b"\xff")


def decode_file_header(data: bytes, number: int) -> bytes:
    """The salt. Raises IndexDamaged."""
    head = data[: _file_header.size]
    if (
        len(data) < SECTOR_BYTES
        or blake3(head) != data[_file_header.size : _file_header.size + HASH_BYTES]
    ):
        raise IndexDamaged("the manifest's header does not match its checksum")
    magic, version, _, _, found, salt = _file_header.unpack(head)
    if magic != _FILE_MAGIC or version != _VERSION or found != number:
        raise IndexDamaged("the manifest is not the one that CURRENT names, or of another version")
    return bytes(salt)


def decode_edits(data: bytes, number: int, disk_key: bytes) -> Iterator[Edit]:
    """The edits of manifest file `number`. Raises IndexDamaged, IndexKeyWrong."""
    sealer = FileSealer(disk_key, decode_file_header(data, number))
    at, count = SECTOR_BYTES, 0
    while at < len(data):
        record = _intact_record(data, at, count)
        if record is None:
            break
        head, body, padded = record
        try:
            edit = Edit.decode(sealer.unseal(at, head, body))
        except SealError as error:
            if count == 0:
                raise IndexKeyWrong("the disk key does not open the index's manifest") from error
            raise IndexDamaged(f"edit {count} of the manifest cannot be unsealed") from error
        except ValueError as error:
            raise IndexDamaged(f"edit {count} of the manifest: {error}") from error
        yield edit
        at += padded
        count += 1
    if count == 0:
        raise IndexDamaged("the manifest holds no snapshot")


def _intact_record(data: bytes, at: int, count: int) -> tuple[bytes, bytes, int] | None:
    """(header, ciphertext, size) of the record at `at`, None at the end of what was synced."""
    first = data[at : at + SECTOR_BYTES]
    if not first.strip(b"\0"):
        # The end, or a record whose first sector never got there. No record is written before the
        # one in front of it is synced, so another one behind it means that this one has rotted.
        behind = range(at + SECTOR_BYTES, len(data), SECTOR_BYTES)
        if any(_is_record_header(data[low : low + RECORD_HEADER_BYTES]) for low in behind):
            raise IndexDamaged(f"edit {count} of the manifest has rotted")
        return None
    head = first[: _record.size]
    if not _is_record_header(first[:RECORD_HEADER_BYTES]):
        raise IndexDamaged(f"the header of edit {count} of the manifest has rotted")
    magic, version, flags, number, plain, padded = _record.unpack(head)
    if (
        magic != _RECORD_MAGIC
        or version != _VERSION
        or number != count
        or (flags & _SNAPSHOT_FLAG) != (count == 0)
        or plain + RECORD_HEADER_BYTES + TAG_BYTES + HASH_BYTES > padded
    ):
        raise IndexDamaged(f"edit {count} of the manifest is out of place")
    record = data[at : at + padded]
    end = RECORD_HEADER_BYTES + plain + TAG_BYTES
    if len(record) == padded and blake3(record[:end]) == record[end : end + HASH_BYTES]:
        return record[:RECORD_HEADER_BYTES], record[RECORD_HEADER_BYTES:end], padded
    sectors = range(0, padded, SECTOR_BYTES)
    torn = any(not record[low : low + SECTOR_BYTES].strip(b"\0") for low in sectors)
    if torn and count > 0 and not data[at + padded :].strip(b"\0"):
        return None
    raise IndexDamaged(f"edit {count} of the manifest has rotted")


def _is_record_header(data: bytes) -> bool:
    return data.startswith(_RECORD_MAGIC) and blake3(data[: _record.size]) == data[_record.size :]


def encode_current(number: int) -> bytes:
    """One sector that names the manifest."""
    head = _current.pack(_CURRENT_MAGIC, _VERSION, 0, 0, number)
    return (head + blake3(head)).ljust(SECTOR_BYTES, b"\xff")


def decode_current(data: bytes) -> int:
    head = data[: _current.size]
    if len(data) != SECTOR_BYTES or blake3(head) != data[_current.size : _current.size + 32]:
        raise IndexDamaged("CURRENT does not match its checksum")
    magic, version, _, _, number = _current.unpack(head)
    if magic != _CURRENT_MAGIC or version != _VERSION:
        raise IndexDamaged("CURRENT is of another version")
    return int(number)


def room_for(edit: Edit) -> int:
    """Bytes that the record of an edit takes at most."""
    return len(edit.encode()) + 2 * SECTOR_BYTES


class Manifest:
    """The manifest file being written."""

    def __init__(self, file: File, number: int, sealer: FileSealer, size_bytes: int) -> None:
        self._file = file
        self.number = number
        self._sealer = sealer
        self._size_bytes = size_bytes
        self._at = SECTOR_BYTES
        self._count = 0

    @classmethod
    async def create(
        cls,
        disk: Disk,
        directory: str,
        number: int,
        *,
        disk_key: bytes,
        salt: bytes,
        state: State,
        room_bytes: int = 0,
    ) -> Manifest:
        """A new file that starts with a snapshot of `state`, synced, and named by CURRENT, with
        room for an edit of `room_bytes`. Raises DiskFull (no new manifest is left), DiskFault."""
        path = f"{directory}/{manifest_name(number)}"
        file = await disk.open(path, OpenMode.CREATE)
        sealer = FileSealer(disk_key, salt)
        snapshot = encode_record(sealer, SECTOR_BYTES, 0, state.snapshot(), _SNAPSHOT_FLAG)
        size = max(FILE_BYTES, 2 * len(snapshot)) + room_bytes
        try:
            await file.allocate(0, size, zero_fill=True)
        except DiskFull:
            # Each try would keep what it got of the last space.
            await file.close()
            await disk.unlink(path)
            raise
        await file.write_sync(0, [encode_file_header(number, salt), snapshot])
        await disk.sync_dir(directory)
        manifest = cls(file, number, sealer, size)
        manifest._at += len(snapshot)
        manifest._count = 1
        temporary = f"{directory}/{CURRENT_NEW}"
        if CURRENT_NEW in await disk.list_dir(directory):
            await disk.unlink(temporary)  # left over by a crash
        current = await disk.open(temporary, OpenMode.CREATE)
        try:
            await current.allocate(0, SECTOR_BYTES, zero_fill=False)
        except DiskFull:
            await current.close()
            await file.close()
            await disk.unlink(path)
            raise
        await current.write_sync(0, [encode_current(number)])
        await current.close()
        await disk.rename(temporary, f"{directory}/{CURRENT}")
        await disk.sync_dir(directory)
        return manifest

    def has_room(self, edit: Edit) -> bool:
        return self._at + room_for(edit) <= self._size_bytes

    async def append(self, edit: Edit) -> None:
        """Durable when it returns. Raises DiskFault."""
        record = encode_record(self._sealer, self._at, self._count, edit, 0)
        assert self._at + len(record) <= self._size_bytes
        await self._file.write_sync(self._at, [record])
        self._at += len(record)
        self._count += 1

    async def close(self) -> None:
        await self._file.close()


async def _read_file(disk: Disk, path: str) -> bytes:
    file = await disk.open(path, OpenMode.READ)
    try:
        size = await file.size()
        if size > MAX_FILE_BYTES:
            raise IndexDamaged(f"{path} is larger than any that is written")
        try:
            return await file.read(0, size)
        except DiskFault:
            try:  # it may have been for once, and an index takes long to rebuild
                return await file.read(0, size)
            except DiskFault as error:
                raise IndexDamaged(f"{path} cannot be read: {error}") from error
    finally:
        await file.close()


async def load(disk: Disk, directory: str, disk_key: bytes) -> tuple[int, State]:
    """The number of the manifest that CURRENT names, and what it says. FileNotFoundError if there
    is no CURRENT. Raises IndexDamaged, IndexKeyWrong, DiskFault."""
    number = decode_current(await _read_file(disk, f"{directory}/{CURRENT}"))
    try:
        data = await _read_file(disk, f"{directory}/{manifest_name(number)}")
    except FileNotFoundError as error:
        raise IndexDamaged(f"CURRENT names {manifest_name(number)}, which is missing") from error
    state = State()
    for edit in decode_edits(data, number, disk_key):
        try:
            state.apply(edit)
        except ValueError as error:
            raise IndexDamaged(f"the manifest contradicts itself: {error}") from error
    return number, state
