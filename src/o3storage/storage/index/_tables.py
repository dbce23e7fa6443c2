"""The tables that are in the index now, the manifest that says so, and the files behind them."""

from __future__ import annotations

import asyncio

from o3storage.runtime.disk import DiskFull

from ._build import SALT_BYTES, Context
from ._cache import BlockCache
from ._manifest import (
    CURRENT,
    CURRENT_NEW,
    MAX_LEVELS,
    Drop,
    Edit,
    Manifest,
    State,
    load,
    manifest_name,
    room_for,
)
from ._table import Table, TableInfo, table_name
from ._types import IndexDamaged, IndexFailure
from ._view import Level, View

MANIFEST_PREFIX = "MANIFEST-"
TABLE_SUFFIX = ".table"


class Tables:
    """The current `view` and the durable `state`. `change` is the only way from one to the next."""

    def __init__(self, context: Context, state: State, manifest: Manifest) -> None:
        self.context = context
        self.state = state
        self.cache = BlockCache(context.options.cache_bytes)
        self.failure: Exception | None = None
        """A change of the manifest failed: what is on the disk is not known any more."""
        self._manifest = manifest
        self._by_number: dict[int, Table] = {}
        self._pending_drops: list[Drop] = []
        self._lock = asyncio.Lock()
        self._removals: set[asyncio.Task[None]] = set()
        self.view = self._make_view()

    # --- opening

    @classmethod
    async def open(cls, context: Context, numbers: list[int]) -> Tables:
        """`numbers` is the counter behind `context.next_number`. Raises IndexDamaged,
        IndexKeyWrong, DiskFull, DiskFault."""
        disk, directory = context.disk, context.directory
        await _make_dir(context)
        names = await disk.list_dir(directory)
        if CURRENT in names:
            old, state = await load(disk, directory, context.disk_key)
        elif any(name.endswith(TABLE_SUFFIX) for name in names):
            raise IndexDamaged("there are tables but no CURRENT that names a manifest")
        else:
            old, state = 0, State()  # new, or a crash before the first start was complete
        taken = [_number_in(name) for name in names]
        numbers[0] = max([state.next_number, old + 1, *(number + 1 for number in taken)])
        number = context.next_number()
        state.next_number = numbers[0]
        try:
            manifest = await _first_manifest(context, number, state)
        except DiskFull:
            # A crash may have left what the missing space is in: half of a merge, say.
            used = {CURRENT, manifest_name(old), *map(table_name, state.tables)}
            left = [name for name in names if name not in used and name != CURRENT_NEW]
            # (A kill may have come before the medium knew of the manifest that CURRENT names.)
            await disk.sync_dir(directory)
            for name in left:
                await disk.unlink(f"{directory}/{name}")
            names = [name for name in names if name not in left]
            manifest = await _first_manifest(context, number, state)
        keep = {CURRENT, manifest_name(number), *map(table_name, state.tables)}
        for name in names:
            if name not in keep and name != CURRENT_NEW:
                await disk.unlink(f"{directory}/{name}")
        tables = cls(context, state, manifest)
        for _, info in state.tables.values():
            tables._by_number[info.number] = await tables._open(info)
        tables._switch()
        return tables

    async def _open(self, info: TableInfo) -> Table:
        table = Table(f"{self.context.directory}/{table_name(info.number)}", info)
        await table.open(self.context.disk, self.context.disk_key)
        return table

    def _make_view(self) -> View:
        level0: list[Table] = []
        levels: list[list[Table]] = [[] for _ in range(MAX_LEVELS)]
        for number, table in self._by_number.items():
            level = self.state.tables[number][0]
            (levels[level] if level else level0).append(table)
        while len(levels) > 1 and not levels[-1]:
            levels.pop()
        return View(
            level0,
            [Level(tables) for tables in levels[1:]],
            (*self.state.drops, *self._pending_drops),
            self.cache,
            self._on_dead,
        )

    def _switch(self) -> None:
        old, self.view = self.view, self._make_view()
        old.unpin()

    # --- changing

    def add_drop(self, drop: Drop) -> None:
        """Visible at once, durable with the next flush's edit."""
        self._pending_drops.append(drop)
        for table in self.view.tables():
            table.suspect = False  # its bad block may be gone now
        self._switch()

    def drops_up_to(self, sequence: int) -> tuple[list[Drop], list[Drop]]:
        """(all drops up to a sequence, those of them that no edit holds yet)."""
        pending = [drop for drop in self._pending_drops if drop[2] <= sequence]
        return [*self.state.drops, *pending], pending

    async def change(self, edit: Edit) -> None:
        """Make `edit` durable, then show it. New tables must be synced already. Raises DiskFull
        (nothing changed), DiskFault (nothing may be written any more)."""
        async with self._lock:
            if self.failure is not None:
                raise self.failure
            edit.next_number = self.context.next_number()
            try:
                if not self._manifest.has_room(edit):
                    await self._new_manifest(room_for(edit))
                await self._manifest.append(edit)
                added = [await self._open(info) for _, info in edit.added]
            except DiskFull:
                raise
            except BaseException as error:
                # Cancelled counts too: the record may be on the disk or not.
                self.failure = (
                    error
                    if isinstance(error, OSError)
                    else IndexFailure(
                        f"a change of the index's manifest did not complete: {error!r}"
                    )
                )
                raise
            # No await from here to the end: readers see the old state or the new one.
            self.state.apply(edit)
            self._pending_drops = [d for d in self._pending_drops if d not in edit.drops]
            for table in added:
                self._by_number[table.info.number] = table
            for number in edit.removed:
                self._by_number.pop(number).dead = True
            self._switch()

    async def _new_manifest(self, room_bytes: int) -> None:
        context = self.context
        number = context.next_number()
        salt = context.random_bytes(SALT_BYTES)
        manifest = await Manifest.create(
            context.disk,
            context.directory,
            number,
            disk_key=context.disk_key,
            salt=salt,
            state=self.state,
            room_bytes=room_bytes,
        )
        old, self._manifest = self._manifest, manifest
        await old.close()
        await context.disk.unlink(f"{context.directory}/{manifest_name(old.number)}")

    # --- files that are no longer needed

    def _on_dead(self, table: Table) -> None:
        task = asyncio.get_running_loop().create_task(self._remove(table))
        self._removals.add(task)
        task.add_done_callback(self._removals.discard)

    async def _remove(self, table: Table) -> None:
        try:
            await table.close()
            await self.context.disk.unlink(table.path)
        except OSError:
            return  # it goes at the next open

    async def close(self) -> None:
        await self._manifest.close()
        removals = sorted(self._removals, key=asyncio.Task.get_name)
        await asyncio.gather(*removals, return_exceptions=True)
        for table in self.view.tables():
            await table.close()


async def _first_manifest(context: Context, number: int, state: State) -> Manifest:
    """Of this run. Raises DiskFull, DiskFault."""
    salt = context.random_bytes(SALT_BYTES)
    return await Manifest.create(
        context.disk,
        context.directory,
        number,
        disk_key=context.disk_key,
        salt=salt,
        state=state,
    )


async def _make_dir(context: Context) -> None:
    """The directory, durable with all its parents' names."""
    await context.disk.make_dir(context.directory)
    parts = context.directory.split("/")
    for depth in range(len(parts)):
        await context.disk.sync_dir("/".join(parts[:depth]))


def _number_in(name: str) -> int:
    """The number in a file's name, 0 for other names."""
    digits = name.removeprefix(MANIFEST_PREFIX).removesuffix(TABLE_SUFFIX)
    try:
        return int(digits, 16) if len(digits) == 16 else 0
    except ValueError:
        return 0
