"""Who gets in: owners, and anonymous requests where they are switched on."""

from __future__ import annotations

import pytest

from o3storage.s3._anonymous import Anonymous, is_loopback
from o3storage.s3._errors import S3Error
from o3storage.s3._operations import TABLE
from o3storage.s3._router import BUCKET, OBJECT, SERVICE
from tests.s3.harness import Answer, Store
from tests.s3.support import OWNER, request
from tests.s3.test_post_form import encode, send


@pytest.mark.s3(op="*", errors=["AccessDenied"])
def test_a_bucket_belongs_to_its_owner_and_nobody_else_gets_in(store: Store) -> None:
    """Every operation of the table, as somebody else."""
    store.bucket()
    store.put("/bucket/k", b"kept")
    upload = store.upload("/bucket/k")
    walked = 0
    for method, level, sub in TABLE:
        name = sub.removeprefix("copy:")
        target = {SERVICE: "/", BUCKET: "/bucket", OBJECT: "/bucket/k"}[level]
        if name:
            target += f"?{name}" + {"uploadId": f"={upload}", "list-type": "=2"}.get(name, "")
        headers = {"x-amz-copy-source": "/bucket/k"} if sub.startswith("copy:") else {}
        if (method, level, sub) == ("POST", BUCKET, ""):
            continue  # a form's sender is its policy's: see test_post_form
        if level == SERVICE:
            continue
        answer = store.call(method, target, b"<x/>", headers, other=True)
        if TABLE[method, level, sub].name == "CreateBucket":
            assert answer.status in (400, 409)
        else:
            assert answer.status == 403, (method, target, answer)
            assert method == "HEAD" or answer.code == "AccessDenied"
        walked += 1
    assert walked >= 45
    assert store.get("/bucket/k").body == b"kept"
    assert store.get("/", other=True).texts("Buckets/Bucket/Name") == []


# --- anonymous


@pytest.fixture
def open_store() -> Store:
    """Anonymous requests switched on, listening on 192.0.2.7."""
    return Store(anonymous=True, listened=("192.0.2.7", "2001:db8::7"), domain="s3.example.org")


def plain(store: Store, method: str, target: str, body: bytes = b"", **headers: str) -> Answer:
    sent = {"host": "127.0.0.1:8080", **{n.replace("_", "-"): v for n, v in headers.items()}}
    return store.call(method, target, body, sent, sign=False)


@pytest.mark.s3(op=["CreateBucket", "PutObject", "GetObject", "ListObjects"])
def test_the_four_curl_lines_of_the_first_hour(open_store: Store) -> None:
    store = open_store
    assert plain(store, "PUT", "/my-bucket").status == 200
    put = plain(
        store, "PUT", "/my-bucket/my-file.txt", b"Hello, O3Storage!", content_type="text/plain"
    )
    assert put.status == 200
    got = plain(store, "GET", "/my-bucket/my-file.txt")
    assert (got.body, got.headers["content-type"]) == (b"Hello, O3Storage!", "text/plain")
    assert plain(store, "GET", "/my-bucket/").texts("Contents/Key") == ["my-file.txt"]
    # As the root owner: signed requests see the same.
    assert store.get("/").texts("Buckets/Bucket/Name") == ["my-bucket"]


@pytest.mark.s3(op="*", errors=["AccessDenied"])
def test_anonymous_is_closed_by_default(store: Store) -> None:
    for method in ("GET", "PUT", "POST", "DELETE", "HEAD"):
        assert plain(store, method, "/bucket/k").status == 403


@pytest.mark.parametrize(
    ("headers", "admitted"),
    [
        ({"host": "localhost:8080"}, True),
        ({"host": "LOCALHOST"}, True),
        ({"host": "127.3.4.5"}, True),
        ({"host": "[::1]:8080"}, True),
        ({"host": "app.localhost"}, True),
        ({"host": "192.0.2.7:8080"}, True),
        ({"host": "[2001:db8::7]:8080"}, True),
        ({"host": "s3.example.org"}, True),
        ({"host": "bucket.s3.example.org"}, True),
        ({"host": "evil.org"}, False),
        ({"host": "127.0.0.1.evil.org"}, False),
        ({"host": "192.0.2.8"}, False),
        ({"host": "evils3.example.org.evil.org"}, False),
        ({"host": ""}, False),
        ({"origin": "http://127.0.0.1:8080"}, True),
        ({"origin": "http://127.0.0.1:9999"}, False),
        ({"origin": "https://127.0.0.1:8080"}, False),
        ({"origin": "http://evil.org"}, False),
        ({"origin": "null"}, False),
        ({"sec-fetch-site": "same-origin"}, True),
        ({"sec-fetch-site": "none"}, True),
        ({"sec-fetch-site": "cross-site"}, False),
        ({"forwarded": "for=1.2.3.4"}, False),
        ({"x-forwarded-for": "1.2.3.4"}, False),
        ({"x-forwarded-proto": "https"}, False),
        ({"x-real-ip": "1.2.3.4"}, False),
        ({"via": "1.1 proxy"}, False),
    ],
)
@pytest.mark.s3(op="*", headers=["host", "origin"], errors=["AccessDenied"])
def test_anonymous_requests_that_are_refused(
    open_store: Store, headers: dict[str, str], admitted: bool
) -> None:
    answer = open_store.call("GET", "/", headers={"host": "127.0.0.1:8080", **headers}, sign=False)
    assert (answer.status != 403) is admitted, answer


