"""Version ids: an order (a 63-bit number of nanoseconds) as opaque text and back.

20 lower-case hexadecimal digits: the order in 16, then 4 of a CRC-32 over it, so that a malformed
id is told from one that is merely absent. "null" is S3's name for a null version.
"""

from __future__ import annotations

from typing import Final
from zlib import crc32

from ._errors import InvalidVersionId

NULL: Final = -1
"""Names the null version of a key, where a version is asked for by order."""

MAX_ORDER: Final = (1 << 63) - 1
_HEX: Final = frozenset("0123456789abcdef")


def version_id(order: int) -> str:
    """The text of a version order (1 <= order < 2**63)."""
    if not 0 < order <= MAX_ORDER:
        raise ValueError(f"version order {order} out of range")
    return f"{order:016x}{crc32(order.to_bytes(8, 'big')) & 0xFFFF:04x}"


def parse_version_id(text: str) -> int:
    """The order that a version id names; NULL for "null". Raises InvalidVersionId."""
    if text == "null":
        return NULL
    if len(text) != 20 or not _HEX.issuperset(text):
        raise InvalidVersionId
    order = int(text[:16], 16)
    if not 0 < order <= MAX_ORDER or crc32(order.to_bytes(8, "big")) & 0xFFFF != int(text[16:], 16):
        raise InvalidVersionId
    return order
