"""Bodies into the store and out of it.

In: blocks of the request are digested and written to a stream as they arrive; nothing names the
stream until everything the client promised about the body was checked, so a body that fails a check
leaves nothing behind. Out: the first piece is read, and with it verified, before the answer begins.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, TypeVar

from o3storage._native import blake3, md5
from o3storage.catalog import Checksum, VersionInfo, parts_from
from o3storage.crypto import StreamRef
from o3storage.http import SMALL_BLOCK_BYTES, frames
from o3storage.s3._checksums import DEFAULT, FULL_OBJECT, Algorithm, digest_of
from o3storage.s3._context import Context
from o3storage.s3._errors import S3Error
from o3storage.s3._node import Buffer, DirectPiece, StreamUpload
from o3storage.s3._payload import RequestBody

if TYPE_CHECKING:
    from o3storage._native import Digester, Digests

P = TypeVar("P")

WHOLE_ANSWER_BYTES: Final = 256 * 1024
"""Up to one frame an answer is sent as one piece."""

MAX_HELD_PARTS: Final = 50_000
"""Parts that all answers under way hold together, at about 400 bytes each. An answer for which
there is no room finds its parts as it goes; it is cut if its object is overwritten meanwhile."""
PARTS_PER_STEP: Final = 100
"""Parts of a multipart version looked up at a time while it is read."""

_EMPTY_MD5: Final = md5(b"").hex()
_EMPTY_BLAKE3: Final = blake3(b"")


@dataclass(slots=True)
class StoredBody:
    """A body in the store that no row names yet. `ref` is packed, b"" for no bytes."""

    ref: bytes
    size_bytes: int
    etag: str
    blake3: bytes
    checksum: Checksum
    started_ns: int
    upload: StreamUpload | None = None
    modified_ns: int = 0
    """Of the version or part made of it, once it was proposed."""

    @property
    def frames(self) -> Any:
        return () if self.upload is None else self.upload.frames

    def discard(self) -> None:
        if self.upload is not None:
            self.upload.discard()


def kept_checksum(algorithm: Algorithm, digests: Digests) -> Checksum:
    value: bytes = digests[algorithm.field]  # type: ignore[literal-required]
    return Checksum(algorithm.name, FULL_OBJECT, value)


def empty_body(algorithm: Algorithm | None = None) -> StoredBody:
    algorithm = algorithm or DEFAULT
    checksum = Checksum(algorithm.name, FULL_OBJECT, digest_of(algorithm, b""))
    return StoredBody(b"", 0, _EMPTY_MD5, _EMPTY_BLAKE3, checksum, 0)


async def store_body(
    ctx: Context, body: RequestBody, algorithm: Algorithm | None = None
) -> StoredBody:
    """Take the whole body in and check it. `algorithm`: of the checksum to keep (by default the
    client's, else CRC64NVME). Raises S3Error and what the source raises; then nothing is kept."""
    kept = algorithm or body.algorithm or DEFAULT
    digester = body.digester(md5=True, blake3=True, also=kept)
    upload: StreamUpload | None = None
    size = 0
    take_now = getattr(body.source, "take_now", None)
    try:
        # A small body that came with its head is stored from where it was received.
        whole = None if take_now is None else take_now(SMALL_BLOCK_BYTES)
        if whole is not None:
            size = len(whole)
            if size > body.length:
                raise body.too_long(size)
            upload = ctx.service.node.new_stream(ctx.bucket.bucket_id, ctx.key)
            await upload.write(whole, True, digester)
            return _stored(body, kept, digester, size, upload)
        with frames(body.source, ctx.service.pool) as cut:
            async for block, last in cut:
                try:
                    size += block.size
                    if size > body.length:
                        raise body.too_long(size)
                    if block.size:
                        if upload is None:
                            upload = ctx.service.node.new_stream(ctx.bucket.bucket_id, ctx.key)
                        await upload.write(block.view, last, digester)
                finally:
                    block.release()
        await body.reach_end()
        return _stored(body, kept, digester, size, upload)
    except BaseException:
        if upload is not None:
            upload.discard()
        raise


def _stored(
    body: RequestBody, kept: Algorithm, digester: Digester, size: int, upload: StreamUpload | None
) -> StoredBody:
    """All of the body was taken in. Raises S3Error if it is not what was promised."""
    digests = digester.finish()
    body.verify(digests, size)
    return StoredBody(
        b"" if upload is None else upload.ref.pack(),
        size,
        digests["md5"].hex(),
        digests["blake3"],
        kept_checksum(kept, digests),
        0 if upload is None else upload.started_ns,
        upload,
    )


def read_version(
    ctx: Context, bucket_id: int, version: VersionInfo, offset: int, length: int
) -> AsyncGenerator[Buffer, None]:
    """Verified bytes [offset, offset + length) of a version. Raises what the node raises."""
    return _version(ctx, bucket_id, version, offset, length, ctx.service.node.read_stream)


async def _version(  # noqa: PLR0917
    ctx: Context,
    bucket_id: int,
    version: VersionInfo,
    offset: int,
    length: int,
    read: Callable[[StreamRef, int, int, tuple[int, bytes]], AsyncIterator[P]],
) -> AsyncGenerator[P, None]:
    """What `read` yields for each of the streams that the bytes stand in."""
    if length == 0:
        return
    owner = bucket_id, version.key
    if not version.upload_id:
        async for piece in read(StreamRef.unpack(version.body), offset, length, owner):
            yield piece
        return
    end = offset + length
    held = HeldParts(ctx)
    try:
        if not await held.take(bucket_id, version, offset, end):
            held.release()
        while offset < end:
            parts = held.parts or await _parts(ctx, bucket_id, version, offset)
            for start, size, body in parts:
                if start >= end:
                    break
                inner = offset - start
                count = min(end, start + size) - offset
                if count <= 0:
                    continue
                async for piece in read(StreamRef.unpack(body), inner, count, owner):
                    yield piece
                offset += count
    finally:
        held.release()


Part = tuple[int, int, bytes]
"""(first byte in the object, bytes, packed stream)."""


async def _parts(ctx: Context, bucket_id: int, version: VersionInfo, offset: int) -> list[Part]:
    """A page of parts from the one that holds byte `offset` on."""
    spans = await ctx.query(parts_from(bucket_id, version, offset, PARTS_PER_STEP))
    if not spans:
        raise S3Error("InternalError", "A part of the object is missing.")
    return [(span.offset, span.size_bytes, span.body) for span in spans]


class HeldParts:
    """The parts of an answer, kept readable from its start to its end though the object is
    overwritten or deleted meanwhile."""

    __slots__ = ("_ctx", "_release", "parts")

    def __init__(self, ctx: Context) -> None:
        self._ctx = ctx
        self._release: list[Callable[[], None]] = []
        self.parts: list[Part] = []

    async def take(self, bucket_id: int, version: VersionInfo, offset: int, end: int) -> bool:
        """Find and hold all parts of [offset, end); False if there are too many. Raises what the
        query does, NoSuchVersion among it."""
        service = self._ctx.service
        at = offset
        while at < end:
            page = await _parts(self._ctx, bucket_id, version, at)
            page = [part for part in page if part[0] < end]
            if service.held_parts + len(page) > MAX_HELD_PARTS:
                return False
            service.held_parts += len(page)
            self.parts += page
            bodies = [body for _, _, body in page]
            self._release.append(await service.node.hold(bodies, (bucket_id, version.key)))
            at = page[-1][0] + page[-1][1]
        if len(self.parts) > 1:
            # That the version stands now shows that nothing was let go before it was held.
            await _parts(self._ctx, bucket_id, version, offset)
        return True

    def release(self) -> None:
        """Idempotent."""
        self._ctx.service.held_parts -= len(self.parts)
        self.parts = []
        release, self._release = self._release, []
        for let_go in release:
            let_go()


class Prefetched:
    """An iterated body whose first piece is at hand. Closes what it reads from."""

    __slots__ = ("_first", "_rest")

    def __init__(
        self, first: Buffer | DirectPiece, rest: AsyncGenerator[Buffer | DirectPiece, None]
    ) -> None:
        self._first: Buffer | DirectPiece | None = first
        self._rest = rest

    def __aiter__(self) -> Prefetched:
        return self

    async def __anext__(self) -> Buffer | DirectPiece:
        first = self._first
        if first is not None:
            self._first = None
            return first
        return await anext(self._rest)

    async def aclose(self) -> None:
        await self._rest.aclose()


async def open_answer(
    ctx: Context, version: VersionInfo, offset: int, length: int
) -> Buffer | Prefetched:
    """The body of an answer, its first piece read and verified. Raises what the node raises."""
    if length == 0:
        return b""
    if version.size_bytes <= WHOLE_ANSWER_BYTES and not version.upload_id:
        whole = ctx.service.node.read_small_now(StreamRef.unpack(version.body))
        if whole is not None:
            return whole if length == len(whole) else whole[offset : offset + length]
    bucket_id = ctx.bucket.bucket_id
    if length <= WHOLE_ANSWER_BYTES:
        buffers = read_version(ctx, bucket_id, version, offset, length)
        parts = [bytes(buffer) async for buffer in buffers]
        return parts[0] if len(parts) == 1 else b"".join(parts)
    node = ctx.service.node
    # Over TLS every byte has to come to the loop's thread.
    read = node.read_stream if ctx.request.secure else node.send_stream
    pieces = _version(ctx, bucket_id, version, offset, length, read)
    try:
        first = await anext(pieces)
    except StopAsyncIteration:
        raise S3Error("InternalError", "The object's bytes are missing.") from None
    return Prefetched(first, pieces)
