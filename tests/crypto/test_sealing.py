"""Sealing of files and streams, and stream references."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from o3storage import _native
from o3storage._native import ChaChaKey, Digester
from o3storage.crypto import (
    FRAME_BYTES,
    STREAM_REF_BYTES,
    FileSealer,
    SealError,
    StreamRef,
    StreamSealer,
)

KEK, SALT, STREAM = bytes(range(32)), bytes(range(32, 64)), bytes(range(16))
STREAM_SEALER = StreamSealer(KEK, SALT, STREAM)


def test_file_sealer_is_what_the_design_says() -> None:
    sealer = FileSealer(KEK, SALT)
    key = ChaChaKey(_native.hkdf_sha256(KEK, SALT, b"o3storage/1 file"))
    sealed = sealer.seal(4096, b"header", b"record")
    assert sealed == key.seal((4096).to_bytes(12, "little"), b"header", b"record")
    assert sealer.unseal(4096, b"header", sealed) == b"record"
    out = bytearray(30)
    assert sealer.seal_into(4096, b"header", b"record", memoryview(out)) == len(sealed)
    assert out[: len(sealed)] == sealed
    assert sealer.seal_job(4096, b"header", b"record").run() == sealed
    assert sealer.unseal_job(4096, b"header", sealed).run() == b"record"


@pytest.mark.parametrize("change", ["offset", "aad", "salt", "key"])
def test_file_sealer_binds_place_header_file_and_disk(change: str) -> None:
    sealed = FileSealer(KEK, SALT).seal(1, b"h", b"record")
    reader = FileSealer(
        bytes(32) if change == "key" else KEK, bytes(32) if change == "salt" else SALT
    )
    with pytest.raises(SealError):
        reader.unseal(2 if change == "offset" else 1, b"x" if change == "aad" else b"h", sealed)


def test_stream_sealer_is_what_the_design_says() -> None:
    key = ChaChaKey(_native.hkdf_sha256(KEK, SALT, b"o3storage/1 stream"))
    aad = STREAM + struct.pack(">QIB", 7, 5, 1)
    assert STREAM_SEALER.seal_frame(7, b"frame", True) == key.seal(7, aad, b"frame")


@given(st.binary(max_size=300), st.integers(0, 2**40), st.booleans())
def test_every_way_to_seal_a_frame(plain: bytes, number: int, last: bool) -> None:
    sealed = STREAM_SEALER.seal_frame(number, plain, last)
    digester = Digester(md5=False)
    out = memoryview(bytearray(len(plain) + 16))
    assert STREAM_SEALER.seal_frame_into(number, plain, last, out, digester) == len(sealed)
    assert out == sealed
    assert digester.finish() == {"blake3": _native.blake3(plain)}
    hashed = STREAM_SEALER.seal_frame_hash_into(number, plain, last, out, prefix=b"head")
    assert hashed == _native.blake3(b"head" + sealed)
    assert STREAM_SEALER.seal_frame_job(number, plain, last).run() == sealed
    assert STREAM_SEALER.unseal_frame(number, sealed, last) == plain
    assert STREAM_SEALER.unseal_frame_job(number, sealed, last).run() == plain
    record = _native.blake3(b"header" + sealed) + b"header" + sealed
    assert STREAM_SEALER.open_record_job(number, record, 38, last).run() == plain
    with pytest.raises(SealError):
        STREAM_SEALER.open_record_job(number, record, 38, not last).run()
    with pytest.raises(SealError):
        STREAM_SEALER.open_record_job(number, record[: 38 + 15], 38, last)


def test_a_frame_stands_only_where_it_was_sealed() -> None:
    sealed = STREAM_SEALER.seal_frame(3, b"frame", False)
    for unseal in (
        lambda: STREAM_SEALER.unseal_frame(4, sealed, False),
        lambda: STREAM_SEALER.unseal_frame(3, sealed, True),
        lambda: STREAM_SEALER.unseal_frame(3, sealed[:-1], False),
        lambda: STREAM_SEALER.unseal_frame(3, b"short", False),
        lambda: STREAM_SEALER.unseal_frame_job(3, b"short", False),
        lambda: StreamSealer(KEK, SALT, bytes(16)).unseal_frame(3, sealed, False),
        lambda: StreamSealer(KEK, bytes(32), STREAM).unseal_frame(3, sealed, False),
        lambda: StreamSealer(bytes(32), SALT, STREAM).unseal_frame(3, sealed, False),
    ):
        with pytest.raises(SealError):
            unseal()


def test_a_full_frame() -> None:
    plain = bytes(FRAME_BYTES)
    sealed = STREAM_SEALER.seal_frame(0, plain, False)
    assert len(sealed) == FRAME_BYTES + 16
    assert STREAM_SEALER.unseal_frame(0, sealed, False) == plain


def test_sizes_are_checked() -> None:
    for make in (
        lambda: FileSealer(KEK[1:], SALT),
        lambda: FileSealer(KEK, SALT[1:]),
        lambda: StreamSealer(KEK[1:], SALT, STREAM),
        lambda: StreamSealer(KEK, SALT[1:], STREAM),
        lambda: StreamSealer(KEK, SALT, STREAM[1:]),
    ):
        with pytest.raises(ValueError, match="bytes"):
            make()


@given(
    st.binary(min_size=16, max_size=16),
    st.binary(min_size=32, max_size=32),
    st.integers(0, 2**32 - 1),
    st.integers(0, 2**64 - 1),
)
def test_stream_ref_packs(stream: bytes, salt: bytes, epoch: int, size: int) -> None:
    ref = StreamRef(stream, salt, epoch, size)
    packed = ref.pack()
    assert len(packed) == STREAM_REF_BYTES == 60
    assert packed == stream + salt + epoch.to_bytes(4, "big") + size.to_bytes(8, "big")
    assert StreamRef.unpack(packed) == ref
    with pytest.raises(ValueError, match="60 bytes"):
        StreamRef.unpack(packed[1:])
    sealed = ref.sealer(KEK).seal_frame(0, b"x", True)
    assert StreamSealer(KEK, salt, stream).unseal_frame(0, sealed, True) == b"x"
