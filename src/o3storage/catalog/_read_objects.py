"""Reading one version."""

from __future__ import annotations

from ._apply_objects import find_version
from ._errors import CatalogError
from ._query import Steps
from ._types import VersionInfo
from ._versions import unpack_version


def head_version(
    bucket_id: int, key: bytes, version: int | None, only_null: bool
) -> Steps[VersionInfo]:
    found = yield from find_version(bucket_id, key, version, only_null)
    if isinstance(found, CatalogError):
        raise found
    info = unpack_version(key, found[0][1])
    info.is_latest = found[1]
    return info
