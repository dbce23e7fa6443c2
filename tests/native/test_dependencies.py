"""What may be in the native module, and that docs/dependencies.md says so."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
UNWANTED = ("openssl", "aws-lc", "boring", "libressl", "wolfssl")


def test_no_openssl_nor_a_fork_of_it_in_cargo_lock() -> None:
    lock = tomllib.loads((ROOT / "native/Cargo.lock").read_text())
    names = [package["name"] for package in lock["package"]]
    assert "rustls" in names
    assert [name for name in names if any(bad in name for bad in UNWANTED)] == []


def test_every_direct_dependency_is_explained() -> None:
    page = (ROOT / "docs/dependencies.md").read_text()
    explained = set(re.findall(r"^\| `([^`]+)`", page, re.MULTILINE))
    crates = set(tomllib.loads((ROOT / "native/Cargo.toml").read_text())["dependencies"])
    assert crates <= explained, crates - explained
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    for requirement in project["dependencies"]:
        assert re.split(r"[^\w-]", requirement)[0] in explained, requirement
    assert len(project["dependencies"]) < 5


def test_importing_the_native_module_maps_no_openssl() -> None:
    program = (
        "import o3storage._native as n; n.sha256(b''); n.TlsConfig; "
        "print(open('/proc/self/maps').read())"
    )
    maps = subprocess.run(
        [sys.executable, "-c", program], check=True, capture_output=True, text=True
    ).stdout
    assert "_native.abi3.so" in maps
    assert not re.search(r"libssl|libcrypto|/_ssl\.|/_hashlib\.", maps)
