"""Faults below the S3 layer: full disk, no quorum, damaged and vanished bodies, defects."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest

from o3storage.catalog import (
    BucketBusy,
    BucketFenced,
    CatalogError,
    InvalidBucketState,
    InvalidVersionId,
    NoSuchVersion,
    StaleEpoch,
    StreamAbandoned,
    StreamExpired,
    UploadChanged,
)
from o3storage.catalog import InvalidPart as CatalogInvalidPart
from o3storage.cluster import BodyDamaged, BodyMissing, StorageFull, Unavailable
from o3storage.http import BadChunk, BadHead, BodyTruncated, Headers, HttpError, Request
from o3storage.s3._documents import BYTE_COST, ELEMENT_COST, MAX_DOCUMENTS_BYTES
from o3storage.s3._errors import CODES
from o3storage.s3._refusals import translate, translate_body_error
from o3storage.s3._xml import MAX_COMPLETE_XML_BYTES, MAX_ELEMENTS
from tests.s3.harness import Store, md5_base64
from tests.s3.support import BytesBody

FRAME = 256 * 1024


def failing(error: Exception) -> Any:
    def hook(_command: object) -> None:
        raise error

    return hook


@pytest.mark.s3(op=["PutObject", "UploadPart"], errors=["StorageFull"])
def test_a_full_disk_is_507_and_deletes_go_on(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.bucket()
    store.put("/bucket/old", b"x")
    store.node.before = [failing(StorageFull("the reserve is reached"))]
    full = store.put("/bucket/k", b"x")
    assert (full.status, full.code) == (507, "StorageFull")
    assert len(store.node.streams) == 1  # the old object's

    # In the middle of a body.
    made = store.node.new_stream

    def new_stream(bucket_id: int, key: bytes) -> Any:
        upload = made(bucket_id, key)
        write = upload.write

        async def fail_second(block: memoryview, last: bool, digester: Any = None) -> None:
            if last:
                raise StorageFull("the reserve is reached")
            await write(block, last, digester)

        upload.write = fail_second
        return upload

    monkeypatch.setattr(store.node, "new_stream", new_stream)
    full = store.put("/bucket/k", b"x" * (FRAME + 1))
    assert (full.status, full.code) == (507, "StorageFull")
    assert store.service.pool.lent_bytes == 0
    monkeypatch.undo()
    assert store.delete("/bucket/old").status == 204
    assert store.put("/bucket/k", b"x").status == 200
    assert store.objects() == ["k"]


@pytest.mark.s3(
    op=["PutObject", "GetObject", "DeleteObject"],
    headers=["retry-after"],
    errors=["ServiceUnavailable"],
)
def test_without_a_quorum_503_with_the_reason(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.bucket()
    for method in ("PUT", "DELETE"):
        store.node.before = [failing(Unavailable("2 of 3 replicas do not answer"))]
        answer = store.call(method, "/bucket/k", b"x")
        assert (answer.status, answer.code) == (503, "ServiceUnavailable")
        assert answer.headers["retry-after"] == "1"
        assert answer.text("Message") == "2 of 3 replicas do not answer"
    assert store.node.streams == {}

    def unavailable(_query: object) -> None:
        raise Unavailable("the disk is out of service")

    monkeypatch.setattr(store.node, "query_now", unavailable)
    assert store.get("/bucket/k").code == "ServiceUnavailable"


@pytest.mark.s3(op="GetObject", errors=["InternalError", "ServiceUnavailable"])
def test_a_damaged_body_is_an_error_never_wrong_bytes(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.bucket()
    store.put("/bucket/small", b"x")
    store.put("/bucket/large", b"x" * (3 * FRAME))

    def damaged(_ref: object) -> bytes:
        raise BodyDamaged("frame 0 is damaged")

    async def damaged_stream(*_: object) -> AsyncIterator[bytes]:
        raise BodyDamaged("frame 0 is damaged")
        yield b""

    monkeypatch.setattr(store.node, "read_small_now", damaged)
    monkeypatch.setattr(store.node, "read_stream", damaged_stream)
    for key in ("small", "large"):
        answer = store.get(f"/bucket/{key}")
        assert (answer.status, answer.code) == (500, "InternalError")
        assert "damaged" in (answer.text("Message") or "")

    # Behind the first frame the answer is under way: the HTTP layer cuts the connection.
    async def damaged_later(*_: object) -> AsyncIterator[bytes]:
        yield b"x" * FRAME
        raise BodyDamaged("frame 1 is damaged")

    monkeypatch.setattr(store.node, "read_stream", damaged_later)
    with pytest.raises(BodyDamaged):
        store.get("/bucket/large")


@pytest.mark.s3(op="GetObject")
def test_a_version_replaced_while_it_is_opened_is_read_anew(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.bucket()
    store.put("/bucket/k", b"new")
    real = store.node.read_small_now
    calls = []

    def gone_once(ref: Any) -> Any:
        calls.append(ref)
        if len(calls) == 1:
            raise BodyMissing("replaced")
        return real(ref)

    monkeypatch.setattr(store.node, "read_small_now", gone_once)
    assert store.get("/bucket/k").body == b"new"

    def gone(_ref: object) -> bytes:
        raise BodyMissing("replaced")

    monkeypatch.setattr(store.node, "read_small_now", gone)
    assert store.get("/bucket/k").code == "ServiceUnavailable"


@pytest.mark.s3(op="GetObject")
@pytest.mark.parametrize("method", ["GET", "HEAD"])
def test_a_multipart_object_replaced_while_it_is_opened_is_read_anew(
    store: Store, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    """It was answered with 404 NoSuchVersion, as if there were no object."""
    store.bucket()
    upload = store.post("/bucket/k?uploads").xml.findtext("UploadId") or ""
    etag = store.put(f"/bucket/k?partNumber=1&uploadId={upload}", b"part").headers["etag"]
    store.complete("/bucket/k", upload, [(1, etag)])
    real = store.node.query_now
    looks = []

    def gone(times: int) -> Any:
        def query_now(query: Any) -> Any:
            if repr(query) in ("Query(parts_from)", "Query(part_of_version)"):
                looks.append(query)
                if len(looks) <= times:
                    raise NoSuchVersion(b"k", 1)
            return real(query)

        return query_now

    monkeypatch.setattr(store.node, "query_now", gone(2))
    answer = store.call(method, "/bucket/k?partNumber=1")
    assert (answer.status, len(looks)) == (206, 3 if method == "HEAD" else 4)
    looks.clear()
    monkeypatch.setattr(store.node, "query_now", gone(99))
    assert store.call(method, "/bucket/k?partNumber=1").status == 503
    looks.clear()
    assert store.call(method, "/bucket/k?partNumber=1&versionId=null").status == 404


@pytest.mark.s3(op=["CopyObject", "UploadPartCopy", "GetObjectAttributes"])
def test_a_multipart_object_replaced_while_it_is_copied_is_not_said_to_be_missing(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was answered with 404 NoSuchVersion, which no client tries again."""
    store.bucket()
    upload = store.upload("/bucket/k")
    etag = store.put(f"/bucket/k?partNumber=1&uploadId={upload}", b"part").headers["etag"]
    store.complete("/bucket/k", upload, [(1, etag)])
    other = store.upload("/bucket/other")
    real = store.node.query_now
    looks = []

    def gone(times: int) -> Any:
        looks.clear()

        def query_now(query: Any) -> Any:
            if repr(query) in ("Query(parts_from)", "Query(parts_of_version)"):
                looks.append(query)
                if len(looks) <= times:
                    raise NoSuchVersion(b"k", 1)
            return real(query)

        return query_now

    asked = {"x-amz-object-attributes": "ObjectParts"}
    monkeypatch.setattr(store.node, "query_now", gone(2))
    assert store.get("/bucket/k?attributes", asked).status == 200
    monkeypatch.setattr(store.node, "query_now", gone(99))
    assert store.get("/bucket/k?attributes", asked).status == 503
    assert store.get("/bucket/k?attributes&versionId=null", asked).status == 404
    for target in ("/bucket/dst", f"/bucket/other?partNumber=1&uploadId={other}"):
        answer = store.put(target, b"", {"x-amz-copy-source": "/bucket/k"})
        assert (answer.status, "retry-after" in answer.headers) == (503, True)
        named = {"x-amz-copy-source": "/bucket/k?versionId=null"}
        assert store.put(target, b"", named).code == "NoSuchVersion"
    assert store.objects() == ["k"]


