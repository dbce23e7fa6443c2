"""One, three or five simulated machines, their clients, and their bad luck; then the judgement.

A run is one seed: the rooms are opened as the server opens them (`server.open_node`) over simulated
disks and networks, clients work through the real S3 layer, faults strike at seeded instants. At the
end the faults are over, the power is cut once more, everything is read back, and the promises of
the design are asserted: P1 to P5 by the history and by what each replica holds, P6 by what the
nodes answered, and a clean `verify` of every disk.
"""

from __future__ import annotations

import asyncio
import math
import random
import time
import traceback
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from o3storage import _native
from o3storage.cluster import ClusterSecret
from o3storage.raft.core import Role
from o3storage.runtime import log

from ._bad_luck import (
    CLUSTER_WEIGHTS,
    LAST_KIND,
    MACHINE_WEIGHTS,
    NETWORK_WEIGHTS,
    ROTTING,
    MachineFaults,
    NetworkFaults,
    draw,
)
from ._checker import TooHardError, Violation, check
from ._clock import SimClock, SimEntropy
from ._fleeting import Fleeting
from ._growth import ranges_grow
from ._history import History
from ._loop import SimDeadlockError, SimLoop, SimTimeoutError, run
from ._machine import Machine
from ._network import SimNet, SimNetwork
from ._operator import Operator, operates
from ._rebuilding import rebuild_one, rebuilds
from ._replicas import (
    NOBODYS,
    Rows,
    difference,
    holds,
    mend_frames,
    missing_bodies,
    parts_of,
    unfinished,
)
from ._report import GaveUp, Report
from ._requests import Answer, Call, Signer, build, perform
from ._safety import SafetyLog, watch_safety
from ._seals import SealLog, watch_seals
from ._splits import cut_ranges
from ._workload import BUCKETS, VERSIONED_BUCKET, Client, Lost, Values

RUN_S = 30.0
"""Virtual seconds of work; the end (heal, read back, verify) comes on top."""
LIMIT_S = 600.0
"""Virtual seconds after which a run counts as hung: requests, restarts and checks take a few."""
CONVERGE_S = 60.0
"""Virtual seconds until all replicas are equal once all faults are over."""
SETUP_S = 60.0
"""Virtual seconds until a new cluster has taken its first bucket."""
SPARSE_REPLICAS = 3
"""Of each key range, where not every node has one."""
LOOKS = 3
"""Times that replicas are compared: a background command may come in between."""


@dataclass(frozen=True, slots=True)
class Scale:
    """How much happens in a run, by the number of nodes: a seed costs about as much CPU."""

    clients: int
    bursts: int
    machine_faults: int
    network_faults: int
    longest_outage_s: float
    """Until a process that died is started again."""
    patience_s: float
    """A client that has no answer goes away."""


SCALES = {
    1: Scale(7, 34, 9, 0, 0.5, math.inf),
    3: Scale(5, 30, 6, 5, 3.0, 10.0),
    5: Scale(4, 24, 6, 5, 3.0, 10.0),
}
"""By the number of nodes."""


class StaleReadError(AssertionError):
    """What was acknowledged is not there, before there is a history to check."""


