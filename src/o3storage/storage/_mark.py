"""The flush mark: what the index's tables hold, as one record of the manifest edit that adds them.

Little-endian: version u32, sequence u64, floor volume u32, groups u32, volumes u32; then per group
(group u32, applied index u64); then per volume (id u32, size u64 or 0 while written, placed bytes
u64, dead bytes u64, bytes of changes u64).
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, field

from o3storage.storage._types import StoreDamaged

MARK_VERSION = 2
"""A mark of another version: the index is rebuilt from the volumes (version 1 had two layouts)."""
_HEAD = struct.Struct("<IQIII")
_GROUP = struct.Struct("<IQ")
_VOLUME = struct.Struct("<IQQQQ")


@dataclass(slots=True)
class VolumeCount:
    """Account of one volume's frames, in bytes."""

    size_bytes: int
    """0 while it is written."""
    placed_bytes: int
    dead_bytes: int
    change_bytes: int


@dataclass(slots=True)
class Mark:
    """State of the tables at one instant."""

    sequence: int = 0
    """Every change of rows up to this sequence is in the tables, none above."""
    floor_volume: int = 0
    """Log volumes below this one hold nothing that replay needs."""
    applied: dict[int, int] = field(default_factory=dict)
    """Group -> index of the last entry whose rows are in the tables."""
    volumes: dict[int, VolumeCount] = field(default_factory=dict)
    """All volumes."""

    def encode(self) -> bytes:
        parts = [
            _HEAD.pack(
                MARK_VERSION,
                self.sequence,
                self.floor_volume,
                len(self.applied),
                len(self.volumes),
            )
        ]
        parts += [_GROUP.pack(group, self.applied[group]) for group in sorted(self.applied)]
        for volume in sorted(self.volumes):
            count = self.volumes[volume]
            parts.append(
                _VOLUME.pack(
                    volume,
                    count.size_bytes,
                    count.placed_bytes,
                    count.dead_bytes,
                    count.change_bytes,
                )
            )
        return b"".join(parts)

    @staticmethod
    def is_known(data: bytes) -> bool:
        """Whether `decode` knows the layout; b"" it does."""
        return not data or data[:4] == MARK_VERSION.to_bytes(4, "little")

    @classmethod
    def decode(cls, data: bytes) -> Mark:
        """b"" is the mark of a new index. Raises StoreDamaged."""
        mark = cls()
        if not data:
            return mark
        try:
            version, mark.sequence, mark.floor_volume, groups, volumes = _HEAD.unpack_from(data)
            if version != MARK_VERSION:
                raise StoreDamaged(f"flush mark of version {version}")
            at = _HEAD.size
            for _ in range(groups):
                group, applied = _GROUP.unpack_from(data, at)
                mark.applied[group] = applied
                at += _GROUP.size
            for _ in range(volumes):
                volume, *count = _VOLUME.unpack_from(data, at)
                mark.volumes[volume] = VolumeCount(*count)
                at += _VOLUME.size
        except struct.error as error:
            raise StoreDamaged("the flush mark is cut off") from error
        return mark
