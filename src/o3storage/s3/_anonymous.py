"""Anonymous mode: unsigned requests that act as the root owner, where that is switched on.

A web page or a proxy must not be able to borrow the store: a browser names the page's Origin, a
rebound DNS name shows in Host, and a proxy leaves its own headers. Each of these is refused.
Loopback means the address listened on, never the peer's, and that is judged at start by `server`.
"""

from __future__ import annotations

from ipaddress import ip_address
from typing import Final

from o3storage.s3._errors import S3Error
from o3storage.s3._names import host_name
from o3storage.s3._request import S3Request

PROXY_HEADERS: Final = (
    *("forwarded", "via", "x-real-ip"),
    *("x-forwarded-for", "x-forwarded-host", "x-forwarded-proto"),
)


class Anonymous:
    """Admits unsigned requests as `owner`.

    `hosts`: names and addresses that a Host header may have besides loopback's and the address at
    which the request arrived (of those that 0.0.0.0 stands for). `domains`: the configured domains;
    their sub-domains are buckets.
    """

    __slots__ = ("_domains", "_hosts", "_owner")

    def __init__(self, owner: str, hosts: tuple[str, ...], domains: tuple[str, ...]) -> None:
        self._owner = owner
        self._hosts = frozenset(host_name(_bracketed(host)) for host in hosts)
        self._domains = domains

    def admit(self, request: S3Request) -> str:
        """The owner id. Raises S3Error AccessDenied with the reason."""
        headers = request.headers
        for name in PROXY_HEADERS:
            if name in headers:
                raise _refused(f"it came through a proxy ({name})")
        if not self._is_own(request.host, request.local):
            raise _refused("its Host is not an address of this server")
        if headers.get("sec-fetch-site", "none") == "cross-site":
            raise _refused("it was sent by another site's page")
        origin = headers.get("origin")
        if origin is not None and origin.lower() != self._origin(request):
            raise _refused("it was sent by another site's page (Origin)")
        return self._owner

    @staticmethod
    def _origin(request: S3Request) -> str:
        return f"{'https' if request.secure else 'http'}://{request.host}".lower()

    def _is_own(self, host: str, local: str) -> bool:
        name = host_name(host)
        if name in self._hosts or is_loopback(name) or _is_address(name, local):
            return True
        return any(name == domain or name.endswith(f".{domain}") for domain in self._domains)


def _bracketed(address: str) -> str:
    return f"[{address}]" if ":" in address and not address.startswith("[") else address


def _is_address(name: str, address: str) -> bool:
    """Whether a host name is `address` itself, in any of its forms: no page can have it unless this
    server sent the page."""
    try:
        return ip_address(name.strip("[]")) == ip_address(address)
    except ValueError:
        return False


def is_loopback(name: str) -> bool:
    """Whether a host name (no port, IPv6 in brackets) means this machine and nothing else."""
    if name in ("localhost", "localhost.") or name.endswith(".localhost"):
        return True
    try:
        return ip_address(name.strip("[]")).is_loopback
    except ValueError:
        return False


def _refused(reason: str) -> S3Error:
    return S3Error(
        "AccessDenied", f"An unsigned request is not accepted: {reason}. Sign the request."
    )
