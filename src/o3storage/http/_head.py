"""The strict parser of request heads (RFC 9112): a pure function over bytes.

What two implementations could read in two ways is refused, since that is how requests are smuggled
past a proxy. Whole-head checks run at C speed over the bytes; names and hosts that were found good
are remembered (a bounded number), so that a typical head costs one dict look-up per field.
"""

from __future__ import annotations

from o3storage.http._errors import BadHead
from o3storage.http._limits import MAX_CONTENT_LENGTH, MAX_HEADERS
from o3storage.http._messages import Headers

_TOKEN = frozenset("!#$%&'*+-.^_`|~0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ")
_HOST = frozenset("0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ-._~!$&'()*+,;=%")
_DIGITS = frozenset("0123456789")
_ADDRESS = frozenset("0123456789abcdefABCDEF:.")

_FIELD_BYTES = bytes([9, *range(32, 127), *range(128, 256)])
"""What lines may consist of. A head with these deleted is CRLF once per line break, no more."""

_SINGLE = frozenset({"host", "content-length", "transfer-encoding", "authorization"})
"""Fields that decide about framing or identity: a second one is refused, equal or not."""

_REMEMBERED = 1024
"""Names, and hosts, whose check is remembered: a client cannot make the server hold more."""

_REMEMBERED_CHARS = 256
"""Longest of them: a DNS name has 253, and a head may have 16 KiB."""

_names: dict[str, str] = {}
_hosts: set[str] = set()

_METHODS = frozenset({"GET", "PUT", "HEAD", "POST", "DELETE", "OPTIONS"})


class BadField(ValueError):
    """A header or trailer field is malformed."""


class Head:
    """A checked head. Fields as in `Request`; besides: `length` (declared Content-Length; None if
    chunked; 0 if neither), `declared` (False if neither), `keep_alive`, `expects_continue`."""

    __slots__ = (
        "declared",
        "expects_continue",
        "headers",
        "host",
        "http_version",
        "keep_alive",
        "length",
        "method",
        "path",
        "query",
        "target",
    )

    method: str
    target: bytes
    path: bytes
    query: bytes
    http_version: str
    host: str
    headers: Headers
    length: int | None
    declared: bool
    keep_alive: bool
    expects_continue: bool


def parse_fields(data: bytes, max_headers: int) -> Headers:
    """Parse field lines joined by CRLF, without a last one. Raises BadField."""
    lines = data.decode("latin-1").split("\r\n")
    if data.translate(None, _FIELD_BYTES) != b"\r\n" * (len(lines) - 1):
        raise BadField("a control character, or a bare CR or LF")
    return _fields(lines, max_headers)


def _fields(lines: list[str], max_headers: int) -> Headers:
    if len(lines) > max_headers:
        raise BadField(f"more than {max_headers} header fields")
    first: dict[str, str] = {}
    known = _names
    try:
        for line in lines:
            name, colon, value = line.partition(":")
            if not colon:
                return _fields_slowly(lines)  # which refuses it
            first[known[name]] = value.strip(" \t")
    except KeyError:
        return _fields_slowly(lines)
    if len(first) != len(lines):
        return _fields_slowly(lines)
    return Headers(first)


def _fields_slowly(lines: list[str]) -> Headers:
    """A name was not seen before, or one is repeated, or something is wrong."""
    first: dict[str, str] = {}
    items: list[tuple[str, str]] = []
    for line in lines:
        name, colon, value = line.partition(":")
        lower = _learn(name, colon) if not colon else _names.get(name) or _learn(name, colon)
        value = value.strip(" \t")
        if lower in first:
            if lower in _SINGLE:
                raise BadField(f"more than one {lower} field")
        else:
            first[lower] = value
        items.append((lower, value))
    return Headers(first, items if len(first) != len(items) else None)


def _learn(name: str, colon: str) -> str:
    if name[:1] in (" ", "\t"):
        raise BadField("a folded header line")
    if not colon:
        raise BadField("a header line without a colon")
    if not name or not _TOKEN.issuperset(name):
        raise BadField("a header name with a space or another character that is not allowed")
    lower = name.lower()
    if len(_names) < _REMEMBERED and len(name) <= _REMEMBERED_CHARS:
        _names[name] = lower
    return lower


