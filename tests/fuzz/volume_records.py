"""Fuzz volumes: damaged records and batches into their parsers, damaged disks into Store.open.

    python -m tests.fuzz.volume_records [--seconds 60] [--seed 1]

Only the room's own errors may come out. Whatever a store that opens on a damaged disk still reads
is what was written; `verify` looks at the same disk without an error of its own.
"""

from __future__ import annotations

import contextlib
import random
import sys

from o3storage.runtime.disk import DiskError
from o3storage.simulation import SimDisk, run
from o3storage.simulation._image import DiskImage
from o3storage.storage import EntryKind, StoreError, verify
from o3storage.storage import _batches as batches
from o3storage.storage import _records as records
from o3storage.storage import _volume as volumes
from o3storage.storage.index import BadBlock
from tests.fuzz._campaign import campaign, damage
from tests.storage.support import KEY, entry, frame, stream_id
from tests.storage.test_records import SEALER, make_batch
from tests.storage.test_verify import filled, opened, parts

LAST_INDEX = 31
ROWS = {b"\x10key%d" % i: b"value %d" % i for i in range(1, 31)}
FRAMES = {
    **{(i, 0): frame(i, size=4000).data for i in (1, *range(2, 31, 2))},
    (31, 0): frame(31).data,
    **{(900, n): frame(900, n, 20_000, last=n == 3).data for n in range(4)},
}


def make_images() -> list[DiskImage]:
    """A store that was closed, and one whose power went: its log is replayed."""

    async def make(close: bool) -> DiskImage:
        disk, store = await filled()
        if close:
            await store.close()
            return disk.image
        return disk.kill().image

    return [run(make(close), 1) for close in (True, False)]


IMAGES = make_images()


def parsers(rng: random.Random) -> str | None:
    """One record, batch or volume header, damaged; each parser refuses or tells the truth."""
    made: list[bytes] = []
    body = records.encode_rows(list(ROWS.items())[:3], [stream_id(1)])
    kind = rng.choice([records.OUTCOME, records.LOCAL, records.STATE, records.ENTRY])
    records.seal_record(made, SEALER, 8192, kind, 0, 1, 2, 3, 4, body)  # type: ignore[arg-type]
    whole = b"".join(made)
    batch, _ = make_batch([batches.GroupInfo(1, 1, 0, 1, 2, 3, 4, 5, 6, 7, 8)], [10, 300])
    block, _ = volumes.encode_header(
        volumes.VolumeHeader(volumes.VolumeKind.LOG, 7, 3, 99, bytes(32), b"i" * 16), KEY
    )
    record, summary, header, plain = whole, batch, block, body
    for _ in range(rng.randrange(1, 4)):
        record, summary = damage(rng, record), damage(rng, summary)
        header, plain = damage(rng, header), damage(rng, plain)
    try:
        found = records.check_record(record)
        if record[: found.size_bytes] != whole:
            return f"{record.hex()}: an altered record passed"
    except records.RecordBad:
        pass
    for decode in (records.decode_rows, records.decode_state, records.decode_group_reset):
        try:
            decode(plain)
        except records.RecordBad:
            continue
    good = batches.parse_summary(batch, 0)
    for trailer in (False, True):
        try:
            info = (
                batches.parse_trailer(summary, len(summary))
                if trailer
                else batches.parse_summary(summary, 0)
            )
            if info != good:
                return f"{summary.hex()}: an altered batch passed"
        except batches.SummaryBad:
            continue
    batches.find_trailer(summary, 0, len(summary), 8192)
    try:
        if volumes.decode_header(header, "v") != volumes.decode_header(block, "v"):
            return f"{header.hex()}: an altered header passed"
    except StoreError:
        pass
    return None


def rot(rng: random.Random, disk: SimDisk) -> list[tuple[str, int, str]]:
    """One to three places of the written part of any file: a bit, a zeroed or overwritten sector,
    a sector in another's place, or a file that is shorter."""
    done = []
    paths = sorted(path for path in disk.image.names if "/" in path)
    for _ in range(rng.randrange(1, 4)):
        path = rng.choice(paths)
        node = disk.image.lookup(path)
        used = len(bytes(node.cached).rstrip(b"\0"))
        if not used:
            continue
        at = rng.randrange(used)
        sector = at // 512 * 512
        kind = rng.choice(["bit", "bit", "bit", "noise", "zero", "moved", "cut"])
        if path.startswith("index/") and kind in {"zero", "cut", "moved"}:
            kind = "bit"  # a manifest or log that ends early is what a crash leaves, not damage
        if kind == "bit":
            disk.rot(path, at, 1 << rng.randrange(8))
        elif kind == "cut":
            for data in (node.cached, node.durable):
                del data[at:]
        else:
            new = {"noise": rng.randbytes(512), "zero": bytes(512)}.get(kind)
            if new is None:
                source = rng.randrange(used) // 512 * 512
                new = bytes(node.cached[source : source + 512])
            for data in (node.cached, node.durable):
                size = len(data[sector : sector + 512])
                data[sector : sector + size] = new[:size]
        done.append((path, at, kind))
    return done


async def store_on_a_damaged_disk(seed: int) -> str | None:
    rng = random.Random(seed)
    image = rng.choice(IMAGES).crash(lambda *_: True)
    disk = SimDisk(seed, image=image)
    done = rot(rng, disk)
    report = None
    with contextlib.suppress(StoreError, DiskError):
        report = await verify(disk, **parts())
    try:
        store = await opened(disk)
    except (StoreError, DiskError):
        if report is not None and report.clean:
            return f"{done}: verify finds all good, and the store does not open"
        return None
    try:
        problem = await wrong_reads(store)
    finally:
        await store.close()
    return f"{done}: {problem}" if problem else None


async def wrong_reads(store) -> str | None:  # type: ignore[no-untyped-def]
    """What the store reads that was never written, or None."""
    state = store.log_state(1)
    if state.last_index > LAST_INDEX:
        return f"last index {state.last_index}"
    if state.hard_state.term > 1 or state.hard_state.commit > LAST_INDEX:
        return f"hard state {state.hard_state}"
    for index in range(max(1, state.first_index), state.last_index + 1):
        try:
            found = store.entries(1, index, index + 1, 1)
            (got,) = found if isinstance(found, list) else await found
        except (StoreError, DiskError):
            continue
        if got != entry(index) and got.kind != EntryKind.LOST:
            return f"entry {index} is {got}"
    for (stream, number), data in FRAMES.items():
        try:
            body = await store.read_frame(stream_id(stream), number)
        except (StoreError, DiskError, BadBlock):
            continue
        if bytes(body) != data:
            return f"frame {number} of stream {stream} is {bytes(body)[:40]!r}"
    for key, value in ROWS.items():
        try:
            row = await store.get(key)
        except (StoreError, DiskError, BadBlock):
            continue
        if row is not None and row != value:
            return f"row {key!r} is {row!r}"
    return None


def step(rng: random.Random) -> str | None:
    finding = parsers(rng)
    if finding is not None:
        return finding
    seed = rng.randrange(1 << 40)
    return run(store_on_a_damaged_disk(seed), seed)


def main() -> int:
    return campaign(__doc__, step, "records and disks")


if __name__ == "__main__":
    sys.exit(main())
