"""A stopped store, for looking at: volumes, records, rows and places of frames.

Interface: `OfflineStore`. The caller holds the directory's lock.

Invariant: nothing is written. Rows are those of the index and, in memory, of the log above its last
flush.
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field

from o3storage.runtime.clock import Clock, Entropy
from o3storage.runtime.disk import Disk
from o3storage.runtime.jobs import Jobs
from o3storage.storage import _open
from o3storage.storage._core import Core, Volume
from o3storage.storage._frames import Frames, frame_place
from o3storage.storage._index_open import IndexFactory, open_index_factory
from o3storage.storage._mark import Mark
from o3storage.storage._overlay import OverlayDisk
from o3storage.storage._rebuild import REBUILDING
from o3storage.storage._records import (
    ENTRY,
    FLAG_LAST,
    FRAME,
    GROUP,
    LOCAL,
    OUTCOME,
    STATE,
    RecordBad,
    RecordHeader,
    check_record,
    decode_group_reset,
    decode_rows,
    decode_state,
    open_body,
    parse_header,
)
from o3storage.storage._replay import Replay
from o3storage.storage._rows import Row, read_rows_lost
from o3storage.storage._scan import scan_records
from o3storage.storage._types import EntryKind, FrameMissing, LogState, StoreDamaged, StoreOptions
from o3storage.storage._volume import VolumeKind
from o3storage.storage._walk import WalkResult
from o3storage.storage.index import BadBlock, IndexDamaged

KIND_NAMES = {
    FRAME: "frame",
    ENTRY: "entry",
    OUTCOME: "outcome",
    LOCAL: "placement",
    STATE: "state",
    GROUP: "group",
}


@dataclass(frozen=True, slots=True)
class VolumeSummary:
    """One volume file. Sizes in bytes."""

    volume: int
    kind: str
    """log or bulk."""
    path: str
    epoch: int
    born_sequence: int
    size_bytes: int


@dataclass(frozen=True, slots=True)
class RecordSummary:
    """One record, or (kind "bad") a span that is none."""

    volume: int
    offset: int
    size_bytes: int
    kind: str
    text: str
    """Its ids, for people."""


@dataclass(frozen=True, slots=True)
class FramePlace:
    """Where a frame stands."""

    number: int
    volume: int
    offset: int
    record_bytes: int


@dataclass(slots=True)
class RecordDetail:
    """One record in full, its body opened."""

    summary: RecordSummary
    sound: bool
    """Its checksum holds (and, where the disk key opens it, its seal)."""
    lines: list[str] = field(default_factory=list)
    """What it says, for people."""


class OfflineStore:
    """Open with `open`, always `close`."""

    def __init__(self, core: Core) -> None:
        self.core = core
        self.bad_headers: list[str] = []
        self.index_state = "missing"
        """good, missing, half-built, of another version or damaged: only a good one has rows."""
        self.log: WalkResult = WalkResult()
        self.mark = Mark()
        self._frames = Frames(core)

    @classmethod
    async def open(
        cls,
        disk: Disk,
        *,
        disk_key: bytes,
        jobs: Jobs,
        clock: Clock,
        entropy: Entropy,
        prefix_length: Callable[[bytes], int] | None = None,
        open_index: IndexFactory | None = None,
        on_progress: Callable[[str, float], None] | None = None,
    ) -> OfflineStore:
        """Read headers, open the index, replay the log in memory.
        Raises StoreKeyWrong, FormatVersionUnknown, StoreDamaged, DiskError."""
        core = Core(
            OverlayDisk(disk), disk_key, jobs, clock, entropy, StoreOptions(background=False)
        )
        self = cls(core)
        await _open.prepare(core, read_only=True, bad_headers=self.bad_headers)
        factory = open_index or open_index_factory(prefix_length, background=False)
        try:
            await self._open_rows(factory, on_progress)
        except BaseException:
            await self.close()
            raise
        return self

    async def _open_rows(
        self,
        factory: IndexFactory,
        on_progress: Callable[[str, float], None] | None,
    ) -> None:
        core = self.core
        names = await core.disk.list_dir("")
        if "index" in names and await core.disk.list_dir("index"):
            try:
                core.index = await factory(core, "index")
                self.index_state = "good"
            except IndexDamaged:
                self.index_state = "damaged"
        if self.index_state == "good" and core.index.mark == REBUILDING:
            self.index_state = "half-built"
        elif self.index_state == "good" and not Mark.is_known(core.index.mark):
            self.index_state = "of another version"
        if self.index_state == "good":
            self.mark = Mark.decode(core.index.mark)
        logs = [v for v in self.volumes_of(VolumeKind.LOG) if v.volume >= self.mark.floor_volume]

        replay = Replay(core, self.mark, core.sealer_now, rows=self.has_rows)
        self.log = await _open.read_log(core, logs, replay, self.mark.floor_volume, on_progress)
        replay.finish()
        if self.has_rows:
            with contextlib.suppress(BadBlock):  # (the check of the index says so)
                core.rows_lost.update(dict.fromkeys(await read_rows_lost(core.index)))

    @property
    def has_rows(self) -> bool:
        return self.index_state == "good"

    async def close(self) -> None:
        if hasattr(self.core, "index"):
            await self.core.index.close()
        await self.core.close_files()

    # --- volumes and records

    def volumes_of(self, kind: VolumeKind) -> list[Volume]:
        return [v for _, v in sorted(self.core.volumes.items()) if v.kind is kind]

    def volumes(self) -> list[VolumeSummary]:
        """All, by id."""
        return [
            VolumeSummary(
                number,
                volume.kind.name.lower(),
                volume.path,
                volume.header.epoch,
                volume.header.born_sequence,
                volume.size_bytes,
            )
            for number, volume in sorted(self.core.volumes.items())
        ]

    async def records(self, volume: int) -> AsyncIterator[RecordSummary]:
        """All records of a volume in order. Raises FrameMissing for an unknown one, DiskError."""
        held = self._volume(volume)
        async for found in scan_records(self.core, held):
            yield RecordSummary(
                volume,
                found.offset,
                found.size_bytes,
                KIND_NAMES[found.header.kind] if found.header else "bad",
                describe(found.header) if found.header else "no record stands here",
            )

    async def record(self, volume: int, offset: int) -> RecordDetail:
        """The record that starts there. Raises FrameMissing, StoreDamaged, DiskError."""
        held = self._volume(volume)
        head = await self.core.disk.read_direct(held.path, offset, 80)
        try:
            header = parse_header(head)
        except RecordBad as error:
            raise StoreDamaged(f"{held.path} at {offset}: {error}") from error
        data = await self.core.disk.read_direct(held.path, offset, header.size_bytes)
        summary = RecordSummary(
            volume, offset, header.size_bytes, KIND_NAMES[header.kind], describe(header)
        )
        try:
            check_record(data)
            lines = [] if header.kind == FRAME else await self._body_lines(held, offset, data)
        except RecordBad as error:
            return RecordDetail(summary, False, [str(error)])
        return RecordDetail(summary, True, lines)

    async def _body_lines(self, volume: Volume, offset: int, data: bytes) -> list[str]:
        header = parse_header(data)
        body = open_body(data, header, await self.core.sealer_of(volume), offset)
        if header.kind in (OUTCOME, LOCAL):
            rows, released = decode_rows(body)
            lines = [_row_line(key, value) for key, value in rows]
            return lines + [f"released stream {stream.hex()}" for stream in released]
        if header.kind == STATE:
            return [f"sequence {s}: {_row_line(k, v)}" for s, k, v in decode_state(body)]
        if header.kind == GROUP:
            index, term = decode_group_reset(body)
            return [f"the log starts anew behind entry {index} of term {term}"]
        return [f"{len(body)} bytes: {body[:64].hex()}{'...' if len(body) > 64 else ''}"]

    def _volume(self, volume: int) -> Volume:
        found = self.core.volumes.get(volume)
        if found is None:
            raise FrameMissing(f"volume {volume} is not in this data directory")
        return found

    # --- rows, groups and places

    def groups(self) -> list[int]:
        return sorted(self.core.groups)

    def log_state(self, group: int) -> LogState:
        found = self.core.groups.get(group)
        state = found.state() if found is not None else LogState()
        state.rows_lost = group in self.core.rows_lost
        return state

    def _need_rows(self) -> None:
        if not self.has_rows:
            raise StoreDamaged(
                f"the index is {self.index_state}: start the store once, it rebuilds it"
            )

    async def get(self, key: bytes) -> bytes | None:
        """Raises StoreDamaged without a good index."""
        self._need_rows()
        return await self.core.index.get(key)

    async def scan(self, low: bytes, high: bytes, limit: int) -> list[Row]:
        self._need_rows()
        return await self.core.index.scan(low, high, limit)

    async def stream_places(self, stream: bytes) -> list[FramePlace]:
        """Where each frame of a stream stands, ascending."""
        self._need_rows()
        places: list[FramePlace] = []
        for first, run in await self._frames.runs(stream):
            for i in range(run.frames):
                offset, size = frame_place(run, i)
                places.append(FramePlace(first + i, run.volume, offset, size))
        return places


def describe(header: RecordHeader) -> str:
    """A record's ids in a line."""
    if header.kind == FRAME:
        last = ", last" if header.flags & FLAG_LAST else ""
        return f"stream {header.a.hex()} frame {header.b}, {header.plain_bytes} bytes{last}"
    if header.kind == ENTRY:
        kinds = {kind.value: kind.name.lower() for kind in EntryKind}
        kind = kinds.get(header.flags, f"kind {header.flags}")
        return f"group {header.group} index {header.b} term {header.term}, {kind}"
    if header.kind in (OUTCOME, GROUP):
        return f"group {header.group} index {header.b}, sequence {header.sequence}"
    return f"sequence {header.sequence}, {header.plain_bytes} bytes"


def _row_line(key: bytes, value: bytes | None) -> str:
    what = "deleted" if value is None else f"{len(value)} bytes {value[:48].hex()}"
    return f"row {key.hex()}: {what}"
