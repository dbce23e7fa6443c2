"""The end of a campaign: all is healed, and each node is asked for everything."""

from __future__ import annotations

import asyncio
import json
import time
from collections import Counter
from pathlib import Path
from typing import Any

from o3storage import _native

from .client import BUCKETS
from .nodes import Node

SETTLE_TIMEOUT_S = 240.0
"""For nodes that missed all sorts of things, on a machine that is shared with other work."""
REPLICAS = 3
"""Of a key range; range 0 is on every node."""
AT_ONCE = 8
"""Requests at a time to one node."""
OPEN_UPLOAD = "of the open upload"
"""How `verify` calls the parts of an upload that was not completed: no GET reads them."""
TRIES = 30
"""Of one request while a node answers 503, a second apart."""


class NotSettledError(RuntimeError):
    """The healed nodes did not come to agree in time."""


async def settled(nodes: list[Node]) -> float:
    """Wait until every range has its replicas, and they lack nothing; how long it took. Raises
    NotSettledError."""
    began_s = time.monotonic()
    why = "nobody answers"
    while time.monotonic() < began_s + SETTLE_TIMEOUT_S:
        found = [await node.listing() for node in nodes]
        why = next((w for w in (_unsettled(f, len(nodes)) for f in found) if w), "")
        if not why:
            return time.monotonic() - began_s
        await asyncio.sleep(1)
    raise NotSettledError(why)


def _unsettled(found: dict[str, Any] | None, count: int) -> str:
    if found is None:
        return "a node does not answer"
    members = [n for n in found["nodes"] if n["state"] != "removed"]
    if len(members) != count or not all(n["up"] and n["answers"] for n in members):
        return f"not all up: {[(n['node'], n['state'], n['up']) for n in members]}"
    if found["without_leader"] or len(found["groups"]) < 2:
        return f"ranges without a leader: {found['without_leader']}"
    for group in found["groups"]:
        here = len(group["voters"]) + len(group["learners"])
        lacks = any(group["behind"].values()) or any(group["debt"].values())
        wanted = count if group["group"] == 0 else min(count, REPLICAS)
        if group["joint"] or here != wanted or lacks:
            return f"range not settled: {group}"
    return ""


