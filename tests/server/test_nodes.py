"""Which node a name means, and what is shown of all."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest

from o3storage.cli._node_commands import nodes_text
from o3storage.runtime.network import Address
from o3storage.server._errors import AdminError
from o3storage.server._nodes import act, find


def app(*nodes: tuple[int, str, int]) -> Any:
    records = [
        SimpleNamespace(node=n, announced=SimpleNamespace(addresses=(Address(host, port),)))
        for n, host, port in nodes
    ]
    return SimpleNamespace(membership=SimpleNamespace(live=lambda: records))


FIRST, SECOND = 0x11112222_00000001, 0x11113333_00000002
TWO = app((FIRST, "10.0.0.1", 81), (SECOND, "10.0.0.1", 82))


@pytest.mark.parametrize("name", ["10.0.0.1:81", "11112", "1111222200000001", "11112222"])
def test_a_node_is_named_by_address_or_id(name: str) -> None:
    assert find(TWO, name) == FIRST


@pytest.mark.parametrize(
    ("name", "status"),
    [("10.0.0.1", 409), ("1111", 409), ("111", 404), ("10.0.0.2", 404), ("", 404)],
)
def test_what_names_none_or_several_is_refused(name: str, status: int) -> None:
    with pytest.raises(AdminError) as refused:
        find(TWO, name)
    assert refused.value.status == status


@pytest.mark.parametrize(
    "body",
    [b"", b"[]", b"{}", b"x", b'{"action": "dance"}', b'{"action": ["drain"]}', b'{"a":' * 9_000],
)
def test_what_is_no_action_is_refused(body: bytes) -> None:
    with pytest.raises(AdminError) as refused:
        asyncio.run(act(TWO, "11112", body))
    assert refused.value.status == 400


def entry(node: str, **changes: Any) -> dict[str, Any]:
    facts = {
        "release": "0.1.0",
        "uptime_s": 60.0,
        "used_bytes": 1024,
        "full": False,
        "out_of_service": "",
        "scrub_bad": 0,
    }
    return {
        "node": node,
        "state": "member",
        "this": False,
        "up": True,
        "addresses": [f"{node}.example:81"],
        "versions": [1, 1],
        "problem": "",
        "duplicates": 0,
        "facts": facts,
        **changes,
    }


def test_the_table_tells_what_is_wrong() -> None:
    group = {
        "group": 1,
        "leader": "aa",
        "voters": ["aa", "bb", "cc"],
        "voters_up": 2,
        "quorum": 2,
        "behind": {"bb": 7, "cc": 0},
        "debt": {"bb": 3, "cc": 0},
    }
    failed = {**entry("x")["facts"], "out_of_service": "sync failed", "scrub_bad": 4}
    text = nodes_text(
        {
            "version": 1,
            "nodes": [
                entry("aa", this=True),
                entry("bb", up=False, facts={}, problem="bb.example:81: refused"),
                entry("cc", facts=failed, duplicates=2, versions=[1, 2]),
                entry("dd", state="removed", facts={}),
            ],
            "groups": [group],
            "without_leader": [0],
            "other_clusters": {"cc.example:81": "f" * 32},
            "problems": {"ee.example:81": "odd", "ff.example:81": "said \x1b[2J\nnote all is well"},
        }
    )
    lines = text.splitlines()
    assert any(
        line.split()[:5] == ["aa.example:81", "aa", "member*", "up", "1/1"] for line in lines
    )
    assert any(
        line.split()[:7] == ["bb.example:81", "bb", "member", "DOWN", "1/0", "7", "3"]
        for line in lines
    )
    for part in (
        "range 0 has no leader",
        "range 1: 2 of 3 voters up, 2 are needed",
        "another cluster (ffffffff) answers at cc.example:81",
        "two processes run with the identity of cc.example:81",
        "bb.example:81 cannot be reached: refused",
        "disk of cc.example:81 is out of service: sync failed",
        "scrub found 4 bad records on cc.example:81",
        "an upgrade is under way",
        "note ee.example:81: odd",
        r"note ff.example:81: said \x1b[2J\nnote all is well",
    ):
        assert part in text, part
    assert "dd.example:81 cannot" not in text
