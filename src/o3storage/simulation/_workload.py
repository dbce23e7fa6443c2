"""Seeded S3 clients: each draws operations, sends them through the real S3 layer, and records what
it was told. Bodies are unique, so that a body, or its ETag, names the write it came from.

All clients wake at the same instants (`World.bursts`) and then work without pause, because a run of
some hundred operations spread evenly over half a minute would never have two at once.
"""

from __future__ import annotations

import asyncio
import random
from base64 import urlsafe_b64decode
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from o3storage import _native
from o3storage.catalog._read_lists import FROM

from ._history import MARKER, Kind, Operation, Page, Result
from ._requests import Answer, Call, Truncated

if TYPE_CHECKING:
    from ._machine import Machine
    from ._world import World

PLAIN_BUCKET = "plain"
VERSIONED_BUCKET = "versioned"
BUCKETS = (PLAIN_BUCKET, VERSIONED_BUCKET)
KEYS = ("a", "a b+é", "dir/1", "dir/2", "dir/3", "z")
SIZES = (
    (60, 8, 2_000),
    (15, 2_000, 32_768),
    (12, 32_769, 90_000),
    (9, 262_140, 280_000),
    (4, 520_000, 600_000),
)
"""(weight, least, most) bytes: beside the entry, one frame of the bulk, a frame's border, three
frames."""
LEAST_OPERATIONS = 150
"""Of a run. Clients of which a fault held up most go on until there were so many."""
LATE_PAUSE_S = 0.2
PART_BYTES = 5 << 20
"""S3's least size of a part that is not the last one."""
WEIGHTS = {
    "put": 26,
    "put-absent": 12,
    "put-match": 10,
    "delete": 10,
    "get": 22,
    "head": 5,
    "list": 10,
    "versions": 3,
    "get-version": 7,
    "remove-version": 4,
    "multipart": 3,
}
CUT_SHARE = 0.03
"""Part of the writes whose client goes away in the middle."""


class Lost(Exception):
    """The connection ended without an answer: the outcome is unknown."""


@dataclass(slots=True)
class Value:
    """What one write wrote."""

    number: int
    body: bytes
    etag: str
    version_id: str = ""


class Values:
    """All values of a run, by number and by ETag."""

    def __init__(self) -> None:
        self.by_number: dict[int, Value] = {}
        self.by_etag: dict[str, Value] = {}

    def make(self, rng: random.Random, size: int, *, parts: int = 0) -> Value:
        number = len(self.by_number) + 1
        body = (b"%d:" % number + rng.randbytes(size))[: max(size, 8)]
        etag = _native.md5(body).hex()
        if parts:
            cut = [body[:PART_BYTES], body[PART_BYTES:]][:parts]
            etag = f"{_native.md5(b''.join(_native.md5(part) for part in cut)).hex()}-{parts}"
        value = Value(number, body, f'"{etag}"')
        self.by_number[number] = value
        self.by_etag[value.etag] = value
        return value


def _page_end(token: str, last: str) -> str:
    """The last key that a page with this token covers, of the workload's keys; `last`: it showed.
    Where a range of keys ended, what lies between is not there, and the next page begins behind."""
    after = urlsafe_b64decode(token)[1:] if token else b""
    if not after.endswith(FROM):
        return last
    border = after[: -len(FROM)].decode()
    return max([last, *(key for key in KEYS if key < border)])


