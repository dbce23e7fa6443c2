"""Scrub: everything stored is read again at a bounded rate, without keys (DESIGN 4).

Interface: `scrub`, `BadFrame`, `ScrubState`.

Invariant: a scrub changes nothing; what is bad is handed to the caller, who repairs it.
"""

from __future__ import annotations

import asyncio
import struct
from collections.abc import Callable
from dataclasses import dataclass

from o3storage.runtime.disk import DiskError
from o3storage.storage._core import Core, Volume
from o3storage.storage._frames import check_frame_record, frame_place
from o3storage.storage._rows import PLACEMENT_TABLE, InSight, decode_run, split_placement_key
from o3storage.storage._scan import scan_records
from o3storage.storage._types import KIB, FrameBad
from o3storage.storage._volume import HEADER_BYTES, VolumeKind, align

PAUSE_BYTES = 256 * KIB


@dataclass(frozen=True, slots=True)
class BadFrame:
    """A placed frame that cannot be served from here, or (stream b"") something else in a volume
    that cannot be read."""

    stream: bytes
    number: int
    volume: int
    offset: int
    reason: str
    record_bytes: int = 0


_STATE = struct.Struct("<QQ")

OnBad = Callable[[BadFrame], None]


@dataclass(slots=True)
class ScrubState:
    """How far the scrub of everything is; kept over restarts in the row SCRUB_KEY."""

    next_volume: int = 0
    """The pass under way goes on at this volume; 0: none is."""
    ended_ns: int = 0
    """Wall clock of the end of the last pass, or of the first start."""

    def encode(self) -> bytes:
        return _STATE.pack(self.next_volume, self.ended_ns)

    @classmethod
    def decode(cls, value: bytes) -> ScrubState:
        return cls(*_STATE.unpack(value))

    def due(self, now_ns: int, every_s: float) -> bool:
        """A pass is under way, or the last one ended long ago (or in the future: the clock was
        set back)."""
        return bool(self.next_volume) or not 0 <= now_ns - self.ended_ns < every_s * 1e9


async def scrub(
    core: Core,
    on_bad: OnBad | None = None,
    *,
    start: int = 0,
    on_volume: Callable[[int], None] | None = None,
) -> int:
    """One pass over all sealed volumes from number `start` on, from the medium; returns the count
    of what is bad. `on_volume` hears the number of each before it is read.

    Volumes are read in order; only for one that shows damage, or that lacks something which was
    written, are its placed frames looked up. (A write that went astray leaves whole records: one
    where another should be, and nothing in its own place.)
    """
    bad = 0
    for number in sorted(core.volumes):
        volume = core.volumes.get(number)
        if number < start or volume is None or not volume.sealed or core.out_of_service:
            continue
        if on_volume is not None:
            on_volume(number)
        reason, lacking = await _damage(core, volume)
        if not reason and not lacking:
            continue
        found = await placed_bad_frames(core, number)
        if reason and not found:
            found = [BadFrame(b"", 0, number, 0, reason)]
        for one in found:
            bad += 1
            core.stats.scrub_bad += 1
            if on_bad is not None:
                on_bad(one)
    return bad


async def _damage(core: Core, volume: Volume) -> tuple[str, bool]:
    """What is wrong first: every record's checksum must hold, and nothing lie between them that
    should not. And whether blocks of a bulk volume hold nothing: that may be what a power cut left
    of writes which no sync had covered, or the place of a write that went astray."""
    since = 0
    end = HEADER_BYTES
    lacking = False
    volume.in_use += 1
    try:
        async for found in scan_records(core, volume):
            if found.header is None:
                return f"{found.size_bytes} bytes at {found.offset} are no record", lacking
            lacking |= volume.kind is VolumeKind.BULK and found.offset > align(end)
            end = found.offset + found.size_bytes
            since += found.size_bytes
            core.stats.scrubbed_bytes += found.size_bytes
            if since >= PAUSE_BYTES:
                await asyncio.sleep(since / core.options.scrub_bytes_per_s)
                since = 0
        lacking |= volume.kind is VolumeKind.BULK and volume.size_bytes > align(end)
        return "", lacking
    except FileNotFoundError:
        # A flush, or a compaction, let it go while it was read.
        return "" if volume.unlinked else "its file is not there", False
    except DiskError as error:
        return f"cannot be read: {error}", lacking
    finally:
        volume.in_use -= 1
        await core.release(volume)


async def placed_bad_frames(core: Core, volume: int) -> list[BadFrame]:
    """Frames that placement says are in the volume and that cannot be read there."""
    bad: list[BadFrame] = []
    low, high = PLACEMENT_TABLE, bytes([PLACEMENT_TABLE[0] + 1])
    in_sight = InSight()
    while True:
        rows = await core.index.scan(low, high, 500)
        for key, value in rows:
            run = decode_run(value)
            stream, first = split_placement_key(key)
            count = in_sight.frames(stream, first, run)
            if run.volume != volume:
                continue
            for i in range(count):
                offset, size = frame_place(run, i)
                try:
                    held = core.volumes.get(volume)
                    if held is None:
                        return bad
                    data = await core.disk.read_direct(held.path, offset, size)
                    check_frame_record(data, stream, first + i)
                except (FrameBad, DiskError) as error:
                    bad.append(BadFrame(stream, first + i, volume, offset, str(error), size))
        if len(rows) < 500:
            return bad
        low = rows[-1][0] + b"\0"
        await asyncio.sleep(0)
