"""Bodies that are lent: what the holder keeps, and a reader whose holder forgets."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from types import SimpleNamespace
from typing import Any

from o3storage.cluster import _kinds
from o3storage.cluster._lending import LEND_S, MAX_STREAMS, RENEW_S, Lender, Loan
from o3storage.cluster._peer_types import PeerUnreachable
from o3storage.simulation import run

READER, HOLDER = 1, 2
STREAMS = [number.to_bytes(16, "big") for number in range(1, 2 * MAX_STREAMS + 10)]


class Store:
    """Pins, counted."""

    def __init__(self) -> None:
        self.pins: dict[bytes, int] = {}

    def pin(self, stream: bytes) -> None:
        self.pins[stream] = self.pins.get(stream, 0) + 1

    def unpin(self, stream: bytes) -> None:
        self.pins[stream] -= 1
        if not self.pins[stream]:
            del self.pins[stream]


class Wire:
    """Between a reader and its holder; the calls whose turns are in `lost` do not arrive."""

    def __init__(self) -> None:
        self.calls = 0
        self.lost: list[int] = []
        self.peers = self
        self.tasks: list[asyncio.Task[None]] = []
        self.begin()

    def begin(self) -> None:
        self.store = Store()
        node: Any = SimpleNamespace(store=self.store)
        self.lender = Lender(node)

    def order(self, _: int) -> list[int]:
        return [HOLDER]

    def spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        self.tasks.append(asyncio.get_running_loop().create_task(work))
        return self.tasks[-1]

    async def call(self, node: int, kind: int, payload: bytes, **_: Any) -> bytes:
        assert node == HOLDER
        self.calls += 1
        if self.calls in self.lost:
            raise PeerUnreachable("lost")
        serve = self.lender.serve_hold if kind == _kinds.HOLD else self.lender.serve_let_go
        return await serve(READER, memoryview(payload))


def test_a_holder_that_forgot_is_told_of_all_streams_though_some_calls_are_lost() -> None:
    async def main() -> None:
        wire: Any = Wire()
        loan = Loan(wire, 1, 7)
        await loan.take(STREAMS)
        assert wire.calls == 3 and wire.store.pins == dict.fromkeys(STREAMS, 1)
        wire.begin()
        # That it forgot it says; the first of three arrives, the second does not.
        wire.lost = [6]
        await asyncio.sleep(RENEW_S + 1)
        assert wire.calls == 6 and len(wire.store.pins) == MAX_STREAMS
        await asyncio.sleep(RENEW_S)
        assert wire.store.pins == dict.fromkeys(STREAMS, 1)
        calls = wire.calls
        await asyncio.sleep(3 * LEND_S)
        assert wire.store.pins == dict.fromkeys(STREAMS, 1)
        assert wire.calls - calls <= 3 * LEND_S / RENEW_S + 1, "one call is enough to renew it"
        loan.end()
        await asyncio.gather(*wire.tasks, return_exceptions=True)
        assert not wire.store.pins and not wire.lender.loans

    run(main(), 1)


def test_a_stream_is_lent_once_however_often_it_is_asked_for() -> None:
    async def main() -> None:
        wire: Any = Wire()
        token = bytes(8)
        for _ in range(30):
            for at in (0, 1):
                part = [*STREAMS[at : at + 2], STREAMS[at]]
                hold = b"".join([token, *part])
                assert await wire.call(HOLDER, _kinds.HOLD, hold) == b"\x01"
        assert wire.store.pins == dict.fromkeys(STREAMS[:3], 1)
        await wire.call(HOLDER, _kinds.LET_GO, token)
        assert not wire.store.pins
        assert await wire.call(HOLDER, _kinds.HOLD, token) == b"\x00"
        wire.lender.close()

    run(main(), 1)
