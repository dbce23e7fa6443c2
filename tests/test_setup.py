"""tools/setup.sh on a machine made of stubs: what is missing is said or installed, and what is there
is left alone. Nothing real is installed, built or fetched."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
TOOLS = (
    *("sh", "cat", "cksum", "cp", "dirname", "find", "head", "mkdir", "rm", "sed", "sort", "touch"),
    *("chmod", "env", "xargs"),
)
"""What the script, and the stubs, may use of this machine."""
TEXT = (ROOT / "native" / "Cargo.toml").read_text()
NEEDED = re.search(r'^rust-version *= *"(\d+)\.(\d+)', TEXT, re.MULTILINE)
assert NEEDED
MAJOR, MINOR = int(NEEDED[1]), int(NEEDED[2])

PYTHON = """case "$*" in
"-m venv "*) mkdir -p "$3/bin"; cp "$0" "$3/bin/python" ;;
"-m maturin develop "*) cargo build; touch .venv/bin/o3storage; chmod +x .venv/bin/o3storage ;;
esac"""
APT_GET = """case "$*" in
install*cargo-web*) cp {spare} {usr}/bin/cargo ;;
esac"""


class Machine:
    """Stubs that write down how they were called. What the script names by its place (/usr) lies in
    a directory of the test."""

    def __init__(self, place: Path) -> None:
        self.tree = place / "tree"
        self.usr = place / "usr"
        self.stubs = place / "stubs"
        self.home = place / "home"
        self._calls = place / "calls"
        for folder in ("native/src", "tools"):
            (self.tree / folder).mkdir(parents=True)
        for folder in (self.usr / "bin", self.usr / "include", self.stubs, self.home):
            folder.mkdir(parents=True)
        for name in ("pyproject.toml", "requirements-build.txt", "requirements-test.txt"):
            shutil.copy(ROOT / name, self.tree / name)
        for name in ("Cargo.toml", "Cargo.lock"):
            shutil.copy(ROOT / "native" / name, self.tree / "native" / name)
        script = (ROOT / "tools" / "setup.sh").read_text()
        (self.tree / "tools" / "setup.sh").write_text(script.replace("/usr/", f"{self.usr}/"))
        for name in TOOLS:
            found = shutil.which(name)
            assert found
            (self.stubs / name).symlink_to(found)
        self.is_user(1000)
        self.stub(self.stubs / "cc")
        self.stub(self.usr / "bin" / "python3", PYTHON)
        (self.usr / "include" / "stdio.h").touch()
        self.spare_cargo = self.stub(place / "cargo", self.cargo(MAJOR, MINOR))
        self.stub(self.stubs / "apt-get", APT_GET.format(spare=self.spare_cargo, usr=self.usr))

    def stub(self, path: Path, body: str = "") -> Path:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f'#!{shutil.which("sh")}\necho "{path.name} $*" >>{self._calls}\n{body}\n')
        path.chmod(0o755)
        return path

    def is_user(self, number: int) -> None:
        self.stub(self.stubs / "id", f"echo {number}")

    def cargo(self, major: int, minor: int) -> str:
        return f'[ "$1" = --version ] && echo "cargo {major}.{minor}.1 (0123456 2026-01-01)"'

    def run(self, what: str = "run") -> subprocess.CompletedProcess[str]:
        self._calls.write_text("")
        return subprocess.run(
            [self.stubs / "sh", self.tree / "tools" / "setup.sh", what],
            env={"HOME": str(self.home), "PATH": str(self.stubs)},
            capture_output=True,
            text=True,
            check=False,
        )

    def calls(self) -> list[str]:
        """Since the last run began, without those that only ask."""
        asked = ("id ", "cargo --version", "python3 -c", "python -c")
        lines = self._calls.read_text().splitlines()
        return [line for line in lines if not line.startswith(asked)]


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


def refused(machine: Machine) -> list[str]:
    """The packages of the one line that is printed; nothing was done."""
    done = machine.run()
    assert done.returncode == 1 and done.stdout == ""
    lines = [line for line in done.stderr.splitlines() if "apt-get" in line]
    assert len(lines) == 1
    assert machine.calls() == []
    assert not (machine.tree / ".venv").exists()
    command, _, packages = lines[0].strip().partition(" --no-install-recommends ")
    assert command == "sudo apt-get install -y"
    return packages.split()


def test_a_missing_cargo_is_said_in_one_line(machine: Machine) -> None:
    assert refused(machine) == ["rustc-web", "cargo-web"]


@pytest.mark.parametrize("where", ["on PATH", "at home", "of the system"])
def test_a_cargo_that_is_too_old_counts_as_missing(machine: Machine, where: str) -> None:
    place = {
        "on PATH": machine.stubs / "cargo",
        "at home": machine.home / ".cargo" / "bin" / "cargo",
        "of the system": machine.usr / "bin" / "cargo",
    }[where]
    # 1.9 is older than 1.10: numbers, not text.
    for minor in (MINOR - 1, 9):
        machine.stub(place, machine.cargo(MAJOR, minor))
        assert refused(machine) == ["rustc-web", "cargo-web"]
    machine.stub(place, machine.cargo(MAJOR, MINOR))
    assert machine.run().returncode == 0


def test_a_new_cargo_behind_an_old_one_is_used(machine: Machine) -> None:
    machine.stub(machine.stubs / "cargo", machine.cargo(MAJOR, MINOR - 1))
    new = machine.stub(machine.usr / "bin" / "cargo", machine.cargo(MAJOR, MINOR))
    new.write_text(new.read_text().replace("cargo $*", "the new cargo $*"))
    assert machine.run().returncode == 0
    assert "the new cargo build" in machine.calls()


def test_all_that_is_missing_is_in_the_line(machine: Machine) -> None:
    (machine.stubs / "cc").unlink()
    (machine.usr / "bin" / "python3").unlink()
    (machine.usr / "include" / "stdio.h").unlink()
    assert refused(machine) == [
        *("python3", "python3-venv", "rustc-web", "cargo-web", "gcc", "libc6-dev")
    ]


def test_root_has_it_installed(machine: Machine) -> None:
    machine.is_user(0)
    assert machine.run().returncode == 0
    installs = [call for call in machine.calls() if call.startswith("apt-get")]
    assert installs == [
        "apt-get update -q",
        "apt-get install -q -y --no-install-recommends rustc-web cargo-web",
    ]


def test_what_an_installation_did_not_bring_is_said(machine: Machine) -> None:
    machine.is_user(0)
    machine.stub(machine.stubs / "apt-get")
    done = machine.run()
    assert done.returncode == 1
    assert "still missing after the installation: rustc-web cargo-web" in done.stderr


def test_the_second_time_does_nothing(machine: Machine) -> None:
    machine.stub(machine.stubs / "cargo", machine.cargo(MAJOR, MINOR))
    assert machine.run().returncode == 0
    first = machine.calls()
    assert "cargo build" in first
    assert [call for call in first if " pip install " in call and "build.txt" in call]
    assert not [call for call in first if "test.txt" in call]
    done = machine.run()
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert machine.calls() == []

    # The tests' packages come on top, and hold what `run` needs.
    assert machine.run("test").returncode == 0
    assert [call for call in machine.calls() if "requirements-test.txt" in call]
    for what in ("run", "test"):
        assert machine.run(what).returncode == 0 and machine.calls() == []

    (machine.tree / "native" / "src" / "lib.rs").write_text("// changed")
    assert machine.run().returncode == 0
    assert "cargo build" in machine.calls()


def test_a_setup_that_failed_is_done_again(machine: Machine) -> None:
    machine.stub(machine.stubs / "cargo", machine.cargo(MAJOR, MINOR))
    python = machine.usr / "bin" / "python3"
    good = python.read_text()
    machine.stub(python, PYTHON.replace("cargo build", "exit 101"))
    assert machine.run().returncode == 101
    python.write_text(good)
    shutil.copy(python, machine.tree / ".venv" / "bin" / "python")
    assert machine.run().returncode == 0
    assert "cargo build" in machine.calls()
