"""The load generator in C (`open_loop.c`): what it sends, and what it says of the answers.

Requests are signed here before each run, one for each operation and object, which is good for the
fifteen minutes that a signature holds. A body is random bytes with its object's number in front,
and the generator compares every body that comes back with it.
"""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import struct
import subprocess
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from o3storage import _native
from o3storage.cli._client import Client, Credentials, Signer

OBJECTS = 10_000
BODY_BYTES = 4096
LIST_KEYS = 1000
CONNECTIONS = 64
"""Of the closed loop."""
OPEN_CONNECTIONS = 512
"""Of the open loop: a tenth of a second of requests."""
MAX_SECONDS = 600.0
"""Of one run: a signature is refused when it is 15 minutes old."""
MAX_REQUESTS = 10**12
"""No limit but the time's; as in the C source."""
MAX_LINE_BYTES = 1 << 20
"""Of a report: some thousand buckets for each operation."""
BUCKET_BITS = 7
"""As in the C source: a bucket is 0.8 % wide."""
KINDS = {"put": 0, "get": 1, "head": 2, "list": 3}
"""As in the C source; also the operations there are."""


class GeneratorError(Exception):
    """There is no compiler, or the generator did not run to its end."""


class Latencies:
    """How often each latency was seen, to 0.8 %."""

    def __init__(self, max_ns: int = 0, counts: Iterable[tuple[int, int]] = ()) -> None:
        self.max_ns = max_ns
        self._counts = dict(counts)

    def __len__(self) -> int:
        return sum(self._counts.values())

    def add(self, other: Latencies) -> None:
        self.max_ns = max(self.max_ns, other.max_ns)
        for bucket, count in other._counts.items():
            self._counts[bucket] = self._counts.get(bucket, 0) + count

    def ms(self, fraction: float) -> float:
        """A percentile by nearest rank in milliseconds: the middle of its bucket. There is one."""
        left = int(fraction * len(self))
        for bucket in sorted(self._counts):
            left -= self._counts[bucket]
            if left < 0:
                return min(_middle_ns(bucket), self.max_ns) / 1e6
        return self.max_ns / 1e6


def _middle_ns(bucket: int) -> float:
    """Of what `bucket_of` in the C source counts there."""
    shift = max(0, (bucket >> BUCKET_BITS) - 1)
    lowest = (bucket - (shift << BUCKET_BITS)) << shift
    return lowest + ((1 << shift) - 1) / 2


@dataclass(slots=True)
class Report:
    """What the generator saw in one period, or in all of them."""

    at_s: float = 0.0
    """When the period ended, counted from the start."""
    cpu_s: float = 0.0
    """The generator's own, from the start on."""
    crowded: int = 0
    """Requests that found no connection free when they were due."""
    late: Latencies = field(default_factory=Latencies)
    """From the due time to the sending: the generator's own part of the latencies."""
    took: dict[str, Latencies] = field(default_factory=dict)
    """By operation."""
    errors: dict[str, int] = field(default_factory=dict)

    def add(self, later: Report) -> None:
        """Take in the period that follows."""
        self.at_s = later.at_s
        self.cpu_s = later.cpu_s
        self.crowded += later.crowded
        self.late.add(later.late)
        for operation, latencies in later.took.items():
            self.took.setdefault(operation, Latencies()).add(latencies)
        for text, count in later.errors.items():
            self.errors[text] = self.errors.get(text, 0) + count

    def requests(self) -> int:
        """Answers, right or wrong."""
        return sum(len(latencies) for latencies in self.took.values())


def parse_report(line: bytes) -> tuple[Report, bool]:
    """A line of the generator, and whether it is the last. Raises GeneratorError."""

    def latencies(found: dict[str, Any]) -> Latencies:
        return Latencies(int(found["max_ns"]), ((int(b), int(n)) for b, n in found["counts"]))

    try:
        found = json.loads(line)
        report = Report(
            at_s=float(found["at_s"]),
            cpu_s=float(found["cpu_s"]),
            crowded=int(found["crowded"]),
            late=latencies(found["late"]),
            took={name: latencies(of) for name, of in found["operations"].items()},
            errors={str(text): int(count) for text, count in found["errors"].items()},
        )
        return report, bool(found["ended"])
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise GeneratorError(f"not a report of the generator: {line[:200]!r}") from error


def build(directory: Path) -> Path:
    """Compile the generator into `directory`. Raises GeneratorError."""
    compiler = shutil.which("cc")
    if compiler is None:
        raise GeneratorError("this measurement needs a C compiler: install gcc or clang")
    program = directory / "open_loop"
    source = Path(__file__).with_name("open_loop.c")
    subprocess.run([compiler, "-O2", "-std=c11", "-o", str(program), str(source)], check=True)
    return program


