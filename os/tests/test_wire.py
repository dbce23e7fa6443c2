"""Two guests over a bad wire: the kernel's TCP against Debian's, and Debian's against itself.

Every frame passes `relay.Relay`, which loses, reorders and repeats some. Each arm sends the same
number of bytes both ways; what is read must be what was written. In the full lane Debian against
Debian on the same wire is the yardstick: the kernel reaches at least half of its rate, each way, as
the median of arms that are taken in turns. The fast lane sends little and judges no rate: it is run
where the host is busy.
"""

import statistics
import tempfile
import unittest
from pathlib import Path

import debian
import guests
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


def kit() -> guests.Kit:
    programs = BUILD / "programs"
    wire = guests.compile_static(PROGRAMS / "wire.c", programs / "wire")
    init = guests.compile_static(PROGRAMS / "linux_init.c", programs / "linux_init", linux=True)
    entries = guests.static_entries({"wire": wire})
    return guests.Kit(BUILD / "wire", KERNEL, entries, init)


def lossy(loss: float) -> Faults:
    return Faults(loss, reorder=REORDER, duplicate=DUPLICATE, delay_s=DELAY_S)


def transfer(
    made: guests.Kit, server: str, total: int, faults: Faults, seed: int
) -> tuple[float, float]:
    """MiB/s to the server and back; the client is always Debian's kernel."""
    with tempfile.TemporaryDirectory() as folder:
        relay = Relay(Path(folder), faults, seed)
        cards = [guests.Card(relay.netdev(side), f"10.0.0.{side + 1}") for side in (0, 1)]
        machines = []
        try:
            machines.append(made.start(server, ["/usr/bin/wire", "serve", str(total)], cards[0]))
            machines[0].wait_for("^ready", 60)
            arguments = ["/usr/bin/wire", "ask", "10.0.0.1", str(total)]
            machines.append(made.start(guests.DEBIAN, arguments, cards[1]))
            there, there_s, back, back_s, done = (
                machines[1].wait_for(RESULT, TRANSFER_TIMEOUT_S).groups()
            )
            if (there, back, int(done)) != ("equal", "equal", total):
                raise AssertionError(f"{server}: other bytes were read than written")
            machines[0].wait_for("program ended with status 0", 60)
            return float(there_s), float(back_s)
        finally:
            for machine in machines:
                machine.kill()
            relay.close()


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
