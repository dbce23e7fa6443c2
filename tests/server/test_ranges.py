"""The key ranges as operators see and cut them."""

from __future__ import annotations

import json
from types import SimpleNamespace
from typing import Any

import pytest

from o3storage.cli._args import parse
from o3storage.cli._range_commands import ranges_text
from o3storage.cluster import SplitRefused
from o3storage.server import ROOT_OWNER
from o3storage.server._errors import AdminError
from o3storage.server._ranges import listing, split
from o3storage.simulation import run
from tests.cluster.support import OWNER, Rig, rig


def app(r: Rig) -> Any:
    return SimpleNamespace(node=r.node)


def asked(**fields: Any) -> bytes:
    return json.dumps(fields).encode()


def test_a_range_is_cut_and_both_parts_are_shown() -> None:
    assert OWNER == ROOT_OWNER

    async def main() -> None:
        async with rig() as r:
            await r.bucket("photos")
            assert (await listing(app(r)))["ranges"][0]["first"] is None
            assert await split(app(r), asked(bucket="photos", key="mé")) == {"range": 2}
            found = await listing(app(r))
            first, second = found["ranges"]
            assert first["end"] == second["first"]
            assert second["first"] == {"bucket_id": 1, "bucket": "photos", "key": "mé"}
            assert (second["range"], second["cut_off"], second["end"]) == (2, 1, None)
            assert second["leader"] == second["voters"][0] == f"{r.node.id:016x}"
            lines = ranges_text(found).splitlines()
            assert "size" in lines[0] and found["limit_bytes"] == 1 << 30
            assert second["size_bytes"] == 0 and "0 B" in lines[2]
            assert len(lines) == 4 and "photos/mé" in lines[2] and "(the end)" in lines[3]
            with pytest.raises(SplitRefused, match="begins there already"):
                await split(app(r), asked(bucket="photos", key="mé"))

    run(main(), 1)


def test_keys_cannot_speak_to_the_terminal() -> None:
    bound = {"bucket_id": 1, "bucket": "photos", "key": "a\x1b[2J\nb"}
    entry = {"range": 1, "first": None, "end": bound, "size_bytes": 0, "leader": None}
    text = ranges_text({"ranges": [{**entry, "voters": [], "learners": []}]})
    assert r"photos/a\x1b[2J\nb" in text and "\x1b" not in text and len(text.splitlines()) == 3


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b"", 400),
        (b"[]", 400),
        (b'{"bucket": "photos"}', 400),
        (asked(bucket="photos", key=""), 400),
        (asked(bucket="photos", key="k" * 1025), 400),
        (asked(bucket=7, key="k"), 400),
        (asked(bucket="photos", key=7), 400),
        (asked(bucket="\ud800", key="k"), 400),
        (asked(bucket="photos", key="\ud800"), 400),
        (b"[" * 60_000, 400),
        (asked(bucket="none", key="k"), 404),
    ],
)
def test_what_names_no_place_is_refused(body: bytes, status: int) -> None:
    async def main() -> None:
        async with rig() as r:
            await r.bucket("photos")
            with pytest.raises(AdminError) as refused:
                await split(app(r), body)
            assert refused.value.status == status

    run(main(), 2)


def test_the_command_line_takes_a_bucket_and_a_key() -> None:
    options = parse(["range", "split", "photos", "2024/"])
    assert (options.action, options.bucket, options.key) == ("split", "photos", "2024/")
    assert parse(["range", "list", "--json"]).json
