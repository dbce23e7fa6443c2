"""Links between nodes: made and kept; messages and calls on them. Who is refused:
`test_peers_refused.py`."""

from __future__ import annotations

import asyncio
import gc
from typing import Any

import pytest

from o3storage.cluster import _peers
from o3storage.cluster._peer_link import MAX_WAITING_BYTES
from o3storage.cluster._peer_types import (
    Code,
    PeerError,
    PeerLost,
    PeerUnreachable,
)
from o3storage.cluster._wire import Lane
from o3storage.raft import core as raft
from o3storage.runtime.network import Address
from o3storage.simulation import Quality, SimNet
from o3storage.storage import SealedFrame
from tests.cluster.peer_rig import (
    ECHO,
    FAIL,
    GUEST_ROLE,
    PORT,
    REFUSE,
    SLOW,
    Node,
    cluster,
    echo,
    heartbeat,
    host,
    key,
    open_links,
    play,
    until,
    whole,
)


def test_not_to_be_known_yet_is_no_warning_unless_it_lasts(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    said: list[str] = []

    class Heard:
        def info(self, event: str, **_: object) -> None:
            said.append(f"info {event}")

        def warning(self, event: str, **_: object) -> None:
            said.append(f"warning {event}")

    monkeypatch.setattr(_peers, "_log", Heard())

    async def main() -> None:
        net = SimNet(1)
        (one,) = await cluster(net, 1)
        guest = Node(net, 2, role=GUEST_ROLE)
        guest.cluster = one.cluster
        guest.peers.set_peers({1: (key(1), (Address(host(1), PORT),))})
        await asyncio.sleep(_peers.PASSES_WITHIN_S / 2)
        assert said == ["info peer.problem"]
        await asyncio.sleep(_peers.PASSES_WITHIN_S * 2)
        assert said == ["info peer.problem", "warning peer.problem"]

    play(main())


def test_every_pair_has_two_links_and_keeps_them() -> None:
    async def main() -> None:
        nodes = await cluster(SimNet(1), 3)
        await asyncio.sleep(20.0)
        for node in nodes:
            assert open_links(node) == 4
            assert sorted(node.seen) == [("up", n.id) for n in nodes if n is not node]

    play(main())


@pytest.mark.parametrize("seed", range(8))
def test_of_links_made_at_once_the_same_one_stays_on_both_sides(seed: int) -> None:
    async def main() -> None:
        net = SimNet(seed, quality=Quality(delay_s=0.002, jitter_s=0.008))
        # Without the politeness of the higher id both connect at the same instant.
        one, two = [await Node(net, n, yield_s=0.0).listen() for n in (1, 2)]
        one.knows(two)
        two.knows(one)
        await until(lambda: whole(one, 2) and whole(two, 2))
        await asyncio.sleep(10.0)
        assert open_links(one) == open_links(two) == 2
        for lane in (Lane.CONSENSUS, Lane.BULK):
            mine, its = one.links(2)[lane], two.links(1)[lane]
            assert mine.link.binding == its.link.binding
        # At most one was given up for the other; nobody connected again.
        for node in (one, two):
            assert [what for what, _ in node.seen] in (["up"], ["up", "down", "up"])
            assert node.peers._attempts <= 2
        # The lower id's stays, where it opened one.
        if one.peers._attempts == 2:
            assert all(link.outgoing for link in one.links(2))

    play(main(), seed)


def test_messages_arrive_in_order_with_their_frames_one_frame_a_turn() -> None:
    async def main() -> None:
        one, two, _ = await cluster(SimNet(1), 3)
        sealed = SealedFrame(b"s" * 16, 0, True, 4096, b"x" * 4112)
        before = one.peers.stats.frames_sent
        for index in range(1, 101):
            entry = raft.Entry(index, 1, raft.COMMAND, b"command %d" % index)
            append = raft.Append(1, 2, 1, index - 1, 1, [entry], 0)
            one.peers.send(2, index % 3, append, [sealed] if index % 2 else [])
        await until(lambda: len(two.heard) == 100)
        assert one.peers.stats.frames_sent - before == 1
        for at, (sender, group, message, frames) in enumerate(two.heard, 1):
            assert isinstance(message, raft.Append)
            assert (sender, group, message.entries[0].index) == (1, at % 3, at)
            assert frames == ([sealed] if at % 2 else [])

    play(main())


def test_a_message_larger_than_a_frame_comes_whole() -> None:
    async def main() -> None:
        one, two = await cluster(SimNet(1), 2)
        large = raft.Entry(1, 1, 0, bytes(range(256)) * (4 << 12))
        small = raft.Entry(2, 1, 0, b"small")
        one.peers.send(2, 1, heartbeat(1, 2))
        one.peers.send(2, 1, raft.Append(1, 2, 1, 0, 0, [large], 0))
        one.peers.send(2, 1, raft.Append(1, 2, 1, 1, 1, [small], 0))
        await until(lambda: len(two.heard) == 3)
        assert two.heard[1][2].entries == [large]  # type: ignore[attr-defined]
        assert two.heard[2][2].entries == [small]  # type: ignore[attr-defined]

    play(main())


def test_pieces_of_snapshots_have_the_bulk_link() -> None:
    async def main() -> None:
        net = SimNet(1)
        one, two = await cluster(net, 2)
        net.set_quality(host(1), host(2), Quality(bytes_per_s=4e6, spike_share=0.0))
        members = raft.Configuration((1, 2))
        for number in range(4):
            piece = raft.SnapshotPiece(1, 2, 1, 9, 1, members, number, bytes(256 << 10), False)
            one.peers.send(2, 1, piece)
        one.peers.send(2, 1, heartbeat(1, 2))
        await until(lambda: len(two.heard) == 1, 0.05)
        assert isinstance(two.heard[0][2], raft.Heartbeat)
        await until(lambda: len(two.heard) == 5)
        numbers = [message.number for _, _, message, _ in two.heard[1:]]  # type: ignore[attr-defined]
        assert numbers == [0, 1, 2, 3]
        one.links(2)[Lane.BULK].close("for the test")
        one.peers.send(2, 1, piece)
        assert one.peers.stats.messages_dropped == 1

    play(main())


def test_too_many_frames_ride_in_part() -> None:
    async def main() -> None:
        one, two = await cluster(SimNet(1), 2)
        frames = [SealedFrame(b"s" * 16, n, False, 262144, b"x" * 262160) for n in range(40)]
        one.peers.send(2, 1, raft.Append(1, 2, 1, 0, 0, [], 0), frames)
        await until(lambda: len(two.heard) == 1)
        assert two.heard[0][3] == frames[:31]

    play(main())


def test_what_is_too_much_is_dropped_but_heartbeats_go() -> None:
    async def main() -> None:
        net = SimNet(1)
        one, two = await cluster(net, 2, max_unsent_bytes=2 << 20)
        net.set_quality(host(1), host(2), Quality(bytes_per_s=1e6))
        body = bytes(1 << 20)
        for index in range(1, 9):
            append = raft.Append(1, 2, 1, index - 1, 1, [raft.Entry(index, 1, 0, body)], 0)
            one.peers.send(2, 1, append)
        one.peers.send(2, 1, heartbeat(1, 2))
        assert one.peers.stats.messages_dropped >= 5
        link = one.links(2)[Lane.CONSENSUS]
        assert link.unsent_bytes < (4 << 20)
        with pytest.raises(PeerUnreachable, match="too much"):
            await one.peers.call(2, ECHO, b"", timeout_s=1.0)
        await until(lambda: bool(two.heard) and isinstance(two.heard[-1][2], raft.Heartbeat))

    play(main())


def test_what_waits_for_all_peers_is_bounded_too() -> None:
    async def main() -> None:
        net = SimNet(1)
        nodes = await cluster(net, 5, max_unsent_all_bytes=4 << 20)
        one = nodes[0]
        for node in nodes[1:]:
            net.set_quality(host(1), host(node.id), Quality(bytes_per_s=1e5))
        body = bytes(1 << 20)
        for node in (2, 3, 4, 5):
            for index in (1, 2, 3):
                entry = raft.Entry(index, 1, 0, body)
                one.peers.send(node, 1, raft.Append(1, node, 1, index - 1, 1, [entry], 0))
        assert sum(one.links(n)[0].unsent_bytes for n in (2, 3, 4, 5)) < (7 << 20)
        assert one.peers.stats.messages_dropped >= 2

    play(main())


def test_calls() -> None:
    async def main() -> None:
        one, two, three = await cluster(SimNet(1), 3)

        async def fail(node: int, payload: memoryview) -> bytes:
            raise RuntimeError("a defect")

        async def refuse(node: int, payload: memoryview) -> bytes:
            raise PeerError(77, f"not for node {node}")

        two.peers.serve(ECHO, echo)
        two.peers.serve(FAIL, fail)
        two.peers.serve(REFUSE, refuse)
        for lane in (Lane.CONSENSUS, Lane.BULK):
            big = bytes(range(256)) * 12_000
            assert await one.peers.call(2, ECHO, b"hello", timeout_s=1.0, lane=lane) == b"hello"
            assert await one.peers.call(2, ECHO, memoryview(big), timeout_s=5.0, lane=lane) == big
        many = [one.peers.call(2, ECHO, b"%d" % n, timeout_s=1.0) for n in range(100)]
        assert await asyncio.gather(*many) == [b"%d" % n for n in range(100)]
        for kind, code, why in (
            (FAIL, Code.FAILED, "failed at the other node"),
            (REFUSE, 77, "not for node 1"),
            (99, Code.UNKNOWN_KIND, "serves no call 99"),
        ):
            with pytest.raises(PeerError, match=why) as caught:
                await one.peers.call(2, kind, b"", timeout_s=1.0)
            assert caught.value.code == code
        with pytest.raises(ValueError):
            await one.peers.call(2, ECHO, bytes(5 << 20), timeout_s=1.0)
        with pytest.raises(PeerUnreachable):
            await one.peers.call(9, ECHO, b"", timeout_s=1.0)
        assert whole(three, 3)

    play(main())


def test_large_answers_wait_for_room() -> None:
    async def main() -> None:
        net = SimNet(1)
        one, two = await cluster(net, 2)
        net.set_quality(host(2), host(1), Quality(bytes_per_s=4e6))

        async def large(node: int, payload: memoryview) -> bytes:
            return bytes(1 << 20)

        two.peers.serve(SLOW, large)
        link = two.links(1)[Lane.BULK]
        calls = [
            asyncio.ensure_future(one.peers.call(2, SLOW, b"", timeout_s=60.0, lane=Lane.BULK))
            for _ in range(70)
        ]
        most = 0
        while not all(call.done() for call in calls):
            most = max(most, link.unsent_bytes)
            await asyncio.sleep(0.01)
        assert most < 3 << 20
        busy = [call for call in calls if call.exception()]
        assert len(busy) == 6
        for call in busy:
            error = call.exception()
            assert isinstance(error, PeerError) and error.code == Code.BUSY
        assert one.seen == [("up", 2)] and two.peers.served_bytes == 0

    play(main())


def test_what_waits_of_large_answers_is_bounded() -> None:
    """Those to calls of 1 MiB that a peer does not take were kept as many as it may ask: 4 GiB."""

    async def main() -> None:
        net = SimNet(1)
        one, two = await cluster(net, 2)
        net.set_quality(host(2), host(1), Quality(bytes_per_s=8e6))

        async def large(node: int, payload: memoryview) -> bytes:
            return bytes(1 << 20)

        two.peers.serve(SLOW, large)
        calls = [
            asyncio.ensure_future(one.peers.call(2, SLOW, b"", timeout_s=60.0)) for _ in range(200)
        ]
        most = 0
        while not all(call.done() for call in calls):
            most = max(most, two.peers.waiting_bytes)
            await asyncio.sleep(0.01)
        assert most == MAX_WAITING_BYTES and two.peers.waiting_bytes == 0
        failed = [call.exception() for call in calls if call.exception()]
        assert 100 <= len(failed) <= 136
        for error in failed:
            assert isinstance(error, PeerError) and error.code == Code.FAILED
        assert await one.peers.call(2, SLOW, b"", timeout_s=60.0) == bytes(1 << 20)
        assert one.seen == [("up", 2)]

    play(main())


def test_what_calls_bring_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_peers, "MAX_SERVED_BYTES", 3 << 20)

    async def main() -> None:
        one, two = await cluster(SimNet(1), 2)
        go = asyncio.Event()

        async def wait(node: int, payload: memoryview) -> bytes:
            await go.wait()
            return b"done"

        two.peers.serve(SLOW, wait)
        calls = [
            asyncio.ensure_future(one.peers.call(2, SLOW, bytes(1 << 20), timeout_s=60.0))
            for _ in range(5)
        ]
        await until(lambda: sum(call.done() for call in calls) == 2)
        assert two.peers.served_bytes == 3 << 20
        go.set()
        answers = await asyncio.gather(*calls, return_exceptions=True)
        assert answers.count(b"done") == 3 and two.peers.served_bytes == 0

    play(main())


