"""The aws-chunked coding: AWS's examples, every split of the input, every way to be wrong."""

from __future__ import annotations

import asyncio
import hashlib
import hmac

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from o3storage.s3._chunked import MAX_LINE_BYTES, ChunkedBody
from o3storage.s3._errors import S3Error
from o3storage.s3._sigv4 import ChunkSigner, signing_key
from tests.s3.support import SECRET, BytesBody

STAMP = "20130524T000000Z"
SCOPE = "20130524/us-east-1/s3/aws4_request"
KEY = signing_key(SECRET.encode(), "20130524", "us-east-1")
SEED = "4f232c4386841ef735655705268965c44a0e4690baa4adea153f7db9fa80a0a9"


def decode(
    data: bytes,
    length: int,
    *,
    seed: str | None = None,
    declared: tuple[str, ...] = (),
    step: int = 1 << 20,
    block: int = 1 << 20,
) -> tuple[bytes, dict[str, str]]:
    signer = None if seed is None else ChunkSigner(KEY, STAMP, SCOPE, seed)
    body = ChunkedBody(BytesBody(data, step), length, signer=signer, declared=declared)

    async def run() -> bytes:
        out = bytearray()
        view = memoryview(bytearray(block))
        while count := await body.read_into(view):
            out += view[:count]
        assert await body.read_into(view) == 0
        return bytes(out)

    return asyncio.run(run()), body.trailers


def test_a_slow_upload_owns_no_memory_before_its_first_byte() -> None:
    """`ready` waits for a byte of the content: heads of chunks are not content."""

    class Slow(BytesBody):
        async def ready(self) -> bool:
            waited.append(self.at)
            return self.at < len(self.data)

    waited: list[int] = []
    data = plain_chunks([b"hello"])
    body = ChunkedBody(Slow(data, step=3), 5)

    async def run() -> None:
        view = memoryview(bytearray(10))
        assert await body.ready()
        assert waited == [3]
        count = await body.read_into(view)
        while count < 5:
            assert await body.ready()
            count += await body.read_into(view[count:])
        assert view[:5] == b"hello"
        assert not body.ended
        assert not await body.ready()
        assert body.ended and not await body.ready()
        cut = ChunkedBody(Slow(b"5\r\n", step=3), 5)
        with pytest.raises(S3Error):
            await cut.ready()

    asyncio.run(run())


def refused(data: bytes, length: int, **kwargs: object) -> S3Error:
    with pytest.raises(S3Error) as caught:
        decode(data, length, **kwargs)  # type: ignore[arg-type]
    return caught.value


def sign_chunks(
    chunks: list[bytes], seed: str = SEED, trailers: tuple[tuple[str, str], ...] = ()
) -> bytes:
    """An independent encoder, from the documentation's text."""
    out = b""
    previous = seed

    def sign(text: str) -> str:
        return hmac.new(KEY, text.encode(), "sha256").hexdigest()

    empty = hashlib.sha256(b"").hexdigest()
    for chunk in [*chunks, b""]:
        digest = hashlib.sha256(chunk).hexdigest()
        previous = sign(
            f"AWS4-HMAC-SHA256-PAYLOAD\n{STAMP}\n{SCOPE}\n{previous}\n{empty}\n{digest}"
        )
        out += f"{len(chunk):x};chunk-signature={previous}\r\n".encode() + chunk
        out += b"\r\n" if chunk else b""
    if trailers:
        lines = "".join(f"{n}:{v}\n" for n, v in trailers)
        digest = hashlib.sha256(lines.encode()).hexdigest()
        previous = sign(f"AWS4-HMAC-SHA256-TRAILER\n{STAMP}\n{SCOPE}\n{previous}\n{digest}")
        out += b"".join(f"{n}:{v}\r\n".encode() for n, v in trailers)
        out += f"x-amz-trailer-signature:{previous}\r\n".encode()
    return out + b"\r\n"


def plain_chunks(chunks: list[bytes], trailers: tuple[tuple[str, str], ...] = ()) -> bytes:
    out = b"".join(f"{len(chunk):x}\r\n".encode() + chunk + b"\r\n" for chunk in chunks)
    return out + b"0\r\n" + b"".join(f"{n}:{v}\r\n".encode() for n, v in trailers) + b"\r\n"


