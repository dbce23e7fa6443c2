"""A reader of the catalog's rows, written from docs/format-catalog.md alone."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

_ALGORITHMS = {1: ("CRC32", 4), 2: ("CRC32C", 4), 3: ("CRC64NVME", 8), 4: ("SHA1", 20),
               5: ("SHA256", 32)}  # fmt: skip


def number(data: bytes, at: int, size: int) -> int:
    return int.from_bytes(data[at : at + size], "big")


def split(row_key: bytes) -> tuple[int, bytes, bytes]:
    """(bucket id, object key, rest) of a row key of tables 20 to 25."""
    at = 9
    key = bytearray()
    while row_key[at : at + 2] != b"\0\0":
        key.append(row_key[at])
        at += 2 if row_key[at] == 0 else 1
    return number(row_key, 1, 8), bytes(key), row_key[at + 2 :]


def pairs(data: bytes) -> list[tuple[str, str]]:
    fields = data.decode().split("\0") if data else []
    return list(zip(fields[::2], fields[1::2], strict=True))


def body(data: bytes) -> dict[str, Any]:
    return {"stream": data[:16], "salt": data[16:48], "epoch": number(data, 48, 4),
            "size": number(data, 52, 8)}  # fmt: skip


def version(value: bytes) -> dict[str, Any]:
    flags = value[1]
    dash = number(value, 26, 2)
    found: dict[str, Any] = {
        "null": bool(flags & 1),
        "marker": bool(flags & 2),
        "order": number(value, 2, 8),
        "modified": number(value, 10, 8),
        "size": number(value, 18, 8),
        "etag": value[28:44].hex() + (f"-{dash}" if dash else ""),
        "blake3": value[44:76],
        "body": None,
        "upload": None,
        "checksum": None,
    }
    at = 78
    if flags & 4:
        found["body"] = body(value[at : at + 60])
        at += 60
    found["owner"] = value[at : at + value[77]].decode()
    at += value[77]
    if value[76]:
        name, size = _ALGORITHMS[value[76] & 15]
        found["checksum"] = (name, value[at : at + size])
        at += size
    if flags & 8:
        found["upload"] = value[at : at + 16]
        found["parts"] = number(value, at + 16, 2)
        bitmap, marks = number(value, at + 18, 2), number(value, at + 20, 2)
        at += 22
        found["bitmap"] = value[at : at + bitmap]
        at += bitmap + marks
    lengths = [number(value, at + 2 * n, 2) for n in range(3)]
    at += 6
    for name, length in zip(("headers", "metadata", "tags"), lengths, strict=True):
        found[name] = pairs(value[at : at + length])
        at += length
    assert at == len(value)
    return found


def part(value: bytes) -> dict[str, Any]:
    return {"size": number(value, 2, 8), "etag": value[18:34].hex(), "blake3": value[34:66],
            "body": body(value[67:127]) if value[1] & 4 else None}  # fmt: skip


def bucket_names(rows: dict[bytes, bytes]) -> dict[int, str]:
    return {number(value, 3, 8): key[1:].decode() for key, value in rows.items() if key[0] == 0x11}


def all_versions(rows: dict[bytes, bytes]) -> Iterator[tuple[str, bytes, dict[str, Any]]]:
    """(bucket, key, version), the newest of a key first; a version's `pieces` are its bodies."""
    names = bucket_names(rows)
    for row_key in sorted(rows):
        if row_key[0] == 0x20:
            bucket_id, key, _ = split(row_key)
            found = version(rows[row_key])
            found["pieces"] = list(pieces(rows, bucket_id, key, found))
            yield names[bucket_id], key, found


def current_objects(rows: dict[bytes, bytes]) -> Iterator[tuple[str, bytes, dict[str, Any]]]:
    """(bucket, key, version) of everything a listing shows."""
    seen = set()
    for bucket, key, found in all_versions(rows):
        if (bucket, key) not in seen and not found["marker"]:
            yield bucket, key, found
        seen.add((bucket, key))


def pieces(
    rows: dict[bytes, bytes], bucket_id: int, key: bytes, found: dict[str, Any]
) -> Iterator[dict[str, Any]]:
    """The bodies of a version in order."""
    if found["body"]:
        yield found["body"]
    if not found["upload"]:
        return
    for row_key in sorted(rows):
        if row_key[0] != 0x23 or split(row_key)[:2] != (bucket_id, key):
            continue
        rest = split(row_key)[2]
        index = number(rest, 16, 2)
        bitmap = found["bitmap"]
        if rest[:16] != found["upload"]:
            continue
        if bitmap and not (index // 8 < len(bitmap) and bitmap[index // 8] >> index % 8 & 1):
            continue
        one = part(rows[row_key])["body"]
        if one:
            yield one
