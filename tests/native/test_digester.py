"""The one-pass digester against one-shot hashes."""

from __future__ import annotations

import hashlib
import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from o3storage import _native

ALGORITHMS = ("md5", "sha1", "sha256", "crc32", "crc32c", "crc64nvme", "blake3")


def model(data: bytes) -> dict[str, bytes]:
    return {
        "md5": hashlib.md5(data).digest(),
        "sha1": hashlib.sha1(data).digest(),
        "sha256": hashlib.sha256(data).digest(),
        "crc32": zlib.crc32(data).to_bytes(4, "big"),
        "crc32c": _native.crc32c(data).to_bytes(4, "big"),
        "crc64nvme": _native.crc64nvme(data).to_bytes(8, "big"),
        "blake3": _native.blake3(data),
    }


@given(
    st.lists(st.binary(max_size=4000), max_size=8),
    st.sets(st.sampled_from(ALGORITHMS)),
)
def test_any_choice_over_any_pieces(pieces: list[bytes], chosen: set[str]) -> None:
    digester = _native.Digester(**{name: name in chosen for name in ALGORITHMS})
    for number, piece in enumerate(pieces):
        if number % 2:
            digester.update_job(memoryview(piece)).run()
        else:
            digester.update(piece)
    whole = b"".join(pieces)
    expected = {name: value for name, value in model(whole).items() if name in chosen}
    assert digester.finish() == expected
    assert digester.size_bytes == len(whole)


@pytest.mark.parametrize("size", [0, 1, 16 * 1024 - 1, 16 * 1024, 16 * 1024 + 1, 300_000])
def test_piece_borders(size: int) -> None:
    data = bytes(i * 7 & 0xFF for i in range(size))
    digester = _native.Digester(**dict.fromkeys(ALGORITHMS, True))
    digester.update(data)
    assert digester.finish() == model(data)


def test_defaults_are_the_etag_and_the_stored_hash() -> None:
    assert set(_native.Digester().finish()) == {"md5", "blake3"}


def test_finish_does_not_end_it_and_copies_part_ways() -> None:
    digester = _native.Digester(md5=True, blake3=False)
    digester.update(b"ab")
    other = digester.copy()
    assert digester.finish() == {"md5": hashlib.md5(b"ab").digest()}
    digester.update(b"c")
    other.update(b"d")
    assert digester.finish() == {"md5": hashlib.md5(b"abc").digest()}
    assert other.finish() == {"md5": hashlib.md5(b"abd").digest()}


def test_a_job_runs_once() -> None:
    job = _native.Digester().update_job(b"x")
    job.run()
    with pytest.raises(RuntimeError, match="already"):
        job.run()
