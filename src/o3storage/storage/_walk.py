"""Walking log volumes: which batches are good, torn, rotted or uncertain (DESIGN 4, "Batches").

`LogWalk.feed` takes the content of each log volume, oldest first; `finish` ends the walk. Good
records go to a `Sink` in order. Nothing here touches a disk.

The rules, each with the sentence it keeps
- Batch n+1 is written only after batch n was synced, so everything before a readable batch was
  once durable: what is bad there is *rotted*, never torn.
- A bad last batch with an all-zero sector was never synced: *torn*, cut off.
- A bad batch without header and trailer, not torn: what it held is unknown, all groups of the
  disk are *uncertain*. So are they if the sequence of batches has a hole.
- A region that cannot be read, but where the next readable batch continues the last good one, is
  what an earlier open cut off: it counts for nothing.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

from o3storage._native import blake3
from o3storage.crypto import FileSealer
from o3storage.runtime.disk import Buffer
from o3storage.storage._batches import (
    MAX_BATCH_BYTES,
    NO_HASH,
    SECTOR_BYTES,
    BatchInfo,
    SummaryBad,
    find_trailer,
    parse_summary,
    parse_trailer,
    summary_bytes,
    zero_sector,
)
from o3storage.storage._records import (
    FRAME,
    HASH_BYTES,
    HEADER,
    KEY_DISK,
    KEY_STREAM,
    PREFIX_BYTES,
    RECORD_MAGIC,
    RECORD_TYPES,
    RecordBad,
    RecordHeader,
    check_record,
    open_body,
    parse_header,
)
from o3storage.storage._types import SEAL_TAG_BYTES
from o3storage.storage._volume import BLOCK_BYTES, HEADER_BYTES

ZERO_BLOCK = bytes(BLOCK_BYTES)


class FoundRecord(NamedTuple):
    """A record whose checksum holds, at data[offset] of its volume."""

    offset: int
    header: RecordHeader


class Sink(Protocol):
    """What the walk tells, in order of the log."""

    def batch(
        self, info: BatchInfo, data: memoryview, records: list[FoundRecord], *, rotted: bool
    ) -> None:
        """A batch; `data` is its volume's content. Of a rotted one, what can be read."""
        ...

    def unread(self, volume: int) -> None:
        """At the end of this volume, which lies below the floor, batches cannot be read."""
        ...

    def uncertain(self, epoch: int) -> None:
        """Here, in volumes of `epoch` or before, something was lost without a trace."""
        ...


@dataclass(slots=True)
class BadRegion:
    """A span of a log volume that holds no good batch. `info` is known if its header or trailer
    could be read; then `end` is the end of the batch, else the end of the region."""

    volume: int
    epoch: int
    start: int
    end: int
    info: BatchInfo | None
    data: memoryview
    verdict: str = ""
    """torn, cut, rotted, uncertain, blank: once it was decided."""


@dataclass(slots=True)
class WalkResult:
    """What the walk found out about the whole."""

    first: BatchInfo | None = None
    last: BatchInfo | None = None
    """The last batch that counts, good or rotted."""
    uncertain: bool = False
    batches: int = 0
    regions: list[BadRegion] = field(default_factory=list)
    """Everything bad, decided. Their data is dropped."""
    ends: dict[int, int] = field(default_factory=dict)
    """volume -> end of its last batch that counts."""

    def doubtful(self) -> set[int]:
        """Volumes in which something was lost without a trace."""
        return {region.volume for region in self.regions if region.verdict == "uncertain"}


