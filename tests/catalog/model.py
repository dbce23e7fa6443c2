"""What the catalog should answer, written plainly and independently: dicts and sorted lists.

Nothing here knows rows, slots, pointers or codecs. A bucket is a dict of keys, each with a list of
versions, newest first.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass
class Version:
    order: int
    null: bool
    marker: bool
    modified: int
    owner: str
    size: int = 0
    etag: str = ""
    streams: list[bytes] = field(default_factory=list)
    parts: list[tuple[int, int, bytes]] | None = None
    """(number, size, stream) of a multipart version."""
    tags: list[tuple[str, str]] = field(default_factory=list)
    headers: dict[str, str] = field(default_factory=dict)
    metadata: dict[str, str] = field(default_factory=dict)
    checksum: Any = None


@dataclass
class Upload:
    key: bytes
    initiated: int
    owner: str
    headers: dict[str, str]
    metadata: dict[str, str]
    tags: list[tuple[str, str]]
    parts: dict[int, tuple[int, bytes, str]] = field(default_factory=dict)
    """number -> (size, stream, etag)."""
    changes: int = 0
    done: Version | None = None
    done_at: int = 0
    done_versioned: bool = False


class Refused(Exception):
    """The model's refusal, by the name of the catalog's error."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.name = name


class Bucket:
    def __init__(self) -> None:
        self.versioning = ""
        self.keys: dict[bytes, list[Version]] = {}
        self.uploads: dict[bytes, Upload] = {}

    # --- writes

    def current(self, key: bytes) -> Version | None:
        versions = self.keys.get(key)
        return versions[0] if versions and not versions[0].marker else None

    def check(self, key: bytes, condition: Any) -> None:
        if condition is None:
            return
        current = self.current(key)
        if current is None:
            if condition.if_match is not None:
                raise Refused("NoSuchKey")
            return
        if condition.if_match is not None and condition.if_match not in ("*", current.etag):
            raise Refused("PreconditionFailed")
        if condition.if_none_match is not None and (condition.if_none_match in ("*", current.etag)):
            raise Refused("PreconditionFailed")
        if condition.if_match_size is not None and condition.if_match_size != current.size:
            raise Refused("PreconditionFailed")
        if condition.if_match_modified_ns is not None and (
            condition.if_match_modified_ns // 10**9 != current.modified // 10**9
        ):
            raise Refused("PreconditionFailed")

    def add(self, key: bytes, version: Version) -> list[Version]:
        """Add the newest version; returns what it replaced."""
        versions = self.keys.setdefault(key, [])
        replaced = []
        if self.versioning != "Enabled":
            version.null = True
            replaced = [old for old in versions if old.null]
            for old in replaced:
                versions.remove(old)
        versions.insert(0, version)
        return replaced

    def find(self, key: bytes, version: int | None) -> Version | None:
        versions = self.keys.get(key, [])
        if version is None:
            return versions[0] if versions else None
        for one in versions:
            if one.null if version == -1 else (one.order == version and not one.null):
                return one
        return None

    def remove(self, key: bytes, version: Version) -> None:
        self.keys[key].remove(version)
        if not self.keys[key]:
            del self.keys[key]

    # --- reads

    def head(self, key: bytes, version: int | None) -> Version:
        found = self.find(key, version)
        if version is None:
            if found is None or found.marker:
                raise Refused("NoSuchKey")
            return found
        if found is None:
            raise Refused("NoSuchVersion")
        if found.marker:
            raise Refused("MethodNotAllowed")
        return found

    def list(
        self, prefix: bytes, delimiter: bytes, after: bytes, limit: int
    ) -> tuple[list[bytes], list[bytes], bool]:
        """(keys, common prefixes, truncated) as S3 documents ListObjects."""
        skip = b""
        if delimiter and after.startswith(prefix) and delimiter in after[len(prefix) :]:
            end = after.index(delimiter, len(prefix)) + len(delimiter)
            skip = after[:end]
        keys: list[bytes] = []
        groups: list[bytes] = []
        for key in sorted(self.keys):
            if not key.startswith(prefix) or key <= after or self.keys[key][0].marker:
                continue
            if skip and key.startswith(skip):
                continue
            group = b""
            if delimiter and delimiter in key[len(prefix) :]:
                group = key[: key.index(delimiter, len(prefix)) + len(delimiter)]
                if group in groups:
                    continue
            if len(keys) + len(groups) == limit:
                return keys, groups, limit > 0
            if group:
                groups.append(group)
            else:
                keys.append(key)
        return keys, groups, False

    def all_versions(self, prefix: bytes, delimiter: bytes) -> list[Any]:
        """Every entry of ListObjectVersions in order: (key, version, is latest) or a common
        prefix."""
        entries: list[Any] = []
        for key in sorted(self.keys):
            if not key.startswith(prefix):
                continue
            if delimiter and delimiter in key[len(prefix) :]:
                group = key[: key.index(delimiter, len(prefix)) + len(delimiter)]
                if not entries or entries[-1] != group:
                    entries.append(group)
                continue
            for at, version in enumerate(self.keys[key]):
                entries.append((key, version, at == 0))
        return entries
