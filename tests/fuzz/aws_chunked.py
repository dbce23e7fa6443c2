"""Fuzz the aws-chunked decoder: signed and unsigned chunks, trailers, damage, random pieces.

    python -m tests.fuzz.aws_chunked [--seconds 60] [--seed 1]

Only S3Error may come out. A body as it was encoded gives its bytes. Under signatures nothing but
the signed bytes and trailers ever comes out to the end; without them a plain model decides.
"""

from __future__ import annotations

import random
import re
import sys

from o3storage.s3._chunked import MAX_LINE_BYTES, MAX_SIZE_DIGITS, MAX_TRAILERS
from o3storage.s3._errors import S3Error
from tests.fuzz._campaign import campaign, damage
from tests.s3.test_chunked import SEED, decode, plain_chunks, sign_chunks

Decoded = tuple[bytes, dict[str, str]]
TRAILERS = ("x-amz-checksum-crc32c", "x-amz-checksum-sha256", "x-amz-meta")
SIZE_LINE = re.compile(rb"[0-9A-Fa-f]{1,%d}\Z" % MAX_SIZE_DIGITS)


def model(data: bytes, length: int, declared: tuple[str, ...]) -> Decoded | None:
    """What an unsigned body of `length` decoded bytes says; None where it must be refused."""
    out = b""
    while True:
        line, end, data = data.partition(b"\r\n")
        if not end or not SIZE_LINE.match(line):
            return None
        size = int(line, 16)
        if size == 0:
            break
        out, rest = out + data[:size], data[size : size + 2]
        if len(out) > length or rest != b"\r\n":
            return None
        data = data[size + 2 :]
    trailers: dict[str, str] = {}
    while True:
        line, end, data = data.partition(b"\r\n")
        if not end or len(line) > MAX_LINE_BYTES:
            return None
        if not line:
            break
        name, colon, value = line.rstrip(b"\n").partition(b":")
        key = name.decode("latin-1").lower()
        if not colon or key in trailers or key not in declared or len(trailers) >= MAX_TRAILERS:
            return None
        trailers[key] = value.decode("latin-1").strip(" \t")
    if data or len(out) != length or len(trailers) != len(declared):
        return None
    return out, trailers


def step(rng: random.Random) -> str | None:
    chunks = [rng.randbytes(rng.choice([1, 2, 9, 100, 700])) for _ in range(rng.randrange(5))]
    names = TRAILERS[: rng.choice([0, 0, 1, 2, 3])]
    trailers = tuple((name, f"v{rng.randrange(99)}=") for name in names)
    signed = bool(rng.randrange(2))
    data = sign_chunks(chunks, trailers=trailers) if signed else plain_chunks(chunks, trailers)
    seed = SEED if signed else None
    length = sum(map(len, chunks))
    meant = (b"".join(chunks), dict(trailers))
    where = {"seed": seed, "declared": names}

    def feed(data: bytes, length: int) -> Decoded | None:
        pieces = {"step": rng.randrange(1, 300), "block": rng.randrange(1, 300)}
        try:
            return decode(data, length, **where, **pieces)  # type: ignore[arg-type]
        except S3Error:
            return None

    if feed(data, length) != meant:
        return f"{data!r} of {length}: not decoded as it was meant"
    for _ in range(rng.randrange(1, 4)):
        data = damage(rng, data)
    if not rng.randrange(5):
        length += rng.choice([-1, 1])
    found = feed(data, length)
    if signed:
        return None if found is None or found == meant else f"{data!r}: forged {found!r}"
    expected = model(data, length, names)
    if found != expected:
        return f"{data!r} of {length} with {names}: {found!r}, expected {expected!r}"
    return None


def main() -> int:
    return campaign(__doc__, step, "bodies")


if __name__ == "__main__":
    sys.exit(main())