class LogWalk:
    """One walk over the log volumes of a disk, oldest first."""

    def __init__(self, sink: Sink, *, floor_volume: int = 0) -> None:
        """Volumes below `floor_volume` may have been freed: holes between them mean nothing."""
        self.result = WalkResult()
        self._floor = floor_volume
        self._sink = sink
        self._expected: int | None = None
        """Sequence of the next batch; None before the first."""
        self._previous_hash = NO_HASH
        self._pending: list[BadRegion] = []

    def feed(self, volume: int, epoch: int, data: Buffer) -> None:
        """The whole content of the next log volume, its header block included."""
        view = memoryview(data).toreadonly()
        size = len(view)
        self.result.ends.setdefault(volume, min(HEADER_BYTES, size))
        at = HEADER_BYTES
        region: BadRegion | None = None
        while at + BLOCK_BYTES <= size:
            info = self._header_at(view, at, volume, epoch)
            records = None
            if info is not None:
                records = check_batch(view, at, info)
            elif region is None and view[at : at + SECTOR_BYTES] != ZERO_BLOCK[:SECTOR_BYTES]:
                limit = min(size, at + MAX_BATCH_BYTES)
                info = find_trailer(view, at, limit, 0)
                if info is not None and not self._belongs(info, at, volume, epoch):
                    info = None
            if info is not None and records is not None:
                region = None
                self._good(info, view, records)
                at += info.size_bytes
            elif info is not None:
                region = None
                end = min(at + info.size_bytes, size)
                self._pending.append(BadRegion(volume, epoch, at, end, info, view))
                at += info.size_bytes
            else:
                if region is None:
                    region = BadRegion(volume, epoch, at, at, None, view)
                    self._pending.append(region)
                at = _skip_zeros(view, at)
                region.end = min(at, size)

    def finish(self) -> WalkResult:
        """No more volumes: decide what is still open."""
        pending, self._pending = self._pending, []
        while pending and _is_blank(pending[-1]):
            self._decide(pending.pop(), "blank")
        for i, region in enumerate(pending):
            last = i == len(pending) - 1
            if last and _is_torn(region):
                self._decide(region, "torn")
            elif region.info is not None:
                self._rotted(region)
            elif _is_blank(region) and pending[i + 1].volume != region.volume:
                self._decide(region, "blank")  # the unwritten rest of an older volume
            else:  # a batch follows, even if unreadable: what was here had been synced
                self._uncertain(region)
        return self.result

    # --- one batch

    def _belongs(self, info: BatchInfo, at: int, volume: int, epoch: int) -> bool:
        return (
            info.volume == volume
            and info.offset == at
            and info.epoch == epoch
            and (self._expected is None or info.sequence >= self._expected)
        )

    def _header_at(self, view: memoryview, at: int, volume: int, epoch: int) -> BatchInfo | None:
        try:
            info = parse_summary(view, at)
        except SummaryBad:
            return None
        return info if self._belongs(info, at, volume, epoch) else None

    def _good(self, info: BatchInfo, data: memoryview, records: list[FoundRecord]) -> None:
        self._resolve(info)
        self._count(info)
        self._sink.batch(info, data, records, rotted=False)

    def _count(self, info: BatchInfo) -> None:
        self._expected = info.sequence + 1
        self._previous_hash = info.hash
        if self.result.first is None:
            self.result.first = info
        self.result.last = info
        self.result.batches += 1
        self.result.ends[info.volume] = info.offset + info.size_bytes

    def _resolve(self, following: BatchInfo) -> None:
        """A good batch came: what lies before it was synced, or was cut off by an open."""
        pending, self._pending = self._pending, []
        continues = (
            following.sequence == self._expected and following.previous_hash == self._previous_hash
        )
        if continues:
            for region in pending:
                self._decide(region, "blank" if _is_blank(region) else "cut")
            return
        for region in pending:
            if region.info is not None and region.info.sequence < following.sequence:
                self._rotted(region)
            elif region.volume != following.volume and (
                _is_blank(region) or region.volume < self._floor
            ):
                if not _is_blank(region):
                    self._sink.unread(region.volume)
                self._decide(region, "blank")  # the unwritten rest of an older volume
            else:
                self._uncertain(region)
        if self._expected not in (None, following.sequence) and not self._freed():
            self._doubt(following.epoch)

    def _freed(self) -> bool:
        """The hole behind the last batch that counts may be freed volumes."""
        last = self.result.last
        return last is not None and last.volume < self._floor

    def _rotted(self, region: BadRegion) -> None:
        info = region.info
        assert info is not None
        if self._expected not in (None, info.sequence) and not self._freed():
            self._doubt(info.epoch)
        records = salvage(region.data, region.start, region.end, info)
        self._count(info)
        self._sink.batch(info, region.data, records, rotted=True)
        self._decide(region, "rotted")

    def _doubt(self, epoch: int) -> None:
        self.result.uncertain = True
        self._sink.uncertain(epoch)

    def _uncertain(self, region: BadRegion) -> None:
        self._doubt(region.epoch)
        self._decide(region, "uncertain")

    def _decide(self, region: BadRegion, verdict: str) -> None:
        region.verdict = verdict
        region.data = memoryview(b"")
        if verdict != "blank":
            self.result.regions.append(region)


