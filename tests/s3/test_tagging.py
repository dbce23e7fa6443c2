"""Tags of objects: by operation, by header, per version."""

from __future__ import annotations

import pytest

from o3storage.s3._errors import S3Error
from o3storage.s3._tagging import parse_tagging
from o3storage.s3._xml import Element
from tests.s3.harness import Store
from tests.s3.test_buckets import tagging


@pytest.mark.s3(
    op=["GetObjectTagging", "PutObjectTagging", "DeleteObjectTagging"],
    headers=["?tagging", "x-amz-tagging-count"],
    errors=["BadRequest", "InvalidTag", "MalformedXML", "NoSuchKey"],
)
def test_object_tags(store: Store) -> None:
    store.bucket()
    assert store.get("/bucket/k?tagging").code == "NoSuchKey"
    assert store.put("/bucket/k?tagging", tagging(("a", "1"))).code == "NoSuchKey"
    store.put("/bucket/k", b"body")
    assert store.get("/bucket/k?tagging").texts("TagSet/Tag/Key") == []
    assert store.put("/bucket/k?tagging", tagging(("a b", "1+2=3"), ("é:/@", ""))).status == 200
    shown = store.get("/bucket/k?tagging")
    assert shown.texts("TagSet/Tag/Key") == ["a b", "é:/@"]
    assert shown.texts("TagSet/Tag/Value") == ["1+2=3", ""]
    assert store.head("/bucket/k").headers["x-amz-tagging-count"] == "2"
    ten = [(f"k{n}", "v") for n in range(10)]
    assert store.put("/bucket/k?tagging", tagging(*ten)).status == 200
    assert store.put("/bucket/k?tagging", tagging(*ten, ("more", "v"))).code == "BadRequest"
    for tags in (
        [("a", "1"), ("a", "2")],
        [("k" * 129, "")],
        [("k", "v" * 257)],
        [("a", "&lt;")],
        [("aws:a", "1")],
    ):
        assert store.put("/bucket/k?tagging", tagging(*tags)).code == "InvalidTag", tags
    assert store.put("/bucket/k?tagging", b"<Tagging/>").code == "MalformedXML"
    assert store.delete("/bucket/k?tagging").status == 204
    assert store.get("/bucket/k?tagging").texts("TagSet/Tag/Key") == []
    assert store.get("/bucket/k").body == b"body"


@pytest.mark.s3(
    op=["PutObject", "CreateMultipartUpload"],
    headers=["x-amz-tagging"],
    errors=["BadRequest", "InvalidTag", "InvalidArgument"],
)
def test_tags_in_a_header(store: Store) -> None:
    store.bucket()
    store.put("/bucket/k", b"x", {"x-amz-tagging": "a=1&b%20c=%C3%A9&d="})
    shown = store.get("/bucket/k?tagging")
    assert shown.texts("TagSet/Tag/Key") == ["a", "b c", "d"]
    assert shown.texts("TagSet/Tag/Value") == ["1", "é", ""]
    # As S3 has it; a name alone was refused.
    store.put("/bucket/k", b"x", {"x-amz-tagging": "a=1&b"})
    shown = store.get("/bucket/k?tagging")
    assert shown.texts("TagSet/Tag/Key") == ["a", "b"]
    assert shown.texts("TagSet/Tag/Value") == ["1", ""]
    many = "&".join(f"k{n}=v" for n in range(11))
    for text, code in (
        (many, "BadRequest"),
        (f"{many}&k0=v", "BadRequest"),
        ("a=1&a=2", "InvalidArgument"),
        ("=1", "InvalidTag"),
        ("a=%FF", "InvalidArgument"),
        ("a=%0a", "InvalidTag"),
    ):
        assert store.put("/bucket/k2", b"x", {"x-amz-tagging": text}).code == code, text
        assert store.post("/bucket/k2?uploads", headers={"x-amz-tagging": text}).code == code
    assert store.objects() == ["k"]


@pytest.mark.s3(
    op=["GetObjectTagging", "PutObjectTagging", "DeleteObjectTagging"],
    headers=["?versionId", "x-amz-version-id"],
    errors=["NoSuchVersion", "MethodNotAllowed", "InvalidArgument"],
)
def test_tags_of_versions(store: Store) -> None:
    store.bucket(versioning="Enabled")
    old = store.put("/bucket/k", b"1", {"x-amz-tagging": "v=old"}).headers["x-amz-version-id"]
    new = store.put("/bucket/k", b"2", {"x-amz-tagging": "v=new"}).headers["x-amz-version-id"]
    assert store.get("/bucket/k?tagging").texts("TagSet/Tag/Value") == ["new"]
    shown = store.get(f"/bucket/k?tagging&versionId={old}")
    assert shown.texts("TagSet/Tag/Value") == ["old"]
    assert shown.headers["x-amz-version-id"] == old
    put = store.put(f"/bucket/k?tagging&versionId={old}", tagging(("v", "older")))
    assert put.headers["x-amz-version-id"] == old
    removed = store.delete("/bucket/k?tagging")
    assert removed.headers["x-amz-version-id"] == new
    assert store.get(f"/bucket/k?tagging&versionId={old}").texts("TagSet/Tag/Value") == ["older"]
    assert store.get("/bucket/k?tagging").texts("TagSet/Tag/Value") == []
    marker = store.delete("/bucket/k").headers["x-amz-version-id"]
    assert store.get("/bucket/k?tagging").code == "NoSuchKey"
    assert store.get(f"/bucket/k?tagging&versionId={marker}").code == "MethodNotAllowed"
    assert store.get("/bucket/k?tagging&versionId=null").code == "NoSuchVersion"
    assert store.get("/bucket/k?tagging&versionId=x").code == "InvalidArgument"


def test_too_many_tags_are_counted_before_they_are_read() -> None:
    """30,000 of them took 50 ms of the event loop."""
    root, tag_set = Element("Tagging"), Element("TagSet")
    root.children = [tag_set]
    for count, code in ((11, "BadRequest"), (10, "MalformedXML")):
        tag_set.children = [Element("Tag")] * count  # without Key and Value
        with pytest.raises(S3Error) as refused:
            parse_tagging(root, 10)
        assert refused.value.code == code
