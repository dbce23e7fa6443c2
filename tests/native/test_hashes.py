"""Hashes, checksums, HMAC and HKDF against the standards' vectors and other implementations."""

from __future__ import annotations

import hashlib
import hmac
import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from o3storage import _native
from tests.native import blake3_model

PATTERN = bytes(i % 251 for i in range(110_000))
"""The input of BLAKE3's official vectors."""

OFFICIAL_BLAKE3 = {
    0: "af1349b9f5f9a1a6a0404dea36dcc9499bcb25c9adc112b7cc9a93cae41f3262",
    1: "2d3adedff11b61f14c886e35afa036736dcd87a74d27b5c1510225d0f592e213",
    1023: "10108970eeda3eb932baac1428c7a2163b0e924c9a9e25b35bba72b28f70bd11",
    1024: "42214739f095a406f3fc83deb889744ac00df831c10daa55189b5d121c855af7",
    1025: "d00278ae47eb27b34faecf67b4fe263f82d5412916c1ffd97c8cb7fb814b8444",
    2048: "e776b6028c7cd22a4d0ba182a8bf62205d2ef576467e838ed6f2529b85fba24a",
    2049: "5f4d72f40d7a5f82b15ca2b2e44b1de3c2ef86c426c95c1af0b6879522563030",
    3072: "b98cb0ff3623be03326b373de6b9095218513e64f1ee2edd2525c7ad1e5cffd2",
    3073: "7124b49501012f81cc7f11ca069ec9226cecb8a2c850cfe644e327d22d3e1cd3",
    4096: "015094013f57a5277b59d8475c0501042c0b642e531b0a1c8f58d2163229e969",
    4097: "9b4052b38f1c5fc8b1f9ff7ac7b27cd242487b3d890d15c96a1c25b8aa0fb995",
    7169: "a003fc7a51754a9b3c7fae0367ab3d782dccf28855a03d435f8cfe74605e7817",
    102400: "bc3e3d41a1146b069abffad3c0d44860cf664390afce4d9661f7902e7943e085",
}


@pytest.mark.parametrize("size", OFFICIAL_BLAKE3)
def test_blake3_official_vectors(size: int) -> None:
    assert _native.blake3(PATTERN[:size]).hex() == OFFICIAL_BLAKE3[size]
    if size <= 8192:
        assert blake3_model.blake3(PATTERN[:size]).hex() == OFFICIAL_BLAKE3[size]


@pytest.mark.parametrize("size", [63, 64, 65, 127, 1000, 5121, 8193, 16385, 31744, 40000])
def test_blake3_against_plain_model(size: int) -> None:
    assert _native.blake3(PATTERN[:size]) == blake3_model.blake3(PATTERN[:size])


@given(st.lists(st.binary(max_size=3000), max_size=6))
def test_blake3_of_parts_is_that_of_the_whole(parts: list[bytes]) -> None:
    whole = _native.blake3(b"".join(parts))
    assert _native.blake3_parts(parts) == whole
    assert _native.blake3_job([bytearray(part) for part in parts]).run() == whole


@given(st.binary(max_size=20_000), st.integers(0, 64))
def test_hashes_against_the_standard_library(data: bytes, start: int) -> None:
    view = memoryview(data)[start:]
    assert _native.sha256(view) == hashlib.sha256(view).digest()
    assert _native.sha1(view) == hashlib.sha1(view).digest()
    assert _native.md5(view) == hashlib.md5(view).digest()
    assert _native.crc32(view) == zlib.crc32(view)


def test_crc_check_values() -> None:
    # The catalogue of parametrised CRC algorithms gives these for "123456789".
    assert _native.crc32(b"123456789") == 0xCBF43926
    assert _native.crc32c(b"123456789") == 0xE3069283
    assert _native.crc64nvme(b"123456789") == 0xAE8B14860A799888


def bitwise_crc(data: bytes, polynomial: int, bits: int) -> int:
    """A reflected CRC with all ones at start and end, bit by bit."""
    mask = (1 << bits) - 1
    crc = mask
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ (polynomial if crc & 1 else 0)
    return crc ^ mask