@pytest.mark.s3(op="GetObject")
def test_what_is_not_in_memory_is_read_from_the_disk(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    from o3storage.cluster import MISS

    store.bucket()
    store.put("/bucket/k", b"body")
    monkeypatch.setattr(store.node, "query_now", lambda _query: MISS)
    monkeypatch.setattr(store.node, "read_small_now", lambda _ref: None)
    assert store.get("/bucket/k").body == b"body"
    assert store.get("/bucket/k", {"range": "bytes=1-2"}).body == b"od"


@pytest.mark.s3(op="*", errors=["InternalError"])
def test_a_defect_is_500_without_its_inner_workings(store: Store) -> None:
    store.bucket()
    store.node.before = [failing(ZeroDivisionError("secret detail"))]
    answer = store.put("/bucket/k", b"x")
    assert (answer.status, answer.code) == (500, "InternalError")
    assert b"secret detail" not in answer.body
    assert store.node.streams == {}
    store.node.before = [failing(CatalogError("unknown refusal"))]
    assert store.put("/bucket/k", b"x").code == "InternalError"


def test_the_log_of_a_defect_holds_no_text_of_a_request(
    store: Store, capfd: pytest.CaptureFixture[str]
) -> None:
    store.bucket()
    store.node.before = [failing(UnicodeEncodeError("ascii", "customer text \xe9", 14, 15, "why"))]
    assert store.put("/bucket/k", b"x").code == "InternalError"
    (line,) = capfd.readouterr().err.splitlines()
    assert "request.failed" in line and "UnicodeEncodeError" in line
    assert "customer text" not in line


@pytest.mark.s3(op="PutObject", errors=["RequestTimeout"])
def test_a_body_that_took_over_seven_days_must_be_sent_again(store: Store) -> None:
    store.bucket()
    store.node.now_ns -= 8 * 24 * 3600 * 10**9
    answer = store.put("/bucket/k", b"x")
    assert (answer.status, answer.code) == (408, "RequestTimeout")


@pytest.mark.parametrize(
    ("refusal", "code"),
    [
        (BucketBusy("b"), "OperationAborted"),
        (BucketFenced(1), "ServiceUnavailable"),
        (InvalidBucketState("no"), "InvalidBucketState"),
        (InvalidVersionId(), "InvalidArgument"),
        (CatalogInvalidPart(3), "InvalidPart"),
        (StaleEpoch(1, 2, 3), "ServiceUnavailable"),
        (StreamAbandoned(bytes(16)), "RequestTimeout"),
        (StreamExpired(bytes(16)), "RequestTimeout"),
        (UploadChanged(1, 2), "OperationAborted"),
    ],
)
@pytest.mark.s3(op="*", errors=["InvalidBucketState", "OperationAborted", "InvalidPart"])
def test_refusals_of_the_catalog(refusal: CatalogError, code: str) -> None:
    assert translate(refusal, "bucket", "key").code == code


def test_every_refusal_of_the_catalog_is_known() -> None:
    from o3storage import catalog
    from o3storage.s3._refusals import _REFUSALS

    exported = {
        kind
        for kind in vars(catalog).values()
        if isinstance(kind, type) and issubclass(kind, CatalogError) and kind is not CatalogError
    }
    # Access keys are the admin API's matter.
    rest = {catalog.NoSuchAccessKey, catalog.AccessKeyExists}
    assert exported - set(_REFUSALS) == rest
    assert all(code in CODES for code in CODES)


def test_errors_of_reading_a_body() -> None:
    assert translate_body_error(BadChunk("bad chunk")).code == "InvalidRequest"


@pytest.mark.parametrize(
    ("error", "status", "code"),
    [
        (BadHead("two Content-Lengths"), 400, "BadRequest"),
        (HttpError("slow", 408), 408, "RequestTimeout"),
        (HttpError("too many connections", 503), 503, "SlowDown"),
        (HttpError("head too large", 431), 431, "BadRequest"),
        (HttpError("oops", 500), 500, "InternalError"),
        (BadHead("HTTP/1.1 and HTTP/1.0 are spoken here", 505), 505, "BadRequest"),
    ],
)
@pytest.mark.s3(
    op="*",
    headers=["retry-after"],
    errors=["BadRequest", "SlowDown", "RequestTimeout", "InternalError"],
)
def test_what_the_http_layer_refuses_has_s3s_form(
    store: Store, error: HttpError, status: int, code: str
) -> None:
    response = store.service.error_response(None, error)
    assert response.status == status
    assert f"<Code>{code}</Code>".encode() in bytes(response.body)
    names = [name for name, _ in response.headers]
    assert "x-amz-request-id" in names
    assert ("Retry-After" in names) is (code == "SlowDown")
    head = Request(
        "HEAD", b"/", b"/", b"", "1.1", "h", Headers({}), BytesBody(), False, ("", 0), ("", 0)
    )
    assert store.service.error_response(head, error).body is None


def test_the_observer_hears_of_every_answer(store: Store) -> None:
    heard: list[tuple[str, int, bool]] = []
    store.service.observe = lambda operation, status, took_s: heard.append(
        (operation, status, took_s >= 0)
    )
    store.bucket()
    store.get("/bucket/missing")
    store.call("PATCH", "/bucket")
    assert heard == [("CreateBucket", 200, True), ("GetObject", 404, True), ("", 405, True)]


@pytest.mark.s3(op=["PutBucketTagging", "CompleteMultipartUpload"], errors=["MalformedXML"])
def test_documents_over_their_limit_are_refused_unread(store: Store) -> None:
    store.bucket()
    upload = store.upload("/bucket/k")
    for method, target, limit in (
        ("PUT", "/bucket?tagging", 2 * 1024 * 1024),
        ("POST", f"/bucket/k?uploadId={upload}", 4 * 1024 * 1024),
        ("PUT", "/bucket?cors", 64 * 1024),
    ):
        body = BytesBody(b"", length=limit + 1)
        answer = store.call(method, target, source=body)
        assert (answer.status, answer.code) == (400, "MalformedXML")
        assert body.at == 0


@pytest.mark.s3(op="PutBucketTagging", errors=["MalformedXML"])
def test_entities_in_a_document_are_refused(store: Store) -> None:
    store.bucket()
    bomb = b'<!DOCTYPE a [<!ENTITY x "y">]><Tagging><TagSet>&x;</TagSet></Tagging>'
    assert store.put("/bucket?tagging", bomb).code == "MalformedXML"


class WatchedBody(BytesBody):
    """Notes what all documents hold each time it is read."""

    def __init__(self, store: Store, data: bytes) -> None:
        super().__init__(data)
        self.store = store
        self.held: list[int] = []

    async def read_into(self, view: memoryview) -> int:
        self.held.append(self.store.service.document_bytes)
        return await super().read_into(view)


@pytest.mark.s3(
    op=["DeleteObjects", "PutBucketTagging"], headers=["retry-after"], errors=["SlowDown"]
)
def test_documents_are_bounded_all_together(store: Store) -> None:
    store.bucket()
    densest = b"<Delete>" + b"<a/>" * 99_000 + b"</Delete>"
    body = WatchedBody(store, densest)
    headers = {"content-md5": md5_base64(densest)}
    assert store.call("POST", "/bucket?delete", headers=headers, source=body).code == "MalformedXML"
    assert body.held == sorted(body.held) and body.held[0] == 0
    # What it was counted for is not less than what its elements take (65 bytes each, measured).
    assert body.held[-1] > 65 * 99_000
    assert store.service.document_bytes == 0
    others = MAX_DOCUMENTS_BYTES - 1_000_000
    store.service.document_bytes = others
    refused = store.call("POST", "/bucket?delete", headers=headers, source=BytesBody(densest))
    assert (refused.status, refused.code) == (503, "SlowDown")
    assert refused.headers["retry-after"]
    assert store.service.document_bytes == others
    tags = b"<Tagging><TagSet><Tag><Key>a</Key><Value>b</Value></Tag></TagSet></Tagging>"
    assert store.put("/bucket?tagging", tags).status == 204
    assert store.service.document_bytes == others


def test_a_document_whose_client_goes_is_not_counted_any_more(store: Store) -> None:
    class Gone(BytesBody):
        async def read_into(self, view: memoryview) -> int:
            if count := await super().read_into(view):
                return count
            assert store.service.document_bytes > 0
            raise BodyTruncated("gone")

    store.bucket()
    body = Gone(b"<Tagging><TagSet>", step=5, length=100)
    assert store.call("PUT", "/bucket?tagging", source=body).code == "IncompleteBody"
    assert store.service.document_bytes == 0


def test_the_largest_document_fits_within_the_bound_of_all() -> None:
    largest = BYTE_COST * MAX_COMPLETE_XML_BYTES + ELEMENT_COST * MAX_ELEMENTS
    assert 2 * largest <= MAX_DOCUMENTS_BYTES
