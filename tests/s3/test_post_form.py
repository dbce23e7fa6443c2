"""PostObject: browser forms, their policies, and the form parser."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import json
from typing import Any

import pytest
from botocore.auth import S3SigV4PostAuth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials
from hypothesis import given, settings
from hypothesis import strategies as st

from o3storage.s3._errors import S3Error
from o3storage.s3._form_data import FormFile, boundary_of
from o3storage.s3._post_form import check_policy
from tests.s3.harness import Answer, Store
from tests.s3.support import KEY_ID, SECRET, BytesBody, frozen_botocore

BOUNDARY = "----boundary7MA4YWxk"


def signed_fields(
    store: Store, conditions: list[Any], expires: str = "2100-01-01T00:00:00Z"
) -> dict[str, str]:
    """Policy, credential and signature by botocore's own POST signer."""
    fields: dict[str, str] = {}
    aws = AWSRequest("POST", "http://localhost:9000/bucket")
    aws.context["s3-presign-post-fields"] = fields
    aws.context["s3-presign-post-policy"] = {"expiration": expires, "conditions": conditions}
    with frozen_botocore(store.clock.ns // 10**9):
        S3SigV4PostAuth(Credentials(KEY_ID, SECRET), "s3", "us-east-1").add_auth(aws)
    return fields


def encode(
    fields: dict[str, str], file: bytes = b"", filename: str = "a.txt", after: str = ""
) -> bytes:
    out = b""
    for name, value in fields.items():
        out += (
            f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="{name}"\r\n\r\n{value}\r\n'
        ).encode()
    out += (
        f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="file"; filename="{filename}"\r\n'
        "Content-Type: text/ignored\r\n\r\n"
    ).encode()
    return out + file + f"\r\n--{BOUNDARY}{after}--\r\n".encode()


def send(store: Store, body: bytes, path: str = "/bucket", step: int = 1 << 20) -> Answer:
    headers = {
        "host": "127.0.0.1:9000",
        "content-type": f"multipart/form-data; boundary={BOUNDARY}",
    }
    return store.send("POST", path.encode(), b"", headers, BytesBody(body, step))


CONDITIONS: list[Any] = [
    {"bucket": "bucket"},
    ["starts-with", "$key", "up/"],
    ["starts-with", "$Content-Type", "text/"],
    ["content-length-range", 2, 10],
    {"x-amz-meta-a": "1"},
]

ANY_KEY: list[Any] = [{"bucket": "bucket"}, ["starts-with", "$key", ""]]


@pytest.mark.parametrize("step", [1, 7, 1 << 20])
@pytest.mark.s3(op="PostObject", headers=["content-type", "x-amz-meta-*", "etag"])
def test_a_form_stores_its_file(store: Store, step: int) -> None:
    store.bucket()
    fields = signed_fields(store, CONDITIONS)
    fields |= {
        "key": "up/${filename}",
        "Content-Type": "text/x",
        "x-amz-meta-a": "1",
        "x-ignore-me": "?",
    }
    answer = send(store, encode(fields, b"file\r\n--x", "C:\\dir\\é.txt"), step=step)
    assert (answer.status, answer.body) == (204, b""), answer
    assert (
        answer.headers["etag"] == f'"{hashlib.md5(b"file" + bytes([13, 10]) + b"--x").hexdigest()}"'
    )
    assert answer.headers["location"] == "http://127.0.0.1:9000/bucket/up/%C3%A9.txt"
    got = store.get("/bucket/up/%C3%A9.txt")
    assert got.body == b"file\r\n--x"
    assert (got.headers["content-type"], got.headers["x-amz-meta-a"]) == ("text/x", "1")


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"key": "other/k"}, "AccessDenied"),
        ({"x-amz-meta-a": "2"}, "AccessDenied"),
        ({"x-amz-meta-b": "1"}, "AccessDenied"),
        ({"Content-Type": "image/png"}, "AccessDenied"),
        ({"Cache-Control": "no-cache"}, "AccessDenied"),
        ({"success_action_status": "201"}, "AccessDenied"),
        ({"x-amz-storage-class": "STANDARD"}, "AccessDenied"),
        ({"x-amz-signature": "0" * 64}, "SignatureDoesNotMatch"),
        ({"key": ""}, "AccessDenied"),
    ],
)
@pytest.mark.s3(op="PostObject", errors=["AccessDenied", "SignatureDoesNotMatch"])
def test_every_field_must_be_matched_by_the_policy(
    store: Store, change: dict[str, str], code: str
) -> None:
    store.bucket()
    fields = signed_fields(store, CONDITIONS)
    fields |= {"key": "up/k", "Content-Type": "text/x", "x-amz-meta-a": "1", **change}
    assert send(store, encode(fields, b"file")).code == code
    assert store.objects() == []
    assert store.node.streams == {}


