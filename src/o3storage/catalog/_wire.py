"""Commands as bytes: type u8, format u8, then the fields in order.

The two commands of the data path, PutObject and PutPart, carry the value of the row they write
(see `_versions.py`), so that applying one copies it; the others are tables of field codecs. Every
decoder checks every length and range and raises ValueError for what no encoder wrote.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Any, Final, NamedTuple

from o3storage.runtime.fields import FieldReader

from . import _commands as c
from ._codec import (
    U64_MAX,
    bytes16,
    bytes32,
    check_blake3,
    check_key,
    checksum_code,
    pack_headers,
    pack_metadata,
    pack_tags,
    read_checksum,
    read_condition,
    split_etag,
    text8,
    u8,
    u16,
    u64,
    unpack_map,
    unpack_pairs,
    write_checksum,
    write_condition,
)
from ._limits import (
    MAX_DELETES_PER_COMMAND,
    MAX_OBJECT_BYTES,
    MAX_PART_BITMAP_BYTES,
    MAX_PARTS,
    MAX_SECRET_BYTES,
    MAX_SETTING_BYTES,
    MAX_TIME_NS,
    UPLOAD_ID_BYTES,
)
from ._rows import (
    BUCKET_STATES,
    CHORES,
    check_part,
    check_part_tables,
    pack_part,
    unpack_part,
    versioning_code,
)
from ._version_id import MAX_ORDER, NULL
from ._versions import (
    HAS_BODY,
    IS_MARKER,
    IS_MULTIPART,
    IS_NULL,
    check_version,
    pack_version,
    unpack_version,
    version_order,
    version_size,
)

FORMAT: Final = 1
Codec = tuple[Callable[[Any], bytes], Callable[[FieldReader], Any]]


# --- field codecs: each checks on both ways


def _limited(limit: int) -> Codec:
    def write(value: bytes) -> bytes:
        if len(value) > limit:
            raise ValueError(f"{len(value)} bytes where at most {limit} are kept")
        return bytes32(value)

    def read(reader: FieldReader) -> bytes:
        value = reader.bytes32()
        if len(value) > limit:
            raise ValueError(f"{len(value)} bytes where at most {limit} are kept")
        return value

    return write, read


def _number(limit: int, low: int = 0) -> Codec:
    def check(value: int) -> int:
        if not low <= value <= limit:
            raise ValueError(f"{value} is not within {low} and {limit}")
        return value

    return lambda value: u64(check(value)), lambda reader: check(reader.u64())


def _choice(names: tuple[str, ...]) -> Codec:
    def write(value: str) -> bytes:
        if value not in names:
            raise ValueError(f"{value!r} is none of {names}")
        return text8(value)

    def read(reader: FieldReader) -> str:
        value = reader.text()
        if value not in names:
            raise ValueError(f"{value!r} is none of {names}")
        return value

    return write, read


def _optional(codec: Codec) -> Codec:
    write, read = codec

    def read_optional(reader: FieldReader) -> Any:
        present = reader.u8()
        if present > 1:
            raise ValueError(f"presence byte {present}")
        return read(reader) if present else None

    return lambda value: b"\0" if value is None else b"\1" + write(value), read_optional


def _last(codec: Codec) -> Codec:
    """A number at the end of a command, left out where it is 0. `codec` must refuse 0."""
    write, read = codec
    return (
        lambda value: write(value) if value else b"",
        lambda reader: 0 if reader.done else read(reader),
    )


def _named(check: Callable[[str], Any]) -> Codec:
    """A text of at least one character that `check` accepts."""

    def write(value: str) -> bytes:
        check(value)
        return text8(value)

    def read(reader: FieldReader) -> str:
        value = reader.text()
        check(value)
        return value

    return write, read


def _not_empty(value: str) -> None:
    if not value:
        raise ValueError("an empty name")


def _fixed(size: int) -> Codec:
    def write(value: bytes) -> bytes:
        if len(value) != size:
            raise ValueError(f"{len(value)} bytes where {size} belong")
        return value

    return write, lambda reader: reader.take(size)


def _write_version(version: int | None) -> bytes:
    if version is None:
        return u64(0)
    if version == NULL:
        return u64(U64_MAX)
    if not 0 < version <= MAX_ORDER:
        raise ValueError(f"version order {version} out of range")
    return u64(version)


def _read_version(reader: FieldReader) -> int | None:
    value = reader.u64()
    if value == 0:
        return None
    if value == U64_MAX:
        return NULL
    if value > MAX_ORDER:
        raise ValueError(f"version order {value} out of range")
    return value


def _write_items(items: list[c.DeleteItem]) -> bytes:
    if not 0 < len(items) <= MAX_DELETES_PER_COMMAND:
        raise ValueError(f"{len(items)} deletes: 1 to {MAX_DELETES_PER_COMMAND} fit a command")
    if len({item.key for item in items}) != len(items):
        raise ValueError("a key twice in one DeleteObjects; see delete_batches")
    out = [u16(len(items))]
    for item in items:
        out += (
            bytes16(check_key(item.key)),
            _write_version(item.version),
            bytes16(write_condition(item.condition)),
        )
    return b"".join(out)


def _read_items(reader: FieldReader) -> list[c.DeleteItem]:
    items: list[c.DeleteItem] = []
    for _ in range(reader.u16()):
        if len(items) == MAX_DELETES_PER_COMMAND:
            raise ValueError(f"more than {MAX_DELETES_PER_COMMAND} deletes in a command")
        key = check_key(reader.bytes16())
        items.append(c.DeleteItem(key, _read_version(reader), read_condition(reader.bytes16())))
    if not items or len({item.key for item in items}) != len(items):
        raise ValueError("no item, or a key twice, in one DeleteObjects")
    return items


_NAME: Final = _named(_not_empty)
_TEXT: Final[Codec] = (text8, FieldReader.text)
_TIME: Final = _number(MAX_TIME_NS)
_ID: Final = _number(MAX_ORDER, 1)
_EPOCH: Final = _number(MAX_ORDER)
_SIZE: Final = _number(MAX_OBJECT_BYTES)
_KEY: Final[Codec] = (
    lambda value: bytes16(check_key(value)),
    lambda reader: check_key(reader.bytes16()),
)
_VERSION: Final[Codec] = (_write_version, _read_version)
_UPLOAD_ID: Final = _fixed(UPLOAD_ID_BYTES)
_BLAKE3: Final = _fixed(32)
_CHECKSUM: Final[Codec] = (write_checksum, read_checksum)
_CONDITION: Final[Codec] = (
    lambda value: bytes16(write_condition(value)),
    lambda reader: read_condition(reader.bytes16()),
)
_HEADERS: Final[Codec] = (
    lambda value: bytes16(pack_headers(value)),
    lambda reader: unpack_map(reader.bytes16()),
)
_METADATA: Final[Codec] = (
    lambda value: bytes16(pack_metadata(value)),
    lambda reader: unpack_map(reader.bytes16()),
)
_TAGS: Final[Codec] = (
    lambda value: bytes16(pack_tags(value)),
    lambda reader: unpack_pairs(reader.bytes16()),
)
_ETAG: Final = _named(split_etag)
_STATUS: Final = _choice(("Enabled", "Suspended"))
_VERSIONING: Final = _choice(("", "Enabled", "Suspended"))
_KEY_STATUS: Final = _choice(("Active", "Inactive"))


class _Layout(NamedTuple):
    code: int
    fields: tuple[tuple[str, Codec], ...]


_OBJECT: Final = (("bucket_id", _ID), ("epoch", _EPOCH), ("key", _KEY))
_UPLOAD: Final = (*_OBJECT, ("upload_id", _UPLOAD_ID), ("proposed_ns", _TIME))

_LAYOUTS: Final[dict[type[Any], _Layout]] = {
    c.CreateBucket: _Layout(
        1, (("name", _NAME), ("owner", _TEXT), ("created_ns", _TIME), ("region", _TEXT))
    ),
    c.BeginDeleteBucket: _Layout(2, (("name", _NAME), ("bucket_id", _last(_ID)))),
    c.RevertDeleteBucket: _Layout(3, (("name", _NAME), ("bucket_id", _ID), ("epoch", _EPOCH))),
    c.FinishDeleteBucket: _Layout(4, (("name", _NAME), ("bucket_id", _ID), ("epoch", _EPOCH))),
    c.ForgetBucket: _Layout(5, (("bucket_id", _ID),)),
    c.SetBucketVersioning: _Layout(
        6, (("name", _NAME), ("status", _STATUS), ("bucket_id", _last(_ID)))
    ),
    c.SetBucketSetting: _Layout(
        7,
        (
            ("name", _NAME),
            ("setting", _NAME),
            ("value", _optional(_limited(MAX_SETTING_BYTES))),
            ("bucket_id", _last(_ID)),
        ),
    ),
    c.PutAccessKey: _Layout(
        8,
        (
            ("key_id", _NAME),
            ("secret", _limited(MAX_SECRET_BYTES)),
            ("owner", _TEXT),
            ("created_ns", _TIME),
            ("status", _KEY_STATUS),
        ),
    ),
    c.RemoveAccessKey: _Layout(9, (("key_id", _NAME),)),
    c.SetClusterSetting: _Layout(
        10, (("name", _NAME), ("value", _optional(_limited(MAX_SETTING_BYTES))))
    ),
    c.SyncBucket: _Layout(
        32,
        (
            ("bucket_id", _ID),
            ("epoch", _EPOCH),
            ("versioning", _VERSIONING),
            ("state", _choice(BUCKET_STATES)),
            ("proposed_ns", _TIME),
        ),
    ),
    c.DeleteObject: _Layout(
        34,
        (
            *_OBJECT,
            ("proposed_ns", _TIME),
            ("owner", _TEXT),
            ("version", _VERSION),
            ("condition", _CONDITION),
        ),
    ),
    c.DeleteObjects: _Layout(
        35,
        (
            ("bucket_id", _ID),
            ("epoch", _EPOCH),
            ("proposed_ns", _TIME),
            ("owner", _TEXT),
            ("items", (_write_items, _read_items)),
        ),
    ),
    c.SetTags: _Layout(36, (*_OBJECT, ("version", _VERSION), ("tags", _TAGS))),
    c.CreateUpload: _Layout(
        37,
        (
            *_UPLOAD,
            ("owner", _TEXT),
            ("headers", _HEADERS),
            ("metadata", _METADATA),
            ("tags", _TAGS),
            ("checksum_algorithm", _TEXT),
            ("checksum_type", _TEXT),
        ),
    ),
    c.CompleteUpload: _Layout(
        39,
        (
            *_UPLOAD,
            ("changes", _EPOCH),
            ("part_count", _number(MAX_PARTS, 1)),
            ("part_bitmap", _limited(MAX_PART_BITMAP_BYTES)),
            ("part_index", _limited(MAX_PART_BITMAP_BYTES)),
            ("size_bytes", _SIZE),
            ("etag", _ETAG),
            ("blake3", _BLAKE3),
            ("checksum", _CHECKSUM),
            ("condition", _CONDITION),
        ),
    ),
    c.AbortUpload: _Layout(40, _UPLOAD),
    c.AbandonStream: _Layout(
        41, (("bucket_id", _ID), ("key", _KEY), ("stream", _fixed(16)), ("proposed_ns", _TIME))
    ),
    c.Collect: _Layout(
        42,
        (
            ("bucket_id", _ID),
            ("key", _KEY),
            ("chore", (u8, FieldReader.u8)),
            ("subject", _fixed(16)),
            ("proposed_ns", _TIME),
        ),
    ),
    c.PurgeBucket: _Layout(43, (("bucket_id", _ID), ("proposed_ns", _TIME))),
}
_BY_CODE: Final = {layout.code: (kind, layout.fields) for kind, layout in _LAYOUTS.items()}
assert len(_BY_CODE) == len(_LAYOUTS)

PUT_OBJECT: Final = 33
PUT_PART: Final = 38
PUT_HEAD: Final = struct.Struct(">BBQQQQHH")
"""type, format, bucket id, epoch, proposed, started, key length, condition length; then the key,
the condition, the version's row value with order 0."""
PUT_HEAD_BYTES: Final = PUT_HEAD.size
PART_COMMAND_HEAD: Final = struct.Struct(">BBQQQQ16sHH")
"""type, format, bucket id, epoch, proposed, started, upload id, part number, key length; then the
key, the part's row value."""


