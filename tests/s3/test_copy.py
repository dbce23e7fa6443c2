"""CopyObject and UploadPartCopy: directives, conditions, versions, ranges, access."""

from __future__ import annotations

import hashlib

import pytest

from o3storage.s3._copy import parse_source
from o3storage.s3._errors import S3Error
from tests.s3.harness import OTHER_OWNER, Store
from tests.s3.support import OWNER

FRAME = 256 * 1024


@pytest.fixture
def source(store: Store) -> Store:
    """/bucket/src with headers, metadata and tags."""
    store.bucket()
    headers = {
        "content-type": "text/x",
        "x-amz-meta-a": "1",
        "x-amz-tagging": "t=1",
        "cache-control": "no-cache",
    }
    assert store.put("/bucket/src", b"body", headers).status == 200
    return store


def copy(store: Store, target: str, source: str = "/bucket/src", **headers: str) -> object:
    sent = {name.replace("_", "-"): value for name, value in headers.items()}
    return store.put(target, b"", {"x-amz-copy-source": source, **sent})


@pytest.mark.s3(op="CopyObject", headers=["x-amz-copy-source", "x-amz-tagging-count"])
def test_copy_keeps_headers_metadata_and_tags(source: Store) -> None:
    answer = copy(source, "/bucket/dst", x_amz_meta_b="ignored with COPY", content_type="ignored")
    assert answer.status == 200
    assert answer.text("ETag") == f'"{hashlib.md5(b"body").hexdigest()}"'
    assert (answer.text("LastModified") or "").endswith("Z")
    assert answer.text("ChecksumCRC64NVME")
    got = source.get("/bucket/dst")
    assert got.body == b"body"
    assert got.headers["content-type"] == "text/x"
    assert got.headers["cache-control"] == "no-cache"
    assert got.headers["x-amz-meta-a"] == "1"
    assert got.headers["x-amz-tagging-count"] == "1"
    assert "x-amz-meta-b" not in got.headers
    # New frames: the copy outlives its source.
    source.delete("/bucket/src")
    assert source.get("/bucket/dst").body == b"body"


@pytest.mark.s3(
    op="CopyObject",
    headers=["x-amz-metadata-directive", "x-amz-tagging-directive", "x-amz-tagging"],
    errors=["InvalidArgument"],
)
def test_directives(source: Store) -> None:
    copy(
        source,
        "/bucket/dst",
        x_amz_metadata_directive="REPLACE",
        x_amz_meta_b="2",
        x_amz_tagging_directive="REPLACE",
        x_amz_tagging="u=1&v=2",
    )
    shown = source.head("/bucket/dst").headers
    assert shown["content-type"] == "binary/octet-stream"
    assert (shown["x-amz-meta-b"], shown["x-amz-tagging-count"]) == ("2", "2")
    assert "x-amz-meta-a" not in shown and "cache-control" not in shown
    copy(source, "/bucket/bare", x_amz_tagging_directive="REPLACE")
    assert "x-amz-tagging-count" not in source.head("/bucket/bare").headers
    for headers in (
        {"x_amz_metadata_directive": "MERGE"},
        {"x_amz_tagging_directive": "replace"},
        {"x_amz_tagging": "a=b"},
    ):
        assert copy(source, "/bucket/bad", **headers).code == "InvalidArgument", headers
    assert source.objects() == ["bare", "dst", "src"]


@pytest.mark.s3(op="CopyObject", errors=["InvalidRequest"])
def test_a_copy_onto_itself_needs_a_change(source: Store) -> None:
    assert copy(source, "/bucket/src").code == "InvalidRequest"
    changed = copy(source, "/bucket/src", x_amz_metadata_directive="REPLACE", x_amz_meta_new="yes")
    assert changed.status == 200
    assert source.head("/bucket/src").headers["x-amz-meta-new"] == "yes"
    assert source.get("/bucket/src").body == b"body"
    assert len(source.node.streams) == 1


@pytest.mark.s3(
    op="CopyObject",
    headers=[
        "x-amz-copy-source-if-match",
        "x-amz-copy-source-if-none-match",
        "x-amz-copy-source-if-modified-since",
        "x-amz-copy-source-if-unmodified-since",
    ],
    errors=["PreconditionFailed"],
)
def test_conditions_on_the_source(source: Store) -> None:
    etag = source.head("/bucket/src").headers["etag"]
    past, future = "Thu, 01 Jan 1970 00:00:00 GMT", "Fri, 01 Jan 2100 00:00:00 GMT"
    for headers, status in (
        ({"x_amz_copy_source_if_match": etag}, 200),
        ({"x_amz_copy_source_if_match": '"o"'}, 412),
        ({"x_amz_copy_source_if_none_match": etag}, 412),
        ({"x_amz_copy_source_if_none_match": '"o"'}, 200),
        ({"x_amz_copy_source_if_modified_since": past}, 200),
        ({"x_amz_copy_source_if_modified_since": future}, 412),
        ({"x_amz_copy_source_if_unmodified_since": past}, 412),
        ({"x_amz_copy_source_if_unmodified_since": future}, 200),
        (
            {
                "x_amz_copy_source_if_match": etag,
                "x_amz_copy_source_if_unmodified_since": past,
            },
            200,
        ),
        (
            {
                "x_amz_copy_source_if_none_match": etag,
                "x_amz_copy_source_if_modified_since": past,
            },
            412,
        ),
    ):
        assert copy(source, "/bucket/dst", **headers).status == status, headers


