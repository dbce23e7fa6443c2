"""The file by which other commands find a running store: `running.json` in its data directory.

It holds no secret. It is written once the store listens and removed when it stops; after a crash
it is stale, which the reader notices when nothing answers.
"""

from __future__ import annotations

import contextlib
import json
import os
from dataclasses import dataclass
from pathlib import Path

FILE_NAME = "running.json"


@dataclass(frozen=True, slots=True)
class Running:
    pid: int
    url: str
    admin_url: str
    region: str
    peers: str = ""
    """Where other nodes reach this one, HOST:PORT; empty: nowhere."""


def write(data_dir: Path, running: Running) -> None:
    """Raises OSError."""
    path = data_dir / FILE_NAME
    temporary = data_dir / f"{FILE_NAME}.new"
    temporary.write_text(
        json.dumps(
            {
                "pid": running.pid,
                "url": running.url,
                "admin_url": running.admin_url,
                "region": running.region,
                "peers": running.peers,
            }
        )
        + "\n"
    )
    os.replace(temporary, path)


def read(data_dir: Path) -> Running | None:
    """None if no store has announced itself there, or the file is not ours."""
    try:
        found = json.loads((data_dir / FILE_NAME).read_text())
        return Running(
            int(found["pid"]),
            str(found["url"]),
            str(found["admin_url"]),
            str(found["region"]),
            str(found.get("peers", "")),
        )
    except (OSError, ValueError, KeyError, TypeError):
        return None


def remove(data_dir: Path) -> None:
    """As far as the disk lets it; what stays is stale."""
    with contextlib.suppress(OSError):
        (data_dir / FILE_NAME).unlink(missing_ok=True)
