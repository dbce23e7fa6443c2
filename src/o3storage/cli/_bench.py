"""`bench`: load against any S3 endpoint, with progress and a table of rates and latencies.

What is measured is the client's view: from the first byte sent to the last byte received, on
keep-alive connections, one request at a time on each. The client's own CPU time is stated, since
on a small machine it takes part of what the server could use.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import os
import re
import resource
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ._client import Client, ClientError, Credentials
from ._store import (
    DEFAULT_REGION,
    DEFAULT_URL,
    CommandError,
    credentials,
    region,
    region_advice,
    running,
)
from ._text import Progress, parse_size, printable, size_text, table

MAX_SIZE_BYTES = 5 * 1024**3
"""S3's limit for a single PUT."""
MAX_CONNECTIONS = 4096
MAX_SECONDS = 7 * 24 * 3600
"""A week: latencies are kept until the end."""
MIX = ("put", "get", "get", "get", "head")
"""`mixed`: one write to four reads."""


@dataclass(slots=True)
class Samples:
    latencies_s: list[float] = field(default_factory=list)
    size_bytes: int = 0
    errors: dict[str, int] = field(default_factory=dict)


def percentile(ordered: list[float], fraction: float) -> float:
    """Nearest rank, of a sorted list that is not empty."""
    return ordered[min(len(ordered) - 1, int(fraction * len(ordered)))]


class Load:
    """The running load: connections, keys, samples."""

    def __init__(self, options: argparse.Namespace, size_bytes: int) -> None:
        found = running(options)
        self.endpoint = options.endpoint or (found.url if found else DEFAULT_URL)
        self.region = region(options)
        self.bucket = options.bucket
        self.operation = options.operation
        self.connections = options.connections
        self.seconds = options.seconds
        self.objects = options.objects
        self.ca_file = options.ca_file
        self.key = _key(options)
        # Random bytes: a store that compresses would otherwise be measured on zeros.
        self.body = os.urandom(size_bytes)
        self.samples: dict[str, Samples] = {}
        self._counter = itertools.count()

    def client(self) -> Client:
        return Client(self.endpoint, self.key, region=self.region, ca_file=self.ca_file)

    def path(self, number: int) -> str:
        return f"/{self.bucket}/bench/{number % self.objects:08d}"

    async def one(self, client: Client, operation: str, number: int) -> None:
        samples = self.samples.setdefault(operation, Samples())
        started = time.perf_counter()
        try:
            if operation == "put":
                answer = await client.request(
                    "PUT", self.path(number), body=self.body, unsigned_payload=True
                )
            elif operation == "list":
                answer = await client.request(
                    "GET", f"/{self.bucket}", query={"list-type": "2", "max-keys": "1000"}
                )
            else:
                answer = await client.request(operation.upper(), self.path(number), keep_body=False)
        except ClientError as error:
            samples.errors[str(error)] = samples.errors.get(str(error), 0) + 1
            return
        took = time.perf_counter() - started
        if answer.status >= 300:
            text = f"HTTP {answer.status}"
            samples.errors[text] = samples.errors.get(text, 0) + 1
            return
        samples.latencies_s.append(took)
        samples.size_bytes += len(self.body) if operation == "put" else answer.size_bytes

    def _location(self) -> bytes:
        """The body that makes a bucket: AWS wants the region said anywhere but in its first."""
        if self.region == DEFAULT_REGION:
            return b""
        return (
            '<CreateBucketConfiguration xmlns="http://s3.amazonaws.com/doc/2006-03-01/">'
            f"<LocationConstraint>{self.region}</LocationConstraint>"
            "</CreateBucketConfiguration>"
        ).encode()

    async def prepare(self, progress: Progress) -> None:
        """Make the bucket, and the objects that reads will ask for. Raises CommandError."""
        client = self.client()
        try:
            answer = await client.request("PUT", f"/{self.bucket}", body=self._location())
        except ClientError as error:
            raise CommandError(str(error)) from None
        if answer.status >= 300 and b"BucketAlreadyOwnedByYou" not in answer.body:
            raise CommandError(
                f"cannot make the bucket {self.bucket}: {answer.status} {_reason(answer.body)}"
            )
        await client.close()
        if self.operation == "put":
            return
        done = itertools.count(1)

        async def fill(start: int) -> None:
            mine = self.client()
            for number in range(start, self.objects, self.connections):
                await self.one(mine, "put", number)
                progress.update(next(done), "writing what will be read")
            await mine.close()

        await asyncio.gather(*[fill(n) for n in range(min(self.connections, self.objects))])
        failed = self.samples["put"].errors
        if failed:
            raise CommandError(f"writing the objects to read failed: {next(iter(failed))}")
        self.samples.clear()

    async def run(self, progress: Progress) -> float:
        """The measured part; returns its length in seconds."""
        started = time.perf_counter()
        end = started + self.seconds
        operations = MIX if self.operation == "mixed" else (self.operation,)

        async def worker() -> None:
            client = self.client()
            while time.perf_counter() < end:
                number = next(self._counter)
                await self.one(
                    client, operations[number % len(operations)], number // len(operations)
                )
            await client.close()

        async def show() -> None:
            while (now := time.perf_counter()) < end:
                count = sum(len(samples.latencies_s) for samples in self.samples.values())
                rate = count / max(now - started, 1e-9)
                progress.update(now - started, f"{rate:,.0f} requests/s")
                await asyncio.sleep(min(0.5, max(end - now, 0)))

        await asyncio.gather(show(), *[worker() for _ in range(self.connections)])
        return time.perf_counter() - started


