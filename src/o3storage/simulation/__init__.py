"""Simulated twins of the interfaces in `runtime`: time, disk, jobs and entropy by a seed.

`run(main(), seed)` runs a coroutine on virtual time; `simulate(seed)` runs a whole node with
clients and faults and says what broke (docs/simulation.md). Nothing outside tests and the command
line imports this package.
"""

from __future__ import annotations

from ._checker import Violation, check, check_key
from ._clock import START_WALL_NS, SimClock, SimEntropy
from ._disk import PowerOffError, SimDisk, SimFile
from ._faults import DiskSpeed, Fault, FaultKind
from ._history import MARKER, History, Kind, Operation, Page, Result
from ._image import SECTOR_BYTES, DiskImage
from ._jobs import SimJobs
from ._link import Blocked, SimLink
from ._loop import OWNER, SimDeadlockError, SimLoop, SimTimeoutError, run
from ._network import Quality, SimNet, SimNetwork
from ._recorder import DEFAULT_SUBSETS, CrashState, Recorder
from ._report import Report as SeedReport
from ._world import World, simulate

__all__ = [
    "DEFAULT_SUBSETS",
    "MARKER",
    "OWNER",
    "SECTOR_BYTES",
    "START_WALL_NS",
    "Blocked",
    "CrashState",
    "DiskImage",
    "DiskSpeed",
    "Fault",
    "FaultKind",
    "History",
    "Kind",
    "Operation",
    "Page",
    "PowerOffError",
    "Quality",
    "Recorder",
    "Result",
    "SeedReport",
    "SimClock",
    "SimDeadlockError",
    "SimDisk",
    "SimEntropy",
    "SimFile",
    "SimJobs",
    "SimLink",
    "SimLoop",
    "SimNet",
    "SimNetwork",
    "SimTimeoutError",
    "Violation",
    "World",
    "check",
    "check_key",
    "run",
    "simulate",
]
