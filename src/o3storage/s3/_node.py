"""What the S3 layer uses of the node that it runs on: `cluster.Node`, or a model in tests."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any, Protocol, TypeVar

from o3storage._native import Digester
from o3storage.catalog import Command, Query
from o3storage.cluster import Miss
from o3storage.crypto import StreamRef
from o3storage.http import DirectPiece

T = TypeVar("T")

Buffer = bytes | bytearray | memoryview


class StreamUpload(Protocol):
    """A body on its way into the store."""

    started_ns: int

    @property
    def ref(self) -> StreamRef:
        """Names the body once its last block was written: `crypto.StreamRef`."""
        ...

    @property
    def frames(self) -> Sequence[Any]:
        """Sealed frames that ride with the entry: of a small body all, else none."""
        ...

    async def write(self, block: memoryview, last: bool, digester: Digester | None = None) -> None:
        """Seal and store a block of exactly 256 KiB (fewer only with `last`), digesting its
        plaintext in the same step. The block may be reused when this returns."""
        ...

    def discard(self) -> None:
        """The body is not wanted: nothing will name it."""
        ...


class Reads(Protocol):
    """Queries of one request, each as of an instant since it came; cheaper than each by itself."""

    def query_now(self, query: Query[T]) -> T | Miss: ...

    async def query(self, query: Query[T], ahead: Callable[[T], bytes] | None = None) -> T: ...


class Node(Protocol):
    """Linearizable commands and queries of the catalog, and bodies."""

    async def submit(self, command: Command, frames: Sequence[Any] = ()) -> Any: ...

    async def query(self, query: Query[T]) -> T: ...

    def query_now(self, query: Query[T]) -> T | Miss: ...

    def reads(self) -> Reads: ...

    def new_stream(self, bucket_id: int, key: bytes) -> StreamUpload: ...

    def read_small_now(self, ref: StreamRef) -> bytes | None: ...

    def read_stream(
        self, ref: StreamRef, offset: int, length: int, owner: tuple[int, bytes] | None = None
    ) -> AsyncIterator[Buffer]:
        """`owner`: the (bucket id, key) whose body it is."""
        ...

    def send_stream(
        self, ref: StreamRef, offset: int, length: int, owner: tuple[int, bytes] | None = None
    ) -> AsyncIterator[Buffer | DirectPiece]: ...

    async def hold(
        self, bodies: Sequence[bytes], owner: tuple[int, bytes] | None = None
    ) -> Callable[[], None]: ...


__all__ = ["Buffer", "Digester", "DirectPiece", "Node", "Reads", "StreamUpload"]