class Workload:
    """A mix of operations on OBJECTS objects of BODY_BYTES in one bucket."""

    def __init__(
        self,
        directory: Path,
        endpoint: str,
        key: Credentials,
        *,
        region: str = "us-east-1",
        bucket: str = "bench",
        objects: int = OBJECTS,
    ) -> None:
        """`directory` is for the generator and its files, private and there until the end;
        `endpoint` the URL of a server on this machine, without TLS. Raises GeneratorError."""
        parts = urlsplit(endpoint)
        if parts.scheme != "http" or parts.hostname != "127.0.0.1" or parts.port is None:
            raise GeneratorError(f"{endpoint}: the generator asks http://127.0.0.1:PORT only")
        self.endpoint = endpoint
        self.key = key
        self.region = region
        self.bucket = bucket
        self.objects = objects
        # Random bytes: a store that compresses would otherwise be measured on zeros.
        self._body = os.urandom(BODY_BYTES)
        self._port = parts.port
        self._signer = Signer(key, f"127.0.0.1:{parts.port}", region)
        self._directory = directory
        self._program = build(directory)

    def client(self) -> Client:
        return Client(self.endpoint, self.key, region=self.region)

    async def prepare(self) -> None:
        """Make the bucket and each object once. Raises ClientError, GeneratorError."""
        client = self.client()
        answer = await client.request("PUT", f"/{self.bucket}")
        await client.close()
        if answer.status >= 300 and b"BucketAlreadyOwnedByYou" not in answer.body:
            raise GeneratorError(f"cannot make the bucket: {answer.status} {answer.body[:300]!r}")
        made = await self.run(("put",), MAX_SECONDS, requests=self.objects)
        if made.errors or made.requests() != self.objects:
            raise GeneratorError(f"not all objects could be written: {made.errors}")

    async def run(
        self,
        mix: tuple[str, ...],
        seconds: float,
        *,
        rate: float = 0.0,
        requests: int = MAX_REQUESTS,
        period_s: float = MAX_SECONDS,
        on_period: Callable[[Report], None] | None = None,
    ) -> Report:
        """Load with `mix` (names of KINDS, in turn) for `seconds`, or `requests` if that is less:
        `rate` requests per second, whatever becomes of them, over OPEN_CONNECTIONS; or, without a
        rate, CONNECTIONS of which each asks again as soon as it has its answer. What was seen in
        each `period_s` but the last goes to `on_period`. Raises GeneratorError."""
        if seconds > MAX_SECONDS:
            raise GeneratorError(f"a run of more than {MAX_SECONDS:.0f} s outlives its signatures")
        file = self._directory / "requests"
        file.write_bytes(self._requests(mix))
        process = await asyncio.create_subprocess_exec(
            str(self._program), str(self._port), str(file), repr(float(rate)),
            str(OPEN_CONNECTIONS if rate else CONNECTIONS), repr(float(seconds)), str(requests),
            repr(float(period_s)),
            stdout=asyncio.subprocess.PIPE, limit=MAX_LINE_BYTES,
        )  # fmt: skip
        assert process.stdout is not None
        whole = Report()
        ended = False
        try:
            while line := await process.stdout.readline():
                report, ended = parse_report(line)
                whole.add(report)
                if on_period is not None and not ended:
                    on_period(report)
            if await process.wait() or not ended:
                raise GeneratorError(f"the generator ended with {process.returncode}")
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
        return whole

    def _requests(self, mix: tuple[str, ...]) -> bytes:
        """The file that the generator reads, as its source describes it."""
        operations = tuple(dict.fromkeys(mix))
        parts = [
            b"O3LOAD01",
            struct.pack("<4I", self.objects, len(self._body), len(operations), len(mix)),
        ]
        # A page of a listing names so many keys.
        least = min(LIST_KEYS, self.objects) * len(_key(0))
        for name in operations:
            heads = 1 if name == "list" else self.objects
            parts.append(struct.pack("<8s3I", name.encode(), KINDS[name], heads, least))
        parts.append(bytes(operations.index(name) for name in mix))
        parts.append(self._body)
        for name in operations:
            for number in range(1 if name == "list" else self.objects):
                head = self._head(name, number)
                parts += (struct.pack("<I", len(head)), head)
        return b"".join(parts)

    def _head(self, operation: str, number: int) -> bytes:
        path = f"/{self.bucket}/{_key(number)}"
        query = ""
        method = operation.upper()
        payload = "UNSIGNED-PAYLOAD" if operation == "put" else _native.sha256(b"").hex()
        if operation == "list":
            method, path, query = "GET", f"/{self.bucket}", f"list-type=2&max-keys={LIST_KEYS}"
        headers = self._signer.headers(method, path, query, payload, {})
        lines = [f"{method} {path}{'?' if query else ''}{query} HTTP/1.1"]
        lines += [f"{name}: {value}" for name, value in headers.items()]
        if operation == "put":
            lines.append(f"content-length: {len(self._body)}")
        return ("\r\n".join(lines) + "\r\n\r\n").encode("ascii")


def _key(number: int) -> str:
    return f"bench/{number:08d}"
