"""`status`, `env` and `key`: commands that talk to a running store, or read its root key."""

from __future__ import annotations

import argparse
import asyncio
import json
import shlex
import time
from typing import Any

from ._node_commands import nodes_text, problems_of
from ._store import DEFAULT_URL, Admin, credentials, running
from ._text import duration_text, size_text, table


def status(options: argparse.Namespace) -> int:
    """Print what the store says of itself; exit 1 when it does not take writes."""
    answer: dict[str, Any] = asyncio.run(Admin(options).call("GET", "/status"))
    if options.json:
        print(json.dumps(answer, indent=2, sort_keys=True))
    else:
        print(status_text(answer))
    return 0 if answer["cluster"]["write_enabled"] else 1


def status_text(answer: dict[str, Any]) -> str:
    cluster, storage = answer["cluster"], answer["storage"]
    writes = "accepted" if cluster["write_enabled"] else "REFUSED: " + cluster.get("reason", "")
    lines = [
        f"O3Storage {answer['version']}, up {duration_text(answer['uptime_s'])}, "
        f"status {answer['status']}",
        f"  writes    {writes}",
        f"  nodes     {cluster['active_nodes']} active, replicas {cluster['total_replicas']}",
        f"  objects   {_count(storage['total_objects'])}",
        f"  space     {size_text(storage['used_space_bytes'])} used, "
        f"{size_text(storage['available_space_bytes'])} available",
    ]
    detail = answer.get("detail") or {}
    lines += [f"  {name:<9} {detail[name]}" for name in sorted(detail)]
    nodes = answer.get("nodes")
    if nodes and len(nodes["nodes"]) > 1:
        lines += ["", nodes_text(nodes)]
    elif nodes:
        lines += problems_of(nodes)
    return "\n".join(lines)


def _count(objects: int | None) -> str:
    return "unknown: no majority of the nodes" if objects is None else f"{objects:,} current"


def env(options: argparse.Namespace) -> int:
    """Print export lines that make every AWS tool talk to this store."""
    found = running(options)
    key = credentials(options)
    for name, value in {
        "AWS_ACCESS_KEY_ID": key.key_id,
        "AWS_SECRET_ACCESS_KEY": key.secret,
        "AWS_REGION": found.region if found else "us-east-1",
        "AWS_DEFAULT_REGION": found.region if found else "us-east-1",
        "AWS_ENDPOINT_URL": found.url if found else DEFAULT_URL,
    }.items():
        print(f"export {name}={shlex.quote(value)}")
    # A token of another provider in the shell would be sent along and refused.
    print("unset AWS_SESSION_TOKEN AWS_PROFILE")
    return 0


def key(options: argparse.Namespace) -> int:
    """Make, list or remove access keys; exchange the root key or the master key."""
    if options.action == "rotate-master":
        from ._master import rotate  # (opens the store's files; the others only ask the server)

        return rotate(options)
    admin = Admin(options)
    if options.action == "create":
        made = asyncio.run(admin.call("POST", "/keys", body={"owner": options.owner}))
        print(f"key id   {made['key_id']}")
        print(f"secret   {made['secret']}")
        print(f"owner    {made['owner']}")
        print("The secret is shown this once; it cannot be read back.")
        return 0
    if options.action == "list":
        query = {"owner": options.owner} if options.owner else {}
        keys = asyncio.run(admin.call("GET", "/keys", query=query))["keys"]
        rows = [
            [
                entry["key_id"],
                entry["owner"],
                time.strftime("%Y-%m-%d %H:%M", time.gmtime(entry["created_ns"] / 1e9))
                if entry["created_ns"]
                else "-",
            ]
            for entry in keys
        ]
        print(table(["key id", "owner", "created (UTC)"], rows))
        return 0
    if options.action == "rotate-root":
        made = asyncio.run(admin.call("POST", "/keys/root"))
        print(f"key id   {made['key_id']}")
        print(f"secret   {made['secret']}")
        print("It is the root key of every node from now on; each keeps it in root-credentials.")
        return 0
    asyncio.run(admin.call("DELETE", f"/keys/{options.key_id}"))
    print(f"removed {options.key_id}")
    return 0
