"""Two guests over a bad wire: the kernel's TCP against Debian's, and Debian's against itself.

Every frame passes `relay.Relay`, which loses, reorders and repeats some. Each arm sends the same
number of bytes both ways; what is read must be what was written. In the full lane Debian against
Debian on the same wire is the yardstick: the kernel reaches at least half of its rate, each way, as
the median of arms that are taken in turns. The fast lane sends little and judges no rate: it is run
where the host is busy.
"""

import contextlib
import os
import statistics
import struct
import tempfile
import threading
import time
import unittest
from pathlib import Path

import debian
import guests
import segments
from machine import MachineError
from relay import Faults, Relay

from support import BUILD, FIGURES, FULL, KERNEL, PROGRAMS

REORDER, DUPLICATE = 0.02, 0.01
# Each frame's way: more than what a busy host adds by the turns its processes take, so that the
# rates come from the two kernels.
DELAY_S = 0.002
# A share of Debian's rate that must be reached.
LEAST_SHARE = 0.5
RUNS = 3
TRANSFER_TIMEOUT_S = 900 if FULL else 300
CLEAN = Faults(delay_s=DELAY_S)
RESULT = r"there (\w+) ([\d.]+) MiB/s back (\w+) ([\d.]+) MiB/s of (\d+) bytes"
MIB = 1 << 20
PORT = 7000  # Of `programs/wire.c`.
# Where the frames of each transfer are kept for `tools/segments.py`, if anywhere.
TRACES = os.environ.get("O3_TRACES")
FLOOD_PER_S, FLOOD_STEP_S = 10_000, 0.005


def kit() -> guests.Kit:
    programs = BUILD / "programs"
    wire = guests.compile_static(PROGRAMS / "wire.c", programs / "wire")
    init = guests.compile_static(PROGRAMS / "linux_init.c", programs / "linux_init", linux=True)
    entries = guests.static_entries({"wire": wire})
    return guests.Kit(BUILD / "wire", KERNEL, entries, init)


def lossy(loss: float) -> Faults:
    return Faults(loss, reorder=REORDER, duplicate=DUPLICATE, delay_s=DELAY_S)


