"""docs/s3-coverage.md is complete and up to date."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

from o3storage import s3
from o3storage.s3 import CODES
from tests.s3.coverage import ROOT


def test_the_coverage_page_has_no_empty_row_and_is_not_stale() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tests.s3.coverage", "--check"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def test_every_code_is_raised_somewhere_and_no_other() -> None:
    source = "".join(
        path.read_text()
        for path in Path(s3.__file__).parent.glob("*.py")
        if path.name != "_errors.py"
    )
    quoted = set(re.findall(r'"([A-Z][A-Za-z0-9]+)"', source))
    assert set(CODES) <= quoted
    raised = set(re.findall(r'S3Error\(\s*"(\w+)"', source))
    assert raised <= set(CODES)
