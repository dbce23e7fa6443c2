"""How settings become the way to other nodes, and where the cluster's secret comes from."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import Any

import pytest

from o3storage.cluster import ClusterSecret
from o3storage.runtime.network import Address
from o3storage.server import ClusterConfig, ServerConfig, StartError, read_join_secret
from o3storage.server._peering import SECRET_FILE, cluster_options
from o3storage.simulation import SimDisk, SimEntropy

SECRET = "3f1c9a0b7d2e4f5a8b6c1d0e9f7a2b3c"


def options(tmp_path: Path, ip: str = "10.0.0.1", port: int = 8080, **settings: Any) -> Any:
    config = ServerConfig(ip, port, tmp_path, cluster=ClusterConfig(**settings))
    return cluster_options(config, SimDisk(1), SimEntropy(1), lambda text: None)


def test_the_peer_port_is_the_next_one(tmp_path: Path) -> None:
    found = options(tmp_path)
    assert found.listen == Address("10.0.0.1", 8081) and not found.must_listen
    assert options(tmp_path, peer_port=7000).listen.port == 7000
    assert options(tmp_path, peer_port=7000).must_listen
    assert options(tmp_path, port=0).listen.port == 0
    assert options(tmp_path, port=65535).listen.port == 0


def test_peers_are_looked_for_on_the_same_port(tmp_path: Path) -> None:
    secret = ClusterSecret(SECRET)
    found = options(tmp_path, peers="10.0.0.2,b.example:9", secret=secret)
    assert found.peers == (Address("10.0.0.2", 8081), Address("b.example", 9))
    found = options(tmp_path, peers="10.0.0.2", peer_port=7000, secret=secret)
    assert found.peers == (Address("10.0.0.2", 7000),)
    with pytest.raises(StartError, match="IP:PORT"):
        options(tmp_path, port=0, peers="10.0.0.2", secret=secret)
    with pytest.raises(StartError, match="is no peer"):
        options(tmp_path, peers="a b", secret=secret)


def test_the_first_node_makes_a_secret_once(tmp_path: Path) -> None:
    made = options(tmp_path).secret.text()
    kept = tmp_path / SECRET_FILE
    assert kept.read_text().strip() == made
    assert stat.S_IMODE(kept.stat().st_mode) == 0o600
    assert options(tmp_path).secret.text() == made
    # One that is given goes before it, and is not written down.
    assert options(tmp_path, secret=ClusterSecret(SECRET)).secret.text() == SECRET
    assert kept.read_text().strip() == made


def test_a_node_that_joins_makes_none(tmp_path: Path) -> None:
    assert options(tmp_path, peers="10.0.0.2").secret is None
    assert os.listdir(tmp_path) == []


def test_a_token_brings_secret_and_addresses(tmp_path: Path) -> None:
    token = ClusterSecret(SECRET).token((Address("10.0.0.9", 9),))
    found = options(tmp_path, token=token, peers="10.0.0.2")
    assert found.secret.text() == SECRET
    assert found.peers == (Address("10.0.0.2", 8081), Address("10.0.0.9", 9))
    assert options(tmp_path).secret.text() == SECRET, "the same command without the token"
    with pytest.raises(StartError, match="join token"):
        options(tmp_path, token=token[:-2])


def test_where_it_is_reached(tmp_path: Path) -> None:
    assert options(tmp_path).reached_at == ()
    assert options(tmp_path, peer_ip="192.0.2.7").reached_at == ("192.0.2.7",)
    (found,) = options(tmp_path, ip="0.0.0.0").reached_at
    assert found != "0.0.0.0"


def test_secrets_are_not_shown(tmp_path: Path) -> None:
    settings = ClusterConfig(secret=ClusterSecret(SECRET), token="o3-join-1-00")
    config = ServerConfig("10.0.0.1", 8080, tmp_path, cluster=settings)
    for text in (repr(config), repr(options(tmp_path, secret=ClusterSecret(SECRET)))):
        assert SECRET not in text and "o3-join-1-" not in text


def test_the_token_is_printed_from_what_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("O3_CLUSTER_SECRET", raising=False)
    assert read_join_secret(str(tmp_path)) is None
    made = options(tmp_path).secret.text()
    found = read_join_secret(str(tmp_path))
    assert found is not None and found.text() == made
    monkeypatch.setenv("O3_CLUSTER_SECRET", SECRET)
    found = read_join_secret(str(tmp_path))
    assert found is not None and found.text() == SECRET
