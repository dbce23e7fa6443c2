"""Account of free space: when new data is refused (DESIGN 4, "Faults").

Invariant: data is refused before the reserve is touched; the reserve is for deletes, hard state,
flush and compaction, so a full disk can always be emptied.
"""

from __future__ import annotations

import dataclasses

from o3storage.runtime.disk import DiskError
from o3storage.storage._core import Core
from o3storage.storage._types import KIB, MIB, StoreFull, StoreOptions, StoreSpace

REFRESH_S = 2.0
"""How old the file system's figures may get."""

SMALL_BULK_BYTES = 4 * MIB
SMALL_LOG_BYTES = 256 * KIB
"""No disk is so small that its volumes are made smaller than these."""


class SpaceAccount:
    """Free space as of the last look, less what was written since."""

    def __init__(self, core: Core) -> None:
        self.core = core
        self.total_bytes = 0
        self.free_bytes = 0
        self.reserve_bytes = 0

    async def refresh(self) -> None:
        """Ask the file system. A failing statfs leaves the old figures."""
        try:
            space = await self.core.disk.space()
        except DiskError:
            return
        options = self.core.options
        self.total_bytes = space.total_bytes
        self.free_bytes = space.free_bytes
        self.reserve_bytes = min(
            options.reserve_bytes, int(space.total_bytes * options.reserve_ratio)
        )

    @property
    def full(self) -> bool:
        return self.free_bytes <= self.reserve_bytes

    def took(self, size: int) -> None:
        """A file grew: count it until the next look."""
        self.free_bytes = max(0, self.free_bytes - size)

    def fitted(self, options: StoreOptions) -> StoreOptions:
        """`options` for a disk of this size: what is live of a bulk volume, and the next log
        volumes, must fit into the reserve, or a full disk could not be emptied."""
        bulk = min(options.bulk_volume_bytes, max(SMALL_BULK_BYTES, self.reserve_bytes))
        log = min(options.log_volume_bytes, max(SMALL_LOG_BYTES, self.reserve_bytes // 4))
        return dataclasses.replace(
            options,
            bulk_volume_bytes=bulk,
            bulk_allocate_bytes=min(options.bulk_allocate_bytes, bulk),
            log_volume_bytes=log,
            first_log_volume_bytes=min(options.first_log_volume_bytes, log),
        )

    async def spare_bytes(self) -> int:
        """What new data may take as of now: all that is free but the reserve."""
        await self.refresh()
        return max(0, self.free_bytes - self.reserve_bytes)

    def check(self) -> None:
        """Raises StoreFull when new data must be refused."""
        if self.full:
            raise StoreFull(
                f"the disk is full: {self.free_bytes >> 20} MiB free, {self.reserve_bytes >> 20} "
                "MiB of them kept in reserve; delete objects or add space"
            )

    def state(self, used_bytes: int) -> StoreSpace:
        return StoreSpace(
            total_bytes=self.total_bytes,
            used_bytes=used_bytes,
            free_bytes=self.free_bytes,
            reserve_bytes=self.reserve_bytes,
            full=self.full,
        )
