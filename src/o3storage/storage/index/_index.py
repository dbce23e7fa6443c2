"""The index of one disk. (Being filled in: signatures stand.)"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from o3storage.runtime.disk import Disk
from o3storage.runtime.jobs import Jobs

from ._types import BadBlock, IndexOptions, IndexStats, Miss, PrefixLength

Row = tuple[bytes, bytes]


class Snapshot:
    """One instant of the index: what is written, flushed or merged later does not show in it.
    It pins memory and files until `release` (idempotent)."""

    @property
    def sequence(self) -> int:
        """The last batch that it sees."""
        raise NotImplementedError

    def release(self) -> None:
        raise NotImplementedError


class Index:
    """Rows by key, in byte order. All methods run on the event loop's thread.

    Methods that end in `_now` never wait: they return `Miss.MISS` when a block must be read from
    the medium; then await the method without `_now`. All reads raise BadBlock when they touch a
    block that cannot be trusted."""

    @classmethod
    async def open(
        cls,
        disk: Disk,
        directory: str,
        *,
        disk_key: bytes,
        jobs: Jobs,
        random_bytes: Callable[[int], bytes],
        options: IndexOptions | None = None,
        prefix_length: PrefixLength,
        on_bad_block: Callable[[BadBlock], None] | None = None,
    ) -> Index:
        """Open the index in `directory`, or create it if there is none (no CURRENT file).

        `random_bytes` gives file salts (Entropy.random_bytes). `prefix_length` says how many bytes
        of a key the bloom filters cover; it must be the same at every open, and constant for keys
        that share that prefix. `on_bad_block` hears of blocks that background merges found bad.
        Raises IndexDamaged, IndexKeyWrong, DiskFault, DiskFull."""
        raise NotImplementedError

    async def close(self) -> None:
        """Stop merges and close files. Does not flush. Idempotent."""
        raise NotImplementedError

    @property
    def mark(self) -> bytes:
        """What the last durable flush carried; b"" in a new index."""
        raise NotImplementedError

    @property
    def sequence(self) -> int:
        """Number of the last batch written."""
        raise NotImplementedError

    @property
    def memtable_bytes(self) -> int:
        """Bytes of rows that are not in tables yet."""
        raise NotImplementedError

    @property
    def rows_estimate(self) -> int:
        """Rows in tables and memory; overwritten and deleted ones count until they are merged."""
        raise NotImplementedError

    @property
    def disk_bytes(self) -> int:
        """Bytes of all tables."""
        raise NotImplementedError

    @property
    def stats(self) -> IndexStats:
        raise NotImplementedError

    # --- writing

    def write(self, rows: Sequence[tuple[bytes, bytes | None]]) -> int:
        """Write (value) or delete (None) rows, all or nothing, visible at once; returns the batch's
        sequence number. For a key that comes twice the last one counts. Not durable before `flush`.
        Raises ValueError (limits)."""
        raise NotImplementedError

    def drop_range(self, low: bytes, high: bytes | None) -> int:
        """Remove every row with low <= key < high (None: to the end) that was written before, at
        once and at the cost of one record; durable with the next `flush`. Returns its sequence.
        Rows written afterwards stand. Also how a bad span is repaired: drop it and write its rows
        anew in the same step of the loop; the bad block is then never read again."""
        raise NotImplementedError

    async def flush(self, mark: bytes) -> None:
        """Everything written before the call is in synced tables and one synced manifest edit that
        carries `mark`. Flushes run one after the other. Raises DiskFault (the disk is out of
        service), DiskFull (nothing changed: the rows stay in memory, the call may be repeated)."""
        raise NotImplementedError

    # --- reading

    def get_now(self, key: bytes, *, at: Snapshot | None = None) -> bytes | Miss | None:
        raise NotImplementedError

    async def get(self, key: bytes, *, at: Snapshot | None = None) -> bytes | None:
        raise NotImplementedError

    def first_now(self, prefix: bytes, *, at: Snapshot | None = None) -> Row | Miss | None:
        """The first row whose key starts with `prefix`, which must end where the bloom prefix of
        such keys ends."""
        raise NotImplementedError

    async def first(self, prefix: bytes, *, at: Snapshot | None = None) -> Row | None:
        raise NotImplementedError

    def scan_now(
        self, low: bytes, high: bytes | None, limit: int, *, at: Snapshot | None = None
    ) -> list[Row] | Miss:
        """At most `limit` rows with low <= key < high, ascending: fewer only at the end of the
        span. A limit over STEP_ROWS is always a miss."""
        raise NotImplementedError

    async def scan(
        self, low: bytes, high: bytes | None, limit: int, *, at: Snapshot | None = None
    ) -> list[Row]:
        raise NotImplementedError

    def snapshot(self) -> Snapshot:
        raise NotImplementedError

    # --- house-keeping

    async def merge(self) -> bool:
        """One merge, if one is due; whether there was. Runs by itself unless options say no."""
        raise NotImplementedError

    async def verify(self, on_progress: Callable[[int, int], None] | None = None) -> list[BadBlock]:
        """Read and check every block of every table (from the medium); `on_progress(done, all)` in
        bytes. Returns what is bad."""
        raise NotImplementedError
