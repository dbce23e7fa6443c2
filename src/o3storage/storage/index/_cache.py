"""Opened blocks in memory, bounded by bytes."""

from __future__ import annotations

ENTRY_OVERHEAD_BYTES = 160
"""A bytes object, its key, its dict slot and its place in the order, rounded up."""


class BlockCache:
    """Two generations: what comes in or is asked for is young; when the young ones fill half of the
    bound they become old, behind the old ones that are left. For what comes in, as many of the old
    ones leave, the first ones first. Close to least-recently-used at the cost of one dict look-up
    for a hit; and always full, so that memory is used again at once: leaving by halves held a
    quarter less, and gave 24 MiB back to the system only to ask for them anew."""

    __slots__ = (
        "_half_bytes",
        "_limit_bytes",
        "_old",
        "_order",
        "_young_bytes",
        "opened",
        "size_bytes",
        "young",
    )

    def __init__(self, limit_bytes: int) -> None:
        self._limit_bytes = limit_bytes
        self._half_bytes = limit_bytes // 2
        self.young: dict[int, bytes] = {}
        """Readers on the hot path look here first, without a call."""
        self._young_bytes = 0
        self._old: dict[int, bytes] = {}
        self._order: list[int] = []
        """The keys of `_old`, the first to leave at the end, and some that are young again."""
        self.size_bytes = 0
        """Of all that is here."""
        self.opened = 0
        """Blocks that were opened because they were not here."""

    def get(self, key: int) -> bytes | None:
        block = self.young.get(key)
        if block is None:
            block = self._old.pop(key, None)
            if block is not None:
                self.young[key] = block
                self._young_bytes += len(block) + ENTRY_OVERHEAD_BYTES
        return block

    def put(self, key: int, block: bytes) -> None:
        """Keep a block that was just opened."""
        size = len(block) + ENTRY_OVERHEAD_BYTES
        if size > self._half_bytes or key in self.young or key in self._old:
            return
        if self._young_bytes + size > self._half_bytes:
            self._grow_old()
        self.young[key] = block
        self._young_bytes += size
        self.size_bytes += size
        # The young ones are at most half of it, so there is an old one as long as it is too much.
        while self.size_bytes > self._limit_bytes:
            gone = self._old.pop(self._order.pop(), None)
            if gone is not None:
                self.size_bytes -= len(gone) + ENTRY_OVERHEAD_BYTES

    def _grow_old(self) -> None:
        self._old.update(self.young)
        self._order = list(self._old)
        self._order.reverse()
        self.young = {}
        self._young_bytes = 0
