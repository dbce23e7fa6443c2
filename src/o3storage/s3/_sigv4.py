"""AWS Signature Version 4: one function that authenticates every request.

Sources: AWS "Authenticating Requests (AWS Signature Version 4)" in the Amazon S3 API reference:
Authorization header, query parameters, chunked uploads, trailing headers, POST policy.

`authenticate` runs before the router picks an operation. It answers an `Identity`, which nothing
else can make, and every operation takes one. Rules that go beyond computing the signature:

- every x-amz-* header that arrived must be signed (x-amz-content-sha256 is covered by the
  signature in any case, as its value is the last line of the canonical request);
- credentials in the header and in the query together are refused;
- what the client says about its payload becomes `Identity.payload`, and the body is only ever
  read through it (`_payload.py`).
"""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import Final, Protocol

from o3storage._native import compare_digest, hmac_sha256, sha256
from o3storage.s3._authorization import (
    ALGORITHM,
    HEX_DIGITS,
    SERVICE,
    StatedSignature,
    credential_parts,
    has_query_credentials,
    parse_authorization,
    parse_presigned,
    query_error,
)
from o3storage.s3._errors import S3Error
from o3storage.s3._request import S3Request
from o3storage.s3._times import amz_date, iso_seconds, parse_amz_date, parse_http_date
from o3storage.s3._uri import canonical_path, canonical_query

MAX_SKEW_S: Final = 15 * 60
"""Difference between the request's time and ours (AWS: 15 minutes)."""

MAX_PRESIGNED_EXPIRES_S: Final = 604_800
"""A presigned URL is good for at most seven days (AWS)."""

MAX_CACHED_SIGNING_KEYS: Final = 1024
"""Signing keys kept: one per access key and day, about 300 bytes each."""

EMPTY_SHA256: Final = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"


class PayloadKind(enum.Enum):
    """How the body is protected."""

    UNSIGNED = "UNSIGNED-PAYLOAD"
    SIGNED = "the body's SHA-256"
    CHUNKS = "STREAMING-AWS4-HMAC-SHA256-PAYLOAD"
    CHUNKS_TRAILER = "STREAMING-AWS4-HMAC-SHA256-PAYLOAD-TRAILER"
    UNSIGNED_TRAILER = "STREAMING-UNSIGNED-PAYLOAD-TRAILER"
    PENDING = "no x-amz-content-sha256"


STREAMING_KINDS: Final = frozenset(
    {PayloadKind.CHUNKS, PayloadKind.CHUNKS_TRAILER, PayloadKind.UNSIGNED_TRAILER}
)

_PAYLOAD_NAMES: Final = {
    kind.value: kind
    for kind in (
        PayloadKind.UNSIGNED,
        PayloadKind.CHUNKS,
        PayloadKind.CHUNKS_TRAILER,
        PayloadKind.UNSIGNED_TRAILER,
    )
}


class Credential:
    """An access key and whose it is."""

    __slots__ = ("key_id", "owner", "secret")

    def __init__(self, key_id: str, secret: bytes, owner: str) -> None:
        self.key_id = key_id
        self.secret = secret
        self.owner = owner

    def __repr__(self) -> str:
        return f"Credential({self.key_id})"


class CredentialSource(Protocol):
    """Where access keys come from."""

    def find_now(self, key_id: str) -> Credential | Miss | None:
        """The active key, None if there is none, MISS where only `find` can tell."""
        ...

    async def find(self, key_id: str) -> Credential | None: ...


class Miss(enum.Enum):
    MISS = 0


MISS: Final = Miss.MISS


class ChunkSigner:
    """The chain of signatures of one aws-chunked body, starting from the request's own."""

    __slots__ = ("_key", "_prefix", "_previous")

    def __init__(self, key: bytes, timestamp: str, scope: str, seed: str) -> None:
        self._key = key
        self._prefix = f"{timestamp}\n{scope}\n"
        self._previous = seed

    def check_chunk(self, chunk_sha256: bytes, signature: str) -> None:
        """Raises S3Error SignatureDoesNotMatch."""
        self._check(
            f"AWS4-HMAC-SHA256-PAYLOAD\n{self._prefix}{self._previous}\n{EMPTY_SHA256}\n"
            f"{chunk_sha256.hex()}",
            signature,
        )

    def check_trailer(self, trailer_sha256: bytes, signature: str) -> None:
        """Raises S3Error SignatureDoesNotMatch."""
        self._check(
            f"AWS4-HMAC-SHA256-TRAILER\n{self._prefix}{self._previous}\n{trailer_sha256.hex()}",
            signature,
        )

    def _check(self, string_to_sign: str, signature: str) -> None:
        expected = hmac_sha256(self._key, string_to_sign.encode()).hex()
        if not compare_digest(expected.encode(), signature.encode("latin-1", "replace")):
            raise S3Error(
                "SignatureDoesNotMatch",
                "The signature of a chunk does not match what was received.",
                details=(("StringToSign", string_to_sign), ("SignatureProvided", signature)),
            )
        self._previous = expected