@pytest.mark.s3(
    op="CopyObject", headers=["if-match", "if-none-match"], errors=["PreconditionFailed"]
)
def test_conditions_on_the_destination(source: Store) -> None:
    assert copy(source, "/bucket/dst", if_none_match="*").status == 200
    assert copy(source, "/bucket/dst", if_none_match="*").code == "PreconditionFailed"
    etag = source.head("/bucket/dst").headers["etag"]
    assert copy(source, "/bucket/dst", if_match=etag).status == 200
    assert copy(source, "/bucket/dst", if_match='"o"').code == "PreconditionFailed"
    assert copy(source, "/bucket/none", if_match=etag).code == "NoSuchKey"


@pytest.mark.s3(
    op="CopyObject",
    headers=["?versionId", "x-amz-copy-source-version-id", "x-amz-version-id"],
    errors=["NoSuchKey", "NoSuchVersion", "InvalidRequest", "InvalidArgument"],
)
def test_versions_as_source(store: Store) -> None:
    store.bucket(versioning="Enabled")
    old = store.put("/bucket/src", b"old").headers["x-amz-version-id"]
    new = store.put("/bucket/src", b"new").headers["x-amz-version-id"]
    answer = copy(store, "/bucket/dst", f"/bucket/src?versionId={old}")
    assert answer.headers["x-amz-copy-source-version-id"] == old
    assert answer.headers["x-amz-version-id"] not in (old, new)
    assert store.get("/bucket/dst").body == b"old"
    # Restoring an old version is a copy onto itself.
    assert copy(store, "/bucket/src", f"/bucket/src?versionId={old}").status == 200
    assert store.get("/bucket/src").body == b"old"
    marker = store.delete("/bucket/src").headers["x-amz-version-id"]
    assert copy(store, "/bucket/dst", "/bucket/src").code == "NoSuchKey"
    named = copy(store, "/bucket/dst", f"/bucket/src?versionId={marker}")
    assert named.code == "InvalidRequest"
    assert copy(store, "/bucket/dst", "/bucket/src?versionId=null").code == "NoSuchVersion"
    assert copy(store, "/bucket/dst", "/bucket/src?versionId=x").code == "InvalidArgument"


@pytest.mark.s3(
    op=["CopyObject", "UploadPartCopy"], errors=["NoSuchKey", "NoSuchVersion", "NoSuchBucket"]
)
def test_a_source_that_is_missing_is_named(store: Store) -> None:
    """The answer named the destination, which was there."""
    store.bucket()
    upload = store.upload("/bucket/dst")
    for target in ("/bucket/dst", f"/bucket/dst?partNumber=1&uploadId={upload}"):
        assert copy(store, target, "/bucket/a%2Fb").text("Key") == "a/b"
        assert copy(store, target, "/bucket/a?versionId=null").text("Key") == "a"
        assert copy(store, target, "/no-such/k").text("BucketName") == "no-such"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("/bucket/key", ("bucket", b"key", None)),
        ("bucket/key", ("bucket", b"key", None)),
        ("bucket/a/b%20c+d", ("bucket", b"a/b c+d", None)),
        ("bucket/%C3%A9", ("bucket", "é".encode(), None)),
        ("bucket%2Fkey", ("bucket", b"key", None)),
        ("bucket//key", ("bucket", b"/key", None)),
        ("bucket/a?b", ("bucket", b"a?b", None)),
        ("bucket/a?versionId=null", ("bucket", b"a", -1)),
        ("bucket", "InvalidArgument"),
        ("bucket/", "InvalidArgument"),
        ("/", "InvalidArgument"),
        ("bucket/a?versionId=", "InvalidArgument"),
        ("BUCKET/a", "InvalidBucketName"),
        ("bucket/a%00", "InvalidURI"),
        ("arn:aws:s3:us-east-1:1:accesspoint/x/object/k", "NotImplemented"),
    ],
)
@pytest.mark.s3(op="CopyObject", headers=["x-amz-copy-source"], errors=["InvalidArgument"])
def test_forms_of_the_source(text: str, expected: object) -> None:
    try:
        assert parse_source(text) == expected
    except S3Error as error:
        assert error.code == expected


