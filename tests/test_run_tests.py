"""tools/run_tests.py: parts side by side, output whole, the first failure ends the rest."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).resolve()
ROOT = HERE.parent.parent
SPEC = importlib.util.spec_from_file_location("run_tests", ROOT / "tools" / "run_tests.py")
assert SPEC is not None and SPEC.loader is not None
run_tests = importlib.util.module_from_spec(SPEC)
sys.modules["run_tests"] = run_tests  # dataclasses ask for it
SPEC.loader.exec_module(run_tests)


def part(name: str, code: str, *, alone: bool = False, suite: str = "made"):
    return run_tests.Part(suite, name, (sys.executable, "-c", code), alone)


def waits_for(file: Path) -> str:
    return f"import os, time\nwhile not os.path.exists({str(file)!r}): time.sleep(0.01)\n"


def test_parts_run_side_by_side_and_each_output_is_whole(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Each of the first two waits for the other: one after the other they would never end."""
    one, two = tmp_path / "one", tmp_path / "two"
    parts = [
        part("1", f"open({str(one)!r}, 'w')\n{waits_for(two)}print('a1'); print('a2')"),
        part("2", f"print('b1')\nopen({str(two)!r}, 'w')\n{waits_for(one)}print('b2')"),
        part("3", "print('c1')"),
    ]
    assert run_tests.run(parts, 2, dict(os.environ)) == 0
    out = capsys.readouterr().out
    assert "a1\na2\n" in out and "b1\nb2\n" in out and "c1\n" in out
    assert out.splitlines()[-1].startswith("all suites passed")


def test_a_failure_ends_the_others_with_all_that_they_started(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pid = tmp_path / "pid"
    child = "import subprocess, sys\nc = subprocess.Popen(['sleep', '1000'])\n"
    long = f"{child}open({str(pid)!r}, 'w').write(str(c.pid))\nc.wait()"
    wait = f"{waits_for(pid)}while not open({str(pid)!r}).read(): time.sleep(0.01)\n"
    parts = [
        part("long", long),
        part(
            "bad",
            f"{wait}print('why'); sys.exit(3)".replace("import os, time", "import os, sys, time"),
        ),
        part("never", "print('not reached')"),
    ]
    assert run_tests.run(parts, 2, dict(os.environ)) == 1
    out = capsys.readouterr().out
    assert "made (bad): FAILED" in out and "why\n" in out and "not reached" not in out
    assert out.splitlines()[-1].startswith("made (bad) failed")
    state = Path(f"/proc/{pid.read_text()}/stat")
    assert not state.exists() or state.read_text().rsplit(")", 1)[1].split()[0] == "Z"


def test_a_part_that_measures_has_the_machine_for_itself(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    running = tmp_path / "running"
    mark = f"import os\nassert not os.path.exists({str(running)!r})\n"
    busy = f"{mark}open({str(running)!r}, 'w')\nos.remove({str(running)!r})"
    parts = [part("a", busy), part("b", busy, alone=True), part("c", busy), part("d", "")]
    assert run_tests.run([parts[0], parts[1], parts[2]], 2, dict(os.environ)) == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("==")]
    order = [line.split("(")[1][0] + line.split(":")[1][1] for line in lines]
    assert order == ["as", "ap", "bs", "bp", "cs", "cp"]


def test_a_part_that_collects_no_test_fails(capsys: pytest.CaptureFixture[str]) -> None:
    """Or a suite whose mark or folder was renamed would pass for ever."""
    for suite in ("fast", "crash"):
        empty = run_tests.tests(suite, "", str(HERE), "-k", "this_is_no_test")
        assert run_tests.run([empty], 2, dict(os.environ)) == 1
        assert "deselected" in capsys.readouterr().out


def test_a_hanging_part_fails(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(run_tests, "PART_LIMIT_S", 0)
    assert run_tests.run([part("", "input() if 0 else __import__('time').sleep(1000)")], 2, {}) == 1
    assert "FAILED" in capsys.readouterr().out


def test_a_divided_suite_leaves_no_test_out() -> None:
    """Of each suite in parts by paths, one part takes all that the others do not."""
    for suite in ("fast", "slow"):
        parts = [p.command for p in run_tests.PARTS if p.suite == suite]
        marked = {command[command.index("-m", 3) + 1] for command in parts}
        assert len(marked) == 1
        rest = parts[-1]
        left_out = [word.removeprefix("--ignore=") for word in rest if "--ignore=" in word]
        assert "tests" in rest
        assert left_out == [command[5] for command in parts[:-1]]
        assert all((ROOT / place).exists() for place in left_out)


def test_suites_with_a_folder_lie_in_it() -> None:
    """Their tests are looked for there only."""
    for suite in ("crash", "clients", "scale", "fuzz"):
        mark = f"pytest.mark.{suite}"
        marked = [path for path in (ROOT / "tests").rglob("test_*.py") if mark in path.read_text()]
        outside = [p for p in marked if ROOT / "tests" / suite not in p.parents and p != HERE]
        assert marked and not outside


def test_list_names_every_part() -> None:
    done = subprocess.run(
        [sys.executable, str(ROOT / "tools" / "run_tests.py"), "--list"],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert len(done.stdout.splitlines()) == len(run_tests.PARTS)
