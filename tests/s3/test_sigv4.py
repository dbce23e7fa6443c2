"""Signature V4: AWS's published examples, botocore as the oracle, and every refusal."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import hmac
import itertools
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
from o3storage.s3._request import S3Request
from o3storage.s3._sigv4 import Credential, Identity, PayloadKind
from tests.s3.support import (
    KEY_ID,
    NOW_S,
    OWNER,
    SECRET,
    BytesBody,
    FixedClock,
    authenticate,
    authenticator,
    botocore_sign,
    frozen_botocore,
    request,
    sha256_hex,
)

EMPTY = sha256_hex(b"")
SCOPE = f"{KEY_ID}/20130524/us-east-1/s3/aws4_request"
HOST = ("host", "examplebucket.s3.amazonaws.com")
DATE = ("x-amz-date", "20130524T000000Z")


def authorization(signed: str, signature: str) -> tuple[str, str]:
    return (
        "authorization",
        f"AWS4-HMAC-SHA256 Credential={SCOPE},SignedHeaders={signed},Signature={signature}",
    )


def refused(req: S3Request, auth: Any = None) -> S3Error:
    with pytest.raises(S3Error) as caught:
        authenticate(req, auth)
    return caught.value


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


PRESIGNED = (
    b"X-Amz-Algorithm=AWS4-HMAC-SHA256"
    b"&X-Amz-Credential=AKIAIOSFODNN7EXAMPLE%2F20130524%2Fus-east-1%2Fs3%2Faws4_request"
    b"&X-Amz-Date=20130524T000000Z&X-Amz-Expires=86400&X-Amz-SignedHeaders=host"
    b"&X-Amz-Signature=aeeed9bbccd4d02ee5c0109b86d86835f995330da4c265957d157751f604d404"
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


def sign_by_hand(  # noqa: PLR0917
    method: str, path: str, query: str, headers: list[tuple[str, str]], signed: str, payload: str
) -> str:
    """An independent signer, straight from the documentation."""
    lines = "".join(f"{n}:{v}\n" for n, v in headers)
    canonical = f"{method}\n{path}\n{query}\n{lines}\n{signed}\n{payload}".encode("latin-1")
    scope = "20130524/us-east-1/s3/aws4_request"
    to_sign = (
        f"AWS4-HMAC-SHA256\n20130524T000000Z\n{scope}\n{hashlib.sha256(canonical).hexdigest()}"
    )
    key = ("AWS4" + SECRET).encode()
    for part in scope.split("/"):
        key = hmac.new(key, part.encode(), "sha256").digest()
    return hmac.new(key, to_sign.encode(), "sha256").hexdigest()


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


# --- refusals


def signed_get(path: str = "/bucket/key", **kwargs: Any) -> S3Request:
    raw, query, headers = botocore_sign("GET", f"http://localhost:9000{path}", **kwargs)
    return request("GET", raw, query, headers)


@pytest.mark.s3(op="*", errors=["SignatureDoesNotMatch"])
def test_signature_does_not_match_shows_both_computed_strings() -> None:
    error = refused(signed_get(secret="not the secret"))
    details = dict(error.details)
    assert error.code == "SignatureDoesNotMatch"
    assert error.status == 403
    assert details["AWSAccessKeyId"] == KEY_ID
    assert details["StringToSign"].startswith("AWS4-HMAC-SHA256\n20130524T000000Z\n20130524/")
    assert details["CanonicalRequest"].startswith("GET\n/bucket/key\n\nhost:localhost:9000\n")
    assert SECRET not in str(error.details)


@pytest.mark.parametrize("seconds", [NOW_S - 901, NOW_S + 901])
@pytest.mark.s3(op="*", errors=["RequestTimeTooSkewed"])
def test_a_skew_over_15_minutes_is_refused_with_the_servers_time(seconds: int) -> None:
    error = refused(signed_get(), authenticator(FixedClock(seconds)))
    assert error.code == "RequestTimeTooSkewed"
    details = dict(error.details)
    assert details["RequestTime"] == "20130524T000000Z"
    assert details["ServerTime"].startswith("2013-05-2")


@pytest.mark.parametrize("seconds", [NOW_S - 899, NOW_S + 899])
def test_a_skew_under_15_minutes_is_accepted(seconds: int) -> None:
    authenticate(signed_get(), authenticator(FixedClock(seconds)))


def test_the_wrong_region_is_named_with_the_right_one() -> None:
    error = refused(signed_get(region="eu-west-1"))
    assert (error.code, error.status) == ("AuthorizationHeaderMalformed", 400)
    assert ("Region", "us-east-1") in error.details


def test_the_scope_date_must_be_the_requests_date() -> None:
    req = signed_get()
    req.headers["x-amz-date"] = "20130523T235959Z"
    assert refused(req).code == "AuthorizationHeaderMalformed"


@pytest.mark.s3(op="*", errors=["InvalidAccessKeyId"])
def test_an_unknown_key_id_is_invalid() -> None:
    req = signed_get()
    req.headers["authorization"] = req.headers["authorization"].replace(KEY_ID, "AKIAOTHER")
    assert refused(req).code == "InvalidAccessKeyId"


def test_a_request_without_credentials_is_denied() -> None:
    error = refused(request("GET", b"/bucket/key", headers=[HOST]))
    assert (error.code, error.status) == ("AccessDenied", 403)


@pytest.mark.s3(op="*", errors=["InvalidToken"])
def test_a_session_token_is_unknown() -> None:
    req = signed_get(headers={"x-amz-security-token": "token"})
    assert refused(req).code == "InvalidToken"
    req = request("GET", b"/test.txt", PRESIGNED + b"&X-Amz-Security-Token=t", [HOST])
    assert refused(req).code == "InvalidToken"


def test_the_date_header_stands_in_for_x_amz_date() -> None:
    headers = [HOST, ("x-amz-content-sha256", EMPTY)]
    signed = "host;x-amz-content-sha256"
    signature = sign_by_hand("GET", "/", "", headers, signed, EMPTY)
    auth = authorization(signed, signature)
    date = ("date", "Fri, 24 May 2013 00:00:00 GMT")
    authenticate(request("GET", b"/", headers=[*headers, date, auth]))
    assert refused(request("GET", b"/", headers=[*headers, auth])).code == "AccessDenied"
    # x-amz-date wins over Date.
    wrong = ("date", "Fri, 24 May 2019 00:00:00 GMT")
    req = signed_get()
    req.headers["date"] = wrong[1]
    authenticate(req)


@pytest.mark.parametrize(
    ("value", "code"),
    [
        ("AWS AKIA:signature", "InvalidRequest"),
        ("Basic dXNlcjpwYXNz", "InvalidRequest"),
        ("AWS4-ECDSA-P256-SHA256 Credential=x", "NotImplemented"),
        ("AWS4-HMAC-SHA256", "AuthorizationHeaderMalformed"),
        ("AWS4-HMAC-SHA256 Credential=x", "AuthorizationHeaderMalformed"),
        (
            f"AWS4-HMAC-SHA256 Credential={SCOPE}, SignedHeaders=host, Signature=zz",
            "AuthorizationHeaderMalformed",
        ),
        (
            f"AWS4-HMAC-SHA256 Credential={SCOPE}, SignedHeaders=range, Signature={'0' * 64}",
            "AuthorizationHeaderMalformed",
        ),
        (
            f"AWS4-HMAC-SHA256 Credential={SCOPE}, SignedHeaders=host;host, Signature={'0' * 64}",
            "AuthorizationHeaderMalformed",
        ),
        (
            f"AWS4-HMAC-SHA256 Credential={SCOPE}, SignedHeaders=Host, Signature={'0' * 64}",
            "AuthorizationHeaderMalformed",
        ),
        (
            f"AWS4-HMAC-SHA256 Credential=a/b/c, SignedHeaders=host, Signature={'0' * 64}",
            "AuthorizationHeaderMalformed",
        ),
        (
            f"AWS4-HMAC-SHA256 Credential={SCOPE.replace('/s3/', '/ec2/')}, SignedHeaders=host, Signature={'0' * 64}",
            "AuthorizationHeaderMalformed",
        ),
        (
            f"AWS4-HMAC-SHA256 Credential={SCOPE}, Credential={SCOPE}, SignedHeaders=host, Signature={'0' * 64}",
            "AuthorizationHeaderMalformed",
        ),
    ],
)
@pytest.mark.s3(op="*", errors=["AuthorizationHeaderMalformed", "InvalidRequest", "NotImplemented"])
def test_malformed_authorization_headers(value: str, code: str) -> None:
    assert (
        refused(request("GET", b"/", headers=[HOST, DATE, ("authorization", value)])).code == code
    )


@pytest.mark.s3(op="*", headers=["x-amz-content-sha256"], errors=["InvalidArgument"])
def test_a_content_sha256_of_no_known_form_is_refused() -> None:
    for stated in ("0" * 63, "A" * 64, "STREAMING", "unsigned-payload"):
        path, query, headers = botocore_sign(
            "PUT", "http://h/b/k", {"x-amz-content-sha256": stated}
        )
        headers = [(n, stated if n == "x-amz-content-sha256" else v) for n, v in headers]
        assert refused(request("PUT", path, query, headers)).code == "InvalidArgument"


def test_the_fields_of_the_authorization_header_come_in_any_order() -> None:
    req = signed_get()
    scheme, _, rest = req.headers["authorization"].partition(" ")
    fields = [field.strip() for field in rest.split(",")]
    for order in itertools.permutations(fields):
        for separator in (",", ", ", " , "):
            req.headers["authorization"] = f"{scheme} {separator.join(order)}"
            authenticate(req)
    for broken in (fields[:2], fields[1:], [*fields, fields[2]], [*fields, "X=1"], [*fields, ""]):
        req.headers["authorization"] = f"{scheme} {','.join(broken)}"
        assert refused(req).code == "AuthorizationHeaderMalformed", broken


# --- every x-amz-* header must be signed


@pytest.mark.s3(op="*", errors=["AccessDenied"])
def test_every_arriving_amz_header_must_be_signed() -> None:
    req = signed_get()
    path, query, headers = botocore_sign("GET", "http://localhost:9000/bucket/key")
    error = refused(request("GET", path, query, [*headers, ("x-amz-acl", "public-read")]))
    assert (error.code, error.status) == ("AccessDenied", 403)
    assert error.details == (("HeadersNotSigned", "x-amz-acl"),)
    assert authenticate(req)


@pytest.mark.s3(op="PutObject", headers=["x-amz-copy-source"], errors=["AccessDenied"])
def test_cve_2026_54330_an_unsigned_copy_source_on_a_presigned_put_is_refused() -> None:
    path, query, headers = botocore_sign("PUT", "http://localhost:9000/b/k", presign_s=60)
    authenticate(request("PUT", path, query, headers))
    smuggled = [*headers, ("x-amz-copy-source", "/other/secret")]
    assert refused(request("PUT", path, query, smuggled)).code == "AccessDenied"


def test_amz_parameters_of_a_presigned_url_count_as_headers() -> None:
    path, query, headers = botocore_sign(
        "PUT", "http://localhost:9000/b/k?x-amz-acl=private&X-Amz-Meta-A=1", presign_s=60
    )
    req = request("PUT", path, query, headers)
    authenticate(req)
    assert req.headers["x-amz-acl"] == "private"
    assert req.headers["x-amz-meta-a"] == "1"
    with pytest.raises(S3Error) as caught:
        request("PUT", path, query, [*headers, ("x-amz-acl", "private")])
    assert caught.value.code == "InvalidRequest"


@pytest.mark.s3(op="*", errors=["InvalidArgument"])
def test_credentials_in_header_and_query_together_are_refused() -> None:
    path, query, _ = botocore_sign("GET", "http://localhost:9000/bucket/key", presign_s=60)
    _, _, headers = botocore_sign("GET", "http://localhost:9000/bucket/key")
    error = refused(request("GET", path, query, headers))
    assert error.status == 400


# --- presigned


@pytest.mark.parametrize(
    ("replace", "by", "code"),
    [
        (b"X-Amz-Expires=86400", b"X-Amz-Expires=0", "AuthorizationQueryParametersError"),
        (b"X-Amz-Expires=86400", b"X-Amz-Expires=604801", "AuthorizationQueryParametersError"),
        (b"X-Amz-Expires=86400", b"X-Amz-Expires=-1", "AuthorizationQueryParametersError"),
        (b"X-Amz-Expires=86400", b"X-Amz-Expires=1e3", "AuthorizationQueryParametersError"),
        (b"&X-Amz-Expires=86400", b"", "AuthorizationQueryParametersError"),
        (b"&X-Amz-SignedHeaders=host", b"", "AuthorizationQueryParametersError"),
        (b"SignedHeaders=host", b"SignedHeaders=range", "AuthorizationQueryParametersError"),
        (b"us-east-1", b"eu-west-1", "AuthorizationQueryParametersError"),
        (b"AWS4-HMAC-SHA256", b"AWS4-HMAC-SHA1", "AuthorizationQueryParametersError"),
        (b"20130524T000000Z", b"20130524", "AuthorizationQueryParametersError"),
        (b"aeeed9", b"beeed9", "SignatureDoesNotMatch"),
        (b"X-Amz-Expires=86400", b"X-Amz-Expires=86401", "SignatureDoesNotMatch"),
    ],
)
@pytest.mark.s3(op="*", errors=["AuthorizationQueryParametersError", "SignatureDoesNotMatch"])
def test_presigned_urls_that_are_refused(replace: bytes, by: bytes, code: str) -> None:
    assert replace in PRESIGNED
    assert (
        refused(request("GET", b"/test.txt", PRESIGNED.replace(replace, by), [HOST])).code == code
    )


@pytest.mark.s3(op="*", headers=["?X-Amz-Expires"], errors=["AccessDenied"])
def test_a_presigned_url_expires_and_is_not_valid_before_its_time() -> None:
    req = request("GET", b"/test.txt", PRESIGNED, [HOST])
    authenticate(req, authenticator(FixedClock(NOW_S + 86_400)))
    late = refused(req, authenticator(FixedClock(NOW_S + 86_401)))
    assert (late.code, late.message) == ("AccessDenied", "Request has expired")
    early = refused(req, authenticator(FixedClock(NOW_S - 901)))
    assert (early.code, early.message) == ("AccessDenied", "Request is not valid yet")
    authenticate(req, authenticator(FixedClock(NOW_S - 899)))


def test_version_2_presigned_urls_are_refused() -> None:
    query = b"AWSAccessKeyId=AKIA&Expires=1141889120&Signature=vjbyPxybdZaNmGa%2ByT272YEAiv4%3D"
    refusal = refused(request("GET", b"/k", query, [HOST]))
    assert refusal.code == "InvalidRequest"
    assert "Signature V2" in refusal.message and "Signature V4" in refusal.message


@pytest.mark.parametrize(
    "kind",
    [
        "STREAMING-AWS4-HMAC-SHA256-PAYLOAD",
        "STREAMING-AWS4-HMAC-SHA256-PAYLOAD-TRAILER",
        "STREAMING-UNSIGNED-PAYLOAD-TRAILER",
    ],
)
@pytest.mark.s3(op="PutObject", headers=["x-amz-content-sha256"], errors=["InvalidRequest"])
def test_cve_2026_41145_query_credentials_with_an_unsigned_trailer_body_are_refused(
    kind: str,
) -> None:
    path, query, headers = botocore_sign("PUT", "http://localhost:9000/b/k", presign_s=60)
    forged = query.replace(b"X-Amz-Signature=", b"X-Amz-Signature=00")
    for raw in (query, forged):
        req = request("PUT", path, raw, [*headers, ("x-amz-content-sha256", kind)])
        assert refused(req).code == "InvalidRequest"


@pytest.mark.s3(op="PutObject", headers=["x-amz-content-sha256"], errors=["SignatureDoesNotMatch"])
def test_cve_2025_31489_an_unsigned_trailer_body_needs_the_right_signature_too() -> None:
    kind = "STREAMING-UNSIGNED-PAYLOAD-TRAILER"
    path, query, headers = botocore_sign(
        "PUT", "http://localhost:9000/b/k", {"X-Amz-Content-SHA256": kind}, secret="guess"
    )
    headers = [(n, kind if n == "x-amz-content-sha256" else v) for n, v in headers]
    assert refused(request("PUT", path, query, headers)).code == "SignatureDoesNotMatch"


@pytest.mark.s3(op="PutObject", errors=["AccessDenied"])
def test_cve_2026_40344_an_unsigned_trailer_body_without_authorization_is_refused() -> None:
    headers = [HOST, DATE, ("x-amz-content-sha256", "STREAMING-UNSIGNED-PAYLOAD-TRAILER")]
    assert refused(request("PUT", b"/b/k", headers=headers)).code == "AccessDenied"
    # A key id alone, as a query parameter, is no credential either.
    query = b"X-Amz-Credential=" + quote(SCOPE, safe="").encode()
    error = refused(request("PUT", b"/b/k", query, headers))
    assert error.code == "AuthorizationQueryParametersError"


# --- a missing x-amz-content-sha256 means the body's own


def without_content_sha256(body: bytes) -> list[tuple[str, str]]:
    headers = [HOST, DATE]
    signature = sign_by_hand("PUT", "/b/k", "", headers, "host;x-amz-date", sha256_hex(body))
    return [*headers, authorization("host;x-amz-date", signature)]


def test_a_missing_content_sha256_is_judged_at_the_end_of_the_body() -> None:
    headers = without_content_sha256(b"hello")
    req = S3Request("PUT", b"/b/k", b"", headers, BytesBody(b"hello"))
    identity = authenticate(req)
    pending = identity.payload.pending
    assert identity.payload.kind is PayloadKind.PENDING and pending is not None
    pending.check(hashlib.sha256(b"hello").digest())
    with pytest.raises(S3Error) as caught:
        pending.check(hashlib.sha256(b"hullo").digest())
    assert caught.value.code == "SignatureDoesNotMatch"
    assert "UNSIGNED-PAYLOAD" in caught.value.message


def test_a_missing_content_sha256_without_a_body_is_judged_at_once() -> None:
    authenticate(S3Request("PUT", b"/b/k", b"", without_content_sha256(b""), BytesBody(b"")))
    req = S3Request("PUT", b"/b/k", b"", without_content_sha256(b"x"), BytesBody(b""))
    assert refused(req).code == "SignatureDoesNotMatch"


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