def test_a_call_without_an_answer_is_uncertain() -> None:
    async def main() -> None:
        net = SimNet(1)
        one, two = await cluster(net, 2)
        ended: list[str] = []

        async def slow(node: int, payload: memoryview) -> bytes:
            await asyncio.sleep(5.0)
            ended.append("served")
            return b""

        two.peers.serve(SLOW, slow)
        with pytest.raises(PeerLost, match="within 1 s") as lost:
            await one.peers.call(2, SLOW, b"", timeout_s=1.0)
        assert lost.value.uncertain
        call = asyncio.ensure_future(one.peers.call(2, SLOW, b"", timeout_s=60.0))
        await asyncio.sleep(1.0)
        net.break_links(host(1), host(2))
        with pytest.raises(PeerLost, match="lost"):
            await call
        assert one.seen[-1] == ("down", 2)
        with pytest.raises(PeerUnreachable) as nothing:
            await one.peers.call(2, SLOW, b"", timeout_s=1.0)
        assert not nothing.value.uncertain
        # What was begun is finished, though nobody waits for it.
        await until(lambda: len(ended) == 2)
        await until(lambda: whole(one, 2) and whole(two, 2))

    play(main())


def test_a_node_that_dies_comes_back() -> None:
    async def main() -> None:
        net = SimNet(1)
        one, two, three = await cluster(net, 3)
        two.kill()
        await until(lambda: not one.peers.is_up(2) and not three.peers.is_up(2))
        one.peers.send(2, 1, heartbeat(1, 2))
        assert one.peers.stats.messages_dropped == 1
        again = await Node(net, 2, session=201).listen()
        again.knows(one, three)
        await until(lambda: whole(one, 3) and whole(three, 3) and whole(again, 3))
        one.peers.send(2, 1, heartbeat(1, 2))
        await until(lambda: len(again.heard) == 1)
        assert one.peers.stats.duplicates == 0

    play(main())


