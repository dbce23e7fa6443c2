"""Where a guest's processor spends its time, seen from outside: the same for every kernel.

The monitor is asked for the registers some hundred times in a second: the privilege level tells
kernel from program, HLT tells rest. The processor's own work is the CPU time of its QEMU thread, so
that what else runs on the host does not count. Time in the emulation of a device is the kernel's
that asked for it, and is sampled less often than it takes (the monitor waits for it): the same for
both.
"""

from __future__ import annotations

import contextlib
import os
import re
import socket
import threading
from collections import Counter
from pathlib import Path

INTERVAL_S = 0.004
# Answers of the monitor to `info registers` are some 2 KB.
ANSWER_BYTES = 65536
TICKS_PER_S = os.sysconf("SC_CLK_TCK")


class Monitor:
    """One connection to QEMU's human monitor."""

    def __init__(self, path: str) -> None:
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.connect(path)
        self._socket.settimeout(10)
        self._until_prompt()

    def _until_prompt(self) -> str:
        text = b""
        while not text.endswith(b"(qemu) "):
            data = self._socket.recv(ANSWER_BYTES)
            if not data:
                raise ConnectionError("the machine ended")
            text += data
        return text.decode(errors="replace")

    def ask(self, command: str) -> str:
        self._socket.sendall(command.encode() + b"\n")
        return self._until_prompt()

    def close(self) -> None:
        self._socket.close()


def thread_cpu_s(pid: int, tid: int) -> float:
    fields = Path(f"/proc/{pid}/task/{tid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICKS_PER_S


class Sampler:
    """A context: samples from its begin to its end."""

    def __init__(self, monitor_path: str, pid: int) -> None:
        self._monitor = Monitor(monitor_path)
        self._pid = pid
        found = re.search(r"thread_id=(\d+)", self._monitor.ask("info cpus"))
        assert found is not None
        self._tid = int(found[1])
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self.kernel = self.program = self.idle = 0
        self.cpu_s = 0.0
        # Addresses in the kernel, for the profile.
        self.places: Counter[int] = Counter()

    def __enter__(self) -> Sampler:
        self._begin_s = thread_cpu_s(self._pid, self._tid)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()
        with contextlib.suppress(OSError):
            self.cpu_s = thread_cpu_s(self._pid, self._tid) - self._begin_s
        self._monitor.close()

    def _run(self) -> None:
        while not self._stop.wait(INTERVAL_S):
            try:
                text = self._monitor.ask("info registers")
            except OSError:
                return  # The machine ended; who waits for it says why.
            found = re.search(r"RIP=([0-9a-f]+) .*CPL=(\d) .*HLT=(\d)", text)
            if found is None:
                continue
            if found[3] == "1":
                self.idle += 1
            elif found[2] == "0":
                self.kernel += 1
                self.places[int(found[1], 16)] += 1
            else:
                self.program += 1

    @property
    def kernel_share(self) -> float:
        """The kernel's share of the time in which the processor worked."""
        return self.kernel / max(1, self.kernel + self.program)

    @property
    def kernel_cpu_s(self) -> float:
        return self.cpu_s * self.kernel_share
