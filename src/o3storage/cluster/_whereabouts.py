"""Where members are that do not answer where range 0 says, and who answers there in their place.

A member that moved says so itself once there is a majority; but to get one, the others must find
it. So who is not there is looked for: under the names that were given at the start, and at its old
addresses. Another cluster that answers there is remembered, for `status`.
"""

from __future__ import annotations

import asyncio
import re
from typing import TYPE_CHECKING

from o3storage.cluster import _facts, _join, _kinds
from o3storage.cluster._errors import ClusterError, WrongCluster
from o3storage.cluster._node import number_of
from o3storage.cluster._node_records import Announcement
from o3storage.cluster._peer_types import PeerError, PeerRefused
from o3storage.runtime import Logger
from o3storage.runtime.network import Address, Network

if TYPE_CHECKING:
    from o3storage.cluster._membership import Membership

FIRST_LOOK_S, LOOK_S = 2.0, 10.0
"""After the start, and between looks for members that are not there."""
MAX_FOREIGN = 16
"""Other clusters met, kept for `status`."""

OTHER_CLUSTER = re.compile(r"belongs to cluster ([0-9a-f]{2,64}),")
"""What a node of another cluster answers (`Membership.admit`)."""

_log = Logger("membership")


class Whereabouts:
    """A part of `Membership`; `keep_looking` is a task of its own."""

    def __init__(self, member: Membership, network: Network) -> None:
        self.foreign: dict[str, str] = {}
        """Known address -> id of another cluster that was met there."""
        self._member = member
        self._network = network
        self._moved: dict[int, Address] = {}
        """Members found elsewhere than range 0 says."""

    def met(self, address: Address, cluster: str) -> None:
        """Another cluster, at an address where a node of this one is known, or that was named."""
        place = _join.show(address)
        if self.foreign.get(place) != cluster:
            _log.warning("peers.another_cluster", address=place, cluster=cluster)
        self.foreign[place] = cluster
        while len(self.foreign) > MAX_FOREIGN:
            del self.foreign[next(iter(self.foreign))]

    def moved_to(self, node: int, announced: Announcement) -> tuple[Address, ...]:
        """Where the member was found, if it did not announce that."""
        moved = self._moved.get(node)
        return () if moved is None or moved in announced.addresses else (moved,)

    async def check_peers(self, cluster_id: bytes, known_hosts: dict[str, None]) -> None:
        """A node with data was told of peers: are they of its own cluster? Raises WrongCluster."""
        member = self._member
        addresses, _wrong = await _join.resolve_all(self._network, member.options.peers)
        others = [a for a in addresses if a not in member.own_addresses()]
        if any(address.host in known_hosts for address in others):
            return  # they were nodes of this cluster: `status` tells if that has changed
        ids = await asyncio.gather(*(self._ask_cluster(address) for address in others))
        strange = [(a, found) for a, found in zip(others, ids, strict=True) if found]
        if strange and not any(found == cluster_id for _address, found in strange):
            address, found = strange[0]
            raise WrongCluster(
                f"the data here belongs to cluster {cluster_id.hex()[:8]}, but "
                f"{_join.show(address)} to cluster {found.hex()[:8]}: to join that one, start with "
                "an empty data directory; to go on with this data, leave out --peers"
            )

    async def _ask_cluster(self, address: Address) -> bytes:
        """The id of the cluster of whoever answers there; b"" if nobody says."""
        member = self._member
        try:
            identity, _facts_there = await member.peers.call_address(
                address, _kinds.FACTS, b"", _facts.TIMEOUT_S
            )
        except PeerRefused as error:
            found = OTHER_CLUSTER.search(str(error))
            if found is None:
                return b""
            self.met(address, found[1])
            return bytes.fromhex(found[1])
        except PeerError:
            return member.cluster_id  # it let this node in
        except ClusterError:
            return b""
        self._found_at(number_of(identity), address)
        return member.cluster_id

    def _found_at(self, node: int, address: Address) -> None:
        members = self._member.members
        known = members.nodes.get(node) if members is not None else None
        if known is not None and address not in known[1].addresses:
            if self._moved.get(node) != address:
                _log.info("peers.moved", node=f"{node:016x}", address=_join.show(address))
            self._moved[node] = address
            self._member.show_peers()

    async def keep_looking(self) -> None:
        """For members that are not there: where they were last, and under the names given."""
        await asyncio.sleep(FIRST_LOOK_S)
        while True:
            try:
                await self._look_again()
            except Exception as error:
                _log.error("membership.failed", error=error)
            await asyncio.sleep(LOOK_S)

    async def _look_again(self) -> None:
        """Who answers at the addresses of members that are not there?"""
        member = self._member
        if all(member.up(record.node) for record in member.live()):
            self.foreign.clear()
            return
        named, _wrong = await _join.resolve_all(self._network, member.options.peers)
        known = {a: None for record in member.live() for a in record.announced.addresses}
        for address in named:
            if address not in known and address not in member.own_addresses():
                await self._ask_cluster(address)
        for record in member.live():
            for address in record.announced.addresses:
                place = _join.show(address)
                if member.up(record.node):
                    self.foreign.pop(place, None)
                elif place in member.peers.problems and address not in member.own_addresses():
                    await self._ask_cluster(address)
