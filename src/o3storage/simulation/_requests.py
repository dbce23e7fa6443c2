"""Signed S3 requests into `s3.Service.handle`, and answers read to their end, without sockets.

Source of the signature: Amazon S3 API reference, "Authenticating Requests: Using the Authorization
Header" (Signature Version 4). The product checks signatures but makes none, so the signer is here.
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING
from urllib.parse import quote
from xml.etree import ElementTree

from o3storage import _native
from o3storage.http import Headers, Request

if TYPE_CHECKING:
    from o3storage.http import Body
    from o3storage.s3 import Service

HOST = "sim.example:8080"
REGION = "us-east-1"
KEY_ID = "O3SIMULATEDCLIENTKEY"
SECRET = "a-secret-of-simulated-clients-only-0000"
_NAMESPACE = b' xmlns="http://s3.amazonaws.com/doc/2006-03-01/"'


class Truncated(Exception):
    """The answer's body ended, or its source failed, before its length; `data` is what came."""

    def __init__(self, data: bytes, cause: BaseException | None) -> None:
        super().__init__(f"the answer ended after {len(data)} bytes: {cause!r}")
        self.data = data
        self.cause = cause


class Upload:
    """A request's body (an `http.ByteSource`) that arrives in pieces, `pause_s` apart."""

    def __init__(self, data: bytes, *, piece_bytes: int = 1 << 30, pause_s: float = 0.0) -> None:
        self.length: int | None = len(data)
        self.declared = True
        self.ended = False
        self.trailers = None
        self._data = data
        self._at = 0
        self._piece_bytes = piece_bytes
        self._pause_s = pause_s

    async def read_into(self, view: memoryview) -> int:
        if self._at and self._pause_s:
            await asyncio.sleep(self._pause_s)
        count = min(len(view), self._piece_bytes, len(self._data) - self._at)
        view[:count] = self._data[self._at : self._at + count]
        self._at += count
        self.ended = self._at == len(self._data)
        return count


@dataclass(slots=True)
class Answer:
    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def xml(self) -> ElementTree.Element:
        """The document without its namespace."""
        return ElementTree.fromstring(self.body.replace(_NAMESPACE, b""))

    @property
    def code(self) -> str:
        """The error code; "" for a success or an answer without a document."""
        if self.status < 400 or not self.body:
            return ""
        return self.xml.findtext("Code") or ""


class Signer:
    """Signs for the simulated clients; keeps the key of the day."""

    def __init__(self) -> None:
        self._day = ""
        self._key = b""

    def headers(
        self, method: str, path: str, query: str, extra: dict[str, str], wall_ns: int
    ) -> dict[str, str]:
        """All headers of the request; `query` sorted and with `=` on every name."""
        stamp = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime(wall_ns // 1_000_000_000))
        if stamp[:8] != self._day:
            self._day = stamp[:8]
            key = b"AWS4" + SECRET.encode()
            for part in (self._day, REGION, "s3", "aws4_request"):
                key = _native.hmac_sha256(key, part.encode())
            self._key = key
        headers = {
            "host": HOST,
            "x-amz-content-sha256": "UNSIGNED-PAYLOAD",
            "x-amz-date": stamp,
            **extra,
        }
        names = sorted(headers)
        signed = ";".join(names)
        fields = [f"{name}:{headers[name]}" for name in names]
        canonical = "\n".join([method, path, query, *fields, "", signed, "UNSIGNED-PAYLOAD"])
        scope = f"{self._day}/{REGION}/s3/aws4_request"
        digest = _native.sha256(canonical.encode()).hex()
        to_sign = f"AWS4-HMAC-SHA256\n{stamp}\n{scope}\n{digest}"
        signature = _native.hmac_sha256(self._key, to_sign.encode()).hex()
        headers["authorization"] = (
            f"AWS4-HMAC-SHA256 Credential={KEY_ID}/{scope}, "
            f"SignedHeaders={signed}, Signature={signature}"
        )
        return headers


@dataclass(slots=True)
class Call:
    """One request before it is signed. `path` is not encoded; `body` is sent in pieces of
    `piece_bytes`, `pause_s` apart."""

    method: str
    path: str
    query: dict[str, str] | None = None
    headers: dict[str, str] | None = None
    body: bytes = b""
    piece_bytes: int = 1 << 30
    pause_s: float = 0.0


def build(signer: Signer, call: Call, wall_ns: int) -> Request:
    """The request as the HTTP layer would hand it on."""
    path = quote(call.path, safe="/-_.~")
    query = "&".join(
        f"{quote(name, safe='-_.~')}={quote(value, safe='-_.~')}"
        for name, value in sorted((call.query or {}).items())
    )
    headers = signer.headers(call.method, path, query, call.headers or {}, wall_ns)
    body: Body = Upload(  # type: ignore[assignment]
        call.body, piece_bytes=call.piece_bytes, pause_s=call.pause_s
    )
    raw_path, raw_query = path.encode(), query.encode()
    return Request(
        call.method,
        raw_path + (b"?" + raw_query if raw_query else b""),
        raw_path,
        raw_query,
        "1.1",
        HOST,
        Headers(headers),
        body,
        False,
        ("127.0.0.1", 8080),
        ("127.0.0.1", 50000),
    )


async def perform(service: Service, request: Request) -> Answer:
    """Send and read the whole answer, as a client on a socket sees it. Raises Truncated."""
    response = await service.handle(request)
    headers = {name.lower(): value for name, value in response.headers}
    body = response.body
    if body is None:
        return Answer(response.status, headers, b"")
    if isinstance(body, bytes | bytearray | memoryview):
        return Answer(response.status, headers, bytes(body))
    data = bytearray()
    try:
        async for piece in body:
            assert isinstance(piece, bytes | bytearray | memoryview)  # no sockets, no direct pieces
            data += piece
    except Exception as error:
        raise Truncated(bytes(data), error) from error
    finally:
        close = getattr(body, "aclose", None)
        if close is not None:
            await close()
    if response.length is not None and len(data) != response.length:
        raise Truncated(bytes(data), None)
    return Answer(response.status, headers, bytes(data))
