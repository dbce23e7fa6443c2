"""`serve`: settings -> a running store; the first screen; Ctrl-C and SIGTERM stop it."""

from __future__ import annotations

import argparse
import contextlib
import os
import shutil
import sys
from pathlib import Path

from o3storage.cluster import SecretRefused, secret_from_environment
from o3storage.server import (
    ClusterConfig,
    ServerConfig,
    StartError,
    data_dir_path,
    parse_listen,
    read_secret_file,
    root_key_from,
    run_server,
)

from ._args import DEFAULT_DATA_DIR
from ._store import CommandError


def config_from(options: argparse.Namespace) -> ServerConfig:
    """Raises StartError."""
    token_file = options.metrics_token_file
    config = ServerConfig(
        ip=options.ip,
        port=options.port,
        data_dir=data_dir_path(options.data_dir),
        region=options.region,
        domain=options.domain,
        tls_cert=Path(options.tls_cert) if options.tls_cert else None,
        tls_key=Path(options.tls_key) if options.tls_key else None,
        anonymous=options.anonymous,
        anonymous_from_anywhere=options.anonymous_from_anywhere,
        admin_listen=parse_listen(options.admin_listen) if options.admin_listen else None,
        metrics_token=read_secret_file(token_file, "metrics token") if token_file else None,
        log_level=options.log_level,
        environment_root=root_key_from(os.environ),
        command=_own_name(),
        default_data_dir=data_dir_path(options.data_dir) == data_dir_path(DEFAULT_DATA_DIR),
        show_secrets=sys.stdout.isatty(),
        cluster=_cluster_config(options),
    )
    config.check()
    return config


def _cluster_config(options: argparse.Namespace) -> ClusterConfig:
    # An empty variable in a unit or a compose file must not make a cluster of its own.
    for option, value in (("--peers", options.peers), ("--join", options.join)):
        if value is not None and not value.strip(" ,"):
            raise StartError(
                f"{option} is empty; name what it stands for, or leave it out on the node that "
                "makes the cluster"
            )
    try:
        secret = secret_from_environment(os.environ)
    except SecretRefused as error:
        raise StartError(str(error)) from None
    if secret is not None and options.join:
        raise StartError(
            "--join TOKEN holds the cluster secret; unset O3_CLUSTER_SECRET, or use it"
        )
    return ClusterConfig(
        peer_port=options.peer_port,
        peer_ip=options.peer_ip,
        peers=options.peers,
        token=options.join,
        host=options.host_label or "",
        secret=secret,
    )


def _own_name() -> str:
    """How to call this program again from the same shell."""
    if shutil.which("o3storage"):
        return "o3storage"
    beside = Path(sys.executable).with_name("o3storage")
    if not beside.exists():
        return f"{sys.executable} -m o3storage"
    return str(beside)


def _show(lines: list[str]) -> None:
    # Whoever read the first lines may be gone when the last ones are said: the store goes on.
    with contextlib.suppress(OSError):
        print("\n".join(lines), flush=True)


def serve(options: argparse.Namespace) -> int:
    """Run until told to stop. Exit 0 after a clean stop, 1 when it could not start."""
    try:
        return run_server(config_from(options), show=_show)
    except StartError as error:
        raise CommandError(str(error)) from None
