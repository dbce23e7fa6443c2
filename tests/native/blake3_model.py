"""BLAKE3 in plain Python, written from the paper (https://github.com/BLAKE3-team/BLAKE3-specs):
slow, and independent of the native module."""

from __future__ import annotations

import struct

IV = (
    0x6A09E667,
    0xBB67AE85,
    0x3C6EF372,
    0xA54FF53A,
    0x510E527F,
    0x9B05688C,
    0x1F83D9AB,
    0x5BE0CD19,
)
PERMUTATION = (2, 6, 3, 10, 7, 0, 4, 13, 1, 11, 12, 5, 9, 14, 15, 8)
CHUNK_START, CHUNK_END, PARENT, ROOT = 1, 2, 4, 8
MASK = 0xFFFFFFFF


def _rotate(word: int, bits: int) -> int:
    return (word >> bits | word << (32 - bits)) & MASK


def _mix(v: list[int], a: int, b: int, c: int, d: int, x: int, y: int) -> None:  # noqa: PLR0917
    v[a] = (v[a] + v[b] + x) & MASK
    v[d] = _rotate(v[d] ^ v[a], 16)
    v[c] = (v[c] + v[d]) & MASK
    v[b] = _rotate(v[b] ^ v[c], 12)
    v[a] = (v[a] + v[b] + y) & MASK
    v[d] = _rotate(v[d] ^ v[a], 8)
    v[c] = (v[c] + v[d]) & MASK
    v[b] = _rotate(v[b] ^ v[c], 7)


def _compress(chain, block: bytes, counter: int, flags: int) -> tuple[int, ...]:
    m = list(struct.unpack("<16I", block.ljust(64, b"\0")))
    v = [*chain, *IV[:4], counter & MASK, counter >> 32, len(block), flags]
    for _ in range(7):
        for i in range(4):
            _mix(v, i, 4 + i, 8 + i, 12 + i, m[2 * i], m[2 * i + 1])
        for i in range(4):
            j = 8 + 2 * i
            _mix(v, i, 4 + (i + 1) % 4, 8 + (i + 2) % 4, 12 + (i + 3) % 4, m[j], m[j + 1])
        m = [m[i] for i in PERMUTATION]
    return tuple(v[i] ^ v[i + 8] for i in range(8))


def _chunk(data: bytes, counter: int, root: bool) -> tuple[int, ...]:
    chain: tuple[int, ...] = IV
    blocks = [data[at : at + 64] for at in range(0, len(data), 64)] or [b""]
    for number, block in enumerate(blocks):
        flags = CHUNK_START if number == 0 else 0
        if number == len(blocks) - 1:
            flags |= CHUNK_END | (ROOT if root else 0)
        chain = _compress(chain, block, counter, flags)
    return chain


def _tree(data: bytes, counter: int, root: bool) -> tuple[int, ...]:
    if len(data) <= 1024:
        return _chunk(data, counter, root)
    left = 1024
    while left * 2 < len(data):
        left *= 2
    children = _tree(data[:left], counter, False) + _tree(
        data[left:], counter + left // 1024, False
    )
    return _compress(IV, struct.pack("<16I", *children), 0, PARENT | (ROOT if root else 0))


def blake3(data: bytes) -> bytes:
    """32 bytes."""
    return struct.pack("<8I", *_tree(data, 0, True))