@pytest.mark.s3(op="PostObject", headers=["x-amz-meta-*"], errors=["AccessDenied"])
def test_the_policy_is_held_to_the_name_of_the_file(store: Store) -> None:
    """AWS: the file's name stands in all fields before any condition is looked at."""
    store.bucket()
    conditions: list[Any] = [
        {"bucket": "bucket"},
        ["starts-with", "$key", "up/a"],
        ["starts-with", "$key", "up/a.t"],
        {"x-amz-meta-name": "the a.txt"},
    ]
    fields = {
        **signed_fields(store, conditions),
        "key": "up/${filename}",
        "x-amz-meta-name": "the ${filename}",
    }
    assert send(store, encode(fields, filename="b.txt")).code == "AccessDenied"
    assert store.objects() == []
    assert send(store, encode(fields, filename="../x/a.txt")).status == 204
    assert store.get("/bucket/up/a.txt").headers["x-amz-meta-name"] == "the a.txt"
    # As it stands in the form it is not what the policy speaks of.
    fields |= signed_fields(store, [*ANY_KEY, {"x-amz-meta-name": "the ${filename}"}])
    assert send(store, encode(fields)).code == "AccessDenied"


@pytest.mark.s3(op="PostObject", errors=["EntityTooLarge", "EntityTooSmall"])
def test_the_files_size_is_held_to_the_policy(store: Store) -> None:
    store.bucket()
    fields = signed_fields(store, [*ANY_KEY, ["content-length-range", "2", 10]])
    fields["key"] = "k"
    for size, code in ((1, "EntityTooSmall"), (11, "EntityTooLarge"), (300_000, "EntityTooLarge")):
        answer = send(store, encode(fields, b"x" * size))
        assert (answer.status, answer.code) == (400, code)
    assert store.objects() == []
    assert store.node.streams == {}
    for size in (2, 10):
        assert send(store, encode(fields, b"x" * size)).status == 204


@pytest.mark.s3(op="PostObject", errors=["AccessDenied"])
def test_a_policy_expires_and_names_its_bucket(store: Store) -> None:
    store.bucket()
    store.bucket("other")
    old = signed_fields(store, ANY_KEY, "2000-01-01T00:00:00Z")
    assert "expired" in (send(store, encode({**old, "key": "k"})).text("Message") or "")
    fields = {**signed_fields(store, CONDITIONS[:2]), "key": "up/k"}
    assert send(store, encode(fields), "/other").code == "AccessDenied"
    assert send(store, encode(fields), "/bucket").status == 204
    anywhere = {**signed_fields(store, ANY_KEY[1:]), "key": "k"}
    refused = send(store, encode(anywhere))
    assert (refused.code, "bucket" in (refused.text("Message") or "")) == ("AccessDenied", True)


@pytest.mark.parametrize(
    ("policy", "code"),
    [
        ("not base64!", "InvalidPolicyDocument"),
        (base64.b64encode(b"not json").decode(), "InvalidPolicyDocument"),
        (base64.b64encode(b"[]").decode(), "InvalidPolicyDocument"),
        (base64.b64encode(b"{}").decode(), "InvalidPolicyDocument"),
        (
            base64.b64encode(b'{"expiration": "soon", "conditions": []}').decode(),
            "InvalidPolicyDocument",
        ),
        (
            base64.b64encode(b'{"expiration": "2100-01-01T00:00:00Z"}').decode(),
            "InvalidPolicyDocument",
        ),
        *(
            (
                base64.b64encode(
                    json.dumps({"expiration": "2100-01-01T00:00:00Z", "conditions": [bad]}).encode()
                ).decode(),
                "InvalidPolicyDocument",
            )
            for bad in (
                5,
                [],
                ["eq", "$key"],
                ["eq", "key", "x"],
                ["ne", "$key", "x"],
                ["eq", 1, 2],
                {"key": 5},
                ["content-length-range", -1, 5],
                ["content-length-range", 5, 1],
                ["content-length-range", "a", "b"],
            )
        ),
    ],
)
@pytest.mark.s3(op="PostObject", errors=["InvalidPolicyDocument"])
def test_malformed_policies(policy: str, code: str) -> None:
    with pytest.raises(S3Error) as caught:
        check_policy({"policy": policy, "key": "k"}, "bucket", 0)
    assert caught.value.code == code


