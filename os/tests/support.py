"""What the tests share: the paths, the test image, and a machine that runs one program."""

from __future__ import annotations

import json
import os
import subprocess
import time
from pathlib import Path

import build_config
import build_image
from machine import Machine, free_port

OS = Path(__file__).resolve().parent.parent
BUILD = OS / "build"
KERNEL = BUILD / "target/x86_64-unknown-none/release/o3os"
ROOT = BUILD / "test-root.img"
PROGRAMS = OS / "tests/programs"
PYTHON = "/usr/bin/python3"
FULL = os.environ.get("O3_LANE") == "full"
# Timings go here in the full lane, with the commit they belong to.
FIGURES: dict[str, object] = {}

__all__ = ["BUILD", "FULL", "KERNEL", "OS", "PROGRAMS", "PYTHON", "ROOT", "Machine", "free_port"]


def compiled(name: str, *, static_glibc: bool = True) -> Path:
    """Compiles a C program of the tests; without glibc it holds nothing but itself."""
    target = BUILD / "programs" / name
    target.parent.mkdir(parents=True, exist_ok=True)
    # Without warnings: most of these programs call wrongly on purpose.
    command = ["gcc", "-O1", "-w", "-s", "-static", "-o", str(target)]
    command += ["-pthread"] if static_glibc else ["-nostdlib", "-ffreestanding"]
    subprocess.run([*command, str(PROGRAMS / f"{name}.c")], check=True)
    return target


def build_test_image() -> None:
    programs = [
        (compiled("hello", static_glibc=False), "/bin/hello"),
        *(
            (compiled(name), f"/bin/{name}")
            for name in ("attack", "vectors", "fuzz", "aimed", "oracle")
        ),
    ]
    renamed = [(source, f"/usr{place}") for source, place in programs]
    build_image.build(ROOT, [(PROGRAMS, "/tests"), (OS / "app", "/app")], renamed)


def config(*arguments: str, env: dict[str, str] | None = None, files=()) -> bytes:
    environment = [f"{key}={value}" for key, value in (env or {}).items()]
    return build_config.build(list(arguments), environment, list(files))


def run(*arguments: str, timeout_s: float = 60, env=None, files=(), **options) -> tuple[int, str]:
    """Runs one program to its end: its exit status and the console."""
    data = config(*arguments, env=env, files=files)
    started = time.monotonic()
    with Machine(kernel=KERNEL, root=ROOT, config=data, **options) as machine:
        status = machine.status(timeout_s)
        FIGURES.setdefault("runs", []).append(  # type: ignore[attr-defined]
            [" ".join(arguments)[:60], round(time.monotonic() - started, 2)]
        )
        return status, machine.console


def run_script(script: str, **options) -> tuple[int, str]:
    """Runs some lines of Python, brought as a file of the configuration."""
    return run(PYTHON, "/run/script.py", files=[("/run/script.py", script.encode())], **options)


def write_figures(duration_s: float) -> None:
    """Keeps the figures of this run in the build folder; the full lane's also beside the tests."""
    commit = subprocess.run(
        ["git", "-C", str(OS), "rev-parse", "HEAD"], capture_output=True, text=True, check=False
    ).stdout.strip()
    FIGURES.update(
        commit=commit,
        command=f"python3 tests/run.py {'full' if FULL else 'fast'}",
        duration_s=round(duration_s, 1),
    )
    text = json.dumps(FIGURES, indent=1, sort_keys=True) + "\n"
    (BUILD / "figures.json").write_text(text)
    if FULL:
        (OS / "tests/figures.json").write_text(text)
