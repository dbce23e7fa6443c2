"""What is wrong with a disk, in the log: found at the open, by scrub, or when it fails."""

from __future__ import annotations

from o3storage.runtime import Logger
from o3storage.storage import BadFrame, Store

MAX_BAD_FRAME_LINES = 1000
"""Log lines for bad records in the life of a process: enough to see where a disk goes bad."""

_log = Logger("server")


def tell_of_faults(store: Store) -> None:
    """What was found at the open, and a disk that fails later, go to the log at once."""
    stats = store.stats()
    if stats.rotted_records or stats.lost_entries:
        _log.warning(
            "store.rot_found",
            rotted_records=stats.rotted_records,
            lost_entries=stats.lost_entries,
            hint="stop the store and run o3storage verify",
        )
    if stats.index_rebuilt:
        _log.warning("store.index_rebuilt")
    for group in store.groups():
        if store.log_state(group).rows_lost:
            _log.error("store.rows_lost", range=group)
    store.on_out_of_service(lambda error: _log.error("disk.out_of_service", reason=str(error)))
    store.on_bad_frame(BadFrameLog())


class BadFrameLog:
    """Tells of what scrub found. All are counted in o3_scrub_bad_total; a line for each of a disk
    that goes bad as a whole would fill the disk that the log is on."""

    def __init__(self) -> None:
        self._lines = 0

    def __call__(self, bad: BadFrame) -> None:
        self._lines += 1
        if self._lines > MAX_BAD_FRAME_LINES:
            return
        _log.error(
            "scrub.bad",
            volume=bad.volume,
            offset=bad.offset,
            stream=bad.stream.hex(),
            frame=bad.number,
            reason=bad.reason,
            hint="stop the store and run o3storage verify: it says whose bytes these are",
        )
        if self._lines == MAX_BAD_FRAME_LINES:
            _log.error("scrub.bad_many", hint="further ones are counted in o3_scrub_bad_total only")
