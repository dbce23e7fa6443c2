"""The tests of operations once more, on the real node: storage engine, Raft log and sealing.

Each runs the function of another module with a store whose node is `cluster.Node` over a directory.
"""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from o3storage.catalog import Catalog, Command, DeleteObject, get_bucket, prefix_length
from o3storage.cluster import BodyMissing, Node
from o3storage.crypto import open_keys
from o3storage.runtime import JobPool, NativeJobs, RealDisk, SystemEntropy
from o3storage.s3 import Service, ServiceConfig
from o3storage.server import Housekeeping
from o3storage.storage import Store as DiskStore
from tests.s3 import (
    test_buckets,
    test_conditions,
    test_copy,
    test_delete_objects,
    test_listing,
    test_multipart,
    test_object_headers,
    test_objects,
    test_post_form,
    test_ranges,
    test_tagging,
)
from tests.s3.harness import Clock, Credentials, Entropy, Store
from tests.s3.support import OWNER


class Recorded:
    """The real node, its commands recorded as the model's are."""

    def __init__(self, node: Node) -> None:
        self._node = node
        self.submitted: list[Command] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._node, name)

    async def submit(self, command: Command, frames: Any = ()) -> Any:
        self.submitted.append(command)
        return await self._node.submit(command, frames)


class RealStore(Store):
    """`harness.Store` on a directory."""

    def __init__(self, path: Path) -> None:
        self.runner = asyncio.Runner()
        self.clock = Clock()
        self._path = path
        self.runner.run(self._open())

    async def _open(self) -> None:
        entropy = SystemEntropy()
        self._pool = JobPool()
        await self._pool.start()
        disk = RealDisk(self._path, self._pool)
        keys = await open_keys(disk, entropy=entropy, has_data=False)
        jobs = NativeJobs(self._pool)
        self._disk_store = await DiskStore.open(
            disk,
            disk_key=keys.node.disk_key,
            jobs=jobs,
            clock=self.clock,
            entropy=entropy,
            prefix_length=prefix_length,
        )
        node = await Node.open(
            self._disk_store,
            Catalog(),
            keys=keys.node,
            jobs=jobs,
            clock=self.clock,
            entropy=entropy,
        )
        self.node = Recorded(node)  # type: ignore[assignment]
        self.service = Service(
            self.node,
            credentials=Credentials(),
            clock=self.clock,
            entropy=Entropy(),
            config=ServiceConfig(root_owner=OWNER),
        )

    def close(self) -> None:
        async def close() -> None:
            await self.node.close()
            await self._disk_store.close()
            await self._pool.close()

        self.runner.run(close())
        self.runner.close()


@pytest.fixture
def real(tmp_path: Path) -> Iterator[RealStore]:
    made = RealStore(tmp_path)
    yield made
    assert made.service.pool.lent_bytes == 0
    made.close()


PLAIN: list[Callable[..., Any]] = [
    test_buckets.test_create_head_delete,
    test_buckets.test_creating_again,
    test_buckets.test_a_bucket_with_versions_or_markers_is_not_empty,
    test_buckets.test_a_bucket_with_open_uploads_only_is_deleted,
    test_buckets.test_list_buckets,
    test_buckets.test_versioning_status,
    test_buckets.test_bucket_tags,
    test_buckets.test_cors_configuration_is_kept,
    test_conditions.test_conditional_reads,
    test_objects.test_conditional_delete,
    test_object_headers.test_content_headers_are_kept,
    test_ranges.test_if_range,
    test_ranges.test_part_number_of_a_single_object,
    test_ranges.test_ranges,
    test_object_headers.test_user_metadata,
    test_objects.test_versions,
    test_objects.test_without_content_sha256_the_bodys_own_hash_is_signed,
    test_listing.test_list_object_versions,
    test_listing.test_list_multipart_uploads,
    test_listing.test_control_characters_are_stored_and_listed_as_references,
    test_multipart.test_an_upload_from_begin_to_end,
    test_multipart.test_completing_again_answers_the_same_for_a_day,
    test_multipart.test_completions_that_are_refused,
    test_multipart.test_abort,
    test_multipart.test_list_parts,
    test_delete_objects.test_keys_that_are_and_are_not_there,
    test_delete_objects.test_one_to_a_thousand_keys,
    test_delete_objects.test_errors_are_told_per_key,
    test_delete_objects.test_versions_and_markers,
    test_tagging.test_object_tags,
    test_tagging.test_tags_in_a_header,
    test_tagging.test_tags_of_versions,
    test_post_form.test_what_a_form_is_answered,
    test_copy.test_versions_as_source,
]
"""Functions that take a store and nothing else."""


