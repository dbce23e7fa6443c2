"""A virtual machine that runs O3StorageOS: started, watched by its serial console, stopped."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import tempfile
import threading
import time
from pathlib import Path

MEMORY_MB = 512
UEFI_FIRMWARE = "/usr/share/OVMF/OVMF_CODE.fd"


def free_port() -> int:
    """A port of the host's loopback that nobody uses just now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class MachineError(Exception):
    """The machine did not do what was waited for; the message ends with its console."""


class Machine:
    """One QEMU process. Use it as a context: it never outlives the block.

    `boot` is "pvh" (kernel and root image), or "bios" or "uefi" with `disk`. `config` becomes
    fw_cfg's file. With `port`, the guest's port 80 is the host's 127.0.0.1:port.
    """

    def __init__(
        self,
        *,
        kernel: Path | None = None,
        root: Path | None = None,
        disk: Path | None = None,
        boot: str = "pvh",
        config: bytes | None = None,
        port: int | None = None,
        cpu: str = "max",
        rng: bool = True,
        memory_mb: int | str = MEMORY_MB,
        command_line: str = "",
        extra: tuple[str, ...] = (),
        echo: bool = False,
    ) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="o3os")
        self._echo = echo
        self._condition = threading.Condition()
        self._output = bytearray()
        self._ended = False
        self.port = port
        accelerator = os.environ.get("O3_ACCEL", "tcg")
        command = ["qemu-system-x86_64", "-M", "pc", "-cpu", cpu, "-accel", accelerator]
        command += ["-m", str(memory_mb), "-smp", "1", "-nodefaults", "-no-reboot"]
        command += ["-display", "none", "-serial", "stdio"]
        self.monitor_path = str(Path(self._folder.name, "monitor"))
        command += ["-monitor", f"unix:{self.monitor_path},server,nowait"]
        if boot == "pvh":
            command += ["-kernel", str(kernel), "-initrd", str(root)]
            if command_line:
                command += ["-append", command_line]
        else:
            command += ["-drive", f"file={disk},format=raw,if=virtio,snapshot=on"]
        if boot == "uefi":
            command += ["-drive", f"if=pflash,format=raw,readonly=on,file={UEFI_FIRMWARE}"]
        if rng:
            command += ["-device", "virtio-rng-pci,disable-legacy=on"]
        if port is not None:
            command += ["-netdev", f"user,id=net0,hostfwd=tcp:127.0.0.1:{port}-:80"]
            command += ["-device", "virtio-net-pci,netdev=net0,disable-legacy=on,romfile="]
        if config is not None:
            path = Path(self._folder.name, "config")
            path.write_bytes(config)
            command += ["-fw_cfg", f"name=opt/o3storage/config,file={path}"]
        command += extra
        self.started_s = time.monotonic()
        self._process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        stream = self._process.stdout
        assert stream is not None
        while data := stream.read1(65536):  # type: ignore[attr-defined]
            if self._echo:
                os.write(1, data)
            with self._condition:
                self._output += data
                self._condition.notify_all()
        with self._condition:
            self._ended = True
            self._condition.notify_all()

    def __enter__(self) -> Machine:
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def console(self) -> str:
        with self._condition:
            return self._output.decode(errors="replace").replace("\r\n", "\n")

    def wait_for(self, pattern: str, timeout_s: float = 30) -> re.Match[str]:
        """Waits until the console shows `pattern`; MachineError at the end or the time-out."""
        deadline = time.monotonic() + timeout_s
        with self._condition:
            while True:
                text = self._output.decode(errors="replace").replace("\r\n", "\n")
                if found := re.search(pattern, text, re.MULTILINE):
                    return found
                left = deadline - time.monotonic()
                if self._ended or left <= 0:
                    why = "the machine ended" if self._ended else f"not within {timeout_s} s"
                    raise MachineError(f"{pattern!r} was not seen: {why}\n{text[-4000:]}")
                self._condition.wait(left)

    def wait_end(self, timeout_s: float = 60) -> str:
        """Waits until the machine is off; answers its console."""
        try:
            self._process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            raise MachineError(f"still on after {timeout_s} s\n{self.console[-4000:]}") from None
        self._reader.join(5)
        return self.console

    def status(self, timeout_s: float = 60) -> int:
        """The program's exit status, read from the console after the machine went off."""
        text = self.wait_end(timeout_s)
        found = re.findall(r"program (?:ended with |killed \()status (-?\d+)", text)
        if not found:
            raise MachineError(f"the program did not end by itself\n{text[-4000:]}")
        return int(found[-1])

    def press_power(self) -> None:
        """Presses the ACPI power button."""
        self.monitor("system_powerdown")

    def monitor(self, command: str) -> None:
        with socket.socket(socket.AF_UNIX) as control:
            control.connect(self.monitor_path)
            control.settimeout(5)
            # The prompt before and after: a connection closed earlier takes the command with it.
            for text in (b"", command.encode() + b"\n"):
                control.sendall(text)
                answer = b""
                while not answer.endswith(b"(qemu) "):
                    data = control.recv(4096)
                    if not data:
                        return
                    answer += data

    def kill(self) -> None:
        if self._process.poll() is None:
            self._process.kill()
        self._process.wait()
        self._reader.join(5)
        self._folder.cleanup()