def parse_head(data: bytes, max_headers: int = MAX_HEADERS) -> Head:
    """Parse `data`: request line and field lines joined by CRLF, without the empty line at the end.

    The size is the caller's to limit. Raises BadHead (400; 417, 431, 501 or 505 where that says
    more); whatever it raises, the connection cannot be used further.
    """
    lines = data.decode("latin-1").split("\r\n")
    if data.translate(None, _FIELD_BYTES) != b"\r\n" * (len(lines) - 1):
        raise BadHead("a control character, or a bare CR or LF, in the request head")

    head = Head()
    _request_line(head, lines[0])
    del lines[0]
    if len(lines) > max_headers:
        raise BadHead(f"more than {max_headers} header fields", 431)
    try:
        headers = _fields(lines, max_headers)
    except BadField as error:
        raise BadHead(str(error)) from None
    head.headers = headers
    fields = headers._first
    is_1_1 = head.http_version == "1.1"

    host = fields.get("host")
    if host is None:
        if is_1_1:
            raise BadHead("no Host field")
        host = ""
    elif host not in _hosts:
        _check_host(host)
    if head.path[:1] != b"/":
        host = _other_forms(head, host)
    head.host = host

    _framing(head, fields, is_1_1)

    connection = fields.get("connection")
    if connection is None or (is_1_1 and connection == "keep-alive"):
        head.keep_alive = is_1_1
    else:
        options = {option.strip(" \t") for option in connection.lower().split(",")}
        head.keep_alive = "close" not in options and (is_1_1 or "keep-alive" in options)

    expect = fields.get("expect")
    head.expects_continue = False
    if expect is not None and is_1_1:
        if expect.lower() != "100-continue":
            raise BadHead("an expectation other than 100-continue", 417)
        head.expects_continue = head.declared
    return head


def _request_line(head: Head, line: str) -> None:
    parts = line.split(" ")
    if len(parts) != 3 or "\t" in line:
        raise BadHead("the request line is not: method, one space, target, one space, version")
    method, target, version = parts
    if version == "HTTP/1.1":
        head.http_version = "1.1"
    elif version == "HTTP/1.0":
        head.http_version = "1.0"
    elif (
        len(version) == 8
        and version[:5] == "HTTP/"
        and version[6] == "."
        and (_DIGITS.issuperset(version[5] + version[7]))
    ):
        raise BadHead("HTTP/1.1 and HTTP/1.0 are spoken here", 505)
    else:
        raise BadHead("the request line does not end in an HTTP version")
    if method not in _METHODS and not (method and _TOKEN.issuperset(method)):
        raise BadHead("the method is not a token")
    if not target or "#" in target:
        raise BadHead("the request target is empty or has a fragment")
    head.method = method
    head.target = raw = target.encode("latin-1")
    head.path, _, head.query = raw.partition(b"?")


def _other_forms(head: Head, host: str) -> str:
    """Targets that are not a path. Returns the host that counts."""
    if head.target == b"*" and head.method == "OPTIONS":
        return host
    scheme, separator, rest = head.target.partition(b"://")
    if not separator or scheme.lower() not in (b"http", b"https"):
        raise BadHead("the request target is neither a path nor an http URL")
    ends = [at for at in (rest.find(b"/"), rest.find(b"?")) if at >= 0]
    end = min(ends, default=len(rest))
    host = rest[:end].decode("latin-1")
    _check_host(host)
    path, _, head.query = rest[end:].partition(b"?")
    head.path = path or b"/"
    fields = head.headers
    if fields._items is not None:
        fields._items = [(n, host if n == "host" else v) for n, v in fields._items]
        if "host" not in fields._first:
            fields._items.append(("host", host))
    fields._first["host"] = host
    return host


def _check_host(host: str) -> None:
    """RFC 9110, section 7.2: a name or address and perhaps a port."""
    if host[:1] == "[":
        name, bracket, port = host[1:].partition("]")
        good = bracket and name and _ADDRESS.issuperset(name) and port[:1] in ("", ":")
        port = port[1:]
    else:
        name, _, port = host.partition(":")
        good = name and _HOST.issuperset(name)
    if not good or not _DIGITS.issuperset(port) or len(port) > 5:
        raise BadHead("the Host is not a name or address with an optional port")
    if len(_hosts) < _REMEMBERED and len(host) <= _REMEMBERED_CHARS:
        _hosts.add(host)


def _framing(head: Head, fields: dict[str, str], is_1_1: bool) -> None:
    """RFC 9112, section 6.3, with nothing left to guess."""
    length = fields.get("content-length")
    coding = fields.get("transfer-encoding")
    if coding is not None:
        if length is not None:
            raise BadHead("both Content-Length and Transfer-Encoding")
        if not is_1_1:
            raise BadHead("Transfer-Encoding in HTTP/1.0")
        if coding.lower() != "chunked":
            raise BadHead("a transfer coding other than chunked")
        head.length = None
        head.declared = True
    elif length is None:
        head.length = 0
        head.declared = False
    else:
        if not length or len(length) > 19 or not _DIGITS.issuperset(length):
            raise BadHead("Content-Length is not a number")
        head.length = int(length)
        head.declared = True
        if head.length > MAX_CONTENT_LENGTH:
            raise BadHead("Content-Length is too large")


_COMMON = """
Host User-Agent Accept Accept-Encoding Connection Content-Length Content-Type Content-MD5
Authorization Expect Range Date Transfer-Encoding If-Match If-None-Match If-Modified-Since
If-Unmodified-Since Content-Encoding Cache-Control X-Amz-Date X-Amz-Content-SHA256
amz-sdk-invocation-id amz-sdk-request X-Amz-Security-Token x-amz-checksum-mode
x-amz-sdk-checksum-algorithm x-amz-checksum-crc32 x-amz-trailer x-amz-decoded-content-length
"""
for _name in _COMMON.split():
    _learn(_name, ":")
    _learn(_name.lower(), ":")
