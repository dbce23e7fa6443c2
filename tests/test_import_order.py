"""Rooms import downwards only (docs/architecture.md); the pure rooms import nothing that does I/O."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

SOURCE = Path(__file__).resolve().parent.parent / "src" / "o3storage"

FLOORS = [
    "cli",
    "server",
    "console",
    "s3",
    "http",
    "catalog",
    "cluster",
    "raft",
    "storage",
    "crypto",
    "runtime",
]
# Floors are an upper bound; these rooms may import even less.
ONLY = {
    "catalog": {"o3storage.runtime.state_machine", "o3storage.runtime.fields"},
    "http": {"o3storage.runtime", "o3storage.crypto", "o3storage._native"},
}
PURE = ["catalog", "raft/core"]
PURE_FORBIDDEN = {"asyncio", "os", "time", "random", "socket", "secrets", "threading", "pathlib"}
NOWHERE = {"ssl", "_ssl", "hashlib", "_hashlib", "hmac", "pickle", "uvloop"}


def room_of(path: Path) -> str:
    relative = path.relative_to(SOURCE)
    return relative.parts[0] if len(relative.parts) > 1 else ""


def runtime_imports(path: Path) -> list[tuple[str, int]]:
    """(module, line) of every import in the file, wherever it stands."""
    found: list[tuple[str, int]] = []
    package = ["o3storage", *path.relative_to(SOURCE).parts[:-1]]
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found += [(alias.name, node.lineno) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                base = ".".join([*package[: len(package) - node.level + 1], *filter(None, [base])])
            found.append((base, node.lineno))
            found += [(f"{base}.{alias.name}", node.lineno) for alias in node.names]
    return found


def violations(root: Path = SOURCE) -> list[str]:
    problems: list[str] = []
    for path in sorted(root.rglob("*.py")):
        room = room_of(path)
        place = path.relative_to(root)
        pure = any(place.is_relative_to(p) for p in PURE)
        for module, line in runtime_imports(path):
            where = f"{place}:{line} imports {module}"
            if module.split(".")[0] in NOWHERE:
                problems.append(f"{where}: not allowed anywhere (no OpenSSL, no unsafe decoding)")
            if pure and module.split(".")[0] in PURE_FORBIDDEN:
                problems.append(f"{where}: {room} is pure")
            parts = module.split(".")
            if parts[0] != "o3storage" or len(parts) < 2 or room in {"", "simulation"}:
                continue
            target = parts[1]
            if target == room:
                continue
            if target == "simulation":
                if room != "cli":
                    problems.append(f"{where}: only the command line may import the simulation")
                continue
            if target in FLOORS and FLOORS.index(target) < FLOORS.index(room):
                problems.append(f"{where}: {target} lies above {room}")
            if target in FLOORS and len(parts) > 2 and parts[2].startswith("_"):
                problems.append(f"{where}: private to {target}")
            if room in ONLY and not any(
                module.startswith(a) or a.startswith(module) for a in ONLY[room]
            ):
                problems.append(f"{where}: {room} may import only {sorted(ONLY[room])}")
    return problems


def test_rooms_import_downwards_only() -> None:
    assert violations() == []


@pytest.mark.parametrize(
    ("file", "text", "reason"),
    [
        ("storage/x.py", "from o3storage.s3 import thing", "lies above"),
        ("storage/x.py", "from ..cluster import thing", "lies above"),
        ("s3/x.py", "from o3storage.storage._log import thing", "private"),
        ("catalog/x.py", "import time", "is pure"),
        ("runtime/x.py", "import hashlib", "not allowed anywhere"),
        ("http/x.py", "from o3storage.cluster import Node", "may import only"),
        ("server/x.py", "import o3storage.simulation", "only the command line"),
    ],
)
def test_the_check_can_fail(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, file: str, text: str, reason: str
) -> None:
    (tmp_path / file).parent.mkdir(parents=True)
    (tmp_path / file).write_text(text)
    monkeypatch.setattr(f"{__name__}.SOURCE", tmp_path)
    assert any(reason in problem for problem in violations(tmp_path))