@pytest.mark.s3(op=["PutObject", "UploadPart"], headers=["x-amz-decoded-content-length"])
def test_aws_example_of_signed_chunks() -> None:
    data = (
        b"10000;chunk-signature=ad80c730a21e5b8d04586a2213dd63b9a0e99e0e2307b0ade35a65485a288648\r\n"
        + b"a" * 65536
        + b"\r\n400;chunk-signature=0055627c9e194cb4542bae2aa5492e3c1575bbb81b612b7d234b86a503ef5497\r\n"
        + b"a" * 1024
        + b"\r\n0;chunk-signature=b6c6ea8a5354eaf15b3cb7646744f4275b71ea724fed81ceb9323e279d449df9\r\n\r\n"
    )
    assert len(data) == 66824
    assert decode(data, 66560, seed=SEED)[0] == b"a" * 66560


@pytest.mark.parametrize("ending", [b"\r\n", b"\n\r\n"])
@pytest.mark.s3(op="PutObject", headers=["x-amz-trailer", "x-amz-trailer-signature"])
def test_aws_example_of_signed_chunks_with_a_trailer(ending: bytes) -> None:
    data = (
        b"10000;chunk-signature=b474d8862b1487a5145d686f57f013e54db672cee1c953b3010fb58501ef5aa2\r\n"
        + b"a" * 65536
        + b"\r\n400;chunk-signature=1c1344b170168f8e65b41376b44b20fe354e373826ccbbe2c1d40a8cae51e5c7\r\n"
        + b"a" * 1024
        + b"\r\n0;chunk-signature=2ca2aba2005185cf7159c6277faf83795951dd77a3a99e6e65d5c9f85863f992\r\n"
        + b"x-amz-checksum-crc32c:sOO8/Q=="
        + ending
        + b"x-amz-trailer-signature:d81f82fc3505edab99d459891051a732e8730629a2e4a59689829ca17fe2e435\r\n\r\n"
    )
    seed = "106e2a8a18243abcf37539882f36619c00e2dfc72633413f02d3b74544bfeb8e"
    out, trailers = decode(data, 66560, seed=seed, declared=("x-amz-checksum-crc32c",))
    assert out == b"a" * 66560
    assert trailers == {"x-amz-checksum-crc32c": "sOO8/Q=="}


@settings(max_examples=300, deadline=None)
@given(
    chunks=st.lists(st.binary(min_size=1, max_size=600), max_size=6),
    signed=st.booleans(),
    trailer=st.booleans(),
    step=st.integers(1, 700),
    block=st.integers(1, 700),
)
def test_any_split_of_the_input_decodes_the_same(
    chunks: list[bytes], signed: bool, trailer: bool, step: int, block: int
) -> None:
    trailers = (("x-amz-checksum-sha1", "abc="),) if trailer else ()
    data = sign_chunks(chunks, trailers=trailers) if signed else plain_chunks(chunks, trailers)
    whole = b"".join(chunks)
    seed = SEED if signed else None
    declared = tuple(name for name, _ in trailers)
    out, got = decode(data, len(whole), seed=seed, declared=declared, step=step, block=block)
    assert out == whole
    assert got == dict(trailers)
    # Cut anywhere, it is never taken for whole.
    cut = data[: max(0, len(data) - step)]
    assert refused(cut, len(whole), seed=seed, declared=declared).status == 400
    # A byte more is never taken either.
    assert refused(data + b"x", len(whole), seed=seed, declared=declared).status == 400


@settings(max_examples=300, deadline=None)
@given(data=st.binary(max_size=300), length=st.integers(0, 100), signed=st.booleans())
def test_arbitrary_bytes_end_in_an_s3_error_or_in_exactly_the_declared_length(
    data: bytes, length: int, signed: bool
) -> None:
    try:
        out, _ = decode(data, length, seed=SEED if signed else None)
    except S3Error as error:
        assert error.status in (400, 403)
    else:
        assert len(out) == length


@settings(max_examples=200, deadline=None)
@given(
    chunks=st.lists(st.binary(min_size=1, max_size=60), min_size=1, max_size=4), at=st.integers(0)
)
def test_one_changed_byte_of_a_signed_body_is_never_accepted(chunks: list[bytes], at: int) -> None:
    data = bytearray(sign_chunks(chunks, trailers=(("x-amz-checksum-sha1", "abc="),)))
    whole = b"".join(chunks)
    data[at % len(data)] ^= 0x01
    try:
        out, trailers = decode(
            bytes(data), len(whole), seed=SEED, declared=("x-amz-checksum-sha1",)
        )
    except S3Error:
        return
    # Only the letter case of hexadecimal sizes and of trailer names can change unnoticed.
    assert (out, trailers) == (whole, {"x-amz-checksum-sha1": "abc="})


