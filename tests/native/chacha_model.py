"""ChaCha20-Poly1305 in plain Python, written from RFC 8439: slow, and independent of the native
module."""

from __future__ import annotations

import struct

MASK = 0xFFFFFFFF
PRIME = (1 << 130) - 5
CLAMP = 0x0FFFFFFC0FFFFFFC0FFFFFFC0FFFFFFF


def _rotate(word: int, bits: int) -> int:
    return (word << bits | word >> (32 - bits)) & MASK


def _quarter(s: list[int], a: int, b: int, c: int, d: int) -> None:
    for first, second, third, bits in ((a, b, d, 16), (c, d, b, 12), (a, b, d, 8), (c, d, b, 7)):
        s[first] = (s[first] + s[second]) & MASK
        s[third] = _rotate(s[third] ^ s[first], bits)


def block(key: bytes, counter: int, nonce: bytes) -> bytes:
    """Section 2.3: 64 bytes of key stream."""
    start = [
        *struct.unpack("<4I", b"expand 32-byte k"),
        *struct.unpack("<8I", key),
        counter,
        *struct.unpack("<3I", nonce),
    ]
    state = list(start)
    for _ in range(10):
        for i in range(4):
            _quarter(state, i, 4 + i, 8 + i, 12 + i)
        for i in range(4):
            _quarter(state, i, 4 + (i + 1) % 4, 8 + (i + 2) % 4, 12 + (i + 3) % 4)
    return struct.pack("<16I", *((a + b) & MASK for a, b in zip(state, start, strict=True)))


def poly1305(key: bytes, message: bytes) -> bytes:
    """Section 2.5: the tag, 16 bytes."""
    r = int.from_bytes(key[:16], "little") & CLAMP
    total = 0
    for at in range(0, len(message), 16):
        total = (total + int.from_bytes(message[at : at + 16] + b"\1", "little")) * r % PRIME
    return ((total + int.from_bytes(key[16:], "little")) & (1 << 128) - 1).to_bytes(16, "little")


def _padded(data: bytes) -> bytes:
    return data + bytes(-len(data) % 16)


def seal(key: bytes, nonce: bytes, aad: bytes, plaintext: bytes) -> bytes:
    """Section 2.8: ciphertext and tag."""
    stream = b"".join(block(key, number + 1, nonce) for number in range(-(-len(plaintext) // 64)))
    ciphertext = bytes(a ^ b for a, b in zip(plaintext, stream, strict=False))
    sizes = struct.pack("<QQ", len(aad), len(ciphertext))
    return ciphertext + poly1305(
        block(key, 0, nonce)[:32], _padded(aad) + _padded(ciphertext) + sizes
    )
