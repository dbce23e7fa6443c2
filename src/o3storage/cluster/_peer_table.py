"""What is known of one other node: its links, the attempts to connect, what is wrong with it."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import Any

from o3storage.cluster._peer_link import PeerLink
from o3storage.cluster._wire import Lane
from o3storage.runtime.network import Address


@dataclass(slots=True)
class Peer:
    """What is known of one node."""

    node: int
    identity: bytes = b""
    addresses: tuple[Address, ...] = ()
    links: list[PeerLink | None] = field(default_factory=lambda: [None, None])
    """By lane; ready."""
    dialing: list[asyncio.Task[None] | None] = field(default_factory=lambda: [None, None])
    retries: list[asyncio.TimerHandle | None] = field(default_factory=lambda: [None, None])
    failures: list[int] = field(default_factory=lambda: [0, 0])
    at: int = 0
    """Index of the address that worked last."""
    sessions: list[int] = field(default_factory=list)
    """Seen, the current one last."""
    duplicates: int = 0
    problem: str = ""
    waiters: list[list[asyncio.Future[None]]] = field(default_factory=lambda: [[], []])

    def status(self, now_s: float) -> dict[str, Any]:
        """What `Peers.status` says of it."""
        lanes: dict[str, dict[str, Any]] = {}
        for lane in (Lane.CONSENSUS, Lane.BULK):
            link = self.links[lane]
            if link is None:
                lanes[lane.name.lower()] = {"up": False, "failures": self.failures[lane]}
            else:
                lanes[lane.name.lower()] = {
                    "up": True,
                    "address": f"{link.link.address.host}:{link.link.address.port}",
                    "opened_here": link.outgoing,
                    "version": link.version,
                    "up_s": round(now_s - link.made_s, 3),
                    "unsent_bytes": link.unsent_bytes,
                    "sent_bytes": link.sent_bytes,
                    "received_bytes": link.received_bytes,
                    "streams": len(link.streams),
                }
        hello = next((link.hello for link in self.links if link and link.hello), None)
        return {
            "node": self.node,
            "up": self.links[Lane.CONSENSUS] is not None,
            "lanes": lanes,
            "versions": [hello.lowest, hello.highest] if hello else [],
            "duplicates": self.duplicates,
            "problem": self.problem,
        }
