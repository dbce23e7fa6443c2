"""docs/format.md says enough: a reader written from it alone finds everything."""

from __future__ import annotations

import pytest

from o3storage.crypto import StreamSealer
from o3storage.simulation import SimDisk, run
from o3storage.storage import SealedFrame

from .independent_reader import Reader
from .support import KEY, entry, frame, hard, open_store, stream_id


def files(disk):
    return {
        name.removeprefix("volumes/"): bytes(node.cached)
        for name, node in disk.image.names.items()
        if node is not None and name.startswith("volumes/")
    }


@pytest.mark.parametrize("restated", [False, True], ids=["as it came", "after a repair"])
def test_it_lists_and_extracts(restated):
    kek, salt = b"k" * 32, b"s" * 32
    big = bytes(range(256)) * 1024 * 3 + b"the end"

    def sealed(stream, body, step=262_144):
        sealer = StreamSealer(kek, salt, stream_id(stream))
        cuts = range(0, len(body), step)
        return [
            SealedFrame(
                stream_id(stream),
                i,
                at + step >= len(body),
                len(body[at : at + step]),
                sealer.seal_frame(i, body[at : at + step], at + step >= len(body)),
            )
            for i, at in enumerate(cuts)
        ]

    async def main():
        disk = SimDisk(1)
        store = await open_store(disk, bulk_volume_bytes=4 << 20)
        rows = {}
        for i in range(1, 41):
            (small,) = sealed(i, b"small object %d " % i * 100)
            done = store.append(1, hard(1, 2, i - 1), [entry(i)], [small])
            await done
            released = [stream_id(i - 1)] if i % 3 == 0 else []
            changes = [(b"\x10key%d" % (i % 7), b"value %d" % i), (b"\x11clock", b"%d" % i)]
            if i == 39:
                changes.append((b"\x10key1", None))
            store.apply(1, i, changes, released)
            rows.update(changes)
        writer = store.open_stream(stream_id(777))
        for one in sealed(777, big):
            await writer.write(one)
        await writer.sync()
        await store.flush()
        while await store.compact():
            pass
        assert store.stats().compactions
        await store.append(1, None, [entry(41), entry(42)])
        await store.append(1, None, [entry(42, 2, b"instead")], [frame(500)])

        def check(volumes):
            reader = Reader(volumes, KEY)
            expected = {k: v for k, v in rows.items() if v is not None}
            assert {k: v for k, v in reader.rows.items() if k[0] >= 0x10} == expected
            kept = {stream_id(i) for i in range(1, 41) if (i + 1) % 3 or i == 40}
            assert set(reader.streams()) == kept | {stream_id(777), stream_id(500)}
            assert reader.extract(stream_id(777), kek, salt) == big
            for i in (1, 3, 40):
                assert reader.extract(stream_id(i), kek, salt) == b"small object %d " % i * 100
            assert reader.entries[1][42] == (2, 0, b"instead")
            assert reader.entries[1][41] == (1, 0, b"entry 41")
            assert reader.hard[1] == (1, 2, 39)

        if restated:
            assert "rows were written anew" in (await store.set_aside([], "quarantine"))[0]
        check(files(disk.kill()))

    run(main(), 1)
