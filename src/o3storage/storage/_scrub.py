"""Scrub: everything stored is read again at a bounded rate, without keys (DESIGN 4).

Interface: `scrub`, `BadFrame`.

Invariant: a scrub changes nothing; what is bad is handed to the caller, who repairs it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass

from o3storage.runtime.disk import DiskError
from o3storage.storage._core import Core, Volume
from o3storage.storage._frames import check_frame_record, frame_place
from o3storage.storage._rows import PLACEMENT_TABLE, decode_run, split_placement_key
from o3storage.storage._scan import scan_records
from o3storage.storage._types import KIB, FrameBad

PAUSE_BYTES = 256 * KIB


@dataclass(frozen=True, slots=True)
class BadFrame:
    """A placed frame that cannot be served from here."""

    stream: bytes
    number: int
    volume: int
    offset: int
    reason: str
    record_bytes: int = 0


OnBad = Callable[[BadFrame], None]


async def scrub(core: Core, on_bad: OnBad | None = None) -> int:
    """One pass over all sealed volumes, from the medium; returns the count of bad frames.

    Volumes are read in order; only for one that shows damage are its placed frames looked up.
    """
    bad = 0
    for number in sorted(core.volumes):
        volume = core.volumes.get(number)
        if volume is None or not volume.sealed or core.out_of_service:
            continue
        if await _is_clean(core, volume):
            continue
        for found in await placed_bad_frames(core, number):
            bad += 1
            core.stats.scrub_bad += 1
            if on_bad is not None:
                on_bad(found)
    return bad


async def _is_clean(core: Core, volume: Volume) -> bool:
    """Every record's checksum holds and nothing lies between them that should not."""
    since = 0
    volume.in_use += 1
    try:
        async for found in scan_records(core, volume):
            if found.header is None:
                return False
            since += found.size_bytes
            core.stats.scrubbed_bytes += found.size_bytes
            if since >= PAUSE_BYTES:
                await asyncio.sleep(since / core.options.scrub_bytes_per_s)
                since = 0
        return True
    except DiskError:
        return False
    finally:
        volume.in_use -= 1
        await core.release(volume)


async def placed_bad_frames(core: Core, volume: int) -> list[BadFrame]:
    """Frames that placement says are in the volume and that cannot be read there."""
    bad: list[BadFrame] = []
    low, high = PLACEMENT_TABLE, bytes([PLACEMENT_TABLE[0] + 1])
    while True:
        rows = await core.index.scan(low, high, 500)
        for key, value in rows:
            run = decode_run(value)
            if run.volume != volume:
                continue
            stream, first = split_placement_key(key)
            for i in range(run.frames):
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
