"""A body on its way to the other members: when it counts as durable, and when it cannot."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest

from o3storage.cluster import Unavailable
from o3storage.cluster._data import BEHIND_BYTES, MAX_WAITING_BYTES, Fanout, Sending
from o3storage.cluster._errors import ClusterError
from o3storage.raft.core import Configuration
from o3storage.simulation import run
from o3storage.storage import SealedFrame

THREE = Configuration(voters=(1, 2, 3))
FRAME = SealedFrame(b"s" * 16, 0, True, 4, b"d" * 20)


class Out:
    """One member's end: it holds the body, or fails."""

    def __init__(self, error: ClusterError | None) -> None:
        self.error = error

    async def write(self, _: Any, __: bool, *, head: bytes) -> None:
        assert head

    async def finish(self, _: float) -> bytes:
        if self.error is not None:
            raise self.error
        return b""

    def abort(self) -> None:
        return


class Node:
    """Node 1 and whom it reaches."""

    def __init__(self, up: tuple[int, ...], failing: tuple[int, ...] = ()) -> None:
        self.id = 1
        self.up = up
        self.failing = failing
        self.peers = self
        self.sending = Sending()
        self.tasks: list[asyncio.Task[None]] = []

    def is_up(self, node: int) -> bool:
        return node in self.up

    def keep(self, task: asyncio.Task[None]) -> None:
        self.tasks.append(task)

    async def open_stream(self, node: int, _: int, head: bytes, *, timeout_s: float) -> Out:
        assert timeout_s > 0 and head
        await asyncio.sleep(0.001 * node)
        return Out(ClusterError("its disk is full") if node in self.failing else None)


async def send(
    node: Node, began: Configuration, ends: Configuration | None = None
) -> Unavailable | None:
    """Why the body is not durable with a majority; None if it is."""
    team: Any = SimpleNamespace(group=1, core=SimpleNamespace(configuration=began))
    fanout = Fanout(  # type: ignore[arg-type]
        node, team.group, FRAME.stream, lambda: team.core.configuration
    )
    try:
        await fanout.write(FRAME)
        if ends is not None:
            team.core.configuration = ends
        await fanout.durable()
    except Unavailable as error:
        return error
    finally:
        await asyncio.gather(*node.tasks, return_exceptions=True)
    return None


@pytest.mark.parametrize(
    ("up", "failing", "held"),
    [
        ((2, 3), (), True),
        ((2, 3), (2,), True),
        ((2, 3), (3,), True),
        ((2,), (), True),
        ((2, 3), (2, 3), False),
        ((3,), (3,), False),
        ((), (), False),
    ],
)
def test_a_body_is_durable_with_a_majority_or_the_upload_fails(
    up: tuple[int, ...], failing: tuple[int, ...], held: bool
) -> None:
    refusal = run(send(Node(up, failing), THREE), 1)
    assert (refusal is None) is held
    if refusal is not None:
        assert not refusal.uncertain and "1 of 3 nodes" in refusal.reason


def test_the_members_at_the_start_are_enough_when_others_joined_meanwhile() -> None:
    one = Configuration(voters=(1,), learners=(2,))
    assert run(send(Node(()), one, THREE), 1) is None
    # But no fewer than these.
    refusal = run(send(Node(()), THREE, Configuration(voters=(1, 2, 3, 4, 5))), 1)
    assert refusal is not None


@pytest.mark.parametrize(("up", "taken"), [((), False), ((2,), False), ((2, 3), True)])
def test_a_stranger_is_told_at_once_that_no_majority_can_take_the_body(
    up: tuple[int, ...], taken: bool
) -> None:
    async def main() -> None:
        node: Any = Node(up)
        node.id = 4
        fanout = Fanout(node, 1, FRAME.stream, lambda: THREE, own=False)
        first = SealedFrame(FRAME.stream, 0, False, 4, FRAME.data)
        if taken:
            await fanout.write(first)
        else:
            with pytest.raises(Unavailable, match=f"only {len(up)} of 3 nodes can take") as refused:
                await fanout.write(first)
            assert not refused.value.uncertain
        fanout.abort()
        with pytest.raises(Unavailable):
            await fanout.write(FRAME)  # nor later, when they are lost
        await asyncio.gather(*node.tasks, return_exceptions=True)

    run(main(), 1)


class Stuck(Node):
    """Nothing goes on at member 3, and no link says so."""

    async def open_stream(self, node: int, kind: int, head: bytes, *, timeout_s: float) -> Out:
        if node == 3:
            await asyncio.sleep(1e6)
        return await super().open_stream(node, kind, head, timeout_s=timeout_s)


@pytest.mark.parametrize("uploads", [1, 100])
def test_what_waits_for_a_stuck_member_is_bounded_for_all_uploads_together(uploads: int) -> None:
    data = b"d" * ((256 << 10) + 16)

    async def upload(node: Any, number: int) -> None:
        stream = number.to_bytes(16, "big")
        fanout = Fanout(node, 1, stream, lambda: THREE)
        for at in range(24):  # 6 MiB: none of them alone is too much
            await fanout.write(SealedFrame(stream, at, at == 23, len(data) - 16, data))
            await asyncio.sleep(0.01)
        await fanout.durable()
        assert fanout.holders() == [1, 2]
        await asyncio.sleep(1)
        dropped[number] = not fanout._branches[3].open
        fanout.abort()

    dropped: dict[int, bool] = {}

    async def main() -> None:
        node: Any = Stuck((2, 3))
        work = [asyncio.ensure_future(upload(node, number)) for number in range(uploads)]
        most = 0
        while not all(task.done() for task in work):
            most = max(most, node.sending.bytes)
            await asyncio.sleep(0.001)
        await asyncio.gather(*work)
        assert most <= MAX_WAITING_BYTES + 2 * uploads * len(data)
        await asyncio.gather(*node.tasks, return_exceptions=True)
        assert (node.sending.bytes, node.sending.branches) == (0, 0)

    run(main(), 1)
    assert any(dropped.values()) is (uploads > 1)


def test_a_body_that_is_given_up_at_once_is_not_counted() -> None:
    async def main() -> None:
        node: Any = Node((2, 3))
        fanout = Fanout(node, 1, FRAME.stream, lambda: THREE)
        await fanout.write(FRAME)
        fanout.abort()  # before its tasks have begun
        assert (node.sending.bytes, node.sending.branches) == (0, 0)
        assert node.sending.most() == BEHIND_BYTES
        await asyncio.gather(*node.tasks, return_exceptions=True)
        assert (node.sending.bytes, node.sending.branches) == (0, 0)

    run(main(), 1)
