"""Reading a record field by field: what rows, commands and messages of several rooms share.

Numbers are unsigned and big-endian. Pure: no I/O.
"""

from __future__ import annotations


class FieldReader:
    """Reads fields from bytes in order; every read checks the length that is left and raises
    ValueError if it does not do."""

    __slots__ = ("_data", "_position")

    def __init__(self, data: bytes, position: int = 0) -> None:
        self._data = data
        self._position = position

    def take(self, count: int) -> bytes:
        start = self._position
        end = start + count
        if end > len(self._data):
            raise ValueError(f"record ends at byte {len(self._data)}, {end} needed")
        self._position = end
        return self._data[start:end]

    def u8(self) -> int:
        return self.take(1)[0]

    def u16(self) -> int:
        return int.from_bytes(self.take(2), "big")

    def u32(self) -> int:
        return int.from_bytes(self.take(4), "big")

    def u64(self) -> int:
        return int.from_bytes(self.take(8), "big")

    def bytes8(self) -> bytes:
        """As many bytes as the byte before them says; so the next two, with wider lengths."""
        return self.take(self.u8())

    def bytes16(self) -> bytes:
        return self.take(self.u16())

    def bytes32(self) -> bytes:
        return self.take(self.u32())

    def text(self) -> str:
        """`bytes8` as UTF-8."""
        return self.bytes8().decode()

    @property
    def done(self) -> bool:
        return self._position == len(self._data)

    def end(self) -> None:
        """Raises ValueError unless all was read."""
        if not self.done:
            raise ValueError(f"{len(self._data) - self._position} bytes after the record's end")
