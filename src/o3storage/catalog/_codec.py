"""Building blocks of the binary codecs of commands and rows.

All integers are big-endian and unsigned. Whatever bytes a decoder is given, it returns a value or
raises ValueError; it never reads past the end and never allocates more than the input's size.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable
from typing import Final

from o3storage.runtime.fields import FieldReader

from ._limits import (
    BLAKE3_BYTES,
    MAX_HEADERS_BYTES,
    MAX_KEY_BYTES,
    MAX_METADATA_BYTES,
    MAX_NAME_BYTES,
    MAX_TAGS,
    MAX_TAGS_BYTES,
    STREAM_REF_BYTES,
)
from ._types import Checksum, Tags, WriteCondition

U64_MAX: Final = (1 << 64) - 1

_U16 = struct.Struct(">H")
_U32 = struct.Struct(">I")
_U64 = struct.Struct(">Q")

ALGORITHMS: Final = ("", "CRC32", "CRC32C", "CRC64NVME", "SHA1", "SHA256")
CHECKSUM_SIZES: Final = (0, 4, 4, 8, 20, 32)
CHECKSUM_TYPES: Final = ("", "FULL_OBJECT", "COMPOSITE")
_ALGORITHM_CODES: Final = {name: code for code, name in enumerate(ALGORITHMS)}
_TYPE_CODES: Final = {name: code for code, name in enumerate(CHECKSUM_TYPES)}
CHECKSUM_NAMES: Final = tuple(
    (ALGORITHMS[code & 15], CHECKSUM_TYPES[code >> 4])
    if (code & 15) < len(ALGORITHMS) and (code >> 4) < len(CHECKSUM_TYPES)
    else None
    for code in range(48)
)
"""Checksum byte -> (algorithm, type): the algorithm in the low four bits, the type above."""


_SIZES: Final = {
    code: CHECKSUM_SIZES[code & 15] for code, names in enumerate(CHECKSUM_NAMES) if names
}


def u8(value: int) -> bytes:
    if not 0 <= value <= 0xFF:
        raise ValueError(f"{value} does not fit one byte")
    return bytes((value,))


def u16(value: int) -> bytes:
    if not 0 <= value <= 0xFFFF:
        raise ValueError(f"{value} does not fit 16 bits")
    return _U16.pack(value)


def u32(value: int) -> bytes:
    if not 0 <= value <= 0xFFFFFFFF:
        raise ValueError(f"{value} does not fit 32 bits")
    return _U32.pack(value)


def u64(value: int) -> bytes:
    if not 0 <= value <= U64_MAX:
        raise ValueError(f"{value} does not fit 64 bits")
    return _U64.pack(value)


def bytes8(value: bytes) -> bytes:
    if len(value) > MAX_NAME_BYTES:
        raise ValueError(f"{len(value)} bytes where at most {MAX_NAME_BYTES} fit")
    return bytes((len(value),)) + value


def text8(value: str) -> bytes:
    return bytes8(value.encode())


def bytes16(value: bytes) -> bytes:
    return u16(len(value)) + value


def bytes32(value: bytes) -> bytes:
    return u32(len(value)) + value


def check_key(key: bytes) -> bytes:
    """An object key: 1 to 1,024 bytes."""
    if not 0 < len(key) <= MAX_KEY_BYTES:
        raise ValueError(f"object key of {len(key)} bytes: 1 to {MAX_KEY_BYTES} are allowed")
    return key


# --- texts: maps and tags as one UTF-8 string with NUL between fields


def pack_pairs(pairs: Iterable[tuple[str, str]], limit: int, what: str) -> bytes:
    """Name and value after each other, NUL between: encoding and decoding are one C call each.
    NUL occurs in no header (HTTP) and no tag (XML); a field holding one is refused."""
    fields = [field for pair in pairs for field in pair]
    if not fields:
        return b""
    text = "\0".join(fields)
    if text.count("\0") != len(fields) - 1:
        raise ValueError(f"NUL character in {what}")
    data = text.encode()
    if len(data) > limit:
        raise ValueError(f"{what} of {len(data)} bytes: at most {limit} are stored")
    return data


def pack_headers(headers: dict[str, str]) -> bytes:
    return pack_pairs(headers.items(), MAX_HEADERS_BYTES, "headers") if headers else b""


def pack_metadata(metadata: dict[str, str]) -> bytes:
    return pack_pairs(metadata.items(), MAX_METADATA_BYTES, "metadata") if metadata else b""


def pack_tags(tags: Tags) -> bytes:
    if len(tags) > MAX_TAGS:
        raise ValueError(f"{len(tags)} tags: at most {MAX_TAGS} are stored")
    return pack_pairs(tags, MAX_TAGS_BYTES, "tags") if tags else b""


def unpack_pairs(data: bytes) -> list[tuple[str, str]]:
    if not data:
        return []
    fields = data.decode().split("\0")
    if len(fields) % 2:
        raise ValueError("a name without a value")
    pairs = iter(fields)
    return list(zip(pairs, pairs, strict=True))


def unpack_map(data: bytes) -> dict[str, str]:
    if not data:
        return {}
    fields = data.decode().split("\0")
    if len(fields) % 2:
        raise ValueError("a name without a value")
    pairs = iter(fields)
    return dict(zip(pairs, pairs, strict=True))


# --- checksums


def checksum_code(algorithm: str, kind: str) -> int:
    """The byte of an (algorithm, type); 0 for none."""
    try:
        return _ALGORITHM_CODES[algorithm] | _TYPE_CODES[kind] << 4
    except KeyError:
        raise ValueError(f"unknown checksum {algorithm!r} {kind!r}") from None


def checksum_names(code: int) -> tuple[str, str]:
    names = CHECKSUM_NAMES[code] if code < len(CHECKSUM_NAMES) else None
    if names is None:
        raise ValueError(f"unknown checksum code {code}")
    return names


def checksum_size(code: int) -> int:
    """Bytes of the value of a checksum code. Raises ValueError."""
    size = _SIZES.get(code)
    if size is None:
        raise ValueError(f"unknown checksum code {code}")
    return size


def pack_checksum(checksum: Checksum | None) -> tuple[int, bytes]:
    """(code, value) of an object checksum."""
    if checksum is None:
        return 0, b""
    code = checksum_code(checksum[0], checksum[1])
    if not code & 15 or not code >> 4 or len(checksum[2]) != CHECKSUM_SIZES[code & 15]:
        raise ValueError(f"checksum {checksum[0]} of {len(checksum[2])} bytes")
    return code, checksum[2]


def unpack_checksum(code: int, value: bytes) -> Checksum | None:
    if not code:
        return None
    algorithm, kind = checksum_names(code)
    if not algorithm or not kind:
        raise ValueError(f"checksum code {code} names no checksum")
    return Checksum(algorithm, kind, value)


def write_checksum(checksum: Checksum | None) -> bytes:
    code, value = pack_checksum(checksum)
    return bytes((code,)) + value


def read_checksum(reader: FieldReader) -> Checksum | None:
    code = reader.u8()
    return unpack_checksum(code, reader.take(checksum_size(code)))


# --- etags


def split_etag(etag: str) -> tuple[bytes, int]:
    """MD5 and suffix (0: none) of an ETag: 32 lower-case hexadecimal digits, then maybe -N."""
    if len(etag) == 32:
        digest, suffix = bytes.fromhex(etag), 0
    else:
        if etag[32:33] != "-" or not etag[33:].isascii() or not etag[33:].isdigit():
            raise ValueError(f"ETag {etag!r} is not an MD5 in hexadecimal, maybe with -N")
        digest, suffix = bytes.fromhex(etag[:32]), int(etag[33:])
        if not 0 < suffix <= 0xFFFF:
            raise ValueError(f"ETag {etag!r}: part count out of range")
    if len(digest) != 16 or join_etag(digest, suffix) != etag:
        raise ValueError(f"ETag {etag!r} is not in canonical form")
    return digest, suffix


def join_etag(digest: bytes, suffix: int) -> str:
    return f"{digest.hex()}-{suffix}" if suffix else digest.hex()


# --- bodies and digests


def check_body(body: bytes, size_bytes: int) -> None:
    """A packed StreamRef exactly where there are bytes."""
    if len(body) not in {0, STREAM_REF_BYTES}:
        raise ValueError(f"body reference of {len(body)} bytes: {STREAM_REF_BYTES} expected")
    if not body and size_bytes:
        raise ValueError(f"{size_bytes} bytes without a body reference")


def check_blake3(digest: bytes) -> bytes:
    if len(digest) != BLAKE3_BYTES:
        raise ValueError(f"BLAKE3 of {len(digest)} bytes: {BLAKE3_BYTES} expected")
    return digest


# --- conditions


def write_condition(condition: WriteCondition | None) -> bytes:
    """b"" for none, else a flags byte and the fields it names."""
    if condition is None:
        return b""
    flags = 0
    out = [b""]
    if condition.if_match is not None:
        flags |= 1
        out.append(text8(condition.if_match))
    if condition.if_none_match is not None:
        flags |= 2
        out.append(text8(condition.if_none_match))
    if condition.if_match_modified_ns is not None:
        flags |= 4
        out.append(u64(condition.if_match_modified_ns))
    if condition.if_match_size is not None:
        flags |= 8
        out.append(u64(condition.if_match_size))
    out[0] = bytes((flags,))
    return b"".join(out) if flags else b""


def read_condition(data: bytes) -> WriteCondition | None:
    if not data:
        return None
    reader = FieldReader(data)
    flags = reader.u8()
    if not 0 < flags < 16:
        raise ValueError(f"unknown condition flags {flags}")
    condition = WriteCondition(
        reader.text() if flags & 1 else None,
        reader.text() if flags & 2 else None,
        reader.u64() if flags & 4 else None,
        reader.u64() if flags & 8 else None,
    )
    reader.end()
    return condition
