"""The catalog driven at random beside the plain model: buckets and objects.

Hypothesis runs the rules of these machines; `test_against_model.py` says what must hold."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule

from o3storage import catalog as c
from tests.catalog.model import Bucket, Refused, Version
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


class ObjectMachine(RuleBasedStateMachine):
    """Makes buckets, versions and delete markers, in the catalog and in the model."""

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
