"""Guests that run one program under either kernel: O3StorageOS or Debian's.

Both get the same files, memory, processor and network card; `Kit` keeps what is built for them.
"""

from __future__ import annotations

import subprocess
from dataclasses import dataclass
from pathlib import Path

import build_config
import build_image
import debian
from machine import Machine

OURS, DEBIAN = "o3", "debian"
PREFIX = 24


@dataclass(frozen=True)
class Card:
    """A virtio network card: QEMU's `-netdev` without its id, and the guest's address."""

    netdev: str
    address: str
    gateway: str = ""
    # What of the device's work is left to the host stays the same for both kernels.
    features: str = ""

    def options(self) -> tuple[str, ...]:
        last = int(self.address.rsplit(".", 1)[1])
        device = (
            f"virtio-net-pci,netdev=card,disable-legacy=on,romfile=,mac=52:54:00:00:00:{last:02x}"
        )
        return ("-netdev", f"{self.netdev},id=card", "-device", device + self.features)


class Kit:
    """Images for one set of programs: names on the image -> static binaries, or a root image."""

    def __init__(
        self, folder: Path, kernel: Path, entries: dict[str, tuple[int, bytes]], init: Path
    ) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self.kernel = kernel
        self.entries = entries
        self.init = init
        self.root = folder / "root.img"
        image = build_image.Image()
        image.entries = dict(entries)
        image.write(self.root)
        self._debian: debian.Debian | None = None
        self._count = 0

    @property
    def debian(self) -> debian.Debian:
        """DebianError where that kernel cannot be had."""
        if self._debian is None:
            self._debian = debian.Debian(self.folder.parent / "debian")
        return self._debian

    def start(
        self,
        kernel: str,
        arguments: list[str],
        card: Card | None = None,
        *,
        files: list[tuple[str, bytes]] | None = None,
        extra: tuple[str, ...] = (),
    ) -> Machine:
        """A machine of 512 MB with one processor that runs the program of `arguments`."""
        extra = (*(card.options() if card else ()), *extra)
        if kernel == OURS:
            line = ""
            if card:
                line = f"ip={card.address}/{PREFIX}"
                line += f" gw={card.gateway}" if card.gateway else ""
            config = build_config.build(arguments, [], files or [])
            return Machine(
                kernel=self.kernel, root=self.root, config=config, command_line=line, extra=extra
            )
        self._count += 1
        initrd = self.folder / f"initrd{self._count % 4}"
        data = debian.initramfs(self.debian, self.entries, self.init, arguments, files or [])
        initrd.write_bytes(data)
        line = debian.COMMAND_LINE
        if card:
            line += f" O3_IP={card.address}/{PREFIX}"
            line += f" O3_GW={card.gateway}" if card.gateway else ""
        return Machine(kernel=self.debian.kernel, root=initrd, command_line=line, extra=extra)


def static_entries(programs: dict[str, Path]) -> dict[str, tuple[int, bytes]]:
    """The entries of an image that holds only these programs, in /usr/bin."""
    image = build_image.Image()
    image.add_link("/bin", "usr/bin")
    for name, path in programs.items():
        image.add_file(f"/usr/bin/{name}", path.read_bytes(), 0o555)
    for path in ("/tmp", "/run", "/data", "/home"):
        image.add_directory(path)
    return image.entries


def compile_static(source: Path, target: Path, *, linux: bool = False) -> Path:
    """Compiles one C file without shared libraries, for speed; `linux` where it forks."""
    target.parent.mkdir(parents=True, exist_ok=True)
    command = ["gcc", "-O2", "-Wall", "-Wno-unused-result", "-s", "-static"]
    command += [] if linux else ["-pthread"]
    subprocess.run([*command, "-o", str(target), str(source)], check=True)
    return target
