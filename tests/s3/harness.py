"""A service on the in-memory node, driven by signed requests, for the tests of operations."""

from __future__ import annotations

import asyncio
import base64
import datetime
import hashlib
from collections.abc import AsyncIterator, Iterable, Mapping
from typing import Any
from urllib.parse import quote, urlsplit
from xml.etree import ElementTree

from botocore.auth import S3SigV4Auth, S3SigV4QueryAuth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials as BotoCredentials

from o3storage.catalog import Command
from o3storage.cluster import BodyMissing
from o3storage.crypto import FRAME_BYTES, StreamRef
from o3storage.http import Body, Headers, Request
from o3storage.s3 import Credential, Service, ServiceConfig
from tests.s3.support import KEY_ID, OWNER, REGION, SECRET, BytesBody, frozen_botocore
from tests.support.memory_node import FrameMissing, MemoryNode, MemoryUpload

NOW_S = 1_760_000_000
OTHER_KEY_ID, OTHER_SECRET, OTHER_OWNER = "AKIAOTHEROTHEROTHER0", "other-secret", "0e" * 32
HOST = "127.0.0.1:9000"


class DigestingUpload:
    """`MemoryUpload` with the digester that the node's own takes."""

    def __init__(self, inner: MemoryUpload) -> None:
        self._inner = inner

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    async def write(self, block: memoryview, last: bool, digester: Any = None) -> None:
        if digester is not None:
            digester.update(block)
        await self._inner.write(block, last)


class Node(MemoryNode):
    """Adds what the real node does in time: hooks before a command is applied."""

    def __init__(self) -> None:
        super().__init__(NOW_S * 10**9)
        self.before: list[Any] = []
        """Called, and removed, one at each submit."""

    def new_stream(self, bucket_id: int, key: bytes) -> Any:
        return DigestingUpload(super().new_stream(bucket_id, key))

    def read_small_now(self, ref: StreamRef) -> bytes | None:
        if ref.size_bytes > FRAME_BYTES:
            return None
        if ref.stream not in self.streams:
            raise BodyMissing(ref.stream.hex())
        return self.streams[ref.stream]

    async def read_stream(
        self,
        ref: StreamRef,
        offset: int = 0,
        length: int | None = None,
        owner: tuple[int, bytes] | None = None,
    ) -> AsyncIterator[bytes]:
        try:
            async for piece in super().read_stream(ref, offset, length, owner):
                yield piece
        except FrameMissing as error:
            raise BodyMissing(str(error)) from None

    async def submit(self, command: Command, frames: Any = ()) -> Any:
        if self.before:
            hook = self.before.pop(0)
            result = hook(command)
            if asyncio.iscoroutine(result):
                await result
        return await super().submit(command, frames)


class Clock:
    """Moves by one millisecond at each look, so that times are distinct."""

    def __init__(self) -> None:
        self.ns = NOW_S * 10**9

    def wall_ns(self) -> int:
        self.ns += 1_000_000
        return self.ns

    def boot_s(self) -> float:
        return self.ns / 1e9


class Entropy:
    def __init__(self) -> None:
        self.count = 0

    def random_bytes(self, size: int) -> bytes:
        self.count += 1
        return hashlib.shake_128(self.count.to_bytes(8, "big")).digest(size)

    def uniform(self, low: float, high: float) -> float:
        return low


class Credentials:
    def __init__(self) -> None:
        self.known = {
            KEY_ID: Credential(KEY_ID, SECRET.encode(), OWNER),
            OTHER_KEY_ID: Credential(OTHER_KEY_ID, OTHER_SECRET.encode(), OTHER_OWNER),
        }

    def find_now(self, key_id: str) -> Credential | None:
        return self.known.get(key_id)

    async def find(self, key_id: str) -> Credential | None:
        return self.known.get(key_id)


class Answer:
    """A response, its body read."""

    def __init__(self, status: int, headers: Iterable[tuple[str, str]], body: bytes, length: Any):
        self.status = status
        self.items = list(headers)
        self.headers = {name.lower(): value for name, value in self.items}
        self.body = body
        self.length = length

    def __repr__(self) -> str:
        return f"Answer({self.status}, {self.headers}, {self.body[:300]!r})"

    @property
    def xml(self) -> ElementTree.Element:
        """The document without its namespace."""
        text = self.body.decode().replace(' xmlns="http://s3.amazonaws.com/doc/2006-03-01/"', "")
        return ElementTree.fromstring(text)

    @property
    def code(self) -> str:
        """The error code, "" for a success."""
        if self.status < 400 or not self.body:
            return ""
        return self.xml.findtext("Code") or ""

    def texts(self, path: str) -> list[str]:
        return [element.text or "" for element in self.xml.findall(path)]

    def text(self, path: str) -> str | None:
        return self.xml.findtext(path)


