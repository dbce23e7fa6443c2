"""What the tests of signatures share: AWS's example credentials, and signing by hand."""

from __future__ import annotations

import hashlib
import hmac
from typing import Any

import pytest

from o3storage.s3._errors import S3Error
from o3storage.s3._request import S3Request
from tests.s3.support import (
    KEY_ID,
    SECRET,
    authenticate,
    botocore_sign,
    request,
    sha256_hex,
)

EMPTY = sha256_hex(b"")
SCOPE = f"{KEY_ID}/20130524/us-east-1/s3/aws4_request"
HOST = ("host", "examplebucket.s3.amazonaws.com")
DATE = ("x-amz-date", "20130524T000000Z")
PRESIGNED = (
    b"X-Amz-Algorithm=AWS4-HMAC-SHA256"
    b"&X-Amz-Credential=AKIAIOSFODNN7EXAMPLE%2F20130524%2Fus-east-1%2Fs3%2Faws4_request"
    b"&X-Amz-Date=20130524T000000Z&X-Amz-Expires=86400&X-Amz-SignedHeaders=host"
    b"&X-Amz-Signature=aeeed9bbccd4d02ee5c0109b86d86835f995330da4c265957d157751f604d404"
)


def authorization(signed: str, signature: str) -> tuple[str, str]:
    return (
        "authorization",
        f"AWS4-HMAC-SHA256 Credential={SCOPE},SignedHeaders={signed},Signature={signature}",
    )


def refused(req: S3Request, auth: Any = None) -> S3Error:
    with pytest.raises(S3Error) as caught:
        authenticate(req, auth)
    return caught.value


def sign_by_hand(  # noqa: PLR0917
    method: str, path: str, query: str, headers: list[tuple[str, str]], signed: str, payload: str
) -> str:
    """An independent signer, straight from the documentation."""
    lines = "".join(f"{n}:{v}\n" for n, v in headers)
    canonical = f"{method}\n{path}\n{query}\n{lines}\n{signed}\n{payload}".encode("latin-1")
    scope = "20130524/us-east-1/s3/aws4_request"
    to_sign = (
        f"AWS4-HMAC-SHA256\n20130524T000000Z\n{scope}\n{hashlib.sha256(canonical).hexdigest()}"
    )
    key = ("AWS4" + SECRET).encode()
    for part in scope.split("/"):
        key = hmac.new(key, part.encode(), "sha256").digest()
    return hmac.new(key, to_sign.encode(), "sha256").hexdigest()


def signed_get(path: str = "/bucket/key", **kwargs: Any) -> S3Request:
    raw, query, headers = botocore_sign("GET", f"http://localhost:9000{path}", **kwargs)
    return request("GET", raw, query, headers)
