"""How the process's descriptors are shared between the store and its clients.

A store that cannot open its next volume can write no more, so clients never get all descriptors:
where few are allowed, fewer connections are served.
"""

from __future__ import annotations

from o3storage.http import Limits
from o3storage.runtime import Logger, raise_descriptor_limit, reserve_descriptors

OWN_DESCRIPTORS = 1024
"""Kept for the store: 512 volumes that are open for reading, those being written, the tables of the
index, and links to other nodes."""

WANTED_DESCRIPTORS = 8192
"""What it takes to serve all the connections that the HTTP layer's limits allow, and the store."""

OPERATOR_LIMITS = Limits(max_connections=64, max_direct=0, max_refused=16, backlog=64)
"""Of the operators' own address: the command line and what gathers metrics; among the store's."""

_log = Logger("server")


def client_limits() -> Limits:
    """Limits of the HTTP server that leave the store its descriptors. Raises the process's soft
    limit as far as it may, and has the kernel make room for them before there are clients who
    would wait for it."""
    allowed = raise_descriptor_limit(WANTED_DESCRIPTORS)
    reserve_descriptors(min(allowed, WANTED_DESCRIPTORS))
    return share(allowed)


def share(allowed: int) -> Limits:
    """The limits for a process that is allowed so many descriptors."""
    usual = Limits()
    limits = usual.within(allowed - min(OWN_DESCRIPTORS, allowed // 2))
    if limits.max_connections < usual.max_connections:
        _log.warning(
            "connections.few",
            descriptors=allowed,
            connections=limits.max_connections,
            hint=f"allow {WANTED_DESCRIPTORS} open files (ulimit -Hn, LimitNOFILE) to serve "
            f"{usual.max_connections}",
        )
    return limits