def encode(command: c.Command) -> bytes:
    """A command as bytes. Raises ValueError for fields beyond the limits."""
    kind = type(command)
    if kind is c.PutObject:
        return _encode_put(command)  # type: ignore[arg-type]
    if kind is c.PutPart:
        return _encode_part(command)  # type: ignore[arg-type]
    layout = _LAYOUTS.get(kind)
    if layout is None:
        raise ValueError(f"{kind.__name__} is no command")
    _check(command)
    out = [bytes((layout.code, FORMAT))]
    for name, codec in layout.fields:
        out.append(codec[0](getattr(command, name)))
    return b"".join(out)


def decode(data: bytes) -> c.Command:
    """The command in bytes. Raises ValueError for bytes that no encoder wrote."""
    if len(data) < 2 or data[1] != FORMAT:
        raise ValueError("not a command of this format")
    code = data[0]
    if code == PUT_OBJECT:
        return _decode_put(data)
    if code == PUT_PART:
        return _decode_part(data)
    known = _BY_CODE.get(code)
    if known is None:
        raise ValueError(f"unknown command type {code}")
    kind, fields = known
    reader = FieldReader(data, 2)
    command: c.Command = kind(*[codec[1](reader) for _, codec in fields])
    reader.end()
    _check(command)
    return command


