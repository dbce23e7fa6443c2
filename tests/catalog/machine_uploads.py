"""The catalog driven at random beside the plain model: uploads, streams and chores."""

from __future__ import annotations

from typing import Any

from hypothesis import assume
from hypothesis import strategies as st
from hypothesis.stateful import rule

from o3storage import catalog as c
from tests.catalog.machine import (
    DAY_NS,
    OWNER,
    Live,
    ObjectMachine,
    conditions,
    keys,
    names,
    tag_lists,
    texts,
)
from tests.catalog.model import Upload, Version


class UploadMachine(ObjectMachine):
    """Adds uploads, streams that are given up, and the chores."""

    @rule(name=names, key=keys, headers=texts, tags=tag_lists)
    def create_upload(self, name: str, key: Any, headers: Any, tags: Any) -> None:
        live = self.buckets[name]
        key = self.used[key]
        self.number += 1
        upload_id = c.new_upload_id(self.now, self.number.to_bytes(8, "big"))
        self.submit(
            c.CreateUpload(live.info.bucket_id, live.info.epoch, key, upload_id, self.now, OWNER,
                           headers, headers, tags)
        )  # fmt: skip
        self.last_upload = upload_id
        live.model.uploads[upload_id] = Upload(key, self.now, OWNER, headers, headers, tags)

    def pick_upload(self, live: Live, which: int) -> tuple[bytes, Upload]:
        assume(live.model.uploads)
        ids = sorted(live.model.uploads)
        upload_id = ids[which % len(ids)]
        return upload_id, live.model.uploads[upload_id]

    @rule(name=names, which=st.integers(0, 20), number=st.sampled_from([1, 2, 3, 7, 8, 9, 10000]),
          size=st.integers(0, 5))  # fmt: skip
    def put_part(self, name: str, which: int, number: int, size: int) -> None:
        live = self.buckets[name]
        upload_id, upload = self.pick_upload(live, which)
        stream, body = self.stream()
        if not size:
            stream, body = b"", b""
        etag = f"{self.number:032x}"
        command = c.PutPart(
            live.info.bucket_id, live.info.epoch, upload.key, upload_id, number, self.now, size,
            etag, bytes(32), body, self.now,
        )  # fmt: skip
        result = self.both(command, "NoSuchUpload" if upload.done else None)
        if result is None:
            return
        upload.changes += 1
        old = upload.parts.get(number)
        assert result.replaced == (old is not None) and result.changes == upload.changes
        if old is not None:
            self.named.discard(old[1])
        upload.parts[number] = (size, stream, etag)
        if stream:
            self.named.add(stream)

    @rule(key=keys, data=st.data(), numbers=st.lists(st.sampled_from([1, 2, 3, 7, 9]), min_size=1))
    def upload_whole(self, key: int, data: Any, numbers: list[int]) -> None:
        self.create_upload("one", key, {}, [])
        last = sorted(self.buckets["one"].model.uploads).index(self.last_upload)
        for number in numbers:
            self.put_part("one", last, number, data.draw(st.integers(0, 3)))
        self.complete("one", last, data, None, False)

    @rule(name=names, which=st.integers(0, 20), data=st.data(), condition=conditions,
          stale=st.booleans())  # fmt: skip
    def complete(self, name: str, which: int, data: Any, condition: Any, stale: bool) -> None:
        live = self.buckets[name]
        upload_id, upload = self.pick_upload(live, which)
        assume(upload.parts)
        used = sorted(
            data.draw(st.sets(st.sampled_from(sorted(upload.parts)), min_size=1))
            if data.draw(st.booleans())
            else upload.parts
        )
        chosen = c.ChosenParts()
        for number in used:
            chosen.add(number, upload.parts[number][0])
        stale = stale and not upload.done
        command = c.CompleteUpload(
            live.info.bucket_id, live.info.epoch, upload.key, upload_id, self.now,
            upload.changes + stale, chosen.count, chosen.bitmap(), chosen.index(),
            chosen.size_bytes, f"{self.number:032x}-{chosen.count}", bytes(32),
            condition=condition,
        )  # fmt: skip
        if upload.done:
            repeated = self.both(command, None)
            assert repeated.repeated and repeated.order == upload.done.order
            assert repeated.etag == upload.done.etag and repeated.is_null == upload.done.null
            assert repeated.versioned == upload.done_versioned
            return
        refusal = "UploadChanged" if stale else self.refusal(live, upload.key, condition)
        result = self.both(command, refusal)
        if result is None:
            return
        self.tick(result.order)
        parts = [(number, upload.parts[number][0], upload.parts[number][1]) for number in used]
        streams = [stream for _, _, stream in parts if stream]
        version = Version(
            result.order, False, False, upload.initiated, OWNER, chosen.size_bytes, command.etag,
            streams, parts, upload.tags, upload.headers, upload.metadata,
        )  # fmt: skip
        self.named.difference_update(stream for _, stream, _ in upload.parts.values())
        self.named.update(streams)
        self.forget(live.model.add(upload.key, version))
        upload.done, upload.done_at = version, result.order
        upload.done_versioned = bool(live.model.versioning)

    @rule(name=names, which=st.integers(0, 20))
    def abort(self, name: str, which: int) -> None:
        live = self.buckets[name]
        upload_id, upload = self.pick_upload(live, which)
        command = c.AbortUpload(
            live.info.bucket_id, live.info.epoch, upload.key, upload_id, self.now
        )
        self.both(command, "NoSuchUpload" if upload.done else None)
        if not upload.done:
            self.named.difference_update(stream for _, stream, _ in upload.parts.values())
            del live.model.uploads[upload_id]

    # --- streams and chores

    @rule(name=names, key=keys, which=st.integers(0, 1000))
    def abandon(self, name: str, key: Any, which: int) -> None:
        """A stream that a row names is left alone; one that none names is given up, and then no
        entry may name it."""
        live = self.buckets[name]
        key = self.used[key]
        named = sorted(
            stream for version in live.model.keys.get(key, []) for stream in version.streams
        )
        bucket_id = live.info.bucket_id
        if named and which % 2:
            stream = named[which % len(named)]
            state = self.submit(c.AbandonStream(bucket_id, key, stream, self.now)).state
            assert state == "named"
            return
        stream, body = self.stream()
        assert self.submit(c.AbandonStream(bucket_id, key, stream, self.now)).state == "abandoned"
        assert self.submit(c.AbandonStream(bucket_id, key, stream, self.now)).state == "abandoned"
        assert self.node.query_now(c.is_abandoned(bucket_id, key, stream))
        command, _ = self.put_command(live, key, 1, None)
        command.body = body
        self.both(command, "StreamAbandoned")

    @rule(name=names, key=keys)
    def put_old_stream(self, name: str, key: Any) -> None:
        live = self.buckets[name]
        key = self.used[key]
        command, _ = self.put_command(live, key, 1, None)
        command.started_ns = max(self.clock, self.now) - 7 * DAY_NS - 10
        self.both(command, "StreamExpired")

    def run_chores(self, now_ns: int) -> None:
        after = b""
        for _ in range(1000):
            commands, after = self.node.query_now(c.chores(now_ns, after, 3))
            for command in commands:
                while not self.submit(command).done:
                    pass
            if not after:
                return
        raise AssertionError("chores do not end")

    @rule(days=st.sampled_from([0, 0, 0, 2, 20]))
    def chores(self, days: int) -> None:
        at = self.now + days * DAY_NS
        self.run_chores(at)
        for live in self.buckets.values():
            for upload_id, upload in list(live.model.uploads.items()):
                if upload.done and upload.done_at + DAY_NS <= at:
                    del live.model.uploads[upload_id]
        if days == 20:
            counts = self.node.query_now(c.counts())
            assert counts.garbage == 0 and counts.abandoned == 0
