"""Joining: a node without a cluster asks the nodes that it was told of until one of them has made
it a member.

Both ends of a link prove in their hello that they know the cluster's secret (`_secret`); only then
the call JOIN is answered. Any member answers it: it wraps the epoch keys to the newcomer and
commits its record in range 0.

JOIN     record as in `_node_records`, after node u64
answer   cluster id u8 + bytes | count u16, (node u64, identity 32, announcement)*
errors   NOT_YET: ask again; NEVER: this node cannot join, the text says why
"""

from __future__ import annotations

import asyncio
import ipaddress
import struct
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from o3storage.cluster import _kinds
from o3storage.cluster._errors import ClusterError, MembershipRefused
from o3storage.cluster._node_records import MAX_NODE_ROWS, Announcement, NodeRecord
from o3storage.cluster._peer_types import PeerError, PeerRefused
from o3storage.runtime.clock import Entropy
from o3storage.runtime.fields import FieldReader
from o3storage.runtime.network import Address, Network

if TYPE_CHECKING:
    from o3storage.cluster._peers import Peers

NOT_YET = 64
NEVER = 65

CALL_TIMEOUT_S = 10.0
"""A join commits an entry; an election may come between."""
RETRY_S = 1.0
"""Between rounds over all addresses; half as much to one and a half, by chance."""
SAY_AGAIN_S = 60.0
"""An unchanged reason for waiting is said again so often."""
MAX_TRIED = 32
"""Addresses of one round: names of clusters resolve to a handful."""

_NODE = struct.Struct(">Q32s")


def encode_request(record: NodeRecord) -> bytes:
    return record.node.to_bytes(8, "big") + record.encode()


def decode_request(data: bytes) -> NodeRecord:
    """Raises ValueError."""
    reader = FieldReader(data)
    node = reader.u64()
    return NodeRecord.decode(node, data[8:])


Welcome = tuple[bytes, dict[int, tuple[bytes, Announcement]]]
"""The cluster's id, and its members."""


def encode_welcome(cluster_id: bytes, members: Sequence[NodeRecord]) -> bytes:
    parts = [bytes((len(cluster_id),)), cluster_id, len(members).to_bytes(2, "big")]
    for record in members:
        parts += (_NODE.pack(record.node, record.identity), record.announced.encode())
    return b"".join(parts)


def decode_welcome(data: bytes) -> Welcome:
    """Raises ValueError."""
    reader = FieldReader(data)
    cluster_id = reader.bytes8()
    count = reader.u16()
    if not cluster_id or count > MAX_NODE_ROWS:
        raise ValueError("not a welcome")
    members: dict[int, tuple[bytes, Announcement]] = {}
    for _number in range(count):
        node, identity = _NODE.unpack(reader.take(_NODE.size))
        members[node] = (identity, Announcement.read(reader))
    reader.end()
    return cluster_id, members


class Waiting:
    """Says why a node waits: when the reason changes, and again from time to time."""

    def __init__(self, say: Callable[[str], None]) -> None:
        self._say = say
        self._last = ""
        self._said_s = 0.0

    def because(self, reason: str) -> None:
        now_s = asyncio.get_running_loop().time()
        if reason != self._last or now_s - self._said_s >= SAY_AGAIN_S:
            self._last, self._said_s = reason, now_s
            self._say(reason)


async def resolve_all(
    network: Network, names: Sequence[Address]
) -> tuple[list[Address], dict[str, str]]:
    """All addresses of all names, each once, and why a name has none."""
    found: dict[Address, None] = {}
    wrong: dict[str, str] = {}
    for name in names:
        try:
            for address in await network.resolve(name.host, name.port):
                found[address] = None
        except OSError as error:
            wrong[show(name)] = f"no address: {error.strerror or error}"
    return list(found)[:MAX_TRIED], wrong


async def join(
    peers: Peers,
    network: Network,
    names: Sequence[Address],
    record: NodeRecord,
    *,
    own: Sequence[Address],
    entropy: Entropy,
    say: Callable[[str], None],
) -> Welcome:
    """Ask at all addresses of `names`, again and again, until one has made `record` a member.
    Raises MembershipRefused when the cluster will never have this node."""
    waiting = Waiting(say)
    payload = encode_request(record)
    while True:
        addresses, reasons = await resolve_all(network, names)
        for address in addresses:
            if address in own:
                continue
            try:
                _identity, answer = await peers.call_address(
                    address, _kinds.JOIN, payload, CALL_TIMEOUT_S
                )
                return decode_welcome(answer)
            except PeerError as error:
                if error.code == NEVER:
                    raise MembershipRefused(error.message) from None
                reasons[show(address)] = error.message
            except PeerRefused as error:
                reasons[show(address)] = str(error)
            except (ClusterError, ValueError) as error:
                reasons[show(address)] = str(error)
        text = "; ".join(f"{where}: {why}" for where, why in reasons.items())
        waiting.because(text or "the only address named is this node's own")
        spread = int.from_bytes(entropy.random_bytes(2), "big") / 0xFFFF
        await asyncio.sleep(RETRY_S * (0.5 + spread))


# --- addresses


def show(address: Address) -> str:
    return (
        f"[{address.host}]:{address.port}" if ":" in address.host else f"{address[0]}:{address[1]}"
    )


def parse_peers(text: str, default_port: int) -> tuple[Address, ...]:
    """`B,C`: each an IP address, IP:PORT, [IPv6]:PORT, or a DNS name with or without a port, which
    else is `default_port`. Raises ValueError with what is accepted."""
    found: dict[Address, None] = {}
    for part in text.split(","):
        part = part.strip()
        if part:
            found[_parse_peer(part, default_port)] = None
    if not found:
        raise ValueError(
            "--peers names no node; write for example --peers 192.168.1.10,192.168.1.11"
        )
    if len(found) > MAX_TRIED:
        raise ValueError(f"--peers names more than {MAX_TRIED} nodes; a few are enough")
    return tuple(found)


def _parse_peer(part: str, default_port: int) -> Address:
    host, port = part, default_port
    wrong = ValueError(
        f"{part!r} is no peer; write an IP address, IP:PORT, [IPv6]:PORT or a DNS name"
    )
    if part.startswith("["):
        inside, bracket, rest = part[1:].partition("]")
        if not bracket or (rest and not rest.startswith(":")):
            raise wrong
        host, text = inside, rest[1:]
    elif part.count(":") == 1:
        host, _, text = part.partition(":")
        if not text:
            raise wrong
    else:
        text = ""
    if text:
        if not text.isascii() or not text.isdigit() or not 1 <= int(text) <= 65535:
            raise wrong
        port = int(text)
    try:
        host = str(ipaddress.ip_address(host))
    except ValueError:
        labels = host.removesuffix(".").split(".")
        valid = all(
            label and len(label) <= 63 and label.replace("-", "").replace("_", "").isalnum()
            for label in labels
        )
        numeric = all(label.isdigit() for label in labels)
        if not valid or numeric or not host.isascii() or len(host) > 253:
            raise wrong from None
    return Address(host, port)
