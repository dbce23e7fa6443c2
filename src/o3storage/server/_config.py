"""What one node is told at its start, checked."""

from __future__ import annotations

import ipaddress
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from o3storage.cluster import ClusterSecret

from ._errors import StartError

MAX_SECRET_FILE_BYTES = 4096
"""A credential file larger than this is surely the wrong file."""
MIN_ROOT_PASSWORD_CHARS = 8
"""What other S3 stores ask for as well; shorter ones are guessed."""
MAX_KEY_ID_CHARS = 128
"""IAM's limit for an access key id."""
REGION = re.compile(r"[A-Za-z0-9_-]{1,64}")
"""It stands in credential scopes between slashes, in XML and in shell lines."""
DOMAIN = re.compile(r"(?=.{1,253}\Z)[A-Za-z0-9]([A-Za-z0-9-]*[A-Za-z0-9])?(\.[A-Za-z0-9-]+)*")
"""Labels as DNS has them, without a port or a dot at the end: Host values are held against it."""


@dataclass(frozen=True, slots=True)
class RootKey:
    """A key that acts as the root owner."""

    key_id: str
    secret: str

    def __repr__(self) -> str:
        return f"RootKey({self.key_id})"


@dataclass(frozen=True, slots=True, repr=False)
class ClusterConfig:
    """How this node meets the others of its cluster."""

    peer_port: int | None = None
    """None: the S3 port + 1, or any free one where that is not fixed."""
    peer_ip: str | None = None
    """Where others reach this node; None: `--ip`."""
    peers: str | None = None
    token: str | None = None
    host: str = ""
    """Names the machine: no two replicas of a range are put on one."""
    secret: ClusterSecret | None = None
    """From the environment."""


@dataclass(frozen=True, slots=True)
class ServerConfig:
    ip: str
    port: int
    data_dir: Path
    region: str = "us-east-1"
    domain: str | None = None
    tls_cert: Path | None = None
    tls_key: Path | None = None
    anonymous: bool = False
    anonymous_from_anywhere: bool = False
    admin_listen: tuple[str, int] | None = None
    metrics_token: str | None = None
    log_level: str = "info"
    environment_root: RootKey | None = None
    command: str = "o3storage"
    """How this program is called, for the first screen."""
    default_data_dir: bool = False
    show_secrets: bool = False
    """Standard output is a terminal."""
    cluster: ClusterConfig = ClusterConfig()

    @property
    def loopback(self) -> bool:
        """Whether the address listened on (never a peer's) is reachable from this machine only."""
        return is_loopback(self.ip)

    @property
    def warning(self) -> str | None:
        """What the settings open to others, for the first screen; the worst of it."""
        if self.anonymous and not self.loopback:
            return "anyone who reaches this address may read, change and delete everything"
        if self.anonymous:
            return "whoever is on this machine may read, change and delete everything"
        if not self.loopback and not self.tls_cert:
            return "without TLS others on the network can read what is sent"
        if self.admin_listen is not None and not is_loopback(self.admin_listen[0]):
            return "--admin-listen has no TLS: others can read what is sent there, new keys too"
        return None

    def check(self) -> None:
        """Raise StartError for settings that cannot be meant, or that contradict each other."""
        _check_ip(self.ip, "--ip")
        if self.admin_listen is not None:
            _check_ip(self.admin_listen[0], "--admin-listen")
        if not REGION.fullmatch(self.region):
            raise StartError(f"--region {self.region!r} is no region; write for example eu-west-1")
        if self.domain is not None and not DOMAIN.fullmatch(self.domain):
            raise StartError(
                f"--domain {self.domain!r} is no DNS name; write for example s3.example.org"
            )
        if self.port and self.cluster.peer_port == self.port:
            raise StartError(f"--peer-port and --port are both {self.port}; choose another for one")
        if self.port and self.admin_listen == (self.ip, self.port):
            raise StartError(
                f"--admin-listen is the S3 address {self.ip}:{self.port}; choose another port"
            )
        if (self.tls_cert is None) != (self.tls_key is None):
            raise StartError("--tls-cert and --tls-key go together; give both or neither")
        if self.anonymous_from_anywhere and not self.anonymous:
            raise StartError("--anonymous-from-anywhere needs --anonymous as well")
        if self.anonymous and not self.loopback and not self.anonymous_from_anywhere:
            raise StartError(
                f"--anonymous on {self.ip} would open the store to the network; "
                "listen on 127.0.0.1, or add --anonymous-from-anywhere if that is meant"
            )


def _check_ip(text: str, option: str) -> None:
    try:
        ipaddress.ip_address("127.0.0.1" if text == "localhost" else text)
    except ValueError:
        raise StartError(
            f"{option}: {text!r} is no IP address of this machine; write for example 127.0.0.1, "
            "or 0.0.0.0 for all"
        ) from None


def is_loopback(address: str) -> bool:
    """Whether a literal address (or `localhost`) is loopback."""
    if address == "localhost":
        return True
    try:
        return ipaddress.ip_address(address).is_loopback
    except ValueError:
        return False


def parse_listen(text: str) -> tuple[str, int]:
    """`127.0.0.1:9001`, `[::1]:9001` or `9001` (loopback) -> (address, port). Raises StartError."""
    address, _, port = text.rpartition(":")
    try:
        number = int(port)
        if not 0 <= number <= 65535:
            raise ValueError
    except ValueError:
        raise StartError(f"{text!r} is not IP:PORT, for example 127.0.0.1:9001") from None
    return (address.strip("[]") or "127.0.0.1", number)


def read_secret_file(path: str, what: str) -> str:
    """The first line of a small file. Raises StartError naming `what` it was for."""
    try:
        with open(path, "rb") as file:
            raw = file.read(MAX_SECRET_FILE_BYTES + 1)
    except OSError as error:
        raise StartError(f"cannot read the {what} file {path}: {error.strerror}") from None
    if len(raw) > MAX_SECRET_FILE_BYTES:
        raise StartError(f"the {what} file {path} is too large to be one")
    try:
        text = raw.decode()
    except UnicodeDecodeError:
        raise StartError(f"the {what} file {path} is not text") from None
    line = text.split("\n", 1)[0].strip()
    if not line:
        raise StartError(f"the {what} file {path} has nothing in its first line")
    return line


def root_key_from(environment: Mapping[str, str]) -> RootKey | None:
    """O3_ROOT_USER and O3_ROOT_PASSWORD, or the files that their `_FILE` twins name."""
    values = {}
    for name in ("O3_ROOT_USER", "O3_ROOT_PASSWORD"):
        plain, file = environment.get(name), environment.get(f"{name}_FILE")
        if plain and file:
            raise StartError(f"{name} and {name}_FILE are both set; keep one")
        values[name] = read_secret_file(file, name) if file else (plain or "")
    user, password = values["O3_ROOT_USER"], values["O3_ROOT_PASSWORD"]
    if not user and not password:
        return None
    if not user or not password:
        raise StartError("O3_ROOT_USER and O3_ROOT_PASSWORD go together; set both or neither")
    if len(password) < MIN_ROOT_PASSWORD_CHARS:
        raise StartError(f"O3_ROOT_PASSWORD needs at least {MIN_ROOT_PASSWORD_CHARS} characters")
    if len(user) > MAX_KEY_ID_CHARS or not user.isascii() or not user.isprintable() or "/" in user:
        raise StartError(
            f"O3_ROOT_USER must be 1 to {MAX_KEY_ID_CHARS} printable ASCII characters without '/'"
        )
    return RootKey(user, password)


def data_dir_path(text: str) -> Path:
    return Path(os.path.abspath(text))
