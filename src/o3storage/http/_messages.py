"""Requests and responses as the handler sees them."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterable, Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

from o3storage._native import FileHandle

if TYPE_CHECKING:
    from o3storage.http._body import Body

Buffer = bytes | bytearray | memoryview

Address = tuple[str, int]
"""IP address as text and port."""


class Headers:
    """Header fields of a request, in order of arrival.

    Names are lower-case str, values latin-1 str exactly as received with the blanks around them
    trimmed (a value that a client meant as UTF-8: `value.encode("latin-1").decode("utf-8")`).
    `Host`, `Content-Length`, `Transfer-Encoding` and `Authorization` occur at most once: the parser
    refuses the request otherwise.
    """

    __slots__ = ("_first", "_items")

    def __init__(self, first: dict[str, str], items: list[tuple[str, str]] | None = None) -> None:
        """`first`: name to first value. `items`: all fields, needed only where a name repeats."""
        self._first = first
        self._items = items

    def get(self, name: str) -> str | None:
        """The first value of the lower-case `name`, or None."""
        return self._first.get(name)

    def all(self, name: str) -> list[str]:
        """All values of the lower-case `name`, in order of arrival."""
        if self._items is None:
            value = self._first.get(name)
            return [] if value is None else [value]
        return [v for n, v in self._items if n == name]

    def repeated(self, name: str) -> bool:
        """True if the lower-case `name` occurs more than once."""
        return self._items is not None and len(self.all(name)) > 1

    def names(self) -> list[str]:
        """Distinct names, in order of first arrival."""
        return list(self._first)

    def __iter__(self) -> Iterator[tuple[str, str]]:
        """(name, value) of every field, repeats included, in order of arrival."""
        return iter(self._first.items() if self._items is None else self._items)

    def __contains__(self, name: object) -> bool:
        return name in self._first

    def __len__(self) -> int:
        return len(self._first) if self._items is None else len(self._items)

    def __repr__(self) -> str:
        # Values may hold credentials.
        return f"Headers({', '.join(n for n, _ in self)})"


class Request:
    """One request whose head was checked. See RFC 9112, section 3.

    `method`: as sent, e.g. "GET". `target`: the request target as sent, byte for byte. `path`,
    `query`: the target's parts as sent, still percent-encoded, without the "?" (of an absolute-form
    target: the part after the authority; an empty path is b"/"). `http_version`: "1.1" or "1.0".
    `host`: the Host field (of an absolute-form target: its authority, which then also stands in
    `headers`), "" only for HTTP/1.0 without one. `secure`: True over TLS. `local`, `peer`: the
    two ends of the connection.
    """

    __slots__ = (
        "body",
        "headers",
        "host",
        "http_version",
        "local",
        "method",
        "path",
        "peer",
        "query",
        "secure",
        "target",
    )

    def __init__(  # noqa: PLR0917  # positional: one is made per request
        self,
        method: str,
        target: bytes,
        path: bytes,
        query: bytes,
        http_version: str,
        host: str,
        headers: Headers,
        body: Body,
        secure: bool,
        local: Address,
        peer: Address,
    ) -> None:
        self.method = method
        self.target = target
        self.path = path
        self.query = query
        self.http_version = http_version
        self.host = host
        self.headers = headers
        self.body = body
        self.secure = secure
        self.local = local
        self.peer = peer

    def __repr__(self) -> str:
        # No query: a presigned one is a password.
        return f"<Request {self.method} {self.path!r} HTTP/{self.http_version}>"


class DirectPiece(Protocol):
    """A piece of a body that can go to a plain socket without passing through the loop's thread."""

    def __len__(self) -> int:
        """Its size in bytes, not 0."""
        ...

    def send(self, socket: FileHandle, start: int) -> Awaitable[tuple[int, Buffer]]:
        """Send from byte `start` on, which is 0 or what the calls before took together: (bytes
        taken, those of their end that the socket had no room for). 0 taken: use `read`. Nothing
        else may be on its way to the socket. OSError if the client is gone."""
        ...

    def read(self, start: int) -> AsyncGenerator[Buffer, None]:
        """The bytes from `start` on in the ordinary way. May raise what an iterated body may."""
        ...


Piece = Buffer | DirectPiece


@dataclass(slots=True)
class Response:
    """What the handler answers.

    `headers`: (name, value) with latin-1 values; a control character in one is refused (500).
    `Date`, `Server`, `Connection`, `Content-Length` and `Transfer-Encoding` are the HTTP layer's
    and must not be among them.

    `body`: bytes, or an async iterable of buffers, each sent or copied before the next one is asked
    for (a `DirectPiece` among them likewise), or None. The first one is asked for before the status
    line is sent: if that raises an `HttpError` its status is answered, with any other error 500. If
    a later one raises, the connection is aborted without a final chunk or TLS close_notify. An
    iterator with `aclose` is closed in every case.

    `length`: size in bytes of an iterated body (None: sent chunked, or to HTTP/1.0 until close); of
    the body that a HEAD answer describes. A body that turns out longer or shorter aborts the
    connection. Ignored for bytes, except with HEAD and `body` None.

    `close`: end the connection after this answer.
    """

    status: int
    headers: list[tuple[str, str]] = field(default_factory=list)
    body: Buffer | AsyncIterable[Piece] | None = None
    length: int | None = None
    close: bool = False


Handler = Callable[[Request], Awaitable[Response]]
