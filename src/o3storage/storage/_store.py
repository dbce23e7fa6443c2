"""The store of one disk: the one object the rooms above use (being filled in)."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from o3storage.runtime.clock import Clock, Entropy
from o3storage.runtime.disk import Buffer, Disk
from o3storage.runtime.jobs import Jobs
from o3storage.storage._types import (
    Entry,
    GroupId,
    HardState,
    LogState,
    SealedFrame,
    StoreOptions,
    StoreSpace,
    StoreStats,
)


class StreamWriter:
    """Writes one stream's frames into the bulk volume."""

    async def write(self, frame: SealedFrame) -> None:
        """Queue the frame; waits while the queue is over its bound (backpressure).
        `frame.data` must not change until `sync` returned. Raises StoreFull, StoreOutOfService."""
        raise NotImplementedError

    async def sync(self) -> None:
        """Every frame written so far is durable and its placement is synced in the log.
        Raises StoreOutOfService."""
        raise NotImplementedError


class Store:
    """One disk. All methods run on the event loop's thread."""

    @classmethod
    async def open(
        cls,
        disk: Disk,
        *,
        disk_key: bytes,
        jobs: Jobs,
        clock: Clock,
        entropy: Entropy,
        options: StoreOptions | None = None,
        on_progress: Callable[[str, float], None] | None = None,
    ) -> Store:
        """Open or create the store under the disk's root. `on_progress(step, 0..1)`.

        Raises StoreOutOfService (OUT_OF_SERVICE stands), StoreKeyWrong, FormatVersionUnknown,
        StoreDamaged, DiskFault, DiskFull.
        """
        raise NotImplementedError

    async def close(self) -> None:
        """Flush, write what waits, mark the shutdown as clean. Idempotent."""
        raise NotImplementedError

    # --- raft log -------------------------------------------------------------------------------

    def groups(self) -> list[GroupId]:
        """Groups that have a log here, ascending."""
        raise NotImplementedError

    def log_state(self, group: GroupId) -> LogState:
        """A copy; an unknown group has the empty state."""
        raise NotImplementedError

    def append(
        self,
        group: GroupId,
        hard_state: HardState | None,
        entries: Sequence[Entry],
        frames: Sequence[SealedFrame] = (),
        *,
        use_reserve: bool = False,
    ) -> asyncio.Future[None]:
        """Queue one append; the future resolves when all of it is durable (group commit).

        Entries are contiguous and replace any suffix from entries[0].index on; `entries` and
        `term` see them at once. Frames (small ones) ride in the same batch and are placed.
        Raises, before anything is written: StoreFull (frames, or no reserve left;
        `use_reserve=True` for deletes lets an append with frames pass), StoreOutOfService,
        ValueError (limits, a gap). The future raises StoreOutOfService.
        """
        raise NotImplementedError

    def entries(
        self, group: GroupId, lo: int, hi: int, max_bytes: int
    ) -> list[Entry] | Awaitable[list[Entry]]:
        """Entries lo <= index < hi, at least one, at most about max_bytes of data. A list when
        they are in memory, else an awaitable. Raises EntriesGone."""
        raise NotImplementedError

    def term(self, group: GroupId, index: int) -> int:
        """Term of the entry (0 for index 0); also known for first_index - 1. Raises EntriesGone."""
        raise NotImplementedError

    def keep_entries_from(self, group: GroupId, index: int | None) -> None:
        """A follower still needs entries from `index` on (None: nobody does). Kept up to
        StoreOptions.keep_log_bytes."""
        raise NotImplementedError

    def reset_group(self, group: GroupId, index: int, term: int) -> asyncio.Future[None]:
        """After a snapshot was installed: the log becomes empty with (index, term) as its last,
        applied_index = index."""
        raise NotImplementedError

    # --- frames ---------------------------------------------------------------------------------

    def open_stream(self, stream: bytes) -> StreamWriter:
        raise NotImplementedError

    def read_frame_now(self, stream: bytes, number: int) -> Buffer | None:
        """Ciphertext of the frame if no disk I/O is needed, else None. Checked (BLAKE3 and ids).
        Raises FrameMissing, FrameBad."""
        raise NotImplementedError

    async def read_frame(self, stream: bytes, number: int) -> Buffer:
        """As read_frame_now, with disk I/O."""
        raise NotImplementedError

    async def stream_frames(self, stream: bytes) -> list[tuple[int, int]]:
        """(first frame, count) runs held here, ascending; for repair."""
        raise NotImplementedError

    def pin(self, stream: bytes) -> None:
        """Frames of the stream stay readable until `unpin`. Counted; a restart drops pins."""
        raise NotImplementedError

    def unpin(self, stream: bytes) -> None:
        raise NotImplementedError

    # --- rows: get_now/get, first_now/first, scan_now/scan, snapshot as in Index -----------------

    def apply(
        self,
        group: GroupId,
        index: int,
        rows: Sequence[tuple[bytes, bytes | None]],
        released: Sequence[bytes] = (),
    ) -> None:
        """Entry `index` of `group` (committed, durable here, applied_index + 1) did this.

        Rows are visible at once, all or nothing; durable through the entry, and through an outcome
        record that rides in the next batch. Keys start with a byte >= 0x10. Released streams lose
        their placement when the last pin goes. Call it for every index, with no rows for an entry
        that wrote none. Raises StoreOutOfService.
        """
        raise NotImplementedError

    # --- house-keeping --------------------------------------------------------------------------

    async def flush(self) -> None:
        """Everything applied so far is in the index's tables; raises the replay floor."""
        raise NotImplementedError

    def space(self) -> StoreSpace:
        """As of the last look (at most a few seconds or one volume ago)."""
        raise NotImplementedError

    def stats(self) -> StoreStats:
        raise NotImplementedError

    async def compact(self) -> int:
        """One round; returns bytes freed."""
        raise NotImplementedError

    async def scrub(self, on_bad: Callable[[Any], None] | None = None) -> int:
        """One pass over everything; returns the count of bad records."""
        raise NotImplementedError