class World:
    """`main` is the whole run; `report` is its result."""

    def __init__(
        self,
        seed: int,
        *,
        nodes: int = 1,
        keep_trace: bool = False,
        sparse: bool = False,
        rebuild: bool = False,
    ) -> None:
        loop = asyncio.get_running_loop()
        assert isinstance(loop, SimLoop)
        self.seed = seed
        self.rebuilds = rebuild and nodes > 1
        """One machine's index is removed at the end."""
        self.replicas = min(SPARSE_REPLICAS, nodes) if sparse else nodes
        """Of each key range."""
        self.loop = loop
        self.history = History(self.loop.time)
        self.values = Values()
        self.report = Report(seed, nodes)
        self.serving = asyncio.Event()
        """Some machine serves."""
        self.main_task: asyncio.Task[Any] | None = None
        self.scale = SCALES[nodes]
        rng = self.rng("plan")
        self.bursts = sorted(0.5 + rng.random() * RUN_S for _ in range(self.scale.bursts))
        self.large_parts = 1 if seed % 8 == 0 else 0
        self.dice = self.rng("faults")
        self.client_clock = SimClock()
        self._signer = Signer()
        self._keep_trace = keep_trace
        self._digest = _native.Digester(
            md5=False, sha256=True, sha1=False, crc32=False, crc32c=False, blake3=False
        )
        self.ranges_grow = ranges_grow(seed)
        self.net = SimNet(seed)
        self.secret = ClusterSecret.generate(SimEntropy(f"{seed}/secret"))
        self.machines = [Machine(self, number) for number in range(1, nodes + 1)]
        self.safety = SafetyLog()
        self._choice = self.rng("nodes")
        self._struck: dict[Machine, None] = {}

    def rng(self, name: str) -> random.Random:
        return random.Random(f"{self.seed}/{name}")

    # --- the run

    async def main(self) -> Report:
        began = time.process_time()
        report = self.report
        try:
            with watch_seals() as seals, watch_safety(self.safety):
                await self._run(seals)
        except (SimDeadlockError, SimTimeoutError):
            raise
        except GaveUp as error:
            self.violation("P6", f"the node cannot be started again: {error}")
        self._judge_safety()
        report.virtual_s = self.loop.time()
        ops = self.history.operations
        report.operations = len(ops) + len(self.history.pages)
        report.acknowledged = sum(op.result.value in ("ok", "refused") for op in ops)
        report.unknown = sum(op.result.value == "unknown" for op in ops)
        report.seals = seals.count
        report.frames = self.net.frames
        report.elections = self.safety.elections
        for machine in self.machines:
            machine.trace(f"end, disk operations {sorted(machine.disk.operations.items())}")
        report.trace_hash = self._digest.finish()["sha256"].hex()
        report.cpu_s = time.process_time() - began
        return report

    async def _run(self, seals: SealLog) -> None:
        await asyncio.gather(*(machine.start() for machine in self.machines))
        await self._make_buckets()
        if self.clustered:
            await self._converge()
        began_s = self.loop.time() if self.clustered else 0.0
        self.bursts = [began_s + at for at in self.bursts]
        clients = [Client(self, f"c{number}") for number in range(1, self.scale.clients + 1)]
        work = [self.loop.create_task(client.work()) for client in clients]
        strikes = self.loop.create_task(self._strike_all())
        fleeting = Fleeting(self)
        await asyncio.gather(
            *work, strikes, cut_ranges(self), Operator(self).work(), fleeting.work()
        )
        await self._heal()
        if self.clustered:
            await self._converge()
            self.history.settle_unknown(self.history.now())
            await self._compare()
        await self._read_back()
        await fleeting.judge()
        if self.rebuilds:
            await rebuild_one(self)
            await self._compare()
        for machine in self.machines:
            if machine.life is not None:
                ranges = machine.life.opened.node.key_ranges()
                self.report.splits = max(self.report.splits, len(ranges) - 1)
            await machine.stop()
        for machine in self.machines:
            await machine.verify()
        for text in seals.reused:
            self.violation("sealing", text)
        self._check_history()

    @property
    def sparse(self) -> bool:
        """Some nodes have no replica of a key range."""
        return self.replicas < len(self.machines)

    def _judge_safety(self) -> None:
        """What consensus did over all nodes (`_safety.py`). A disk on which bits flipped may stop
        its own replicas."""
        for promise, number, text in self.safety.found:
            if promise != "P5" or not number or not self.machines[number - 1].rotten:
                self.violation(promise, f"n{number}: {text}" if number else text)

    def _check_history(self) -> None:
        if self.gave_up:
            return  # only what was served is judged
        try:
            for found in check(self.history, lambda bucket: bucket == VERSIONED_BUCKET):
                self._add(found)
        except TooHardError as error:
            self.violation("check", f"gave up: {error}")

    async def _make_buckets(self) -> None:
        document = b"<VersioningConfiguration><Status>Enabled</Status></VersioningConfiguration>"
        calls = [Call("PUT", f"/{bucket}") for bucket in BUCKETS]
        calls.append(Call("PUT", f"/{VERSIONED_BUCKET}", {"versioning": ""}, body=document))
        for call in calls:
            deadline_s = self.loop.time() + SETUP_S
            answer = await self.send("setup", call)
            while answer.status == 503 and self.clustered and self.loop.time() < deadline_s:
                await asyncio.sleep(0.2)
                answer = await self.send("setup", call)
            if answer.status == 404:  # of a bucket whose making was acknowledged
                raise StaleReadError(f"{call.method} {call.path} after it was made: {answer}")
            assert answer.status == 200, answer

    async def _strike_all(self) -> None:
        network = []
        if self.clustered:
            network.append(self._strike_network())
        await asyncio.gather(self._strike_machines(), *network)

    async def _strike_machines(self) -> None:
        """One fault after the other; in a cluster they may overlap, on different machines."""
        faults = MachineFaults(self)
        count = self.scale.machine_faults
        kinds = draw(self.dice, CLUSTER_WEIGHTS if self.clustered else MACHINE_WEIGHTS, count)
        if not self.clustered:
            kinds.sort(key=LAST_KIND.__eq__)
        if self.clustered and operates(self.seed):
            # Flipped bits on one disk while another is lost may be the end of a majority.
            kinds = ["restart" if kind in ROTTING else kind for kind in kinds]
        instants = sorted(self.dice.sample(self.bursts, count))
        running: list[asyncio.Task[None]] = []
        for at, kind in zip(instants, kinds, strict=True):
            pause = at - self.loop.time()
            if pause > 0:
                await asyncio.sleep(pause)
            machine = await self._victim(kind)
            self.note_fault(kind)
            machine.trace(f"fault: {kind}")
            self._struck[machine] = None
            task = self.loop.create_task(self._strike(faults, kind, machine))
            running.append(task)
            if not self.clustered:
                await task
        await asyncio.gather(*running)

    async def _strike(self, faults: MachineFaults, kind: str, machine: Machine) -> None:
        try:
            await faults.strike(kind, machine)
        finally:
            del self._struck[machine]

    async def _victim(self, kind: str) -> Machine:
        """A machine that serves and that nothing else strikes now."""
        rotten = [machine for machine in self.machines if machine.rotten]
        able = rotten if kind in ROTTING and rotten else self.machines
        while True:
            await self.serving.wait()
            whole = [m for m in able if m.life is not None and m not in self._struck]
            if whole:
                return whole[0] if len(self.machines) == 1 else self.dice.choice(whole)
            await asyncio.sleep(0.05)

    async def take_whole(self, rng: random.Random) -> Machine:
        """A machine that serves and that nothing strikes, until `give_back`."""
        while True:
            whole = [m for m in self.machines if m.life is not None and m not in self._struck]
            if whole:
                machine = rng.choice(whole)
                self._struck[machine] = None
                return machine
            await asyncio.sleep(0.05)

    def give_back(self, machine: Machine) -> None:
        del self._struck[machine]

    async def _strike_network(self) -> None:
        faults = NetworkFaults(self, self.net)
        rng = self.rng("network plan")
        count = self.scale.network_faults
        kinds = draw(rng, NETWORK_WEIGHTS, count)
        for at, kind in zip(sorted(rng.sample(self.bursts, count)), kinds, strict=True):
            pause = at - self.loop.time()
            if pause > 0:
                await asyncio.sleep(pause)
            self.note_fault(kind)
            self.trace(f"fault: {kind}")
            await faults.strike(kind)
            self.trace("the network is whole")

    async def _heal(self) -> None:
        """All faults are over; the nodes serve again, after one more power cut."""
        self.net.heal()
        for machine in self.machines:
            machine.heal_disk()
            machine.resume()
        for machine in self.machines:
            await machine.serving.wait()
            if machine.refusal():
                machine.power_cut("kill")
                await machine.serving.wait()
        await asyncio.sleep(2.0)
        for machine in self.machines:
            machine.power_cut("power cut")
        for machine in self.machines:
            await machine.serving.wait()

    async def _converge(self) -> None:
        """Until every replica has applied what any has, and lacks no frames."""
        deadline_s = self.loop.time() + CONVERGE_S
        while why := self._unsettled():
            if self.loop.time() > deadline_s:
                self.violation("P5", f"{CONVERGE_S:.0f} s without a fault: {why}")
                return
            await asyncio.sleep(0.1)

    def _unsettled(self) -> str:
        """Why the replicas are not all equal yet; "" if they are, as far as they say."""
        groups: dict[int, list[dict[str, Any]]] = {}
        for machine in self.machines:
            if machine.life is None:
                return f"n{machine.number} is down"
            node = machine.life.opened.node
            if self.sparse and (why := unfinished(node)):
                return f"n{machine.number}: {why}"
            for group in node.status()["groups"]:
                if not holds(node, group["group"]):
                    continue
                if machine.life.opened.store.log_state(group["group"]).rows_lost:
                    return f"n{machine.number} lacks rows of range {group['group']}"
                debt = machine.debt(group["group"])
                groups.setdefault(group["group"], []).append({**group, "debt": debt, "id": node.id})
        for number, found in groups.items():
            replicas = self.replicas if number else len(self.machines)
            if len(found) != replicas:
                return f"range {number} has {len(found)} replicas"
            if sum(group["role"] == "leader" for group in found) != 1:
                return f"range {number}: {[group['role'] for group in found]}"
            wanted = sorted(group["id"] for group in found)
            if any(group["voters"] != wanted or group["learners"] for group in found):
                return f"range {number}: {len(found[0]['voters'])} voters"
            for mark in ("term", "last", "commit", "applied"):
                marks = [group[mark] for group in found]
                if len(dict.fromkeys(marks)) > 1:
                    return f"range {number}: {mark} is {marks}"
            if any(group["applied"] < group["last"] for group in found):
                return f"range {number}: not all is applied"
            if any(group["uncertain"] for group in found):
                return f"range {number}: what a replica promised is in doubt"
            debts = [group["debt"] for group in found]
            if any(debts):
                return f"range {number}: frames are missing: {debts}"
        return ""

    async def _compare(self) -> None:
        """Every replica has the same rows, and every version's bytes on its own disk."""
        rotten = [machine for machine in self.machines if machine.rotten]
        for machine in rotten:
            await mend_frames(machine)
        if rotten:
            await self._converge()  # (ranges may have moved meanwhile)
        for look in range(LOOKS):
            parts = [await parts_of(machine) for machine in self.machines]
            found = self._differences(parts)
            if not found:
                break
            if look == LOOKS - 1:
                for text in found:
                    self.violation("P5", text)
            await self._converge()
        for machine, part in zip(self.machines, parts, strict=True):
            machine.rows = {key: value for rows in part.values() for key, value in rows.items()}
            machine.groups = dict.fromkeys(group for group in part if group != NOBODYS)
            problems = await missing_bodies(machine, machine.rows, self.values)
            if problems:
                text = f"n{machine.number}, {len(problems)} bodies: {problems[0]}"
                self.violation("P1", f"not whole on a replica's own disk: {text}")

    def _differences(self, parts: Sequence[dict[int, Rows]]) -> list[str]:
        """Of each range's replicas to the first that has it."""
        first: dict[int, int] = {}
        found: list[str] = []
        for number, part in enumerate(parts):
            for group, rows in part.items():
                if group == NOBODYS:
                    left = difference({}, rows)
                    found.append(f"n{number + 1} has rows of ranges that left it: {left}")
                    continue
                other = first.setdefault(group, number)
                text = difference(parts[other][group], rows)
                if text:
                    names = f"n{other + 1} and n{number + 1}"
                    found.append(f"{names} differ in range {group}: {text}")
        return found

    async def _read_back(self) -> None:
        """Everything that was ever written, through the S3 layer, by one client."""
        reader = Client(self, "end")
        lists = [await reader.list(bucket, 3) for bucket in BUCKETS]
        if not all(lists):
            self.violation("P4", "a listing is refused though all faults are over")
        keys = dict.fromkeys((op.bucket, op.key) for op in self.history.operations)
        shown = await reader.list_versions(VERSIONED_BUCKET)
        for bucket, key in keys:
            await reader.get(bucket, key)
        for versions in (shown or {}).values():
            for number in versions:
                if number:
                    await reader.get_version(number)
        unread = [op for op in self.history.operations if op.client == "end"]
        refused = [op for op in unread if op.result.value == "unknown"]
        if refused and not self.damaged:
            self.violation("P1", f"{refused[0]} is refused though all faults are over")
        for machine in self.machines:
            lent = machine.life.service.pool.lent_bytes if machine.life else 0
            if lent:
                self.violation("P8", f"{lent} bytes of body blocks were never given back")

    # --- machines

    @property
    def clustered(self) -> bool:
        return len(self.machines) > 1

    @property
    def damaged(self) -> bool:
        """Bits were flipped, and no other copy was there to mend them. (Of a cluster's disks one
        at most is rotten: what it lost, the others have.)"""
        return not self.clustered and self.machines[0].rotten

    @property
    def gave_up(self) -> bool:
        """An operator let go of what had rotted, as there was no other copy."""
        return not self.clustered and self.machines[0].lossy

    def network_of(self, machine: Machine) -> SimNetwork | None:
        """The network of a process that is being started on `machine`; None for a node alone."""
        if not self.clustered:
            return None
        return self.net.network(machine.host, machine.keys.identity)

    def clock_of(self, number: int) -> SimClock:
        """A machine's clock: a little wrong in a cluster, and wrong in its own way."""
        if self.report.nodes == 1:
            return SimClock()
        rng = self.rng(f"clock {number}")
        skew_ns = int((rng.random() * 2 - 1) * 2e9)
        return SimClock(skew_ns=skew_ns, drift=(rng.random() * 2 - 1) * 1e-4)

    def leader(self) -> Machine | None:
        """A machine whose node leads a key range: of two that believe so, the later one."""
        found: tuple[int, Machine] | None = None
        for machine in self.machines:
            if machine.life is not None:
                for replica in machine.life.opened.node._replicas.values():
                    core = replica.core
                    leads = replica.group > 0 and core.role is Role.LEADER
                    if leads and (found is None or core.term > found[0]):
                        found = core.term, machine
        return found[1] if found is not None else None

    def on_serving(self) -> None:
        if not self.clustered:
            # What the dead process left undone is never done now.
            self.history.settle_unknown(self.history.now())
        self.serving.set()

    def on_dead(self) -> None:
        if all(machine.life is None for machine in self.machines):
            self.serving.clear()

    def fail(self, error: Exception) -> None:
        """Let `main` see it: everybody who waits for the node would wait for ever."""
        assert self.main_task is not None
        if not isinstance(error, GaveUp):
            self.trace("".join(traceback.format_exception(error)))
        self.main_task.cancel(f"{type(error).__name__}: {error}")

    # --- requests

    async def send(
        self,
        client: str,
        call: Call,
        *,
        cut_s: float | None = None,
        among: Sequence[Machine] = (),
    ) -> Answer:
        """Send to a node that serves now (`among`: one of these). Raises Lost if it dies, or after
        `cut_s` seconds the client goes, before the answer; Truncated."""
        machine = self._choice.choice(among) if among else self._pick()
        life = machine.life
        if life is None:
            raise Lost
        request = build(self._signer, call, self.client_clock.wall_ns())
        task = self.loop.create_task(perform(life.service, request), context=machine.context)
        life.requests[task] = None
        self.report.requests += 1
        number = self.report.requests
        query = "?" + "&".join(call.query) if call.query else ""
        machine.trace(f"{client} #{number} {call.method} {call.path}{query} {len(call.body)} B")
        answered: asyncio.Future[None] = self.loop.create_future()

        def ended(_: asyncio.Future[Any]) -> None:
            life.requests.pop(task, None)
            if not answered.done():
                answered.set_result(None)

        def leave() -> None:
            # The node sees it when it looks; the client does not wait for that.
            task.cancel()
            if not answered.done():
                answered.set_result(None)

        task.add_done_callback(ended)
        patience_s = min(math.inf if cut_s is None else cut_s, self.scale.patience_s)
        timer = self.loop.call_later(patience_s, leave) if patience_s < math.inf else None
        await answered
        if timer is not None:
            timer.cancel()
        if not task.done() or task.cancelled():
            task.add_done_callback(lambda left: left.cancelled() or left.exception())
            machine.trace(f"{client} #{number} no answer")
            raise Lost
        error = task.exception()
        if error is not None:
            machine.trace(f"{client} #{number} {type(error).__name__}")
            raise error
        answer = task.result()
        machine.trace(f"{client} #{number} {answer.status} {answer.code}".rstrip())
        return answer

    def _pick(self) -> Machine:
        """Any node; rarely one that is down."""
        if not self.clustered:
            return self.machines[0]
        up = [machine for machine in self.machines if machine.life is not None]
        return self._choice.choice(up or self.machines)

    def unexpected(self, client: str, call: Call, answer: Answer) -> None:
        """An answer that no fault explains."""
        if self.damaged and answer.status == 500:
            return
        self.violation(
            "P6", f"{client} {call.method} {call.path}: {answer.status} {answer.body[:200]!r}"
        )

    # --- findings

    def note_fault(self, kind: str) -> None:
        self.report.faults[kind] = self.report.faults.get(kind, 0) + 1

    def violation(self, promise: str, text: str) -> None:
        self._add(Violation(promise, text))

    def _add(self, violation: Violation) -> None:
        self.trace(f"VIOLATION {violation}")
        self.report.violations.append(violation)

    def trace(self, text: str) -> None:
        line = f"{self.loop.time():11.6f}  {text}"
        self._digest.update(line.encode() + b"\n")
        if self._keep_trace:
            self.report.trace.append(line)


