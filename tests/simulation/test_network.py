"""The simulated network: what a link promises, what breaks it, and that a seed is a run."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any

import pytest

from o3storage.runtime.network import MAX_FRAME_BYTES, Address, Link, LinkClosed
from o3storage.simulation import OWNER, Blocked, Quality, SimLoop, SimNet, SimNetwork, run
from o3storage.simulation._link import WINDOW_BYTES

A, B, C = "10.0.0.1", "10.0.0.2", "10.0.0.3"
PORT = 9001


class End:
    """One end of a link: what came, and why it closed."""

    def __init__(self, link: Link, *, begin: bool = True) -> None:
        self.link = link
        self.frames: list[bytes] = []
        self.times: list[float] = []
        self.closed: list[str] = []
        if begin:
            self.begin()

    def begin(self) -> None:
        self.link.begin(self._frame, lambda error: self.closed.append(str(error)))

    def _frame(self, view: memoryview) -> None:
        self.frames.append(bytes(view))
        self.times.append(asyncio.get_running_loop().time())


async def pair(net: SimNet, *, begin: bool = True) -> tuple[SimNetwork, SimNetwork, End, End]:
    """Networks of A and B, and the ends of a link that A opened."""
    one, other = net.network(A, b"a" * 32), net.network(B, b"b" * 32)
    near, far = await link(one, other, begin=begin)
    return one, other, near, far


async def link(one: SimNetwork, other: SimNetwork, *, begin: bool = True) -> tuple[End, End]:
    accepted: list[Link] = []
    bound = await other.listen(Address(other.host, 0), accepted.append)
    opened = await one.connect(bound, 5.0)
    return End(opened, begin=begin), End(accepted[0], begin=begin)


def numbered(count: int, size: int = 4) -> list[bytes]:
    return [number.to_bytes(4, "big").ljust(size, b".") for number in range(count)]


def is_prefix(got: list[bytes], sent: list[bytes]) -> bool:
    return got == sent[: len(got)]


def play(main: Coroutine[Any, Any, None], seed: int = 1) -> None:
    run(main, seed, limit_s=1000.0)


def test_a_link_is_an_ordered_stream_both_ways() -> None:
    async def main() -> None:
        _, _, near, far = await pair(SimNet(1))
        for frame in numbered(200):
            near.link.send([frame[:1], frame[1:]])
            far.link.send([frame])
        await asyncio.sleep(1)
        assert near.frames == far.frames == numbered(200)
        assert near.link.unsent_bytes == 0
        assert near.link.peer == b"b" * 32 and far.link.peer == b"a" * 32
        assert near.link.binding == far.link.binding and len(near.link.binding) == 32
        assert near.link.outgoing and not far.link.outgoing
        assert near.link.address.host == B and far.link.address.host == A

    play(main())


def test_frames_that_came_before_begin_wait_for_it() -> None:
    async def main() -> None:
        _, _, near, far = await pair(SimNet(1), begin=False)
        near.begin()
        near.link.send([b"early"])
        await asyncio.sleep(1)
        assert far.frames == []
        far.begin()
        await asyncio.sleep(0)
        assert far.frames == [b"early"]

    play(main())


def test_links_overtake_each_other() -> None:
    async def main() -> None:
        net = SimNet(3)
        one, other, near, far = await pair(net)
        near2, far2 = await link(one, other)
        for frame in numbered(100):
            near.link.send([frame])
            near2.link.send([frame])
            await asyncio.sleep(0.001)
        await asyncio.sleep(1)
        first = sum(t < u for t, u in zip(far.times, far2.times, strict=True))
        assert 20 < first < 80

    play(main())


def test_views_are_lent_and_pieces_are_read_when_they_leave() -> None:
    async def main() -> None:
        _, _, near, far = await pair(SimNet(1), begin=False)
        kept: list[memoryview] = []
        far.link.begin(kept.append, lambda error: None)
        near.link.send([b"secret"])
        await asyncio.sleep(1)
        assert bytes(kept[0]) == b"\xdd" * 6
        far.link.pause()
        near.link.send([bytes(WINDOW_BYTES)])
        piece = bytearray(b"before")
        near.link.send([piece])
        assert near.link.unsent_bytes == 6
        piece[:] = b"after!"  # (not allowed while unsent: it shows)
        seen: list[bytes] = []
        far.link.resume()
        far.link._on_frame = lambda view: seen.append(bytes(view))  # type: ignore[attr-defined]
        await asyncio.sleep(1)
        assert seen[-1] == b"after!"

    play(main())


def test_a_frame_too_large_is_refused() -> None:
    async def main() -> None:
        _, _, near, far = await pair(SimNet(1))
        near.link.send([bytes(MAX_FRAME_BYTES)])
        with pytest.raises(ValueError, match="at most"):
            near.link.send([bytes(MAX_FRAME_BYTES), b"x"])
        await asyncio.sleep(1)
        assert [len(frame) for frame in far.frames] == [MAX_FRAME_BYTES]

    play(main())


def test_a_reader_that_pauses_holds_the_sender_back() -> None:
    async def main() -> None:
        _, _, near, far = await pair(SimNet(1))
        far.link.pause()
        frames = numbered(64, 16 << 10)
        for frame in frames:
            near.link.send([frame])
        await asyncio.sleep(5)
        assert far.frames == []
        assert near.link.unsent_bytes == (1 << 20) - WINDOW_BYTES
        far.link.resume()
        await near.link.drain(1000)
        assert near.link.unsent_bytes <= 1000
        await asyncio.sleep(1)
        assert far.frames == frames

    play(main())


def test_a_slow_path_has_its_bandwidth() -> None:
    async def main() -> None:
        net = SimNet(1)
        _, _, near, far = await pair(net)
        net.set_quality(A, B, Quality(bytes_per_s=100e3))
        loop = asyncio.get_running_loop()
        began = loop.time()
        for frame in numbered(100, 10_000):
            near.link.send([frame])
        assert near.link.unsent_bytes > 700_000
        await near.link.drain(0)
        await asyncio.sleep(5)
        assert 9.9 < far.times[-1] - began < 10.5
        far.link.send([b"fast back"])
        await asyncio.sleep(0.1)
        assert near.frames == [b"fast back"]

    play(main())


def test_closing_ends_both_and_what_was_sent_arrives_up_to_some_frame() -> None:
    arrived: dict[int, None] = {}

    async def main() -> None:
        _, _, near, far = await pair(SimNet(asyncio.get_running_loop().seed))  # type: ignore[attr-defined]
        for frame in numbered(20):
            near.link.send([frame])
        near.link.close()
        near.link.close()
        near.link.send([b"too late"])
        with pytest.raises(LinkClosed):
            await near.link.drain(0)
        await asyncio.sleep(1)
        assert len(near.closed) == len(far.closed) == 1
        assert is_prefix(far.frames, numbered(20))
        arrived[len(far.frames)] = None

    for seed in range(40):
        play(main(), seed)
    assert 20 in arrived and len(arrived) > 5


def test_links_that_the_network_breaks() -> None:
    async def main() -> None:
        net = SimNet(asyncio.get_running_loop().seed)  # type: ignore[attr-defined]
        one, other, near, far = await pair(net)
        for frame in numbered(20):
            near.link.send([frame])
            far.link.send([frame])
        await asyncio.sleep(0.0001)
        assert net.break_links(A, B) == 1
        await asyncio.sleep(1)
        assert near.closed and far.closed and not one.links and not other.links
        assert is_prefix(near.frames, numbered(20)) and is_prefix(far.frames, numbered(20))
        near, far = await link(one, other)
        near.link.send([b"new"])
        await asyncio.sleep(1)
        assert far.frames == [b"new"]

    for seed in range(10):
        play(main(), seed)


def test_a_one_way_partition_that_stalls_and_opens_again() -> None:
    async def main() -> None:
        net = SimNet(1)
        _, _, near, far = await pair(net)
        net.block(A, B)
        near.link.send([b"one"])
        far.link.send([b"back"])
        await asyncio.sleep(2)
        assert far.frames == [] and near.frames == [b"back"]
        near.link.send([b"two"])
        net.unblock(A, B)
        await asyncio.sleep(1)
        assert far.frames == [b"one", b"two"] and not near.closed and not far.closed

    play(main())


def test_a_one_way_partition_that_lasts_ends_links_at_both_ends() -> None:
    async def main() -> None:
        net = SimNet(1)
        one, other, near, far = await pair(net)
        net.block(A, B)
        near.link.send([b"one"])
        await asyncio.sleep(5.9)
        assert not near.closed and not far.closed
        await asyncio.sleep(4)
        assert near.closed and far.closed and far.frames == []
        with pytest.raises(LinkClosed, match="no answer in time"):
            await one.connect(Address(B, PORT), 1.0)
        for end in ((one, other), (other, one)):
            with pytest.raises(LinkClosed):
                bound = await end[1].listen(Address(end[1].host, 0), lambda link: None)
                await end[0].connect(bound, 1.0)

    play(main())


def test_frames_that_vanish_take_the_link_with_them() -> None:
    async def main() -> None:
        net = SimNet(1)
        _, _, near, far = await pair(net)
        near.link.send([b"zero"])
        await asyncio.sleep(1)
        net.block(A, B, Blocked.VANISH)
        near.link.send([b"one"])
        net.unblock(A, B)
        near.link.send([b"two"])
        await asyncio.sleep(20)
        assert far.frames == [b"zero"] and near.closed and far.closed

    play(main())


def test_a_connection_over_a_path_that_opens_in_time() -> None:
    async def main() -> None:
        net = SimNet(1)
        one, other = net.network(A, b"a" * 32), net.network(B, b"b" * 32)
        accepted: list[Link] = []
        bound = await other.listen(Address(B, PORT), accepted.append)
        net.block(A, B)
        asyncio.get_running_loop().call_later(2.0, net.unblock, A, B)
        await one.connect(bound, 5.0)
        assert len(accepted) == 1

    play(main())


def test_partitions_full_and_partial() -> None:
    net = SimNet(1)

    def blocked() -> str:
        names = {A: "A", B: "B", C: "C"}
        return " ".join(x + y for i, x in names.items() for j, y in names.items() if _is(i, j))

    def _is(i: str, j: str) -> bool:
        return net.is_blocked(i, j)

    async def main() -> None:
        net.partition([A], [B, C])
        assert blocked() == "AB AC BA CA"
        net.heal()
        assert blocked() == ""
        net.partition([A, B], [B, C])
        assert blocked() == "AC CA"

    play(main())


def test_nobody_there_and_nobody_home() -> None:
    async def main() -> None:
        net = SimNet(1)
        one, other = net.network(A, b"a" * 32), net.network(B, b"b" * 32)
        loop = asyncio.get_running_loop()
        for address, took, why in (
            (Address(B, 1), 0.1, "refused"),
            (Address("10.9.9.9", 1), 2.0, "no answer"),
        ):
            began = loop.time()
            with pytest.raises(LinkClosed, match=why):
                await one.connect(address, 2.0)
            assert loop.time() - began <= took
        bound = await other.listen(Address(B, PORT), lambda link: None)
        with pytest.raises(OSError, match="in use"):
            await other.listen(bound, lambda link: None)
        with pytest.raises(OSError, match="not an address"):
            await other.listen(Address(A, PORT), lambda link: None)
        net.set_quality(A, B, Quality(connect_failure_share=1.0))
        with pytest.raises(LinkClosed):
            await one.connect(bound, 2.0)
        net.heal()
        await one.connect(bound, 2.0)
        await other.close()
        await other.close()
        with pytest.raises(LinkClosed, match="refused"):
            await one.connect(bound, 2.0)

    play(main())


def test_a_killed_process_and_a_machine_without_power() -> None:
    async def main() -> None:
        net = SimNet(1)
        one, other, near, far = await pair(net)
        other.kill()
        await asyncio.sleep(0.1)
        assert near.closed and far.closed
        with pytest.raises(LinkClosed, match="refused"):
            await one.connect(Address(B, PORT), 2.0)
        other = net.network(B, b"b" * 32)
        near, far = await link(one, other)
        other.power_off()
        await asyncio.sleep(5)
        assert not near.closed and far.closed
        with pytest.raises(LinkClosed, match="no answer"):
            await one.connect(Address(B, PORT), 2.0)
        await asyncio.sleep(5)
        assert near.closed
        other = net.network(B, b"b" * 32)
        near, far = await link(one, other)
        other.power_off()
        other = net.network(B, b"b" * 32)
        await asyncio.sleep(1.1)
        assert "started again" in near.closed[0]
        with pytest.raises(LinkClosed):
            await far.link.drain(0)

    play(main())


def test_names_and_addresses() -> None:
    async def main() -> None:
        net = SimNet(1)
        one = net.network(A, b"a" * 32)
        net.name("store.example", [A, B])
        assert await one.resolve("store.example", 7) == [Address(A, 7), Address(B, 7)]
        assert await one.resolve(B, 7) == [Address(B, 7)]
        for name in ("other.example", "10.0.0"):
            with pytest.raises(OSError, match="no address"):
                await one.resolve(name, 7)

    play(main())


def test_a_paused_process_reads_nothing_and_goes_on_where_it_was() -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        assert isinstance(loop, SimLoop)
        net = SimNet(1)
        one = net.network(A, b"a" * 32)
        accepted: list[End] = []
        woke: list[float] = []

        async def process() -> None:
            other = net.network(B, b"b" * 32)
            await other.listen(Address(B, PORT), lambda link: accepted.append(End(link)))
            while True:
                await asyncio.sleep(1.0)
                woke.append(loop.time())

        token = OWNER.set("b")
        task = loop.create_task(process())
        OWNER.reset(token)
        await asyncio.sleep(0.5)
        near = End(await one.connect(Address(B, PORT), 2.0))
        near.link.send([b"before"])
        await asyncio.sleep(1.0)
        loop.pause("b")
        loop.pause("b")
        assert loop.is_paused("b")
        count = len(woke)
        for frame in numbered(40, 16 << 10):
            near.link.send([frame])
        with pytest.raises(LinkClosed, match="no answer"):
            await one.connect(Address(B, PORT), 2.0)
        await asyncio.sleep(20)
        assert len(woke) == count and len(accepted[0].frames) == 1
        assert near.link.unsent_bytes > 0 and not near.closed
        resumed = loop.time()
        loop.resume("b")
        loop.resume("b")
        await asyncio.sleep(1.5)
        assert accepted[0].frames[1:] == numbered(40, 16 << 10)
        assert woke[count] == resumed and len(accepted) == 1
        task.cancel()

    play(main())


def test_a_frame_that_its_reader_fails_over_ends_the_link() -> None:
    async def main() -> None:
        asyncio.get_running_loop().set_exception_handler(lambda loop, context: None)
        _, _, near, far = await pair(SimNet(1), begin=False)
        near.begin()

        def fails(view: memoryview) -> None:
            raise ValueError("strange")

        far.link.begin(fails, lambda error: far.closed.append(str(error)))
        near.link.send([b"one"])
        await asyncio.sleep(1)
        assert near.closed and far.closed

    play(main())


def test_one_seed_is_one_run() -> None:
    def trace(seed: int) -> list[tuple[float, bytes]]:
        seen: list[tuple[float, bytes]] = []

        async def main() -> None:
            net = SimNet(seed)
            _, _, near, far = await pair(net)
            for frame in numbered(50):
                near.link.send([frame])
                await asyncio.sleep(0.0001)
            net.break_links(A, B)
            await asyncio.sleep(1)
            seen.extend(zip(far.times, far.frames, strict=True))

        run(main(), seed)
        return seen

    assert trace(5) == trace(5) != trace(6)
