"""Machines of a campaign: network namespaces on one bridge, a node in each, the clients in one more.

Nothing outside the namespaces is touched or reached; this process moves into the clients' one. A
path from one machine to another is cut by a wrong entry among the sender's neighbours: its frames go
to an address that nobody has, so one direction can be cut alone, and silently.
"""

from __future__ import annotations

import ctypes
import shutil
import subprocess
import uuid

CLONE_NEWNET = 0x40000000
NOBODY = "02:00:00:00:00:fe"
"""A hardware address that no machine here has."""


class NotAllowedError(RuntimeError):
    """Network namespaces cannot be made here."""


def ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True, text=True)


class Machines:
    """`count` machines with the addresses `host(0)`, ..., and the clients' namespace."""

    def __init__(self, count: int) -> None:
        self.count = count
        self.name = f"o3{uuid.uuid4().hex[:6]}"
        self._made: list[str] = []
        self._hardware: list[str] = []
        self._cut: dict[tuple[int, int], None] = {}

    def host(self, number: int) -> str:
        return f"192.168.1.{10 + number}"

    def space(self, number: int) -> str:
        return f"{self.name}n{number}"

    def inside(self, number: int) -> list[str]:
        """Words before a command that is to run on a machine."""
        return ["nsenter", f"--net=/run/netns/{self.space(number)}", "--"]

    def make(self) -> None:
        """Raises NotAllowedError."""
        for tool in ("ip", "nsenter"):
            if shutil.which(tool) is None:
                raise NotAllowedError(f"no {tool} here (install iproute2 and util-linux)")
        try:
            self._make()
        except (OSError, subprocess.CalledProcessError) as error:
            self.clear()
            text = getattr(error, "stderr", None) or str(error)
            raise NotAllowedError(f"no network namespaces here: {text.strip()}") from None

    def _make(self) -> None:
        switch = f"{self.name}s"
        self._namespace(switch)
        ip("-n", switch, "link", "add", "br0", "type", "bridge")
        ip("-n", switch, "link", "set", "br0", "up")
        for number in range(self.count + 1):
            space, port = self.space(number), f"{self.name}p{number}"
            hardware = f"02:00:00:00:01:{number:02x}"
            host = self.host(number) if number < self.count else "192.168.1.100"
            self._namespace(space)
            ip(
                "-n",
                space,
                "link",
                "add",
                "eth0",
                "address",
                hardware,
                "type",
                "veth",
                "peer",
                port,
            )
            ip("-n", space, "link", "set", port, "netns", switch)
            ip("-n", switch, "link", "set", port, "master", "br0", "up")
            ip("-n", space, "addr", "add", f"{host}/24", "dev", "eth0")
            for device in ("lo", "eth0"):
                ip("-n", space, "link", "set", device, "up")
            self._hardware.append(hardware)

    def _namespace(self, name: str) -> None:
        ip("netns", "add", name)
        self._made.append(name)

    def enter(self) -> None:
        """This process, and all that it starts from now on, is where the clients are. To be called
        before any thread is started."""
        with open(f"/run/netns/{self.space(self.count)}") as handle:
            if ctypes.CDLL(None, use_errno=True).setns(handle.fileno(), CLONE_NEWNET):
                raise OSError(ctypes.get_errno(), "setns")

    def cut(self, sender: int, receiver: int) -> None:
        """What `sender` sends to `receiver` is lost from now on."""
        self._cut[sender, receiver] = None
        self._neighbour(sender, receiver, NOBODY)

    def mend(self, sender: int, receiver: int) -> None:
        if self._cut.pop((sender, receiver), 0) is None:
            self._neighbour(sender, receiver, self._hardware[receiver])

    def mend_all(self) -> None:
        for sender, receiver in list(self._cut):
            self.mend(sender, receiver)

    def _neighbour(self, sender: int, receiver: int, hardware: str) -> None:
        to = self.host(receiver)
        words = ["neigh", "replace", to, "lladdr", hardware, "dev", "eth0", "nud", "permanent"]
        ip("-n", self.space(sender), *words)

    def clear(self) -> None:
        for name in self._made:
            subprocess.run(["ip", "netns", "del", name], check=False, capture_output=True)
        self._made.clear()
