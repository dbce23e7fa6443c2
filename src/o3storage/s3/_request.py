"""One S3 request as the operations see it: decoded target, headers as a dict."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final, Protocol

from o3storage.s3._errors import S3Error
from o3storage.s3._uri import decode_path, split_query

_AUTH_PARAMETERS: Final = frozenset(
    {
        "x-amz-algorithm",
        "x-amz-credential",
        "x-amz-date",
        "x-amz-expires",
        "x-amz-signedheaders",
        "x-amz-signature",
        "x-amz-security-token",
        "x-amz-content-sha256",
    }
)
"""Query parameters that belong to the signature; every other x-amz-* parameter is a header."""


class ByteSource(Protocol):
    """Bytes that arrive: `http.Body`, and everything wrapped around it."""

    @property
    def length(self) -> int | None:
        """Bytes in all, where known before the end."""
        ...

    async def read_into(self, view: memoryview) -> int:
        """Fill the start of `view`; 0 only at the end."""
        ...


class S3Request:
    """A request after its head was read.

    `headers` holds each name once, repeats joined by a comma, values as received (latin-1 text of
    the bytes on the wire). Parameters of a presigned URL that count as headers are in it too.
    `amz_names`: the x-amz-* names among the headers that arrived in the head itself.
    `path` is percent-decoded. `query` holds decoded parameters, `pairs` the same as bytes in
    order of arrival. `local`: the IP address at which the connection arrived.
    """

    __slots__ = (
        "amz_names",
        "body",
        "headers",
        "host",
        "local",
        "method",
        "pairs",
        "path",
        "query",
        "raw_path",
        "secure",
    )

    def __init__(
        self,
        method: str,
        raw_path: bytes,
        raw_query: bytes,
        headers: Iterable[tuple[str, str]],
        body: ByteSource,
        *,
        secure: bool = False,
        local: str = "",
    ) -> None:
        self.method = method
        self.raw_path = raw_path
        self.path = decode_path(raw_path)
        self.body = body
        self.secure = secure
        self.local = local
        arrived = list(headers)
        merged = dict(arrived)
        if len(merged) != len(arrived):
            merged = _join_repeats(arrived)
        amz_names = [name for name in merged if name.startswith("x-amz-")]
        self.headers = merged
        self.amz_names = amz_names
        self.host = merged.get("host", "")
        self.pairs = split_query(raw_query)
        self.query = self._read_query() if raw_query else {}

    def _read_query(self) -> dict[str, str]:
        query: dict[str, str] = {}
        for raw_name, raw_value in self.pairs:
            try:
                name, value = raw_name.decode(), raw_value.decode()
            except UnicodeDecodeError:
                raise S3Error("InvalidURI", "The query is not valid UTF-8.") from None
            if "\0" in value:
                raise S3Error("InvalidURI", "The query holds a NUL character.")
            if name in query:
                raise S3Error("InvalidArgument", f"The query parameter {name} is given twice.")
            query[name] = value
            lower = name.lower()
            if lower.startswith("x-amz-") and lower not in _AUTH_PARAMETERS:
                if lower in self.headers:
                    raise S3Error(
                        "InvalidRequest", f"{lower} is given both as a header and in the query."
                    )
                if any(code < " " or code == "\x7f" for code in value):
                    raise S3Error("InvalidArgument", f"{lower} holds a control character.")
                # As if it had arrived in the head: latin-1 text of its UTF-8 bytes.
                self.headers[lower] = raw_value.decode("latin-1").strip()
        return query


def _join_repeats(arrived: list[tuple[str, str]]) -> dict[str, str]:
    merged: dict[str, str] = {}
    for name, value in arrived:
        merged[name] = f"{merged[name]},{value}" if name in merged else value
    return merged
