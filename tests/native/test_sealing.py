"""ChaCha20-Poly1305: the RFC's vector, every form of the call, every kind of tampering."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from o3storage import _native
from o3storage._native import ChaChaKey, Digester, SealError
from tests.native import blake3_model, chacha_model

RFC_KEY = bytes(range(0x80, 0xA0))
RFC_NONCE = bytes.fromhex("070000004041424344454647")
RFC_AAD = bytes.fromhex("50515253c0c1c2c3c4c5c6c7")
RFC_PLAIN = (
    b"Ladies and Gentlemen of the class of '99: If I could offer you only one tip for the "
    b"future, sunscreen would be it."
)
RFC_SEALED = bytes.fromhex(
    "d31a8d34648e60db7b86afbc53ef7ec2a4aded51296e08fea9e2b5a736ee62d6"
    "3dbea45e8ca9671282fafb69da92728b1a71de0a9e060b2905d6a5b67ecd3b36"
    "92ddbd7f2d778b8c9803aee328091b58fab324e4fad675945585808b4831d7bc"
    "3ff4def08e4b7a9de576d26586cec64b61161ae10b594f09e26a7e902ecbd0600691"
)

KEY = ChaChaKey(bytes(range(32)))
SIZES = [0, 1, 15, 16, 63, 64, 65, 4096, 8 * 1024 - 16, 8 * 1024, 256 * 1024]


def test_rfc_8439_section_2_8_2() -> None:
    key = ChaChaKey(RFC_KEY)
    assert key.seal(RFC_NONCE, RFC_AAD, RFC_PLAIN) == RFC_SEALED
    assert chacha_model.seal(RFC_KEY, RFC_NONCE, RFC_AAD, RFC_PLAIN) == RFC_SEALED
    assert key.unseal(RFC_NONCE, RFC_AAD, RFC_SEALED) == RFC_PLAIN


@settings(max_examples=60, deadline=None)
@given(
    st.binary(min_size=32, max_size=32),
    st.binary(min_size=12, max_size=12),
    st.binary(max_size=70),
    st.binary(max_size=700),
)
def test_against_plain_model(key: bytes, nonce: bytes, aad: bytes, plain: bytes) -> None:
    sealed = chacha_model.seal(key, nonce, aad, plain)
    assert ChaChaKey(key).seal(nonce, aad, plain) == sealed
    assert ChaChaKey(key).seal_job(nonce, aad, plain).run() == sealed
    assert ChaChaKey(key).unseal_job(nonce, aad, sealed).run() == plain


def test_int_nonce_is_little_endian_in_twelve_bytes() -> None:
    number = 0x0102030405060708
    sealed = KEY.seal(number, b"", b"text")
    assert sealed == KEY.seal(number.to_bytes(12, "little"), b"", b"text")
    with pytest.raises(OverflowError):
        KEY.seal(2**64, b"", b"")
    with pytest.raises(OverflowError):
        KEY.seal(-1, b"", b"")
    with pytest.raises(ValueError, match="12 bytes"):
        KEY.seal(b"short", b"", b"")


@pytest.mark.parametrize("size", SIZES)
def test_every_form_gives_the_same_bytes(size: int) -> None:
    plain = bytes(i * 31 & 0xFF for i in range(size))
    sealed = KEY.seal(7, b"aad", plain)
    assert len(sealed) == size + _native.TAG_BYTES
    whole = {"blake3": _native.blake3(plain)}

    def digester() -> Digester:
        return Digester(md5=False)

    d = digester()
    assert KEY.seal(7, b"aad", bytearray(plain), d) == sealed
    assert d.finish() == whole

    out, d = bytearray(size + 40), digester()
    assert KEY.seal_into(7, b"aad", plain, out, d) == size + 16
    assert out[: size + 16] == sealed
    assert out[size + 16 :] == bytes(24)
    assert d.finish() == whole

    out, d = bytearray(size + 16), digester()
    hashed = KEY.seal_hash_into(7, b"aad", plain, out, b"header", d)
    assert out == sealed
    assert hashed == _native.blake3(b"header" + sealed)
    assert d.finish() == whole

    d = digester()
    assert KEY.seal_job(7, b"aad", plain, d).run() == sealed
    assert d.finish() == whole
    out = bytearray(size + 16)
    assert KEY.seal_into_job(7, b"aad", plain, out).run() == size + 16
    assert out == sealed

    # In place: the plaintext's own memory, with room for the tag behind it.
    room = bytearray(plain + bytes(16))
    view = memoryview(room)
    KEY.seal_into(7, b"aad", view[:size], view)
    assert room == sealed
    assert KEY.unseal_into(7, b"aad", view, view) == size
    assert room[:size] == plain

    for d in (None, digester()):
        assert KEY.unseal(7, b"aad", sealed, d) == plain
        out = bytearray(size + 16)
        assert KEY.unseal_into(7, b"aad", sealed, out) == size
        assert out[:size] == plain
        assert KEY.unseal_job(7, b"aad", memoryview(sealed), d).run() == plain
        if d is not None:
            d2 = digester()
            d2.update(plain)
            d2.update(plain)
            assert d.finish() == d2.finish()


@given(st.binary(max_size=300), st.binary(max_size=40), st.data())
def test_any_flipped_bit_is_found(plain: bytes, aad: bytes, data: st.DataObject) -> None:
    sealed = bytearray(KEY.seal(9, aad, plain))
    bit = data.draw(st.integers(0, len(sealed) * 8 - 1))
    sealed[bit // 8] ^= 1 << bit % 8
    with pytest.raises(SealError):
        KEY.unseal(9, aad, sealed)
    with pytest.raises(SealError):
        KEY.unseal_job(9, aad, sealed).run()
    out = bytearray(b"\xff" * len(sealed))
    with pytest.raises(SealError):
        KEY.unseal_into(9, aad, sealed, out)
    assert out == bytes(len(out)), "unverified plaintext is not left behind"


def test_wrong_key_nonce_aad_or_length() -> None:
    sealed = KEY.seal(9, b"aad", b"text")
    for unseal in (
        lambda: ChaChaKey(bytes(32)).unseal(9, b"aad", sealed),
        lambda: KEY.unseal(10, b"aad", sealed),
        lambda: KEY.unseal(9, b"aae", sealed),
        lambda: KEY.unseal(9, b"aad", sealed[:-1]),
        lambda: KEY.unseal(9, b"aad", sealed[:15]),
        lambda: KEY.unseal(9, b"aad", b""),
        lambda: KEY.unseal_job(9, b"aad", b""),
    ):
        with pytest.raises(SealError):
            unseal()


def test_a_failed_unseal_digests_nothing() -> None:
    digester = Digester()
    with pytest.raises(SealError):
        KEY.unseal(9, b"", bytes(100), digester)
    assert digester.size_bytes == 0


def test_derived_key_is_hkdf() -> None:
    raw = _native.hkdf_sha256(b"secret", b"salt", b"info")
    derived = ChaChaKey.derive(b"secret", b"salt", b"info")
    assert derived.seal(1, b"", b"x") == ChaChaKey(raw).seal(1, b"", b"x")


def test_bad_buffers() -> None:
    with pytest.raises(ValueError, match="32 bytes"):
        ChaChaKey(b"short")
    with pytest.raises(ValueError, match="room for 20"):
        KEY.seal_into(1, b"", b"text", bytearray(19))
    with pytest.raises(BufferError):
        KEY.seal_into(1, b"", b"text", bytes(20))
    with pytest.raises(ValueError, match="room for 20"):
        KEY.unseal_into(1, b"", KEY.seal(1, b"", b"text"), bytearray(19))
    room = memoryview(bytearray(64))
    with pytest.raises(ValueError, match="overlap"):
        KEY.seal_into(1, b"", room[:20], room[1:])
    with pytest.raises(ValueError, match="overlap"):
        KEY.seal_into_job(1, b"", room[8:20], room[:30])
    KEY.seal_into(1, b"", room[:20], room[20:])


def test_a_job_keeps_its_buffers() -> None:
    plain = bytearray(b"text")
    job = KEY.seal_job(1, b"", plain)
    with pytest.raises(BufferError):
        plain.append(0)  # Lent: it cannot be resized.
    job.run()
    plain.append(0)


@pytest.mark.parametrize("size", [0, 1, 1000, 20_000])
def test_a_record_is_checked_and_opened_in_one_job(size: int) -> None:
    plain = bytes(n % 251 for n in range(size))
    rest = b"header of the record" + chacha_model.seal(
        bytes(range(32)), (5).to_bytes(12, "little"), b"aad", plain
    )
    record = blake3_model.blake3(rest) + rest
    prefix_bytes = 32 + 20
    assert KEY.open_record_job(5, b"aad", record, prefix_bytes).run() == plain
    for at in (0, 31, 32, 51, 52, len(record) - 1):
        bad = bytearray(record)
        bad[at] ^= 4
        with pytest.raises(SealError):
            KEY.open_record_job(5, b"aad", bad, prefix_bytes).run()
    # One whose hash holds and whose seal does not, and the other way round.
    for number, aad in ((6, b"aad"), (5, b"AAD")):
        with pytest.raises(SealError):
            KEY.open_record_job(number, aad, record, prefix_bytes).run()
    with pytest.raises(SealError):
        KEY.open_record_job(5, b"aad", bytes(32) + rest, prefix_bytes).run()


def test_what_is_no_record_is_refused() -> None:
    with pytest.raises(SealError):
        KEY.open_record_job(5, b"aad", bytes(52 + 15), 52)
    with pytest.raises(ValueError, match="hash"):
        KEY.open_record_job(5, b"aad", bytes(100), 31)
