"""The S3 front: one request in, one response out.

Order of every request: head, sender (`authenticate`), operation (`route`), headers, bucket and
access, then the operation itself. Whatever goes wrong becomes one of the codes of `_errors.py`.
"""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, TypeVar

from o3storage.catalog import BucketInfo, CatalogError, NoSuchBucket, Query, get_bucket
from o3storage.cluster import MISS, BodyDamaged, BodyMissing, StorageFull, Unavailable
from o3storage.http import BlockPool, BodyError, HttpError, Request, Response
from o3storage.runtime import Clock, Entropy, Logger
from o3storage.s3 import _cors
from o3storage.s3._anonymous import Anonymous
from o3storage.s3._context import Context, unavailable
from o3storage.s3._documents import release
from o3storage.s3._errors import (
    RETRY_AFTER_S,
    XML_CONTENT_TYPE,
    NotModified,
    S3Error,
    error_document,
)
from o3storage.s3._form_data import FormFile, boundary_of
from o3storage.s3._names import host_name, split_target
from o3storage.s3._node import Node
from o3storage.s3._operations import TABLE
from o3storage.s3._payload import check_unread_body, open_body
from o3storage.s3._refusals import translate, translate_body_error
from o3storage.s3._request import S3Request
from o3storage.s3._router import BUCKET, check_headers, level_of, route
from o3storage.s3._sigv4 import (
    Authenticator,
    CredentialSource,
    Identity,
    PayloadKind,
)

T = TypeVar("T")

Observer = Callable[[str, int, float], None]
"""Told of every answer: operation ("" if none was found), HTTP status, and seconds from the head of
the request to the head of the answer (the body of the request and all syncs within; the sending of
a body that is read piece by piece is not)."""

_log = Logger("s3")

_QUIET_KINDS: Final = frozenset({PayloadKind.UNSIGNED, PayloadKind.SIGNED})

_CODES_OF_STATUS: Final = {408: "RequestTimeout", 411: "MissingContentLength", 503: "SlowDown"}


@dataclass(frozen=True, slots=True)
class ServiceConfig:
    """`domain`: also serve BUCKET.domain. `root_owner`: who anonymous requests act as.
    `listened`: the addresses that the server listens on (see `_anonymous.py`)."""

    region: str = "us-east-1"
    domain: str | None = None
    root_owner: str = "root"
    anonymous: bool = False
    listened: tuple[str, ...] = ()