_PENDING_HINT: Final = (
    " Without an x-amz-content-sha256 header the signature must cover the SHA-256 of the body; "
    "with curl -T, add: -H 'x-amz-content-sha256: UNSIGNED-PAYLOAD'."
)


class PendingSignature:
    """A signature whose last line is the SHA-256 of a body that has not arrived yet."""

    __slots__ = ("_canonical", "_parts", "_signing_key")

    def __init__(self, parts: StatedSignature, canonical: str, signing_key: bytes) -> None:
        self._parts = parts
        self._canonical = canonical
        self._signing_key = signing_key

    def check(self, body_sha256: bytes) -> None:
        """Raises S3Error SignatureDoesNotMatch."""
        try:
            _check_signature(
                self._parts, f"{self._canonical}\n{body_sha256.hex()}", self._signing_key
            )
        except S3Error as error:
            error.message += _PENDING_HINT
            raise


@dataclass(slots=True)
class Payload:
    """What the request says about its body.

    `sha256`: the promised digest (SIGNED). `signer`: CHUNKS and CHUNKS_TRAILER. `pending`: PENDING.
    """

    kind: PayloadKind
    sha256: bytes | None = None
    signer: ChunkSigner | None = None
    pending: PendingSignature | None = None


UNSIGNED_PAYLOAD: Final = Payload(PayloadKind.UNSIGNED)

_MINT: Final = object()


class Identity:
    """Who sends a request, proven. Only `authenticate` and `authenticate_form` make one.

    `owner`: owner id. `key_id`: access key id, "" for an anonymous request. `payload`: how the
    body must be read. `presigned`: the proof stands in the query.
    """

    __slots__ = ("anonymous", "key_id", "owner", "payload", "presigned")

    def __init__(
        self,
        mint: object,
        owner: str,
        key_id: str,
        payload: Payload,
        *,
        anonymous: bool = False,
        presigned: bool = False,
    ) -> None:
        if mint is not _MINT:
            raise TypeError("an Identity comes from authenticate() only")
        self.owner = owner
        self.key_id = key_id
        self.payload = payload
        self.anonymous = anonymous
        self.presigned = presigned

    def __repr__(self) -> str:
        return f"Identity({self.key_id or 'anonymous'})"


class AnonymousRule(Protocol):
    """Who an unsigned request acts as; see `_anonymous.py`."""

    def admit(self, request: S3Request) -> str:
        """The owner id. Raises S3Error AccessDenied."""
        ...


