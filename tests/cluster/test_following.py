"""What range 0 says is followed, also after a read of it that failed."""

from __future__ import annotations

from typing import Any

import pytest

from o3storage.cluster import _node_records
from o3storage.simulation import run
from o3storage.storage import BadBlock
from tests.cluster.member_rig import Places, patiently


def test_what_could_not_be_read_of_range_0_is_read_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing else changes there that would have it read."""

    async def main() -> None:
        async with Places() as places:
            await places.start(3)
            await places.until_voters(1, 2, 3)
            scan = places[3].store.scan
            failed: list[bytes] = []

            async def scan_after_one_failure(low: bytes, high: bytes, limit: int, **at: Any) -> Any:
                if low == _node_records.NODES_LOW and not failed:
                    failed.append(low)
                    raise BadBlock(1, low, high, "a block that is damaged")
                return await scan(low, high, limit, **at)

            monkeypatch.setattr(places[3].store, "scan", scan_after_one_failure)
            await patiently(lambda: places[1].membership.share("name", b"value"))
            await places.until(lambda: bool(failed))
            await places.until(lambda: places[3].membership.shared.get("name") == b"value")

    run(main(), 18)
