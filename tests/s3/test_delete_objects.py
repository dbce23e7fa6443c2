"""DeleteObjects: up to 1,000 keys, errors per key, versions, conditions, quiet."""

from __future__ import annotations

import base64
import zlib

import pytest

from tests.s3.harness import Answer, Store, md5_base64


def delete(store: Store, *entries: str, quiet: bool = False, **headers: str) -> Answer:
    inner = "".join(f"<Object>{entry}</Object>" for entry in entries)
    text = f"<Delete>{'<Quiet>true</Quiet>' if quiet else ''}{inner}</Delete>"
    body = text.encode()
    sent = headers if headers else {"content-md5": md5_base64(body)}
    return store.post("/bucket?delete", body, sent)


def key(name: str, version: str = "") -> str:
    return f"<Key>{name}</Key>" + (f"<VersionId>{version}</VersionId>" if version else "")


@pytest.mark.s3(op="DeleteObjects", headers=["?delete", "content-md5", "x-amz-checksum-crc32"])
def test_keys_that_are_and_are_not_there(store: Store) -> None:
    store.bucket()
    for name in ("a", "b", "a b&c", "keep"):
        store.put(f"/bucket/{name.replace(' ', '%20').replace('&', '%26')}", b"x")
    answer = delete(store, key("a"), key("missing"), key("a b&amp;c"), key("a"))
    assert answer.texts("Deleted/Key") == ["a", "missing", "a b&c", "a"]
    assert answer.texts("Error/Key") == []
    assert store.objects() == ["b", "keep"]
    quiet = delete(store, key("b"), quiet=True)
    assert (quiet.status, len(quiet.xml)) == (200, 0)
    assert store.objects() == ["keep"]
    body = b"<Delete><Object><Key>keep</Key></Object></Delete>"
    crc = base64.b64encode(zlib.crc32(body).to_bytes(4, "big")).decode()
    assert store.post("/bucket?delete", body, {"x-amz-checksum-crc32": crc}).status == 200
    assert store.objects() == []


@pytest.mark.s3(op="DeleteObjects", errors=["InvalidRequest", "BadDigest"])
def test_a_digest_is_needed_and_checked(store: Store) -> None:
    store.bucket()
    store.put("/bucket/a", b"x")
    body = b"<Delete><Object><Key>a</Key></Object></Delete>"
    assert store.post("/bucket?delete", body).code == "InvalidRequest"
    wrong = {"content-md5": md5_base64(b"other")}
    assert store.post("/bucket?delete", body, wrong).code == "BadDigest"
    assert store.objects() == ["a"]


@pytest.mark.s3(op="DeleteObjects", errors=["MalformedXML"])
def test_one_to_a_thousand_keys(store: Store) -> None:
    store.bucket()
    assert delete(store, *[key(f"k{n}") for n in range(1000)]).status == 200
    assert delete(store, *[key(f"k{n}") for n in range(1001)]).code == "MalformedXML"
    assert delete(store).code == "MalformedXML"
    assert delete(store, "<VersionId>null</VersionId>").code == "MalformedXML"
    # In steps, so that none is too long.
    from o3storage.catalog import MAX_DELETES_PER_COMMAND, DeleteObjects

    sizes = [len(c.items) for c in store.node.submitted if isinstance(c, DeleteObjects)]
    assert sum(sizes) == 1000 and max(sizes) <= MAX_DELETES_PER_COMMAND


@pytest.mark.s3(
    op="DeleteObjects",
    errors=["KeyTooLongError", "UserKeyMustBeSpecified", "NoSuchVersion", "PreconditionFailed"],
)
def test_errors_are_told_per_key(store: Store) -> None:
    store.bucket()
    etag = store.put("/bucket/a", b"x").headers["etag"].strip('"')
    store.put("/bucket/b", b"x")
    answer = delete(
        store,
        key("k" * 1025),
        key(""),
        key("a", "malformed"),
        key("b") + "<ETag>other</ETag>",
        key("b") + "<Size>7</Size>",
        key("b") + "<LastModifiedTime>1970-01-01T00:00:00Z</LastModifiedTime>",
        key("b") + "<Size>many</Size>",
        key("a") + f"<ETag>{etag}</ETag><Size>1</Size>",
        key("missing") + "<ETag>x</ETag>",
        key("b") + f"<ETag>{chr(0x1F600) * 3000}</ETag>",
        key("b") + "<LastModifiedTime>9999-12-31T00:00:00Z</LastModifiedTime>",
    )
    assert answer.texts("Error/Code") == [
        *("KeyTooLongError", "UserKeyMustBeSpecified", "NoSuchVersion", "PreconditionFailed"),
        *("PreconditionFailed", "PreconditionFailed", "InvalidArgument", "NoSuchKey"),
        *("PreconditionFailed", "PreconditionFailed"),
    ]
    assert answer.texts("Error/VersionId") == ["malformed"]
    assert answer.texts("Deleted/Key") == ["a"]
    assert store.objects() == ["b"]


@pytest.mark.s3(op="DeleteObjects")
def test_versions_and_markers(store: Store) -> None:
    store.bucket(versioning="Enabled")
    first = store.put("/bucket/a", b"1").headers["x-amz-version-id"]
    second = store.put("/bucket/a", b"2").headers["x-amz-version-id"]
    marked = delete(store, key("a"))
    assert marked.texts("Deleted/DeleteMarker") == ["true"]
    marker = marked.text("Deleted/DeleteMarkerVersionId") or ""
    assert store.get("/bucket/a").headers["x-amz-version-id"] == marker
    answer = delete(store, key("a", first), key("a", marker))
    assert answer.texts("Deleted/VersionId") == [first, marker]
    assert answer.texts("Deleted/DeleteMarkerVersionId") == [marker]
    assert store.get("/bucket/a").body == b"2"
    assert store.get("/bucket?versions").texts("Version/VersionId") == [second]
