"""One, three or five simulated machines, their clients, and their bad luck; then the judgement.

A run is one seed: the rooms are opened as the server opens them (`server.open_node`) over simulated
disks and networks, clients work through the real S3 layer, faults strike at seeded instants. At the
end the faults are over, the power is cut once more, everything is read back, and the promises of
the design are asserted: P1 to P5 by the history and by what each replica holds, P6 by what the
nodes answered, and a clean `verify` of every disk.
"""

from __future__ import annotations

import asyncio
import random
import time
import traceback
from typing import Any

from o3storage import _native
from o3storage.runtime import log

from ._bad_luck import MACHINE_WEIGHTS, MachineFaults, draw
from ._checker import TooHardError, Violation, check
from ._clock import SimClock
from ._history import History
from ._loop import SimDeadlockError, SimLoop, SimTimeoutError, run
from ._machine import Machine
from ._network import SimNet, SimNetwork
from ._report import GaveUp, Report
from ._requests import Answer, Call, Signer, build, perform
from ._seals import SealLog, watch_seals
from ._workload import BUCKETS, VERSIONED_BUCKET, Client, Lost, Values

RUN_S = 30.0
"""Virtual seconds of work; the end (heal, read back, verify) comes on top."""
LIMIT_S = 600.0
"""Virtual seconds after which a run counts as hung: requests, restarts and checks take a few."""
BURSTS = 34
CLIENTS = 7
FAULTS = 9
OUTAGE_S = 0.5
"""Longest time until a process that died is started again, on one machine alone."""