def check_batch(data: memoryview, at: int, info: BatchInfo) -> list[FoundRecord] | None:
    """The records of a batch that is good in all its parts, else None."""
    end = at + info.size_bytes
    if end > len(data):
        return None
    try:
        if parse_trailer(data, end).hash != info.hash:
            return None
    except SummaryBad:
        return None
    start = at + summary_bytes(len(info.groups))
    stop = start + info.payload_bytes
    records: list[FoundRecord] = []
    hashes: list[memoryview] = []
    # parse_header and check_record in one: an open walks hundreds of thousands of records
    unpack = HEADER.unpack_from
    while start < stop:
        if start + PREFIX_BYTES > stop:
            return None
        magic, kind, key, flags, zero, stored, plain, _, _, b, sequence = unpack(
            data, start + HASH_BYTES
        )
        after = start + PREFIX_BYTES + stored
        digest = data[start : start + HASH_BYTES]
        if (
            magic != RECORD_MAGIC
            or zero
            or kind not in RECORD_TYPES
            or stored != plain + SEAL_TAG_BYTES
            or key != (KEY_STREAM if kind == FRAME else KEY_DISK)
            or after > stop
            or blake3(data[start + HASH_BYTES : after]) != digest
        ):
            return None
        a = data[start + 48 : start + 64].tobytes()
        header = RecordHeader(kind, key, flags, stored, plain, a, b, sequence)
        hashes.append(digest)
        records.append(FoundRecord(start, header))
        start = after
    if len(records) != info.records or blake3(b"".join(hashes)) != info.payload_hash:
        return None
    if zero_sector(data, at, end) is not None:
        return None
    return records


def salvage(data: memoryview, start: int, end: int, info: BatchInfo) -> list[FoundRecord]:
    """The records of a bad batch whose own checksum holds."""
    at = start + summary_bytes(len(info.groups))
    records: list[FoundRecord] = []
    content = bytes(data[:end])
    while at < end:
        try:
            header = check_record(content, at)
        except RecordBad:
            at = _next_record(content, at)
            continue
        records.append(FoundRecord(at, header))
        at += header.size_bytes
    return records


def in_place(data: memoryview, records: list[FoundRecord], sealer: FileSealer) -> list[FoundRecord]:
    """Those of salvaged `records` that were written where they stand.

    A disk may put a sector in another's place; the record in it is whole, and its own checksum
    holds. The seal knows the place. Frames may stand anywhere: they name what they are part of.
    """
    held: list[FoundRecord] = []
    for found in records:
        if found.header.kind != FRAME:
            try:
                open_body(data, found.header, sealer, found.offset, found.offset)
            except RecordBad:
                continue
        held.append(found)
    return held


def _next_record(content: bytes, at: int) -> int:
    """Where the next record may begin after a bad one at `at`."""
    found = content.find(RECORD_MAGIC, at + HASH_BYTES + 1)
    while found >= 0:
        try:
            parse_header(content, found - HASH_BYTES)
        except RecordBad:
            found = content.find(RECORD_MAGIC, found + 1)
            continue
        return found - HASH_BYTES
    return len(content)


def _skip_zeros(data: memoryview, at: int) -> int:
    """The next block that may hold a batch; runs of zeros are passed quickly."""
    at += BLOCK_BYTES
    while at + BLOCK_BYTES <= len(data) and data[at : at + BLOCK_BYTES] == ZERO_BLOCK:
        at += BLOCK_BYTES
    return at


def _is_blank(region: BadRegion) -> bool:
    """Never written, or the header's sector was not: no batch that was synced begins here."""
    return region.info is None and (
        region.data[region.start : region.start + SECTOR_BYTES] == ZERO_BLOCK[:SECTOR_BYTES]
    )


def _is_torn(region: BadRegion) -> bool:
    """The last batch was never synced: a sector of it was not written."""
    if region.info is not None:
        whole = region.start + region.info.size_bytes
        return whole > len(region.data) or (
            zero_sector(region.data, region.start, region.end) is not None
        )
    zero = zero_sector(region.data, region.start, region.end)
    return zero is not None and (zero == region.start or zero % BLOCK_BYTES != 0)