class Service:
    """Serves S3 on a node. `handle` never raises but for cancellation."""

    def __init__(
        self,
        node: Node,
        *,
        credentials: CredentialSource,
        clock: Clock,
        entropy: Entropy,
        config: ServiceConfig | None = None,
        pool: BlockPool | None = None,
        observe: Observer | None = None,
    ) -> None:
        config = config or ServiceConfig()
        self.node = node
        self.held_parts = 0
        """Parts that answers under way keep readable (`_bodies.HeldParts`)."""
        self.document_bytes = 0
        """Memory of the XML documents under way (`_documents.py`)."""
        self.clock = clock
        self.entropy = entropy
        self.region = config.region
        self.domains = () if config.domain is None else (config.domain.lower(),)
        self.pool = pool or BlockPool()
        self.observe = observe
        anonymous = None
        if config.anonymous:
            anonymous = Anonymous(config.root_owner, config.listened, self.domains)
        self.authenticator = Authenticator(config.region, credentials, clock, anonymous)
        self._next_id = int.from_bytes(entropy.random_bytes(8), "big")
        self._host_id = b64encode(entropy.random_bytes(24)).decode("ascii")

    async def handle(self, http_request: Request) -> Response:
        """Answer one request."""
        began_s = self.clock.boot_s()
        self._next_id = (self._next_id + 1) & 0xFFFF_FFFF_FFFF_FFFF
        request_id = f"{self._next_id:016X}"
        operation = ""
        ctx: Context | None = None
        origin = http_request.headers.get("origin")
        try:
            request = S3Request(
                http_request.method,
                http_request.path,
                http_request.query,
                http_request.headers,
                http_request.body,
                secure=http_request.secure,
                local=http_request.local[0],
            )
            if request.method == "OPTIONS":
                operation = "CORSPreflight"
                response = await self._preflight(request)
            else:
                form, identity = await self._authenticate(request)
                bucket, key = self._target(request)
                level = level_of(bucket, key)
                found = route(TABLE, request.method, level, request.query, request.headers)
                operation = found.name
                names = None if request.pairs else request.amz_names
                check_headers(found, request.headers, names)
                if not found.reads_body and identity.payload.kind not in _QUIET_KINDS:
                    await check_unread_body(request, identity)
                ctx = Context(self, request, identity, bucket or "", key or b"")
                ctx.form = form
                if found.needs_bucket:
                    await ctx.open_bucket()
                response = await found.handler(ctx)
        except Exception as error:
            response = self._failed(error, http_request, request_id, ctx)
        finally:
            if ctx is not None and ctx.document_bytes:
                release(ctx)
        headers = response.headers
        headers.append(("x-amz-request-id", request_id))
        headers.append(("x-amz-id-2", self._host_id))
        if origin is not None and ctx is not None and ctx.has_bucket:
            headers.extend(_cors.response_headers(ctx.bucket, origin, http_request.method))
        if self.observe is not None:
            self.observe(operation, response.status, self.clock.boot_s() - began_s)
        return response

    async def _authenticate(self, request: S3Request) -> tuple[FormFile | None, Identity]:
        """The proven sender; for a browser's form its fields are read first, as they prove it."""
        if request.method == "POST" and "authorization" not in request.headers:
            content_type = request.headers.get("content-type", "")
            if (
                content_type[:19].lower() == "multipart/form-data"
                and not request.query
                and level_of(*self._target(request)) == BUCKET
            ):
                form = FormFile(request.body, boundary_of(content_type))
                await form.read_fields()
                if "policy" in form.fields:
                    return form, await self.authenticator.authenticate_form(form.fields)
                return form, await self.authenticator.authenticate_unsigned_form(request)
        return None, await self.authenticator.authenticate(request)

    def _target(self, request: S3Request) -> tuple[str | None, bytes | None]:
        return split_target(request.path, request.host, self.domains)

    async def _preflight(self, request: S3Request) -> Response:
        """Browsers ask without credentials; the answer shows nothing but a bucket's own rules."""
        name, _ = self._target(request)
        bucket: BucketInfo | None = None
        if name is not None:
            try:
                bucket = await self.query(get_bucket(name))
            except NoSuchBucket:
                bucket = None
        return _cors.preflight(bucket, request.headers)

    async def query(self, query: Query[T]) -> T:
        """Run a query, at once where everything it reads is in memory."""
        found = self.node.query_now(query)
        if found is MISS:
            return await self.node.query(query)
        return found

    def names_bucket_by_host(self, request: Request) -> bool:
        """Whether the Host names a bucket below the configured domain."""
        name = host_name(request.host)
        return any(name.endswith(f".{domain}") for domain in self.domains)

    # --- errors

    def error_response(self, request: Request | None, error: HttpError) -> Response:
        """The S3 form of what the HTTP layer refuses by itself."""
        code = _CODES_OF_STATUS.get(error.status)
        if code is None:
            code = "InternalError" if error.status == 500 else "BadRequest"
        headers: tuple[tuple[str, str], ...] = ()
        if code == "SlowDown":
            headers = (("Retry-After", str(RETRY_AFTER_S)),)
        message = str(error) if code == "BadRequest" else None
        refusal = S3Error(code, message, headers=headers)
        self._next_id = (self._next_id + 1) & 0xFFFF_FFFF_FFFF_FFFF
        request_id = f"{self._next_id:016X}"
        response = self._error_answer(refusal, request, request_id)
        response.status = error.status
        response.headers.append(("x-amz-request-id", request_id))
        response.headers.append(("x-amz-id-2", self._host_id))
        return response

    def _failed(
        self, error: Exception, request: Request, request_id: str, ctx: Context | None
    ) -> Response:
        """The answer to whatever was raised."""
        if isinstance(error, NotModified):
            return Response(304, error.headers, None)
        if isinstance(error, CatalogError):
            bucket = "" if ctx is None else ctx.bucket_name
            key = "" if ctx is None else ctx.key.decode("utf-8", "replace")
            error = translate(error, bucket, key)
        elif isinstance(error, BodyError):
            error = translate_body_error(error)
        elif isinstance(error, StorageFull):
            error = S3Error("StorageFull")
        elif isinstance(error, Unavailable):
            error = unavailable(str(error))
        elif isinstance(error, BodyMissing):
            error = unavailable(
                "The version was removed while it was being read, or its bytes cannot be had now."
            )
        elif isinstance(error, BodyDamaged):
            _log.error("body.damaged", error=str(error), request_id=request_id)
            error = S3Error("InternalError", "The stored bytes are damaged and there is no copy.")
        if not isinstance(error, S3Error):
            # (Not its repr: that of a UnicodeError holds the whole text, which may be a secret.)
            _log.error("request.failed", error=error, request_id=request_id)
            error = S3Error("InternalError")
        return self._error_answer(error, request, request_id)

    def _error_answer(self, error: S3Error, request: Request | None, request_id: str) -> Response:
        headers = list(error.headers)
        if request is not None and request.method == "HEAD":
            return Response(error.status, headers, None, 0)
        resource = "" if request is None else request.path.decode("latin-1")
        headers.append(("Content-Type", XML_CONTENT_TYPE))
        document = error_document(
            error, resource=resource, request_id=request_id, host_id=self._host_id
        )
        return Response(error.status, headers, document)


async def read_signed_body(
    service: Service, http_request: Request, max_bytes: int
) -> tuple[Identity, bytes]:
    """The proven sender and the whole checked body of a request that is not S3's (the admin API,
    signed in the same way). Raises S3Error."""
    request = S3Request(
        http_request.method,
        http_request.path,
        http_request.query,
        http_request.headers,
        http_request.body,
        secure=http_request.secure,
        local=http_request.local[0],
    )
    identity = await service.authenticator.authenticate(request)
    body = open_body(request, identity, max_bytes=max_bytes)
    digester = body.digester(md5=False, blake3=False)
    data = bytearray()
    view = memoryview(bytearray(min(body.length, 16 * 1024) or 1))
    try:
        while count := await body.source.read_into(view):
            digester.update(view[:count])
            data += view[:count]
            if len(data) > body.length:
                raise body.too_long(len(data))
    except BodyError as error:
        raise translate_body_error(error) from None
    body.verify(digester.finish(), len(data))
    return identity, bytes(data)
