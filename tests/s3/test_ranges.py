"""Reading a part of an object: Range, If-Range, partNumber."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from o3storage.s3._errors import S3Error
from o3storage.s3._objects_get import parse_range
from tests.s3.harness import Store

FRAME = 256 * 1024


# --- ranges


@settings(max_examples=300, deadline=None)
@given(
    size=st.integers(0, 20),
    first=st.integers(0, 25),
    last=st.integers(0, 25),
    form=st.integers(0, 2),
)
def test_ranges_against_slices(size: int, first: int, last: int, form: int) -> None:
    data = bytes(range(size))
    text = [f"bytes={first}-{last}", f"bytes={first}-", f"bytes=-{last}"][form]
    want = [data[first : last + 1], data[first:], data[size - min(last, size) :]][form]
    try:
        span = parse_range(text, size)
    except S3Error as error:
        assert error.code == "InvalidRange" and not want
        assert ("Content-Range", f"bytes */{size}") in error.headers
    else:
        if span is None:
            assert form == 0 and last < first
        else:
            assert data[span[0] : span[0] + span[1]] == want and span[1] > 0


@pytest.mark.s3(op="GetObject", headers=["range", "content-range"], errors=["InvalidRange"])
def test_ranges(store: Store) -> None:
    store.bucket()
    body = bytes(range(256)) * 4096
    store.put("/bucket/k", body)
    for text, start, stop in (
        ("bytes=0-0", 0, 1),
        ("bytes=10-19", 10, 20),
        (f"bytes={FRAME - 2}-{FRAME + 1}", FRAME - 2, FRAME + 2),
        ("bytes=5-", 5, len(body)),
        ("bytes=-7", len(body) - 7, len(body)),
        ("bytes=0-99999999", 0, len(body)),
        # Range units have no case, and a position any number of digits (RFC 9110, section 14).
        ("Bytes=0-3", 0, 4),
        (f"bytes=0-{'9' * 5000}", 0, len(body)),
        (f"bytes={'0' * 5000}7-8", 7, 9),
        (f"bytes=-{'9' * 5000}", 0, len(body)),
    ):
        answer = store.get("/bucket/k", {"range": text})
        assert (answer.status, answer.body) == (206, body[start:stop])
        assert answer.headers["content-range"] == f"bytes {start}-{stop - 1}/{len(body)}"
        head = store.head("/bucket/k", {"range": text})
        assert (head.status, head.length) == (206, stop - start)
    for text in ("bytes=9-8", "bytes=0-1,3-4", "lines=0-1", "bytes=a-b", "bytes=-", "0-1"):
        answer = store.get("/bucket/k", {"range": text})
        assert (answer.status, answer.body) == (200, body), text
        assert "content-range" not in answer.headers
    for text in (f"bytes={len(body)}-", "bytes=-0", f"bytes={'9' * 5000}-"):
        answer = store.get("/bucket/k", {"range": text})
        assert (answer.status, answer.code) == (416, "InvalidRange")
        assert answer.headers["content-range"] == f"bytes */{len(body)}"
        assert answer.text("ActualObjectSize") == str(len(body))
    store.put("/bucket/empty")
    assert store.get("/bucket/empty", {"range": "bytes=0-"}).status == 416


@pytest.mark.s3(op="GetObject", headers=["if-range"])
def test_if_range(store: Store) -> None:
    store.bucket()
    put = store.put("/bucket/k", b"0123456789")
    modified = store.head("/bucket/k").headers["last-modified"]
    for value, status in (
        (put.headers["etag"], 206),
        ('"other"', 200),
        (modified, 206),
        ("Thu, 01 Jan 1970 00:00:00 GMT", 200),
    ):
        answer = store.get("/bucket/k", {"range": "bytes=0-1", "if-range": value})
        assert answer.status == status, value


@pytest.mark.s3(
    op=["GetObject", "HeadObject"],
    headers=["?partNumber"],
    errors=["InvalidArgument", "InvalidPartNumber", "InvalidRequest"],
)
def test_part_number_of_a_single_object(store: Store) -> None:
    store.bucket()
    store.put("/bucket/k", b"0123456789")
    answer = store.get("/bucket/k?partNumber=1")
    assert (answer.status, answer.body) == (206, b"0123456789")
    assert answer.headers["content-range"] == "bytes 0-9/10"
    assert "x-amz-mp-parts-count" not in answer.headers
    assert store.get("/bucket/k?partNumber=2").code == "InvalidPartNumber"
    assert store.get("/bucket/k?partNumber=2").status == 416
    for bad in ("0", "10001", "x", ""):
        assert store.get(f"/bucket/k?partNumber={bad}").code == "InvalidArgument"
    both = store.get("/bucket/k?partNumber=1", {"range": "bytes=0-1"})
    assert both.code == "InvalidRequest"
