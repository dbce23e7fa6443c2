"""Settings that contradict each other, and secrets from the environment."""

from __future__ import annotations

from pathlib import Path

import pytest

from o3storage.server._config import (
    ClusterConfig,
    RootKey,
    ServerConfig,
    is_loopback,
    parse_listen,
    read_secret_file,
    root_key_from,
)
from o3storage.server._errors import StartError


def config(**changes: object) -> ServerConfig:
    return ServerConfig(**{"ip": "127.0.0.1", "port": 0, "data_dir": Path("d"), **changes})  # type: ignore[arg-type]


def test_anonymous_is_for_loopback_unless_said_twice() -> None:
    config(anonymous=True).check()
    with pytest.raises(StartError, match="open the store to the network"):
        config(anonymous=True, ip="0.0.0.0").check()
    config(anonymous=True, ip="0.0.0.0", anonymous_from_anywhere=True).check()
    with pytest.raises(StartError, match="needs --anonymous"):
        config(anonymous_from_anywhere=True).check()


def test_each_port_is_one_of_its_own() -> None:
    with pytest.raises(StartError, match="--peer-port and --port are both 8080"):
        config(port=8080, cluster=ClusterConfig(peer_port=8080)).check()
    with pytest.raises(StartError, match="--admin-listen is the S3 address"):
        config(port=8080, admin_listen=("127.0.0.1", 8080)).check()
    config(port=8080, admin_listen=("127.0.0.2", 8080)).check()
    config(port=0, admin_listen=("127.0.0.1", 0), cluster=ClusterConfig(peer_port=0)).check()


def test_what_is_open_to_others_is_said() -> None:
    tls = {"tls_cert": Path("c"), "tls_key": Path("k")}
    for changes, words in (
        ({}, None),
        ({"ip": "::1", "admin_listen": ("localhost", 1)}, None),
        ({"ip": "0.0.0.0", **tls, "admin_listen": ("127.0.0.1", 1)}, None),
        ({"ip": "192.168.1.10"}, "without TLS others on the network"),
        ({"ip": "0.0.0.0", **tls, "admin_listen": ("0.0.0.0", 1)}, "--admin-listen has no TLS"),
        ({"admin_listen": ("192.168.1.10", 1)}, "new keys too"),
        ({"anonymous": True}, "whoever is on this machine"),
        ({"ip": "0.0.0.0", "anonymous": True, **tls}, "anyone who reaches this address"),
    ):
        said = config(**changes).warning  # type: ignore[arg-type]
        assert (said is None) if words is None else (said is not None and words in said), changes


def test_certificate_and_key_go_together() -> None:
    with pytest.raises(StartError, match="go together"):
        config(tls_cert=Path("c")).check()


@pytest.mark.parametrize(
    "changes",
    [
        {"ip": ""},
        {"ip": "example.org"},
        {"ip": "1.2.3"},
        {"admin_listen": ("example.org", 1)},
        {"region": ""},
        {"region": "a b"},
        {"region": "a/b"},
        {"region": "a" * 65},
        {"domain": ""},
        {"domain": "a b"},
        {"domain": "a.b."},
        {"domain": ".a"},
        {"domain": "a:80"},
        {"domain": "a." * 130 + "a"},
    ],
)
def test_values_that_cannot_be_meant_are_refused_with_an_example(
    changes: dict[str, object],
) -> None:
    with pytest.raises(StartError, match="for example"):
        config(**changes).check()


def test_values_that_can_be_meant() -> None:
    for ip in ("127.0.0.1", "::1", "0.0.0.0", "::", "localhost", "192.168.1.10"):
        config(ip=ip, region="eu_west-1", domain="s3.example.org").check()
    config(domain="localhost").check()


@pytest.mark.parametrize(
    ("address", "expected"),
    [("127.0.0.1", True), ("127.9.9.9", True), ("::1", True), ("localhost", True),
     ("0.0.0.0", False), ("192.168.1.10", False), ("example.org", False)],
)  # fmt: skip
def test_loopback(address: str, expected: bool) -> None:
    assert is_loopback(address) is expected


def test_listen_addresses() -> None:
    assert parse_listen("127.0.0.1:9001") == ("127.0.0.1", 9001)
    assert parse_listen("[::1]:9001") == ("::1", 9001)
    assert parse_listen("9001") == ("127.0.0.1", 9001)
    for bad in ("x", "1.2.3.4:", "1.2.3.4:99999"):
        with pytest.raises(StartError, match="for example"):
            parse_listen(bad)


def test_root_key_from_the_environment(tmp_path: Path) -> None:
    assert root_key_from({}) is None
    plain = {"O3_ROOT_USER": "admin", "O3_ROOT_PASSWORD": "longenough"}
    assert root_key_from(plain) == RootKey("admin", "longenough")
    file = tmp_path / "secret"
    file.write_text("fromfile9\n")
    assert root_key_from({"O3_ROOT_USER": "admin", "O3_ROOT_PASSWORD_FILE": str(file)}) == RootKey(
        "admin", "fromfile9"
    )


@pytest.mark.parametrize(
    ("environment", "reason"),
    [
        ({"O3_ROOT_USER": "a"}, "go together"),
        ({"O3_ROOT_USER": "a", "O3_ROOT_PASSWORD": "short"}, "at least 8"),
        ({"O3_ROOT_USER": "a/b", "O3_ROOT_PASSWORD": "longenough"}, "without '/'"),
        ({"O3_ROOT_USER": "a", "O3_ROOT_USER_FILE": "f"}, "both set"),
        ({"O3_ROOT_USER_FILE": "/nowhere/at/all"}, "cannot read"),
    ],
)
def test_a_bad_root_key_says_why(environment: dict[str, str], reason: str) -> None:
    with pytest.raises(StartError, match=reason):
        root_key_from(environment)


def test_an_empty_secret_file_is_no_secret(tmp_path: Path) -> None:
    """As an unset variable in a script that writes it leaves."""
    empty = tmp_path / "empty"
    for text in ("", "\n", " \nsecond"):
        empty.write_text(text)
        both = {"O3_ROOT_USER_FILE": str(empty), "O3_ROOT_PASSWORD_FILE": str(empty)}
        with pytest.raises(StartError, match="nothing in its first line"):
            root_key_from(both)
        with pytest.raises(StartError, match="metrics token"):
            read_secret_file(str(empty), "metrics token")


def test_no_secret_in_a_repr() -> None:
    assert "hidden" not in repr(RootKey("id", "hidden"))
