"""Ed25519, X25519 and randomness."""

from __future__ import annotations

import pytest

from o3storage import _native

RFC_8032 = [
    (
        "9d61b19deffd5a60ba844af492ec2cc44449c5697b326919703bac031cae7f60",
        "d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a",
        "",
        "e5564300c360ac729086e2cc806e828a84877f1eb8e5d974d873e065224901555fb8821590a33bacc61e39701c"
        "f9b46bd25bf5f0595bbe24655141438e7a100b",
    ),
    (
        "4ccd089b28ff96da9db6c346ec114e0f5b8a319f35aba624da8cf6ed4fb8a6fb",
        "3d4017c3e843895a92b70aa74d1b7ebc9c982ccf2ec4968cc0cd55f12af4660c",
        "72",
        "92a009a9f0d4cab8720e820b5f642540a2b27b5416503f8fb3762223ebdb69da085ac1e43e15996e458f3613d0"
        "f11d8c387b2eaeb4302aeeb00d291612bb0c00",
    ),
    (
        "c5aa8df43f9f837bedb7442f31dcb7b166d38535076f094b85ce3a2e0b4458f7",
        "fc51cd8e6218a1a38da47ed00230f0580816ed13ba3303ac5deb911548908025",
        "af82",
        "6291d657deec24024827e69c3abe01a30ce548a284743a445e3680d7db5ac3ac18ff9b538d16f290ae67f76098"
        "4dc6594a7c15e9716ed28dc027beceea1ec40a",
    ),
]


@pytest.mark.parametrize(("seed", "public", "message", "signature"), RFC_8032)
def test_ed25519_rfc_8032(seed: str, public: str, message: str, signature: str) -> None:
    raw = bytes.fromhex(seed)
    assert _native.ed25519_public(raw).hex() == public
    assert _native.ed25519_sign(raw, bytes.fromhex(message)).hex() == signature
    key, text, signed = map(bytes.fromhex, (public, message, signature))
    assert _native.ed25519_verify(key, text, signed)
    assert not _native.ed25519_verify(key, text + b"x", signed)
    assert not _native.ed25519_verify(key, text, signed[:-1])
    assert not _native.ed25519_verify(key, text, bytes((signed[0] ^ 1,)) + signed[1:])


def test_ed25519_round_trip() -> None:
    seed, public = _native.ed25519_generate()
    assert _native.ed25519_public(seed) == public
    message = bytes(20_000)
    assert _native.ed25519_verify(public, message, _native.ed25519_sign(seed, message))
    with pytest.raises(ValueError, match="32 bytes"):
        _native.ed25519_sign(seed[:-1], b"")
    with pytest.raises(ValueError, match="32 bytes"):
        _native.ed25519_verify(public + b"x", b"", bytes(64))


def test_x25519_rfc_7748_section_5_2() -> None:
    scalar = bytes.fromhex("a546e36bf0527c9d3b16154b82465edd62144c0ac1fc5a18506a2244ba449ac4")
    point = bytes.fromhex("e6db6867583030db3594c1a424b15f7c726624ec26b3353b10a903a6d0ab1c4c")
    shared = "c3da55379de9c6908e94ea4df28d084f32eccf03491c71f754b4075577a28552"
    assert _native.x25519_agree(scalar, point).hex() == shared


def test_x25519_rfc_7748_section_5_2_iterated() -> None:
    k = u = b"\x09" + bytes(31)
    for _ in range(1000):
        k, u = _native.x25519_agree(k, u), k
    assert k.hex() == "684cf59ba83309552800ef566f2f4d3c1c3887c49360e3875f2eb94d99532c51"


def test_x25519_rfc_7748_section_6_1() -> None:
    bob = bytes.fromhex("5dab087e624a8a4b79e17f8b83800ee66f3bb1292618b6fd1c2f8b27ff88e0eb")
    bob_public = "de9edb7d7b7dc1b4d35b61c2ece435373f8343c85b78674dadfc7e146f882b4f"
    alice_public = "8520f0098930a754748b7ddcb43ef75a0dbf3a0d26381af4eba4a98eaa9b4e6a"
    shared = "4a5d9d5ba4ce2de1728e3bf480350f25e07e21c947d19e3376f09b3c1e161742"
    assert _native.x25519_public(bob).hex() == bob_public
    assert _native.x25519_agree(bob, bytes.fromhex(alice_public)).hex() == shared


def test_x25519_agrees_and_refuses_low_order() -> None:
    a, a_public = _native.x25519_generate()
    b, b_public = _native.x25519_generate()
    assert _native.x25519_agree(a, b_public) == _native.x25519_agree(b, a_public)
    for low in (bytes(32), b"\x01" + bytes(31)):
        with pytest.raises(ValueError, match="low order"):
            _native.x25519_agree(a, low)


def test_random_bytes() -> None:
    assert _native.random_bytes(0) == b""
    seen = {_native.random_bytes(16) for _ in range(1000)}
    assert len(seen) == 1000
    sample = _native.random_bytes(100_003)
    assert len(sample) == 100_003
    ones = sum(byte.bit_count() for byte in sample)
    assert abs(ones / (len(sample) * 8) - 0.5) < 0.005  # 9 standard deviations
    with pytest.raises(ValueError, match="1 MiB"):
        _native.random_bytes(2**20 + 1)
