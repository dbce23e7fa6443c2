"""Listings against plain models: V1, V2, versions, uploads; encoding, markers, tokens, limits."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from types import SimpleNamespace
from typing import Any, TypeVar
from urllib.parse import quote, unquote
from xml.etree import ElementTree

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from o3storage.catalog import ListEntry, get_bucket
from o3storage.s3 import _listing
from o3storage.s3._listing import (
    STEP_ENTRIES,
    STEP_TEXTS,
    _encoded,
    _write_entries,
    list_object_versions,
    list_objects_v1,
    list_objects_v2,
)
from o3storage.s3._times import iso_time
from o3storage.s3._xml import escape_bytes, url_encode
from tests.s3.harness import Store, key_path

T = TypeVar("T")
KEYS = ["a", "a/", "a/1", "a/2", "a/b/1", "b", "b c+d", "c%d", "photos/é.jpg", "z"]


@pytest.fixture(scope="module")
def listed() -> Store:
    """A bucket with KEYS that the tests only read."""
    store = Store()
    store.bucket()
    for key in KEYS:
        assert store.put(f"/bucket/{key_path(key)}", key.encode()).status == 200
    return store


def model(prefix: str, delimiter: str, after: str, limit: int) -> tuple[list[str], list[str], bool]:
    """(keys, common prefixes, truncated) as documented."""
    keys: list[str] = []
    prefixes: list[str] = []
    found: list[tuple[str, bool]] = []
    for key in sorted(KEYS, key=str.encode):
        if not key.startswith(prefix):
            continue
        cut = key.find(delimiter, len(prefix)) if delimiter else -1
        if cut >= 0:
            common = key[: cut + len(delimiter)]
            if common.encode() <= after.encode() or after.startswith(common):
                continue
            if not found or found[-1] != (common, True):
                found.append((common, True))
        elif key.encode() > after.encode():
            found.append((key, False))
    page = found[:limit]
    keys = [name for name, is_prefix in page if not is_prefix]
    prefixes = [name for name, is_prefix in page if is_prefix]
    return keys, prefixes, limit > 0 and len(found) > limit


parameters = {
    "prefix": st.sampled_from(["", "a", "a/", "b", "photos/", "x"]),
    "delimiter": st.sampled_from(["", "/", "/b", "b"]),
    "after": st.sampled_from(["", "a", "a/", "a/1", "a/zzz", "b", "zz"]),
    "limit": st.integers(0, 12),
}


@settings(max_examples=150, deadline=None)
@given(**parameters)
def test_list_objects_v2_against_the_model(
    listed: Store, prefix: str, delimiter: str, after: str, limit: int
) -> None:
    query = (
        f"list-type=2&encoding-type=url&max-keys={limit}&prefix={quote(prefix, safe='')}"
        f"&delimiter={quote(delimiter, safe='')}&start-after={quote(after, safe='')}"
    )
    answer = listed.get(f"/bucket?{query}")
    keys, prefixes, truncated = model(prefix, delimiter, after, limit)
    assert [unquote(k) for k in answer.texts("Contents/Key")] == keys
    assert [unquote(p) for p in answer.texts("CommonPrefixes/Prefix")] == prefixes
    assert answer.text("KeyCount") == str(len(keys) + len(prefixes))
    assert answer.text("IsTruncated") == str(truncated).lower()
    assert (answer.text("NextContinuationToken") is not None) is truncated
    assert answer.text("MaxKeys") == str(limit)


@settings(max_examples=150, deadline=None)
@given(**parameters)
def test_list_objects_v1_against_the_model(
    listed: Store, prefix: str, delimiter: str, after: str, limit: int
) -> None:
    query = (
        f"encoding-type=url&max-keys={limit}&prefix={quote(prefix, safe='')}"
        f"&delimiter={quote(delimiter, safe='')}&marker={quote(after, safe='')}"
    )
    answer = listed.get(f"/bucket?{query}")
    keys, prefixes, truncated = model(prefix, delimiter, after, limit)
    assert [unquote(k) for k in answer.texts("Contents/Key")] == keys
    assert [unquote(p) for p in answer.texts("CommonPrefixes/Prefix")] == prefixes
    assert answer.text("IsTruncated") == str(truncated).lower()
    assert (answer.text("NextMarker") is not None) is (truncated and bool(delimiter))


@pytest.mark.parametrize("delimiter", ["", "/"])
@pytest.mark.parametrize("limit", [1, 2, 3])
@pytest.mark.s3(
    op=["ListObjectsV2", "ListObjects"],
    headers=["?continuation-token", "?max-keys", "?marker", "?list-type"],
)
def test_pages_put_together_are_the_whole(listed: Store, delimiter: str, limit: int) -> None:
    keys, prefixes, _ = model("", delimiter, "", 1000)
    for version in (1, 2):
        got_keys: list[str] = []
        got_prefixes: list[str] = []
        more = ""
        for _ in range(len(KEYS) + 1):
            kind = "list-type=2&" if version == 2 else ""
            answer = listed.get(
                f"/bucket?{kind}max-keys={limit}&delimiter={quote(delimiter, safe='')}{more}"
            )
            got_keys += answer.texts("Contents/Key")
            got_prefixes += answer.texts("CommonPrefixes/Prefix")
            if answer.text("IsTruncated") == "false":
                break
            if version == 2:
                token = answer.text("NextContinuationToken") or ""
                more = f"&continuation-token={quote(token, safe='')}"
            else:
                marker = answer.text("NextMarker") or answer.texts("Contents/Key")[-1]
                more = f"&marker={quote(marker, safe='')}"
        assert (got_keys, got_prefixes) == (keys, prefixes)


@pytest.mark.s3(
    op=["ListObjects", "ListObjectsV2"],
    headers=[
        "?prefix",
        "?delimiter",
        "?encoding-type",
        "?fetch-owner",
        "?start-after",
        "?marker",
        "?max-keys",
    ],
    errors=["InvalidArgument"],
)
def test_what_a_page_shows(listed: Store) -> None:
    v1 = listed.get("/bucket?marker=b&prefix=b")
    assert v1.text("Name") == "bucket"
    assert (v1.text("Prefix"), v1.text("Marker")) == ("b", "b")
    entry = v1.xml.find("Contents")
    assert entry is not None
    assert entry.findtext("Key") == "b c+d"
    assert entry.findtext("Size") == "5"
    assert entry.findtext("StorageClass") == "STANDARD"
    assert entry.findtext("ChecksumAlgorithm") == "CRC64NVME"
    assert entry.findtext("Owner/ID")
    etag = listed.head("/bucket/b%20c%2Bd").headers["etag"]
    assert entry.findtext("ETag") == etag
    assert entry.findtext("LastModified", "").endswith("Z")
    assert listed.get("/bucket?list-type=2").xml.find("Contents/Owner") is None
    assert listed.get("/bucket?list-type=2&fetch-owner=true").xml.find("Contents/Owner") is not None
    coded = listed.get("/bucket?list-type=2&encoding-type=url&prefix=b%20&start-after=a%2B")
    assert coded.text("EncodingType") == "url"
    assert coded.texts("Contents/Key") == ["b%20c%2Bd"]
    assert (coded.text("Prefix"), coded.text("StartAfter")) == ("b%20", "a%2B")
    assert listed.get("/bucket?max-keys=5000").text("MaxKeys") == "1000"
    for query in (
        "max-keys=-1",
        "max-keys=x",
        "max-keys=99999999999",
        "encoding-type=base64",
        "list-type=1",
        "list-type=2&continuation-token=junk",
        "list-type=2&continuation-token=",
    ):
        assert listed.get(f"/bucket?{query}").code == "InvalidArgument", query


@pytest.mark.s3(op=["ListObjects", "ListObjectsV2"], errors=["InvalidURI"])
def test_nul_and_invalid_utf8_in_parameters_are_refused(listed: Store) -> None:
    for query in ("prefix=%00", "prefix=%FF", "delimiter=%00", "marker=a%00b", "prefix=%ED%A0%80"):
        answer = listed.get(f"/bucket?{query}")
        assert answer.status == 400, query


@pytest.mark.s3(op="ListObjects")
def test_control_characters_are_stored_and_listed_as_references(store: Store) -> None:
    store.bucket()
    store.put("/bucket/a%01%1B", b"x")
    body = store.get("/bucket").body
    assert b"<Key>a&#x1;&#x1b;</Key>" in body
    assert store.get("/bucket?encoding-type=url").texts("Contents/Key") == ["a%01%1B"]


@pytest.mark.s3(op=["ListObjects", "ListObjectsV2"])
def test_a_page_that_passed_many_delete_markers_ends_early_with_a_way_on(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("o3storage.catalog._read_lists.MAX_EXAMINED", 20)
    store.bucket(versioning="Enabled")
    for number in range(40):
        store.put(f"/bucket/gone{number:02d}", b"x")
        store.delete(f"/bucket/gone{number:02d}")
    store.put("/bucket/last", b"x")
    for version in (1, 2):
        keys: list[str] = []
        more = ""
        pages = 0
        while True:
            answer = store.get(f"/bucket?{'list-type=2&' if version == 2 else ''}max-keys=5{more}")
            keys += answer.texts("Contents/Key")
            pages += 1
            if answer.text("IsTruncated") == "false":
                break
            if version == 2:
                more = "&continuation-token=" + quote(
                    answer.text("NextContinuationToken") or "", safe=""
                )
            else:
                more = "&marker=" + quote(answer.text("NextMarker") or "", safe="")
        assert keys == ["last"]
        assert pages > 1


# --- versions


@pytest.mark.s3(
    op="ListObjectVersions",
    headers=["?key-marker", "?version-id-marker", "?prefix", "?delimiter", "?max-keys"],
    errors=["InvalidArgument"],
)
def test_list_object_versions(store: Store) -> None:
    store.bucket()
    store.put("/bucket/a", b"null")
    store.versioning("bucket", "Enabled")
    ids = {"a": ["null"], "b": [], "dir/c": []}
    for key in ("a", "b", "dir/c", "a", "b"):
        version = store.put(f"/bucket/{key}", b"x").headers["x-amz-version-id"]
        ids[key].insert(0, version)
    ids["a"].insert(0, store.delete("/bucket/a").headers["x-amz-version-id"])
    want = [(key, version) for key in ("a", "b", "dir/c") for version in ids[key]]

    def entries(answer: object) -> list[tuple[str, str]]:
        return [
            (e.findtext("Key"), e.findtext("VersionId"))
            for e in answer.xml
            if e.tag in ("Version", "DeleteMarker")
        ]

    whole = store.get("/bucket?versions")
    assert entries(whole) == want
    assert whole.texts("DeleteMarker/VersionId") == [ids["a"][0]]
    latest = [e.findtext("VersionId") for e in whole.xml if e.findtext("IsLatest") == "true"]
    assert latest == [ids["a"][0], ids["b"][0], ids["dir/c"][0]]
    for limit in (1, 2, 3):
        got: list[tuple[str, str]] = []
        more = ""
        while True:
            page = store.get(f"/bucket?versions&max-keys={limit}{more}")
            got += entries(page)
            if page.text("IsTruncated") == "false":
                break
            more = f"&key-marker={quote(page.text('NextKeyMarker') or '', safe='')}"
            if marker := page.text("NextVersionIdMarker"):
                more += f"&version-id-marker={marker}"
        assert got == want, limit
    grouped = store.get("/bucket?versions&delimiter=%2F&prefix=")
    assert grouped.texts("CommonPrefixes/Prefix") == ["dir/"]
    assert store.get("/bucket?versions&version-id-marker=null").code == "InvalidArgument"
    assert store.get("/bucket?versions&key-marker=a&version-id-marker=x").code == "InvalidArgument"


# --- uploads


@pytest.mark.s3(
    op="ListMultipartUploads",
    headers=["?key-marker", "?upload-id-marker", "?max-uploads", "?encoding-type", "?prefix"],
    errors=["InvalidArgument"],
)
def test_list_multipart_uploads(store: Store) -> None:
    store.bucket()
    want = []
    for key in ("a b", "b", "b", "dir/c"):
        upload = store.upload(f"/bucket/{key_path(key)}", {"x-amz-checksum-algorithm": "SHA1"})
        want.append((key, upload))
    whole = store.get("/bucket?uploads")
    assert list(zip(whole.texts("Upload/Key"), whole.texts("Upload/UploadId"))) == want
    assert whole.texts("Upload/ChecksumAlgorithm") == ["SHA1"] * 4
    assert whole.text("MaxUploads") == "1000"
    for limit in (1, 2, 3):
        got: list[tuple[str, str]] = []
        more = ""
        while True:
            page = store.get(f"/bucket?uploads&max-uploads={limit}{more}")
            got += list(zip(page.texts("Upload/Key"), page.texts("Upload/UploadId")))
            if page.text("IsTruncated") == "false":
                break
            more = (
                f"&key-marker={quote(page.text('NextKeyMarker') or '', safe='')}"
                f"&upload-id-marker={page.text('NextUploadIdMarker')}"
            )
        assert got == want, limit
    assert store.get("/bucket?uploads&encoding-type=url&prefix=a").texts("Upload/Key") == ["a%20b"]
    assert store.get("/bucket?uploads&delimiter=%2F").texts("CommonPrefixes/Prefix") == ["dir/"]
    bad = store.get("/bucket?uploads&key-marker=a&upload-id-marker=zz")
    assert bad.code == "InvalidArgument"


def by_hand(coroutine: Coroutine[Any, Any, T]) -> tuple[int, T]:
    """How often it waits for others, and what it returns."""

    async def main() -> tuple[int, T]:
        waits = 0
        try:
            while True:
                coroutine.send(None)
                waits += 1
        except StopIteration as end:
            return waits, end.value

    return asyncio.run(main())


@pytest.mark.parametrize("encode", [escape_bytes, url_encode])
def test_keys_that_must_be_encoded_are_written_in_steps(encode: Callable[[bytes], str]) -> None:
    """A page of 1,000 keys of 1,024 bytes would hold the event loop for 50 ms and more."""
    for keys, steps in (
        ([b"\xc3\xa9" * 512] * 1000, 1000 // STEP_TEXTS + 1),
        ([b"k" * 1024] * 1000, 1),
        ([b"\n"] * STEP_TEXTS, 1),
        ([b""], 1),
        ([], 1),
    ):
        waits, found = by_hand(_encoded(keys, encode))
        assert found == [encode(key) for key in keys]
        assert waits + 1 == steps


entries = st.lists(
    st.tuples(
        st.sampled_from([b"a", b"b&c", "é".encode()]),
        st.integers(0, 2 * 10**18),
        st.sampled_from(["0" * 32, "f" * 32 + "-3"]),
        st.integers(0, 50 * 10**12),
        st.sampled_from(["one", "<two>"]),
        st.sampled_from([("", ""), ("CRC32", "COMPOSITE"), ("CRC32", "FULL_OBJECT")]),
    ).map(lambda row: (*row[:5], *row[5])),
    max_size=8,
)


@settings(max_examples=100, deadline=None)
@given(entries=entries, with_owner=st.booleans())
def test_entries_that_are_written_together_are_those_of_each_alone(
    entries: list[ListEntry], with_owner: bool
) -> None:
    def write(some: list[ListEntry]) -> str:
        parts: list[str] = []
        asyncio.run(_write_entries(parts, some, escape_bytes, with_owner=with_owner))
        return "".join(parts)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_listing, "STEP_ENTRIES", 3)
        together = write(entries)
    assert together == "".join(write([entry]) for entry in entries)
    document = ElementTree.fromstring(f"<x>{together}</x>")
    for element, entry in zip(document.findall("Contents"), entries, strict=True):
        key, time_ns, etag, size_bytes, owner, algorithm, kind = entry
        assert element.findtext("Key") == key.decode()
        assert element.findtext("LastModified") == iso_time(time_ns)
        assert element.findtext("ETag") == f'"{etag}"'
        assert element.findtext("Size") == str(size_bytes)
        assert element.findtext("Owner/ID") == (owner if with_owner else None)
        assert element.findtext("ChecksumAlgorithm") == (algorithm or None)
        assert element.findtext("ChecksumType") == (kind or None)


def turns(store: Store, listing: Callable[[Any], Any], params: dict[str, str]) -> int:
    """How often a listing waits for others."""
    bucket = store.node.query_now(get_bucket("bucket"))
    ctx: Any = SimpleNamespace(
        params=params, bucket=bucket, bucket_name="bucket", page=store.node.query
    )
    return by_hand(listing(ctx))[0]


def test_a_long_page_is_written_in_steps_and_a_short_one_at_once() -> None:
    store = Store()
    store.bucket()
    for number in range(STEP_ENTRIES + 1):
        store.put(f"/bucket/{number:04}", b"x")
    for listing, params, limit in (
        (list_objects_v1, {}, "max-keys"),
        (list_objects_v2, {"list-type": "2"}, "max-keys"),
        (list_object_versions, {}, "max-keys"),
    ):
        assert turns(store, listing, params) == 2
        assert turns(store, listing, {**params, limit: str(STEP_ENTRIES)}) == 0
