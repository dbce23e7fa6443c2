"""Bodies that go from the page cache to a socket: the same bytes as those that are read."""

from __future__ import annotations

import os
import random
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from o3storage._native import dup_socket
from o3storage.cluster import BodyDamaged, _bodies
from o3storage.cluster._direct import REST_BYTES
from o3storage.crypto import FRAME_BYTES, StreamRef
from o3storage.storage._frames import frame_place
from tests.s3.test_real_node import RealStore

SIZE = 9 * FRAME_BYTES + 77


class Body:
    """One object of SIZE bytes in a store on a real disk."""

    def __init__(self, path: Path) -> None:
        self.store = RealStore(path)
        self.data = random.Random(1).randbytes(SIZE)
        self.store.put("/bucket")
        self.store.put("/bucket/key", self.data)
        self.ref = StreamRef.unpack(self.store.node.submitted[-1].body)  # type: ignore[attr-defined]
        self.kept = 0
        """The most that a sender had to keep for a client that takes nothing, in bytes."""
        self.store.runner.run(self.read())  # into the page cache

    async def read(self, offset: int = 0, length: int = SIZE) -> bytes:
        pieces = self.store.node.read_stream(self.ref, offset, length)
        return b"".join([bytes(piece) async for piece in pieces])

    async def sent(self, offset: int, length: int, misses: random.Random) -> tuple[bytes, int]:
        """(bytes that came, those of them that jobs sent)"""
        self.kept = 0
        ours, theirs = socket.socketpair()
        theirs.setblocking(False)
        came = bytearray()
        direct = 0

        def drain() -> None:
            while True:
                try:
                    came.extend(theirs.recv(1 << 20))
                except BlockingIOError:
                    return

        with ours, theirs:
            own = dup_socket(ours.fileno())
            async for piece in self.store.node.send_stream(self.ref, offset, length):
                if isinstance(piece, bytes | bytearray | memoryview):
                    self.kept = max(self.kept, len(piece))
                    came.extend(piece)
                    continue
                at = 0
                while at < len(piece):
                    if misses.random() < 0.2:
                        break
                    taken, rest = await piece.send(own, at)
                    drain()
                    came.extend(rest)
                    if not taken:
                        break
                    at += taken
                    self.kept = max(self.kept, len(rest))
                    direct += taken - len(rest)
                if at < len(piece):
                    async for part in piece.read(at):
                        came.extend(part)
        return bytes(came), direct


@pytest.fixture
def body(tmp_path: Path) -> Iterator[Body]:
    made = Body(tmp_path)
    yield made
    made.store.close()


def test_the_same_bytes_of_any_range(body: Body) -> None:
    dice = random.Random(2)
    ranges = [(0, SIZE), (SIZE - 1, 1), (SIZE, 1), (5, 0), (FRAME_BYTES - 1, FRAME_BYTES + 2)]
    ranges += [(dice.randrange(SIZE), dice.randrange(1, SIZE)) for _ in range(40)]
    total = 0
    for offset, length in ranges:
        came, direct = body.store.runner.run(body.sent(offset, length, dice))
        assert came == body.data[offset : offset + length]
        total += direct
    assert total  # or nothing of this was tested


def test_a_volume_that_is_closed_between_two_sendings_is_read_on(body: Body) -> None:
    async def main() -> tuple[bytes, int]:
        files = body.store._disk_store._frames.core
        ours, theirs = socket.socketpair()
        came, missed = bytearray(), 0
        with ours, theirs:
            theirs.setblocking(False)
            async for piece in body.store.node.send_stream(body.ref, 0, SIZE):
                if isinstance(piece, bytes | bytearray | memoryview):
                    came.extend(piece)
                    continue
                at = 0
                while at < len(piece):
                    taken, rest = await piece.send(dup_socket(ours.fileno()), at)
                    if not taken:
                        missed += 1
                        async for part in piece.read(at):
                            came.extend(part)
                        break
                    came.extend(theirs.recv(1 << 20) if taken > len(rest) else b"")
                    came.extend(rest)
                    at += taken
                    await files.close_files()
        return bytes(came), missed

    came, missed = body.store.runner.run(main())
    assert came == body.data
    assert missed


def test_of_many_bodies_none_keeps_much_for_a_slow_client(
    body: Body, monkeypatch: pytest.MonkeyPatch
) -> None:
    dice = random.Random(3)
    never = random.Random(1)
    never.random = lambda: 1.0  # type: ignore[method-assign]
    assert body.store.runner.run(body.sent(0, SIZE, never))[0] == body.data
    assert body.kept == FRAME_BYTES
    monkeypatch.setattr(_bodies, "CROWDED_BODIES", 0)
    came, direct = body.store.runner.run(body.sent(0, SIZE, never))
    assert came == body.data
    assert 0 < body.kept <= REST_BYTES and direct > SIZE // 2
    for _ in range(40):
        offset, length = dice.randrange(SIZE), dice.randrange(1, SIZE)
        wanted = body.data[offset : offset + length]
        assert body.store.runner.run(body.sent(offset, length, dice))[0] == wanted
        assert body.store.runner.run(body.read(offset, length)) == wanted


def test_a_flipped_bit_is_never_sent(body: Body, tmp_path: Path) -> None:
    frame = 6

    async def last_byte() -> tuple[str, int]:
        frames = body.store._disk_store._frames
        run, first = await frames.find(body.ref.stream, frame)
        offset, size = frame_place(run, frame - first)
        return frames.core.volumes[run.volume].file.path, offset + size - 1

    path, at = body.store.runner.run(last_byte())
    with (tmp_path / path).open("r+b") as file:
        byte = os.pread(file.fileno(), 1, at)[0]
        os.pwrite(file.fileno(), bytes([byte ^ 1]), at)

    async def read() -> Any:
        got = []
        with pytest.raises(BodyDamaged):
            async for piece in body.store.node.send_stream(body.ref, 0, SIZE):
                if isinstance(piece, bytes | bytearray | memoryview):
                    got.append(bytes(piece))
                    continue
                ours, theirs = socket.socketpair()
                with ours, theirs:
                    at = 0
                    while at < len(piece):
                        taken, rest = await piece.send(dup_socket(ours.fileno()), at)
                        if not taken:
                            break
                        theirs.setblocking(False)
                        got.append(theirs.recv(1 << 20) if taken > len(rest) else b"")
                        got.append(rest)
                        at += taken
                if at < len(piece):
                    async for part in piece.read(at):
                        got.append(bytes(part))
        return b"".join(got)

    assert body.store.runner.run(read()) == body.data[: frame * FRAME_BYTES]