def _check(command: c.Command) -> None:
    """Rules between the fields of one command."""
    if type(command) is c.CompleteUpload:
        check_part_tables(command.part_count, command.part_bitmap, command.part_index)
    elif type(command) is c.CreateUpload:
        checksum_code(command.checksum_algorithm, command.checksum_type)
    elif type(command) is c.Collect:
        if command.chore not in CHORES:
            raise ValueError(f"unknown chore {command.chore}")
    elif type(command) is c.SyncBucket:
        versioning_code(command.versioning)


def _check_head(bucket_id: int, epoch: int, proposed_ns: int, started_ns: int) -> None:
    if not (
        0 < bucket_id <= MAX_ORDER
        and 0 <= epoch <= MAX_ORDER
        and 0 <= proposed_ns <= MAX_TIME_NS
        and 0 <= started_ns <= MAX_TIME_NS
    ):
        raise ValueError("bucket id, epoch or time out of range")


def _encode_put(command: c.PutObject) -> bytes:
    key = check_key(command.key)
    _check_head(command.bucket_id, command.epoch, command.proposed_ns, command.started_ns)
    condition = write_condition(command.condition) if command.condition is not None else b""
    return b"".join(
        (
            PUT_HEAD.pack(
                PUT_OBJECT,
                FORMAT,
                command.bucket_id,
                command.epoch,
                command.proposed_ns,
                command.started_ns,
                len(key),
                len(condition),
            ),
            key,
            condition,
            pack_version(
                modified_ns=command.proposed_ns,
                size_bytes=command.size_bytes,
                etag=command.etag,
                blake3=command.blake3,
                owner=command.owner,
                body=command.body,
                checksum=command.checksum,
                headers=command.headers,
                metadata=command.metadata,
                tags=command.tags,
            ),
        )
    )


