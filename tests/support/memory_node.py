"""An in-memory node with the face of cluster.Node: the catalog over a dict, bodies as bytes.

For tests of the rooms above the cluster. One node, every command applied at once; streams that a
command releases are dropped when nobody pins them, and reading a dropped one fails as on disk.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Generator, Sequence
from typing import Any

from o3storage.catalog import Catalog, CatalogError, Command, Procedure, Query
from o3storage.crypto import FRAME_BYTES, StreamRef
from o3storage.runtime.state_machine import Read
from tests.catalog.executor import Rows

MISS = object()
"""What query_now of a real node answers when it would have to read the disk; never here."""


class FrameMissing(Exception):
    """A stream's frames are gone."""


class MemoryUpload:
    """A stream being written, as `cluster.StreamUpload`."""

    def __init__(self, node: MemoryNode, stream: bytes, salt: bytes, started_ns: int) -> None:
        self._node = node
        self._stream = stream
        self._salt = salt
        self._blocks: list[bytes] = []
        self._ended = False
        self.started_ns = started_ns
        self.discarded = False

    @property
    def frames(self) -> tuple[()]:
        """Frames to ride with the entry: none here."""
        return ()

    async def write(self, block: Any, last: bool, digester: Any = None) -> None:
        """One frame of plaintext: 256 KiB exactly, but the last; `digester` sees it too."""
        assert not self._ended, "written after the last block"
        data = bytes(block)
        if digester is not None:
            digester.update(data)
        assert len(data) <= FRAME_BYTES and (last or len(data) == FRAME_BYTES)
        self._blocks.append(data)
        self._ended = last
        if last:
            self._node.streams[self._stream] = b"".join(self._blocks)

    @property
    def ref(self) -> StreamRef:
        assert self._ended, "the last block was not written"
        size = len(self._node.streams[self._stream])
        return StreamRef(self._stream, self._salt, 1, size)

    def discard(self) -> None:
        """Give the stream up; its bytes are dropped. Only for a stream that no entry named."""
        self.discarded = True
        self._blocks.clear()
        self._node.streams.pop(self._stream, None)


class MemoryNode:
    """submit, query, query_now, new_stream, read_stream of one node in memory."""

    def __init__(self, now_ns: int = 1_700_000_000 * 10**9) -> None:
        self.catalog = Catalog()
        self.rows = Rows()
        self.streams: dict[bytes, bytes] = {}
        """Plaintext by stream id."""
        self.released: list[bytes] = []
        self.pins: dict[bytes, int] = {}
        self.now_ns = now_ns
        self.submitted: list[Command] = []
        self._streams_made = 0

    async def submit(self, command: Command, frames: Sequence[Any] = ()) -> Any:
        """Apply a command; return its result or raise its CatalogError."""
        return self.submit_now(command)

    def submit_now(self, command: Command) -> Any:
        self.submitted.append(command)
        outcome = self.rows.apply(self.catalog.apply(self.catalog.encode(command)))
        for stream in outcome.released:
            self.released.append(stream)
            if not self.pins.get(stream):
                self.streams.pop(stream, None)
        if outcome.error is not None:
            raise outcome.error
        return outcome.result

    async def query(
        self,
        query: Callable[[], Generator[Read, Any, Any]],
        ahead: Callable[[Any], bytes] | None = None,
    ) -> Any:
        """Run a query at one instant; return its answer or raise its CatalogError."""
        return self.rows.query(query)

    def query_now(self, query: Callable[[], Generator[Read, Any, Any]]) -> Any:
        return self.rows.query(query)

    def reads(self) -> MemoryNode:
        return self

    async def drive(self, steps: Procedure) -> Any:
        """Run a procedure of the catalog (create_bucket, set_versioning, ...) to its end."""
        return self.drive_now(steps)

    def drive_now(self, steps: Procedure) -> Any:
        try:
            step = next(steps)
            while True:
                try:
                    result = (
                        self.query_now(step) if isinstance(step, Query) else self.submit_now(step)
                    )
                except CatalogError as error:
                    step = steps.throw(error)
                else:
                    step = steps.send(result)
        except StopIteration as end:
            return end.value

    def new_stream(self, bucket_id: int, key: bytes) -> MemoryUpload:
        self._streams_made += 1
        stream = self._streams_made.to_bytes(16, "big")
        return MemoryUpload(self, stream, stream * 2, self.now_ns)

    def read_small_now(self, ref: StreamRef) -> bytes | None:
        """The whole body of at most one frame, else None."""
        if ref.size_bytes > FRAME_BYTES:
            return None
        if ref.stream not in self.streams:
            raise FrameMissing(ref.stream.hex())
        return self.streams[ref.stream]

    async def read_stream(
        self,
        ref: StreamRef,
        offset: int = 0,
        length: int | None = None,
        owner: tuple[int, bytes] | None = None,
    ) -> AsyncIterator[bytes]:
        """The plaintext from byte `offset`, at most `length` bytes, in pieces of a frame."""
        del owner
        data = self.streams.get(ref.stream)
        if data is None:
            raise FrameMissing(ref.stream.hex())
        end = len(data) if length is None else min(len(data), offset + length)
        while offset < end:
            stop = min(end, (offset // FRAME_BYTES + 1) * FRAME_BYTES)
            yield data[offset:stop]
            offset = stop

    def send_stream(
        self, ref: StreamRef, offset: int, length: int, owner: tuple[int, bytes] | None = None
    ) -> AsyncIterator[bytes]:
        """As `read_stream`."""
        return self.read_stream(ref, offset, length, owner)

    async def hold(
        self, bodies: Sequence[bytes], owner: tuple[int, bytes] | None = None
    ) -> Callable[[], None]:
        """As `cluster.Node.hold`."""
        del owner
        streams = [StreamRef.unpack(body).stream for body in bodies]
        for stream in streams:
            self.pins[stream] = self.pins.get(stream, 0) + 1

        def let_go() -> None:
            for stream in streams:
                self.pins[stream] -= 1
                if not self.pins[stream]:
                    del self.pins[stream]
                    if stream in self.released:
                        self.streams.pop(stream, None)

        return let_go

    def status(self) -> dict[str, Any]:
        return {"rows": len(self.rows.keys), "streams": len(self.streams)}
