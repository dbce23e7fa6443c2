"""Repair of volumes in which something cannot be read (`verify --repair`): what is good moves out,
the file goes to quarantine/.

Interface: `set_aside`.

Invariants
- Before a volume goes, all rows are written anew with one sequence, and a row says so: what stood
  in a bad record of rows, a deletion perhaps, is not missed by a later rebuild of the index.
- Frames that are lost keep their placement, so that reading them is an error that says so and
  `verify` names them, until their version is deleted.
- A log volume with entries that were not applied yet stays.
"""

from __future__ import annotations

from collections.abc import Container, Sequence

from o3storage.storage._bulk import BulkWriter, RecordOwner
from o3storage.storage._compaction import STATE_BODY_BYTES, Compactor
from o3storage.storage._core import Core
from o3storage.storage._flush import Flusher
from o3storage.storage._log import LogWriter
from o3storage.storage._records import StateRow, encode_state

STEP_ROWS = 1000
ROW_OVERHEAD_BYTES = 14
"""Of a row in a STATE record, beside key and value."""


async def set_aside(  # noqa: PLR0917
    core: Core,
    log: LogWriter,
    bulk: BulkWriter,
    flusher: Flusher,
    compactor: Compactor,
    volumes: Sequence[int],
    directory: str,
    alone: Container[int],
) -> list[str]:
    """Returns a line for each thing done. `alone`: groups without other members. Raises StoreFull,
    StoreOutOfService, DiskError."""
    said: list[str] = []
    for number, group in sorted(core.groups.items()):
        missing = group.missing
        if missing and all(high <= group.applied_index for _, high in missing):
            # They only matter to other members of the group, which get a snapshot instead; but of
            # the last one the term decides votes here, and who has others asks them for it.
            group.forget_below(group.applied_index + 1)
            spans = ", ".join(f"{low}..{high}" for low, high in missing)
            said.append(f"group {number}: its log now begins behind the missing entries {spans}")
            if group.written_guess and number in alone:
                group.written_guess = False
                log.turn()
            elif group.written_guess:
                said.append(f"group {number}: the last one comes back when this node is started")
    await flusher.flush()
    said.append(f"{await _restate(core, log, bulk)} rows were written anew")
    for number in volumes:
        volume = core.volumes.get(number)
        if volume is None:
            continue
        path = volume.path
        done = await compactor.set_aside(volume, directory)
        if done is None:
            said.append(f"{path} is still needed and stays: start the store once, stop it, repair")
        else:
            lost = f"; {done[1]} frames in it are lost" if done[1] else ""
            said.append(f"{path} moved to {done[0]}, what was good in it is elsewhere now{lost}")
    await flusher.flush()
    return said


async def _restate(core: Core, log: LogWriter, bulk: BulkWriter) -> int:
    """Every row as a state record of one new sequence; what is written meanwhile is newer."""
    await log.settle()
    core.sequence += 1
    sequence = core.sequence
    owner = RecordOwner()
    count = 0
    low = b"\x00"
    while True:
        rows = await core.index.scan(low, None, STEP_ROWS)
        body: list[StateRow] = []
        size = 0
        for key, value in rows:
            body.append((sequence, key, value))
            size += ROW_OVERHEAD_BYTES + len(key) + len(value)
            if size >= STATE_BODY_BYTES:
                await bulk.write(owner, None, encode_state(body))
                body, size = [], 0
        if body:
            await bulk.write(owner, None, encode_state(body))
        count += len(rows)
        if len(rows) < STEP_ROWS:
            break
        low = rows[-1][0] + b"\0"
    await bulk.sync()
    if owner.error is not None:
        raise owner.error
    log.note_restated(sequence)
    await log.settle()
    return count