@settings(max_examples=200, deadline=None)
@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(max_size=5),
        lambda inner: (
            st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=3)
        ),
        max_leaves=10,
    )
)
def test_any_json_as_conditions_ends_in_an_s3_error_or_a_range(conditions: object) -> None:
    document = {"expiration": "2100-01-01T00:00:00Z", "conditions": conditions}
    policy = base64.b64encode(json.dumps(document).encode()).decode()
    try:
        low, _high = check_policy({"policy": policy}, "bucket", 0)
    except S3Error as error:
        assert error.status in (400, 403)
    else:
        assert low >= 0


@pytest.mark.s3(op="PostObject", headers=["location"])
def test_what_a_form_is_answered(store: Store) -> None:
    store.bucket()
    free: list[Any] = [
        *ANY_KEY,
        ["starts-with", "$success_action_status", ""],
        ["starts-with", "$success_action_redirect", ""],
    ]
    fields = {**signed_fields(store, free), "key": "k"}
    assert send(store, encode({**fields, "success_action_status": "200"})).status == 200
    made = send(store, encode({**fields, "success_action_status": "201"}))
    assert made.status == 201
    assert (made.text("Bucket"), made.text("Key")) == ("bucket", "k")
    assert made.text("Location") == "http://127.0.0.1:9000/bucket/k"
    assert send(store, encode({**fields, "success_action_status": "500"})).status == 204
    to = "https://app.example.org/done?x=1"
    moved = send(store, encode({**fields, "success_action_redirect": to}))
    assert moved.status == 303
    location = moved.headers["location"]
    assert location.startswith("https://app.example.org/done?x=1&bucket=bucket&key=k&etag=")
    for bad in ("javascript:alert(1)", "no url", "https://", "http://[x"):
        assert send(store, encode({**fields, "success_action_redirect": bad})).status == 204


@pytest.mark.s3(
    op="PostObject",
    headers=["x-amz-tagging", "content-md5", "x-amz-checksum-sha1", "x-amz-checksum-crc32"],
    errors=["InvalidRequest", "InvalidArgument", "NotImplemented", "UserKeyMustBeSpecified"],
)
def test_form_fields_that_are_headers(store: Store) -> None:
    store.bucket()
    names = (
        "key",
        "tagging",
        "acl",
        "content-md5",
        "x-amz-checksum-sha1",
        "x-amz-checksum-crc32",
        "x-amz-acl",
        "x-amz-tagging",
        "x-amz-meta-a\nb",
        "x-amz-object-lock-mode",
    )
    conditions: list[Any] = [
        {"bucket": "bucket"},
        *(["starts-with", f"${name}", ""] for name in names),
    ]
    fields = {**signed_fields(store, conditions), "key": "k"}
    tags = "<Tagging><TagSet><Tag><Key>a</Key><Value>b</Value></Tag></TagSet></Tagging>"
    sha1 = base64.b64encode(hashlib.sha1(b"file").digest()).decode()
    good = {"tagging": tags, "acl": "private", "x-amz-checksum-sha1": sha1}
    assert send(store, encode({**fields, **good}, b"file")).status == 204
    assert store.get("/bucket/k?tagging").texts("TagSet/Tag/Key") == ["a"]
    store.delete("/bucket/k")
    for bad, code in (
        ({"tagging": "<x"}, "MalformedXML"),
        ({"acl": "public-read"}, "NotImplemented"),
        ({"content-md5": "x"}, "InvalidDigest"),
        ({"content-md5": base64.b64encode(bytes(16)).decode()}, "BadDigest"),
        ({"x-amz-checksum-sha1": base64.b64encode(bytes(20)).decode()}, "BadDigest"),
        ({"x-amz-checksum-sha1": sha1, "x-amz-checksum-crc32": "AAAAAA=="}, "InvalidRequest"),
        ({"acl": "public-read", "x-amz-acl": "private"}, "InvalidArgument"),
        ({"x-amz-tagging": "a=b"}, "NotImplemented"),
        ({"x-amz-meta-a\nb": "1"}, "InvalidArgument"),
        ({"x-amz-object-lock-mode": "GOVERNANCE"}, "NotImplemented"),
        ({"key": "k" * 1025}, "KeyTooLongError"),
        ({"key": ""}, "UserKeyMustBeSpecified"),
        ({"key": "${filename}"}, "UserKeyMustBeSpecified"),
    ):
        assert send(store, encode({**fields, **bad}, b"file", "")).code == code, bad
    del fields["key"]
    assert send(store, encode(fields)).code == "InvalidArgument"
    assert store.objects() == []


