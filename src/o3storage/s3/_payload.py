"""What a request promises about its body, and the check that it was kept.

A `RequestBody` is opened after authentication and before any byte is read, so that every refusal
that can be known from the head comes before "100 Continue". Its `source` yields decoded bytes;
whoever reads them digests them with `digester()` and calls `verify` before committing anything.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from o3storage._native import Digester
from o3storage.s3._checksums import (
    BY_HEADER,
    Algorithm,
    decode_base64,
    decode_value,
    find_algorithm,
)
from o3storage.s3._chunked import ChunkedBody
from o3storage.s3._errors import S3Error
from o3storage.s3._request import ByteSource, S3Request
from o3storage.s3._sigv4 import (
    STREAMING_KINDS,
    Identity,
    PayloadKind,
    PendingSignature,
)
from o3storage.s3._xml import FEED_BYTES, MAX_XML_BYTES

if TYPE_CHECKING:
    from o3storage._native import Digests

MAX_PUT_BYTES: Final = 5 * 1024**3
"""One PUT, one part, one copy (AWS: 5 GiB)."""


class RequestBody:
    """The body of one request. `length`: decoded bytes, as declared; without `exact` (a form's
    file, whose size nobody declares) the most that is taken."""

    __slots__ = (
        "_chunks",
        "_md5",
        "_pending",
        "_sha256",
        "_value",
        "algorithm",
        "exact",
        "length",
        "source",
    )

    def __init__(
        self,
        source: ByteSource,
        length: int,
        *,
        exact: bool = True,
        md5: bytes | None,
        sha256: bytes | None,
        pending: PendingSignature | None,
        algorithm: Algorithm | None,
        value: bytes | None,
    ) -> None:
        self.source = source
        self.length = length
        self.exact = exact
        self._md5 = md5
        self._sha256 = sha256
        self._pending = pending
        self.algorithm = algorithm
        """Of the checksum that the client gave or promised in a trailer."""
        self._value = value
        self._chunks = source if isinstance(source, ChunkedBody) else None

    def too_long(self, size: int) -> S3Error:
        """The error for more bytes than `length`."""
        if self.exact:
            return S3Error("InvalidRequest", "The body is longer than declared.")
        return S3Error(
            "EntityTooLarge",
            details=(("ProposedSize", str(size)), ("MaxSizeAllowed", str(self.length))),
        )

    @property
    def has_digest(self) -> bool:
        """Content-MD5 or a checksum protects the body (DeleteObjects asks for one)."""
        return self._md5 is not None or self.algorithm is not None

    def digester(self, *, md5: bool, blake3: bool, also: Algorithm | None = None) -> Digester:
        """For every digest that `verify` needs, and those asked for."""
        fields = {algorithm.field for algorithm in (self.algorithm, also) if algorithm is not None}
        return Digester(
            md5=md5 or self._md5 is not None,
            blake3=blake3,
            sha256="sha256" in fields or self._sha256 is not None or self._pending is not None,
            sha1="sha1" in fields,
            crc32="crc32" in fields,
            crc32c="crc32c" in fields,
            crc64nvme="crc64nvme" in fields,
        )

    async def reach_end(self) -> None:
        """Read past the last byte: only there are the last signature and the trailers checked.
        Raises S3Error, and what the source raises."""
        if await self.source.read_into(memoryview(bytearray(1))):
            raise self.too_long(self.length + 1)

    def verify(self, digests: Digests, size: int) -> None:
        """Everything promised was kept, else S3Error; call after `source` ended."""
        assert self._chunks is None or self._chunks.ended, "the body was not read to its end"
        if self.exact and size != self.length:
            raise S3Error("IncompleteBody")
        if self._md5 is not None and digests["md5"] != self._md5:
            raise S3Error(
                "BadDigest", "The Content-MD5 you specified did not match what we received."
            )
        if self._pending is not None:
            self._pending.check(digests["sha256"])
        if self._sha256 is not None and digests["sha256"] != self._sha256:
            raise S3Error(
                "XAmzContentSHA256Mismatch",
                details=(
                    ("ClientComputedContentSHA256", self._sha256.hex()),
                    ("S3ComputedContentSHA256", digests["sha256"].hex()),
                ),
            )
        algorithm = self.algorithm
        if algorithm is None:
            return
        expected = self._value
        if expected is None:
            assert self._chunks is not None
            text = self._chunks.trailers[algorithm.header]
            expected = decode_value(algorithm, text, f"{algorithm.header} trailing header")
        if digests[algorithm.field] != expected:  # type: ignore[literal-required]
            raise S3Error(
                "BadDigest",
                f"The {algorithm.name} you specified did not match the calculated checksum.",
            )


def open_body(
    request: S3Request,
    identity: Identity,
    *,
    streaming: bool = False,
    max_bytes: int = MAX_PUT_BYTES,
    object_checksums: bool = False,
) -> RequestBody:
    """Raises S3Error for whatever the head already shows to be wrong.

    `streaming`: the operation takes aws-chunked bodies (PutObject and UploadPart only).
    """
    headers = request.headers
    payload = identity.payload
    chunked = payload.kind in STREAMING_KINDS
    if chunked and not streaming:
        raise S3Error("InvalidRequest", "This operation does not take a streaming payload.")
    length = _body_length(request, chunked)
    if length > max_bytes:
        raise S3Error(
            "EntityTooLarge",
            details=(("ProposedSize", str(length)), ("MaxSizeAllowed", str(max_bytes))),
        )
    md5 = stated_md5(headers)
    algorithm, value = (None, None) if object_checksums else stated_checksum(headers)
    trailer = _declared_trailer(headers, payload.kind)
    if trailer is not None:
        if algorithm is not None:
            raise S3Error(
                "InvalidRequest",
                "Expecting a single x-amz-checksum- header. Multiple checksum Types are not "
                "allowed.",
            )
        algorithm = trailer
    _check_announced(headers, algorithm)
    source: ByteSource = request.body
    if chunked:
        signer = None
        if payload.kind is not PayloadKind.UNSIGNED_TRAILER:
            signer = payload.signer
            assert signer is not None, "a signed streaming payload without its signer"
        declared = () if trailer is None else (trailer.header,)
        source = ChunkedBody(source, length, signer=signer, declared=declared)
    return RequestBody(
        source,
        length,
        md5=md5,
        sha256=payload.sha256,
        pending=payload.pending,
        algorithm=algorithm,
        value=value,
    )


def _body_length(request: S3Request, chunked: bool) -> int:
    text = request.headers.get("x-amz-decoded-content-length")
    if text is not None:
        if not text.isascii() or not text.isdigit() or len(text) > 18:
            raise S3Error("InvalidArgument", "x-amz-decoded-content-length is not a number.")
        decoded = int(text)
        if chunked or request.body.length is None:
            return decoded
        if decoded != request.body.length:
            raise S3Error(
                "InvalidRequest",
                "x-amz-decoded-content-length differs from Content-Length, and the payload is not "
                "aws-chunked.",
            )
    elif chunked:
        raise S3Error("MissingContentLength", "You must provide x-amz-decoded-content-length.")
    if request.body.length is None:
        raise S3Error("MissingContentLength")
    return request.body.length


def stated_md5(headers: dict[str, str]) -> bytes | None:
    """The Content-MD5. Raises S3Error InvalidDigest."""
    text = headers.get("content-md5")
    if text is None:
        return None
    md5 = decode_base64(text)
    if md5 is None or len(md5) != 16:
        raise S3Error("InvalidDigest", "The Content-MD5 you specified was invalid.")
    return md5


def stated_checksum(headers: dict[str, str]) -> tuple[Algorithm | None, bytes | None]:
    """The checksum among the headers. Raises S3Error InvalidRequest for two, or a malformed one."""
    found: Algorithm | None = None
    value = None
    for header, algorithm in BY_HEADER.items():
        text = headers.get(header)
        if text is None:
            continue
        if found is not None:
            raise S3Error(
                "InvalidRequest",
                "Expecting a single x-amz-checksum- header. Multiple checksum Types are not "
                "allowed.",
            )
        found = algorithm
        value = decode_value(algorithm, text, f"{header} header")
    return found, value


def _declared_trailer(headers: dict[str, str], kind: PayloadKind) -> Algorithm | None:
    name = headers.get("x-amz-trailer")
    if name is None:
        return None
    if kind not in (PayloadKind.CHUNKS_TRAILER, PayloadKind.UNSIGNED_TRAILER):
        raise S3Error(
            "InvalidRequest", "x-amz-trailer needs a payload that ends with trailing headers."
        )
    algorithm = BY_HEADER.get(name.strip().lower())
    if algorithm is None:
        raise S3Error(
            "InvalidRequest", "The value specified in the x-amz-trailer header is not supported"
        )
    return algorithm


def _check_announced(headers: dict[str, str], algorithm: Algorithm | None) -> None:
    announced = headers.get("x-amz-sdk-checksum-algorithm")
    if announced is None:
        return
    if algorithm is None:
        raise S3Error(
            "InvalidRequest",
            "x-amz-sdk-checksum-algorithm specified, but no corresponding x-amz-checksum-* or "
            "x-amz-trailer headers were found.",
        )
    if find_algorithm(announced) is not algorithm:
        raise S3Error("InvalidRequest", "Value for x-amz-sdk-checksum-algorithm header is invalid.")


async def check_unread_body(request: S3Request, identity: Identity) -> None:
    """Verify what is promised about the body of an operation that takes none (most have none).

    A signature that covers the body's own SHA-256 cannot be judged without it, so a small body is
    read. Raises S3Error.
    """
    if identity.payload.kind is not PayloadKind.PENDING:
        if identity.payload.kind in STREAMING_KINDS:
            raise S3Error("InvalidRequest", "This operation does not take a streaming payload.")
        return
    body = open_body(request, identity, max_bytes=MAX_XML_BYTES)
    digester = body.digester(md5=False, blake3=False)
    view = memoryview(bytearray(FEED_BYTES))
    size = 0
    while count := await body.source.read_into(view):
        size += count
        digester.update(view[:count])
    body.verify(digester.finish(), size)