class Authenticator:
    """Authenticates requests for one region. Holds the cache of signing keys."""

    __slots__ = ("_anonymous", "_clock", "_credentials", "_keys", "_times", "region")

    def __init__(
        self,
        region: str,
        credentials: CredentialSource,
        clock: WallClock,
        anonymous: AnonymousRule | None = None,
    ) -> None:
        self.region = region
        self._credentials = credentials
        self._clock = clock
        self._anonymous = anonymous
        # (key id, date) -> (secret it was derived from, signing key)
        self._keys: dict[tuple[str, str], tuple[bytes, bytes]] = {}
        # The last few timestamps, as text -> UNIX seconds.
        self._times: dict[str, int] = {}

    async def authenticate(self, request: S3Request) -> Identity:
        """The proven sender of `request`. Raises S3Error; never answers an unproven one."""
        headers = request.headers
        authorization = headers.get("authorization")
        presigned = bool(request.query) and has_query_credentials(request)
        if authorization is None:
            if presigned:
                return await self._presigned(request)
            if self._anonymous is None:
                raise S3Error("AccessDenied")
            owner = self._anonymous.admit(request)
            return Identity(_MINT, owner, "", _anonymous_payload(request), anonymous=True)
        if presigned:
            raise S3Error(
                "InvalidArgument",
                "Only one auth mechanism allowed; only the X-Amz-Algorithm query parameter, "
                "Signature query string parameter or the Authorization header should be specified",
            )
        parts = parse_authorization(authorization)
        timestamp = headers.get("x-amz-date")
        if timestamp is None:
            timestamp = _timestamp_of_date(headers.get("date"))
        parts.timestamp = timestamp
        request_s = self._parse_time(timestamp)
        if request_s is None:
            raise S3Error("AccessDenied", "x-amz-date is not of the form YYYYMMDDTHHMMSSZ.")
        self._check_scope(parts, "AuthorizationHeaderMalformed")
        self._check_skew(request_s, timestamp)
        _check_signed(request, parts, "x-amz-content-sha256")
        if "x-amz-security-token" in headers:
            raise S3Error("InvalidToken")
        credential = await self._credential(parts.key_id)
        signing_key = self._signing_key(credential, parts.date)
        canonical = _canonical_request(request, parts, b"")
        stated = headers.get("x-amz-content-sha256")
        if stated is None:
            pending = PendingSignature(parts, canonical, signing_key)
            if request.body.length == 0:
                pending.check(bytes.fromhex(EMPTY_SHA256))
                return Identity(_MINT, credential.owner, parts.key_id, UNSIGNED_PAYLOAD)
            payload = Payload(PayloadKind.PENDING, pending=pending)
            return Identity(_MINT, credential.owner, parts.key_id, payload)
        payload = _stated_payload(stated)
        _check_signature(parts, f"{canonical}\n{stated}", signing_key)
        if payload.kind is PayloadKind.CHUNKS or payload.kind is PayloadKind.CHUNKS_TRAILER:
            payload.signer = ChunkSigner(signing_key, timestamp, parts.scope, parts.signature)
        return Identity(_MINT, credential.owner, parts.key_id, payload)

    async def authenticate_form(self, fields: dict[str, str]) -> Identity:
        """The proven sender of a POST form, by the signature of its policy.

        `fields`: lower-case names of the form fields before the file. Raises S3Error. Whether the
        form keeps to its policy is judged by `_post_form.py`.
        """
        policy = fields["policy"]
        algorithm = fields.get("x-amz-algorithm", "")
        if algorithm != ALGORITHM:
            raise S3Error("InvalidArgument", f"x-amz-algorithm must be {ALGORITHM}.")
        parts = credential_parts(fields.get("x-amz-credential", ""), "InvalidArgument")
        parts.signature = fields.get("x-amz-signature", "")
        timestamp = fields.get("x-amz-date", "")
        if self._parse_time(timestamp) is None:
            raise S3Error("InvalidArgument", "x-amz-date is not of the form YYYYMMDDTHHMMSSZ.")
        parts.timestamp = timestamp
        self._check_scope(parts, "InvalidArgument")
        if "x-amz-security-token" in fields:
            raise S3Error("InvalidToken")
        credential = await self._credential(parts.key_id)
        key = self._signing_key(credential, parts.date)
        expected = hmac_sha256(key, policy.encode()).hex()
        if not compare_digest(expected.encode(), parts.signature.encode()):
            raise S3Error(
                "SignatureDoesNotMatch",
                details=(
                    ("AWSAccessKeyId", parts.key_id),
                    ("StringToSign", policy),
                    ("SignatureProvided", parts.signature),
                ),
            )
        return Identity(_MINT, credential.owner, parts.key_id, UNSIGNED_PAYLOAD)

    async def authenticate_unsigned_form(self, request: S3Request) -> Identity:
        """The sender of a POST form without a policy: anonymous, where that is switched on."""
        if self._anonymous is None:
            raise S3Error("AccessDenied", "The form has no policy.")
        owner = self._anonymous.admit(request)
        return Identity(_MINT, owner, "", UNSIGNED_PAYLOAD, anonymous=True)

    async def _presigned(self, request: S3Request) -> Identity:
        query = {}
        for name, value in request.query.items():
            lower = name.lower()
            if lower.startswith("x-amz-"):
                if lower in query:
                    raise query_error(f"{name} is given twice.")
                query[lower] = value
        parts = parse_presigned(query)
        timestamp = parts.timestamp
        signed_s = self._parse_time(timestamp)
        if signed_s is None:
            raise query_error(
                "X-Amz-Date must be in the ISO8601 Long Format \"yyyyMMdd'T'HHmmss'Z'\""
            )
        expires_s = _parse_expires(query.get("x-amz-expires"))
        self._check_scope(parts, "AuthorizationQueryParametersError")
        now_s = self._clock.wall_ns() // 1_000_000_000
        if signed_s > now_s + MAX_SKEW_S:
            raise S3Error("AccessDenied", "Request is not valid yet")
        if now_s > signed_s + expires_s:
            raise S3Error(
                "AccessDenied",
                "Request has expired",
                details=(
                    ("X-Amz-Expires", str(expires_s)),
                    ("Expires", iso_seconds(signed_s + expires_s)),
                    ("ServerTime", iso_seconds(now_s)),
                ),
            )
        _check_signed(request, parts, "x-amz-content-sha256")
        if "x-amz-security-token" in query or "x-amz-security-token" in request.headers:
            raise S3Error("InvalidToken")
        stated = query.get("x-amz-content-sha256") or request.headers.get("x-amz-content-sha256")
        payload = _stated_payload(stated or PayloadKind.UNSIGNED.value)
        if payload.kind in STREAMING_KINDS:
            raise S3Error(
                "InvalidRequest", "A presigned request cannot have a streaming (aws-chunked) body."
            )
        credential = await self._credential(parts.key_id)
        signing_key = self._signing_key(credential, parts.date)
        canonical = _canonical_request(request, parts, b"x-amz-signature")
        _check_signature(parts, f"{canonical}\n{stated or PayloadKind.UNSIGNED.value}", signing_key)
        return Identity(_MINT, credential.owner, parts.key_id, payload, presigned=True)

    async def _credential(self, key_id: str) -> Credential:
        found = self._credentials.find_now(key_id)
        if found is MISS:
            found = await self._credentials.find(key_id)
        if found is None:
            raise S3Error("InvalidAccessKeyId", details=(("AWSAccessKeyId", key_id),))
        assert isinstance(found, Credential)
        return found

    def _signing_key(self, credential: Credential, date: str) -> bytes:
        cached = self._keys.get((credential.key_id, date))
        if cached is not None and cached[0] == credential.secret:
            return cached[1]
        key = signing_key(credential.secret, date, self.region)
        if len(self._keys) >= MAX_CACHED_SIGNING_KEYS:
            self._keys.clear()
        self._keys[credential.key_id, date] = (credential.secret, key)
        return key

    def _parse_time(self, text: str) -> int | None:
        found = self._times.get(text)
        if found is None:
            found = parse_amz_date(text)
            if found is not None:
                if len(self._times) >= 64:
                    self._times.clear()
                self._times[text] = found
        return found

    def _check_scope(self, parts: StatedSignature, code: str) -> None:
        if parts.region != self.region:
            raise S3Error(
                code,
                f"The authorization header is malformed; the region '{parts.region}' is wrong; "
                f"expecting '{self.region}'",
                details=(("Region", self.region),),
            )
        if parts.timestamp[:8] != parts.date:
            raise S3Error(
                code,
                f'Invalid credential date "{parts.date}". This date is not the same as X-Amz-Date: '
                f'"{parts.timestamp[:8]}".',
            )

    def _check_skew(self, request_s: int, timestamp: str) -> None:
        now_s = self._clock.wall_ns() // 1_000_000_000
        if abs(now_s - request_s) > MAX_SKEW_S:
            raise S3Error(
                "RequestTimeTooSkewed",
                details=(
                    ("RequestTime", timestamp),
                    ("ServerTime", iso_seconds(now_s)),
                    ("MaxAllowedSkewMilliseconds", str(MAX_SKEW_S * 1000)),
                ),
            )