class Reading:
    """All that one node holds, read through it."""

    def __init__(
        self, node: Node, number: int, out: Path, written: dict[tuple[str, str], None]
    ) -> None:
        """`written`: (bucket, key) of all that may be there, also if no listing shows it."""
        self.node = node
        self.written = written
        self.client = f"{number}"
        self.file = out.with_name(f"{out.name}.{number}").open("w")
        self.calls = 0
        self.tries: Counter[int] = Counter()
        self.state: dict[str, Any] = {}
        """What must be equal on all nodes: listings, and each version's bytes."""
        self._gate = asyncio.Semaphore(AT_ONCE)

    async def run(self) -> None:
        for bucket in BUCKETS:
            await self.bucket(bucket)
        self.file.close()

    async def ask(self, path: str, query: dict[str, str] | None = None) -> tuple[int, bytes]:
        status, body = 0, b""
        for turn in range(TRIES):
            if turn:
                await asyncio.sleep(1)
            async with self._gate:
                status, body = await self.node.ask("GET", path, query=query)
            self.tries[status] += 1
            if status in (200, 404):
                break
        return status, body

    async def bucket(self, bucket: str) -> None:
        current = await self._pages(bucket, {"list-type": "2"}, "NextContinuationToken")
        self.state[f"{bucket} current"] = current
        listed = {key: etag for key, etag, _ in current}
        keys = {**listed, **{k: listed.get(k, "") for b, k in self.written if b == bucket}}
        jobs = [self.read(bucket, key, etag) for key, etag in keys.items()]
        if bucket == "versioned":
            versions = await self._pages(bucket, {"versions": ""}, "NextKeyMarker")
            self.state[f"{bucket} versions"] = versions
            by_key: dict[str, list[tuple[str, str]]] = {}
            for key, etag, version in versions:
                by_key.setdefault(key, []).append((etag, version))
            for key, found in by_key.items():
                self.note_versions(bucket, key, [(key, etag) for etag, _ in found])
                # (The newest is read as the current one.)
                jobs += [self.read(bucket, key, e, v) for e, v in found[1:] if e]
        await asyncio.gather(*jobs)

    async def _pages(
        self, bucket: str, query: dict[str, str], next_name: str
    ) -> list[tuple[str, str, str]]:
        """(key, ETag or "" for a marker, version id) of a whole listing."""
        found: list[tuple[str, str, str]] = []
        while True:
            status, body = await self.ask(f"/{bucket}", query)
            if status != 200:
                found.append(("", f"listing failed: {status} {body[:200]!r}", ""))
                return found
            root = _xml(body)
            for item in root:
                if item.tag in ("Contents", "Version", "DeleteMarker"):
                    etag = (item.findtext("ETag") or "").strip('"')
                    version = item.findtext("VersionId") or ""
                    found.append((item.findtext("Key") or "", etag, version))
            token = root.findtext(next_name)
            if not token:
                return found
            if next_name == "NextKeyMarker":
                marker = root.findtext("NextVersionIdMarker") or ""
                query = {**query, "key-marker": token, "version-id-marker": marker}
            else:
                query = {**query, "continuation-token": token}

    async def read(self, bucket: str, key: str, etag: str, version: str = "") -> None:
        self.calls += 1
        number, call_s = self.calls, time.monotonic()
        query = {"versionId": version} if version else None
        status, body = await self.ask(f"/{bucket}/{key}", query)
        md5 = _native.md5(body)
        shown = _native.md5(md5).hex() + "-1" if etag.endswith("-1") else md5.hex()
        if etag or status != 404:  # (else nobody says that it should be there)
            self.state[f"{bucket}/{key} {version}"] = (status, shown)
        entry: dict[str, Any] = {
            "n": number,
            "kind": "get-version" if version else "get",
            "bucket": bucket,
            "key": key,
            "node": self.node.number,
            "etag": etag,
            "call": call_s,
            "ret": time.monotonic(),
        }
        if status == 200:
            entry |= {"end": "ok", "seen": shown}
        else:
            entry |= {"end": "error", "status": status or 503, "code": "at the end"}
        self.file.write(json.dumps(entry) + "\n")

    def note_versions(self, bucket: str, key: str, versions: list[tuple[str, str]]) -> None:
        """Of one key. Nothing is written any more, so the instant of this note is good."""
        self.calls += 1
        entry = {
            "n": self.calls,
            "kind": "versions",
            "bucket": bucket,
            "key": key,
            "node": self.node.number,
            "call": time.monotonic(),
            "ret": time.monotonic(),
            "end": "ok",
            "versions": versions,
        }
        self.file.write(json.dumps(entry) + "\n")


def _xml(body: bytes) -> Any:
    from xml.etree import ElementTree

    from .client import NAMESPACE

    return ElementTree.fromstring(body.replace(NAMESPACE, b""))


def compare(readings: list[Reading]) -> list[str]:
    """Where two nodes differ, and what none of them could give."""
    wrong: list[str] = []
    first = readings[0]
    for other in readings[1:]:
        keys = dict.fromkeys([*first.state, *other.state])
        for key in keys:
            here, there = first.state.get(key), other.state.get(key)
            if here != there:
                text = f"nodes {first.node.number} and {other.node.number} differ in {key}"
                wrong.append(f"{text}: {str(here)[:300]} / {str(there)[:300]}")
    for reading in readings:
        for key, value in reading.state.items():
            if isinstance(value, tuple) and value[0] != 200:
                wrong.append(f"node {reading.node.number} cannot give {key}: {value}")
    return wrong


def judge(node: Node) -> list[str]:
    """`verify` of the stopped node: good but for the volumes in which bits were flipped, and of the
    frames for those of uploads that nobody completed. (All others were read, and so repaired.)"""
    report = node.verify()
    if report["code"] == 0:
        return []
    flipped = {name for name, _ in node.flipped}
    lost = report.get("lost", {})
    of_uploads = bool(flipped and lost) and all(OPEN_UPLOAD in name for name in lost)
    wrong = [
        f"{problem['kind']} {problem['where']}: {problem['detail']}"
        for problem in report["problems"]
        if not (
            of_uploads
            if problem["kind"] == "frame"
            else any(name in problem["where"] for name in flipped)
        )
    ]
    wrong += [f"lost {name}" for name in lost if OPEN_UPLOAD not in name]
    if report.get("error"):
        wrong.append(str(report["error"]))
    return [f"verify of node {node.number}: {text}" for text in wrong]
