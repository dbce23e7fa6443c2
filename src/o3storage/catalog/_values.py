"""Queries, and the answers to queries and commands, as bytes: a node that holds no replica of a
range has another one run them, and gets back what it would have got itself.

    value   tag u8, then by tag: INT: size u8, that many bytes, signed; BYTES, TEXT: size u32 and
            bytes; LIST, TUPLE: count u32, values; MAP: count u32, keys and values by turns;
            RECORD: class u8, one value for each field; COMMAND: size u32, an encoded command;
            ERROR: class u8, value of a tuple of its arguments
    query   function u8, whether it is a page u8, value of (route, group, arguments)
    answer  value of (result, error)

All integers are big-endian. Only the classes and functions named here are ever made: the bytes
come from a member, which is trusted with all rows, but not with more than that. A class or function
keeps its number for ever; new ones are added at the end.

Decoding raises ValueError for what encoding does not write.
"""

from __future__ import annotations

import dataclasses
import struct
from collections.abc import Callable
from typing import Any, Final, cast

from . import _commands as c
from . import _errors as e
from . import _read_lists, _read_objects, _read_system, _read_uploads
from . import _types as t
from ._query import PageQuery, Query
from ._wire import decode, encode

NONE, FALSE, TRUE, INT, BYTES, TEXT, LIST, TUPLE, MAP, RECORD, COMMAND, ERROR = range(12)

MAX_DEPTH: Final = 8
"""Values in values: a page holds records, which hold maps or records."""
MAX_ITEMS: Final = 65_536
"""Of one list: pages have 1,000, a part index some hundreds."""
MAX_INT_BYTES: Final = 16
"""64 bits and a sign are the longest there are."""

_U32 = struct.Struct(">I")

_RECORDS: Final[tuple[type[Any], ...]] = (
    t.Checksum,
    t.BucketInfo,
    t.VersionInfo,
    t.PartInfo,
    t.PartSpan,
    t.UploadInfo,
    t.CompletedUpload,
    t.AccessKey,
    t.Counts,
    t.CreateBucketResult,
    t.SyncResult,
    t.PutResult,
    t.DeleteResult,
    t.TagsResult,
    t.PartResult,
    t.StepResult,
    t.AbandonResult,
    t.ListPage,
    t.VersionsPage,
    t.UploadsPage,
    t.PartsPage,
    t.BucketsPage,
    t.AccessKeysPage,
)

_ERRORS: Final[tuple[tuple[type[e.CatalogError], tuple[str, ...]], ...]] = (
    (e.CatalogError, ("args",)),
    (e.InvalidBucketState, ("args",)),
    (e.NoSuchBucket, ("name",)),
    (e.BucketExists, ("name", "owner")),
    (e.BucketBusy, ("name",)),
    (e.BucketNotEmpty, ("name",)),
    (e.StaleEpoch, ("bucket_id", "epoch", "current")),
    (e.BucketFenced, ("bucket_id",)),
    (e.NoSuchKey, ("key", "marker_order", "marker_is_null")),
    (e.NoSuchVersion, ("key", "version")),
    (e.MethodNotAllowed, ("key", "order", "is_null", "modified_ns")),
    (e.PreconditionFailed, ("which", "current_order")),
    (e.NoSuchUpload, ("key", "upload_id")),
    (e.UploadChanged, ("expected", "actual")),
    (e.InvalidPart, ("number",)),
    (e.StreamAbandoned, ("stream",)),
    (e.StreamExpired, ("stream",)),
    (e.NoSuchAccessKey, ("key_id",)),
    (e.AccessKeyExists, ("key_id",)),
    (e.InvalidVersionId, ()),
)
"""Each with the attributes that it is made from; "args": whatever it was made from."""

_FUNCTIONS: Final[tuple[Callable[..., Any], ...]] = (
    _read_objects.head_version,
    _read_lists.list_objects,
    _read_lists.list_versions,
    _read_lists.bucket_is_empty,
    _read_uploads.get_upload,
    _read_uploads.list_uploads,
    _read_uploads.list_parts,
    _read_uploads.get_part,
    _read_uploads.parts_from,
    _read_uploads.part_of_version,
    _read_uploads.parts_of_version,
    _read_system.counts,
    _read_system.range_bucket_epoch,
    _read_system.chores,
    _read_system.is_abandoned,
)
"""Those that key ranges answer; every node has range 0 itself."""

_COMMANDS: Final = cast("tuple[type[Any], ...]", c.Command.__args__)


def _fields(kind: type[Any]) -> tuple[str, ...]:
    if dataclasses.is_dataclass(kind):
        return tuple(field.name for field in dataclasses.fields(kind))
    return cast("tuple[str, ...]", kind._fields)


_RECORD_NUMBERS: Final = {kind: number for number, kind in enumerate(_RECORDS)}
_RECORD_FIELDS: Final = [_fields(kind) for kind in _RECORDS]
_ERROR_NUMBERS: Final = {kind: number for number, (kind, _) in enumerate(_ERRORS)}
_FUNCTION_NUMBERS: Final = {function: number for number, function in enumerate(_FUNCTIONS)}


# --- queries and answers


def encode_query(query: Query[Any]) -> bytes:
    """Raises ValueError for a query of range 0."""
    function, arguments = query.parts
    number = _FUNCTION_NUMBERS.get(function)
    if number is None:
        raise ValueError(f"{query} is not a query of a key range")
    out = bytearray((number, isinstance(query, PageQuery)))
    _write(out, (query.route, query.group, arguments))
    return bytes(out)