@pytest.mark.s3(op="PostObject", errors=["AccessDenied", "NoSuchBucket", "InvalidAccessKeyId"])
def test_who_may_post(store: Store) -> None:
    store.bucket()
    assert send(store, encode({"key": "k"})).code == "AccessDenied"
    fields = {**signed_fields(store, ANY_KEY), "key": "k"}
    assert send(store, encode(fields), "/no-such").code in ("NoSuchBucket", "AccessDenied")
    unknown = {**fields, "x-amz-credential": fields["x-amz-credential"].replace(KEY_ID, "AKIAX")}
    assert send(store, encode(unknown)).code == "InvalidAccessKeyId"
    assert store.put("/theirs", other=True).status == 200
    assert send(store, encode(fields), "/theirs").code == "AccessDenied"


@pytest.mark.s3(op="PostObject", errors=["MalformedPOSTRequest", "PreconditionFailed"])
def test_a_post_that_is_no_form(store: Store) -> None:
    store.bucket()
    answer = store.post("/bucket", b"x", {"content-type": "text/plain"})
    assert (answer.status, answer.code) == (412, "PreconditionFailed")
    for body in (b"", b"junk", f"--{BOUNDARY}--\r\n".encode(), encode({"key": "k"})[:-30]):
        answer = send(store, body)
        assert answer.status in (400, 403), body
    for content_type in ("multipart/form-data", "multipart/form-data; boundary="):
        headers = {"host": "h", "content-type": content_type}
        answer = store.send("POST", b"/bucket", b"", headers, BytesBody(b"x"))
        assert answer.code == "MalformedPOSTRequest"


# --- the parser


def parse(data: bytes, step: int, block: int) -> tuple[dict[str, str], bytes, str]:
    form = FormFile(BytesBody(data, step), BOUNDARY.encode())

    async def run() -> bytes:
        await form.read_fields()
        out = bytearray()
        view = memoryview(bytearray(block))
        while count := await form.read_into(view):
            out += view[:count]
        return bytes(out)

    return form.fields, asyncio.run(run()), form.filename


@settings(max_examples=200, deadline=None)
@given(
    fields=st.dictionaries(
        st.from_regex(r"[a-z][a-z-]{0,8}", fullmatch=True).filter(lambda n: n != "file"),
        st.text(st.characters(blacklist_categories=("Cs",)), max_size=20),
        max_size=4,
    ),
    file=st.binary(max_size=200) | st.just(f"\r\n--{BOUNDARY[:-1]}".encode() * 3),
    step=st.integers(1, 300),
    block=st.integers(1, 300),
)
def test_any_split_of_a_form_reads_the_same(
    fields: dict[str, str], file: bytes, step: int, block: int
) -> None:
    data = encode(fields, file)
    assert parse(data, step, block) == (fields, file, "a.txt")
    with pytest.raises(S3Error):
        parse(data[: len(data) - len(BOUNDARY) - 6], step, block)


@settings(max_examples=200, deadline=None)
@given(data=st.binary(max_size=300), prefixed=st.booleans())
def test_arbitrary_forms_raise_nothing_but_s3_errors(data: bytes, prefixed: bool) -> None:
    try:
        parse(encode({"a": "b"})[:100] + data if prefixed else data, 50, 50)
    except S3Error as error:
        assert error.status == 400


def test_limits_of_a_form() -> None:
    for data in (
        encode({"a": "x" * 30_000}),
        encode({f"f{n}": "" for n in range(150)}),
        f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="a"\r\n'.encode() + b"x" * 30_000,
        b"x" * 30_000,
        encode({"key": "a"}).replace(b'name="key"', b'nom="key"'),
        encode({"a": "1"})[:-4].replace(b'name="file"', b'name="a"') + b"--\r\n",
        encode({"a": "${filename}" * 100}, filename="x" * 200),
    ):
        with pytest.raises(S3Error):
            parse(data, 1000, 1000)


def test_boundaries() -> None:
    assert boundary_of('multipart/form-data; charset=x; boundary="a b"') == b"a b"
    assert boundary_of("multipart/form-data; Boundary=ab; x=y") == b"ab"
    for bad in ("multipart/form-data", "multipart/form-data; boundary=", f"m; boundary={'x' * 71}"):
        with pytest.raises(S3Error):
            boundary_of(bad)
