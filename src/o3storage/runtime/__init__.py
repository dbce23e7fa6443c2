"""Clock, tasks and disk as interfaces and for real; the job pool; logs and metrics."""

from __future__ import annotations

from o3storage._native import tune_memory
from o3storage.runtime import log, metrics
from o3storage.runtime._pool import JobPool, NativeJobs
from o3storage.runtime._real_disk import RealDisk, RealFile
from o3storage.runtime._stall import StallMeter, busy_s, busy_share, may_put_off, new_event_loop
from o3storage.runtime._system import (
    SystemClock,
    SystemEntropy,
    raise_descriptor_limit,
    reserve_descriptors,
)
from o3storage.runtime._tasks import Tasks, after_others, let_others, wait_any
from o3storage.runtime.clock import Clock, Entropy
from o3storage.runtime.disk import (
    DIRECT_ALIGN_BYTES,
    Buffer,
    Disk,
    DiskError,
    DiskFault,
    DiskFull,
    File,
    OpenMode,
    Space,
)
from o3storage.runtime.jobs import Job, Jobs
from o3storage.runtime.log import Logger
from o3storage.runtime.metrics import Registry

__all__ = [
    "DIRECT_ALIGN_BYTES",
    "Buffer",
    "Clock",
    "Disk",
    "DiskError",
    "DiskFault",
    "DiskFull",
    "Entropy",
    "File",
    "Job",
    "JobPool",
    "Jobs",
    "Logger",
    "NativeJobs",
    "OpenMode",
    "RealDisk",
    "RealFile",
    "Registry",
    "Space",
    "StallMeter",
    "SystemClock",
    "SystemEntropy",
    "Tasks",
    "after_others",
    "busy_s",
    "busy_share",
    "let_others",
    "log",
    "may_put_off",
    "metrics",
    "new_event_loop",
    "raise_descriptor_limit",
    "reserve_descriptors",
    "tune_memory",
    "wait_any",
]
