"""`range`: where the key ranges begin and end, who holds them, cutting one in two and moving a
replica."""

from __future__ import annotations

import argparse
import asyncio
import json
from typing import Any

from ._store import Admin
from ._text import printable, size_text, table


def ranges(options: argparse.Namespace) -> int:
    """List the ranges, cut one, or move a replica of one."""
    admin = Admin(options)
    if options.action == "list":
        found = asyncio.run(admin.call("GET", "/ranges"))
        print(json.dumps(found, indent=2) if options.json else ranges_text(found))
        return 0
    if options.action in {"move", "stay"}:
        asked = {"action": options.action}
        if options.action == "move":
            asked |= {"from": options.source, "to": options.target}
        asyncio.run(admin.call("POST", f"/ranges/{options.range}", body=asked))
        print(
            f"range {options.range} moves from {options.source} to {options.target}; it is done "
            "when `o3storage range list` shows it there"
            if options.action == "move"
            else f"range {options.range} stays where it is"
        )
        return 0
    body = {"bucket": options.bucket, "key": options.key}
    made = asyncio.run(admin.call("POST", "/ranges", body=body))
    print(f"range {made['range']} begins at {options.bucket}/{options.key}")
    return 0


def ranges_text(found: dict[str, Any]) -> str:
    """A table of ranges, in order of their keys."""
    rows = [
        [
            str(entry["range"]),
            _bound(entry["first"], "(the beginning)"),
            _bound(entry["end"], "(the end)"),
            "elsewhere" if entry["size_bytes"] is None else size_text(entry["size_bytes"]),
            (entry["leader"] or ("none" if entry["size_bytes"] is not None else "?"))[:8],
            _holders(entry, found["nodes"]),
        ]
        for entry in found["ranges"]
    ]
    headings = ["range", "first key", "up to, not with", "size", "leader", "held by"]
    return table(headings, rows)


def _holders(entry: dict[str, Any], nodes: dict[str, str]) -> str:
    """Addresses; who has no vote (yet) in parentheses; a move behind them."""

    def name(node: str) -> str:
        return printable(nodes.get(node, node[:8]))

    held = [name(node) for node in entry["voters"]]
    held += [f"({name(node)})" for node in entry["learners"]]
    move = entry["moves"]
    moving = f"; moves {name(move['from'])} -> {name(move['to'])}" if move is not None else ""
    return (" ".join(held) or "not told yet") + moving


def _bound(bound: dict[str, Any] | None, without: str) -> str:
    if bound is None:
        return without
    bucket = bound["bucket"] or f"(bucket {bound['bucket_id']})"
    return f"{bucket}/{printable(bound['key'])}"
