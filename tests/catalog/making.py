"""Short ways to make commands and a node with a bucket, for tests."""

from __future__ import annotations

from typing import Any

from o3storage import catalog as c
from tests.support.memory_node import MemoryNode

NOW = 1_700_000_000 * 10**9
DAY = 24 * 3600 * 10**9
ETAG = "5d41402abc4b2a76b9719d911017c592"


def body(number: int) -> bytes:
    """A packed stream reference whose stream id is `number`."""
    return number.to_bytes(16, "big") + bytes(44)


def stream(number: int) -> bytes:
    return number.to_bytes(16, "big")


class World:
    """A node in memory with one bucket."""

    def __init__(self, versioning: str = "") -> None:
        self.node = MemoryNode(NOW)
        self.bucket = self.node.drive_now(
            c.create_bucket(c.CreateBucket("bucket", "owner", NOW))
        ).bucket
        if versioning:
            self.versioning(versioning)

    def versioning(self, status: str) -> None:
        self.bucket = self.node.drive_now(c.set_versioning("bucket", status, NOW))

    @property
    def at(self) -> tuple[int, int]:
        return self.bucket.bucket_id, self.bucket.epoch

    def submit(self, command: Any) -> Any:
        return self.node.submit_now(command)

    def ask(self, query: Any) -> Any:
        return self.node.query_now(query)

    def put(self, key: bytes = b"k", number: int = 1, **fields: Any) -> Any:
        made = {
            "proposed_ns": self.node.now_ns,
            "owner": "owner",
            "size_bytes": 5,
            "etag": ETAG,
            "blake3": bytes(32),
            "body": body(number),
            "started_ns": self.node.now_ns,
            **fields,
        }
        return self.submit(c.PutObject(*self.at, key, **made))

    def delete(self, key: bytes = b"k", version: int | None = None, **fields: Any) -> Any:
        return self.submit(
            c.DeleteObject(*self.at, key, self.node.now_ns, "owner", version, **fields)
        )

    def head(self, key: bytes = b"k", version: int | None = None) -> Any:
        only_null = not self.bucket.versioning
        return self.ask(c.head_version(self.bucket.bucket_id, key, version, only_null=only_null))

    def upload(self, key: bytes = b"k", number: int = 1, **fields: Any) -> bytes:
        upload_id = c.new_upload_id(self.node.now_ns, number.to_bytes(8, "big"))
        self.submit(c.CreateUpload(*self.at, key, upload_id, self.node.now_ns, "owner", **fields))
        return upload_id

    def part(self, upload_id: bytes, number: int, stream_number: int, **fields: Any) -> Any:
        made = {
            "key": b"k",
            "size_bytes": 10,
            "etag": f"{stream_number:032x}",
            "started_ns": self.node.now_ns,
            **fields,
        }
        return self.submit(
            c.PutPart(
                *self.at,
                made["key"],
                upload_id,
                number,
                self.node.now_ns,
                made["size_bytes"],
                made["etag"],
                bytes(32),
                body(stream_number),
                made["started_ns"],
            )
        )

    def completion(
        self, upload_id: bytes, parts: list[tuple[int, int]], key: bytes = b"k", **fields: Any
    ) -> c.CompleteUpload:
        """Parts as (number, size)."""
        chosen = c.ChosenParts()
        for number, size in parts:
            chosen.add(number, size)
        upload = self.ask(c.get_upload(self.bucket.bucket_id, key, upload_id))
        made = {
            "changes": upload.changes,
            "part_count": chosen.count,
            "part_bitmap": chosen.bitmap(),
            "part_index": chosen.index(),
            "size_bytes": chosen.size_bytes,
            "etag": f"{ETAG}-{chosen.count}",
            "blake3": bytes(32),
            **fields,
        }
        return c.CompleteUpload(*self.at, key, upload_id, self.node.now_ns, **made)

    def chores(self, now_ns: int | None = None) -> int:
        """Run every chore that is due; how many commands it took."""
        ran = 0
        after = b""
        while True:
            commands, after = self.ask(c.chores(now_ns or self.node.now_ns, after))
            for command in commands:
                ran += 1
                while not self.submit(command).done:
                    ran += 1
            if not after:
                return ran

    def counts(self) -> c.Counts:
        return self.ask(c.counts())

    def list(self, **fields: Any) -> c.ListPage:
        return self.ask(c.list_objects(self.bucket.bucket_id, **fields))
