"""The state of a simulated disk: what reads see, what is on the medium, and what lies between.

A plain model without time or faults. It follows POSIX read strictly:

- written bytes reach the medium only by a sync of their file; until then each 512-byte sector of
  each write is there or not, independently of all others;
- a created, renamed or removed name is on the medium only after a sync of its directory; until
  then each such change is there or not, independently of all others;
- after a failed sync the cache shows the new bytes, they look clean, and they never reach the
  medium ("Can applications recover from fsync failures?", USENIX ATC 2020).

`crash` makes the image that a machine finds after a power cut, by asking a chooser about each
change that is not on the medium yet.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

SECTOR_BYTES = 512
"""The unit that a simulated medium writes whole or not at all."""


@dataclass(slots=True, eq=False)
class Inode:
    """A file's content. `cached` is what reads see, `durable` is what is on the medium."""

    number: int
    cached: bytearray = field(default_factory=bytearray)
    durable: bytearray = field(default_factory=bytearray)
    lost: set[int] = field(default_factory=set)
    """Sectors whose cached content a failed sync dropped: they look clean and differ."""
    bad: set[int] = field(default_factory=set)
    """Sectors that cannot be read until they are written again (latent sector errors)."""


@dataclass(slots=True, eq=False)
class PendingWrite:
    """A write that no sync covers yet. `image` is the cached content of the sectors it touched,
    from sector `first`, right after it; `end` is the file offset behind its last byte."""

    sequence: int
    inode: Inode
    first: int
    image: bytes
    end: int

    def sectors(self) -> range:
        return range(self.first, self.first + -(-len(self.image) // SECTOR_BYTES))

    def __str__(self) -> str:
        return f"write of file {self.inode.number}, {len(self.sectors())} sectors at {self.first}"


@dataclass(slots=True, eq=False)
class PendingSize:
    """A truncate or fallocate that no sync covers yet."""

    sequence: int
    inode: Inode
    size: int

    def sectors(self) -> range:
        return range(1)

    def __str__(self) -> str:
        return f"size of file {self.inode.number} to {self.size}"


@dataclass(slots=True, eq=False)
class PendingName:
    """A change of names. `directories` are those whose sync it still needs."""

    sequence: int
    directories: set[str]
    added: str | None
    node: Inode | None
    """What `added` names: a file, or None for a directory."""
    removed: str | None

    def sectors(self) -> range:
        return range(1)

    def __str__(self) -> str:
        return f"name +{self.added} -{self.removed}"


Pending = PendingWrite | PendingSize | PendingName
Chooser = Callable[[Pending, int], bool]
"""Whether sector `int` (of `Pending.sectors()`) of a change had reached the medium."""


def parent(path: str) -> str:
    return path.rpartition("/")[0]


class DiskImage:
    """Files and directories by path; the root directory is ''. All methods are plain and instant.
    Missing names raise FileNotFoundError, as the real calls do."""

    def __init__(self) -> None:
        self.names: dict[str, Inode | None] = {"": None}
        self.durable_names: dict[str, Inode | None] = {"": None}
        self.pending: list[Pending] = []
        self.sequence = 0
        self._next_inode = 1

    # --- names

    def lookup(self, path: str) -> Inode:
        node = self.names.get(path)
        if node is None:
            if path in self.names:
                raise IsADirectoryError(f"{path!r} is a directory")
            raise FileNotFoundError(f"no file {path!r}")
        return node

    def create(self, path: str) -> Inode:
        self._need_dir(parent(path))
        if path in self.names:
            raise FileExistsError(f"{path!r} exists")
        node = Inode(self._next_inode)
        self._next_inode += 1
        self.names[path] = node
        self._change_name({parent(path)}, path, node, None)
        return node

    def make_dir(self, path: str) -> None:
        parts = path.split("/") if path else []
        for depth in range(1, len(parts) + 1):
            directory = "/".join(parts[:depth])
            if directory not in self.names:
                self.names[directory] = None
                self._change_name({parent(directory)}, directory, None, None)
            else:
                self._need_dir(directory)

    def rename(self, source: str, target: str) -> None:
        node = self.lookup(source)
        self._need_dir(parent(target))
        if source == target:
            return
        del self.names[source]
        self.names[target] = node
        self._change_name({parent(source), parent(target)}, target, node, source)

    def unlink(self, path: str) -> None:
        self.lookup(path)
        del self.names[path]
        self._change_name({parent(path)}, None, None, path)

    def list_dir(self, path: str) -> list[str]:
        self._need_dir(path)
        head = f"{path}/" if path else ""
        return sorted(
            name[len(head) :]
            for name in self.names
            if name and name.startswith(head) and "/" not in name[len(head) :]
        )

    def sync_dir(self, path: str) -> None:
        self._need_dir(path)
        rest: list[Pending] = []
        for change in self.pending:
            if isinstance(change, PendingName):
                change.directories.discard(path)
                if not change.directories:
                    _apply_name(self.durable_names, change)
                    continue
            rest.append(change)
        self.pending = rest

    def _need_dir(self, path: str) -> None:
        if path not in self.names:
            raise FileNotFoundError(f"no directory {path!r}")
        if self.names[path] is not None:
            raise NotADirectoryError(f"{path!r} is a file")

    def _change_name(
        self, directories: set[str], added: str | None, node: Inode | None, removed: str | None
    ) -> None:
        self.sequence += 1
        self.pending.append(PendingName(self.sequence, directories, added, node, removed))

    # --- content

    def write(self, node: Inode, offset: int, data: bytes) -> None:
        if not data:
            return
        end = offset + len(data)
        if len(node.cached) < end:
            node.cached.extend(bytes(end - len(node.cached)))
        node.cached[offset:end] = data
        first = offset // SECTOR_BYTES
        last = -(-end // SECTOR_BYTES)
        node.lost.difference_update(range(first, last))
        node.bad.difference_update(range(first, last))
        image = bytes(node.cached[first * SECTOR_BYTES : last * SECTOR_BYTES])
        self.sequence += 1
        self.pending.append(PendingWrite(self.sequence, node, first, image, end))

    def resize(self, node: Inode, size: int) -> None:
        _resize(node.cached, size)
        self.sequence += 1
        self.pending.append(PendingSize(self.sequence, node, size))

    def sync(self, node: Inode, upto: int) -> None:
        """All changes of the file's content up to sequence `upto` are on the medium now."""
        for change in self._take(node, upto):
            _apply_content(node.durable, change, all_sectors)

    def fail_sync(self, node: Inode, upto: int) -> None:
        """A sync failed: what it should have written looks clean in the cache and is lost."""
        for change in self._take(node, upto):
            if isinstance(change, PendingWrite):
                node.lost.update(change.sectors())

    def _take(self, node: Inode, upto: int) -> list[PendingWrite | PendingSize]:
        taken: list[PendingWrite | PendingSize] = []
        rest: list[Pending] = []
        for change in self.pending:
            if (
                not isinstance(change, PendingName)
                and change.inode is node
                and change.sequence <= upto
            ):
                taken.append(change)
            else:
                rest.append(change)
        self.pending = rest
        return taken

    def on_medium(self, node: Inode, offset: int, size: int) -> bytes:
        """What a direct read finds: it makes the kernel write dirty pages out first, so it differs
        from the cache exactly where a failed sync dropped them."""
        data = bytearray(node.cached[offset : offset + size])
        for sector in node.lost:
            low = max(sector * SECTOR_BYTES, offset)
            high = min((sector + 1) * SECTOR_BYTES, offset + len(data))
            if low < high:
                old = bytes(node.durable[low:high])
                data[low - offset : high - offset] = old + bytes(high - low - len(old))
        return bytes(data)

    def evict(self) -> None:
        """Drop clean pages from the cache: what failed syncs lost now shows."""
        for node in self.files():
            node.cached[:] = self.on_medium(node, 0, len(node.cached))
            node.lost.clear()

    def files(self) -> Iterator[Inode]:
        """Each file with a name, once."""
        seen: set[int] = set()
        for node in self.names.values():
            if node is not None and node.number not in seen:
                seen.add(node.number)
                yield node

    def used_bytes(self) -> int:
        return sum(len(node.cached) for node in self.files())

    # --- power cut

    def crash(self, choose: Chooser) -> DiskImage:
        """The image after a power cut; this one stays as it is. Each change that is not on the
        medium is kept or lost, sector by sector, as `choose` says, in order of time."""
        after = DiskImage()
        twins: dict[int, Inode] = {}

        def twin(node: Inode) -> Inode:
            if node.number not in twins:
                copy = Inode(
                    node.number, bytearray(), bytearray(node.durable), set(), set(node.bad)
                )
                twins[node.number] = copy
            return twins[node.number]

        names = dict(self.durable_names)
        for change in self.pending:
            if isinstance(change, PendingName):
                if choose(change, 0):
                    _apply_name(names, change)
            else:
                _apply_content(
                    twin(change.inode).durable, change, functools.partial(choose, change)
                )
        for path in sorted(names):
            node = names[path]
            if path and parent(path) not in after.names:
                continue  # the directory that held the name is gone
            after.names[path] = None if node is None else twin(node)
        after.durable_names = dict(after.names)
        for copy in twins.values():
            copy.cached[:] = copy.durable
        after._next_inode = self._next_inode
        return after


def all_sectors(_: int) -> bool:
    return True


def keep_all(_: Pending, __: int) -> bool:
    """The chooser of a clean shutdown: every change reached the medium."""
    return True


def _apply_name(names: dict[str, Inode | None], change: PendingName) -> None:
    if change.removed is not None:
        names.pop(change.removed, None)
    if change.added is not None:
        names[change.added] = change.node


def _resize(content: bytearray, size: int) -> None:
    if size < len(content):
        del content[size:]
    else:
        content.extend(bytes(size - len(content)))


def _apply_content(
    content: bytearray, change: PendingWrite | PendingSize, keep: Callable[[int], bool]
) -> None:
    """Bring the sectors for which `keep` holds to the medium's `content`."""
    if isinstance(change, PendingSize):
        if keep(0):
            _resize(content, change.size)
        return
    if keep is all_sectors:
        low = change.first * SECTOR_BYTES
        if len(content) < low:
            content.extend(bytes(low - len(content)))
        content[low : low + len(change.image)] = change.image
        return
    for index, sector in enumerate(change.sectors()):
        if not keep(sector):
            continue
        data = change.image[index * SECTOR_BYTES : (index + 1) * SECTOR_BYTES]
        low = sector * SECTOR_BYTES
        if len(content) < low:
            content.extend(bytes(low - len(content)))
        content[low : low + len(data)] = data