@pytest.mark.parametrize("function", PLAIN, ids=lambda f: f.__name__)
def test_on_the_real_node(real: RealStore, function: Callable[..., Any]) -> None:
    assert list(inspect.signature(function).parameters) == ["store"]
    function(real)


@pytest.mark.parametrize("size", [0, 1, 32 * 1024, 32 * 1024 + 1, 256 * 1024, 3 * 256 * 1024 + 7])
def test_bodies_on_the_real_node(real: RealStore, size: int) -> None:
    test_objects.test_what_was_put_is_got(real, size)
    real.delete("/bucket/k")
    copied = real.put("/bucket/k", b"x" * size)
    assert copied.status == 200
    answer = real.put("/bucket/c", b"", {"x-amz-copy-source": "/bucket/k"})
    assert answer.status == 200
    assert real.get("/bucket/c").body == b"x" * size


@pytest.mark.parametrize(("algorithm", "kind"), [("CRC32", "FULL_OBJECT"), ("SHA256", "COMPOSITE")])
def test_multipart_checksums_on_the_real_node(
    real: RealStore, monkeypatch: pytest.MonkeyPatch, algorithm: str, kind: str
) -> None:
    monkeypatch.setattr("o3storage.s3._complete.MIN_PART_BYTES", 1)
    test_multipart.test_checksums_of_parts_and_of_the_whole(real, None, algorithm, kind)


def test_a_refused_body_leaves_no_frames_behind(real: RealStore) -> None:
    """Large and small bodies that fail their digest are collected, not kept."""
    from tests.s3.harness import md5_base64

    real.bucket()
    wrong = {"content-md5": md5_base64(b"other")}
    for size in (10, 300_000, 600_000):
        assert real.put("/bucket/k", b"x" * size, wrong).code == "BadDigest"
    assert real.objects() == []

    async def collected() -> None:
        for _ in range(200):
            if real.node.status()["open_streams_to_collect"] == 0:
                return
            await asyncio.sleep(0.01)

    real.runner.run(collected())
    assert real.node.status()["open_streams_to_collect"] == 0


@pytest.mark.parametrize("room", [50_000, 3], ids=["room for all", "no room"])
def test_an_answer_under_way_keeps_its_parts_though_the_object_goes(
    real: RealStore, monkeypatch: pytest.MonkeyPatch, room: int
) -> None:
    """With no room to hold so many parts it is cut; never is a wrong byte sent."""
    monkeypatch.setattr("o3storage.s3._complete.MIN_PART_BYTES", 1)
    monkeypatch.setattr("o3storage.s3._bodies.MAX_HELD_PARTS", room)
    real.bucket()
    upload = real.upload("/bucket/k")
    parts = [bytes((n,)) * 300_000 for n in range(1, 6)]
    etags = [
        test_multipart.put_part(real, "/bucket/k", upload, n, part)
        for n, part in enumerate(parts, 1)
    ]
    assert real.complete("/bucket/k", upload, list(enumerate(etags, 1))).status == 200
    inner, calls = real.node.read_stream, 0

    async def remove() -> None:
        bucket = await real.node.query(get_bucket("bucket"))
        now_ns = real.clock.wall_ns()
        await real.node.submit(DeleteObject(bucket.bucket_id, bucket.epoch, b"k", now_ns, OWNER))
        assert await Housekeeping(real.node, real.clock).round()

    def reading(ref: Any, offset: int, length: int, owner: Any = None) -> Any:
        nonlocal calls
        calls += 1
        at = calls

        async def pieces() -> Any:
            if at == 2:
                await remove()
            async for piece in inner(ref, offset, length, owner):
                yield piece

        return pieces()

    monkeypatch.setattr(real.node, "send_stream", reading, raising=False)
    if room > len(parts):
        assert real.get("/bucket/k").body == b"".join(parts)
    else:
        with pytest.raises(BodyMissing):
            real.get("/bucket/k")
    assert calls >= 2 and real.service.held_parts == 0
    assert not real._disk_store._frames._pins
    assert real.get("/bucket/k").code == "NoSuchKey"
