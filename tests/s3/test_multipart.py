"""Multipart uploads: parts, completion, checksums of parts and whole, attributes, repeats."""

from __future__ import annotations

import base64
import hashlib
import zlib

import pytest

from o3storage._native import crc64nvme
from o3storage.s3._checksums import ALGORITHMS, CrcCombiner, digest_of
from o3storage.s3._complete import MIN_PART_BYTES
from tests.s3.harness import Store, md5_base64
from tests.s3.support import BytesBody

BIG = bytes(range(256)) * (MIN_PART_BYTES // 256)
"""Exactly the smallest part but the last."""


def b64(data: bytes) -> str:
    return base64.b64encode(data).decode()


def put_part(
    store: Store, target: str, upload: str, number: int, body: bytes, **headers: str
) -> str:
    sent = {name.replace("_", "-"): value for name, value in headers.items()}
    answer = store.put(f"{target}?partNumber={number}&uploadId={upload}", body, sent)
    assert answer.status == 200, answer
    return answer.headers["etag"]


@pytest.fixture
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Parts of any size, so that tests of other things stay quick."""
    monkeypatch.setattr("o3storage.s3._complete.MIN_PART_BYTES", 1)


@pytest.mark.s3(
    op=["CreateMultipartUpload", "UploadPart", "CompleteMultipartUpload", "GetObject"],
    headers=["?uploads", "?uploadId", "?partNumber", "x-amz-mp-parts-count", "etag"],
    errors=["NoSuchUpload"],
)
def test_an_upload_from_begin_to_end(store: Store) -> None:
    store.bucket()
    upload = store.upload(
        "/bucket/k",
        {"content-type": "text/x", "x-amz-meta-a": "b", "x-amz-tagging": "t=1"},
    )
    parts = [BIG, BIG[::-1], b"tail"]
    etags = [put_part(store, "/bucket/k", upload, n, body) for n, body in enumerate(parts, 1)]
    assert store.get("/bucket/k").code == "NoSuchKey"
    assert store.objects() == []
    done = store.complete("/bucket/k", upload, list(enumerate(etags, 1)))
    md5s = b"".join(hashlib.md5(body).digest() for body in parts)
    etag = f'"{hashlib.md5(md5s).hexdigest()}-3"'
    assert (done.status, done.text("ETag")) == (200, etag)
    assert done.text("Location") == "http://127.0.0.1:9000/bucket/k"
    whole = b"".join(parts)
    got = store.get("/bucket/k")
    assert got.body == whole
    assert got.headers["etag"] == etag
    assert got.headers["content-type"] == "text/x"
    assert got.headers["x-amz-meta-a"] == "b"
    assert got.headers["x-amz-tagging-count"] == "1"
    assert "x-amz-mp-parts-count" not in got.headers
    for start, stop in ((0, 1), (len(BIG) - 3, len(BIG) + 3), (len(whole) - 4, len(whole))):
        answer = store.get("/bucket/k", {"range": f"bytes={start}-{stop - 1}"})
        assert (answer.status, answer.body) == (206, whole[start:stop])
    offset = 0
    for number, body in enumerate(parts, 1):
        answer = store.get(f"/bucket/k?partNumber={number}")
        assert (answer.status, answer.body) == (206, body)
        assert answer.headers["x-amz-mp-parts-count"] == "3"
        want = f"bytes {offset}-{offset + len(body) - 1}/{len(whole)}"
        assert answer.headers["content-range"] == want
        head = store.head(f"/bucket/k?partNumber={number}")
        assert (head.status, head.length) == (206, len(body))
        offset += len(body)
    assert store.get("/bucket/k?partNumber=4").status == 416
    assert store.put(f"/bucket/k?partNumber=1&uploadId={upload}", b"x").code == "NoSuchUpload"
    assert store.get("/bucket?uploads").texts("Upload/Key") == []


@pytest.mark.s3(op="CompleteMultipartUpload", errors=["NoSuchUpload"])
def test_completing_again_answers_the_same_for_a_day(store: Store) -> None:
    store.bucket(versioning="Enabled")
    upload = store.upload("/bucket/k")
    etag = put_part(store, "/bucket/k", upload, 1, b"x")
    first = store.complete("/bucket/k", upload, [(1, etag)])
    for text in (etag, etag.strip('"'), etag.replace('"', "&quot;")):
        again = store.complete("/bucket/k", upload, [(1, text)])
        assert (again.status, again.body) == (200, first.body)
        assert again.headers["x-amz-version-id"] == first.headers["x-amz-version-id"]
    assert len(store.get("/bucket?versions").texts("Version/Key")) == 1


@pytest.mark.s3(
    op="CompleteMultipartUpload",
    errors=["InvalidPart", "InvalidPartOrder", "EntityTooSmall", "MalformedXML", "NoSuchUpload"],
)
def test_completions_that_are_refused(store: Store) -> None:
    store.bucket()
    upload = store.upload("/bucket/k")
    one = put_part(store, "/bucket/k", upload, 1, b"small")
    two = put_part(store, "/bucket/k", upload, 2, b"also small")
    for parts, code in (
        ([(1, one), (2, two)], "EntityTooSmall"),
        ([(2, two), (1, one)], "InvalidPartOrder"),
        ([(1, one), (1, one)], "InvalidPartOrder"),
        ([(1, one), (3, two)], "EntityTooSmall"),
        ([(3, one)], "InvalidPart"),
        ([(1, two)], "InvalidPart"),
        ([(1, '"0"')], "InvalidPart"),
        ([(0, one)], "InvalidArgument"),
        ([(10_001, one)], "InvalidArgument"),
        ([], "MalformedXML"),
    ):
        answer = store.complete("/bucket/k", upload, parts)
        assert (answer.status, answer.code) == (400, code), parts
    small = store.complete("/bucket/k", upload, [(1, one), (2, two)])
    assert small.text("PartNumber") == "1" and small.text("MinSizeAllowed") == "5242880"
    for document in (b"<Other/>", b"<CompleteMultipartUpload><Part/></CompleteMultipartUpload>"):
        answer = store.post(f"/bucket/k?uploadId={upload}", document)
        assert answer.code == "MalformedXML"
    many = "".join(
        f"<Part><PartNumber>{n}</PartNumber><ETag>x</ETag></Part>" for n in range(1, 10_002)
    )
    document = f"<CompleteMultipartUpload>{many}</CompleteMultipartUpload>".encode()
    assert store.post(f"/bucket/k?uploadId={upload}", document).code == "MalformedXML"
    for bad in ("0" * 32, "zz", "A" * 32, ""):
        assert store.complete("/bucket/k", bad, [(1, one)]).code == "NoSuchUpload"
    assert store.complete("/bucket/other", upload, [(1, one)]).code == "NoSuchUpload"
    assert store.complete("/bucket/k", upload, [(2, two)]).status == 200
    assert store.get("/bucket/k").body == b"also small"


@pytest.mark.s3(
    op="UploadPart", errors=["InvalidArgument", "NoSuchUpload", "BadDigest", "EntityTooLarge"]
)
def test_parts_that_are_refused(store: Store) -> None:
    store.bucket()
    upload = store.upload("/bucket/k")
    for number in ("0", "10001", "-1", "x", ""):
        answer = store.put(f"/bucket/k?partNumber={number}&uploadId={upload}", b"x")
        assert answer.code == "InvalidArgument", number
    assert store.put(f"/bucket/k?uploadId={upload}", b"x").code == "InvalidArgument"
    assert store.put(f"/bucket/k?partNumber=1&uploadId={'0' * 32}", b"x").code == "NoSuchUpload"
    target = f"/bucket/k?partNumber=1&uploadId={upload}"
    assert store.put(target, b"x", {"content-md5": md5_base64(b"y")}).code == "BadDigest"
    large = BytesBody(b"", length=5 * 1024**3 + 1)
    assert store.put(target, source=large).code == "EntityTooLarge"
    assert store.put(target, source=BytesBody(b"x", length=None)).code == "MissingContentLength"
    bare = BytesBody(b"")
    bare.declared = False
    assert store.put(target, source=bare).code == "MissingContentLength"
    assert store.get(f"/bucket/k?uploadId={upload}").texts("Part/PartNumber") == []
    assert store.node.streams == {}


@pytest.mark.s3(op="AbortMultipartUpload", errors=["NoSuchUpload"])
def test_abort(store: Store) -> None:
    store.bucket()
    upload = store.upload("/bucket/k")
    put_part(store, "/bucket/k", upload, 1, b"x")
    assert store.delete(f"/bucket/k?uploadId={upload}").status == 204
    assert store.delete(f"/bucket/k?uploadId={upload}").code == "NoSuchUpload"
    assert store.put(f"/bucket/k?partNumber=1&uploadId={upload}", b"x").code == "NoSuchUpload"
    assert store.get("/bucket?uploads").texts("Upload/Key") == []


@pytest.mark.s3(
    op="ListParts", headers=["?max-parts", "?part-number-marker"], errors=["InvalidArgument"]
)
def test_list_parts(store: Store) -> None:
    store.bucket()
    upload = store.upload("/bucket/k", {"x-amz-checksum-algorithm": "CRC32"})
    numbers = [1, 2, 5, 7, 10_000]
    for number in reversed(numbers):
        put_part(store, "/bucket/k", upload, number, b"x" * number)
    put_part(store, "/bucket/k", upload, 2, b"replaced")
    whole = store.get(f"/bucket/k?uploadId={upload}")
    assert whole.texts("Part/PartNumber") == [str(n) for n in numbers]
    assert whole.texts("Part/Size") == ["1", "8", "5", "7", "10000"]
    crc = b64(zlib.crc32(b"replaced").to_bytes(4, "big"))
    assert whole.texts("Part/ChecksumCRC32")[1] == crc
    assert (whole.text("ChecksumAlgorithm"), whole.text("ChecksumType")) == ("CRC32", "COMPOSITE")
    assert whole.text("UploadId") == upload
    got: list[str] = []
    marker = "0"
    while True:
        page = store.get(f"/bucket/k?uploadId={upload}&max-parts=2&part-number-marker={marker}")
        got += page.texts("Part/PartNumber")
        if page.text("IsTruncated") == "false":
            break
        marker = page.text("NextPartNumberMarker") or ""
    assert got == [str(n) for n in numbers]
    assert store.get(f"/bucket/k?uploadId={upload}&max-parts=x").code == "InvalidArgument"
    bad = store.get(f"/bucket/k?uploadId={upload}&part-number-marker=-1")
    assert bad.code == "InvalidArgument"


# --- checksums


@pytest.mark.parametrize(
    ("algorithm", "kind"),
    [
        ("CRC32", "FULL_OBJECT"),
        ("CRC32", "COMPOSITE"),
        ("CRC32C", "FULL_OBJECT"),
        ("CRC32C", "COMPOSITE"),
        ("CRC64NVME", "FULL_OBJECT"),
        ("SHA1", "COMPOSITE"),
        ("SHA256", "COMPOSITE"),
    ],
)
@pytest.mark.s3(
    op=["CreateMultipartUpload", "UploadPart", "CompleteMultipartUpload", "HeadObject"],
    headers=["x-amz-checksum-algorithm", "x-amz-checksum-type", "x-amz-checksum-mode"],
    errors=["BadDigest", "InvalidPart", "InvalidRequest"],
)
def test_checksums_of_parts_and_of_the_whole(
    store: Store, small_parts: None, algorithm: str, kind: str
) -> None:
    store.bucket()
    chosen = ALGORITHMS[algorithm]
    created = store.post(
        "/bucket/k?uploads",
        headers={"x-amz-checksum-algorithm": algorithm, "x-amz-checksum-type": kind},
    )
    assert created.headers["x-amz-checksum-algorithm"] == algorithm
    assert created.headers["x-amz-checksum-type"] == kind
    upload = created.text("UploadId") or ""
    bodies = [b"first part", b"second part", b""]
    values = [b64(digest_of(chosen, body)) for body in bodies]
    etags = []
    for number, (body, value) in enumerate(zip(bodies, values), 1):
        target = f"/bucket/k?partNumber={number}&uploadId={upload}"
        wrong = store.put(target, body + b"!", {chosen.header: value})
        assert wrong.code == "BadDigest"
        answer = store.put(target, body, {chosen.header: value} if number == 1 else {})
        assert answer.headers[chosen.header] == value
        etags.append(answer.headers["etag"])
    other = "x-amz-checksum-sha1" if algorithm != "SHA1" else "x-amz-checksum-sha256"
    mixed = b64(digest_of(ALGORITHMS[other[15:].upper()], b"x"))
    refused = store.put(f"/bucket/k?partNumber=4&uploadId={upload}", b"x", {other: mixed})
    assert refused.code == "InvalidRequest" and "mismatch" in (refused.text("Message") or "")
    parts = list(enumerate(etags, 1))
    wrong_part = f"<{chosen.element}>{b64(bytes(chosen.size))}</{chosen.element}>"
    bad = store.complete("/bucket/k", upload, parts[:1], extra=wrong_part)
    assert bad.code == "InvalidPart"
    if kind == "FULL_OBJECT":
        whole = b64(digest_of(chosen, b"".join(bodies)))
    else:
        joined = b"".join(digest_of(chosen, body) for body in bodies)
        whole = b64(digest_of(chosen, joined)) + "-3"
    bad = store.complete("/bucket/k", upload, parts, {chosen.header: b64(bytes(chosen.size))})
    assert bad.code == "BadDigest"
    wrong_kind = "COMPOSITE" if kind == "FULL_OBJECT" else "FULL_OBJECT"
    bad = store.complete("/bucket/k", upload, parts, {"x-amz-checksum-type": wrong_kind})
    assert bad.code == "InvalidRequest"
    done = store.complete(
        "/bucket/k", upload, parts, {chosen.header: whole, "x-amz-checksum-type": kind}
    )
    assert done.status == 200, done
    assert (done.text(chosen.element), done.text("ChecksumType")) == (whole, kind)
    head = store.head("/bucket/k", {"x-amz-checksum-mode": "ENABLED"})
    assert head.headers[chosen.header] == whole
    assert head.headers["x-amz-checksum-type"] == kind
    part = store.head("/bucket/k?partNumber=2", {"x-amz-checksum-mode": "ENABLED"})
    assert part.headers[chosen.header] == values[1]


@pytest.mark.s3(op="CreateMultipartUpload", errors=["InvalidRequest"])
def test_combinations_of_checksum_algorithm_and_type_that_s3_does_not_have(store: Store) -> None:
    store.bucket()
    for headers in (
        {"x-amz-checksum-algorithm": "SHA1", "x-amz-checksum-type": "FULL_OBJECT"},
        {"x-amz-checksum-algorithm": "SHA256", "x-amz-checksum-type": "FULL_OBJECT"},
        {"x-amz-checksum-algorithm": "CRC64NVME", "x-amz-checksum-type": "COMPOSITE"},
        {"x-amz-checksum-algorithm": "CRC32", "x-amz-checksum-type": "BOTH"},
        {"x-amz-checksum-algorithm": "MD5"},
        {"x-amz-checksum-type": "FULL_OBJECT"},
    ):
        assert store.post("/bucket/k?uploads", headers=headers).code == "InvalidRequest", headers


@pytest.mark.s3(op=["CompleteMultipartUpload", "UploadPart"])
def test_without_a_declared_algorithm_the_whole_has_what_the_parts_share(
    store: Store, small_parts: None
) -> None:
    store.bucket()
    bodies = [b"one", b"two", b"three"]
    upload = store.upload("/bucket/plain")
    etags = [put_part(store, "/bucket/plain", upload, n, b) for n, b in enumerate(bodies, 1)]
    done = store.complete("/bucket/plain", upload, list(enumerate(etags, 1)))
    assert done.text("ChecksumCRC64NVME") == b64(crc64nvme(b"onetwothree").to_bytes(8, "big"))
    upload = store.upload("/bucket/mixed")
    sha = b64(hashlib.sha1(b"one").digest())
    first = put_part(store, "/bucket/mixed", upload, 1, b"one", x_amz_checksum_sha1=sha)
    second = put_part(store, "/bucket/mixed", upload, 2, b"two")
    done = store.complete("/bucket/mixed", upload, [(1, first), (2, second)])
    assert done.text("ChecksumType") is None
    assert store.get("/bucket/mixed").body == b"onetwo"


def test_combined_crcs_are_those_of_the_whole() -> None:
    for name in ("CRC32", "CRC32C", "CRC64NVME"):
        algorithm = ALGORITHMS[name]
        pieces = [b"", b"a", b"bc" * 1000, b"", b"d" * 77]
        combiner = CrcCombiner(algorithm)
        for piece in pieces:
            combiner.add(digest_of(algorithm, piece), len(piece))
        assert combiner.digest() == digest_of(algorithm, b"".join(pieces))


# --- promises and conditions of a completion


@pytest.mark.s3(
    op="CompleteMultipartUpload",
    headers=["x-amz-mp-object-size", "if-match", "if-none-match"],
    errors=["InvalidRequest", "PreconditionFailed", "NoSuchKey", "ConditionalRequestConflict"],
)
def test_completion_with_promises_and_conditions(store: Store) -> None:
    store.bucket()
    upload = store.upload("/bucket/k")
    parts = [(1, put_part(store, "/bucket/k", upload, 1, b"12345"))]
    for headers, code in (
        ({"x-amz-mp-object-size": "4"}, "InvalidRequest"),
        ({"x-amz-mp-object-size": "x"}, "InvalidRequest"),
        ({"x-amz-mp-object-size": "\xb2"}, "InvalidRequest"),
        ({"x-amz-mp-object-size": "9" * 5000}, "InvalidRequest"),
        ({"if-match": '"abc"'}, "NoSuchKey"),
        ({"x-amz-checksum-sha1": b64(bytes(20))}, "InvalidRequest"),
    ):
        assert store.complete("/bucket/k", upload, parts, headers).code == code
    single = store.put("/bucket/k", b"single")
    assert store.complete("/bucket/k", upload, parts, {"if-none-match": "*"}).status == 412
    assert store.complete("/bucket/k", upload, parts, {"if-match": '"abc"'}).status == 412

    def overtake(_command: object) -> None:
        from tests.s3.test_conditions import _other_put

        store.node.submit_now(_other_put(store, b"winner"))

    store.node.before = [overtake]
    lost = store.complete("/bucket/k", upload, parts, {"if-match": single.headers["etag"]})
    assert (lost.status, lost.code) == (409, "ConditionalRequestConflict")
    etag = store.head("/bucket/k").headers["etag"]
    done = store.complete(
        "/bucket/k", upload, parts, {"if-match": etag, "x-amz-mp-object-size": "5"}
    )
    assert done.status == 200
    assert store.get("/bucket/k").body == b"12345"


@pytest.mark.s3(op="CompleteMultipartUpload", errors=["OperationAborted"])
def test_parts_that_change_while_they_are_read(store: Store) -> None:
    store.bucket()
    upload = store.upload("/bucket/k")
    etag = put_part(store, "/bucket/k", upload, 1, b"x")

    def change(command: object) -> None:
        from o3storage.catalog import PutPart

        bucket_id, epoch = command.bucket_id, command.epoch
        stored = store.node.new_stream(bucket_id, b"k")
        stored._inner._ended = True
        store.node.streams[stored._inner._stream] = b"y"
        store.node.submit_now(
            PutPart(
                bucket_id,
                epoch,
                b"k",
                bytes.fromhex(upload),
                2,
                store.clock.wall_ns(),
                1,
                hashlib.md5(b"y").hexdigest(),
                bytes(32),
                stored.ref.pack(),
                stored.started_ns,
            )
        )

    store.node.before = [change]
    assert store.complete("/bucket/k", upload, [(1, etag)]).status == 200
    upload = store.upload("/bucket/k")
    etag = put_part(store, "/bucket/k", upload, 1, b"x")
    store.node.before = [change] * 10
    refused = store.complete("/bucket/k", upload, [(1, etag)])
    assert (refused.status, refused.code) == (409, "OperationAborted")


@pytest.mark.s3(op="UploadPart", headers=["x-amz-server-side-encryption"])
def test_encryption_is_echoed_on_every_step(store: Store) -> None:
    store.bucket()
    sse = {"x-amz-server-side-encryption": "AES256"}
    created = store.post("/bucket/k?uploads", headers=sse)
    upload = created.text("UploadId") or ""
    part = store.put(f"/bucket/k?partNumber=1&uploadId={upload}", b"x")
    done = store.complete("/bucket/k", upload, [(1, part.headers["etag"])])
    for answer in (created, part, done, store.head("/bucket/k")):
        assert answer.headers["x-amz-server-side-encryption"] == "AES256"


@pytest.mark.s3(op="CompleteMultipartUpload")
def test_ten_thousand_parts(store: Store, small_parts: None) -> None:
    """Completion reads the parts in pages and names them by a bitmap."""
    store.bucket()
    upload = store.upload("/bucket/k")
    from o3storage.catalog import PutPart, get_bucket

    bucket = store.node.rows.query(get_bucket("bucket"))
    digest = hashlib.md5(b"").hexdigest()
    crc = digest_of(ALGORITHMS["CRC64NVME"], b"")
    for number in range(1, 10_001):
        store.node.submit_now(
            PutPart(
                bucket.bucket_id,
                bucket.epoch,
                b"k",
                bytes.fromhex(upload),
                number,
                store.clock.wall_ns(),
                0,
                digest,
                bytes(32),
                b"",
                0,
                ("CRC64NVME", "FULL_OBJECT", crc),
            )
        )
    store.node.submitted.clear()
    from unittest import mock

    with mock.patch("o3storage.s3._complete.MIN_PART_BYTES", 0):
        done = store.complete("/bucket/k", upload, [(n, digest) for n in range(1, 10_001)])
    assert done.status == 200, done
    assert (done.text("ETag") or "").endswith('-10000"')
    assert len(store.node.submitted) == 1
    assert store.head("/bucket/k?partNumber=10000").headers["x-amz-mp-parts-count"] == "10000"


# --- attributes


@pytest.mark.s3(
    op="GetObjectAttributes",
    headers=[
        "?attributes",
        "x-amz-object-attributes",
        "x-amz-max-parts",
        "x-amz-part-number-marker",
        "?versionId",
    ],
    errors=["InvalidArgument", "NoSuchKey", "PreconditionFailed"],
)
def test_object_attributes(store: Store, small_parts: None) -> None:
    store.bucket(versioning="Enabled")
    every = {"x-amz-object-attributes": "ETag,Checksum,ObjectParts,StorageClass,ObjectSize"}
    single = store.put("/bucket/single", b"123456789")
    shown = store.get("/bucket/single?attributes", every)
    assert shown.text("ETag") == single.headers["etag"].strip('"')
    assert shown.text("ObjectSize") == "9"
    assert shown.text("StorageClass") == "STANDARD"
    assert shown.text("Checksum/ChecksumCRC64NVME") == "rosUhgp5mIg="
    assert shown.text("Checksum/ChecksumType") == "FULL_OBJECT"
    assert shown.xml.find("ObjectParts") is None
    assert shown.headers["x-amz-version-id"] == single.headers["x-amz-version-id"]
    assert shown.headers["last-modified"].endswith("GMT")
    only = store.get("/bucket/single?attributes", {"x-amz-object-attributes": "ObjectSize"})
    assert [child.tag for child in only.xml] == ["ObjectSize"]

    upload = store.upload("/bucket/k", {"x-amz-checksum-algorithm": "SHA256"})
    etags = [put_part(store, "/bucket/k", upload, n, b"x" * n) for n in range(1, 6)]
    store.complete("/bucket/k", upload, list(enumerate(etags, 1)))
    shown = store.get("/bucket/k?attributes", every)
    assert shown.text("ObjectParts/PartsCount") == "5"
    assert shown.texts("ObjectParts/Part/Size") == ["1", "2", "3", "4", "5"]
    value = b64(hashlib.sha256(b"xx").digest())
    assert shown.texts("ObjectParts/Part/ChecksumSHA256")[1] == value
    assert (shown.text("Checksum/ChecksumSHA256") or "").endswith("-5")
    page = store.get(
        "/bucket/k?attributes",
        {**every, "x-amz-max-parts": "2", "x-amz-part-number-marker": "1"},
    )
    assert page.texts("ObjectParts/Part/PartNumber") == ["2", "3"]
    assert page.text("ObjectParts/IsTruncated") == "true"
    assert page.text("ObjectParts/NextPartNumberMarker") == "3"
    last = store.get("/bucket/k?attributes", {**every, "x-amz-part-number-marker": "3"})
    assert last.text("ObjectParts/IsTruncated") == "false"
    for headers in ({}, {"x-amz-object-attributes": "Colour"}):
        assert store.get("/bucket/k?attributes", headers).code == "InvalidArgument"
    assert store.get("/bucket/missing?attributes", every).code == "NoSuchKey"
    etag = single.headers["etag"]
    same = store.get("/bucket/single?attributes", {**every, "if-none-match": etag})
    assert (same.status, same.headers["etag"], same.body) == (304, etag, b"")
    changed = store.get("/bucket/single?attributes", {**every, "if-match": '"other"'})
    assert (changed.status, changed.code) == (412, "PreconditionFailed")