def simulate(
    seed: int,
    *,
    nodes: int = 1,
    keep_trace: bool = False,
    sparse: bool | None = None,
    rebuild: bool | None = None,
) -> Report:
    """Run one seed with 1, 3 or 5 nodes. The report has every violation; with `keep_trace` also
    what happened. `sparse`: key ranges have three replicas, however many nodes there are (the
    default where there are more); else every node votes in all. `rebuild`: one machine of a cluster
    loses its index at the end (by default in one seed of eight). Raises ValueError for another
    number of nodes."""
    if nodes not in SCALES:
        raise ValueError(f"{nodes} nodes: a run has one of {', '.join(map(str, SCALES))}")
    log.configure(level="error", fd=-1)
    worlds: list[World] = []
    few = nodes > SPARSE_REPLICAS if sparse is None else sparse

    async def main() -> Report:
        loop = asyncio.get_running_loop()
        assert isinstance(loop, SimLoop)
        world = World(
            seed,
            nodes=nodes,
            keep_trace=keep_trace,
            sparse=few,
            rebuild=rebuilds(seed) if rebuild is None else rebuild,
        )
        loop.set_exception_handler(world.safety.unhandled)
        worlds.append(world)
        world.main_task = asyncio.current_task()
        return await world.main()

    try:
        return run(main(), seed, limit_s=LIMIT_S)
    except (SimDeadlockError, SimTimeoutError) as error:
        worlds[0].violation("liveness", str(error))
    except StaleReadError as error:
        worlds[0].violation("P4", str(error))
    except asyncio.CancelledError as error:
        worlds[0].violation("P6", f"the node cannot be started again: {error}")
    except Exception as error:
        if not worlds:
            raise
        worlds[0].violation("defect", "".join(traceback.format_exception(error)).strip())
    finally:
        log.configure()
    return worlds[0].report
