"""The stack against the host's Linux over a bad wire, and Linux against itself in its place.

`linux.py NODE LOSS BYTES [RUNS]`, as root, with NODE the built example `node`: prints the MiB/s
each way of both arms, taken in turns. Linux lives in network namespaces of its own behind tap
devices; the wire is `relay.Relay`, with 2 % of the frames reordered and 1 % twice.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import socket
import statistics
import struct
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tools"))

from relay import Faults, Relay

TUNSETIFF, IFF_TAP, IFF_NO_PI = 0x400454CA, 0x0002, 0x1000
PATTERN = bytes(range(256)) * 1024
CHUNK_BYTES = 65536
# What Debian's kernel uses, whatever this host prefers.
DEFAULT_CONTROL = b"cubic"
# Enough that the ways of a process through the scheduler, which only one arm has, count little.
DELAY_S = 0.003


def send_all(connection: socket.socket, total: int) -> None:
    view, sent = memoryview(PATTERN), 0
    while sent < total:
        sent += connection.send(view[sent % 256 :][: min(CHUNK_BYTES, total - sent)])


def receive_all(connection: socket.socket, total: int) -> float:
    """The time of the first byte."""
    received, first_s = 0, 0.0
    while received < total:
        data = connection.recv(CHUNK_BYTES)
        first_s = first_s or time.monotonic()
        at = received % 256
        if not data or data != PATTERN[at : at + len(data)]:
            raise SystemExit(f"wrong bytes or an early end after {received}")
        received += len(data)
    return first_s


def join(own: str, other: str, address: str) -> None:
    """Makes a tap device with `address` in this namespace and joins it to the relay."""
    tap = os.open("/dev/net/tun", os.O_RDWR)
    fcntl.ioctl(tap, TUNSETIFF, struct.pack("16sH", b"wire", IFF_TAP | IFF_NO_PI))
    for command in (f"addr add {address}/24 dev wire", "link set wire up", "link set lo up"):
        subprocess.run(["ip", *command.split()], check=True)
    frames = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    frames.bind(own)

    def out() -> None:
        while True:
            frame = os.read(tap, CHUNK_BYTES)
            try:
                frames.sendto(frame, other)
            except OSError:
                return

    def back() -> None:
        while True:
            os.write(tap, frames.recv(CHUNK_BYTES))

    # A process of its own: the programs' work must not slow the wire down.
    if os.fork() == 0:
        os.close(1)  # Else the reader of our output would wait for this process too.
        threading.Thread(target=back, daemon=True).start()
        out()
        os._exit(0)


def serve(total: int) -> None:
    listener = socket.create_server(("0.0.0.0", 80))
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, DEFAULT_CONTROL)
    connection, _ = listener.accept()
    receive_all(connection, total)
    send_all(connection, total)
    connection.shutdown(socket.SHUT_WR)
    connection.recv(1)


def ask(total: int) -> None:
    deadline = time.monotonic() + 20
    while True:
        connection = socket.socket()
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, DEFAULT_CONTROL)
        try:
            connection.connect(("10.0.0.1", 80))
            break
        except OSError:
            connection.close()
            if time.monotonic() > deadline:
                raise
            time.sleep(0.1)
    begin_s = time.monotonic()
    send_all(connection, total)
    first_s = receive_all(connection, total)
    end_s = time.monotonic()
    connection.close()
    print(total / (first_s - begin_s) / 2**20, total / (end_s - first_s) / 2**20, flush=True)


def run(node: str | None, loss: float, total: int, seed: int) -> tuple[float, float]:
    """MiB/s to the server and back; the server is `node`, or Linux where that is None."""
    with tempfile.TemporaryDirectory() as folder:
        faults = Faults(loss, reorder=0.02, duplicate=0.01, delay_s=DELAY_S)
        relay = Relay(Path(folder), faults, seed)
        paths = [(f"{folder}/guest{side}", f"{folder}/relay{side}") for side in (0, 1)]
        here = ["unshare", "-n", "--kill-child", sys.executable, __file__, "--role"]
        if node:
            command = [node, *paths[0], str(total)]
        else:
            command = [*here, "serve", *paths[0], "10.0.0.1", str(total)]
        server = subprocess.Popen(command, stdout=subprocess.PIPE, start_new_session=True)
        client = subprocess.Popen(
            [*here, "ask", *paths[1], "10.0.0.2", str(total)],
            stdout=subprocess.PIPE,
            start_new_session=True,
        )
        try:
            out, _ = client.communicate(timeout=300)
        finally:
            for process in (server, client):
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, 9)
                process.wait()
            relay.close()
        there, back = out.split()
        return float(there), float(back)


def main() -> None:
    if sys.argv[1] == "--role":
        role, own, other, address, total = sys.argv[2:7]
        join(own, other, address)
        (serve if role == "serve" else ask)(int(total))
        return
    node, loss, total = sys.argv[1], float(sys.argv[2]), int(sys.argv[3])
    runs = int(sys.argv[4]) if len(sys.argv) > 4 else 3
    arms: dict[str, list[tuple[float, float]]] = {"net": [], "linux": []}
    for seed in range(1, runs + 1):
        arms["net"].append(run(node, loss, total, seed))
        arms["linux"].append(run(None, loss, total, seed))
    for arm, rates in arms.items():
        there, back = (statistics.median(way) for way in zip(*rates, strict=True))
        print(f"loss {loss:.0%}, {arm:>5}: {there:.2f} to the server, {back:.2f} back MiB/s")


if __name__ == "__main__":
    main()
