"""The wheel installs without network, compiler and cargo, needs no other package, and serves."""

from __future__ import annotations

import subprocess
import sys
import venv
import zipfile
from email.parser import Parser
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[2]
SOURCES = ("src", "native/src", "native/Cargo.toml", "native/Cargo.lock", "pyproject.toml")


def newest_source() -> float:
    files = [
        path
        for name in SOURCES
        for path in ([ROOT / name] if (ROOT / name).is_file() else (ROOT / name).rglob("*"))
        if path.is_file() and "__pycache__" not in path.parts and path.suffix != ".so"
    ]
    return max(path.stat().st_mtime for path in files)


def wheels() -> list[Path]:
    return sorted(ROOT.glob("dist/*.whl"), key=lambda path: path.stat().st_mtime)


@pytest.fixture(scope="module")
def wheel() -> Path:
    """The wheel in dist/, built anew when a source is newer."""
    if not wheels() or wheels()[-1].stat().st_mtime < newest_source():
        subprocess.run([sys.executable, "tools/build_wheel.py"], cwd=ROOT, check=True)
    return wheels()[-1]


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A new venv with nothing but the wheel; its bin directory is all of PATH."""
    place = tmp_path_factory.mktemp("installed") / "venv"
    venv.create(place, with_pip=True, symlinks=True)
    run(place, "python", "-m", "pip", "install", "--no-index", "--no-cache-dir", str(wheel))
    return place


def run(place: Path, program: str, *arguments: str) -> str:
    done = subprocess.run(
        [str(place / "bin" / program), *arguments],
        env={"PATH": str(place / "bin"), "HOME": str(place)},
        cwd=place,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_it_is_for_every_python_and_an_old_libc(wheel: Path) -> None:
    assert "-cp311-abi3-manylinux_2_28_" in wheel.name
    with zipfile.ZipFile(wheel) as content:
        names = content.namelist()
        (metadata,) = [name for name in names if name.endswith(".dist-info/METADATA")]
        head = Parser().parsestr(content.read(metadata).decode())
    assert head.get_all("Requires-Dist") is None
    native = [name for name in names if name.endswith(".so")]
    assert len(native) == 1 and native[0].startswith("o3storage/_native")
    # Only the program is in it.
    assert all(name.startswith(("o3storage/", "o3storage-")) for name in names)
    assert "o3storage/py.typed" in names


def test_it_needs_nothing(installed: Path) -> None:
    shown = run(installed, "python", "-m", "pip", "show", "o3storage")
    (requires,) = [line for line in shown.splitlines() if line.startswith("Requires:")]
    assert requires.split(":")[1].strip() == ""
    run(installed, "python", "-m", "pip", "check")
    listed = run(installed, "python", "-m", "pip", "list", "--format", "freeze").split()
    packages = {line.partition("==")[0] for line in listed}
    assert packages <= {"o3storage", "pip", "setuptools"}


SCRIPT = """
import http.client, sys
from o3storage.cli._client import Credentials, Signer
from o3storage.server import read_root_key, read_running
from pathlib import Path
from urllib.parse import urlsplit
data_dir = Path(sys.argv[1])
running, key = read_running(data_dir), read_root_key(data_dir)
at = urlsplit(running.url).netloc
signer = Signer(Credentials(key.key_id, key.secret), at, running.region)
body = bytes(range(256)) * 4000
connection = http.client.HTTPConnection(at)
for method, path, sent in (
    ("PUT", "/bucket", b""), ("PUT", "/bucket/k", body), ("GET", "/bucket/k", b"")
):
    connection.request(method, path, sent, signer.headers(method, path, "", "UNSIGNED-PAYLOAD", {}))
    answer = connection.getresponse()
    found = answer.read()
    assert answer.status == 200, (answer.status, found)
assert found == body
import o3storage
assert "site-packages" in o3storage.__file__, o3storage.__file__
"""


def test_it_serves(installed: Path, tmp_path: Path) -> None:
    data_dir = tmp_path / "data"
    assert "o3storage" in run(installed, "o3storage", "version")
    server = subprocess.Popen(
        [str(installed / "bin" / "o3storage"), "--port", "0", "--data-dir", str(data_dir)],
        env={"PATH": str(installed / "bin"), "HOME": str(tmp_path)},
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert server.stdout is not None
        for line in server.stdout:
            if line.lstrip().startswith("stop "):
                break
        else:
            raise AssertionError("it did not start")
        run(installed, "python", "-c", SCRIPT, str(data_dir))
        server.terminate()
        assert server.wait(timeout=60) == 0
    finally:
        server.kill()
        server.wait()
        if server.stdout is not None:
            server.stdout.close()
    checked = run(installed, "o3storage", "verify", "--data-dir", str(data_dir))
    assert "everything is good" in checked
    assert not (data_dir / "running.json").exists()