class PutParts(NamedTuple):
    """A PutObject cut up without decoding the row it carries."""

    bucket_id: int
    epoch: int
    proposed_ns: int
    started_ns: int
    key: bytes
    condition: bytes
    value: bytes


def split_put(data: bytes) -> PutParts:
    """Raises ValueError."""
    if len(data) < PUT_HEAD_BYTES:
        raise ValueError("PutObject cut short")
    _, _, bucket_id, epoch, proposed_ns, started_ns, key_length, condition_length = (
        PUT_HEAD.unpack_from(data)
    )
    _check_head(bucket_id, epoch, proposed_ns, started_ns)
    key_end = PUT_HEAD_BYTES + key_length
    condition_end = key_end + condition_length
    key = check_key(data[PUT_HEAD_BYTES:key_end])
    value = data[condition_end:]
    check_version(value)
    if value[1] & (IS_NULL | IS_MARKER | IS_MULTIPART) or version_order(value):
        raise ValueError("PutObject carries a placed or foreign version")
    size = version_size(value)
    if size > MAX_OBJECT_BYTES or (size and not value[1] & HAS_BODY):
        raise ValueError(f"PutObject of {size} bytes, or of bytes without a body reference")
    return PutParts(
        bucket_id, epoch, proposed_ns, started_ns, key, data[key_end:condition_end], value
    )


