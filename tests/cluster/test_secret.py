"""The cluster's secret: which are refused, proofs, join tokens."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from o3storage.cluster._errors import SecretRefused
from o3storage.cluster._secret import ClusterSecret, from_environment, parse_token
from o3storage.runtime.network import Address
from o3storage.simulation import SimEntropy

SECRET = "0123456789abcdef0123456789abcdef"
BINDING, A, B = bytes(32), b"a" * 32, b"b" * 32


@pytest.mark.parametrize(
    "text",
    [
        "",
        "secret",
        "correct horse",
        SECRET[:-1],
        "a" * 64,
        "abcabc" * 20,
        "1234567890" * 3,
        "x" * 300,
        SECRET + "\x07",
    ],
)
def test_a_secret_that_could_be_guessed_is_refused(text: str) -> None:
    with pytest.raises(SecretRefused):
        ClusterSecret(text)


@pytest.mark.parametrize(
    "text", [SECRET, "kVb2w1Ch0xk9UoQ0l3Jm5A==", "Zq8#vL2$wN5^xR7&yT1*", " " + SECRET + "\n"]
)
def test_a_secret_of_128_bits_is_taken(text: str) -> None:
    assert ClusterSecret(text).text() == text.strip()


def test_it_is_not_shown() -> None:
    assert SECRET not in repr(ClusterSecret(SECRET))


def test_what_is_generated_is_taken_and_never_the_same() -> None:
    entropy = SimEntropy(1)
    assert ClusterSecret.generate(entropy).text() != ClusterSecret.generate(entropy).text()


def test_a_proof_holds_for_exactly_its_connection_ends_and_role() -> None:
    secret, other = ClusterSecret(SECRET), ClusterSecret(SECRET[::-1])
    proof = secret.proof(BINDING, A, B, "join")
    assert secret.proves(proof, BINDING, A, B, "join")
    assert not other.proves(proof, BINDING, A, B, "join")
    assert not secret.proves(proof, b"x" * 32, A, B, "join")
    assert not secret.proves(proof, BINDING, B, A, "join"), "relayed back"
    assert not secret.proves(proof, BINDING, A, b"c" * 32, "join"), "relayed to another"
    assert not secret.proves(proof, BINDING, A, B, "accept"), "another role"
    assert not secret.proves(proof[:-1], BINDING, A, B, "join")
    assert not secret.proves(b"", BINDING, A, B, "join")
    with pytest.raises(ValueError):
        secret.proof(b"short", A, B, "join")


@given(
    st.lists(
        st.builds(Address, st.text("abc.:012", min_size=1, max_size=30), st.integers(0, 65535)),
        max_size=8,
    )
)
def test_a_token_carries_the_secret_and_where_to_join(addresses: list[Address]) -> None:
    secret, found = parse_token(ClusterSecret(SECRET).token(tuple(addresses)) + "\n")
    assert secret.text() == SECRET and list(found) == addresses


@given(st.integers(0), st.sampled_from("0123456789abcdefg"))
def test_a_slip_in_copying_a_token_is_noticed(place: int, char: str) -> None:
    token = ClusterSecret(SECRET).token((Address("10.0.0.1", 8081),))
    at = place % len(token)
    if token[at] == char:
        return
    with pytest.raises(SecretRefused):
        parse_token(token[:at] + char + token[at + 1 :])
    with pytest.raises(SecretRefused):
        parse_token(token[:at])


def test_where_it_comes_from(tmp_path: Path) -> None:
    assert from_environment({}) is None
    found = from_environment({"O3_CLUSTER_SECRET": SECRET})
    assert found is not None and found.text() == SECRET
    file = tmp_path / "secret"
    file.write_text(SECRET + "\nmore\n")
    found = from_environment({"O3_CLUSTER_SECRET_FILE": str(file)})
    assert found is not None and found.text() == SECRET
    with pytest.raises(SecretRefused, match="both set"):
        from_environment({"O3_CLUSTER_SECRET": SECRET, "O3_CLUSTER_SECRET_FILE": str(file)})
    with pytest.raises(SecretRefused, match="cannot be read"):
        from_environment({"O3_CLUSTER_SECRET_FILE": str(tmp_path / "none")})
