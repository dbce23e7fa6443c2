"""docs/format-catalog.md is enough to read the rows: an independent reader sees what queries see."""

from __future__ import annotations

import re
from pathlib import Path

from o3storage import catalog as c
from o3storage.catalog import _keys, _wire
from tests.catalog import reader
from tests.catalog.making import NOW, World, stream

PAGE = (Path(__file__).parents[2] / "docs" / "format-catalog.md").read_text()


def test_the_reader_sees_what_the_queries_see() -> None:
    world = World()
    world.put(b"plain\x00key", 1, checksum=c.Checksum("SHA1", "FULL_OBJECT", bytes(range(20))),
              headers={"content-type": "a/b"}, metadata={"m": "é"}, tags=[("t", "1")])  # fmt: skip
    world.put(b"empty", size_bytes=0, body=b"")
    world.versioning("Enabled")
    world.put(b"empty", 2)
    world.put(b"gone", 3)
    world.delete(b"gone")
    upload = world.upload(b"big", headers={"x": "y"})
    for n in (1, 2, 3, 9):
        world.part(upload, n, 10 + n, key=b"big", size_bytes=n)
    world.submit(world.completion(upload, [(1, 1), (3, 3), (9, 9)], b"big"))
    rows = world.node.rows.values
    found = {key: version for _, key, version in reader.current_objects(rows)}
    assert {name for name, _, _ in reader.current_objects(rows)} == {"bucket"}
    listed = [entry[0] for entry in world.list().entries]
    assert list(found) == listed == [b"big", b"empty", b"plain\x00key"]
    for key, version in found.items():
        info = world.head(key)
        assert version["order"] == info.order and version["etag"] == info.etag
        assert version["size"] == info.size_bytes and version["modified"] == NOW
        assert dict(version["headers"]) == info.headers
        assert dict(version["metadata"]) == info.metadata
        assert version["tags"] == info.tags and version["owner"] == info.owner
        assert version["blake3"] == info.blake3
        if info.checksum:
            assert version["checksum"] == (info.checksum.algorithm, info.checksum.value)
    pieces = {key: [p["stream"] for p in v["pieces"]] for key, v in found.items()}
    assert pieces == {
        b"plain\x00key": [stream(1)],
        b"empty": [stream(2)],
        b"big": [stream(11), stream(13), stream(19)],
    }


def test_the_page_names_every_table_and_command() -> None:
    tables = {f"{value:02X}" for name, value in vars(_keys).items() if name.startswith("TABLE_")}
    keys, commands = PAGE.split("## Row keys")[1], PAGE.split("## Commands")[1]
    assert set(re.findall(r"^\| ([0-9A-F]{2}) \|", keys.split("**Slot.**")[0], re.M)) == tables
    written = {
        name: int(code) for code, name in re.findall(r"^\| (\d+) \| (\w+) \|", commands, re.M)
    }
    codes = {kind.__name__: layout.code for kind, layout in _wire._LAYOUTS.items()}
    codes |= {"PutObject": _wire.PUT_OBJECT, "PutPart": _wire.PUT_PART}
    assert written == codes
