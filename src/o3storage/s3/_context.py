"""What an operation is handed: the request, its proven sender, the bucket, and the node."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Generator, Sequence
from typing import TYPE_CHECKING, Any, Final, TypeVar

from o3storage.catalog import (
    BucketBusy,
    BucketFenced,
    BucketInfo,
    Command,
    InvalidVersionId,
    Query,
    SetBucketSetting,
    StaleEpoch,
    drive,
    get_bucket,
    head_version,
    parse_version_id,
    sync_bucket,
)
from o3storage.cluster import MISS
from o3storage.runtime import after_others
from o3storage.s3._errors import RETRY_AFTER_S, S3Error
from o3storage.s3._request import S3Request
from o3storage.s3._sigv4 import Identity

if TYPE_CHECKING:
    from o3storage.s3._form_data import FormFile
    from o3storage.s3._node import Reads
    from o3storage.s3._service import Service

T = TypeVar("T")

_READING: Final = ("GET", "HEAD")

FENCE_WAIT_S: Final = 5.0
"""How long a write waits for the decision whether its bucket goes (design, section 5)."""

FENCE_POLL_S: Final = 0.05
"""A deletion decides within a few round trips."""


class Context:
    """One authenticated request on its way through an operation.

    `bucket_name`, `key`: "" and b"" where the request names none. `bucket` is set, and checked to
    belong to the sender, before the handler of an operation that needs one runs.
    """

    __slots__ = (
        "_bucket",
        "_reads",
        "bucket_name",
        "document_bytes",
        "form",
        "identity",
        "key",
        "request",
        "service",
    )

    def __init__(
        self,
        service: Service,
        request: S3Request,
        identity: Identity,
        bucket_name: str,
        key: bytes,
    ) -> None:
        assert isinstance(identity, Identity)
        self.service = service
        self.request = request
        self.identity = identity
        self.bucket_name = bucket_name
        self.key = key
        self.form: FormFile | None = None
        self.document_bytes = 0
        """Of `Service.document_bytes`, held for this request."""
        self._bucket: BucketInfo | None = None
        self._reads: Reads | None = None

    @property
    def bucket(self) -> BucketInfo:
        assert self._bucket is not None, "the operation has no bucket"
        return self._bucket

    @property
    def has_bucket(self) -> bool:
        """The bucket was found and is the sender's."""
        return self._bucket is not None

    @property
    def headers(self) -> dict[str, str]:
        return self.request.headers

    @property
    def params(self) -> dict[str, str]:
        return self.request.query

    @property
    def owner(self) -> str:
        return self.identity.owner

    def now_ns(self) -> int:
        return self.service.clock.wall_ns()

    async def open_bucket(self) -> None:
        """Find the bucket and check that the sender may use it. Raises S3Error."""
        query = get_bucket(self.bucket_name)
        bucket = self.service.node.query_now(query)
        if bucket is MISS:
            # Other nodes have to be asked: for what will be read next in the same turn.
            self._reads = reads = self.service.node.reads()
            ahead = self._next_route if self.request.method in _READING else None
            bucket = await reads.query(query, ahead)
        check_access(self, bucket)
        self._bucket = bucket

    def _next_route(self, bucket: BucketInfo) -> bytes:
        return head_version(bucket.bucket_id, self.key).route

    def check_expected_owner(self, owner: str) -> None:
        """x-amz-expected-bucket-owner. Raises S3Error AccessDenied."""
        expected = self.headers.get("x-amz-expected-bucket-owner")
        if expected is not None and expected != owner:
            raise S3Error("AccessDenied", "The bucket does not belong to the expected owner.")

    def version_param(self) -> int | None:
        """The version that `?versionId=` names: an order, NULL, or None for the current one."""
        text = self.params.get("versionId")
        if text is None:
            return None
        return parse_version(text)

    async def query(self, query: Query[T]) -> T:
        """As of one instant since the request came."""
        reads = self._reads
        if reads is None:
            return await self.service.query(query)
        found = reads.query_now(query)
        if found is MISS:
            return await reads.query(query)
        return found

    async def page(self, query: Query[T]) -> T:
        """As `query`, of what may have to be read in steps, between which others are served."""
        await after_others()
        if self._reads is None:
            return await self.service.node.query(query)
        return await self._reads.query(query)

    async def set_bucket_setting(self, setting: str, value: bytes | None) -> None:
        """Set a document of the bucket that was opened, or remove it. Raises CatalogError: who
        deleted the bucket while the document came does not set it in the next one of its name."""
        name, bucket_id = self.bucket_name, self.bucket.bucket_id
        await self.service.node.submit(SetBucketSetting(name, setting, value, bucket_id))

    async def drive(self, steps: Generator[Command | Query[Any], Any, T]) -> T:
        """Run a procedure of the catalog; see `catalog._procedures`."""
        return await drive(self.service.node, steps)

    async def write(self, make: Callable[[BucketInfo], Command], frames: Sequence[Any] = ()) -> Any:
        """Submit a command on the bucket's keys, made anew while its settings move.

        Only definite refusals are tried again. Raises CatalogError, S3Error ServiceUnavailable.
        """
        bucket = self.bucket
        loop = asyncio.get_running_loop()
        deadline = loop.time() + FENCE_WAIT_S
        while True:
            try:
                return await self.service.node.submit(make(bucket), frames)
            except (StaleEpoch, BucketFenced) as refusal:
                if loop.time() > deadline:
                    raise unavailable("A deletion of the bucket is being decided.") from None
                fresh = await self._refresh(isinstance(refusal, StaleEpoch))
            if fresh is None:
                await asyncio.sleep(FENCE_POLL_S)
                continue
            if fresh.bucket_id != bucket.bucket_id:
                raise S3Error("NoSuchBucket", details=(("BucketName", self.bucket_name),))
            bucket = self._bucket = fresh

    async def _refresh(self, stale: bool) -> BucketInfo | None:
        """The bucket as it is now, its range told so; None while it is being deleted."""
        if not stale:
            # (Not as of when the request came: a refusal was met since then.)
            bucket = await self.service.query(get_bucket(self.bucket_name))
            return None if bucket.deleting else bucket
        try:
            return await self.drive(sync_bucket(self.bucket_name, self.now_ns()))
        except BucketBusy:
            return None


def check_access(ctx: Context, bucket: BucketInfo) -> None:
    """A bucket belongs to its owner and nobody else gets in. Raises S3Error AccessDenied."""
    if bucket.owner != ctx.identity.owner:
        raise S3Error("AccessDenied")
    ctx.check_expected_owner(bucket.owner)


def parse_version(text: str) -> int:
    """Raises S3Error InvalidArgument."""
    if not text:
        raise S3Error("InvalidArgument", "Version id cannot be the empty string")
    try:
        return parse_version_id(text)
    except InvalidVersionId:
        raise S3Error(
            "InvalidArgument",
            "Invalid version id specified",
            details=(("ArgumentName", "versionId"), ("ArgumentValue", text)),
        ) from None


def unavailable(message: str) -> S3Error:
    return S3Error("ServiceUnavailable", message, headers=(("Retry-After", str(RETRY_AFTER_S)),))
