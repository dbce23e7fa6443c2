"""`node`: the nodes of the cluster, and what the operator does with them."""

from __future__ import annotations

import argparse
import asyncio
import json
from typing import Any

from o3storage.cluster import ClusterError, parse_peers
from o3storage.server import StartError, read_join_secret

from ._store import Admin, CommandError, data_dir, running
from ._text import duration_text, printable, size_text, table


def node(options: argparse.Namespace) -> int:
    """List, drain, remove, replace or keep nodes, or print the join token."""
    if options.action == "token":
        return _token(options)
    admin = Admin(options)
    if options.action == "list":
        found = asyncio.run(admin.call("GET", "/nodes"))
        print(json.dumps(found, indent=2) if options.json else nodes_text(found))
        return 0
    body = {"action": options.action, "shrink": getattr(options, "shrink", False)}
    changed = asyncio.run(admin.call("POST", f"/nodes/{options.node}", body=body))
    print(
        f"node {changed['node']} is {changed['state']} now; o3storage node list shows how far it is"
    )
    return 0


def _token(options: argparse.Namespace) -> int:
    found = running(options)
    try:
        secret = read_join_secret(str(data_dir(options)))
    except (StartError, ClusterError) as error:
        raise CommandError(str(error)) from None
    if secret is None:
        raise CommandError(
            f"no cluster secret in {data_dir(options)} or in O3_CLUSTER_SECRET; name the store's "
            "directory with --data-dir"
        )
    if found is None or not found.peers:
        raise CommandError("the store is not running, or does not listen for other nodes")
    print(secret.token(parse_peers(found.peers, 1)))
    return 0


def nodes_text(found: dict[str, Any]) -> str:
    """A table of nodes, then what is wrong, one line each."""
    rows = []
    leads = {group["leader"]: 0 for group in found["groups"]}
    behind: dict[str, int] = {}
    debt: dict[str, int] = {}
    for group in found["groups"]:
        leads[group["leader"]] += 1
        for name, entries in group["behind"].items():
            behind[name] = behind.get(name, 0) + entries
        for name, entries in group["debt"].items():
            debt[name] = debt.get(name, 0) + entries
    for entry in found["nodes"]:
        facts, name = entry["facts"], entry["node"]
        votes = sum(name in group["voters"] for group in found["groups"])
        rows.append(
            [
                (entry["addresses"] or ["-"])[0],
                name[:8],
                entry["state"] + ("*" if entry["this"] else ""),
                _link(entry),
                f"{votes}/{leads.get(name, 0)}",
                str(behind.get(name, 0)),
                str(debt.get(name, 0)),
                _disk(facts),
                printable(str(facts.get("release", "-"))),
                duration_text(facts["uptime_s"]) if facts else "-",
            ]
        )
    headings = ["node", "id", "state", "link", "votes/leads", "behind", "debt", "disk", "release"]
    lines = [table([*headings, "up"], rows)]
    return "\n".join(lines + problems_of(found))


def _link(entry: dict[str, Any]) -> str:
    if entry["state"] == "removed":
        return "-"
    return "up" if entry["up"] else "DOWN"


def _disk(facts: dict[str, Any]) -> str:
    if not facts:
        return "-"
    if facts["out_of_service"]:
        return "FAILED"
    return ("FULL " if facts["full"] else "") + f"{size_text(facts['used_bytes'])} used"


def problems_of(found: dict[str, Any]) -> list[str]:
    """What an operator should look at, a line each. Parts of it come from other nodes, and from who
    claims to be one."""
    return [printable(line) for line in _problems(found)]


def _problems(found: dict[str, Any]) -> list[str]:
    lines = [
        f"WARNING range {number} has no leader: a majority of its voters is not there"
        for number in found["without_leader"]
    ]
    lines += [
        f"WARNING range {group['group']}: {group['voters_up']} of {len(group['voters'])} voters "
        f"up, {group['quorum']} are needed"
        for group in found["groups"]
        if group["voters_up"] < len(group["voters"])
    ]
    for place, cluster in found["other_clusters"].items():
        lines.append(f"WARNING another cluster ({cluster[:8]}) answers at {place}")
    for entry in found["nodes"]:
        name = (entry["addresses"] or [entry["node"][:8]])[0]
        if entry["duplicates"]:
            lines.append(f"WARNING two processes run with the identity of {name}: stop one")
        if entry["state"] in {"member", "draining"} and not entry["up"]:
            # (The problem names the address that was tried.)
            why = entry["problem"].removeprefix(f"{name}: ").removeprefix(f"{name}: ")
            lines.append(f"WARNING {name} cannot be reached: {why or 'no answer'}")
        facts = entry["facts"]
        if facts.get("out_of_service"):
            lines.append(f"WARNING the disk of {name} is out of service: {facts['out_of_service']}")
        if facts.get("scrub_bad"):
            lines.append(f"WARNING scrub found {facts['scrub_bad']} bad records on {name}")
    lowest = {entry["versions"][1] for entry in found["nodes"] if entry["state"] != "removed"}
    if len(lowest) > 1:
        lines.append(
            f"an upgrade is under way: the nodes speak up to {sorted(lowest)}, the cluster uses "
            f"version {found['version']}"
        )
    lines += [f"note {place}: {text}" for place, text in found["problems"].items()]
    return lines
