"""What happens to the nodes of a campaign: several kinds of faults at a time, drawn from a seed."""

from __future__ import annotations

import asyncio
import os
import random
import time
from collections import Counter
from pathlib import Path

from .machines import Machines
from .nodes import Node

MAJORITY_TRIES = 20
SETTLE_S = 60.0
"""So long a wiped node may take until the others have replaced the old one by it."""


class Faults:
    """Runs until `end_s` (of the monotonic clock). `totals` counts what was done."""

    def __init__(
        self,
        machines: Machines,
        nodes: list[Node],
        *,
        seed: int,
        end_s: float,
        pace: float,
        rot: str,
    ) -> None:
        self.machines = machines
        self.nodes = nodes
        self.seed = seed
        self.end_s = end_s
        self.pace = pace
        """Multiplies the time between faults."""
        self.rot = rot
        """Which volumes rot: see `Node.flip`."""
        self.totals: Counter[str] = Counter()
        self.victim = nodes[-1]
        """The one whose disk rots and is lost: of a write that a majority has, one copy in
        three may be lost in this way, not two."""
        self.small = nodes[1]
        """The one whose disk fills."""
        self.notes: list[str] = []
        self._parted: dict[int, None] = {}

    def rng(self, name: str) -> random.Random:
        return random.Random(f"{self.seed}/{name}")

    async def run(self) -> None:
        await asyncio.gather(
            self.killing(),
            self.parting(),
            self.pausing(),
            self.filling(),
            self.rotting(),
            self.wiping(),
            self.supervise(),
        )

    def note(self, text: str) -> None:
        self.notes.append(f"{time.monotonic():.3f} {text}")

    async def sleep(self, seconds: float) -> bool:
        """False once it is over."""
        left = self.end_s - time.monotonic()
        await asyncio.sleep(max(min(seconds, left), 0))
        return seconds < left

    def pick(self, rng: random.Random) -> Node:
        """Often one that is in trouble already: if each fault took another node, no majority would
        be left most of the time."""
        ill = [
            node
            for node in self.nodes
            if not node.running or node.paused or node.number in self._parted
        ]
        return rng.choice(ill if ill and rng.random() < 0.6 else self.nodes)

    async def killing(self) -> None:
        rng = self.rng("kill")
        while await self.sleep(rng.uniform(1.5, 5.5) * self.pace):
            if rng.random() < 0.6:
                await self.majority()
            chosen = [self.pick(rng)]
            if rng.random() < 0.08:
                chosen = rng.sample(self.nodes, rng.randint(2, len(self.nodes)))
            await asyncio.gather(*(self.kill(node, rng.choice((0, 0, 0.5, 3))) for node in chosen))

    async def majority(self) -> None:
        """Wait, but not for ever, until most nodes serve: else nothing much would happen to what
        the clients do, and starting is slow on a busy machine."""
        for _ in range(MAJORITY_TRIES):
            answers = await asyncio.gather(*(n.ask("GET", "/health/ready") for n in self.nodes))
            serving = sum(status == 200 for status, _ in answers)
            if serving > len(self.nodes) // 2 or not await self.sleep(0.5):
                return

    async def supervise(self) -> None:
        """A node that would not start because its disk was full is started again, as a service
        manager would."""
        while await self.sleep(2):
            node = self.small
            if not node.busy.locked() and node.refused_for_space():
                async with node.busy:
                    self.totals["starts refused by a full disk"] += 1
                    node.start()

    async def kill(self, node: Node, down_s: float) -> None:
        if node.busy.locked():
            return
        async with node.busy:
            if not node.running and not node.refused_for_space():
                self.note(f"node {node.number} is not running: {node.process}")
                self.totals["ended by itself"] += 1
            self.note(f"kill {node.number}, down for {down_s} s")
            node.kill()
            self.totals["kills"] += 1
            await asyncio.sleep(down_s)
            node.start()

    async def parting(self) -> None:
        rng = self.rng("part")
        while await self.sleep(rng.uniform(2, 8) * self.pace):
            kind = rng.choice(("minority", "minority", "one-way", "pair", "flapping", "half"))
            node = self.pick(rng).number
            others = [n for n in range(len(self.nodes)) if n != node]
            cut: list[tuple[int, int]] = []
            if kind in ("minority", "flapping"):
                cut = [pair for n in others for pair in ((node, n), (n, node))]
            elif kind == "one-way":
                to = rng.random() < 0.5
                cut = [(n, node) if to else (node, n) for n in others]
            elif kind == "pair":
                other = rng.choice(others)
                cut = [(node, other), (other, node)]
            else:
                side = rng.sample(range(len(self.nodes)), len(self.nodes) // 2)
                rest = [n for n in range(len(self.nodes)) if n not in side]
                cut = [pair for a in side for b in rest for pair in ((a, b), (b, a))]
            self.note(f"partition {kind} {node}: {cut}")
            self.totals["partitions"] += 1
            self.totals[f"partitions: {kind}"] += 1
            self._parted[node] = None
            rounds = rng.randint(4, 10) if kind == "flapping" else 1
            for turn in range(rounds):
                if turn:
                    await asyncio.sleep(rng.uniform(0.1, 1.0))
                for pair in cut:
                    self.machines.cut(*pair)
                await self.sleep(rng.uniform(0.1, 1) if rounds > 1 else rng.uniform(1, 10))
                for pair in cut:
                    self.machines.mend(*pair)
            self._parted.pop(node)

    async def pausing(self) -> None:
        rng = self.rng("pause")
        while await self.sleep(rng.uniform(2, 14) * self.pace):
            node = self.pick(rng)
            length_s = 5 + 25 * rng.random() ** 3
            if node.paused or not node.running:
                continue
            self.note(f"pause {node.number} for {length_s:.1f} s")
            process = node.process
            node.pause()
            self.totals["pauses"] += 1
            await self.sleep(length_s)
            if node.process is process:  # (else it was killed meanwhile)
                node.resume()

    async def filling(self) -> None:
        """Another program takes all that is left of one node's disk."""
        rng = self.rng("fill")
        ballast = self.small.data_dir.parent / "ballast"
        while await self.sleep(rng.uniform(15, 40) * self.pace):
            self.note(f"disk of {self.small.number} is full")
            self.totals["full disks"] += 1
            _fill(ballast)
            await self.sleep(rng.uniform(5, 20))
            ballast.unlink()
            self.note(f"disk of {self.small.number} has space again")

    async def rotting(self) -> None:
        rng = self.rng("rot")
        while await self.sleep(rng.uniform(15, 40) * self.pace):
            async with self.victim.busy:
                self.victim.kill()
                self.totals["kills"] += 1
                flipped = self.victim.flip(rng, rng.randint(1, 2), self.rot)
                self.totals["flipped bits"] += flipped
                self.note(f"{flipped} bits flipped on {self.victim.number}")
                self.victim.start()

    async def wiping(self) -> None:
        """The disk of the victim is lost; it joins as a new node, and replaces the old one."""
        rng = self.rng("wipe")
        while await self.sleep(rng.uniform(40, 80) * self.pace):
            old = await self.id_of(self.victim.host)
            if old is None or self.end_s - time.monotonic() < SETTLE_S / 2:
                continue
            async with self.victim.busy:
                self.victim.kill()
                self.totals["kills"] += 1
                self.totals["wiped disks"] += 1
                self.note(f"disk of {self.victim.number} ({old}) wiped")
                self.victim.wipe()
                self.victim.start()
            if not await self.replaced(old):
                self.note(f"{old} is not replaced yet")

    async def replaced(self, old: str) -> bool:
        """Ask for the replacement until it is done; the campaign's end does not stop it."""
        asked = False
        while True:
            for node in self.nodes[:-1]:
                if not asked:
                    body = b'{"action": "replace"}'
                    status, text = await node.ask("POST", f"/-/admin/v1/nodes/{old}", body)
                    asked = status == 200
                    if status not in (0, 200, 503):
                        self.note(f"replace {old}: {status} {text[:200]!r}")
                        asked = status == 404
                else:
                    found = await node.listing()
                    states = {n["node"]: n["state"] for n in (found or {}).get("nodes", ())}
                    if found is not None and states.get(old) in (None, "removed"):
                        self.note(f"{old} is replaced")
                        self.totals["replaced nodes"] += 1
                        return True
            if time.monotonic() > self.end_s + 2 * SETTLE_S:
                return False
            await asyncio.sleep(1)

    async def id_of(self, host: str) -> str | None:
        for node in self.nodes[:-1]:
            found = await node.listing()
            for entry in (found or {}).get("nodes", ()):
                at = any(str(a).startswith(f"{host}:") for a in entry["addresses"])
                if at and entry["state"] == "member":
                    return str(entry["node"])
        return None

    def heal(self) -> None:
        self.machines.mend_all()
        (self.small.data_dir.parent / "ballast").unlink(missing_ok=True)
        for node in self.nodes:
            node.resume()
            if not node.running:
                node.start()


def _fill(path: Path) -> None:
    with path.open("wb") as file:
        while left := _free_bytes(path):
            try:
                os.posix_fallocate(file.fileno(), file.seek(0, 2), left)
            except OSError:
                return


def _free_bytes(path: Path) -> int:
    space = os.statvfs(path)
    return space.f_bavail * space.f_frsize
