"""A small signing S3 and admin client for the command line and the load generator.

Source of the signature: AWS "Signature Version 4" (header form). Bodies are sent with
UNSIGNED-PAYLOAD or their own SHA-256. One request at a time per connection.
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol
from urllib.parse import quote, urlsplit

from o3storage import _native

MAX_ANSWER_HEAD_BYTES = 1 << 20
"""A peer's answer head is refused above this, so that a wrong endpoint cannot fill memory. As much
of a body is read ahead: with less the socket is paused and resumed for every few packets."""
CONNECT_TIMEOUT_S = 10.0
ANSWER_TIMEOUT_S = 60.0


class ClientError(Exception):
    """The endpoint could not be reached or answered something else; the text says what to do."""


@dataclass(frozen=True, slots=True)
class Credentials:
    key_id: str
    secret: str

    def __repr__(self) -> str:
        return f"Credentials({self.key_id})"


@dataclass(slots=True)
class Answer:
    status: int
    headers: dict[str, str]
    body: bytes
    size_bytes: int
    """Of the body, also where it was not kept."""


class Writer(Protocol):
    """The sending half of a connection, with or without TLS."""

    def write(self, data: bytes) -> None: ...

    def close(self) -> None: ...


class Signer:
    """Signs requests for one key, region and host; caches the day's signing key."""

    def __init__(self, credentials: Credentials, host: str, region: str) -> None:
        self._credentials = credentials
        self._host = host
        self._region = region
        self._second = -1
        self._stamp = ""
        self._day = ""
        self._key = b""

    def _refresh(self, now: int) -> None:
        self._second = now
        self._stamp = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime(now))
        day = self._stamp[:8]
        if day != self._day:
            key = b"AWS4" + self._credentials.secret.encode()
            for part in (day, self._region, "s3", "aws4_request"):
                key = _native.hmac_sha256(key, part.encode())
            self._day, self._key = day, key

    def headers(
        self, method: str, path: str, query: str, payload_hash: str, extra: dict[str, str]
    ) -> dict[str, str]:
        """Headers to send. `path` and `query` are as in the request line (encoded, query sorted
        and with `=` on every name). `extra` headers (lower-case names) are signed too."""
        now = int(time.time())
        if now != self._second:
            self._refresh(now)
        headers = {
            "host": self._host,
            "x-amz-content-sha256": payload_hash,
            "x-amz-date": self._stamp,
            **extra,
        }
        names = sorted(headers)
        signed = ";".join(names)
        canonical = "\n".join(
            [
                method,
                path,
                query,
                *[f"{name}:{headers[name]}" for name in names],
                "",
                signed,
                payload_hash,
            ]
        )
        scope = f"{self._day}/{self._region}/s3/aws4_request"
        to_sign = (
            f"AWS4-HMAC-SHA256\n{self._stamp}\n{scope}\n{_native.sha256(canonical.encode()).hex()}"
        )
        signature = _native.hmac_sha256(self._key, to_sign.encode()).hex()
        headers["authorization"] = (
            f"AWS4-HMAC-SHA256 Credential={self._credentials.key_id}/{scope}, "
            f"SignedHeaders={signed}, Signature={signature}"
        )
        return headers


