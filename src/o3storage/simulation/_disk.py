"""The simulated disk: `runtime.disk.Disk` over a `DiskImage`, with seeded delays and faults."""

from __future__ import annotations

import asyncio
import errno
import random
from collections.abc import Callable, Sequence
from typing import TypeVar

from o3storage.runtime.disk import (
    DIRECT_ALIGN_BYTES,
    Buffer,
    DiskError,
    DiskFault,
    DiskFull,
    OpenMode,
    Space,
)

from ._faults import DiskSpeed, Fault, FaultKind
from ._image import SECTOR_BYTES, DiskImage, Inode, Pending
from ._loop import SimLoop
from ._recorder import Recorder

T = TypeVar("T")

DEFAULT_CAPACITY_BYTES = 64 << 30


class PowerOffError(DiskFault):
    """The simulated machine is off: `crash` or `kill` was called on this disk."""


class SimFile:
    """`runtime.disk.File` of a SimDisk."""

    def __init__(
        self, disk: SimDisk, path: str, node: Inode, *, writable: bool, direct: bool
    ) -> None:
        self._disk = disk
        self._path = path
        self._node = node
        self._writable = writable
        self._direct = direct
        self._closed = False

    @property
    def path(self) -> str:
        return self._path

    def read_now(self, offset: int, size: int) -> bytes | None:
        return None if self._closed else self._disk.cached_read(self._node, offset, size)

    def native_handle(self) -> None:
        return None

    async def read(self, offset: int, size: int) -> bytes:
        if self._closed:
            raise DiskError(errno.EBADF, f"{self._path!r} is closed")
        return await self._disk.read_node(self._path, self._node, offset, size)

    async def write(self, offset: int, buffers: Sequence[Buffer]) -> None:
        self._check(write=True)
        if self._direct:
            sizes = [offset, *(memoryview(buffer).nbytes for buffer in buffers)]
            if any(size % DIRECT_ALIGN_BYTES for size in sizes):
                raise OSError(errno.EINVAL, f"direct write of {self._path!r} is not aligned")
        await self._disk.write_node(self._path, self._node, offset, buffers)

    async def write_sync(self, offset: int, buffers: Sequence[Buffer]) -> None:
        await self.write(offset, buffers)
        await self.sync()

    async def sync(self) -> None:
        self._check(write=False)
        await self._disk.sync_node(self._path, self._node)

    async def allocate(self, offset: int, size: int, *, zero_fill: bool) -> None:
        self._check(write=True)
        await self._disk.allocate_node(self._path, self._node, offset, size, zero_fill=zero_fill)

    async def truncate(self, size: int) -> None:
        self._check(write=True)
        await self._disk.truncate_node(self._path, self._node, size)

    async def size(self) -> int:
        self._check(write=False)
        return len(self._node.cached)

    async def close(self) -> None:
        self._closed = True

    def _check(self, *, write: bool) -> None:
        if self._closed:
            raise OSError(errno.EBADF, f"{self._path!r} is closed")
        if write and not self._writable:
            raise OSError(errno.EBADF, f"{self._path!r} is open for reading only")


