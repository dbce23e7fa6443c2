"""Conditional requests: reads, writes, and who wins a race."""

from __future__ import annotations

import hashlib

import pytest

from tests.s3.harness import Store
from tests.s3.support import BytesBody

# --- conditional reads


@pytest.mark.s3(
    op=["GetObject", "HeadObject"],
    headers=["if-match", "if-none-match", "if-modified-since", "if-unmodified-since"],
    errors=["PreconditionFailed"],
)
def test_conditional_reads(store: Store) -> None:
    store.bucket()
    etag = store.put("/bucket/k", b"x", {"cache-control": "max-age=9"}).headers["etag"]
    bare = etag.strip('"')
    modified = store.head("/bucket/k").headers["last-modified"]
    past, future = "Thu, 01 Jan 1970 00:00:00 GMT", "Fri, 01 Jan 2100 00:00:00 GMT"
    forms = ("Friday, 01-Jan-38 00:00:00 GMT", "Fri Jan  1 00:00:00 2100")
    cases: list[tuple[dict[str, str], int]] = [
        ({"if-match": etag}, 200),
        ({"if-match": bare}, 200),
        ({"if-match": f'"other", {etag}'}, 200),
        ({"if-match": "*"}, 200),
        ({"if-match": '"other"'}, 412),
        ({"if-none-match": etag}, 304),
        ({"if-none-match": f"W/{etag}"}, 304),
        ({"if-none-match": "*"}, 304),
        ({"if-none-match": '"other"'}, 200),
        ({"if-modified-since": modified}, 304),
        ({"if-modified-since": past}, 200),
        ({"if-modified-since": future}, 304),
        ({"if-modified-since": forms[0]}, 304),
        ({"if-modified-since": forms[1]}, 304),
        ({"if-modified-since": "not a date"}, 200),
        ({"if-modified-since": "Sat, 01 Jan 0000 00:00:00 GMT"}, 200),
        ({"if-modified-since": "Fri, 30 Feb 2100 00:00:00 GMT"}, 200),
        ({"if-unmodified-since": modified}, 200),
        ({"if-unmodified-since": past}, 412),
        ({"if-unmodified-since": "not a date"}, 200),
        # A true If-Match beats If-Unmodified-Since; If-None-Match beats If-Modified-Since.
        ({"if-match": etag, "if-unmodified-since": past}, 200),
        ({"if-match": '"other"', "if-unmodified-since": future}, 412),
        ({"if-none-match": '"other"', "if-modified-since": future}, 200),
        ({"if-none-match": etag, "if-modified-since": past}, 304),
        ({"if-match": etag, "if-none-match": etag}, 304),
    ]
    for headers, status in cases:
        for call in (store.get, store.head):
            answer = call("/bucket/k", headers)
            assert answer.status == status, (headers, answer)
    not_modified = store.get("/bucket/k", {"if-none-match": etag})
    assert not_modified.body == b""
    kept = {"etag", "last-modified", "cache-control", "x-amz-request-id", "x-amz-id-2"}
    assert set(not_modified.headers) == kept
    assert store.get("/bucket/k", {"if-match": '"o"'}).code == "PreconditionFailed"
    store.versioning("bucket", "Enabled")
    expires = {"expires": "Fri, 01 Jan 2100 00:00:00 GMT", "content-language": "de"}
    version = store.put("/bucket/k", b"x", expires).headers["x-amz-version-id"]
    not_modified = store.get("/bucket/k", {"if-none-match": etag})
    assert not_modified.status == 304
    assert not_modified.headers["x-amz-version-id"] == version
    assert not_modified.headers["expires"] == expires["expires"]
    assert set(not_modified.headers) == kept - {"cache-control"} | {"x-amz-version-id", "expires"}


# --- conditional writes


@pytest.mark.s3(
    op="PutObject",
    headers=["if-match", "if-none-match"],
    errors=["PreconditionFailed", "NoSuchKey", "NotImplemented"],
)
def test_conditional_put(store: Store) -> None:
    store.bucket()
    missing = store.put("/bucket/k", b"x", {"if-match": '"abc"'})
    assert (missing.status, missing.code) == (404, "NoSuchKey")
    assert store.put("/bucket/k", b"1", {"if-none-match": "*"}).status == 200
    again = store.put("/bucket/k", b"2", {"if-none-match": "*"})
    assert (again.status, again.code) == (412, "PreconditionFailed")
    etag = store.head("/bucket/k").headers["etag"]
    assert store.put("/bucket/k", b"3", {"if-match": '"other"'}).code == "PreconditionFailed"
    assert store.put("/bucket/k", b"3", {"if-match": etag}).status == 200
    assert store.put("/bucket/k", b"4", {"if-match": etag}).code == "PreconditionFailed"
    for headers in (
        {"if-none-match": '"abc"'},
        {"if-match": '"a", "b"'},
        {"if-match": '"a"', "if-none-match": "*"},
        {"if-modified-since": "Thu, 01 Jan 1970 00:00:00 GMT"},
        {"if-unmodified-since": "Thu, 01 Jan 1970 00:00:00 GMT"},
    ):
        assert store.put("/bucket/k", b"5", headers).code == "NotImplemented"
    assert store.get("/bucket/k").body == b"3"
    assert len(store.node.streams) == 1


@pytest.mark.s3(op="PutObject", errors=["PreconditionFailed"])
def test_a_condition_is_refused_before_the_body_is_asked_for(store: Store) -> None:
    store.bucket()
    store.put("/bucket/k", b"1")
    body = BytesBody(b"x" * 100)
    answer = store.put("/bucket/k", headers={"if-none-match": "*"}, source=body)
    assert answer.status == 412
    assert body.at == 0


@pytest.mark.s3(
    op="PutObject",
    headers=["if-match"],
    errors=["ConditionalRequestConflict", "PreconditionFailed"],
)
def test_a_lost_race_of_conditional_writes_has_one_winner(store: Store) -> None:
    store.bucket()
    etag = store.put("/bucket/k", b"1").headers["etag"]

    def overtake(_command: object) -> None:
        store.node.submit_now(_other_put(store, b"winner"))

    store.node.before = [overtake]
    lost = store.put("/bucket/k", b"loser", {"if-match": etag})
    assert (lost.status, lost.code) == (409, "ConditionalRequestConflict")
    assert store.get("/bucket/k").body == b"winner"
    # If-None-Match: the loser is told what is true now.
    store.delete("/bucket/k")
    store.node.before = [overtake]
    lost = store.put("/bucket/k", b"loser", {"if-none-match": "*"})
    assert (lost.status, lost.code) == (412, "PreconditionFailed")
    assert store.get("/bucket/k").body == b"winner"


def _other_put(store: Store, body: bytes) -> object:
    """The command of another client's PUT, its body stored."""
    from o3storage.catalog import PutObject, get_bucket

    bucket = store.node.rows.query(get_bucket("bucket"))
    upload = store.node.new_stream(bucket.bucket_id, b"k")
    stream = upload._inner
    stream._ended = True
    store.node.streams[stream._stream] = body
    return PutObject(
        bucket.bucket_id,
        bucket.epoch,
        b"k",
        store.clock.wall_ns(),
        bucket.owner,
        len(body),
        hashlib.md5(body).hexdigest(),
        bytes(32),
        upload.ref.pack(),
        upload.started_ns,
    )
