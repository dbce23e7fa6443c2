"""Opened blocks in memory, bounded by bytes."""

from __future__ import annotations

ENTRY_OVERHEAD_BYTES = 160
"""A bytes object, its key and its dict slot, rounded up."""


class BlockCache:
    """Two generations: a hit in the old one moves the block to the young one, and when the young
    one holds half of the bound it becomes the old one. Close to least-recently-used at the cost of
    one dict look-up for a hit."""

    __slots__ = ("_half_bytes", "_old", "_old_bytes", "_young_bytes", "opened", "young")

    def __init__(self, size_bytes: int) -> None:
        self._half_bytes = size_bytes // 2
        self.young: dict[int, bytes] = {}
        """Readers on the hot path look here first, without a call."""
        self._old: dict[int, bytes] = {}
        self._young_bytes = 0
        self._old_bytes = 0
        self.opened = 0
        """Blocks that were opened because they were not here."""

    @property
    def size_bytes(self) -> int:
        return self._young_bytes + self._old_bytes

    def get(self, key: int) -> bytes | None:
        block = self.young.get(key)
        if block is not None:
            return block
        block = self._old.pop(key, None)
        if block is not None:
            self._old_bytes -= len(block) + ENTRY_OVERHEAD_BYTES
            self.put(key, block)
        return block

    def put(self, key: int, block: bytes) -> None:
        size = len(block) + ENTRY_OVERHEAD_BYTES
        if size > self._half_bytes or key in self.young:
            return
        if self._young_bytes + size > self._half_bytes:
            self._old = self.young
            self._old_bytes = self._young_bytes
            self.young = {}
            self._young_bytes = 0
        self.young[key] = block
        self._young_bytes += size
