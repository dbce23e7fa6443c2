"""What is not built is refused before anything is done, and never taken for something else."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from o3storage.s3._errors import S3Error
from o3storage.s3._names import check_new_bucket, is_bucket_name, split_target
from o3storage.s3._operations import TABLE
from o3storage.s3._router import BUCKET, COMMON_HEADERS, OBJECT, SERVICE, SUB_RESOURCES
from tests.s3.harness import Store, key_path

METHODS = ("GET", "HEAD", "PUT", "POST", "DELETE", "PATCH")
CODES = {"NotImplemented", "MethodNotAllowed"}


@pytest.mark.s3(op="*", errors=["NotImplemented", "MethodNotAllowed"])
def test_no_sub_resource_that_is_not_implemented_reaches_an_object_or_bucket_operation(
    store: Store,
) -> None:
    """The whole list of sub-resources, with all methods, on a bucket, an object and a new name."""
    store.bucket()
    store.put("/bucket/k", b"kept")
    walked = 0
    for sub in sorted(SUB_RESOURCES):
        for method in METHODS:
            for level, target in (
                (SERVICE, "/"),
                (BUCKET, "/bucket"),
                (OBJECT, "/bucket/k"),
                (BUCKET, "/new-bucket"),
                (OBJECT, "/bucket/new-key"),
            ):
                if (method, level, sub) in TABLE:
                    continue
                store.node.submitted.clear()
                answer = store.call(method, f"{target}?{sub}", b"<x/>")
                assert answer.status in (405, 501), (method, target, sub, answer)
                assert method == "HEAD" or answer.code in CODES
                assert not store.node.submitted
                walked += 1
    assert walked > 1000
    assert store.get("/bucket/k").body == b"kept"
    assert store.objects() == ["k"]
    assert store.get("/").texts("Buckets/Bucket/Name") == ["bucket"]


@pytest.mark.parametrize("sub", ["retention", "legal-hold", "restore", "torrent", "acl"])
@pytest.mark.s3(op="PutObject", errors=["NotImplemented"])
def test_put_of_an_object_sub_resource_never_overwrites_the_object(store: Store, sub: str) -> None:
    store.bucket()
    store.put("/bucket/k", b"kept")
    for value in ("", "=", "=1"):
        assert store.put(f"/bucket/k?{sub}{value}", b"<x/>").code == "NotImplemented"
    assert store.put(f"/bucket/k?versionId=x&{sub}", b"<x/>").code == "NotImplemented"
    assert store.get("/bucket/k").body == b"kept"


@pytest.mark.s3(op="CreateBucket", errors=["NotImplemented"])
def test_put_of_a_bucket_sub_resource_never_creates_the_bucket(store: Store) -> None:
    for sub in ("lifecycle", "policy", "object-lock", "replication", "encryption", "acl"):
        assert store.put(f"/b-new?{sub}", b"<x/>").code == "NotImplemented"
    assert store.head("/b-new").status == 404


@pytest.mark.s3(op="*", errors=["InvalidArgument"])
def test_two_sub_resources_at_once_are_refused(store: Store) -> None:
    store.bucket()
    assert store.get("/bucket?acl&versioning").code == "InvalidArgument"
    assert store.put("/bucket/k?tagging&uploadId=1").code == "InvalidArgument"
    assert store.get("/bucket?prefix=a&prefix=b").code == "InvalidArgument"


@pytest.mark.s3(op=["PutObject", "CreateMultipartUpload"], headers=["?versionId", "?partNumber"])
def test_modifiers_of_other_operations_are_refused(store: Store) -> None:
    store.bucket()
    store.put("/bucket/k", b"kept")
    assert store.put("/bucket/k?versionId=null", b"x").code == "InvalidArgument"
    assert store.put("/bucket/k?partNumber=1", b"x").code == "InvalidArgument"
    assert store.delete("/bucket/k?partNumber=1").code == "InvalidArgument"
    assert store.post("/bucket/k?uploads&partNumber=1").code == "InvalidArgument"
    assert store.get("/bucket/k").body == b"kept"


@pytest.mark.parametrize(
    "header",
    [
        "x-amz-object-lock-mode",
        "x-amz-object-lock-retain-until-date",
        "x-amz-object-lock-legal-hold",
        "x-amz-server-side-encryption-customer-algorithm",
        "x-amz-server-side-encryption-customer-key",
        "x-amz-server-side-encryption-customer-key-md5",
        "x-amz-server-side-encryption-aws-kms-key-id",
        "x-amz-server-side-encryption-context",
        "x-amz-server-side-encryption-bucket-key-enabled",
        "x-amz-website-redirect-location",
        "x-amz-grant-read",
        "x-amz-grant-full-control",
        "x-amz-write-offset-bytes",
        "x-amz-bypass-governance-retention",
        "x-amz-mfa",
        "x-amz-rename-source",
        "x-amz-new-header-of-tomorrow",
    ],
)
@pytest.mark.s3(op="*", errors=["NotImplemented"])
def test_an_amz_header_that_is_not_built_is_refused_never_ignored(
    store: Store, header: str
) -> None:
    store.bucket()
    store.put("/bucket/k", b"kept")
    for method, target in (
        ("PUT", "/bucket/k"),
        ("GET", "/bucket/k"),
        ("DELETE", "/bucket/k"),
        ("POST", "/bucket/k?uploads"),
        ("GET", "/bucket"),
        ("PUT", "/b-new"),
    ):
        answer = store.call(method, target, b"x", {header: "1"})
        assert answer.code == "NotImplemented", (method, target)
        assert answer.text("Header") == header
    assert store.get("/bucket/k").body == b"kept"
    assert store.head("/b-new").status == 404


@pytest.mark.s3(
    op=["GetObject", "DeleteObject", "ListObjectsV2"],
    headers=["x-amz-copy-source", "x-amz-tagging"],
    errors=["NotImplemented"],
)
def test_an_amz_header_of_another_operation_is_refused(store: Store) -> None:
    store.bucket()
    store.put("/bucket/k", b"kept")
    assert store.get("/bucket/k", {"x-amz-copy-source": "/b/k"}).code == "NotImplemented"
    assert store.delete("/bucket/k", {"x-amz-tagging": "a=b"}).code == "NotImplemented"
    assert store.get("/bucket?list-type=2", {"x-amz-meta-a": "b"}).code == "NotImplemented"


@pytest.mark.s3(
    op="PutObject",
    headers=["x-amz-acl", "x-amz-storage-class", "x-amz-server-side-encryption"],
    errors=["NotImplemented", "InvalidStorageClass"],
)
def test_values_that_are_true_are_accepted_and_others_refused(store: Store) -> None:
    store.bucket()
    for headers in (
        {"x-amz-acl": "private"},
        {"x-amz-acl": "bucket-owner-full-control"},
        {"x-amz-storage-class": "STANDARD"},
        {"x-amz-server-side-encryption": "AES256"},
    ):
        answer = store.put("/bucket/k", b"x", headers)
        assert answer.status == 200
        assert answer.headers.get("x-amz-server-side-encryption") == headers.get(
            "x-amz-server-side-encryption"
        )
    assert store.head("/bucket/k").headers["x-amz-server-side-encryption"] == "AES256"
    for name, value, code in (
        ("x-amz-acl", "public-read", "NotImplemented"),
        ("x-amz-server-side-encryption", "aws:kms", "NotImplemented"),
        ("x-amz-storage-class", "GLACIER", "NotImplemented"),
        ("x-amz-storage-class", "GOLD", "InvalidStorageClass"),
        ("content-range", "bytes 0-0/5", "NotImplemented"),
        ("x-amz-api-version", "2099-01-01", "NotImplemented"),
    ):
        assert store.put("/bucket/other", b"x", {name: value}).code == code
    assert store.objects() == ["k"]


@pytest.mark.s3(
    op="*", headers=[*sorted(COMMON_HEADERS), "x-amz-api-version"], errors=["AccessDenied"]
)
def test_common_headers_are_understood_everywhere(store: Store) -> None:
    store.bucket()
    headers = {
        "x-amz-optional-object-attributes": "RestoreStatus",
        "x-amz-request-payer": "requester",
        "x-amz-user-agent": "aws-sdk-js",
        "x-amz-api-version": "2006-03-01",
        "x-amz-expected-bucket-owner": "0f" * 32,
    }
    assert store.put("/bucket/k", b"x", headers).status == 200
    assert store.get("/bucket/k", headers).body == b"x"
    headers["x-amz-expected-bucket-owner"] = "111122223333"
    for method, target in (
        ("PUT", "/bucket/k"),
        ("GET", "/bucket/k"),
        ("DELETE", "/bucket/k"),
        ("GET", "/bucket"),
        ("DELETE", "/bucket"),
    ):
        assert store.call(method, target, b"y", headers).code == "AccessDenied"
    assert store.get("/bucket/k").body == b"x"


@pytest.mark.s3(op="GetObject", headers=["x-amz-te"], errors=["NotImplemented"])
def test_an_md5_behind_the_body_is_offered_and_not_taken(store: Store) -> None:
    """The AWS SDK for Java 2 sends this with every GetObject; it was answered with 501."""
    store.bucket()
    store.put("/bucket/k", b"x")
    got = store.get("/bucket/k", {"x-amz-te": "append-md5"})
    assert (got.status, got.body) == (200, b"x")
    assert "x-amz-transfer-encoding" not in got.headers
    assert store.get("/bucket/k", {"x-amz-te": "append-sha256"}).code == "NotImplemented"
    assert store.put("/bucket/k", b"y", {"x-amz-te": "append-md5"}).code == "NotImplemented"


# --- names


@pytest.mark.parametrize(
    "name",
    [
        "ab",
        "a" * 64,
        "Bucket",
        "bucket_1",
        "-bucket",
        "bucket-",
        ".bucket",
        "bucket.",
        "buck..et",
        "buck.-et",
        "buck-.et",
        "192.168.5.4",
        "xn--bucket",
        "sthree-bucket",
        "amzn-s3-demo-bucket",
        "bucket-s3alias",
        "bucket--ol-s3",
        "bucket.mrap",
        "bucket--x-s3",
        "bucket--table-s3",
        "buck et",
        "bücket",
        "bucket%2Ab",
        "health",
        "metrics",
        "minio",
    ],
)
@pytest.mark.s3(op="CreateBucket", errors=["InvalidBucketName"])
def test_every_invalid_bucket_name_is_refused(store: Store, name: str) -> None:
    target = "/" + (name if "%" in name else key_path(name))
    assert store.put(target).code == "InvalidBucketName"
    assert not store.node.submitted


@settings(max_examples=200, deadline=None)
@given(st.from_regex(r"[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]", fullmatch=True))
def test_names_of_the_right_shape_are_refused_for_a_reason_only(name: str) -> None:
    bad = (
        any(pair in name for pair in ("..", ".-", "-."))
        or name.startswith(("xn--", "sthree-", "amzn-s3-demo-"))
        or name.endswith(("-s3alias", "--ol-s3", ".mrap", "--x-s3", "--table-s3"))
        or (name.replace(".", "").isdigit() and name.count(".") == 3)
    )
    assert is_bucket_name(name) is not bad
    if not bad and name not in ("health", "metrics", "minio"):
        check_new_bucket(name)


def test_names_too_long_for_a_bucket_are_not_remembered(store: Store) -> None:
    is_bucket_name.cache_clear()
    for path in ("/" + "b" * 63, "/" + "b" * 64, "/" + "b" * 9000):
        store.call("OPTIONS", path, sign=False)
    assert is_bucket_name.cache_info().currsize == 1


def test_the_space_below_dash_is_no_bucket(store: Store) -> None:
    for target in ("/-/admin/v1/status", "/-", "/-/x"):
        assert store.put(target, b"x").code == "InvalidBucketName"


@pytest.mark.parametrize(
    ("key", "code"),
    [
        ("k" * 1025, "KeyTooLongError"),
        ("é" * 513, "KeyTooLongError"),
        ("a%00b", "InvalidURI"),
        ("a%FFb", "InvalidURI"),
        ("a%ED%A0%80b", "InvalidURI"),
        # Marks of listings: one that went on after such a key would not end.
        ("a\U0010fffe", "InvalidURI"),
        ("a\U0010ffff/b", "InvalidURI"),
        ("a%zz", "InvalidURI"),
        ("a%2", "InvalidURI"),
    ],
)
@pytest.mark.s3(op="PutObject", errors=["KeyTooLongError", "InvalidURI"])
def test_keys_that_cannot_be_stored_are_refused(store: Store, key: str, code: str) -> None:
    store.bucket()
    target = "/bucket/" + (key if "%" in key else key_path(key))
    assert store.send("PUT", target.encode(), b"", _signed(store, target), _Empty()).code == code
    assert store.objects() == []


class _Empty:
    length = 0
    declared = True

    async def read_into(self, view: memoryview) -> int:
        return 0


def _signed(store: Store, target: str) -> dict[str, str]:
    from botocore.awsrequest import AWSRequest
    from botocore.credentials import Credentials

    from tests.s3.harness import HOST, KEY_ID, SECRET, Auth, text
    from tests.s3.support import frozen_botocore

    aws = AWSRequest("PUT", f"http://{HOST}{target}", headers={})
    aws.headers["X-Amz-Content-SHA256"] = "UNSIGNED-PAYLOAD"
    with frozen_botocore(store.clock.ns // 10**9):
        Auth(Credentials(KEY_ID, SECRET), "s3", "us-east-1", "UNSIGNED-PAYLOAD").add_auth(aws)
    return {"host": HOST, **{n.lower(): text(v) for n, v in aws.headers.items()}}


@pytest.mark.parametrize(
    "key",
    [
        "k" * 1024,
        "../../etc/passwd",
        "a/../b",
        "a//b",
        "./a",
        "/leading",
        "a%2Fb as text".replace("%2F", "%"),
        "control\x01\x1f\x7f",
        "new\nline\r",
        "emoji 🎉/漢字/é",
        "plus+ and space & = ? # ' \" < >",
        " ",
        "\ufffe",
    ],
)
@pytest.mark.s3(op=["PutObject", "GetObject", "ListObjects", "DeleteObject"])
def test_strange_keys_are_stored_listed_and_deleted_as_they_are(store: Store, key: str) -> None:
    store.bucket()
    target = f"/bucket/{key_path(key)}"
    assert store.put(target, b"body").status == 200
    assert store.get(target).body == b"body"
    listed = store.get("/bucket?encoding-type=url")
    from urllib.parse import unquote

    assert [unquote(k) for k in listed.texts("Contents/Key")] == [key]
    assert store.delete(target).status == 204
    assert store.objects() == []


@pytest.mark.s3(op="GetObject", headers=["host"])
def test_virtual_host_style_names_the_bucket_by_host() -> None:
    store = Store(domain="s3.example.org")
    store.bucket()
    store.put("/bucket/k", b"by path")
    for host in ("bucket.s3.example.org", "bucket.s3.example.org:9000"):
        assert store.get("/k", host=host).body == b"by path", host
    assert store.put("/new", b"by host", host="bucket.s3.example.org").status == 200
    assert store.get("/bucket/new", host="s3.example.org").body == b"by host"
    assert store.get("/", host="bucket.s3.example.org").texts("Contents/Key") == ["k", "new"]
    # Another domain is path style.
    assert store.get("/bucket/k", host="bucket.s3.elsewhere.org").body == b"by path"
    store.close()


@pytest.mark.parametrize(
    ("path", "host", "expected"),
    [
        (b"/", "h", (None, None)),
        (b"/bucket", "h", ("bucket", None)),
        (b"/bucket/", "h", ("bucket", None)),
        (b"/bucket//", "h", ("bucket", b"/")),
        (b"/bucket//a", "h", ("bucket", b"/a")),
        (b"/bucket/a/", "h", ("bucket", b"a/")),
        (b"//key", "my.bucket.dom.ain", ("my.bucket", b"/key")),
        (b"/", "bucket.dom.ain:80", ("bucket", None)),
        (b"/k", "BUCKET.Dom.ain", ("bucket", b"k")),
        (b"/k", "bucket.dom.ain.", ("bucket", b"k")),
        (b"/k", "bucket.dom.ain.:80", ("bucket", b"k")),
        (b"/bucket", "dom.ain.", ("bucket", None)),
        (b"/bucket", "dom.ain", ("bucket", None)),
        (b"/bucket", "notdom.ain", ("bucket", None)),
        (b"/bucket", "[::1]:80", ("bucket", None)),
    ],
)
def test_targets_are_split(
    path: bytes, host: str, expected: tuple[str | None, bytes | None]
) -> None:
    assert split_target(path, host, ("dom.ain",)) == expected


def test_a_double_slash_at_the_start_names_no_bucket() -> None:
    with pytest.raises(S3Error) as caught:
        split_target(b"//key", "h", ())
    assert caught.value.code == "InvalidBucketName"


@pytest.mark.s3(op="*", errors=["MethodNotAllowed"])
def test_methods_that_s3_does_not_have(store: Store) -> None:
    store.bucket()
    for method, target, allowed in (
        ("POST", "/", "GET"),
        ("PUT", "/", "GET"),
        ("DELETE", "/", "GET"),
        ("PATCH", "/bucket", "PUT, HEAD, DELETE, GET, POST"),
        ("POST", "/bucket/k", "GET, HEAD, PUT, DELETE"),
        ("TRACE", "/bucket/k", "GET, HEAD, PUT, DELETE"),
        ("HEAD", "/bucket?acl", "GET"),
    ):
        answer = store.call(method, target)
        assert answer.status == 405, (method, target)
        assert answer.code == ("" if method == "HEAD" else "MethodNotAllowed"), (method, target)
        assert answer.headers["allow"] == allowed  # RFC 9110, section 15.5.6


@pytest.mark.s3(op="*", headers=["x-amz-request-id", "x-amz-id-2"])
def test_every_answer_has_a_request_id_of_its_own(store: Store) -> None:
    answers = [store.get("/"), store.get("/bucket"), store.head("/bucket"), store.put("/x")]
    ids = {answer.headers["x-amz-request-id"] for answer in answers}
    assert len(ids) == 4
    assert all(answer.headers["x-amz-id-2"] for answer in answers)
    assert answers[1].text("RequestId") == answers[1].headers["x-amz-request-id"]
    assert answers[1].text("HostId") == answers[1].headers["x-amz-id-2"]
    assert answers[1].text("Resource") == "/bucket"