def decode_query(data: bytes) -> Query[Any]:
    """Raises ValueError."""
    if len(data) < 2 or data[0] >= len(_FUNCTIONS) or data[1] > 1:
        raise ValueError("a query that nobody wrote")
    match _Reader(data, 2).whole():
        case (bytes() as route, None | int() as group, tuple() as arguments):
            kind = PageQuery if data[1] else Query
            return kind(route, _FUNCTIONS[data[0]], *arguments, group=group)
    raise ValueError("a query that nobody wrote")


def encode_answer(result: object, error: Exception | None) -> bytes:
    """Raises ValueError for what no command or query of a key range answers."""
    out = bytearray()
    _write(out, (result, error))
    return bytes(out)


def decode_answer(data: bytes) -> tuple[Any, e.CatalogError | None]:
    """(result, error) as they were encoded. Raises ValueError."""
    match _Reader(data, 0).whole():
        case (result, None | e.CatalogError() as error):
            return result, error
    raise ValueError("an answer that nobody wrote")


# --- values


def _write(out: bytearray, value: object) -> None:
    kind = type(value)
    if kind is bytes:
        out.append(BYTES)
        out += _U32.pack(len(cast("bytes", value)))
        out += cast("bytes", value)
    elif kind is int:
        number = cast("int", value)
        size = number.bit_length() // 8 + 1
        out += bytes((INT, size))
        out += number.to_bytes(size, "big", signed=True)
    elif kind is str:
        data = cast("str", value).encode("utf-8", "surrogatepass")
        out.append(TEXT)
        out += _U32.pack(len(data))
        out += data
    elif value is None:
        out.append(NONE)
    elif kind is bool:
        out.append(TRUE if value else FALSE)
    elif kind is list or kind is tuple:
        items = cast("list[object]", value)
        out.append(LIST if kind is list else TUPLE)
        out += _U32.pack(len(items))
        for item in items:
            _write(out, item)
    elif kind is dict:
        pairs = cast("dict[object, object]", value)
        out.append(MAP)
        out += _U32.pack(len(pairs))
        for key, item in pairs.items():
            _write(out, key)
            _write(out, item)
    elif kind in _RECORD_NUMBERS:
        number = _RECORD_NUMBERS[kind]
        out += bytes((RECORD, number))
        for name in _RECORD_FIELDS[number]:
            _write(out, getattr(value, name))
    elif kind in _ERROR_NUMBERS:
        number = _ERROR_NUMBERS[kind]
        out += bytes((ERROR, number))
        _write(out, tuple(getattr(value, name) for name in _ERRORS[number][1]))
    elif kind in _COMMANDS:
        data = encode(cast("c.Command", value))
        out.append(COMMAND)
        out += _U32.pack(len(data))
        out += data
    else:
        raise ValueError(f"a {kind.__name__} is no value of an answer")


class _Reader:
    __slots__ = ("_at", "_data")

    def __init__(self, data: bytes, at: int) -> None:
        self._data = data
        self._at = at

    def whole(self) -> Any:
        """The one value that is left."""
        value = self._read(0)
        if self._at != len(self._data):
            raise ValueError("bytes behind a value")
        return value

    def _take(self, size: int) -> bytes:
        at = self._at
        if at + size > len(self._data):
            raise ValueError("a value is cut short")
        self._at = at + size
        return self._data[at : at + size]

    def _sized(self) -> bytes:
        return self._take(_U32.unpack(self._take(4))[0])

    def _count(self) -> int:
        count: int = _U32.unpack(self._take(4))[0]
        if count > MAX_ITEMS:
            raise ValueError("a list is too long")
        return count

    def _read(self, depth: int) -> Any:
        if depth > MAX_DEPTH:
            raise ValueError("values lie too deep")
        tag = self._take(1)[0]
        if tag == BYTES:
            return self._sized()
        if tag == INT:
            size = self._take(1)[0]
            if not 0 < size <= MAX_INT_BYTES:
                raise ValueError("a number of a size that nobody wrote")
            return int.from_bytes(self._take(size), "big", signed=True)
        if tag == TEXT:
            return self._sized().decode("utf-8", "surrogatepass")
        if tag == NONE:
            return None
        if tag in {FALSE, TRUE}:
            return tag == TRUE
        if tag in {LIST, TUPLE}:
            items = [self._read(depth + 1) for _ in range(self._count())]
            return items if tag == LIST else tuple(items)
        if tag == MAP:
            pairs: dict[Any, Any] = {}
            for _ in range(self._count()):
                key = self._read(depth + 1)
                if type(key) is not str:
                    raise ValueError("a map is by texts")
                pairs[key] = self._read(depth + 1)
            return pairs
        if tag == RECORD:
            number = self._take(1)[0]
            if number >= len(_RECORDS):
                raise ValueError("a record that nobody wrote")
            return _RECORDS[number](*[self._read(depth + 1) for _ in _RECORD_FIELDS[number]])
        if tag == ERROR:
            number = self._take(1)[0]
            values = self._read(depth + 1)
            if number >= len(_ERRORS) or type(values) is not tuple:
                raise ValueError("an error that nobody wrote")
            kind, names = _ERRORS[number]
            if len(values) != len(names):
                raise ValueError("an error that nobody wrote")
            if names == ("args",):
                values = values[0] if type(values[0]) is tuple else values
            return kind(*values)
        if tag == COMMAND:
            return decode(self._sized())
        raise ValueError("a value that nobody wrote")
