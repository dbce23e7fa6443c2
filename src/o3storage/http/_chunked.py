"""The chunked transfer coding (RFC 9112, section 7.1), decoded strictly and without I/O."""

from __future__ import annotations

from o3storage.http._errors import BadChunk
from o3storage.http._head import BadField, parse_fields
from o3storage.http._limits import (
    MAX_CHUNK_LINE_BYTES,
    MAX_CHUNK_SIZE_DIGITS,
    MAX_HEAD_BYTES,
    MAX_HEADERS,
)
from o3storage.http._messages import Headers

_SIZE, _DATA, _DATA_END, _TRAILERS, _END = range(5)

_HEX = frozenset(b"0123456789abcdefABCDEF")
_LINE_BYTES = bytes([9, *range(32, 127), *range(128, 256)])
"""What a chunk-size line may consist of: no control characters, so no bare CR or LF."""


class ChunkedDecoder:
    """Feed it any pieces of the coded stream with `decode`.

    `left`: content bytes of the current chunk still to come (a caller that stores that many or
    fewer bytes itself subtracts them). `ended`: the stream is over. `trailers`: its trailer fields,
    None if it had none.
    """

    __slots__ = ("_line", "_state", "ended", "left", "trailers")

    def __init__(self) -> None:
        self._state = _SIZE
        self._line = b""
        self.left = 0
        self.ended = False
        self.trailers: Headers | None = None

    def decode(self, data: memoryview, view: memoryview) -> tuple[int, int]:
        """Decode from `data` into `view`. Returns (bytes of `data` used, bytes of `view` filled).
        Stops when either is used up or at the end of the stream; framing is consumed even into an
        empty view. Raises BadChunk."""
        at = filled = 0
        size = len(data)
        room = len(view)
        while True:
            if self._state == _DATA:
                if self.left:
                    count = min(self.left, size - at, room - filled)
                    if count == 0:
                        return at, filled
                    view[filled : filled + count] = data[at : at + count]
                    at += count
                    filled += count
                    self.left -= count
                    if self.left:
                        return at, filled
                self._state = _DATA_END
            if self._state == _END or at == size:
                return at, filled
            at = self._framing(data, at)

    def _framing(self, data: memoryview, at: int) -> int:
        """Take in one line, or as much of one as there is. Returns the new position."""
        limit = {_SIZE: MAX_CHUNK_LINE_BYTES, _DATA_END: 2, _TRAILERS: MAX_HEAD_BYTES}[self._state]
        held = len(self._line)
        piece = bytes(data[at : at + limit + 2 - held])
        end = piece.find(b"\n")
        line = self._line + (piece if end < 0 else piece[: end + 1])
        used = len(line) - held
        if self._state == _TRAILERS:
            return at + self._trailer(line, used, complete=end >= 0)
        if end < 0:
            if len(line) > limit or (self._state == _DATA_END and line[:1] not in (b"", b"\r")):
                raise BadChunk(
                    "chunk data does not end in CRLF"
                    if self._state == _DATA_END
                    else f"a chunk-size line has more than {limit} bytes"
                )
            self._line = line
            return at + used
        if not line.endswith(b"\r\n"):
            raise BadChunk("a line of the chunked body ends in a bare LF")
        self._line = b""
        if self._state == _DATA_END:
            if line != b"\r\n":
                raise BadChunk("chunk data does not end in CRLF")
            self._state = _SIZE
        else:
            self._size_line(line[:-2])
        return at + used

    def _size_line(self, line: bytes) -> None:
        digits, _, extension = line.partition(b";")
        if extension or digits[-1:] in (b" ", b"\t"):
            digits = digits.rstrip(b" \t") if b";" in line else digits
        if not digits or len(digits) > MAX_CHUNK_SIZE_DIGITS or not _HEX.issuperset(digits):
            raise BadChunk(f"a chunk size is not 1 to {MAX_CHUNK_SIZE_DIGITS} hexadecimal digits")
        if line.translate(None, _LINE_BYTES):
            raise BadChunk("a control character in a chunk-size line")
        self.left = int(digits, 16)
        self._state = _DATA if self.left else _TRAILERS

    def _trailer(self, line: bytes, used: int, *, complete: bool) -> int:
        """`_line` gathers all trailer lines; an empty one ends them."""
        if len(line) > MAX_HEAD_BYTES:
            raise BadChunk(f"the trailer has more than {MAX_HEAD_BYTES} bytes")
        self._line = line
        if not complete:
            return used
        if line == b"\r\n" or line.endswith(b"\r\n\r\n"):
            if line != b"\r\n":
                try:
                    self.trailers = parse_fields(line[:-4], MAX_HEADERS)
                except BadField as error:
                    raise BadChunk(f"in the trailer: {error}") from None
            self._line = b""
            self.ended = True
            self._state = _END
        elif not line.endswith(b"\r\n"):
            raise BadChunk("a line of the trailer ends in a bare LF")
        elif line.count(b"\n") > MAX_HEADERS:  # each is looked at with all before it
            raise BadChunk(f"in the trailer: more than {MAX_HEADERS} header fields")
        return used
