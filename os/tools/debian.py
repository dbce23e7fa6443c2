"""Debian's cloud kernel as a guest: the yardstick of the network tests and of the bench.

`Debian` holds what its package brings: the kernel and the modules for virtio's network card.
`initramfs` makes a first file system out of a root image (the same files that O3StorageOS maps),
those modules, `tests/programs/linux_init.c` and the program's arguments.
"""

from __future__ import annotations

import os
import re
import stat
import subprocess
import tarfile
import tempfile
from pathlib import Path

META_PACKAGE = "linux-image-cloud-amd64"
# In the order of their dependencies.
MODULES = (
    "failover", "net_failover", "virtio_ring", "virtio", "virtio_pci_modern_dev",
    "virtio_pci_legacy_dev", "virtio_pci", "virtio_net",
)  # fmt: skip
# As it would run for speed: it says little, and does without the work-arounds for processors. On a
# busy host its test of the old timer would fail for want of ticks.
COMMAND_LINE = "console=ttyS0 quiet mitigations=off panic=-1 no_timer_check"
DOWNLOAD_TIMEOUT_S = 300


class DebianError(Exception):
    """The kernel cannot be had here; the message says what was tried."""


class Debian:
    """The kernel in `folder`, fetched from the package archive where it is not there yet."""

    def __init__(self, folder: Path) -> None:
        self.kernel = folder / "vmlinuz"
        self.modules = {name: folder / f"{name}.ko" for name in MODULES}
        self.version_file = folder / "version"
        if not all(path.exists() for path in (self.kernel, *self.modules.values())):
            self._fetch(folder)
        self.version = self.version_file.read_text().strip()

    def _fetch(self, folder: Path) -> None:
        with tempfile.TemporaryDirectory() as work:
            try:
                _run(["apt-get", "download", "-q", package_name()], work)
            except DebianError:
                # The lists here may name what the archive has replaced since.
                _run(["apt-get", "update", "-qq"])
                _run(["apt-get", "download", "-q", package_name()], work)
            (archive,) = Path(work).glob("*.deb")
            found = {}
            listing = subprocess.Popen(
                ["dpkg-deb", "--fsys-tarfile", str(archive)], stdout=subprocess.PIPE
            )
            with listing, tarfile.open(fileobj=listing.stdout, mode="r|") as tar:
                for member in tar:
                    name = os.path.basename(member.name)
                    if name.startswith("vmlinuz-"):
                        target = self.kernel
                    elif name.endswith(".ko") and name[:-3].replace("-", "_") in self.modules:
                        target = self.modules[name[:-3].replace("-", "_")]
                    else:
                        continue
                    file = tar.extractfile(member)
                    if file is not None:
                        found[target] = file.read()
            missing = [p.name for p in (self.kernel, *self.modules.values()) if p not in found]
            if missing:
                raise DebianError(f"{archive.name} does not hold {', '.join(missing)}")
            folder.mkdir(parents=True, exist_ok=True)
            self.version_file.write_text(archive.name.split("_")[1] + "\n")
            for target, data in found.items():
                target.with_suffix(".new").write_bytes(data)
                target.with_suffix(".new").replace(target)


def _run(command: list[str], folder: str | None = None) -> str:
    try:
        made = subprocess.run(
            command, cwd=folder, capture_output=True, text=True, check=True,
            timeout=DOWNLOAD_TIMEOUT_S,
        )  # fmt: skip
    except FileNotFoundError as error:
        raise DebianError(f"{command[0]} is not here: {error}") from None
    except subprocess.TimeoutExpired:
        raise DebianError(f"{' '.join(command)} took over {DOWNLOAD_TIMEOUT_S} s") from None
    except subprocess.CalledProcessError as error:
        raise DebianError(f"{' '.join(command)}: {error.stderr[-300:]}") from None
    return made.stdout


def package_name() -> str:
    """The package with the kernel; the archive's lists are fetched where they are missing."""
    for attempt in (1, 2):
        try:
            text = _run(["apt-cache", "depends", META_PACKAGE])
        except DebianError:
            text = ""
        if found := re.search(r"Depends: (linux-image-\S+-cloud-amd64)\b", text):
            return found[1]
        if attempt == 1:
            _run(["apt-get", "update", "-qq"])
    raise DebianError(f"the package archive does not know {META_PACKAGE}")


class Cpio:
    """Writes the "newc" format of cpio, which the kernel unpacks (its initramfs document)."""

    def __init__(self) -> None:
        self._parts: list[bytes] = []
        self._names: set[str] = set()

    def add(self, name: str, mode: int, data: bytes = b"") -> None:
        name = name.lstrip("/")
        parent = os.path.dirname(name)
        if parent and parent not in self._names:
            self.add(parent, stat.S_IFDIR | 0o755)
        self._names.add(name)
        self._entry(name, mode, data, len(self._names))

    def _entry(self, name: str, mode: int, data: bytes, number: int) -> None:
        path = name.encode() + b"\0"
        fields = (number, mode, 0, 0, 1, 0, len(data), 0, 0, 0, 0, len(path), 0)
        head = b"070701" + b"".join(b"%08x" % field for field in fields) + path
        self._parts += [head, bytes(-len(head) % 4), data, bytes(-len(data) % 4)]

    def bytes(self) -> bytes:
        self._entry("TRAILER!!!", 0, b"", 0)
        return b"".join(self._parts)


def initramfs(
    debian: Debian,
    entries: dict[str, tuple[int, bytes]],
    init: Path,
    arguments: list[str],
    files: list[tuple[str, bytes]],
) -> bytes:
    """`entries` are those of `build_image.Image`: path -> (mode, bytes or the link's target)."""
    cpio = Cpio()
    for name, (mode, data) in sorted(entries.items()):
        cpio.add(name, mode, data)
    cpio.add("/init", stat.S_IFREG | 0o755, init.read_bytes())
    for number, name in enumerate(MODULES):
        path = f"/modules/{number}.ko"
        cpio.add(path, stat.S_IFREG | 0o644, debian.modules[name].read_bytes())
    for path in ("/proc", "/dev"):
        cpio.add(path, stat.S_IFDIR | 0o755)
    cpio.add("/arguments", stat.S_IFREG | 0o644, b"".join(a.encode() + b"\0" for a in arguments))
    for path, data in files:
        cpio.add(path, stat.S_IFREG | 0o400, data)
    return cpio.bytes()
