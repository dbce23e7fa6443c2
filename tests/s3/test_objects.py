"""PutObject, GetObject, HeadObject, DeleteObject: bodies, headers, conditions, ranges, versions."""

from __future__ import annotations

import base64
import hashlib
import zlib

import pytest

from o3storage.http import BodyTimeout, BodyTruncated
from tests.s3.harness import NOW_S, Store, md5_base64
from tests.s3.support import BytesBody, sha256_hex

FRAME = 256 * 1024


def crc32_base64(data: bytes) -> str:
    return base64.b64encode(zlib.crc32(data).to_bytes(4, "big")).decode()


# --- bodies


@pytest.mark.parametrize("size", [0, 1, 16 * 1024, FRAME - 1, FRAME, FRAME + 1, 3 * FRAME + 7])
@pytest.mark.s3(op=["PutObject", "GetObject", "HeadObject"], headers=["etag", "content-length"])
def test_what_was_put_is_got(store: Store, size: int) -> None:
    store.bucket()
    body = bytes(range(256)) * (size // 256 + 1)
    body = body[:size]
    put = store.put("/bucket/k", body)
    etag = f'"{hashlib.md5(body).hexdigest()}"'
    assert put.status == 200 and put.headers["etag"] == etag
    got = store.get("/bucket/k")
    assert (got.status, got.body, got.length) == (200, body, size)
    assert got.headers["etag"] == etag
    assert got.headers["accept-ranges"] == "bytes"
    head = store.head("/bucket/k")
    assert (head.status, head.body, head.length) == (200, b"", size)
    assert head.headers["etag"] == etag


@pytest.mark.s3(op="PutObject")
def test_an_overwrite_releases_the_old_body(store: Store) -> None:
    store.bucket()
    store.put("/bucket/k", b"first")
    store.put("/bucket/k", b"second")
    assert store.get("/bucket/k").body == b"second"
    assert len(store.node.streams) == 1


@pytest.mark.s3(op="PutObject", headers=["content-length"], errors=["EntityTooLarge"])
def test_a_single_put_is_at_most_5_gib(store: Store) -> None:
    store.bucket()
    body = BytesBody(b"", length=5 * 1024**3 + 1)
    answer = store.put("/bucket/k", source=body)
    assert (answer.status, answer.code) == (400, "EntityTooLarge")
    assert body.at == 0


@pytest.mark.s3(op="PutObject", headers=["content-length"], errors=["MissingContentLength"])
def test_a_put_without_any_length_is_411(store: Store) -> None:
    store.bucket()
    answer = store.put("/bucket/k", source=BytesBody(b"x", length=None))
    assert (answer.status, answer.code) == (411, "MissingContentLength")
    bare = BytesBody(b"")
    bare.declared = False
    assert store.put("/bucket/k", source=bare).code == "MissingContentLength"
    assert store.objects() == []


@pytest.mark.s3(op="PutObject", headers=["x-amz-decoded-content-length"])
def test_over_http_chunks_the_length_is_the_decoded_one(store: Store) -> None:
    store.bucket()
    chunked = (
        b"5\r\nhello\r\n0\r\nx-amz-checksum-crc32:" + crc32_base64(b"hello").encode() + b"\r\n\r\n"
    )
    answer = store.put(
        "/bucket/k",
        headers={
            "x-amz-decoded-content-length": "5",
            "x-amz-trailer": "x-amz-checksum-crc32",
            "content-encoding": "gzip,aws-chunked",
        },
        source=BytesBody(chunked, length=None),
        payload="STREAMING-UNSIGNED-PAYLOAD-TRAILER",
    )
    assert answer.status == 200, answer
    got = store.get("/bucket/k", {"x-amz-checksum-mode": "ENABLED"})
    assert got.body == b"hello"
    assert got.headers["content-encoding"] == "gzip"
    assert got.headers["x-amz-checksum-crc32"] == crc32_base64(b"hello")


@pytest.mark.parametrize(
    ("error", "code", "status"),
    [
        (BodyTruncated("gone"), "IncompleteBody", 400),
        (BodyTimeout("slow"), "RequestTimeout", 408),
    ],
)
@pytest.mark.s3(op="PutObject", errors=["IncompleteBody", "RequestTimeout"])
def test_a_client_that_goes_or_stalls_in_the_body_leaves_nothing(
    store: Store, error: Exception, code: str, status: int
) -> None:
    class Broken(BytesBody):
        async def read_into(self, view: memoryview) -> int:
            count = await super().read_into(view)
            if count == 0:
                raise error
            return count

    store.bucket()
    answer = store.put("/bucket/k", source=Broken(b"x" * (FRAME + 10), length=2 * FRAME))
    assert (answer.status, answer.code) == (status, code)
    assert store.objects() == []
    assert store.node.streams == {}
    assert store.service.pool.lent_bytes == 0


@pytest.mark.s3(op="PutObject", errors=["IncompleteBody", "InvalidRequest"])
def test_a_body_shorter_or_longer_than_declared_is_not_stored(store: Store) -> None:
    store.bucket()
    assert store.put("/bucket/k", source=BytesBody(b"four", length=5)).code == "IncompleteBody"
    assert store.put("/bucket/k", source=BytesBody(b"sixsix", length=5)).code == "IncompleteBody"
    # Chunked, with a promise beside it.
    for body, code in ((b"sixsix", "InvalidRequest"), (b"four", "IncompleteBody")):
        headers = {"x-amz-decoded-content-length": "5"}
        source = BytesBody(body, length=None)
        assert store.put("/bucket/k", headers=headers, source=source).code == code
    assert store.objects() == []
    assert store.node.streams == {}


# --- digests: a mismatch stores nothing


@pytest.mark.s3(op="PutObject", headers=["content-md5"], errors=["BadDigest", "InvalidDigest"])
def test_content_md5(store: Store) -> None:
    store.bucket()
    assert store.put("/bucket/k", b"x", {"content-md5": md5_base64(b"x")}).status == 200
    store.delete("/bucket/k")
    assert store.put("/bucket/k", b"x", {"content-md5": md5_base64(b"y")}).code == "BadDigest"
    for text in ("zzz", base64.b64encode(b"short").decode(), "é"):
        assert store.put("/bucket/k", b"x", {"content-md5": text}).code == "InvalidDigest"
    assert store.objects() == []
    assert store.node.streams == {}


@pytest.mark.s3(
    op="PutObject", headers=["x-amz-content-sha256"], errors=["XAmzContentSHA256Mismatch"]
)
def test_a_signed_payload_hash_must_be_the_bodys(store: Store) -> None:
    store.bucket()
    assert store.put("/bucket/k", b"x", payload=sha256_hex(b"x")).status == 200
    store.delete("/bucket/k")
    answer = store.put("/bucket/k", b"x", payload=sha256_hex(b"y"))
    assert (answer.status, answer.code) == (400, "XAmzContentSHA256Mismatch")
    assert answer.text("S3ComputedContentSHA256") == sha256_hex(b"x")
    assert store.objects() == []


CHECKSUMS = {
    "x-amz-checksum-crc32": crc32_base64(b"123456789"),
    "x-amz-checksum-crc32c": base64.b64encode(0xE3069283.to_bytes(4, "big")).decode(),
    "x-amz-checksum-crc64nvme": base64.b64encode(0xAE8B14860A799888.to_bytes(8, "big")).decode(),
    "x-amz-checksum-sha1": base64.b64encode(hashlib.sha1(b"123456789").digest()).decode(),
    "x-amz-checksum-sha256": base64.b64encode(hashlib.sha256(b"123456789").digest()).decode(),
}


@pytest.mark.parametrize("header", sorted(CHECKSUMS))
@pytest.mark.s3(
    op=["PutObject", "GetObject", "HeadObject"],
    headers=[
        *sorted(CHECKSUMS),
        "x-amz-checksum-mode",
        "x-amz-checksum-type",
        "x-amz-sdk-checksum-algorithm",
    ],
    errors=["BadDigest", "InvalidRequest"],
)
def test_a_checksum_in_a_header_is_checked_kept_and_shown(store: Store, header: str) -> None:
    store.bucket()
    value = CHECKSUMS[header]
    name = header.removeprefix("x-amz-checksum-").upper()
    headers = {header: value, "x-amz-sdk-checksum-algorithm": name}
    assert store.put("/bucket/k", b"123456788", headers).code == "BadDigest"
    assert store.objects() == []
    put = store.put("/bucket/k", b"123456789", headers)
    assert put.headers[header] == value
    assert put.headers["x-amz-checksum-type"] == "FULL_OBJECT"
    for call in (store.get, store.head):
        assert header not in call("/bucket/k").headers
        shown = call("/bucket/k", {"x-amz-checksum-mode": "ENABLED"})
        assert (shown.headers[header], shown.headers["x-amz-checksum-type"]) == (
            value,
            "FULL_OBJECT",
        )
    # Only whole-object answers show it.
    part = store.get("/bucket/k", {"x-amz-checksum-mode": "ENABLED", "range": "bytes=0-3"})
    assert header not in part.headers
    assert store.put("/bucket/k", b"x", {header: "AAAA!"}).code == "InvalidRequest"
    assert store.put("/bucket/k", b"x", {header: "AAA="}).code == "InvalidRequest"


@pytest.mark.s3(op="PutObject", errors=["InvalidRequest"])
def test_contradictory_checksum_headers(store: Store) -> None:
    store.bucket()
    for headers in (
        {
            "x-amz-checksum-crc32": CHECKSUMS["x-amz-checksum-crc32"],
            "x-amz-checksum-sha1": CHECKSUMS["x-amz-checksum-sha1"],
        },
        {"x-amz-sdk-checksum-algorithm": "CRC32"},
        {
            "x-amz-sdk-checksum-algorithm": "SHA1",
            "x-amz-checksum-crc32": CHECKSUMS["x-amz-checksum-crc32"],
        },
        {
            "x-amz-sdk-checksum-algorithm": "MD5",
            "x-amz-checksum-crc32": CHECKSUMS["x-amz-checksum-crc32"],
        },
        {"x-amz-trailer": "x-amz-checksum-crc32"},
    ):
        assert store.put("/bucket/k", b"123456789", headers).code == "InvalidRequest", headers
    assert store.objects() == []


@pytest.mark.s3(op="PutObject")
def test_without_a_checksum_crc64nvme_is_kept(store: Store) -> None:
    store.bucket()
    put = store.put("/bucket/k", b"123456789")
    assert put.headers["x-amz-checksum-crc64nvme"] == CHECKSUMS["x-amz-checksum-crc64nvme"]


@pytest.mark.parametrize(
    ("trailer", "value", "declared", "code"),
    [
        ("x-amz-checksum-crc32", crc32_base64(b"hello"), "x-amz-checksum-crc32", ""),
        ("x-amz-checksum-crc32", crc32_base64(b"jello"), "x-amz-checksum-crc32", "BadDigest"),
        ("x-amz-checksum-crc32", "junk", "x-amz-checksum-crc32", "InvalidRequest"),
        ("x-amz-checksum-crc32c", "AAAAAA==", "x-amz-checksum-crc32", "MalformedTrailerError"),
        ("x-amz-meta-a", "b", "x-amz-meta-a", "InvalidRequest"),
    ],
)
@pytest.mark.s3(
    op="PutObject", headers=["x-amz-trailer"], errors=["BadDigest", "MalformedTrailerError"]
)
def test_a_checksum_in_a_trailer(
    store: Store, trailer: str, value: str, declared: str, code: str
) -> None:
    store.bucket()
    data = f"5\r\nhello\r\n0\r\n{trailer}:{value}\r\n\r\n".encode()
    answer = store.put(
        "/bucket/k",
        data,
        {"x-amz-decoded-content-length": "5", "x-amz-trailer": declared},
        payload="STREAMING-UNSIGNED-PAYLOAD-TRAILER",
    )
    assert answer.code == code
    assert store.objects() == ([] if code else ["k"])


@pytest.mark.parametrize("size", [16 * 1024, 20_000, 256 * 1024, 300_000, 600_000])
@pytest.mark.parametrize("good", [True, False])
@pytest.mark.s3(op="PutObject", headers=["x-amz-trailer"], errors=["BadDigest"])
def test_a_trailer_behind_several_blocks_is_read_and_checked(
    store: Store, size: int, good: bool
) -> None:
    """A reader that stopped at the decoded length would take the object unchecked."""
    store.bucket()
    body = bytes(range(256)) * (size // 256 + 1)
    body = body[:size]
    value = crc32_base64(body if good else b"other")
    chunks = [body[at : at + 65536] for at in range(0, size, 65536)]
    data = b"".join(b"%x\r\n%b\r\n" % (len(chunk), chunk) for chunk in chunks)
    data += f"0\r\nx-amz-checksum-crc32:{value}\r\n\r\n".encode()
    answer = store.put(
        "/bucket/k",
        data,
        {"x-amz-decoded-content-length": str(size), "x-amz-trailer": "x-amz-checksum-crc32"},
        payload="STREAMING-UNSIGNED-PAYLOAD-TRAILER",
    )
    assert answer.code == ("" if good else "BadDigest")
    assert store.objects() == (["k"] if good else [])


@pytest.mark.parametrize("size", [0, 1, 16 * 1024, FRAME - 1, FRAME, FRAME + 1, 3 * FRAME])
@pytest.mark.parametrize("chunk", [7 * 1024, FRAME])
@pytest.mark.s3(op="PutObject", headers=["x-amz-trailer"], errors=["BadDigest"])
def test_a_trailer_is_checked_whatever_the_size(store: Store, size: int, chunk: int) -> None:
    """Also where the body ends with a frame, and nothing asks for more of it."""
    store.bucket()
    body = (bytes(range(256)) * (size // 256 + 1))[:size]
    chunks = b"".join(
        f"{len(body[at : at + chunk]):x}\r\n".encode() + body[at : at + chunk] + b"\r\n"
        for at in range(0, size, chunk)
    )
    good = f"x-amz-checksum-crc32:{crc32_base64(body)}\r\n".encode()
    for ending, code in (
        (b"0\r\nx-amz-checksum-crc32:AAAAAQ==\r\n\r\n", "BadDigest"),
        (b"0\r\n\r\n", "MalformedTrailerError"),
        (b"0\r\n" + good + good + b"\r\n", "MalformedTrailerError"),
        (b"", "IncompleteBody"),
        (b"0\r\n", "IncompleteBody"),
        (b"0\r\n" + good, "IncompleteBody"),
        (b"0\r\n" + good + b"\r\nmore", "InvalidRequest"),
        (b"0\r\n" + good + b"\r\n", ""),
    ):
        answer = store.put(
            "/bucket/k",
            chunks + ending,
            {
                "x-amz-decoded-content-length": str(size),
                "x-amz-trailer": "x-amz-checksum-crc32",
            },
            payload="STREAMING-UNSIGNED-PAYLOAD-TRAILER",
        )
        assert answer.code == code, (ending, answer)
        assert store.objects() == ([] if code else ["k"])
        assert len(store.node.streams) == (0 if code or not size else 1)
    assert store.get("/bucket/k").body == body


@pytest.mark.s3(op=["DeleteObjects", "PutBucketVersioning"], errors=["InvalidRequest"])
def test_a_streaming_body_is_only_for_put_object_and_upload_part(store: Store) -> None:
    store.bucket()
    for method, target in (
        ("POST", "/bucket?delete"),
        ("PUT", "/bucket?versioning"),
        ("PUT", "/b-new"),
        ("GET", "/bucket/k"),
        ("POST", "/bucket/k?uploads"),
    ):
        answer = store.call(
            method,
            target,
            b"0\r\n\r\n",
            {"x-amz-decoded-content-length": "0"},
            payload="STREAMING-UNSIGNED-PAYLOAD-TRAILER",
        )
        assert answer.code in ("InvalidRequest", "NotImplemented"), (method, target, answer)


# --- deletes


@pytest.mark.s3(op="DeleteObject", errors=["NoSuchKey"])
def test_delete(store: Store) -> None:
    store.bucket()
    store.put("/bucket/k", b"x")
    answer = store.delete("/bucket/k")
    assert (answer.status, answer.body) == (204, b"")
    assert "x-amz-delete-marker" not in answer.headers
    assert store.get("/bucket/k").code == "NoSuchKey"
    assert store.delete("/bucket/k").status == 204
    assert store.node.streams == {}


@pytest.mark.s3(
    op="DeleteObject",
    headers=[
        "if-match",
        "if-none-match",
        "x-amz-if-match-last-modified-time",
        "x-amz-if-match-size",
    ],
    errors=["PreconditionFailed", "NoSuchKey", "InvalidArgument"],
)
def test_conditional_delete(store: Store) -> None:
    store.bucket()
    etag = store.put("/bucket/k", b"12345").headers["etag"]
    modified = store.head("/bucket/k").headers["last-modified"]
    for headers, code in (
        ({"if-match": '"other"'}, "PreconditionFailed"),
        ({"x-amz-if-match-size": "4"}, "PreconditionFailed"),
        (
            {"x-amz-if-match-last-modified-time": "Thu, 01 Jan 1970 00:00:00 GMT"},
            "PreconditionFailed",
        ),
        ({"if-match": f'"{"a" * 9000}"'}, "PreconditionFailed"),
        (
            {"x-amz-if-match-last-modified-time": "Fri, 31 Dec 9999 00:00:00 GMT"},
            "PreconditionFailed",
        ),
        (
            {"x-amz-if-match-last-modified-time": "Sun, 01 Jan 1950 00:00:00 GMT"},
            "PreconditionFailed",
        ),
        ({"x-amz-if-match-size": "four"}, "InvalidArgument"),
        ({"x-amz-if-match-last-modified-time": "yesterday"}, "InvalidArgument"),
        ({"if-none-match": "*"}, "PreconditionFailed"),
        ({"if-none-match": "*", "x-amz-if-match-size": "5"}, "PreconditionFailed"),
        ({"if-none-match": '"other"'}, "NotImplemented"),
        ({"if-none-match": "*", "if-match": etag}, "NotImplemented"),
        ({"if-unmodified-since": "Thu, 01 Jan 1970 00:00:00 GMT"}, "NotImplemented"),
        ({"if-modified-since": modified}, "NotImplemented"),
    ):
        assert store.delete("/bucket/k", headers).code == code, headers
    assert store.objects() == ["k"]
    all_true = {
        "if-match": etag,
        "x-amz-if-match-size": "5",
        "x-amz-if-match-last-modified-time": modified,
    }
    assert store.delete("/bucket/k", all_true).status == 204
    missing = store.delete("/bucket/k", {"if-match": etag})
    assert (missing.status, missing.code) == (404, "NoSuchKey")
    assert store.delete("/bucket/k", {"if-none-match": "*"}).status == 204


# --- versions


@pytest.mark.s3(
    op=["PutObject", "GetObject", "HeadObject", "DeleteObject"],
    headers=["?versionId", "x-amz-version-id", "x-amz-delete-marker"],
    errors=["NoSuchVersion", "InvalidArgument", "MethodNotAllowed", "NoSuchKey"],
)
def test_versions(store: Store) -> None:
    store.bucket()
    null = store.put("/bucket/k", b"null")
    assert "x-amz-version-id" not in null.headers
    store.versioning("bucket", "Enabled")
    assert store.get("/bucket/k").headers["x-amz-version-id"] == "null"
    first = store.put("/bucket/k", b"first").headers["x-amz-version-id"]
    second = store.put("/bucket/k", b"second").headers["x-amz-version-id"]
    assert len({"null", first, second}) == 3
    assert store.get("/bucket/k").body == b"second"
    for version, body in (("null", b"null"), (first, b"first"), (second, b"second")):
        answer = store.get(f"/bucket/k?versionId={version}")
        assert (answer.body, answer.headers["x-amz-version-id"]) == (body, version)

    marker = store.delete("/bucket/k")
    assert marker.status == 204 and marker.headers["x-amz-delete-marker"] == "true"
    marker_id = marker.headers["x-amz-version-id"]
    gone = store.get("/bucket/k")
    assert (gone.status, gone.code) == (404, "NoSuchKey")
    assert gone.headers["x-amz-delete-marker"] == "true"
    assert gone.headers["x-amz-version-id"] == marker_id
    assert store.head("/bucket/k").headers["x-amz-delete-marker"] == "true"
    named = store.get(f"/bucket/k?versionId={marker_id}")
    assert (named.status, named.code) == (405, "MethodNotAllowed")
    assert named.headers["allow"] == "DELETE"
    assert named.headers["x-amz-delete-marker"] == "true"
    assert store.head(f"/bucket/k?versionId={marker_id}").status == 405
    assert store.get(f"/bucket/k?versionId={first}").body == b"first"

    removed = store.delete(f"/bucket/k?versionId={marker_id}")
    assert removed.headers["x-amz-delete-marker"] == "true"
    assert removed.headers["x-amz-version-id"] == marker_id
    assert store.get("/bucket/k").body == b"second"
    assert store.delete(f"/bucket/k?versionId={second}").headers["x-amz-version-id"] == second
    assert store.get("/bucket/k").body == b"first"
    absent = store.get(f"/bucket/k?versionId={second}")
    assert (absent.status, absent.code) == (404, "NoSuchVersion")
    assert store.delete(f"/bucket/k?versionId={second}").status == 204
    for malformed in ("", "x", "0" * 20, first[:-1], first + "0"):
        bad = store.get(f"/bucket/k?versionId={malformed}")
        assert (bad.status, bad.code) == (400, "InvalidArgument"), malformed


@pytest.mark.s3(op=["PutObject", "DeleteObject", "PutBucketVersioning"])
def test_suspended_replaces_only_the_null_version(store: Store) -> None:
    store.bucket(versioning="Enabled")
    kept = store.put("/bucket/k", b"kept").headers["x-amz-version-id"]
    store.versioning("bucket", "Suspended")
    assert store.put("/bucket/k", b"null 1").headers["x-amz-version-id"] == "null"
    assert store.put("/bucket/k", b"null 2").headers["x-amz-version-id"] == "null"
    assert store.get("/bucket/k?versionId=null").body == b"null 2"
    assert store.get(f"/bucket/k?versionId={kept}").body == b"kept"
    marker = store.delete("/bucket/k")
    assert marker.headers["x-amz-version-id"] == "null"
    assert marker.headers["x-amz-delete-marker"] == "true"
    assert store.get(f"/bucket/k?versionId={kept}").body == b"kept"
    versions = store.get("/bucket?versions")
    assert versions.texts("Version/VersionId") == [kept]
    assert versions.texts("DeleteMarker/VersionId") == ["null"]
    assert len(store.node.streams) == 1


# --- a missing x-amz-content-sha256


@pytest.mark.s3(op="PutObject", errors=["SignatureDoesNotMatch"])
def test_without_content_sha256_the_bodys_own_hash_is_signed(store: Store) -> None:
    """As curl 7.88 sends it."""
    store.bucket()
    for target, body, signed_body, code in (
        ("/bucket/k", b"hello", b"hello", ""),
        ("/bucket/bad", b"hullo", b"hello", "SignatureDoesNotMatch"),
        ("/bucket/big", b"x" * 2 * FRAME, b"x" * 2 * FRAME, ""),
        ("/bucket/bad2", b"x" * 2 * FRAME, b"y" * 2 * FRAME, "SignatureDoesNotMatch"),
    ):
        answer = store.send(
            "PUT",
            target.encode(),
            b"",
            _without_hash(store, "PUT", target, signed_body),
            BytesBody(body),
        )
        assert answer.code == code, answer
    assert store.objects() == ["big", "k"]
    # A body where none belongs is judged too.
    headers = _without_hash(store, "GET", "/bucket/k", b"signed body")
    assert store.send("GET", b"/bucket/k", b"", headers, BytesBody(b"signed body")).body == b"hello"
    other = store.send("GET", b"/bucket/k", b"", headers, BytesBody(b"forged body"))
    assert other.code == "SignatureDoesNotMatch"


def _without_hash(store: Store, method: str, target: str, body: bytes) -> dict[str, str]:
    """Headers of a request whose signature covers its body's hash, without naming it."""
    import hmac
    import time

    from tests.s3.support import KEY_ID, SECRET

    stamp = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime(store.clock.ns // 10**9))
    scope = f"{stamp[:8]}/us-east-1/s3/aws4_request"
    canonical = (
        f"{method}\n{target}\n\nhost:h\nx-amz-date:{stamp}\n\nhost;x-amz-date\n{sha256_hex(body)}"
    )
    key = ("AWS4" + SECRET).encode()
    for part in scope.split("/"):
        key = hmac.new(key, part.encode(), "sha256").digest()
    to_sign = f"AWS4-HMAC-SHA256\n{stamp}\n{scope}\n{sha256_hex(canonical.encode())}"
    signature = hmac.new(key, to_sign.encode(), "sha256").hexdigest()
    return {
        "host": "h",
        "x-amz-date": stamp,
        "authorization": f"AWS4-HMAC-SHA256 Credential={KEY_ID}/{scope}, "
        f"SignedHeaders=host;x-amz-date, Signature={signature}",
    }


def test_times_are_those_of_the_write(store: Store) -> None:
    store.bucket()
    store.put("/bucket/k", b"x")
    assert store.clock.ns // 10**9 >= NOW_S
    assert store.head("/bucket/k").headers["last-modified"].endswith(" GMT")