class WallClock(Protocol):
    def wall_ns(self) -> int: ...


def signing_key(secret: bytes, date: str, region: str, service: str = SERVICE) -> bytes:
    """The key derived for one day, region and service. `date`: YYYYMMDD."""
    key = hmac_sha256(b"AWS4" + secret, date.encode())
    key = hmac_sha256(key, region.encode())
    key = hmac_sha256(key, service.encode())
    return hmac_sha256(key, b"aws4_request")


def _parse_expires(text: str | None) -> int:
    if text is None or not text.isascii() or not text.isdigit() or len(text) > 10:
        raise query_error("X-Amz-Expires should be a number")
    expires_s = int(text)
    if expires_s < 1:
        raise query_error("X-Amz-Expires must be at least 1")
    if expires_s > MAX_PRESIGNED_EXPIRES_S:
        raise query_error(
            "X-Amz-Expires must be less than a week (in seconds); that is, the given "
            f"X-Amz-Expires must be less than {MAX_PRESIGNED_EXPIRES_S} seconds"
        )
    return expires_s


def _check_signed(request: S3Request, parts: StatedSignature, exempt: str) -> None:
    signed = parts.signed_headers
    for name in request.amz_names:
        if name not in signed and name != exempt:
            missing = [n for n in request.amz_names if n not in signed and n != exempt]
            raise S3Error(
                "AccessDenied",
                "There were headers present in the request which were not signed",
                details=(("HeadersNotSigned", ", ".join(missing)),),
            )


