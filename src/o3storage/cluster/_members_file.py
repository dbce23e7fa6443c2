"""What a node remembers of its cluster outside its ranges: the file `members` in its directory.

It is what a node goes by before it holds a replica of range 0, and what tells a node that has lost
its volumes from one that never had any. It holds no secret.

    magic "O3MB" | version u8 = 1 | stage u8 | joined_ns u64 | cluster u8 + bytes
    | count u16, (node u64, identity 32, announcement)* | BLAKE3 of all before, 32
"""

from __future__ import annotations

import asyncio
import enum
import struct
from dataclasses import dataclass, field

from o3storage import _native
from o3storage.cluster._errors import Unavailable
from o3storage.cluster._node_records import MAX_NODE_ROWS, Announcement
from o3storage.runtime.disk import Disk, OpenMode, write_whole
from o3storage.runtime.fields import FieldReader

MEMBERS_FILE = "members"
MAX_MEMBERS_FILE_BYTES = 1 << 20
"""MAX_NODES nodes of a few hundred bytes, with plenty of room."""

_NEW = ".new"
_HEAD = b"O3MB\x01"
_FIXED = struct.Struct(">BQ")
_NODE = struct.Struct(">Q32s")


class Stage(enum.IntEnum):
    ASKING = 1
    """It asks to join; `joined_ns` names the attempt, so that an answer that was lost is not taken
    for another node's."""
    JOINED = 2
    """A member, which has not received anything yet."""
    HOLDING = 3
    """It has held replicas: without its volumes it must not come back."""


@dataclass(slots=True)
class Members:
    """`nodes`: id -> (identity, announcement), all members but this one."""

    stage: Stage
    joined_ns: int
    cluster_id: bytes = b""
    nodes: dict[int, tuple[bytes, Announcement]] = field(default_factory=dict)

    def encode(self) -> bytes:
        parts = [_HEAD, _FIXED.pack(self.stage, self.joined_ns)]
        parts.append(bytes((len(self.cluster_id),)) + self.cluster_id)
        parts.append(len(self.nodes).to_bytes(2, "big"))
        for node in sorted(self.nodes):
            identity, announced = self.nodes[node]
            parts += (_NODE.pack(node, identity), announced.encode())
        body = b"".join(parts)
        return body + _native.blake3(body)

    @classmethod
    def decode(cls, data: bytes) -> Members:
        """Raises ValueError."""
        body, check = data[:-32], data[-32:]
        if not data.startswith(_HEAD) or _native.blake3(body) != check:
            raise ValueError("not a whole file of members")
        reader = FieldReader(body, len(_HEAD))
        stage, joined_ns = _FIXED.unpack(reader.take(_FIXED.size))
        members = cls(Stage(stage), joined_ns, reader.bytes8())
        count = reader.u16()
        if count > MAX_NODE_ROWS:
            raise ValueError("too many members")
        for _number in range(count):
            node, identity = _NODE.unpack(reader.take(_NODE.size))
            members.nodes[node] = (identity, Announcement.read(reader))
        reader.end()
        return members


async def load(disk: Disk) -> Members | None:
    """None if there is no such file. Raises Unavailable if it is damaged, DiskError."""
    try:
        file = await disk.open(MEMBERS_FILE, OpenMode.READ)
    except FileNotFoundError:
        return None
    try:
        data = await file.read(0, MAX_MEMBERS_FILE_BYTES)
    finally:
        await file.close()
    try:
        return Members.decode(data)
    except ValueError:
        raise Unavailable(
            f"the file {MEMBERS_FILE} in the data directory is damaged. If this node holds data, "
            "remove that file and start again: it is made anew; if it never held any, start with "
            "an empty data directory"
        ) from None


class MembersFile:
    """Written by one task at a time: the rows of range 0 are followed by several."""

    def __init__(self, disk: Disk) -> None:
        self._disk = disk
        self._writing = asyncio.Lock()

    async def save(self, members: Members) -> None:
        """Durable, and whole, on return; who called last is who stays. Raises DiskError."""
        data = members.encode()
        name = MEMBERS_FILE + _NEW
        async with self._writing:
            await write_whole(self._disk, name, data)
            await self._disk.rename(name, MEMBERS_FILE)
            await self._disk.sync_dir("")