def _decode_put(data: bytes) -> c.PutObject:
    put = split_put(data)
    version = unpack_version(put.key, put.value)
    if version.modified_ns != put.proposed_ns:
        raise ValueError("PutObject with two times")
    return c.PutObject(
        put.bucket_id,
        put.epoch,
        put.key,
        put.proposed_ns,
        version.owner,
        version.size_bytes,
        version.etag,
        version.blake3,
        version.body,
        put.started_ns,
        version.checksum,
        version.headers,
        version.metadata,
        version.tags,
        read_condition(put.condition),
    )


def _encode_part(command: c.PutPart) -> bytes:
    key = check_key(command.key)
    _check_head(command.bucket_id, command.epoch, command.proposed_ns, command.started_ns)
    if not 0 < command.number <= MAX_PARTS or len(command.upload_id) != UPLOAD_ID_BYTES:
        raise ValueError(f"part {command.number} of a {len(command.upload_id)}-byte upload id")
    return b"".join(
        (
            PART_COMMAND_HEAD.pack(
                PUT_PART,
                FORMAT,
                command.bucket_id,
                command.epoch,
                command.proposed_ns,
                command.started_ns,
                command.upload_id,
                command.number,
                len(key),
            ),
            key,
            pack_part(
                size_bytes=command.size_bytes,
                modified_ns=command.proposed_ns,
                etag=command.etag,
                blake3=check_blake3(command.blake3),
                body=command.body,
                checksum=command.checksum,
            ),
        )
    )


class PartParts(NamedTuple):
    """A PutPart cut up without decoding the row it carries."""

    bucket_id: int
    epoch: int
    proposed_ns: int
    started_ns: int
    key: bytes
    upload_id: bytes
    number: int
    value: bytes


def split_part(data: bytes) -> PartParts:
    """Raises ValueError."""
    head_bytes = PART_COMMAND_HEAD.size
    if len(data) < head_bytes:
        raise ValueError("PutPart cut short")
    _, _, bucket_id, epoch, proposed_ns, started_ns, upload_id, number, key_length = (
        PART_COMMAND_HEAD.unpack_from(data)
    )
    _check_head(bucket_id, epoch, proposed_ns, started_ns)
    if not 0 < number <= MAX_PARTS:
        raise ValueError(f"part number {number}")
    key = check_key(data[head_bytes : head_bytes + key_length])
    value = data[head_bytes + key_length :]
    check_part(value)
    return PartParts(bucket_id, epoch, proposed_ns, started_ns, key, upload_id, number, value)


def _decode_part(data: bytes) -> c.PutPart:
    put = split_part(data)
    part = unpack_part(put.number, put.value)
    if part.modified_ns != put.proposed_ns:
        raise ValueError("PutPart with two times")
    return c.PutPart(
        put.bucket_id,
        put.epoch,
        put.key,
        put.upload_id,
        put.number,
        put.proposed_ns,
        part.size_bytes,
        part.etag,
        part.blake3,
        part.body,
        put.started_ns,
        part.checksum,
    )
