"""Builds the wheel into dist/: one for CPython 3.11 and later, for glibc 2.28 and later.

The native module is linked against glibc 2.28's symbols by zig's C compiler and linker, which come
as a Python package; maturin refuses the wheel if it needs anything newer.
"""

from __future__ import annotations

import os
import subprocess
import sys
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
TOOLS = ROOT / ".venv" / "wheel-tools"
REQUIREMENTS = ["maturin==1.16.0", "ziglang==0.13.0"]


def main() -> int:
    python = TOOLS / "bin" / "python"
    if not python.exists():
        venv.create(TOOLS, with_pip=True, symlinks=True)
        subprocess.run(
            [python, "-m", "pip", "install", "-q", "--disable-pip-version-check", *REQUIREMENTS],
            check=True,
        )
    return subprocess.call(
        [python, "-m", "maturin", "build", "--release", "--locked", "--zig",
         "--compatibility", "manylinux_2_28", "--out", "dist"],
        cwd=ROOT,
        env={**os.environ, "PATH": f"{python.parent}:{os.environ['PATH']}"},
    )  # fmt: skip


if __name__ == "__main__":
    sys.exit(main())
