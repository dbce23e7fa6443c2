"""An extract of the campaign of real faults (`python -m tests.cluster.campaign`), and of what it
finds when a node really lost something."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.cluster.campaign.__main__ import NOT_TESTED

MINUTES = os.environ.get("O3_CAMPAIGN_MINUTES", "1")
WHOLE_MINUTES = 3
"""In so many each kind of fault comes at least once."""
KINDS = ("kills", "partitions", "pauses", "full disks", "flipped bits", "wiped disks")
SEED = os.environ.get("O3_CAMPAIGN_SEED", "3")


@pytest.mark.slow
def test_kills_partitions_pauses_and_bad_disks(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tests.cluster.campaign", "--nodes", "3"]
    command += ["--minutes", MINUTES, "--seed", SEED, "--directory", str(tmp_path / "c")]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode == NOT_TESTED:
        pytest.skip(done.stdout.strip())
    notes = tmp_path / "c" / "faults.txt"
    shown = done.stdout + (notes.read_text() if notes.exists() else "")
    assert done.returncode == 0, shown
    assert "acknowledged puts" in done.stdout
    if float(MINUTES) >= WHOLE_MINUTES:
        counts = dict(line.rsplit(None, 1) for line in done.stdout.splitlines() if " " in line)
        assert [kind for kind in KINDS if not int(counts.get(kind, 0))] == [], shown
