"""`range`: where the key ranges begin and end, and cutting one in two."""

from __future__ import annotations

import argparse
import asyncio
import json
from typing import Any

from ._store import Admin
from ._text import printable, size_text, table


def ranges(options: argparse.Namespace) -> int:
    """List the ranges, or cut one."""
    admin = Admin(options)
    if options.action == "list":
        found = asyncio.run(admin.call("GET", "/ranges"))
        print(json.dumps(found, indent=2) if options.json else ranges_text(found))
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
            size_text(entry["size_bytes"]),
            (entry["leader"] or "none")[:8],
            f"{len(entry['voters'])}+{len(entry['learners'])}",
        ]
        for entry in found["ranges"]
    ]
    headings = ["range", "first key", "up to, not with", "size", "leader", "voters+learners"]
    return table(headings, rows)


def _bound(bound: dict[str, Any] | None, without: str) -> str:
    if bound is None:
        return without
    bucket = bound["bucket"] or f"(bucket {bound['bucket_id']})"
    return f"{bucket}/{printable(bound['key'])}"
