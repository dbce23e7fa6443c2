"""The whole catalog, driven at random, against the plain model."""

from __future__ import annotations

import os
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import invariant, rule

from o3storage import catalog as c
from tests.catalog.machine import (
    DAY_NS,
    KEYS,
    OWNER,
    Live,
    keys,
    names,
)
from tests.catalog.machine_uploads import UploadMachine
from tests.catalog.model import Refused, Version


class CatalogMachine(UploadMachine):
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
        only_null = not live.info.versioning
        query = c.head_version(live.info.bucket_id, key, version, only_null=only_null)
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
