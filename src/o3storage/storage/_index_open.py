"""Opening the index on a disk, as every part of this room does it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import replace

from o3storage.storage._core import Core
from o3storage.storage._rebuild import STAGING_DIR
from o3storage.storage._rows import (
    FIRST_CATALOG_BYTE,
    PLACEMENT_PREFIX_BYTES,
    PLACEMENT_TABLE,
    RowIndex,
    default_prefix_length,
)
from o3storage.storage._types import MIB, StoreKeyWrong
from o3storage.storage.index import Index, IndexKeyWrong, IndexOptions

STAGING_CACHE_BYTES = 16 * MIB
"""Blocks in memory of the index that a rebuild gathers rows in: written by key and read once in
order, it has little use for more, and the rebuild's other memory grows with the store's filters."""

IndexFactory = Callable[[Core, str], Awaitable[RowIndex]]


def open_index_factory(
    prefix_length: Callable[[bytes], int] | None, *, background: bool = True
) -> IndexFactory:
    """Opens indexes whose filters cover catalog keys by `prefix_length` (None: by the form that
    DESIGN gives them). Without `background` they merge nothing by themselves."""
    rows_prefix = prefix_length or default_prefix_length

    def prefix(key: bytes) -> int:
        if key[:1] == PLACEMENT_TABLE:
            return PLACEMENT_PREFIX_BYTES
        return len(key) if key[0] < FIRST_CATALOG_BYTE else rows_prefix(key)

    async def factory(core: Core, directory: str) -> RowIndex:
        options = IndexOptions(background=background)
        if directory == STAGING_DIR:
            options = replace(options, cache_bytes=STAGING_CACHE_BYTES)
        try:
            index: RowIndex = await Index.open(
                core.disk,
                directory,
                disk_key=core.disk_key,
                jobs=core.jobs,
                random_bytes=core.entropy.random_bytes,
                prefix_length=prefix,
                options=options,
                on_bad_block=core.met_bad_block,
            )
        except IndexKeyWrong as error:
            raise StoreKeyWrong(str(error)) from error
        return index

    return factory
