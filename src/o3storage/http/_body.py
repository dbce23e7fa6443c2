"""The body of a request: pulled by the handler, pushed by the connection.

The connection owns what was received and not yet asked for. While a read waits, the connection
may ask for the reader's own memory (`_target`) and receive into it, so that a large body is
copied once, by the kernel.
"""

from __future__ import annotations

import asyncio
from typing import Protocol

from o3storage.http._chunked import ChunkedDecoder
from o3storage.http._errors import BodyError
from o3storage.http._messages import Headers

DIRECT_BYTES = 4096
"""Below this much to come, receiving into shared memory and copying beats a receive of its own."""

MAX_SKIPPED_CODED_BYTES = 2048
"""Of a chunked body that nobody wants: 16 KiB of it may be 2,700 chunks, which took 10 ms to take
apart, for an answer that needs no key. Behind more the connection is closed."""


class Upstream(Protocol):
    """What a body needs of its connection."""

    _unread: bytes
    _unread_at: int

    def _body_wanted(self) -> None:
        """A read is about to wait: send 100 Continue, go on receiving. Raises BodyError."""
        ...


class Body:
    """A `ByteSource` over the content of one request (RFC 9112, section 6).

    `length`: the declared Content-Length, 0 without a body, None if chunked. `declared`: False if
    the request named neither a length nor chunked coding (S3 wants 411 then). `trailers`: fields
    after a chunked body, None before its end and for other bodies without any.

    The first call that needs bytes sends 100 Continue if the client expects it.
    """

    __slots__ = (
        "_decoder",
        "_error",
        "_fill",
        "_filled",
        "_left",
        "_upstream",
        "_view",
        "_waiter",
        "declared",
        "ended",
        "length",
        "received_bytes",
        "trailers",
    )

    def __init__(
        self, upstream: Upstream, length: int | None, declared: bool, decoder: ChunkedDecoder | None
    ) -> None:
        self._upstream = upstream
        self._decoder = decoder
        self._left = length or 0
        self._error: BodyError | None = None
        self._view: memoryview | None = None
        self._fill = False
        self._filled = 0
        self._waiter: asyncio.Future[int] | None = None
        self.length = length
        self.declared = declared
        self.ended = length == 0
        """True once the last byte (of a chunked body: the last trailer) was taken in."""
        self.received_bytes = 0
        """Content bytes handed over so far."""
        self.trailers: Headers | None = None

    async def read_into(self, view: memoryview) -> int:
        """Read 1 to len(view) bytes into `view`; 0 is the end. Raises BodyTruncated, BodyTimeout,
        BadChunk (and the same one again on a further call)."""
        self._fill = False
        return await self._read(view)

    async def fill_into(self, view: memoryview) -> int:
        """Read until `view` is full or the body ends; returns the number of bytes read. Raises as
        `read_into`, and what was read before the error is lost."""
        self._fill = True
        return await self._read(view)

    async def ready(self) -> bool:
        """Wait until at least one byte can be read (True) or the body has ended (False), without
        any memory of the caller's. Raises as `read_into`."""
        if self._error is not None:
            raise self._error
        if self.ended:
            return False
        upstream = self._upstream
        while upstream._unread_at == len(upstream._unread) or not self._byte_at_hand():
            if self.ended:
                return False
            await self._wait(None)
        return True

    def whole_now(self) -> int:
        """Size in bytes of the rest of the body if all of it was received, else 0."""
        upstream = self._upstream
        left = self._left
        return left if left <= len(upstream._unread) - upstream._unread_at else 0

    def take_now(self, limit_bytes: int) -> memoryview | None:
        """The rest of the body, 1 to `limit_bytes` bytes, as they were received, if all of it was;
        the body has ended then. None, and nothing happened, if not."""
        left = self._left
        upstream = self._upstream
        at = upstream._unread_at
        unread = upstream._unread
        if not 0 < left <= limit_bytes or left > len(unread) - at or self._error is not None:
            return None
        end = at + left
        if end == len(unread):
            upstream._unread = b""
            upstream._unread_at = 0
        else:
            upstream._unread_at = end
        self._left = 0
        self.ended = True
        self.received_bytes += left
        return memoryview(unread)[at:end]

    async def read(self, limit_bytes: int) -> bytes:
        """The whole rest of the body as bytes, for small ones such as XML. Raises HttpError-typed
        BodyError 413 if it is longer than `limit_bytes`, and as `read_into`."""
        if self.length is not None and self.length - self.received_bytes > limit_bytes:
            raise BodyError(f"the request body may have at most {limit_bytes} bytes", 413)
        parts = bytearray()
        block = memoryview(bytearray(min(limit_bytes + 1, 16384, self.length or 16384)))
        while True:
            count = await self.read_into(block)
            if count == 0:
                return bytes(parts)
            parts += block[:count]
            if len(parts) > limit_bytes:
                raise BodyError(f"the request body may have at most {limit_bytes} bytes", 413)

    # --- reading

    async def _read(self, view: memoryview) -> int:
        if self._error is not None:
            raise self._error
        if self.ended or not len(view):
            return 0
        upstream = self._upstream
        done = 0
        if upstream._unread_at < len(upstream._unread):
            done = self._take_unread(view)
            if self.ended or done == len(view) or (done and not self._fill):
                return done
        return done + await self._wait(view[done:] if done else view)

    def _take_unread(self, view: memoryview) -> int:
        upstream = self._upstream
        data = memoryview(upstream._unread)[upstream._unread_at :]
        try:
            used, done = self._decode(data, view)
        except BodyError as error:
            self._error = error
            raise
        upstream._unread_at += used
        if upstream._unread_at == len(upstream._unread):
            upstream._unread = b""
            upstream._unread_at = 0
        return done

    def _byte_at_hand(self) -> bool:
        """True if the unread input holds a content byte; framing before it is consumed."""
        if self._decoder is None:
            return True
        if self._decoder.left:
            return True
        self._take_unread(_NOTHING)
        return self._decoder.left > 0 and bool(self._upstream._unread)

    async def _wait(self, view: memoryview | None) -> int:
        """Wait for input; with a view, until bytes are in it (all of it if `_fill`) or the end."""
        assert self._waiter is None, "two reads of one body at once"
        self._upstream._body_wanted()
        self._view = view
        self._filled = 0
        self._waiter = asyncio.get_running_loop().create_future()
        try:
            return await self._waiter
        finally:
            self._waiter = None
            self._view = None

    def _decode(self, data: memoryview, view: memoryview) -> tuple[int, int]:
        """Move content from `data` to `view`. Returns (bytes used, bytes filled)."""
        if self._decoder is None:
            count = min(len(data), len(view), self._left)
            view[:count] = data[:count]
            self._left -= count
            self.ended = self._left == 0
            self.received_bytes += count
            return count, count
        used, count = self._decoder.decode(data, view)
        self.received_bytes += count
        if self._decoder.ended:
            self.ended = True
            self.trailers = self._decoder.trailers
        return used, count

    def _skip_unread(self, scratch: memoryview) -> None:
        """Discard what was received, as far as it belongs to this body, unless it is chunked and
        much."""
        upstream = self._upstream
        if (
            self._decoder is not None
            and len(upstream._unread) - upstream._unread_at > MAX_SKIPPED_CODED_BYTES
        ):
            return
        while not self.ended and upstream._unread_at < len(upstream._unread):
            self._take_unread(scratch)

    # --- called by the connection

    def _waiting(self) -> bool:
        return self._waiter is not None and not self._waiter.done()

    def _room(self) -> int:
        """Bytes that the waiting reader could take."""
        return 0 if self._view is None else len(self._view) - self._filled

    def _target(self) -> memoryview | None:
        """The waiting reader's memory to receive into, if that is worth it."""
        view = self._view
        if view is None:
            return None
        left = self._left if self._decoder is None else self._decoder.left
        room = len(view) - self._filled
        count = room if room < left else left
        if count < DIRECT_BYTES:
            return None
        return view[self._filled : self._filled + count]

    def _advance(self, count: int) -> None:
        """`count` content bytes were received into `_target`."""
        if self._decoder is None:
            self._left -= count
            self.ended = self._left == 0
        else:
            self._decoder.left -= count
        self.received_bytes += count
        self._arrived(count)

    def _feed(self, data: memoryview) -> int:
        """Input came while a read waits. Returns how much of it was used."""
        view = self._view
        if view is None:  # `ready` waits: it looks at the unread input itself
            assert self._waiter is not None
            self._waiter.set_result(0)
            return 0
        try:
            used, done = self._decode(data, view[self._filled :])
        except BodyError as error:
            self._fail(error)
            return len(data)
        if done or self.ended:
            self._arrived(done)
        return used

    def _arrived(self, count: int) -> None:
        self._filled += count
        assert self._view is not None
        if self._fill and not self.ended and self._filled < len(self._view):
            return
        assert self._waiter is not None
        self._waiter.set_result(self._filled)

    def _fail(self, error: BodyError) -> None:
        """Nothing more will come. A reader that waits is told now, a later one when it asks."""
        if self._error is None and not self.ended:
            self._error = error
        if self._waiter is not None and not self._waiter.done() and self._error is not None:
            self._waiter.set_exception(self._error)


_NOTHING = memoryview(bytearray(0))
