"""What an upload that failed leaves behind on its disk."""

from __future__ import annotations

import pytest

from o3storage.cluster import StorageFull
from o3storage.crypto import FRAME_BYTES
from o3storage.simulation import run
from tests.cluster.support import rig


def test_an_upload_that_is_discarded_holds_no_volume_however_long_it_is_remembered() -> None:
    """An error remembers the calls that it went through, and with them the upload, until the
    garbage collector comes by. Until then the volume could not be compacted, and a run of the
    simulator depended on when that was (seed 1018 of one node)."""

    async def main() -> None:
        async with rig(31) as r:
            bucket = await r.bucket()
            upload = r.node.new_stream(bucket.bucket_id, b"key")
            block = bytes(FRAME_BYTES)
            await upload.write(block, False)
            await r.settle()  # it is in a volume, and not placed yet
            volumes = r.store._core.volumes
            r.disk.capacity_bytes = r.disk.image.used_bytes()
            with pytest.raises(StorageFull) as remembered:
                for _ in range(100):
                    await upload.write(block, False)
            held = [volume for volume in volumes.values() if volume.holds]
            assert held and held[0].unplaced_bytes
            upload.discard()
            upload.discard()
            assert not any(volume.holds or volume.unplaced_bytes for volume in volumes.values())
            assert remembered.value
            r.disk.capacity_bytes = 1 << 40
            await r.settle()
            assert not await r.store.stream_frames(upload.ref.stream)

    run(main(), 31)