@pytest.mark.s3(op=["PutObject", "UploadPart"], errors=["SignatureDoesNotMatch"])
def test_chunk_signatures_are_chained() -> None:
    data = sign_chunks([b"first", b"other"])
    assert decode(data, 10, seed=SEED)[0] == b"firstother"
    head, middle, tail = data[:91], data[91:182], data[182:]
    assert head.endswith(b"first\r\n") and middle.endswith(b"other\r\n")
    swapped = middle + head + tail
    assert refused(swapped, 10, seed=SEED).code == "SignatureDoesNotMatch"
    assert refused(data, 10, seed="0" * 64).code == "SignatureDoesNotMatch"
    # Without the last chunk's signature the body could be cut short.
    assert refused(head + tail, 5, seed=SEED).code == "SignatureDoesNotMatch"


@pytest.mark.parametrize(
    ("data", "length", "declared", "code"),
    [
        (b"", 0, (), "IncompleteBody"),
        (b"5\r\nhel", 5, (), "IncompleteBody"),
        (b"5\r\nhello\r\n0\r\n\r\n", 6, (), "IncompleteBody"),
        (b"5\r\nhello\r\n0\r\n\r\n", 4, (), "InvalidRequest"),
        (b"5\r\nhelloX\r\n0\r\n\r\n", 5, (), "InvalidRequest"),
        (b"\r\n", 0, (), "InvalidRequest"),
        (b"-1\r\n", 0, (), "InvalidRequest"),
        (b"+5\r\nhello\r\n0\r\n\r\n", 5, (), "InvalidRequest"),
        (b"0x5\r\nhello\r\n0\r\n\r\n", 5, (), "InvalidRequest"),
        (b"5 \r\nhello\r\n0\r\n\r\n", 5, (), "InvalidRequest"),
        (b"5;a=b\r\nhello\r\n0\r\n\r\n", 5, (), "InvalidRequest"),
        (b"0" * 17 + b"\r\n\r\n", 0, (), "InvalidRequest"),
        (b"f" * 16 + b"\r\n", 5, (), "InvalidRequest"),
        (b"0\r\n\r\nmore", 0, (), "InvalidRequest"),
        (b"1" * (MAX_LINE_BYTES + 2), 5, (), "InvalidRequest"),
        (b"0\r\nx-amz-checksum-crc32:AAAAAA==\r\n\r\n", 0, (), "MalformedTrailerError"),
        (b"0\r\n\r\n", 0, ("x-amz-checksum-crc32",), "MalformedTrailerError"),
        (b"0\r\nno colon\r\n\r\n", 0, ("x-amz-checksum-crc32",), "MalformedTrailerError"),
        (
            b"0\r\nx-amz-checksum-crc32:A\r\nx-amz-checksum-crc32:B\r\n\r\n",
            0,
            ("x-amz-checksum-crc32",),
            "MalformedTrailerError",
        ),
        (
            b"0\r\nx-amz-meta-extra:A\r\nx-amz-checksum-crc32:B\r\n\r\n",
            0,
            ("x-amz-checksum-crc32",),
            "MalformedTrailerError",
        ),
    ],
)
@pytest.mark.s3(
    op=["PutObject", "UploadPart"],
    headers=["x-amz-trailer"],
    errors=["IncompleteBody", "InvalidRequest", "MalformedTrailerError"],
)
def test_malformed_chunked_bodies(
    data: bytes, length: int, declared: tuple[str, ...], code: str
) -> None:
    assert refused(data, length, declared=declared).code == code


def test_a_signed_trailer_needs_its_signature() -> None:
    whole = sign_chunks([b"x"], trailers=(("x-amz-checksum-sha1", "abc="),))
    declared = ("x-amz-checksum-sha1",)
    start = whole.index(b"x-amz-trailer-signature")
    assert refused(whole[:start] + b"\r\n", 1, seed=SEED, declared=declared).code == (
        "MalformedTrailerError"
    )
    forged = whole.replace(b"abc=", b"abd=")
    assert refused(forged, 1, seed=SEED, declared=declared).code == "SignatureDoesNotMatch"


def test_a_signed_body_with_an_unsigned_chunk_is_refused() -> None:
    assert refused(plain_chunks([b"hello"]), 5, seed=SEED).code == "InvalidRequest"
    short = sign_chunks([b"hello"]).replace(b"chunk-signature=", b"chunk-signature=0")
    assert refused(short, 5, seed=SEED).code == "InvalidRequest"
