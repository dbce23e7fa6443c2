"""The key ranges as operators see and cut them."""

from __future__ import annotations

import json
from types import SimpleNamespace
from typing import Any

import pytest

from o3storage.cli._args import parse
from o3storage.cli._range_commands import ranges_text
from o3storage.cluster import MembershipRefused, SplitRefused
from o3storage.runtime.network import Address
from o3storage.server import ROOT_OWNER
from o3storage.server._errors import AdminError
from o3storage.server._ranges import act, listing, split
from o3storage.simulation import run
from tests.cluster.support import OWNER, Rig, rig


def app(r: Rig) -> Any:
    return SimpleNamespace(node=r.node, membership=SimpleNamespace(live=list))


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
    held: dict[str, Any] = {"voters": ["aa"], "learners": [], "moves": None}
    text = ranges_text({"ranges": [{**entry, **held}], "nodes": {"aa": "h\x1b[2J"}})
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


NODES = [
    SimpleNamespace(node=n << 32, announced=SimpleNamespace(addresses=(Address(host, 8081),)))
    for n, host in ((1, "10.0.0.1"), (2, "10.0.0.2"))
]


@pytest.mark.parametrize(
    ("number", "body", "error"),
    [
        ("1", b"", AdminError(400, "the body must be JSON")),
        ("1", b"[]", AdminError(400, "the body must be JSON")),
        ("1", asked(), AdminError(400, "the body must be JSON")),
        (
            "1",
            asked(action="move", **{"from": "10.0.0.1"}),
            AdminError(400, "the body must be JSON"),
        ),
        ("1", asked(action="fly"), AdminError(400, "the action is move or stay")),
        ("x", asked(action="stay"), AdminError(404, "a range has a number; x is none")),
        ("-1", asked(action="stay"), AdminError(404, "a range has a number")),
        ("1" * 10, asked(action="stay"), AdminError(404, "a range has a number")),
        ("0", asked(action="stay"), AdminError(409, "range 0 is on every node")),
        ("1", asked(action="stay"), MembershipRefused("range 1 is not moving")),
        (
            "1",
            asked(action="move", **{"from": "10.0.0.1", "to": "10.0.0.9"}),
            AdminError(404, "no node is called 10.0.0.9"),
        ),
        (
            "1",
            asked(action="move", **{"from": "10.0.0.1", "to": "10.0.0.1:8081"}),
            AdminError(400, "are one node"),
        ),
        (
            "1",
            asked(action="move", **{"from": "10.0.0.1", "to": "10.0.0.2"}),
            MembershipRefused("there is no key range 1, or nobody has told who holds it"),
        ),
    ],
)
def test_a_move_that_cannot_be_is_refused_in_plain_words(
    number: str, body: bytes, error: AdminError | MembershipRefused
) -> None:
    async def main() -> None:
        async with rig() as r:
            known = SimpleNamespace(node=r.node, membership=SimpleNamespace(live=lambda: NODES))
            with pytest.raises(type(error)) as refused:
                await act(known, number, body)  # type: ignore[arg-type]
            assert str(error) in str(refused.value)
            if isinstance(refused.value, AdminError) and isinstance(error, AdminError):
                assert refused.value.status == error.status

    run(main(), 3)


def test_the_list_shows_who_holds_what_and_what_moves() -> None:
    one = {"range": 1, "first": None, "end": None, "size_bytes": None, "leader": None}
    held = {"voters": ["aa", "bb"], "learners": ["c" * 16], "moves": {"from": "aa", "to": "c" * 16}}
    text = ranges_text({"ranges": [{**one, **held}], "nodes": {"aa": "10.0.0.1", "bb": "b:1"}})
    assert "10.0.0.1 b:1 (cccccccc); moves 10.0.0.1 -> cccccccc" in text
    assert "elsewhere" in text
    nobody: dict[str, Any] = {"voters": [], "learners": [], "moves": None}
    assert "not told yet" in ranges_text({"ranges": [{**one, **nobody}], "nodes": {}})


def test_the_command_line_moves_a_replica_and_takes_it_back() -> None:
    options = parse(["range", "move", "2", "10.0.0.1", "10.0.0.2"])
    assert (options.range, options.source, options.target) == (2, "10.0.0.1", "10.0.0.2")
    assert parse(["range", "stay", "2"]).range == 2
    for wrong in (["move", "2", "a"], ["move", "x", "a", "b"], ["stay"], ["stay", "x"]):
        with pytest.raises(SystemExit):
            parse(["range", *wrong])


def test_the_command_line_takes_a_bucket_and_a_key() -> None:
    options = parse(["range", "split", "photos", "2024/"])
    assert (options.action, options.bucket, options.key) == ("split", "photos", "2024/")
    assert parse(["range", "list", "--json"]).json