def _canonical_request(request: S3Request, parts: StatedSignature, without: bytes) -> str:
    """All lines but the last, the payload hash."""
    headers = request.headers
    lines = "".join([f"{name}:{headers.get(name, '')}\n" for name in parts.signed_headers])
    if "  " in lines or "\t" in lines:
        lines = "".join(
            [f"{name}:{_collapse(headers.get(name, ''))}\n" for name in parts.signed_headers]
        )
    path = canonical_path(request.raw_path)
    query = canonical_query(request.pairs, without=without) if request.pairs else ""
    return f"{request.method}\n{path}\n{query}\n{lines}\n{parts.signed_text}"


def _collapse(value: str) -> str:
    return " ".join([word for word in value.replace("\t", " ").split(" ") if word])


def _check_signature(parts: StatedSignature, canonical_request: str, key: bytes) -> None:
    # Header values are latin-1 text of the bytes on the wire: this gives those bytes back.
    raw = canonical_request.encode("latin-1")
    string_to_sign = f"{ALGORITHM}\n{parts.timestamp}\n{parts.scope}\n{sha256(raw).hex()}"
    expected = hmac_sha256(key, string_to_sign.encode()).hex()
    if compare_digest(expected.encode(), parts.signature.encode("utf-8", "replace")):
        return
    raise S3Error(
        "SignatureDoesNotMatch",
        details=(
            ("AWSAccessKeyId", parts.key_id),
            ("StringToSign", string_to_sign),
            ("SignatureProvided", parts.signature),
            ("StringToSignBytes", string_to_sign.encode().hex(" ")),
            ("CanonicalRequest", raw.decode("utf-8", "replace")),
            ("CanonicalRequestBytes", raw.hex(" ")),
        ),
    )


def _stated_payload(stated: str) -> Payload:
    if len(stated) == 64 and not stated.encode("latin-1").translate(None, HEX_DIGITS):
        return Payload(PayloadKind.SIGNED, sha256=bytes.fromhex(stated))
    kind = _PAYLOAD_NAMES.get(stated)
    if kind is PayloadKind.UNSIGNED:
        return UNSIGNED_PAYLOAD
    if kind is not None:
        return Payload(kind)
    if stated.startswith("STREAMING-AWS4-ECDSA"):
        raise S3Error("NotImplemented", "Signature Version 4A is not implemented.")
    raise S3Error(
        "InvalidArgument",
        "x-amz-content-sha256 must be UNSIGNED-PAYLOAD, STREAMING-UNSIGNED-PAYLOAD-TRAILER, "
        "STREAMING-AWS4-HMAC-SHA256-PAYLOAD, STREAMING-AWS4-HMAC-SHA256-PAYLOAD-TRAILER or a valid "
        "sha256 value.",
    )


def _anonymous_payload(request: S3Request) -> Payload:
    stated = request.headers.get("x-amz-content-sha256")
    if stated is None:
        return UNSIGNED_PAYLOAD
    payload = _stated_payload(stated)
    if payload.kind is PayloadKind.CHUNKS or payload.kind is PayloadKind.CHUNKS_TRAILER:
        raise S3Error("InvalidRequest", "An anonymous request cannot have signed chunks.")
    return payload


def _timestamp_of_date(date: str | None) -> str:
    """The basic ISO form of a Date header."""
    if date is not None:
        if parse_amz_date(date) is not None:
            return date
        unix_s = parse_http_date(date)
        if unix_s is not None:
            return amz_date(unix_s)
    raise S3Error("AccessDenied", "AWS authentication requires a valid Date or x-amz-date header")