@given(st.binary(max_size=700))
def test_crc_against_bitwise_model(data: bytes) -> None:
    assert _native.crc32(data) == bitwise_crc(data, 0xEDB88320, 32)
    assert _native.crc32c(data) == bitwise_crc(data, 0x82F63B78, 32)
    assert _native.crc64nvme(data) == bitwise_crc(data, 0x9A6C9329AC4BC9B5, 64)


@given(st.binary(max_size=5000), st.binary(max_size=5000))
def test_crc_goes_on_and_combines(first: bytes, second: bytes) -> None:
    for crc, combine in (
        (_native.crc32, _native.crc32_combine),
        (_native.crc32c, _native.crc32c_combine),
        (_native.crc64nvme, _native.crc64nvme_combine),
    ):
        whole = crc(first + second)
        assert crc(second, crc(first)) == whole
        assert combine(crc(first), crc(second), len(second)) == whole


RFC_4231 = [
    (
        b"\x0b" * 20,
        b"Hi There",
        "b0344c61d8db38535ca8afceaf0bf12b881dc200c9833da726e9376c2e32cff7",
    ),
    (
        b"Jefe",
        b"what do ya want for nothing?",
        "5bdcc146bf60754e6a042426089575c75a003f089d2739839dec58b964ec3843",
    ),
    (
        b"\xaa" * 20,
        b"\xdd" * 50,
        "773ea91e36800e46854db8ebd09181a72959098b3ef8c122d9635514ced565fe",
    ),
    (
        bytes(range(1, 26)),
        b"\xcd" * 50,
        "82558a389a443c0ea4cc819899f2083a85f0faa3e578f8077a2e3ff46729665b",
    ),
    (
        b"\xaa" * 131,
        b"Test Using Larger Than Block-Size Key - Hash Key First",
        "60e431591ee0b67f0d8a26aacbf5b77f8e0bc6213728c5140546040f0ee37f54",
    ),
]


@pytest.mark.parametrize(("key", "message", "tag"), RFC_4231)
def test_hmac_rfc_4231(key: bytes, message: bytes, tag: str) -> None:
    assert _native.hmac_sha256(key, message).hex() == tag
    assert hmac.new(key, message, "sha256").hexdigest() == tag


RFC_5869 = [
    (
        b"\x0b" * 22,
        bytes(range(13)),
        bytes(range(0xF0, 0xFA)),
        "3cb25f25faacd57a90434f64d0362f2a2d2d0a90cf1a5a4c5db02d56ecc4c5bf34007208d5b887185865",
    ),
    (
        bytes(range(0x50)),
        bytes(range(0x60, 0xB0)),
        bytes(range(0xB0, 0x100)),
        "b11e398dc80327a1c8e7f78c596a49344f012eda2d4efad8a050cc4c19afa97c59045a99cac7827271cb41c6"
        "5e590e09da3275600c2f09b8367793a9aca3db71cc30c58179ec3e87c14c01d5c1f3434f1d87",
    ),
    (
        b"\x0b" * 22,
        b"",
        b"",
        "8da4e775a563c18f715f802a063c5a31b8a11f5c5ee1879ec3454e5f3c738d2d9d201395faa4b61a96c8",
    ),
]


@pytest.mark.parametrize(("secret", "salt", "info", "okm"), RFC_5869)
def test_hkdf_rfc_5869(secret: bytes, salt: bytes, info: bytes, okm: str) -> None:
    assert _native.hkdf_sha256(secret, salt, info, len(okm) // 2).hex() == okm


def test_hkdf_limit() -> None:
    assert len(_native.hkdf_sha256(b"s", b"", b"", 8160)) == 8160
    with pytest.raises(ValueError, match="8160"):
        _native.hkdf_sha256(b"s", b"", b"", 8161)


@given(st.binary(max_size=80), st.binary(max_size=80))
def test_compare_digest(a: bytes, b: bytes) -> None:
    assert _native.compare_digest(a, b) == (a == b)
    assert _native.compare_digest(a, bytearray(a))
    if a:
        for bit in (0, 7):
            changed = bytes((a[0] ^ 1 << bit,)) + a[1:]
            assert not _native.compare_digest(a, changed)


def test_only_contiguous_buffers_are_taken() -> None:
    with pytest.raises(BufferError):
        _native.sha256(memoryview(b"abcdef")[::2])
    with pytest.raises(TypeError):
        _native.sha256("text")  # type: ignore[arg-type]
