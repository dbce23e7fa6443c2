"""A node over the real store and catalog on a simulated disk, and small ways to use it."""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import AsyncIterator
from typing import Any

from o3storage import catalog
from o3storage._native import Digester
from o3storage.catalog import Catalog, CreateBucket, PutObject
from o3storage.cluster import ClusterError, Node, StreamUpload
from o3storage.crypto import FRAME_BYTES, NodeKeys, StreamRef
from o3storage.simulation import SimClock, SimDisk, SimEntropy, SimJobs
from o3storage.storage import Store, StoreError, StoreOptions

OWNER = "root"


def small_options(**changes: Any) -> StoreOptions:
    options = StoreOptions(
        log_volume_bytes=256 * 1024,
        bulk_volume_bytes=2 * 1024 * 1024,
        bulk_allocate_bytes=512 * 1024,
        background=False,
    )
    for name, value in changes.items():
        setattr(options, name, value)
    return options


class Rig:
    """One node's machine: its disk stays, the process comes and goes."""

    def __init__(self, seed: int = 0, disk: SimDisk | None = None, **options: Any) -> None:
        self.seed = seed
        self.disk = disk if disk is not None else SimDisk(seed)
        self.entropy = SimEntropy(seed)
        self.clock = SimClock()
        self.keys = NodeKeys.generate(self.entropy)
        self.machine: Any = Catalog()
        self.options = options
        self.others = False
        """Other nodes have the rows of this one's ranges."""
        self.store: Store
        self.node: Node

    async def open_store(self) -> Store:
        return await Store.open(
            self.disk,
            disk_key=self.keys.disk_key,
            jobs=SimJobs(self.seed),
            clock=self.clock,
            entropy=self.entropy,
            options=small_options(**self.options),
            prefix_length=catalog.prefix_length,
            others=self.others,
        )

    async def start(self) -> Rig:
        self.store = await self.open_store()
        self.node = await Node.open(
            self.store,
            self.machine,
            keys=self.keys,
            jobs=SimJobs(self.seed),
            clock=self.clock,
            entropy=self.entropy,
        )
        return self

    async def stop(self) -> None:
        await self.node.close()
        await self.store.close()

    async def crash(self, rng: random.Random | None = None) -> None:
        """Cut the power; the process is gone with it."""
        disk = self.disk.crash(rng)
        await self._bury()
        self.disk = disk

    async def kill(self) -> None:
        """Kill the process only."""
        disk = self.disk.kill()
        await self._bury()
        self.disk = disk

    async def _bury(self) -> None:
        """End the tasks of the dead process; nothing of this reaches its disk any more."""
        with contextlib.suppress(StoreError, ClusterError, OSError):
            await self.store.close()
        with contextlib.suppress(StoreError, ClusterError, OSError):
            await self.node.close()

    # --- use

    async def drive(self, steps: Any) -> Any:
        return await catalog.drive(self.node, steps)

    async def bucket(self, name: str = "bucket") -> catalog.BucketInfo:
        command = CreateBucket(name, OWNER, self.clock.wall_ns())
        result = await self.drive(catalog.create_bucket(command))
        return result.bucket

    async def upload(
        self, bucket: catalog.BucketInfo, key: bytes, body: bytes, **fields: Any
    ) -> tuple[StreamUpload, PutObject]:
        """The body stored; the command that would name it."""
        digester = Digester()
        upload = self.node.new_stream(bucket.bucket_id, key)
        for at in range(0, len(body), FRAME_BYTES):
            last = at + FRAME_BYTES >= len(body)
            await upload.write(body[at : at + FRAME_BYTES], last, digester)
        digests = digester.finish()
        command = PutObject(
            bucket.bucket_id,
            bucket.epoch,
            key,
            self.clock.wall_ns(),
            OWNER,
            len(body),
            digests["md5"].hex(),
            digests["blake3"],
            upload.ref.pack(),
            upload.started_ns,
            **fields,
        )
        return upload, command

    async def put(self, bucket: catalog.BucketInfo, key: bytes, body: bytes, **fields: Any) -> Any:
        upload, command = await self.upload(bucket, key, body, **fields)
        return await self.node.submit(command, upload.frames)

    async def get(self, bucket: catalog.BucketInfo, key: bytes) -> bytes | None:
        try:
            version = await self.node.query(catalog.head_version(bucket.bucket_id, key))
        except catalog.NoSuchKey:
            return None
        return await self.read(StreamRef.unpack(version.body))

    async def read(self, ref: StreamRef, offset: int = 0, length: int | None = None) -> bytes:
        return b"".join([bytes(p) async for p in self.node.read_stream(ref, offset, length)])

    async def settle(self, seconds: float = 2.0) -> None:
        """Let the background work (virtual time)."""
        await asyncio.sleep(seconds)


@contextlib.asynccontextmanager
async def rig(seed: int = 0, **options: Any) -> AsyncIterator[Rig]:
    found = await Rig(seed, **options).start()
    try:
        yield found
    finally:
        await found.stop()


def body_of(seed: int, size: int) -> bytes:
    return random.Random(seed).randbytes(size)
