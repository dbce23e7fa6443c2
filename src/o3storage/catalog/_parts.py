"""Choosing parts for completion: bitmap, offset marks and sums, built as the parts are read."""

from __future__ import annotations

import struct

from ._limits import MAX_OBJECT_BYTES, MAX_PART_BITMAP_BYTES, MAX_PARTS, PART_INDEX_STRIDE

MARK = struct.Struct(">HQ")
"""One mark of a part index: part number, offset of its first byte."""


class ChosenParts:
    """Collects the parts of a completion in ascending order of number.

    Usage: read the parts in pages (`list_parts`), `add` each one that the request names, then put
    `count`, `bitmap()`, `index()` and `size_bytes` into CompleteUpload."""

    __slots__ = ("_bits", "_last", "_marks", "count", "size_bytes")

    def __init__(self) -> None:
        self._bits = bytearray(MAX_PART_BITMAP_BYTES)
        self._marks: list[bytes] = []
        self._last = 0
        self.count = 0
        self.size_bytes = 0

    def add(self, number: int, size_bytes: int) -> None:
        """Use part `number`. Raises ValueError out of order, out of range, or over 50 TB."""
        if not self._last < number <= MAX_PARTS:
            raise ValueError(f"part {number} after part {self._last}: numbers must ascend")
        if size_bytes < 0 or self.size_bytes + size_bytes > MAX_OBJECT_BYTES:
            raise ValueError("the object would be larger than 50 TB")
        if self.count and self.count % PART_INDEX_STRIDE == 0:
            self._marks.append(MARK.pack(number, self.size_bytes))
        self._bits[number >> 3] |= 1 << (number & 7)
        self._last = number
        self.count += 1
        self.size_bytes += size_bytes

    def bitmap(self) -> bytes:
        """Bit n (of byte n // 8, least significant first) set: part n is used."""
        return bytes(self._bits[: (self._last >> 3) + 1]) if self.count else b""

    def index(self) -> bytes:
        """Marks of every 128th used part but the first."""
        return b"".join(self._marks)


def has_bit(bitmap: bytes, number: int) -> bool:
    """Whether part `number` is used; an empty bitmap means every part is."""
    if not bitmap:
        return True
    byte = number >> 3
    return byte < len(bitmap) and bool(bitmap[byte] >> (number & 7) & 1)


def count_bits(bitmap: bytes) -> int:
    """Parts in a bitmap."""
    return int.from_bytes(bitmap, "little").bit_count()


def new_upload_id(initiated_ns: int, random8: bytes) -> bytes:
    """A 16-byte upload id that sorts by time of initiation, as ListMultipartUploads must."""
    if len(random8) != 8:
        raise ValueError("eight random bytes are needed")
    return initiated_ns.to_bytes(8, "big") + random8
