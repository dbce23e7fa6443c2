"""Signature V4: AWS's published examples, botocore as the oracle, canonical forms, identities, POST
forms. Refusals: `test_sigv4_refusals.py`."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import json
from typing import Any
from urllib.parse import quote

import pytest
from botocore.auth import S3SigV4PostAuth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials
from hypothesis import given, settings
from hypothesis import strategies as st

from o3storage.s3._errors import S3Error
from o3storage.s3._sigv4 import Credential, Identity, PayloadKind
from tests.s3.sigv4_support import (
    DATE,
    EMPTY,
    HOST,
    PRESIGNED,
    authorization,
    refused,
    sign_by_hand,
    signed_get,
)
from tests.s3.support import (
    KEY_ID,
    OWNER,
    SECRET,
    authenticate,
    authenticator,
    botocore_sign,
    frozen_botocore,
    request,
    sha256_hex,
)

# --- AWS's published examples (S3 API reference, "Examples: Signature Calculations")


def test_aws_example_get_object_with_a_range() -> None:
    identity = authenticate(
        request(
            "GET",
            b"/test.txt",
            headers=[
                HOST,
                ("range", "bytes=0-9"),
                ("x-amz-content-sha256", EMPTY),
                DATE,
                authorization(
                    "host;range;x-amz-content-sha256;x-amz-date",
                    "f0e8bdb87c964420e857bd35b5d6ed310bd44f0170aba48dd91039c6036bdb41",
                ),
            ],
        )
    )
    assert (identity.owner, identity.key_id) == (OWNER, KEY_ID)
    assert identity.payload.kind is PayloadKind.SIGNED


def test_aws_example_put_object_with_a_dollar_sign_in_the_path() -> None:
    body = b"Welcome to Amazon S3."
    for path in (b"/test$file.text", b"/test%24file.text"):
        identity = authenticate(
            request(
                "PUT",
                path,
                headers=[
                    HOST,
                    ("date", "Fri, 24 May 2013 00:00:00 GMT"),
                    DATE,
                    ("x-amz-storage-class", "REDUCED_REDUNDANCY"),
                    ("x-amz-content-sha256", sha256_hex(body)),
                    authorization(
                        "date;host;x-amz-content-sha256;x-amz-date;x-amz-storage-class",
                        "98ad721746da40c64f1a55b78f14c238d841ea1380cd77a1b5971af0ece108bd",
                    ),
                ],
                body=body,
            )
        )
        assert identity.payload.sha256 == hashlib.sha256(body).digest()


@pytest.mark.parametrize(
    ("query", "signature"),
    [
        (b"lifecycle", "fea454ca298b7da1c68078a5d1bdbfbbe0d65c699e0f91ac7a200a0136783543"),
        (
            b"max-keys=2&prefix=J",
            "34b48302e7b5fa45bde8084f4b7868a86f0a534bc59db6670ed5711ef69dc6f7",
        ),
        (
            b"prefix=J&max-keys=2",
            "34b48302e7b5fa45bde8084f4b7868a86f0a534bc59db6670ed5711ef69dc6f7",
        ),
    ],
)
def test_aws_example_query_strings(query: bytes, signature: str) -> None:
    authenticate(
        request(
            "GET",
            b"/",
            query,
            [
                HOST,
                ("x-amz-content-sha256", EMPTY),
                DATE,
                authorization("host;x-amz-content-sha256;x-amz-date", signature),
            ],
        )
    )


def test_aws_example_presigned_url() -> None:
    identity = authenticate(request("GET", b"/test.txt", PRESIGNED, [HOST]))
    assert identity.presigned
    assert identity.payload.kind is PayloadKind.UNSIGNED


# --- botocore as the oracle

path_text = st.text(
    st.characters(blacklist_categories=("Cs",), blacklist_characters="\0"), min_size=1, max_size=40
)
query_text = st.text(
    st.characters(blacklist_categories=("Cs",), blacklist_characters="\0"), max_size=12
)
header_value = st.text(st.characters(min_codepoint=0x20, max_codepoint=0x7E), max_size=30)


requests = {
    "key": path_text,
    "query": st.dictionaries(query_text.filter(bool), query_text, max_size=4),
    "metadata": st.dictionaries(
        st.from_regex(r"[a-z][a-z0-9-]{0,10}", fullmatch=True), header_value, max_size=3
    ),
    "body": st.binary(max_size=20),
    "presign": st.booleans(),
}


@settings(max_examples=300, deadline=None)
@given(**requests)
@pytest.mark.s3(op="*", headers=["authorization", "host", "x-amz-date", "?X-Amz-Signature"])
def test_what_botocore_signs_is_accepted_and_one_changed_bit_is_not(
    key: str, query: dict[str, str], metadata: dict[str, str], body: bytes, presign: bool
) -> None:
    check_signed_request(key, query, metadata, body, presign)


@pytest.mark.slow
@settings(max_examples=5000, deadline=None)
@given(**requests)
def test_thousands_of_what_botocore_signs(
    key: str, query: dict[str, str], metadata: dict[str, str], body: bytes, presign: bool
) -> None:
    check_signed_request(key, query, metadata, body, presign)


def check_signed_request(
    key: str, query: dict[str, str], metadata: dict[str, str], body: bytes, presign: bool
) -> None:
    names = {name.lower() for name in query}
    if len(names) != len(query) or any(name.startswith("x-amz-") for name in names):
        return
    if names & {"awsaccesskeyid", "signature"}:
        return
    encoded = "&".join(f"{quote(k, safe='-_.~')}={quote(v, safe='-_.~')}" for k, v in query.items())
    url = f"http://localhost:9000/bucket/{quote(key, safe='/~')}" + (
        f"?{encoded}" if encoded else ""
    )
    headers = {f"x-amz-meta-{name}": value for name, value in metadata.items()}
    path, raw_query, signed = botocore_sign(
        "PUT", url, headers, b"" if presign else body, presign_s=900 if presign else 0
    )
    identity = authenticate(request("PUT", path, raw_query, signed, body))
    assert identity.key_id == KEY_ID
    assert identity.presigned is presign
    # Any other method, path, header value or secret must be refused.
    assert refused(request("GET", path, raw_query, signed, body)).code == "SignatureDoesNotMatch"
    assert (
        refused(request("PUT", path + b"x", raw_query, signed, body)).code
        == "SignatureDoesNotMatch"
    )
    more = raw_query + b"&zz=1" if raw_query else b"zz=1"
    assert refused(request("PUT", path, more, signed, body)).code == "SignatureDoesNotMatch"
    other = [(n, v + "x" if n == "host" else v) for n, v in signed]
    assert refused(request("PUT", path, raw_query, other, body)).code == "SignatureDoesNotMatch"


def test_header_values_are_trimmed_collapsed_and_joined() -> None:
    signed = "host;my-header1;my-header2;x-amz-content-sha256;x-amz-date"
    canonical = [
        HOST,
        ("my-header1", "a b c"),
        ("my-header2", '"a b c",second'),
        ("x-amz-content-sha256", "UNSIGNED-PAYLOAD"),
        DATE,
    ]
    signature = sign_by_hand("GET", "/", "", canonical, signed, "UNSIGNED-PAYLOAD")
    authenticate(
        request(
            "GET",
            b"/",
            headers=[
                HOST,
                ("my-header1", "a   b  c"),
                ("my-header2", '"a   b   c"'),
                ("my-header2", "second"),
                ("x-amz-content-sha256", "UNSIGNED-PAYLOAD"),
                DATE,
                authorization(signed, signature),
            ],
        )
    )


@pytest.mark.parametrize(
    ("raw", "canonical"),
    [
        (b"/a//b/../c/./d", "/a//b/../c/./d"),
        (b"/a+b", "/a%2Bb"),
        (b"/a%2fb", "/a/b"),
        (b"/%7Euser", "/~user"),
        (b"/\xc3\xa9", "/%C3%A9"),
        (b"/a=b&c:d@e!", "/a%3Db%26c%3Ad%40e%21"),
    ],
)
def test_the_path_is_decoded_once_and_never_normalised(raw: bytes, canonical: str) -> None:
    headers = [HOST, ("x-amz-content-sha256", EMPTY), DATE]
    signed = "host;x-amz-content-sha256;x-amz-date"
    signature = sign_by_hand("GET", canonical, "", headers, signed, EMPTY)
    authenticate(request("GET", raw, headers=[*headers, authorization(signed, signature)]))


@pytest.mark.parametrize(
    ("raw", "canonical"),
    [
        (b"acl", "acl="),
        (b"prefix=a+b", "prefix=a%20b"),
        (b"b=2&a=1", "a=1&b=2"),
        (b"a-b=1&a=2", "a=2&a-b=1"),
        (b"a=%2f", "a=%2F"),
        (b"&a=1&&b=2&", "a=1&b=2"),
    ],
)
def test_the_query_is_sorted_and_encoded_again(raw: bytes, canonical: str) -> None:
    headers = [HOST, ("x-amz-content-sha256", EMPTY), DATE]
    signed = "host;x-amz-content-sha256;x-amz-date"
    signature = sign_by_hand("GET", "/", canonical, headers, signed, EMPTY)
    authenticate(request("GET", b"/", raw, [*headers, authorization(signed, signature)]))


def test_non_ascii_header_values_are_signed_as_their_bytes() -> None:
    value = "é".encode().decode("latin-1")
    headers = [HOST, ("x-amz-content-sha256", EMPTY), DATE, ("x-amz-meta-name", value)]
    signed = "host;x-amz-content-sha256;x-amz-date;x-amz-meta-name"
    signature = sign_by_hand("GET", "/", "", headers, signed, EMPTY)
    authenticate(request("GET", b"/", headers=[*headers, authorization(signed, signature)]))


# --- identities and keys


def test_nothing_else_can_make_an_identity() -> None:
    with pytest.raises(TypeError):
        Identity(object(), OWNER, KEY_ID, None)  # type: ignore[arg-type]


def test_secrets_are_in_no_repr() -> None:
    assert SECRET not in repr(Credential(KEY_ID, SECRET.encode(), OWNER))
    identity = authenticate(signed_get())
    assert SECRET not in repr(identity)


def test_a_changed_secret_is_not_answered_from_the_cache() -> None:
    auth = authenticator()
    authenticate(signed_get(), auth)
    auth._credentials.credential = Credential(KEY_ID, b"another secret", OWNER)  # type: ignore[attr-defined]
    assert refused(signed_get(), auth).code == "SignatureDoesNotMatch"
    authenticate(signed_get(secret="another secret"), auth)


def test_the_caches_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    auth = authenticator()
    monkeypatch.setattr("o3storage.s3._sigv4.MAX_CACHED_SIGNING_KEYS", 2)
    for day in range(5):
        date = f"201305{day + 10:02d}"
        auth._signing_key(Credential(KEY_ID, b"s", OWNER), date)
        assert len(auth._keys) <= 2
    for second in range(200):
        auth._parse_time(f"20130524T00{second // 60:02d}{second % 60:02d}Z")
        assert len(auth._times) <= 64


# --- POST forms


def post_fields(conditions: list[Any], secret: str = SECRET) -> dict[str, str]:
    """Form fields signed by botocore's own POST signer."""
    fields: dict[str, str] = {}
    aws = AWSRequest("POST", "http://localhost:9000/bucket")
    aws.context["s3-presign-post-fields"] = fields
    aws.context["s3-presign-post-policy"] = {
        "expiration": "2013-05-25T00:00:00Z",
        "conditions": conditions,
    }
    with frozen_botocore():
        S3SigV4PostAuth(Credentials(KEY_ID, secret), "s3", "us-east-1").add_auth(aws)
    return fields


@pytest.mark.s3(op="PostObject", errors=["SignatureDoesNotMatch", "InvalidToken"])
def test_a_post_policy_is_verified_by_its_signature() -> None:
    fields = post_fields([{"bucket": "bucket"}])
    assert json.loads(base64.b64decode(fields["policy"]))["conditions"]
    auth = authenticator()
    identity = asyncio.run(auth.authenticate_form(fields))
    assert identity.owner == OWNER
    for name, value, code in [
        ("policy", fields["policy"][:-4] + "AAAA", "SignatureDoesNotMatch"),
        ("x-amz-signature", "0" * 64, "SignatureDoesNotMatch"),
        ("x-amz-algorithm", "AWS4", "InvalidArgument"),
        ("x-amz-date", "yesterday", "InvalidArgument"),
        ("x-amz-credential", "AKIA", "InvalidArgument"),
        ("x-amz-security-token", "t", "InvalidToken"),
    ]:
        with pytest.raises(S3Error) as caught:
            asyncio.run(auth.authenticate_form({**fields, name: value}))
        assert caught.value.code == code
    with pytest.raises(S3Error) as caught:
        asyncio.run(auth.authenticate_form(post_fields([], secret="guess")))
    assert caught.value.code == "SignatureDoesNotMatch"
