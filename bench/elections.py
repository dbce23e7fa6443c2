"""Three local nodes under full load for half an hour, and elections that nobody died for.

Load: 64 connections spread over the nodes, as fast as they are answered, PUT, GET and HEAD of 4 KiB
over 100,000 keys; beside it one multipart upload, in parts of 64 MiB that are due at even times, so
that it lasts for nine tenths of the run. Everything is synced on a majority. All nodes and the
client share the cores of this machine.

The upload has 50 GB where the disk has room for three copies of it, and what fits elsewhere. The
term of each range's leader is asked for every few seconds: it grows with each election.
"""

from __future__ import annotations

import asyncio
import os
import re
import shutil
import time

from o3storage.cli._bench import report
from o3storage.cli._client import Client, ClientError
from o3storage.cli._text import Progress, size_text, table

from ._result import Result
from .cluster import CONNECTIONS, NODES, LocalCluster, local_cluster

SECONDS = 1800.0
OBJECTS = 100_000
UPLOAD_BYTES = 50 * 1000**3
UPLOAD_SHARE = 0.7
"""Of the free disk, for all copies: overwritten objects need room until they are compacted."""
PART_BYTES = 64 << 20
LOOK_EVERY_S = 5.0
TRIES = 5
WORK = ("o3_flushes_total", "o3_compactions_total", "o3_loop_slow_steps_total")


class Upload:
    """One object of `parts` parts, which ends after about `seconds`."""

    def __init__(self, client: Client, path: str, parts: int, seconds: float) -> None:
        self._client = client
        self._path = path
        self.parts = parts
        self._seconds = seconds
        self.refused: dict[str, int] = {}
        self.sent = 0

    async def run(self) -> None:
        began_s = time.monotonic()
        body = os.urandom(PART_BYTES)
        answer = await self._ask("POST", {"uploads": ""}, b"")
        found = re.search(rb"<UploadId>(.*?)</UploadId>", answer)
        assert found, answer
        upload = found[1].decode()
        listed = []
        for number in range(1, self.parts + 1):
            due_s = began_s + self._seconds * (number - 1) / self.parts
            await asyncio.sleep(max(0.0, due_s - time.monotonic()))
            query = {"partNumber": str(number), "uploadId": upload}
            etag = await self._ask("PUT", query, number.to_bytes(4, "big") + body[4:])
            listed.append(
                f"<Part><PartNumber>{number}</PartNumber><ETag>{etag.decode()}</ETag></Part>"
            )
            self.sent = number
        text = f"<CompleteMultipartUpload>{''.join(listed)}</CompleteMultipartUpload>"
        await self._ask("POST", {"uploadId": upload}, text.encode())

    async def _ask(self, method: str, query: dict[str, str], body: bytes) -> bytes:
        """The answer's body, or its ETag. What is refused is counted and tried again."""
        for _ in range(TRIES):
            try:
                answer = await self._client.request(
                    method, self._path, query=query, body=body, unsigned_payload=True
                )
                if answer.status == 200 and b"<Error>" not in answer.body:
                    return answer.headers.get("etag", "").encode() or answer.body
                text = f"{method} {answer.status} {answer.body[:200]!r}"
            except ClientError as error:
                text = f"{method} {error}"
            self.refused[text] = self.refused.get(text, 0) + 1
        raise AssertionError(f"the upload is refused: {self.refused}")


async def _work_done(cluster: LocalCluster) -> dict[str, int]:
    """How often the nodes flushed, merged and compacted."""
    done = dict.fromkeys(WORK, 0)
    load = cluster.load("head", "4K", 1, 1.0, 1)
    for _ in range(NODES):
        client = load.client()
        answer = await client.request("GET", "/metrics")
        await client.close()
        for name in WORK:
            found = re.search(rf"^{name} (\d+)", answer.body.decode(), re.MULTILINE)
            done[name] += int(found[1]) if found else 0
    return done


class Watch:
    """Looks at terms, and at the index's tables, until the time is over."""

    def __init__(self, cluster: LocalCluster, seconds: float) -> None:
        self._cluster = cluster
        self._seconds = seconds
        self.seen: list[str] = []
        """Changes of a term."""
        self.merged = 0
        """Tables that went: a merge took them."""

    async def run(self) -> None:
        began_s = time.monotonic()
        before = await self._cluster.terms()
        tables: set[str] = set()
        while (at_s := time.monotonic() - began_s) < self._seconds:
            for group, term in (await self._cluster.terms()).items():
                if term != before.setdefault(group, term):
                    text = f"range {group}: term {before[group]} -> {term} after {at_s:.0f} s"
                    print(text, flush=True)
                    self.seen.append(text)
                before[group] = term
            now = set()
            for number in range(NODES):
                found = (self._cluster.data_dir(number) / "index").glob("*.table")
                now |= {str(path) for path in found}
            self.merged += len(tables - now)
            tables = now
            await asyncio.sleep(LOOK_EVERY_S)


def upload_parts(free_bytes: int) -> int:
    return max(2, min(UPLOAD_BYTES, int(free_bytes * UPLOAD_SHARE / NODES)) // PART_BYTES)


async def _run(cluster: LocalCluster, seconds: float, parts: int) -> list[Result]:
    load = cluster.load("mixed", "4K", CONNECTIONS, seconds, OBJECTS)
    await load.prepare(Progress("objects", OBJECTS))
    work = await _work_done(cluster)
    terms = await cluster.terms()
    upload = Upload(load.client(), f"/{load.bucket}/large", parts, seconds * 0.9)
    watch = Watch(cluster, seconds)
    before_s = sum(os.times()[:2])
    length_s, _, _ = await asyncio.gather(
        load.run(Progress("load", seconds)), upload.run(), watch.run()
    )
    client_s = sum(os.times()[:2]) - before_s
    later = await cluster.terms()
    after = await _work_done(cluster)
    elections = sum(later[group] - term for group, term in terms.items())
    found = report(load, length_s, client_s)
    rows = [
        [name, f"{entry['requests']:,}", f"{entry['requests_per_s']:,.0f}"]
        + [f"{entry[f'{p}_ms']:.1f}" for p in ("p50", "p99", "max")]
        + [str(entry["errors"] or "none")]
        for name, entry in found["operations"].items()
    ]
    print(table(["", "requests", "/s", "p50 ms", "p99 ms", "max ms", "refused"], rows))
    print(
        f"{length_s:.0f} s, client {found['client_cpu_share'] * 100:.0f} % of a core; uploaded "
        f"{size_text(upload.parts * PART_BYTES)} in {upload.parts} parts, tried again: "
        f"{upload.refused or 'none'}; meanwhile, on all nodes, "
        + ", ".join(f"{after[name] - work[name]} {name[3:-6]}" for name in WORK)
        + f", {watch.merged} tables merged; elections: {elections} {watch.seen or ''}"
    )
    return [Result("elections: without a death, under full load", elections, 0)]


def main(seconds: float | None = None) -> list[Result]:
    with local_cluster() as cluster:
        parts = upload_parts(shutil.disk_usage(cluster.directory).free)
        if seconds:
            parts = max(2, int(parts * min(1.0, seconds / SECONDS)))
        return asyncio.run(_run(cluster, seconds or SECONDS, parts))