@pytest.mark.s3(
    op=["CopyObject", "UploadPartCopy"],
    headers=["x-amz-source-expected-bucket-owner", "x-amz-expected-bucket-owner"],
    errors=["AccessDenied", "NoSuchBucket"],
)
def test_access_to_the_source(source: Store) -> None:
    assert source.put("/theirs", other=True).status == 200
    assert source.put("/theirs/secret", b"secret", other=True).status == 200
    assert copy(source, "/bucket/dst", "/theirs/secret").code == "AccessDenied"
    upload = source.upload("/bucket/dst")
    part = f"/bucket/dst?partNumber=1&uploadId={upload}"
    assert copy(source, part, "/theirs/secret").code == "AccessDenied"
    assert copy(source, "/bucket/dst", "/no-such/k").code == "NoSuchBucket"
    wrong = copy(source, "/bucket/dst", x_amz_source_expected_bucket_owner=OTHER_OWNER)
    assert wrong.code == "AccessDenied"
    right = copy(source, "/bucket/dst", x_amz_source_expected_bucket_owner=OWNER)
    assert right.status == 200


@pytest.mark.s3(op="CopyObject", headers=["x-amz-checksum-algorithm"], errors=["InvalidRequest"])
def test_checksum_of_a_copy(source: Store) -> None:
    answer = copy(source, "/bucket/dst", x_amz_checksum_algorithm="SHA256")
    import base64

    value = base64.b64encode(hashlib.sha256(b"body").digest()).decode()
    assert answer.text("ChecksumSHA256") == value
    again = copy(source, "/bucket/again", "/bucket/dst")
    assert again.text("ChecksumSHA256") == value
    assert copy(source, "/bucket/dst", x_amz_checksum_algorithm="MD5").code == "InvalidRequest"


@pytest.mark.s3(op="CopyObject", headers=["x-amz-server-side-encryption"])
def test_encryption_of_a_copy_is_echoed(source: Store) -> None:
    answer = copy(source, "/bucket/dst", x_amz_server_side_encryption="AES256")
    assert answer.headers["x-amz-server-side-encryption"] == "AES256"
    assert source.head("/bucket/dst").headers["x-amz-server-side-encryption"] == "AES256"


@pytest.mark.parametrize("size", [0, 1, FRAME, 2 * FRAME + 3])
@pytest.mark.s3(op="CopyObject")
def test_bodies_of_all_sizes(store: Store, size: int) -> None:
    store.bucket()
    body = bytes(range(256)) * (size // 256 + 1)
    store.put("/bucket/src", body[:size])
    assert copy(store, "/bucket/dst").status == 200
    got = store.get("/bucket/dst")
    assert got.body == body[:size]
    assert got.headers["etag"] == f'"{hashlib.md5(body[:size]).hexdigest()}"'
    assert store.service.pool.lent_bytes == 0


@pytest.mark.s3(op="CopyObject", errors=["InvalidRequest"])
def test_a_copy_is_at_most_5_gib(source: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("o3storage.s3._copy.MAX_PUT_BYTES", 3)
    assert copy(source, "/bucket/dst").code == "InvalidRequest"


# --- parts


@pytest.mark.s3(
    op="UploadPartCopy",
    headers=["x-amz-copy-source", "x-amz-copy-source-range"],
    errors=["InvalidArgument", "NoSuchUpload", "PreconditionFailed"],
)
def test_upload_part_copy(source: Store) -> None:
    source.put("/bucket/src", b"0123456789")
    upload = source.upload("/bucket/dst")
    target = f"/bucket/dst?partNumber=1&uploadId={upload}"
    for text in ("bytes=0-10", "bytes=5-4", "bytes=3-", "bytes=-3", "0-1", "bytes=10-10"):
        bad = copy(source, target, x_amz_copy_source_range=text)
        assert bad.code == "InvalidArgument", text
    part = copy(source, target, x_amz_copy_source_range="bytes=2-5")
    assert part.status == 200
    assert part.text("ETag") == f'"{hashlib.md5(b"2345").hexdigest()}"'
    done = source.complete("/bucket/dst", upload, [(1, part.text("ETag") or "")])
    assert done.status == 200
    assert source.get("/bucket/dst").body == b"2345"
    assert copy(source, target).code == "NoSuchUpload"
    upload = source.upload("/bucket/dst")
    target = f"/bucket/dst?partNumber=1&uploadId={upload}"
    refused = copy(source, target, x_amz_copy_source_if_match='"other"')
    assert refused.code == "PreconditionFailed"
    whole = copy(source, target)
    assert whole.text("ETag") == f'"{hashlib.md5(b"0123456789").hexdigest()}"'
    # A range of a multipart source, across its parts.
    source.complete("/bucket/dst", upload, [(1, whole.text("ETag") or "")])
    upload = source.upload("/bucket/third")
    target = f"/bucket/third?partNumber=7&uploadId={upload}"
    ranged = copy(source, target, "/bucket/dst", x_amz_copy_source_range="bytes=8-9")
    source.complete("/bucket/third", upload, [(7, ranged.text("ETag") or "")])
    assert source.get("/bucket/third").body == b"89"


@pytest.mark.s3(op="UploadPartCopy", errors=["InvalidRequest"])
def test_a_copied_part_is_at_most_5_gib(source: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("o3storage.s3._multipart.MAX_PUT_BYTES", 3)
    upload = source.upload("/bucket/dst")
    assert copy(source, f"/bucket/dst?partNumber=1&uploadId={upload}").code == "InvalidRequest"
