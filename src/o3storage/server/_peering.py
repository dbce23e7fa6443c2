"""Where this node meets others, and the cluster's secret: settings -> what the cluster room takes.

The secret comes from the environment, from --join TOKEN, or from the file `cluster-secret` in the
data directory. The first node of a cluster makes that file when nothing else was given, and shows
its join token on a terminal; a node that joined by a token keeps the secret there, so that the same
command without the token is right as well.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Callable

from o3storage.cluster import (
    ClusterOptions,
    ClusterSecret,
    SecretRefused,
    parse_peers,
    parse_token,
)
from o3storage.runtime import Entropy
from o3storage.runtime.disk import Disk
from o3storage.runtime.network import Address

from ._config import ServerConfig, read_secret_file
from ._errors import StartError
from ._private_file import write_private

SECRET_FILE = "cluster-secret"
MAX_PORT = 65_535


def cluster_options(
    config: ServerConfig, disk: Disk, entropy: Entropy, say: Callable[[str], None]
) -> ClusterOptions:
    """Raises StartError. Makes the file `cluster-secret` where it should be."""
    settings = config.cluster
    port = settings.peer_port
    if port is None:
        # Beside a port that the system chooses, and at the end of the range, any free one.
        port = config.port + 1 if 0 < config.port < MAX_PORT else 0
    try:
        named = parse_peers(settings.peers, _default_peer_port(config)) if settings.peers else ()
        secret, from_token = _secret(config, entropy)
    except (ValueError, SecretRefused) as error:
        raise StartError(str(error)) from None
    return ClusterOptions(
        disk=disk,
        listen=Address("127.0.0.1" if config.ip == "localhost" else config.ip, port),
        must_listen=settings.peer_port is not None,
        peers=named + tuple(address for address in from_token if address not in named),
        secret=secret,
        reached_at=_reached_at(config),
        host=settings.host,
        say=say,
    )


def _default_peer_port(config: ServerConfig) -> int:
    """Nodes of one cluster are usually started alike, so the others' is this node's own."""
    if config.cluster.peer_port:
        return config.cluster.peer_port
    if not 0 < config.port < MAX_PORT:
        raise ValueError("with --port 0 name the ports of the others: --peers IP:PORT")
    return config.port + 1


def _secret(
    config: ServerConfig, entropy: Entropy
) -> tuple[ClusterSecret | None, tuple[Address, ...]]:
    settings = config.cluster
    path = config.data_dir / SECRET_FILE
    if settings.token:
        secret, addresses = parse_token(settings.token)
        if not path.exists():
            write_private(path, secret.text() + "\n")
        return secret, addresses
    if settings.secret is not None:
        return settings.secret, ()
    if path.exists():
        return ClusterSecret(read_secret_file(str(path), "cluster secret")), ()
    if settings.peers:
        return None, ()
    secret = ClusterSecret.generate(entropy)
    write_private(path, secret.text() + "\n")
    return secret, ()


def read_join_secret(config_dir: str) -> ClusterSecret | None:
    """For `node token`: the secret in the environment, else the one that the data directory keeps.
    Raises StartError, SecretRefused."""
    from o3storage.cluster import secret_from_environment

    found = secret_from_environment(os.environ)
    path = os.path.join(config_dir, SECRET_FILE)
    if found is None and os.path.exists(path):
        found = ClusterSecret(read_secret_file(path, "cluster secret"))
    return found


def _reached_at(config: ServerConfig) -> tuple[str, ...]:
    if config.cluster.peer_ip:
        return (config.cluster.peer_ip,)
    if config.ip not in {"0.0.0.0", "::"}:
        return ()
    found = _address_towards_others(config.ip)
    if found is None:
        return ("127.0.0.1" if config.ip == "0.0.0.0" else "::1",)
    return (found,)


def _address_towards_others(ip: str) -> str | None:
    """The address that this machine would use; connecting a datagram socket sends nothing (the
    targets are addresses for documentation, RFC 5737 and 3849)."""
    family, target = (socket.AF_INET, "192.0.2.1")
    if ip == "::":
        family, target = socket.AF_INET6, "2001:db8::1"
    try:
        with socket.socket(family, socket.SOCK_DGRAM) as probe:
            probe.connect((target, 9))
            found: str = probe.getsockname()[0]
    except OSError:  # no way to others, or a system without datagrams
        return None
    return found
