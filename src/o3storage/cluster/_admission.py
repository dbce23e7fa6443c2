"""Who may connect: what this node says first on a link, and how it judges what the other says.

A member is known by its key, which range 0 names. Anyone else proves the cluster's secret, and may
then only ask to join (`_secret`, `_join`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from o3storage.cluster._node import number_of
from o3storage.cluster._node_records import REMOVED_TEXT, NodeState
from o3storage.cluster._peer_types import GUEST, MEMBER, Verdict, refuse
from o3storage.cluster._wire import Hello
from o3storage.runtime.network import Link

if TYPE_CHECKING:
    from o3storage.cluster._membership import Membership

JOINER, INSIDE = 1, 2
"""Hello.role: a node that asks to join; one that belongs to a cluster."""


class Gate:
    """`hello` and `admit` of `Peers`."""

    def __init__(self, member: Membership) -> None:
        self._member = member

    def hello(self, link: Link) -> Hello:
        """What this node says first on a link."""
        member, secret = self._member, self._member.options.secret
        proof = b""
        if secret is not None:
            role = "connect" if link.outgoing else "accept"
            proof = secret.proof(link.binding, self._member.keys.identity, link.peer, role)
        return Hello(
            cluster=member.cluster_id,
            role=INSIDE if member.cluster_id else JOINER,
            addresses=member.own_addresses(),
            proof=proof,
        )

    def admit(self, link: Link, hello: Hello) -> Verdict:
        """What the peer may do."""
        if number_of(link.peer) != hello.node:
            return refuse("its id does not come from its key")
        if hello.cluster and self._member.cluster_id and hello.cluster != self._member.cluster_id:
            for address in hello.addresses:
                if address.host == link.address.host and address.host in self._member.known_hosts:
                    self._member.whereabouts.met(address, hello.cluster.hex())
            return refuse(
                f"this node belongs to cluster {self._member.cluster_id.hex()}, not to "
                f"{hello.cluster.hex()}"
            )
        if hello.cluster and self._member.cluster_id:
            return self._admit_member(link, hello)
        if not self._proven(link, hello):
            if self._member.options.secret is None:
                return refuse("this node was given no cluster secret, so nobody can join here")
            return refuse("it does not know the cluster's secret")
        return GUEST

    def _admit_member(self, link: Link, hello: Hello) -> Verdict:
        record = self._member.records.get(hello.node)
        if record is not None:
            if record.identity != link.peer:
                return refuse("the cluster knows this id with another key")
            if record.state is NodeState.REMOVED:
                return refuse(REMOVED_TEXT)
            return MEMBER
        known = self._member.members.nodes.get(hello.node) if self._member.members else None
        if known is not None and known[0] == link.peer:
            return MEMBER
        if self._member.introductions.knows(hello.node, link.peer):
            return MEMBER
        self._member.introductions.called_upon(hello.node)
        if self._proven(link, hello):
            return GUEST  # it may know of its joining before this node does
        return refuse("this node does not know it as a member yet")

    def _proven(self, link: Link, hello: Hello) -> bool:
        secret = self._member.options.secret
        role = "accept" if link.outgoing else "connect"
        return secret is not None and secret.proves(
            hello.proof, link.binding, link.peer, self._member.keys.identity, role
        )
