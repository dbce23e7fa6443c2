"""A bad wire between two guests: Ethernet frames as datagrams over unix sockets, with faults.

Each guest runs with `relay.netdev(side)`; whatever one sends reaches the other, but for frames
that are lost, come twice or come late. The faults come from a seed, so that two kernels in the
same place meet the same wire.
"""

from __future__ import annotations

import heapq
import json
import os
import random
import select
import socket
import threading
import time
from dataclasses import dataclass
from pathlib import Path

# One guest's burst must fit while the relay does not run.
BUFFER_BYTES = 4 << 20
FRAME_BYTES = 65536
# What a trace keeps of a frame: the heads of Ethernet, IPv4, and TCP with all its options.
HEAD_BYTES = 14 + 20 + 60
# How long a guest that does not take frames is waited for.
PATIENCE, PAUSE_S = 500, 0.0002


@dataclass(frozen=True)
class Faults:
    """Shares of frames, 0 to 1; how long each takes, and how late a reordered one may come."""

    loss: float = 0.0
    reorder: float = 0.0
    duplicate: float = 0.0
    late_s: float = 0.002
    delay_s: float = 0.0


class Relay:
    """Carries frames from its start to `close`; `carried` and `lost` count them by sender."""

    def __init__(
        self, directory: Path, faults: Faults, seed: int = 1, *, traced: bool = False
    ) -> None:
        self.faults = faults
        # When a frame came (a late one: when it goes on), from whom, what was done, its head.
        self._trace: list[tuple[float, int, str, bytes]] | None = [] if traced else None
        self.carried = [0, 0]
        self.lost = [0, 0]
        self._random = random.Random(seed)
        self._guests = [directory / f"guest{side}" for side in (0, 1)]
        self._ours = [directory / f"relay{side}" for side in (0, 1)]
        self._sockets = [socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) for _ in self._ours]
        for sock, path in zip(self._sockets, self._ours, strict=True):
            sock.bind(os.fspath(path))
            sock.setblocking(False)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, BUFFER_BYTES)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, BUFFER_BYTES)
        # What comes late: when, in which order, from whom, the frame.
        self._late: list[tuple[float, int, int, bytes]] = []
        self._count = 0
        self._end, self._wake = socket.socketpair()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def netdev(self, side: int) -> str:
        """The value of QEMU's `-netdev` for the guest of a side, but for its id."""
        local, remote = self._guests[side], self._ours[side]
        return f"dgram,local.type=unix,local.path={local},remote.type=unix,remote.path={remote}"

    def inject(self, side: int, frame: bytes) -> bool:
        """Gives the guest of a side a frame of our own; False where it takes none just now."""
        try:
            self._sockets[side].sendto(frame, os.fspath(self._guests[side]))
        except OSError:
            return False
        return True

    def save_trace(self, path: Path) -> None:
        """Writes what `segments.py` reads, a line for each frame; the relay must be traced."""
        assert self._trace is not None
        lines = (json.dumps([at, side, what, head.hex()]) for at, side, what, head in self._trace)
        path.write_text("".join(f"{line}\n" for line in lines))

    def _note(self, sender: int, what: str, frame: bytes, late_s: float = 0.0) -> None:
        if self._trace is not None:
            self._trace.append((time.monotonic() + late_s, sender, what, frame[:HEAD_BYTES]))

    def close(self) -> None:
        self._wake.close()
        self._thread.join()
        for sock in (*self._sockets, self._end):
            sock.close()
        for path in self._ours:
            path.unlink(missing_ok=True)

    def _run(self) -> None:
        sides = {sock: side for side, sock in enumerate(self._sockets)}
        while True:
            pause = max(0.0, self._late[0][0] - time.monotonic()) if self._late else None
            ready, _, _ = select.select([*self._sockets, self._end], [], [], pause)
            if self._end in ready:
                return
            for sock in ready:
                self._take(sock, sides[sock])
            now = time.monotonic()
            while self._late and self._late[0][0] <= now:
                _, _, sender, frame = heapq.heappop(self._late)
                self._put(sender, frame)

    def _take(self, sock: socket.socket, sender: int) -> None:
        chance, faults = self._random.random, self.faults
        # Bounded, so that one busy sender does not hold up the other.
        for _ in range(64):
            try:
                frame = sock.recv(FRAME_BYTES)
            except BlockingIOError:
                return
            if chance() < faults.loss:
                self.lost[sender] += 1
                self._note(sender, "lost", frame)
                continue
            for _ in range(2 if chance() < faults.duplicate else 1):
                late = chance() * faults.late_s if chance() < faults.reorder else 0.0
                self._note(sender, "late" if late else "sent", frame, late)
                if late or faults.delay_s:
                    self._count += 1
                    at = time.monotonic() + faults.delay_s + late
                    heapq.heappush(self._late, (at, self._count, sender, frame))
                else:
                    self._put(sender, frame)

    def _put(self, sender: int, frame: bytes) -> None:
        guest = os.fspath(self._guests[1 - sender])
        # A guest's socket holds few frames: a full one is waited for, as a switch would by its
        # own memory, so that the only losses are those that were asked for.
        for _ in range(PATIENCE):
            try:
                self._sockets[1 - sender].sendto(frame, guest)
            except BlockingIOError:
                time.sleep(PAUSE_S)
            except OSError:
                break  # The other guest is not there.
            else:
                self.carried[sender] += 1
                return
        self.lost[sender] += 1
