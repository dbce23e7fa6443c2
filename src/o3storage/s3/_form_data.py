"""multipart/form-data, read as it arrives: the fields before the file, then the file's bytes.

Source: RFC 7578 and RFC 2046 section 5.1. S3's form has exactly one file, and it is the last field
that counts; what follows it is skipped.
"""

from __future__ import annotations

import re
from typing import Final

from o3storage.s3._errors import S3Error
from o3storage.s3._request import ByteSource

MAX_FIELDS_BYTES: Final = 20 * 1024
"""All fields before the file, with their heads (AWS: 20 KB without the file)."""

MAX_FIELDS: Final = 100
"""A form with every S3 header and 50 metadata fields stays below."""

FILENAME: Final = "${filename}"
"""Stands in any field for the name of the file, which comes after them (AWS)."""

READ_BYTES: Final = 16 * 1024

_BOUNDARY: Final = re.compile(r'boundary=(?:"([^"]{1,70})"|([^\s;,"]{1,70})(?![^\s;,]))', re.I)
_NAME: Final = re.compile(rb'(?:^|;)\s*name="((?:[^"\\]|\\.)*)"', re.I)
_FILENAME: Final = re.compile(rb'(?:^|;)\s*filename="((?:[^"\\]|\\.)*)"', re.I)


def boundary_of(content_type: str) -> bytes:
    """Raises S3Error MalformedPOSTRequest."""
    found = _BOUNDARY.search(content_type)
    if found is None:
        raise S3Error("MalformedPOSTRequest", "The Content-Type has no boundary.")
    return (found[1] or found[2]).encode("latin-1")


class FormFile:
    """The fields and the file of one form. A ByteSource of the file's bytes."""

    __slots__ = (
        "_buffer",
        "_delimiter",
        "_done",
        "_end",
        "_source",
        "content_type",
        "fields",
        "filename",
        "length",
    )

    def __init__(self, source: ByteSource, boundary: bytes) -> None:
        self._source = source
        self._delimiter = b"\r\n--" + boundary
        # As if the first boundary, too, stood after a line's end.
        self._buffer = bytearray(b"\r\n")
        self._end = False
        self._done = False
        self.fields: dict[str, str] = {}
        """Lower-case names of the fields before the file; FILENAME is replaced in the values."""
        self.filename = ""
        self.content_type = ""
        self.length: int | None = None

    async def read_fields(self) -> None:
        """Up to the file's first byte. Raises S3Error."""
        budget = MAX_FIELDS_BYTES
        preamble = await self._until(self._delimiter, budget)
        if preamble not in (b"", b"\r\n"):
            raise _malformed("It does not begin with its boundary.")
        for _ in range(MAX_FIELDS):
            line = await self._until(b"\r\n", 128)
            if line.strip(b" \t"):
                raise _malformed("It ends without a file." if line == b"--" else "A bad boundary.")
            head = await self._until(b"\r\n\r\n", budget)
            budget -= len(head)
            name, filename, content_type = _parse_head(head)
            if name == "file":
                self.filename = filename
                self.content_type = content_type
                self._put_in_filename(budget)
                return
            value = await self._until(self._delimiter, budget)
            budget -= len(value)
            if name in self.fields:
                raise S3Error("InvalidArgument", f"The form field {name} is given twice.")
            try:
                self.fields[name] = value.decode()
            except UnicodeDecodeError:
                raise _malformed(f"The field {name} is not UTF-8.") from None
        raise _malformed(f"It has more than {MAX_FIELDS} fields.")

    def _put_in_filename(self, budget: int) -> None:
        # Browsers may send folders along.
        name = self.filename.replace("\\", "/").rpartition("/")[2]
        found = {field: text for field, text in self.fields.items() if FILENAME in text}
        if sum(text.count(FILENAME) for text in found.values()) * len(name.encode()) > budget:
            raise _too_large()
        for field, text in found.items():
            self.fields[field] = text.replace(FILENAME, name)

    async def _until(self, mark: bytes, limit: int) -> bytes:
        """Bytes before `mark`, which is consumed too."""
        searched = 0
        while True:
            found = self._buffer.find(mark, searched)
            if found >= 0:
                if found > limit:
                    break
                data = bytes(self._buffer[:found])
                del self._buffer[: found + len(mark)]
                return data
            if len(self._buffer) > limit + len(mark):
                break
            searched = max(0, len(self._buffer) - len(mark) + 1)
            if not await self._fill():
                raise _malformed("It ends early.")
        raise _too_large()

    async def _fill(self) -> bool:
        block = memoryview(bytearray(READ_BYTES))
        count = await self._source.read_into(block)
        if count == 0:
            self._end = True
            return False
        self._buffer += block[:count]
        return True

    async def read_into(self, view: memoryview) -> int:
        """Bytes of the file; 0 at its end, when the rest of the form was skipped."""
        if self._done:
            return 0
        keep = len(self._delimiter) - 1
        while True:
            found = self._buffer.find(self._delimiter)
            sure = found if found >= 0 else len(self._buffer) - keep
            if sure > 0:
                count = min(sure, len(view))
                view[:count] = self._buffer[:count]
                del self._buffer[:count]
                return count
            if found == 0:
                await self._skip_rest()
                self._done = True
                return 0
            if not await self._fill():
                raise S3Error("IncompleteBody", "The form ends inside the file.")

    async def _skip_rest(self) -> None:
        self._buffer.clear()
        block = memoryview(bytearray(READ_BYTES))
        while await self._source.read_into(block):
            pass


def _parse_head(head: bytes) -> tuple[str, str, str]:
    """(lower-case name, file name, content type) of one field's head."""
    name: bytes | None = None
    filename = b""
    content_type = ""
    for line in head.split(b"\r\n"):
        label, _, value = line.partition(b":")
        lower = label.strip().lower()
        if lower == b"content-disposition":
            found = _NAME.search(value)
            name = None if found is None else found[1]
            found = _FILENAME.search(value)
            filename = b"" if found is None else found[1]
        elif lower == b"content-type":
            content_type = value.strip().decode("latin-1")
    if name is None:
        raise _malformed("A field has no name.")
    try:
        return name.decode().lower(), filename.decode(), content_type
    except UnicodeDecodeError:
        raise _malformed("A field's name is not UTF-8.") from None


def _too_large() -> S3Error:
    return S3Error("MalformedPOSTRequest", f"Its fields are larger than {MAX_FIELDS_BYTES} bytes.")


def _malformed(reason: str) -> S3Error:
    return S3Error(
        "MalformedPOSTRequest",
        f"The body of your POST request is not well-formed multipart/form-data. {reason}",
    )