def test_a_machine_that_vanishes_is_given_up_and_found_again() -> None:
    async def main() -> None:
        net = SimNet(1, keep_alive_s=600.0)
        one, two, three = await cluster(net, 3)
        two.network.power_off()
        await until(lambda: not one.peers.is_up(2) and not three.peers.is_up(2), 4.0)
        again = await Node(net, 2, session=201).listen()
        again.knows(one, three)
        await until(lambda: whole(one, 3) and whole(again, 3), 5.0)

    play(main())


def test_a_path_blocked_one_way_is_noticed_by_both() -> None:
    async def main() -> None:
        net = SimNet(1, keep_alive_s=600.0)
        one, two = await cluster(net, 2)
        net.block(host(1), host(2))
        await until(lambda: not two.peers.is_up(1), 4.0)
        await until(lambda: not one.peers.is_up(2), 4.0)
        net.heal()
        await until(lambda: whole(one, 2) and whole(two, 2), 10.0)

    play(main())


def test_links_live_while_nothing_is_said_and_over_a_long_stall_of_this_process() -> None:
    async def main() -> None:
        one, two = await cluster(SimNet(1), 2)
        await asyncio.sleep(60.0)
        assert one.seen == [("up", 2)] and two.seen == [("up", 1)]
        # As if this process had been stopped: its clock went on, what came waits unread.
        one.peers._ticked_s -= 30.0
        for link in one.peers._links:
            link.heard_s -= 30.0
            link.heard = False
        one.peers._tick()
        await asyncio.sleep(5.0)
        assert one.seen == [("up", 2)]

    play(main())


