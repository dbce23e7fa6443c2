"""The admin API's own limits: what is no body, and what is no key."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest

from o3storage.catalog import NoSuchAccessKey
from o3storage.server._admin import _route
from o3storage.server._errors import AdminError


class _NoKeys:
    """A node whose commands have room for 255 bytes of a key id, as the catalog's have."""

    async def submit(self, command: Any) -> None:
        assert len(command.key_id.encode()) <= 255
        raise NoSuchAccessKey(command.key_id)


APP: Any = SimpleNamespace(root_key_ids=["ROOT"], node=_NoKeys())


def refused(method: str, path: str, body: bytes = b"") -> AdminError:
    with pytest.raises(AdminError) as caught:
        asyncio.run(_route(APP, method, path, None, body))  # type: ignore[arg-type]
    return caught.value


@pytest.mark.parametrize("name", ["absent", "x" * 400, "%C3%A9" * 200, "%00", "..%2F..%2Fx"])
def test_a_key_that_there_cannot_be_is_none(name: str) -> None:
    assert refused("DELETE", f"/keys/{name}").status == 404


def test_a_root_key_is_not_removed_here() -> None:
    assert refused("DELETE", "/keys/ROOT").status == 409


@pytest.mark.parametrize(
    "body",
    [
        *(b"", b"x", b"[]", b"{}", b'{"owner": 7}', b'{"owner": ["a"]}', b'{"owner": "\\ud800"}'),
        *(b'{"owner": ""}', b'{"owner": "a b"}', b'{"owner": "' + b"a" * 65 + b'"}'),
        *(b"[" * 60_000, b'{"owner":' * 7_000),
    ],
)
def test_what_names_no_owner_is_refused(body: bytes) -> None:
    assert refused("POST", "/keys", body).status == 400


def test_what_the_api_does_not_have_is_told() -> None:
    assert "no PUT /-/admin/v1/keys" in str(refused("PUT", "/keys"))