class Store:
    """One store. `call` signs and sends; the shorthands name bucket and key by path."""

    local = "127.0.0.1"
    """Where requests arrive."""

    def __init__(self, **config: Any) -> None:
        self.runner = asyncio.Runner()
        self.node = Node()
        self.clock = Clock()
        self.service = Service(
            self.node,
            credentials=Credentials(),
            clock=self.clock,
            entropy=Entropy(),
            config=ServiceConfig(root_owner=OWNER, **config),
        )

    def close(self) -> None:
        self.runner.close()

    # --- requests

    def call(
        self,
        method: str,
        target: str,
        body: bytes = b"",
        headers: Mapping[str, str] | None = None,
        *,
        host: str = HOST,
        sign: bool = True,
        other: bool = False,
        presign_s: int = 0,
        payload: str = "UNSIGNED-PAYLOAD",
        source: Any = None,
        after_signing: Mapping[str, str] | None = None,
    ) -> Answer:
        """`target`: encoded path and query. `headers` are signed, `after_signing` are not."""
        sent = {name.lower(): value for name, value in (headers or {}).items()}
        query = ""
        if sign:
            aws = AWSRequest(method, f"http://{host}{target}", headers=dict(sent), data=b"")
            credentials = (
                BotoCredentials(OTHER_KEY_ID, OTHER_SECRET)
                if other
                else BotoCredentials(KEY_ID, SECRET)
            )
            with frozen_botocore(self.clock.ns // 10**9):
                if presign_s:
                    S3SigV4QueryAuth(credentials, "s3", REGION, expires=presign_s).add_auth(aws)
                else:
                    aws.headers["X-Amz-Content-SHA256"] = payload
                    Auth(credentials, "s3", REGION, payload).add_auth(aws)
            url = urlsplit(aws.url)
            path, query = url.path, url.query
            sent = {name.lower(): text(value) for name, value in aws.headers.items()}
        else:
            path, _, query = target.partition("?")
        sent.setdefault("host", host)
        for name, value in (after_signing or {}).items():
            sent[name.lower()] = value
        return self.send(method, path.encode(), query.encode(), sent, source or BytesBody(body))

    def send(
        self, method: str, path: bytes, query: bytes, headers: Mapping[str, str], body: Any
    ) -> Answer:
        """One request as it stands."""
        wire = {
            name: value if value.isascii() else value.encode().decode("latin-1")
            for name, value in headers.items()
        }
        request = Request(
            method,
            path + (b"?" + query if query else b""),
            path,
            query,
            "1.1",
            wire.get("host", ""),
            Headers(wire),
            body,
            False,
            (self.local, 9000),
            ("127.0.0.1", 50000),
        )

        async def run() -> Answer:
            response = await self.service.handle(request)
            data = b""
            if isinstance(response.body, bytes | bytearray | memoryview):
                data = bytes(response.body)
            elif response.body is not None:
                async for piece in response.body:
                    if not isinstance(piece, bytes | bytearray | memoryview):
                        piece = b"".join([bytes(part) async for part in piece.read(0)])
                    data += bytes(piece)
            return Answer(response.status, response.headers, data, response.length)

        return self.runner.run(run())

    def get(self, target: str, headers: Mapping[str, str] | None = None, **kw: Any) -> Answer:
        return self.call("GET", target, b"", headers, **kw)

    def head(self, target: str, headers: Mapping[str, str] | None = None, **kw: Any) -> Answer:
        return self.call("HEAD", target, b"", headers, **kw)

    def put(
        self,
        target: str,
        body: bytes = b"",
        headers: Mapping[str, str] | None = None,
        **kw: Any,
    ) -> Answer:
        return self.call("PUT", target, body, headers, **kw)

    def post(
        self,
        target: str,
        body: bytes = b"",
        headers: Mapping[str, str] | None = None,
        **kw: Any,
    ) -> Answer:
        return self.call("POST", target, body, headers, **kw)

    def delete(self, target: str, headers: Mapping[str, str] | None = None, **kw: Any) -> Answer:
        return self.call("DELETE", target, b"", headers, **kw)

    # --- what tests often need

    def bucket(self, name: str = "bucket", versioning: str = "") -> str:
        """A new bucket; its path."""
        assert self.put(f"/{name}").status == 200
        if versioning:
            self.versioning(name, versioning)
        return f"/{name}"

    def versioning(self, name: str, status: str) -> None:
        document = f"<VersioningConfiguration><Status>{status}</Status></VersioningConfiguration>"
        assert self.put(f"/{name}?versioning", document.encode()).status == 200

    def upload(self, target: str, headers: Mapping[str, str] | None = None) -> str:
        """A new multipart upload; its id."""
        answer = self.post(f"{target}?uploads", headers=headers)
        assert answer.status == 200, answer
        return answer.text("UploadId") or ""

    def complete(
        self,
        target: str,
        upload_id: str,
        parts: list[tuple[int, str]],
        headers: Mapping[str, str] | None = None,
        extra: str = "",
    ) -> Answer:
        inner = "".join(
            f"<Part><PartNumber>{number}</PartNumber><ETag>{etag}</ETag>{extra}</Part>"
            for number, etag in parts
        )
        document = f"<CompleteMultipartUpload>{inner}</CompleteMultipartUpload>"
        return self.post(f"{target}?uploadId={upload_id}", document.encode(), headers)

    def objects(self, bucket: str = "bucket") -> list[str]:
        return self.get(f"/{bucket}").texts("Contents/Key")


class Auth(S3SigV4Auth):
    """botocore's signer with a payload hash of the test's choice."""

    def __init__(self, credentials: Any, service: str, region: str, payload: str) -> None:
        super().__init__(credentials, service, region)
        self._payload = payload

    def payload(self, request: Any) -> str:
        return self._payload

    def _should_sha256_sign_payload(self, request: Any) -> bool:
        return False


def text(value: Any) -> str:
    return (value.decode("latin-1") if isinstance(value, bytes) else str(value)).strip()


def md5_base64(data: bytes) -> str:
    return base64.b64encode(hashlib.md5(data).digest()).decode()


def key_path(key: str) -> str:
    return quote(key, safe="/~")


def utc(seconds: int) -> datetime.datetime:
    return datetime.datetime.fromtimestamp(seconds, datetime.UTC)


__all__ = ["Answer", "Body", "Store"]
