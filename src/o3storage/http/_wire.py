"""Response heads as bytes."""

from __future__ import annotations

import time
from http import HTTPStatus

from o3storage.http._errors import HttpError
from o3storage.http._messages import Request, Response

_STATUS_LINES = {s.value: f"HTTP/1.1 {s.value} {s.phrase}\r\n" for s in HTTPStatus}
# Names of RFC 9110 that the standard library of 3.11 still has older ones for.
_STATUS_LINES[413] = "HTTP/1.1 413 Content Too Large\r\n"
_STATUS_LINES[416] = "HTTP/1.1 416 Range Not Satisfiable\r\n"

_ALLOWED = bytes([9, *range(32, 127), *range(128, 256)])

CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"

_BODILESS = frozenset({204, 304})

_DAYS = ("Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun")
_MONTHS = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")


def http_date(unix_s: int) -> str:
    """IMF-fixdate (RFC 9110, section 5.6.7) of a UNIX time in whole seconds."""
    t = time.gmtime(unix_s)
    return (
        f"{_DAYS[t.tm_wday]}, {t.tm_mday:02} {_MONTHS[t.tm_mon - 1]} {t.tm_year} "
        f"{t.tm_hour:02}:{t.tm_min:02}:{t.tm_sec:02} GMT"
    )


def bodiless(status: int) -> bool:
    """True if an answer with this status never has a body (RFC 9110, section 6.4.1)."""
    return status in _BODILESS or status < 200


def response_head(
    response: Response, common_lines: str, length: int | None, connection: str | None
) -> bytes:
    """The head with its empty line. `common_lines`: Date and Server lines. `length`: of the body;
    -1 for chunked coding, None for neither line. `connection`: value of that field, or None.

    Raises ValueError for a header with a control character or one that is not latin-1.
    """
    lines = [_STATUS_LINES.get(response.status) or f"HTTP/1.1 {response.status} \r\n", common_lines]
    lines += [f"{name}: {value}\r\n" for name, value in response.headers]
    if length is not None:
        lines.append(
            f"Content-Length: {length}\r\n" if length >= 0 else "Transfer-Encoding: chunked\r\n"
        )
    if connection is not None:
        lines.append(f"Connection: {connection}\r\n")
    lines.append("\r\n")
    head = "".join(lines).encode("latin-1")
    breaks = len(lines) + common_lines.count("\n") - 1
    if head.translate(None, _ALLOWED) != b"\r\n" * breaks:
        raise ValueError("a response header holds a control character")
    return head


def plain_error(request: Request | None, error: HttpError) -> Response:
    """The answer to an HttpError where the caller has none of its own: one line of text."""
    return Response(
        error.status,
        [("Content-Type", "text/plain; charset=utf-8")],
        f"{error}\n".encode(),
        close=request is None,
    )
