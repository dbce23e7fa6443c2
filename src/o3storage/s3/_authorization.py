"""How a client states its signature: in the Authorization header, or in a presigned URL.

Source: Amazon S3 API reference, "Authenticating Requests (AWS Signature Version 4)".
"""

from __future__ import annotations

from functools import lru_cache
from typing import Final

from o3storage.s3._errors import S3Error
from o3storage.s3._request import S3Request

ALGORITHM: Final = "AWS4-HMAC-SHA256"
SERVICE: Final = "s3"

MAX_SIGNED_HEADERS: Final = 100
"""No more can arrive: http's MAX_HEADERS."""

CACHED_TEXTS: Final = 1024
"""Texts before the signature whose parts are kept: clients repeat them all day."""

CACHED_CHARS: Final = 1024
"""Longest of them: typically 200. What is longer is parsed each time, or who has proven nothing yet
could have 16 KiB (a head) kept for each."""

HEX_DIGITS: Final = b"0123456789abcdef"


class StatedSignature:
    """The signature as the client states it. `signed_text`: the signed names as they stand in the
    canonical request."""

    __slots__ = (
        "date",
        "key_id",
        "region",
        "scope",
        "signature",
        "signed_headers",
        "signed_text",
        "timestamp",
    )

    def __init__(self, key_id: str, date: str, region: str, scope: str) -> None:
        self.key_id = key_id
        self.date = date
        self.region = region
        self.scope = scope
        self.signed_headers: tuple[str, ...] = ()
        self.signed_text = ""
        self.signature = ""
        self.timestamp = ""


def has_query_credentials(request: S3Request) -> bool:
    for name in request.query:
        lower = name.lower()
        if lower in ("x-amz-signature", "x-amz-algorithm", "x-amz-credential"):
            return True
        if name in ("AWSAccessKeyId", "Signature"):
            raise S3Error(
                "InvalidRequest",
                "This URL is signed with Signature V2 (AWSAccessKeyId, Signature), which is not "
                f"supported. Presign it with Signature V4 ({ALGORITHM}): X-Amz-Signature in place "
                "of Signature; in boto3 Config(signature_version='s3v4').",
            )
    return False


def parse_authorization(value: str) -> StatedSignature:
    """The parts of an Authorization header. What stands before the signature is the same for all
    requests of a kind that a client sends in a day, and is parsed once."""
    head, _, signature = value.rpartition("Signature=")
    if len(signature) != 64 or "," in signature:
        head, signature = _signature_last(value)
    if signature.encode("latin-1").translate(None, HEX_DIGITS):
        raise _malformed("the Signature must be 64 lower-case hexadecimal digits.")
    parse = _parse_head if len(head) <= CACHED_CHARS else _head_parts
    key_id, date, region, scope, signed_headers, signed_text = parse(head)
    parts = StatedSignature(key_id, date, region, scope)
    parts.signed_headers = signed_headers
    parts.signed_text = signed_text
    parts.signature = signature
    return parts


def _signature_last(value: str) -> tuple[str, str]:
    """(the rest, signature) of a header that does not end in its signature."""
    scheme, _, rest = value.partition(" ")
    fields = [field.strip() for field in rest.split(",")]
    signatures = [field[10:] for field in fields if field.startswith("Signature=")]
    others = [field for field in fields if not field.startswith("Signature=")]
    if len(signatures) != 1 or len(signatures[0]) != 64:
        _head_parts(f"{scheme} {','.join([*others, ''])}")
        raise _malformed("it must have one Signature of 64 lower-case hexadecimal digits.")
    return f"{scheme} {','.join([*others, ''])}", signatures[0]


