"""How long writes stop when the leader dies, leaves or is cut off: medians over several rounds.

python -m tests.cluster.campaign.availability --rounds 20

Three nodes in namespaces of their own, on otherwise healthy machines. Each client puts small objects
through its own node, one after the other. In each round the node that leads the key range

- is killed (kill -9): from then to the first write that was begun afterwards and succeeds;
- is stopped (SIGTERM): the same;
- is cut off, alone: how long it takes to refuse a write, with what, and from the mending on to its
  first write that succeeds.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import sys
import time
from pathlib import Path
from tempfile import mkdtemp

from .final import settled
from .machines import Machines, NotAllowedError
from .nodes import Node

KEY_RANGE = 1
PROBE_S = 0.01
"""Between two writes of one prober."""
NOT_TESTED = 77
GIVE_UP_S = 60.0
GOALS_S = {"killed": 2.0, "stopped": 0.5, "refused": 5.0, "back": 5.0}


class Prober:
    """Puts, one after the other, at any node that answers; when each was begun, and whether it was
    taken."""

    def __init__(self, nodes: list[Node]) -> None:
        self.nodes = nodes
        self.count = 0

    async def first_success(self, since_s: float, leaving: Node) -> float:
        """Seconds from `since_s` to the end of the first write that succeeds, by clients of the
        other nodes; each tries again at once."""
        others = [node for node in self.nodes if node is not leaving]
        done = [asyncio.create_task(self._until_taken(node)) for node in others]
        try:
            first = await _first(done)
        finally:
            for task in done:
                task.cancel()
            await asyncio.gather(*done, return_exceptions=True)
        return first - since_s

    async def _until_taken(self, node: Node) -> float:
        end_s = time.monotonic() + GIVE_UP_S
        while time.monotonic() < end_s:
            self.count += 1
            status, _ = await node.ask("PUT", f"/probe/{self.count}", b"x" * 1000)
            if status == 200:
                return time.monotonic()
            await asyncio.sleep(PROBE_S)
        raise AssertionError(f"node {node.number} takes no write for {GIVE_UP_S:.0f} s")


async def _first(tasks: list[asyncio.Task[float]]) -> float:
    while True:
        for task in tasks:
            if task.done():
                return task.result()
        await asyncio.sleep(0.002)


async def leader(nodes: list[Node]) -> Node:
    """The node that leads the key range."""
    while True:
        for node in nodes:
            found = await node.listing()
            for group in (found or {}).get("groups", ()):
                if group["group"] == KEY_RANGE and not group["joint"]:
                    ids = {n["node"]: n["addresses"] for n in found["nodes"]}  # type: ignore[index]
                    host = str(ids[group["leader"]][0]).rpartition(":")[0]
                    return next(n for n in nodes if n.host == host)
        await asyncio.sleep(0.1)


async def measure(machines: Machines, nodes: list[Node], rounds: int) -> dict[str, list[float]]:
    found: dict[str, list[float]] = {name: [] for name in GOALS_S}
    prober = Prober(nodes)
    for turn in range(rounds):
        for what in ("killed", "stopped"):
            victim = await leader(nodes)
            began_s = time.monotonic()
            if what == "killed":
                victim.kill()
                found[what].append(await prober.first_success(began_s, victim))
            else:
                stopping = asyncio.create_task(victim.stop())
                found[what].append(await prober.first_success(began_s, victim))
                await stopping
            victim.start()
            await settled(nodes)
        victim = await leader(nodes)
        others = [n for n in range(len(nodes)) if n != victim.number]
        pairs = [p for n in others for p in ((n, victim.number), (victim.number, n))]
        for pair in pairs:
            machines.cut(*pair)
        # Until its own check of the majority it may still try; a client sees one or the other.
        await prober.first_success(time.monotonic(), victim)
        began_s = time.monotonic()
        status, body = await victim.ask("PUT", "/probe/minority", b"x")
        found["refused"].append(time.monotonic() - began_s)
        assert status == 503 and b"<Message>" in body, (status, body)
        began_s = time.monotonic()
        for pair in pairs:
            machines.mend(*pair)
        found["back"].append(await prober._until_taken(victim) - began_s)
        await settled(nodes)
        sys.stderr.write(f"\rround {turn + 1} of {rounds}")
        sys.stderr.flush()
    sys.stderr.write("\n")
    return found


async def run(machines: Machines, directory: Path, rounds: int) -> int:
    nodes = []
    for number in range(3):
        place = directory / f"n{number}"
        place.mkdir(parents=True, exist_ok=True)
        nodes.append(Node(machines, number, place, joins=number > 0))
    try:
        for node in nodes:
            node.start()
        await settled(nodes)
        while (await nodes[0].ask("PUT", "/probe"))[0] != 200:
            await asyncio.sleep(0.2)
        found = await measure(machines, nodes, rounds)
    finally:
        for node in nodes:
            node.kill()
    worst = 0
    texts = {
        "killed": "leader killed: until a write succeeds",
        "stopped": "leader stopped: until a write succeeds",
        "refused": "minority: until a write is refused with 503 and a reason",
        "back": "minority: from the mending until it takes a write",
    }
    for name, text in texts.items():
        values = sorted(found[name])
        median = statistics.median(values)
        met = median <= GOALS_S[name]
        worst |= not met
        print(
            f"{text:58} median {median:.2f} s (least {values[0]:.2f}, most {values[-1]:.2f}; "
            f"goal {GOALS_S[name]:g}) {'met' if met else 'MISSED'}"
        )
    return int(worst)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--directory", type=Path)
    options = parser.parse_args()
    machines = Machines(3)
    try:
        machines.make()
    except NotAllowedError as error:
        print(f"NOT TESTED: {error}")
        return NOT_TESTED
    try:
        machines.enter()
        directory = options.directory or Path(mkdtemp(prefix="o3availability"))
        return asyncio.run(run(machines, directory, options.rounds))
    finally:
        machines.clear()


if __name__ == "__main__":
    sys.exit(main())
