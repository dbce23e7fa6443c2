"""Addresses of peers, the bytes of joining, the file `members`."""

from __future__ import annotations

import asyncio
import random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from o3storage.cluster import _members_file
from o3storage.cluster._errors import Unavailable
from o3storage.cluster._join import (
    decode_request,
    decode_welcome,
    encode_request,
    encode_welcome,
    parse_peers,
    show,
)
from o3storage.cluster._members_file import Members, Stage
from o3storage.cluster._node_records import Announcement
from o3storage.runtime.disk import OpenMode
from o3storage.runtime.network import Address
from o3storage.simulation import SimDisk, run
from tests.cluster.test_node_records import announcements, record


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("192.168.1.10", [("192.168.1.10", 8081)]),
        ("192.168.1.10,192.168.1.11:9000", [("192.168.1.10", 8081), ("192.168.1.11", 9000)]),
        (" a.example.org , a.example.org,", [("a.example.org", 8081)]),
        ("node-1:99", [("node-1", 99)]),
        ("[fd00::1]:99,fd00:0::2", [("fd00::1", 99), ("fd00::2", 8081)]),
        ("[::1]", [("::1", 8081)]),
    ],
)
def test_peers_are_addresses_or_names(text: str, found: list[tuple[str, int]]) -> None:
    assert list(parse_peers(text, 8081)) == found


@pytest.mark.parametrize(
    "text",
    [
        "",
        " , ",
        "a:",
        "a:0",
        "a:70000",
        "a:b",
        "[::1",
        "[::1]9",
        "a b",
        "1.2.3",
        "300.1.1.1",
        "ä",
        "a..b",
        "-:x",
    ],
)
def test_what_is_no_peer_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="peer"):
        parse_peers(text, 8081)


def test_too_many_peers_are_refused() -> None:
    with pytest.raises(ValueError, match="more than"):
        parse_peers(",".join(f"10.0.0.{n}" for n in range(40)), 8081)


@given(st.ip_addresses(), st.integers(1, 65535))
def test_what_is_shown_is_what_is_parsed(ip: Any, port: int) -> None:
    address = Address(str(ip), port)
    assert parse_peers(show(address), 1) == (address,)


@given(announcements)
def test_a_request_and_a_welcome_survive_their_encoding(announced: Announcement) -> None:
    made = record(1, announced=announced)
    assert decode_request(encode_request(made)) == made
    cluster, members = decode_welcome(encode_welcome(b"c" * 16, [made, record(2)]))
    assert cluster == b"c" * 16
    assert members == {
        1: (made.identity, announced),
        2: (record(2).identity, Announcement()),
    }


@given(st.binary(max_size=300))
def test_bytes_that_nobody_wrote_are_refused(data: bytes) -> None:
    for decode in (decode_request, decode_welcome, Members.decode):
        try:
            decode(data)
        except ValueError:
            continue


@given(announcements, st.sampled_from(Stage), st.data())
def test_the_file_is_whole_or_refused(announced: Announcement, stage: Stage, data: Any) -> None:
    made = Members(stage, 7, b"c" * 16, {1: (b"i" * 32, announced), 2: (b"j" * 32, announced)})
    encoded = made.encode()
    assert Members.decode(encoded) == made
    at = data.draw(st.integers(0, len(encoded) - 1))
    flipped = bytearray(encoded)
    flipped[at] ^= 1 << data.draw(st.integers(0, 7))
    for broken in (bytes(flipped), encoded[:at]):
        with pytest.raises(ValueError):
            Members.decode(broken)


def test_the_file_is_replaced_and_a_damaged_one_says_what_to_do() -> None:
    async def main() -> None:
        disk = SimDisk(1)
        assert await _members_file.load(disk) is None
        first = Members(Stage.ASKING, 7)
        members = _members_file.MembersFile(disk)
        await members.save(first)
        assert await _members_file.load(disk) == first
        second = Members(Stage.HOLDING, 7, b"c" * 16, {1: (b"i" * 32, Announcement())})
        await members.save(second)
        disk = disk.crash(None)
        assert await _members_file.load(disk) == second
        file = await disk.open(_members_file.MEMBERS_FILE, OpenMode.WRITE)
        await file.write_sync(0, [b"x"])
        await file.close()
        with pytest.raises(Unavailable, match="remove that file"):
            await _members_file.load(disk)

    run(main(), 1)


def test_some_who_save_at_the_same_time_do_not_take_each_others_file() -> None:
    """Also where the power goes meanwhile."""
    known = [
        Members(Stage.HOLDING, 7, b"c" * 16, {n: (b"i" * 32, Announcement())}) for n in range(1, 5)
    ]

    async def main(wait_s: float) -> None:
        disk = SimDisk(1)
        members = _members_file.MembersFile(disk)
        await members.save(known[0])
        saving = asyncio.gather(*(members.save(one) for one in known[1:]), return_exceptions=True)
        await asyncio.sleep(wait_s)
        done = saving.done()
        found = await _members_file.load(disk.crash(random.Random(wait_s)))
        assert found in known
        if done:
            assert saving.result() == [None] * 3
            assert found == known[-1]

    for wait_us in range(0, 10_000, 40):
        run(main(wait_us / 1e6), 1)