def _head_parts(value: str) -> tuple[str, str, str, str, tuple[str, ...], str]:
    """(key id, date, region, scope, signed headers, their text) of all but the signature."""
    scheme, _, rest = value.partition(" ")
    if scheme != ALGORITHM:
        if scheme == "AWS4-ECDSA-P256-SHA256":
            raise S3Error("NotImplemented", "Signature Version 4A is not implemented.")
        raise S3Error(
            "InvalidRequest",
            "The authorization mechanism you have provided is not supported. Please use "
            f"{ALGORITHM}.",
        )
    credential = signed = None
    *fields, last = rest.split(",")
    for field in fields:
        name, _, text = field.strip().partition("=")
        if name == "Credential" and credential is None:
            credential = text
        elif name == "SignedHeaders" and signed is None:
            signed = text
        else:
            raise _malformed(f"the field '{name}' is unknown or repeated.")
    if credential is None or signed is None or last.strip():
        raise _malformed("it must have Credential, SignedHeaders and Signature.")
    code = "AuthorizationHeaderMalformed"
    key_id, date, region, scope = _split_credential(credential, code)
    return key_id, date, region, scope, _split_signed(signed, code), signed


_parse_head = lru_cache(CACHED_TEXTS)(_head_parts)


def parse_presigned(query: dict[str, str]) -> StatedSignature:
    algorithm = query.get("x-amz-algorithm")
    if algorithm != ALGORITHM:
        raise query_error(f'X-Amz-Algorithm only supports "{ALGORITHM}"')
    missing = [
        name
        for name in ("x-amz-credential", "x-amz-signature", "x-amz-date", "x-amz-signedheaders")
        if not query.get(name)
    ]
    if missing or "x-amz-expires" not in query:
        raise query_error(
            "Query-string authentication version 4 requires the X-Amz-Algorithm, X-Amz-Credential, "
            "X-Amz-Signature, X-Amz-Date, X-Amz-SignedHeaders, and X-Amz-Expires parameters."
        )
    parts = credential_parts(query["x-amz-credential"], "AuthorizationQueryParametersError")
    signed = query["x-amz-signedheaders"]
    split = _cached_signed if len(signed) <= CACHED_CHARS else _split_signed
    parts.signed_headers = split(signed, "AuthorizationQueryParametersError")
    parts.signed_text = signed
    parts.signature = query["x-amz-signature"]
    parts.timestamp = query["x-amz-date"]
    return parts


def credential_parts(credential: str, code: str) -> StatedSignature:
    split = _cached_credential if len(credential) <= CACHED_CHARS else _split_credential
    return StatedSignature(*split(credential, code))


def _split_credential(credential: str, code: str) -> tuple[str, str, str, str]:
    """(key id, date, region, scope)."""
    fields = credential.rsplit("/", 4)
    if len(fields) != 5 or not fields[0]:
        raise S3Error(
            code,
            'The Credential is mal-formed; expecting "<YOUR-AKID>/YYYYMMDD/REGION/SERVICE/'
            'aws4_request".',
        )
    key_id, date, region, service, terminal = fields
    if service != SERVICE or terminal != "aws4_request":
        raise S3Error(
            code,
            f'The credential scope must end in "{SERVICE}/aws4_request", not '
            f'"{service}/{terminal}".',
        )
    scope = f"{date}/{region}/{service}/{terminal}"
    return key_id, date, region, scope


_cached_credential = lru_cache(CACHED_TEXTS)(_split_credential)


def _split_signed(text: str, code: str) -> tuple[str, ...]:
    names = tuple(text.split(";"))
    if (
        "host" not in names
        or len(names) > MAX_SIGNED_HEADERS
        or len(set(names)) != len(names)
        or text != text.lower()
        or not text.isascii()
    ):
        raise S3Error(
            code,
            "SignedHeaders must name host, be in lower case and US-ASCII, and name no header "
            "twice.",
        )
    return names


_cached_signed = lru_cache(CACHED_TEXTS)(_split_signed)


def _malformed(reason: str) -> S3Error:
    return S3Error(
        "AuthorizationHeaderMalformed", f"The authorization header is malformed; {reason}"
    )


def query_error(reason: str) -> S3Error:
    return S3Error("AuthorizationQueryParametersError", reason)