def test_every_address_is_tried_and_none_answered_by_another_node() -> None:
    async def main() -> None:
        net = SimNet(1)
        one, two, three = [await Node(net, n).listen() for n in (1, 2, 3)]
        places = (Address(host(9), PORT), Address(host(3), PORT), Address(host(2), PORT))
        one.peers.set_peers({2: (key(2), places)})
        await until(lambda: one.peers.is_up(2), 30.0)
        assert "another key" in one.peers.problems[f"{host(3)}:{PORT}"]
        assert not three.peers.status()
        assert two.peers.is_up(1)

    play(main())


def test_closing_ends_everything() -> None:
    async def main() -> None:
        one, two = await cluster(SimNet(1), 2)

        async def never(node: int, payload: memoryview) -> bytes:
            await asyncio.get_running_loop().create_future()
            return b""

        two.peers.serve(SLOW, never)
        call = asyncio.ensure_future(one.peers.call(2, SLOW, b"", timeout_s=600.0))
        await asyncio.sleep(1.0)
        await two.peers.close()
        await two.peers.close()
        with pytest.raises(PeerLost):
            await call
        await one.peers.close()
        with pytest.raises(PeerUnreachable):
            await one.peers.call(2, SLOW, b"", timeout_s=1.0)
        one.knows(two)
        await asyncio.sleep(10.0)
        assert open_links(one) == open_links(two) == 0
        me = asyncio.current_task()
        assert [task for task in asyncio.all_tasks() if task is not me] == []

    play(main())
    gc.collect()


def test_one_seed_is_one_run() -> None:
    async def main() -> list[Any]:
        net = SimNet(3)
        nodes = await cluster(net, 3)
        trace: list[Any] = []
        for node in nodes:
            node.peers.on_message = lambda *what: trace.append(
                (asyncio.get_running_loop().time(), what[:3])
            )
        for step in range(50):
            for node in nodes:
                for other in nodes:
                    if other is not node:
                        node.peers.send(other.id, step, heartbeat(node.id, other.id, step))
            if step == 20:
                net.break_links(host(1), host(3))
            await asyncio.sleep(0.05)
        return [trace, [node.seen for node in nodes], net.frames]

    assert play(main(), 3) == play(main(), 3)