@pytest.mark.parametrize(
    ("local", "host", "admitted"),
    [
        ("192.0.2.9", "192.0.2.9:8080", True),
        ("192.0.2.9", "192.0.2.9", True),
        ("192.0.2.9", "192.0.2.10:8080", False),
        ("192.0.2.9", "192.0.2.9.evil.org", False),
        ("192.0.2.9", "0.0.0.0:8080", False),
        ("2001:db8::9", "[2001:DB8:0:0::9]:8080", True),
        ("2001:db8::9", "[2001:db8::10]:8080", False),
        ("", "", False),
    ],
)
@pytest.mark.s3(op="*", headers=["host"], errors=["AccessDenied"])
def test_on_all_addresses_each_is_the_servers_own(local: str, host: str, admitted: bool) -> None:
    """`--ip 0.0.0.0 --anonymous --anonymous-from-anywhere`."""
    store = Store(anonymous=True, listened=("::",))
    store.local = local
    answer = store.call("GET", "/", headers={"host": host}, sign=False)
    store.close()
    assert (answer.status != 403) is admitted, answer


@pytest.mark.s3(op="GetObject", headers=["?response-content-type"], errors=["InvalidRequest"])
def test_overrides_on_anonymous_requests_are_400(open_store: Store) -> None:
    plain(open_store, "PUT", "/bucket")
    plain(open_store, "PUT", "/bucket/k", b"x", content_length="1")
    answer = plain(open_store, "GET", "/bucket/k?response-content-type=text%2Fhtml")
    assert (answer.status, answer.code) == (400, "InvalidRequest")


@pytest.mark.s3(op="PostObject", errors=["AccessDenied"])
def test_anonymous_forms(open_store: Store) -> None:
    plain(open_store, "PUT", "/bucket")
    assert send(open_store, encode({"key": "k"}, b"file")).status == 204
    assert open_store.get("/bucket/k").body == b"file"
    headers = {
        "host": "127.0.0.1:9000",
        "origin": "http://evil.org",
        "content-type": "multipart/form-data; boundary=----boundary7MA4YWxk",
    }
    from tests.s3.support import BytesBody

    body = BytesBody(encode({"key": "evil"}, b"file"))
    answer = open_store.send("POST", b"/bucket", b"", headers, body)
    assert answer.code == "AccessDenied"
    assert open_store.objects() == ["k"]


@pytest.mark.s3(op="PutObject", errors=["InvalidRequest"])
def test_an_anonymous_body_cannot_have_signed_chunks(open_store: Store) -> None:
    plain(open_store, "PUT", "/bucket")
    answer = plain(
        open_store,
        "PUT",
        "/bucket/k",
        b"0\r\n\r\n",
        x_amz_content_sha256="STREAMING-AWS4-HMAC-SHA256-PAYLOAD",
    )
    assert answer.code == "InvalidRequest"


def test_a_broken_signature_is_not_taken_for_anonymous(open_store: Store) -> None:
    answer = plain(open_store, "GET", "/", authorization="AWS4-HMAC-SHA256 junk")
    assert answer.status == 400
    assert plain(open_store, "GET", "/?X-Amz-Signature=00").status == 400


@pytest.mark.parametrize(
    ("name", "loopback"),
    [
        ("localhost", True),
        ("127.0.0.1", True),
        ("127.255.255.254", True),
        ("[::1]", True),
        ("[::ffff:127.0.0.1]", False),
        ("0.0.0.0", False),
        ("[::]", False),
        ("128.0.0.1", False),
        ("localhost.evil.org", False),
        ("2130706433", False),
    ],
)
def test_what_loopback_means(name: str, loopback: bool) -> None:
    assert is_loopback(name) is loopback


def test_the_reason_is_told() -> None:
    rule = Anonymous(OWNER, (), ())
    with pytest.raises(S3Error) as caught:
        rule.admit(request("GET", b"/", headers=[("host", "localhost"), ("via", "1.1 x")]))
    assert "via" in caught.value.message