def _reason(body: bytes) -> str:
    """Code and message of an S3 error document and, where it names another region, what to do; or
    the beginning of what came in its place."""
    text = printable(" ".join(body[:1000].decode("utf-8", "replace").split()))
    found = re.search("<Code>(.*?)</Code>.*?<Message>(.*?)</Message>", text)
    if not found:
        return text[:300]
    expected = re.search("<Region>(.*?)</Region>", text)
    return f"{found[1]}: {found[2]}" + region_advice(expected[1] if expected else "")


def _key(options: argparse.Namespace) -> Credentials:
    if not options.key_id:
        return credentials(options)
    if options.secret_file:
        try:
            return Credentials(options.key_id, Path(options.secret_file).read_text().strip())
        except OSError as error:
            raise CommandError(f"cannot read {options.secret_file}: {error.strerror}") from None
    secret = os.environ.get("AWS_SECRET_ACCESS_KEY")
    if not secret:
        raise CommandError("--key-id needs --secret-file or AWS_SECRET_ACCESS_KEY")
    return Credentials(options.key_id, secret)


def report(load: Load, length_s: float, client_cpu_s: float) -> dict[str, Any]:
    """The result as plain data; latencies in milliseconds."""
    operations = {}
    for name, samples in sorted(load.samples.items()):
        ordered = sorted(samples.latencies_s)
        entry: dict[str, Any] = {
            "requests": len(ordered),
            "errors": samples.errors,
            "requests_per_s": len(ordered) / length_s,
            "mib_per_s": samples.size_bytes / length_s / 1024**2,
        }
        if ordered:
            for label, fraction in (("p50", 0.5), ("p90", 0.9), ("p99", 0.99), ("p999", 0.999)):
                entry[f"{label}_ms"] = percentile(ordered, fraction) * 1e3
            entry["max_ms"] = ordered[-1] * 1e3
        operations[name] = entry
    return {
        "endpoint": load.endpoint,
        "size_bytes": len(load.body),
        "connections": load.connections,
        "seconds": length_s,
        "client_cpu_share": client_cpu_s / length_s,
        "operations": operations,
    }


def bench(options: argparse.Namespace) -> int:
    """Run the load and print the table; exit 1 when any request failed."""
    try:
        size_bytes = parse_size(options.size)
    except ValueError as error:
        raise CommandError(f"--size: {error}") from None
    if not 0 <= size_bytes <= MAX_SIZE_BYTES:
        raise CommandError("--size: a single PUT is at most 5 GiB")
    if not 1 <= options.connections <= MAX_CONNECTIONS:
        raise CommandError(f"--connections: 1 to {MAX_CONNECTIONS}")
    if options.objects < 1:
        raise CommandError("--objects must be above zero")
    if not 0 < options.seconds <= MAX_SECONDS:  # (false for nan as well)
        raise CommandError(f"--seconds: above 0, at most {MAX_SECONDS:,}")
    load = Load(options, size_bytes)

    async def measure() -> tuple[float, float]:
        filling = Progress("prepare", load.objects)
        await load.prepare(filling)
        filling.done()
        running_bar = Progress("measure", load.seconds)
        before = resource.getrusage(resource.RUSAGE_SELF)
        length_s = await load.run(running_bar)
        after = resource.getrusage(resource.RUSAGE_SELF)
        running_bar.done()
        cpu_s = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
        return length_s, cpu_s

    length_s, cpu_s = asyncio.run(measure())
    result = report(load, length_s, cpu_s)
    if options.json:
        print(json.dumps(result, indent=2))
    else:
        print(_table(result))
    return 1 if any(entry["errors"] for entry in result["operations"].values()) else 0


def _table(result: dict[str, Any]) -> str:
    rows = []
    for name, entry in result["operations"].items():
        times = [
            f"{entry[f'{label}_ms']:.2f}" if "max_ms" in entry else "-"
            for label in ("p50", "p90", "p99", "p999", "max")
        ]
        rows.append(
            [
                name,
                f"{entry['requests']:,}",
                f"{sum(entry['errors'].values()):,}",
                f"{entry['requests_per_s']:,.0f}",
                f"{entry['mib_per_s']:,.1f}",
                *times,
            ]
        )
    lines = [
        f"{result['endpoint']}: {size_text(result['size_bytes'])} objects, "
        f"{result['connections']} connections, {result['seconds']:.1f} s; "
        f"this client used {result['client_cpu_share'] * 100:.0f} % of one core",
        table(
            ["operation", "requests", "errors", "/s", "MiB/s", "p50", "p90", "p99", "p99.9", "max"],
            rows,
        ),
        "latencies in milliseconds",
    ]
    for name, entry in result["operations"].items():
        for text, count in entry["errors"].items():
            lines.append(f"{name}: {count} x {text}")
    return "\n".join(lines)
