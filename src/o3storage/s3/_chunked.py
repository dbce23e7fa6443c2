"""The aws-chunked coding: a body in chunks, signed or not, with or without trailing headers.

Source: Amazon S3 API reference, "Signature calculations ... transferring payload in multiple
chunks" and "... including trailing headers".

    hex-size[;chunk-signature=64-hex]\\r\\n  data\\r\\n  ...
    0[;chunk-signature=64-hex]\\r\\n
    [name:value\\r\\n ...  x-amz-trailer-signature:64-hex\\r\\n]
    \\r\\n

A byte of a chunk may be handed on before the chunk's signature was checked; nothing is committed
before the end, and the end is only reached when every signature, the decoded length and the
declared trailers were right.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Final

from o3storage._native import Digester, sha256
from o3storage.s3._errors import S3Error
from o3storage.s3._request import ByteSource
from o3storage.s3._sigv4 import EMPTY_SHA256, ChunkSigner

MAX_LINE_BYTES: Final = 1024
"""A chunk head is at most 100 bytes, a trailer with a checksum about 130."""

MAX_SIZE_DIGITS: Final = 16
"""Hexadecimal digits of a chunk size: 64 bits."""

MAX_TRAILERS: Final = 8
"""A request declares one checksum; the rest is room."""

TRAILER_SIGNATURE: Final = "x-amz-trailer-signature"

_DIGITS: Final = frozenset(b"0123456789abcdefABCDEF")


class ChunkedBody:
    """Decodes `source`. A ByteSource itself; `trailers` is filled once the end was reached."""

    __slots__ = (
        "_buffer",
        "_declared",
        "_decoded_length",
        "_digest",
        "_done",
        "_end",
        "_in_chunk",
        "_left",
        "_signature",
        "_signer",
        "_source",
        "_source_ready",
        "_start",
        "_total",
        "_view",
        "length",
        "trailers",
    )

    def __init__(
        self,
        source: ByteSource,
        length: int,
        *,
        signer: ChunkSigner | None = None,
        declared: tuple[str, ...] = (),
    ) -> None:
        """`length`: the decoded length in bytes. `declared`: trailer names, lower case, that must
        arrive, no more and no fewer. `signer`: checks the chunks; None for unsigned ones."""
        self._source = source
        self._source_ready: Callable[[], Awaitable[bool]] | None = getattr(source, "ready", None)
        # Unknown to readers on purpose: one that stops at a known length would never read, and so
        # never check, the last chunk's signature and the trailers.
        self.length: int | None = None
        self._decoded_length = length
        self._signer = signer
        self._declared = declared
        self.trailers: dict[str, str] = {}
        self._buffer = bytearray(MAX_LINE_BYTES)
        self._view = memoryview(self._buffer)
        self._start = 0
        self._end = 0
        self._left = 0
        self._total = 0
        self._in_chunk = False
        self._done = False
        self._signature = ""
        self._digest: Digester | None = None

    async def read_into(self, view: memoryview) -> int:
        """Bytes of decoded data put at the start of `view`; 0 only at the verified end."""
        if self._done or not len(view):
            return 0
        while self._left == 0:
            if self._in_chunk:
                await self._end_chunk()
            if not await self._begin_chunk():
                return 0
        take = min(self._left, len(view))
        buffered = self._end - self._start
        if buffered:
            count = min(take, buffered)
            view[:count] = self._view[self._start : self._start + count]
            self._start += count
        else:
            count = await self._source.read_into(view[:take])
            if count == 0:
                raise S3Error("IncompleteBody")
        if self._digest is not None:
            self._digest.update(view[:count])
        self._left -= count
        return count

    @property
    def ended(self) -> bool:
        """The end was reached, and with it every signature, the length and the trailers."""
        return self._done

    async def ready(self) -> bool:
        """Wait until a byte can be read (True) or the verified end is reached (False), without
        memory of the caller's: a slow upload owns no block before its first byte."""
        if self._done:
            return False
        while self._left == 0:
            if self._in_chunk:
                await self._end_chunk()
            if not await self._begin_chunk():
                return False
        if self._end > self._start or self._source_ready is None:
            return True
        if not await self._source_ready():
            raise S3Error("IncompleteBody")
        return True

    async def _begin_chunk(self) -> bool:
        """Read a chunk head; False when it was the last and the end is right."""
        line = await self._line()
        digits, separator, extension = line.partition(b";")
        if not digits or len(digits) > MAX_SIZE_DIGITS or not _DIGITS.issuperset(digits):
            raise S3Error("InvalidRequest", "A chunk size is not a hexadecimal number.")
        size = int(digits, 16)
        if self._signer is None:
            if separator:
                raise S3Error("InvalidRequest", "A chunk of an unsigned payload has an extension.")
        else:
            name, _, value = extension.partition(b"=")
            if name != b"chunk-signature" or len(value) != 64:
                raise S3Error("InvalidRequest", "A chunk has no chunk-signature.")
            self._signature = value.decode("latin-1")
        self._total += size
        if self._total > self._decoded_length:
            raise S3Error(
                "InvalidRequest", "The body is longer than x-amz-decoded-content-length says."
            )
        if size:
            self._left = size
            self._in_chunk = True
            if self._signer is not None:
                self._digest = Digester(sha256=True, blake3=False)
            return True
        if self._signer is not None:
            self._signer.check_chunk(bytes.fromhex(EMPTY_SHA256), self._signature)
        if self._total != self._decoded_length:
            raise S3Error(
                "IncompleteBody", "The body is shorter than x-amz-decoded-content-length says."
            )
        await self._read_trailers()
        if self._end > self._start or await self._source.read_into(self._view) != 0:
            raise S3Error("InvalidRequest", "There are bytes after the end of the chunked body.")
        self._done = True
        return False

    async def _end_chunk(self) -> None:
        while self._end - self._start < 2:
            await self._fill()
        if self._buffer[self._start : self._start + 2] != b"\r\n":
            raise S3Error("InvalidRequest", "A chunk does not end where its size says.")
        self._start += 2
        self._in_chunk = False
        if self._signer is not None:
            assert self._digest is not None
            self._signer.check_chunk(self._digest.finish()["sha256"], self._signature)
            self._digest = None

    async def _read_trailers(self) -> None:
        signature: str | None = None
        while line := await self._line():
            # One published form of the coding ends a trailer with \n\r\n.
            name_bytes, colon, value_bytes = line.rstrip(b"\n").partition(b":")
            name = name_bytes.decode("latin-1").lower()
            value = value_bytes.decode("latin-1").strip(" \t")
            if not colon or signature is not None or len(self.trailers) >= MAX_TRAILERS:
                raise S3Error("MalformedTrailerError")
            if name == TRAILER_SIGNATURE and self._signer is not None:
                signature = value
            elif name in self.trailers or name not in self._declared:
                raise S3Error(
                    "MalformedTrailerError", "A trailer was not declared in x-amz-trailer."
                )
            else:
                self.trailers[name] = value
        if len(self.trailers) != len(self._declared):
            raise S3Error(
                "MalformedTrailerError", "A trailer declared in x-amz-trailer is missing."
            )
        if self._signer is not None and self._declared:
            if signature is None:
                raise S3Error("MalformedTrailerError", "x-amz-trailer-signature is missing.")
            signed = "".join([f"{name}:{value}\n" for name, value in self.trailers.items()])
            self._signer.check_trailer(sha256(signed.encode("latin-1")), signature)
        elif signature is not None:
            raise S3Error("MalformedTrailerError", "x-amz-trailer-signature without a trailer.")

    async def _line(self) -> bytes:
        """The next line without its CRLF. Raises S3Error for one that is too long."""
        while True:
            found = self._buffer.find(b"\r\n", self._start, self._end)
            if found >= 0:
                line = bytes(self._view[self._start : found])
                self._start = found + 2
                return line
            if self._end - self._start >= MAX_LINE_BYTES:
                raise S3Error("InvalidRequest", "A chunk head or trailer is too long.")
            await self._fill()

    async def _fill(self) -> None:
        """Read more of the source into the line buffer."""
        if self._start:
            rest = self._end - self._start
            self._view[:rest] = bytes(self._view[self._start : self._end])
            self._start, self._end = 0, rest
        count = await self._source.read_into(self._view[self._end :])
        if count == 0:
            raise S3Error("IncompleteBody")
        self._end += count