class World:
    """`main` is the whole run; `report` is its result."""

    def __init__(self, seed: int, *, keep_trace: bool = False) -> None:
        loop = asyncio.get_running_loop()
        assert isinstance(loop, SimLoop)
        self.seed = seed
        self.loop = loop
        self.history = History(self.loop.time)
        self.values = Values()
        self.report = Report(seed)
        self.serving = asyncio.Event()
        """Some machine serves."""
        self.main_task: asyncio.Task[Any] | None = None
        self.longest_outage_s = OUTAGE_S
        rng = self.rng("plan")
        self.bursts = sorted(0.5 + rng.random() * RUN_S for _ in range(BURSTS))
        self.large_parts = 1 if seed % 8 == 0 else 0
        self.dice = self.rng("faults")
        self._client_clock = SimClock()
        self._signer = Signer()
        self._keep_trace = keep_trace
        self._digest = _native.Digester(
            md5=False, sha256=True, sha1=False, crc32=False, crc32c=False, blake3=False
        )
        self.net = SimNet(seed)
        self.machines = [Machine(self, 1)]

    def rng(self, name: str) -> random.Random:
        return random.Random(f"{self.seed}/{name}")

    # --- the run

    async def main(self) -> Report:
        began = time.process_time()
        report = self.report
        try:
            with watch_seals() as seals:
                await self._run(seals)
        except (SimDeadlockError, SimTimeoutError):
            raise
        except GaveUp as error:
            self.violation("P6", f"the node cannot be started again: {error}")
        report.virtual_s = self.loop.time()
        ops = self.history.operations
        report.operations = len(ops) + len(self.history.pages)
        report.acknowledged = sum(op.result.value in ("ok", "refused") for op in ops)
        report.unknown = sum(op.result.value == "unknown" for op in ops)
        report.seals = seals.count
        report.frames = self.net.frames
        for machine in self.machines:
            machine.trace(f"end, disk operations {sorted(machine.disk.operations.items())}")
        report.trace_hash = self._digest.finish()["sha256"].hex()
        report.cpu_s = time.process_time() - began
        return report

    async def _run(self, seals: SealLog) -> None:
        await asyncio.gather(*(machine.start() for machine in self.machines))
        await self._make_buckets()
        clients = [Client(self, f"c{number}") for number in range(1, CLIENTS + 1)]
        work = [self.loop.create_task(client.work()) for client in clients]
        strikes = self.loop.create_task(self._strike_all())
        await asyncio.gather(*work, strikes)
        await self._heal()
        await self._read_back()
        for machine in self.machines:
            await machine.stop()
        for machine in self.machines:
            await machine.verify()
        for text in seals.reused:
            self.violation("sealing", text)
        self._check_history()

    def _check_history(self) -> None:
        if any(machine.lossy for machine in self.machines):
            return  # only what was served is judged
        try:
            for found in check(self.history, lambda bucket: bucket == VERSIONED_BUCKET):
                self._add(found)
        except TooHardError as error:
            self.violation("check", f"gave up: {error}")

    async def _make_buckets(self) -> None:
        for bucket in BUCKETS:
            answer = await self.send("setup", Call("PUT", f"/{bucket}"))
            assert answer.status == 200, answer
        document = b"<VersioningConfiguration><Status>Enabled</Status></VersioningConfiguration>"
        call = Call("PUT", f"/{VERSIONED_BUCKET}", {"versioning": ""}, body=document)
        answer = await self.send("setup", call)
        assert answer.status == 200, answer

    async def _strike_all(self) -> None:
        machine = self.machines[0]
        faults = MachineFaults(self)
        kinds = draw(self.dice, MACHINE_WEIGHTS, FAULTS)
        instants = sorted(self.dice.sample(self.bursts, FAULTS))
        for at, kind in zip(instants, kinds, strict=True):
            pause = at - self.loop.time()
            if pause > 0:
                await asyncio.sleep(pause)
            await machine.serving.wait()
            self.note_fault(kind)
            machine.trace(f"fault: {kind}")
            await faults.strike(kind, machine)

    async def _heal(self) -> None:
        """All faults are over; the nodes serve again, after one more power cut."""
        for machine in self.machines:
            machine.heal_disk()
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
        if refused and not self.rotten:
            self.violation("P1", f"{refused[0]} is refused though all faults are over")
        for machine in self.machines:
            lent = machine.life.service.pool.lent_bytes if machine.life else 0
            if lent:
                self.violation("P8", f"{lent} bytes of body blocks were never given back")

    # --- machines

    @property
    def rotten(self) -> bool:
        """Bits were flipped somewhere, and no other copy was there to mend them."""
        return any(machine.rotten for machine in self.machines)

    def network_of(self, machine: Machine) -> SimNetwork | None:
        """The network of a process that is being started on `machine`; None for a node alone."""
        del machine
        return None

    def leader(self) -> Machine | None:
        """A machine whose node leads a key range."""
        for machine in self.machines:
            if machine.life is not None:
                groups = machine.life.opened.node.status()["groups"]
                if any(group["group"] and group["role"] == "leader" for group in groups):
                    return machine
        return None

    def on_serving(self) -> None:
        # What a dead process may have left undone it never does now.
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

    async def send(self, client: str, call: Call, *, cut_s: float | None = None) -> Answer:
        """Send to a node that serves now. Raises Lost if it dies, or after `cut_s` seconds the
        client goes, before the answer; Truncated."""
        machine = self._pick(client)
        life = machine.life
        if life is None:
            raise Lost
        request = build(self._signer, call, self._client_clock.wall_ns())
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
        timer = self.loop.call_later(cut_s, leave) if cut_s is not None else None
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

    def _pick(self, client: str) -> Machine:
        del client
        return self.machines[0]

    def unexpected(self, client: str, call: Call, answer: Answer) -> None:
        """An answer that no fault explains."""
        if self.rotten and answer.status == 500:
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


def simulate(seed: int, *, keep_trace: bool = False) -> Report:
    """Run one seed. The report has every violation; with `keep_trace` also what happened."""
    log.configure(level="error", fd=-1)
    worlds: list[World] = []

    async def main() -> Report:
        loop = asyncio.get_running_loop()
        assert isinstance(loop, SimLoop)
        loop.set_exception_handler(lambda _loop, _context: None)
        world = World(seed, keep_trace=keep_trace)
        worlds.append(world)
        world.main_task = asyncio.current_task()
        return await world.main()

    try:
        return run(main(), seed, limit_s=LIMIT_S)
    except (SimDeadlockError, SimTimeoutError) as error:
        worlds[0].violation("liveness", str(error))
    except asyncio.CancelledError as error:
        worlds[0].violation("P6", f"the node cannot be started again: {error}")
    except Exception as error:
        if not worlds:
            raise
        worlds[0].violation("defect", "".join(traceback.format_exception(error)).strip())
    finally:
        log.configure()
    return worlds[0].report
