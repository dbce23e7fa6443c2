"""Making responses: XML, empty ones, and the numbers that lists take."""

from __future__ import annotations

from collections.abc import Sequence

from o3storage.http import Response
from o3storage.s3._errors import XML_CONTENT_TYPE, S3Error
from o3storage.s3._xml import HEADER, NAMESPACE

Header = tuple[str, str]


def empty(status: int = 200, headers: Sequence[Header] = ()) -> Response:
    return Response(status, list(headers), b"")


def xml(
    root: str, content: str | Sequence[str], headers: Sequence[Header] = (), status: int = 200
) -> Response:
    """A document `<root xmlns=...>content</root>`; `content`, which may come in pieces, is escaped
    by who made it."""
    pieces = (content,) if isinstance(content, str) else content
    # One copy of what may be 300 KB, and one more as bytes.
    body = "".join((f"{HEADER}<{root} {NAMESPACE}>", *pieces, f"</{root}>")).encode()
    return Response(status, [("Content-Type", XML_CONTENT_TYPE), *headers], body)


def count_param(params: dict[str, str], name: str, limit: int = 1000) -> int:
    """A number of entries asked for, cut to `limit`. Raises S3Error InvalidArgument."""
    text = params.get(name)
    if text is None or text == "":
        return limit
    digits = text.removeprefix("-")
    if not digits.isascii() or not digits.isdigit() or len(digits) > 10:
        raise S3Error(
            "InvalidArgument",
            f"Provided {name} not an integer or within integer range",
            details=(("ArgumentName", name), ("ArgumentValue", text)),
        )
    count = int(text)
    if count < 0 or count > 0x7FFF_FFFF:
        raise S3Error(
            "InvalidArgument",
            f"Argument {name} must be an integer between 0 and 2147483647",
            details=(("ArgumentName", name), ("ArgumentValue", text)),
        )
    return min(count, limit)


def number_param(text: str, name: str, low: int, high: int) -> int:
    """A number between `low` and `high`. Raises S3Error InvalidArgument."""
    if text.isascii() and text.isdigit() and len(text) <= 10 and low <= int(text) <= high:
        return int(text)
    raise S3Error(
        "InvalidArgument",
        f"{name} must be an integer between {low} and {high}, inclusive",
        details=(("ArgumentName", name), ("ArgumentValue", text)),
    )
