"""Frames from the page cache to a socket in one job."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from o3storage import _native

KEY = _native.ChaChaKey(bytes(range(32)))
PREFIX = b"a header"
PREFIX_BYTES = 32 + len(PREFIX)


def record(number: int, plain: bytes) -> bytes:
    """BLAKE3, header, ciphertext and tag, as in a volume."""
    rest = PREFIX + KEY.seal(number, b"aad", plain)
    return _native.blake3(rest) + rest


class Volume:
    """Frames in a file, and a job over some of them."""

    def __init__(self, path: Path, plains: list[bytes]) -> None:
        self.places: list[tuple[int, int]] = []
        data = b""
        for number, plain in enumerate(plains):
            stored = record(number, plain)
            self.places.append((len(data), len(stored)))
            data += stored
        path.write_bytes(data)
        self.handle = _native.open_job(str(path), os.O_RDONLY).run()
        os.pread(self.handle.fileno(), len(data), 0)

    def send(self, to: socket.socket, wanted: list[tuple[int, int, int]]) -> tuple[int, bytes]:
        frames = [(n, b"aad", *self.places[n], low, high) for n, low, high in wanted]
        own = _native.dup_socket(to.fileno())
        return _native.send_records_job(KEY, self.handle, own, frames, PREFIX_BYTES).run()


def received(from_: socket.socket) -> bytes:
    from_.setblocking(False)
    data = b""
    while True:
        try:
            piece = from_.recv(1 << 20)
        except BlockingIOError:
            return data
        if not piece:
            return data
        data += piece


@settings(max_examples=100, deadline=None)
@given(st.data())
def test_what_is_taken_is_sent_or_handed_back(
    tmp_path_factory: object, data: st.DataObject
) -> None:
    sizes = data.draw(st.lists(st.integers(0, 60_000), min_size=1, max_size=6))
    plains = [bytes([65 + n]) * size for n, size in enumerate(sizes)]
    path = Path("/tmp") / f"send-{os.getpid()}"
    volume = Volume(path, plains)
    path.unlink()
    wanted = []
    for n, plain in enumerate(plains):
        low = data.draw(st.integers(0, len(plain)))
        wanted.append((n, low, data.draw(st.integers(low, len(plain)))))
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, data.draw(st.integers(1, 100_000)))
        ends = []
        whole = b""
        for n, low, high in wanted:
            whole += plains[n][low:high]
            ends.append(len(whole))
        taken, rest = volume.send(ours, wanted)
        assert taken in ends
        assert received(theirs) + rest == whole[:taken]
        if not rest:
            assert taken == len(whole)


@pytest.mark.parametrize("place", ["hash", "header", "ciphertext", "tag"])
def test_a_frame_that_does_not_hold_is_not_sent(tmp_path: Path, place: str) -> None:
    volume = Volume(tmp_path / "v", [b"a" * 1000, b"b" * 1000, b"c" * 1000])
    offset, size = volume.places[1]
    at = {"hash": 3, "header": 35, "ciphertext": 400, "tag": size - 1}[place] + offset
    with (tmp_path / "v").open("r+b") as file:
        file.seek(at)
        byte = file.read(1)[0]
        file.seek(at)
        file.write(bytes([byte ^ 4]))
    ours, theirs = socket.socketpair()
    with ours, theirs:
        assert volume.send(ours, [(n, 0, 1000) for n in range(3)]) == (1000, b"")
        assert volume.send(ours, [(1, 0, 1000)]) == (0, b"")
        assert received(theirs) == b"a" * 1000


def test_a_hash_that_is_right_does_not_make_up_for_a_seal(tmp_path: Path) -> None:
    volume = Volume(tmp_path / "v", [b"a" * 1000])
    ours, theirs = socket.socketpair()
    with ours, theirs:
        own = _native.dup_socket(ours.fileno())
        for number, aad in ((1, b"aad"), (0, b"other")):
            frame = (number, aad, *volume.places[0], 0, 1000)
            job = _native.send_records_job(KEY, volume.handle, own, [frame], PREFIX_BYTES)
            assert job.run() == (0, b"")
        assert received(theirs) == b""


def test_a_file_that_ends_early_and_a_client_that_is_gone(tmp_path: Path) -> None:
    volume = Volume(tmp_path / "v", [b"a" * 1000, b"b" * 1000])
    os.truncate(tmp_path / "v", volume.places[1][0] + 100)
    ours, theirs = socket.socketpair()
    with ours:
        assert volume.send(ours, [(0, 0, 10), (1, 0, 10)]) == (10, b"")
        theirs.close()
        with pytest.raises(BrokenPipeError):
            volume.send(ours, [(0, 0, 10)])


def test_sizes_that_are_no_frames_are_refused(tmp_path: Path) -> None:
    volume = Volume(tmp_path / "v", [b"a" * 1000])
    ours, theirs = socket.socketpair()
    with ours, theirs:
        own = _native.dup_socket(ours.fileno())
        for size, low, high in ((1 << 20 | 1, 0, 1), (1056, 5, 4), (1056, 0, 1001), (20, 0, 1)):
            with pytest.raises(ValueError, match="size"):
                _native.send_records_job(
                    KEY, volume.handle, own, [(0, b"aad", 0, size, low, high)], PREFIX_BYTES
                )
        with pytest.raises(ValueError, match="prefix"):
            _native.send_records_job(KEY, volume.handle, own, [], 31)
        with pytest.raises(ValueError, match="too many"):
            _native.send_records_job(
                KEY, volume.handle, own, [(0, b"", 0, 1056, 0, 1)] * 17, PREFIX_BYTES
            )
    with pytest.raises(OSError, match="descriptor"):
        _native.dup_socket(10**6)