class SimDisk:
    """A disk with faults. `crash` and `kill` end it and return the disk that the next start finds.

    On a SimLoop operations take seeded virtual time (so they overlap and finish in any order); on
    an ordinary asyncio loop each takes one turn of the loop. An operation whose task is cancelled
    goes on, as a job on the pool does."""

    def __init__(
        self,
        seed: int | str = 0,
        *,
        image: DiskImage | None = None,
        capacity_bytes: int = DEFAULT_CAPACITY_BYTES,
        speed: DiskSpeed | None = None,
        cached_share: float = 1.0,
    ) -> None:
        """`cached_share` is the chance that `read_now` finds its bytes in the page cache."""
        self.image = image if image is not None else DiskImage()
        self.capacity_bytes = capacity_bytes
        self.cached_share = cached_share
        self.faults: list[Fault] = []
        self.recorder: Recorder | None = None
        self.operations: dict[str, int] = {}
        self._seed = seed
        self._rng = random.Random(f"{seed}/disk")
        self._speed = speed if speed is not None else DiskSpeed()
        self._off = False
        self._in_flight: dict[int, Callable[[], object]] = {}
        self._next_operation = 0
        self._stuck: list[Callable[[], None]] = []

    # --- what a test does to it

    def inject(self, fault: Fault) -> None:
        self.faults.append(fault)

    def release_stuck(self) -> None:
        stuck, self._stuck = self._stuck, []
        for go_on in stuck:
            go_on()

    def rot(self, path: str, offset: int, mask: int = 1) -> None:
        """Flip the bits of `mask` in one byte, in the cache and on the medium, silently."""
        node = self.image.lookup(path)
        node.cached[offset] ^= mask
        if offset < len(node.durable):
            node.durable[offset] ^= mask

    def fail_sector(self, path: str, offset: int) -> None:
        """The sector that holds `offset` cannot be read until it is written again."""
        self.image.lookup(path).bad.add(offset // SECTOR_BYTES)

    def record(self) -> Recorder:
        self.recorder = Recorder(self.image)
        return self.recorder

    def crash(
        self,
        rng: random.Random | None = None,
        *,
        choose: Callable[[Pending, int], bool] | None = None,
    ) -> SimDisk:
        """Cut the power. Each change that no sync covers, those in flight among them, is kept or
        lost sector by sector: as `choose` says, else by `rng`."""
        self._power_off(finish=True)
        dice = rng if rng is not None else self._rng
        share = dice.random()
        keep = choose if choose is not None else (lambda _change, _sector: dice.random() < share)
        return self._successor(self.image.crash(keep))

    def kill(self) -> SimDisk:
        """Kill the process only: the page cache survives, with what is still unsynced."""
        self._power_off(finish=False)
        return self._successor(self.image)

    def _power_off(self, *, finish: bool) -> None:
        self._off = True
        in_flight, self._in_flight = self._in_flight, {}
        for effect in in_flight.values():
            if finish or self._rng.random() < 0.5:
                try:
                    effect()
                except OSError:
                    continue  # it would have failed anyway: it changed nothing
        self.release_stuck()

    def _successor(self, image: DiskImage) -> SimDisk:
        return SimDisk(
            f"{self._seed}+",
            image=image,
            capacity_bytes=self.capacity_bytes,
            speed=self._speed,
            cached_share=self.cached_share,
        )

    # --- Disk

    async def open(self, path: str, mode: OpenMode, *, direct: bool = False) -> SimFile:
        if mode is OpenMode.CREATE:

            def create() -> Inode:
                node = self.image.create(path)
                self._log("create", path)
                return node

            node = await self._change("open", path, 0, create)
        else:
            node = await self._run("open", path, 0, lambda: self.image.lookup(path))
        return SimFile(self, path, node, writable=mode is not OpenMode.READ, direct=direct)

    async def read_direct(self, path: str, offset: int, size: int) -> bytes:
        def effect() -> bytes:
            node = self.image.lookup(path)
            _check_sectors(path, node, offset, size)
            return self.image.on_medium(node, offset, size)

        return await self._run("read", path, size, effect)

    async def list_dir(self, path: str) -> list[str]:
        return await self._run("list_dir", path, 0, lambda: self.image.list_dir(path))

    async def make_dir(self, path: str) -> None:
        def effect() -> None:
            self.image.make_dir(path)
            self._log("make_dir", path)

        await self._change("make_dir", path, 0, effect)

    async def rename(self, source: str, target: str) -> None:
        def effect() -> None:
            self.image.rename(source, target)
            self._log("rename", source, target)

        await self._change("rename", source, 0, effect)

    async def unlink(self, path: str) -> None:
        def effect() -> None:
            self.image.unlink(path)
            self._log("unlink", path)

        await self._change("unlink", path, 0, effect)

    async def sync_dir(self, path: str) -> None:
        def effect() -> None:
            self._log("sync_dir", path)
            self.image.sync_dir(path)

        await self._run("sync_dir", path, 0, effect)

    async def space(self) -> Space:
        free = max(0, self.capacity_bytes - self.image.used_bytes())
        return Space(total_bytes=self.capacity_bytes, free_bytes=free)

    def aligned_buffer(self, size: int) -> memoryview:
        return memoryview(bytearray(size))

    # --- content (SimFile calls these)

    def cached_read(self, node: Inode, offset: int, size: int) -> bytes | None:
        self._check_power()
        if self._rng.random() >= self.cached_share or node.bad.intersection(
            range(offset // SECTOR_BYTES, -(-(offset + size) // SECTOR_BYTES))
        ):
            return None
        return bytes(memoryview(node.cached)[offset : offset + size])

    async def read_node(self, path: str, node: Inode, offset: int, size: int) -> bytes:
        def effect() -> bytes:
            _check_sectors(path, node, offset, size)
            return bytes(memoryview(node.cached)[offset : offset + size])

        return await self._run("read", path, size, effect)

    async def write_node(
        self, path: str, node: Inode, offset: int, buffers: Sequence[Buffer]
    ) -> None:
        lent = list(buffers)
        size = sum(memoryview(buffer).nbytes for buffer in lent)
        fault = self._strike("write", path, offset)

        def effect() -> None:
            data = b"".join(lent)
            self._check_growth(path, node, offset + size, DiskFault)
            at = offset
            if fault is not None and fault.kind is FaultKind.MISDIRECTED:
                first = fault.from_offset // SECTOR_BYTES
                last = max(first, (len(node.cached) - size) // SECTOR_BYTES)
                at = self._rng.randint(first, last) * SECTOR_BYTES
            if fault is not None and fault.kind is FaultKind.ERROR:
                data = data[: self._rng.randrange(len(data) + 1) // SECTOR_BYTES * SECTOR_BYTES]
            self.image.write(node, at, data)
            self._log("write", node.number, at, data)
            if fault is not None and fault.kind is FaultKind.ERROR:
                raise DiskFault(errno.EIO, f"simulated write error at {offset} of {path!r}")

        await self._change("write", path, size, effect, fault=fault)

    async def sync_node(self, path: str, node: Inode) -> None:
        upto = self.image.sequence  # what is written while the sync runs is not covered by it
        fault = self._strike("sync", path)

        def effect() -> None:
            if fault is not None and fault.kind is FaultKind.ERROR:
                self._log("fail_sync", node.number, upto)
                self.image.fail_sync(node, upto)
                raise DiskFault(errno.EIO, f"simulated fsync error of {path!r}")
            self._log("sync", node.number, upto)
            self.image.sync(node, upto)

        await self._run("sync", path, 0, effect, fault=fault)

    async def allocate_node(
        self, path: str, node: Inode, offset: int, size: int, *, zero_fill: bool
    ) -> None:
        def effect() -> None:
            end = offset + size
            self._check_growth(path, node, end, DiskFull)
            if zero_fill:
                self.image.write(node, offset, bytes(size))
                self._log("write", node.number, offset, bytes(size))
            elif end > len(node.cached):
                self.image.resize(node, end)
                self._log("resize", node.number, end)

        await self._change("allocate", path, size if zero_fill else 0, effect)

    async def truncate_node(self, path: str, node: Inode, size: int) -> None:
        def effect() -> None:
            self.image.resize(node, size)
            self._log("resize", node.number, size)

        await self._change("truncate", path, 0, effect)

    # --- running operations

    def _check_growth(self, path: str, node: Inode, end: int, error: type[OSError]) -> None:
        growth = max(0, end - len(node.cached))
        if growth and self.image.used_bytes() + growth > self.capacity_bytes:
            raise error(errno.ENOSPC, f"the simulated disk is full: {path!r}")

    def _log(self, *event: object) -> None:
        if self.recorder is not None:
            self.recorder.add(*event)

    def _check_power(self) -> None:
        if self._off:
            raise PowerOffError(errno.EIO, "the simulated machine is off")

    def _strike(self, operation: str, path: str, offset: int = 0) -> Fault | None:
        for fault in self.faults:
            if fault.strikes(operation, path, offset):
                return fault
        return None

    async def _change(
        self,
        operation: str,
        path: str,
        size: int,
        effect: Callable[[], T],
        *,
        fault: Fault | None = None,
    ) -> T:
        """`_run` for what changes the disk: a power cut finds it done, in part, or not at all."""
        self._next_operation += 1
        number = self._next_operation
        self._in_flight[number] = effect

        def landed() -> T:
            del self._in_flight[number]
            return effect()

        return await self._run(operation, path, size, landed, fault=fault)

    async def _run(
        self,
        operation: str,
        path: str,
        size: int,
        effect: Callable[[], T],
        *,
        fault: Fault | None = None,
    ) -> T:
        self._check_power()
        self.operations[operation] = self.operations.get(operation, 0) + 1
        if fault is None and operation not in ("write", "sync"):
            fault = self._strike(operation, path)
        loop = asyncio.get_running_loop()
        future: asyncio.Future[T] = loop.create_future()
        failing = (
            fault is not None
            and fault.kind is FaultKind.ERROR
            and operation not in ("write", "sync")
        )

        def land() -> None:
            try:
                self._check_power()
                if failing:
                    raise DiskFault(errno.EIO, f"simulated {operation} error of {path!r}")
                result = effect()
            except Exception as error:
                if not future.done():
                    future.set_exception(error)
            else:
                if not future.done():
                    future.set_result(result)

        if fault is not None and fault.kind is FaultKind.STUCK:
            self._stuck.append(land)
        elif isinstance(loop, SimLoop):
            delay = self._speed.of(operation, size) * (0.5 + self._rng.random())
            if fault is not None and fault.kind is FaultKind.SLOW:
                delay += fault.delay_s
            loop.call_later(delay, land)
        else:
            loop.call_soon(land)
        return await future


def _check_sectors(path: str, node: Inode, offset: int, size: int) -> None:
    sectors = range(
        offset // SECTOR_BYTES, -(-min(offset + size, len(node.cached)) // SECTOR_BYTES)
    )
    bad = sorted(node.bad.intersection(sectors))
    if bad:
        raise DiskFault(errno.EIO, f"simulated unreadable sector {bad[0]} of {path!r}")