def checksum(data: bytes) -> int:
    total = sum(struct.unpack(f">{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


def syn(number: int) -> bytes:
    """A frame that asks the first guest for a connection, from one of a million senders."""
    source, target = bytes([10, 0, 0, 3 + number % 200]), bytes([10, 0, 0, 1])
    head = struct.pack(">BBHHHBBH4s4s", 0x45, 0, 40, number & 0xFFFF, 0, 64, 6, 0, source, target)
    head = head[:10] + checksum(head).to_bytes(2, "big") + head[12:]
    port = 1024 + number // 200 % 60_000
    segment = struct.pack(">HHIIBBHHH", port, PORT, number, 0, 5 << 4, 2, 65535, 0, 0)
    pseudo = source + target + struct.pack(">HH", 6, len(segment))
    segment = segment[:16] + checksum(pseudo + segment).to_bytes(2, "big") + segment[18:]
    return b"\x52\x54\0\0\0\x01" + b"\x52\x54\0\0\0\xfe" + b"\x08\0" + head + segment


class Flood:
    """A context: SYNs for the first guest, `FLOOD_PER_S` in a second as far as it takes them."""

    def __init__(self, relay: Relay) -> None:
        self._relay = relay
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self.sent = 0
        self.per_s = 0.0

    def __enter__(self):
        self._begin_s = time.monotonic()
        self._thread.start()
        return self

    def __exit__(self, *_):
        self._stop.set()
        self._thread.join()
        self.per_s = self.sent / (time.monotonic() - self._begin_s)

    def _run(self) -> None:
        number = 0
        while not self._stop.wait(FLOOD_STEP_S):
            due = int((time.monotonic() - self._begin_s) * FLOOD_PER_S)
            # What the guest's socket does not hold is not sent later.
            while number < due:
                number += 1
                self.sent += self._relay.inject(0, syn(number))


def transfer(
    made: guests.Kit,
    server: str,
    total: int,
    faults: Faults,
    seed: int,
    *,
    flood: list[float] | None = None,
) -> tuple[float, float]:
    """MiB/s to the server and back; the client is always Debian's kernel.

    With `flood` the server is flooded all the while, and the SYNs in a second are added to it.
    """
    with tempfile.TemporaryDirectory() as folder:
        relay = Relay(Path(folder), faults, seed, traced=bool(TRACES))
        cards = [guests.Card(relay.netdev(side), f"10.0.0.{side + 1}") for side in (0, 1)]
        machines = []
        try:
            machines.append(made.start(server, ["/usr/bin/wire", "serve", str(total)], cards[0]))
            machines[0].wait_for("^ready", 60)
            arguments = ["/usr/bin/wire", "ask", "10.0.0.1", str(total)]
            flooding = contextlib.nullcontext() if flood is None else Flood(relay)
            with flooding:
                machines.append(made.start(guests.DEBIAN, arguments, cards[1]))
                try:
                    found = machines[1].wait_for(RESULT, TRANSFER_TIMEOUT_S)
                except MachineError as error:
                    raise AssertionError(f"{error}\nserver:\n{machines[0].console}") from None
            there, there_s, back, back_s, done = found.groups()
            if (there, back, int(done)) != ("equal", "equal", total):
                raise AssertionError(f"{server}: other bytes were read than written")
            machines[0].wait_for("program ended with status 0", 60)
            if flood is not None:
                flood.append(flooding.per_s)
            return float(there_s), float(back_s)
        finally:
            for machine in machines:
                machine.kill()
            relay.close()
            if TRACES:
                name = f"{server}-{faults.loss:.0%}-{total // MIB}-{seed}"
                relay.save_trace(Path(TRACES, name))


class Traces(unittest.TestCase):
    def test_what_a_sender_did_is_read_from_its_segments(self):
        def seen(at_ms, side, fate, numbers, sacks=()):
            seq, ack, size = numbers
            options = b"".join(struct.pack(">II", *block) for block in sacks)
            options = bytes([1, 1, 5, 2 + len(options)]) + options if sacks else b""
            length = 20 + len(options)
            head = bytes(12) + b"\x08\0\x45\0" + struct.pack(">H", 20 + length + size)
            head += bytes(5) + b"\x06" + bytes(14)
            head += struct.pack(">IIBBHI", seq, ack, length << 2, 16, 500, 0) + options
            return segments.parse(at_ms / 1000, side, fate, head)

        start = (1 << 32) - 1000  # The numbers turn in mid-transfer.
        trace = [
            seen(0, 1, "sent", (start, 7, 1000)),
            seen(1, 1, "lost", (0, 7, 1000)),
            seen(2, 0, "sent", (7, 0, 0)),
            seen(3, 1, "sent", (1000, 7, 1000)),
            seen(4, 0, "lost", (7, 0, 0), [(1000, 2000)]),
            seen(204, 1, "sent", (0, 7, 1000)),
            seen(205, 1, "sent", (1000, 7, 1000)),
        ]
        self.assertEqual(trace[4].sacks, ((1000, 2000),))
        found = segments.report(trace, 1)
        self.assertEqual(dict(found.fates), {"sent": 4, "lost": 1})
        self.assertEqual((found.resent, found.needless), (2, 1))
        self.assertEqual([round(trip, 3) for trip in found.round_trips_ms], [2.0])
        self.assertEqual([(round(at, 3), round(s, 3), q) for at, s, q in found.pauses],
                         [(0.003, 0.201, 0)])  # fmt: skip
        with self.assertRaises(ValueError):
            segments.report(trace, 0)


class Wire(unittest.TestCase):
    def setUp(self):
        self.kit = kit()
        try:
            self.kit.debian  # noqa: B018
        except debian.DebianError as error:
            self.skipTest(f"Debian's kernel cannot be had: {error}")

    def note(self, faults: Faults, total: int, medians: object) -> None:
        wire: dict[str, object] = FIGURES.setdefault("wire_mib_per_s", {})  # type: ignore[assignment]
        wire[f"loss {faults.loss:.0%}, {total // MIB} MiB each way"] = medians

    @unittest.skipIf(FULL, "the full lane sends more")
    def test_a_little_both_ways_clean_and_at_1_percent(self):
        for faults in (CLEAN, lossy(0.01)):
            total = 8 * MIB
            self.note(faults, total, transfer(self.kit, guests.OURS, total, faults, 1))

    @unittest.skipUnless(FULL, "the full lane's")
    def test_a_flood_of_syns_leaves_a_connection_working(self):
        seen: list[float] = []
        rates = transfer(self.kit, guests.OURS, 32 * MIB, CLEAN, 1, flood=seen)
        FIGURES["wire_flood"] = {"syns_per_s": round(seen[0]), "mib_per_s": rates}
        # A host that is too busy for the whole flood shows less, but not nothing.
        self.assertGreater(seen[0], FLOOD_PER_S / 4)

    def compare(self, faults: Faults, total: int) -> None:
        rates: dict[str, list[tuple[float, float]]] = {guests.OURS: [], guests.DEBIAN: []}
        for seed in range(1, RUNS + 1):
            for arm, seen in rates.items():
                seen.append(transfer(self.kit, arm, total, faults, seed))
        medians = {
            arm: [round(statistics.median(way), 2) for way in zip(*seen, strict=True)]
            for arm, seen in rates.items()
        }
        self.note(faults, total, medians)
        shares = [ours / theirs for ours, theirs in zip(*medians.values(), strict=True)]
        self.assertGreaterEqual(min(shares), LEAST_SHARE, rates)

    @unittest.skipUnless(FULL, "the full lane's")
    def test_100_mib_both_ways_on_a_clean_wire(self):
        self.compare(CLEAN, 100 * MIB)

    @unittest.skipUnless(FULL, "the full lane's")
    def test_100_mib_both_ways_at_1_percent_loss(self):
        self.compare(lossy(0.01), 100 * MIB)

    @unittest.skipUnless(FULL, "the full lane's")
    def test_16_mib_both_ways_at_5_percent_loss(self):
        self.compare(lossy(0.05), 16 * MIB)


if __name__ == "__main__":
    unittest.main()
