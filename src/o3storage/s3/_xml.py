"""A small strict XML reader, and escaping for the writers.

Requests: UTF-8 only, no document type, no entities but the five predefined ones and character
references, limited in depth and number of elements. Documents are fed piece by piece, so that a
large one never holds the event loop for long.

Responses are written with f-strings; `escape` makes any text safe inside an element or an
attribute. Control characters become character references, as S3 writes them (XML 1.0 parsers
refuse those, which is what `encoding-type=url` is for).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final
from xml.parsers import expat

MAX_DEPTH: Final = 16
"""Deepest S3 document is 5 levels; the rest is room for clients' wrappers."""

MAX_ELEMENTS: Final = 100_000
"""A CompleteMultipartUpload of 10,000 parts with every checksum has 80,001."""

MAX_XML_BYTES: Final = 2 * 1024 * 1024
"""Largest request document: DeleteObjects of 1,000 keys of 1,024 escaped bytes stays below."""

MAX_COMPLETE_XML_BYTES: Final = 4 * 1024 * 1024
"""CompleteMultipartUpload of 10,000 parts, indented, with checksums."""

FEED_BYTES: Final = 16 * 1024
"""Bytes parsed in one step on the event loop: about 2 ms of the densest document."""

HEADER: Final = '<?xml version="1.0" encoding="UTF-8"?>\n'
NAMESPACE: Final = 'xmlns="http://s3.amazonaws.com/doc/2006-03-01/"'

_REFERENCES: Final = {
    ord("&"): "&amp;",
    ord("<"): "&lt;",
    ord(">"): "&gt;",
    ord('"'): "&quot;",
    **{code: f"&#x{code:x};" for code in [*range(0x20), *range(0x7F, 0xA0), 0xFFFE, 0xFFFF]},
    **dict.fromkeys(range(55296, 57344), "&#xfffd;"),
}

_PLAIN_BYTES: Final = bytes(
    code for code in range(0x20, 0x7F) if code not in (ord("&"), ord("<"), ord(">"), ord('"'))
)


class XmlError(ValueError):
    """The document is not well formed, or goes beyond a limit."""


class Element:
    """One element: local name, its own text (stripped by nobody), and its child elements.

    A document can have 80,000: a leaf is one object with nothing for the collector to follow.
    """

    __slots__ = ("children", "name", "text")

    def __init__(self, name: str) -> None:
        self.name = name
        self.children: Sequence[Element] = ()
        self.text = ""

    def find(self, name: str) -> Element | None:
        """The first child called `name`."""
        for child in self.children:
            if child.name == name:
                return child
        return None

    def find_all(self, name: str) -> list[Element]:
        return [child for child in self.children if child.name == name]

    def child_text(self, name: str) -> str | None:
        child = self.find(name)
        return None if child is None else child.text


class XmlReader:
    """Builds the element tree of one document from pieces of bytes."""

    __slots__ = ("_count", "_parser", "_root", "_size", "_stack", "max_bytes")

    def __init__(self, max_bytes: int = MAX_XML_BYTES) -> None:
        self.max_bytes = max_bytes
        self._size = 0
        self._count = 0
        self._root: Element | None = None
        self._stack: list[Element] = []
        # The encoding given here wins over the document's own declaration.
        parser = expat.ParserCreate("UTF-8", " ")
        parser.buffer_text = True
        parser.StartElementHandler = self._start
        parser.EndElementHandler = self._end
        parser.CharacterDataHandler = self._text
        parser.StartDoctypeDeclHandler = self._refuse
        parser.EntityDeclHandler = self._refuse
        parser.SkippedEntityHandler = self._refuse
        parser.ProcessingInstructionHandler = self._refuse
        self._parser = parser

    @property
    def elements(self) -> int:
        """How many began so far."""
        return self._count

    def feed(self, data: bytes | memoryview) -> None:
        """At most FEED_BYTES at a time keeps the event loop free. Raises XmlError."""
        self._size += len(data)
        if self._size > self.max_bytes:
            raise XmlError(f"the document is larger than {self.max_bytes} bytes")
        piece = bytes(data)
        if b"\0" in piece:
            # expat would follow a byte-order mark into UTF-16, where every '<' has a zero byte.
            raise XmlError("the document is not UTF-8")
        self._parse(piece, False)

    def finish(self) -> Element:
        """The root element. Raises XmlError."""
        self._parse(b"", True)
        if self._root is None:
            raise XmlError("the document has no element")
        return self._root

    def _parse(self, data: bytes, final: bool) -> None:
        try:
            self._parser.Parse(data, final)
        except expat.ExpatError as error:
            raise XmlError(expat.ErrorString(error.code) or "not well-formed") from None
        except UnicodeError:
            raise XmlError("the document is not UTF-8") from None

    def _start(self, name: str, _attributes: dict[str, str]) -> None:
        self._count += 1
        if self._count > MAX_ELEMENTS:
            raise XmlError(f"the document has more than {MAX_ELEMENTS} elements")
        if len(self._stack) >= MAX_DEPTH:
            raise XmlError(f"the document is nested deeper than {MAX_DEPTH}")
        element = Element(name.rpartition(" ")[2])
        if self._stack:
            parent = self._stack[-1]
            if type(parent.children) is list:
                parent.children.append(element)
            else:
                parent.children = [element]
        else:
            self._root = element
        self._stack.append(element)

    def _end(self, _name: str) -> None:
        self._stack.pop()

    def _text(self, data: str) -> None:
        self._stack[-1].text += data

    def _refuse(self, *_: object) -> None:
        raise XmlError("document types, entities and processing instructions are not accepted")


def parse(data: bytes, max_bytes: int = MAX_XML_BYTES) -> Element:
    """The root element of a whole document. Raises XmlError."""
    reader = XmlReader(max_bytes)
    reader.feed(data)
    return reader.finish()


def escape(text: str) -> str:
    """`text` made safe inside an element or an attribute in double quotes."""
    return text.translate(_REFERENCES)


def escape_bytes(data: bytes) -> str:
    """As `escape`, of UTF-8 bytes; fast when there is nothing to escape."""
    if not data.translate(None, _PLAIN_BYTES):
        return data.decode("ascii")
    return data.decode("utf-8", "replace").translate(_REFERENCES)


# '/' stays: S3's own listings keep it, and every SDK decodes either.
_URL_SAFE: Final = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_./*"
_URL_TABLE: Final = [chr(code) if code in _URL_SAFE else f"%{code:02X}" for code in range(256)]


def url_encode(data: bytes) -> str:
    """Percent-encoding of `encoding-type=url`: space is %20 and + is %2B."""
    if not data.translate(None, _URL_SAFE):
        return data.decode("ascii")
    table = _URL_TABLE
    return "".join([table[code] for code in data])


_UNCHANGED: Final[dict[Callable[[bytes], str], bytes]] = {
    escape_bytes: _PLAIN_BYTES,
    url_encode: _URL_SAFE,
}
"""What each of them leaves as it is."""


def plain_all(texts: Sequence[bytes], encode: Callable[[bytes], str]) -> list[str] | None:
    """`encode` of each where there is nothing to encode in any of a thousand keys, which is usual:
    they are looked at all at once. Else None. `encode` is `escape_bytes` or `url_encode`."""
    joined = b"\n".join(texts)
    # Nothing is left but the line feeds between them: none of the texts holds one either.
    if len(joined.translate(None, _UNCHANGED[encode])) == len(texts) - 1:
        return joined.decode("ascii").split("\n")
    return None
