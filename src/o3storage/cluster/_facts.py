"""What is known of the nodes: what each says of itself, asked for by `status` on any of them."""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING, Any

from o3storage.cluster import _join, _kinds
from o3storage.cluster._errors import ClusterError
from o3storage.cluster._node_records import SHRINK

if TYPE_CHECKING:
    from o3storage.cluster._membership import Membership

TIMEOUT_S = 1.0
"""A node that does not answer so quickly is shown without its own figures."""
MAX_BYTES = 256 << 10
"""Of an answer: a few hundred bytes for each range that a node leads."""


def encode(member: Membership) -> bytes:
    """The answer to FACTS."""
    return json.dumps(own(member)).encode()[:MAX_BYTES]


def own(member: Membership) -> dict[str, Any]:
    """What other nodes show of this one."""
    groups = []
    for group, replica in member.replicas_here.items():
        core = replica.core
        if core.leader != member.node:
            continue
        groups.append(
            {
                "group": group,
                "term": core.term,
                "voters": [f"{n:016x}" for n in core.configuration.voters],
                "learners": [f"{n:016x}" for n in core.configuration.learners],
                "joint": core.configuration.joint,
                "behind": {
                    f"{n:016x}": max(core.log.last - p.match, 0) for n, p in core.progress.items()
                },
                "debt": {f"{n:016x}": p.debt for n, p in core.progress.items()},
            }
        )
    return {**member.facts(), "leads": groups}


async def gather(member: Membership) -> dict[int, dict[str, Any]]:
    """What every node that can be reached says of itself, by id."""
    others = [r.node for r in member.live() if r.node != member.node]
    answers = await asyncio.gather(*(_ask(member, node) for node in others))
    found = {member.node: own(member)}
    found |= {n: facts for n, facts in zip(others, answers, strict=True) if facts is not None}
    return found


async def _ask(member: Membership, node: int) -> dict[str, Any] | None:
    try:
        answer = await member.peers.call(node, _kinds.FACTS, b"", timeout_s=TIMEOUT_S)
        facts = json.loads(answer)
    except (ClusterError, ValueError):
        return None
    return facts if isinstance(facts, dict) else None


def status(member: Membership) -> dict[str, Any]:
    """Plain data for `status` and `node list`."""
    links = {entry["node"]: entry for entry in member.peers.status()}
    nodes = []
    for record in (member.records[node] for node in sorted(member.records)):
        link = links.get(record.node, {})
        nodes.append(
            {
                "node": f"{record.node:016x}",
                "state": record.state.name.lower(),
                "shrink": bool(record.flags & SHRINK),
                "this": record.node == member.node,
                "up": member.up(record.node),
                "addresses": [_join.show(a) for a in record.announced.addresses],
                "url": record.announced.url,
                "host": record.announced.host,
                "joined_ns": record.joined_ns,
                "versions": [record.announced.lowest, record.announced.highest],
                "problem": link.get("problem", ""),
                "duplicates": link.get("duplicates", 0),
            }
        )
    return {
        "version": member.version,
        "nodes": nodes,
        "listening": _join.show(member.bound) if member.bound else "",
        "secret": member.options.secret is not None,
        "other_clusters": dict(member.whereabouts.foreign),
        "problems": dict(member.peers.problems),
    }
