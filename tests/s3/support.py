"""What the S3 tests share: a body from bytes, a fixed clock, one credential, signing by botocore."""

from __future__ import annotations

import datetime
import hashlib
from collections.abc import Iterable
from typing import Any
from unittest import mock

from botocore.auth import S3SigV4Auth, S3SigV4QueryAuth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials

from o3storage.s3._request import S3Request
from o3storage.s3._sigv4 import Authenticator, Credential, Identity

KEY_ID = "AKIAIOSFODNN7EXAMPLE"
SECRET = "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY"
OWNER = "0f" * 32
REGION = "us-east-1"
NOW_S = 1_369_353_600  # 2013-05-24T00:00:00Z, the time of AWS's published examples


class BytesBody:
    """A ByteSource over bytes that hands out at most `step` bytes at a time."""

    def __init__(self, data: bytes = b"", step: int = 1 << 30, length: int | None = -1) -> None:
        self.data = data
        self.at = 0
        self.step = step
        self.length = len(data) if length == -1 else length
        self.declared = True

    async def read_into(self, view: memoryview) -> int:
        count = min(len(view), self.step, len(self.data) - self.at)
        view[:count] = self.data[self.at : self.at + count]
        self.at += count
        return count


class FixedClock:
    def __init__(self, seconds: float = NOW_S) -> None:
        self.seconds = seconds

    def wall_ns(self) -> int:
        return int(self.seconds * 1_000_000_000)

    def boot_s(self) -> float:
        return self.seconds


class OneCredential:
    def __init__(self, key_id: str = KEY_ID, secret: str = SECRET, owner: str = OWNER) -> None:
        self.credential = Credential(key_id, secret.encode(), owner)

    def find_now(self, key_id: str) -> Credential | None:
        return self.credential if key_id == self.credential.key_id else None

    async def find(self, key_id: str) -> Credential | None:
        return self.find_now(key_id)


def authenticator(clock: FixedClock | None = None, anonymous: Any = None) -> Authenticator:
    return Authenticator(REGION, OneCredential(), clock or FixedClock(), anonymous)


def request(
    method: str = "GET",
    path: bytes = b"/",
    query: bytes = b"",
    headers: Iterable[tuple[str, str]] = (),
    body: bytes = b"",
) -> S3Request:
    return S3Request(method, path, query, headers, BytesBody(body))


def authenticate(req: S3Request, auth: Authenticator | None = None) -> Identity:
    """Runs the coroutine by hand: with a known key it never waits."""
    coroutine = (auth or authenticator()).authenticate(req)
    try:
        coroutine.send(None)
    except StopIteration as done:
        identity: Identity = done.value
        return identity
    raise AssertionError("authenticate waited")


def frozen_botocore(seconds: int = NOW_S) -> Any:
    """Make botocore sign at `seconds`."""
    moment = datetime.datetime.fromtimestamp(seconds, datetime.UTC)
    return mock.patch("botocore.auth.get_current_datetime", lambda *a, **k: moment)


def botocore_sign(
    method: str,
    url: str,
    headers: dict[str, str] | None = None,
    body: bytes = b"",
    *,
    presign_s: int = 0,
    seconds: int = NOW_S,
    secret: str = SECRET,
    region: str = REGION,
) -> tuple[bytes, bytes, list[tuple[str, str]]]:
    """(raw path, raw query, headers) of a request that botocore signed."""
    aws = AWSRequest(method, url, headers=headers or {}, data=body)
    credentials = Credentials(KEY_ID, secret)
    with frozen_botocore(seconds):
        if presign_s:
            S3SigV4QueryAuth(credentials, "s3", region, expires=presign_s).add_auth(aws)
        else:
            S3SigV4Auth(credentials, "s3", region).add_auth(aws)
    prepared = aws.prepare()
    rest = prepared.url.split("://", 1)[1]
    host, _, target = rest.partition("/")
    path, _, query = ("/" + target).partition("?")
    out = [("host", host)]
    for name, value in prepared.headers.items():
        text = value.decode("latin-1") if isinstance(value, bytes) else value
        if name.lower() not in ("host", "content-length"):
            out.append((name.lower(), text.strip()))
    return path.encode(), query.encode(), out


def sha256_hex(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
