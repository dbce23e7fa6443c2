"""What the pages name exists: files, functions, tests, commands, options, metrics, links, limits."""

from __future__ import annotations

import re
import runpy
from pathlib import Path

import pytest

from tests.docs.names import ROOT, command_options, constants, metric_names, problems

PAGES = sorted([ROOT / "README.md", ROOT / "CHANGELOG.md", *(ROOT / "docs").glob("*.md")])
OPERATIONS = ROOT / "docs" / "operations.md"

UNITS = {
    "": 1, "B": 1, "KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30, "B/s": 1, "KiB/s": 1 << 10,
    "s": 1, "min": 60, "h": 3600, "days": 24 * 3600, "connections": 1, "fields": 1,
}  # fmt: skip


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_name_exists(page: Path) -> None:
    assert problems(page) == []


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("`src/o3storage/storage/_log.py:LogWriter.write_batch_gone`", "no LogWriter.write_batch"),
        ("`src/o3storage/storage/_gone.py:LogWriter`", "no such file"),
        ("`tests/storage/test_crash.py:test_gone`", "no test_gone"),
        ("`test_buckets.py::test_gone`", "no test_gone"),
        ("`storage/_gone.py`", "no such file"),
        ("[text](gone.md)", "no such file to link to"),
        ("![text](gone.svg)", "no such file to link to"),
        ("`o3storage gone`", "no such command"),
        ("    o3storage verify --gone --data-dir D", "no such option"),
        ("```\no3storage key create --gone\n```", "no such option"),
        ("`--gone`", "no such option"),
        ("`make gone`", "no such target"),
        ("`O3_GONE`", "no such variable"),
        ("`o3_gone_total`", "no such metric"),
    ],
)
def test_a_stale_name_is_found(text: str, reason: str) -> None:
    found = problems(OPERATIONS, f"before {text} after" if re.match("`[^`]", text) else text)
    assert any(reason in problem for problem in found), found


def test_the_drawing_is_what_its_script_draws() -> None:
    drawn = runpy.run_path(str(ROOT / "tools" / "draw_architecture.py"))["draw"]()
    assert (ROOT / "docs" / "architecture.svg").read_text() == drawn


def test_names_that_exist_pass() -> None:
    text = """`src/o3storage/storage/_log.py:LogWriter._write_batch` `o3storage verify --repair`
`--data-dir` `make run` `O3_ROOT_USER` `o3_batches_total` [README](../README.md)

    eval "$(o3storage env --data-dir /srv/o3)"
"""
    assert problems(OPERATIONS, text) == []


def test_operations_names_every_option_of_serve_and_every_metric() -> None:
    text = OPERATIONS.read_text()
    wanted = {*command_options()["serve"], *metric_names()} - {"-h", "--help"}
    assert sorted(name for name in wanted if f"`{name}" not in text) == []


LIMIT = re.compile(r"\| `(src/o3storage/[\w/]+\.py):([\w.]+)` \| ([\d.,]+) ?([^|]*?) \|")


def wrong_limits(text: str) -> list[str]:
    """Rows `| file:CONSTANT | value unit | ...` whose value is not the constant's."""
    wrong = []
    for file, constant, number, unit in LIMIT.findall(text):
        value = constants(ROOT / file)[constant]
        factor = UNITS[unit] * (10**9 if constant.endswith("_NS") else 1)
        if float(number.replace(",", "")) * factor != value:
            wrong.append(f"{constant}: the page says {number} {unit}, the code {value}")
    return wrong


def test_limits_are_those_of_the_code() -> None:
    text = OPERATIONS.read_text()
    assert len(LIMIT.findall(text)) > 10
    assert wrong_limits(text) == []


def test_a_wrong_limit_is_found() -> None:
    row = "| `src/o3storage/http/_limits.py:MAX_HEAD_BYTES` | {} KiB | x |"
    assert wrong_limits(row.format(16)) == []
    assert len(wrong_limits(row.format(17))) == 1
