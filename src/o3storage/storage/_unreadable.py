"""Reading around sectors that the medium does not give back.

Interface: `read_around`.

A latent sector error takes a few KiB (Bairavasundaram et al., "An Analysis of Latent Sector Errors
in Disk Drives", SIGMETRICS 2007): what lies beside them is as good as before, and must not be lost
with them. Invariant: what cannot be read looks like bytes that rotted, never like padding or like a
place where nothing was written.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from o3storage.runtime.disk import DiskFault
from o3storage.storage._volume import BLOCK_BYTES

UNREADABLE = b"\xbd"
"""Stands for each byte that cannot be read; any but 0 (nothing was written) and 0xFF (padding)."""
MAX_UNREADABLE_BLOCKS = 64
"""In one read. With more of them it is the disk that fails, and each may take it seconds."""

Read = Callable[[int, int], Awaitable[bytes]]


async def read_around(read: Read, offset: int, size: int) -> bytes:
    """What `read(offset, size)` gives, with `UNREADABLE` in the place of blocks of 4 KiB that fail
    by themselves, too. Raises DiskFault: more than MAX_UNREADABLE_BLOCKS do."""
    try:
        return await read(offset, size)
    except DiskFault:
        if size <= 0:
            raise
    pieces: list[bytes] = []
    unreadable = 0
    spans = [(offset, offset + size)]
    while spans:
        start, end = spans.pop()
        try:
            piece = await read(start, end - start)
        except DiskFault:
            middle = (start + end) // 2 // BLOCK_BYTES * BLOCK_BYTES
            if middle <= start:
                middle = start - start % BLOCK_BYTES + BLOCK_BYTES
            if middle < end:
                spans += [(middle, end), (start, middle)]
                continue
            unreadable += 1
            if unreadable > MAX_UNREADABLE_BLOCKS:
                raise
            piece = UNREADABLE * (end - start)
        pieces.append(piece)
        if len(piece) < end - start:
            break  # the file ends
    return b"".join(pieces)
