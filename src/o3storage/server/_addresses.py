"""Addresses to listen on: whether they can be had, and what clients call them."""

from __future__ import annotations

import errno
import socket
from urllib.parse import urlsplit

from ._config import is_loopback
from ._errors import StartError


def names_this_machine(host: str) -> bool:
    """Whether a Host field is one of loopback, not of a proxy or of a name that was rebound."""
    return is_loopback(urlsplit(f"//{host}").hostname or "")


def reachable(host: str) -> str:
    """An address that a client on this machine can use for what was listened on."""
    if host in {"0.0.0.0", "::"}:
        host = "127.0.0.1" if host == "0.0.0.0" else "::1"
    return f"[{host}]" if ":" in host else host


def check_address(ip: str, port: int) -> None:
    """Fail early, before anything is made, when the address cannot be had."""
    family = socket.AF_INET6 if ":" in ip else socket.AF_INET
    with socket.socket(family) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1" if ip == "localhost" else ip, port))
        except OSError as error:
            raise StartError(listen_error(ip, port, error)) from None


def listen_error(ip: str, port: int, error: OSError) -> str:
    if error.errno == errno.EADDRINUSE:
        return f"port {port} on {ip} is taken; stop what listens there, or choose another --port"
    if error.errno == errno.EACCES:
        return f"port {port} needs more rights; choose a --port above 1023"
    if error.errno == errno.EADDRNOTAVAIL:
        return f"this machine has no address {ip}; choose another --ip"
    return f"cannot listen on {ip} port {port}: {error.strerror or error}"
