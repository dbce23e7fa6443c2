"""Real faults on real nodes, beside a recorded boto3 workload, judged by the simulator's checker.

python -m tests.cluster.campaign --nodes 3 --minutes 3 --seed 1

Needs root, for network namespaces (all addresses are inside those that it makes). Killed, parted,
paused, filled, rotted and wiped nodes are healed at the end; then the history must be linearizable,
all nodes equal, and `verify` clean but for the bits that were flipped. Exit code 1 if not.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import subprocess
import sys
import time
from pathlib import Path
from tempfile import mkdtemp

from o3storage.cli._text import Progress

from .client import BUCKETS
from .faults import Faults
from .final import NotSettledError, Reading, compare, judge, settled
from .machines import Machines, NotAllowedError
from .nodes import Node
from .record import Record

CLIENT_PROCESSES = 2
CLIENTS_EACH = 4
START_TIMEOUT_S = 120.0
LAST_OPERATIONS_S = 60.0
"""After the last fault was healed an operation may still wait for its answer; and the clients'
processes have to end."""
SMALL_DISK_MIB = 700
MIB_A_MINUTE = 200
"""What the workload may write, garbage included, on the disk that will be filled by something
else."""
MAX_SHOWN = 20
NOT_TESTED = 77
"""Exit code where network namespaces are not allowed."""


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.cluster.campaign", description=__doc__)
    parser.add_argument("--nodes", type=int, default=3, choices=(3, 5))
    parser.add_argument("--minutes", type=float, default=3.0)
    parser.add_argument("--seed", type=int, default=random.randrange(10**6))
    parser.add_argument("--pace", type=float, default=1.0, help="times the pauses between faults")
    parser.add_argument("--rot", default="bulk", choices=("bulk", "log", "*"), help="volumes")
    parser.add_argument("--think", type=float, default=0.08, help="seconds between operations")
    parser.add_argument("--directory", type=Path, help="kept afterwards; default: a temporary one")
    options = parser.parse_args()
    machines = Machines(options.nodes)
    try:
        machines.make()
    except NotAllowedError as error:
        print(f"NOT TESTED: {error}")
        return NOT_TESTED
    directory = options.directory or Path(mkdtemp(prefix="o3campaign"))
    directory.mkdir(parents=True, exist_ok=True)
    campaign = Campaign(options, machines, directory)
    try:
        campaign.mount()
        machines.enter()
        return asyncio.run(campaign.run())
    except NotAllowedError as error:
        print(f"NOT TESTED: {error}")
        return NOT_TESTED
    finally:
        campaign.clear()


class Campaign:
    def __init__(self, options: argparse.Namespace, machines: Machines, directory: Path) -> None:
        self.options = options
        self.directory = directory
        self.machines = machines
        self.nodes: list[Node] = []
        self.clients: list[subprocess.Popen[bytes]] = []
        self.small_disk = directory / "n1"
        self.mounted = False
        for number in range(options.nodes):
            place = directory / f"n{number}"
            place.mkdir(exist_ok=True)
            self.nodes.append(Node(machines, number, place, joins=number > 0))

    async def run(self) -> int:
        options = self.options
        print(f"seed {options.seed}, {options.nodes} nodes, {options.minutes:g} minutes")
        print(f"in {self.directory}", flush=True)
        for node in self.nodes:
            node.start()
        end_s = time.monotonic() + START_TIMEOUT_S
        await settled(self.nodes)
        for bucket in BUCKETS:
            while (await self.nodes[0].ask("PUT", f"/{bucket}"))[0] not in (200, 409):
                assert time.monotonic() < end_s, "no bucket could be made"
                await asyncio.sleep(0.5)
        switch_on = b"<VersioningConfiguration><Status>Enabled</Status></VersioningConfiguration>"
        while (await self._versioning(switch_on)) != 200:
            assert time.monotonic() < end_s, "versioning could not be switched on"
            await asyncio.sleep(0.5)

        begin_s = time.monotonic()
        faults_end_s = begin_s + options.minutes * 60
        self._start_clients(begin_s, faults_end_s + 5)
        faults = Faults(
            self.machines,
            self.nodes,
            seed=options.seed,
            end_s=faults_end_s,
            pace=options.pace,
            rot=options.rot,
        )
        showing = asyncio.create_task(self._show(faults, begin_s))
        await faults.run()
        faults.heal()
        showing.cancel()
        sys.stderr.write("\n")
        wrong = await self._end(faults)
        (self.directory / "faults.txt").write_text("\n".join(faults.notes) + "\n")
        for name, count in sorted(faults.totals.items()):
            print(f"{name:24} {count}")
        for text in wrong[:MAX_SHOWN]:
            print(f"WRONG {text}")
        print(f"{len(wrong)} wrong" if wrong else "all good", flush=True)
        return 1 if wrong else 0

    async def _versioning(self, document: bytes) -> int:
        status, _ = await self.nodes[0].ask("PUT", "/versioned", document, {"versioning": ""})
        return status

    def mount(self) -> None:
        """The second node's disk is a small one of its own, so that it can be full. Raises
        NotAllowedError."""
        size_mib = SMALL_DISK_MIB + int(MIB_A_MINUTE * self.options.minutes)
        words = ["-t", "tmpfs", "-o", f"size={size_mib}m", "o3campaign", str(self.small_disk)]
        done = subprocess.run(["mount", *words], capture_output=True, text=True, check=False)
        if done.returncode:
            raise NotAllowedError(f"no small disk to fill here: {done.stderr.strip()}")
        self.mounted = True

    def _start_clients(self, begin_s: float, end_s: float) -> None:
        words = [sys.executable, "-m", "tests.cluster.campaign.client"]
        words += ["--seed", str(self.options.seed), "--out", str(self.directory / "client")]
        words += ["--urls", ",".join(node.url for node in self.nodes)]
        words += ["--begin", str(begin_s), "--end", str(end_s), "--pause", str(self.options.think)]
        for number in range(CLIENT_PROCESSES):
            more = ["--first", str(number * CLIENTS_EACH), "--count", str(CLIENTS_EACH)]
            log = (self.directory / f"clients{number}.out").open("wb")
            self.clients.append(subprocess.Popen([*words, *more], stdout=log, stderr=log))

    async def _show(self, faults: Faults, begin_s: float) -> None:
        length_s = self.options.minutes * 60
        progress = Progress("campaign", length_s, sys.stderr)
        while True:
            totals = faults.totals
            text = f"{totals['kills']} kills, {totals['partitions']} partitions"
            progress.update(time.monotonic() - begin_s, f"{text}, {totals['pauses']} pauses")
            await asyncio.sleep(1)

    async def _end(self, faults: Faults) -> list[str]:
        wrong: list[str] = []
        end_s = time.monotonic() + LAST_OPERATIONS_S
        while any(client.poll() is None for client in self.clients):
            if time.monotonic() > end_s:
                wrong.append("the clients do not end")
                break
            await asyncio.sleep(0.2)
        wrong += [f"a client ended with {c.returncode}" for c in self.clients if c.returncode]
        if faults.totals["ended by itself"]:
            wrong.append(f"{faults.totals['ended by itself']} times a node had ended by itself")
        try:
            print(f"healed; all nodes agree after {await settled(self.nodes):.1f} s")
        except NotSettledError as error:
            return [*wrong, f"not settled after healing: {error}"]
        out = self.directory / "client"
        clients = CLIENT_PROCESSES * CLIENTS_EACH
        record = Record()
        written = record.keys_in(sorted(self.directory.glob("client.*")))
        readings = [Reading(node, clients + n, out, written) for n, node in enumerate(self.nodes)]
        await asyncio.gather(*(reading.run() for reading in readings))
        wrong += compare(readings)
        print(f"each node gave {len(readings[0].state):,} versions and listings", flush=True)
        codes = await asyncio.gather(*(node.stop() for node in self.nodes))
        if any(codes):
            wrong.append(f"the nodes ended with {codes}")
        for node in self.nodes:
            wrong += judge(node)
        record.read_files(sorted(self.directory.glob("client.*")))
        wrong += record.check()
        operations = sum(len(history.operations) for history in record.sets.values())
        print(f"{operations:,} operations, {record.acknowledged:,} acknowledged puts")
        for end, count in record.ends.most_common():
            print(f"  {end:40} {count}")
        return wrong

    def clear(self) -> None:
        for client in self.clients:
            if client.poll() is None:
                client.kill()
                client.wait()
        for node in self.nodes:
            node.kill()
        if self.mounted:
            subprocess.run(["umount", str(self.small_disk)], check=False)
        self.machines.clear()


if __name__ == "__main__":
    sys.exit(main())
