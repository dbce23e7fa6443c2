"""One simulated machine with one node, its clients, and its bad luck; then the judgement.

A run is one seed: the rooms are opened as the server opens them (`server.open_node`) over a
simulated disk, clients work through the real S3 layer, faults strike at seeded instants. At the end
the faults are over, the power is cut once more, everything is read back, and the promises of the
design are asserted: P1 to P4 by the history, P6 by what the node answered, and a clean `verify`.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import time
import traceback
from dataclasses import dataclass, field
from typing import Any

from o3storage import _native
from o3storage.catalog import prefix_length
from o3storage.cluster import ClusterError
from o3storage.crypto import NodeKeys
from o3storage.runtime import log
from o3storage.runtime.disk import DiskError
from o3storage.s3 import Service, ServiceConfig
from o3storage.server import ROOT_OWNER, Credentials, Housekeeping, OpenedNode, RootKey, open_node
from o3storage.storage import Problem, StoreError, StoreFull, StoreOptions, VerifyReport, verify

from ._checker import TooHardError, Violation, check
from ._clock import SimClock, SimEntropy
from ._disk import SimDisk
from ._faults import Fault, FaultKind
from ._history import History
from ._jobs import SimJobs
from ._loop import SimDeadlockError, SimLoop, SimTimeoutError, run
from ._requests import HOST, KEY_ID, REGION, SECRET, Answer, Call, Signer, build, perform
from ._seals import SealLog, watch_seals
from ._workload import BUCKETS, VERSIONED_BUCKET, Client, Lost, Values

RUN_S = 30.0
"""Virtual seconds of work; the end (heal, read back, verify) comes on top."""
LIMIT_S = 600.0
"""Virtual seconds after which a run counts as hung: requests, restarts and checks take a few."""
BURSTS = 34
CLIENTS = 7
FAULTS = 9
CAPACITY_BYTES = 96 << 20
FAULT_WAIT_S = 0.4
"""How long an ordered fault may wait for a disk operation to strike."""
BURY_S = 1.0
"""How long the tasks of a dead process may take to end."""
MAX_STARTS = 12
"""Starts in a row that may fail before the run gives up."""

FAULT_WEIGHTS = {
    "power-cut": 26,
    "power-cut-twice": 6,
    "kill": 10,
    "restart": 5,
    "sync-error": 9,
    "write-error": 7,
    "other-error": 4,
    "slow": 7,
    "stuck": 7,
    "full": 8,
    "clock": 7,
    "flush": 6,
    "rot": 2,
}


@dataclass(slots=True)
class Report:
    """What one seed did and found."""

    seed: int
    virtual_s: float = 0.0
    cpu_s: float = 0.0
    operations: int = 0
    requests: int = 0
    acknowledged: int = 0
    unknown: int = 0
    seals: int = 0
    excused: int = 0
    """Findings of `verify` that are its own known fault."""
    faults: dict[str, int] = field(default_factory=dict)
    violations: list[Violation] = field(default_factory=list)
    trace: list[str] = field(default_factory=list)
    trace_hash: str = ""

    @property
    def fault_count(self) -> int:
        return sum(self.faults.values())

    @property
    def line(self) -> str:
        """The one line of a failing seed."""
        first = str(self.violations[0]).splitlines()[0] if self.violations else "no violation"
        return f"seed {self.seed}: {first}"


def small_options() -> StoreOptions:
    """Volumes so small that half a minute of work seals, flushes and compacts many."""
    return StoreOptions(
        log_volume_bytes=384 << 10,
        first_log_volume_bytes=128 << 10,
        bulk_volume_bytes=2 << 20,
        bulk_allocate_bytes=512 << 10,
        flush_entries=150,
        flush_log_bytes=1 << 20,
        reserve_bytes=2 << 20,
        scrub_every_s=12.0,
    )


class Tripwire(Fault):
    """No fault of its own: calls `pull` when the disk begins its n-th operation from now."""

    def __init__(self, after: int, pull: Any) -> None:
        super().__init__("", after=after)
        self._pull = pull

    def strikes(self, operation: str, path: str) -> bool:
        del operation, path
        self.after -= 1
        if self.after == 0:
            self._pull()
        return False


@dataclass(slots=True)
class Life:
    """A process: from its start to its death."""

    opened: OpenedNode
    service: Service
    housekeeping: Housekeeping
    requests: dict[asyncio.Future[Any], None] = field(default_factory=dict)


class World:
    """`main` is the whole run; `report` is its result."""

    def __init__(self, seed: int, *, keep_trace: bool = False) -> None:
        self.seed = seed
        self.loop = asyncio.get_running_loop()
        self.history = History(self.loop.time)
        self.values = Values()
        self.report = Report(seed)
        self.clock = SimClock()
        self.entropy = SimEntropy(seed)
        self.keys = NodeKeys.generate(self.entropy)
        self.disk = SimDisk(
            seed, capacity_bytes=CAPACITY_BYTES, cached_share=0.5 if seed % 3 else 1.0
        )
        self.serving = asyncio.Event()
        self.main_task: asyncio.Task[Any] | None = None
        self.life: Life | None = None
        self.options = small_options()
        if seed % 2:
            self.options.reload_log_bytes = 0  # nothing below the replay floor is looked at
        self.rotten = False
        """Bits were flipped: reads may be refused and `verify` may find something."""
        self.lossy = False
        """`verify --repair` had to give something up: only what is served is still judged."""
        rng = self.rng("plan")
        self.bursts = sorted(0.5 + rng.random() * RUN_S for _ in range(BURSTS))
        self.large_parts = 1 if seed % 8 == 0 else 0
        self._rng = self.rng("faults")
        self._client_clock = SimClock()
        self._signer = Signer()
        self._keep_trace = keep_trace
        self._digest = _native.Digester(
            md5=False, sha256=True, sha1=False, crc32=False, crc32c=False, blake3=False
        )
        self._starting: asyncio.Task[None] | None = None
        self._deaths = 0
        self._slowed: list[Fault] = []

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
        self.trace(f"end, disk operations {sorted(self.disk.operations.items())}")
        report.trace_hash = self._digest.finish()["sha256"].hex()
        report.cpu_s = time.process_time() - began
        return report

    async def _run(self, seals: SealLog) -> None:
        await self._start()
        await self._make_buckets()
        clients = [Client(self, f"c{number}") for number in range(1, CLIENTS + 1)]
        work = [self.loop.create_task(client.work()) for client in clients]
        strikes = self.loop.create_task(self._strike_all())
        await asyncio.gather(*work, strikes)
        await self._heal()
        await self._read_back()
        await self._stop()
        await self._verify()
        for text in seals.reused:
            self.violation("sealing", text)
        if not self.lossy:
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

    async def _heal(self) -> None:
        """All faults are over; the node serves again, after one more power cut."""
        self.disk.faults.clear()
        self.disk.release_stuck()
        self.disk.capacity_bytes = CAPACITY_BYTES
        await self.serving.wait()
        if self._refusal():
            self.power_cut("kill")
            await self.serving.wait()
        await asyncio.sleep(2.0)
        self.power_cut("power cut")
        await self.serving.wait()

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
        lent = self.life.service.pool.lent_bytes if self.life else 0
        if lent:
            self.violation("P8", f"{lent} bytes of body blocks were never given back")

    async def _verify(self) -> None:
        report = await verify(
            self.disk,
            disk_key=self.keys.disk_key,
            jobs=SimJobs(self.seed),
            clock=self.clock,
            entropy=self.entropy,
            prefix_length=prefix_length,
        )
        bad = self._bad(report)
        if bad and not self.rotten:
            problem = bad[0]
            self.violation(
                "P3", f"verify: {problem.kind} {problem.where}: {problem.detail} (of {len(bad)})"
            )

    def _bad(self, report: VerifyReport) -> list[Problem]:
        """What `verify` found, without a known fault of it: after a power cut it takes what was
        torn in the middle of a bulk volume, and never placed, for rot (docs/simulation.md)."""
        bad = [
            problem
            for problem in report.problems
            if problem.kind != "record" or ".bulk at " not in problem.where or not self._deaths
        ]
        if len(bad) < len(report.problems):
            self.report.excused += 1
            self.trace("verify: torn frames of a bulk volume taken for rot (known)")
        return bad

    # --- requests

    async def send(self, client: str, call: Call, *, cut_s: float | None = None) -> Answer:
        """Send to the node that serves now. Raises Lost if it dies, or after `cut_s` seconds the
        client goes, before the answer; Truncated."""
        life = self.life
        if life is None:
            raise Lost
        request = build(self._signer, call, self._client_clock.wall_ns())
        task = self.loop.create_task(perform(life.service, request))
        life.requests[task] = None
        self.report.requests += 1
        number = self.report.requests
        query = "?" + "&".join(call.query) if call.query else ""
        self.trace(f"{client} #{number} {call.method} {call.path}{query} {len(call.body)} B")
        timer = self.loop.call_later(cut_s, task.cancel) if cut_s is not None else None
        (result,) = await asyncio.gather(task, return_exceptions=True)
        if timer is not None:
            timer.cancel()
        life.requests.pop(task, None)
        if isinstance(result, asyncio.CancelledError):
            self.trace(f"{client} #{number} no answer")
            raise Lost
        if isinstance(result, BaseException):
            self.trace(f"{client} #{number} {type(result).__name__}")
            raise result
        self.trace(f"{client} #{number} {result.status} {result.code}".rstrip())
        return result

    def unexpected(self, client: str, call: Call, answer: Answer) -> None:
        """An answer that no fault explains."""
        if self.rotten and answer.status == 500:
            return
        self.violation(
            "P6", f"{client} {call.method} {call.path}: {answer.status} {answer.body[:200]!r}"
        )

    # --- life and death

    async def _start(self) -> None:
        """Open the rooms; an operator mends what a start asks to be mended."""
        for _ in range(MAX_STARTS):
            disk = self.disk
            try:
                opened = await open_node(
                    disk,
                    keys=self.keys,
                    jobs=SimJobs(f"{self.seed}/{self._deaths}"),
                    clock=self.clock,
                    entropy=self.entropy,
                    options=self.options,
                )
            except (StoreError, ClusterError, DiskError) as error:
                self.trace(f"start failed: {type(error).__name__}: {error}")
                await self._mend(disk, error)
                continue
            if self.disk is not disk:
                await self._bury(opened)
                continue
            self._serve(opened)
            return
        raise GaveUp(f"{MAX_STARTS} starts failed")

    def _serve(self, opened: OpenedNode) -> None:
        service = Service(
            opened.node,
            credentials=Credentials(opened.node, [RootKey(KEY_ID, SECRET)]),
            clock=self.clock,
            entropy=self.entropy,
            config=ServiceConfig(region=REGION, root_owner=ROOT_OWNER, listened=(HOST,)),
        )
        housekeeping = Housekeeping(opened.node, self.clock)
        housekeeping.start()
        self.life = Life(opened, service, housekeeping)
        self.history.settle_unknown(self.history.now())
        self.trace("serving")
        self.serving.set()

    async def _mend(self, disk: SimDisk, error: Exception) -> None:
        """What an operator does when a start fails: more space, `verify --return-disk`, and, where
        bits have rotted, `verify --repair`."""
        if self.disk is not disk:
            return  # the power went again
        disk.capacity_bytes = CAPACITY_BYTES
        if isinstance(error, StoreFull):
            return
        disk.faults.clear()
        disk.release_stuck()
        if self.rotten:
            self.lossy = True
        try:
            report = await verify(
                disk,
                disk_key=self.keys.disk_key,
                jobs=SimJobs(self.seed),
                clock=self.clock,
                entropy=self.entropy,
                prefix_length=prefix_length,
                return_disk=True,
                repair=self.rotten,
            )
        except (StoreError, DiskError) as failure:
            if self.disk is not disk:
                return
            raise GaveUp(f"{error}; verify: {failure}") from failure
        if self.disk is not disk:
            return  # the power went while it was being checked
        self.trace(f"verify: {report.problem_count} problems, returned {report.returned}")
        bad = self._bad(report)
        if bad and not self.rotten:
            problem = bad[0]
            self.violation(
                "P6",
                f"verify at an offline disk: {problem.kind} {problem.where}: {problem.detail}",
            )
            raise GaveUp(str(error))
        if report.out_of_service and not report.returned:
            with contextlib.suppress(DiskError):
                await disk.unlink("OUT_OF_SERVICE")
                await disk.sync_dir("")

    def power_cut(self, how: str) -> None:
        """The process is gone at this instant, and with `power cut` what was not synced."""
        life, self.life = self.life, None
        self.serving.clear()
        self._deaths += 1
        self.trace(f"{how} {self._deaths}")
        self.disk = self.disk.crash(self._rng) if how == "power cut" else self.disk.kill()
        if life is not None:
            self._starting = self.loop.create_task(self._restart(life))

    async def _restart(self, life: Life) -> None:
        try:
            for task in life.requests:
                task.cancel()
            await asyncio.gather(*life.requests, return_exceptions=True)
            await life.housekeeping.stop()
            await self._bury(life.opened)
            await asyncio.sleep(self._rng.random() * 0.5)
            await self._start()
        except Exception as error:
            self._fail(error)

    async def _bury(self, opened: OpenedNode) -> None:
        """End the tasks of a dead process; nothing of this reaches its disk any more, so it may
        well wait for ever."""
        for room in (opened.store, opened.node):
            with contextlib.suppress(StoreError, ClusterError, DiskError, TimeoutError):
                await asyncio.wait_for(room.close(), BURY_S)

    async def _stop(self) -> None:
        """A graceful end: what is in flight is finished."""
        life, self.life = self.life, None
        self.serving.clear()
        if life is None:
            return
        await asyncio.gather(*life.requests, return_exceptions=True)
        await life.housekeeping.stop()
        with contextlib.suppress(StoreError, ClusterError, DiskError):
            await life.opened.node.close()
            await life.opened.store.close()

    def _refusal(self) -> str | None:
        return self.life.opened.node.write_refusal() if self.life else None

    def _fail(self, error: Exception) -> None:
        """Let `main` see it: everybody who waits for the node would wait for ever."""
        assert self.main_task is not None
        if not isinstance(error, GaveUp):
            self.trace("".join(traceback.format_exception(error)))
        self.main_task.cancel(f"{type(error).__name__}: {error}")

    # --- faults

    async def _strike_all(self) -> None:
        rng = self._rng
        kinds = rng.choices(list(FAULT_WEIGHTS), list(FAULT_WEIGHTS.values()), k=FAULTS)
        if "rot" in kinds:
            # What follows is judged less strictly, so it comes last.
            kinds = [kind for kind in kinds if kind != "rot"]
            kinds += ["rot"] * (FAULTS - len(kinds))
        instants = sorted(rng.sample(self.bursts, FAULTS))
        for at, kind in zip(instants, kinds, strict=True):
            pause = at - self.loop.time()
            if pause > 0:
                await asyncio.sleep(pause)
            await self.serving.wait()
            self.trace(f"fault: {kind}")
            self.report.faults[kind] = self.report.faults.get(kind, 0) + 1
            await getattr(self, "_fault_" + kind.replace("-", "_"))()

    async def _cut_soon(self, how: str) -> None:
        """Cut when the disk begins one of its next operations, or a little after."""
        rng = self._rng
        deaths = self._deaths

        def pull() -> None:
            delay = rng.random() * 0.0003 if rng.random() < 0.7 else 0.0
            self.loop.call_later(delay, cut)

        def cut() -> None:
            if self._deaths == deaths and self.life is not None:
                self.power_cut(how)

        self.disk.inject(Tripwire(1 + rng.randrange(14), pull))
        await asyncio.sleep(FAULT_WAIT_S)
        cut()

    async def _fault_power_cut(self) -> None:
        await self._cut_soon("power cut")

    async def _fault_kill(self) -> None:
        await self._cut_soon("kill")

    async def _fault_power_cut_twice(self) -> None:
        """The second one strikes the recovery from the first."""
        await self._cut_soon("power cut")
        rng = self._rng
        while self.life is None and self._starting is not None and not self.serving.is_set():
            disk = self.disk
            if disk.operations:
                for _ in range(rng.randrange(40)):
                    await asyncio.sleep(0.0001)
                if self.life is None and self.disk is disk:
                    self.power_cut("power cut")
                return
            await asyncio.sleep(0.001)

    async def _fault_restart(self) -> None:
        """A clean stop; sometimes the power goes right after it."""
        life = self.life
        if life is None:
            return
        await self._stop()
        if self._rng.random() < 0.5:
            self.disk = self.disk.crash(self._rng)
        await self._start()

    async def _fault_sync_error(self) -> None:
        await self._error("sync")

    async def _fault_write_error(self) -> None:
        await self._error("write")

    async def _fault_other_error(self) -> None:
        await self._error(self._rng.choice(("allocate", "sync_dir", "open", "truncate", "unlink")))

    async def _error(self, operation: str) -> None:
        """One error; if it took the disk out of service, an operator looks after a while."""
        rng = self._rng
        disk = self.disk
        disk.inject(Fault(operation, FaultKind.ERROR, after=rng.randrange(6)))
        await asyncio.sleep(FAULT_WAIT_S + rng.random() * 0.5)
        disk.faults.clear()
        if self.disk is disk and self._refusal():
            self.trace(f"out of service: {self._refusal()}")
            self.power_cut(rng.choice(("kill", "power cut")))

    async def _fault_slow(self) -> None:
        rng = self._rng
        for operation in ("read", "write", "sync"):
            fault = Fault(
                operation, FaultKind.SLOW, count=rng.randrange(20), delay_s=rng.random() * 0.3
            )
            self.disk.inject(fault)
        await asyncio.sleep(FAULT_WAIT_S)

    async def _fault_stuck(self) -> None:
        rng = self._rng
        disk = self.disk
        operation = rng.choice(("write", "sync", "sync", "read"))
        disk.inject(Fault(operation, FaultKind.STUCK, after=rng.randrange(4)))
        await asyncio.sleep(FAULT_WAIT_S + rng.random() * 2)
        disk.faults.clear()
        disk.release_stuck()

    async def _fault_full(self) -> None:
        rng = self._rng
        disk = self.disk
        room = rng.choice((0, 100_000, 1_500_000, 3_000_000))
        disk.capacity_bytes = disk.image.used_bytes() + rng.randrange(room + 1)
        await asyncio.sleep(0.5 + rng.random() * 3)
        disk.capacity_bytes = CAPACITY_BYTES

    async def _fault_clock(self) -> None:
        rng = self._rng
        seconds = rng.choice((0.001, 1, 60, 500)) * (rng.random() * 2 - 1)
        self.clock.jump(int(seconds * 1e9))

    async def _fault_flush(self) -> None:
        """Not a fault by itself: the power goes while the index is being flushed."""
        life = self.life
        if life is None:
            return

        async def flush() -> None:
            with contextlib.suppress(StoreError, DiskError):
                await life.opened.store.flush()

        task = self.loop.create_task(flush())
        await self._cut_soon("power cut")
        await asyncio.gather(task, return_exceptions=True)

    async def _fault_rot(self) -> None:
        """A bit flips in a file that is not being written to."""
        rng = self._rng
        names = sorted(
            path
            for path, node in self.disk.image.names.items()
            if node is not None and path.startswith("volumes/") and len(node.durable) > 20_000
        )
        if len(names) < 4:
            return
        path = rng.choice(names[:-3])
        size = len(self.disk.image.lookup(path).durable)
        self.rotten = True
        self.disk.rot(path, rng.randrange(8192, size), 1 << rng.randrange(8))

    # --- findings

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


class GaveUp(Exception):
    """The node cannot be brought back; the run ends here."""


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
