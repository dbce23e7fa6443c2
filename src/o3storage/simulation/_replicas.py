"""Are all replicas equal, and whole? Looked at from inside each node, past S3 and past the network:
rows as its own index has them, bodies as its own disk has them."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from o3storage.catalog import VersionInfo, parts_from
from o3storage.catalog._keys import KEY_OFFSET, TABLE_VERSION, VERSION_TAIL, unescape
from o3storage.catalog._versions import unpack_version
from o3storage.cluster._reading import READ_FAULTS, read_row
from o3storage.crypto import StreamRef
from o3storage.storage import FRAME_PLAIN_BYTES

from ._machine import Machine

if TYPE_CHECKING:
    from o3storage.cluster import Node

    from ._workload import Values

FIRST_ROW = b"\x10"
"""Tables below it are the disk's own: placement is no replica's state."""
END_OF_ROWS = b"\xff"
CONFIGURATION_ROWS = b"\xfe\x01"
"""They begin with an index that each replica sets for itself: where it learned of the members, by
an entry or by a snapshot."""
PAGE_ROWS = 1000
SCRUBS = 2
"""The second finds what the first one's repairs left (and what cannot be repaired)."""
REBUILD_S = 60.0
"""Virtual seconds in which a node puts a damaged block of its index right; some tenths will do."""
LOOK_S = 0.1
SHOWN_ROWS = 4
"""Rows that differ, shown in a violation."""

NOBODYS = -1
"""In place of a range: rows of none that the node holds. There are to be none."""

Rows = dict[bytes, bytes]


async def rows_of(machine: Machine) -> Rows:
    """Every replicated row of a node, which first puts blocks right that nobody had read since bits
    flipped in them. Raises BadBlock, StoreError: it did not."""
    loop = asyncio.get_running_loop()
    end_s = loop.time() + REBUILD_S
    while True:
        try:
            return await _rows_now(machine)
        except READ_FAULTS:
            if loop.time() > end_s:
                raise
            await asyncio.sleep(LOOK_S)


async def _rows_now(machine: Machine) -> Rows:
    assert machine.life is not None
    store = machine.life.opened.store
    rows: Rows = {}
    low = FIRST_ROW
    while True:
        found = await store.scan(low, END_OF_ROWS, PAGE_ROWS)
        for key, value in found:
            rows[key] = value[8:] if key.startswith(CONFIGURATION_ROWS) else value
        if len(found) < PAGE_ROWS:
            return rows
        low = found[-1][0] + b"\x00"


async def parts_of(machine: Machine) -> dict[int, Rows]:
    """The same by range, of those that the node holds."""
    assert machine.life is not None
    node = machine.life.opened.node
    rows = await rows_of(machine)
    if node.replication is None:
        return {0: rows}
    parts: dict[int, Rows] = {}
    for group in node._replicas:
        if holds(node, group):
            spans = node._ranges.row_spans(group)
            parts[group] = {
                key: value
                for key, value in rows.items()
                if any(low <= key < high for low, high in spans)
                or (key.startswith(CONFIGURATION_ROWS) and key[2:] == group.to_bytes(4, "big"))
            }
    seen = {key for part in parts.values() for key in part}
    left = {key: value for key, value in rows.items() if key not in seen}
    if left:
        parts[NOBODYS] = left
    return parts


def holds(node: Node, group: int) -> bool:
    """Whether the node has a replica of the range that is to be asked."""
    return group == 0 or node.ranges.is_here(group)


def unfinished(node: Node) -> str:
    """What moves yet, or is erased, or is there and ought not to be; "" if nothing."""
    if node.ranges.moves:
        return f"range {next(iter(node.ranges.moves))} moves"
    for group in node._replicas:
        if not holds(node, group):
            return f"range {group} is to leave"
    leaving = next(iter(node.ranges._leaving), 0)
    return f"range {leaving} leaves" if leaving else ""


def difference(one: Rows, other: Rows) -> str:
    """Where two replicas differ; "" where they do not."""
    keys = [key for key in sorted({**one, **other}) if one.get(key) != other.get(key)]
    if not keys:
        return ""
    shown = [
        f"{key.hex()}: {_text(one.get(key))} and {_text(other.get(key))}"
        for key in keys[:SHOWN_ROWS]
    ]
    return f"{len(keys)} rows, " + "; ".join(shown)


def _text(value: bytes | None) -> str:
    return "none" if value is None else value[:40].hex()


async def mend_frames(machine: Machine) -> None:
    """Have everything read by the scrub, and what is bad taken from the others, as the background
    does in its time."""
    assert machine.life is not None
    replication = machine.life.opened.node.replication
    assert replication is not None
    for _ in range(SCRUBS):
        if not await machine.life.opened.store.scrub(replication.repair.wanted):
            return
        await replication.repair.settled()


async def missing_bodies(machine: Machine, rows: Rows, values: Values) -> list[str]:
    """What cannot be read, byte for byte, from this machine's own disk."""
    assert machine.life is not None
    node = machine.life.opened.node
    problems: list[str] = []
    for key, value in rows.items():
        if key[0] != TABLE_VERSION:
            continue
        bucket_id = int.from_bytes(key[1:KEY_OFFSET], "big")
        name = unescape(key[KEY_OFFSET:-VERSION_TAIL])
        version = unpack_version(name, value)
        if version.delete_marker:
            continue
        where = f"bucket {bucket_id} {name.decode()} version {version.version_id}"
        try:
            body = await _read_own(node, bucket_id, version)
        except Exception as error:  # whatever it is, the copy is not whole
            problems.append(f"{where}: {type(error).__name__}: {error}")
            continue
        wanted = values.by_etag.get(f'"{version.etag}"')
        if wanted is None or body != wanted.body:
            problems.append(f"{where}: {len(body)} bytes that nobody wrote there")
    return problems


async def _read_own(node: Node, bucket_id: int, version: VersionInfo) -> bytes:
    if not version.upload_id:
        return await _read_stream(node, version.body) if version.size_bytes else b""
    pieces: list[bytes] = []
    at = 0
    while at < version.size_bytes:
        for span in await _answer(node, parts_from(bucket_id, version, at, 100)):
            pieces.append(await _read_stream(node, span.body))
            at = span.offset + span.size_bytes
    return b"".join(pieces)


async def _answer(node: Node, query: Any) -> Any:
    """A query answered from what this node has applied."""
    steps = query()
    try:
        read = next(steps)
        while True:
            read = steps.send(await read_row(node.store, read))
    except StopIteration as stop:
        return stop.value


async def _read_stream(node: Node, packed: bytes) -> bytes:
    ref = StreamRef.unpack(packed)
    sealer = node._sealer(ref)
    count = max(1, -(-ref.size_bytes // FRAME_PLAIN_BYTES))
    pieces: list[bytes] = []
    for number in range(count):
        sealed = await node.store.read_frame(ref.stream, number)
        pieces.append(sealer.unseal_frame(number, sealed, number == count - 1))
    return b"".join(pieces)
