"""Simulated twins of the interfaces in `runtime`: time, disk, jobs and entropy by a seed.

`run(main(), seed)` runs a coroutine on virtual time. Nothing outside tests and the command line
imports this package.
"""

from __future__ import annotations

from ._clock import START_WALL_NS, SimClock, SimEntropy
from ._disk import PowerOffError, SimDisk, SimFile
from ._faults import DiskSpeed, Fault, FaultKind
from ._image import SECTOR_BYTES, DiskImage
from ._jobs import SimJobs
from ._loop import SimDeadlockError, SimLoop, SimTimeoutError, run
from ._recorder import DEFAULT_SUBSETS, CrashState, Recorder

__all__ = [
    "DEFAULT_SUBSETS",
    "SECTOR_BYTES",
    "START_WALL_NS",
    "CrashState",
    "DiskImage",
    "DiskSpeed",
    "Fault",
    "FaultKind",
    "PowerOffError",
    "Recorder",
    "SimClock",
    "SimDeadlockError",
    "SimDisk",
    "SimEntropy",
    "SimFile",
    "SimJobs",
    "SimLoop",
    "SimTimeoutError",
    "run",
]
