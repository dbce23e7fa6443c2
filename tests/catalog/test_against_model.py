"""The whole catalog, driven at random, against the plain model."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

import pytest
from hypothesis import HealthCheck, assume, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from o3storage import catalog as c
from tests.catalog.model import Bucket, Refused, Upload, Version
from tests.support.memory_node import MemoryNode

DAY_NS = 24 * 3600 * 10**9
KEYS = [
    b"a",
    b"a/",
    b"a/b",
    b"a/b/c",
    b"a/c",
    b"a//",
    b"ab",
    b"b/x",
    b"b\x00",
    b"b\x00\x01",
    b"\xff",
]
NAMES = ["one", "two"]
OWNER = "owner"
keys = st.integers(0, 2)
"""Index into the few keys that one example uses, so that operations meet on the same keys."""
names = st.sampled_from(["one", "one", "one", "two"])
conditions = st.one_of(
    st.none(),
    st.none(),
    st.builds(
        c.WriteCondition,
        if_match=st.sampled_from([None, "*", f"{1:032x}", f"{2:032x}"]),
        if_none_match=st.sampled_from([None, None, "*", f"{1:032x}"]),
        if_match_modified_ns=st.none(),
        if_match_size=st.sampled_from([None, None, 1, 2]),
    ),
)
texts = st.dictionaries(
    st.sampled_from(["content-type", "x"]), st.sampled_from(["", "é", "text/plain"]), max_size=2
)
tag_lists = st.lists(st.tuples(st.sampled_from(["k", "l"]), st.text("ab", max_size=2)), max_size=2)
steps_ns = st.sampled_from([-5, 0, 0, 1, 1000, 10**9, 3600 * 10**9])


@dataclass
class Live:
    """A bucket of the model beside its record."""

    info: c.BucketInfo
    model: Bucket


class CatalogMachine(RuleBasedStateMachine):
    @initialize(used=st.permutations(KEYS), status=st.sampled_from(["", "Enabled", "Suspended"]))
    def start(self, used: list[bytes], status: str) -> None:
        self.used = used
        self.node = MemoryNode()
        self.buckets: dict[str, Live] = {}
        self.number = 0
        self.clock = 0
        self.named: set[bytes] = set()
        """Streams that rows should name once every chore is done."""
        self.abandoned: set[tuple[int, bytes, bytes]] = set()
        for name in NAMES:
            self.create(name)
        if status:
            self.put("one", 0, 1, None, {}, {}, [])
            self.set_versioning("one", status)

    # --- helpers

    @property
    def now(self) -> int:
        return self.node.now_ns

    def create(self, name: str) -> None:
        result = self.node.drive_now(c.create_bucket(c.CreateBucket(name, OWNER, self.now)))
        assert result.created == (name not in self.buckets)
        if result.created:
            self.buckets[name] = Live(result.bucket, Bucket())

    def tick(self, order: int) -> None:
        """A version was written at this order."""
        assert order == max(self.clock + 1, self.now)
        self.clock = order

    def stream(self) -> tuple[bytes, bytes]:
        """(stream id, packed reference) of a new body."""
        self.number += 1
        stream = self.number.to_bytes(16, "big")
        return stream, stream + bytes(44)

    def forget(self, versions: list[Version]) -> None:
        for version in versions:
            self.named.difference_update(version.streams)

    def submit(self, command: Any) -> Any:
        return self.node.submit_now(self.node.catalog.decode(self.node.catalog.encode(command)))

    def both(self, command: Any, expected: str | None) -> Any:
        """Submit; the refusal must be the model's."""
        try:
            result = self.submit(command)
        except c.CatalogError as error:
            assert type(error).__name__ == expected, f"{error!r}, model: {expected}"
            return None
        assert expected is None, f"accepted, model: {expected}"
        return result

    def refusal(self, live: Live, key: bytes, condition: Any) -> str | None:
        try:
            live.model.check(key, condition)
        except Refused as refused:
            return refused.name
        return None

    # --- time and buckets

    @rule(step=steps_ns)
    def wait(self, step: int) -> None:
        """The proposers' clocks may step back a little."""
        self.node.now_ns += step

    @rule(name=names, status=st.sampled_from(["Enabled", "Suspended"]))
    def set_versioning(self, name: str, status: str) -> None:
        live = self.buckets[name]
        live.info = self.node.drive_now(c.set_versioning(name, status, self.now))
        live.model.versioning = status
        assert live.info.versioning == status

    @rule(name=names)
    def delete_bucket(self, name: str) -> None:
        live = self.buckets[name]
        try:
            self.node.drive_now(c.delete_bucket(name, self.now))
        except c.BucketNotEmpty:
            assert live.model.keys
            live.info = self.node.query_now(c.get_bucket(name))
            assert not live.info.deleting
            return
        assert not live.model.keys
        for upload in live.model.uploads.values():
            self.named.difference_update(stream for _, stream, _ in upload.parts.values())
        with pytest.raises(c.StaleEpoch):
            self.submit(self.put_command(live, b"a", 0, None)[0])
        del self.buckets[name]
        self.create(name)
        assert self.buckets[name].info.bucket_id != live.info.bucket_id

    # --- objects

    def put_command(self, live: Live, key: bytes, size: int, condition: Any) -> Any:
        stream, body = self.stream()
        if not size:
            stream, body = b"", b""
        etag = f"{self.number % 3:032x}"
        checksum = c.Checksum("CRC32", "FULL_OBJECT", b"abcd") if self.number % 2 else None
        command = c.PutObject(
            live.info.bucket_id, live.info.epoch, key, self.now, OWNER, size, etag, bytes(32),
            body, self.now, checksum, condition=condition,
        )  # fmt: skip
        return command, stream

    @rule(name=names, key=keys, size=st.integers(0, 2), condition=conditions, headers=texts,
          metadata=texts, tags=tag_lists)  # fmt: skip
    def put(self, name, key, size, condition, headers, metadata, tags) -> None:  # noqa: PLR0917
        live = self.buckets[name]
        key = self.used[key]
        command, stream = self.put_command(live, key, size, condition)
        command.headers, command.metadata, command.tags = headers, metadata, tags
        result = self.both(command, self.refusal(live, key, condition))
        if result is None:
            return
        self.tick(result.order)
        version = Version(
            result.order, False, False, self.now, OWNER, size, command.etag,
            [stream] if stream else [], None, tags, headers, metadata, command.checksum,
        )  # fmt: skip
        self.named.update(version.streams)
        self.forget(live.model.add(key, version))
        assert result.is_null == version.null
        assert result.versioned == bool(live.model.versioning)

    @rule(key=keys, versions=st.integers(1, 3))
    def put_more(self, key: int, versions: int) -> None:
        for _ in range(versions):
            self.put("one", key, 2, None, {}, {}, [])

    @rule(key=keys, statuses=st.lists(st.sampled_from(["Enabled", "Suspended"]), max_size=4))
    def put_under(self, key: int, statuses: list[str]) -> None:
        for status in statuses:
            self.set_versioning("one", status)
            self.put("one", key, 1, None, {}, {}, [])

    @rule(key=keys)
    def delete_null(self, key: int) -> None:
        self.delete("one", key, 1, None)
        self.head("one", key, 1)

    @rule(key=keys)
    def put_and_hide(self, key: int) -> None:
        self.put("one", key, 1, None, {}, {}, [])
        self.delete("one", key, 0, None)

    @rule(key=keys, which=st.integers(0, 8))
    def delete_version(self, key: int, which: int) -> None:
        self.delete("one", key, which, None)

    @rule(name=names, key=keys)
    def put_stale(self, name: str, key: Any) -> None:
        live = self.buckets[name]
        key = self.used[key]
        command, _ = self.put_command(live, key, 1, None)
        command.epoch -= 1
        self.both(command, "StaleEpoch")

    def pick(self, live: Live, key: Any, which: int) -> int | None:
        """None, NULL, an existing order, or an order that is not there."""
        if which == 0:
            return None
        if which == 1:
            return c.NULL
        orders = [one.order for one in live.model.keys.get(key, [])]
        return orders[which % len(orders)] if orders and which < 9 else 12345

    def model_delete(self, live: Live, key: bytes, version: int | None, condition: Any) -> Any:
        """Applies a delete to the model; the expected (existed, marker, order or None)."""
        model = live.model
        model.check(key, condition)
        if version is None and not model.versioning:
            current = model.find(key, None)
            if current is None:
                return False, False, None
            model.remove(key, current)
            self.forget([current])
            return True, False, current.order
        if version is None:
            existed = model.current(key) is not None
            order = max(self.clock + 1, self.now)
            self.clock = order
            self.forget(model.add(key, Version(order, False, True, self.now, OWNER)))
            return existed, True, order
        found = model.find(key, version)
        if found is None:
            return False, False, None
        model.remove(key, found)
        self.forget([found])
        return True, found.marker, found.order

    @rule(name=names, key=keys, which=st.integers(0, 9), condition=conditions)
    def delete(self, name: str, key: Any, which: int, condition: Any) -> None:
        live = self.buckets[name]
        key = self.used[key]
        version = self.pick(live, key, which)
        command = c.DeleteObject(
            live.info.bucket_id, live.info.epoch, key, self.now, OWNER, version, condition
        )
        refusal = self.refusal(live, key, condition)
        result = self.both(command, refusal)
        if refusal is None:
            existed, marker, order = self.model_delete(live, key, version, condition)
            assert (result.existed, result.delete_marker) == (existed, marker)
            assert order is None or result.order == order

    @rule(name=names, data=st.data())
    def delete_many(self, name: str, data: Any) -> None:
        live = self.buckets[name]
        chosen = [self.used[at] for at in data.draw(st.lists(keys, min_size=1, max_size=8))]
        items = [
            c.DeleteItem(key, self.pick(live, key, data.draw(st.integers(0, 9))),
                         data.draw(conditions))
            for key in chosen
        ]  # fmt: skip
        answers: dict[int, Any] = {}
        for batch in c.delete_batches(items):
            results = self.submit(
                c.DeleteObjects(live.info.bucket_id, live.info.epoch, self.now, OWNER,
                                [items[at] for at in batch])
            )  # fmt: skip
            expected = {}
            for at in batch:
                item = items[at]
                try:
                    expected[at] = self.model_delete(live, item.key, item.version, item.condition)
                except Refused as refused:
                    expected[at] = refused.name
            for at, result in zip(batch, results, strict=True):
                answers[at] = result
                if isinstance(expected[at], str):
                    assert type(result).__name__ == expected[at]
                else:
                    existed, marker, order = expected[at]
                    assert (result.existed, result.delete_marker) == (existed, marker)
                    assert order is None or result.order == order
        assert sorted(answers) == list(range(len(items)))

    @rule(name=names, key=keys, which=st.integers(0, 9), tags=tag_lists)
    def set_tags(self, name: str, key: Any, which: int, tags: Any) -> None:
        live = self.buckets[name]
        key = self.used[key]
        version = self.pick(live, key, which)
        command = c.SetTags(live.info.bucket_id, live.info.epoch, key, version, tags)
        try:
            found = live.model.head(key, version)
        except Refused as refused:
            self.both(command, refused.name)
            return
        assert self.both(command, None).order == found.order
        found.tags = tags

    # --- uploads

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

    # --- what must hold after every step

    @invariant()
    def released_streams_are_named_by_nothing(self) -> None:
        released = self.node.released
        assert len(released) == len(set(released)), "a stream was released twice"
        assert not self.named.intersection(released), "a named stream was released"

    @invariant()
    def sums_are_exact(self) -> None:
        counts = self.node.query_now(c.counts())
        models = [live.model for live in self.buckets.values()]
        versions = [v for m in models for vs in m.keys.values() for v in vs]
        assert counts.clock_ns == self.clock
        assert counts.versions == len(versions)
        assert counts.delete_markers == sum(v.marker for v in versions)
        assert counts.size_bytes == sum(v.size for v in versions)
        assert counts.objects == sum(m.current(key) is not None for m in models for key in m.keys)
        still_open = [u for m in models for u in m.uploads.values() if not u.done]
        # Uploads of a deleted bucket count until its purge has come by.
        assert counts.uploads >= len(still_open)

    @rule(name=names, key=keys, which=st.integers(0, 9))
    def head(self, name: str, key: Any, which: int) -> None:
        live = self.buckets[name]
        key = self.used[key]
        version = self.pick(live, key, which)
        query = c.head_version(live.info.bucket_id, key, version)
        try:
            expected = live.model.head(key, version)
        except Refused as refused:
            with pytest.raises(getattr(c, refused.name)):
                self.node.query_now(query)
            return
        info = self.node.query_now(query)
        self.compare(info, expected)
        assert info.is_latest == (live.model.keys[key][0] is expected)
        if expected.parts is not None:
            self.check_parts(live, info, expected.parts)

    def compare(self, info: c.VersionInfo, expected: Version) -> None:
        assert info.order == expected.order
        assert info.is_null == expected.null
        assert info.version_id == ("null" if expected.null else c.version_id(expected.order))
        assert info.modified_ns == expected.modified
        assert (info.owner, info.size_bytes, info.etag) == (OWNER, expected.size, expected.etag)
        assert info.headers == expected.headers
        assert info.metadata == expected.metadata
        assert info.tags == expected.tags
        assert info.checksum == expected.checksum
        if expected.parts is None:
            assert info.body[:16] == b"".join(expected.streams)

    def check_parts(self, live: Live, info: c.VersionInfo, parts: Any) -> None:
        spans = self.node.query_now(c.parts_of_version(live.info.bucket_id, info, 0, 2))
        while len(spans) < len(parts):
            more = self.node.query_now(
                c.parts_of_version(live.info.bucket_id, info, spans[-1].number, 2)
            )
            assert more
            spans += more
        offset = 0
        for span, (number, size, stream) in zip(spans, parts, strict=True):
            assert (span.number, span.size_bytes, span.offset) == (number, size, offset)
            assert span.body[:16] == stream
            offset += size
        for at in range(offset + 1):
            holder = next(
                (s.number for s in spans if s.offset <= at < s.offset + s.size_bytes), None
            )
            found = self.node.query_now(c.parts_from(live.info.bucket_id, info, at, 1))
            assert (found[0].number if found else None) == holder
        for number in (1, 2, 3, 10000):
            span = self.node.query_now(c.part_of_version(live.info.bucket_id, info, number))
            assert (span is not None) == (number in {part[0] for part in parts})

    @rule(name=names, prefix=st.sampled_from([b"", b"", b"a", b"a/", b"b\x00", b"z"]),
          delimiter=st.sampled_from([b"", b"/", b"/b", b"b\x00"]), limit=st.integers(0, 4),
          after=st.one_of(st.just(b""), st.sampled_from(KEYS), st.sampled_from([b"a/b/", b"a/zzz", b"\x00"])))  # fmt: skip
    def list_objects(self, name, prefix, delimiter, limit, after) -> None:
        live = self.buckets[name]
        for _ in range(30):
            page = self.node.query_now(
                c.list_objects(live.info.bucket_id, prefix, delimiter, after, limit)
            )
            expected = live.model.list(prefix, delimiter, after, limit)
            found = [entry[0] for entry in page.entries], page.common_prefixes, page.truncated
            assert found == expected
            for entry in page.entries:
                version = live.model.keys[entry[0]][0]
                assert entry[1:5] == (version.modified, version.etag, version.size, OWNER)
                assert entry[5] == (version.checksum.algorithm if version.checksum else "")
            if not page.truncated:
                return
            after = page.next_after
        raise AssertionError("the listing does not end")

    @rule(name=names, prefix=st.sampled_from([b"", b"", b"a", b"a/", b"z"]),
          delimiter=st.sampled_from([b"", b"/", b"b\x00"]), limit=st.integers(1, 5))  # fmt: skip
    def list_versions(self, name, prefix, delimiter, limit) -> None:
        live = self.buckets[name]
        expected = live.model.all_versions(prefix, delimiter)
        found: list[Any] = []
        key_marker, version_marker = b"", None
        for _ in range(100):
            page = self.node.query_now(
                c.list_versions(live.info.bucket_id, prefix, delimiter, key_marker=key_marker,
                                version_marker=version_marker, max_keys=limit)
            )  # fmt: skip
            merged = sorted([*page.entries, *((group,) for group in page.common_prefixes)],
                            key=lambda entry: entry[0])  # fmt: skip
            assert len(merged) <= limit
            found += merged
            assert page.truncated == (len(found) < len(expected))
            if not page.truncated:
                break
            key_marker = page.next_key_marker
            text = page.next_version_marker_text
            version_marker = c.parse_version_id(text) if text else None
        assert len(found) == len(expected)
        for entry, wanted in zip(found, expected, strict=True):
            if isinstance(wanted, bytes):
                assert entry == (wanted,)
                continue
            key, version, latest = wanted
            assert entry[:6] == (
                key, version.order, version.null, latest, version.marker, version.modified,
            )  # fmt: skip
            assert entry[6:9] == (version.etag, version.size, OWNER)

    @rule(name=names, delimiter=st.sampled_from([b"", b"/"]), limit=st.integers(1, 4))
    def list_uploads(self, name: str, delimiter: bytes, limit: int) -> None:
        live = self.buckets[name]
        expected: list[Any] = []
        for key, upload_id in sorted(
            (u.key, i) for i, u in live.model.uploads.items() if not u.done
        ):
            if delimiter and delimiter in key:
                group = key[: key.index(delimiter) + 1]
                if group not in expected:
                    expected.append(group)
            else:
                expected.append((key, upload_id))
        found: list[Any] = []
        key_marker, upload_marker = b"", b""
        for _ in range(100):
            page = self.node.query_now(
                c.list_uploads(live.info.bucket_id, b"", delimiter, key_marker=key_marker,
                               upload_marker=upload_marker, max_uploads=limit)
            )  # fmt: skip
            found += sorted(
                [*((e[0], e[1]) for e in page.entries), *page.common_prefixes],
                key=lambda entry: entry if isinstance(entry, bytes) else entry[0],
            )
            if not page.truncated:
                break
            key_marker, upload_marker = page.next_key_marker, page.next_upload_marker
        assert found == expected

    @rule(name=names, which=st.integers(0, 20), limit=st.integers(1, 3))
    def list_parts(self, name: str, which: int, limit: int) -> None:
        live = self.buckets[name]
        upload_id, upload = self.pick_upload(live, which)
        after, found = 0, []
        if upload.done:
            with pytest.raises(c.NoSuchUpload):
                self.node.query_now(
                    c.list_parts(live.info.bucket_id, upload.key, upload_id, after, limit)
                )
            return
        while True:
            page = self.node.query_now(
                c.list_parts(live.info.bucket_id, upload.key, upload_id, after, limit)
            )
            assert page.upload.changes == upload.changes
            assert page.upload.part_count == len(upload.parts)
            found += [(p.number, (p.size_bytes, p.body[:16], p.etag)) for p in page.parts]
            if not page.truncated:
                break
            after = page.next_after
        assert found == sorted(upload.parts.items())

    def teardown(self) -> None:
        """When every chore is done, exactly the streams of the model are left."""
        if not hasattr(self, "node"):
            return
        self.run_chores(self.now + 20 * DAY_NS)
        self.run_chores(self.now + 40 * DAY_NS)
        counts = self.node.query_now(c.counts())
        assert (counts.garbage, counts.abandoned) == (0, 0)
        still_open = [
            u for live in self.buckets.values() for u in live.model.uploads.values() if not u.done
        ]
        assert counts.uploads == len(still_open)
        assert counts.upload_size_bytes == sum(
            size for u in still_open for size, _, _ in u.parts.values()
        )
        left = {
            value[at : at + 16]
            for row_key, value in self.node.rows.values.items()
            if row_key[0] in (0x20, 0x23) and value[1] & 4
            for at in [78 if row_key[0] == 0x20 else 67]
        }
        assert left == self.named
        made = {command.body[:16] for command in self.node.submitted if hasattr(command, "body")}
        assert self.named.isdisjoint(self.node.released)
        assert set(self.node.released) <= made


TestCatalog = CatalogMachine.TestCase
TestCatalog.settings = settings(
    max_examples=int(os.environ.get("O3_CATALOG_EXAMPLES", "60")),
    stateful_step_count=80,
    deadline=None,
    suppress_health_check=list(HealthCheck),
)