class Client:
    """One virtual client: `work` until the last burst."""

    def __init__(self, world: World, name: str) -> None:
        self.world = world
        self.name = name
        self.rng = world.rng(f"client/{name}")
        self.among: Sequence[Machine] = ()
        """The machines that it speaks to; all of them if none is named."""
        self.patience_s: float | None = None
        """It goes away without an answer after so long."""

    async def work(self) -> None:
        rng, world = self.rng, self.world
        choices, weights = list(WEIGHTS), list(WEIGHTS.values())
        for burst in world.bursts:
            pause = burst - world.loop.time() + rng.random() * 0.003
            if pause > 0:
                await asyncio.sleep(pause)
            if rng.random() < 0.25:
                continue
            for _ in range(rng.choice((1, 1, 2, 3))):
                await world.serving.wait()
                await self.operate(rng.choices(choices, weights)[0])
                if rng.random() < 0.3:
                    await asyncio.sleep(rng.random() * 0.002)
        while len(world.history.operations) < LEAST_OPERATIONS:
            await world.serving.wait()
            await self.operate(rng.choices(choices, weights)[0])
            await asyncio.sleep(rng.random() * LATE_PAUSE_S)

    async def operate(self, what: str) -> None:
        rng = self.rng
        bucket = rng.choice(BUCKETS)
        # In each burst one key is hot, so that writes race.
        key = KEYS[int(self.world.loop.time()) % len(KEYS)]
        if rng.random() < 0.5:
            key = rng.choice(KEYS)
        if what == "put":
            await self.put(bucket, key)
        elif what == "put-absent":
            await self.put(bucket, key, "absent")
        elif what == "put-match":
            await self.put(bucket, key, "match")
        elif what == "delete":
            await self.delete(bucket, key)
        elif what == "get":
            await self.get(bucket, key, part=rng.random() < 0.2)
        elif what == "head":
            await self.get(bucket, key, method="HEAD")
        elif what == "list":
            await self.list(bucket, rng.choice((1, 2, 3, 1000)))
        elif what == "versions":
            await self.list_versions(bucket)
        elif what == "multipart":
            await self.multipart(bucket, key)
        else:
            known = [
                op.value
                for op in self.world.history.operations
                if op.bucket == VERSIONED_BUCKET
                and op.value
                and self.world.values.by_number[op.value].version_id
            ]
            if not known:
                return
            number = rng.choice(known[-12:])
            if what == "get-version":
                await self.get_version(number)
            else:
                await self.remove_version(number)

    # --- writes

    def _body(self) -> int:
        weights = [weight for weight, _, _ in SIZES]
        _, least, most = self.rng.choices(SIZES, weights)[0]
        return self.rng.randint(least, most)

    async def put(self, bucket: str, key: str, condition: str = "", *, size: int = 0) -> None:
        value = self.world.values.make(self.rng, size or self._body())
        headers: dict[str, str] = {}
        expected = 0
        if condition == "absent":
            headers["if-none-match"] = "*"
        elif condition == "match":
            known = [
                op.value
                for op in self.world.history.operations
                if op.kind is Kind.PUT and (op.bucket, op.key) == (bucket, key)
            ]
            if not known:
                return
            expected = self.rng.choice(known[-3:])
            headers["if-match"] = self.world.values.by_number[expected].etag
        call = Call("PUT", f"/{bucket}/{key}", headers=headers, body=value.body)
        if self.rng.random() < 0.2:
            call.piece_bytes = self.rng.randint(1_000, 200_000)
            call.pause_s = self.rng.random() * 0.002
        op = self._call(
            Kind.PUT, bucket, key, value=value.number, condition=condition, expected=expected
        )
        answer = await self._write(op, call)
        if answer is not None:
            self._took_version(value, answer)

    async def delete(self, bucket: str, key: str) -> None:
        op = self._call(Kind.DELETE, bucket, key)
        await self._write(op, Call("DELETE", f"/{bucket}/{key}"))

    async def remove_version(self, number: int) -> None:
        bucket, key, version_id = self._place(number)
        op = self._call(Kind.REMOVE_VERSION, bucket, key, value=number)
        await self._write(op, Call("DELETE", f"/{bucket}/{key}", {"versionId": version_id}))

    async def multipart(self, bucket: str, key: str) -> None:
        world, rng = self.world, self.rng
        path = f"/{bucket}/{key}"
        parts = 2 if world.large_parts > 0 else 1
        world.large_parts -= 1
        size = PART_BYTES + rng.randint(1, 3_000) if parts == 2 else rng.randint(8, 300_000)
        value = world.values.make(rng, size, parts=parts)
        try:
            answer = await self._send(Call("POST", path, {"uploads": ""}))
            if answer.status != 200:
                return
            upload_id = answer.xml.findtext("UploadId") or ""
            done = []
            for number in range(1, parts + 1):
                body = value.body[(number - 1) * PART_BYTES : number * PART_BYTES]
                query = {"partNumber": str(number), "uploadId": upload_id}
                answer = await self._send(Call("PUT", path, query, body=body))
                if answer.status != 200:
                    return
                done.append((number, answer.headers["etag"]))
        except (Lost, Truncated):
            return
        if rng.random() < 0.5:
            await asyncio.sleep(rng.random() * 3)  # a fault may come in between
            await world.serving.wait()
        inner = "".join(
            f"<Part><PartNumber>{number}</PartNumber><ETag>{etag}</ETag></Part>"
            for number, etag in done
        )
        document = f"<CompleteMultipartUpload>{inner}</CompleteMultipartUpload>".encode()
        op = self._call(Kind.PUT, bucket, key, value=value.number)
        answered = await self._write(op, Call("POST", path, {"uploadId": upload_id}, body=document))
        if answered is not None:
            self._took_version(value, answered)

    def _call(self, kind: Kind, bucket: str, key: str, **fields: int | str) -> Operation:
        return self.world.history.call(self.name, kind, bucket, key, **fields)

    async def _write(self, op: Operation, call: Call) -> Answer | None:
        """Send a write and note how it ended; the answer if it took effect."""
        history, world = self.world.history, self.world
        cut_s = self.rng.random() * 0.002 if self.rng.random() < CUT_SHARE else None
        try:
            answer = await self._send(call, cut_s=cut_s)
        except (Lost, Truncated):
            op.result = Result.UNKNOWN
            return None
        status = answer.status
        if status == 200 and answer.body and b"<Error>" in answer.body[:300]:
            # A completion that failed after its head was sent.
            op.result = Result.UNKNOWN
            return None
        if status in (200, 204):
            history.ends(op, Result.OK)
            return answer
        if (op.condition and status in (409, 412)) or (op.condition == "match" and status == 404):
            history.ends(op, Result.REFUSED)
        elif status == 503:
            op.result = Result.UNKNOWN
        elif status == 507 or (status == 400 and answer.code == "RequestTimeout"):
            history.ends(op, Result.NEVER)
        else:
            op.result = Result.UNKNOWN
            world.unexpected(self.name, call, answer)
        return None

    # --- reads

    async def get(self, bucket: str, key: str, *, method: str = "GET", part: bool = False) -> None:
        call = Call(method, f"/{bucket}/{key}")
        if part:
            low = self.rng.randrange(1000)
            call.headers = {"range": f"bytes={low}-{low + self.rng.randrange(300_000)}"}
        op = self._call(Kind.READ, bucket, key)
        await self._read(op, call)

    async def get_version(self, number: int) -> None:
        bucket, key, version_id = self._place(number)
        op = self._call(Kind.READ_VERSION, bucket, key, value=number)
        await self._read(op, Call("GET", f"/{bucket}/{key}", {"versionId": version_id}))

    async def _read(self, op: Operation, call: Call) -> None:
        world = self.world
        try:
            answer = await self._send(call)
        except (Lost, Truncated):
            op.result = Result.UNKNOWN
            return
        status = answer.status
        if status == 404:
            op.seen = None
        elif status in (200, 206):
            value = world.values.by_etag.get(answer.headers.get("etag", ""))
            if value is None:
                world.violation("P3", f"{self.name} {call.path}: an ETag that nobody wrote")
                return
            op.seen = value.number
            self._took_version(value, answer)
            if call.method == "GET":
                self._check_body(call, value, answer)
        elif status == 416 and call.headers:
            op.result = Result.UNKNOWN
            return
        else:
            op.result = Result.UNKNOWN
            if status != 503:
                world.unexpected(self.name, call, answer)
            return
        world.history.ends(op, Result.OK)

    def _check_body(self, call: Call, value: Value, answer: Answer) -> None:
        body = value.body
        if answer.status == 206:
            low, high = (call.headers or {})["range"].removeprefix("bytes=").split("-")
            body = body[int(low) : int(high) + 1]
        if answer.body != body:
            self.world.violation(
                "P3",
                f"{self.name} {call.path}: {len(answer.body)} bytes that differ from the "
                f"{len(body)} of value {value.number}",
            )

    def _took_version(self, value: Value, answer: Answer) -> None:
        version_id = answer.headers.get("x-amz-version-id", "")
        if version_id in ("", "null"):
            return
        if value.version_id and value.version_id != version_id:
            self.world.violation(
                "P2", f"value {value.number} was version {value.version_id}, now {version_id}"
            )
        value.version_id = version_id

    def _place(self, number: int) -> tuple[str, str, str]:
        for op in self.world.history.operations:
            if op.kind is Kind.PUT and op.value == number:
                return op.bucket, op.key, self.world.values.by_number[number].version_id
        raise AssertionError(f"value {number} was never written")

    # --- listings

    async def list(self, bucket: str, max_keys: int) -> bool:
        """All pages of the current objects. False if a page could not be had."""
        low, token = "", ""
        while True:
            query = {"list-type": "2", "max-keys": str(max_keys)}
            if token:
                query["continuation-token"] = token
            call_s = self.world.history.now()
            try:
                answer = await self._send(Call("GET", f"/{bucket}", query))
            except (Lost, Truncated):
                return False
            if answer.status != 200:
                if answer.status != 503:
                    self.world.unexpected(self.name, Call("GET", f"/{bucket}", query), answer)
                return False
            root = answer.xml
            seen: dict[str, int] = {}
            last = low
            for item in root.findall("Contents"):
                key, etag = item.findtext("Key") or "", item.findtext("ETag") or ""
                if key <= last:
                    self.world.violation("P4", f"a page of {bucket} is out of order at {key!r}")
                last = key
                value = self.world.values.by_etag.get(etag)
                if value is None:
                    self.world.violation("P3", f"{bucket}/{key} is listed with a strange ETag")
                    continue
                seen[key] = value.number
            token = root.findtext("NextContinuationToken") or ""
            last = _page_end(token, last)
            if token and last == low:
                continue  # a range of keys ended before the page could see any
            self.world.history.page(
                Page(
                    bucket,
                    self.name,
                    call_s,
                    self.world.history.now(),
                    low,
                    last if token else "",
                    seen,
                )
            )
            if not token:
                return True
            low = last

    async def list_versions(self, bucket: str) -> dict[str, tuple[int, ...]] | None:
        """All versions of all keys, noted for each key; None if they could not be had. One page
        holds them, unless a range of keys ends within it."""
        if bucket == PLAIN_BUCKET:
            return None
        ops = [self._call(Kind.VERSIONS, bucket, key) for key in KEYS]
        found: dict[str, list[int]] = {key: [] for key in KEYS}
        marker: str | None = ""
        while marker is not None:
            query = {"versions": "", "key-marker": marker} if marker else {"versions": ""}
            call = Call("GET", f"/{bucket}", query)
            try:
                answer = await self._send(call)
            except (Lost, Truncated):
                answer = None
            if answer is None or answer.status != 200:
                for op in ops:
                    op.result = Result.UNKNOWN
                if answer is not None and answer.status != 503:
                    self.world.unexpected(self.name, call, answer)
                return None
            self._note_versions(bucket, answer, found)
            marker = answer.xml.findtext("NextKeyMarker")
        for op in ops:
            op.seen_versions = tuple(found[op.key])
            self.world.history.ends(op, Result.OK)
        return {key: tuple(versions) for key, versions in found.items()}

    def _note_versions(self, bucket: str, answer: Answer, found: dict[str, Any]) -> None:
        """What a page of versions shows of each key, newest first."""
        for item in answer.xml:
            if item.tag not in ("Version", "DeleteMarker"):
                continue
            number = MARKER
            if item.tag == "Version":
                value = self.world.values.by_etag.get(item.findtext("ETag") or "")
                if value is None:
                    self.world.violation("P3", f"a strange ETag among the versions of {bucket}")
                    continue
                number = value.number
                value.version_id = value.version_id or item.findtext("VersionId") or ""
            found[item.findtext("Key") or ""].append(number)

    async def _send(self, call: Call, *, cut_s: float | None = None) -> Answer:
        patience_s = min((s for s in (cut_s, self.patience_s) if s is not None), default=None)
        return await self.world.send(self.name, call, cut_s=patience_s, among=self.among)
