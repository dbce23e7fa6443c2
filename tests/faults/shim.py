"""C shims that are loaded into the store's process with LD_PRELOAD."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

HERE = Path(__file__).resolve().parent


def build_shim(name: str, directory: Path) -> Path:
    """NAME.c of this folder as a shared object in `directory`; without a C compiler, a skip."""
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("no C compiler (cc): the store's system calls cannot be altered here")
    target = directory / f"{name}.so"
    subprocess.run(
        [compiler, "-shared", "-fPIC", "-O2", "-o", str(target), str(HERE / f"{name}.c"), "-ldl"],
        check=True,
        capture_output=True,
    )
    return target
