"""Headers of objects: content headers, user metadata, response overrides."""

from __future__ import annotations

import base64

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from o3storage.s3._headers import decode_metadata, encode_metadata
from tests.s3.harness import Store

# --- headers and metadata


@pytest.mark.s3(
    op=["PutObject", "GetObject", "HeadObject"],
    headers=[
        "content-type",
        "content-encoding",
        "cache-control",
        "content-disposition",
        "content-language",
        "expires",
        "x-content-type-options",
    ],
)
def test_content_headers_are_kept(store: Store) -> None:
    store.bucket()
    headers = {
        "content-type": "text/plain; charset=utf-8",
        "content-encoding": "gzip",
        "cache-control": "max-age=60",
        "content-disposition": 'attachment; filename="a b.txt"',
        "content-language": "de",
        "expires": "Wed, 21 Oct 2026 07:28:00 GMT",
    }
    store.put("/bucket/k", b"x", headers)
    for answer in (store.get("/bucket/k"), store.head("/bucket/k")):
        assert headers.items() <= answer.headers.items()
        assert answer.headers["x-content-type-options"] == "nosniff"
    store.put("/bucket/plain", b"x")
    assert store.get("/bucket/plain").headers["content-type"] == "binary/octet-stream"


@pytest.mark.s3(
    op=["PutObject", "GetObject"], headers=["content-disposition"], errors=["MetadataTooLarge"]
)
def test_content_headers_are_limited_together(store: Store) -> None:
    store.bucket()
    largest = "\xe9" * ((8000 - len("text/plain")) // 2)  # two bytes each
    headers = {"content-type": "text/plain", "content-disposition": largest}
    assert store.put("/bucket/k", b"x", headers).status == 200
    shown = store.get("/bucket/k").headers["content-disposition"]
    assert shown.encode("latin-1").decode() == largest
    over = store.put("/bucket/k", b"x", {**headers, "expires": "0"})
    assert (over.status, over.code) == (400, "MetadataTooLarge")


@pytest.mark.s3(
    op=["PutObject", "HeadObject"], headers=["x-amz-meta-*"], errors=["MetadataTooLarge"]
)
def test_user_metadata(store: Store) -> None:
    store.bucket()
    store.put("/bucket/k", b"x", {"x-amz-meta-Colour": "blue", "x-amz-meta-name": "Grüße 漢字"})
    shown = store.head("/bucket/k").headers
    assert shown["x-amz-meta-colour"] == "blue"
    word = base64.b64encode("Grüße 漢字".encode()).decode()
    assert shown["x-amz-meta-name"] == f"=?UTF-8?B?{word}?="
    fits = "v" * (2048 - len("name"))
    assert store.put("/bucket/k", b"x", {"x-amz-meta-name": fits}).status == 200
    big = store.put("/bucket/k", b"x", {"x-amz-meta-name": fits + "v"})
    assert (big.status, big.code) == (400, "MetadataTooLarge")


@pytest.mark.parametrize(
    ("raw", "text"),
    [
        ("plain", "plain"),
        ("=?UTF-8?B?w6k=?=", "é"),
        ("=?utf-8?q?=C3=A9_x?=", "é x"),
        ("=?ISO-8859-1?Q?=E9?=", "é"),
        ("a =?UTF-8?B?w6k=?= =?UTF-8?B?w6k=?= b", "a éé b"),
        ("=?UTF-8?B?YWJj?=", "=?UTF-8?B?YWJj?="),
        ("=?UTF-8?B?!!!?=", "=?UTF-8?B?!!!?="),
        ("=?UTF-8?B?DQo=?=", "=?UTF-8?B?DQo=?="),
        ("é".encode().decode("latin-1"), "é"),
        ("\xe9", "\xe9"),
    ],
)
@pytest.mark.s3(op="PutObject", headers=["x-amz-meta-*"])
def test_metadata_as_rfc_2047_and_utf8(raw: str, text: str) -> None:
    assert decode_metadata(raw) == text


@settings(max_examples=200, deadline=None)
@given(st.text(st.characters(blacklist_categories=("Cs", "Cc")), max_size=30))
def test_metadata_that_is_answered_can_be_sent_again(text: str) -> None:
    answered = encode_metadata(text)
    assert answered.isascii()
    if not text.isascii() or "=?" not in text:
        assert decode_metadata(answered) == text


@pytest.mark.s3(
    op="GetObject",
    headers=[
        "?response-content-type",
        "?response-content-encoding",
        "?response-cache-control",
        "?response-content-disposition",
        "?response-content-language",
        "?response-expires",
    ],
    errors=["InvalidArgument"],
)
def test_response_overrides(store: Store) -> None:
    store.bucket()
    store.put("/bucket/k", b"x", {"content-type": "text/plain", "cache-control": "no-cache"})
    answer = store.get(
        "/bucket/k?response-content-type=text%2Fhtml&response-cache-control=max-age%3D1"
        "&response-content-disposition=inline&response-content-language=fr"
        "&response-content-encoding=br&response-expires=never"
    )
    assert answer.headers["content-type"] == "text/html"
    assert answer.headers["cache-control"] == "max-age=1"
    assert answer.headers["content-disposition"] == "inline"
    assert answer.headers["content-language"] == "fr"
    assert answer.headers["content-encoding"] == "br"
    assert answer.headers["expires"] == "never"
    assert [name for name, _ in answer.items].count("Content-Type") == 1
    injected = store.get("/bucket/k?response-content-type=a%0D%0ASet-Cookie%3A%20b")
    assert (injected.status, injected.code) == (400, "InvalidArgument")


@pytest.mark.s3(op="PutObject", headers=["x-amz-meta-*"], errors=["InvalidArgument"])
def test_control_characters_in_presigned_metadata_are_refused(store: Store) -> None:
    store.bucket()
    answer = store.put("/bucket/k?x-amz-meta-a=b%0D%0Ac", b"x", presign_s=60)
    assert (answer.status, answer.code) == (400, "InvalidArgument")
    assert store.put("/bucket/k?x-amz-meta-a=plain", b"x", presign_s=60).status == 200
    assert store.head("/bucket/k").headers["x-amz-meta-a"] == "plain"


@pytest.mark.parametrize(
    "name", ["a%0D%0ASet-Cookie%3A%20b", "%E6%97%A5", "a%20b", "a%3A", "%C3%A9", "a%00"]
)
@pytest.mark.s3(op="PutObject", headers=["x-amz-meta-*"], errors=["InvalidArgument"])
def test_names_of_metadata_that_no_header_can_have_are_refused(store: Store, name: str) -> None:
    """A version with such a name could be stored and never be answered."""
    store.bucket()
    answer = store.put(f"/bucket/k?x-amz-meta-{name}=1", b"x", presign_s=60)
    assert (answer.status, answer.code) == (400, "InvalidArgument")
    assert store.objects() == []
    assert store.put("/bucket/k?x-amz-meta-a_b.c~d=1", b"x", presign_s=60).status == 200
    assert store.head("/bucket/k").headers["x-amz-meta-a_b.c~d"] == "1"