class Client:
    """One keep-alive connection to one endpoint, opened on first use."""

    def __init__(
        self,
        endpoint: str,
        credentials: Credentials | None = None,
        *,
        region: str = "us-east-1",
        ca_file: str | None = None,
    ) -> None:
        """`endpoint` is a URL with scheme, host and optional port; `ca_file` names the certificate
        to trust where it is https (None: the system's authorities). Raises ClientError."""
        try:
            parts = urlsplit(endpoint)
            port = parts.port
        except ValueError:  # brackets without an address in them, a port beyond 65535
            parts, port = urlsplit(""), None
        if parts.scheme not in {"http", "https"} or not parts.hostname:
            raise ClientError(f"{endpoint!r} is not a URL such as http://127.0.0.1:8080")
        self.endpoint = endpoint
        self._secure = parts.scheme == "https"
        self._host = parts.hostname
        self._port = port or (443 if self._secure else 80)
        default = self._port == (443 if self._secure else 80)
        name = f"[{self._host}]" if ":" in self._host else self._host
        self._signer = (
            Signer(credentials, name if default else f"{name}:{self._port}", region)
            if credentials
            else None
        )
        self._host_header = name if default else f"{name}:{self._port}"
        self._ca_pem: bytes | None = None
        if ca_file is not None:
            try:
                self._ca_pem = Path(ca_file).read_bytes()
            except OSError as error:
                raise ClientError(f"cannot read --ca-file {ca_file}: {error.strerror}") from None
        self._reader: asyncio.StreamReader | None = None
        self._writer: Writer | None = None

    async def request(
        self,
        method: str,
        path: str,
        *,
        query: dict[str, str] | None = None,
        body: bytes = b"",
        headers: dict[str, str] | None = None,
        unsigned_payload: bool = False,
        keep_body: bool = True,
    ) -> Answer:
        """Send one request and read the whole answer. `path` is not encoded yet. A good answer's
        body is read and dropped without `keep_body`. Raises ClientError when the endpoint does not
        answer in HTTP within the timeouts."""
        encoded = quote(path, safe="/-_.~")
        query_text = "&".join(
            f"{quote(name, safe='-_.~')}={quote(value, safe='-_.~')}"
            for name, value in sorted((query or {}).items())
        )
        payload = "UNSIGNED-PAYLOAD" if unsigned_payload else _native.sha256(body).hex()
        extra = headers or {}
        sent = (
            self._signer.headers(method, encoded, query_text, payload, extra)
            if self._signer
            else {"host": self._host_header, **extra}
        )
        target = f"{encoded}?{query_text}" if query_text else encoded
        lines = [f"{method} {target} HTTP/1.1"]
        lines += [f"{name}: {value}" for name, value in sent.items()]
        if body or method in {"PUT", "POST"}:
            lines.append(f"content-length: {len(body)}")
        head = ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1")
        try:
            if self._writer is None:
                await asyncio.wait_for(self._connect(), CONNECT_TIMEOUT_S)
            assert self._writer is not None
            self._writer.write(head + body if len(body) < 65536 else head)
            if len(body) >= 65536:
                self._writer.write(body)
            return await asyncio.wait_for(self._answer(method, keep_body), ANSWER_TIMEOUT_S)
        except (OSError, asyncio.IncompleteReadError, TimeoutError, ValueError) as error:
            await self.close()
            raise ClientError(f"{self.endpoint} does not answer: {_reason(error)}") from error

    async def _connect(self) -> None:
        if self._secure:
            from ._tls_streams import open_tls

            self._reader, self._writer = await open_tls(self._host, self._port, self._ca_pem)
        else:
            self._reader, self._writer = await asyncio.open_connection(
                self._host, self._port, limit=MAX_ANSWER_HEAD_BYTES
            )

    async def _answer(self, method: str, keep_body: bool) -> Answer:
        reader = self._reader
        assert reader is not None
        while True:
            try:
                head = await reader.readuntil(b"\r\n\r\n")
            except asyncio.LimitOverrunError:
                raise ValueError("its answer is not HTTP, or its head is too large") from None
            first, *rest = head.decode("latin-1").split("\r\n")
            if not first.startswith("HTTP/1."):
                raise ValueError("its answer is not HTTP")
            status = int(first[9:12])
            if status != 100:
                break
        headers = {}
        for line in rest:
            name, colon, value = line.partition(":")
            if colon:
                headers[name.lower()] = value.strip()
        body = b""
        dropped_bytes = 0
        if method != "HEAD" and status not in {204, 304}:
            if headers.get("transfer-encoding") == "chunked":
                body = await _read_chunked(reader)
            elif "content-length" not in headers:
                body = await reader.read()
            elif keep_body or status >= 300:
                body = await reader.readexactly(int(headers["content-length"]))
            else:
                dropped_bytes = int(headers["content-length"])
                await _pass_over(reader, dropped_bytes)
        if headers.get("connection") == "close":
            await self.close()
        return Answer(status, headers, body, len(body) + dropped_bytes)

    async def close(self) -> None:
        """Idempotent."""
        writer, self._writer, self._reader = self._writer, None, None
        if writer is not None:
            writer.close()


async def _pass_over(reader: asyncio.StreamReader, size: int) -> None:
    while size:
        piece = await reader.read(min(size, MAX_ANSWER_HEAD_BYTES))
        if not piece:
            raise asyncio.IncompleteReadError(b"", size)
        size -= len(piece)


async def _read_chunked(reader: asyncio.StreamReader) -> bytes:
    parts: list[bytes] = []
    while True:
        size = int((await reader.readuntil(b"\r\n")).split(b";")[0], 16)
        if size == 0:
            while await reader.readuntil(b"\r\n") != b"\r\n":
                pass
            return b"".join(parts)
        parts.append(await reader.readexactly(size))
        await reader.readexactly(2)


def _reason(error: BaseException) -> str:
    if isinstance(error, ConnectionRefusedError):
        return "nothing listens there; is the store running?"
    if isinstance(error, asyncio.IncompleteReadError):
        return "it closed the connection"
    if isinstance(error, TimeoutError):
        return "it took too long"
    return str(error) or type(error).__name__
